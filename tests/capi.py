"""The C API by ctypes, for tests: the library that GLMLITE_C_LIBRARY names, or one that is built now."""

import ctypes as c
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLAIN, SPECIAL, PROMPT = range(3)
STOP, LENGTH, CALLBACK, CANCELLED = range(1, 5)

OnProgress = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_uint64)
OnToken = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int32, c.POINTER(c.c_char), c.c_size_t)


class Error(c.Structure):
    _fields_ = [("status", c.c_int32), ("message", c.c_char * 1020)]


class Sized(c.Structure):
    def __init__(self, **values):
        super().__init__(size=c.sizeof(self), **values)


class Options(Sized):
    _fields_ = [
        ("size", c.c_size_t),
        *((name, c.c_int32) for name in ("threads", "context", "kv_q8", "kv_tokens")),
        ("on_progress", OnProgress),
        ("user", c.c_void_p),
        ("cancel", c.c_void_p),
    ]


class Info(Sized):
    _fields_ = [
        ("size", c.c_size_t),
        ("name", c.c_char_p),
        ("architecture", c.c_char_p),
        *((name, c.c_int32) for name in ("vocabulary", "context", "threads", "chats")),
        *((name, c.c_uint64) for name in ("weight_bytes", "kv_bytes")),
    ]


class Message(c.Structure):
    _fields_ = [("role", c.c_char_p), ("text", c.c_char_p), ("length", c.c_size_t)]


class Params(Sized):
    _fields_ = [
        ("size", c.c_size_t),
        ("max_tokens", c.c_int32),
        ("ignore_eos", c.c_int32),
        ("seed", c.c_uint64),
        *((name, c.c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        *((name, c.c_double) for name in ("presence_penalty", "frequency_penalty")),
        ("top_k", c.c_int32),
        ("penalty_window", c.c_int32),
        ("stop_ids", c.POINTER(c.c_int32)),
        ("stop_count", c.c_size_t),
        ("on_token", OnToken),
        ("on_progress", OnProgress),
        ("user", c.c_void_p),
        ("cancel", c.c_void_p),
    ]


class Result(Sized):
    _fields_ = [
        ("size", c.c_size_t),
        *((name, c.c_int32) for name in ("end", "stop_token", "prompt_tokens", "reused_tokens", "generated_tokens")),
        ("reserved", c.c_int32),
        *((name, c.c_double) for name in ("prompt_seconds", "generation_seconds")),
    ]


class Failed(Exception):
    """status, message"""


@functools.cache
def library_path():
    """Skips where there is none."""
    if path := os.environ.get("GLMLITE_C_LIBRARY"):
        return path
    if not (ROOT / "csrc" / "capi").is_dir():
        pytest.skip("not a checkout: no csrc/capi")
    if not (shutil.which("cmake") and shutil.which("ninja") and shutil.which("c++")):
        pytest.skip("no cmake, ninja or C++ compiler to build the C library with, and no GLMLITE_C_LIBRARY")
    # The scalar kernels alone: they have the bits of all others, and the build takes a quarter of the time.
    without = [f"-DGLMLITE_ACCEPTS_m{flag}=OFF" for flag in ("avx2", "avxvnni", "avx512f")]
    folder = tempfile.mkdtemp(prefix="glmlite-c-")
    for command in (
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DGLMLITE_C=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *without],
        ["cmake", "--build", folder],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return str(next(p for p in Path(folder).rglob("*glmlite*") if p.suffix in (".so", ".dylib", ".dll")))


@functools.cache
def library():
    lib = c.CDLL(library_path())
    lib.glmlite_version.restype = c.c_char_p
    lib.glmlite_abi.restype = c.c_uint32
    lib.glmlite_cancel_new.restype = c.c_void_p
    for name in ("cancel_set", "cancel_free", "close", "session_free"):
        getattr(lib, f"glmlite_{name}").argtypes = [c.c_void_p]
        getattr(lib, f"glmlite_{name}").restype = None
    return lib


def call(name, *arguments):
    error = Error()
    status = getattr(library(), f"glmlite_{name}")(*arguments, c.byref(error))
    if status:
        assert status == error.status
        raise Failed(status, error.message.decode())


class Model:
    def __init__(self, path, **options):
        self.handle = c.c_void_p()
        call("open", os.fsencode(path), c.byref(Options(**options)), c.byref(self.handle))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        library().glmlite_close(self.handle)

    @property
    def info(self):
        info = Info()
        call("get_info", self.handle, c.byref(info))
        return info

    def _ids(self, name, *arguments):
        count = c.c_size_t()
        try:
            call(name, self.handle, *arguments, None, c.c_size_t(0), c.byref(count))
        except Failed as failed:
            if failed.args[0] != 8:
                raise
        ids = (c.c_int32 * count.value)()
        call(name, self.handle, *arguments, ids, c.c_size_t(count.value), c.byref(count))
        return list(ids)

    def tokenize(self, text, how=PLAIN):
        data = text.encode()
        return self._ids("tokenize", data, c.c_size_t(len(data)), how)

    def detokenize(self, ids, how=SPECIAL):
        count = c.c_size_t()
        text = c.create_string_buffer(64 * len(ids) + 64)
        given = (c.c_int32 * len(ids))(*ids)
        size = c.c_size_t(len(text))
        call("detokenize", self.handle, given, c.c_size_t(len(ids)), how, text, size, c.byref(count))
        return text.raw[: count.value].decode()

    def render(self, messages):
        return self._ids("render", as_messages(messages), c.c_size_t(len(messages)))

    def params(self, **changes):
        params = Params()
        call("get_params", self.handle, c.byref(params))
        for name, value in changes.items():
            setattr(params, name, value)
        return params


def as_messages(messages):
    texts = [m["content"].encode() for m in messages]
    return (Message * len(messages))(*(Message(m["role"].encode(), t, len(t)) for m, t in zip(messages, texts)))


class Session:
    def __init__(self, model):
        self.model = model
        self.handle = c.c_void_p()
        call("session_new", model.handle, c.byref(self.handle))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        library().glmlite_session_free(self.handle)

    def answer(self, prompt, on_token=None, stop_ids=(), **changes):
        """(tokens, text, result) of ids, or of messages."""
        tokens, text = [], b""

        def told(user, token, piece, length):
            nonlocal text
            text += piece[:length]
            if token >= 0:
                tokens.append(token)
            return on_token(token) if on_token else 0

        stops = (c.c_int32 * len(stop_ids))(*stop_ids)
        params, result = self.model.params(**changes), Result()
        params.stop_ids, params.stop_count, params.on_token = stops, len(stop_ids), OnToken(told)
        if prompt and isinstance(prompt[0], dict):
            name, given = "chat", as_messages(prompt)
        else:
            name, given = "generate", (c.c_int32 * len(prompt))(*prompt)
        call(name, self.handle, given, c.c_size_t(len(prompt)), c.byref(params), c.byref(result))
        return tokens, text.decode(), result


def compiler():
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def run(command, stdin=""):
    """The output of a program that is linked with the library."""
    where = str(Path(library_path()).parent)
    name = {"darwin": "DYLD_LIBRARY_PATH", "win32": "PATH"}.get(sys.platform, "LD_LIBRARY_PATH")
    done = subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", env={**os.environ, name: where})
    assert done.returncode == 0, done.stderr
    return done.stdout
