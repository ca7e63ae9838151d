"""One lazy view of the tensors of a checkpoint: safetensors or torch's zip files, in one piece or in shards.

    checkpoint = Checkpoint(folder)
    checkpoint.shape("lm_head.weight")                            # (65024, 4096)
    checkpoint.read("lm_head.weight", range(0, 1024))             # f32, (1024, 4096)

Opening reads the headers only, and `read` no more than the rows that are asked for, so a model of any size takes
the memory of a few rows. Nothing of a file is executed (see `glmlite.convert.torchfile`), and every offset is
checked against the file's size before it is used.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .._native import dequantize
from ..errors import FormatError
from ..files import UNFINISHED, downloading
from . import safetensors, torchfile
from .files import Files, dangling, load_json, missing, short
from .stored import DTYPES, Stored, check_name

__all__ = ["Checkpoint", "Rows"]

Rows = Sequence[int] | np.ndarray  # indices of rows; those of several matrices in one tensor are counted through


class Checkpoint:
    """The tensors of a folder (or of one file). FormatError names the file, and the tensor if it is at fault.

    Of a folder counts what transformers would take: `model.safetensors`, else the shards of its index, else the same of
    `pytorch_model.bin`. Where there is none of these, all of its safetensors, else all of its `.bin` files, are read.
    adapter: the folder is PEFT's, of which `adapter_model` counts and nothing else.
    """

    def __init__(self, path: Path, *, adapter: bool = False):
        self.path = Path(path)
        self._files = Files()
        self._tensors = _open_adapter(self.path) if adapter else _open(self.path)

    @property
    def names(self) -> list[str]:
        return sorted(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """As safetensors names it: "F16"."""
        return self._tensors[name].dtype

    def where(self, name: str) -> str:
        """For messages: the file and the tensor."""
        return f"{self._tensors[name].path}: {name!r}"

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        """The rows as f32 (all if None), in the order asked for. Raises FormatError if the tensor's are no floats."""
        x = self.raw(name, rows)
        dtype = self.dtype(name)
        if dtype in ("BF16", "F16"):
            flat = np.ascontiguousarray(x).reshape(-1)
            return dequantize(dtype, flat.view(np.uint8)[None]).reshape(x.shape)
        if dtype not in ("F64", "F32"):
            raise FormatError(f"{self.where(name)} is {dtype}, expected F32, F16 or BF16")
        return x.astype(np.float32, copy=False)

    def raw(self, name: str, rows: Rows | None = None) -> np.ndarray:
        """The rows as stored (BF16: its bits)."""
        t = self._tensors[name]
        count = math.prod(t.shape[: max(len(t.shape) - 1, 1)])
        if t.strides is not None:
            x = self._strided(t, np.arange(count) if rows is None else np.asarray(rows))
            return x.reshape(t.shape) if rows is None else x
        if rows is None or not t.shape:
            return self._contiguous(t, 0, count).reshape(t.shape)
        rows = np.asarray(rows)
        out = np.empty((len(rows), *_row(t)), DTYPES[t.dtype])
        # Runs of neighbours are read at once; where they are short, the rows lie close together (the pairs of a
        # rotated head), so all from the first to the last are read.
        begins = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
        if len(begins) * 8 > len(rows) and len(rows):
            first = int(rows.min())
            out[:] = self._contiguous(t, first, int(rows.max()) + 1 - first)[rows - first]
            return out
        for begin, end in zip(begins, [*begins[1:], len(rows)]):
            out[begin:end] = self._contiguous(t, int(rows[begin]), int(end - begin))
        return out

    def adapted(self, name: str) -> bool:
        """Whether an adapter changes it: these are the weights themselves."""
        return False

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _contiguous(self, t: Stored, first: int, count: int) -> np.ndarray:
        row = math.prod(_row(t))
        data = self._bytes(t, first * row, count * row)
        return data.reshape(count, *_row(t))

    def _strided(self, t: Stored, rows: np.ndarray) -> np.ndarray:
        """Reads all from the first to the last element of the rows (of their matrices, where there are several): of a
        transposed matrix, nearly all of it."""
        if not len(rows):
            return np.empty((0, *_row(t)), DTYPES[t.dtype])
        each = math.prod(t.shape[1:-1])
        first = int(rows.min()) // each
        shape = (int(rows.max()) // each + 1 - first, *t.shape[1:])
        span = 1 + sum((n - 1) * s for n, s in zip(shape, t.strides))
        size = DTYPES[t.dtype].itemsize
        data = self._bytes(t, first * t.strides[0], span)
        x = np.ndarray(shape, data.dtype, data, strides=[s * size for s in t.strides])
        return x.reshape(-1, *_row(t))[rows - first * each]

    def _bytes(self, t: Stored, first: int, count: int) -> np.ndarray:
        """`count` elements from the element `first` on."""
        out = np.empty(count, DTYPES[t.dtype])
        self._files.read(t.path, t.offset + first * out.itemsize, out)
        return out


def _row(t: Stored) -> tuple[int, ...]:
    """The shape of one row: of a matrix's columns, or of one of a vector's values."""
    return t.shape[1:][-1:]


# ---- files -------------------------------------------------------------------------------------------------------


_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
# What a training leaves beside the weights: its state, and objects of its program.
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|trainer_state|rng_state.*|random_states.*)\.\w+")


def _open(path: Path) -> dict[str, Stored]:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.is_file():
        return _sharded(path.parent, path) if path.name.endswith(".index.json") else _read_file(path)
    for whole in ("model.safetensors", "pytorch_model.bin"):
        for file, read in ((path / whole, _read_file), (path / f"{whole}.index.json", partial(_sharded, path))):
            if file.is_symlink() and not file.exists():
                raise FormatError(f"{file}: {dangling(file)}")
            if file.is_file():
                return read(file)
    for pattern in ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin"):
        found = (file for file in path.glob(pattern) if file.is_file())
        files = sorted(f for f in found if f.name not in _ADAPTERS and not _NOT_WEIGHTS.fullmatch(f.name))
        if files:
            return _unindexed(files)
    raise FormatError(f"{path}: {_without_weights(path)}")


def _without_weights(folder: Path) -> str:
    """What a folder is that holds no weights, and what to do."""
    if any((folder / name).exists() for name in _ADAPTERS):
        return "an adapter of PEFT, not a model; convert the model that it was trained on, with --lora for this folder"
    names = sorted(entry.name for entry in folder.iterdir())
    for name in names:
        if (folder / name).is_symlink() and not (folder / name).exists():
            return f"{name!r} is {dangling(folder / name)}"
    if name := next((name for name in names if name.endswith(UNFINISHED)), None):
        return f"no weights but {name!r}: the download has not ended"
    if name := next((name for name in names if name.endswith(".gguf")), None):
        return f"no checkpoint but {name!r}: name that file to convert it, or run it as it is"
    return "neither *.safetensors nor pytorch_model*.bin in this folder"


def _open_adapter(folder: Path) -> dict[str, Stored]:
    for name in _ADAPTERS:
        file = folder / name
        if file.is_symlink() and not file.exists():
            raise FormatError(f"{file}: {dangling(file)}")
        if file.is_file():
            return _read_file(file)
    raise FormatError(f"{folder}: no {' or '.join(_ADAPTERS)}, expected a LoRA folder of PEFT")


def _sharded(folder: Path, index: Path) -> dict[str, Stored]:
    """The tensors of an index, each from the shard that it names."""
    wanted = load_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not wanted:
        raise FormatError(f"{index}: no 'weight_map', expected an object of tensor names and files")
    shards: dict[str, list[str]] = {}
    for name, file in wanted.items():
        check_name(index, name)
        if not isinstance(file, str) or not 0 < len(file.encode()) < 256 or re.search(r"[/\\:\0-\x1f]|^\.+$", file):
            raise FormatError(f"{index}: {name!r} is in {short(file)}, expected the name of a file in the same folder")
        shards.setdefault(file, []).append(name)
    tensors: dict[str, Stored] = {}
    for file, names in sorted(shards.items()):
        if not (folder / file).is_file():
            raise FormatError(
                f"{folder / file}: the shard is missing{missing(folder / file)}; it holds {len(names)} tensors, "
                f"{names[0]!r} first"
            )
        inside = _read_file(folder / file)
        _merge(tensors, inside)
        for name in names:
            if name not in inside:
                raise FormatError(f"{folder / file}: no tensor {name!r}, which {index.name} says it holds")
    return tensors


def _unindexed(files: list[Path]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for file in files:
        if (part := re.search(r"-(\d+)-of-(\d+)\.\w+$", file.name)) and int(part[2]) != len(files):
            raise FormatError(f"{file}: one of {int(part[2])} shards, but there are {len(files)} in the folder")
        _merge(tensors, _read_file(file))
    return tensors


def _merge(tensors: dict[str, Stored], more: dict[str, Stored]) -> None:
    for name, stored in more.items():
        if name in tensors:
            raise FormatError(f"{stored.path}: {name!r} is in {tensors[name].path.name} already, expected it once")
        tensors[name] = stored


def _read_file(path: Path) -> dict[str, Stored]:
    if unfinished := downloading(path):
        raise FormatError(f"{path}: {unfinished}")
    return (safetensors if path.suffix == ".safetensors" else torchfile).read(path)
