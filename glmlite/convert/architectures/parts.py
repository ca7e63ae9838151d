"""What the kinds of checkpoints share: checked reading of the config, and the list of tensors that is being made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...errors import FormatError
from ..files import short
from ..sources import Source, prefix_table

T = TypeVar("T")

_LARGEST = 2**31 - 1


class Config:
    """The values of a config.json. Every method raises FormatError naming the file and the key."""

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.values = values
        self.path = path

    def get(self, key: str, default: Any = None) -> Any:
        """The value, `default` if it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def count(self, *keys: str, default: int | None = None) -> int:
        """A positive integer under the first of the keys that is there."""
        key, value = self._first(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise self.error(key, value, "a positive integer")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A number above zero that f32 can hold."""
        key, value = self._first(keys, default)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ok or not 1e-37 < value < 3e38:
            raise self.error(key, value, "a positive number")
        return float(value)

    def expect(self, key: str, *known: Any) -> None:
        """The model is another one if the config has any other value; a missing one is the first."""
        value = self.get(key, known[0])
        if value not in known:
            raise self.error(key, value, " or ".join(map(repr, known)))

    def error(self, key: str, value: Any, expected: str) -> FormatError:
        return FormatError(f"{self.path}: {key!r} is {short(value)}, expected {expected}")

    def _first(self, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for key in keys:
            if self.values.get(key) is not None:
                return key, self.values[key]
        if default is None:
            raise FormatError(f"{self.path}: no {' or '.join(map(repr, keys))}")
        return keys[0], default


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: GGUF name, shape, and `read(begin, end)`: f32 of its rows (of its elements if a vector).

    The rows of several matrices, (matrices, rows, columns), are counted through; what is read at once is of one matrix.
    origins: for messages, where it comes from, or where each of its matrices does.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    origins: Sequence[str]

    @property
    def rows(self) -> int:
        """Rows of a matrix; elements of a vector."""
        if len(self.shape) > 3:
            return math.prod(self.shape[:-1])
        return self.shape[-2] if len(self.shape) > 1 else self.shape[0]

    @property
    def matrices(self) -> int:
        """How many matrices it holds; those of a convolution's kernel, which are tiny, count as one."""
        return math.prod(self.shape[:-2]) if len(self.shape) < 4 else 1

    def origin(self, matrix: int) -> str:
        """For messages: where the matrix comes from."""
        return self.origins[min(matrix, len(self.origins) - 1)]


@dataclass(frozen=True)
class Contents:
    """What a GGUF file is to hold."""

    metadata: dict[str, Any]
    tensors: list[Tensor]


class Builder:
    """Takes tensors from a checkpoint and sets metadata. prefix: a P-Tuning v2 checkpoint, if it is another one."""

    def __init__(self, source: Source, prefix: Source | None = None):
        self.source = source
        self.prefix_source = prefix or source
        self.tensors: list[Tensor] = []
        self.metadata: dict[str, Any] = {}
        self._used: set[str] = set()
        self._embeddings = ""  # the source's name of them

    def set(self, architecture: str, **values: Any) -> None:
        """Keys of the architecture: `set("glm", block_count=2)`; a dot in a key is written as two underscores."""
        self.metadata["general.architecture"] = architecture
        for key, value in values.items():
            self.metadata[f"{architecture}.{key.replace('__', '.')}"] = value

    def take(self, name: str, source_name: str, order: np.ndarray | None = None, optional: bool = False) -> None:
        """The checkpoint's tensor under a GGUF name; order: which of its rows stands at each place."""
        source = self.source
        if source_name not in source:
            if optional:
                return
            raise FormatError(f"{file_of(source)}: no tensor {source_name!r}, which becomes {name!r}")
        shape = source.shape(source_name)
        if not shape or (order is not None and shape[0] != len(order)):
            rows = "rows" if order is None else f"{len(order)} rows"
            raise FormatError(f"{source.where(source_name)} is {shape}, expected {rows}")

        def read(begin: int, end: int) -> np.ndarray:
            return source.read(source_name, range(begin, end) if order is None else order[begin:end])

        self._used.add(source_name)
        if name == "token_embd.weight":
            self._embeddings = source_name
        self.tensors.append(Tensor(name, shape, read, [source.where(source_name)]))

    def take_all(self, name: str, named: Iterable[str]) -> None:
        """Matrices of one shape, which the checkpoint has apart, as one tensor. named: not one more is asked for than
        are there, however many a config counts."""
        source = self.source
        source_names: list[str] = []
        for source_name in named:
            if source_name not in source:
                raise FormatError(f"{file_of(source)}: no tensor {source_name!r}, which becomes a part of {name!r}")
            source_names.append(source_name)
            shape = source.shape(source_name)
            if len(shape) != 2 or shape != source.shape(source_names[0]):
                raise FormatError(f"{source.where(source_name)} is {shape}, expected a matrix, all of one shape")
        rows, columns = source.shape(source_names[0])

        def read(begin: int, end: int) -> np.ndarray:
            at = begin // rows
            return source.read(source_names[at], range(begin - at * rows, end - at * rows))

        self._used.update(source_names)
        origins = [source.where(source_name) for source_name in source_names]
        self.tensors.append(Tensor(name, (len(source_names), rows, columns), read, origins))

    def take_parts(
        self, name: str, source_name: str, of: tuple[int, int], begin: int, end: int, *, transposed: bool = False
    ) -> None:
        """Matrices that the checkpoint has within larger ones: of each, the rows from `begin` to `end`.

        of: how many matrices the checkpoint's tensor holds, one behind the other, and the rows of each.
        transposed: the columns of those rows become rows.
        """
        source = self.source
        if source_name not in source:
            raise FormatError(f"{file_of(source)}: no tensor {source_name!r}, a part of which becomes {name!r}")
        matrices, each = of
        *outer, columns = source.shape(source_name) or (0,)
        if math.prod(outer) != matrices * each or not outer:
            expected = f"{matrices * each} rows: {matrices} times {each}"
            raise FormatError(f"{source.where(source_name)} is {source.shape(source_name)}, expected {expected}")
        rows = columns if transposed else end - begin

        def read(first: int, last: int) -> np.ndarray:
            at = first // rows
            first, last = first - at * rows, last - at * rows
            if transposed:
                whole = source.read(source_name, range(at * each + begin, at * each + end))
                return np.ascontiguousarray(whole[:, first:last].T)
            return source.read(source_name, range(at * each + begin + first, at * each + begin + last))

        self._used.add(source_name)
        shape = (matrices, rows, end - begin if transposed else columns)
        self.tensors.append(Tensor(name, shape, read, [source.where(source_name)]))

    def take_rows(self, name: str, shape: tuple[int, ...], source_name: str, rows: np.ndarray) -> None:
        """Some rows of a checkpoint's tensor, all of its axes but the last counted through, as a tensor of `shape`."""
        source = self.source
        self._used.add(source_name)
        origins = [source.where(source_name)]
        self.tensors.append(Tensor(name, shape, lambda begin, end: source.read(source_name, rows[begin:end]), origins))

    def leave(self, source_name: str) -> None:
        """A tensor of the checkpoint that the file does without."""
        self._used.add(source_name)

    def take_both(self, name: str, source_name: str, order: np.ndarray | None = None, bias: bool = False) -> None:
        """`.weight` and `.bias`; bias: it must be there, else it may be."""
        self.take(f"{name}.weight", f"{source_name}.weight", order)
        self.take(f"{name}.bias", f"{source_name}.bias", order, optional=not bias)

    def take_output(self, source_name: str, config: Config) -> None:
        """The matrix of the logits; none if it is the embeddings', of which old files hold a copy.

        PEFT adapts either of two tied matrices without the other, so that they are two then.
        """
        apart = self.source.adapted(source_name) or self.source.adapted(self._embeddings)
        if config.get("tie_word_embeddings", False) and not apart:
            self.leave(source_name)
        else:
            self.take("output.weight", source_name)

    def add(self, name: str, x: np.ndarray, origin: str) -> None:
        """A small tensor that is computed. origin: for messages, from what."""
        x = np.ascontiguousarray(x, np.float32)
        self.tensors.append(Tensor(name, x.shape, lambda begin, end: x[begin:end], [origin]))

    def add_prefix(self, layers: int, kv_heads: int, head_dim: int) -> None:
        """P-Tuning v2's keys and values, if there are any (docs/formats.md)."""
        self._used |= {name for name in self.source.names if name.startswith("transformer.prefix_encoder.")}
        table = prefix_table(self.prefix_source)
        if table is None:
            if self.prefix_source is not self.source:
                missing = "transformer.prefix_encoder.embedding.weight"
                raise FormatError(f"{file_of(self.prefix_source)}: no tensor {missing!r}, expected P-Tuning v2")
            return
        width = kv_heads * head_dim
        if table.shape[1] != 2 * layers * width:
            raise FormatError(
                f"{file_of(self.prefix_source)}: a prefix of {table.shape[1]} values a token, expected "
                f"{2 * layers * width}: keys and values of {layers} layers, {kv_heads} heads of {head_dim}"
            )
        parts = table.reshape(len(table), layers, 2, width)
        origin = self.prefix_source.where("transformer.prefix_encoder.embedding.weight")
        for i in range(layers):
            self.add(f"blk.{i}.prefix_k.weight", parts[:, i, 0], origin)
            self.add(f"blk.{i}.prefix_v.weight", parts[:, i, 1], origin)

    def finish(self) -> Contents:
        """Raises FormatError for a tensor of the checkpoint that nobody has taken: it is another model then."""
        for name in self.source.names:
            # Old checkpoints hold the table of RoPE's frequencies, which is computed.
            if name not in self._used and not name.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")):
                architecture = self.metadata["general.architecture"]
                raise FormatError(f"{self.source.where(name)}: {architecture!r} models have no such tensor")
        return Contents(self.metadata, self.tensors)


def recorded(record: Callable[[Mapping[str, tuple[int, ...]]], T], model: Contents, config: Config) -> T:
    """The program of a model that is being made; what is wrong with it is told of the checkpoint's tensors."""
    try:
        return record({tensor.name: tensor.shape for tensor in model.tensors})
    except FormatError as error:
        origins = [tensor.origin(0) for tensor in model.tensors if f"'{tensor.name}'" in str(error)]
        raise FormatError(f"{'; '.join(origins) or config.path}: {error}") from None


def file_of(source: Source) -> str:
    """For messages: a file of the source."""
    return source.where(source.names[0]).rpartition(": ")[0] if source.names else "the checkpoint"


def rows_of(source: Source, name: str, count: int) -> np.ndarray:
    """0 to count - 1, the rows of a tensor, which must have so many: a config may count any number of them."""
    if name not in source:
        raise FormatError(f"{file_of(source)}: no tensor {name!r}, expected {count} rows")
    if source.shape(name)[:1] != (count,) or 0 in source.shape(name):
        raise FormatError(f"{source.where(name)} is {source.shape(name)}, expected {count} rows")
    return np.arange(count)


def layers_of(source: Source, config: Config, pattern: str, *keys: str, drafting: int = 0) -> int:
    """The config's number of layers, which must be the one of the tensors. pattern: a regex with the layer's number.

    drafting: layers behind those, which the config does not count.
    """
    found = {int(match[1]) for name in source.names if (match := re.match(pattern, name))}
    has = len(found) - drafting
    layers = config.count(*keys, default=max(max(found) + 1 - drafting, 1))
    if found != set(range(len(found))) or layers != has:
        raise FormatError(f"{config.path}: {keys[0]!r} is {layers}, but the checkpoint has tensors of {has} layers")
    return layers


def head_columns(config: Config, total: int, heads: int, key: str = "") -> int:
    """Columns of a head: the config's `key` if it has one, else a part of `total`."""
    if key and config.get(key) is not None:
        return config.count(key)
    if total % heads:
        raise FormatError(f"{config.path}: {heads} heads do not divide {total} columns")
    return total // heads
