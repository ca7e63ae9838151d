"""How well a model predicts a text, and how far it is from another one: perplexity and Kullback-Leibler divergence.

    result = perplexity("model-q4_k_m.gguf", text, against="model-f16.gguf")
    print(result.value, result.divergence.mean)

The text is cut into chunks of `context` tokens, what is left over at its end is dropped. In each chunk the tokens of
the second half are scored, each given those before it, so that none is predicted from nearly nothing: as llama.cpp's
tool does, whose figures these can be compared with. Every chunk begins with the model's beginning (`[gMASK]<sop>`, or
the token that begins a text) in the place of its first tokens.

ChatGLM-6B and GLM read a context in both directions and then write. There the first half of a chunk is the context,
with `[gMASK]` at its end, and the second half what fills the mask (Du et al. 2022, section 3.2); with the special
tokens it is `context` tokens, too. What this says cannot be compared with other kinds of models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import models
from .errors import Cancelled
from .loading import load
from .model import infiller
from .workers import outcome, start, workers

__all__ = ["Bucket", "Divergence", "Perplexity", "perplexity"]

LEAST_CONTEXT = 16
BUCKETS = 4
STEP = 512  # tokens that enter the model at a time, without logits
LOGITS = 1 << 24  # that are held at a time, of each model: 64 MB

T = TypeVar("T")


@dataclass(frozen=True)
class Divergence:
    """How far the model's predictions are from those of the model it is compared with, over the scored tokens.

    perplexity, perplexity_error: of that other model. mean, error, median, p99 (99 of 100 are below), max: of the
    Kullback-Leibler divergence sum(p log(p / q)) in nats, p being the other model's probabilities of the next token.
    same_top, same_top_error: the fraction of tokens where both hold the same next token for the likeliest.
    Errors are standard errors.
    """

    perplexity: float
    perplexity_error: float
    mean: float
    error: float
    median: float
    p99: float
    max: float
    same_top: float
    same_top_error: float


@dataclass(frozen=True)
class Bucket:
    """The scored tokens whose index in their chunk is at least `begin` and below `end`; the last two are None where
    nothing was compared."""

    begin: int
    end: int
    tokens: int
    perplexity: float
    divergence: float | None
    same_top: float | None


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of a token, and its standard error.

    tokens: that were scored, in `chunks` chunks of `context` tokens; the text has `of` chunks (or they were limited to
    so many). positions: the same by place in the chunk. divergence: None unless there was something to compare with.
    """

    value: float
    error: float
    tokens: int
    chunks: int
    of: int
    context: int
    positions: tuple[Bucket, ...]
    divergence: Divergence | None = None


def perplexity(
    model: str | os.PathLike[str],
    text: str,
    *,
    against: str | os.PathLike[str] | None = None,
    context: int = 512,
    chunks: int | None = None,
    prefix: bool = True,
    kv_type: str = "f16",
    threads: int | None = None,
    packed: bool | None = None,
    loading: Callable[[float], Any] | None = None,
    progress: Callable[[int, int, Perplexity | None], Any] | None = None,
) -> Perplexity:
    """The perplexity of `text` under the model of a GGUF file.

    against: the file of another model with the same vocabulary, usually the one that `model` was quantized from. Both
        are in memory; of their logits, what some tokens have.
    context: tokens of a chunk. chunks: only the first so many. prefix: begin each chunk as the model's texts begin;
        False: with the text, as llama.cpp does for ChatGLM and GLM-4.
    kv_type, threads, packed, loading: as `kv_type`, `threads`, `packed` and `progress` of `glmlite.load`. The model of
        `against` has f16.
    progress: called with the tokens read, those to read, and the figures of the chunks that are done (None before the
        first); returning False cancels (Cancelled).

    Special tokens that the text spells are text. Raises what `glmlite.load` raises, ValueError (too short a text, too
    long a context, vocabularies that differ) and RuntimeError (numbers that are not finite).
    """
    with ExitStack() as stack:
        reader = stack.enter_context(
            Reader(model, context, kv_type=kv_type, threads=threads, packed=packed, loading=loading)
        )
        readers = [reader]
        if against is not None:
            other = stack.enter_context(Reader(against, context, threads=threads, packed=packed, loading=loading))
            _check_vocabularies(reader, other)
            readers.append(other)
        work = reader.chunks(text, chunks, prefix)
        scores = Scores(context, len(work))

        def report(tokens: int) -> None:
            if progress is not None and progress(tokens, len(work) * context, scores.result()) is False:
                raise Cancelled("perplexity: cancelled")

        for number, chunk in enumerate(work):
            pieces = [r.logits(chunk, lambda done, base=number * context: report(base + done)) for r in readers]
            at = chunk.first
            for logits in zip(*pieces):
                scores.add(at, chunk.tokens[at + 1 : at + 1 + len(logits[0])], *logits)
                at += len(logits[0])
            scores.end_chunk()
            report((number + 1) * context)
        return scores.result()


class Chunk(NamedTuple):
    """What is read at once. first: index of the first token whose successor is scored."""

    tokens: list[int]
    first: int


class Reader:
    """A model that reads chunks of a text, with one sequence of its engine for itself. To be used in `with`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int,
        *,
        kv_type: str = "f16",
        threads: int | None = None,
        device: str = "cpu",
        packed: bool | None = None,
        loading: Callable[[float], Any] | None = None,
    ):
        if context < LEAST_CONTEXT:
            raise ValueError(f"context is {context}, expected at least {LEAST_CONTEXT}")
        self.context = context
        self.model = load(
            path,
            context=context,
            parallel=1,
            kv_type=kv_type,
            threads=threads,
            device=device,
            packed=packed,
            progress=loading,
        )
        if self.model.context < context:
            self.model.close()
            raise ValueError(f"context is {context}, the model was trained for {self.model.context} tokens")
        self._native, self.engine = self.model.debug
        gguf = self._native.Gguf(self.model.path)
        try:
            self.shapes = {name: tuple(tensor.shape) for name, tensor in gguf.tensors.items()}
            self.recording = models.record(gguf.metadata, self.shapes)
        finally:
            gguf.close()
        self._infiller = infiller(self.model.architecture, self.model.tokenizer)
        self.rows_at_a_time = max(16, min(LOGITS // self.engine.vocab, STEP))  # of logits
        self._sequence = self.engine.new_sequence()
        self._worker = ExitStack()
        self._tasks = self._worker.enter_context(workers(1))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc) -> None:
        self._worker.close()
        self.model.close()

    def chunks(self, text: str, most: int | None = None, prefix: bool = True) -> list[Chunk]:
        """The text's whole chunks, at most `most`. Raises ValueError if it has none."""
        if most is not None and most < 1:
            raise ValueError(f"chunks is {most}, expected at least 1")
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(text, special=False)
        before = list(tokenizer.prefix_ids) if prefix and self._infiller is None else []
        ids = before + ids
        # The special tokens of a bidirectional context take their share of a chunk.
        size = self.context - (0 if self._infiller is None else len(self._infiller.prompt([])))
        count = len(ids) // size
        if count == 0:
            raise ValueError(
                f"the text has {len(ids)} tokens, a chunk {size}: take a longer text, or a smaller context"
            )
        starts = range(0, size * min(count, most or count), size)
        return [self._chunk(ids[start : start + size], before) for start in starts]

    def _chunk(self, ids: list[int], before: list[int]) -> Chunk:
        half = len(ids) // 2
        if self._infiller is None:
            return Chunk(before + ids[len(before) :], half)
        head = self._infiller.prompt(ids[:half])
        return Chunk(head + ids[half:], len(head) - 1)

    def logits(self, chunk: Chunk, waiting: Callable[[int], None]) -> Iterator[NDArray[np.float32]]:
        """(rows, vocab) of the scored tokens' predecessors, in pieces. waiting: called with the tokens read."""
        last = len(chunk.tokens) - 1  # nothing follows the last token
        for begin, end, work in self.steps(chunk._replace(tokens=chunk.tokens[:last]), self.rows_at_a_time):
            rows = list(range(end - begin)) if begin >= chunk.first else []
            logits = self.run(
                lambda cancel, work=work, rows=rows: self.engine.step([work], rows, cancel),
                lambda part, at=begin, size=end - begin: waiting(at + int(part * size)),
            )
            if rows:
                yield logits

    def steps(self, chunk: Chunk, scored: int) -> Iterator[tuple[int, int, Any]]:
        """(begin, end, work) of the steps that read a chunk from its beginning: a bidirectional context whole, others
        STEP tokens at a time, and from the first scored one on `scored`."""
        layout = self.recording.layout(chunk.tokens, self.model.tokenizer.id_of)
        tokens = np.asarray(chunk.tokens, np.int32)
        self.engine.truncate(self._sequence, 0)
        begin = 0
        while begin < len(tokens):
            if begin < layout.context:
                end = layout.context
            elif begin < chunk.first:
                end = min(begin + STEP, chunk.first)
            else:
                end = min(begin + scored, len(tokens))
            visible = layout.context if begin == 0 else 0
            positions = np.ascontiguousarray(layout.positions[begin:end], np.int32)
            yield begin, end, self._native.Work(self._sequence, tokens[begin:end], positions, visible=visible)
            begin = end

    def run(self, call: Callable[[Any], T], waiting: Callable[[float], None]) -> T:
        """call(cancel), on a thread of its own: a step of a large model lasts, and this one is to see Ctrl-C meanwhile.

        waiting: called ten times a second with how much of the step is done; what it raises cancels the call.
        """
        cancel = self._native.Cancel()
        running = start(self._tasks, lambda: call(cancel))
        try:
            return outcome(running.get(lambda: waiting(self.engine.progress())))
        except BaseException:
            cancel.set()
            raise


class Scores:
    """What is known of each scored token: a few numbers, never its logits."""

    def __init__(self, context: int, of: int):
        self._context = context
        self._of = of
        self._chunks = 0
        self._result: Perplexity | None = None
        # (index in its chunk, negative log-likelihood, the other model's, divergence, whether the likeliest are equal)
        self._tokens: list[tuple[int, float, float, float, bool]] = []

    def add(
        self, at: int, targets: Sequence[int], logits: NDArray[np.float32], other: NDArray[np.float32] | None = None
    ) -> None:
        """logits, other: (rows, vocab) after the tokens from index `at` of the chunk on; targets: what followed."""
        for i, target in enumerate(targets):
            q = log_softmax(logits[i])
            if other is None:
                self._tokens.append((at + i + 1, -q[target], np.nan, np.nan, False))
            else:
                p = log_softmax(other[i])
                divergence = np.dot(np.exp(p), p - q)
                self._tokens.append((at + i + 1, -q[target], -p[target], divergence, p.argmax() == q.argmax()))

    def end_chunk(self) -> None:
        self._chunks += 1
        index, nll, nll_other, divergence, same = map(np.array, zip(*self._tokens))
        compared = not np.isnan(divergence[0])
        edges = np.linspace(index.min(), index.max() + 1, min(BUCKETS, np.ptp(index) + 1) + 1).round().astype(int)
        positions = []
        for begin, end in pairwise(edges):
            here = (index >= begin) & (index < end)
            kl, top = (float(divergence[here].mean()), float(same[here].mean())) if compared else (None, None)
            positions.append(Bucket(int(begin), int(end), int(here.sum()), float(np.exp(nll[here].mean())), kl, top))
        self._result = Perplexity(
            *_perplexity(nll),
            tokens=len(nll),
            chunks=self._chunks,
            of=self._of,
            context=self._context,
            positions=tuple(positions),
            divergence=Divergence(
                *_perplexity(nll_other),
                mean=float(divergence.mean()),
                error=standard_error(divergence),
                median=float(np.median(divergence)),
                p99=float(np.quantile(divergence, 0.99)),
                max=float(divergence.max()),
                same_top=float(same.mean()),
                same_top_error=standard_error(same),
            )
            if compared
            else None,
        )

    def result(self) -> Perplexity | None:
        """The figures of the chunks that are done; None before the first."""
        return self._result


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, (vocab,)."""
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def standard_error(values: NDArray) -> float:
    """The error of the mean; NaN for a single value. Tokens count as independent, which neighbours are not quite."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _perplexity(nll: NDArray[np.float64]) -> tuple[float, float]:
    """exp of the mean, and its standard error: that of the mean times the derivative."""
    value = float(np.exp(nll.mean()))
    return value, value * standard_error(nll)


def _check_vocabularies(a: Reader, b: Reader) -> None:
    key = "tokenizer.ggml.tokens"
    tokens, others = a.model.metadata[key], b.model.metadata[key]
    if a.model.vocab_size != b.model.vocab_size or len(tokens) != len(others):
        raise ValueError(
            f"{b.model.path}: has a vocabulary of {b.model.vocab_size} tokens, {a.model.path} of "
            f"{a.model.vocab_size}: only models of one vocabulary can be compared"
        )
    for i, (token, other) in enumerate(zip(tokens, others)):
        if token != other:
            raise ValueError(
                f"{b.model.path}: token {i} is {other!r}, in {a.model.path} {token!r}: only models of one vocabulary "
                "can be compared"
            )
