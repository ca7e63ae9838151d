"""Fuzzing of `glmlite convert` with damaged checkpoints.

    PYTHONPATH=tests:. python tests/fuzz/fuzz_checkpoint.py --seconds 600 [--seed 1] [--keep FOLDER]

A good tiny checkpoint of some form (safetensors or torch's files, packed or not, with or without an adapter or a
prefix) is damaged in one to three places: bytes of any file, values of its JSON (config, header, index, tokenizer),
opcodes of its pickle. It must be refused by a FormatError of one line, or become a file that loads. Anything else is
printed, with the seed that makes it again, and the exit status is 1: another exception, more than 10 s, more than 1 GiB
of memory, a pickle that runs something. Linux only.
"""

import argparse
import json
import os
import pathlib
import pickletools
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from itertools import pairwise

import checkpoints
import numpy as np
import tiny

from glmlite import _native, models
from glmlite.convert import convert
from glmlite.errors import FormatError
from glmlite.tokenizer import Tokenizer

SECONDS = 10  # of the processor for one conversion
MEMORY = 1 << 30  # bytes beyond those in use at the beginning
OLD = {"head_dim": 16, "ffn": 256}
FORMS = {
    "chatglm": ("chatglm", {"prefix": 2}),
    "chatglm1": ("chatglm1", OLD),
    "glm": ("glm", OLD),
    "glm4": ("hf", {"fused": False}),
    "llama": ("hf", {}),
}
TYPES = ["f32", "f16", "q8_0"]
VALUES = [None, True, False, 0, 1, -1, 2, 3, 64, 384, 2**31, 2**40, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308]
VALUES += [
    float("nan"),
    float("inf"),
    "",
    "x",
    "\0",
    "\ud800",
    "yarn",
    "../x",
    "F32",
    [],
    [[]],
    {},
    {"x": []},
    [0] * 100,
]
DEEP = b"[" * 100_000
BYTES = [b"\0", b"\xff", b"\x80", b"\x7f", b"\0" * 8, b"\xff" * 8, b"{", b'"', b"\n", b"PK\3\4", DEEP]
MARK = "fuzz_checkpoint_ran"  # what a pickle would make


def seeds(folder):
    """name -> files of a good checkpoint: {relative path: bytes}."""
    out = {}
    for architecture, (form, sizes) in FORMS.items():
        model = tiny.model(architecture, **sizes)
        for files in ("safetensors", "torch"):
            for bits, shards in ((None, 1), (None, 2), (4, 1)):
                if bits and architecture not in ("chatglm", "chatglm1"):
                    continue
                name = f"{architecture}-{files}-{bits}-{shards}"
                path = folder / name
                checkpoints.write(path, model, form, files=files, dtype="F16", bits=bits, shards=shards)
                (path / "generation_config.json").write_text('{"eos_token_id": [256], "temperature": 0.8}')
                if not bits and architecture in ("chatglm", "llama"):
                    lora(path / "lora", form, model, files)
                if not (path / "tokenizer_config.json").exists():
                    (path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {}}')
                if architecture == "llama":
                    with_post_processor(path / "tokenizer.json")
                found = (file for file in path.rglob("*") if file.is_file())
                out[name] = {str(file.relative_to(path)): file.read_bytes() for file in found}
                shutil.rmtree(path)
    for name, write in (("sentencepiece", sentencepiece), ("tiktoken", tiktoken)):
        files = dict(out["chatglm-safetensors-None-1"])
        del files["tokenizer.json"]
        files["tokenizer.model"] = write()
        out[name] = files
    return out


def with_post_processor(path):
    value = json.loads(path.read_text())
    first = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}]}
    value["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, first]}
    path.write_text(json.dumps(value))
    config = json.loads((path.parent / "config.json").read_text()) | {"bos_token_id": 265}
    (path.parent / "config.json").write_text(json.dumps(config))


def lora(folder, form, model, files):
    module = {
        "chatglm": "transformer.encoder.layers.0.self_attention.query_key_value",
        "hf": "model.layers.1.mlp.up_proj",
    }[form]
    named, _ = getattr(checkpoints, form)(model)
    n, k = named[f"{module}.weight"].shape
    pair = {
        f"base_model.model.{module}.lora_{x}.weight": np.ones(s, np.float32) for x, s in (("A", (2, k)), ("B", (n, 2)))
    }
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"], "alpha_pattern": {"x": 3}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if files == "torch":
        checkpoints.write_torch(folder / "adapter_model.bin", pair)
    else:
        checkpoints.write_safetensors(folder / "adapter_model.safetensors", pair)


def sentencepiece():
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256))]
    pieces += [(text, -float(i), 1) for i, text in enumerate(["\u2581", "a", "b", "ab", "\u2581ab"])]
    return checkpoints.sentencepiece_model(pieces, model_type=2)


def tiktoken():
    import base64

    words = [bytes([b]) for b in range(256)] + [b"ab", b"abc", b"the"]
    return b"".join(base64.b64encode(word) + b" %d\n" % i for i, word in enumerate(words))


# ---- damage ------------------------------------------------------------------------------------------------------


def damage(name, data, rng):
    if name.endswith(".json"):
        if rng.random() < 0.7:
            return damage_json(data, rng)
    elif name.endswith(".safetensors") and rng.random() < 0.6:
        (size,) = struct.unpack_from("<Q", data)
        header = damage_json(data[8 : 8 + size], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    elif name.endswith(".bin") and rng.random() < 0.7:
        return damage_torch(data, rng)
    return damage_bytes(data, rng)


def damage_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        # Half of the places are where headers are: near the ends.
        near = rng.choice([len(data), min(len(data), 600)])
        at = rng.randrange(near + 1) if rng.random() < 0.7 else len(data) - rng.randrange(near + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = rng.choice(BYTES)
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.choice([1, 2, 8, 100])]
            case 3:
                data[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
            case 4:
                data[at:at] = data[at : at + rng.choice([1, 8, 64, 1000])]
            case 5 if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


def damage_json(data, rng):
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 3])):
        place(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.05:
        at = text.find(":") + 1
        text = text[:at] + rng.choice(['{"a":' * 90_000, "[" * 90_000, "9" * 5000, "1e999", "NaN"]) + text[at:]
    return text.encode("utf-8", "surrogatepass")


def place(value, rng):
    """Changes one place anywhere in nested lists and dicts."""
    while True:
        if not isinstance(value, (list, dict)) or not value:
            return
        # Long lists (vocabularies) are no likelier to be entered than their neighbours.
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if isinstance(value[key], (list, dict)) and value[key] and rng.random() < 0.75:
            value = value[key]
            continue
        match rng.randrange(5):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice(["x", "", "\0", *value])] = value[key]
            case 2 if isinstance(value[key], int) and not isinstance(value[key], bool):
                value[key] += rng.choice([-1, 1, 7, -100, 2**20, 2**32])
            case 3 if isinstance(value, list):
                value.insert(key, value[key])
            case _:
                value[key] = rng.choice(VALUES)
        return


CALLS = [
    b"cos\nsystem\n(X%ctR" % 0,
    b"cbuiltins\nopen\n(X\x13\0\0\0fuzz_checkpoint_ranX\1\0\0\0wtR",
    b"c__builtin__\neval\n(X\1\0\0\0" + b"1tR",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"\x93",
    b"K\1Q",
    b"\x8a\xff" + b"\x7f" * 255,
]


def damage_torch(data, rng):
    """Another pickle in the archive, other storages, or another archive around them."""
    import io

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    if rng.random() < 0.7:
        members["archive/data.pkl"] = damage_pickle(members["archive/data.pkl"], rng)
    else:
        name = rng.choice(list(members))
        match rng.randrange(4):
            case 0:
                del members[name]
            case 1:
                members[name] = members[name][: rng.randrange(len(members[name]) + 1)]
            case 2:
                members[rng.choice(["archive/data/0", "../x", "other/data.pkl", "archive/byteorder"])] = members[name]
            case 3:
                members[name] = damage_bytes(members[name], rng)
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return out.getvalue()


def damage_pickle(data, rng):
    starts = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    ops = [data[a:b] for a, b in pairwise(starts)]
    for _ in range(rng.choice([1, 1, 2, 6])):
        at = rng.randrange(len(ops))
        match rng.randrange(6):
            case 0:
                del ops[at]
            case 1:
                ops.insert(at, rng.choice(ops))
            case 2:
                ops.insert(
                    at,
                    bytes(
                        [rng.choice(b"(0123FGIJKMNPQRSTUVX]abcdeghijlopqrstu)}\x80\x81\x82\x85\x86\x87\x88\x89\x8c")]
                    ),
                )
            case 3:
                ops.insert(at, rng.choice(CALLS))
            case 4:
                numbers = [i for i, op in enumerate(ops) if op[:1] == b"J"]
                ops[rng.choice(numbers)] = b"J" + struct.pack(
                    "<i", rng.choice([-1, 0, 1, 2, 63, 65, 2**31 - 1, -(2**31)])
                )
            case 5:
                ops[at] = damage_bytes(ops[at], rng)
    return b"".join(ops)


# ---- one run -----------------------------------------------------------------------------------------------------


class TooLong(BaseException):
    pass


def one(number, good, folder):
    """What is wrong, None if nothing."""
    rng = random.Random(number)
    name = rng.choice(sorted(good))
    files = dict(good[name])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        file = rng.choice(sorted(files))
        if rng.random() < 0.02:
            del files[file]
            break
        try:
            files[file] = damage(file, files[file], rng)
        except (ValueError, KeyError, struct.error, zipfile.BadZipFile, IndexError, EOFError, RecursionError):
            files[file] = damage_bytes(files[file], rng)  # broken already
    shutil.rmtree(folder, ignore_errors=True)
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    options = {"lora": folder / "lora"} if (folder / "lora").exists() and rng.random() < 0.5 else {}
    out = folder / "out.gguf"
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        convert(folder, out, rng.choice(TYPES), **options)
        gguf = _native.Gguf(str(out))
        models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
        tokenizer = Tokenizer.from_metadata(gguf.metadata)
        tokenizer.decode(tokenizer.encode("the 你好 ab<|user|>"))
        gguf.close()
        return None
    except FormatError as error:
        text = str(error)
        if "\n" in text or len(text) > 2000:
            return f"a message of {len(text)} characters, {text.count(chr(10)) + 1} lines: {text[:200]!r}"
        if str(folder) not in text and not text.startswith("tokenizer."):
            return f"no file in the message: {text[:200]!r}"
        return None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-4:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="the first case's number")
    parser.add_argument("--runs", type=int, default=2**62)
    parser.add_argument("--keep", type=pathlib.Path, help="the last checkpoint stays in this folder")
    arguments = parser.parse_args()

    def too_long(*_):
        raise TooLong(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, too_long)
    failures = {}
    with tempfile.TemporaryDirectory() as temporary:
        base = pathlib.Path(temporary)
        os.chdir(base)
        good = seeds(base / "seeds")
        folder = (arguments.keep or base / "case").absolute()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        end, number = time.monotonic() + arguments.seconds, arguments.seed
        while time.monotonic() < end and number < arguments.seed + arguments.runs:
            wrong = one(number, good, folder)
            if (base / MARK).exists():
                wrong = "its pickle ran"
                (base / MARK).unlink()
            if wrong:
                first = wrong.strip().splitlines()
                key = first[-1][:60] + first[-2 if len(first) > 1 else 0][:60]
                if failures.setdefault(key, number) == number:
                    print(f"case {number}:\n{wrong[-3000:]}", flush=True)
            number += 1
    print(f"{number - arguments.seed} cases, {len(failures)} kinds of failure")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
