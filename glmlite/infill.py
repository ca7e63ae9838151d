"""Infilling: how the prompts of models that fill blanks, and of those that fill a gap in code, are built.

Source of blanks: Du et al. 2022. A model reads the whole text, blanks included, and writes what belongs into a blank
after a start token, until an end token. `glm` was trained on several blanks: the pieces follow one another and each
sees the earlier ones. `chatglm1` knows one blank at a time, so that earlier answers are put into the text.

Code models have three tokens instead, for what stands before a gap, behind it and in it. CodeGeeX4's guide to infilling
asks for the gap in a turn of a chat; the others get the plain form of other makers' models, before, behind, middle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from .errors import FormatError
from .families import Blanks
from .generate import Completion
from .tokenizer import Tokenizer

_MASK = re.compile(r"\[[gs]?MASK\]")


@dataclass(frozen=True)
class Infill:
    """A text with its masks, or its gap, filled. spans: what was written, in the order of writing. completions: how.

    Special tokens that a completion has are not part of the text, nor is a stop string.
    """

    text: str
    spans: list[str]
    completions: list[Completion]

    def __str__(self) -> str:
        return self.text


class Infiller:
    """The prompts of one architecture."""

    def __init__(self, blanks: Blanks, tokenizer: Tokenizer):
        self.blanks = blanks
        self._tokenizer = tokenizer
        self.masks = [i for mask in self.blanks.masks if (i := tokenizer.id_of(mask)) is not None]
        self.start = self._id(self.blanks.start)
        self.before = [self._id(t) for t in [self.blanks.before] if t]
        self.after = [self._id(t) for t in [self.blanks.after] if t]

    def _id(self, token: str) -> int:
        found = self._tokenizer.id_of(token)
        if found is None:
            raise FormatError(f"tokenizer: has no '{token}', which the model needs to fill blanks")
        return found

    def context(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text as the model reads them, up to where a piece starts."""
        before = [] if self.before == list(ids[: len(self.before)]) else self.before
        mask = [] if any(i in self.masks for i in ids) else [self._id(self.blanks.default)]
        return [*before, *ids, *mask, *self.after]

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """A prompt that is continued, or whose first mask is filled. A text that has its start token is complete, but
        for a second mask and start at its end."""
        if self.start not in ids:
            return [*self.context(ids), self.start]
        end = [self._id(self.blanks.default), self.start]
        ids = list(ids)
        while ids[-4:] == 2 * end:
            del ids[-2:]
        return ids

    def gap(self, before: str, behind: str) -> list[int]:
        """A prompt for what belongs between two texts. Raises ValueError for one with a mask of its own."""
        for name, text in (("prefix", before), ("suffix", behind)):
            if any(mask in text for mask in self.blanks.masks):
                raise ValueError(f"{name}: has a mask of its own, one of {', '.join(self.blanks.masks)}")
        first, second = (self._tokenizer.encode(text, special=False) for text in (before, behind))
        return [*self.context([*first, self._id(self.blanks.default), *second]), self.start]

    def fill(
        self, ids: Sequence[int], complete: Callable[[list[int]], Completion]
    ) -> tuple[list[int], list[Completion]]:
        """The text's ids with every mask replaced by what `complete` answers to its prompt, and the answers."""
        count = sum(i in self.masks for i in ids)
        if not count:
            raise ValueError(f"infill: the text has no mask, expected one of {', '.join(self.blanks.masks)}")
        filled = list(ids)
        pieces: list[int] = []
        completions: list[Completion] = []
        for _ in range(count):
            done = complete([*self.context(ids), *pieces, self.start] if self.blanks.several else self.prompt(filled))
            completions.append(done)
            written = self._written(done)
            pieces += [self.start, *written]
            at = self.target(filled)
            filled[at : at + 1] = written
            if done.finish_reason == "cancelled":
                break
        return filled, completions

    def _written(self, done: Completion) -> list[int]:
        """The ids of a completion's text. Without special tokens: a mask among them would be filled in its turn."""
        ids = [i for i in done.tokens if not self._tokenizer.is_special(i)]
        return ids if self._tokenizer.decode(ids) == done.text else self._tokenizer.encode(done.text, special=False)

    def target(self, ids: Sequence[int]) -> int:
        """Where the mask stands that is filled first; without a mask, the end."""
        if self.blanks.several:
            return next((i for i, token in enumerate(ids) if token in self.masks), len(ids))
        return next((ids.index(mask) for mask in self.masks if mask in ids), len(ids))


class GapFiller:
    """The prompts of a model that fills a gap in code.

    asks: as CodeGeeX4 was trained, in a turn of a chat that may say which file it is.
    """

    def __init__(self, tokenizer: Tokenizer, *, asks: bool):
        self._tokenizer = tokenizer
        self._before, self._behind, self._middle = tokenizer.gap_ids
        turn = [i for text in ("<|user|>", "<|assistant|>") if (i := tokenizer.id_of(text)) is not None]
        self._turn = turn if asks and len(turn) == 2 else []

    def prompt(
        self, before: str, behind: str, path: str | None = None, language: str | None = None, room: int | None = None
    ) -> list[int]:
        """The ids of a prompt. room: the most that it may have; what is farthest from the gap goes."""
        head, tail = self._tokenizer.begin([]), [self._middle]
        if self._turn:
            told = f"###PATH:{path or ''}\n###LANGUAGE:{language or ''}\n###MODE:BLOCK\n" if path or language else ""
            head = [*head, self._turn[0], *self._ids("\n" + told)]
            tail = [*tail, self._turn[1], *self._ids("\n")]
        first, second = self._ids(before), self._ids(behind)
        if room is not None:
            first, second = _nearest(first, second, room - len(head) - len(tail) - 2)
        parts = [self._before, *first], [self._behind, *second]
        return [*head, *chain.from_iterable(reversed(parts) if self._turn else parts), *tail]

    def _ids(self, text: str) -> list[int]:
        """Nothing in it is a special token: code may have any."""
        return self._tokenizer.encode(text, special=False)


def split(text: str) -> tuple[str, str]:
    """What stands before and behind the one mask of a text. Raises ValueError."""
    before, *behind = _MASK.split(text)
    if len(behind) != 1:
        raise ValueError(f"infill: the text has {len(behind) or 'no'} masks, expected one, [MASK]")
    return before, behind[0]


def _nearest(before: list[int], behind: list[int], room: int) -> tuple[list[int], list[int]]:
    """What is nearest to a gap: three parts of what is before it to one of what is behind it, or more of one where
    there is less of the other."""
    if len(before) + len(behind) <= room:
        return before, behind
    room = max(room, 0)
    few = min(len(behind), max(room // 4, room - len(before)))
    return before[len(before) - (room - few) :], behind[:few]
