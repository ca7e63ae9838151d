"""A conversion's plan, worked off by a pool of threads: read, quantized, written in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .._native import default_threads
from ..errors import Cancelled
from ..models.glm4v import TENSORS as EYES
from ..workers import in_order, workers
from . import writer
from .architectures import Tensor
from .formats import can_quantize, encode
from .planning import Conversion

__all__ = ["unweighted", "work_off"]

_CHUNK = 1 << 19  # values that a thread has in hand; their f32 stay in a cache from step to step
_AHEAD = 4  # pieces of each thread that may wait to be written


def work_off(
    work: Conversion,
    out: Path,
    *,
    progress: Callable[[int, int], Any] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    threads: int | None = None,
) -> Path:
    """Write the files of a plan, as `convert` does."""
    if importance is not None:
        unweighted(work, importance)
        if not can_quantize():
            raise RuntimeError("importance: quantizing with one needs numba: pip install 'glmlite[convert]'")

    def report(done: int, total: int) -> None:
        if progress is not None and progress(done, total) is False:
            raise Cancelled(f"{out}: cancelled, nothing is left of it")

    for path in work.paths(out):
        if work.source is not None and path.exists() and path.samefile(work.source):
            raise ValueError(f"{path}: is the source itself, expected another name")
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")
    with workers(threads) as tasks:

        def pieces(tensor: Tensor, kind: str) -> Iterator[np.ndarray]:
            columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
            step = max(1, _CHUNK // max(columns, 1))
            weights = None if importance is None else _columns(importance, tensor)

            def piece(at: tuple[int, int]) -> np.ndarray:
                matrix, begin = at
                first = matrix * tensor.rows
                x = tensor.read(first + begin, first + min(begin + step, tensor.rows))
                return encode(x, kind, tensor.origin(matrix), None if weights is None else weights[matrix])

            places = ((matrix, begin) for matrix in range(tensor.matrices) for begin in range(0, tensor.rows, step))
            return in_order(tasks, piece, places, _AHEAD * threads)

        parts = [work] if work.eyes is None else [work, work.eyes]
        files = [
            writer.File(
                path,
                part.metadata,
                [
                    writer.Entry(tensor.name, tensor.shape, kind, partial(pieces, tensor, kind))
                    for tensor, kind in part.tensors
                ],
            )
            for part, path in zip(parts, work.paths(out))
        ]
        writer.write_all(files, report)
    return out


def unweighted(work: Conversion, importance: Mapping[str, np.ndarray]) -> list[str]:
    """The tensors that the plan quantizes and `importance` has nothing for.

    Eyes are not counted, since no text goes through them. Raises ValueError where tensors have another width, or
    nothing for any (another model's), or nothing is quantized.
    """
    quantized = [
        tensor
        for tensor, kind in work.tensors
        if kind not in ("F32", "F16", "BF16") and not tensor.name.startswith(EYES)
    ]
    if not quantized:
        raise ValueError("importance: only types that quantize have a use for it; this plan has none")
    for tensor in quantized:
        _columns(importance, tensor)
    absent = [tensor.name for tensor in quantized if tensor.name not in importance]
    if len(absent) == len(quantized):
        raise ValueError(f"importance: has nothing for '{absent[0]}' or any other tensor: it is another model's")
    return absent


def _columns(importance: Mapping[str, np.ndarray], tensor: Tensor) -> np.ndarray | None:
    """(matrices, columns), of which one matrix may stand for all; None if there is nothing for the tensor. llama.cpp
    writes some of its matrices behind one another. Raises ValueError for another number."""
    if tensor.name not in importance:
        return None
    weights, columns = np.asarray(importance[tensor.name]), tensor.shape[-1]
    if weights.size not in (columns, tensor.matrices * columns):
        raise ValueError(
            f"importance: '{tensor.name}' has {weights.size} columns, expected {tensor.matrices * columns}: "
            "it is another model's"
        )
    return np.broadcast_to(weights.reshape(-1, columns), (tensor.matrices, columns))
