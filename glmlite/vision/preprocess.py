"""From an image to the patches that a tower reads: resized by stretching, normalised, cut up, in the tower's order.

Equal to the Pillow image processors of transformers (`Glm4vImageProcessorPil`, `Glm46VImageProcessorPil`), bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Prepared", "Resized", "Settings", "image_tokens", "patches_of", "preprocess", "resize", "smart_size"]

MOST_RATIO = 200


class Preprocessing(Protocol):
    """What a file says of it. least_pixels, most_pixels: of the resized image, height times width."""

    @property
    def patch(self) -> int: ...
    @property
    def merge(self) -> int: ...
    @property
    def least_pixels(self) -> int: ...
    @property
    def most_pixels(self) -> int: ...
    @property
    def mean(self) -> Sequence[float]: ...
    @property
    def std(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class Settings:
    """GLM-OCR's."""

    patch: int = 14
    merge: int = 2
    least_pixels: int = 6_272
    most_pixels: int = 4_816_896
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


class Prepared(NamedTuple):
    """patches: (N, 3 * patch * patch) f32, each channel by channel. grid: (rows, columns) of patches; N is their
    product. content: 32 bytes, the same for the same pixels."""

    patches: NDArray[np.float32]
    grid: tuple[int, int]
    content: bytes


class Resized(NamedTuple):
    """pixels: (height, width, 3), whole tokens. grid, content: as `Prepared` has them."""

    pixels: NDArray[np.uint8]
    grid: tuple[int, int]
    content: bytes


def smart_size(height: int, width: int, settings: Preprocessing, where: str = "image") -> tuple[int, int]:
    """The (height, width) that an image is resized to: multiples of patch * merge, as near its own as the limits allow.

    A half goes to the even multiple. Raises ValueError for a side more than MOST_RATIO times the other.
    """
    h, w, factor = height, width, settings.patch * settings.merge
    if min(h, w) < factor:
        grow = max(factor / h, factor / w)
        h, w = int(h * grow), int(w * grow)
    if max(h, w) > MOST_RATIO * min(h, w):
        raise ValueError(f"{where}: {width} x {height} pixels, expected no side more than {MOST_RATIO} times the other")
    tall, wide = (round(side / factor) * factor for side in (h, w))
    if tall * wide > settings.most_pixels:
        shrink = math.sqrt(h * w / settings.most_pixels)
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (h, w))
    elif tall * wide < settings.least_pixels:
        grow = math.sqrt(settings.least_pixels / (h * w))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in (h, w))
    return tall, wide


def image_tokens(height: int, width: int, settings: Preprocessing) -> int:
    """How many tokens of a prompt an image takes, without those that begin and end it. Raises as `smart_size`."""
    tall, wide = smart_size(height, width, settings)
    return tall * wide // (settings.patch * settings.merge) ** 2


def preprocess(image: Image.Image, settings: Preprocessing, where: str = "image") -> Prepared:
    """The patches of an RGB image (`glmlite.vision.images.open_image`). Raises ValueError (`smart_size`)."""
    resized = resize(image, settings, where)
    return Prepared(patches_of(resized.pixels, settings), resized.grid, resized.content)


def resize(image: Image.Image, settings: Preprocessing, where: str = "image") -> Resized:
    """What a tower sees of an RGB image, in a quarter of the memory that its patches take. Raises as `preprocess`."""
    height, width = smart_size(image.height, image.width, settings, where)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    content = hashlib.sha256(f"{width} x {height} ".encode())
    content.update(np.ascontiguousarray(pixels).data)
    return Resized(pixels, (height // settings.patch, width // settings.patch), content.digest())


def patches_of(pixels: NDArray[np.uint8], settings: Preprocessing) -> NDArray[np.float32]:
    """The patches of resized pixels. The merge * merge that become one token stand together, tokens row by row."""
    patch, merge = settings.patch, settings.merge
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    parts = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    # The bytes are put in order before they become floats: a quarter of the memory to move.
    parts = np.ascontiguousarray(parts.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(rows * columns, 3, patch * patch)
    patches = np.empty(parts.shape, np.float32)
    for channel, levels in enumerate(_tables(tuple(settings.mean), tuple(settings.std))):
        patches[:, channel] = levels[parts[:, channel]]
    return patches.reshape(rows * columns, -1)


@lru_cache(maxsize=8)
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """(3, 256): what each byte of a channel becomes, rounded where transformers rounds."""
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    means, deviations = (np.array(values, np.float32)[:, None] for values in (mean, std))
    tables: NDArray[np.float32] = (levels - means) / deviations
    return tables
