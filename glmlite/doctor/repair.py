"""Write a corrected copy. Metadata is corrected, and tensors that two belong in the place of are taken apart: what else
is wrong with weights cannot be known."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._native import dequantize
from ..convert import writer
from ..convert.formats import encode
from ..errors import Cancelled, FormatError
from .finding import Finding, Report, Split

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


def split(shapes: Mapping[str, tuple[int, ...]], findings: Iterable[Finding]) -> dict[str, tuple[int, ...]]:
    """The shapes with the tensors that the findings take apart."""
    splits = {name: split for finding in findings for name, split in finding.splits.items()}
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        out |= splits[name].shapes(name) if name in splits else {name: shape}
    return out


def fix(
    report: Report,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], Any] | None = None,
) -> Path:
    """Write a copy with everything corrected that can be; tensors are copied byte for byte, but for those that two
    belong in the place of. Returns `out`.

    The copy is one file, also of a split one; it is written beside `out` and renamed when it is whole, and whatever
    goes wrong leaves none. The file that the report is of is never written to. What cannot be corrected stays as it
    is: `examine` the copy to see what that is. progress: called with the bytes written and those in all; returning
    False cancels (Cancelled).

    Raises ValueError if nothing can be corrected, or `out` is the file itself; FormatError, OSError, Cancelled.
    """
    from .._native import Gguf

    out = Path(out)
    if not any(finding.fix for finding in report.findings):
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
        splits = {name: split for finding in report.findings for name, split in finding.splits.items()}
        entries = []
        for info in gguf.tensors.values():
            if info.name in splits:
                entries += _apart(info, splits[info.name])
            else:
                stored = (info.type_id, info.nbytes)
                entries.append(writer.Entry(info.name, tuple(info.shape), info.type, _pieces(info), stored))
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
    return lambda: _read(info, 0, info.nbytes)


def _read(info: Any, begin: int, count: int) -> Iterator[np.ndarray]:
    """`count` bytes of a tensor from the byte `begin` on, in pieces."""
    with open(info.path, "rb", buffering=0) as file:
        file.seek(info.offset + begin)
        while count:
            data = file.read(min(count, _PIECE))
            if not data:
                raise FormatError(f"{info.path}: the file was cut short while it was read")
            count -= len(data)
            yield np.frombuffer(data, np.uint8)


# Types that are transposed as they are, and their bits.
_FLOATS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


def _apart(info: Any, split: Split) -> list[writer.Entry]:
    """What stands in the place of an `attn_kv_b`. Rows of values stay as they are. Keys' columns become rows, which
    blocks do not allow: they become F16, unless they are floats already."""
    if not split.needed:
        return []
    row = info.nbytes // info.shape[0]

    def rows(head: int, begin: int, count: int) -> np.ndarray:
        at = head * (split.keys + split.values) + begin
        return np.concatenate(list(_read(info, at * row, count * row))).reshape(count, row)

    def keys() -> Iterator[np.ndarray]:
        for head in range(split.heads):
            stored = rows(head, 0, split.keys)
            if info.type in _FLOATS:
                yield np.ascontiguousarray(stored.view(_FLOATS[info.type]).T)
            else:
                x = np.ascontiguousarray(dequantize(info.type, stored).T)
                yield encode(x, "F16", f"{info.path}: {info.name!r}")

    def values() -> Iterator[np.ndarray]:
        return (rows(head, split.keys, split.values) for head in range(split.heads))

    if not info.supported:
        raise FormatError(f"{info.path}: {info.name!r} is of {info.type}, which there are no kernels for")
    (key, key_shape), (value, value_shape) = split.shapes(info.name).items()
    stored = (info.type_id, split.heads * split.values * row)
    return [
        writer.Entry(key, key_shape, info.type if info.type in _FLOATS else "F16", keys),
        writer.Entry(value, value_shape, info.type, values, stored),
    ]


def beside(path: str) -> Path:
    """The name of a copy in the current folder, after the source's."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", Path(path).name)
    return Path(f"{stem}-fixed.gguf")
