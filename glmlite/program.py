"""Record a model once as a flat list of ops; an executor runs the list once per step.

A model file is ordinary Python that calls methods of `Recorder`. Each call appends one `Op` and
returns a `Value`: a name and a row width, no data. After recording, Python never sees the model
again: an executor takes the tokens of a step and returns logits.

Every `Value` is a row-major f32 matrix with one row for each token of the step (T rows), or, after
`select`, one row for each token whose logits were asked for. T is the only free size; positions,
sequences and what a token may see are step state (`glmlite.reference.Step`), never op attributes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .errors import FormatError

Shapes = Mapping[str, tuple[int, ...]]

AXES = 3  # of a token's position; the native engine has the same number


class Value(NamedTuple):
    """The result of op `id`: rows of `width` f32 values."""

    id: int
    width: int


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: which pairs of columns of a head turn, how fast, by which position.

    dim: columns that turn, counted from the head's first; the rest pass unchanged. In `latent_attention` they are
        the head's last.
    theta: base of the frequencies, `theta ** (-2 i / n)` for pair i of n columns.
    interleaved: pairs are (0, 1), (2, 3), ...; otherwise column i turns with i + n/2 ("NeoX").
    axes: the columns are split evenly into one part per entry, each a head of its own, and part s turns by
        position axis `axes[s]` of the token. One part on axis 0 is ordinary RoPE;
        ChatGLM-6B has two, on axes 0 and 1.
    sections: instead of `axes`, how many of the pairs turn by position axis 0, how many of the next by axis 1, and so
        on ("mrope"). Pairs and their frequencies are those of ordinary RoPE.
    restart: the frequencies begin anew in each section, as if its pairs were all there are.
    scale: position divisor (linear scaling).
    factors: name of a tensor of dim/2 values that divide the frequencies (Llama 3), or None.
    yarn: YaRN's parameters, or None.

    Source: Su et al. 2021; Peng et al. 2023 (YaRN).
    """

    dim: int
    theta: float
    interleaved: bool
    axes: tuple[int, ...] = (0,)
    sections: tuple[int, ...] = ()
    restart: bool = False
    scale: float = 1.0
    factors: str | None = None
    yarn: Yarn | None = None

    def __post_init__(self):
        if self.dim <= 0 or self.dim % (2 * len(self.axes)):
            raise ValueError(f"rope: {self.dim} columns do not split into {len(self.axes)} parts of pairs")
        if self.sections and (min(self.sections) < 0 or sum(self.sections) != self.dim // 2 or self.axes != (0,)):
            raise ValueError(f"rope: sections {self.sections} of {self.dim // 2} pairs, with axes {self.axes}")
        if len(self.sections) > AXES:
            raise ValueError(f"rope: {len(self.sections)} sections, a position has {AXES} axes")
        if not (math.isfinite(self.theta) and self.theta > 0 and math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"rope: base {self.theta} and scale {self.scale} must be positive")

    def table(self, factors: np.ndarray | None = None) -> RopeTable:
        """The turns of one head, one entry per pair of columns; `factors` holds the tensor it names."""
        n = self.dim // len(self.axes)
        pair = np.arange(n // 2)
        first, second = (2 * pair, 2 * pair + 1) if self.interleaved else (pair, pair + n // 2)
        if self.restart:
            turned = [self._frequencies(2 * pairs) for pairs in self.sections if pairs]
            freq, magnitude = np.concatenate([freq for freq, _ in turned]), turned[0][1]
        else:
            freq, magnitude = self._frequencies(n)
        axis = np.repeat(np.asarray(self.axes, np.int32), n // 2)
        if self.sections:
            axis = np.repeat(np.arange(len(self.sections), dtype=np.int32), self.sections)
        starts = n * np.arange(len(self.axes))[:, None]
        freq = np.tile(freq, len(self.axes))
        if factors is not None:
            freq = freq / np.asarray(factors, np.float64)
        return RopeTable(
            first=(starts + first).reshape(-1).astype(np.int32),
            second=(starts + second).reshape(-1).astype(np.int32),
            freq=freq.astype(np.float64),
            axis=axis,
            magnitude=float(magnitude),
        )

    def _frequencies(self, n: int) -> tuple[np.ndarray, float]:
        """Of the pairs of n columns, and the magnitude of what they turn."""
        freq = self.theta ** (-2.0 * np.arange(n // 2) / n)
        return (freq / self.scale, 1.0) if self.yarn is None else self.yarn.apply(freq, n, self.theta)


class RopeTable(NamedTuple):
    """Pair i of a head: columns `first[i]`, `second[i]` turn by `freq[i] * position[axis[i]]` radians.

    first, second, axis: (dim/2,) int32; freq: (dim/2,) f64; magnitude scales the turned columns.
    """

    first: np.ndarray
    second: np.ndarray
    freq: np.ndarray
    axis: np.ndarray
    magnitude: float


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (Peng et al. 2023): low frequencies are divided by `factor`, high ones kept."""

    factor: float
    original_context: int
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def apply(self, freq: np.ndarray, dim: int, theta: float) -> tuple[np.ndarray, float]:
        def pair_of(turns: float) -> float:
            return dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(pair_of(self.beta_fast)), 0)
        high = min(math.ceil(pair_of(self.beta_slow)), dim - 1)
        keep = 1 - np.clip((np.arange(len(freq)) - low) / max(high - low, 0.001), 0, 1)
        magnitude = self.attention_factor * (0.1 * math.log(self.factor) + 1.0)
        return freq / self.factor * (1 - keep) + freq * keep, magnitude


@dataclass(frozen=True)
class Op:
    """One step of a program. `kind` names it, the rest are its slots.

    inputs: slot -> the value it reads. weights: slot -> names of tensors in the file; a `linear`
    may have several, whose rows follow one another, and so may the experts' gate and up in a `moe`.
    attrs: slot -> number, bool or `Rope`.
    """

    kind: str
    out: Value
    inputs: dict[str, Value] = field(default_factory=dict)
    weights: dict[str, tuple[str, ...]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        slots = [f"{k}=%{v.id}" for k, v in self.inputs.items()]
        slots += [f"{k}={'|'.join(v)}" for k, v in self.weights.items()]
        slots += [f"{k}={v}" for k, v in self.attrs.items()]
        return f"%{self.out.id}[{self.out.width}] = {self.kind}({', '.join(slots)})"


class Recorder:
    """Collects the ops of one model and checks every tensor's name and shape as it goes.

    shapes: tensor name -> (rows, columns), (width,) or, one matrix for each expert or head, (count, rows, columns);
    numpy order. `ops` is the program.
    """

    def __init__(self, shapes: Shapes):
        self.shapes = shapes
        self.ops: list[Op] = []
        self._selected = False

    def has(self, name: str) -> bool:
        """Whether the file has this tensor."""
        return name in self.shapes

    def embed(self, table: str, positions: Sequence[str] = ()) -> Value:
        """Rows of `table` (vocab, width) by token id, or the rows that a step is given for tokens that have none (-1),
        plus a row of `positions[a]` by position axis a."""
        _, width = self._shape(table, "embed", None, None)
        for name in positions:
            self._shape(name, "embed", None, width)
        return self._emit("embed", width, weights={"table": (table,), "positions": tuple(positions)})

    def input(self, width: int) -> Value:
        """Rows of `width` columns that the step is given, one for each token; of several inputs, side by side.

        A program that begins with one has no `embed`, and its tokens have no ids.
        """
        if width <= 0:
            raise ValueError(f"input: {width} columns, expected at least one")
        return self._emit("input", width, attrs={"first": sum(op.out.width for op in self.ops if op.kind == "input")})

    def rms_norm(self, x: Value, weight: str, eps: float, add: Value | None = None) -> Value:
        """x / sqrt(mean(x²) + eps) * weight (+ add). Zhang & Sennrich 2019."""
        self._shape(weight, "rms_norm", x.width)
        self._same_width("rms_norm", weight, x.width, add)
        return self._emit("rms_norm", x.width, {"x": x, "add": add}, {"w": (weight,)}, {"eps": _eps("rms_norm", eps)})

    def layer_norm(self, x: Value, weight: str, bias: str, eps: float) -> Value:
        """(x - mean) / sqrt(var + eps) * weight + bias. Ba et al. 2016."""
        self._shape(weight, "layer_norm", x.width)
        self._shape(bias, "layer_norm", x.width)
        attrs = {"eps": _eps("layer_norm", eps)}
        return self._emit("layer_norm", x.width, {"x": x}, {"w": (weight,), "b": (bias,)}, attrs)

    def linear(
        self,
        x: Value,
        weight: str | Sequence[str],
        bias: str | Sequence[str] | None = None,
        add: Value | None = None,
        alpha: float = 1.0,
    ) -> Value:
        """x · Wᵀ (+ bias) (+ alpha · add). Several weights stand one below the other, as do their biases.

        The columns of a weight may be a tensor's last three axes: a kernel of a convolution whose windows lie apart.
        """
        weights, biases = _names(weight), _names(bias)
        rows = [self._matrix(name, "linear", x.width) for name in weights]
        if biases and len(biases) != len(weights):
            raise ValueError(f"linear: {len(weights)} weights but {len(biases)} biases, from '{weights[0]}'")
        for name, n in zip(biases, rows):
            self._shape(name, "linear", n)
        width = sum(rows)
        self._same_width("linear", weights[0], width, add)
        return self._emit("linear", width, {"x": x, "add": add}, {"w": weights, "b": biases}, {"alpha": float(alpha)})

    def head_linear(self, x: Value, weight: str, keep: int = 0) -> Value:
        """A matrix for each head: W[h] · the first columns of head h, then its last `keep` columns as they are.

        weight: (heads, n, k). x has heads (k + keep) columns, the result heads (n + keep).
        """
        heads, n, k = self._shape(weight, "head_linear", None, None, None)
        if keep < 0:
            raise ValueError(f"head_linear: '{weight}': {keep} columns to keep")
        if x.width != heads * (k + keep):
            raise FormatError(
                f"head_linear: '{weight}' is ({heads}, {n}, {k}): {heads} heads of {k} + {keep} columns "
                f"need {heads * (k + keep)}, what it gets has {x.width}"
            )
        return self._emit("head_linear", heads * (n + keep), {"x": x}, {"w": (weight,)}, {"keep": keep})

    def attention(
        self,
        qkv: Value,
        layer: int | None,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: Rope | None,
        scale: float | None = None,
        q_norm: str | None = None,
        k_norm: str | None = None,
        norm_eps: float = 0.0,
        prefix: tuple[str, str] | None = None,
    ) -> Value:
        """Turn q and k by `rope`, append k and v to the cache of `layer`, attend to what each token may see.

        layer: None: nothing is kept, and a token sees those of its own step alone. So it is for all attentions of a
        program, or for none.
        qkv: columns [q heads | k heads | v heads]. scale: of q·k, 1/sqrt(head_dim) unless given.
        q_norm, k_norm: rms_norm over each head's columns, before the turn.
        prefix: names of two (length, kv_heads * head_dim) tensors, keys (as stored, no turn) and
        values that stand before every sequence and shift no position (P-Tuning v2, Liu et al. 2021).
        """
        if heads <= 0 or kv_heads <= 0 or head_dim <= 0 or heads % kv_heads:
            raise ValueError(f"attention: {heads} query heads, {kv_heads} key heads, head_dim {head_dim}")
        want = (heads + 2 * kv_heads) * head_dim
        if qkv.width != want:
            raise FormatError(
                f"attention: layer {layer}: qkv has {qkv.width} columns, "
                f"{heads} + 2 * {kv_heads} heads of {head_dim} need {want}"
            )
        if rope is not None and rope.dim > head_dim:
            raise FormatError(f"attention: layer {layer}: rope turns {rope.dim} columns, a head has {head_dim}")
        if rope is not None and rope.factors is not None:
            self._shape(rope.factors, "attention", rope.dim // 2)
        for name in (q_norm, k_norm):
            if name is not None:
                self._shape(name, "attention", head_dim)
        if prefix is not None:
            length, _ = self._shape(prefix[0], "attention", None, kv_heads * head_dim)
            self._shape(prefix[1], "attention", length, kv_heads * head_dim)
        weights = {
            "q_norm": _names(q_norm),
            "k_norm": _names(k_norm),
            "rope_factors": _names(rope.factors if rope else None),
            "prefix": tuple(prefix or ()),
        }
        attrs = {
            "layer": layer,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "scale": head_dim**-0.5 if scale is None else float(scale),
            "rope": rope,
            "norm_eps": float(norm_eps),
        }
        return self._emit("attention", heads * head_dim, {"qkv": qkv}, weights, attrs)

    def latent_attention(
        self,
        q: Value,
        kv: Value,
        layer: int,
        *,
        heads: int,
        latent: int,
        rope: Rope,
        scale: float,
        norm: str,
        norm_eps: float,
    ) -> Value:
        """Attention to a latent that all heads share (MLA), absorbed: (T, heads * latent). DeepSeek-AI 2024.

        q: per head [latent columns | rope.dim columns], the query taken to the latent's space and its turning part.
        kv: [latent columns | rope.dim columns], of which the first are rms-normed by `norm`. The turning columns of q
        and kv turn; [latent | key] is appended to the cache of `layer` as one key head, whose values are its first
        `latent` columns. scale: of q·k, 1/sqrt of the columns that a head had before it was taken to the latent.
        """
        if heads <= 0 or latent <= 0:
            raise ValueError(f"latent_attention: layer {layer}: {heads} heads, {latent} columns of a latent")
        width = latent + rope.dim
        for name, value, want in (("q", q, heads * width), ("kv", kv, width)):
            if value.width != want:
                raise FormatError(
                    f"latent_attention: layer {layer}: {name} has {value.width} columns, "
                    f"{heads if name == 'q' else 1} of {latent} + {rope.dim} need {want}"
                )
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"latent_attention: layer {layer}: scale {scale} must be positive")
        self._shape(norm, "latent_attention", latent)
        if rope.factors is not None:
            self._shape(rope.factors, "latent_attention", rope.dim // 2)
        attrs = {
            "layer": layer,
            "heads": heads,
            "latent": latent,
            "rope": rope,
            "scale": float(scale),
            "eps": _eps("latent_attention", norm_eps),
        }
        weights = {"w": (norm,), "rope_factors": _names(rope.factors)}
        return self._emit("latent_attention", heads * latent, {"q": q, "kv": kv}, weights, attrs)

    def route(self, x: Value, gate: str, bias: str | None = None, *, used: int, scale: float = 1.0) -> Value:
        """Which experts read a row, and with what weight: (T, 2 used), [indices, ascending | weights].

        Scores are s = sigmoid(gate · x), in f32. The `used` largest of s + bias are chosen, of equal ones the lower
        index; their weights are s / (the sum of the chosen + 1e-20) * scale. DeepSeek-AI 2024 (V3), without groups.
        """
        experts, _ = self._shape(gate, "route", None, x.width)
        if bias is not None:
            self._shape(bias, "route", experts)
        if used <= 0 or not math.isfinite(scale):
            raise ValueError(f"route: '{gate}': {used} experts to choose, scale {scale}")
        if not used <= experts < 2**24:  # an index is exact in f32
            raise FormatError(f"route: '{gate}' has {experts} rows, expected {used} or more experts, below 2^24")
        weights = {"gate": (gate,), "bias": _names(bias)}
        return self._emit("route", 2 * used, {"x": x}, weights, {"used": used, "scale": float(scale)})

    def moe(self, x: Value, routing: Value, gate_up: str | Sequence[str], down: str, add: Value | None = None) -> Value:
        """Sum over the chosen experts e, ascending, of weight * down[e] · swiglu(gate[e] · x | up[e] · x) (+ add).

        routing: what `route` made. gate_up: (experts, 2 ffn, width), of each expert gate rows, then up rows; or two
        tensors (experts, ffn, width). down: (experts, n, ffn).
        """
        names, chosen = _names(gate_up), self.ops[routing.id]
        if len(names) not in (1, 2):
            raise ValueError(f"moe: gate and up are {len(names)} tensors, expected one or two")
        if chosen.kind != "route":
            raise ValueError(f"moe: '{down}': experts are chosen by '{chosen.kind}', expected 'route'")
        experts = self.shapes[chosen.weights["gate"][0]][0]
        _, rows, _ = self._shape(names[0], "moe", experts, None, x.width)
        for name in names[1:]:
            self._shape(name, "moe", experts, rows, x.width)
        if len(names) == 1 and rows % 2:
            raise FormatError(f"moe: '{names[0]}' has {rows} rows an expert, which do not split into gate and up")
        _, width, _ = self._shape(down, "moe", experts, None, rows * len(names) // 2)
        self._same_width("moe", down, width, add)
        inputs = {"x": x, "routing": routing, "add": add}
        weights = {"gate_up": names, "down": (down,)}
        return self._emit("moe", width, inputs, weights, {"used": routing.width // 2})

    def swiglu(self, gate_up: Value) -> Value:
        """silu(gate) * up of [gate | up]. Shazeer 2020."""
        if gate_up.width % 2:
            raise FormatError(f"swiglu: {gate_up.width} columns do not split into gate and up")
        return self._emit("swiglu", gate_up.width // 2, {"x": gate_up})

    def gelu(self, x: Value) -> Value:
        """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))). Hendrycks & Gimpel 2016, the tanh form."""
        return self._emit("gelu", x.width, {"x": x})

    def gelu_erf(self, x: Value) -> Value:
        """0.5 x (1 + erf(x / sqrt(2))). Hendrycks & Gimpel 2016."""
        return self._emit("gelu_erf", x.width, {"x": x})

    def concat(self, x: Value, y: Value) -> Value:
        """The columns of x, then those of y."""
        return self._emit("concat", x.width + y.width, {"x": x, "y": y})

    def select(self, x: Value) -> Value:
        """Only the rows of the tokens whose logits were asked for. Once in a program, near its end."""
        if self._selected:
            raise ValueError("select: a program selects its rows once")
        self._selected = True
        return self._emit("select", x.width, {"x": x})

    def _emit(self, kind, width, inputs=None, weights=None, attrs=None) -> Value:
        out = Value(len(self.ops), width)
        inputs = {slot: v for slot, v in (inputs or {}).items() if v is not None}
        weights = {slot: names for slot, names in (weights or {}).items() if names}
        self.ops.append(Op(kind, out, inputs, weights, attrs or {}))
        return out

    def _shape(self, name: str, kind: str, *want: int | None) -> tuple[int, ...]:
        if name not in self.shapes:
            raise FormatError(f"{kind}: the file has no tensor '{name}'")
        got = tuple(self.shapes[name])
        if len(got) != len(want) or any(w is not None and w != g for w, g in zip(want, got)):
            expected = ", ".join("any" if w is None else str(w) for w in want)
            raise FormatError(f"{kind}: '{name}' is {got}, expected ({expected})")
        return got

    def _matrix(self, name: str, kind: str, columns: int) -> int:
        """Its rows."""
        shape = tuple(self.shapes.get(name, ()))
        if len(shape) == 4 and math.prod(shape[1:]) == columns:
            return shape[0]
        return self._shape(name, kind, None, columns)[0]

    def _same_width(self, kind: str, weight: str, width: int, add: Value | None) -> None:
        if add is not None and add.width != width:
            raise FormatError(f"{kind}: '{weight}' makes {width} columns, what is added has {add.width}")


def _names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _eps(kind: str, eps: float) -> float:
    if not (math.isfinite(eps) and eps >= 0):
        raise FormatError(f"{kind}: eps is {eps}, expected a small positive number")
    return float(eps)
