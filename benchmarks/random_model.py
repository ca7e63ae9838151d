"""Write a GGUF file of random weights in the shape of a real GLM, to measure speed and memory with.

    python benchmarks/random_model.py glm-edge-1.5b Q4_0 edge-q4_0.gguf
    python benchmarks/random_model.py glm-4-9b Q4_K_M 9b.gguf --layers 8
    python benchmarks/random_model.py glm-4.7-flash Q4_K_S flash.gguf                   # 17.1 GB
    python benchmarks/random_model.py glm-4.5-air IQ4_XS air.gguf --layers 12 --draft 1

Weights are random blocks of the format, piece after piece, so memory stays small whatever the model's size; a large
tensor repeats one piece of random blocks, from other rows on, which no kernel's speed depends on. Which tensor has
which format is what `glmlite convert` would choose. Routers choose nearly uniformly, and neighbours share experts by
chance alone. The vocabulary is made up, prompts go in as token ids, unless --tokenizer names a checkpoint's folder with
a byte-level vocabulary (GLM-4). Needs numpy and the gguf package.
"""

import argparse
import functools
import math
import os
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGMLQuantizationType, GGUFWriter
from shapes import SHAPES, Shape, tensors

from glmlite.convert import recipes, vocab

PIECE = 1 << 24  # values made at a time

# What a model that sees is asked with.
CONTROLS = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>", "<|endoftext|>"]
TEMPLATE = "[gMASK]<sop>{% for m in messages %}<|user|>\n{{ m.content }}{% endfor %}<|assistant|>\n"

# The 256 bytes as byte-level BPE writes them: printable ones as themselves, the others above U+0100.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [chr(b) for b in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]

# Where the f16 scale of a block stands, its mins' scale if it has one, and the mean code that the mins take off.
SCALES = {
    "Q8_0": (0, None, 0),
    "Q4_0": (0, None, 0),
    "Q4_1": (0, 2, 7.5),
    "Q5_0": (0, None, 0),
    "Q5_1": (0, 2, 15.5),
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0),
    "IQ4_NL": (0, None, 0),
    "IQ4_XS": (0, None, 0),
}


def random_blocks(rng, format, rows, columns):
    """(rows, bytes) of random codes, scaled so that the values' spread is about columns ** -0.5."""
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[format]]
    if format == "BF16":
        x = rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    if format in ("F32", "F16"):
        x = rng.standard_normal((rows, columns), np.float32) * columns**-0.5
        return x.astype(np.float32 if format == "F32" else np.float16)
    blocks = rng.integers(0, 256, (rows * columns // values, size), np.uint8)
    at, min_at, mean = SCALES[format]
    scale = np.float16(columns**-0.5 / spread(format))
    blocks[:, at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    if min_at is not None:
        sign = -1 if format in ("Q4_1", "Q5_1") else 1  # the K formats take their mins off
        blocks[:, min_at : min_at + 2] = np.frombuffer(np.float16(sign * mean * float(scale)).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


@functools.cache
def spread(format):
    """Standard deviation of the values that random codes of a format have at scale 1."""
    from gguf import quants

    rng = np.random.default_rng(0)
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[format]]
    blocks = rng.integers(0, 256, (64, size), np.uint8)
    at, min_at, _ = SCALES[format]
    for where, value in ((at, 1.0), (min_at, 0.0)):
        if where is not None:
            blocks[:, where : where + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    return float(quants.dequantize(blocks, GGMLQuantizationType[format]).std())


def type_of(name, shape, format, s):
    """As `glmlite convert` chooses, if it has such a recipe; else the format, where rows are whole blocks of it."""
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return "F32"
    if format.lower() in recipes.RECIPES:
        return recipes.choose(name, shape, format.lower(), s.layers, s.tied)
    return format if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[format]][0] == 0 else "Q8_0"


class Matrix:
    """What GGUFWriter wants of an array, made while it is written: memory stays small beside a large vocabulary."""

    def __init__(self, rng, format, rows, columns):
        self.rng, self.format, self.rows, self.columns = rng, format, rows, columns
        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[format]]
        self.nbytes = rows * columns // values * size

    def tofile(self, file):
        step = max(1, PIECE // self.columns)
        piece = random_blocks(self.rng, self.format, min(2 * step, self.rows), self.columns)
        piece[:step].tofile(file)
        for begin in range(step, self.rows, step):
            count = min(step, self.rows - begin)
            first = int(self.rng.integers(0, len(piece) - count + 1))
            piece[first : first + count].tofile(file)


def made_up_tokens(count, controls=()):
    words = [*BYTES, "ab", *(f"[{i}]" for i in range(257, count - len(controls)))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "chatglm-bpe",
        "tokenizer.ggml.tokens": [*words, *controls],
        "tokenizer.ggml.token_type": [1] * len(words) + [3] * len(controls),
        "tokenizer.ggml.merges": ["a b"],
    }


def add_experts(w, s):
    w.add_leading_dense_block_count(s.dense)
    w.add_expert_count(s.experts)
    w.add_expert_used_count(s.used)
    w.add_expert_shared_count(s.shared)
    w.add_expert_feed_forward_length(s.expert_ffn)
    w.add_expert_weights_scale(s.scale)
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    if s.draft:
        w.add_nextn_predict_layers(s.draft)


def write(path, shape, format, seed=0, tokenizer=None, **sizes):
    """The file, written beside its place and renamed when whole. sizes: fields of the shape to replace."""
    s, path = SHAPES[shape]._replace(**sizes), pathlib.Path(path)
    rng = np.random.default_rng(seed)
    part = path.with_name(path.name + ".part")
    w = GGUFWriter(part, s.architecture)
    w.add_name(f"random {shape} {format}")
    w.add_block_count(s.layers + s.draft)
    w.add_context_length(131072)
    w.add_embedding_length(s.dim)
    w.add_feed_forward_length(s.ffn)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_key_length(s.kv_rank + s.rope_dim if s.kv_rank else s.head_dim)
    w.add_value_length(s.kv_rank or s.head_dim)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(s.rope_dim)
    w.add_rope_freq_base(s.theta)
    if s.experts:
        add_experts(w, s)
    if s.kv_rank:
        w.add_vocab_size(s.vocab)
        w.add_q_lora_rank(s.q_rank)
        w.add_kv_lora_rank(s.kv_rank)
        w.add_key_length_mla(s.head_dim)
        w.add_value_length_mla(s.value_dim)
    controls = CONTROLS if s.sections else ()
    tokens = vocab.from_folder(tokenizer, vocab_size=s.vocab) if tokenizer else made_up_tokens(s.vocab, controls)
    if s.sections:
        w.add_rope_dimension_sections(s.sections)
        w.add_chat_template(TEMPLATE)
    w.add_tokenizer_model(tokens["tokenizer.ggml.model"])
    w.add_tokenizer_pre(tokens["tokenizer.ggml.pre"])
    w.add_token_list(tokens["tokenizer.ggml.tokens"])
    w.add_token_types([int(kind) for kind in tokens["tokenizer.ggml.token_type"]])
    w.add_token_merges(tokens["tokenizer.ggml.merges"])
    w.add_eos_token_id(s.vocab - 1)
    for name, shape in tensors(s):
        kind = GGMLQuantizationType[type_of(name, shape, format, s)]
        values, size = GGML_QUANT_SIZES[kind]
        w.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // values * size, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for name, shape in tensors(s):
        if len(shape) > 1:
            w.write_tensor_data(Matrix(rng, type_of(name, shape, format, s), math.prod(shape[:-1]), shape[-1]))
        elif "norm" in name:
            w.write_tensor_data(np.ones(shape, np.float32))
        else:
            spread = 0 if "exp_probs_b" in name else 0.1
            w.write_tensor_data(rng.standard_normal(shape, np.float32) * np.float32(spread))
    w.close()
    os.replace(part, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    formats = [*dict.fromkeys([*(name.upper() for name in recipes.RECIPES), *SCALES])]
    parser.add_argument("format", type=str.upper, choices=formats, help="a recipe of `glmlite convert` or a format")
    parser.add_argument("out")
    parser.add_argument("--tokenizer", metavar="FOLDER")
    for name, type in Shape.__annotations__.items():
        if type is int:
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help="instead of the shape's")
    arguments = vars(parser.parse_args())
    path, shape, format, tokenizer = (arguments.pop(name) for name in ("out", "shape", "format", "tokenizer"))
    write(path, shape, format, tokenizer=tokenizer, **{name: n for name, n in arguments.items() if n is not None})
