"""Threads that work tasks off for the main thread, which Ctrl-C may interrupt anywhere.

Only queues stand between them. A Condition (of a pool, a Future, a Thread that starts) that an interrupt finds on its
way in keeps its lock, and one side would wait for ever.
"""

from __future__ import annotations

import _thread
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from .delivery import Events

__all__ = ["Tasks", "in_order", "outcome", "start", "workers"]

S = TypeVar("S")
T = TypeVar("T")
Tasks = queue.SimpleQueue[Callable[[], None] | None]


@contextmanager
def workers(count: int) -> Iterator[Tasks]:
    """So many threads that do what is put into the queue; at the end those tasks that nobody has begun are dropped."""
    tasks: Tasks = queue.SimpleQueue()
    ended: Events[None] = Events()

    def work() -> None:
        while (task := tasks.get()) is not None:
            task()
        ended.put(None)

    started = 0
    try:
        for _ in range(count):
            _thread.start_new_thread(work, ())
            started += 1
        yield tasks
    finally:
        with suppress(queue.Empty):
            while True:
                tasks.get_nowait()
        for _ in range(count):
            tasks.put(None)
        for _ in range(started):
            ended.get()


def in_order(tasks: Tasks, call: Callable[[S], T], arguments: Iterable[S], ahead: int) -> Iterator[T]:
    """What `call` gives for each argument, in their order, while the workers are at the `ahead` that follow."""
    waiting: deque[Events[T]] = deque()
    for argument in arguments:
        waiting.append(start(tasks, partial(call, argument)))
        if len(waiting) > ahead:
            yield outcome(waiting.popleft().get())
    while waiting:
        yield outcome(waiting.popleft().get())


def start(tasks: Tasks, call: Callable[[], T]) -> Events[T]:
    """Has a worker call it; what comes of that is the one event."""
    result: Events[T] = Events()

    def work() -> None:
        try:
            result.put(call())
        except Exception as error:
            result.put(error)

    tasks.put(work)
    return result


def outcome(event: T | Exception) -> T:
    """What a call gave. Raises what it raised."""
    if isinstance(event, Exception):
        raise event
    return event
