"""The eyes of GLM-OCR, GLM-4.1V, 4.6V-Flash, 4.5V and 4.6V: what an image is to their text models. GGUF's projector
type: `glm4v`.

The tower, x of shape (N, dim), one row for each patch, all of an image at once:

    x = W_0 · patches + W_1 · patches + b, the two frames of a still image being equal
    block:  h = x + W_o · attention(W_qkv · rms_norm(x) + b_qkv) + b_o
            y = h + W_down · swiglu([W_gate | W_up] · rms_norm(h) + b) + b_down

The merger, which makes one row of the text model from a token's 2 x 2 patches, side by side:

    x = W_fc · (W_merge · [x_00 | x_01 | x_10 | x_11] + b)
    y = W_down · swiglu([W_gate | W_up] · gelu_erf(layer_norm(x)))

GLM-OCR has biases and norms the heads of q and k; the others have neither, but a norm after the patches and learned
positions, which are a square of vectors, drawn out to the image's grid. RoPE turns the first half of a head's pairs by
the row, the other by the column. Every patch sees all the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError
from ..program import AXES, Recorder, Rope, Shapes, Value
from .metadata import Keys, shown
from .parts import qkv as heads_of

__all__ = ["Config", "beside", "has_tower", "learned_positions", "positions", "record_merger", "record_tower"]

Grid = tuple[int, int]  # rows and columns of patches

LAYER_NORM_EPS = 1e-5  # of the merger, whatever the file says
PIXELS = (12_544 // 2, 9_633_792 // 2)  # of an image, least and most: preprocessor_config.json counts two frames
TENSORS = ("v.", "mm.")
POSITIONS = "v.position_embd.weight"  # not part of a program: `learned_positions` draws it out


def has_tower(shapes: Shapes) -> bool:
    """Whether a file has tensors of a tower."""
    return any(name.startswith(TENSORS) for name in shapes)


@dataclass(frozen=True)
class Config:
    """patch: pixels of a patch's side; merge: patches of a token's side; width: columns of the text model; side: of the
    square of learned positions, 0: none; mean, std: of the colours; least_pixels, most_pixels: of a resized image."""

    layers: int
    dim: int
    heads: int
    head_dim: int
    norm_eps: float
    theta: float
    patch: int
    merge: int
    width: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    least_pixels: int
    most_pixels: int

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
        """Sizes are the tensors'. Raises FormatError for another projector, and for what does not fit together."""
        projector = metadata.get("clip.projector_type")
        if not isinstance(projector, str) or projector != "glm4v":  # a comparison with an array is an array
            raise FormatError(f"metadata: 'clip.projector_type' is {shown(projector)}, expected 'glm4v'")
        keys = Keys("clip.vision", metadata, shapes)
        dim, colours, patch, across = _shape(shapes, "v.patch_embd.weight", 4)
        width, _, merge, _ = _shape(shapes, "mm.patch_merger.weight", 4)
        if colours != 3 or patch != across:
            raise FormatError(
                f"'v.patch_embd.weight' is {patch} x {across} of {colours} colours, expected squares of 3"
            )
        heads = keys.count("attention.head_count", most=dim)
        if dim % (4 * heads):
            raise FormatError(
                f"'v.patch_embd.weight' has {dim} rows, expected a multiple of 4 for each of {heads} heads"
            )
        entries, columns = _shape(shapes, POSITIONS, 2) if POSITIONS in shapes else (0, dim)
        if columns != dim:
            raise FormatError(f"'{POSITIONS}' has {columns} columns, expected {dim} as 'v.patch_embd.weight'")
        side = math.isqrt(entries)
        if side * side != entries:
            raise FormatError(f"'{POSITIONS}' has {entries} rows, expected a square number")
        least = keys.count("image_min_pixels", PIXELS[0])
        return cls(
            layers=keys.count("block_count", most=len(shapes)),
            dim=dim,
            heads=heads,
            head_dim=dim // heads,
            norm_eps=keys.number("attention.layer_norm_epsilon", most=1),
            theta=keys.number("rope.freq_base", 10000.0),
            patch=patch,
            merge=keys.count("spatial_merge_size", merge, least=merge, most=merge),
            width=width,
            side=side,
            mean=_colours(metadata, "image_mean"),
            std=_colours(metadata, "image_std"),
            least_pixels=least,
            most_pixels=keys.count("image_max_pixels", max(least, PIXELS[1]), least=least),
        )

    @property
    def most_patches(self) -> int:
        """Of an image: the room that its attention needs."""
        return self.most_pixels // self.patch**2


def _shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    shape = tuple(shapes.get(name, ()))
    if len(shape) != axes or min(shape) < 1:
        raise FormatError(f"'{name}' is {shape or 'missing'}, expected a tensor of {axes} axes")
    return shape


def _colours(metadata: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Three finite numbers, those of a standard deviation not 0."""
    try:
        values = tuple(float(value) for value in metadata.get(f"clip.vision.{name}", ()))
    except (TypeError, ValueError, OverflowError):
        values = ()
    if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "image_std" and min(values) <= 0):
        found = values if len(values) <= 3 else f"{len(values)} numbers"
        raise FormatError(f"metadata: 'clip.vision.{name}' is {found}, expected a number for each of three colours")
    return values


def record_tower(r: Recorder, c: Config) -> Value:
    """From patches (N, 3 * patch²) and, where there are learned positions, those (N, dim), to (N, dim)."""
    patches = r.input(3 * c.patch**2)
    x = r.linear(patches, "v.patch_embd.weight", bias="v.patch_embd.bias")
    x = r.linear(patches, "v.patch_embd.weight.1", add=x)
    if c.side:
        x = r.rms_norm(x, "v.norm_embd.weight", c.norm_eps, add=r.input(c.dim))
    for i in range(c.layers):
        x = _block(r, c, x, f"v.blk.{i}.")
    return r.rms_norm(x, "v.post_ln.weight", c.norm_eps)


def _block(r: Recorder, c: Config, x: Value, w: str) -> Value:
    half = c.head_dim // 4
    rope = Rope(c.head_dim, c.theta, interleaved=False, sections=(half, half), restart=True)
    normed = r.has(w + "attn_q_norm.weight") or r.has(w + "attn_k_norm.weight")
    norms = {"q_norm": w + "attn_q_norm.weight", "k_norm": w + "attn_k_norm.weight"} if normed else {}
    qkv = heads_of(r, r.rms_norm(x, w + "ln1.weight", c.norm_eps), w)
    sizes = {"heads": c.heads, "kv_heads": c.heads, "head_dim": c.head_dim}
    att = r.attention(qkv, None, rope=rope, norm_eps=c.norm_eps, **sizes, **norms)
    h = _linear(r, att, [w + "attn_out"], add=x)

    up = _linear(r, r.rms_norm(h, w + "ln2.weight", c.norm_eps), [w + "ffn_gate", w + "ffn_up"])
    return _linear(r, r.swiglu(up), [w + "ffn_down"], add=h)


def record_merger(r: Recorder, c: Config) -> Value:
    """From the patches of each token as `beside` has them, (N / merge², merge² * dim), to (N / merge², width)."""
    x = r.linear(r.input(c.merge**2 * c.dim), "mm.patch_merger.weight", bias="mm.patch_merger.bias")
    x = r.linear(x, "mm.model.fc.weight")
    x = r.gelu_erf(r.layer_norm(x, "mm.post_norm.weight", "mm.post_norm.bias", LAYER_NORM_EPS))
    up = r.linear(x, ["mm.gate.weight", "mm.up.weight"])
    return r.linear(r.swiglu(up), "mm.down.weight")


def _linear(r: Recorder, x: Value, names: list[str], add: Value | None = None) -> Value:
    """With the biases of `names`, where the file has them."""
    biased = any(r.has(f"{name}.bias") for name in names)
    biases = [f"{name}.bias" for name in names] if biased else None
    return r.linear(x, [f"{name}.weight" for name in names], bias=biases, add=add)


def beside(x: np.ndarray, merge: int) -> np.ndarray:
    """(N, dim) -> (N / merge², merge² * dim): the rows of each token, column by column as a kernel's are."""
    return np.ascontiguousarray(x.reshape(-1, merge**2, x.shape[1]).swapaxes(1, 2)).reshape(-1, merge**2 * x.shape[1])


def positions(grid: Grid, merge: int) -> np.ndarray:
    """(N, AXES) int32: row and column of each patch. The patches of a token stand together, tokens row by row."""
    places = np.zeros((grid[0] * grid[1], AXES), np.int32)
    places[:, :2] = _token_by_token(np.stack(np.indices(grid, np.int32), axis=-1), merge)
    return places


def learned_positions(table: np.ndarray, grid: Grid, merge: int) -> np.ndarray:
    """(N, dim) f32 of a square of vectors (side², dim), by bicubic interpolation between the centres of patches.

    Nothing is smoothed where the grid is the smaller one; beyond the border the square's last vector goes on.
    """
    side = math.isqrt(len(table))
    square = table.reshape(side, side, -1).astype(np.float64)
    down, across = cubic_matrix(grid[0], side), cubic_matrix(grid[1], side)
    drawn = np.matmul(across, np.tensordot(down, square, 1))
    return np.ascontiguousarray(_token_by_token(drawn.astype(np.float32), merge))


def cubic_matrix(n: int, side: int, a: float = -0.75) -> np.ndarray:
    """(n, side): row i weighs the entries around (i + 1/2) side / n - 1/2. Keys 1981."""
    at = (np.arange(n) + 0.5) * side / n - 0.5
    near = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    d = np.abs(at[:, None] - near)
    inner, outer = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    matrix = np.zeros((n, side))
    np.add.at(matrix, (np.arange(n)[:, None], near.clip(0, side - 1)), np.where(d <= 1, inner, outer))
    return matrix


def _token_by_token(x: np.ndarray, merge: int) -> np.ndarray:
    """(rows, columns, k) -> (rows * columns, k), merge x merge neighbours together."""
    rows, columns, k = x.shape
    x = x.reshape(rows // merge, merge, columns // merge, merge, k)
    return x.swapaxes(1, 2).reshape(rows * columns, k)
