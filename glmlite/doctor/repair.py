"""Write a corrected copy. Only metadata is corrected: what is wrong with weights cannot be known."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..convert import writer
from ..errors import Cancelled, FormatError
from .finding import Finding, Report

_PIECE = 1 << 22  # bytes in memory at a time
_DROPPED = ("split.", "general.alignment")  # the copy is one file, with GGUF's own alignment


def corrected(metadata: Mapping[str, Any], findings: Iterable[Finding]) -> dict[str, Any]:
    """The metadata with what the findings change."""
    out = dict(metadata)
    for finding in findings:
        for key, value in finding.changes.items():
            if value is None:
                out.pop(key, None)
            else:
                out[key] = value
    return out


def fix(
    report: Report,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], Any] | None = None,
) -> Path:
    """Write a copy with everything corrected that can be; tensors are copied byte for byte. Returns `out`.

    The copy is one file, also of a split one; it is written beside `out` and renamed when it is whole, and whatever
    goes wrong leaves none. The file that the report is of is never written to. What cannot be corrected stays as it
    is: `examine` the copy to see what that is. progress: called with the bytes written and those in all; returning
    False cancels (Cancelled).

    Raises ValueError if nothing can be corrected, or `out` is the file itself; FormatError, OSError, Cancelled.
    """
    from .._native import Gguf

    out = Path(out)
    if not any(finding.changes for finding in report.findings):
        raise ValueError(f"{report.paths[0]}: nothing that could be corrected")
    if any(_same(out, Path(path)) for path in report.paths):
        raise ValueError(f"{out}: is the file itself, expected another name: the source is never written over")

    def show(done: int, total: int) -> None:
        if progress is not None and progress(done, total) is False:
            raise Cancelled(f"{out}: cancelled, nothing is left of it")

    gguf = Gguf(report.paths[0])
    try:
        metadata = {key: value for key, value in gguf.metadata.items() if not key.startswith(_DROPPED)}
        metadata = {key: _plain(key, value) for key, value in corrected(metadata, report.findings).items()}
        entries = [
            writer.Entry(info.name, tuple(info.shape), info.type, _pieces(info), (info.type_id, info.nbytes))
            for info in gguf.tensors.values()
        ]
        writer.write(out, metadata, entries, show)
    finally:
        gguf.close()
    return out


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, list) and not all(isinstance(item, (str, bytes)) for item in value):
        raise FormatError(f"metadata: {key!r} is an array of arrays, which is not written")
    return value


def _pieces(info: Any) -> Callable[[], Iterator[np.ndarray]]:
    def pieces() -> Iterator[np.ndarray]:
        with open(info.path, "rb", buffering=0) as file:
            file.seek(info.offset)
            left = info.nbytes
            while left:
                data = file.read(min(left, _PIECE))
                if not data:
                    raise FormatError(f"{info.path}: the file was cut short while it was read")
                left -= len(data)
                yield np.frombuffer(data, np.uint8)

    return pieces


def beside(path: str) -> Path:
    """The name of a copy in the current folder, after the source's."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", Path(path).name)
    return Path(f"{stem}-fixed.gguf")
