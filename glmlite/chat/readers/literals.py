"""Values written as JSON or as Python literals, read without running anything."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_DEEPEST = 64
_MOST_DIGITS = 1000  # of a whole number: Python's own limit is 4300, and its time quadratic
_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<string>[rR]?(?:'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\""
    r"|'(?!'')[^'\\\n]*(?:\\.[^'\\\n]*)*'|\"(?!\"\")[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"))"
    r"|(?P<number>[-+]?(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+"
    r"|(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?))"
    r"|(?P<word>[^\W\d]\w*)"
    r"|(?P<sign>[\[\](){},:=]))",
    re.S,
)
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(\r\n|.))", re.S)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\n": "", "\r\n": ""}


def _number(text: str) -> int | float:
    if re.fullmatch(r"[-+]?(?:0[xXoObB]\w+|[\d_]+)", text):
        if len(text) > _MOST_DIGITS:
            raise ValueError(f"{len(text)} digits")
        return int(text, 0)
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_depth(text: str) -> None:
    """Raises ValueError for JSON that is nested too deeply."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += match[0] in "[{"
        depth -= match[0] in "]}"
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")


_JSON = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_constant)
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.S)  # strings, too, which may hold brackets
_BETWEEN = re.compile(r"[\s,;]*")


def read_json(text: str) -> Any:
    """The value of a JSON text whose numbers are finite. Raises ValueError, also for what is nested more deeply than
    whoever reads it next may bear."""
    try:
        value = _JSON.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_depth(text)
    return value


def read_values(text: str) -> list[Any]:
    """The values of a list, or those that stand one behind another, as JSON or a literal. Raises ValueError."""
    values, at = [], 0
    try:
        while at < len(text):
            value, end = _JSON.raw_decode(text, at)
            values.append(value)
            _check_depth(text[at:end])
            between = _BETWEEN.match(text, end)
            at = between.end() if between else end
    except (ValueError, RecursionError):
        values = [read_literal(text)]
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def read_literal(text: str) -> Any:
    """The value of a Python literal that JSON has a place for; a tuple is a list. Raises ValueError."""
    reader = _Literals(text)
    value = reader.value()
    reader.expect("")
    return value


def read_call(text: str, name: str) -> dict[str, Any]:
    """The keyword arguments of a call of `name`, literals all of them. Raises ValueError."""
    reader = _Literals(text)
    reader.expect("word", name)
    reader.expect("sign", "(")
    arguments = {}
    while reader.kind != "sign" or reader.text != ")":
        keyword = reader.text
        reader.expect("word")
        reader.expect("sign", "=")
        arguments[keyword] = reader.value()
        if reader.text != ")":
            reader.expect("sign", ",")
    reader.expect("sign", ")")
    reader.expect("")
    return arguments


def write(value: Any) -> str:
    """A value as JSON. Half of a character in two (a lone surrogate), which is no text, becomes U+FFFD."""
    return whole(json.dumps(value, ensure_ascii=False))


def whole(text: str) -> str:
    """A text without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class _Literals:
    """kind, text: of the token to be read next; "" at the end."""

    def __init__(self, text: str):
        self._source = text.rstrip()
        self._at = 0
        self.kind = self.text = ""
        self._next()

    def _next(self) -> None:
        if self._at == len(self._source):
            self.kind = self.text = ""
            return
        match = _TOKEN.match(self._source, self._at)
        if match is None:
            raise ValueError(f"no literal at {self._at}")
        self._at = match.end()
        self.kind = match.lastgroup or ""
        self.text = match[self.kind]

    def expect(self, kind: str, text: str | None = None) -> None:
        """Reads a token. Raises ValueError if it is another."""
        if self.kind != kind or (text is not None and self.text != text):
            raise ValueError(f"{self.text!r}, should be {text or kind or 'the end'}")
        if kind:
            self._next()

    def value(self, depth: int = 0) -> Any:
        kind, text = self.kind, self.text
        if depth == _DEEPEST and text in ("[", "(", "{"):
            raise ValueError("nested too deeply")
        self.expect(kind if kind in ("string", "number", "word") else "sign")
        if kind == "string":
            parts = [_unquoted(text)]
            while self.kind == "string":
                parts.append(_unquoted(self.text))
                self._next()
            return "".join(parts)
        if kind == "number":
            return _number(text)
        if kind == "word" and text in _WORDS:
            return _WORDS[text]
        if text == "[":
            return self._values("]", depth)[0]
        if text == "(":
            values, commas = self._values(")", depth)
            return values if commas or not values else values[0]
        if text == "{":
            return self._pairs(depth)
        raise ValueError(f"{text!r} is no literal")

    def _values(self, end: str, depth: int) -> tuple[list[Any], int]:
        """Values up to `end`, and how many commas followed one."""
        values: list[Any] = []
        commas = 0
        while self.kind != "sign" or self.text != end:
            values.append(self.value(depth + 1))
            if self.text != end or self.kind != "sign":
                self.expect("sign", ",")
                commas += 1
        self._next()
        return values, commas

    def _pairs(self, depth: int) -> dict[str, Any]:
        pairs = {}
        while self.kind != "sign" or self.text != "}":
            key = self.value(depth + 1)
            if not isinstance(key, str):
                raise ValueError(f"{key!r} is no key in JSON")
            self.expect("sign", ":")
            pairs[key] = self.value(depth + 1)
            if self.text != "}" or self.kind != "sign":
                self.expect("sign", ",")
        self._next()
        return pairs


def _unquoted(text: str) -> str:
    raw = text[0] in "rR"
    text = text[raw:]
    quotes = 3 if text[:3] in ("'''", '"""') else 1
    text = text[quotes : len(text) - quotes]
    if raw or "\\" not in text:
        return text

    def escaped(match: re.Match[str]) -> str:
        octal, two, four, eight, other = match.groups()
        if other is None:
            return chr(int(octal, 8) if octal else int(two or four or eight, 16))
        if other in "\\'\"":
            return other
        if other in "xuUN":
            raise ValueError(f"{match[0]}: no such character")
        return _ESCAPES.get(other, match[0])

    return _ESCAPE.sub(escaped, text)
