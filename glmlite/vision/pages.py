"""PDF files in a process of their own: a small file may have a page that takes all memory, or days, or PDFium down, and
PDFium is not to be stopped, but its process is.

    pages = Pages()
    with pages.open("scan.pdf", "scan.pdf") as pdf:  # as `glmlite.vision.pdf.Pdf` opens it
        pdf.render(1, 150)
    pages.stop()

A request is a line of JSON on the process's standard input, with the bytes of a file behind it where that has no path;
an answer a line of JSON, with pixels behind it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

from PIL import Image

from .._package import is_frozen
from .pdf import Pdf

__all__ = ["Pages", "Remote"]

MOST_MEMORY = 4 << 30  # bytes that the process may take, on Linux
MOST_SECONDS = 300  # that it computes for a page; so it ends, too, when nobody is left to stop it
WAIT = 10  # seconds that one may take to end whose pipes are closed

# The modules are the caller's, and not those of the folder that it was started in.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from glmlite.vision.pages import work; work()"


class Pages:
    """Opens PDF files. Its process starts with the first and has one of them open at a time; one thread at a time uses
    them. `stop`, by any thread, ends the process and what it is doing."""

    def __init__(self, memory: int = MOST_MEMORY, seconds: int = MOST_SECONDS) -> None:
        self._limits = memory, seconds
        self._guard = threading.Lock()  # of the process's coming and going
        self._process: subprocess.Popen[bytes] | None = None
        self._held: Remote | None = None  # whose file is open there
        self._stopped = False

    def open(self, source: str | os.PathLike[str] | bytes | bytearray | memoryview, where: str) -> Pdf | Remote:
        """Raises as `Pdf`, which it is in a frozen program: that has no Python to start."""
        return Pdf(source, where) if is_frozen() else Remote(self, source, where)

    def stop(self) -> None:
        with self._guard:
            self._stopped = True
            self._end()

    def ask(self, file: Remote, where: str, request: str, *arguments: Any) -> tuple[Any, bytes]:
        """What a method of `Pdf` returns for a file, which is opened if it is not, and the bytes behind it."""
        process = self._started(where)
        try:
            if self._held is not file:
                self._held = None
                _exchange(process, file.data, "open", file.path, file.where)
                self._held = file
            return _exchange(process, b"", request, *arguments)
        except EOFError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(WAIT)
            code = process.poll()
            with self._guard:
                self._end()
            raise ValueError(f"{where}: {self._why(code)}") from None

    def release(self, file: Remote) -> None:
        """Closes a file, of which Windows deletes none that is open."""
        if self._held is file:
            self._held = None
            with suppress(ValueError, EOFError):
                _exchange(self._started(file.where), b"", "close")

    def _started(self, where: str) -> subprocess.Popen[bytes]:
        with self._guard:
            if self._stopped:
                raise ValueError(f"{where}: reading was stopped")
            if self._process is None:
                arguments = [sys.executable, "-I", "-c", _START, json.dumps(sys.path), *map(str, self._limits)]
                no_window = getattr(subprocess, "CREATE_NO_WINDOW", 0)
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    creationflags=no_window,
                )
            return self._process

    def _end(self) -> None:
        process, self._process, self._held = self._process, None, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError), process:
                pass

    def _why(self, code: int | None) -> str:
        memory, seconds = self._limits
        if code == -getattr(signal, "SIGXCPU", 0) != 0:
            return f"takes PDFium more than {seconds} s, expected less"
        return f"ends PDFium ({code}), expected a whole file, and less than {memory / (1 << 30):g} GiB for a page"


class Remote:
    """A file of `Pages`, with the methods of `Pdf`."""

    def __init__(self, pages: Pages, source: str | os.PathLike[str] | bytes | bytearray | memoryview, where: str):
        self.where = where
        named = isinstance(source, str | os.PathLike)
        # /dev/stdin is another file there.
        self.path = os.path.realpath(source) if isinstance(source, str | os.PathLike) else None
        self.data = b"" if named else bytes(source)  # type: ignore[arg-type]
        self._pages = pages
        self.pages: int = pages.ask(self, where, "count")[0]

    def render(self, number: int, dpi: float) -> Image.Image:
        size, pixels = self._ask("render", number, dpi)
        return Image.frombytes("RGB", tuple(size), pixels)

    def characters(self, number: int) -> int:
        return int(self._ask("characters", number)[0])

    def text(self, number: int) -> str:
        return str(self._ask("text", number)[0])

    def close(self) -> None:
        self._pages.release(self)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, request: str, number: int, *arguments: Any) -> tuple[Any, bytes]:
        return self._pages.ask(self, f"{self.where}, page {number}", request, number, *arguments)


def _exchange(process: subprocess.Popen[bytes], data: bytes, *request: Any) -> tuple[Any, bytes]:
    """Raises what the process answers with, and EOFError where it has ended."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps([len(data), *request]).encode() + b"\n" + data)
        process.stdin.flush()
        line = process.stdout.readline()
        error, value, size = json.loads(line)
        behind = process.stdout.read(size)
    except (OSError, ValueError):  # a pipe that has nobody at its other end; half an answer
        raise EOFError from None
    if len(behind) < size:
        raise EOFError
    if error == "OSError":
        raise OSError(*value)
    if error is not None:
        raise (ValueError if error == "ValueError" else RuntimeError)(value)
    return value, behind


# ---- in the process


def work() -> None:
    """Answers until there is nobody who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, whose program ends this one
    memory, seconds = map(int, sys.argv[2:])
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nobody else writes among the answers
    with suppress(OSError), open("/proc/self/statm", "rb") as sizes:  # what many threads have reserved is no page's
        _limit("RLIMIT_AS", int(sizes.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + memory)
    _limit("RLIMIT_CORE", 0)
    pdf: Pdf | None = None
    while line := asked.readline():
        size, request, *arguments = json.loads(line)
        data = asked.read(size)
        _limit("RLIMIT_CPU", int(sum(os.times()[:2])) + 1 + seconds)
        error: str | None = None
        value: Any = None
        behind = b""
        try:
            if request in ("open", "close") and pdf is not None:
                pdf.close()
                pdf = None
            if request == "open":
                pdf = Pdf(data if arguments[0] is None else arguments[0], arguments[1])
            elif request == "render":
                assert pdf is not None
                image = pdf.render(*arguments)
                value, behind = image.size, image.tobytes()
            elif request != "close":
                assert pdf is not None
                value = pdf.pages if request == "count" else getattr(pdf, request)(*arguments)
        except OSError as failed:
            error, value = "OSError", [failed.errno, failed.strerror, arguments[0]]
        except Exception as failed:
            error, value = type(failed).__name__, str(failed) or type(failed).__name__
        _answer(answers, [error, value, len(behind)], behind)


def _answer(answers: IO[bytes], line: Any, behind: bytes) -> None:
    answers.write(json.dumps(line).encode() + b"\n" + behind)
    answers.flush()


def _limit(name: str, most: int) -> None:
    with suppress(ImportError, AttributeError, ValueError, OSError):  # Windows has none
        import resource

        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
