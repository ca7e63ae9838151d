"""What a model is asked for, in the words that it was trained with, and how its answer ends and is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["TASKS", "Loop", "fields_prompt", "fields_schema", "without_fence"]

# GLM-OCR's prompts; any other wording makes its answers worse.
TASKS = {"text": "Text Recognition:", "table": "Table Recognition:", "formula": "Formula Recognition:"}
_FIELDS = "请按下列JSON格式输出图中信息:\n"
DEEPEST = 16

_FENCE = re.compile(r"\s*```[\w-]*\n(?P<inside>.*?)\n?```\s*", re.S)


def fields_prompt(fields: Mapping[str, Any]) -> str:
    """The prompt of an extraction: an object whose values are empty."""
    return _FIELDS + json.dumps(dict(fields), ensure_ascii=False, indent=4)


def fields_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of objects that have the keys of `fields`, all of them and no others, nested as they are there.

    A value is a text, unless a number, true or false stands in its place. A list is one of what its first item is
    like. Raises ValueError where there is no key, and TypeError.
    """
    if not isinstance(fields, Mapping):
        raise TypeError(f"fields: {type(fields).__name__}, expected an object of names and empty values")
    return _schema(fields, "fields", 0)


def _schema(value: Any, where: str, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise ValueError(f"fields: nested more than {DEEPEST} deep, expected less")
    if isinstance(value, Mapping):
        if not value:
            raise ValueError(f"{where}: an empty object, expected names of what is wanted")
        names = {str(name): _schema(inner, f"{where}.{name}", depth + 1) for name, inner in value.items()}
        return {"type": "object", "properties": names, "required": list(names), "additionalProperties": False}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = _schema(value[0], f"{where}[0]", depth + 1) if value else {"type": "string"}
        return {"type": "array", "items": items}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int | float):
        return {"type": "number"}
    if value is None or isinstance(value, str):
        return {"type": "string"}
    raise TypeError(f"{where}: {type(value).__name__}, expected a text, a number, true or false, a list or an object")


def without_fence(text: str) -> str:
    """An answer without the ```json fence that stands around all of it, and without white space around it."""
    fenced = _FENCE.fullmatch(text)
    return (fenced["inside"] if fenced and "```" not in fenced["inside"] else text).strip()


class Loop:
    """Notices that an answer repeats itself: the same 20 or more tokens four times one after another, fewer tokens for
    LONG in all, or a line LINES times; rows of empty cells ROWS times.

    A form has tables that are empty, and lines of dots, so what is short, or says nothing, must be repeated for long.
    """

    LONGEST = 1024  # tokens of what is repeated
    SHORT, TIMES, LONG, LINES, ROWS = 20, 4, 320, 24, 64
    # Rows of tables, of HTML or Markdown; a tag may be cut at both ends.
    _EMPTY = re.compile(r"[/trdh]*>?(?:</?t[rdh]\b[^<>]*>|[\s|])*(?:<[^<>]*)?")

    def __init__(self) -> None:
        self._last = np.full(self.LONGEST, -1, np.int64)  # the latest first
        self._same = np.zeros(self.LONGEST, np.int64)  # [p - 1]: for how many tokens each is the one p before it
        self._tokens = 0
        periods = np.arange(1, self.LONGEST + 1)
        self._most = np.where(periods < self.SHORT, self.LONG, (self.TIMES - 1) * periods)
        self._lengths: list[tuple[int, int]] = []  # (tokens, characters) after each piece
        self._text = ""

    def feed(self, tokens: Sequence[int], text: str) -> int | None:
        """Takes a piece of the answer. Where it has come to repeat itself: how many characters of the answer are
        enough, which end with the piece that the second of the repeated begins in; else None."""
        for token in tokens:
            self._same = np.where(self._last == token, self._same + 1, 0)
            self._last[1:] = self._last[:-1].copy()
            self._last[0] = token
        self._tokens += len(tokens)
        self._text += text
        self._lengths.append((self._tokens, len(self._text)))
        first = self._repeated_tokens()
        if first is not None:
            return first
        return self._repeated_lines() if "\n" in text else None

    def _repeated_tokens(self) -> int | None:
        """The characters up to where the second of the repeated has begun."""
        looping = np.flatnonzero(self._same >= self._most)
        if not len(looping):
            return None
        same, short = self._same[looping[0]], self._same[: self.SHORT - 1]
        # What repeats after two tokens repeats after twenty, too.
        if looping[0] + 1 >= self.SHORT and (short + np.arange(1, self.SHORT) >= same + looping[0] + 1).any():
            return None
        first = self._tokens - int(same)
        enough = next(length for count, length in self._lengths if count >= first)
        few = same < (self.ROWS - 1) * (looping[0] + 1)
        return None if few and self._EMPTY.fullmatch(self._text, enough) else enough

    def _repeated_lines(self) -> int | None:
        lines = self._text.rstrip("\n").split("\n")[-self.ROWS :]
        most = self.ROWS if self._EMPTY.fullmatch(lines[-1]) else self.LINES
        lines = lines[-most:]
        if len(lines) < most or not lines[0].strip() or any(line != lines[0] for line in lines):
            return None
        return len(self._text.rstrip("\n")) - (most - 1) * (len(lines[0]) + 1)
