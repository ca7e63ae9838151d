"""What the commands write and how: answers on stdout, all else on stderr; plain text wherever it is not a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import ContextOverflow

# What the library says of a prompt that does not fit, and what the commands have for it.
_OPTIONS = {
    "load the model with a larger context": "make the context larger with --context",
    "pass overflow='truncate'": "use --overflow truncate",
}


def prepare() -> None:
    """A character that the terminal or the pipe cannot show becomes `?`; it must not end the command.

    Raises OSError where there is no stdout to write to. A closed stdin is empty, a closed stderr hears nothing.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  stays open with the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise OSError("stdout is closed, so an answer has nowhere to go")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of every oddity in a photo's EXIF; what matters is an error
    if hasattr(sys.stdin, "reconfigure") and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def write(text: str) -> None:
    """Text of a model or a file to stdout, at once."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line on stderr."""
    print(printable(text) if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def error(problem: BaseException) -> None:
    """The problem in one line on stderr."""
    text = " ".join(str(problem).split())
    if isinstance(problem, ContextOverflow):
        for ours, option in _OPTIONS.items():
            text = text.replace(ours, option)
    if isinstance(problem, OSError) and problem.strerror:
        text = problem.strerror if problem.filename is None else f"{problem.filename}: {problem.strerror}"
    note(f"glmlite: {text or ('out of memory' if isinstance(problem, MemoryError) else type(problem).__name__)}")


class _Log(logging.Handler):
    """What the library warns of, as notes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def logged() -> Iterator[None]:
    """Shows what the library warns of: it prints nothing itself."""
    log, handler = logging.getLogger("glmlite"), _Log()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def printable(text: str) -> str:
    """Without control characters: text of a model or a file must not drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def columns(rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Rows as aligned columns; the columns in `right` to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for row in cells:
        parts = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(parts).rstrip() + "\n")
    return "".join(lines)


def size(nbytes: int) -> str:
    """Bytes for people: 98.4 MB (decimal, as disks are sold)."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes} bytes"


@contextmanager
def progress(title: str, rate: bool = False) -> Iterator[Callable[..., None]]:
    """A function of (done, total[, another title]) that shows a bar on a terminal, from half a second on; elsewhere
    nothing.

    rate: `done` counts bytes, and their rate is shown too.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, title=title: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        *([TransferSpeedColumn()] if rate else []),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=None)
    begin = time.monotonic()
    started = ended = False

    def show(done: float, total: float, title: str = title) -> None:
        nonlocal started
        if ended:  # what it belongs to is over
            return
        if not started and time.monotonic() - begin > 0.5:
            bar.start()
            started = True
        if started:
            bar.update(task, completed=done, total=total, description=title)
            if done >= total:
                bar.stop()

    try:
        yield show
    finally:
        ended = True
        bar.stop()
