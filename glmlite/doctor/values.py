"""Read all weights for NaN, infinity and tensors of zeros alone.

A value that is not finite is as good as always in a block's f16 scale (codes are integers), so of the block formats
the scales are looked at. Files are read through small buffers, so that memory stays bounded and a file that shrinks
meanwhile is an error, not a crash.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import Cancelled, FormatError
from ..formats import STORAGE
from ..workers import in_order, workers
from .finding import Finding, Severity

_BUFFER = 1 << 20  # bytes, of each thread: stays in the cache
_TASK = 1 << 25  # bytes that a thread takes at a time


class ScalesAt(NamedTuple):
    """Where the floats of a block stand: bytes of the block, offsets in it, and their type."""

    nbytes: int
    offsets: tuple[int, ...]
    kind: str  # "f2", "f4", "f8" as numpy has them, "bf16"


_PLAIN = {"F32": "f4", "F64": "f8", "F16": "f2", "BF16": "bf16"}
SCALES_AT = {
    name: ScalesAt(storage.nbytes, storage.floats, _PLAIN.get(name, "f2"))
    for name, storage in STORAGE.items()
    if storage.floats
}
# kind -> unsigned integers of its size, all bits but the sign, the exponent of what is not finite.
_BITS = {
    "f2": ("<u2", 0x7FFF, 0x7C00),
    "bf16": ("<u2", 0x7FFF, 0x7F80),
    "f4": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "f8": ("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


class Part(NamedTuple):
    """Bytes [begin, end) of a tensor, counted in its file."""

    tensor: Any
    begin: int
    end: int


@dataclass
class Seen:
    """A part of a tensor, or all of it: whether all is zero, how many floats are not finite, the byte of the first."""

    zero: bool = True
    bad: int = 0
    first: int = -1

    def add(self, other: Seen) -> None:
        self.zero &= other.zero
        self.bad += other.bad
        self.first = min((at for at in (self.first, other.first) if at >= 0), default=-1)


@dataclass
class Scan:
    """findings; bytes read, in how many seconds; types that are not looked at."""

    findings: list[Finding]
    nbytes: int
    seconds: float
    unread: tuple[str, ...]


def scan(tensors: Iterable[Any], threads: int | None = None, progress: Callable[[int, int], Any] | None = None) -> Scan:
    """Look at the values of tensors, `_native.TensorInfo`s. Raises OSError, FormatError (cut short), Cancelled."""
    begin = time.perf_counter()
    tensors = list(tensors)
    known = [tensor for tensor in tensors if tensor.type in SCALES_AT]
    total = sum(tensor.nbytes for tensor in known)
    seen = {tensor.name: Seen() for tensor in known}
    done = 0
    threads = threads or _cores()
    with workers(threads) as tasks:
        for results in in_order(tasks, _look, _tasks(known), 2 * threads):
            for part, result in results:
                seen[part.tensor.name].add(result)
                done += part.end - part.begin
            if progress is not None and progress(done, total) is False:
                raise Cancelled("cancelled while reading the weights")
    findings = [finding for tensor in known for finding in _findings(tensor, seen[tensor.name])]
    unread = tuple(sorted({tensor.type for tensor in tensors} - set(SCALES_AT)))
    return Scan(findings, total, time.perf_counter() - begin, unread)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(tensors: Iterable[Any]) -> Iterator[list[Part]]:
    """Parts of about _TASK bytes in all, each of whole blocks."""
    task: list[Part] = []
    room = _TASK
    for tensor in tensors:
        step = _TASK // SCALES_AT[tensor.type].nbytes * SCALES_AT[tensor.type].nbytes
        at, end = tensor.offset, tensor.offset + tensor.nbytes
        while at < end:
            part = Part(tensor, at, min(at + step, end))
            task.append(part)
            at = part.end
            room -= part.end - part.begin
            if room <= 0:
                yield task
                task, room = [], _TASK
    if task:
        yield task


def _look(task: list[Part]) -> list[tuple[Part, Seen]]:
    buffer = np.empty(_BUFFER, np.uint8)
    results = []
    path, file = None, None
    try:
        for part in task:
            if part.tensor.path != path:
                if file is not None:
                    file.close()
                path = part.tensor.path
                file = open(path, "rb", buffering=0)  # noqa: SIM115
            results.append((part, _read(file, part, buffer)))
    finally:
        if file is not None:
            file.close()
    return results


def _read(file: Any, part: Part, buffer: np.ndarray) -> Seen:
    layout = SCALES_AT[part.tensor.type]
    step = len(buffer) // layout.nbytes * layout.nbytes
    seen = Seen()
    file.seek(part.begin)
    for begin in range(part.begin, part.end, step):
        piece = buffer[: min(step, part.end - begin)]
        at = 0
        while at < len(piece):
            got = file.readinto(memoryview(piece)[at:])
            if not got:
                raise FormatError(f"{part.tensor.path}: the file was cut short while it was read")
            at += got
        found = examine_bytes(piece, layout)
        found.first += begin if found.first >= 0 else 0
        seen.add(found)
    return seen


def examine_bytes(data: np.ndarray, layout: ScalesAt) -> Seen:
    """Whole blocks, (bytes,) uint8; `first` counts from their beginning."""
    kind, mask, limit = _BITS[layout.kind]
    seen = Seen()
    for offset in layout.offsets:
        floats = np.ndarray((len(data) // layout.nbytes,), kind, data, offset, (layout.nbytes,))
        sizes = floats & np.array(mask, kind)
        largest = int(sizes.max())
        bad = largest >= limit
        count = int((sizes >= limit).sum()) if bad else 0
        first = int((sizes >= limit).argmax()) * layout.nbytes if bad else -1
        seen.add(Seen(largest == 0, count, first))
    return seen


def _findings(tensor: Any, seen: Seen) -> Iterator[Finding]:
    if seen.bad:
        layout = SCALES_AT[tensor.type]
        what = "values" if tensor.type in _PLAIN else "block scales"
        count = tensor.nbytes // layout.nbytes * len(layout.offsets)
        at = seen.first - tensor.offset
        if len(tensor.shape) > 1:
            first = f"in row {at // (tensor.nbytes // math.prod(tensor.shape[:-1]))}"
        else:
            first = f"at {at // layout.nbytes}"
        yield Finding(
            "not-finite",
            Severity.ERROR,
            tensor.name,
            f"{seen.bad} of {count} {what} NaN or infinite, the first {first} ({tensor.type})",
            "Answers turn into one repeated character (GGGG, !!!!) as soon as such a weight is used. "
            "The file has to be downloaded or made again.",
        )
    # Biases may well be zero.
    if seen.zero and tensor.name.endswith(".weight"):
        yield Finding(
            "all-zero",
            Severity.ERROR,
            tensor.name,
            f"nothing but zeros ({tensor.type}, {tensor.nbytes} bytes)",
            "The part that it belongs to does nothing. The file was not written or downloaded whole.",
        )
