"""Where the tokens of a prompt stand: their positions, and how many of them see each other.

A layout function takes the ids of a prompt (as they enter the model, special tokens included) and
a lookup of special tokens by text, and returns a `Layout`. It is asked again for every prompt, with
all its tokens, also when the first of them are cached already. A prompt with images is laid out by
`with_images`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..program import AXES

Special = Callable[[str], "int | None"]
IMAGE = -1  # stands in a prompt's ids for each row of an image


class Layout(NamedTuple):
    """The places of n prompt tokens and of those that will be generated after them.

    positions: (n, AXES) int32, of each token (ordinary models use the first axis alone).
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


def everywhere(position: int) -> tuple[int, ...]:
    """The same position on every axis, as text has it."""
    return (position,) * AXES


def in_order(start: int, count: int) -> np.ndarray:
    """(count, AXES) int32: one place after the other on every axis, from `start` on."""
    return np.repeat(np.arange(start, start + count, dtype=np.int32)[:, None], AXES, axis=1)


def causal(ids: Sequence[int], special: Special) -> Layout:
    """Token i stands at i on every axis and sees the tokens up to itself."""
    return Layout(in_order(0, len(ids)), 0, everywhere(len(ids)), everywhere(1))


def with_images(ids: Sequence[int], grids: Sequence[tuple[int, int]]) -> Layout:
    """Text in order and, for each run of rows * columns ids that are `IMAGE`, an image of that grid (Wang et al. 2024).

    An image that begins at p stands at (p, p + row, p + column), and what follows it goes on at p + max(rows, columns)
    on every axis: fewer positions than tokens. Raises ValueError where ids and grids do not fit.
    """
    positions, where, p = np.empty((len(ids), AXES), np.int32), 0, 0
    images = np.flatnonzero(np.asarray(ids, np.int64) == IMAGE)
    if len(images) != (want := sum(rows * columns for rows, columns in grids)):
        raise ValueError(f"images: {len(images)} places, expected {want} for grids of {list(grids)}")
    for rows, columns in grids:
        begin, count = int(images[0]), rows * columns
        if count < 1 or images[count - 1] != begin + count - 1:
            raise ValueError(f"images: {rows} x {columns} rows are not together from token {begin} on")
        positions[where:begin] = in_order(p, begin - where)
        p += begin - where
        positions[begin : begin + count] = p
        positions[begin : begin + count, 1:] += np.indices((rows, columns), np.int32).reshape(2, -1).T
        where, p, images = begin + count, p + max(rows, columns), images[count:]
    positions[where:] = in_order(p, len(ids) - where)
    return Layout(positions, 0, everywhere(p + len(ids) - where), everywhere(1))


def infilling(length: int, starts: Sequence[int], masks: Sequence[int]) -> Layout:
    """A bidirectional context, then pieces that each fill one mask of it (Du et al. 2022, figure 2).

    length: tokens of the prompt. starts: indices of the tokens that start a piece, ascending; the
    context ends before the first. masks: the index in the context of the mask that each piece fills.
    On the first two axes a context token stands at (index, 0), the j-th token of a piece, from 1, at (its mask, j).
    """
    if not starts:
        raise ValueError("infilling: the prompt has no token that starts the generated piece")
    positions = np.zeros((length, AXES), np.int32)
    positions[:, 0] = np.arange(length)
    ends = [*starts[1:], length]
    for start, end, mask in zip(starts, ends, masks):
        positions[start:end, 0] = mask
        positions[start:end, 1] = np.arange(1, end - start + 1)
    last, block, *_ = positions[-1]
    return Layout(positions, starts[0], place(int(last), int(block) + 1), place(0, 1))


def indices(ids: Sequence[int], wanted: int | None) -> list[int]:
    """Where `wanted` stands in `ids`; nowhere if the vocabulary has no such token (None)."""
    return [] if wanted is None else [i for i, id in enumerate(ids) if id == wanted]
