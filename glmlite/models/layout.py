"""Where the tokens of a prompt stand: their positions, and how many of them see each other.

A layout function takes the ids of a prompt (as they enter the model, special tokens included) and
a lookup of special tokens by text, and returns a `Layout`. It is asked again for every prompt, with
all its tokens, also when the first of them are cached already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..program import AXES

Special = Callable[[str], "int | None"]


class Layout(NamedTuple):
    """The places of n prompt tokens and of those that will be generated after them.

    positions: (n, AXES) int32, of each token (ordinary models use the first axis).
    context: the first `context` tokens see each other and enter the model in one step; 0 = causal.
    next_position: of the first generated token; position_step: from one generated token to the next.
    """

    positions: np.ndarray
    context: int
    next_position: tuple[int, ...]
    position_step: tuple[int, ...]


LayoutFunction = Callable[[Sequence[int], Special], Layout]


def place(*axes: int) -> tuple[int, ...]:
    """A position at 0 on the axes that are not given."""
    return axes + (0,) * (AXES - len(axes))


def in_order(start: int, count: int) -> np.ndarray:
    """(count, AXES) int32: one place after the other on the first axis, from `start` on."""
    positions = np.zeros((count, AXES), np.int32)
    positions[:, 0] = np.arange(start, start + count)
    return positions


def causal(ids: Sequence[int], special: Special) -> Layout:
    """Token i stands at i on the first axis and sees the tokens up to itself."""
    return Layout(in_order(0, len(ids)), 0, place(len(ids)), place(1))


def infilling(length: int, starts: Sequence[int], masks: Sequence[int]) -> Layout:
    """A bidirectional context, then pieces that each fill one mask of it (Du et al. 2022, figure 2).

    length: tokens of the prompt. starts: indices of the tokens that start a piece, ascending; the
    context ends before the first. masks: the index in the context of the mask that each piece fills.
    A context token stands at (index, 0), the j-th token of a piece, from 1, at (its mask, j).
    """
    if not starts:
        raise ValueError("infilling: the prompt has no token that starts the generated piece")
    positions = in_order(0, length)
    ends = [*starts[1:], length]
    for start, end, mask in zip(starts, ends, masks):
        positions[start:end, 0] = mask
        positions[start:end, 1] = np.arange(1, end - start + 1)
    last, block = positions[-1, :2]
    return Layout(positions, starts[0], place(int(last), int(block) + 1), place(0, 1))


def indices(ids: Sequence[int], wanted: int | None) -> list[int]:
    """Where `wanted` stands in `ids`; nowhere if the vocabulary has no such token (None)."""
    return [] if wanted is None else [i for i, id in enumerate(ids) if id == wanted]
