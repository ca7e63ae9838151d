"""A command that is told to end, or whose terminal is closed, ends as after Ctrl-C: what it was writing is removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["SIGNALS", "Ended", "told"]

# Windows sends SIGBREAK for Ctrl-Break and, with a few seconds left, when the window is closed.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


class Ended(BaseException):
    """Raised in the main thread by the first of the signals. number: the signal's."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def told() -> Iterator[None]:
    """While it lasts, the signals that end a process raise Ended. One that the process was started to ignore (nohup)
    stays ignored."""

    def end(number: int, _: Any) -> None:
        for other in before:  # a closed window sends several; none may interrupt the removing
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler == signal.SIG_DFL}
    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
