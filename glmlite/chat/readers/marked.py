r"""Calls between marks: `<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value>...</tool_call>`, as GLM-4.5 and
later write them, and JSON between `<tool_call>` and `</tool_call>`, as many other models do.

White space between marks means nothing. A value is text where the tool's schema says string, and is told as it comes;
others are told when they are whole, because only then is their type known.

Marks that are missing or stand in the wrong order are taken for those that belong there, as far as that is certain: a
value ends where another key and its value follow, or the call's end. Nothing completes an argument that was cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, ClassVar

from .deltas import CallArguments, CallBegins, CallEnds
from .literals import read_json, read_values, write
from .reader import END_THINK, THINK, Reader
from .schema import Parameters

CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY = "<arg_key>", "</arg_key>"
VALUE, END_VALUE = "<arg_value>", "</arg_value>"

_LONGEST_NAME = 256
_LONGEST_STRAY = 4096  # characters where none belong, that may still become an argument
# A function's name, unless it is declared, has no blanks, quotes or brackets.
_NAME = re.compile(r"[^\s<>\"'`(){}\[\],;]*\w[^\s<>\"'`(){}\[\],;]*")
# The end of a text whose mark is missing: the line end before the next mark is none of it.
_LINE_END = re.compile(r"(?:\r|\r?\n[ \t]{0,64})\Z")
_LONGEST_LINE_END = 66
_QUOTE = re.compile(r"\\.?|[\"']", re.S)
# Marks within a value that end it because its own is missing, and what may become them.
_NEXT_ARGUMENT = ((KEY, END_KEY, VALUE), (KEY, VALUE))
_NEXT_CALL = (CALL, KEY)
_UNDECIDED = ((KEY,), (KEY, END_KEY), (CALL,))


class Marked(Reader):
    """See the module."""

    marks: ClassVar[tuple[str, ...]] = (THINK, END_THINK, CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._interrupted = False  # a call ended a thought, whose mark may still come

    def _in_thought(self, part: str, mark: bool) -> None:
        if mark and part == CALL and self._tools:
            self._call_opens(self._in_thought)
        else:
            super()._in_thought(part, mark)

    def _in_text(self, part: str, mark: bool) -> None:
        if mark and part == CALL and self._tools:
            self._call_opens(self._in_text)
        elif mark and part == END_CALL and self._calls and not self._text.visible:
            pass  # once more than needed
        elif not self._think_mark(part, mark):
            self._say(part)

    def _think_mark(self, part: str, mark: bool) -> bool:
        if mark and part == END_THINK and self._interrupted and self._splits:
            self._interrupted = False
            self._text.end()
            return True
        return super()._think_mark(part, mark)

    # ---- what looks like a call, until the first mark within or behind it

    def _call_opens(self, back: Callable[[str, bool], None]) -> None:
        self._back = back
        self._raw = [CALL]  # text, if it is no call
        self._announced = False
        self._name = ""
        self._stray = ""
        self._state = self._in_name

    def _no_call(self, again: bool = False) -> None:
        """It is text, or part of a thought, up to here. again: the last mark means there what it means."""
        mark = self._raw.pop() if again else ""
        text, self._raw = "".join(self._raw), []
        self._state = self._back
        (self._think if self._back == self._in_thought else self._say)(text)
        if mark:
            self._state(mark, True)

    def _in_name(self, part: str, mark: bool) -> None:
        self._raw.append(part)
        if not mark:
            self._name = (self._name + part).lstrip()
            self._name_grows()
        elif part == CALL and not self._name:
            pass  # once more than needed
        elif part in (THINK, END_THINK) or not self._is_name():
            self._no_call(again=part != END_CALL)
        else:
            self._name_ends()
            self._arguments_mark(part)

    def _name_grows(self) -> None:
        if self._name[:1] in ("{", "["):
            self._body_begins(self._name)
            return
        end = re.search(r"[\n{]", self._name)
        if end is None:
            words = self._name.split()
            if len(self._name) > _LONGEST_NAME or (len(words) > 1 and not self._begins_name(" ".join(words))):
                self._no_call()
            return
        rest = self._name[end.start() :]
        self._name = self._name[: end.start()]
        if not self._is_name():
            self._no_call()
            return
        self._name_ends()
        self._strays(rest)

    def _begins_name(self, text: str) -> bool:
        return any(name.startswith(text) for name in self._tools)

    def _is_name(self) -> bool:
        name = self._name.strip()
        return name in self._tools or (len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None)

    def _name_ends(self) -> None:
        self._name = self._name.strip()
        self._parameters = self._parameters_of(self._name)
        self._keys: set[str] = set()
        self._state = self._in_arguments

    def _parameters_of(self, name: str) -> Parameters:
        return Parameters(self._tools.get(name, {}).get("parameters"))

    # ---- between arguments

    def _in_arguments(self, part: str, mark: bool) -> None:
        if not self._announced:
            self._raw.append(part)
        if mark:
            self._arguments_mark(part)
        else:
            self._strays(part)

    def _arguments_mark(self, mark: str) -> None:
        stray = self._stray.strip()
        if mark in (THINK, END_THINK):
            if not self._announced:
                self._no_call(again=True)
        elif mark == END_CALL and stray and not self._announced:
            self._no_call()
        elif mark == CALL:
            self._mark_is_missing()
            self._call_opens(self._in_text)
        else:
            self._announce()
            self._stray = ""
            if mark == END_CALL:
                self._call_ends()
            elif mark == KEY:
                self._key_begins()
            elif mark == END_KEY and stray:
                self._key_ends(stray)
            elif mark == VALUE:
                self._value_begins(stray)

    def _strays(self, text: str) -> None:
        """Text where none belongs: a key without its mark, or JSON in place of all arguments."""
        if len(self._stray) <= _LONGEST_STRAY:
            self._stray += text
        if self._announced:
            return
        if self._stray.lstrip()[:1] == "{":
            self._body_begins(self._stray, self._name)
        elif len(self._stray) > _LONGEST_STRAY:
            self._no_call()

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._call_begins(self._name)

    def _call_begins(self, name: str) -> None:
        self._interrupted = self._interrupted or self._back == self._in_thought
        self._raw = []
        if self._splits:
            self._thought.end()
        self._text.end()
        self._calls += 1
        self._call(CallBegins(name))

    def _call_ends(self) -> None:
        self._call(CallArguments("}" if self._keys else "{}"), CallEnds())
        self._state = self._in_text

    def _mark_is_missing(self) -> None:
        """A call ends without its mark: it is whole if nothing else is missing."""
        self._announce()
        if self._parameters.required <= self._keys and not self._stray.strip():
            self._call_ends()

    # ---- a key

    def _key_begins(self) -> None:
        self._key: list[str] = []
        self._state = self._in_key

    def _in_key(self, part: str, mark: bool) -> None:
        if not mark or part in (THINK, END_THINK):
            self._key.append(part)
        elif part == END_KEY:
            self._key_ends("".join(self._key))
        elif part == VALUE:
            self._value_begins("".join(self._key))
        elif part == KEY:
            self._key_begins()
        else:
            self._no_value(part)

    def _no_value(self, mark: str) -> None:
        """A key without a value is no argument."""
        self._state = self._in_arguments
        if mark != END_VALUE:
            self._arguments_mark(mark)

    def _key_ends(self, key: str) -> None:
        self._key = [key]
        self._unmarked: list[str] = []  # a value without its mark
        self._state = self._behind_key

    def _behind_key(self, part: str, mark: bool) -> None:
        if not mark or part in (THINK, END_THINK):
            self._unmarked.append(part)
            return
        text = "".join(self._unmarked)
        if part == VALUE:
            self._value_begins(self._key[0])
        elif part == END_KEY:
            pass  # once more than needed
        elif text.strip():
            self._value_begins(self._key[0])
            self._value(text.lstrip("\r\n"))
            self._value_ends(missing=part != END_VALUE)
            self._no_value(part)
        else:
            self._no_value(part)

    # ---- a value

    def _value_begins(self, key: str) -> None:
        self._key = [key.strip()]
        self._kind = self._parameters.kind(self._key[0])
        self._parts: list[str] = []  # of a value whose type is known at its end
        self._tail = ""  # of a text, that is none of it if its mark is missing
        self._empty = True
        self._pending: list[tuple[str, bool]] = []
        self._blank = True  # all text that waits is white space
        self._state = self._in_value
        if self._told_at_once():
            self._argument(': "')

    def _told_at_once(self) -> bool:
        return bool(self._key[0]) and self._kind.is_text

    def _argument(self, text: str) -> None:
        """Tells an argument's name, and the beginning of its value or all of it."""
        key = self._key[0]
        self._call(CallArguments((", " if self._keys else "{") + write(key) + text))
        self._keys.add(key)

    def _value(self, text: str) -> None:
        """The next part of it."""
        self._empty = self._empty and not text.strip()
        if not self._told_at_once():
            self._parts.append(text)
            return
        text = self._tail + text
        end = _LINE_END.search(text, max(0, len(text) - _LONGEST_LINE_END))
        self._tail = end[0] if end else ""
        self._tell(text[: len(text) - len(self._tail)])

    def _tell(self, text: str) -> None:
        """A part of a text, within its quotes."""
        if text:
            self._call(CallArguments(write(text)[1:-1]))

    def _value_ends(self, missing: bool = False) -> None:
        """missing: without its mark."""
        if self._told_at_once():
            self._tell("" if missing else self._tail)
            self._call(CallArguments('"'))
        elif self._key[0]:
            text = "".join(self._parts)
            self._argument(": " + write(self._kind.value(_LINE_END.sub("", text) if missing else text)))
        self._state = self._in_arguments

    def _in_value(self, part: str, mark: bool) -> None:
        if self._pending:
            self._pending.append((part, mark))
            self._blank = self._blank and (mark or part.isspace())
            self._decide()
        elif mark and part == END_VALUE:
            self._value_ends()
        elif mark and part in (KEY, CALL, END_CALL):
            self._pending = [(part, mark)]
            self._blank = True
        elif not (mark and part == VALUE and self._empty):
            self._value(part)

    def _decide(self) -> None:
        """Whether what waits ends the value, whose own mark is missing, or is part of it.

        It ends it if it is another argument's key and the mark of its value; the mark of the call's end and right
        behind it that of another call; or that of another call, its name and the mark of an argument.
        """
        part, mark = self._pending[-1]
        if mark and part == END_VALUE:
            self._keep(len(self._pending) - 1)
        elif self._pending[0][0] == END_CALL:
            # So no value begins within what waits, and looking at it again never waits again.
            begins = mark and part in (KEY, VALUE)
            if (mark and part == CALL and self._blank) or (begins and self._names_call()):
                self._value_is_over()
            elif begins:
                self._keep(len(self._pending) - 1)
        else:
            marks = tuple(text for text, is_mark in self._pending if is_mark)
            size = sum(len(text) for text, is_mark in self._pending if not is_mark)
            if marks in _NEXT_ARGUMENT or (marks == _NEXT_CALL and self._names_call()):
                self._value_is_over()
            elif marks not in _UNDECIDED or size > _LONGEST_NAME or (len(marks) == 2 and not mark and part.strip()):
                self._keep(1)

    def _names_call(self) -> bool:
        """Whether what waits ends with another call, its name and the mark of an argument."""
        behind = list(takewhile(lambda part: not part[1], reversed(self._pending[:-1])))
        begins = self._pending[-2 - len(behind)] == (CALL, True)
        return begins and _NAME.fullmatch("".join(text for text, _ in reversed(behind)).strip()) is not None

    def _keep(self, count: int) -> None:
        """The first `count` of what waits are part of the value; the rest is looked at again."""
        waiting, self._pending = self._pending, []
        self._value("".join(text for text, _ in waiting[:count]))
        for text, mark in waiting[count:]:
            self._state(text, mark)

    def _value_is_over(self) -> None:
        """It ended before what waits."""
        waiting, self._pending = self._pending, []
        self._value_ends(missing=True)
        for text, mark in waiting:
            self._state(text, mark)

    # ---- JSON in place of marks

    def _body_begins(self, text: str, name: str = "") -> None:
        """name: of the tool whose arguments it is; without one, JSON names it."""
        self._body: list[str] = []
        self._body_name = name
        self._quoted = self._escaped = False
        self._quote = ""  # the one that is open, where the body is a Python literal
        self._state = self._in_body
        self._body_grows(text)

    def _in_body(self, part: str, mark: bool) -> None:
        self._raw.append(part)
        if mark and not (self._quoted and self._quote) and part in (CALL, END_CALL):
            self._body_ends(part)
        else:
            self._body_grows(part)

    def _body_grows(self, text: str) -> None:
        self._body.append(text)
        begin, self._escaped = int(self._escaped), False
        for match in _QUOTE.finditer(text, begin):
            found = match[0]
            self._quoted ^= found == '"'
            if found == self._quote:
                self._quote = ""
            elif not self._quote and found[0] != "\\":
                self._quote = found
            self._escaped = found == "\\"  # the character behind it comes with the next part

    def _body_ends(self, mark: str = "", cut: bool = False) -> None:
        calls = _calls("".join(self._body), self._body_name)
        if mark != END_CALL and not all(self._parameters_of(name).required <= a.keys() for name, a in calls):
            calls = []
        if not calls and cut:
            self._text.end()
            return
        if not calls:
            self._no_call(again=mark == CALL)
            return
        for name, arguments in calls:
            self._call_begins(name)
            self._call(CallArguments(write(arguments)), CallEnds())
        self._state = self._in_text
        if mark == CALL:
            self._state(mark, True)

    # ---- the end of the answer

    def _end(self, cut: bool) -> None:
        if self._state == self._in_value and self._pending and self._pending[0][0] == END_CALL and not cut:
            self._value_is_over()
        if self._state == self._in_body:
            self._body_ends(cut=cut)
        elif self._state == self._in_arguments and self._announced:
            if not cut:  # another argument may have been to come
                self._mark_is_missing()
        elif self._state in (self._in_name, self._in_arguments) and cut:
            self._text.end()
        elif self._state in (self._in_name, self._in_arguments):
            name = self._name.strip()
            whole = name in self._tools and not self._parameters_of(name).required and not self._stray.strip()
            if whole:
                self._name_ends()
                self._mark_is_missing()
            else:
                self._no_call()


def _calls(text: str, name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The calls that a body of JSON makes; none if it is anything else."""
    try:
        values = read_values(text)
    except ValueError:
        return []
    if name:
        return [(name, values[0])] if len(values) == 1 and isinstance(values[0], dict) else []
    calls: list[tuple[str, Mapping[str, Any]]] = []
    for value in values:
        call = value.get("function", value) if isinstance(value, dict) else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return []
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = read_json(arguments or "{}")
            except ValueError:
                return []
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict) or not call["name"].strip():
            return []
        calls.append((call["name"].strip(), arguments))
    return calls
