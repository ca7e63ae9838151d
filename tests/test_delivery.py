"""How results reach threads, coroutines and callbacks: in order, none lost, and nobody wakes while there are none."""

import _thread
import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import glmlite
from glmlite import delivery
from glmlite.delivery import Events

ASKED = {"max_tokens": 30, "ignore_eos": True, "seed": 1}


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)


def hold(model):
    """Makes the engine wait before its next call until what this returns is set."""
    engine, go = model._engine, threading.Event()

    class Held:
        once = False  # each call waits anew

        def __getattr__(self, name):
            return getattr(engine, name)

        def run(self, *arguments, **options):
            assert go.wait(20)
            if self.once:
                go.clear()
            return engine.run(*arguments, **options)

    model._scheduler.engine = Held()
    return go


@pytest.fixture
def held(load):
    """A model that is held up, and the event that lets it go."""
    model = load("glm4", sizes={"context": 512}, parallel=2)
    go = hold(model)
    yield model, go
    go.set()


# ---- events


def test_events_come_in_order_and_without_waiting_none():
    events = Events()
    assert events.get_nowait() is None
    for i in range(5):
        events.put(i)
    assert [events.get(), *(events.get_nowait() for _ in range(5))] == [0, 1, 2, 3, 4, None]


def test_a_callback_is_called_for_what_comes_and_for_what_is_there():
    events, calls = Events(), []
    events.on_event(lambda: calls.append("first"))
    assert calls == []
    events.put(1)
    events.on_event(lambda: calls.append("second"))
    events.put(2)
    events.on_event(None)
    events.put(3)
    assert calls == ["first", "second", "second"]
    assert [events.get() for _ in range(3)] == [1, 2, 3]


def test_what_a_callback_raises_is_logged_and_loses_nothing(caplog):
    events = Events()
    events.on_event(lambda: 1 / 0)
    events.put(1)
    assert events.get_nowait() == 1
    assert "on_event" in caplog.text and "ZeroDivisionError" in caplog.text


def test_what_a_callback_ends_a_program_with_does_not_end_the_engine(load, caplog):
    model = load()
    running = model.stream("the", **ASKED)
    running.on_event(lambda: running.finished or sys.exit(3))
    assert running.result().finish_reason == "length"
    assert "on_event" in caplog.text and "SystemExit" in caplog.text
    assert model.generate("the", **ASKED).text


def test_a_callback_that_would_wait_for_its_own_engine_is_told(load):
    model, told = load(), []

    def wake():
        for wait in (lambda: model.generate("the"), lambda: model.logits("the"), running.result):
            with pytest.raises(RuntimeError, match="on the engine's own thread"):
                wait()
            told.append(wait)

    running = model.stream("the", **ASKED)
    running.on_event(wake)
    until(lambda: len(told) >= 3)
    assert model.generate("the", **ASKED).text


def test_what_cannot_be_called_is_told(load):
    running = load().stream("the", **ASKED)
    for call in (running.on_event, running.on_end):
        with pytest.raises(TypeError, match="wake is 5, expected a function"):
            call(5)
    running.on_event(None)
    assert running.result().finish_reason == "length"


def test_an_answer_that_is_whole_is_there_in_a_callback(load):
    model, whole = load(), []
    running = model.stream("the", **ASKED)
    running.on_end(lambda: whole.append(running.result()))
    until(lambda: whole)
    assert whole[0].text == model.generate("the", **ASKED).text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_is_told_that_nothing_comes():
    program = """
import os, threading, warnings, glmlite
warnings.simplefilter("ignore")
model, go = glmlite.load(), threading.Event()
running = model.stream("the", ignore_eos=True, max_tokens=400)
running.on_event(go.wait)
next(running)
if os.fork() == 0:
    running.on_event(None)
    told = 0
    for wait in (running.result, lambda: model.generate("the"), lambda: model.threads, model.status):
        try:
            wait()
        except RuntimeError as error:
            told += "before this process was forked" in str(error)
    os._exit(told)
go.set()
told = os.waitstatus_to_exitcode(os.wait()[1])
print(told, running.result().finish_reason)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("4 length\n", "")


def test_a_callback_may_close_the_model_before_the_program_ends():
    program = """
import glmlite
model = glmlite.load()
running = model.stream("the", ignore_eos=True, max_tokens=400)
running.on_event(model.close)
try:
    running.result()
except glmlite.Closed:
    print("closed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("closed\n", "", 0)


def test_no_event_is_lost_where_a_callback_is_set_meanwhile():
    for _ in range(200):
        events, got = Events(), []
        putting = threading.Thread(target=lambda events=events: [events.put(i) for i in range(20)])
        putting.start()

        def take(events=events, got=got):
            while (event := events.get_nowait()) is not None:
                got.append(event)

        woken = threading.Semaphore(0)
        events.on_event(woken.release)
        while len(got) < 20:
            assert woken.acquire(timeout=10)
            take()
        putting.join()
        assert got == list(range(20))


def test_a_wait_without_a_report_has_no_end_but_in_the_main_thread():
    seen = []

    class Queue:
        def get(self, timeout):
            seen.append(timeout)
            return 1

    events = Events()
    events._queue = Queue()
    events.get()
    for waiting in (None, lambda: None):
        other = threading.Thread(target=events.get, args=[waiting])
        other.start()
        other.join()
    assert seen == [delivery.TICK, None, delivery.TICK]


def test_a_key_ends_a_wait_of_the_main_thread():
    """Also where the system does not interrupt the wait itself."""
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Events().get()
    timer.join()


# ---- waiting


def wakes(thread):
    """How often the system has put a thread of this process to sleep."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("voluntary_ctxt")).split()[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what Linux tells of a thread")
def test_sixty_four_who_wait_do_not_wake(held):
    model, go = held
    answers = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(model.generate([1, i], **ASKED).finish_reason))
        for i in range(64)
    ]
    for thread in threads:
        thread.start()
    until(lambda: sum(model.status()[:2]) == 64)
    time.sleep(0.1)  # the last of them has to fall asleep
    before = [wakes(thread) for thread in threads]
    time.sleep(5 * delivery.TICK)
    assert [wakes(thread) for thread in threads] == before
    go.set()
    for thread in threads:
        thread.join(30)
    assert answers == ["length"] * 64


def test_coroutines_that_wait_set_no_timer(held, monkeypatch):
    model, go = held
    timers = []

    async def main():
        loop = asyncio.get_running_loop()
        asked = [asyncio.ensure_future(_whole(model.stream([1, i], **ASKED))) for i in range(64)]
        await asyncio.sleep(0)
        call_at = loop.call_at
        monkeypatch.setattr(loop, "call_at", lambda *a, **k: timers.append(a) or call_at(*a, **k))
        go.set()
        return await asyncio.gather(*asked)

    assert [len(answer.tokens) for answer in asyncio.run(main())] == [30] * 64
    assert timers == []


async def _whole(generation):
    return await generation


def test_progress_is_reported_while_the_prompt_is_read_only(held):
    model, go = held
    model._scheduler.engine.once = True
    seen = []
    generation = model.stream([1, 2], on_progress=lambda *x: seen.append(x), **ASKED)
    threading.Timer(3 * delivery.TICK, go.set).start()
    next(generation)
    assert seen[0] == (0, 2) and seen[-1] == (2, 2)
    told = len(seen)
    threading.Timer(3 * delivery.TICK, go.set).start()
    next(generation)
    assert len(seen) == told


# ---- without waiting


def test_a_callback_and_take_give_what_a_loop_gives(load):
    model = load("glm4", sizes={"context": 512})
    want = model.generate([1, 2], **ASKED)

    async def main():
        loop, pieces, ended = asyncio.get_running_loop(), [], asyncio.Event()
        threads = set()

        def take():
            while (piece := generation.take()) is not None:
                pieces.append(piece)
            if generation.finished:
                ended.set()

        def wake():
            threads.add(threading.current_thread())
            loop.call_soon_threadsafe(take)

        generation = model.stream([1, 2], **ASKED)
        generation.on_event(wake)
        await asyncio.wait_for(ended.wait(), 20)
        assert threads <= {model._scheduler._thread, threading.current_thread()}
        return generation, pieces

    generation, pieces = asyncio.run(main())
    assert [t for piece in pieces for t in piece.tokens] == want.tokens
    assert pieces[-1].finish_reason == "length"
    assert generation.take() is None
    assert generation.result().text == want.text


def test_take_raises_what_the_request_failed_with(held):
    model, go = held
    generation = model.stream([1, 2], **ASKED)
    assert generation.take() is None
    assert not generation.finished
    closing = threading.Thread(target=model.close)
    closing.start()
    until(lambda: model.closed)
    go.set()
    closing.join(10)
    for _ in range(2):
        with pytest.raises(glmlite.Closed):
            while generation.take() is not None:
                pass


def test_a_callback_is_told_of_a_cancel(held):
    model, _ = held
    calls = []
    generation = model.stream([1, 2], **ASKED)
    generation.on_event(lambda: calls.append(generation.take().finish_reason))
    generation.cancel()
    assert calls == ["cancelled"]
    assert generation.finished


def test_a_callback_stays_while_a_coroutine_waits(held):
    model, go = held
    calls = []

    async def main():
        generation = model.stream([1, 2], **ASKED)
        generation.on_event(lambda: calls.append(1))
        waiting = asyncio.ensure_future(generation.__aiter__().__anext__())
        await asyncio.sleep(0.01)
        go.set()
        await waiting
        return generation

    generation = asyncio.run(main())
    before = len(calls)
    generation.cancel()
    assert len(calls) > before


# ---- what is told on the way


def test_progress_and_place(held):
    model, go = held
    first = model.stream([1, 2, 3, 4], **ASKED)
    until(lambda: model.status().running == 1)
    others = [model.stream([5, i], **ASKED) for i in range(3)]
    assert [g.place for g in (first, *others)] == [0, 1, 2, 3]
    assert first.progress == (0, 4, 0)
    others[0].close()
    assert [g.place for g in others] == [0, 1, 2]
    go.set()
    for generation in (first, *others):
        generation.result()
    assert [g.place for g in (first, *others)] == [0, 0, 0, 0]
    assert first.progress == (4, 4, 0)
    again = model.stream([1, 2, 3, 4, 5], **ASKED)
    again.result()
    assert again.progress == glmlite.Progress(done=5, total=5, reused=4)
    assert model.status().cancelled == 1


def test_a_busy_model_says_so(load):
    model = load("glm4", sizes={"context": 512}, parallel=1, max_queue=1)
    go = hold(model)
    running = [model.stream([1, i], **ASKED) for i in range(2)]
    with pytest.raises(glmlite.Busy, match="ask again later") as busy:
        model.chat([{"role": "user", "content": "hello"}])
    assert busy.value.waiting in (1, 2)
    go.set()
    assert [len(generation.result().tokens) for generation in running] == [30, 30]
    assert model.generate([1, 2], **ASKED).tokens


@pytest.mark.parametrize("max_queue", [-1, True, 1.5])
def test_a_bad_max_queue_is_named(tiny_file, max_queue):
    with pytest.raises((ValueError, TypeError), match="max_queue"):
        glmlite.load(tiny_file(), max_queue=max_queue)
