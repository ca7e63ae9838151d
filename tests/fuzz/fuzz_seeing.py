"""Fuzzing of messages with images on a loaded model that sees: their parts, the images in them, and templates.

    PYTHONPATH=tests:. python tests/fuzz/fuzz_seeing.py --seconds 1200 [--seed 1]

Messages are made of good and bad parts, roles and images (files whose bytes are damaged, arrays of odd types, paths
that are none, data URLs), and asked of a tiny model, several at once, some cancelled, some looked at to the end. A
message must be answered, or refused by a ValueError that has a place in it. Anything else is printed, with the seed
that makes it again, and the exit status is 1: another exception, an answer that differs from the first one to the same
message, a wait of more than 60 s (while the process is not stopped), more than 1 GiB of memory.
"""

import argparse
import base64
import io
import os
import pathlib
import random
import resource
import sys
import tempfile
import threading
import time
import traceback

import numpy as np
import tiny
from PIL import Image
from test_chat_images import FLAT, PARTS

import glmlite

SECONDS = 60
MEMORY = 1 << 30
WORDS = ["", "a", "<|image|>", "\ufdd2", "<|begin_of_image|>", "\ufdd0\ufdd1", "what is it?", "\0", "\ud800", "图"]


def good_images(random_):
    for size in ((28, 28), (60, 90), (140, 84), (1, 150), (300, 200)):
        pixels = np.frombuffer(random_.randbytes(3 * size[0] * size[1]), np.uint8).reshape(*size, 3)
        yield pixels
        image = Image.fromarray(pixels)
        for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
            file = io.BytesIO()
            image.save(file, kind)
            yield file.getvalue()
        yield image.convert(random_.choice(["RGB", "L", "RGBA", "P", "1", "CMYK"]))


def damaged(random_, data):
    data = bytearray(data)
    for _ in range(random_.randint(1, 6)):
        at = random_.randrange(len(data))
        if random_.random() < 0.2:
            del data[at : at + random_.randint(1, 50)]
        else:
            data[at] = random_.randrange(256)
        if not data:
            break
    return bytes(data)


def some_image(random_, good):
    image = random_.choice(good)
    chance = random_.random()
    if chance < 0.35:
        return image
    if chance < 0.7 and isinstance(image, bytes):
        image = damaged(random_, image)
        return image if random_.random() < 0.7 else "data:image/png;base64," + base64.b64encode(image).decode()
    kinds = [np.uint8, np.uint16, np.float32, np.bool_, np.int64, np.complex64, object]
    shape = [random_.choice([0, 1, 2, 3, 4, 30, 60]) for _ in range(random_.randint(0, 4))]
    return random_.choice(
        [
            np.zeros(shape, random_.choice(kinds)),
            None,
            3,
            "",
            "/",
            "\0",
            "/no/such",
            "data:",
            "data:image/png;base64,####",
            [],
            {},
            {"url": "data:image/png,x"},
            pathlib.Path("/dev/null"),
            object(),
        ]
    )


def some_part(random_, good):
    chance = random_.random()
    if chance < 0.45:
        return {"type": "text", "text": random_.choice(WORDS)}
    if chance < 0.9:
        return {"type": "image", "image": some_image(random_, good)}
    address = some_image(random_, good)
    return random_.choice(
        [
            {"type": "image_url", "image_url": address},
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "image"},
            {"type": "video", "video": "x"},
            {"text": "a"},
            "text",
            None,
            {"type": ["image"]},
        ]
    )


def some_messages(random_, good):
    messages = []
    for _ in range(random_.randint(1, 4)):
        role = random_.choice(["user", "user", "user", "assistant", "system", "tool", "observation"])
        parts = [some_part(random_, good) for _ in range(random_.randint(0, 3))]
        messages.append({"role": role, "content": random_.choice([parts, parts, parts, random_.choice(WORDS)])})
    return messages


def run(models, seed, good):
    random_ = random.Random(seed)
    model = random_.choice(models)
    asked = [some_messages(random_, good) for _ in range(random_.randint(1, 4))]
    options = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True}
    if random_.random() < 0.3:
        options["overflow"] = "truncate"
    running = []
    refused = 0
    for messages in asked:
        try:
            running.append((messages, model.chat_stream(messages, **options)))
        except ValueError as error:
            refused += 1
            assert "messages" in str(error) or isinstance(error, glmlite.ContextOverflow) or "prompt" in str(error), (
                error
            )
    cancelled = [generation for _, generation in running if random_.random() < 0.3]
    for generation in cancelled:
        generation.cancel()
    for messages, generation in running:
        answer = generation.result()
        if generation not in cancelled:
            assert len(answer.tokens) == min(4, model.context - answer.stats.prompt_tokens), answer
            if random_.random() < 0.2:
                assert model.chat(messages, **options).tokens == answer.tokens
    return len(asked), refused


def watch(seed, ended):
    """Second by second: one in which the process is stopped, however long, is one."""
    for _ in range(SECONDS):
        if ended.wait(1):
            return
    print(f"seed {seed}: hangs", flush=True)
    os._exit(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp())
    tiny.write(folder / "mmproj.gguf", tiny.eyes(), "Q8_0")
    models = []
    for name, template, format in (("parts", PARTS, "Q8_0"), ("flat", FLAT, "F32")):
        metadata = {"glm4.rope.dimension_sections": [4, 6, 6, 0], "tokenizer.chat_template": template}
        text = tiny.model("glm4", rope_dim=32, context=4096, metadata=metadata)
        models.append(glmlite.load(tiny.write(folder / f"{name}.gguf", text, format), context=400, parallel=2))
    good = list(good_images(random.Random(0)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    end = time.monotonic() + arguments.seconds
    seed, asked, refused = arguments.seed, 0, 0
    while time.monotonic() < end:
        ended = threading.Event()
        threading.Thread(target=watch, args=(seed, ended), daemon=True).start()
        try:
            counts = run(models, seed, good)
        except BaseException:
            print(f"seed {seed}:")
            traceback.print_exc()
            sys.exit(1)
        finally:
            ended.set()
        asked, refused, seed = asked + counts[0], refused + counts[1], seed + 1
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        assert grown < MEMORY, f"seed {seed}: {grown} bytes more"
    print(
        f"{seed - arguments.seed} rounds, {asked} conversations, {refused} refused, {grown / 1e6:.0f} MB more at most"
    )
    for model in models:
        model.close()


if __name__ == "__main__":
    main()
