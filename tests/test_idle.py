"""Models that give their memory back when nobody uses them (`idle_unload`), by a clock that the tests turn."""

import asyncio
import shutil
import sys
import threading
import time
from types import SimpleNamespace

import pytest

import glmlite
from glmlite import builtin

SECONDS = 60.0
ASK = {"max_tokens": 4, "temperature": 0}


class Clock:
    """now: seconds; it goes on when a test says so."""

    def __init__(self):
        self.now = 0.0

    def go(self, model, seconds):
        """Lets the model's thread, which sleeps, see that so much has passed."""
        self.now += seconds
        with model._scheduler._changed:
            model._scheduler._changed.notify_all()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("glmlite.scheduler.time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.fixture
def load(clock, tmp_path):
    """A function that loads a copy of the built-in model, idle_unload being SECONDS."""
    models = []

    def load(**options):
        path = tmp_path / "model.gguf"
        if not path.exists():
            shutil.copyfile(builtin.path(), path)
        models.append(glmlite.load(path, idle_unload=SECONDS, **options))
        return models[-1]

    yield load
    for model in models:
        model.close()


def unload(model, clock):
    until(lambda: not model._scheduler._active)
    time.sleep(0.02)  # its thread is about to sleep, and notes when
    clock.go(model, SECONDS + 1)
    until(lambda: not model.loaded)


@pytest.mark.parametrize("packed", [False, True])
def test_memory_is_given_back_and_answers_stay_the_same(load, clock, packed):
    model = load(packed=packed)
    text = "the cat sat on the mat and"
    first = model.generate(text, **ASK)
    held = model.memory()
    assert held["kv"] > 0 and model.loaded
    unload(model, clock)
    assert model.memory() == {"weights": 0, "kv": 0} and "unloaded" in repr(model) and not model.closed
    status = model.status()
    assert status.kept == 0 and status.kv_tokens_free == status.kv_tokens
    assert model.tokenize(text) and not model.loaded  # which needs no weights
    again = model.generate(text, **ASK)
    assert again.tokens == first.tokens and again.stats.reused_tokens == 0
    assert model.memory() == held and model.loaded


def test_threads_are_those_that_were_set(load, clock):
    model = load(threads=2)
    model.threads = 1
    unload(model, clock)
    assert model.threads == 1
    model.generate("the", **ASK)
    assert model.threads == model.debug.engine.threads == 1
    unload(model, clock)
    model.threads = 3
    model.generate("the", **ASK)
    assert model.threads == model.debug.engine.threads == 3
    model.close()
    assert model.threads == 0
    with pytest.raises(glmlite.Closed):
        model.threads = 1


def test_it_goes_after_so_many_seconds_without_a_request(load, clock):
    model = load()
    for _ in range(3):
        clock.go(model, SECONDS - 1)
        time.sleep(0.02)
        assert model.loaded
        model.generate("the", **ASK)
        until(lambda: not model._scheduler._active)
        time.sleep(0.02)
    unload(model, clock)


def test_a_model_stays_without_it(clock):
    with glmlite.load() as model:
        clock.go(model, 1e9)
        time.sleep(0.05)
        assert model.loaded


def test_threads_and_coroutines_wait_for_one_load(load, clock):
    begun = []
    model = load(progress=lambda done: begun.append(done) if done == 0 else None)
    unload(model, clock)
    texts = []

    async def ask():
        answers = await asyncio.gather(*(model.stream("the", **ASK) for _ in range(3)))
        texts.extend(answer.text for answer in answers)

    threads = [threading.Thread(target=lambda: texts.append(model.generate("the", **ASK).text)) for _ in range(3)]
    for thread in threads:
        thread.start()
    asyncio.run(ask())
    for thread in threads:
        thread.join()
    assert len(texts) == 6 and len(set(texts)) == 1
    assert len(begun) == 2


class Held:
    """A `progress` that stops the second load until `go` is set."""

    def __init__(self):
        self.loads, self.go, self.there, self.answer = 0, threading.Event(), threading.Event(), None

    def __call__(self, done):
        self.loads += done == 0
        if self.loads > 1 and done > 0 and not self.go.is_set():
            self.there.set()
            assert self.go.wait(20)
            return self.answer
        return None


def test_a_cancelled_request_ends_the_load(load, clock):
    held = Held()
    model = load(progress=held)
    unload(model, clock)
    running = model.stream("the", **ASK)
    assert held.there.wait(20)
    assert not model.loaded and model.status().waiting == 1 and running.place == 1
    running.cancel()
    assert running.result().finish_reason == "cancelled"  # without waiting for the load
    held.go.set()
    until(lambda: model.status().waiting == 0)
    time.sleep(0.05)
    assert not model.loaded and held.loads == 2
    assert model.generate("the", **ASK).text


@pytest.mark.parametrize("how", ["progress", "cancel"])
def test_what_ends_a_load_ends_a_later_one(load, clock, how):
    held, cancel = Held(), glmlite.Cancel()
    model = load(progress=held, cancel=cancel)
    unload(model, clock)
    running = model.stream("the", **ASK)
    assert held.there.wait(20)
    if how == "progress":
        held.answer = False
    else:
        cancel.cancel()
    held.go.set()
    with pytest.raises(glmlite.Cancelled):
        running.result()
    assert not model.loaded
    if how == "progress":
        assert model.generate("the", **ASK).text


def test_close_ends_a_load(load, clock):
    held = Held()
    model = load(progress=held)
    unload(model, clock)
    running = model.stream("the", **ASK)
    assert held.there.wait(20)
    threading.Timer(0.05, held.go.set).start()
    model.close()
    with pytest.raises(glmlite.Closed):
        running.result()
    assert model.closed and not model.loaded


def test_rows_that_an_unloaded_model_kept_are_those_of_a_loaded_one(load, clock, tmp_path):
    model = load()
    rows, out, asked = [f"the {i}" for i in range(400)], tmp_path / "out.jsonl", {"max_tokens": 5, "ignore_eos": True}
    stop = glmlite.Cancel()

    def progress(p):
        if p.done:
            stop.cancel()

    unload(model, clock)
    with pytest.raises(glmlite.Cancelled):
        glmlite.batch(model, rows, out, cancel=stop, progress=progress, **asked)
    assert glmlite.batch(model, rows, out, **asked).progress.kept > 0


def test_close_of_a_model_that_is_unloaded(load, clock):
    model = load()
    unload(model, clock)
    model.close()
    with pytest.raises(glmlite.Closed):
        model.generate("the", **ASK)


def test_a_file_that_is_gone_or_another(load, clock, tmp_path, tiny_file):
    model = load()
    text = model.generate("the", **ASK).text
    unload(model, clock)
    path, away = tmp_path / "model.gguf", tmp_path / "away.gguf"
    path.rename(away)
    with pytest.raises(FileNotFoundError):
        model.generate("the", **ASK)
    shutil.copyfile(tiny_file(), path)
    with pytest.raises(glmlite.FormatError, match="its tensors are not those"):
        model.generate("the", **ASK)
    assert not model.loaded
    away.replace(path)
    assert model.generate("the", **ASK).text == text


def test_a_relative_path_is_found_from_another_folder(clock, tmp_path, monkeypatch):
    shutil.copyfile(builtin.path(), tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    with glmlite.load("model.gguf", idle_unload=SECONDS) as model:
        unload(model, clock)
        monkeypatch.chdir("/")
        assert model.generate("the", **ASK).text


@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_seconds_that_never_pass(seconds):
    with glmlite.load(idle_unload=seconds) as model:
        for _ in range(2):
            time.sleep(0.05)
            assert model.generate("the", **ASK).text


def test_what_a_callback_ends_a_program_with_ends_a_load_only(load, clock):
    begun = []

    def progress(done):
        begun.extend([done] if done == 0 else [])
        if len(begun) == 2:
            sys.exit(3)

    model = load(progress=progress)
    unload(model, clock)
    with pytest.raises(RuntimeError, match=r"load: SystemExit\(3\)"):
        model.generate("the", **ASK)
    assert model.generate("the", **ASK).text


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_seconds_that_cannot_be(seconds):
    with pytest.raises(ValueError, match="idle_unload"):
        glmlite.load(idle_unload=seconds)
