"""How the results of a request reach whoever waits for it: a thread, a coroutine, or a callback."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

TICK = 0.1  # seconds between two calls of `waiting`

T = TypeVar("T")


class Events(Generic[T]):
    """Results, or an exception, in the order in which they came.

    Nothing here takes a lock: the engine thread puts, any thread or finalizer may put, and one at a time takes.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()
        self._wake: Callable[[], object] | None = None

    def put(self, event: T | Exception) -> None:
        self._queue.put(event)
        self._call()

    def on_event(self, wake: Callable[[], object] | None) -> None:
        """Has `wake` called after each `put`, by the thread that put, and at once if there are events already.

        It replaces the one before; None: nobody. What it raises is logged.
        """
        self._wake = wake
        if not self._queue.empty():
            self._call()

    def _call(self) -> None:
        # No event goes unannounced: `put` comes here last, and `on_event` sets this before it looks for events.
        if (wake := self._wake) is None:
            return
        try:
            wake()
        except BaseException as error:
            # Of others than the main thread none ends by what a callback raises, be it SystemExit: it has more to do.
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise
            log.exception("on_event: the callback failed")

    def get_nowait(self) -> T | Exception | None:
        """The next event, None if there is none yet."""
        with suppress(queue.Empty):
            return self._queue.get_nowait()
        return None

    def get(self, waiting: Callable[[], object] | None = None) -> T | Exception:
        """The next event. Sleeps until it is there, or calls `waiting` ten times a second meanwhile.

        The main thread wakes as often: on Windows, macOS and musl Ctrl-C does not end a wait without an end.
        """
        ticks = waiting is not None or threading.current_thread() is threading.main_thread()
        timeout = TICK if ticks else None
        while True:
            try:
                return self._queue.get(timeout=timeout)
            except queue.Empty:
                if waiting is not None:
                    waiting()

    async def get_async(self, waiting: Callable[[], object] | None = None) -> T | Exception:
        """The next event, for a coroutine. Calls `waiting`, if there is one, as `get` does."""
        import asyncio

        loop, arrived, before = asyncio.get_running_loop(), asyncio.Event(), self._wake

        def wake() -> None:
            with suppress(RuntimeError):  # the event loop of the one who waited has ended
                loop.call_soon_threadsafe(arrived.set)

        self.on_event(wake)
        try:
            while True:
                arrived.clear()
                if (event := self.get_nowait()) is not None:
                    return event
                if waiting is None:
                    await arrived.wait()
                    continue
                try:
                    await asyncio.wait_for(arrived.wait(), TICK)
                except asyncio.TimeoutError:
                    waiting()
        finally:
            self._wake = before
