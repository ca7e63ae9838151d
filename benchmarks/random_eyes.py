"""Write a pair of GGUF files of random weights in the shape of a GLM that sees: its text model and its eyes.

    python benchmarks/random_eyes.py glm-ocr Q8_0 ocr.gguf                  # and mmproj-ocr.gguf beside it
    python benchmarks/random_eyes.py glm-ocr Q8_0 ocr.gguf --eyes F16 --layers 2

As llama.cpp's converter writes them, so libmtmd opens them, too: its patches and the merger's kernel are F16 whatever
the format is. What the model says means nothing; no kernel's speed depends on that. Needs numpy and the gguf package.
"""

import argparse
import math
import os
import pathlib

import numpy as np
import random_model
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from shapes import EYES, eyes_tensors

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def type_of(name, shape, format):
    """As llama.cpp's converter chooses."""
    if len(shape) == 1:
        return "F32"
    return "F16" if name.startswith(("v.patch_embd", "mm.patch_merger")) else format


def write(path, shape, format, seed=0, **sizes):
    """The eyes, written beside their place and renamed when whole. sizes: fields of the shape to replace."""
    e, path = EYES[shape]._replace(**sizes), pathlib.Path(path)
    rng = np.random.default_rng(seed)
    part = path.with_name(path.name + ".part")
    w = GGUFWriter(part, "clip")
    w.add_string("general.type", "mmproj")
    w.add_name(f"random eyes of {shape} {format}")
    w.add_string("clip.projector_type", "glm4v")
    w.add_bool("clip.has_vision_encoder", True)
    w.add_bool("clip.use_silu", True)
    for key, value in {
        "block_count": e.layers,
        "embedding_length": e.dim,
        "feed_forward_length": e.ffn,
        "attention.head_count": e.heads,
        "patch_size": 14,
        "image_size": 336,
        "projection_dim": e.out,
    }.items():
        w.add_uint32(f"clip.vision.{key}", value)
    w.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    w.add_array("clip.vision.image_mean", MEAN)
    w.add_array("clip.vision.image_std", STD)
    for name, shape in eyes_tensors(e):
        kind = GGMLQuantizationType[type_of(name, shape, format)]
        values, size = GGML_QUANT_SIZES[kind]
        w.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // values * size, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for name, shape in eyes_tensors(e):
        if len(shape) > 1:
            kind = type_of(name, shape, format)
            w.write_tensor_data(random_model.Matrix(rng, kind, shape[0], math.prod(shape[1:])))
        else:
            is_norm = name.endswith("weight")
            w.write_tensor_data(np.float32(is_norm) + 0.1 * rng.standard_normal(shape, np.float32))
    w.close()
    os.replace(part, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=EYES)
    parser.add_argument("format", type=str.upper, help="of the text model: as random_model.py has it")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--eyes", type=str.upper, default="Q8_0", choices=["F32", "F16", "BF16", "Q8_0"])
    parser.add_argument("--layers", type=int, help="of each of both networks, instead of the shape's")
    arguments = parser.parse_args()
    layers = {} if arguments.layers is None else {"layers": arguments.layers}
    random_model.write(arguments.out, arguments.shape, arguments.format, **layers)
    write(arguments.out.with_name(f"mmproj-{arguments.out.name}"), arguments.shape, arguments.eyes, **layers)
