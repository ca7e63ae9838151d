"""Which replica a request prefers: the one that has read the beginning of its conversation before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["beginning", "ranked"]

TEXT = 512  # characters of a text that tell it from others

T = TypeVar("T")


def beginning(body: bytes) -> str:
    """A key that all rounds of a conversation have in common: of its model, tools and messages up to the first of the
    user. "": none, where the body is no prompt."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return ""  # the replica says what is wrong with it
    if not isinstance(asked, dict):
        return ""
    said = next((asked[name] for name in ("messages", "input", "prompt") if asked.get(name)), None)
    if said is None:
        return ""
    if isinstance(said, list):
        first = next((i for i, each in enumerate(said) if isinstance(each, dict) and each.get("role") == "user"), 0)
        said = said[: first + 1]
    elif isinstance(said, str):
        said = said[:TEXT]
    before = [asked.get(name) for name in ("model", "tools", "system", "instructions")]
    return _digest(json.dumps([before, said]))


def ranked(key: str, places: Iterable[T], name: Callable[[T], Any]) -> list[T]:
    """Places in the order in which a key prefers them. A place that comes or goes changes the first of few keys: its
    own."""
    return sorted(places, key=lambda place: _digest(f"{key} {name(place)}"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
