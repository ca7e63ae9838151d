"""Which cached beginning serves whom: the sequences of an engine that are kept when their requests have ended.

A sequence holds keys and values of some tokens. A later request whose prompt begins like it takes the sequence over,
or a fork of it, and reads only the rest. Beginnings are compared by *items*, one for each token: the token's id, or,
where many contents stand behind one id (the places of an image), a hash of the content. And they are shared only
among requests of an equal *key*, which names what else the cached values depend on: an adapter, for instance.

Pages: the cache is a pool of them. Kept sequences give theirs back when they run short, the least recently used first.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

KEPT = 16  # finished sequences kept for reuse


class Sequence:
    """A sequence of the engine. items: of the tokens that its cache holds."""

    def __init__(self, handle: int, key: Hashable, items: array[int], shared: bool = False):
        self.handle = handle
        self.key = key
        self.items = items
        self.shared = shared  # its last page may be another's too, and is copied before it is written


class Pool:
    """Makes the sequences of an engine, and keeps those that may serve again. Used by one thread."""

    def __init__(self, engine: Any):
        self.engine = engine
        self.kept: list[Sequence] = []  # least recently used first

    def new(self, key: Hashable = None) -> Sequence:
        """An empty sequence."""
        return Sequence(self.engine.new_sequence(), key, items_of(), shared=self.engine.prefix > 0)

    def find(self, items: array[int], key: Hashable = None, running: Iterable[Sequence] = ()) -> Sequence:
        """A sequence that holds as much of the beginning of `items` as any kept or running one of this key does.

        It is the caller's: a kept one that is all beginning is taken out of the pool, others are forked.
        """
        best, length = self.longest(items, key, running)
        if best is None:
            return self.new(key)
        if best in self.kept:
            self.kept.remove(best)
            if length == len(best.items):
                return best
            self.kept.append(best)
        best.shared = True
        return Sequence(self.engine.fork(best.handle, length), key, best.items[:length], shared=True)

    def longest(self, items: array[int], key: Hashable, running: Iterable[Sequence]) -> tuple[Sequence | None, int]:
        """The kept or running sequence of this key that begins like `items` for longest, and for how many of them."""
        best, length = None, 0
        for sequence in [*self.kept, *running]:
            if sequence.key == key and (n := common(sequence.items, items)) > length:
                best, length = sequence, n
        return best, length

    def keep(self, sequence: Sequence) -> None:
        """Takes a sequence that nobody uses any more, for a later `find`."""
        if not sequence.items:
            self.free(sequence)
            return
        self.kept.append(sequence)
        if len(self.kept) > KEPT:
            self.free(self.kept.pop(0))

    def free(self, sequence: Sequence) -> None:
        """Gives the pages of a sequence back that is not kept."""
        self.engine.free(sequence.handle)

    def make_room(self, pages: int) -> bool:
        """Frees kept sequences until so many pages are free; False if they are not."""
        while self.engine.kv_free() // self.engine.page_tokens < pages:
            if not self.kept:
                return False
            self.free(self.kept.pop(0))
        return True

    def pages(self, sequence: Sequence, count: int) -> int:
        """Pages, at most, that `count` more tokens take."""
        page, length = self.engine.page_tokens, len(sequence.items) + self.engine.prefix
        have = length // page if sequence.shared else -(-length // page)
        return int(-(-(length + count) // page) - have)


def items_of(values: Iterable[int] = ()) -> array[int]:
    """Items as they are kept and compared: integers of 64 bits, signed."""
    return array("q", values)


def common(a: array[int], b: array[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    if not n:
        return 0
    differ = np.frombuffer(a, np.int64, n) != np.frombuffer(b, np.int64, n)
    first = int(differ.argmax())
    return first if differ[first] else n
