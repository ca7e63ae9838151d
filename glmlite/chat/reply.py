"""A reply while it is written: what its reader tells, as parts that a stream passes on, and its calls of tools."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .readers import CallArguments, CallBegins, CallEnds, Delta, Reader, Text, Thought

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24


@dataclass(frozen=True)
class CallPart:
    """The next part of a call of a tool.

    index: which call of the answer, from 0. id, name: in the first part of a call only. arguments: the next part of
    the JSON text of its arguments.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A whole call of a tool. arguments: the JSON text of an object."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """As a message has it, in the shape of the OpenAI API."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Part(NamedTuple):
    """What came next, in this order."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[CallPart, ...] = ()


class Reply:
    """An answer that is read as it comes.

    calls: the whole ones so far. A call that the answer's end cut off has parts in the stream, but is none of them.
    """

    def __init__(self, reader: Reader):
        self.calls: list[ToolCall] = []
        self._reader = reader
        self._index = -1
        self._id = self._name = ""
        self._arguments: list[str] = []

    def feed(self, text: str) -> list[Part]:
        """What the next text of the answer makes certain; several parts where one would lose the order."""
        return self._parts(self._reader.feed(text))

    def finish(self, ended_by: str) -> list[Part]:
        """What is left at the end. ended_by: the finish_reason."""
        return self._parts(self._reader.finish(ended_by))

    def _parts(self, deltas: Iterable[Delta]) -> list[Part]:
        parts: list[Part] = []
        current = Part()
        for delta in deltas:
            if isinstance(delta, Thought):
                if current != Part():
                    parts.append(current)
                current = Part(reasoning=delta.text)
            elif isinstance(delta, Text):
                if current.calls:
                    parts.append(current)
                    current = Part()
                current = current._replace(text=current.text + delta.text)
            elif (part := self._call(delta)) is not None:
                current = current._replace(calls=(*current.calls, part))
        if current != Part():
            parts.append(current)
        return parts

    def _call(self, delta: CallBegins | CallArguments | CallEnds) -> CallPart | None:
        if isinstance(delta, CallBegins):
            self._index += 1
            self._id = "call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
            self._name = delta.name
            self._arguments = []
            return CallPart(self._index, self._id, self._name)
        if isinstance(delta, CallArguments):
            self._arguments.append(delta.text)
            return CallPart(self._index, arguments=delta.text)
        self.calls.append(ToolCall(self._id, self._name, "".join(self._arguments)))
        return None
