"""What is between this program and one that starts it: events, and an end that cannot be missed.

    {"type": "loading", "model": "glm-4-9b", "progress": 0.25}              also when a model is loaded again
    {"type": "ready", "version": "0.1.0", "port": 40213, "url": "http://127.0.0.1:40213"}    over stdio: no port, no url
    {"type": "error", "error": {"type": "FormatError", "message": "..."}}   and then it ends

are lines on stdout, which is theirs alone: what libraries print goes to stderr. This program ends when its stdin does,
which the system sees to if the parent is killed. Where another process holds that pipe open, it ends because it has
another parent (not on Windows, where a job object of the parent's ends its children). Nothing that waits for the
parent to read holds up the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from .._package import VERSION
from .http import dump
from .lines import Reader, Writer

__all__ = ["LOOKS_SECONDS", "Parent"]

LOOKS_SECONDS = 1.0  # between two looks at who the parent is
FLUSH_SECONDS = 1.0  # that the parent has to read the last lines
ENDING_SECONDS = 10.0  # after which the process is ended: what it waits for may be a disk that is gone
NOTES = 1000  # lines that wait for a parent that does not read stderr; more are dropped
STEP = 0.01  # of a load's progress that is told


class Parent:
    """The program that started this one. requests: its lines, without a buffer; writer: to it; url: where this one
    listens, if it does."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes], notes: IO[bytes]):
        self.requests = requests
        self.writer = Writer(answers)
        self.url: str | None = None
        self._notes = Writer(notes)
        self._pid = os.getppid()
        self._ending = False

    # ---- to it

    def tell(self, kind: str, **fields: Any) -> None:
        """An event. From any thread; waits for nothing."""
        self.writer.tell(dump({"type": kind, **fields}))

    def ready(self) -> None:
        port = {} if self.url is None else {"port": int(self.url.rpartition(":")[2]), "url": self.url}
        self.tell("ready", version=VERSION, **port)

    def note(self, text: str) -> None:
        """A line on stderr."""
        if self._notes.waiting < NOTES:
            self._notes.tell(text.encode("utf-8", "replace"))

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[..., None]]:
        """A function of (done, total) that tells how far the load of a model is."""
        told = -1.0

        def show(done: float, total: float) -> None:
            nonlocal told
            now = done / total
            if now < told or now - told >= STEP or (now == 1 != told):
                told = now
                self.tell("loading", model=title, progress=round(now, 3))

        yield show

    def close(self) -> None:
        self.writer.close(FLUSH_SECONDS)
        self._notes.close(FLUSH_SECONDS)

    # ---- its end

    async def gone(self) -> None:
        """Returns when this process is another one's child."""
        while os.getppid() == self._pid:
            await asyncio.sleep(LOOKS_SECONDS)

    async def ended(self) -> None:
        """Returns when the parent has closed this program's stdin, or is gone. What it writes there is ignored."""
        gone = asyncio.ensure_future(self.gone())
        reading = asyncio.ensure_future(_drained(Reader(self.requests, 0)))
        try:
            await asyncio.wait([gone, reading], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            reading.cancel()

    def ending(self) -> None:
        """Says that the end has begun. It takes `ENDING_SECONDS` at most."""
        if not self._ending:
            self._ending = True
            timer = threading.Timer(ENDING_SECONDS, os._exit, [1])
            timer.daemon = True
            timer.start()


async def _drained(lines: Reader) -> None:
    while await lines.next() is not None:
        pass


@contextmanager
def parent() -> Iterator[Parent]:
    """The program that started this one, by stdin, stdout and stderr, of which it alone has the first two from here on.

    What goes wrong meanwhile is told as an event.
    """
    own = [_own(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(own[2], 1)
    streams = open(own[0], "rb", 0), open(own[1], "wb", 0), open(own[2], "wb", 0)  # noqa: SIM115  a thread may be in one
    it = Parent(*streams)
    try:
        yield it
    except Exception as error:
        it.tell("error", error={"type": type(error).__name__, "message": " ".join(str(error).split())})
        raise
    finally:
        it.close()


def _own(descriptor: int) -> int:
    """A copy that children do not inherit; of one that is closed, of nothing."""
    try:
        return os.dup(descriptor)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)


class Notes(logging.Handler):
    """Hands each record to a function, as a line."""

    def __init__(self, note: Callable[[str], object]):
        super().__init__()
        self._note = note
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self._note(self.format(record))
