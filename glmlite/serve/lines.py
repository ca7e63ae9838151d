"""Lines of JSON that come and go through pipes, by threads: a pipe may hold up whoever reads or writes it for ever.

Neither stream may have a buffer of Python's: the lock of one, held by a thread that waits, is fatal when Python ends.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import suppress
from typing import IO, Any

from .http import Gone, dump

__all__ = ["Reader", "Writer"]


class Reader:
    """The lines of a stream, of at most `limit` bytes each."""

    def __init__(self, stream: IO[bytes], limit: int):
        self._stream = stream
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(16)
        threading.Thread(target=self._read, name="glmlite stdin", daemon=True).start()

    async def next(self) -> bytes | None:
        """None at the end."""
        return await self._lines.get()

    def _read(self) -> None:
        parts: list[bytes] = []  # of the line that is coming
        size = 0
        with suppress(OSError, ValueError):  # the stream is closed
            while data := self._stream.read(1 << 16):
                first, *lines = data.split(b"\n")
                for line in lines:
                    self._put(b"".join([*parts, first]))
                    parts, size, first = [], 0, line
                if size <= self._limit:  # the rest of a line that is too long is not kept
                    parts.append(first)
                    size += len(first)
            self._put(b"".join(parts))
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        if line is not None and len(line) > self._limit:
            line = b"a line of more than %d bytes" % self._limit  # to parse it says what is wrong
        if line is None or line.strip():
            putting = self._lines.put(line)
            try:
                asyncio.run_coroutine_threadsafe(putting, self._loop).result()
            except RuntimeError:  # the loop has ended
                putting.close()


class Writer:
    """Writes lines on a thread of its own, one after another."""

    def __init__(self, stream: IO[bytes]):
        self.broken = False  # nobody reads
        self._stream = stream
        self._work: queue.SimpleQueue[tuple[bytes, asyncio.Future[None] | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="glmlite writes lines", daemon=True)
        self._thread.start()

    async def write(self, value: Any) -> None:
        """Waits until it is written. Raises Gone where nobody reads."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work.put((dump(value) + b"\n", done))
        await done
        if self.broken:
            raise Gone

    def tell(self, line: bytes) -> None:
        """From any thread; waits for nothing."""
        self._work.put((line + b"\n", None))

    @property
    def waiting(self) -> int:
        """Lines that are not written yet."""
        return self._work.qsize()

    def close(self, seconds: float) -> None:
        """Writes what waits, if that can be done in so many seconds."""
        self._work.put(None)
        self._thread.join(seconds)

    def _write(self) -> None:
        while (work := self._work.get()) is not None:
            line, done = work
            try:
                while line and not self.broken:  # a stream without a buffer may take a part
                    line = line[self._stream.write(line) :]
            except (OSError, ValueError):
                self.broken = True
            if done is not None:
                with suppress(RuntimeError):  # the loop has ended
                    done.get_loop().call_soon_threadsafe(_finish, done)


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
