"""A thought of at most so many tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .constrain import BURST, After, Constraint, Mask, Thought, Vocabulary

__all__ = ["Budget"]


class _Free:
    """A constraint of nothing."""

    stops: Collection[int] = ()
    forbidden: Collection[int] = ()
    active = done = False

    def mask(self) -> Mask | None:
        return None

    def accept(self, tokens: Sequence[int]) -> None:
        pass

    def forced(self, most: int) -> list[int]:
        return []

    def reset(self) -> None:
        pass


class Budget:
    """A constraint of the thought that an answer may begin with, and `rest`, one of all of the answer.

    Once the thought has `tokens` tokens, the tokens `end` are what must come, and the thought is over. Tokens are drawn
    one at a time only where a burst could write more than are left.
    """

    def __init__(
        self, tokens: int, thought: Thought, end: Sequence[int], rest: Constraint | None, vocabulary: Vocabulary
    ):
        self._tokens = tokens
        self._thought = thought
        self._end = list(end)
        self._rest: Constraint = _Free() if rest is None else rest
        self._over = After(thought.end, _Free(), vocabulary)
        self._vocabulary = vocabulary
        self.stops: Collection[int] = frozenset(self._over.stops).union(self._rest.stops)
        self._begin()

    def _begin(self) -> None:
        self._left = self._tokens
        self._thinks = self._thought.begin is None
        self._may_think = not self._thinks
        self._ending = self._end if self._thinks and not self._left else []

    @property
    def forbidden(self) -> Collection[int]:
        return self._rest.forbidden

    @property
    def active(self) -> bool:
        near = (self._thinks or self._may_think) and self._left < BURST
        return bool(self._ending) or near or self._rest.active

    @property
    def done(self) -> bool:
        return not self._ending and self._rest.done

    def mask(self) -> Mask | None:
        if not self._ending:
            return self._rest.mask()
        words = np.zeros(-(-self._vocabulary.size // 32), np.uint32)
        words[self._ending[0] // 32] = 1 << self._ending[0] % 32
        return words

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._rest.accept([token])
            if self._ending:
                self._ending = self._ending[1:]
                self._thinks = bool(self._ending)
            elif self._thinks:
                self._think(token)
            elif self._may_think:
                self._thinks = token == self._thought.begin
                self._may_think = not self._thinks and self._vocabulary.piece(token).isspace()
                if self._thinks and not self._left:
                    self._ending = self._end

    def _think(self, token: int) -> None:
        self._left -= 1
        self._over.accept([token])
        if self._over.begun:
            self._thinks = False
        elif not self._left:
            self._ending = self._end

    def forced(self, most: int) -> list[int]:
        if not self._ending:
            return self._rest.forced(most)
        tokens = self._ending[:most]
        self.accept(tokens)
        return tokens

    def reset(self) -> None:
        self._rest.reset()
        self._over.reset()
        self._begin()
