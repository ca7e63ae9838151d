"""What stands between a checkpoint and its GGUF tensors: packed weights unpacked, adapters merged, trained prefixes.

Each source has the methods of `Checkpoint` that a converter uses: `names`, `shape`, `where`, `read`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import FormatError
from .checkpoint import Checkpoint, Rows
from .files import load_json, short

__all__ = ["Adapted", "Float8", "Part", "Source", "Tied", "Unpacked", "prefix_table", "same"]


class Source(Protocol):
    @property
    def names(self) -> list[str]: ...
    def __contains__(self, name: str) -> bool: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def where(self, name: str) -> str: ...
    def read(self, name: str, rows: Rows | None = None) -> np.ndarray: ...
    def adapted(self, name: str) -> bool:
        """Whether an adapter changes it, and not what it is tied to."""


class Unpacked:
    """A checkpoint of which some matrices are packed in int4 or int8, as `chatglm-6b-int4` is.

    Such a matrix is `<name>`, int8 (n, k bits / 8), with `<name>_scale` (n): w = q scale, row by row. An int4 byte has
    the even column in its high half and the odd one in its low half, both signed.
    """

    def __init__(self, checkpoint: Checkpoint, bits: Any):
        self.checkpoint = checkpoint
        self.packed = {
            name
            for name in checkpoint.names
            if f"{name}_scale" in checkpoint and checkpoint.dtype(name) in ("I8", "U8")
        }
        if self.packed and not (isinstance(bits, int) and bits in (4, 8)):
            raise FormatError(
                f"{checkpoint.where(min(self.packed))} is packed, but the config's 'quantization_bit' is "
                f"{short(bits)}, expected 4 or 8"
            )
        self.bits = int(bits) if self.packed else 0
        for name in self.packed:
            shape, scales = checkpoint.shape(name), checkpoint.shape(f"{name}_scale")
            if len(shape) != 2 or scales != shape[:1]:
                raise FormatError(
                    f"{checkpoint.where(name)} is {shape} and its scales are {scales}, expected a scale a row"
                )

    @property
    def names(self) -> list[str]:
        scales = {f"{name}_scale" for name in self.packed}
        return [name for name in self.checkpoint.names if name not in scales]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self.checkpoint.shape(name)
        return (shape[0], shape[1] * 8 // self.bits) if name in self.packed else shape

    def where(self, name: str) -> str:
        return self.checkpoint.where(name)

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        if name not in self.packed:
            return self.checkpoint.read(name, rows)
        q = self.checkpoint.raw(name, rows).view(np.int8)
        if self.bits == 4:
            q = np.stack([q >> 4, (q << 4).astype(np.int8) >> 4], axis=-1).reshape(len(q), -1)
        scale: np.ndarray = self.checkpoint.read(f"{name}_scale", rows)[:, None]
        return scale * q.astype(np.float32)

    def adapted(self, name: str) -> bool:
        return False


def _e4m3() -> np.ndarray:
    """What each byte is: a sign, four bits of exponent (bias 7), three of mantissa; no infinities, one NaN a sign."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, (byte & 7) / 8
    size = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    size[byte & 0x7F == 0x7F] = np.nan
    return np.where(byte < 128, size, -size).astype(np.float32)


class Float8:
    """A checkpoint of which matrices are F8_E4M3 with scales beside them: w = q scale, in f32.

    `<name>_scale` has a scale for each row, as GLM-4.5-FP8 has them, or one for all; `<name>_scale_inv` one for each
    block of 128 rows and columns, as DeepSeek's have. Routers, norms and embeddings are plain.
    """

    BLOCK = 128
    VALUES = _e4m3()

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.scales: dict[str, str] = {}
        for name in checkpoint.names:
            shape = checkpoint.shape(name)
            if checkpoint.dtype(name) != "F8_E4M3" or len(shape) != 2:
                continue
            n, k = shape
            blocks = (-(-n // self.BLOCK), -(-k // self.BLOCK))
            for scale, shapes in ((f"{name}_scale", [(n, 1), (n,), (1, 1), (1,), ()]), (f"{name}_scale_inv", [blocks])):
                if scale in checkpoint and checkpoint.shape(scale) in shapes:
                    self.scales[name] = scale

    @property
    def names(self) -> list[str]:
        scales = set(self.scales.values())
        return [name for name in self.checkpoint.names if name not in scales]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(name)

    def where(self, name: str) -> str:
        return self.checkpoint.where(name)

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        if name not in self.scales:
            return self.checkpoint.read(name, rows)
        scale, q = self.scales[name], self.checkpoint.raw(name, rows)
        n, k = self.checkpoint.shape(name)
        if scale.endswith("_inv"):
            each = self.checkpoint.read(scale)[np.asarray(range(n) if rows is None else rows, np.intp) // self.BLOCK]
            scales = np.repeat(each, self.BLOCK, axis=1)[:, :k]
        else:
            by_row = math.prod(self.checkpoint.shape(scale)) == n
            scales = self.checkpoint.read(scale, rows if by_row else None).reshape(-1, 1)
        return self.VALUES[q] * scales

    def adapted(self, name: str) -> bool:
        return False


class Part:
    """Some tensors of a source. renamed: name -> the source's."""

    def __init__(self, source: Source, renamed: Mapping[str, str]):
        self.source = source
        self._renamed = renamed

    @property
    def names(self) -> list[str]:
        return sorted(self._renamed)

    def __contains__(self, name: str) -> bool:
        return name in self._renamed

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self._renamed[name])

    def where(self, name: str) -> str:
        return self.source.where(self._renamed[name])

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        return self.source.read(self._renamed[name], rows)

    def adapted(self, name: str) -> bool:
        return name in self._renamed and self.source.adapted(self._renamed[name])


class Tied:
    """A source whose matrix of the logits is that of the embeddings, under both names: an adapter may change one.

    Of the two names a checkpoint has either or both. As in transformers, both with other values are not tied.
    """

    _NAMES = (
        ("lm_head.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "model.language_model.embed_tokens.weight"),
        ("lm_head.weight", "transformer.word_embeddings.weight"),
        ("transformer.output_layer.weight", "transformer.embedding.word_embeddings.weight"),
    )

    def __init__(self, source: Source):
        self.source = source
        named = (pair for i in (1, 0) for pair in self._NAMES if pair[i] in source)
        self.pair = next(named, None)
        self._stored = {name: name for name in self.pair or () if name in source}
        if len(self._stored) == 1:
            self._stored = dict.fromkeys(self.pair or (), *self._stored)

    def differ(self) -> bool:
        """Whether the checkpoint has both matrices, and they are not the same. Reads them."""
        if self.pair is None or len(set(self._stored.values())) < 2:
            return False
        return not same(self.source, *self.pair)

    @property
    def names(self) -> list[str]:
        return sorted({*self.source.names, *self._stored})

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self.source

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self._stored.get(name, name))

    def where(self, name: str) -> str:
        return self.source.where(self._stored.get(name, name))

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        return self.source.read(self._stored.get(name, name), rows)

    def adapted(self, name: str) -> bool:
        return False


# Options of PEFT by which an adapter is more than w + scale (B A), and initial values for which w itself was changed.
_OTHER_KINDS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
)
_INITIAL = (None, True, False, "gaussian", "orthogonal", "eva", "mica")


class Adapted:
    """A source with a LoRA adapter of PEFT merged into it: w + scale (B A).

    tied: the names of the logits' and the embeddings' matrix where they are one. PEFT adapts either without the other;
    a trained copy (`modules_to_save`) takes the place of one, a `base_layer` of both.

    Raises FormatError for adapters that change more than weights by low rank (DoRA), or weights that are not there.
    """

    def __init__(self, source: Source, folder: Path, tied: tuple[str, str] | None = None):
        self.source = source
        folder = Path(folder)
        config_path = folder / "adapter_config.json"
        if not config_path.exists():
            raise FormatError(f"{folder}: no adapter_config.json, expected a LoRA folder of PEFT")
        config = load_json(config_path)
        if config.get("peft_type", "LORA") != "LORA":
            raise FormatError(f"{config_path}: 'peft_type' is {short(config['peft_type'])}, expected 'LORA'")
        if other := next((key for key in _OTHER_KINDS if config.get(key)), None):
            raise FormatError(f"{config_path}: {other!r} is set, expected plain LoRA")
        if config.get("init_lora_weights") not in _INITIAL:
            raise FormatError(
                f"{config_path}: 'init_lora_weights' is {short(config['init_lora_weights'])}, which changes the "
                "model's own weights; expected it saved as plain LoRA (path_initial_model_for_weight_conversion)"
            )
        self.adapter = Checkpoint(folder, adapter=True)
        self.pairs: dict[str, tuple[str, str, float]] = {}  # weight -> A, B, scale
        self.alphas = self._alphas(config, config_path)
        self.replaced: dict[str, str] = {}
        self._copies: set[str] = set()
        for name in self.adapter.names:
            self._add(name, config, config_path)
        if not self.pairs and not self.replaced:
            raise FormatError(f"{folder}: the adapter has no tensors, so it changes nothing; save it again")
        for one, other in (tied, tied[::-1]) if tied else ():
            if one in self.replaced and one not in self._copies:
                self.replaced.setdefault(other, self.replaced[one])
            if config.get("ensure_weight_tying"):
                if one in self.pairs:
                    self.pairs.setdefault(other, self.pairs[one])
                if one in self.replaced:
                    self.replaced.setdefault(other, self.replaced[one])

    def _add(self, name: str, config: dict[str, Any], config_path: Path) -> None:
        plain = name.removeprefix("base_model.model.")
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.default)?(\.weight)?", plain)
        if found and found[3] == "B":
            a = f"{name[: name.rindex('B')]}A{name[name.rindex('B') + 1 :]}"
            if a not in self.adapter:
                raise FormatError(f"{self.adapter.where(name)}: no {a!r} beside it")
            return
        if ".original_module." in plain:
            return  # what `modules_to_save` takes the place of
        if not found:
            # `modules_to_save`, and biases that were trained: they take the place of the model's.
            target = re.sub(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.)", "", plain)
            if target not in self.source:
                raise FormatError(f"{self.adapter.where(name)}: the model has no {target!r} to adapt")
            self._check(name, target, self.adapter.shape(name))
            self.replaced[target] = name
            if ".base_layer." not in plain:
                self._copies.add(target)
            return
        module, embedding = found[1], bool(found[2])
        target, b = f"{module}.weight", f"{name[: name.rindex('A')]}B{name[name.rindex('A') + 1 :]}"
        if target not in self.source:
            raise FormatError(f"{self.adapter.where(name)}: the model has no {target!r} to adapt")
        if b not in self.adapter:
            raise FormatError(f"{self.adapter.where(name)}: no {b!r} beside it")
        a_shape, b_shape = self.adapter.shape(name), self.adapter.shape(b)
        if len(a_shape) != 2 or len(b_shape) != 2 or a_shape[0] != b_shape[1]:
            raise FormatError(f"{self.adapter.where(name)} is {a_shape} and B {b_shape}, expected (r, k) and (n, r)")
        rank, shape = a_shape[0], (b_shape[0], a_shape[1])
        # PEFT takes `fan_in_fan_out` back for what is no Conv1D, and no model here has one.
        self._check(name, target, shape[::-1] if embedding else shape)
        default = config.get("lora_alpha", 8)
        # The first pattern that is a module's name or the end of one counts.
        alpha = next((value for ends, value in self.alphas.items() if f".{module}".endswith(f".{ends}")), default)
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or rank == 0:
            raise FormatError(f"{config_path}: 'lora_alpha' is {short(alpha)}, expected a number")
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        # (vocab, r) and (r, dim) of an embedding stand the other way round: its rows are A's columns.
        self.pairs[target] = (b, name, scale) if embedding else (name, b, scale)

    @staticmethod
    def _alphas(config: dict[str, Any], config_path: Path) -> dict[str, Any]:
        """PEFT takes them as regular expressions; those in use are names, and a hostile one could run forever."""
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", pattern) for pattern in patterns):
            patterns = list(patterns) if isinstance(patterns, dict) else patterns
            raise FormatError(f"{config_path}: 'alpha_pattern' is {short(patterns)}, expected names of modules")
        return patterns

    def _check(self, name: str, target: str, shape: tuple[int, ...]) -> None:
        if shape != self.source.shape(target):
            raise FormatError(
                f"{self.adapter.where(name)} adapts {shape}, but {target!r} of the model is {self.source.shape(target)}"
            )

    @property
    def names(self) -> list[str]:
        return self.source.names

    def __contains__(self, name: str) -> bool:
        return name in self.source

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def where(self, name: str) -> str:
        return self.adapter.where(self.replaced[name]) if name in self.replaced else self.source.where(name)

    def adapted(self, name: str) -> bool:
        return name in self.pairs or name in self._copies

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        # A trained copy in place of the weight may be adapted itself: PEFT saves embeddings so.
        w = self.adapter.read(self.replaced[name], rows) if name in self.replaced else self.source.read(name, rows)
        if name in self.pairs:
            a_name, b_name, scale = self.pairs[name]
            a = self.adapter.read(a_name)
            if a.shape[1] == w.shape[1]:
                b = self.adapter.read(b_name, rows)
            else:  # transposed: the weight is A' B'
                a, b = a.T, self.adapter.read(b_name).T
                b = b if rows is None else b[np.asarray(rows)]
            for part, x in ((a_name, a), (b_name, b)):  # or the sum would be said to be the model's
                if not np.isfinite(x).all():
                    raise FormatError(f"{self.adapter.where(part)}: NaN or infinite values, expected finite weights")
            # One rank after another: the sum's order is the same whatever BLAS and however many threads.
            delta = np.zeros_like(w)
            for column, row in zip(b.T, a):
                delta += column[:, None] * row
            w = w + np.float32(scale) * delta
        return w


def same(source: Source, one: str, other: str) -> bool:
    """Whether two matrices hold the same values. Reads them, piece by piece."""
    rows, *rest = shape = source.shape(one)
    if shape != source.shape(other):
        return False
    step = max(1, (1 << 20) // max(math.prod(rest), 1))
    pieces = (range(i, min(i + step, rows)) for i in range(0, rows, step))
    return all(np.array_equal(source.read(one, p), source.read(other, p)) for p in pieces)


def prefix_table(source: Source, name: str = "transformer.prefix_encoder") -> np.ndarray | None:
    """P-Tuning v2: the trained prefix (tokens, 2 layers kv_heads head_dim) f32, None if the source has none.

    With a projection the table's rows go through Linear, tanh, Linear.
    """
    table = f"{name}.embedding.weight"
    if table not in source:
        return None
    x = source.read(table)
    if f"{name}.trans.0.weight" in source:
        x = np.tanh(_linear(source, x, f"{name}.trans.0"))
        x = _linear(source, x, f"{name}.trans.2")
    return x.astype(np.float32)


def _linear(source: Source, x: np.ndarray, name: str) -> np.ndarray:
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in source:
            table = source.where(f"{name.rpartition('.trans')[0]}.embedding.weight")
            raise FormatError(f"{table}: no {f'{name}.{part}'!r} beside it")
    w = source.read(f"{name}.weight")
    if w.ndim != 2 or w.shape[1] != x.shape[-1]:
        raise FormatError(f"{source.where(f'{name}.weight')} is {w.shape}, expected {x.shape[-1]} columns")
    # In slices: in f64 the second matrix of ChatGLM-6B, (229376, 4096), would take 7.5 GB.
    step = max(1, (1 << 23) // w.shape[1])
    slices = [x.astype(np.float64) @ w[i : i + step].T for i in range(0, len(w), step)]
    y: np.ndarray = np.concatenate(slices, axis=-1) + source.read(f"{name}.bias")
    return y
