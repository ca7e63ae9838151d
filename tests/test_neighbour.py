"""A model beside other programs: how many threads it has and what they take from others, never what it answers."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import glmlite
from glmlite import _native

PROMPT = [1 + i % 200 for i in range(100)]
PARAMETERS = {"max_tokens": 24, "ignore_eos": True, "seed": 5}
TASKS = Path("/proc/self/task")

linux = pytest.mark.skipif(not TASKS.exists(), reason="reads /proc")


@pytest.fixture
def executor():
    """Only the native engine has threads."""
    return _native


def answer(model):
    return model.generate(PROMPT, **PARAMETERS).tokens


def niceness():
    """{thread: its niceness} of this process."""
    levels = {}
    for task in TASKS.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since the folder was read
            levels[int(task.name)] = int((task / "stat").read_text().rpartition(")")[2].split()[16])
    return levels


def started_since(before, count):
    """Waits for it: a thread that was joined is in the folder for a moment more."""
    deadline = time.monotonic() + 10
    while len(started := set(niceness()) - set(before)) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return started


def test_threads_are_set_between_steps(load):
    model = load(threads=2)
    want = answer(model)
    for threads in (1, 3, 2, 8):
        model.threads = threads
        assert model.threads == model.debug.engine.threads == threads
        assert answer(model) == want
        assert model.debug.engine.threads_now <= threads


def test_threads_are_set_while_a_request_runs(load):
    model, done = load(threads=2, adaptive=False), threading.Event()
    want = answer(model)

    def change():
        threads = 1
        while not done.is_set():
            model.threads = threads = threads % 4 + 1

    other = threading.Thread(target=change)
    other.start()
    try:
        assert [answer(model) for _ in range(10)] == [want] * 10
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (0, ValueError, "threads is 0, expected at least 1"),
        (-3, ValueError, "threads is -3, expected at least 1"),
        (1025, ValueError, "threads is 1025, expected at least 1 and at most 1024"),
        (1.5, TypeError, "threads is 1.5, expected an integer"),
        (True, TypeError, "threads is True, expected an integer"),
        (None, TypeError, "threads is None, expected an integer"),
    ],
)
def test_other_numbers_are_refused(load, threads, error, message):
    model = load(threads=2)
    with pytest.raises(error, match=message):
        model.threads = threads
    assert model.threads == 2


def test_threads_of_a_closed_model(load):
    model = load(threads=2)
    model.close()
    assert model.threads == 0
    with pytest.raises(glmlite.Closed, match="the model is closed"):
        model.threads = 1


@linux
def test_threads_end_when_there_are_fewer(load):
    before = niceness()
    model = load(threads=5)
    model.threads = 2
    answer(model)
    assert len(started_since(before, 2)) == 2  # the engine's thread computes, too
    model.close()
    assert not started_since(before, 0)


CHILD = """
    import resource, sys, glmlite
    with glmlite.load(sys.argv[1], threads=2, adaptive=False) as model:
        want = model.generate([1, 2, 3], max_tokens=4, temperature=0).tokens
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000, -1))
        model.threads = 1000
        try:
            model.generate([1, 2, 3], max_tokens=4)
        except RuntimeError as error:
            print(error)
        print(model.threads, model.generate([1, 2, 3], max_tokens=4, temperature=0).tokens == want)
"""


@linux
def test_more_threads_than_the_system_gives(tiny_file):
    """One request fails, and says why; the model goes on with the threads it has."""
    child = [sys.executable, "-c", textwrap.dedent(CHILD), str(tiny_file())]
    got = subprocess.run(child, capture_output=True, text=True, timeout=120)
    assert "threads: 1000 are more than the system gives" in got.stdout, got
    assert got.stdout.endswith("there are still 2\n2 True\n")


@pytest.mark.parametrize("threads", [1, 3])
def test_in_the_background(load, threads):
    want = answer(load(threads=1))
    told = []
    before = niceness() if TASKS.exists() else {}
    model = load(threads=threads, priority="background", progress=told.append)
    assert told[0] == 0 and told[-1] == 1
    if before:
        after = niceness()
        assert all(after.get(thread, level) == level for thread, level in before.items())  # nobody else's
        new = sorted(level for thread, level in after.items() if thread not in before)
        level = min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
        # The engine's own thread holds Python's lock at times, so it stays as it is.
        assert new == [os.getpriority(os.PRIO_PROCESS, 0)] + [level] * threads
    assert answer(model) == want
    model.threads = 2
    assert answer(model) == want


def test_a_load_in_the_background_can_be_cancelled(tiny_file):
    cancel = glmlite.Cancel()

    def progress(done):
        assert threading.current_thread() is threading.main_thread()
        if done > 0.05:
            cancel.cancel()

    with pytest.raises(glmlite.Cancelled):
        glmlite.load(tiny_file(), priority="background", progress=progress, cancel=cancel)
    with pytest.raises(ZeroDivisionError):
        glmlite.load(tiny_file(), priority="background", progress=lambda done: 1 / (done < 0.11))


def test_packed_in_the_background(load, tmp_path, monkeypatch):
    monkeypatch.setenv("GLMLITE_CACHE", str(tmp_path))
    want = answer(load())
    assert answer(load(priority="background", packed=True)) == want


def test_an_unknown_priority(tiny_file):
    with pytest.raises(ValueError, match="priority is 'low', expected one of: normal, background"):
        glmlite.load(tiny_file(), priority="low")
