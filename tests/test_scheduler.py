"""Many requests on one engine: equal to each alone, cancelled, preempted, failed, reused, closed."""

import _thread
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import glmlite

PARAMETERS = {"max_tokens": 24, "ignore_eos": True, "temperature": 1.0, "top_p": 1.0}


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)


@pytest.fixture
def slow(load, executor):
    """A model that takes a while to read 1500 tokens, and such a prompt."""
    if executor.__name__ == "twin_engine":
        model = load(sizes={"context": 2048}, parallel=1)
        model._engine.delay = 0.005
    else:
        model = load(sizes={"context": 2048, "dim": 512, "layers": 8, "ffn": 2048, "heads": 8}, parallel=1)
    return model, [i % 250 for i in range(1500)]


def prompts(count):
    """Different lengths, some with a common beginning, some the same."""
    common = [5 + i % 90 for i in range(70)]
    return [common[: 7 * i % 70] + [(11 * i + j) % 250 for j in range(1 + 5 * (i // 2))] for i in range(count)]


@pytest.mark.parametrize("architecture", ["chatglm", "chatglm1"])
def test_sixteen_threads_equal_their_single_runs(load, architecture):
    sizes = {"layers": 1}
    model = load(architecture, sizes)
    end = [model.tokenizer.id_of("[gMASK]"), model.tokenizer.id_of("<sop>")] if architecture == "chatglm1" else []
    asked = [p + end for p in prompts(16)]

    def run(i, on):
        return on.generate(asked[i], seed=i, logprobs=1, **PARAMETERS)

    alone = [run(i, model) for i in range(16)]
    fresh = load(architecture, sizes, parallel=3)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda i: run(i, fresh), range(16)))
    for a, b in zip(alone, together):
        assert len(a.tokens) == 24
        assert (a.tokens, a.text, a.logprobs) == (b.tokens, b.text, b.logprobs)


def test_a_small_pool_starts_requests_over_and_changes_nothing(load):
    """Four requests that grow to two pages each share four pages."""
    sizes = {"context": 256, "layers": 1}
    asked = [[(31 * i + j) % 250 for j in range(60)] for i in range(4)]
    long = PARAMETERS | {"max_tokens": 40}
    alone = [load(sizes=sizes).generate(p, seed=1, **long).tokens for p in asked]
    model = load(sizes=sizes, parallel=4)
    assert model._engine.kv_tokens == 256
    preempted = []
    preempt = model._scheduler._preempt
    model._scheduler._preempt = lambda request: (preempted.append(request), preempt(request))
    with model._scheduler._lock:  # none ends before the last begins
        running = [model.stream(p, seed=1, **long) for p in asked]
    assert [generation.result().tokens for generation in running] == alone
    assert preempted


def test_reuse_of_a_prefix_equals_a_fresh_run(load):
    model = load()
    first = [7 * i % 250 for i in range(100)]
    answer = model.generate(first, seed=1, **PARAMETERS)
    cases = {
        "continued": (first + answer.tokens + [3, 4, 5], 100 + 24 - 1),
        "the same again": (first, 99),
        "parted in the middle": ([*first[:70], 9, 9, 9], 70),
        "nothing in common": ([249, *first], 0),
    }
    for name, (ids, reused) in cases.items():
        again = model.generate(ids, seed=2, **PARAMETERS)
        assert again.stats.reused_tokens == reused, name
        fresh = load().generate(ids, seed=2, **PARAMETERS)
        assert fresh.stats.reused_tokens == 0
        assert again.tokens == fresh.tokens, name


def test_a_whole_context_fits_beside_a_prefix(load):
    """A P-Tuning prefix that ends within a page, which each sequence has to copy."""
    sizes = {"prefix": 100, "layers": 1}
    model = load(sizes=sizes)
    asked = [[i] * 100 for i in range(3)]
    alone = [model.generate(p, seed=1, **PARAMETERS | {"max_tokens": 1000}) for p in asked]
    assert [len(c.tokens) for c in alone] == [156] * 3
    with ThreadPoolExecutor(3) as pool:
        together = pool.map(lambda p: model.generate(p, seed=1, **PARAMETERS | {"max_tokens": 1000}), asked)
        assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_a_bidirectional_context_is_never_reused(load):
    model = load("glm")
    ids = model.prompt_ids("the other [MASK] there")
    a = model.generate(ids, seed=1, **PARAMETERS)
    b = model.generate(ids + a.tokens, seed=1, **PARAMETERS)
    assert a.stats.reused_tokens == b.stats.reused_tokens == 0


def test_kept_sequences_give_way(load):
    model = load(sizes={"context": 256})
    for i in range(8):
        model.generate([(i + j * 7) % 250 for j in range(100)], max_tokens=1)
    scheduler = model._scheduler
    until(lambda: not scheduler._active)
    assert model.status().kept == 2  # two pages each, of four
    assert model._engine.kv_free() >= 0


# ---- cancelling


def test_abandoned_iterators_free_their_slot(slow):
    model, prompt = slow
    held = []

    def loop_left_early():
        generation = model.stream(prompt[:20], **PARAMETERS)
        held.append(generation)
        for piece in generation:
            assert piece.tokens
            break
        return generation._request

    def lost():
        generation = model.stream(prompt, **PARAMETERS)
        return generation._request

    def block_left():
        with model.stream(prompt) as generation:
            held.append(generation)
        return generation._request

    for abandon in (loop_left_early, lost, block_left):
        request = abandon()
        gc.collect()
        assert request.cancelled, abandon
        until(lambda: not model._scheduler._active and not model._scheduler._queue)
    assert [g.result().finish_reason for g in held] == ["cancelled"] * 2
    assert len(model.generate([1, 2, 3], **PARAMETERS).tokens) == 24


def test_cancel_while_reading_ends_at_once(slow):
    model, prompt = slow
    generation = model.stream(prompt)
    until(lambda: model._scheduler._active)
    time.sleep(0.05)
    begin = time.monotonic()
    generation.cancel()
    done = generation.result()
    assert (done.finish_reason, done.tokens, done.text) == ("cancelled", [], "")
    until(lambda: not model._scheduler._active)
    assert time.monotonic() - begin < 7.0  # the twin needs 7.5 s for the whole prompt


def test_cancel_in_the_queue(slow):
    model, prompt = slow
    first = model.stream(prompt)
    until(lambda: model._scheduler._active)
    second = model.stream(prompt)
    second.cancel()
    assert second.result().finish_reason == "cancelled"
    assert not first.finished
    first.cancel()
    until(lambda: not model._scheduler._active and not model._scheduler._queue)


def test_a_cancelled_answer_keeps_what_was_delivered(load):
    model = load()
    generation = model.stream([1, 2, 3], seed=1, **PARAMETERS | {"max_tokens": 200})
    first = next(generation)
    generation.cancel()
    done = generation.result()
    assert done.finish_reason == "cancelled"
    assert done.tokens[: len(first.tokens)] == first.tokens
    whole = model.generate([1, 2, 3], seed=1, **PARAMETERS | {"max_tokens": 200})
    assert whole.tokens[: len(done.tokens)] == done.tokens


def test_cancelling_one_does_not_change_another(load):
    model = load()
    want = load().generate([1, 2, 3], seed=1, **PARAMETERS | {"max_tokens": 150}).tokens
    kept = model.stream([1, 2, 3], seed=1, **PARAMETERS | {"max_tokens": 150})
    for i in range(10):
        other = model.stream([i, 2, 3] * 20, **PARAMETERS)
        time.sleep(0.003)
        other.cancel()
    assert kept.result().tokens == want


def test_keyboard_interrupt_cancels_and_propagates(slow):
    model, prompt = slow
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt)
        time.sleep(5)  # a machine that read all of it within 0.2 s is interrupted here
    timer.join()
    until(lambda: not model._scheduler._active)
    assert model.generate([1, 2], **PARAMETERS).finish_reason == "length"


@pytest.mark.parametrize("architecture", ["chatglm", "chatglm1"])
def test_an_answer_that_nobody_watches_comes_whole(load, architecture):
    model = load(architecture, {"layers": 1}, parallel=2)
    prompt = [5, 6, 7] + (
        [model.tokenizer.id_of("[gMASK]"), model.tokenizer.id_of("<sop>")] if "1" in architecture else []
    )
    asked = {"seed": 3, "logprobs": 1, "stop": "qq", **PARAMETERS}
    whole = model.generate(prompt, **asked)
    for taken in (0, 3, len(whole.tokens)):  # pieces that came before anybody said so
        generation = model.stream(prompt, **asked)
        for _ in range(taken):
            if not generation.finished:
                next(generation)
        ended = threading.Event()
        woken = []
        generation.on_end(lambda woken=woken, ended=ended: (woken.append(1), ended.set()))
        assert ended.wait(60)
        again = generation.result()
        assert (again.text, again.tokens, again.logprobs) == (whole.text, whole.tokens, whole.logprobs)
        assert again.finish_reason == whole.finish_reason and woken == [1]


def test_whoever_waits_for_the_end_hears_of_a_cancel_and_of_an_error(slow):
    model, long = slow
    ended = threading.Event()
    generation = model.stream(long, max_tokens=5)
    generation.on_end(ended.set)
    generation.cancel()
    assert ended.wait(60) and generation.result().finish_reason == "cancelled"
    ended = threading.Event()
    generation = model.stream(long, max_tokens=5)
    generation.on_end(ended.set)
    model.close()
    assert ended.wait(60)
    with pytest.raises(glmlite.Closed):
        generation.result()


def test_ctrl_c_leaves_no_lock_behind(load):
    """It comes most often when the lock has just been had, because the main thread waits for its turn to run then."""
    scheduler = load(sizes={"layers": 1})._scheduler
    done = threading.Event()
    armed = False  # so that none comes where nothing catches it
    left = 0

    def raise_once(*_):
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    def hold():
        while not done.is_set():
            with scheduler._lock:
                sum(range(300))

    def interrupt():
        for _ in range(100):
            time.sleep(0.003)
            _thread.interrupt_main()
        done.set()

    before = signal.signal(signal.SIGINT, raise_once)
    threads = [threading.Thread(target=target) for target in (hold, hold, interrupt)]
    try:
        for thread in threads:
            thread.start()
        while not done.is_set():
            try:
                armed = True
                while not done.is_set():
                    scheduler.status()
                armed = False
            except KeyboardInterrupt:
                while scheduler._changed._is_owned():
                    left += 1
                    scheduler._lock.release()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        signal.signal(signal.SIGINT, before)
    assert left == 0


def test_an_exception_of_on_progress_cancels(slow):
    model, prompt = slow

    def progress(done, total):
        assert 0 <= done <= total == len(prompt)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.generate(prompt, on_progress=progress, max_tokens=1)
    until(lambda: not model._scheduler._active)


# ---- failures


class Seen(NamedTuple):
    tokens: list
    work: object


class Engine:
    """Around an engine, and the module it is from: waits for `go`, fails for calls with a token it does not like."""

    def __init__(self, model, bad=-1):
        scheduler = model._scheduler
        self.engine, self.native, self.bad = scheduler.engine, scheduler.native, bad
        self.go = threading.Event()
        scheduler.engine = scheduler.native = self

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def Cancel(self):
        return self.native.Cancel()

    def Work(self, sequence, tokens, *rest, **options):
        return Seen(tokens.tolist(), self.native.Work(sequence, tokens, *rest, **options))

    def run(self, works, **options):
        self.go.wait(10)
        if any(self.bad in w.tokens for w in works):
            raise RuntimeError("logits are not finite")
        return self.engine.run([w.work for w in works], **options)

    def step(self, works, rows, cancel):
        return self.engine.step([w.work for w in works], rows, cancel)


def test_a_failing_request_fails_alone(load):
    options = PARAMETERS | {"logit_bias": {250: -1e5}, "seed": 1}
    asked = [[i, i + 1, i + 2] for i in range(0, 12, 2)]
    alone = load()
    want = [alone.generate(p, **options).tokens for p in asked]
    model = load(parallel=8)
    engine = Engine(model, bad=250)
    running = [model.stream(p, **options) for p in [[250, 1, 2], *asked[:3], [3, 250], *asked[3:]]]
    engine.go.set()
    broken = [running.pop(4), running.pop(0)]
    assert [g.result().tokens for g in running] == want
    for generation in broken:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not finite"):
                generation.result()
    until(lambda: not model._scheduler._active)


def test_logits_that_start_over_come_once(load):
    """The generation, which is older, grows into the last page while the logits are read."""
    ids = [i % 250 for i in range(440)]
    want = load(sizes={"context": 512}).logits(ids, all=True)
    model = load(sizes={"context": 512})
    engine = Engine(model)
    preempted = []
    preempt = model._scheduler._preempt
    model._scheduler._preempt = lambda request: (preempted.append(request.rows_done), preempt(request))
    running = model.stream([7] * 62, **PARAMETERS)
    until(lambda: model._scheduler._active)
    with ThreadPoolExecutor(1) as pool:
        logits = pool.submit(model.logits, ids, all=True)
        until(lambda: model._scheduler._queue)
        engine.go.set()
        got = logits.result()
    assert preempted
    assert 0 < preempted[0] < 440
    assert np.array_equal(got, want)
    assert len(running.result().tokens) == 24


def test_a_mistake_in_the_scheduler_does_not_end_its_thread(load, monkeypatch, caplog):
    model = load()
    plan = model._scheduler._plan
    monkeypatch.setattr(model._scheduler, "_plan", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate([1, 2], **PARAMETERS)
    monkeypatch.setattr(model._scheduler, "_plan", plan)
    assert model.generate([1, 2], **PARAMETERS).finish_reason == "length"
    assert "scheduler" in caplog.text


# ---- the end


def test_close_fails_what_runs_and_waits(slow):
    model, prompt = slow
    running, waiting = (model.stream(prompt) for _ in range(2))
    until(lambda: model._scheduler._active)
    begin = time.monotonic()
    model.close()
    assert time.monotonic() - begin < 7.0
    for generation in (running, waiting):
        with pytest.raises(RuntimeError, match="closed"):
            generation.result()
    with pytest.raises(RuntimeError, match="closed"):
        model.generate([1])
    model.close()
    assert model.closed


def test_a_lost_model_ends_its_thread(executor, tiny_file):
    model = glmlite.load(tiny_file())
    model.generate([1, 2], max_tokens=2)
    thread = model._scheduler._thread
    generation = model.stream([1, 2], max_tokens=20, ignore_eos=True)
    del model
    gc.collect()
    answer = generation.result()
    assert (len(answer.tokens), answer.finish_reason) == (20, "length")
    del generation
    gc.collect()
    thread.join(5.0)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_is_told(load):
    model = load()
    model.generate([1, 2], max_tokens=2)
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            model.generate([1, 2], max_tokens=2)
        except RuntimeError as error:
            model.close()
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_interpreter_ends_while_a_request_runs(executor, tiny_file):
    """With the iterator half used, in an interpreter of its own."""
    path = tiny_file(context=2048)
    script = f"""
        import sys, glmlite
        from glmlite import placement
        if {executor.__name__ == "twin_engine"}:
            import twin_engine
            placement.backend = lambda device: twin_engine
        model = glmlite.load(sys.argv[1])
        generation = model.stream([1, 2], ignore_eos=True)
        next(generation)
        print("running")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(glmlite.__file__).parents[1],  # else a checkout hides the installed package
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "running\n", "")
