"""What the scheduler asks of its engine: who runs, who waits, who gives its pages back, what a cancel ends.

The engine here computes nothing. It keeps pages as the real one does, writes down what it is asked, and stops before a
call until the test says so.
"""

import math
import pickle
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from twin_engine import Sample

import glmlite
from glmlite.errors import Cancelled
from glmlite.models.layout import Layout, causal
from glmlite.scheduler import (
    BURST,
    BURST_MS,
    PREFILL_ALONE,
    PREFILL_LEAST,
    PREFILL_SHARED,
    WORTH_WAITING,
    Request,
    Scheduler,
    Stats,
)
from glmlite.sequences import KEPT

PAGE = 64


class Flag:
    def __init__(self):
        self.is_set = False

    def set(self):
        self.is_set = True


class Work:
    def __init__(self, sequence, tokens, positions, *, visible=0, sampler=None, budget=1, **rest):
        self.sequence, self.tokens, self.visible = sequence, tokens.tolist(), visible
        self.budget = budget if sampler is not None else 0
        assert len(positions) == len(tokens)


class Engine:
    """calls: a list of [(sequence, tokens entered, tokens that may be written), ...]; events: what happened to
    sequences, in order."""

    page_tokens = PAGE
    prefix = 0
    Cancel, Work, Sample = Flag, Work, Sample

    def __init__(self, pages):
        self.pages, self.sequences, self.next = pages, {}, 0
        self.kv_tokens = pages * PAGE
        self.calls, self.limits, self.events, self.flags = [], [], [], []
        self.go, self.waits = threading.Event(), threading.Event()
        self.stepping = False
        self.bad = lambda works: False
        self.done, self.logprob = 0.0, math.nan

    def _used(self):
        return len({page for pages in self.sequences.values() for page in pages["pages"]})

    def kv_free(self):
        return (self.pages - self._used()) * PAGE

    def new_sequence(self):
        self.next += 1
        self.sequences[self.next] = {"tokens": [], "pages": []}
        self.events.append(("new", self.next))
        return self.next

    def fork(self, sequence, length):
        self.next += 1
        old = self.sequences[sequence]
        self.sequences[self.next] = {"tokens": old["tokens"][:length], "pages": old["pages"][: -(-length // PAGE)]}
        self.events.append(("fork", sequence, length, self.next))
        return self.next

    def free(self, sequence):
        del self.sequences[sequence]
        self.events.append(("free", sequence))

    def close(self):
        self.events.append(("close",))

    def progress(self):
        return self.done

    def _enter(self, sequence, tokens):
        s = self.sequences[sequence]
        begin = len(s["tokens"])
        s["tokens"] += tokens
        for index in range(begin // PAGE, -(-len(s["tokens"]) // PAGE)):
            shared = (
                index < len(s["pages"]) and sum(s["pages"][index] in o["pages"] for o in self.sequences.values()) > 1
            )
            if index >= len(s["pages"]) or shared:
                s["pages"][index : index + 1] = [object()]
        assert self._used() <= self.pages, "the cache is full: the scheduler has to see to that"

    def _pause(self, cancel):
        self.flags.append(cancel)
        if self.stepping:
            self.waits.set()
            assert self.go.wait(10)
            self.go.clear()
        if cancel.is_set:
            raise Cancelled("cancelled")

    def run(self, works, *, max_ms, cancel):
        self.calls.append([(w.sequence, len(w.tokens), w.budget) for w in works])
        self.limits.append(max_ms)
        self._pause(cancel)
        if self.bad(works):
            raise RuntimeError("not finite")
        for w in works:
            self._enter(w.sequence, [*w.tokens, *[1] * max(w.budget - 1, 0)])
        return [[Sample(1, self.logprob, [])] * w.budget for w in works]

    def step(self, works, rows, cancel):
        (w,) = works
        self.calls.append([(w.sequence, len(w.tokens), 0)])
        self._pause(cancel)
        self._enter(w.sequence, w.tokens)
        return [0.0] * len(rows)


class Sink:
    def __init__(self, count):
        self.left, self.error, self.ended = count, None, threading.Event()

    def take(self, result):
        self.left -= len(result)
        if self.left <= 0:
            self.ended.set()
        return self.left <= 0

    def fail(self, error):
        self.error = error
        self.ended.set()


class Told:
    """A sampler that remembers what it is told. masks: of the draws."""

    drafted = (0, 0)

    def __init__(self):
        self.masks, self.forbidden, self.taken = [], [], []

    def allow(self, mask):
        self.masks.append(mask)

    def forbid(self, tokens):
        self.forbidden.append(tokens)

    def take(self, tokens):
        self.taken += tokens


class Rule:
    """A constraint that begins after so many tokens. forces: what it has to add after each token that is drawn."""

    stops = ()

    def __init__(self, after=0, forces=()):
        self.after, self.forces, self.accepted, self.error = after, list(forces), [], None

    @property
    def active(self):
        return len(self.accepted) >= self.after

    @property
    def forbidden(self):
        return () if self.active else (9,)

    def mask(self):
        if self.error is not None:
            raise self.error
        return len(self.accepted) if self.active else None

    def accept(self, tokens):
        self.accepted += tokens

    def forced(self, most):
        found, self.forces = self.forces[:1], self.forces[1:]
        tokens = list(found[0][:most]) if found else []
        self.accepted += tokens
        return tokens


class Board:
    """A scheduler on a recording engine, its calls made one at a time."""

    def __init__(self, pages=100, parallel=4, max_queue=None):
        self.engine = Engine(pages)
        self.engine.stepping = True
        self.scheduler = Scheduler(self.engine, self.engine, parallel=parallel, max_queue=max_queue)

    def ask(self, tokens, write=1, context=0, rows="", **more):
        """A request for `write` tokens after `tokens`, a number of them or a list; more: its key, items, constraint."""
        ids = list(range(1000, 1000 + tokens)) if isinstance(tokens, int) else tokens
        layout = causal(ids, None)
        if context:
            layout = Layout(layout.positions, context, layout.next_position, layout.position_step)
        sink = Sink(write if not rows else (len(ids) if rows == "all" else 1))
        request = Request(ids, layout, sink, sampler=None if rows else Told(), max_tokens=write, rows=rows, **more)
        self.scheduler.submit(request)
        return request

    def wait(self):
        """Until the engine is asked for something; what it is asked."""
        assert self.engine.waits.wait(10)
        self.engine.waits.clear()
        return self.engine.calls[-1]

    def step(self):
        """Lets the engine do what it was asked; the next that it is asked."""
        self.engine.go.set()
        return self.wait()

    def finish(self, *requests):
        """Lets the engine run until the requests have ended."""
        self.engine.stepping = False
        self.engine.go.set()
        for request in requests:
            assert request.sink.ended.wait(10)
        deadline = time.monotonic() + 10
        while self.scheduler._active or self.scheduler._queue:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        self.engine.go.clear()
        self.engine.waits.clear()
        self.engine.stepping = True


@pytest.fixture
def board():
    boards = []

    def make(**options):
        boards.append(Board(**options))
        return boards[-1]

    yield make
    for b in boards:
        b.engine.stepping = False
        b.engine.go.set()
        b.scheduler.close()


def different(n, start):
    """A prompt that shares no beginning with others."""
    return list(range(start * 10_000, start * 10_000 + n))


# ---- who runs, in which order


def test_at_most_parallel_run_and_the_others_follow_in_order(board):
    b = board(parallel=2)
    first = b.ask(different(10, 1), write=40)
    b.wait()
    others = [b.ask(different(10, i), write=40) for i in (2, 3, 4)]
    together = b.step()
    assert len(together) == 2
    assert len(b.scheduler._queue) == 2
    order = []
    while any(not r.sink.ended.is_set() for r in (first, *others)):
        order += [r for r in (first, *others) if r.sequence is not None and r not in order]
        assert len(b.engine.calls[-1]) <= 2
        b.engine.go.set()
        b.engine.waits.wait(0.05)
        b.engine.waits.clear()
    assert order == [first, *others]


def test_one_at_a_time(board):
    b = board(parallel=1)
    requests = [b.ask(different(10, i), write=3) for i in range(3)]
    b.wait()
    b.finish(*requests)
    assert {len(call) for call in b.engine.calls} == {1}
    ran = [call[0][0] for call in b.engine.calls]
    assert ran == sorted(ran)


def test_a_prompt_is_read_in_chunks_and_written_in_bursts(board):
    b = board()
    request = b.ask(PREFILL_ALONE + 50, write=40)
    calls = [b.wait()]
    while not request.sink.ended.is_set() and len(calls) < 6:
        calls.append(b.step())
        if sum(c[0][2] for c in calls) >= 40:
            break
    # The first token alone, so that the time of reading ends with it.
    assert [c[0][1:] for c in calls] == [(PREFILL_ALONE, 0), (50, 1), (1, BURST), (1, BURST), (1, 40 - 1 - 2 * BURST)]
    assert b.engine.limits[:5] == [0.0, 0.0, BURST_MS, BURST_MS, BURST_MS]


def test_a_first_token_waits_for_no_burst_of_the_others(board):
    """A prompt of which all but one token is kept is read, too: the call is as short as for any other prompt."""
    b = board()
    kept = b.ask(different(10, 1), write=1)
    b.wait()
    b.finish(kept)
    writer = b.ask(different(10, 2), write=100)
    b.wait()
    b.step()
    again = b.ask(different(10, 1), write=100)
    assert [w[1:] for w in b.step()] == [(1, 1), (1, 1)]
    assert again.stats.reused_tokens == 9
    assert b.engine.limits[-1] == 0.0
    assert [w[1:] for w in b.step()] == [(1, BURST), (1, BURST)]
    assert b.engine.limits[-1] == BURST_MS
    b.finish(writer, again)


def test_a_chunk_is_shared_and_is_small_while_others_write(board):
    b = board()
    first = b.ask(different(1000, 1), write=1)
    b.wait()
    second = b.ask(different(1000, 2), write=1)
    assert [w[1] for w in b.step()] == [PREFILL_ALONE // 2] * 2
    b.finish(first, second)
    writer = b.ask(different(10, 3), write=100)
    b.wait()
    b.step()
    reader = b.ask(different(1000, 4), write=1)
    call = b.step()
    assert [w[1:] for w in call] == [(1, 1), (PREFILL_SHARED, 0)]
    b.finish(writer, reader)


def test_many_readers_get_at_least_a_share(board):
    b = board(parallel=20, pages=1000)
    first = b.ask(different(500, 1), write=50)
    b.wait()
    others = [b.ask(different(500, i), write=1) for i in range(2, 22)]
    assert {w[1] for w in b.step()} == {PREFILL_LEAST}
    b.finish(first, *others)


# ---- the cache


def test_a_finished_sequence_is_taken_over_where_all_of_it_is_the_beginning(board):
    b = board()
    first = b.ask([1, 2, 3], write=1)
    b.wait()
    b.finish(first)
    b.engine.events.clear()
    second = b.ask([1, 2, 3, 9, 9], write=1)
    (call,) = [b.wait()]
    b.finish(second)
    assert call == [(1, 2, 1)]
    assert second.stats.reused_tokens == 3
    assert b.engine.events == []


def test_a_longer_one_is_forked_and_stays(board):
    b = board()
    first = b.ask([1, 2, 3, 4, 5], write=1)
    b.wait()
    b.finish(first)
    second = b.ask([1, 2, 3, 7], write=1)
    assert b.wait() == [(2, 1, 1)]
    assert ("fork", 1, 3, 2) in b.engine.events
    assert second.stats.reused_tokens == 3
    b.finish(second)
    assert len(b.scheduler.pool.kept) == 2


def test_the_longest_common_beginning_is_reused_of_a_running_one_too(board):
    b = board()
    short = b.ask([1, 2, 3], write=1)
    b.wait()
    b.finish(short)
    running = b.ask([1, 2, 3, 4, 5, 6], write=50)
    b.wait()
    b.step()
    like = b.ask([1, 2, 3, 4, 5, 9], write=1)
    b.step()
    assert like.stats.reused_tokens == 5
    b.finish(running, like)


def test_the_longest_common_beginning_is_reused_whichever_is_the_latest(board):
    b = board()
    for tokens in ([1, 2, 3, 4, 5, 6], [1, 2, 9]):
        request = b.ask(tokens, write=1)
        b.wait()
        b.finish(request)
    like = b.ask([1, 2, 3, 4, 5, 9], write=1)
    b.wait()
    assert like.stats.reused_tokens == 5
    b.finish(like)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_running_bidirectional_context_is_nobody_s_beginning(board, calls):
    b = board(pages=40)
    running = b.ask(600, write=50, context=500)
    b.wait()
    if calls == 2:
        b.step()
    like = b.ask(600, write=1)
    b.step()
    assert like.sequence is not None
    assert like.stats.reused_tokens == 0
    b.finish(running, like)


def test_the_last_token_is_always_computed_again(board):
    b = board()
    for _ in range(2):
        request = b.ask([1, 2, 3], write=1)
        call = b.wait()
        b.finish(request)
    assert call[0][1] == 1
    assert request.stats.reused_tokens == 2


@pytest.mark.parametrize("where", ["kept", "running"])
@pytest.mark.parametrize(("key", "reused"), [(None, 5), ("adapter", 0)])
def test_a_beginning_serves_only_requests_of_its_key(board, where, key, reused):
    b = board()
    first = b.ask([1, 2, 3, 4, 5], write=50)
    b.wait()
    if where == "kept":
        b.finish(first)
    else:
        b.step()
    second = b.ask([1, 2, 3, 4, 5, 6], key=key)
    b.wait() if where == "kept" else b.step()
    assert second.stats.reused_tokens == reused
    b.finish(first, second)
    third = b.ask([1, 2, 3, 4, 5, 6, 7], key=key)
    b.wait()
    assert third.stats.reused_tokens == 6  # of the second, whatever the key
    b.finish(third)


def test_a_fork_is_of_its_key_too(board):
    b = board()
    for tokens, key, reused in (([1, 2, 3, 4], "a", 0), ([1, 2, 9, 9], "a", 2), ([1, 2, 9, 9, 9], None, 0)):
        request = b.ask(tokens, key=key)
        b.wait()
        assert request.stats.reused_tokens == reused
        b.finish(request)


def test_equal_ids_of_another_content_are_another_beginning(board):
    """Two images behind one id: the beginning is common up to the first of their items."""
    b = board()
    pad, cat, dog = 7, [-11, -12, -13], [-11, -22, -23]
    for image, more, reused in ((cat, [3], 0), (dog, [3], 3), (cat, [3, 1, 4], 7), (dog, [3, 1, 4], 7)):
        ids = [1, 2, pad, pad, pad, *more]
        request = b.ask(ids, write=2, items=[1, 2, *image, *more])
        b.wait()
        assert request.stats.reused_tokens == reused, image
        b.finish(request)
    with pytest.raises(ValueError, match="2 items, expected one for each of 3"):
        b.ask([1, 2, 3], items=[1, 2])


def test_what_was_written_is_part_of_the_beginning(board):
    b = board()
    first = b.ask([5, 6, 7], write=4, items=[5, -1, 7])
    b.wait()
    b.finish(first)
    again = b.ask([5, 6, 7, 1, 1, 1, 9], items=[5, -1, 7, 1, 1, 1, 9])
    b.wait()
    assert again.stats.reused_tokens == 6
    b.finish(again)


def test_a_bidirectional_context_is_read_whole_and_never_reused(board):
    b = board(pages=20)
    for _ in range(2):
        request = b.ask(600, write=1, context=500)
        assert b.wait()[0][1] == 500
        b.finish(request)
    assert request.stats.reused_tokens == 0
    assert b.scheduler.pool.kept == []
    assert b.engine.sequences == {}


def test_logits_of_every_token_reuse_nothing_and_of_the_last_one_do(board):
    b = board()
    for rows, reused in (("all", 0), ("all", 0), ("last", 4)):
        request = b.ask([1, 2, 3, 4, 5], rows=rows)
        b.wait()
        b.finish(request)
        assert request.stats.reused_tokens == reused


def test_so_many_finished_sequences_are_kept_and_the_least_recently_used_goes(board):
    b = board(pages=1000)
    for i in range(KEPT):
        request = b.ask(different(5, i), write=1)
        b.wait()
        b.finish(request)
    again = b.ask([*different(5, 0), 1, 2], write=1)  # the oldest is used again
    b.wait()
    b.finish(again)
    b.engine.events.clear()
    last = b.ask(different(5, 99), write=1)
    b.wait()
    b.finish(last)
    assert [e for e in b.engine.events if e[0] == "free"] == [("free", 2)]


def test_pages_that_are_short_are_taken_from_the_least_recently_used(board):
    b = board(pages=6)
    for i in range(3):
        request = b.ask(different(100, i), write=1)
        b.wait()
        b.finish(request)
    b.engine.events.clear()
    request = b.ask(different(200, 9), write=1)
    b.wait()
    b.finish(request)
    assert [e[1] for e in b.engine.events if e[0] == "free"] == [1, 2]


def test_who_does_not_fit_beside_the_others_waits(board):
    b = board(pages=4)
    first = b.ask(different(150, 1), write=2)
    b.wait()
    second, third = b.ask(different(100, 2), write=1), b.ask(different(10, 3), write=1)
    assert len(b.step()) == 1
    assert list(b.scheduler._queue) == [second, third]  # though there is room for the third
    b.finish(first, second, third)
    assert second.sink.error is None


def test_room_is_for_what_the_others_still_have_to_read_too(board):
    b = board(pages=8)
    first = b.ask(different(PREFILL_ALONE + 144, 1), write=1)  # 7 pages, 4 of them after the first call
    b.wait()
    second = b.ask(different(100, 2), write=1)  # 2 pages
    assert len(b.step()) == 1
    assert list(b.scheduler._queue) == [second]
    b.finish(first, second)
    assert [r.sink.error for r in (first, second)] == [None, None]


def test_who_waits_for_room_takes_none_from_the_one_whose_beginning_it_shares(board):
    b = board(pages=2)
    first = b.ask(different(70, 1), write=50)
    b.wait()
    second = b.ask([*different(69, 1), 7, 7], write=1)
    assert len(b.step()) == 1
    b.finish(first, second)
    assert [r.sink.error for r in (first, second)] == [None, None]


def test_who_waits_for_room_keeps_the_beginning_that_it_found(board):
    b = board(pages=5)
    first = b.ask(different(100, 1))
    b.wait()
    b.finish(first)
    running = b.ask(different(150, 2), write=30)
    b.wait()
    waiting = b.ask([*different(100, 1), *different(150, 3)])
    assert len(b.step()) == 1
    b.finish(running, waiting)
    assert waiting.stats.reused_tokens == 100


def test_the_youngest_gives_its_pages_back_and_is_the_next(board):
    b = board(pages=4, parallel=2)
    first = b.ask(different(100, 1), write=80)
    b.wait()
    second = b.ask(different(120, 2), write=80)
    third = b.ask(different(10, 3), write=1)
    preempted = []
    freed = len(b.engine.events)
    while not first.sink.ended.is_set():
        b.engine.go.set()
        b.engine.waits.wait(0.05)
        b.engine.waits.clear()
        if second.sequence is None and second.written and not preempted:
            preempted = list(b.scheduler._queue)
    assert preempted == [second, third]  # at the head of the queue, before those that came later
    assert ("free", 2) in b.engine.events[freed:]
    assert second.sink.error is None
    b.finish(second, third)
    assert (first.stats.generated_tokens, second.stats.generated_tokens) == (80, 80)
    assert b.scheduler.status().preempted > 0
    # What is read a second time was not kept: the statistics do not say so.
    assert second.stats.reused_tokens == 0


def test_what_a_second_reading_finds_in_the_cache_was_read_by_the_first(board):
    b = board(pages=4, parallel=3)
    before = b.ask(different(10, 1), write=1)
    b.wait()
    first = b.ask(different(100, 2), write=80)
    second = b.ask([*different(60, 2), *different(60, 3)], write=80)
    assert [w[1] for w in b.step()] == [100, 120]  # both admitted at once: neither is in the cache yet
    b.finish(before, first, second)
    assert ("fork", 2, 60) in [e[:3] for e in b.engine.events]  # read again, after the first
    assert second.stats.reused_tokens == 0
    assert second.stats.generated_tokens == 80


def test_the_oldest_always_goes_on(board):
    b = board(pages=3, parallel=4)
    requests = [b.ask(different(60, i), write=100) for i in range(4)]
    b.wait()
    b.finish(*requests)
    assert [r.sink.error for r in requests] == [None] * 4
    assert [r.stats.generated_tokens for r in requests] == [100] * 4


# ---- a beginning that is still read


def test_who_begins_as_one_that_is_still_read_waits_for_it_and_others_pass(board):
    b = board()
    first = b.ask(different(1000, 1))
    b.wait()
    second, third = b.ask([*different(600, 1), 5, 5]), b.ask(different(10, 2))
    assert [w[1] for w in b.step()] == [PREFILL_ALONE // 2, 10]  # the first and the third
    assert [b.scheduler.place(r) for r in (first, second, third)] == [0, 1, 0]
    while second.sequence is None:
        read = first.cached
        b.step()
    assert read <= 600 - WORTH_WAITING < first.cached
    assert second.stats.reused_tokens == 600
    b.finish(first, second, third)


def test_who_waits_for_a_beginning_goes_on_without_it(board):
    b = board()
    first = b.ask(different(1000, 1))
    b.wait()
    second = b.ask(different(PREFILL_ALONE + WORTH_WAITING + 1, 1))  # all but its last token could be reused
    b.step()
    assert second.sequence is None
    first.cancel()
    assert len(b.step()) == 1
    assert second.stats.reused_tokens == PREFILL_ALONE
    b.finish(second)


@pytest.mark.parametrize(
    "asked",
    [
        {"tokens": [*different(300 + PREFILL_ALONE + WORTH_WAITING - 1, 1), 5, 5]},
        {"tokens": different(900, 1), "key": "adapter"},
        {"tokens": different(900, 1), "items": range(900)},
        {"tokens": different(900, 1), "context": 500},
        {"tokens": different(900, 1), "rows": "all"},
        {"tokens": [*different(300, 1), 7, 7]},
    ],
    ids=["little in common", "another key", "another content", "bidirectional", "every row", "kept already"],
)
def test_who_would_read_nothing_less_does_not_wait(board, asked):
    b = board(pages=100)
    kept = b.ask([*different(300, 1), 8])
    b.wait()
    b.finish(kept)
    first = b.ask([*different(300, 1), *different(700, 2)] if len(asked["tokens"]) == 302 else different(1000, 1))
    b.wait()
    second = b.ask(**asked)
    b.step()
    assert second.sequence is not None
    b.finish(first, second)


# ---- the queue


def test_a_full_queue_takes_no_more(board):
    b = board(parallel=2, max_queue=1)
    running = [b.ask(different(10, 1), write=40)]
    b.wait()
    running.append(b.ask(different(10, 2), write=40))  # in the queue until the call ends, but there is room to run
    waiting = b.ask(different(10, 3), write=1)
    with pytest.raises(glmlite.Busy, match=r"1 requests run and 2 wait, expected at most 2 \+ 1") as busy:
        b.ask(different(10, 4))
    assert busy.value.waiting == 2
    assert pickle.loads(pickle.dumps(busy.value)).waiting == 2
    b.step()
    with pytest.raises(glmlite.Busy, match="2 requests run and 1 wait"):
        b.ask(different(10, 4))
    b.finish(*running, waiting)
    again = b.ask(different(10, 4))
    b.wait()
    b.finish(again)


def test_who_was_cancelled_holds_no_place(board):
    b = board(parallel=1, max_queue=1)
    running = b.ask(different(10, 1), write=40)
    b.wait()
    waiting = b.ask(different(10, 2))
    waiting.cancel()
    second = b.ask(different(10, 3))
    running.cancel()
    third = b.ask(different(10, 4))
    with pytest.raises(glmlite.Busy):
        b.ask(different(10, 5))
    b.finish(second, third)
    assert b.scheduler.status().cancelled == 2


def test_no_queue_at_all(board):
    b = board(parallel=1, max_queue=0)
    request = b.ask(different(10, 1))
    b.wait()
    with pytest.raises(glmlite.Busy) as busy:
        b.ask(different(10, 2))
    assert busy.value.waiting == 0
    b.finish(request)


def test_the_place_in_the_queue(board):
    b = board(parallel=1)
    running = b.ask(different(10, 1), write=40)
    b.wait()
    waiting = [b.ask(different(10, i)) for i in (2, 3, 4)]
    place = b.scheduler.place
    assert [place(r) for r in (running, *waiting)] == [0, 1, 2, 3]
    waiting[0].cancel()
    assert [place(r) for r in waiting] == [0, 1, 2]
    b.finish(running, *waiting[1:])
    assert [place(r) for r in (running, *waiting)] == [0, 0, 0, 0]


def test_the_status_at_every_moment(board):
    b = board(pages=10, parallel=1)
    assert b.scheduler.status() == (0, 0, 640, 640, 0, 0, 0, 0, 0, 0)
    first = b.ask(different(70, 1), write=1 + BURST)
    b.wait()
    second, third = b.ask([*different(70, 1), 5], write=1), b.ask(different(10, 2))
    status = b.scheduler.status()  # within the call: what it takes of the cache is not told yet
    assert (status.running, status.waiting, status.kv_tokens_free, status.prompt_tokens) == (1, 2, 640, 0)
    b.step()
    status = b.scheduler.status()
    assert (status.running, status.waiting, status.kv_tokens_free) == (1, 2, 512)
    assert (status.prompt_tokens, status.generated_tokens) == (70, 1)
    third.cancel()
    assert b.scheduler.status()[-1] == 1
    b.finish(first, second)
    status = b.scheduler.status()
    assert status[:2] == (0, 0) and status.kept == 2
    assert (status.prompt_tokens, status.reused_tokens, status.generated_tokens) == (71, 70, 2 + BURST)
    assert (status.preempted, status.cancelled) == (0, 1)


# ---- cancelling


def test_a_cancel_while_waiting_costs_nothing(board):
    b = board(parallel=1)
    running = b.ask(different(10, 1), write=30)
    b.wait()
    waiting = b.ask(different(10, 2), write=30)
    waiting.cancel()
    b.finish(running)
    assert waiting.sequence is None
    assert Counter(e[0] for e in b.engine.events)["new"] == 1


def test_a_cancel_while_reading_ends_the_call(board):
    b = board()
    request = b.ask(different(1000, 1), write=1)
    b.wait()
    request.cancel()
    assert b.engine.flags[-1].is_set
    b.finish()
    assert request.stats.generated_tokens == 0
    assert len(b.engine.calls) == 1


def test_a_cancel_of_the_only_writing_one_ends_the_call(board):
    b = board()
    request = b.ask(different(10, 1), write=100)
    b.wait()
    b.step()
    request.cancel()
    assert b.engine.flags[-1].is_set
    b.finish()


def test_a_cancel_of_one_writing_request_ends_no_call_of_the_others(board):
    b = board()
    first = b.ask(different(10, 1), write=100)
    b.wait()
    second = b.ask(different(10, 2), write=100)
    b.step()
    assert len(b.step()) == 2
    first.cancel()
    assert not b.engine.flags[-1].is_set
    assert len(b.step()) == 1
    b.finish(second)
    assert second.stats.generated_tokens == 100


@pytest.mark.parametrize("rows", ["", "last"])
@pytest.mark.parametrize("who", ["reader", "other reader", "writer"])
def test_a_cancel_ends_a_call_that_reads_whoever_is_cancelled(board, who, rows):
    """Such a call may take seconds. The others read again what they had begun."""
    b = board()
    requests = {"writer": b.ask(different(10, 1), write=100)}
    b.wait()
    b.step()
    requests["reader"] = b.ask(different(1000, 2))
    requests["other reader"] = b.ask(different(1000, 3), rows=rows)
    b.step()
    requests[who].cancel()
    assert b.engine.flags[-1].is_set
    b.step()
    assert requests[who] not in b.scheduler._active
    others = [r for name, r in requests.items() if name != who]
    assert b.scheduler._active == others
    b.finish(*others)
    assert [r.sink.error for r in others] == [None, None]


def test_the_call_after_one_that_a_cancel_ended_is_short_and_is_not_ended(board):
    """However often clients go away, those that stay get on."""
    b = board(parallel=9)
    stays = b.ask(different(500, 1))
    others = [b.ask(different(500, i)) for i in range(2, 10)]
    b.wait()
    b.step()
    before = stays.cached
    for other in others:
        other.cancel()
        b.step()
    assert [flag.is_set for flag in b.engine.flags] == [False, *[True, False] * 4, False]
    assert stays.cached > before
    b.finish(stays)


def test_a_spared_call_ends_for_the_only_one_in_it(board):
    b = board()
    stays, goes = b.ask(different(1000, 1)), b.ask(different(1000, 2))
    b.wait()
    while len(b.engine.calls[-1]) < 2:
        b.step()
    goes.cancel()
    (call,) = [b.step()]
    assert [w[1] for w in call] == [PREFILL_LEAST]
    stays.cancel()
    assert b.engine.flags[-1].is_set
    b.finish()


def test_a_cancelled_call_is_no_progress(board):
    b = board()
    first, second = b.ask(different(1000, 1)), b.ask(different(1000, 2))
    b.wait()
    while len(b.engine.calls[-1]) < 2:
        b.step()
    read = first.cached
    second.cancel()
    b.engine.done = 0.5
    b.step()
    assert first.reading[0] == read
    assert b.scheduler.reading(first)[0] == read + PREFILL_LEAST // 2
    b.finish(first)


def test_a_call_of_another_is_no_progress(board):
    b = board()
    first, second = b.ask(different(1000, 1)), b.ask(different(1000, 2))
    b.wait()
    while len(b.engine.calls[-1]) < 2:
        b.step()
    rows = b.ask(different(1000, 3), rows="last")
    while len(b.engine.calls[-1]) != 1:  # its call is one of its own
        b.step()
    while len(b.engine.calls[-1]) != 2:
        b.step()
    second.cancel()
    read = first.cached
    b.engine.done = 0.5
    assert [w[1:] for w in b.step()] == [(PREFILL_LEAST // 2, 0)]
    assert b.scheduler.reading(first)[0] == read
    b.finish(first, rows)


def test_a_cancelled_request_leaves_its_sequence_for_the_next(board):
    b = board()
    request = b.ask(different(10, 1), write=100)
    b.wait()
    b.step()
    request.cancel()
    b.finish()
    again = b.ask(different(10, 1), write=1)
    b.wait()
    assert again.stats.reused_tokens == 9
    b.finish(again)


# ---- failing and closing


def test_who_fails_alone_is_given_up_alone(board):
    b = board()
    good = b.ask(different(10, 1), write=30)
    b.wait()
    bad = b.ask(different(10, 2), write=30)
    b.step()
    b.engine.bad = lambda works: any(w.sequence == bad.sequence.handle for w in works if bad.sequence)
    b.finish(good, bad)
    assert good.sink.error is None
    assert good.stats.generated_tokens == 30
    assert "not finite" in str(bad.sink.error)
    assert bad.sequence.handle not in b.engine.sequences


# ---- constraints


def test_a_constrained_request_writes_one_token_a_call_and_so_do_the_others(board):
    b = board()
    free = b.ask(different(10, 1), write=100)
    b.wait()
    b.step()
    rule = Rule()
    bound = b.ask(different(10, 2), write=3, constraint=rule)
    calls = [b.step() for _ in range(4)]
    assert [[w[1:] for w in call] for call in calls] == [
        [(1, 1), (10, 1)],
        [(1, 1), (1, 1)],
        [(1, 1), (1, 1)],
        [(1, BURST)],
    ]
    assert b.engine.limits[-4:] == [0.0, 0.0, 0.0, BURST_MS]
    assert bound.sampler.masks == [0, 1, 2]
    assert rule.accepted == [1, 1, 1]
    assert free.sampler.masks == []
    b.finish(free)


def test_until_a_constraint_begins_bursts_go_on(board):
    b = board()
    request = b.ask(10, write=100, constraint=Rule(after=1 + BURST))
    calls = [b.wait(), *(b.step() for _ in range(3))]
    assert [call[0][1:] for call in calls] == [(10, 1), (1, BURST), (1, 1), (1, 1)]
    assert b.engine.limits == [0.0, BURST_MS, 0.0, 0.0]
    assert request.sampler.masks == [None, None, 17, 18]
    assert request.sampler.forbidden == [[9], [9], [], []]
    b.finish(request)


def test_no_mask_is_made_where_nothing_is_drawn(board):
    b = board()
    request = b.ask(PREFILL_ALONE + 1, write=2, constraint=Rule())
    b.wait()
    assert request.sampler.masks == []
    b.step()
    assert request.sampler.masks == [0]
    b.finish(request)


def test_forced_tokens_enter_together_and_are_not_drawn(board):
    b = board()
    rule = Rule(forces=[[], [5, 6, 7], [8]])
    request = b.ask(10, write=10, constraint=rule)
    calls = [b.wait(), *(b.step() for _ in range(4))]
    assert [call[0][1:] for call in calls] == [(10, 1), (1, 1), (4, 1), (2, 1), (1, 1)]
    assert request.tokens[10:] == [1, 1, 5, 6, 7, 1, 8, 1]
    assert request.sampler.taken == [5, 6, 7, 8]
    assert request.sink.left == 10 - 8
    assert rule.accepted == request.tokens[10:]
    sequence = b.engine.sequences[request.sequence.handle]
    b.finish(request)
    assert sequence["tokens"] == request.tokens[:-1]
    assert request.stats.generated_tokens == 10


def test_forced_tokens_stop_at_the_length(board):
    b = board()
    rule = Rule(forces=[[5] * 9])
    request = b.ask(10, write=4, constraint=rule)
    b.wait()
    b.finish(request)
    assert request.tokens[10:] == rule.accepted == [1, 5, 5, 5]
    assert request.stats.generated_tokens == 4


def test_where_log_probabilities_are_wanted_every_token_is_drawn(board):
    b = board()
    b.engine.Sample = lambda *sample: pytest.fail("a sample that was not drawn")
    rule = Rule(forces=[[5, 6]])
    request = b.ask(10, write=3, constraint=rule)
    b.engine.logprob = -1.0
    b.wait()
    b.finish(request)
    assert request.tokens[10:] == rule.accepted == [1, 1, 1]


def test_a_failed_call_leaves_a_constraint_where_it_was(board):
    b = board()
    rules = [Rule(forces=[[5, 6]]), Rule()]
    requests = [b.ask(different(10, i), write=8, constraint=rule) for i, rule in enumerate(rules)]
    b.wait()
    b.engine.bad = lambda works: len(works) > 1  # each call is made again, alone
    b.finish(*requests)
    for request, rule in zip(requests, rules):
        assert request.sink.error is None
        assert rule.accepted == request.tokens[10:]
        assert len(rule.accepted) == 8
        assert request.sampler.masks == sorted(set(request.sampler.masks))


def test_a_preempted_request_keeps_its_constraint(board):
    b = board(pages=4, parallel=2)
    rules = [Rule(after=30), Rule(after=40, forces=[[5, 6, 7]])]
    requests = [b.ask(different(100 + 20 * i, i), write=80, constraint=rule) for i, rule in enumerate(rules)]
    b.wait()
    b.finish(*requests)
    assert b.scheduler.status().preempted > 0
    for request, rule in zip(requests, rules):
        assert request.stats.generated_tokens == 80
        assert rule.accepted == request.tokens[-80:]


def test_a_mask_that_cannot_be_made_fails_its_request_alone(board):
    b = board()
    rule = Rule()
    good = b.ask(different(10, 1), write=40)
    bad = b.ask(different(10, 2), write=40, constraint=rule)
    b.wait()
    b.step()
    rule.error = RuntimeError("too hard")
    b.finish(good, bad)
    assert str(bad.sink.error) == "too hard"
    assert good.sink.error is None and good.stats.generated_tokens == 40


def test_close_fails_what_runs_and_what_waits_and_frees_all(board):
    b = board(parallel=1)
    done = b.ask(different(10, 3), write=1)
    b.wait()
    b.finish(done)
    assert len(b.engine.sequences) == 1  # kept
    running = b.ask(different(1000, 1), write=10)
    b.wait()
    waiting = b.ask(different(10, 2), write=10)
    closing = threading.Thread(target=b.scheduler.close)
    closing.start()
    deadline = time.monotonic() + 5
    while not b.engine.flags[-1].is_set and time.monotonic() < deadline:
        time.sleep(0.001)
    b.engine.go.set()
    closing.join(5)
    for request in (running, waiting):
        assert isinstance(request.sink.error, glmlite.Closed)
    assert b.engine.sequences == {}
    assert b.engine.events[-1] == ("close",)
    with pytest.raises(glmlite.Closed, match="closed"):
        b.ask(3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_thread_that_ends_tells_those_who_wait(board):
    b = board()

    class Ending(Sink):
        def take(self, result):
            raise SystemExit

    request = b.ask(3)
    request.sink.take = Ending(1).take
    other = b.ask(different(10, 2))
    b.wait()
    b.engine.go.set()
    for r in (request, other):
        assert r.sink.ended.wait(10)
        assert isinstance(r.sink.error, glmlite.Closed)
    with pytest.raises(glmlite.Closed):
        b.ask(3)


# ---- what is told


def test_the_time_of_reading_ends_with_the_first_token(board, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(
        "glmlite.scheduler.time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=lambda: clock[0])
    )
    b = board()
    request = b.ask(PREFILL_ALONE + 10, write=18)
    b.wait()
    clock[0] += 2.0
    b.step()
    clock[0] += 1.0
    b.step()
    clock[0] += 4.0
    b.step()
    clock[0] += 0.5
    b.finish(request)
    assert request.stats == Stats(266, 0, 18, prompt_seconds=3.0, generation_seconds=4.5)
    assert request.stats.prompt_rate == 266 / 3
    assert request.stats.generation_rate == 17 / 4.5


def test_speeds_leave_out_what_was_kept_and_what_is_too_little_to_say():
    assert Stats(52, 40, 17, 0.5, 2.0).prompt_rate == 12 / 0.5
    assert Stats(52, 40, 17, 0.5, 2.0).generation_rate == 16 / 2.0
    assert Stats(52, 51, 1, 0.0001, 0.0).prompt_rate is None
    assert Stats(52, 51, 1, 0.0001, 0.0).generation_rate is None
    assert Stats(100, 0, 17, 0.0, 0.0).prompt_rate is None
    assert Stats().generation_rate is None


def test_how_far_a_prompt_is_read(board):
    b = board()
    request = b.ask(PREFILL_ALONE * 2, write=2)
    b.wait()
    b.engine.done = 0.5
    assert b.scheduler.reading(request) == (PREFILL_ALONE // 2, PREFILL_ALONE * 2)
    b.engine.done = 0.0
    b.step()
    assert b.scheduler.reading(request) == (PREFILL_ALONE, PREFILL_ALONE * 2)
    b.engine.done = 1.0
    assert b.scheduler.reading(request) == (PREFILL_ALONE * 2, PREFILL_ALONE * 2)
    b.finish(request)
