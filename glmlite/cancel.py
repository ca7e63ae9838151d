"""One object that ends work, whatever the work is and whether or not it has begun."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import Cancelled

__all__ = ["Cancel", "check_cancel", "check_thread"]

_thread = threading.local()


class Cancel:
    """Ends the calls that it is given to as `cancel=`: those that run, and those that begin later.

    A load and `logits` then raise `Cancelled`; an answer ends with what has been written and the finish_reason
    "cancelled". Any thread may cancel, at any time, and as often as it likes.
    """

    def __init__(self) -> None:
        self._cancelled = False
        # No lock: single operations of a dict are atomic, and a finalizer may come between any two of them.
        self._ends: dict[int, Callable[[], object]] = {}

    def __repr__(self) -> str:
        return f"<glmlite.Cancel, {'cancelled' if self._cancelled else 'not cancelled'}>"

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Ends all of them, now and for good."""
        self._cancelled = True
        for end in list(self._ends.values()):
            end()

    def check(self, what: str) -> None:
        """Raises Cancelled, with `what` in the message, once this was cancelled."""
        if self._cancelled:
            raise Cancelled(f"{what}: cancelled")

    @contextmanager
    def over(self) -> Iterator[None]:
        """What this thread does meanwhile raises Cancelled soon after `cancel`, also where it is not given this: see
        `check_thread`."""
        _thread.cancel = self
        try:
            yield
        finally:
            _thread.cancel = None

    def add(self, end: Callable[[], object]) -> int:
        """Has `end` called by `cancel`, at once if that has been called; it may be called more than once and by any
        thread. Returns a key for `discard`."""
        key = id(end)
        self._ends[key] = end
        if self._cancelled:
            end()
        return key

    def discard(self, key: int) -> None:
        """Forgets what was added."""
        self._ends.pop(key, None)


def check_cancel(cancel: Any) -> None:
    """Raises TypeError, naming the argument."""
    if not isinstance(cancel, Cancel | None):
        raise TypeError(f"cancel is {cancel!r}, expected glmlite.Cancel")


def check_thread(what: str) -> None:
    """Raises Cancelled where this thread's work was cancelled: see `Cancel.over`. For loops that may take minutes."""
    cancel: Cancel | None = getattr(_thread, "cancel", None)
    if cancel is not None:
        cancel.check(what)
