"""Rows on their way through a model: many at once, those with a common beginning one after another."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..cancel import Cancel
from ..errors import Busy, Cancelled, Closed
from ..serve.errors import Refused
from ..serve.starting import Running
from .asking import Asking, Question, Record
from .rows import Row

__all__ = ["WINDOW", "Finished", "answers"]

WINDOW = 1024  # rows that are sorted together
AHEAD = 8  # requests that wait in the model's line, so that it never waits for the next row
TICK = 0.1  # seconds between two looks for a cancel, and for Ctrl-C

# A row's own; what else is raised ends all.
PROBLEMS = (Refused, ValueError, TypeError, ImportError, OSError, RuntimeError, MemoryError)


class Finished(NamedTuple):
    """A row with what is kept of it. read: tokens of its prompt that were not in the cache; written: of its answers."""

    row: Row
    record: Record
    failed: bool
    read: int = 0
    written: int = 0


class Answering:
    """A row whose answers are being written. done: called, on the engine's thread, when all are."""

    def __init__(self, row: Row, question: Question, done: Callable[[Answering], object]):
        self.row = row
        self._question = question
        self._done = done
        self._generations: Sequence[Running] = ()
        self._left = 0

    def start(self) -> None:
        """Raises what the model raises."""
        self._generations = self._question.start()
        self._left = len(self._generations)
        for generation in self._generations:
            generation.on_end(self._ended)

    def _ended(self) -> None:
        self._left -= 1
        if not self._left:
            self._done(self)

    def finish(self) -> Finished:
        """Raises what the answers failed with."""
        answers = [generation.result() for generation in self._generations]
        if any(answer.finish_reason == "cancelled" for answer in answers):
            raise Cancelled("batch: cancelled")
        read = sum(answer.stats.prompt_tokens - answer.stats.reused_tokens for answer in answers)
        written = sum(len(answer.tokens) for answer in answers)
        return Finished(self.row, self._question.record(answers), False, read, written)

    def close(self) -> None:
        for generation in self._generations:
            generation.close()


def answers(
    rows: Iterator[Row], asking: Asking, *, at_once: int, cancel: Cancel, window: int = WINDOW
) -> Iterator[list[Finished]]:
    """Rows as they are finished, in lists of those that are at one time; an empty list now and then while none is.

    Rows are taken in windows, each sorted by its prompts; the next window begins while the last rows of the one before
    run. So little more than a window of them is in memory. Ends early where `cancel` says so. Raises Closed, and what
    ends all.
    """
    return _Run(rows, asking, at_once, cancel, window).run()


class _Run:
    def __init__(self, rows: Iterator[Row], asking: Asking, at_once: int, cancel: Cancel, window: int):
        self._rows = rows
        self._asking = asking
        self._most = at_once + min(AHEAD, at_once)
        self._cancel = cancel
        self._window = window
        self._waiting: deque[tuple[Row, Question]] = deque()  # of one window, sorted
        self._running: set[Answering] = set()
        self._ended: queue.SimpleQueue[Answering | None] = queue.SimpleQueue()
        self._finished: list[Finished] = []

    def run(self) -> Iterator[list[Finished]]:
        wake = self._cancel.add(lambda: self._ended.put(None))
        try:
            while not self._cancel.cancelled:
                more = self._fill()
                if not (more or self._running or self._finished):
                    return
                if not self._finished:
                    self._take()
                finished, self._finished = self._finished, []
                yield finished
        finally:
            self._cancel.discard(wake)
            for answering in self._running:
                answering.close()

    def _fill(self) -> bool:
        """Starts as many as may run; whether there are more rows."""
        while len(self._running) < self._most:
            if not self._waiting and not self._next_window():
                return False
            if not self._waiting:  # none of the window could be asked
                return True
            row, question = self._waiting[0]
            answering = Answering(row, question, self._ended.put)
            try:
                self._running.add(answering)
                answering.start()
            except Busy:  # others use the model, too
                self._running.remove(answering)
                time.sleep(TICK)
                return True
            except PROBLEMS as error:
                self._running.remove(answering)
                self._fail(row, error)
            self._waiting.popleft()
            if self._cancel.cancelled:
                return True
        return True

    def _next_window(self) -> bool:
        found = []
        for row in self._rows:
            try:
                if row.error is not None:
                    raise ValueError(row.error)
                found.append((row, self._asking.question(row)))
            except PROBLEMS as error:
                self._fail(row, error)
            if len(found) + len(self._finished) >= self._window:
                break
        found.sort(key=lambda asked: asked[1].key)
        self._waiting.extend(found)
        return bool(found or self._finished)

    def _take(self) -> None:
        """Waits for rows to finish, not long."""
        try:
            ended = self._ended.get(timeout=TICK)
            while True:
                if ended is not None:
                    self._finish(ended)
                ended = self._ended.get_nowait()
        except queue.Empty:
            return

    def _finish(self, answering: Answering) -> None:
        self._running.remove(answering)
        try:
            self._finished.append(answering.finish())
        except PROBLEMS as error:
            self._fail(answering.row, error)

    def _fail(self, row: Row, error: BaseException) -> None:
        if isinstance(error, Closed):
            raise error
        if not isinstance(error, Cancelled):
            self._finished.append(Finished(row, self._asking.failure(row, error), True))
