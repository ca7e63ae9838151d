"""The tensors of a file that `torch.save` wrote, without torch: where they are, not what they hold.

Since torch 1.6 such a file is a zip archive, uncompressed: `<root>/data.pkl`, a pickle of the state dict in which each
storage is a persistent id, and `<root>/data/<key>`, the storages' bytes.

A pickle is a program. Ours may name what builds a state dict and nothing else; whatever it names beyond that is
refused by that name when it is looked up, before anything can be called. What stands for torch's functions holds no
state, and takes none that a pickle would give it.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from ..errors import FormatError
from ..files import kind_of
from .files import unfinished
from .stored import DTYPES, Stored, check_name, check_shape

__all__ = ["read"]

_MAX_PICKLE = 256 << 20
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_NOT_OURS = {op[0] for op in (pickle.BYTEARRAY8, pickle.EMPTY_SET, pickle.FROZENSET, pickle.DICT)}
_WRAPPERS = ("state_dict", "model", "module")  # keys under which training scripts keep the state dict


class _Dtype(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Function:
    """Something a pickle may call. Frozen, so that the pickle's BUILD cannot change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a state for a function")


class _Dict(dict):
    """A state dict; the attributes that torch gives it (`_metadata`) are dropped. A name comes once.

    No tuple is a key: in a few bytes a pickle nests one so that its hash, or to print it, takes for ever.
    """

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, (str, int)):
            raise pickle.UnpicklingError(f"a key that is a {type(key).__name__}")
        if key in self:
            raise pickle.UnpicklingError(f"{str(key)[:100]!r} is there twice")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not all(isinstance(n, int) for n in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("a tensor with sizes that are no numbers")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function(lambda: _Dict()),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    **{("torch", name): _Dtype(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C takes memory for as many notes as a pickle says it will make. So does
    bytearray, which no state dict has, nor sets, whose members are hashed."""

    dispatch = MappingProxyType(
        {op: load for op, load in pickle._Unpickler.dispatch.items() if op not in _NOT_OURS}
        | {pickle.EMPTY_DICT[0]: lambda self: self.append(_Dict())}
    )

    def __init__(self, data: bytes, path: Path):
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise FormatError(
                f"{self.path}: its pickle asks for {f'{module}.{name}'[:200]!r}, which is no part of a tensor: "
                "refused, and nothing of it was run"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Dtype(dtype), str(key), str(), int(count)) if 0 <= count < 2**48:
                return _Storage(dtype, key, count)
        raise pickle.UnpicklingError("a persistent id that is no storage")


def read(path: Path) -> dict[str, Stored]:
    """Tensor name -> where it is stored. Raises FormatError, naming the file."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(path, archive, file)
        except (FormatError, MemoryError):
            raise
        except Exception as error:  # zipfile has many ways to say that an archive is broken
            broken = f"not a file of torch.save, or cut off: {error or type(error).__name__}"
            kind = None if (kind := kind_of(path, binary=True)) == "a zip archive" else kind
            raise FormatError(f"{path}: {kind or broken}{unfinished(path)}") from None


def _read(path: Path, archive: zipfile.ZipFile, file: BinaryIO) -> dict[str, Stored]:
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(f"{path}: {len(pickles)} data.pkl in the archive, expected one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _member(path, archive, f"{root}byteorder") != b"little":
        raise FormatError(f"{path}: its numbers are big-endian, expected little-endian")
    try:
        state = _Unpickler(_member(path, archive, pickles[0]), path).load()
    except FormatError:
        raise
    except Exception as error:  # whatever a broken pickle provokes
        raise FormatError(f"{path}: the pickle is not one of tensors: {error or type(error).__name__}") from None
    tensors = {}
    for name, tensor in _state_dict(path, state).items():
        check_name(path, name)
        if not isinstance(tensor, _Tensor):
            raise FormatError(f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor")
        tensors[name] = _locate(path, archive, file, root, name, tensor)
    return tensors


def _state_dict(path: Path, state: Any) -> dict[Any, Any]:
    for _ in range(2):
        if not isinstance(state, dict):
            raise FormatError(f"{path}: the pickle holds a {type(state).__name__}, expected a state dict")
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    return state


def _locate(path: Path, archive: zipfile.ZipFile, file: BinaryIO, root: str, name: str, t: _Tensor) -> Stored:
    where = f"{path}: {name!r}"
    check_shape(where, t.shape)
    ok = isinstance(t.strides, tuple) and len(t.strides) == len(t.shape)
    if not ok or not all(isinstance(n, int) and 0 <= n < 2**48 for n in (*t.strides, t.offset)):
        raise FormatError(f"{where}: strides or offset that cannot be")
    begin, nbytes = _position(where, path, archive, file, f"{root}data/{t.storage.key}")
    size = DTYPES[t.storage.dtype].itemsize
    last = t.offset + sum((n - 1) * s for n, s in zip(t.shape, t.strides)) if all(t.shape) else -1
    # A stride of 0 could make any number of values out of one.
    if max(last + 1, math.prod(t.shape)) * size > nbytes:
        raise FormatError(
            f"{where}: {t.shape} of {t.storage.dtype} with strides {t.strides}, in a storage of {nbytes} bytes"
        )
    plain = all(n == 1 or s == math.prod(t.shape[i + 1 :]) for i, (n, s) in enumerate(zip(t.shape, t.strides)))
    offset = begin + t.offset * size
    return Stored(path, t.storage.dtype, t.shape, offset, None if plain or not all(t.shape) else t.strides)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """A small member's bytes; its checksum is checked."""
    if archive.getinfo(name).file_size > _MAX_PICKLE:
        raise FormatError(f"{path}: {name} has {archive.getinfo(name).file_size} bytes, expected at most {_MAX_PICKLE}")
    return archive.read(name)


def _position(where: str, path: Path, archive: zipfile.ZipFile, file: BinaryIO, name: str) -> tuple[int, int]:
    """The first byte of a stored member in the file, and how many it has."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise FormatError(f"{where}: its storage {name!r} is not in the archive") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise FormatError(f"{where}: its storage is compressed or encrypted, expected it stored")
    # The local header repeats the name and has an extra field of its own, by which torch aligns the data.
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise FormatError(f"{where}: its storage has no header in the archive")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    begin = info.header_offset + 30 + name_length + extra_length
    if begin + info.file_size > path.stat().st_size:
        raise FormatError(f"{where}: its storage ends at byte {begin + info.file_size}, beyond the end of the file")
    return begin, info.file_size
