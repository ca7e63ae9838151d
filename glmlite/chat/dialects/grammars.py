"""Grammars of calls of tools in each dialect's own form, in llguidance's variant of Lark.

A tool's schema may have what llguidance does not know. It leaves out such keywords; where it refuses a schema all the
same, `untyped` leaves out more. The tool's owner checks the arguments anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..readers.marked import CALL, END_CALL, END_KEY, END_VALUE, KEY, VALUE
from ..readers.schema import Parameters

Tools = Sequence[Mapping[str, Any]]

# Compact, spaced and indented JSON, but no run of line ends, in which models get lost.
_JSON_OPTIONS = {"whitespace_pattern": r"\n? {0,8}", "lenient": True}
_REFERRED_TO = ("$defs", "definitions")
_LINE_END = r'"\n"'


class Grammar:
    """Rules that are collected; `str` of it is the grammar."""

    def __init__(self) -> None:
        self._rules: list[str] = []

    def rule(self, name: str, *alternatives: str) -> str:
        """Adds a rule and returns its name."""
        self._rules.append(f"{name}: {' | '.join(alternatives)}")
        return name

    def json(self, name: str, schema: Any, root: Any = None) -> str:
        """Adds a rule for JSON of a schema, which may refer to parts of another, `root`."""
        own = dict(schema) if isinstance(schema, Mapping) else {}
        if isinstance(root, Mapping):
            own = {**{key: root[key] for key in _REFERRED_TO if key in root}, **own}
        options = own.get("x-guidance")
        own["x-guidance"] = {**_JSON_OPTIONS, **(options if isinstance(options, Mapping) else {})}
        return self.rule(name, f"%json {json.dumps(own)}")

    def __str__(self) -> str:
        return "\n".join(self._rules) + "\n"


def untyped(tools: Tools) -> list[dict[str, Any]]:
    """Tools of whose parameters only the names are left, and which of them are required."""
    out = []
    for tool in tools:
        schema = Parameters(tool["function"].get("parameters"))
        names = list(dict.fromkeys([*schema.names, *sorted(schema.required)]))
        parameters = {
            "type": "object",
            "properties": {name: {} for name in names},
            "required": [name for name in names if name in schema.required],
            "additionalProperties": schema.takes_others,
        }
        out.append({**tool, "function": {**tool["function"], "parameters": parameters}})
    return out


def quoted(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)


def marked(tools: Tools, id_of: Callable[[str], int | None], *, line: str, begun: bool, several: bool) -> str | None:
    """Calls between marks, with `line` between the marks; None for a vocabulary that has no tokens for them: other
    tokens that spell a mark are none. begun: the first mark has been written, and one call is all; else all calls are,
    one or, with `several`, more."""
    ids = {mark: id_of(mark) for mark in (CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)}
    if None in ids.values():
        return None
    mark = {text: f"<[{token}]>" for text, token in ids.items()}
    end = quoted(line) if line else ""
    grammar = Grammar()

    def argument(key: str, value: str) -> str:
        return f"{mark[KEY]} {key} {mark[END_KEY]} {end} {mark[VALUE]} {value} {mark[END_VALUE]} {end}"

    def arguments(name: str, parameters: Any) -> str:
        """Any that a tool declares, in any order, as many as it requires."""
        schema = Parameters(parameters)
        keys = schema.names
        if not keys:
            return f"({argument('TEXT', 'TEXT?')})*" if schema.takes_others else ""
        each = []
        for i, key in enumerate(keys):
            kind = schema.kind(key)
            if kind.members and all(isinstance(member, str) for member in kind.members):
                value = f"({' | '.join(map(quoted, kind.members))})"
            elif kind.types is None or not kind.types or "string" in kind.types:
                value = "TEXT?"
            else:
                value = grammar.json(f"{name}_{i}", schema.schema_of(key), parameters)
            each.append(argument(quoted(key), value))
        return f"({' | '.join(each)}){{{len(schema.required & set(keys))},}}"

    bodies = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        found = arguments(f"tool_{i}", function.get("parameters"))
        bodies.append(grammar.rule(f"tool_{i}", f"{quoted(function['name'])} {end} {found}"))
    grammar.rule("call", f"({' | '.join(bodies)}) {mark[END_CALL]}")
    more = f" ({end} {mark[CALL]} call)*" if several else ""
    grammar.rule("start", "call" if begun else f"{_LINE_END}? {mark[CALL]} call{more}")
    grammar.rule("TEXT", "/(?s:.+)/")
    return str(grammar)


def json_between_marks(tools: Tools, id_of: Callable[[str], int | None], *, begun: bool, several: bool) -> str:
    r"""`<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>`; see `marked`. The marks may be text."""
    ids = {mark: id_of(mark) for mark in (CALL, END_CALL)}
    mark = {text: quoted(text) if token is None else f"<[{token}]>" for text, token in ids.items()}
    grammar = Grammar()
    bodies = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        begin = '{"name": ' + json.dumps(function["name"], ensure_ascii=False) + ', "arguments": '
        arguments = grammar.json(f"tool_{i}", _object(function.get("parameters")))
        bodies.append(f"{quoted(begin)} {arguments} {quoted('}')}")
    grammar.rule("call", f"{_LINE_END}? ({' | '.join(bodies)}) {_LINE_END}? {mark[END_CALL]}")
    more = f" ({_LINE_END}? {mark[CALL]} call)*" if several else ""
    before = f"{_LINE_END}? {_LINE_END}?"
    grammar.rule("start", "call" if begun else f"{before} {mark[CALL]} call{more}")
    return str(grammar)


def named_json(tools: Tools, *, before: bool) -> str:
    r"""`name\n{json}`. before: lines may be empty before it."""
    grammar = Grammar()
    calls = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        arguments = grammar.json(f"tool_{i}", _object(function.get("parameters")))
        calls.append(f"{quoted(function['name'])} {_LINE_END} {arguments}")
    lines = f"{_LINE_END}? {_LINE_END}? " if before else ""
    grammar.rule("start", f"{lines}({' | '.join(calls)})")
    return str(grammar)


def named_python(tools: Tools) -> str:
    r"""`name\n```python\n` and whatever follows: Python has no grammar here."""
    grammar = Grammar()
    names = " | ".join(quoted(tool["function"]["name"]) for tool in tools)
    grammar.rule("start", f"({names}) {quoted(chr(10) + '```python' + chr(10))} TEXT")
    grammar.rule("TEXT", "/(?s:.+)/")
    return str(grammar)


def _object(parameters: Any) -> dict[str, Any]:
    return {"type": "object", **(parameters if isinstance(parameters, Mapping) else {})}
