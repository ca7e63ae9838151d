"""One engine thread that runs the requests of all threads together.

Each call of the engine takes a chunk of every prompt that is still being read and the next tokens of every answer
that is being written (continuous batching). A row's result depends on that row alone, so what runs beside a request,
how its prompt is cut into chunks, what it reuses and whether it had to start over never changes its tokens.

    submit -> queue -> active (at most `parallel`) -> done, its sequence kept for reuse

Memory: the cache is one pool of pages. A request is admitted when its prompt fits beside what the active ones still
have to read. When pages run short, kept sequences go first, the least recently used first; then the youngest active
request gives its pages back and returns to the head of the queue, to be read again later. The oldest can always go
on, because no request is longer than the pool.

Reuse: causal models only (a bidirectional context depends on all of itself). A new request takes over, or forks, the
sequence with the longest common beginning, finished or active; its last token is always computed again.

Only the engine thread touches the engine. Other threads append to the queue and set flags.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

import numpy as np

from .errors import Cancelled, Closed

log = logging.getLogger(__name__)

PREFILL_ALONE = 256  # tokens of prompts in a call: large enough to share the unpacking of weights
PREFILL_GPU = 512  # on a GPU: a larger step keeps all of it busy
PREFILL_SHARED = 64  # when others wait for their next token meanwhile
PREFILL_LEAST = 16  # of one request, when several share the call
BURST = 16  # tokens a request may write in a call
BURST_MS = 30.0  # and how long such a call may last: what a new request waits at most
KEPT = 16  # finished sequences kept for reuse
LEAST_TOKENS, LEAST_SECONDS = 4, 1e-3  # for a speed: less says more of the clock, and of what a call costs, than of it


@dataclass
class Stats:
    """What a request cost. Seconds are wall time: the prompt's from admission to the first token, which comes out of
    reading it, the generation's from there to the last."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, not read because they were in the cache
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0

    @property
    def prompt_rate(self) -> float | None:
        """Tokens of the prompt read in a second, those in the cache not counted; None if too little to say."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prompt_seconds)

    @property
    def generation_rate(self) -> float | None:
        """Tokens written in a second after the first; None if too little to say."""
        return _rate(self.generated_tokens - 1, self.generation_seconds)


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens >= LEAST_TOKENS and seconds >= LEAST_SECONDS else None


class Sink(Protocol):
    """Where the results of a request go. Called on the engine thread: must be quick and must not wait."""

    def take(self, result: Any) -> bool:
        """Samples, or an array of logits. True: the request is done."""

    def fail(self, error: Exception) -> None: ...


class Sequence:
    """A sequence of the engine and the tokens that its cache holds."""

    def __init__(self, handle: int, tokens: list[int], shared: bool = False):
        self.handle = handle
        self.tokens = tokens
        self.shared = shared  # its last page may be another's too, and is copied before it is written


class Request:
    """One prompt on its way through the engine.

    tokens: the prompt. layout: its positions, see `glmlite.models`. sampler: native; None with `rows`.
    max_tokens: to write. rows: "last" or "all" for the logits of the prompt instead of an answer.
    """

    def __init__(self, tokens, layout, sink: Sink, *, sampler=None, max_tokens: int = 0, rows: str = ""):
        self.tokens = list(tokens)  # grows by what is written
        self.layout = layout
        self.sink = sink
        self.sampler = sampler
        self.max_tokens = max_tokens
        self.rows = rows
        self.stats = Stats(prompt_tokens=len(self.tokens))
        self.cancelled = False
        self.interrupt = None  # the flag of the native call that a cancel of this request should end
        self.sequence: Sequence | None = None
        self.started = 0.0
        self.rows_done = 0  # tokens whose logits, if wanted, were delivered
        self.reading = (0, 0)  # where in the prompt the call that runs began, and how many tokens it reads

    def cancel(self) -> None:
        """From any thread, at any time; takes no lock, so that a finalizer may call it."""
        self.cancelled = True
        if (interrupt := self.interrupt) is not None:
            interrupt.set()

    @property
    def written(self) -> int:
        return len(self.tokens) - self.stats.prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens not yet in the cache: the rest of the prompt, or the token just written."""
        return len(self.tokens) - len(self.sequence.tokens)

    @property
    def reads(self) -> bool:
        """Its next call is for the prompt, or for the first token: written alone, it ends the time of reading."""
        return self.pending > 1 or not self.written

    def position(self, index: int) -> tuple[int, int]:
        """The position of the token at `index`, at or after the end of the prompt."""
        n = index - self.stats.prompt_tokens
        (a, b), (da, db) = self.layout.next_position, self.layout.position_step
        return a + n * da, b + n * db


class Turn(NamedTuple):
    """What a request does in a call: enter `tokens`, then write up to `budget`."""

    request: Request
    tokens: int
    visible: int
    budget: int

    @property
    def growth(self) -> int:
        return self.tokens + max(self.budget - 1, 0)

    def work(self, native):
        r = self.request
        begin = len(r.sequence.tokens)
        end = begin + self.tokens
        positions = [*map(tuple, r.layout.positions[begin:end])]
        positions += [r.position(i) for i in range(begin + len(positions), end)]
        return native.Work(
            r.sequence.handle,
            np.asarray(r.tokens[begin:end], np.int32),
            np.asarray(positions, np.int32).reshape(-1, 2),
            visible=self.visible,
            sampler=r.sampler if self.budget else None,
            budget=max(self.budget, 1),
            next_position=r.position(len(r.tokens)),
            position_step=tuple(map(int, r.layout.position_step)),
        )


class Scheduler:
    """Runs requests on `engine` until `close`, at most `parallel` of them at a time.

    native: the engine's module; chunk: tokens of prompts in a call that writes nothing.
    """

    def __init__(self, native: Any, engine: Any, *, parallel: int, name: str = "model", chunk: int = PREFILL_ALONE):
        self.native = native
        self.engine = engine
        self.parallel = parallel
        self.name = name
        self.chunk = chunk
        self._queue: deque[Request] = deque()
        self._active: list[Request] = []  # in order of admission
        self._kept: list[Sequence] = []  # least recently used first
        self._changed = threading.Condition()
        self._closing = False
        self._interrupt = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._loop, name=f"glmlite {self.name}", daemon=True)
        self._thread.start()

    # ---- any thread ----

    def submit(self, request: Request) -> None:
        """Queues. Raises Closed, and RuntimeError where this process is a fork of the one that loaded the model."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{self.name}: loaded before this process was forked, and its engine thread stayed behind; "
                "load the model in the new process, or start processes with 'spawn'"
            )
        with self._changed:
            if self._closing:
                raise Closed(f"{self.name}: the model is closed")
            self._queue.append(request)
            self._changed.notify()

    def close(self) -> None:
        """Fails what runs or waits, frees the engine and ends the thread. May be called twice."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._closing = True
            if self._interrupt is not None:
                self._interrupt.set()
            self._changed.notify()
        if threading.current_thread() is not self._thread:  # a finalizer may run there
            self._thread.join()

    @property
    def closed(self) -> bool:
        return self._closing

    def reading(self, request: Request) -> tuple[int, int]:
        """(tokens of the prompt that were read, of how many), within a call too."""
        begin, count = request.reading
        total = request.stats.prompt_tokens
        return min(begin + int(count * self.engine.progress()), total), total

    # ---- the engine thread ----

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._queue or self._active):
                    self._changed.wait()
            if self._closing:
                break
            try:
                self._round()
            except Exception as error:  # our own mistake: these requests fail, the thread and later ones go on
                log.exception("%s: scheduler", self.name)
                self._give_up(error)
        self._give_up(Closed(f"{self.name}: the model was closed while this request ran or waited"))
        self.engine.close()

    def _give_up(self, error: Exception) -> None:
        """Fails every request and frees every sequence."""
        with self._changed:
            requests = [*self._active, *self._queue]
            self._active.clear()
            self._queue.clear()
        for request in requests:
            request.sink.fail(error)
        sequences = [*self._kept, *(r.sequence for r in requests if r.sequence is not None)]
        self._kept.clear()
        for sequence in sequences:
            with suppress(Exception):
                self.engine.free(sequence.handle)

    def _round(self) -> None:
        for request in [r for r in self._active if r.cancelled]:
            self._release(request)
        self._admit()
        turns = self._plan()
        while not self._make_room(sum(self._pages(p.request.sequence, p.growth) for p in turns)) and len(turns) > 1:
            self._preempt(self._active[-1])
            turns = self._plan()
        for turn in [p for p in turns if p.request.rows]:
            self._rows(turn)
        turns = [p for p in turns if not p.request.rows]
        if turns:
            self._run(turns, 0.0 if any(p.request.reads for p in turns) else BURST_MS)

    def _admit(self) -> None:
        while self._queue and len(self._active) < self.parallel:
            request = self._queue[0]
            if request.cancelled:
                self._queue.popleft()
                continue
            sequence = self._find(request)
            owed = sum(self._pages(r.sequence, r.pending) for r in self._active)
            need = self._pages(sequence, len(request.tokens) - len(sequence.tokens))
            if not self._make_room(owed + need) and self._active:
                self._keep(sequence, request)
                return
            self._queue.popleft()
            request.sequence = sequence
            if not request.started:
                request.started = time.perf_counter()
                request.stats.reused_tokens = len(sequence.tokens)
            self._active.append(request)

    def _find(self, request: Request) -> Sequence:
        """A sequence that holds as much of the request's beginning as any does, or a new one."""
        best, common = None, 0
        if _causal(request) and request.rows != "all":
            for sequence in [*self._kept, *(r.sequence for r in self._active if _causal(r))]:
                n = _common(sequence.tokens, request.tokens[:-1])
                if n > common:
                    best, common = sequence, n
        if best is None:
            return Sequence(self.engine.new_sequence(), [], shared=self.engine.prefix > 0)
        kept = best in self._kept
        if kept:
            self._kept.remove(best)
            if common == len(best.tokens):
                return best
            self._kept.append(best)
        best.shared = True
        return Sequence(self.engine.fork(best.handle, common), best.tokens[:common], shared=True)

    def _plan(self) -> list[Turn]:
        reading = sum(r.reads for r in self._active)
        chunk = PREFILL_SHARED if reading < len(self._active) else self.chunk
        share = max(PREFILL_LEAST, chunk // max(reading, 1))
        return [_turn(r, share, 1 if reading else BURST) for r in self._active]

    def _run(self, turns: list[Turn], max_ms: float) -> None:
        """One call. If it fails, each turn runs alone, so that only those that fail alone are given up."""
        try:
            interrupt = self._interruptible(turns)
            results = self.engine.run([p.work(self.native) for p in turns], max_ms=max_ms, cancel=interrupt)
        except Cancelled:
            return
        except Exception as error:
            if len(turns) == 1:
                self._fail(turns[0].request, error)
                return
            for turn in turns:
                self._run([turn], 0.0)
            return
        now = time.perf_counter()
        for turn, samples in zip(turns, results):
            self._advance(turn, samples, now)

    def _advance(self, turn: Turn, samples: list, now: float) -> None:
        request = turn.request
        written = [s.token for s in samples]
        self._enter(request, turn.tokens)
        request.tokens += written
        request.sequence.tokens += written[:-1]
        if not samples:
            return
        stats = request.stats
        if not stats.generated_tokens:
            stats.prompt_seconds = now - request.started
        stats.generated_tokens += len(samples)
        stats.generation_seconds = now - request.started - stats.prompt_seconds
        self._deliver(request, samples)

    def _rows(self, turn: Turn) -> None:
        """The next chunk of a request for logits."""
        request, begin = turn.request, len(turn.request.sequence.tokens)
        first = request.rows_done if request.rows == "all" else len(request.tokens) - 1
        rows = list(range(max(first - begin, 0), turn.tokens))
        try:
            interrupt = self._interruptible([turn])
            logits = self.engine.step([turn.work(self.native)], rows, interrupt)
        except Cancelled:
            return
        except Exception as error:
            self._fail(request, error)
            return
        self._enter(request, turn.tokens)
        request.rows_done = max(request.rows_done, begin + turn.tokens)
        if rows:
            self._deliver(request, logits)

    def _enter(self, request: Request, count: int) -> None:
        """Notes that the next `count` tokens are in the cache."""
        sequence = request.sequence
        begin = len(sequence.tokens)
        sequence.tokens += request.tokens[begin : begin + count]
        sequence.shared = False
        request.reading = (len(sequence.tokens), 0)

    def _deliver(self, request: Request, result: Any) -> None:
        try:
            done = request.sink.take(result)
        except Exception as error:
            self._fail(request, error)
            return
        if done:
            self._release(request)

    def _interruptible(self, turns: list[Turn]):
        """Begins a call: a new flag for it, which `close` sets, and a cancel where others do not lose much by it.

        A call that reads a prompt may take seconds: a cancel of that request ends it. A call that only writes is
        short: it ends for the sake of one request only if it is the only one.
        """
        self._interrupt = interrupt = self.native.Cancel()
        for p in turns:
            p.request.interrupt = interrupt if p.tokens > 1 or len(turns) == 1 else None
            p.request.reading = (len(p.request.sequence.tokens), p.tokens)
        if self._closing or any(p.request.cancelled and p.request.interrupt for p in turns):
            interrupt.set()
        return interrupt

    # ---- sequences and pages ----

    def _release(self, request: Request) -> None:
        """The request is done with its sequence, which is kept if that can help a later one."""
        if request in self._active:
            self._active.remove(request)
            self._keep(request.sequence, request)

    def _keep(self, sequence: Sequence, request: Request) -> None:
        if not (_causal(request) and sequence.tokens):
            self.engine.free(sequence.handle)
            return
        self._kept.append(sequence)
        if len(self._kept) > KEPT:
            self.engine.free(self._kept.pop(0).handle)

    def _fail(self, request: Request, error: Exception) -> None:
        self._active.remove(request)
        self.engine.free(request.sequence.handle)
        request.sink.fail(error)

    def _preempt(self, request: Request) -> None:
        self._active.remove(request)
        self.engine.free(request.sequence.handle)
        request.sequence = None
        self._queue.appendleft(request)

    def _make_room(self, pages: int) -> bool:
        """Frees kept sequences until so many pages are free."""
        while self.engine.kv_free() // self.engine.page_tokens < pages:
            if not self._kept:
                return False
            self.engine.free(self._kept.pop(0).handle)
        return True

    def _pages(self, sequence: Sequence, count: int) -> int:
        """Pages, at most, that `count` more tokens take."""
        page, length = self.engine.page_tokens, len(sequence.tokens) + self.engine.prefix
        have = length // page if sequence.shared else -(-length // page)
        return -(-(length + count) // page) - have


def _turn(request: Request, share: int, burst: int) -> Turn:
    """The next tokens of a request: a bidirectional context whole, otherwise at most `share`."""
    whole = 0 if request.sequence.tokens else request.layout.context
    count = whole or min(request.pending, share)
    budget = min(burst, request.max_tokens - request.written) if count == request.pending else 0
    return Turn(request, count, whole, budget)


def _causal(request: Request) -> bool:
    return not request.layout.context


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
