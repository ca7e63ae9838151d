"""Importance matrices: how large the inputs of each weight matrix's columns are when a model reads a text.

    matrix = collect("model-f16.gguf", text)
    write("model.imatrix.gguf", matrix)
    convert("model-f16.gguf", "model-q4_k_m.gguf", "q4_k_m", importance=read("model.imatrix.gguf").weights())

The files are llama.cpp's: GGUF with `general.type` = `imatrix`, the metadata `imatrix.datasets`, `imatrix.chunk_count`
and `imatrix.chunk_size`, and for each tensor of matrices two f32 tensors, `<its name>.in_sum2` (m, k), the sums of
squares, and `<its name>.counts` (m, 1), the rows they were summed over: m is 1, or the experts, of which each saw other
tokens. Its older form (`.dat`) is read, too: little-endian int32 and f32, the number of entries, then of each the
length of its name, the name, the chunks, the number of values and the values, which are mean squares times the chunks;
at the end the chunks and the name of the text, or nothing.

In both forms llama.cpp puts matrices that all tokens meet (one of each attention head) behind one another in a row:
whoever uses it knows how many they are.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import evaluate
from ..errors import Cancelled, FormatError
from ..files import special
from ..program import Op
from . import writer

__all__ = ["Entry", "ImportanceMatrix", "collect", "read", "write"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
_LARGEST = 2.0**62  # of counts
_LARGEST_PART = 1 << 28  # bytes of what an entry of the older form has; those of the largest models have a few MB


class Entry(NamedTuple):
    """sums: (m, k) f64 of the squares of each input column of m matrices; counts: (m,) of the rows that were summed."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class ImportanceMatrix:
    """entries: tensor name -> Entry. datasets: names of the texts. chunks, chunk_size: of how many tokens; a chunk_size
    of 0 is not known (the older form)."""

    entries: Mapping[str, Entry]
    datasets: Sequence[str]
    chunks: int
    chunk_size: int

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Tensor name -> mean square of each input column, (k,) or (experts, k), as `convert` takes it.

        An expert that no token met has 1 in all columns: it is quantized as without.
        """
        return {name: _means(entry) for name, entry in self.entries.items()}


def collect(
    model: str | os.PathLike[str],
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    output: bool = False,
    dataset: str = "",
    threads: int | None = None,
    loading: Callable[[float], Any] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> ImportanceMatrix:
    """Let the model of a GGUF file read a text, and sum up what enters its matrices.

    The text is read in chunks of `context` tokens (`glmlite.evaluate` says how), at most `chunks`. output: also the
    matrix that makes the logits, which takes longer. dataset: a name for the text. progress: called with the tokens
    read and those to read; returning False cancels (Cancelled). threads, loading: as `threads` and `progress` of
    `glmlite.load`.

    Sums are in f64 and in the order of the tokens: the same model and text give the same matrix. Raises what
    `glmlite.load` raises, ValueError (too short a text) and RuntimeError (numbers that are not finite).
    """
    with evaluate.Reader(model, context, threads=threads, loading=loading) as reader:
        work = reader.chunks(text, chunks)
        *linears, head = [op for op in reader.recording.ops if op.kind == "linear"]
        if output:
            linears.append(head)
        linears += [op for op in reader.recording.ops if op.kind == "head_linear"]
        inputs = {op.inputs["x"].id: np.zeros(op.inputs["x"].width) for op in linears}
        mixtures = {op.out.id: _Experts(op, reader.shapes) for op in reader.recording.ops if op.kind == "moe"}
        count = 0

        def report(done: int) -> None:
            if progress is not None and progress(done, len(work) * context) is False:
                raise Cancelled("imatrix: cancelled")

        watched = [*inputs, *mixtures]
        for chunk in work:
            most = reader.rows_at_a_time if output else evaluate.STEP
            for begin, end, step in reader.steps(chunk._replace(first=0), most):
                rows = list(range(end - begin)) if output else []
                sums = reader.run(
                    lambda cancel, step=step, rows=rows: reader.engine.squares([step], rows, watched, cancel),
                    lambda part, at=count + begin, size=end - begin: report(at + int(part * size)),
                )
                for value, columns in sums.items():
                    if value in mixtures:
                        mixtures[value].add(columns)
                    else:
                        inputs[value] += columns
            count += len(chunk.tokens)
            report(count)
    entries = {}
    for op in linears:
        sums = inputs[op.inputs["x"].id]
        for name in op.weights["w"]:
            if not np.isfinite(sums).all():
                raise RuntimeError(f"{model}: what enters '{name}' is not finite: the weights are damaged, or overflow")
            entries[name] = _entry(sums, count, reader.shapes[name])
    for mixture in mixtures.values():
        entries |= mixture.entries()
    return ImportanceMatrix(entries, [dataset] if dataset else [], len(work), context)


class _Experts:
    """What enters the experts of one `moe`, each of which has other rows."""

    def __init__(self, op: Op, shapes: Mapping[str, tuple[int, ...]]):
        self._names = op.weights["gate_up"], op.weights["down"]
        experts, _, inner = shapes[op.weights["down"][0]]
        self._sums = np.zeros((experts, op.inputs["x"].width)), np.zeros((experts, inner))
        self._counts = np.zeros(experts)

    def add(self, experts: Mapping[int, tuple[int, NDArray[np.float64], NDArray[np.float64]]]) -> None:
        for expert, (count, *columns) in experts.items():
            self._counts[expert] += count
            for sums, of in zip(self._sums, columns):
                sums[expert] += of

    def entries(self) -> dict[str, Entry]:
        return {name: Entry(sums, self._counts) for names, sums in zip(self._names, self._sums) for name in names}


def write(path: str | os.PathLike[str], matrix: ImportanceMatrix) -> None:
    """The GGUF form. The file appears when it is whole. Raises OSError."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(matrix.datasets),
        "imatrix.chunk_count": matrix.chunks,
        "imatrix.chunk_size": matrix.chunk_size,
    }
    tensors = []
    for name, (sums, counts) in sorted(matrix.entries.items()):
        for suffix, values in ((_SUMS, sums), (_COUNTS, counts[:, None])):
            x = np.asarray(values, "<f4")
            tensors.append(writer.Entry(name + suffix, x.shape, "F32", lambda x=x: [x]))
    writer.write(Path(path), metadata, tensors)


def read(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Either form. Raises FormatError: the file, the entry and what is wrong with it; OSError."""
    path = Path(path)
    if (kind := special(path)) is not None:
        raise FormatError(f"{path}: is {kind}, expected an importance matrix")
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
        entries, datasets, chunks, chunk_size = _read_gguf(path) if is_gguf else _read_dat(_Dat(path, file))
    if not entries:
        raise FormatError(f"{path}: has no entries, expected an importance matrix")
    for name, (sums, counts) in entries.items():
        if not (counts >= 0).all() or not counts.any():
            raise FormatError(f"{path}: '{name}' was summed over {counts.min()} rows, expected at least 1")
        if not sums.size:
            raise FormatError(f"{path}: '{name}' has no columns")
        good = (sums >= 0) & (sums < np.inf)
        if not good.all():
            at = np.unravel_index(np.argmin(good), sums.shape)
            where = f"expert {at[0]}, " * (len(sums) > 1)
            raise FormatError(
                f"{path}: '{name}', {where}column {at[1]} is {sums[at]:g}, expected a finite sum of squares"
            )
    return ImportanceMatrix(entries, datasets, chunks, chunk_size)


def _entry(sums: NDArray[np.float64], count: int, shape: tuple[int, ...]) -> Entry:
    """Of the squares of all columns that enter a matrix, or one for each head: of a head's columns the first enter."""
    by_matrix = sums.reshape(math.prod(shape[:-2]), -1)[:, : shape[-1]]
    return Entry(by_matrix, np.full(len(by_matrix), count))


def _means(entry: Entry) -> NDArray[np.float32]:
    means = (entry.sums / np.maximum(entry.counts, 1)[:, None]).astype(np.float32)
    means[entry.counts == 0] = 1
    return means[0] if len(means) == 1 else means


def _read_gguf(path: Path) -> tuple[dict[str, Entry], list[str], int, int]:
    from .._native import Gguf

    gguf = Gguf(path)
    try:
        metadata, tensors = gguf.metadata, gguf.tensors
        if absent := [key for key in _KEYS if key not in metadata]:
            kind = metadata.get("general.type", metadata.get("general.architecture"))
            raise FormatError(f"{path}: is {kind!r} and has no '{absent[0]}', expected an importance matrix")
        datasets, chunks, chunk_size = (metadata[key] for key in _KEYS)
        if not isinstance(datasets, list):
            raise FormatError(f"{path}: 'imatrix.datasets' is {datasets!r}, expected a list of names")
        for key, value in zip(_KEYS[1:], (chunks, chunk_size)):
            if type(value) is not int or value < 0:
                raise FormatError(f"{path}: '{key}' is {value!r}, expected a count")
        entries = {}
        for name, info in tensors.items():
            if not name.endswith((_SUMS, _COUNTS)) or info.type != "F32":
                raise FormatError(
                    f"{path}: '{name}' ({info.type}), expected only F32 tensors named *{_SUMS} and *{_COUNTS}"
                )
            base = name.removesuffix(_COUNTS).removesuffix(_SUMS)
            if absent := [base + end for end in (_SUMS, _COUNTS) if base + end not in tensors]:
                raise FormatError(f"{path}: '{absent[0]}' is missing")
            counts = gguf.dequantize(base + _COUNTS).reshape(-1)
            sums = gguf.dequantize(base + _SUMS).astype(np.float64).reshape(-1)
            if not len(counts) or sums.size % len(counts):
                raise FormatError(
                    f"{path}: '{base}' has {sums.size} sums for {len(counts)} counts, expected as many for each"
                )
            if not (good := (counts >= 0) & (counts < _LARGEST)).all():
                raise FormatError(f"{path}: '{base}{_COUNTS}' is {counts[np.argmin(good)]:g}, expected a count")
            entries[base] = Entry(sums.reshape(len(counts), -1), np.rint(counts).astype(np.int64))
    finally:
        gguf.close()
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in datasets]
    return entries, texts, chunks, chunk_size


class _Dat:
    """The bytes of a file in the older form. Read as they are asked for: a large file may be anything."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.size = file.seek(0, os.SEEK_END)
        self._file = file
        file.seek(0)

    @property
    def left(self) -> int:
        return self.size - self._file.tell()

    def take(self, size: int, what: str) -> bytes:
        if not 0 <= size <= min(self.left, _LARGEST_PART):
            raise FormatError(
                f"{self.path}: {what} has {size} bytes at byte {self.size - self.left} of {self.size}: not an "
                "importance matrix, or cut off"
            )
        return self._file.read(size)

    def number(self, what: str) -> int:
        return struct.unpack("<i", self.take(4, what))[0]

    def text(self, what: str) -> str:
        return self.take(self.number(what), what).decode("utf-8", "replace")


def _read_dat(file: _Dat) -> tuple[dict[str, Entry], list[str], int, int]:
    entries = {}
    for i in range(file.number("the number of entries")):
        name = file.text(f"the name of entry {i}")
        chunks = file.number(f"'{name}'")
        sums = np.frombuffer(file.take(4 * file.number(f"'{name}'"), f"'{name}'"), "<f4").astype(np.float64)
        if name in entries:
            raise FormatError(f"{file.path}: '{name}' comes twice")
        entries[name] = Entry(sums[None], np.array([chunks]))
    if not file.left:
        return entries, [], 0, 0
    chunks = file.number("the number of chunks")
    return entries, [file.text("the text's name")], chunks, 0
