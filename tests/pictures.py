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


SENTENCE = """the quick brown fox jumps over a lazy dog while many people keep asking what happened to their letters
and bright pages of old books give them something to think about before dinner"""
WORDS = SENTENCE.split()


def font(size):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def blank(width=1240, height=1754):
    from PIL import Image

    return Image.new("RGB", (width, height), "white")


def paragraph(page, left, top, width, lines, size=24, first=0):
    """Draws lines of words, a word's number in WORDS moved on from line to line; the y below them."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(page)
    letters = font(size)
    word = first
    for _ in range(lines):
        text = WORDS[word % len(WORDS)]
        while draw.textlength(f"{text} {WORDS[(word + 1) % len(WORDS)]}", letters) <= width:
            word += 1
            text += " " + WORDS[word % len(WORDS)]
        word += 1
        draw.text((left, top), text, "black", letters)
        top += int(size * 1.4)
    return top


def heading(page, text, top, size=48):
    """Draws a line in the middle of the page; the y below it."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(page)
    draw.text(((page.width - draw.textlength(text, font(size))) / 2, top), text, "black", font(size))
    return top + int(size * 1.8)


def table(page, left, top, rows, columns, cell=(180, 50)):
    """Draws a ruled table with a number in each cell; its box."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(page)
    right, bottom = left + columns * cell[0], top + rows * cell[1]
    for row in range(rows + 1):
        draw.line((left, top + row * cell[1], right, top + row * cell[1]), "black", 2)
    for column in range(columns + 1):
        draw.line((left + column * cell[0], top, left + column * cell[0], bottom), "black", 2)
    for row in range(rows):
        for column in range(columns):
            draw.text((left + column * cell[0] + 20, top + row * cell[1] + 12), f"{row}.{column}", "black", font(24))
    return left, top, right, bottom
