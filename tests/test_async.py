"""Coroutines (`async for`, `await`, `aload`), what a cancelled task ends, and `Cancel`."""

import asyncio
import threading
import time

import pytest

import glmlite

PARAMETERS = {"max_tokens": 12, "ignore_eos": True, "seed": 1}
MESSAGES = [{"role": "user", "content": "the other hell"}]
LONG = [1 + i % 200 for i in range(250)]


def idle(model):
    """Whether nothing runs or waits, within a second."""
    deadline = time.monotonic() + 1
    scheduler = model._scheduler
    while (scheduler._active or scheduler._queue) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not (scheduler._active or scheduler._queue)


def slow(model, seconds=0.02):
    """Makes each call of the engine last, that a test can come between; returns the calls' starts."""
    calls, engine = [], model._engine

    class Slow:
        def __getattr__(self, name):
            return getattr(engine, name)

        def run(self, *arguments, **options):
            calls.append(time.monotonic())
            time.sleep(seconds)
            return engine.run(*arguments, **options)

    model._scheduler.engine = Slow()
    return calls


# ---- coroutines


def test_async_for_and_await_give_what_threads_get(load):
    model = load("glm4")
    want = model.chat(MESSAGES, **PARAMETERS)

    async def main():
        pieces = [piece async for piece in model.chat_stream(MESSAGES, **PARAMETERS)]
        whole = await model.chat_stream(MESSAGES, **PARAMETERS)
        both = await asyncio.gather(*(model.stream("the", seed=i, max_tokens=5) for i in range(3)))
        return pieces, whole, both

    pieces, whole, both = asyncio.run(main())
    assert [t for p in pieces for t in p.tokens] == whole.tokens == want.tokens
    assert pieces[-1].finish_reason == whole.finish_reason == "length"
    assert [b.tokens for b in both] == [model.generate("the", seed=i, max_tokens=5).tokens for i in range(3)]


def test_the_loop_runs_while_a_coroutine_waits(load):
    model = load()
    slow(model)

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        await model.stream("the", max_tokens=40, ignore_eos=True)
        ticking.cancel()
        return ticks

    assert asyncio.run(main()) >= 10


@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_cancelled_task_cancels_its_request(load, where):
    model = load("glm4", sizes={"context": 512})
    calls = slow(model, 0.05)

    async def main():
        prompt = LONG if where == "reading" else [1, 2]
        task = asyncio.ensure_future(_awaited(model.stream(prompt, ignore_eos=True)))
        while len(calls) < (1 if where == "reading" else 3):
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert idle(model)
    assert model.generate("the", **PARAMETERS).tokens


async def _awaited(generation):
    return await generation


def test_a_loop_that_is_left_cancels(load):
    model = load("glm4", sizes={"context": 512})
    slow(model)

    async def main():
        generation = model.stream([1, 2], ignore_eos=True)
        async for _ in generation:
            break
        with pytest.raises(ZeroDivisionError):
            async for _ in model.stream([1, 2], ignore_eos=True):
                raise ZeroDivisionError
        return generation

    kept = asyncio.run(main())
    assert idle(model)
    assert kept.result().finish_reason == "cancelled"


def test_progress_and_what_it_raises_in_a_coroutine(load):
    model = load("glm4", sizes={"context": 512})
    seen = []

    async def main():
        await model.stream(LONG, max_tokens=1, on_progress=lambda *x: seen.append(x))
        with pytest.raises(ZeroDivisionError):
            await model.stream(LONG, max_tokens=1, on_progress=lambda *x: 1 / 0)

    asyncio.run(main())
    assert seen[-1] == (250, 250)
    assert seen == sorted(seen)
    assert idle(model)


def test_aload(executor, tiny_file):
    seen = []

    async def main():
        with await glmlite.aload(tiny_file(), context=64, progress=seen.append) as model:
            return (await model.stream("the", max_tokens=3, ignore_eos=True)).tokens

    assert len(asyncio.run(main())) == 3
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    with pytest.raises(FileNotFoundError):
        asyncio.run(glmlite.aload("not there.gguf"))


def test_a_cancelled_task_ends_its_load(executor, tiny_file):
    reached, ended = threading.Event(), threading.Event()

    def progress(done):
        reached.set()
        time.sleep(0.005)
        if done == 1.0:
            ended.set()

    async def main():
        task = asyncio.ensure_future(glmlite.aload(tiny_file("glm4"), progress=progress))
        while not reached.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not ended.is_set()


# ---- Cancel


def test_a_cancel_before_the_work(load, tiny_file):
    """Ends it all the same: a Stop may be clicked before there is a request."""
    cancel = glmlite.Cancel()
    model = load("glm")
    assert not cancel.cancelled
    cancel.cancel()
    cancel.cancel()
    assert cancel.cancelled
    assert "cancelled" in repr(cancel)
    done = model.generate("in [MASK]", ignore_eos=True, cancel=cancel)
    assert done.finish_reason == "cancelled"
    assert model.infill("in [MASK], in [MASK]", cancel=cancel).completions[-1].finish_reason == "cancelled"
    with pytest.raises(glmlite.Cancelled, match="logits"):
        model.logits("in [MASK]", cancel=cancel)
    with pytest.raises(glmlite.Cancelled, match="load"):
        glmlite.load(tiny_file(), cancel=cancel)
    assert load("glm4").chat(MESSAGES, ignore_eos=True, cancel=cancel).finish_reason == "cancelled"
    assert idle(model)


def test_a_cancel_during_the_work_ends_each_call_it_was_given_to(load):
    model = load("glm4", sizes={"context": 512}, kv_tokens=2048)
    calls = slow(model)
    cancel, answers = glmlite.Cancel(), []

    def ask(**options):
        answers.append(model.generate([1, 2], max_tokens=300, ignore_eos=True, **options).finish_reason)

    asking = [threading.Thread(target=ask, kwargs={"cancel": cancel}) for _ in range(2)]
    other = threading.Thread(target=ask)
    for thread in [*asking, other]:
        thread.start()
    while len(calls) < 4:
        time.sleep(0.002)
    cancel.cancel()
    for thread in asking:
        thread.join(5)
    assert answers == ["cancelled"] * 2
    other.join(20)
    assert answers == ["cancelled", "cancelled", "length"]


def test_a_cancel_during_a_load(executor, tiny_file):
    cancel = glmlite.Cancel()
    with pytest.raises(glmlite.Cancelled):
        glmlite.load(tiny_file("glm4"), progress=lambda done: cancel.cancel() if done > 0.1 else None, cancel=cancel)


def test_a_cancel_remembers_nothing_that_has_ended(load):
    model, cancel = load(), glmlite.Cancel()
    for _ in model.stream("the", cancel=cancel, **PARAMETERS):
        pass
    model.generate("the", cancel=cancel, **PARAMETERS)
    model.stream("the", cancel=cancel, **PARAMETERS).close()
    model.stream("the", cancel=cancel, **PARAMETERS)
    model.logits("the", cancel=cancel)
    assert not cancel._ends


# ---- closed


def test_a_closed_model_says_so(load):
    model = load()
    generation = model.stream("the", max_tokens=200, ignore_eos=True)
    model.close()
    with pytest.raises(glmlite.Closed):
        generation.result()
    for call in (lambda: model.generate("the"), lambda: model.logits("the"), lambda: asyncio.run(_again(model))):
        with pytest.raises(glmlite.Closed, match="closed"):
            call()


async def _again(model):
    return await model.stream("the")
