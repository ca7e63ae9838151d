r"""Calls without marks: a message whose first line is a tool's name.

`<|assistant|>` within an answer begins another message. Only a declared name makes a call, and only if the rest of the
message is its arguments and nothing else, so nothing of a call is told before it is whole; what can no longer be one
is text. Of other messages at most the longest name and two characters wait.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from .deltas import CallArguments, CallBegins, CallEnds
from .literals import read_call, read_json, write
from .reader import END_THINK, THINK, Reader
from .schema import Parameters

ASSISTANT = "<|assistant|>"

_BLANKS = " \t\r"
_MOST_BLANKS = 2  # behind a name
# Tools that the models were trained to give plain text to.
_TAKE_TEXT = frozenset(["interpreter", "python", "cogview"])


class Unmarked(Reader):
    """See the module."""

    marks: ClassVar[tuple[str, ...]] = (THINK, END_THINK, ASSISTANT)
    parts: ClassVar[bool] = True

    def __init__(self, *args: Any, continues: bool = False, **options: Any):
        super().__init__(*args, continues=continues, **options)
        self._message_begins(plain=continues)

    def _may_be_arguments(self, part: str) -> bool:
        """Whether what follows the name can still be its arguments, after the next part of it."""
        raise NotImplementedError

    def _arguments(self, body: str, cut: bool) -> Mapping[str, Any] | None:
        """The arguments that stand behind the name; None: they are none."""
        raise NotImplementedError

    def _text_argument(self) -> str:
        """The one argument of a tool that takes plain text; empty for other tools."""
        names = Parameters(self._tools[self._name].get("parameters")).names
        return names[0] if self._name in _TAKE_TEXT and len(names) == 1 else ""

    def _message_begins(self, plain: bool = False) -> None:
        self._held: list[str] = []  # text, if it is no call
        self._line = ""  # the first, without white space before it
        self._name = ""  # the tool that it names
        self._plain = plain or not self._tools

    def _in_text(self, part: str, mark: bool) -> None:
        if mark and part == ASSISTANT:
            self._message_ends()
            self._text.end()
            self._message_begins()
        elif mark and not self._line and not self._text.visible:
            self._say("".join(self._held))
            self._held.clear()
            self._think_mark(part, mark)
        elif self._plain:
            self._say(part)
        else:
            self._held.append(part)
            if not (self._may_be_arguments(part) if self._name else self._may_be_named(part)):
                self._release()

    def _may_be_named(self, part: str) -> bool:
        """Whether the message can still be a call, after the next part of its first line."""
        self._line = (self._line + part).lstrip()
        line, end, rest = self._line.partition("\n")
        name = line.rstrip(_BLANKS)
        if end or line != name:
            if name not in self._tools or len(line) - len(name) > _MOST_BLANKS:
                return False
            self._name = name if end else ""
            return not end or self._may_be_arguments(rest)
        return any(tool.startswith(name) for tool in self._tools)

    def _release(self) -> None:
        self._plain = True
        self._say("".join(self._held))
        self._held.clear()

    def _message_ends(self, cut: bool = False) -> None:
        if self._plain:
            return
        body = "".join(self._held).lstrip().partition("\n")[2]
        arguments = self._arguments(body, cut) if self._name else None
        if arguments is None:
            self._release()
            return
        self._text.end()
        self._calls += 1
        self._call(CallBegins(self._name), CallArguments(write(arguments)), CallEnds())

    def _end(self, cut: bool) -> None:
        self._message_ends(cut)


class NamedJson(Unmarked):
    r"""`name\n{json}`, of GLM-4."""

    def _message_begins(self, plain: bool = False) -> None:
        super()._message_begins(plain)
        self._object = _Object()

    def _may_be_arguments(self, part: str) -> bool:
        return bool(self._text_argument()) or self._object.grows(part)

    def _arguments(self, body: str, cut: bool) -> Mapping[str, Any] | None:
        text = self._text_argument()
        try:
            value = read_json(body)
        except ValueError:
            value = None
        if isinstance(value, dict) and (not text or value.keys() <= {text}):
            return value
        return {text: body.strip()} if text and not cut else None


class NamedPython(Unmarked):
    r"""`name\n```python\ntool_call(key='value')\n````, of ChatGLM3: literals, which are read and never run."""

    def _message_begins(self, plain: bool = False) -> None:
        super()._message_begins(plain)
        self._opened = False

    def _may_be_arguments(self, part: str) -> bool:
        part = part.lstrip()
        if self._opened or not part:
            return True
        self._opened = True
        return part[0] in ("`", "t")

    def _arguments(self, body: str, cut: bool) -> Mapping[str, Any] | None:
        code = body.strip()
        if code.startswith("```"):
            code = code.partition("\n")[2]
        inside = code.removesuffix("```")
        if text := self._text_argument():
            return {text: inside.strip("\r\n")} if inside != code else None
        try:
            return read_call(inside, "tool_call")
        except ValueError:
            return None


_BRACKET = re.compile(r"\\.?|[\"{}\[\]]", re.S)


class _Object:
    """A text that comes in parts and may be one JSON object."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self._closed = False

    def grows(self, text: str) -> bool:
        """Whether it still may be, by its brackets."""
        if not self._depth:
            text = text.lstrip()
            if not text or self._closed:
                return not text
            if text[0] != "{":
                return False
        begin, self._escaped = int(self._escaped), False
        for match in _BRACKET.finditer(text, begin):
            found = match[0]
            if found[0] == "\\":
                self._escaped = len(found) == 1  # the character behind it comes with the next part
            elif found == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self._depth += 1 if found in "{[" else -1
                if not self._depth:
                    self._closed = True
                    return not text[match.end() :].strip()
        return True
