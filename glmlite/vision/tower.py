"""A model's eyes: from the patches of an image to the rows that stand for it in the text model.

    tower = Tower.open("mmproj-model.gguf")
    rows = tower.rows(patches, grid)  # (N / 4, width): one for each token of the image

An image is one sequence of the tower, and the unit of its results: every patch sees all the others. What it needs of
memory is that of its activations, which are given back after each image, and of one layer's keys and values.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from .. import models
from ..errors import FormatError
from ..models import glm4v
from ..placement import backend, matrices_of_a_token, native_ops
from ..program import AXES, Op
from ..reference import NO_ID, Reference, Work

__all__ = ["Cost", "ReferenceTower", "Tower", "items", "kv_type_of"]

Grid = tuple[int, int]  # rows and columns of patches


def items(content: bytes, count: int) -> array[int]:
    """What stands for an image's rows where the beginnings of prompts are compared: negative, as no token's id is.

    content: a digest of the pixels and of what makes rows of them. Row k's number depends on nothing else but k.
    """
    numbers = array("q", hashlib.shake_256(content).digest(8 * count))
    return array("q", (-1 - (number & (2**63 - 1)) for number in numbers))


def kv_type_of(tensors: Mapping[str, Any]) -> str:
    """Of a tower's keys and values: q8 where its weights are integers, too, whose rounding costs more."""
    blocks = [tensor.type for name, tensor in tensors.items() if name.startswith("v.blk.") and len(tensor.shape) > 1]
    return "f16" if all(type in ("F32", "F16", "BF16") for type in blocks) else "q8"


class Cost(NamedTuple):
    """What an image is multiplied with: by the tower, for each patch and for each pair of patches, and by the merger
    for each patch."""

    patch: float
    pair: float
    merged: float

    @classmethod
    def read(cls, eyes: models.Eyes, tensors: Mapping[str, Any]) -> Cost:
        c = eyes.config
        return cls(_weights(eyes.tower, tensors), 2.0 * c.layers * c.dim, _weights(eyes.merger, tensors) / c.merge**2)

    def of(self, patches: int) -> float:
        return self.tower(patches) + patches * self.merged

    def tower(self, patches: int) -> float:
        return patches * (self.patch + patches * self.pair)


class _Eyes:
    """What both towers share: the file's programs, and what an image has to be."""

    def __init__(self, gguf: Any):
        self.shapes = {name: tuple(info.shape) for name, info in gguf.tensors.items()}
        if not glm4v.has_tower(self.shapes):
            raise FormatError("has no tensor 'v.*': it is a text model alone, its eyes are in another file ('mmproj')")
        self._programs = models.record_eyes(gguf.metadata, self.shapes)
        self.config = self._programs.config
        self.width = self.config.width
        self._table = gguf.dequantize(glm4v.POSITIONS) if self.config.side else None

    def _enter(self, patches: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """What the tower is given for each patch, and where the patches stand. Raises ValueError."""
        c = self.config
        rows, columns = grid
        want = (rows * columns, 3 * c.patch**2)
        if rows < 1 or columns < 1 or rows % c.merge or columns % c.merge:
            raise ValueError(f"grid: {rows} x {columns} patches, expected multiples of {c.merge}")
        if want[0] > c.most_patches:
            raise ValueError(f"grid: {rows} x {columns} patches, expected at most {c.most_patches} of an image")
        if patches.shape != want or patches.dtype != np.float32:
            raise ValueError(f"patches: {patches.shape} {patches.dtype}, expected {want} float32")
        if self._table is not None:
            patches = np.hstack([patches, glm4v.learned_positions(self._table, grid, c.merge)])
        return patches, glm4v.positions(grid, c.merge)


class Tower(_Eyes):
    """The eyes on the CPU. Threads share it: one image at a time, the calls of others wait.

    gguf: an open file, which may be closed afterwards. threads: 0: the physical cores. kv_type: of keys and values,
    "f16" or "q8"; None: what goes with the weights. computing: `adaptive` and `background` of `Engine`. Raises
    FormatError, MemoryError, Cancelled (by `progress`, as `Engine` has it).
    """

    def __init__(
        self,
        gguf: Any,
        *,
        threads: int = 0,
        kv_type: str | None = None,
        isa: str = "",
        progress: Callable[[int, int], object] | None = None,
        **computing: bool,
    ):
        super().__init__(gguf)
        self.native = backend("cpu")
        patches = self.config.most_patches

        def engine(ops: Sequence[Op], tokens: int) -> Any:
            return self.native.Engine(
                gguf,
                native_ops(ops, gguf.dequantize),
                kv_tokens=max(tokens, 1),
                kv_type=kv_type or kv_type_of(gguf.tensors),
                threads=threads,
                isa=isa,
                progress=progress,
                **computing,
            )

        self._tower = engine(self._programs.tower, patches)
        self._merger = engine(self._programs.merger, patches // self.config.merge**2)
        self._cost = Cost.read(self._programs, gguf.tensors)
        self._lock = threading.Lock()
        self._running: tuple[Any, float, float] | None = None  # the engine, and the part of the image that it does

    @classmethod
    def open(cls, path: str | os.PathLike[str], **options: Any) -> Tower:
        """Of a file: an mmproj, or a text model's with the eyes in it. Raises OSError, too; errors name the file."""
        with closing(backend("cpu").Gguf(os.fspath(path))) as gguf:
            try:
                return cls(gguf, **options)
            except FormatError as error:
                raise FormatError(f"{os.fspath(path)}: {error}") from error

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return int(self._tower.weight_bytes + self._merger.weight_bytes)

    @property
    def threads(self) -> int:
        """As `Engine.threads`."""
        return int(self._tower.threads)

    @threads.setter
    def threads(self, threads: int) -> None:
        for engine in (self._tower, self._merger):
            engine.threads = threads

    def rows(self, patches: np.ndarray, grid: Grid, *, cancel: Any = None) -> np.ndarray:
        """(N / merge², width) float32, the tokens of an image row by row.

        patches: (N, 3 * patch²) float32, those of each token together. grid: their rows and columns. cancel: a `Cancel`
        of the engine's module. Raises ValueError, Cancelled, MemoryError; RuntimeError for weights that overflow.
        """
        given, places = self._enter(patches, grid)
        n, merge = len(patches), self.config.merge
        share = self._cost.tower(n) / self._cost.of(n)
        with self._lock:
            x = self._run(self._tower, given, places, n, cancel, 0.0, share)
            x = glm4v.beside(x, merge)
            return self._run(self._merger, x, np.zeros((len(x), AXES), np.int32), 0, cancel, share, 1.0)

    def progress(self) -> float:
        """How much of the image in progress is done, 0 to 1, by work; 1 when there is none. Any thread may ask."""
        if (running := self._running) is None:
            return 1.0
        engine, begin, end = running
        return float(begin + (end - begin) * engine.progress())

    def close(self) -> None:
        """Frees the weights now; later calls raise ValueError."""
        self._tower.close()
        self._merger.close()

    def _run(
        self, engine: Any, given: np.ndarray, places: np.ndarray, visible: int, cancel: Any, begin: float, end: float
    ) -> np.ndarray:
        sequence = engine.new_sequence()
        self._running = engine, begin, end
        try:
            work = self.native.Work(
                sequence, np.full(len(given), NO_ID, np.int32), places, visible=visible, input=given
            )
            rows: np.ndarray = engine.step([work], range(len(given)), cancel)
            return rows
        finally:
            self._running = None
            engine.free(sequence)
            engine.release()


class ReferenceTower(_Eyes):
    """The eyes in numpy: sums in f64, the specification of `Tower`. Slow."""

    def __init__(self, gguf: Any):
        super().__init__(gguf)
        weights = {name: gguf.dequantize(name) for name in self.shapes if name.startswith(glm4v.TENSORS)}
        self._tower = Reference(self._programs.tower, weights)
        self._merger = Reference(self._programs.merger, weights)

    def rows(self, patches: np.ndarray, grid: Grid) -> np.ndarray:
        """As `Tower.rows`."""
        given, places = self._enter(patches, grid)
        x = self._run(self._tower, given, places, len(given))
        x = glm4v.beside(x, self.config.merge)
        return self._run(self._merger, x, np.zeros((len(x), AXES), np.int32), 0)

    def _run(self, executor: Reference, given: np.ndarray, places: np.ndarray, visible: int) -> np.ndarray:
        sequence = executor.new_sequence()
        try:
            return executor.step([Work(sequence, [NO_ID] * len(given), places, visible, given)], range(len(given)))
        finally:
            executor.free(sequence)


def _weights(ops: Sequence[Op], tensors: Mapping[str, Any]) -> float:
    """What a row is multiplied with, in a program."""
    return math.fsum(share * math.prod(tensor.shape) for _, tensor, share in matrices_of_a_token(ops, tensors))
