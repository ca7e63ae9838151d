"""A page cut into blocks by its white space, in reading order: columns first, ruled tables whole. No model is asked.

A tower's attention grows with the square of what it sees, so eleven blocks cost a tenth of their page; and a model that
reads a block has no columns to guess the order of.

    page = cut(image)
    for block in page.blocks:
        page.image.crop(block.box)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

__all__ = ["Block", "Cut", "cut"]

Mask = NDArray[np.bool_]  # (height, width): ink
Spans = list[tuple[int, int]]  # (begin, end) of stretches
Box = tuple[slice, slice]  # of rows and columns

MOST_PATCHES = 1000
PATCH = 14
LONGEST = 1800  # pixels of the long side that a layout is looked for in
LARGEST_SKEW = 5.0  # degrees
WIDEST = 40  # pixels; white space that is wider is not between two lines of a text
LEAST_SKEW = 0.15  # less turns no line into its neighbour
RULE = 0.06  # of the page's short side: shorter lines are not rules
LEAST_RULE = 60  # pixels; strokes of large letters are shorter
CELL = 8  # pixels
THICK = 8  # pixels; thicker lines are areas
TALLEST = 100  # pixels; a line of text may be so tall on any picture
GUTTER = 0.9  # heights of a line of text: the white between columns
COLUMN = 7.0  # heights of a line of text: narrower columns are a list's numbers, or a table's
WHITE = 10.0  # heights of a line of text, squared: the white of a gutter
FEWEST = 4  # lines of a column
FULL = 0.75  # of a column's width: its lines of text are so long, but for the last of a paragraph


class Block(NamedTuple):
    """box: (left, top, right, bottom) in pixels of `Cut.image`. kind: "text" or "table" (ruled). continues: begins in
    the middle of the text before it, which was cut only because it was large."""

    box: tuple[int, int, int, int]
    kind: str = "text"
    continues: bool = False


@dataclass(frozen=True)
class Cut:
    """image: upright, its lines level. blocks: in reading order; none on an empty page. turned: by how many degrees,
    counterclockwise, the page was turned to be so."""

    image: Image.Image
    blocks: list[Block]
    turned: float = 0.0


class Band(NamedTuple):
    """Rows of a region that hold ink, white above and below: mostly a line of text."""

    top: int
    bottom: int
    table: bool = False


def cut(image: Image.Image, most_patches: int = MOST_PATCHES) -> Cut:
    """The blocks of a page (RGB), none of more than `most_patches` patches if white space surely allows.

    A page that lies on its side is set upright, and one up to 5 degrees askew is levelled. Which way is up is seen of
    Latin letters, of which more reach up than down. So a page in another script is turned by 90 degrees
    counterclockwise if it lies on its side, and left as it is if it is upside down.
    """
    turned = 0.0
    dark = _is_dark(image)
    ink = _ink(image, dark)
    quarter = _quarter_turns(ink)
    if quarter:
        image = image.transpose(
            (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[quarter - 1]
        )
        ink = _ink(image, dark)
    skew = _skew(_without(ink, _rules(ink)))
    if abs(skew) >= LEAST_SKEW:
        image = image.rotate(skew, Image.Resampling.BICUBIC, fillcolor="black" if dark else "white")
        # The ink of the turned image would have the edge of the paper.
        levels = Image.fromarray(ink.astype(np.uint8) * 255).rotate(skew, Image.Resampling.BILINEAR)
        ink = np.asarray(levels, np.uint8) >= 128
        turned = skew
    step = _step(image)
    blocks = [
        Block(tuple(min(side * step, most) for side, most in zip(block.box, 2 * image.size)), *block[1:])  # type: ignore[arg-type]
        for block in _blocks(ink, most_patches / step**2)
    ]
    return Cut(image, blocks, turned + 90 * quarter)


# ---- ink


def _step(image: Image.Image) -> int:
    return max(1, math.ceil(max(image.size) / LONGEST))


def _is_dark(image: Image.Image) -> bool:
    """Whether letters are lighter than the page. A note that lies on a dark table is a light page."""
    grey = _grey(image)
    return bool(np.median(np.asarray(grey)) < 128) and _are_lighter(grey)


def _are_lighter(grey: Image.Image) -> bool:
    """Whether letters are lighter than what is around them: they take less room than what is between them."""
    light, dark = np.count_nonzero(_darker(ImageOps.invert(grey))), np.count_nonzero(_darker(grey))
    return bool(0 < 2 * light < dark)


def _ink(image: Image.Image, dark: bool) -> Mask:
    """What is darker than the paper around it, lighter on a dark page, without specks; one pixel for each step * step
    of the image. In a banner or a panel whose letters are lighter than it, those."""
    grey = _grey(image)
    levels = np.array(ImageOps.invert(grey) if dark else grey)
    letters: Mask = np.zeros(levels.shape, np.bool_)
    areas = np.zeros_like(letters)
    paper = np.median(levels)
    for box, area in _areas(levels < 0.75 * paper):
        own = levels[box].copy()
        own[_around(~area, edge=True)] = np.median(own[area])
        panel = Image.fromarray(own)
        if _are_lighter(panel):
            letters[box] |= _darker(ImageOps.invert(panel))
            areas[box] |= area
    levels[_around(areas)] = paper
    letters |= _darker(Image.fromarray(levels))
    return letters


def _areas(dark: Mask) -> Iterator[tuple[Box, Mask]]:
    """(box, what of it) of what is mostly dark and larger than letters, with what is written in it."""
    levels = Image.fromarray(dark.astype(np.uint8) * 255)
    for box, part in _connected(np.asarray(levels.filter(ImageFilter.BoxBlur(CELL))) >= 128):
        part &= dark[box]
        area = _spanned(part, 0) & _spanned(part, 1)
        if max(area.shape) >= 2 * TALLEST and np.count_nonzero(area) < 2 * np.count_nonzero(part):
            yield box, area


def _spanned(mask: Mask, axis: int) -> Mask:
    """A mask with all that lies between two of its True along the axis."""
    behind = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
    spanned: Mask = np.logical_or.accumulate(mask, axis) & behind
    return spanned


def _grey(image: Image.Image) -> Image.Image:
    grey = image.convert("L")
    return grey.reduce(_step(image)) if _step(image) > 1 else grey


def _darker(grey: Image.Image) -> Mask:
    """What is darker than the lightest around it."""
    levels = np.asarray(grey).astype(np.int16)
    small = np.asarray(grey.reduce(4)) if min(grey.size) >= 4 else np.asarray(grey)
    paper = Image.fromarray(_most_of(small, 8)).resize(grey.size, Image.Resampling.BILINEAR)
    darker = np.asarray(paper).astype(np.int16) - levels
    ink = darker > max(32.0, 0.22 * float(np.percentile(darker[::4, ::4], 99.5)))
    return ink & ~_border(levels) & (_neighbours(ink) >= 3)


def _border(levels: NDArray[np.int16]) -> Mask:
    """What a scanner sees beside the paper: black from an edge of the picture on, along more of it than any letter."""
    black = levels < 0.4 * float(np.median(levels))
    border = np.zeros_like(black)
    for turn in range(4):
        inwards, out = np.rot90(black, turn), np.rot90(border, turn)
        for first, last in _runs(inwards[:, 0]):
            if last - first >= 2 * TALLEST:
                out[first:last] |= np.logical_and.accumulate(inwards[first:last], axis=1)
    return _around(border)


def _most_of(levels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The lightest of each side * side pixels."""
    tall, wide = (-(-n // side) * side for n in levels.shape)
    padded = np.pad(levels, ((0, tall - levels.shape[0]), (0, wide - levels.shape[1])), mode="edge")
    most: NDArray[np.uint8] = padded.reshape(tall // side, side, wide // side, side).max(axis=(1, 3))
    return most


def _neighbours(ink: Mask) -> NDArray[np.uint8]:
    """How many of a pixel and the eight around it are ink."""
    padded = np.pad(ink, 1).astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    count: NDArray[np.uint8] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return count


def _without(ink: Mask, rules: tuple[Mask, Mask]) -> Mask:
    return ink & ~rules[0] & ~rules[1]


# ---- rules and tables


def _rules(ink: Mask) -> tuple[Mask, Mask]:
    """Horizontal and vertical lines."""
    length = max(LEAST_RULE, int(RULE * min(ink.shape)))
    return _level_rules(ink, length), _level_rules(np.ascontiguousarray(ink.T), length).T


def _level_rules(ink: Mask, length: int) -> Mask:
    # A line that is not quite level changes rows.
    long = _stretches(_spread(ink, 3, 0), length, 1)
    thin = long & ~_stretches(long, THICK + 3, 0)
    return ink & _spread(thin, 3, 0)


def _stretches(mask: Mask, length: int, axis: int) -> Mask:
    """What lies in `length` pixels, one after another along the axis, that are all True."""
    return _spread(~_spread(~mask, length, axis, edge=True), length, axis)


def _spread(mask: Mask, length: int, axis: int, edge: bool = False) -> Mask:
    """Whether any of the `length` pixels around each is True, along the axis. edge: what lies beyond the page is."""
    # The centre of an even number lies beside the middle, on the other side when it is undone.
    before = (length - 1) // 2 if edge else length - 1 - (length - 1) // 2
    pad = [(0, 0), (0, 0)]
    pad[axis] = (before, length - 1 - before)
    out = np.pad(mask, pad, constant_values=edge)
    done = 1
    while done < length:
        step = min(done, length - done)
        out = out[step:] | out[:-step] if axis == 0 else out[:, step:] | out[:, :-step]
        done += step
    return out


def _around(mask: Mask, edge: bool = False) -> Mask:
    """A mask with a little of what is beside it: the edge of an area is blurred. edge: as in `_spread`."""
    return _spread(_spread(mask, CELL, 0, edge), CELL, 1, edge)


def _tables(rules: tuple[Mask, Mask]) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the grids that rules make: at least two lines each way, three one way."""
    found = []
    for box, part in _connected(rules[0] | rules[1]):
        rows, columns = (_lines_across(rules[0][box] & part), _lines_across((rules[1][box] & part).T))
        if min(rows, columns) >= 2 and max(rows, columns) >= 3:
            y, x = (side.start + np.flatnonzero(part.any(axis=axis)) for side, axis in zip(box, (1, 0)))
            found.append((int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1))
    return found


def _lines_across(rules: Mask) -> int:
    """How many lines lead across at least a quarter of what they are part of."""
    columns = np.flatnonzero(rules.any(axis=0))
    return len(_runs(rules.sum(axis=1) > 0.25 * (columns[-1] - columns[0]))) if len(columns) else 0


def _connected(mask: Mask) -> Iterator[tuple[Box, Mask]]:
    """(box, what of it) of all that hangs together, seen in cells of CELL * CELL pixels; what is large both ways."""
    height, width = mask.shape
    tall, wide = -(-height // CELL), -(-width // CELL)
    padded = np.pad(mask, ((0, tall * CELL - height), (0, wide * CELL - width)))
    cells = {(int(y), int(x)) for y, x in np.argwhere(padded.reshape(tall, CELL, wide, CELL).any(axis=(1, 3)))}
    while cells:
        left = [cells.pop()]
        seen = []
        while left:
            y, x = left.pop()
            seen.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & cells
            cells -= near
            left += near
        places = np.array(seen)
        top, bottom = places.min(axis=0), places.max(axis=0) + 1
        if min(bottom - top) >= 4:
            part = np.zeros(bottom - top, np.bool_)
            part[tuple((places - top).T)] = True
            rows, columns = zip(top * CELL, bottom * CELL)
            box = slice(*map(int, rows)), slice(*map(int, columns))
            found = mask[box]  # which ends where the page does
            yield box, found & part.repeat(CELL, 0).repeat(CELL, 1)[: found.shape[0], : found.shape[1]]


# ---- which way is up


def _quarter_turns(ink: Mask) -> int:
    """How many times the page is to be turned by 90 degrees, counterclockwise."""
    text = _without(ink, _rules(ink))
    if _white_around(text.T) > 1.15 * _white_around(text):
        up, down, _ = _reach(np.rot90(text))
        return 3 if down > up else 1
    up, down, lines = _reach(text)
    # A few letters would decide of a few lines; Greek ones reach down as far as up.
    return 2 if lines >= 20 and down > (1.4 + 16 / lines) * up else 0


def _white_around(text: Mask) -> float:
    """The part of a page's strips that is white space around lines, if its lines are level: letters that stand one
    below another leave less, because words do not end at one place, and those of one width leave narrow lines. What is
    above the first line and below the last counts as WIDEST, so that a single line has more than its letters have."""
    white = total = 0
    for part in _strips(text, 16):
        if not (runs := _runs(part.any(axis=1))):
            continue
        gaps = [min(below[0] - above[1], WIDEST) for above, below in pairwise(runs)]
        white += sum(gap for gap in gaps if gap >= 3) + 2 * WIDEST
        total += sum(last - first for first, last in runs) + sum(gaps) + 2 * WIDEST
    return white / max(total, 1)


def _skew(text: Mask) -> float:
    """By how many degrees, counterclockwise, a page is to be turned so that its lines are level: lines and white space
    alternate most sharply then."""
    total = int(text.sum())
    if total < 200:
        return 0.0
    strips = _strips(text, 32)
    profiles = np.stack([part.sum(axis=1, dtype=np.int32) for part in strips])
    middles = (np.arange(len(strips)) + 0.5) * text.shape[1] / len(strips) - text.shape[1] / 2
    reach = int(text.shape[1] / 2 * math.tan(math.radians(LARGEST_SKEW + 0.5))) + 1
    profiles = np.pad(profiles, ((0, 0), (2 * reach, 2 * reach)))
    rows = np.arange(len(text) + 2 * reach) + reach

    def sharp(degrees: float) -> float:
        moved = np.rint(middles * math.tan(math.radians(degrees))).astype(int)
        profile = np.take_along_axis(profiles, rows + moved[:, None], axis=1).sum(axis=0) / total
        return float(np.square(np.diff(profile)).sum())

    best = 0.0
    for step, reach_of_step in ((0.5, LARGEST_SKEW), (0.1, 0.5)):
        angles = best + np.arange(-reach_of_step, reach_of_step + step / 2, step)
        best = float(max(angles, key=sharp))
    return best if sharp(best) > 1.05 * sharp(0.0) else 0.0


def _reach(text: Mask) -> tuple[float, float, int]:
    """How much ink of lines of text stands above and below their small letters, and how many lines that are, in eight
    strips of the page; none of it where too little stands there to tell which way is up, as in Chinese and Cyrillic
    script."""
    lines = [part[top:bottom] for part in _strips(text) for top, bottom in _runs(part.any(axis=1)) if bottom - top >= 8]
    if len(lines) < 8:
        return 0.0, 0.0, len(lines)
    usual = float(np.median([len(line) for line in lines]))
    up = down = total = 0.0
    for line in lines:
        if not 0.7 * usual <= len(line) <= 1.4 * usual:
            continue
        profile = line.sum(axis=1).astype(float)
        core = np.nonzero(profile > 0.35 * np.sort(profile)[-3])[0]
        total += float(profile.sum())
        up += float(profile[: core[0]].sum())
        down += float(profile[core[-1] + 1 :].sum())
    return (up, down, len(lines)) if up + down > 0.05 * total else (0.0, 0.0, len(lines))


def _strips(text: Mask, count: int = 8) -> list[Mask]:
    """Strips of the page from top to bottom: in one, the lines of two columns seldom stand side by side."""
    edges = np.linspace(0, text.shape[1], count + 1).astype(int)
    return [text[:, left:right] for left, right in pairwise(edges)]


# ---- blocks


def _blocks(ink: Mask, most: float) -> list[Block]:
    rules = _rules(ink)
    tables = _tables(rules)
    text = _without(ink, rules)
    for left, top, right, bottom in tables:
        text[top:bottom, left:right] = False
    line = _line_height(text)
    for left, top, right, bottom in tables:  # no white space leads through one
        text[top:bottom, left:right] = True
    columns = np.nonzero(text.any(axis=0))[0]
    if not len(columns):
        return []
    region = _Region(text, tables, line, most)
    return region.blocks(int(columns[0]), int(columns[-1]) + 1, 0, len(text))


def _line_height(text: Mask) -> float:
    """The usual height of a line of text. A picture of a few lines is not much taller than one of them."""
    heights = _heights(text)
    lines = [height for height in heights if height <= max(TALLEST, len(text) / 15)]
    return float(np.median(lines or heights))


def _heights(text: Mask) -> list[int]:
    """How tall the lines of text are in strips of the page."""
    heights = [bottom - top for part in _strips(text) for top, bottom in _runs(part.any(axis=1)) if bottom - top >= 4]
    return heights or [max(8, len(text) // 80)]


class _Region:
    """What is cut: its ink, with tables filled, the height of a line of text and the patches that a block may have."""

    def __init__(self, text: Mask, tables: Sequence[tuple[int, int, int, int]], line: float, most: float):
        self.text = text
        self.tables = tables
        self.line = line
        self.most = most
        self._parts = cache(self._seek_parts)  # asked for what may be a column, then to cut it

    def blocks(self, left: int, right: int, top: int, bottom: int) -> list[Block]:
        """The blocks of a region: where rows have gutters in common its columns, elsewhere one below another."""
        found: list[Block] = []
        plain: list[Band] = []
        for bands, gutters in self._parts(left, right, top, bottom):
            if not gutters:
                plain += bands
                continue
            found += self._pack(plain, left, right)
            plain = []
            for first, last in self._between(gutters, left, right):
                found += self.blocks(first, last, bands[0].top, bands[-1].bottom)
        return found + self._pack(plain, left, right)

    def _seek_parts(self, left: int, right: int, top: int, bottom: int) -> list[tuple[list[Band], Spans]]:
        """A region's bands, and the gutters that those of a part have in common; none: its bands are lines, or what
        no one can tell to be columns or a table and which stays whole."""
        bands = self._bands(left, right, top, bottom)
        profiles = [self._profile(band, left, right) for band in bands]
        parts: list[tuple[list[Band], Spans]] = []
        i = 0
        while i < len(bands):
            end, gutters = self._columns(bands, profiles, i)
            if not gutters:
                parts.append((bands[i : i + 1], []))
                i += 1
                continue
            first, last = self._level(bands, profiles, i, end, gutters)
            shifted = [(left + x, left + y) for x, y in gutters]
            rows = bands[first:last]
            columns = self._between(shifted, left, right)
            narrowest = min(y - x for x, y in columns)
            lines = [self._lines(x, y, rows[0].top, rows[-1].bottom) for x, y in columns]
            if max(lines) < FEWEST:  # a heading, say, above columns that are found without it
                parts.append((bands[i : i + 1], []))
                i += 1
                continue
            parts += [([band], []) for band in bands[i:first]]
            # Rows of a table are as many as the lines of its columns; an index has others beside them.
            no_table = 2 * len(rows) < min(lines) or all(
                self._is_text(x, y, rows[0].top, rows[-1].bottom) for x, y in columns
            )
            if no_table and all(y - x < narrowest for x, y in gutters):
                parts.append((rows, shifted))
            else:
                parts.append(([Band(rows[0].top, rows[-1].bottom)], []))
            i = last
        return parts

    @staticmethod
    def _between(gutters: Spans, left: int, right: int) -> Spans:
        edges = [left, *(x for gutter in gutters for x in gutter), right]
        return list(zip(edges[::2], edges[1::2]))

    def _profile(self, band: Band, left: int, right: int) -> Mask:
        """Where a band has ink; white that is narrow for the height of its letters is theirs."""
        part = self.text[band.top : band.bottom, left:right]
        profile: Mask = np.any(part, axis=0)
        # Lines side by side that are not level hang together and are as tall as many.
        least = GUTTER * max(self.line, float(np.percentile(_heights(part), 25)))
        for first, last in _runs(~profile):
            if first > 0 and last < len(profile) and last - first < least:
                profile[first:last] = True
        return profile

    def _lines(self, left: int, right: int, top: int, bottom: int) -> int:
        """How many lines, or bands, a region has."""
        return sum(len(bands) for bands, _ in self._parts(left, right, top, bottom))

    def _is_text(self, left: int, right: int, top: int, bottom: int) -> bool:
        """Whether most lines of what may be a column lead across it, and no white from its first to its last: those of
        a table's or a form's do not."""
        parts = self._parts(left, right, top, bottom)
        lines = np.array(
            [self._profile(band, left, right) for bands, gutters in parts if not gutters for band in bands]
        )
        total = self._lines(left, right, top, bottom)
        if total < FEWEST or not len(lines):
            return total >= FEWEST
        begins, ends = lines.argmax(axis=1), right - left - lines[:, ::-1].argmax(axis=1)
        beside = len(lines) // 10  # a punched hole, dirt
        width = np.sort(ends)[-1 - beside] - np.sort(begins)[beside]
        short = np.count_nonzero(ends - begins < FULL * width)
        white = [run for run in _runs(~lines.any(axis=0)) if run[1] - run[0] >= GUTTER * self.line]
        across = [np.count_nonzero((begins < first) & (ends > last)) for first, last in white]
        return 2 * short < total and 4 * max(across, default=0) <= total

    def _bands(self, left: int, right: int, top: int, bottom: int) -> list[Band]:
        bands: list[Band] = []
        for first, last in self._rows(left, right, top, bottom):
            table = any(b[1] < last and first < b[3] and b[0] < right and left < b[2] for b in self.tables)
            near = bool(bands) and first - bands[-1].bottom <= max(1, 0.12 * self.line)
            if near and not table and not bands[-1].table:  # the dot of an i
                bands[-1] = Band(bands[-1].top, last)
            else:
                bands.append(Band(first, last, table))
        return [band for band in bands if band.bottom - band.top >= 0.2 * self.line]

    def _rows(self, left: int, right: int, top: int, bottom: int) -> Spans:
        """Where rows hold more than one pixel, which may be dirt or join two lines, or all that a number 1 has."""
        ink = self.text[top:bottom, left:right].sum(axis=1)
        rows = []
        for first, last in _runs(ink >= 1):
            thick = [(first + x, first + y) for x, y in _runs(ink[first:last] >= 2)]
            rows += thick if 2 * sum(y - x for x, y in thick) > last - first else [(first, last)]
        return [(first + top, last + top) for first, last in rows]

    def _columns(self, bands: list[Band], profiles: list[Mask], i: int) -> tuple[int, Spans]:
        """Where the bands end that have gutters in common with band i, and those gutters; none: it is no columns."""
        union = profiles[i]
        gutters = self._gutters(union)
        end = i + 1
        while end < len(bands):
            wider = union | profiles[end]
            left = self._gutters(wider)
            # Of columns that do not begin side by side, the first band is of one only.
            if not left and (gutters or wider.all()):
                break
            union, gutters, end = wider, left, end + 1
        height = bands[end - 1].bottom - bands[i].top
        # A river through the words of a few lines is narrow.
        wide = [(x, y) for x, y in gutters if height * (y - x) >= WHITE * self.line**2]
        return end, wide if height >= 3 * self.line else []

    def _gutters(self, union: Mask) -> Spans:
        gutters = []
        begin = 0
        for first, last in _runs(~union):
            if last - first < GUTTER * self.line or first - begin < COLUMN * self.line or last == len(union):
                continue
            gutters.append((first, last))
            begin = last
        if gutters and len(union) - gutters[-1][1] < COLUMN * self.line:
            gutters.pop()
        return gutters

    def _level(self, bands: list[Band], profiles: list[Mask], begin: int, end: int, gutters: Spans) -> tuple[int, int]:
        """Which of the bands are columns: not a heading above, nor a number below them, that happens to lie in one."""

        def alone(band: int) -> bool:
            columns = self._between(gutters, 0, len(profiles[band]))
            return sum(bool(profiles[band][x:y].any()) for x, y in columns) == 1

        first = next((band for band in range(begin, end) if not alone(band)), end)
        while first > begin and (first == end or bands[first].top - bands[first - 1].bottom < 0.6 * self.line):
            first -= 1
        last = end
        if end - first > 2 and alone(end - 1) and bands[end - 1].top - bands[end - 2].bottom > 1.5 * self.line:
            last -= 1
        return first, last

    def _pack(self, bands: list[Band], left: int, right: int) -> list[Block]:
        """Bands one below another as blocks that are not too large, parted where the white between them is widest."""
        found: list[Block] = []
        gaps = [below.top - above.bottom for above, below in pairwise(bands)]
        usual = float(np.median(gaps)) if gaps else 0.0
        begin = 0
        continues = False
        while begin < len(bands):
            end = begin + 1
            while end < len(bands) and not (bands[end].table or bands[end - 1].table):
                if self._patches(bands[begin : end + 1], left, right) > self.most:
                    break
                end += 1
            whole = end == len(bands) or bands[end].table or bands[end - 1].table
            if not whole and end - begin > 2:
                latest = range(end, begin + (end - begin) // 2, -1)
                end = max(latest, key=lambda at: gaps[at - 1])
            above = gaps[begin - 1] if begin else 2 * self.line
            below = gaps[end - 1] if end < len(bands) else 2 * self.line
            box = self._box(bands[begin:end], left, right, above, below)
            found.append(Block(box, "table" if bands[begin].table else "text", continues))
            continues = not whole and gaps[end - 1] <= 1.5 * usual + 1
            begin = end
        return found

    def _patches(self, bands: list[Band], left: int, right: int) -> float:
        first, top, last, bottom = self._box(bands, left, right, 0, 0)
        return (last - first) * (bottom - top) / PATCH**2

    def _box(self, bands: list[Band], left: int, right: int, above: float, below: float) -> tuple[int, int, int, int]:
        """Around the ink of bands, with a little of the white about it, but none of their neighbours'."""
        top, bottom = bands[0].top, bands[-1].bottom
        columns = np.nonzero(self.text[top:bottom, left:right].any(axis=0))[0]
        margin = 0.4 * self.line
        height, width = self.text.shape
        return (
            max(0, left + int(columns[0]) - int(margin)),
            max(0, top - int(min(margin, above / 2))),
            min(width, left + int(columns[-1]) + 1 + int(margin)),
            min(height, bottom + int(min(margin, below / 2))),
        )


def _runs(mask: Any) -> Spans:
    """(begin, end) of every stretch of an array that is True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
