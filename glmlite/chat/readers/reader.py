"""Thoughts and text: what every reader does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

from .deltas import CallBegins, CallEnds, Delta, Text, Thought
from .lexer import Lexer
from .stretches import Stretches

THINK, END_THINK = "<think>", "</think>"


class Reader:
    """Reads an answer: `feed` it the text in any parts, then `finish`.

    tools: that were offered, in the shape of the OpenAI API; without any, nothing is a call. in_thought: the prompt
    ends inside a thought. continues: it ends inside a text. thoughts: split from the text; else they stay in it, with
    their marks. trim: white space at the beginning is no text. parallel: several calls; else those after the first are
    left out. spelled: how a mark is spelled in what is fed, where not as itself.

    A thought stands where an answer begins, or behind a thought or a call; a mark within text is text.
    """

    marks: ClassVar[tuple[str, ...]] = (THINK, END_THINK)
    """Every text that means something to it; tokens that are spelled so have to stay in the text."""
    parts: ClassVar[bool] = False
    """Whether marks part text without tools, too."""

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        in_thought: bool = False,
        continues: bool = False,
        thoughts: bool = True,
        trim: bool = True,
        parallel: bool = True,
        spelled: Mapping[str, str] | None = None,
    ):
        self._tools = {tool["function"]["name"]: tool["function"] for tool in tools}
        self._splits = thoughts
        self._parallel = parallel
        self._lexer = Lexer({(spelled or {}).get(mark, mark): mark for mark in self.marks})
        self._text = Stretches(trim=trim and not continues, holds=self.parts or bool(tools))
        self._text.visible = continues
        self._thought = Stretches()
        self._out: list[Delta] = []
        self._calls = 0
        self._state: Callable[[str, bool], None] = self._in_thought if in_thought else self._in_text
        self._over = False

    def feed(self, text: str) -> list[Delta]:
        """What the next part of the answer makes certain."""
        if not self._over:
            for part, mark in self._lexer.feed(text):
                self._state(part, mark)
        return self._take()

    def finish(self, ended_by: str = "stop") -> list[Delta]:
        """What is left at the end. ended_by: a finish_reason; with any but "stop" the answer was cut off."""
        if not self._over:
            self._over = True
            if held := self._lexer.finish():
                self._state(held, False)
            self._end(ended_by != "stop")
            self._say(self._text.rest(), trimmed=True)
        return self._take()

    def _take(self) -> list[Delta]:
        """What has been told, neighbours of a kind as one."""
        out: list[Delta] = []
        for kind, group in groupby(self._out, type):
            deltas = list(group)
            texts = [delta.text for delta in deltas if not isinstance(delta, CallBegins | CallEnds)]
            out += [kind("".join(texts))] if texts else deltas
        self._out = []
        return out

    # ---- states: each takes the next part, and whether it is a mark

    def _in_thought(self, part: str, mark: bool) -> None:
        if mark and part == END_THINK:
            self._thought_ends()
        elif not (mark and part == THINK and not self._thought.visible and self._splits):
            self._think(part)

    def _in_text(self, part: str, mark: bool) -> None:
        if not self._think_mark(part, mark):
            self._say(part)

    def _end(self, cut: bool) -> None:
        """The answer is over; cut: not by the model."""

    # ---- thoughts and text

    def _think_mark(self, part: str, mark: bool) -> bool:
        """Whether a mark begins a thought, or ends one that nothing began."""
        if not mark or part not in (THINK, END_THINK) or self._text.visible:
            return False
        if part == THINK:
            self._state = self._in_thought
        if self._splits:
            self._text.end()
        else:
            self._say(part)
        return True

    def _thought_ends(self) -> None:
        self._state = self._in_text
        if self._splits:
            self._thought.end()
        else:
            self._say(END_THINK)

    def _think(self, text: str) -> None:
        if not self._splits:
            self._say(text)
        elif certain := self._thought.write(text):
            self._out.append(Thought(certain))

    def _say(self, text: str, trimmed: bool = False) -> None:
        if certain := text if trimmed else self._text.write(text):
            self._out.append(Text(certain))

    # ---- calls

    def _call(self, *deltas: Delta) -> None:
        """Tells of the call that was counted last."""
        if self._parallel or self._calls == 1:
            self._out += deltas
