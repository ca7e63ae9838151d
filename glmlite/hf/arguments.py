"""Arguments of transformers: taken, without a meaning here, or refused with what to do instead."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """An argument that would change the result. nothing: the value besides None and False that asks for nothing."""

    instead: str
    nothing: Any = None


def check(
    where: str,
    given: Mapping[str, Any],
    *,
    known: Iterable[str] = (),
    ignored: Collection[str] = (),
    refused: Mapping[str, Refusal],
) -> None:
    """Raises ValueError for an argument that is refused and asks for something, TypeError for one nobody knows.

    known: names that are taken elsewhere, to suggest them for a misspelt one.
    """
    for name, value in given.items():
        if name in ignored:
            continue
        if name not in refused:
            raise unknown(where, name, [*known, *ignored, *refused])
        if not asks_nothing(value, refused[name].nothing):
            raise ValueError(f"{where}: {name}={reprlib.repr(value)} is not done here; {refused[name].instead}")


def asks_nothing(value: Any, nothing: Any = None) -> bool:
    """Whether an argument has a value that leaves everything as it is: `nothing`, None, False, an empty collection."""
    if value is None or value is False or (isinstance(value, Collection) and len(value) == 0):
        return True
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value == nothing


def unknown(where: str, name: str, known: Iterable[str]) -> TypeError:
    return TypeError(f"{where}: no argument {name!r}{near(name, known)}")


def near(name: str, known: Iterable[str]) -> str:
    """ ", did you mean ...?" with what is spelt nearly as `name`, or nothing."""
    found = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.7)
    return f", did you mean {' or '.join(found)}?" if found else ""
