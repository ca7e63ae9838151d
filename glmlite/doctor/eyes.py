"""A vision model's eyes: whether they are whole, and whether they fit the text model, in its file or beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from ..errors import FormatError
from .finding import Finding, Severity, brief
from .subject import Subject

_BLIND = "The model reads text, and sees nothing."


def eyes(subject: Subject) -> Iterator[Finding]:
    """In this file, alone or with the text model."""
    if not subject.sees:
        return
    try:
        width = _width(subject)
    except FormatError as error:
        names = str(error).split("'")[1::2]
        where = next((name for name in names if "." in name), "tensors")
        yield Finding("eyes", Severity.ERROR, brief(where), brief(str(error)), _BLIND)
        return
    dim = subject.count("embedding_length")
    if dim is not None and dim != width:
        what = f"{dim}, but the eyes in the file make rows of {width} columns"
        yield Finding("pair", Severity.ERROR, subject.key("embedding_length"), what, _BLIND)


def pair(subject: Subject, beside: Mapping[Path, Subject | str]) -> Iterator[Finding]:
    """In other files, of which one should fit. beside: what they hold, or what is wrong with them."""
    dim = subject.count("embedding_length")
    if dim is None or not beside:
        return
    if not subject.sections:
        what = "missing: it is a model for text alone, to which no eyes belong"
        yield Finding("pair", Severity.ERROR, subject.key("rope.dimension_sections"), what, _BLIND)
        return
    found = {path: _told(other, dim) for path, other in beside.items()}
    fitting = [path.name for path, told in found.items() if told is None]
    if len(fitting) > 1:
        what = f"{len(fitting)} files beside it have eyes that fit: {', '.join(fitting)}"
        means = "It has to be said with --mmproj which of them are the model's."
        yield Finding("pair", Severity.NOTE, "mmproj", brief(what), means)
    elif not fitting:
        what = "; ".join(f"{path.name}: {told}" for path, told in found.items())
        where = subject.key("embedding_length")
        yield Finding("pair", Severity.WARNING, where, brief(f"{dim}, none of the eyes beside it fit: {what}"), _BLIND)


def others(paths: list[Path]) -> dict[Path, Subject | str]:
    """What files hold, by their headers, or why they cannot be read."""
    from .._native import Gguf

    found: dict[Path, Subject | str] = {}
    for path in paths:
        try:
            with closing(Gguf(path)) as gguf:
                found[path] = Subject.of(gguf)
        except (FormatError, OSError) as error:
            found[path] = str(error).removeprefix(f"{path}: ")
    return found


def _told(other: Subject | str, dim: int) -> str | None:
    """Why eyes do not fit a text model of `dim` columns."""
    if isinstance(other, str):
        return other
    try:
        width = _width(other)
    except FormatError as error:
        return str(error)
    return None if width == dim else f"rows of {width} columns"


def _width(subject: Subject) -> int:
    from ..models import record_eyes

    return record_eyes(subject.metadata, subject.shapes).config.width


CHECKS = (eyes,)
