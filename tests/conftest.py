"""Fixtures for tests of what stands above the seam: each runs on the numpy twin and on the native engine."""

import signal
import sys

import pytest
import tiny
import twin_engine

import glmlite
from glmlite import placement

# What a shell starts in the background ignores SIGINT, what `nohup` starts SIGHUP, and so would the commands that tests
# interrupt and hang up on.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def without_gpu(request, monkeypatch):
    """Only tests/test_cuda.py uses a GPU, also where there is one."""
    if request.module.__name__ != "test_cuda":
        monkeypatch.setitem(sys.modules, "glmlite._cuda", None)


@pytest.fixture(params=["twin", "native"])
def executor(request, monkeypatch):
    """The module whose engine `glmlite.load` uses."""
    if request.param == "native":
        from glmlite import _native as native

        return native
    real = placement.backend
    monkeypatch.setattr(placement, "backend", lambda device: real(device) if device.startswith("cuda") else twin_engine)
    return twin_engine


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """The path of a tiny model's file, written once for each set of arguments."""
    folder, written = tmp_path_factory.mktemp("tiny"), {}

    def path(architecture="chatglm", **sizes):
        key = repr((architecture, sorted(sizes.items())))
        if key not in written:
            written[key] = tiny.write(folder / f"{len(written)}.gguf", tiny.model(architecture, **sizes))
        return written[key]

    return path


@pytest.fixture
def load(executor, tiny_file):
    """load(architecture, sizes={}, **arguments of glmlite.load) -> Model, closed after the test."""
    models = []

    def open_model(architecture="chatglm", sizes=None, **arguments):
        models.append(glmlite.load(tiny_file(architecture, **(sizes or {})), **arguments))
        return models[-1]

    yield open_model
    for model in models:
        model.close()
