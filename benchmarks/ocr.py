"""Seconds that reading a page takes, by part, each with its bound; and the tower against llama.cpp's libmtmd.

    python benchmarks/random_eyes.py glm-ocr Q8_0 ocr.gguf
    python benchmarks/ocr.py ocr.gguf --repeat 3
    python benchmarks/ocr.py ocr.gguf --repeat 3 --mtmd ./encode        # takes turns with the tower

A page of A4 with text in two columns, read whole at 150 dpi, whole at 90 dpi (`--fast`) and cut into blocks, as
`glmlite ocr` does by itself. `read` is the tower and the prompt; `bound` is what the same multiplications would take at
the int8 peak, what is generated at the bandwidth, both measured in the run. An attention's products with values count
twice in it, because weights have 14 bits. Of a page that is cut, blocks run beside each other: its parts may be more
than its whole.

--mtmd names a program `encode MMPROJ TEXT IMAGE THREADS` that prints the seconds that libmtmd took to encode the
image. The image has sides that are multiples of 28, so that nothing is padded. Needs glmlite[vision].
"""

import argparse
import io
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import closing

import machine
import numpy as np
from memory import highest
from PIL import Image, ImageDraw, ImageFont

import glmlite
from glmlite import _native
from glmlite.ocr import asking
from glmlite.ocr.reading import DPI, FAST_DPI
from glmlite.ocr.tasks import TASKS
from glmlite.vision.pdf import Pdf
from glmlite.vision.preprocess import Settings, patches_of, resize
from glmlite.vision.tower import Tower

SENTENCE = "the quick brown fox jumps over the lazy dog while many other animals of the forest look on and wonder"
WORDS = SENTENCE.split()
A4 = (8.27, 11.69)  # inches


def page(seed=0):
    """A PDF of one page of A4 with text in two columns."""
    rng, dpi = np.random.default_rng(seed), 200
    drawn = Image.new("RGB", tuple(round(side * dpi) for side in A4), "white")
    draw, letters = ImageDraw.Draw(drawn), ImageFont.load_default(28)
    for left in (120, 880):
        for block in range(5):
            for line in range(10):
                text = " ".join(rng.choice(WORDS, 8))
                draw.text((left, 120 + block * 410 + line * 38), text[:44], "black", letters)
    file = io.BytesIO()
    drawn.save(file, "PDF", resolution=dpi)
    return file.getvalue()


def timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


class Bounds:
    """Seconds at this machine's peak. Operations are two a multiplication."""

    def __init__(self, eyes, text, threads):
        self.peak = _native.machine_int8_peak(threads) * 1e9
        self.bandwidth = _native.machine_bandwidth(threads) * 1e9
        self.cost, self.token = eyes._cost, eyes._token
        self.weights = os.path.getsize(text)

    def tower(self, patches):
        """Scores once, values twice: half as much again."""
        cost = self.cost
        return 2 * patches * (cost.patch + cost.merged + 1.5 * patches * cost.pair) / self.peak

    def prompt(self, tokens):
        return 2 * tokens * self.token / self.peak

    def token_read(self):
        return self.weights / self.bandwidth


def whole(model, file, dpi, tokens, bounds):
    """{part: (seconds, bound)} of a page that is read whole."""
    with closing(Pdf(file)) as pdf:
        render, image = timed(lambda: pdf.render(1, dpi))
    config = model._eyes.config
    prepare, resized = timed(lambda: resize(image, config))
    more, _ = timed(lambda: patches_of(resized.pixels, config))
    patches = resized.grid[0] * resized.grid[1]
    model._eyes._rows.clear()
    all_, result = timed(lambda: asking.ask(model, image, TASKS["text"], max_tokens=tokens).result())
    stats = result.stats
    wrote = max(stats.generated_tokens - 1, 1)
    return {
        "patches": patches,
        "render": (render, None),
        "prepare": (prepare + more, None),
        "tower": (stats.image_seconds, bounds.tower(patches)),
        "prompt": (stats.prompt_seconds, bounds.prompt(stats.prompt_tokens)),
        "a token": (stats.generation_seconds / wrote, bounds.token_read()),
        "read": (stats.image_seconds + stats.prompt_seconds, None),
        "page": (render + all_, None),
    }


def cut(model, file, tokens):
    """Likewise, of a page that is cut. Each block gets its share of the tokens."""
    model._eyes._rows.clear()
    all_, (read,) = timed(lambda: list(model.ocr(file, max_tokens=max(1, tokens // 10))))
    if read.error:
        raise RuntimeError(read.error)
    s = read.seconds
    return {
        "blocks": len(read.blocks),
        "render": (s.render, None),
        "cut": (s.cut, None),
        "prepare": (s.prepare, None),
        "read": (s.read, None),
        "page": (all_, None),
    }


class Ours:
    """The tower alone, on the image that libmtmd gets, too."""

    name = "glmlite"

    def __init__(self, file, image, threads):
        resized = resize(image, Settings())
        assert resized.pixels.shape[:2] == (image.height, image.width), "an image that needs no resizing"
        self.patches, self.grid = patches_of(resized.pixels, Settings()), resized.grid
        self.tower = Tower.open(file, threads=threads)

    def seconds(self):
        return timed(lambda: self.tower.rows(self.patches, self.grid))[0]


class Mtmd:
    """libmtmd in a program of its own."""

    def __init__(self, program, eyes, text, image, threads):
        self.name = "libmtmd"
        self.image = image
        self.command = [*map(os.path.abspath, (program, eyes, text)), "image.ppm", str(threads)]

    def seconds(self):
        with tempfile.TemporaryDirectory() as folder:
            self.image.save(os.path.join(folder, "image.ppm"))
            said = subprocess.run(self.command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
        return float(said.split()[-1])


def middle(rows):
    """Each part's median seconds and bound."""
    out = {}
    for key in rows[0]:
        if isinstance(rows[0][key], tuple):
            seconds, bounds = zip(*(row[key] for row in rows))
            out[key] = statistics.median(seconds), bounds[-1]
        else:
            out[key] = rows[0][key]
    return out


def show(title, parts):
    size = next(f"{parts[key]} {key}" for key in ("patches", "blocks") if key in parts)
    print(f"{title}: {size}")
    for name, part in parts.items():
        if isinstance(part, tuple):
            seconds, bound = part
            more = f"   bound {bound:8.3f} s, {bound / seconds:.0%} of it" if bound else ""
            print(f"  {name:8}{seconds:9.3f} s{more}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="the text model's file, its eyes beside it")
    parser.add_argument("--mmproj", help="the eyes' file, if it is not beside it")
    parser.add_argument("--threads", type=int, default=_native.default_threads())
    parser.add_argument("--tokens", type=int, default=64, help="to write of a page")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=["whole", "fast", "cut", "tower"], nargs="+", help="default: all of them")
    parser.add_argument("--mtmd", metavar="PROGRAM")
    arguments = parser.parse_args()
    only = arguments.only or ["whole", "fast", "cut", "tower"]
    print(*machine.describe(arguments.threads), sep="\n")

    with glmlite.load(arguments.text, mmproj=arguments.mmproj, context=8192, threads=arguments.threads) as model:
        if not model.images:
            parser.error(f"{arguments.text}: no eyes beside it, expected one mmproj*.gguf, or --mmproj")
        eyes_file = model._eyes.path
        bounds = Bounds(model._eyes, arguments.text, arguments.threads)
        ways = {
            "whole": (f"whole, {DPI} dpi", lambda file: whole(model, file, DPI, arguments.tokens, bounds)),
            "fast": (f"whole, {FAST_DPI} dpi", lambda file: whole(model, file, FAST_DPI, arguments.tokens, bounds)),
            "cut": (f"cut, {DPI} dpi", lambda file: cut(model, file, arguments.tokens)),
        }
        ways = {name: way for name, way in ways.items() if name in only}
        rows = {name: [] for name in ways}
        for number in range(arguments.repeat if ways else 0):
            file = page(number)  # another one each time: a prompt that was read is in the cache
            for name, (_, run) in ways.items():
                rows[name].append(run(file))
        weights = os.path.getsize(arguments.text) + os.path.getsize(eyes_file)
    medians = {name: middle(rows[name]) for name in ways}
    for name, (title, _) in ways.items():
        show(title, medians[name])
        if name != "whole" and "whole" in ways:
            ratio = medians["whole"]["page"][0] / medians[name]["page"][0]
            print(f"  takes {ratio:.1f} times less than the page whole at {DPI} dpi")
    if ways:
        print(f"peak memory: {highest() / 1e9:.2f} GB, {(highest() - weights) / 1e9:.2f} GB beside the weights' files")

    if "tower" not in only:
        return
    with closing(Pdf(page())) as pdf:
        image = pdf.render(1, DPI).resize((1232, 1764))
    engines = [Ours(eyes_file, image, arguments.threads)]
    if arguments.mtmd:
        engines.append(Mtmd(arguments.mtmd, eyes_file, arguments.text, image, arguments.threads))
    seconds = {engine.name: [] for engine in engines}
    for _ in range(arguments.repeat):
        for engine in engines:
            seconds[engine.name].append(engine.seconds())
    print(f"tower, {image.width} x {image.height} pixels")
    for name, values in seconds.items():
        ratio = statistics.median(values) / statistics.median(seconds["glmlite"])
        print(f"  {name:8}{statistics.median(values):9.2f} s ({min(values):.2f} to {max(values):.2f})  {ratio:.2f} x")


if __name__ == "__main__":
    main()
