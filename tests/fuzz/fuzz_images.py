"""Fuzzing of what a user calls an image or a document, up to the patches of its blocks.

    PYTHONPATH=tests:. python tests/fuzz/fuzz_images.py --seconds 1200 [--seed 1]

A good small file of some form (PNG of several modes, JPEG with EXIF, WebP, TIFF of two pages, GIF, BMP, PPM, PDF of
text and pictures, data URL) is damaged in one to eight places: bytes changed, cut out, put twice, numbers made large.
It must be refused by a ValueError, or an error of its page, of one line, or become patches. Anything else is printed,
with the seed that makes it again, and the exit status is 1: another exception, more than 10 s of the processor, more
than 2 GiB of memory. Linux only.
"""

import argparse
import base64
import io
import pathlib
import random
import resource
import struct
import sys
import time
import traceback
import warnings
from types import SimpleNamespace

import pictures
from PIL import Image

from glmlite.ocr.documents import sources_of
from glmlite.vision.cutting import cut
from glmlite.vision.images import open_image
from glmlite.vision.pdf import Pdf
from glmlite.vision.preprocess import Settings, preprocess

SECONDS = 10
MEMORY = 2 << 30  # bytes beyond those in use at the beginning
PAGES = 3  # of a document
HERE = SimpleNamespace(open=Pdf)  # in this process, whose time and memory are looked at
LARGE = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 20_000, 9_000]


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def good_files():
    noise = Image.fromarray(pictures.image_of(1, 40, 60))
    text = pictures.blank(300, 200)
    pictures.paragraph(text, 20, 20, 250, 4, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(pictures.image_of(2, 20, 30)[..., 0].astype("uint16") * 257)
    pages = {"save_all": True, "append_images": [noise]}
    return [
        *(saved(noise.convert(mode), "PNG") for mode in ("RGB", "L", "RGBA", "P", "1", "LA")),
        saved(deep, "PNG"),
        saved(noise.convert("P"), "PNG", transparency=3),
        saved(noise, "JPEG", exif=exif),
        saved(noise.convert("CMYK"), "JPEG"),
        saved(noise, "JPEG", progressive=True),
        saved(noise, "WEBP", exif=exif),
        saved(noise, "WEBP", lossless=True),
        *(saved(noise, "TIFF", compression=how, **pages) for how in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate")),
        saved(noise.convert("1"), "TIFF", compression="group4"),
        saved(deep, "TIFF"),
        saved(noise, "GIF", **pages),
        saved(noise, "BMP"),
        saved(noise, "PPM"),
        pictures.pdf(["one line\nand another", text, (200, 300)]),
        pictures.pdf([text, None], count=1000),
    ]


def damaged(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(max(len(data), 1))
        # What stands at the beginning says most.
        at = at if rng.random() < 0.5 else min(at, rng.randrange(200))
        what = rng.randrange(6)
        if what == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(LARGE))
        elif what == 2:
            data[at : at + 2] = struct.pack(rng.choice("<>") + "H", rng.choice(LARGE) & 0xFFFF)
        elif what == 3:
            del data[at : at + rng.randint(1, 64)]
        elif what == 4:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        elif what == 5 and rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def look(data, rng):
    """Everything that is done with it before a model sees it."""
    settings = Settings()
    if rng.random() < 0.1:
        preprocess(open_image("data:image/png;base64," + base64.b64encode(data).decode()), settings)
    (source,) = sources_of(data)
    with source.open(None, HERE) as document:
        for number in document.numbers[:PAGES]:
            try:
                document.characters(number)
                document.text(number)
                page = cut(document.image(number, 60))
                for block in page.blocks[:PAGES]:
                    preprocess(page.image.crop(block.box), settings)
            except ValueError as error:
                told(error)


def told(error):
    if not str(error) or "\n" in str(error) or len(str(error)) > 600:
        raise AssertionError(f"a message that is not one line: {str(error)!r:.800}") from error


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    files = good_files()
    for data in files:
        (source,) = sources_of(data)
        try:
            source.open(None, HERE).close()
        except ValueError as error:
            assert "frames" in str(error), error
    begin = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (begin + MEMORY, begin + MEMORY))
    end = time.monotonic() + arguments.seconds
    seed, refused, failed = arguments.seed, 0, 0
    while time.monotonic() < end:
        rng = random.Random(seed)
        data = damaged(rng.choice(files), rng)
        began = time.process_time()
        try:
            look(data, rng)
        except ValueError as error:
            refused += 1
            try:
                told(error)
            except AssertionError:
                failed += 1
                print(f"--seed {seed}: {error!r:.600}", flush=True)
        except BaseException:
            failed += 1
            print(f"--seed {seed}:", flush=True)
            traceback.print_exc()
            if isinstance(sys.exc_info()[1], KeyboardInterrupt):
                break
        took = time.process_time() - began
        if took > SECONDS:
            failed += 1
            print(f"--seed {seed}: took {took:.1f} s", flush=True)
        seed += 1
    print(f"{seed - arguments.seed} files, {refused} refused, {failed} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
