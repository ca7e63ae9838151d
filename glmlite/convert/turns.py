"""A dialect as a table of what stands between one message's text and the next, for programs that run no templates.

It is found by rendering conversations of marks, and held against what the dialect makes of conversations of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..chat import template
from ..chat.dialects import Dialect
from ..chat.dialects.dialect import encode as encode_pieces
from ..tokenizer import Tokenizer

__all__ = ["Turns", "find"]

START, ANSWER = "start", "answer"
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
# Conversations by the first letters of their roles. What the first of them say is needed, the others may be refused.
_NEEDED = ("u", "uau")
_MORE = ("su", "suau", "uu", "uaau", "uauau", "suauau", "usu", "uasu", "s", "ssu")
# Texts with what templates and vocabularies treat in their own ways: blanks and line ends around them, control tokens.
_TEXTS = (
    "Hello there",
    "你好，世界！",
    "  two blanks,\n\nlines \n",
    "<|user|> is [gMASK] <sop> no token, nor </s> or <|im_start|>",
    "def f(x):\n    return 1234567 🙂",
    "\n\n1. one\n2. two",
    "don't STOP 👩🏽‍🚀 café",
)


class Turns(NamedTuple):
    """How a conversation becomes a prompt.

    between: what stands between the texts of two messages of these roles, before the first ("start") and where an
    answer begins ("answer"): a text, which is encoded together with the messages' (`joined`), or ids. begins: the
    model's prefix stands in front once. stripped: roles whose texts are stripped of white space. empty: whether
    messages without text are "kept", "left out", or "refused". control: tokens that are broken apart in messages.
    """

    joined: bool
    begins: bool
    between: Mapping[tuple[str, str], str | list[int]]
    stripped: frozenset[str]
    empty: str
    control: Sequence[str]

    def render(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """As `glmlite.chat.render`: what a program does that has only this table. Raises KeyError for neighbours of
        which it says nothing."""
        if self.empty == "left out":
            messages = [message for message in messages if message["content"]]
        text, ids = "", []
        roles = [START, *(message["role"] for message in messages), ANSWER]
        for (before, role), message in zip(pairwise(roles), [*messages, None]):
            content = "" if message is None else message["content"]
            if role in self.stripped:
                content = content.strip()
            if self.joined:
                text += str(self.between[before, role]) + template.broken(content, self.control)
            else:
                ids += [*self.between[before, role], *tokenizer.encode(content, special=False, prefix=False)]
        if self.joined:
            ids = template.encode(tokenizer, text)
        if not self.begins:
            return ids
        prefix, ids = tokenizer.prefix_ids, tokenizer.begin(ids)
        if len(prefix) == 1:
            return ids
        return ids[: len(prefix)] + [i for i in ids[len(prefix) :] if i not in prefix]

    def metadata(self) -> dict[str, Any]:
        """As an exported file has it."""
        at = "glmlite.chat."
        found = {
            at + "joined": self.joined,
            at + "begins": self.begins,
            at + "before": [before for before, _ in self.between],
            at + "after": [after for _, after in self.between],
            at + "stripped": sorted(self.stripped),
            at + "empty": self.empty,
            at + "control": list(self.control),
        }
        values = list(self.between.values())
        if self.joined:
            return {**found, at + "texts": values}
        ids = [np.asarray(value, np.int32) for value in values]
        ends = np.cumsum([len(value) for value in ids])
        return {**found, at + "ids": np.concatenate(ids), at + "ends": ends.astype(np.uint32)}


def find(dialect: Dialect) -> Turns:
    """The table of a dialect. Raises ValueError for one that has none: which, and why."""
    metadata, tokenizer, _ = dialect.file
    joined = dialect.chat_format == "template"
    where = "the file's chat template" if joined else f"the chat format {dialect.name}"
    if joined and "strftime_now" in dialect.file.template:
        raise ValueError(f"{where} writes the date into the prompt")
    if dialect.file.row.prefix == "last":
        raise ValueError(f"{where} has the model's beginning at the end")
    between: dict[tuple[str, str], str | list[int]] = {}
    stripped: set[str] = set()
    for roles in _NEEDED + _MORE:
        try:
            parts, trimmed = _joined(dialect, roles) if joined else _pieces(dialect, roles)
        except ValueError as error:
            if roles in _NEEDED:
                raise ValueError(f"{where}: {error}") from None
            continue
        stripped |= trimmed
        names = [START, *(_ROLES[role] for role in roles), ANSWER]
        for pair, part in zip(pairwise(names), parts):
            if between.setdefault(pair, part) != part:
                raise ValueError(f"{where} puts other things between '{pair[0]}' and '{pair[1]}' in {roles!r}")
    control = template.control_tokens(metadata, tokenizer) if joined else []
    for empty in ("kept", "left out", "refused"):
        turns = Turns(joined, joined or dialect.begins, between, frozenset(stripped), empty, control)
        wrong = next((c for c in _conversations(turns) if not _agrees(turns, dialect, c)), None)
        if wrong is None:
            return turns
    raise ValueError(f"{where} is no table of what stands between messages: it says something else of {wrong}")


def _messages(roles: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": _ROLES[role], "content": text} for role, text in zip(roles, texts)]


def _joined(dialect: Dialect, roles: str) -> tuple[list[str], set[str]]:
    """What a template writes between marks in place of texts, and the roles whose texts it strips."""
    metadata, tokenizer, _ = dialect.file
    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
    messages = _messages(roles, [f" {mark} " for mark in marks])
    rest = template.render(metadata, tokenizer, messages, [], {}, generate=True)
    parts, stripped = [], set()
    for role, mark in zip(roles, marks):
        if rest.count(mark) != 1:
            raise ValueError(f"it has the text of a message {rest.count(mark)} times")
        before, rest = rest.split(mark)
        if before.endswith(" ") and rest.startswith(" "):
            before, rest = before[:-1], rest[1:]
        else:
            stripped.add(_ROLES[role])
        parts.append(before)
    return [*parts, rest], stripped


def _pieces(dialect: Dialect, roles: str) -> tuple[list[list[int]], set[str]]:
    """The same of a dialect that writes its prompts itself, as ids."""
    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
    rest = dialect.pieces(_messages(roles, marks), [], True)
    parts = []
    for mark in marks:
        if mark not in rest:
            raise ValueError("it joins the texts of messages with its own")
        at = rest.index(mark)
        parts.append(rest[:at])
        rest = rest[at + 1 :]
    return [encode_pieces(dialect.file.tokenizer, dialect.name, part) for part in [*parts, rest]], set()


def _conversations(turns: Turns) -> Iterator[list[dict[str, Any]]]:
    """What the table is tried with: all neighbours that it has, and each text in each place."""
    tried = [roles for roles in _NEEDED + _MORE if _known(turns, roles)]
    for roles in tried:
        for first in range(len(_TEXTS)):
            yield _messages(roles, [_TEXTS[(first + i) % len(_TEXTS)] for i in range(len(roles))])
    if turns.empty != "refused":
        for roles in tried:
            for gap in range(len(roles)):
                left = roles[:gap] + roles[gap + 1 :]
                if turns.empty == "kept" or (left and _known(turns, left)):
                    yield _messages(roles, ["" if i == gap else _TEXTS[i] for i in range(len(roles))])


def _known(turns: Turns, roles: str) -> bool:
    return all(pair in turns.between for pair in pairwise([START, *(_ROLES[role] for role in roles), ANSWER]))


def _agrees(turns: Turns, dialect: Dialect, messages: list[dict[str, Any]]) -> bool:
    try:
        want = dialect.render(messages, [], {}, generate=True, goes_on=False)
    except ValueError:
        return False
    return turns.render(dialect.file.tokenizer, messages) == want
