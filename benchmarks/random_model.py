"""Write a GGUF file of random weights in the shape of a real GLM, to measure speed and memory with.

    python benchmarks/random_model.py glm-edge-1.5b Q4_0 edge-q4_0.gguf

Weights are random blocks of the format, tensor after tensor, so memory stays small whatever the model's size. The
vocabulary is made up, prompts go in as token ids, unless --tokenizer names a checkpoint's folder with a byte-level
vocabulary (GLM-4). Needs numpy and the gguf package.
"""

import argparse
import os
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from glmlite.convert import vocab

# layers, dim, heads, kv_heads, head_dim, ffn, rope_dim, vocab, tied (MODELS: the published configurations)
SHAPES = {
    "glm-edge-1.5b": {
        "layers": 28,
        "dim": 2048,
        "heads": 16,
        "kv_heads": 4,
        "ffn": 6144,
        "rope_dim": 128,
        "vocab": 59264,
        "tied": True,
    },
    "chatglm3-6b": {
        "layers": 28,
        "dim": 4096,
        "heads": 32,
        "kv_heads": 2,
        "ffn": 13696,
        "rope_dim": 64,
        "vocab": 65024,
        "tied": False,
    },
    "glm-4-9b": {
        "layers": 40,
        "dim": 4096,
        "heads": 32,
        "kv_heads": 2,
        "ffn": 13696,
        "rope_dim": 64,
        "vocab": 151552,
        "tied": False,
    },
    "tiny": {
        "layers": 2,
        "dim": 512,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 1024,
        "rope_dim": 64,
        "vocab": 2048,
        "tied": False,
    },
}
HEAD_DIM = 128

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


def tensors(s):
    """(name, rows or None for a vector, columns, role) of every tensor."""
    qkv = (s["heads"] + 2 * s["kv_heads"]) * HEAD_DIM
    yield "token_embd.weight", s["vocab"], s["dim"]
    for i in range(s["layers"]):
        w = f"blk.{i}."
        yield w + "attn_norm.weight", None, s["dim"]
        yield w + "attn_qkv.weight", qkv, s["dim"]
        yield w + "attn_qkv.bias", None, qkv
        yield w + "attn_output.weight", s["dim"], s["heads"] * HEAD_DIM
        yield w + "ffn_norm.weight", None, s["dim"]
        yield w + "ffn_up.weight", 2 * s["ffn"], s["dim"]
        yield w + "ffn_down.weight", s["dim"], s["ffn"]
    yield "output_norm.weight", None, s["dim"]
    if not s["tied"]:
        yield "output.weight", s["vocab"], s["dim"]


def type_of(name, format):
    """llama.cpp's Q4_K_M keeps the embedding, and the output's and half of the ffn_down matrices, in Q6_K."""
    if format == "Q4_K_M":
        more = name in ("token_embd.weight", "output.weight")
        more |= "ffn_down" in name and int(name.split(".")[1]) % 2 == 0
        return "Q6_K" if more else "Q4_K"
    if name in ("token_embd.weight", "output.weight") and format in ("Q4_0", "Q4_1", "IQ4_NL", "Q4_K", "IQ4_XS"):
        return "Q6_K"
    return format


def made_up_tokens(count):
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "chatglm-bpe",
        "tokenizer.ggml.tokens": [*BYTES, "ab", *(f"[{i}]" for i in range(257, count))],
        "tokenizer.ggml.token_type": [1] * count,
        "tokenizer.ggml.merges": ["a b"],
    }


def write(path, shape, format, seed=0, tokenizer=None):
    """The file, written beside its place and renamed when whole."""
    s, path = SHAPES[shape], pathlib.Path(path)
    rng = np.random.default_rng(seed)
    part = path.with_name(path.name + ".part")
    w = GGUFWriter(part, "chatglm")
    w.add_name(f"random {shape} {format}")
    w.add_block_count(s["layers"])
    w.add_context_length(131072)
    w.add_embedding_length(s["dim"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv_heads"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(s["rope_dim"])
    w.add_rope_freq_base(10000.0)
    tokens = vocab.from_folder(tokenizer, vocab_size=s["vocab"]) if tokenizer else made_up_tokens(s["vocab"])
    w.add_tokenizer_model(tokens["tokenizer.ggml.model"])
    w.add_tokenizer_pre(tokens["tokenizer.ggml.pre"])
    w.add_token_list(tokens["tokenizer.ggml.tokens"])
    w.add_token_types([int(kind) for kind in tokens["tokenizer.ggml.token_type"]])
    w.add_token_merges(tokens["tokenizer.ggml.merges"])
    w.add_eos_token_id(s["vocab"] - 1)
    for name, rows, columns in tensors(s):
        kind = GGMLQuantizationType[type_of(name, format) if rows else "F32"]
        values, size = GGML_QUANT_SIZES[kind]
        nbytes = (rows or 1) * columns // values * size
        dims = (rows, columns // values * size) if rows else (columns,)
        dtype = np.uint8
        if not rows or kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            dims, dtype = (rows, columns) if rows else (columns,), np.dtype("f4" if kind.name == "F32" else "f2")
        w.add_tensor_info(name, dims, np.dtype(dtype), nbytes, raw_dtype=kind if dtype == np.uint8 else None)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for name, rows, columns in tensors(s):
        if rows is None:
            x = np.ones(columns, np.float32) if "norm" in name else rng.standard_normal(columns, np.float32) * 0.1
            w.write_tensor_data(x.astype(np.float32))
        else:
            w.write_tensor_data(random_blocks(rng, type_of(name, format), rows, columns))
    w.close()
    os.replace(part, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("format", choices=["F32", "F16", "Q4_K_M", *SCALES])
    parser.add_argument("out")
    parser.add_argument("--tokenizer", metavar="FOLDER")
    arguments = parser.parse_args()
    write(arguments.out, arguments.shape, arguments.format, tokenizer=arguments.tokenizer)
