"""What a caller asks of a generation, and what comes back: parameters, pieces, completions, stop strings."""

from __future__ import annotations

import math
import operator
import os
import queue
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from .errors import FormatError
from .scheduler import Request, Scheduler, Stats

CANCELLED = "cancelled"


@dataclass(frozen=True)
class Parameters:
    """How to generate. None means the model's default where one is named.

    stream: return a `Generation` to iterate instead of a `Completion`.
    max_tokens: at most so many tokens; without it, until the model stops or the context is full.
    temperature, top_k, top_p, min_p, repetition_penalty, penalty_window: the file's `general.sampling.*`, or else
        0.8, 0 (off), 0.8, 0 (off), 1 (off) and 256 tokens. temperature 0 takes the most likely token.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens in the window, once and per occurrence.
    seed: 0 <= seed < 2**64; None draws one, and the completion tells it. A seed fixes the answer, whatever else runs.
    logit_bias: token id -> added to its logit; -inf forbids it.
    logprobs: 0 for the log probability of each token, n for those of the n most likely ones too.
    stop: strings that end the answer and are not part of it, wherever the borders of tokens fall.
    stop_ids: token ids that end it, besides the model's own.
    ignore_eos: do not end at the model's own end tokens.
    overflow: what to do with a prompt that does not fit the context. "error": ContextOverflow. "truncate": drop the
        oldest tokens after the model's prefix, until the prompt and `max_tokens` (or a quarter of the context; at
        most half of it) fit.
    on_progress: called with (done, total) prompt tokens while the prompt is read, ten times a second and when it is
        done, by the thread that waits. What it raises cancels the request.
    """

    stream: bool = False
    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.8
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 256
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    overflow: str = "error"
    on_progress: Callable[[int, int], None] | None = None

    @classmethod
    def of(cls, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Parameters:
        """`given` over `defaults`; None in `given` counts as not given."""
        names = [f.name for f in fields(cls)]
        for name in given:
            if name not in names:
                raise TypeError(f"'{name}' is no parameter of a generation; they are {', '.join(names)}")
        return cls(**{**defaults, **{k: v for k, v in given.items() if v is not None}})

    def __post_init__(self):
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, 1000)
        _integer("top_k", self.top_k, 0)
        _integer("penalty_window", self.penalty_window, 0, 2**20)
        _number("temperature", self.temperature, 0.0)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty)
        _number("frequency_penalty", self.frequency_penalty)
        _number("repetition_penalty", self.repetition_penalty, 0.0)
        if self.top_p == 0 or self.repetition_penalty == 0:
            raise ValueError("top_p and repetition_penalty must be above 0")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not (isinstance(stop, Iterable) and all(isinstance(s, str) for s in stop)):
            raise TypeError(f"stop is {self.stop!r}, expected a string or strings")
        if not all(stop):
            raise ValueError(f"stop is {self.stop!r}, expected strings that are not empty")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_ids", tuple(token_ids("stop_ids", self.stop_ids)))
        for token in self.stop_ids:
            _integer("stop_ids", token, 0)
        if not isinstance(self.logit_bias, Mapping | None):
            raise TypeError(f"logit_bias is {self.logit_bias!r}, expected a mapping of token ids to numbers")
        for token, bias in (self.logit_bias or {}).items():
            _integer("logit_bias", token, 0)
            if not (hasattr(bias, "__float__") and bias < math.inf):
                raise ValueError(f"logit_bias of token {token} is {bias!r}, expected a number below infinity")
        if self.overflow not in ("error", "truncate"):
            raise ValueError(f"overflow is {self.overflow!r}, expected 'error' or 'truncate'")
        if self.on_progress is not None and not callable(self.on_progress):
            raise TypeError("on_progress: expected a function of (done, total)")

    def sampler(self, native: Any, *, seed: int, stop: Sequence[int]) -> Any:
        return native.Sampler(
            temperature=float(self.temperature),
            top_k=self.top_k,
            top_p=float(self.top_p),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            penalty_window=self.penalty_window,
            seed=seed,
            logit_bias=dict(self.logit_bias or {}),
            logprobs=-1 if self.logprobs is None else self.logprobs,
            stop=list(stop),
        )


def sampling_defaults(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters that a file recommends (GGUF `general.sampling.*`), checked. Raises FormatError."""
    names = {
        "temp": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "penalty_repeat": "repetition_penalty",
        "penalty_last_n": "penalty_window",
    }
    found = {name: metadata.get(f"general.sampling.{key}") for key, name in names.items()}
    defaults = {name: value for name, value in found.items() if value is not None}
    try:
        Parameters(**defaults)
    except (TypeError, ValueError) as error:
        raise FormatError(f"metadata: general.sampling: {error}") from None
    return defaults


def random_seed() -> int:
    return int.from_bytes(os.urandom(8), "little")


class Logprob(NamedTuple):
    """Natural log of a token's probability under the raw logits, and the most likely tokens with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """The next part of an answer: the tokens of one call of the engine and the text that is now certain.

    `text` may be empty while it could still be the start of a stop string or of a character. The last piece has a
    finish_reason: "stop" (an end token or a stop string), "length" (max_tokens, or the context is full), "cancelled".
    """

    text: str
    tokens: list[int]
    logprobs: list[Logprob] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer. `str(completion)` is its text.

    tokens: without the end token. stop: the token id or the string that ended it, if one did. seed: gives the same
    answer again. Where a stop string ended it, `tokens` go up to the token that completed the string; where
    max_tokens cut a character in two, the text ends before that character.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprobs: list[Logprob] | None
    stats: Stats
    stop: int | str | None
    seed: int

    def __str__(self) -> str:
        return self.text


class StopStrings:
    """Finds the first of several strings in text that comes in parts, and holds back what may be the start of one.

    First is the one that is complete first, so the result does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is certain, the stop string that was found, if one was)."""
        text = self._held + text
        found = [(i + len(s), i, s) for s in self._stops if (i := text.find(s)) >= 0]
        if found:
            _, begin, stop = min(found)
            self._held = ""
            return text[:begin], stop
        hold = max((_overlap(text, s) for s in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], None

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Answer:
    """The sink of a generation: turns samples into pieces, on the engine thread."""

    def __init__(self, decoder: Any, parameters: Parameters, stop_ids: Sequence[int], max_tokens: int):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.stop: int | str | None = None
        self._decoder = decoder
        self._strings = StopStrings(parameters.stop)
        self._stop_ids = frozenset(stop_ids)
        self._left = max_tokens
        self._logprobs = parameters.logprobs is not None

    def take(self, samples: list) -> bool:
        text, tokens, logprobs, reason = "", [], [], None
        for sample in samples:
            if sample.token in self._stop_ids:
                self.stop, reason = sample.token, "stop"
                break
            tokens.append(sample.token)
            logprobs.append(Logprob(sample.token, sample.logprob, sample.top))
            certain, self.stop = self._strings.push(self._decoder.push([sample.token]))
            text += certain
            self._left -= 1
            if self.stop is not None or self._left == 0:
                reason = "length" if self.stop is None else "stop"
                break
        if reason is not None and not isinstance(self.stop, str):
            # Where the limit cuts a character in two, its first part is no text.
            rest, stop = self._strings.push(self._decoder.finish() if reason == "stop" else "")
            text += rest + self._strings.flush()
            self.stop = self.stop if stop is None else stop
        self.events.put(Piece(text, tokens, logprobs if self._logprobs else None, reason))
        return reason is not None

    def fail(self, error: Exception) -> None:
        self.events.put(error)


class Generation:
    """A running generation: iterate it for its pieces, or ask for its `result`.

    A loop that is left early, `close`, the end of a `with` block, an exception while waiting (KeyboardInterrupt) and
    the loss of the last reference all cancel the request, wherever it is: queued, reading, writing. `next()` takes
    single pieces without that. One thread at a time may wait for it; any may cancel it.
    """

    def __init__(self, scheduler: Scheduler, request: Request, answer: Answer, on_progress, seed: int, owner: Any):
        self._scheduler = scheduler
        self._request = request
        self._answer = answer
        self._on_progress = on_progress
        self._seed = seed
        self._owner = owner  # the model must not be closed by the collector while this runs
        self._read = 0
        self._pieces: list[Piece] = []
        self._error: Exception | None = None
        scheduler.submit(request)

    @property
    def stats(self) -> Stats:
        """So far."""
        return self._request.stats

    @property
    def finished(self) -> bool:
        """The last piece has been taken, or an error."""
        return self._error is not None or bool(self._pieces and self._pieces[-1].finish_reason)

    def cancel(self) -> None:
        """Ends it: what has been written is delivered, then a piece with finish_reason "cancelled". From any thread."""
        self._request.cancel()
        self._answer.events.put(Piece("", [], None, CANCELLED))

    def close(self) -> None:
        if not self.finished:
            self.cancel()

    def result(self) -> Completion:
        """Waits for the end. Raises what the request failed with."""
        while self._take() is not None:
            pass
        pieces = self._pieces
        logprobs = [x for p in pieces for x in p.logprobs or []]
        reason = pieces[-1].finish_reason
        return Completion(
            text="".join(p.text for p in pieces),
            tokens=[t for p in pieces for t in p.tokens],
            finish_reason=reason,
            logprobs=logprobs if any(p.logprobs is not None for p in pieces) else None,
            stats=self.stats,
            stop=self._answer.stop if reason == "stop" else None,
            seed=self._seed,
        )

    def __next__(self) -> Piece:
        piece = self._take()
        if piece is None:
            raise StopIteration
        return piece

    def __iter__(self) -> Iterator[Piece]:
        try:
            while (piece := self._take()) is not None:
                yield piece
        finally:
            self.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self):
        self.close()

    def _take(self) -> Piece | None:
        if not self.finished:
            try:
                event = receive(self._answer.events, self._report)
                if isinstance(event, Piece):
                    if not self._pieces and self._on_progress is not None and event.finish_reason != CANCELLED:
                        self._on_progress(self.stats.prompt_tokens, self.stats.prompt_tokens)
                    self._pieces.append(event)
                    return event
            except BaseException:
                self.cancel()
                raise
            self._error = event
        if self._error is not None:
            raise self._error
        return None

    def _report(self) -> None:
        """Tells how far the prompt is read, until the first piece is there."""
        if not self._pieces and self._on_progress is not None:
            done, total = self._scheduler.reading(self._request)
            self._read = max(self._read, done)  # a new call may not have begun to count
            self._on_progress(self._read, total)


class Rows:
    """The sink of a request for `count` rows of logits."""

    def __init__(self, count: int):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.left = count

    def take(self, logits: np.ndarray) -> bool:
        self.left -= len(logits)
        self.events.put(logits)
        return self.left == 0

    def fail(self, error: Exception) -> None:
        self.events.put(error)


def logits(scheduler: Scheduler, tokens: Sequence[int], layout: Any, *, all: bool) -> np.ndarray:
    """(rows, vocab) after each token, or after the last. An exception while waiting cancels."""
    count = len(tokens) if all else 1
    sink = Rows(count)
    request = Request(tokens, layout, sink, rows="all" if all else "last")
    scheduler.submit(request)
    rows: list[np.ndarray] = []
    try:
        while sum(map(len, rows)) < count:
            event = receive(sink.events)
            if isinstance(event, Exception):
                raise event
            rows.append(event)
    except BaseException:
        request.cancel()
        raise
    return np.concatenate(rows)


def receive(events: queue.SimpleQueue, waiting: Callable[[], None] = lambda: None) -> Any:
    """The next result or exception of a request. Calls `waiting` ten times a second until it is there.

    A wait without an end could not be interrupted from the keyboard on Windows.
    """
    while True:
        try:
            return events.get(timeout=0.1)
        except queue.Empty:
            waiting()


def token_ids(name: str, ids: Any) -> list[int]:
    """A list of token ids out of whatever sequence of integers. Raises TypeError for others."""
    try:
        if isinstance(ids, bytes | str):
            raise TypeError
        return [operator.index(i) for i in ids]
    except TypeError:
        raise TypeError(f"{name} is {reprlib.repr(ids)}, expected token ids") from None


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}, expected at least {low}" + (f" and at most {high}" if high else ""))


def _number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r}, expected a number")
    if not (math.isfinite(value) and low <= value <= high):
        bounds = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
        raise ValueError(f"{name} is {value}, expected " + (" and ".join(bounds) or "a finite number"))
