"""What a reader tells, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thought:
    """The next part of the model's thinking."""

    text: str


@dataclass(frozen=True)
class Text:
    """The next part of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call of the tool `name`. It counts once CallEnds has come; without, it was cut off and is none."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next part of the call's arguments, the JSON text of an object."""

    text: str


@dataclass(frozen=True)
class CallEnds:
    """The call is whole, and its arguments are valid JSON."""


Delta = Thought | Text | CallBegins | CallArguments | CallEnds
