"""The interface of `glmlite._native` in numpy: Gguf, Engine, Sampler, Work, Cancel, Sample.

The twin against which the native engine and sampler are tested, and what the layers above are tested on where there
is no native module. It runs a token at a time (a bidirectional context whole), so that its results are exactly
independent of chunks and batches, as the native ones are.
"""

import dataclasses
import math
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import twins_latent
from twins_rows import rotate, stored_q8

from glmlite import reference
from glmlite.errors import Cancelled, FormatError
from glmlite.program import AXES, Op, RopeTable, Value


def available_memory():
    return 2**64 - 1


# Bytes of a row of keys, or of values. q8: a byte for each column, in whole sixteens, and an f32 scale.
ROW_BYTES = {"f16": lambda columns: 2 * columns, "q8": lambda columns: -(-columns // 16) * 16 + 4}


def page_bytes(gguf, ops, kv_type="f16"):
    """Of attention; latents it has none of."""
    if kv_type not in ROW_BYTES:
        raise ValueError(f"kv_type: {kv_type!r}, expected 'f16' or 'q8'")
    attributes = [op[5] for op in ops if op[0] == "attention"]
    return Engine.page_tokens * sum(2 * a["kv_heads"] * ROW_BYTES[kv_type](a["head_dim"]) for a in attributes)


def weight_bytes(gguf, ops):
    return gguf.nbytes, 0


def packed_in(gguf, ops):
    return None


class TensorInfo(NamedTuple):
    name: str
    type: str
    shape: tuple
    nbytes: int


class Gguf:
    def __init__(self, path, check=None):
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
        except ValueError as error:
            raise FormatError(f"{path}: {error}") from error
        self.nbytes = Path(path).stat().st_size
        self._tensors = {t.name: t for t in reader.tensors}
        self.tensors = {
            name: TensorInfo(name, t.tensor_type.name, tuple(map(int, reversed(t.shape))), int(t.n_bytes))
            for name, t in self._tensors.items()
        }
        fields = reader.fields.items()
        self.metadata = {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}

    def read_metadata(self, check=None):
        return self.metadata

    def dequantize(self, name):
        from gguf import quants

        tensor = self._tensors[name]
        return quants.dequantize(tensor.data, tensor.tensor_type).reshape(self.tensors[name].shape)

    def close(self):
        pass


class Cancel:
    def __init__(self):
        self.is_set = False

    def set(self):
        self.is_set = True


class Sample(NamedTuple):
    token: int
    logprob: float
    top: list


def finite(x):
    """To f32, but never to infinity."""
    return np.float32(np.clip(x, *(float(end) for end in (np.finfo(np.float32).min, np.finfo(np.float32).max))))


def draw_weights(logits, temperature):
    """round(2^44 exp((logits - logits[0]) / temperature)) of logits in descending order, by f64 operations in the order
    of `csrc/sampling.h`."""
    difference = logits.astype(np.float64) - np.float64(logits[0])
    x = np.maximum(difference * min(1 / temperature, 1e30), -32)
    k = np.rint(x * float.fromhex("0x1.71547652b82fep+0"))
    r = (x - k * float.fromhex("0x1.62e42feep-1")) - k * float.fromhex("0x1.a39ef35793c76p-33")
    y = np.full(r.shape, 1 / math.factorial(11))
    for n in range(10, -1, -1):
        y = y * r + 1 / math.factorial(n)
    return np.rint(np.ldexp(y, k.astype(int) + 44)).astype(np.int64)


DRAFT = 0  # writes one token at a time


class Sampler:
    """See `_native.pyi`; in f32 where the native one rounds to f32, otherwise in f64."""

    drafted = (0, 0)

    def __init__(
        self,
        *,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        penalty_window=256,
        seed=0,
        logit_bias=None,
        logprobs=-1,
        stop=(),
        draft=0,
    ):
        assert draft == 0
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.repetition_penalty = repetition_penalty
        self.presence_penalty, self.frequency_penalty = presence_penalty, frequency_penalty
        self.seed, self.logit_bias, self.logprobs = seed, dict(logit_bias or {}), logprobs
        self.stop = frozenset(stop)
        self.seen = deque(maxlen=penalty_window)
        self.draws = 0
        self.allowed = None  # words of the next draw's mask
        self.forbidden = frozenset()

    def accept(self, tokens):
        self.seen.extend(int(t) for t in tokens)

    def take(self, tokens):
        self.draws += len(tokens)
        self.allowed = None
        self.accept(tokens)

    def allow(self, words):
        self.allowed = None if words is None else words.copy()

    def forbid(self, tokens):
        self.forbidden = frozenset(tokens)

    def state(self):
        return self.draws, list(self.seen), self.allowed

    def restore(self, state):
        self.draws, seen, self.allowed = state
        self.seen = deque(seen, maxlen=self.seen.maxlen)

    def sample(self, logits):
        raw = np.asarray(logits, np.float32)
        x = self._adjusted(raw)
        if self.allowed is not None:
            x[~self._allowed(len(raw))] = -np.inf
        token = self._draw(x)
        self.take([token])
        if self.logprobs < 0:
            return Sample(token, float("nan"), [])
        log_p = raw.astype(np.float64) - raw.max()
        log_p -= np.log(np.sum(np.exp(log_p)))
        top = np.argsort(-raw, kind="stable")[: self.logprobs]
        return Sample(token, float(log_p[token]), [(int(i), float(log_p[i])) for i in top])

    def _adjusted(self, raw):
        x = raw.copy()
        for token, bias in self.logit_bias.items():
            x[token] = finite(float(x[token]) + bias)
        for token, count in Counter(self.seen).items():
            y = float(x[token])
            y = y / self.repetition_penalty if y > 0 else y * self.repetition_penalty
            x[token] = finite(y - (self.presence_penalty + count * self.frequency_penalty))
        x[[token for token in self.forbidden if token < len(x)]] = np.finfo(np.float32).min
        return x

    def _allowed(self, vocab):
        """(vocab,) bool."""
        if self.allowed.shape != (-(-vocab // 32),):
            raise ValueError(f"allow: {len(self.allowed)} words, a vocabulary of {vocab} takes {-(-vocab // 32)}")
        allowed = np.unpackbits(self.allowed.view(np.uint8), bitorder="little")[:vocab].astype(bool)
        if not allowed.any():
            raise ValueError("allow: none of the vocabulary's tokens")
        return allowed

    def _draw(self, x):
        if self.temperature == 0:
            return int(np.argmax(x))
        order = np.argsort(-x, kind="stable")  # equal ones by id
        order = order[: self.top_k or None]
        weights = draw_weights(x[order], self.temperature)
        total = int(weights.sum())
        least = max(1, math.ceil(self.min_p * 2.0**44))
        filters = 0 < self.top_k < len(x) or self.top_p < 1 or least > 1
        sums = np.cumsum(np.where(weights >= least, weights, 0))
        if filters:
            limit = total if self.top_p == 1 else min(total, math.ceil(self.top_p * float(total)))
            sums = sums[: np.searchsorted(sums, limit) + 1]
            total = int(sums[-1])
        target = min(int(self._uniform() * float(total)), total - 1)
        return int(order[np.searchsorted(sums, target, side="right")])

    def _uniform(self):
        """splitmix64 at the draw's place in its sequence, 53 bits."""
        mask = 2**64 - 1
        z = (self.seed + (self.draws + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        return (z >> 11) * 2.0**-53


class Work:
    def __init__(
        self,
        sequence,
        tokens,
        positions,
        *,
        visible=0,
        sampler=None,
        budget=1,
        next_position=(0,) * AXES,
        position_step=(1,) * AXES,
        input=None,
        embeddings=None,
    ):
        self.sequence, self.sampler, self.budget = sequence, sampler, budget
        self.tokens = [int(t) for t in tokens]
        self.positions = np.asarray(positions)
        if self.positions.shape != (len(self.tokens), AXES) or self.positions.dtype != np.int32:
            raise ValueError(
                f"positions are {self.positions.shape} {self.positions.dtype}, expected int32 (tokens, {AXES})"
            )
        self.visible, self.next_position, self.position_step = visible, next_position, position_step
        self.input, self.embeddings = input, embeddings


class _Rope:
    """A rope as the seam has it, for the reference executor."""

    def __init__(self, table):
        self._table = RopeTable(**table)

    def table(self, factors):
        return self._table


def _ops(tuples):
    values = {}
    for kind, out, width, inputs, weights, attrs in tuples:
        values[out] = Value(out, width)
        attrs = {"rope": None} | attrs if kind == "attention" else dict(attrs)
        if attrs.get("rope") is not None:
            attrs["rope"] = _Rope(attrs["rope"])
        inputs = {slot: values[i] for slot, i in inputs.items()}
        yield Op(kind, values[out], inputs, {slot: tuple(names) for slot, names in weights.items()}, attrs)


class RoundedKv:
    """Over a Reference: attention as with q8 pages."""

    def _attend(self, q, k, v, visible, scale):
        latent = v.shape[-1]
        if k.shape[-1] > latent:  # the values are columns of the keys: latents, turned
            q, k = (twins_latent.kept(x.reshape(-1, x.shape[-1]), latent).reshape(x.shape) for x in (q, k))
            return twins_latent.turned(super()._attend(q, k, k[..., :latent], visible, scale))
        q, k, v = (x.astype(np.float32) for x in (q, k, v))
        q, k, v = stored_q8(rotate(q)), stored_q8(rotate(k)), stored_q8(v)
        return super()._attend(*(x.astype(self.dtype) for x in (q, k, v)), visible, scale)


def executor(kind, ops, weights, kv_type):
    """A numpy executor, a kind of Reference, that keeps keys and values as the type of page does."""
    if kv_type == "f16":
        return kind(ops, weights, kv_dtype=np.float16)
    return type("Rounded", (RoundedKv, kind), {})(ops, weights)


class Engine:
    page_tokens = 64
    delay = 0.0  # seconds a token takes at least, for tests that need a slow engine

    def __init__(
        self, gguf, ops, *, kv_tokens, kv_type="f16", threads=0, adaptive=False, background=False, isa="", progress=None
    ):
        if kv_tokens % self.page_tokens:
            raise ValueError(f"kv_tokens is {kv_tokens}, expected whole pages of {self.page_tokens}")
        ops = list(_ops(ops))
        names = {name for op in ops for names in op.weights.values() for name in names}
        weights = {name: gguf.dequantize(name) for name in gguf.tensors if name in names}
        total = sum(w.nbytes for w in weights.values())
        if progress is not None and progress(total, total) is False:
            raise Cancelled("load cancelled")
        self._reference = executor(reference.Reference, ops, weights, kv_type)
        self._pages = {}  # sequence -> pages
        self._lock = threading.Lock()
        self.threads, self.isa, self.vocab = threads or 1, "numpy", ops[-1].out.width
        prefixes = [op.weights["prefix"][0] for op in ops if "prefix" in op.weights]
        self.prefix = len(weights[prefixes[0]]) if prefixes else 0
        self.weight_bytes, self.kv_bytes, self.kv_tokens = total, 0, kv_tokens
        self._prefix_pages = list(range(self._count(0)))  # every sequence begins with them
        self._total = kv_tokens // self.page_tokens + len(self._prefix_pages)
        self._holders = Counter(self._prefix_pages)  # page -> how many hold it
        self._next_page = len(self._prefix_pages)
        self.steps = []  # tokens of each call, for tests
        self.closed = False

    def progress(self):
        return 0.0

    def _count(self, length):
        """Pages of a sequence."""
        return -(-(self.prefix + length) // self.page_tokens)

    def kv_free(self):
        return self.page_tokens * (self._total - sum(n > 0 for n in self._holders.values()))

    def new_sequence(self):
        sequence = self._reference.new_sequence()
        self._pages[sequence] = list(self._prefix_pages)
        self._holders.update(self._prefix_pages)
        return sequence

    def fork(self, sequence, length):
        fork = self._reference.fork(sequence, length)
        self._pages[fork] = self._pages[sequence][: self._count(length)]
        self._holders.update(self._pages[fork])
        return fork

    def truncate(self, sequence, length):
        self._reference.truncate(sequence, length)
        keep = self._count(length)
        self._holders.subtract(self._pages[sequence][keep:])
        del self._pages[sequence][keep:]

    def free(self, sequence):
        self._reference.free(sequence)
        self._holders.subtract(self._pages.pop(sequence))

    def length(self, sequence):
        return self._reference.length(sequence)

    def _grow(self, sequence, count):
        """Own pages for `count` more tokens."""
        pages, length = self._pages[sequence], self.length(sequence)
        if (self.prefix + length) % self.page_tokens and self._holders[pages[-1]] > 1:
            self._holders[pages.pop()] -= 1
        while len(pages) < self._count(length + count):
            if not self.kv_free():
                raise RuntimeError(f"KV cache: full, sequence {sequence} has {length} tokens")
            pages.append(self._next_page)
            self._next_page += 1
            self._holders[pages[-1]] += 1

    def _enter(self, work, tokens, positions, cancel):
        """Logits after each of the tokens."""
        size = len(tokens) if work.visible else 1
        rows = []
        for i in range(0, len(tokens), size):
            if cancel is not None and cancel.is_set:
                raise Cancelled("cancelled")
            if self.delay:
                time.sleep(self.delay)
            part = reference.Work(work.sequence, tokens[i : i + size], positions[i : i + size], work.visible)
            if work.embeddings is not None:
                rows_before = sum(token == reference.NO_ID for token in tokens[:i])
                count = sum(token == reference.NO_ID for token in part.tokens)
                given = work.embeddings[rows_before : rows_before + count]
                part = dataclasses.replace(part, embeddings=given)
            self._grow(work.sequence, size)
            rows.append(self._reference.step([part], range(size)))
        logits = np.concatenate(rows)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            at = self.length(work.sequence) - len(tokens) + bad[0]
            raise RuntimeError(f"sequence {work.sequence}, token {at}: logits are not finite")
        return logits

    def step(self, works, rows, cancel=None):
        with self._begin(works):
            every = np.concatenate([self._enter(w, w.tokens, w.positions, cancel) for w in works])
            return every[list(rows)].astype(np.float32)

    def run(self, works, *, max_ms=0.0, cancel=None):
        with self._begin(works):
            begin = time.perf_counter()
            results = [[] for _ in works]
            going = {i: (w.tokens, w.positions) for i, w in enumerate(works)}
            while going:
                following = {}
                for i, (tokens, positions) in going.items():
                    work, result = works[i], results[i]
                    logits = self._enter(work, tokens, positions, cancel)
                    work.visible = 0
                    if work.sampler is None:
                        continue
                    result.append(work.sampler.sample(logits[-1]))
                    if len(result) < work.budget and result[-1].token not in work.sampler.stop:
                        place = np.add(work.next_position, np.multiply(len(result) - 1, work.position_step))
                        following[i] = ([result[-1].token], place[None].astype(np.int32))
                going = following if 1000 * (time.perf_counter() - begin) < max_ms else {}
            return results

    def _begin(self, works):
        if self.closed:
            raise ValueError("the engine is closed")
        self.steps.append([len(w.tokens) for w in works])
        return _Restoring(self, works)

    def close(self):
        with self._lock:
            self.closed = True


class _Restoring:
    """One call at a time; if it fails, sequences and samplers are as before."""

    def __init__(self, engine, works):
        self._engine, self._works = engine, works

    def __enter__(self):
        self._engine._lock.acquire()
        self._lengths = [(w.sequence, self._engine.length(w.sequence)) for w in self._works]
        self._states = [(w.sampler, w.sampler.state()) for w in self._works if w.sampler is not None]

    def __exit__(self, kind, error, trace):
        if kind is not None:
            for sequence, length in self._lengths:
                self._engine.truncate(sequence, length)
            for sampler, state in self._states:
                sampler.restore(state)
        self._engine._lock.release()
