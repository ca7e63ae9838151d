"""Threads that work for the main thread, which Ctrl-C may interrupt anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glmlite

CALLS = {
    "doctor": "values.scan(tensors, threads=2)",
    "a step of perplexity": "reader.run(lambda cancel: time.sleep(0.01), lambda part: None)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_ctrl_c_as_the_main_thread_takes_a_lock_hangs_nothing(call):
    """A Condition that is interrupted on its way in keeps its lock, and whoever needs it waits for ever."""
    interrupting = f"""if True:
        import itertools, sys, threading, time
        from glmlite import _native, builtin, evaluate
        from glmlite.doctor import values
        values._TASK = 1 << 16
        gguf = _native.Gguf(builtin.path())
        tensors = list(gguf.tensors.values())
        enter = threading.Condition.__enter__
        def interrupted(condition):
            entered = enter(condition)
            if threading.current_thread() is threading.main_thread() and next(count) == number:
                raise KeyboardInterrupt
            return entered
        with evaluate.Reader(builtin.path(), 64) as reader:
            threading.Condition.__enter__ = interrupted
            for number in itertools.count():
                count = itertools.count()
                try:
                    {call}
                    break
                except KeyboardInterrupt:
                    pass
            threading.Condition.__enter__ = enter
        sys.exit(3)
    """
    path = os.pathsep.join([str(Path(glmlite.__file__).parents[1]), *sys.path])
    process = subprocess.Popen([sys.executable, "-c", interrupting], env={**os.environ, "PYTHONPATH": path})
    try:
        assert process.wait(60) == 3
    finally:
        process.kill()
        process.wait()
