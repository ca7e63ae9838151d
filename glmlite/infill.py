"""Blank infilling: how the prompts of `glm` and `chatglm1` are built, and how their masks are filled one by one.

Source: Du et al. 2022. A model reads the whole text, blanks included, and writes what belongs into a blank after a
start token, until an end token. `glm` was trained on several blanks: the pieces follow one another and each sees the
earlier ones. `chatglm1` knows one blank at a time, so that earlier answers are put into the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import FormatError
from .families import Blanks
from .generate import Completion
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Infill:
    """A text with its masks filled. spans: what was written, in the order of writing. completions: how.

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
