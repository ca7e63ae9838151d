"""Runs a recorded program with numpy: what every op means. The specification of the other executors.

Sums are in f64; the value of each op is rounded to f32, as the other executors hold it. It is
written to be read and is slow, but a model of 135M parameters reads a page in seconds.

    reference = Reference(recording.ops, weights)
    sequence = reference.new_sequence()
    logits = reference.step([Work(sequence, tokens, positions)], rows=[len(tokens) - 1])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .program import AXES, Op, Rope

NO_ID = -1  # a token whose row is given


@dataclass(frozen=True)
class Work:
    """What one sequence does in a step: enter `tokens` at `positions` (len(tokens), AXES).

    visible: 0 = causal; otherwise the number of tokens, which are a bidirectional context: they are
    the sequence's first, and each sees all of them. input: (len(tokens), width) f32, what the `input` ops give, side by
    side, in programs that have some. embeddings: (count, width) f32, rows for the tokens that are -1, in their order.
    """

    sequence: int
    tokens: Sequence[int]
    positions: np.ndarray
    visible: int = 0
    input: np.ndarray | None = None
    embeddings: np.ndarray | None = None


class Step(NamedTuple):
    """T tokens of any number of sequences, as an executor sees them.

    tokens, sequence, visible: (T,); positions: (T, AXES); rows: indices of the tokens whose logits are
    wanted. A token sees the first `visible` cached entries of its sequence, its own included, and,
    beyond that number, the whole P-Tuning prefix. input: (T, width) of each input, by the first of its columns.
    given: rows for the tokens that are -1.
    """

    tokens: np.ndarray
    sequence: np.ndarray
    positions: np.ndarray
    visible: np.ndarray
    rows: np.ndarray
    input: dict[int, np.ndarray]
    given: np.ndarray


class Cached(NamedTuple):
    """What a layer remembers of a sequence: keys (as turned) and values, (length, kv_heads, columns)."""

    k: np.ndarray
    v: np.ndarray


class Reference:
    """A program, its weights and the sequences it has read.

    ops: as recorded. weights: tensor name -> f32 array of the recorded shape. dtype: of the sums.
    kv_dtype: what keys and values are rounded to when they are cached (the engine: float16).
    """

    def __init__(
        self,
        ops: Sequence[Op],
        weights: Mapping[str, np.ndarray],
        *,
        dtype: type = np.float64,
        kv_dtype: type = np.float32,
    ):
        self.ops = tuple(ops)
        self.weights = weights
        self.dtype = dtype
        self.kv_dtype = kv_dtype
        self._cache: dict[int, dict[int, Cached]] = {}  # sequence -> layer -> what it holds
        self._lengths: dict[int, int] = {}
        self._next_sequence = 0

    # ---- sequences

    def new_sequence(self) -> int:
        sequence = self._next_sequence
        self._next_sequence += 1
        self._cache[sequence], self._lengths[sequence] = {}, 0
        return sequence

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence that begins with the first `length` tokens of another."""
        self._check_length(sequence, length)
        copy = self.new_sequence()
        self._cache[copy] = {layer: Cached(c.k[:length], c.v[:length]) for layer, c in self._cache[sequence].items()}
        self._lengths[copy] = length
        return copy

    def truncate(self, sequence: int, length: int) -> None:
        self._check_length(sequence, length)
        layers = self._cache[sequence]
        self._cache[sequence] = {layer: Cached(c.k[:length], c.v[:length]) for layer, c in layers.items()}
        self._lengths[sequence] = length

    def free(self, sequence: int) -> None:
        self.length(sequence)
        del self._cache[sequence], self._lengths[sequence]

    def length(self, sequence: int) -> int:
        """Cached tokens, the P-Tuning prefix not counted."""
        if sequence not in self._lengths:
            raise ValueError(f"sequence {sequence}: no such sequence")
        return self._lengths[sequence]

    def _check_length(self, sequence: int, length: int) -> None:
        if not 0 <= length <= self.length(sequence):
            raise ValueError(f"sequence {sequence}: has {self.length(sequence)} tokens, not {length}")

    # ---- steps

    def step(self, works: Sequence[Work], rows: Sequence[int]) -> np.ndarray:
        """Runs the works' tokens in one step; logits (len(rows), vocab) of the step's tokens by index.

        Raises ValueError (bad token, sequence, positions, rows) before anything is computed.
        """
        return self.trace(works, rows)[-1][1]

    def trace(self, works: Sequence[Work], rows: Sequence[int]) -> list[tuple[Op, np.ndarray]]:
        """Runs a step as `step` does; every op with its value, f32, in the program's order."""
        step = self._begin(works, rows)
        values: dict[int, np.ndarray] = {}
        trace = []
        for op in self.ops:
            values[op.out.id] = self._run(op, step, values)
            trace.append((op, values[op.out.id]))
        for work in works:
            self._lengths[work.sequence] += len(work.tokens)
        return trace

    def check(
        self, works: Sequence[Work], rows: Sequence[int], values: Mapping[int, np.ndarray]
    ) -> Iterator[tuple[Op, np.ndarray]]:
        """Every op with what it should have made of its inputs, which are another executor's `values` by id.

        Unlike in `trace`, an executor's small differences do not add up from op to op.
        """
        step = self._begin(works, rows)
        for op in self.ops:
            yield op, self._run(op, step, values)
        for work in works:
            self._lengths[work.sequence] += len(work.tokens)

    def _run(self, op: Op, step: Step, values: Mapping[int, np.ndarray]) -> np.ndarray:
        inputs = {slot: values[v.id] for slot, v in op.inputs.items()}
        weights = {slot: [self.weights[name] for name in names] for slot, names in op.weights.items()}
        return getattr(self, f"_{op.kind}")(step, **inputs, **weights, **op.attrs).astype(np.float32)

    def _begin(self, works: Sequence[Work], rows: Sequence[int]) -> Step:
        """The works as one step, checked."""
        if not works:
            raise ValueError("a step needs at least one work")
        lengths = {work.sequence: self.length(work.sequence) for work in works}
        inputs = [(op.attrs["first"], op.out.width) for op in self.ops if op.kind == "input"]
        given = sum(width for _, width in inputs) or None
        embed = next((op for op in self.ops if op.kind == "embed"), None)
        keeps = all(op.attrs["layer"] is not None for op in self.ops if op.kind == "attention")
        tokens, sequence, positions, visible, embeddings = [], [], [], [], []
        for work in works:
            start, n = lengths[work.sequence], len(work.tokens)
            place = np.asarray(work.positions)
            if n == 0 or place.shape != (n, AXES):
                raise ValueError(
                    f"sequence {work.sequence}: {n} tokens with positions {place.shape}, expected ({n}, {AXES})"
                )
            if work.visible and (start, work.visible) != (0, n):
                raise ValueError(
                    f"sequence {work.sequence}: a context of {work.visible} tokens must be a work of its own, "
                    f"and the sequence's first; this one has {n} tokens after {start}"
                )
            shape = None if work.input is None else np.shape(work.input)
            want = None if given is None else (n, given)
            if shape != want:
                raise ValueError(f"sequence {work.sequence}: input is {shape}, expected {want}")
            if start and not keeps:
                raise ValueError(f"sequence {work.sequence}: has been read; the program keeps nothing of what it reads")
            embeddings.append(_given(work, embed.out.width if embed else 0))
            tokens.append(work.tokens)
            sequence.append([work.sequence] * n)
            positions.append(place)
            visible.append([work.visible] * n if work.visible else start + 1 + np.arange(n))
            lengths[work.sequence] += n
        if inputs:
            joined = np.concatenate([np.asarray(work.input, np.float32) for work in works])
        step = Step(
            *(np.concatenate(part) for part in (tokens, sequence, positions, visible)),
            rows=np.asarray(rows, int),
            input={first: joined[:, first : first + width] for first, width in inputs},
            given=np.concatenate(embeddings),
        )
        if step.rows.size and not (step.rows.min() >= 0 and step.rows.max() < len(step.tokens)):
            raise ValueError(f"rows {list(rows)}: the step has {len(step.tokens)} tokens")
        tokens = step.tokens[step.tokens != NO_ID]
        _check_range("token", tokens, len(self.weights[embed.weights["table"][0]]) if embed else 0)
        for axis, name in enumerate(embed.weights.get("positions", ()) if embed else ()):
            _check_range("position", step.positions[:, axis], len(self.weights[name]))
        return step

    # ---- ops, one method each; Recorder's docstrings have the equations

    def _embed(self, step, table, positions=()):
        y = table[0][step.tokens].astype(self.dtype)
        y[step.tokens == NO_ID] = step.given
        for axis, rows in enumerate(positions):
            y = y + rows[step.positions[:, axis]]
        return y

    def _input(self, step, first):
        return step.input[first]

    def _rms_norm(self, step, x, w, eps, add=0.0):
        x = x.astype(self.dtype)
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * w[0] + add

    def _layer_norm(self, step, x, w, b, eps):
        x = x.astype(self.dtype)
        x = x - np.mean(x, axis=-1, keepdims=True)
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * w[0] + b[0]

    def _linear(self, step, x, w, alpha, b=None, add=0.0):
        x = x.astype(self.dtype)
        w = [rows.reshape(len(rows), -1) for rows in w]
        y = np.concatenate([x @ rows.T.astype(self.dtype, copy=False) for rows in w], axis=-1)
        if b is not None:
            y = y + np.concatenate(b)
        return y + alpha * np.asarray(add, self.dtype)

    def _head_linear(self, step, x, w, keep):
        heads, _, k = w[0].shape
        x = x.reshape(len(x), heads, k + keep)
        made = [self._linear(step, x[:, head, :k], [w[0][head]], alpha=1.0) for head in range(heads)]
        return np.concatenate([np.stack(made, axis=1), x[..., k:]], axis=-1).reshape(len(x), -1)

    def _route(self, step, x, gate, used, scale, bias=None):
        # What is chosen hangs on the last bit, so the scores are those that an executor in f32 compares.
        logits = (x.astype(self.dtype) @ gate[0].T.astype(self.dtype, copy=False)).astype(np.float32)
        with np.errstate(over="ignore"):
            scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
        ranked = scores if bias is None else scores + bias[0].astype(np.float32)
        chosen = np.sort(np.argsort(-ranked, axis=-1, kind="stable")[:, :used], axis=-1)
        weights = np.take_along_axis(scores, chosen, axis=-1).astype(self.dtype)
        return np.concatenate([chosen, weights / (weights.sum(axis=-1, keepdims=True) + 1e-20) * scale], axis=-1)

    def _moe(self, step, x, routing, gate_up, down, used, add=0.0):
        chosen, weights = routing[:, :used].astype(int), routing[:, used:].astype(self.dtype)
        y = np.zeros((len(x), down[0].shape[1]), self.dtype) + add
        for expert in np.unique(chosen):  # ascending, as the sum is
            row, slot = np.nonzero(chosen == expert)
            hidden = self._swiglu(step, self._linear(step, x[row], [w[expert] for w in gate_up], alpha=1.0))
            y[row] += weights[row, slot, None] * self._linear(step, hidden, [down[0][expert]], alpha=1.0)
        return y

    def _concat(self, step, x, y):
        return np.concatenate([x, y], axis=-1)

    def _swiglu(self, step, x):
        gate, up = np.split(x.astype(self.dtype), 2, axis=-1)
        # exp overflows to inf for gates below -709, and gate / inf is the 0 that it should be.
        with np.errstate(over="ignore"):
            return gate / (1 + np.exp(-gate)) * up

    def _gelu(self, step, x):
        x = x.astype(self.dtype)
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def _gelu_erf(self, step, x):
        x = x.astype(self.dtype)
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))

    def _select(self, step, x):
        return x[step.rows]

    def _attention(
        self,
        step,
        qkv,
        layer,
        heads,
        kv_heads,
        head_dim,
        scale,
        rope,
        norm_eps,
        q_norm=None,
        k_norm=None,
        rope_factors=None,
        prefix=None,
    ):
        q, k, v = np.split(qkv.reshape(len(qkv), -1, head_dim), [heads, heads + kv_heads], axis=1)
        if q_norm is not None:
            q = self._rms_norm(step, q, q_norm, norm_eps)
        if k_norm is not None:
            k = self._rms_norm(step, k, k_norm, norm_eps)
        if rope is not None:
            q, k = (turn(x, step.positions, rope, rope_factors, self.dtype) for x in (q, k))
        before = [p.reshape(-1, kv_heads, head_dim) for p in prefix] if prefix else np.zeros((2, 0, kv_heads, head_dim))
        return self._remember_and_attend(step, layer, q, k, v, scale, before)

    def _latent_attention(self, step, q, kv, w, layer, heads, latent, rope, scale, eps, rope_factors=None):
        q, kv = q.reshape(len(q), heads, -1), kv[:, None]
        q_turned, key = (turn(x[..., latent:], step.positions, rope, rope_factors, self.dtype) for x in (q, kv))
        shared = self._rms_norm(step, kv[..., :latent], w, eps)
        q = np.concatenate([q[..., :latent], q_turned], axis=-1)
        k = np.concatenate([shared, key], axis=-1)
        return self._remember_and_attend(step, layer, q, k, shared, scale, before=(k[:0], shared[:0]))

    def _remember_and_attend(self, step, layer, q, k, v, scale, before):
        """Appends each sequence's keys and values to the layer's cache; its queries attend to `before` and to those."""
        y = np.empty((*q.shape[:2], v.shape[-1]), self.dtype)
        for sequence in np.unique(step.sequence):
            mine = step.sequence == sequence
            cached = self._append(sequence, layer, k[mine], v[mine])
            keys, values = (np.concatenate([p, c]).astype(self.dtype) for p, c in zip(before, cached))
            visible = len(before[0]) + step.visible[mine]
            y[mine] = self._attend(q[mine].astype(self.dtype), keys, values, visible, scale)
        return y.reshape(len(y), -1)

    def _attend(self, q, k, v, visible, scale):
        return attend(q, k, v, visible, scale)

    def _append(self, sequence: int, layer: int, k: np.ndarray, v: np.ndarray) -> Cached:
        """The layer's cache of a sequence, with the step's keys and values after what it held."""
        length = self._lengths[sequence]
        new = Cached(k.astype(self.kv_dtype), v.astype(self.kv_dtype))
        if layer is None:
            return new
        if length:
            old = self._cache[sequence][layer]
            new = Cached(*(np.concatenate([o[:length], n]) for o, n in zip(old, new)))
        self._cache[sequence][layer] = new
        return new


def turn(
    x: np.ndarray, positions: np.ndarray, rope: Rope, factors: Sequence[np.ndarray] | None, dtype: type = np.float64
) -> np.ndarray:
    """x (T, heads, head_dim) with its pairs of columns turned by the tokens' positions (T, AXES)."""
    table = rope.table(factors[0] if factors else None)
    angle = positions[:, table.axis] * table.freq
    cos, sin = ((table.magnitude * f(angle))[:, None].astype(dtype) for f in (np.cos, np.sin))
    a, b = x[..., table.first].astype(dtype), x[..., table.second].astype(dtype)
    y = x.astype(dtype)
    y[..., table.first] = a * cos - b * sin
    y[..., table.second] = a * sin + b * cos
    return y


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, scale: float) -> np.ndarray:
    """softmax(scale · q kᵀ) v, token t seeing the first `visible[t]` entries.

    q: (T, heads, head_dim); k: (ctx, kv_heads, head_dim); v: (ctx, kv_heads, columns), the result's columns too.
    heads / kv_heads queries share a key head.
    """
    hidden = np.arange(len(k)) >= visible[:, None]
    group = q.shape[1] // k.shape[1]
    y = np.empty((*q.shape[:2], v.shape[-1]), q.dtype)
    for head in range(q.shape[1]):
        s = scale * (q[:, head] @ k[:, head // group].T)
        s[hidden] = -np.inf
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        y[:, head] = p @ v[:, head // group] / p.sum(axis=-1, keepdims=True)
    return y


_erf = np.vectorize(math.erf, otypes=[np.float64])


def compare(
    a: Sequence[tuple[Op, np.ndarray]], b: Sequence[tuple[Op, np.ndarray]], tolerance: float = 1e-4
) -> str | None:
    """The first op of two traces of one program whose values differ; None if there is none.

    They differ if the largest difference exceeds `tolerance` times the largest value, or is NaN.
    """
    for (op, x), (other, y) in zip(a, b):
        if str(op) != str(other) or x.shape != y.shape:
            return f"{op} is {x.shape}, the other program has {other}, {y.shape}"
        difference = np.max(np.abs(x - y), initial=0.0)
        largest = np.max(np.abs(x), initial=0.0)
        if not difference <= tolerance * largest:
            return f"{op}: differs by {difference:.3g}, its largest value is {largest:.3g}"
    return None if len(a) == len(b) else f"{len(a)} ops, the other program has {len(b)}"


def _given(work: Work, width: int) -> np.ndarray:
    """The rows for the tokens of a work that have no id; width: of the embeddings, 0: the program has none."""
    rows = np.asarray([] if work.embeddings is None else work.embeddings, np.float32)
    count = int(np.sum(np.asarray(work.tokens) == NO_ID)) if width else 0
    if rows.size != count * width:
        raise ValueError(
            f"sequence {work.sequence}: embeddings of {rows.size} values, expected {width} for each of {count} tokens"
        )
    return rows.reshape(count, width)


def _check_range(what: str, values: np.ndarray, size: int) -> None:
    for value in values[(values < 0) | (values >= size)]:
        raise ValueError(f"{what} {value}: expected 0 <= {what} < {size}")
