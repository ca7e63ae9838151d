"""Write a checkpoint of random weights in the shape of a real GLM, sharded, to measure the converter with.

    python benchmarks/random_checkpoint.py glm-4-9b-chat out           # 18.8 GB of bf16 safetensors
    python benchmarks/random_checkpoint.py glm-4-9b-chat out --layers 4 --files torch --dtype f16
    python benchmarks/random_checkpoint.py glm-4-9b-chat out --shape glm-4.7-flash --layers 5

The first argument is a folder with the configuration and the tokenizer of a model of the chatglm family under its
original names (GLM-4-9B, ChatGLM3-6B); its files are copied. --shape takes the tokenizer alone, for a mixture of
experts as published: a tensor for each expert's matrix. Weights are normal, pieces of one table of random numbers that
begin anywhere. Memory stays small.
"""

import argparse
import json
import math
import pathlib
import shutil
import struct
import sys
import zipfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
import checkpoints
from shapes import SHAPES

TABLE = 1 << 24  # random values
PIECE = 1 << 22  # values
DTYPES = {"bf16": "BF16", "f16": "F16"}


def tensors(config):
    """Tensor name -> shape."""
    dim, ffn, head_dim = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    qkv = (config["num_attention_heads"] + 2 * config["multi_query_group_num"]) * head_dim
    shapes = {"transformer.embedding.word_embeddings.weight": (config["padded_vocab_size"], dim)}
    for i in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (dim,)
        shapes[layer + "self_attention.query_key_value.weight"] = (qkv, dim)
        shapes[layer + "self_attention.query_key_value.bias"] = (qkv,)
        shapes[layer + "self_attention.dense.weight"] = (dim, config["num_attention_heads"] * head_dim)
        shapes[layer + "post_attention_layernorm.weight"] = (dim,)
        shapes[layer + "mlp.dense_h_to_4h.weight"] = (2 * ffn, dim)
        shapes[layer + "mlp.dense_4h_to_h.weight"] = (dim, ffn)
    shapes["transformer.encoder.final_layernorm.weight"] = (dim,)
    shapes["transformer.output_layer.weight"] = (config["padded_vocab_size"], dim)
    return shapes


def mixture(s):
    """The configuration and the tensors, name -> shape, of a GLM-4.7-Flash of the shape `s`."""
    config = {
        "model_type": "glm4_moe_lite",
        "num_hidden_layers": s.layers,
        "num_nextn_predict_layers": s.draft,
        "hidden_size": s.dim,
        "intermediate_size": s.ffn,
        "moe_intermediate_size": s.expert_ffn,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.heads,
        "q_lora_rank": s.q_rank,
        "kv_lora_rank": s.kv_rank,
        "qk_nope_head_dim": s.head_dim - s.rope_dim,
        "qk_rope_head_dim": s.rope_dim,
        "v_head_dim": s.value_dim,
        "n_routed_experts": s.experts,
        "n_shared_experts": s.shared,
        "num_experts_per_tok": s.used,
        "routed_scaling_factor": s.scale,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
        "rope_theta": s.theta,
        "tie_word_embeddings": False,
    }
    shapes = {"model.embed_tokens.weight": (s.vocab, s.dim)}
    for i in range(s.layers):
        layer = f"model.layers.{i}."
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        shapes |= {f"{layer}{name}_layernorm.weight": (s.dim,) for name in ("input", "post_attention")}
        shapes[attention + "q_a_proj.weight"] = (s.q_rank, s.dim)
        shapes[attention + "q_a_layernorm.weight"] = (s.q_rank,)
        shapes[attention + "q_b_proj.weight"] = (s.heads * s.head_dim, s.q_rank)
        shapes[attention + "kv_a_proj_with_mqa.weight"] = (s.kv_rank + s.rope_dim, s.dim)
        shapes[attention + "kv_a_layernorm.weight"] = (s.kv_rank,)
        shapes[attention + "kv_b_proj.weight"] = (s.heads * (s.head_dim - s.rope_dim + s.value_dim), s.kv_rank)
        shapes[attention + "o_proj.weight"] = (s.dim, s.heads * s.value_dim)
        halves = {"": s.ffn}
        if i >= s.dense:
            shapes[mlp + "gate.weight"] = (s.experts, s.dim)
            shapes[mlp + "gate.e_score_correction_bias"] = (s.experts,)
            halves = {f"experts.{expert}.": s.expert_ffn for expert in range(s.experts)}
            halves["shared_experts."] = s.shared * s.expert_ffn
        for which, ffn in halves.items():
            shapes |= {f"{mlp}{which}{part}_proj.weight": (ffn, s.dim) for part in ("gate", "up")}
            shapes[f"{mlp}{which}down_proj.weight"] = (s.dim, ffn)
    return config, shapes | {"model.norm.weight": (s.dim,), "lm_head.weight": (s.vocab, s.dim)}


def shards(shapes, limit):
    """Lists of names, each of at most `limit` bytes if it has more than one."""
    lists, size = [[]], 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if lists[-1] and size + nbytes > limit:
            lists.append([])
            size = 0
        lists[-1].append(name)
        size += nbytes
    return lists


def pieces(rng, table, count):
    """`count` values."""
    while count:
        begin = int(rng.integers(0, TABLE - PIECE))
        yield table[begin : begin + min(PIECE, count)].tobytes()
        count -= min(PIECE, count)


def write_safetensors(path, shapes, dtype, values):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.writelines(values(math.prod(shape)))


def write_torch(path, shapes, dtype, values):
    # The pickle needs no data, only shapes.
    empty = {name: np.broadcast_to(checkpoints.stored(np.zeros(1), dtype), shape) for name, shape in shapes.items()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", checkpoints.torch_pickle(empty))
        archive.writestr("archive/version", "3\n")
        for key, shape in enumerate(shapes.values()):
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as file:
                for piece in values(math.prod(shape)):
                    file.write(piece)


FILES = {
    "safetensors": ("model", "safetensors", write_safetensors),
    "torch": ("pytorch_model", "bin", write_torch),
}


def write(model, out, shape=None, layers=None, dtype="bf16", files="safetensors", shard_gb=5.0, seed=0):
    model, out = pathlib.Path(model), pathlib.Path(out)
    if shape is not None:
        s = SHAPES[shape]
        config, shapes = mixture(s if layers is None else s._replace(layers=layers))
    else:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        if layers is not None:
            config["num_layers"] = config["num_hidden_layers"] = layers
        shapes = tensors(config)
    out.mkdir(parents=True)
    for path in model.iterdir():
        if path.name != "config.json":
            shutil.copyfile(path, out / path.name)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    rng = np.random.default_rng(seed)
    table = checkpoints.stored(rng.standard_normal(TABLE, np.float32) * config["hidden_size"] ** -0.5, DTYPES[dtype])
    lists, (stem, suffix, write_file) = shards(shapes, shard_gb * 1e9), FILES[files]
    weight_map = {}
    for i, names in enumerate(lists):
        path = out / f"{stem}-{i + 1:05}-of-{len(lists):05}.{suffix}"
        write_file(path, {n: shapes[n] for n in names}, DTYPES[dtype], lambda count: pieces(rng, table, count))
        weight_map |= dict.fromkeys(names, path.name)
    index = {"metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))}, "weight_map": weight_map}
    (out / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with config.json and a tokenizer")
    parser.add_argument("out", help="the folder to make")
    parser.add_argument("--shape", choices=["glm-4.7-flash"], help="of a mixture of experts")
    parser.add_argument("--layers", type=int, help="other than the configuration says")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--files", choices=FILES, default="safetensors")
    parser.add_argument("--shard-gb", type=float, default=5.0)
    write(**vars(parser.parse_args()))
