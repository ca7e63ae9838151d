"""What `run`, `chat` and `infill` have in common: a model, an answer as it comes, its speed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import typer

from ..locate import model_file
from ..scheduler import Stats
from . import console
from .options import Loading, find

MOST_TEXT = 256_000_000  # bytes; as tokens they take some GB, and a pipe or a device may have no end


@contextmanager
def opened(name: str, loading: Loading, hint: str = "", load: Callable[..., Any] | None = None) -> Iterator[Any]:
    """The model, loaded with a progress bar and closed at the end. hint: what to add where there is no such file. load:
    in place of `glmlite.load`."""
    import glmlite

    path = find(name)
    try:
        with console.progress("loading") as progress:
            model = (load or glmlite.load)(path, progress=lambda done: progress(done, 1), **loading.given())
    except (FileNotFoundError, ValueError) as error:
        if not hint or os.path.isfile(path):
            raise
        raise type(error)(f"{error}; {hint}") from None
    with model:
        yield model


class Answer(NamedTuple):
    """What was written; stopped: by Ctrl-C."""

    text: str
    stats: Any
    stopped: bool


def stream(start: Callable[..., Any], *args: Any, **settings: Any) -> Answer:
    """Writes an answer and a line end to stdout as it comes; Ctrl-C stops it.

    start: a method of the model that streams, with its arguments.
    """
    text = ""
    stopped = False
    reason = None
    with ExitStack() as stack:
        pieces = start(*args, on_progress=stack.enter_context(console.progress("reading")), **settings)
        try:
            for piece in pieces:
                stack.close()
                text += piece.text
                console.write(piece.text)
                reason = piece.finish_reason
        except KeyboardInterrupt:
            pieces.cancel()
            stopped = True
    console.write("\n")
    if reason == "length" and "max_tokens" not in settings:
        console.note("[the answer ends here: the context is full; --context makes room for more]")
    return Answer(text, pieces.stats, stopped)


def speed(stats: Stats) -> str:
    """How long reading and writing took, in words; a rate where there is enough to speak of one."""
    kept = f" ({stats.reused_tokens} kept)" if stats.reused_tokens else ""
    read = stats.prompt_tokens - stats.reused_tokens
    guessed = f" ({stats.accepted_tokens} guessed)" if stats.accepted_tokens else ""
    seen = f"images {stats.image_seconds:.2f} s; " if stats.image_seconds >= 0.005 else ""
    return (
        f"{seen}prompt {stats.prompt_tokens} tokens{kept}, "
        f"{f'{read} read in ' if kept else ''}{_seconds(stats.prompt_seconds, stats.prompt_rate)}; "
        f"answer {stats.generated_tokens} tokens{guessed}, {_seconds(stats.generation_seconds, stats.generation_rate)}"
    )


def _seconds(seconds: float, rate: float | None) -> str:
    return f"{seconds:.2f} s" + ("" if rate is None else f", {rate:.1f} tokens/s")


def asked(name: str, prompt: str | None, file: Path | None, hint: str) -> str:
    """The prompt, see `text_of`. Where there is none, a model that is not there is the likelier mistake."""
    try:
        return text_of(prompt, file)
    except ValueError as error:
        path = find(name)
        if prompt is None and not os.path.exists(path):
            try:
                model_file(path)
            except FileNotFoundError as missing:
                raise FileNotFoundError(f"{missing}; {hint}") from None
        raise typer.BadParameter(str(error)) from None


def text_of(prompt: str | None, file: Path | None) -> str:
    """The prompt: the argument, the file, or what is piped in. Raises ValueError where there is none, or two."""
    if prompt is not None and file is not None:
        raise ValueError("a prompt and --file, should be one of them")
    if prompt is not None and prompt != "-":
        return prompt
    if file is not None:
        return text_at(file)
    if sys.stdin.isatty() and prompt is None:
        raise ValueError("no prompt: give it as an argument, with --file, or through a pipe")
    if not (text := text_at(Path("-"))):
        raise ValueError("no prompt: stdin is empty")
    return text


def text_at(path: Path) -> str:
    """What a TEXT argument means: a UTF-8 file, or `-`: what is piped in. Raises ValueError if it is not UTF-8, or too
    long."""
    if str(path) == "-":
        return _decode(sys.stdin.buffer, "stdin")
    with path.open("rb") as file:
        return _decode(file, str(path))


def object_at(path: Path, expected: str = "a JSON object") -> dict[str, Any]:
    """The JSON object in a file, as `text_at` reads it. Raises ValueError, naming the file and what was expected."""
    found = json_at(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is {type(found).__name__}, expected {expected}")
    return found


def json_at(path: Path) -> Any:
    """What the JSON in a file says, as `text_at` reads it. Raises ValueError, naming the file."""
    text = text_at(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from None


def _decode(file: BinaryIO, where: str) -> str:
    data = file.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise ValueError(f"{where}: is longer than {console.size(MOST_TEXT)}, expected a shorter text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8") from None
