"""Regular expressions that cut text into words, as tables: automata over classes of characters.

Where Python has the tokenizers library, a host in C has these tables (csrc/text/words.h, which says how they are laid
out) and needs neither the library nor a table of Unicode. Which characters an expression's parts take is asked of the
library itself, so that both agree whatever version of Unicode it has.

    pattern = branches separated by |           branch = parts, each with ?, +, *, ++ or {1,3} behind it or nothing
    part    = a character, \\r \\n \\s \\S \\p{L}, [...], (?:...), (?i:...), (?!X) or (?<!X) with one character X, or $

An automaton finds what a backtracking search finds: of all ways to match, the one that prefers the earlier branch, and
more repetitions to fewer. Its states are lists of places in the pattern in that order of preference, as in Cox 2009,
Regular Expression Matching: the Virtual Machine Approach.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.pre_tokenizers import Split

from ..errors import FormatError

_CHARACTERS = 0x110000
_SURROGATES = range(0xD800, 0xE000)
_MAX_STATES = 4096
_AT_ONCE = 1 << 13  # characters that the library is asked about: of few it keeps count in the cache


class _Take(NamedTuple):
    """A character of a set, which is a pattern by itself. behind, ahead: it is only looked at, or that it is none."""

    atom: str
    kind: str = "take"


class _Split(NamedTuple):
    """Goes on at the first place, and if that does not match, at the second."""

    first: int
    second: int


_END = _Take("", "end")  # `$`: nothing follows, or a newline
_MATCH = _Take("", "match")
_Code = list["_Take | _Split"]

_ATOM = re.compile(r"\\p\{\w+\}|\\[sSrn]|\\[^\w\s]|\[(?:\\.|[^\]\\])+\]|[^\\()\[\]{}|?*+.^$]", re.DOTALL)
_LOOK = re.compile(r"\(\?(<?)!")
_REPEAT = re.compile(r"\{(\d),(\d)\}|\+\+|[?*+]")


def tables(patterns: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """(classes, automata) of patterns that are applied one after another, as Words in csrc/text/words.h reads them.

    Raises FormatError for a pattern that has something else than what this module's head names, or matches nothing.
    """
    programs = [_Parser(pattern).program() for pattern in patterns]
    atoms = list(dict.fromkeys(part.atom for code in programs for part in code if isinstance(part, _Take)))
    classes, members = _classes(tuple(atom for atom in ("\\n", *atoms) if atom))
    count = 1 + int((classes & 0xFF).max())
    automata = [len(patterns)]
    for pattern, code in zip(patterns, programs):
        automata += _automaton(pattern, code, members, count)
    return classes, np.array(automata, np.int32)


class _Parser:
    """A pattern as instructions."""

    def __init__(self, pattern: str):
        self._pattern = pattern
        self._at = 0
        self._any_case = False

    def program(self) -> _Code:
        code = self._branches()
        if self._at < len(self._pattern):
            self._refuse()
        return [*code, _MATCH]

    def _refuse(self) -> None:
        raise FormatError(f"pattern {self._pattern!r}: {self._pattern[self._at :][:20]!r} is not supported in a table")

    def _takes(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) * found
        return found

    # Jumps are counted from the instruction that holds them, so that code can be put anywhere. A jump that has no
    # choice has it twice.

    def _branches(self) -> _Code:
        code = self._branch()
        if self._takes("|"):
            other = self._branches()
            jump = len(other) + 1
            code = [_Split(1, len(code) + 2), *code, _Split(jump, jump), *other]
        return code

    def _branch(self) -> _Code:
        code: _Code = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            code += self._repeated(self._part())
        return code

    def _part(self) -> _Code:
        if look := _LOOK.match(self._pattern, self._at):
            self._at = look.end()
            atom = self._atom()
            self._close()
            return [_Take(atom, "behind" if look[1] else "ahead")]
        if self._takes("$"):
            return [_END]
        if self._takes("(?:"):
            code = self._branches()
            self._close()
            return code
        if self._takes("(?i:"):
            before, self._any_case = self._any_case, True
            code = self._branches()
            self._any_case = before
            self._close()
            return code
        return [_Take(self._atom())]

    def _atom(self) -> str:
        match = _ATOM.match(self._pattern, self._at)
        if match is None:
            self._refuse()
            raise AssertionError
        self._at = match.end()
        return f"(?i:{match[0]})" if self._any_case else match[0]

    def _close(self) -> None:
        if not self._takes(")"):
            self._refuse()

    def _repeated(self, code: _Code) -> _Code:
        match = _REPEAT.match(self._pattern, self._at)
        if match is None:
            return code
        if not code:
            self._refuse()
        first, *others = code
        if isinstance(first, _Take) and first.kind != "take":
            self._refuse()
        self._at = match.end()
        optional = [_Split(1, len(code) + 1), *code]
        loop = [_Split(1, len(code) + 2), *code, _Split(-len(code) - 1, -len(code) - 1)]
        if match[0] == "?":
            return optional
        if match[0] == "*":
            return loop
        if match[0] == "+":
            return code + loop
        if match[0] == "++":  # gives nothing back: what follows is no more of it
            if not isinstance(first, _Take) or others:
                self._refuse()
            return [*code, *loop, _Take(first.atom, "ahead")]  # type: ignore[union-attr]
        least, most = int(match[1]), int(match[2])
        tail: _Code = []
        for _ in range(most - least):
            tail = [_Split(1, len(code) + len(tail) + 1), *code, *tail]
        return code * least + tail


@functools.lru_cache(maxsize=4)
def _classes(atoms: tuple[str, ...]) -> tuple[NDArray[np.uint32], dict[str, frozenset[int]]]:
    """(classes, the classes of the characters that each atom takes). Characters that no atom tells apart share one.

    The library is asked where runs of members begin and end, and then about one character of each run.
    """
    text = "".join(map(chr, [*range(_SURROGATES.start), *range(_SURROGATES.stop, _CHARACTERS)]))
    cuts = Steps([Split(tokenizers.Regex(f"(?:{atom})+"), "isolated") for atom in atoms])
    begins = np.array(
        [
            at + begin
            for at in range(0, len(text), _AT_ONCE)
            for _, (begin, _) in cuts.pre_tokenize_str(text[at : at + _AT_ONCE])
        ]
    )
    members = np.ones((len(atoms), len(begins)), bool)
    sample = "".join(text[begin] for begin in begins)
    for i, atom in enumerate(atoms):
        for _, (begin, end) in Split(tokenizers.Regex(atom), "removed").pre_tokenize_str(sample):
            members[i, begin:end] = False
    kinds, kind = np.unique(members, axis=1, return_inverse=True)
    if kinds.shape[1] > 255:
        raise FormatError(f"{kinds.shape[1]} classes of characters, expected at most 255")
    starts = np.where(begins >= _SURROGATES.start, begins + len(_SURROGATES), begins)
    kept = np.flatnonzero(np.diff(kind.reshape(-1), prepend=-1))  # surrogates, which no text has, go with what is there
    classes = (starts[kept] << 8 | kind.reshape(-1)[kept]).astype(np.uint32)
    return classes, {atom: frozenset(np.flatnonzero(kinds[i]).tolist()) for i, atom in enumerate(atoms)}


def _automaton(pattern: str, code: _Code, members: dict[str, frozenset[int]], end: int) -> list[int]:
    """Its states, where it begins, and its steps, as csrc/text/words.h has them. Classes are 0 to end - 1, and `end`
    stands for no character."""
    newline = members["\\n"]
    looks_behind = any(isinstance(part, _Take) and part.kind == "behind" for part in code)

    def reached(places: Sequence[int], before: int, after: int) -> tuple[list[int], bool]:
        """The places that take a character, up to the first match, and whether there is one."""
        takes: list[int] = []
        seen: set[int] = set()
        waiting = list(reversed(places))
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            part = code[at]
            if isinstance(part, _Split):
                waiting += [at + part.second, at + part.first]
            elif part.kind == "match":
                return takes, True
            elif part.kind == "take":
                takes.append(at)
            elif part.kind == "end":
                if after == end or after in newline:
                    waiting.append(at + 1)
            elif (after if part.kind == "ahead" else before) not in members[part.atom]:
                waiting.append(at + 1)
        return takes, False

    states: dict[tuple[tuple[int, ...], int], int] = {((), -1): 0}
    order: list[tuple[tuple[int, ...], int]] = []

    def state(places: Sequence[int], before: int) -> int:
        key = (tuple(places), before if places and looks_behind else -1)
        if key not in states:
            states[key] = len(states)
            order.append(key)
            if len(states) > _MAX_STATES:
                raise FormatError(f"pattern {pattern!r}: more than {_MAX_STATES} states")
        return states[key]

    starts = [state([0], before) for before in range(end + 1)]
    steps: list[int] = []
    for places, before in order:  # grows meanwhile
        for after in range(end + 1):
            takes, matched = reached(places, before, after)
            if matched and places == (0,):
                raise FormatError(f"pattern {pattern!r} matches no character at all")
            next_places = [at + 1 for at in takes if after in members[code[at].atom]]  # type: ignore[union-attr]
            steps.append(2 * state(list(dict.fromkeys(next_places)), after) + matched)
    return [len(states), *starts, *steps]
