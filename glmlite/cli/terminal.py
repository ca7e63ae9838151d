"""Messages typed or pasted into a terminal. What is pasted is one message, however many lines it has."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .. import ending

PASTE_SECONDS = 0.02  # nobody types on so soon after Enter, but a terminal that pastes does
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"


@contextmanager
def reader() -> Iterator[Callable[[str], str]]:
    """A function that shows a prompt on stderr and returns the next message, as `input` does: EOFError for Ctrl-D,
    KeyboardInterrupt for Ctrl-C.

    As long as it is open, also while an answer is written, keys are kept for the next prompt and not shown, and a
    paste keeps its marks: so that one into an answer is one message too.
    """
    os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")  # it would ask every terminal, and wait for those that are mute
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.output import create_output
    from prompt_toolkit.utils import is_dumb_terminal

    marks = sys.platform != "win32" and sys.stderr.isatty() and not is_dumb_terminal()
    with _keys_kept(), create_app_session(output=create_output(sys.stderr)):
        session: PromptSession[str] = PromptSession(
            key_bindings=_keys(), enable_suspend=True, prompt_continuation=". ", enable_history_search=False
        )

        def read(prompt: str) -> str:
            try:
                with _signals_wait() as pending:
                    return session.prompt(prompt, pre_run=pending, handle_sigint=False)
            finally:
                mark(_PASTE_ON)  # the prompt has switched it off

        def mark(sequence: str) -> None:
            if marks:
                with suppress(OSError):  # the terminal is gone
                    sys.stderr.write(sequence)
                    sys.stderr.flush()

        mark(_PASTE_ON)
        try:
            yield read
        finally:
            mark(_PASTE_OFF)


@contextmanager
def _signals_wait() -> Iterator[Callable[[], None]]:
    """While it lasts, a signal to end, and that of a Ctrl-C just before or after the prompt, ends the prompt first: an
    event loop may swallow what its handler raises, and does not bear it while it is made or closed.

    Gives a function for the prompt to call when it begins, for signals that came before.
    """
    from prompt_toolkit.application import get_app_or_none

    handlers = {number: signal.getsignal(number) for number in (*ending.SIGNALS, signal.SIGINT)}
    came: list[int] = []

    def leave() -> None:
        app = get_app_or_none()
        if came and app is not None and app.is_running and not app.is_done:
            app.exit(exception=EOFError())

    def note(number: int, _: Any) -> None:
        came.append(number)
        app = get_app_or_none()
        if app is not None and app.loop is not None:
            app.loop.call_soon_threadsafe(leave)

    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in ours:
        signal.signal(number, note)
    try:
        yield leave
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        if came:
            first = min(came, key=lambda number: number == signal.SIGINT)  # the others end more
            ours[signal.Signals(first)](first, None)


@contextmanager
def _keys_kept() -> Iterator[None]:
    """Takes keys from the terminal as they come, unseen, where the system has termios; Ctrl-C still interrupts."""
    try:
        import termios
    except ImportError:
        yield
        return
    try:
        before = termios.tcgetattr(sys.stdin)
        mode = termios.tcgetattr(sys.stdin)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)
    except termios.error:  # no terminal that can be set
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _keys() -> Any:
    """Enter sends, unless more is there already: then it is in the midst of a paste, from a terminal without marks."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()

    @keys.add("enter", eager=True)
    @keys.add("c-j", eager=True)
    def enter(event: KeyPressEvent) -> None:
        queue = event.key_processor.input_queue
        if event.key_sequence[0].key == Keys.ControlM and queue and queue[0].key == Keys.ControlJ:
            queue.popleft()  # CR and LF are one end of a line
        if queue or _more_is_there(event.app.input):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab")
    def tab(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\t")

    return keys


def _more_is_there(keyboard: Any) -> bool:
    if sys.platform == "win32":  # there prompt_toolkit itself tells a paste from keys
        return False
    try:
        return bool(select.select([keyboard.fileno()], [], [], PASTE_SECONDS)[0])
    except (OSError, ValueError):
        return False
