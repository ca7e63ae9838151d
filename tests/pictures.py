"""Images and pages that tests draw."""

import numpy as np


def sizes_of_images():
    """1000 random (height, width), most of them small, some of one pixel across."""
    rng = np.random.default_rng(17)
    return [tuple(int(side) for side in np.exp(rng.uniform(0, np.log(1300), 2))) for _ in range(1000)]


def image_of(number, height, width):
    """(height, width, 3) uint8: noise, whose every pixel matters."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def sizes_of_rule():
    """100,000 random (height, width) up to 9900."""
    return np.random.default_rng(28).integers(1, 9901, (100_000, 2)).tolist()
