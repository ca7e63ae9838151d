"""What is finished of a long piece of work, kept beside its target, so that the next run goes on where this one was
ended: by Ctrl-C, by a kill, by a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import lock

__all__ = ["Journal", "Other", "content_of"]

SYNC_SECONDS = 1.0  # what a power cut may take
_ENDS = 1 << 20  # bytes at the beginning and the end of a model's file that tell it from others

Record = dict[str, Any]


class Other(ValueError):
    """A journal that belongs to other work. header: the one it has; None where it cannot be read."""

    def __init__(self, path: Path, header: Any):
        super().__init__(f"{path}: is kept from other work")
        self.header = header


def content_of(model: Any) -> str:
    """What tells a model from others: a digest of its file's size, beginning and end, and of its eyes' file's, if that
    is another. Raises OSError."""
    found = hashlib.sha256()
    files = [model.path]
    if model._eyes is not None and model._eyes.path != model.path.absolute():
        files.append(model._eyes.path)
    for path in files:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found.update(f"{size} ".encode() + file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            found.update(file.read(_ENDS))
    return found.hexdigest()


class Journal:
    """A file of JSON lines: a header, which says what work the others belong to, and a record for each finished part.

    take: called with (record, offset) of each that is there. What is not whole, or what `take` raises ValueError,
    TypeError or KeyError for, was being written when its run ended: it is cut off, with all behind it.
    restart: a journal that is there is emptied. every: each `add` is on the disk when it returns, and not just about
    once a second.

    Raises OSError, BlockingIOError where another process writes it, and Other where its header is another one.
    """

    def __init__(
        self,
        path: Path,
        header: Any,
        take: Callable[[Record, int], object],
        *,
        restart: bool = False,
        every: bool = False,
    ):
        self.path = path
        self._every = every
        self._synced = time.monotonic()
        fresh = not path.exists()
        self._file = open(path, "a+b")  # noqa: SIM115  open until `close`
        try:
            if not lock(self._file):
                raise BlockingIOError(11, "another process writes it", str(path))
            whole = 0 if restart else self._read(header, take)
        except BaseException:
            self._file.close()
            if fresh:
                path.unlink(missing_ok=True)
            raise
        self._file.truncate(whole)
        self._end = whole
        if not whole:
            self.add([header])
            self.sync()

    def add(self, records: Iterable[Any]) -> list[int]:
        """Keeps records; returns where each lies, for `at`."""
        lines = [json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for record in records]
        offsets = []
        for line in lines:
            offsets.append(self._end)
            self._end += len(line)
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
        except OSError as error:  # a full disk does not say which file it has no room for
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if self._every or time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()
        return offsets

    def at(self, offset: int) -> Record:
        """The record that lies there."""
        self._file.seek(offset)  # to write moves to the end
        record: Record = json.loads(self._file.readline())
        return record

    def sync(self) -> None:
        """All that was added is on the disk when this returns."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            with suppress(OSError):  # what is still in its buffer `add` could not write, and has said so
                self._file.close()

    def remove(self) -> None:
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _read(self, header: Any, take: Callable[[Record, int], object]) -> int:
        """Takes the records; returns the length of what is whole, 0 without any."""
        whole = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                if not whole:
                    raise Other(self.path, None) from None
                break
            if not whole and record != header:
                raise Other(self.path, record)
            if whole:
                with suppress(ValueError, TypeError, KeyError):
                    take(record, whole)
                    whole += len(line)
                    continue
                break
            whole = len(line)
        return whole
