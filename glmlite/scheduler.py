"""One engine thread that runs the requests of all threads together.

Each call of the engine takes a chunk of every prompt that is still being read and the next tokens of every answer
that is being written (continuous batching). A row's result depends on that row alone, so what runs beside a request,
how its prompt is cut into chunks, what it reuses and whether it had to start over never changes its tokens.

    submit -> queue -> active (at most `parallel`) -> done, its sequence kept for reuse

Memory: the cache is one pool of pages. A request is admitted when its prompt fits beside what the active ones still
have to read. When pages run short, kept sequences go first; then the youngest active request gives its pages back and
returns to the head of the queue, to be read again later. The oldest can always go on, because no request is longer
than the pool.

Reuse (`glmlite.sequences`): causal models only, because a bidirectional context depends on all of itself. A new request
takes over, or forks, the sequence with the longest common beginning, finished or active; its last token is always
computed again. Where an active one is still reading what both begin with, it waits for that, and lets others pass.

A cancel takes a request out of the queue at once. An active one leaves between two calls, and none waits long for that:
a call that only writes is short, and one that reads ends for a cancel of any active request. The others in it then
begin it again; so that they get on however often that happens, the call after such a one reads little and is not ended.

A request that is constrained (`glmlite.constrain`) writes one token a call, of those that its constraint allows; the
others in the call do so, too. Tokens that the constraint forces are not drawn: they enter together before the next one.
The constraint hears of a token when the call has ended well, so it is never ahead of the engine.

An engine that nobody used for long may give its memory back (`Idle`); the next request has it made again, and waits in
the queue meanwhile, so a cancel ends that wait, too.

A request whose prompt has images waits in the queue until a second thread has looked at them (`Sight`), and lets others
pass. What fails there fails that request only; what runs meanwhile shares the cores with it.

Only the engine thread touches the engine. Other threads append to the queue and set flags.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from .constrain import BURST, Constraint
from .errors import Busy, Cancelled, Closed
from .models.layout import IMAGE
from .sequences import Pool, Sequence, common, items_of

log = logging.getLogger(__name__)

PREFILL_ALONE = 256  # tokens of prompts in a call: large enough to share the unpacking of weights
PREFILL_GPU = 512  # on a GPU: a larger step keeps all of it busy
PREFILL_STREAMED = 1024  # with weights on a disk: each call reads what memory lacks of them
PREFILL_SHARED = 64  # when others wait for their next token meanwhile
PREFILL_LEAST = 16  # of one request, when several share the call
WORTH_WAITING = 64  # tokens of a beginning that another request is about to read: less is read twice
BURST_MS = 30.0  # how long a call may last that writes up to BURST tokens: what a new request waits at most
TOTALS = ("prompt_tokens", "reused_tokens", "generated_tokens", "preempted", "cancelled")
_ending: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # closed, and nobody has waited for their end
LEAST_TOKENS, LEAST_SECONDS = 4, 1e-3  # for a speed: less says more of the clock, and of what a call costs, than of it


@atexit.register
def _join_ending() -> None:
    """The interpreter must not end while a thread is in the engine: that aborts the process."""
    for thread in list(_ending):
        thread.join()


@dataclass
class Stats:
    """What a request cost. Seconds are wall time: the prompt's from admission to the first token, which comes out of
    reading it, the generation's from there to the last."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, not read because they were in the cache
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    image_seconds: float = 0.0  # before those: of the tower that looked at the prompt's images
    drafted_tokens: int = 0  # guesses that steps of writing took along
    accepted_tokens: int = 0  # of those, the ones that were written

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


class Sight(Protocol):
    """What makes the rows of a request's images. tokens: how many rows; work: how many tokens could be read meanwhile;
    seconds: that it took."""

    tokens: int
    work: int
    seconds: float

    def rows(self) -> np.ndarray:
        """Called once, on a thread of its own."""

    def progress(self) -> int:
        """How much of `work` is done; from any thread."""

    def cancel(self) -> None:
        """Ends `rows`, soon, with Cancelled; from any thread, takes no lock."""


class Eyes(Protocol):
    """What looks. Both wait for nobody who looks, or not long."""

    def unload(self) -> None: ...
    def close(self) -> None: ...


class SchedulerStatus(NamedTuple):
    """What a scheduler does at a moment, and totals of what it has done since it began."""

    running: int
    waiting: int  # in the queue
    kv_tokens: int  # room of the cache
    kv_tokens_free: int  # of it: in no sequence, after the last call of the engine
    kept: int  # finished sequences whose beginnings may serve again; they give way where room is short
    prompt_tokens: int  # total of tokens read, those of a preempted request again
    reused_tokens: int  # total of tokens of prompts that were not read because they were in the cache
    generated_tokens: int
    preempted: int
    cancelled: int


class Request:
    """One prompt on its way through the engine.

    tokens: the prompt. layout: its positions, see `glmlite.models`. sampler: native; None with `rows`.
    max_tokens: to write. rows: "last" or "all" for the logits of the prompt instead of an answer.
    constraint: of what is written.
    key, items: whose cached beginning may serve this one, see `glmlite.sequences`. Without items, one for each token,
    the tokens are their own.
    embeddings: (count, width) f32, rows for the tokens that are `IMAGE`, in their order; then there are items.
    sight: makes them, instead.
    """

    def __init__(
        self,
        tokens: Iterable[int],
        layout: Any,
        sink: Sink,
        *,
        sampler: Any = None,
        max_tokens: int = 0,
        rows: str = "",
        constraint: Constraint | None = None,
        key: Hashable = None,
        items: Iterable[int] | None = None,
        embeddings: np.ndarray | None = None,
        sight: Sight | None = None,
    ):
        self.tokens = list(tokens)  # grows by what is written
        self.items = items_of(self.tokens if items is None else items)  # so do they
        if len(self.items) != len(self.tokens):
            raise ValueError(f"request: {len(self.items)} items, expected one for each of {len(self.tokens)} tokens")
        self._places = np.flatnonzero(np.asarray(self.tokens, np.int64) == IMAGE)  # of the embeddings
        self._embeddings = embeddings
        self.sight = sight
        given = sight.tokens if sight is not None else 0 if embeddings is None else len(embeddings)
        if given != len(self._places):
            raise ValueError(f"request: {given} embeddings, expected one for each of {len(self._places)} tokens")
        if given and items is None:
            raise ValueError("request: embeddings without items, which tell their contents apart")
        self.key = key
        self.layout = layout
        self.sink = sink
        self.sampler = sampler
        self.max_tokens = max_tokens
        self.rows = rows
        self.constraint = constraint
        self.stats = Stats(prompt_tokens=len(self.tokens))
        self.cancelled = False
        self.spared = False  # the next call it is in is not ended by another's cancel, because one was
        self.interrupt: Any = None  # the flag of the native call that a cancel of this request should end
        self.sequence: Sequence | None = None
        self.started = 0.0
        self.rows_done = 0  # tokens whose logits, if wanted, were delivered
        self.reading = (0, 0)  # where in the prompt the call that runs began, and how many tokens it reads

    def cancel(self) -> None:
        """From any thread, at any time; takes no lock, so that a finalizer may call it."""
        self.cancelled = True
        if self.sight is not None:
            self.sight.cancel()
        if (interrupt := self.interrupt) is not None:
            interrupt.set()

    @property
    def sees(self) -> bool:
        """Whether the rows of its images are there, if it has any."""
        return self.sight is None or self._embeddings is not None

    def look(self) -> None:
        """Makes them. Raises what the sight raises."""
        assert self.sight is not None
        try:
            self._embeddings = self.sight.rows()
        finally:
            self.stats.image_seconds = self.sight.seconds

    @property
    def written(self) -> int:
        return len(self.tokens) - self.stats.prompt_tokens

    @property
    def pending(self) -> int:
        """Tokens not yet in the cache: the rest of the prompt, or the token just written."""
        return len(self.tokens) - self.cached

    @property
    def cached(self) -> int:
        """Tokens in the cache."""
        return 0 if self.sequence is None else len(self.sequence.items)

    @property
    def constrained(self) -> bool:
        """Its next token has to be drawn by itself."""
        return self.constraint is not None and self.constraint.active

    @property
    def reads(self) -> bool:
        """Its next call is for the prompt, or for the first token: written alone, it ends the time of reading."""
        return self.pending > 1 or not self.written

    def embeddings(self, begin: int, end: int) -> np.ndarray | None:
        """The rows of those of its tokens from begin to end that have some."""
        if self._embeddings is None:
            return None
        first, last = np.searchsorted(self._places, (begin, end))
        return None if first == last else self._embeddings[first:last]

    def position(self, index: int) -> tuple[int, ...]:
        """The position of the token at `index`, at or after the end of the prompt."""
        n = index - self.stats.prompt_tokens
        layout = self.layout
        return tuple(first + n * step for first, step in zip(layout.next_position, layout.position_step))


class Turn(NamedTuple):
    """What a request does in a call: enter `tokens`, then write up to `budget`."""

    request: Request
    tokens: int
    visible: int
    budget: int

    @property
    def growth(self) -> int:
        return self.tokens + max(self.budget - 1, 0)

    def work(self, native: Any) -> Any:
        r = self.request
        begin = r.cached
        end = begin + self.tokens
        positions = r.layout.positions[begin:end]
        if len(positions) < self.tokens:
            written = [r.position(i) for i in range(begin + len(positions), end)]
            positions = np.concatenate([positions, np.asarray(written, np.int32)]) if len(positions) else written
        return native.Work(
            r.sequence.handle,
            np.asarray(r.tokens[begin:end], np.int32),
            np.asarray(positions, np.int32),
            visible=self.visible,
            sampler=r.sampler if self.budget else None,
            budget=max(self.budget, 1),
            next_position=r.position(len(r.tokens)),
            position_step=tuple(map(int, r.layout.position_step)),
            embeddings=r.embeddings(begin, end),
        )


class Idle(NamedTuple):
    """When an engine that nobody uses is closed, and how it is made again.

    seconds: without a request. load(threads, check): an engine as the one before, which had so many threads; it calls
    `check` every 20 to 50 ms, and what that raises ends it.
    """

    seconds: float
    load: Callable[[int, Callable[[], object]], Any]


class _NobodyWaits(Exception):
    """Ends a load whose requests were all cancelled."""


class Scheduler:
    """Runs requests on `engine` until `close`, at most `parallel` of them at a time.

    native: the engine's module; chunk: tokens of prompts in a call that writes nothing; max_queue: how many requests
    more than `parallel` are taken, None: any number. idle: None: the engine stays. eyes: of the requests that have a
    sight; they go when the engine goes.
    """

    def __init__(
        self,
        native: Any,
        engine: Any,
        *,
        parallel: int,
        name: str = "model",
        chunk: int = PREFILL_ALONE,
        max_queue: int | None = None,
        idle: Idle | None = None,
        eyes: Eyes | None = None,
    ):
        self.native = native
        self.engine = engine
        self.parallel = parallel
        self.name = name
        self.chunk = chunk
        self.max_queue = max_queue
        self.pool = Pool(engine)
        # Held to change queue, active and totals, and to look at them together. Not entered as a condition, which is
        # made in Python: Ctrl-C between that and the block would leave it held for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Request] = deque()
        self._active: list[Request] = []  # in order of admission
        self._totals = dict.fromkeys(TOTALS, 0)
        self._kv_free = engine.kv_free()
        self._threads = 0  # of an engine that is to be made again
        self._idle = idle
        self._eyes = eyes
        self._looked_at: Request | None = None
        self._looker: threading.Thread | None = None  # begins with the first image
        self._used = 0.0  # when the engine was last needed
        self._loaded = True
        self._closing = False
        self._interrupt: Any = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._loop, name=f"glmlite {self.name}", daemon=True)
        self._thread.start()

    # ---- any thread ----

    def submit(self, request: Request) -> None:
        """Queues. Raises Closed, Busy where the queue is full, and RuntimeError where this process is a fork of the one
        that loaded the model."""
        self._not_forked()
        with self._lock:
            if self._closing:
                raise Closed(f"{self.name}: the model is closed")
            self._drop_cancelled()
            running = sum(not r.cancelled for r in self._active)
            waiting = len(self._queue)
            if self.max_queue is not None and running + waiting >= self.parallel + self.max_queue:
                raise Busy(
                    f"{self.name}: {running} requests run and {waiting} wait, expected at most "
                    f"{self.parallel} + {self.max_queue}; ask again later",
                    waiting,
                )
            self._queue.append(request)
            if request.sight is not None and self._looker is None:
                self._looker = threading.Thread(target=self._look_loop, name=f"glmlite {self.name} eyes", daemon=True)
                self._looker.start()
            self._changed.notify_all()

    @property
    def threads(self) -> int:
        """That a step has at most; 0 once closed. May be set, and counts from the next step on."""
        self._not_forked()
        with self._lock:
            if self._closing:
                return 0
            threads: int = self.engine.threads if self._loaded else self._threads
            return threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._not_forked()
        with self._lock:
            if self._closing:
                raise Closed(f"{self.name}: the model is closed")
            if self._loaded:
                self.engine.threads = threads
            else:
                self._threads = threads

    def place(self, request: Request) -> int:
        """Its place in the queue, 1 for the next one; 0: it is looked at, runs, or is done."""
        self._not_forked()
        with self._lock:
            self._drop_cancelled()
            waits = request in self._queue and request is not self._looked_at
            return self._queue.index(request) + 1 if waits else 0

    def status(self) -> SchedulerStatus:
        """Of one moment; does not wait for a call of the engine."""
        self._not_forked()
        with self._lock:
            self._drop_cancelled()
            return SchedulerStatus(
                running=len(self._active),
                waiting=len(self._queue),
                kv_tokens=self.engine.kv_tokens,
                kv_tokens_free=self._kv_free,
                kept=len(self.pool.kept),
                **self._totals,
            )

    def close(self) -> None:
        """Fails what runs or waits, frees the engine and ends the threads. May be called twice."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closing = True
            if self._interrupt is not None:
                self._interrupt.set()
            if self._looked_at is not None:
                self._looked_at.sight.cancel()  # type: ignore[union-attr]
            self._changed.notify_all()
        threads = [thread for thread in (self._looker, self._thread) if thread is not None]
        if threading.current_thread() in threads:  # a finalizer, or a callback
            _ending.update(threads)
            return
        for thread in threads:
            thread.join()

    @property
    def closed(self) -> bool:
        return self._closing

    @property
    def loaded(self) -> bool:
        """Whether the engine holds its memory."""
        return self._loaded and not self._closing

    def reading(self, request: Request) -> tuple[int, int]:
        """(tokens of the prompt that were read, of how many), within a call too. To look at images counts as so many
        tokens as could be read meanwhile."""
        begin, count = request.reading
        total = request.stats.prompt_tokens
        done = min(begin + int(count * self.engine.progress()), total)
        if (sight := request.sight) is None:
            return done, total
        return done + (sight.work if request.sees else sight.progress()), total + sight.work

    def check_wait(self) -> None:
        """Raises RuntimeError where nothing would come of waiting for the engine."""
        self._not_forked()
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"{self.name}: this would wait for the engine on the engine's own thread, for ever; "
                "let a callback only pass the word on to another thread"
            )

    def _not_forked(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{self.name}: loaded before this process was forked, and its engine thread stayed behind; "
                "load the model in the new process, or start processes with 'spawn'"
            )

    def _drop_cancelled(self) -> None:
        """From the queue; the lock is held."""
        if any(r.cancelled for r in self._queue):
            left = deque(r for r in self._queue if not r.cancelled)
            self._count("cancelled", len(self._queue) - len(left))
            self._queue = left
            self._changed.notify_all()

    def _count(self, what: str, more: int) -> None:
        with self._lock:
            self._totals[what] += more

    # ---- the thread that looks at images ----

    def _look_loop(self) -> None:
        while (request := self._next_look()) is not None:
            error: Exception | None = None
            try:
                request.look()
            except Exception as problem:
                error = problem
            with self._lock:
                self._looked_at = None
                self._drop_cancelled()
                failed = error is not None and not self._closing and request in self._queue
                if failed:
                    self._queue.remove(request)
                self._used = time.perf_counter()
                self._changed.notify_all()
            if failed and error is not None:
                request.sink.fail(error)

    def _next_look(self) -> Request | None:
        """The next request whose images nobody has seen; waits for one. None: to end."""
        with self._lock:
            while True:
                self._drop_cancelled()
                if self._closing:
                    return None
                # The rows of a page take 17 MB, so not all that wait get theirs.
                ready = sum(r.sight is not None and r.sees for r in self._queue)
                self._looked_at = next((r for r in self._queue if not r.sees), None)
                if self._looked_at is not None and ready < 2 * self.parallel:
                    return self._looked_at
                self._looked_at = None
                self._changed.wait()

    # ---- the engine thread ----

    def _loop(self) -> None:
        try:
            while self._wait():
                try:
                    if self._load():
                        self._round()
                        self._kv_free = self.engine.kv_free()
                except Exception as error:  # our own mistake: these requests fail, the thread and later ones go on
                    log.exception("%s: scheduler", self.name)
                    self._give_up(error)
        finally:
            self._closing = True
            self._give_up(Closed(f"{self.name}: the model was closed while this request ran or waited"))
            if self._loaded:
                self.engine.close()
            if self._eyes is not None:
                self._eyes.close()

    def _wait(self) -> bool:
        """For something to do; False: to close. Meanwhile an engine that is idle for long gives its memory back."""
        self._used = time.perf_counter()
        while True:
            with self._lock:
                if self._closing or self._active or any(r.sees for r in self._queue):
                    return not self._closing
                left = None if self._queue else self._seconds_left()
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
            self._unload()

    def _seconds_left(self) -> float | None:
        """Until an engine that nobody needs is closed; None: it stays, or is closed."""
        if self._idle is None or not self._loaded:
            return None
        return min(self._used + self._idle.seconds - time.perf_counter(), threading.TIMEOUT_MAX)

    def _unload(self) -> None:
        log.info("%s: idle, its memory is given back", self.name)
        with self._lock:
            self._threads = self.engine.threads
            self._loaded = False
        self.pool.kept.clear()  # they go with the cache
        self.engine.close()
        if self._eyes is not None:
            self._eyes.unload()
        self._kv_free = self.engine.kv_tokens

    def _load(self) -> bool:
        """Makes an engine again that was closed because it was idle. False: there is none, and whoever waited for it
        knows."""
        if self._loaded:
            return True
        assert self._idle is not None
        try:
            engine = self._idle.load(self._threads, self._check_waiting)
        except _NobodyWaits:
            return False
        except BaseException as error:  # also what a callback ends a program with: that ends the load, not this thread
            self._give_up(error if isinstance(error, Exception) else RuntimeError(f"{self.name}: load: {error!r}"))
            return False
        with self._lock:
            if engine.threads != self._threads:  # set meanwhile
                engine.threads = self._threads
            self.engine, self.pool = engine, Pool(engine)
            self._loaded = True
        return True

    def _check_waiting(self) -> None:
        with self._lock:
            self._drop_cancelled()
            if self._closing or not self._queue:
                raise _NobodyWaits

    def _give_up(self, error: Exception) -> None:
        """Fails every request and frees every sequence."""
        with self._lock:
            requests = [*self._active, *self._queue]
            self._active.clear()
            self._queue.clear()
            self._changed.notify_all()
            sequences = [*self.pool.kept, *(r.sequence for r in requests if r.sequence is not None)]
            self.pool.kept.clear()
        for request in requests:
            if request.sight is not None:
                request.sight.cancel()
            request.sink.fail(error)
        for sequence in sequences:
            with suppress(Exception):
                self.pool.free(sequence)

    def _round(self) -> None:
        for request in [r for r in self._active if r.cancelled]:
            self._release(request)
            self._count("cancelled", 1)
        self._admit()
        turns = self._plan()
        while not self.pool.make_room(sum(self._pages(p.request, p.growth) for p in turns)) and len(turns) > 1:
            self._preempt(self._active[-1])
            turns = self._plan()
        for turn in [p for p in turns if p.request.rows]:
            self._rows(turn)
            if turn.request.cancelled or turn.request.spared:
                return  # a cancel ended its call: plan anew, without the one who is cancelled
        turns = [p for p in turns if not p.request.rows and not p.request.cancelled and self._constrain(p)]
        if turns:
            alone = any(p.request.reads or p.request.constrained for p in turns)
            self._run(turns, 0.0 if alone else BURST_MS)

    def _admit(self) -> None:
        with self._lock:
            self._drop_cancelled()
            for request in list(islice((r for r in self._queue if r.sees), 2 * self.parallel)):
                if len(self._active) == self.parallel:
                    return
                if self._follows(request):
                    continue
                if not self._enters(request):
                    return
                self._queue.remove(request)
                self._active.append(request)
                self._changed.notify_all()

    def _follows(self, request: Request) -> bool:
        """Whether an active request has yet to read so much of this one's beginning that this one better waits."""
        like = [r for r in self._active if _causal(r) and r.key == request.key]
        if not (like and _reuses(request)):
            return False
        beginning = request.items[:-1]
        _, cached = self.pool.longest(beginning, request.key, self._running())
        return max(common(r.items, beginning) for r in like) - cached >= WORTH_WAITING

    def _running(self) -> list[Sequence]:
        """Sequences of active requests that others may fork."""
        return [r.sequence for r in self._active if _causal(r)]

    def _enters(self, request: Request) -> bool:
        """Gives the next request its sequence, if its prompt fits beside what the active ones have to read."""
        pool = self.pool
        if _reuses(request):
            sequence = pool.find(request.items[:-1], request.key, self._running())
        else:
            sequence = pool.new(request.key)
        owed = sum(self._pages(r, r.pending) for r in self._active)
        need = pool.pages(sequence, len(request.tokens) - len(sequence.items))
        if not pool.make_room(owed + need) and self._active:
            self._put_back(sequence, request)
            return False
        request.sequence = sequence
        if not request.started:
            request.started = time.perf_counter()
            request.stats.reused_tokens = len(sequence.items)
            self._count("reused_tokens", len(sequence.items))
        return True

    def _plan(self) -> list[Turn]:
        reading = sum(r.reads for r in self._active)
        chunk = PREFILL_SHARED if reading < len(self._active) else self.chunk
        share = max(PREFILL_LEAST, chunk // max(reading, 1))
        if any(r.spared for r in self._active):
            share = max(1, PREFILL_LEAST // max(reading, 1))
        burst = 1 if reading or any(r.constrained for r in self._active) else BURST
        return [_turn(r, share, burst) for r in self._active]

    def _constrain(self, turn: Turn) -> bool:
        """Tells the sampler what may be drawn in a turn. False: that cannot be said, and the request has failed."""
        request = turn.request
        if request.constraint is None or not turn.budget:
            return True
        try:
            request.sampler.allow(request.constraint.mask())
            request.sampler.forbid(list(request.constraint.forbidden))
        except Exception as error:
            self._fail(request, error)
            return False
        return True

    def _run(self, turns: list[Turn], max_ms: float) -> None:
        """One call. If it fails, each turn runs alone, so that only those that fail alone are given up."""
        try:
            interrupt = self._interruptible(turns)
            results = self.engine.run([p.work(self.native) for p in turns], max_ms=max_ms, cancel=interrupt)
        except Cancelled:
            self._ended(turns)
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

    def _advance(self, turn: Turn, samples: list[Any], now: float) -> None:
        request = turn.request
        written = [s.token for s in samples]
        self._enter(request, turn.tokens)
        request.tokens += written
        request.items.extend(written)
        request.sequence.items.extend(written[:-1])
        if not samples:
            return
        try:
            samples += self._forced(request, samples)
        except Exception as error:
            self._fail(request, error)
            return
        stats = request.stats
        if not stats.generated_tokens:
            stats.prompt_seconds = now - request.started
        stats.generated_tokens += len(samples)
        stats.drafted_tokens, stats.accepted_tokens = request.sampler.drafted
        self._count("generated_tokens", len(samples))
        stats.generation_seconds = now - request.started - stats.prompt_seconds
        self._deliver(request, samples)

    def _forced(self, request: Request, samples: list[Any]) -> list[Any]:
        """The tokens that the constraint puts after those that were drawn, as samples. None where log probabilities are
        wanted, which only a draw has."""
        if request.constraint is None:
            return []
        request.constraint.accept([s.token for s in samples])
        if not math.isnan(samples[-1].logprob):
            return []
        tokens = request.constraint.forced(request.max_tokens - request.written)
        request.sampler.take(tokens)
        request.tokens += tokens
        request.items.extend(tokens)
        return [self.native.Sample(token, math.nan, []) for token in tokens]

    def _rows(self, turn: Turn) -> None:
        """The next chunk of a request for logits."""
        request, begin = turn.request, turn.request.cached
        first = request.rows_done if request.rows == "all" else len(request.tokens) - 1
        rows = list(range(max(first - begin, 0), turn.tokens))
        try:
            interrupt = self._interruptible([turn])
            logits = self.engine.step([turn.work(self.native)], rows, interrupt)
        except Cancelled:
            self._ended([turn])
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
        sequence, begin = request.sequence, request.cached
        sequence.items.extend(request.items[begin : begin + count])
        sequence.shared = False
        request.reading = (request.cached, 0)
        request.spared = False
        if begin < request.stats.prompt_tokens:
            self._count("prompt_tokens", min(begin + count, request.stats.prompt_tokens) - begin)

    def _deliver(self, request: Request, result: Any) -> None:
        try:
            done = request.sink.take(result)
        except Exception as error:
            self._fail(request, error)
            return
        if done:
            self._release(request)

    def _interruptible(self, turns: list[Turn]) -> Any:
        """Begins a call: a new flag for it, which `close` sets, and a cancel where others do not lose much by it.

        A call that reads may take seconds: a cancel of any active request ends it, unless one in it is spared. A call
        that only writes is short: it ends for the sake of one request only if it is the only one.
        """
        self._interrupt = interrupt = self.native.Cancel()
        any_ends = any(p.tokens > 1 for p in turns) and not any(p.request.spared for p in turns)
        only = turns[0].request if len(turns) == 1 else None
        for r in self._active:
            r.interrupt = interrupt if any_ends or r is only else None
        for p in turns:
            p.request.reading = (p.request.cached, p.tokens)
        if self._closing or any(r.cancelled and r.interrupt is not None for r in self._active):
            interrupt.set()
        return interrupt

    def _ended(self, turns: list[Turn]) -> None:
        """A cancel ended their call: all is as before it."""
        for p in turns:
            p.request.reading = (p.request.cached, 0)
            p.request.spared = not p.request.cancelled

    # ---- sequences and pages ----

    def _release(self, request: Request) -> None:
        """The request is done with its sequence, which is kept if that can help a later one."""
        with self._lock:
            if request in self._active:
                self._active.remove(request)
                self._put_back(request.sequence, request)

    def _put_back(self, sequence: Sequence, request: Request) -> None:
        if _causal(request):
            self.pool.keep(sequence)
        else:
            self.pool.free(sequence)

    def _fail(self, request: Request, error: Exception) -> None:
        with self._lock:
            self._active.remove(request)
            self.pool.free(request.sequence)
        request.sink.fail(error)

    def _preempt(self, request: Request) -> None:
        with self._lock:
            self._active.remove(request)
            self.pool.free(request.sequence)
            request.sequence = None
            self._queue.appendleft(request)
        self._count("preempted", 1)

    def _pages(self, request: Request, count: int) -> int:
        """Pages, at most, that `count` more tokens of an active request take."""
        return self.pool.pages(request.sequence, count)


def _turn(request: Request, share: int, burst: int) -> Turn:
    """The next tokens of a request: a bidirectional context whole, otherwise at most `share`."""
    whole = 0 if request.cached else request.layout.context
    count = whole or min(request.pending, share)
    budget = min(burst, request.max_tokens - request.written) if count == request.pending else 0
    return Turn(request, count, whole, budget)


def _causal(request: Request) -> bool:
    return not request.layout.context


def _reuses(request: Request) -> bool:
    """Whether what is in the cache may serve it: logits of every token have to be computed."""
    return _causal(request) and request.rows != "all"
