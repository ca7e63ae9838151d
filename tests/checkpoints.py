"""Tiny random checkpoints in every form that people have them in, made from tests/tiny.py's models, without torch.

    checkpoints.write(folder, tiny.model("chatglm"), "chatglm")             # config, safetensors, tokenizer
    checkpoints.write(folder, model, "chatglm1", files="torch", dtype="F16", shards=3)

The names and the order of rows are those of the published checkpoints, written down head by head.
"""

import json
import math
import pickle
import struct
import zipfile

import numpy as np
import tiny

# ---- files -------------------------------------------------------------------------------------------------------

TORCH = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I8": "CharStorage"}


def stored(x, dtype):
    """x as a checkpoint of `dtype` has it; int8 stays int8, F8_E4M3's bits too. Rounds to nearest even."""
    if x.dtype in (np.int8, np.uint8):
        return x
    if dtype == "BF16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return x.astype({"F32": np.float32, "F16": np.float16}[dtype])


def dtype_of(array):
    return {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8", "uint8": "F8_E4M3"}[array.dtype.name]


def rounded(x, dtype):
    """x with the precision of `dtype`, f32."""
    x = stored(x, dtype)
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(np.float32)


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": dtype_of(x), "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    write_safetensors_raw(path, header, b"".join(x.tobytes() for x in tensors.values()))


def write_safetensors_raw(path, header, data):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_torch(path, tensors, body=None, compressed=False):
    """What torch.save writes: a zip file with a pickle and the storages. body: another pickle in its place."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", torch_pickle(tensors) if body is None else body)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, x in enumerate(tensors.values()):
            # torch puts storages at multiples of 64 bytes with an extra field of padding.
            info = zipfile.ZipInfo(f"archive/data/{key}")
            info.extra = struct.pack("<HH", 0x4246, 5) + b"ZZZZZ"
            info.compress_type = archive.compression
            archive.writestr(info, x.tobytes())


def torch_pickle(tensors):
    def text(value):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    ordered = b"ccollections\nOrderedDict\n)R"
    out = b"\x80\x02" + ordered + b"("
    for key, (name, x) in enumerate(tensors.items()):
        strides = [math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]
        storage = b"(" + text("storage") + f"ctorch\n{TORCH[dtype_of(x)]}\n".encode() + text(str(key)) + text("cpu")
        storage += number(x.size) + b"tQ"
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + numbers(x.shape) + numbers(strides)
        out += text(name) + tensor + b"\x89" + ordered + b"tR"
    return out + b"u}" + text("_metadata") + b"}sb."


def calls(function, *arguments):
    """A pickle that calls a function when it is loaded."""

    class Call:
        def __reduce__(self):
            return function, arguments

    return pickle.dumps(Call(), protocol=2)


def write(folder, model, form, *, files="safetensors", dtype="F32", shards=1, config=None, bits=None):
    """A checkpoint's folder: config.json, weights, tokenizer. bits: 4 or 8 packs the blocks' matrices. Returns folder.

    form: a function below. config: keys to replace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named, values = globals()[form](model)
    if bits:
        values["quantization_bit"] = bits
        named = pack(named, bits)
    (folder / "config.json").write_text(json.dumps(values | (config or {})))
    write_weights(folder, {name: stored(x, dtype) for name, x in named.items()}, files, shards)
    write_tokenizer(folder, model)
    return folder


def write_weights(folder, tensors, files="safetensors", shards=1):
    stem, suffix = {"safetensors": ("model", ".safetensors"), "torch": ("pytorch_model", ".bin")}[files]
    writer = {"safetensors": write_safetensors, "torch": write_torch}[files]
    if shards == 1:
        return writer(folder / f"{stem}{suffix}", tensors)
    names, index = list(tensors), {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05}-of-{shards:05}{suffix}"
        part = {name: tensors[name] for name in names[i::shards]}
        writer(folder / file, part)
        index |= dict.fromkeys(part, file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def pack(named, bits):
    """The matrices of blocks as `-int4` and `-int8` checkpoints have them; scales in f16."""
    out = {}
    for name, x in named.items():
        if not name.endswith(".weight") or x.ndim != 2 or "layers." not in name:
            out[name] = x
            continue
        scale = (np.abs(x).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float16).astype(np.float32)
        q = np.clip(np.round(x / scale[:, None]), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).astype(np.int8)
        if bits == 4:
            q = ((q[:, 0::2].astype(np.int16) << 4) | (q[:, 1::2] & 15)).astype(np.int8)
        out |= {name: q, f"{name}_scale": scale}
    return out


def unpacked(x, bits):
    """What `pack` makes of a matrix, one value at a time."""
    scale = (np.abs(x).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float16).astype(np.float32)
    q = np.clip(np.round(x / scale[:, None]), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    return (q * scale[:, None]).astype(np.float32)


def float8(named, kind):
    """The matrices of blocks but routers in F8_E4M3, with scales by "rows", "whole" or "blocks"; and their values."""
    # The bits of a f16 with the exponent four bits further left, whose bias is 8 more.
    codes = np.arange(256, dtype=np.uint16)
    values = ((codes & 128) << 8 | (codes & 127) << 7).view(np.float16).astype(np.float32) * 256
    values[[127, 255]] = np.nan
    finite = np.flatnonzero(np.isfinite(values))
    out, wanted = {}, {}
    for name, x in named.items():
        out[name] = wanted[name] = x
        if (
            x.ndim != 2
            or ".layers." not in name
            or ".mlp.gate." in name
            or name.endswith(("embed_tokens.weight", "head.weight"))
        ):
            continue
        n, k = x.shape
        scale = np.abs(x).max(axis=1, keepdims=True) / 448
        if kind == "whole":
            scale = np.full((1,), scale.max())
        if kind == "blocks":
            scale = (0.01 + np.arange(-(-n // 128) * -(-k // 128)).reshape(-(-n // 128), -1)).astype(np.float32) / 448
        full = np.kron(scale, np.ones((128, 128)))[:n, :k] if kind == "blocks" else np.broadcast_to(scale, x.shape)
        full = full.astype(np.float32)
        nearest = np.abs(values[finite] - (x / full)[..., None]).argmin(axis=-1)
        out[name] = finite[nearest].astype(np.uint8)
        out[f"{name}_scale{'_inv' * (kind == 'blocks')}"] = scale.astype(np.float32)
        wanted[name] = values[out[name]] * full
    return out, wanted


# ---- names -------------------------------------------------------------------------------------------------------


def _key(model, name):
    return model.metadata[f"{model.metadata['general.architecture']}.{name}"]


def _named(model, blocks, others):
    """Tensors under other names: `blocks` and `others` map GGUF's names to the checkpoint's."""
    out = {}
    for name, x in model.tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("blk."):
            _, i, part = stem.split(".", 2)
            if part.startswith("prefix"):
                continue
            out[f"{blocks['']}{i}.{blocks[part]}.{kind}"] = x
        else:
            out[f"{others[stem]}.{kind}"] = x
    return out


def chatglm(model):
    """ChatGLM2/3, CodeGeeX2/4 and GLM-4-9B under their original names."""
    blocks = {
        "": "transformer.encoder.layers.",
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attention.query_key_value",
        "attn_output": "self_attention.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    }
    others = {
        "token_embd": "transformer.embedding.word_embeddings",
        "output_norm": "transformer.encoder.final_layernorm",
        "output": "transformer.output_layer",
    }
    named = _named(model, blocks, others)
    named["transformer.rotary_pos_emb.inv_freq"] = np.ones(8, np.float32)
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "num_layers": _key(model, "block_count"),
        "hidden_size": _key(model, "embedding_length"),
        "ffn_hidden_size": _key(model, "feed_forward_length"),
        "kv_channels": _key(model, "attention.key_length"),
        "num_attention_heads": _key(model, "attention.head_count"),
        "multi_query_attention": True,
        "multi_query_group_num": _key(model, "attention.head_count_kv"),
        "layernorm_epsilon": _key(model, "attention.layer_norm_rms_epsilon"),
        "seq_length": _key(model, "context_length"),
        "padded_vocab_size": model.shapes["token_embd.weight"][0],
        "rmsnorm": True,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "original_rope": True,
        "tie_word_embeddings": False,
        "eos_token_id": [256 + len(tiny.MERGES), tiny.token_id(model, "<|user|>")],
        "pad_token_id": 256 + len(tiny.MERGES),
    }
    return named | _prefix(model), config


def chatglm1(model):
    """ChatGLM-6B: the rows of query_key_value are [q0 k0 v0 q1 k1 v1 ...]."""
    blocks = {
        "": "transformer.layers.",
        "attn_norm": "input_layernorm",
        "attn_qkv": "attention.query_key_value",
        "attn_output": "attention.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    }
    others = {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.final_layernorm"}
    named = _named(model, blocks, others | {"output": "lm_head"})
    heads, width = _key(model, "attention.head_count"), _key(model, "attention.key_length")
    for name, x in named.items():
        if "query_key_value" in name:
            rows = [
                x[part * heads * width + head * width + column]
                for head in range(heads)
                for part in range(3)
                for column in range(width)
            ]
            named[name] = np.array(rows)
    for i in range(_key(model, "block_count")):
        named[f"transformer.layers.{i}.attention.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "num_layers": _key(model, "block_count"),
        "hidden_size": _key(model, "embedding_length"),
        "inner_hidden_size": _key(model, "feed_forward_length"),
        "num_attention_heads": heads,
        "layernorm_epsilon": _key(model, "attention.layer_norm_epsilon"),
        "max_sequence_length": _key(model, "context_length"),
        "position_encoding_2d": True,
        "vocab_size": model.shapes["token_embd.weight"][0],
        "bos_token_id": tiny.token_id(model, "<sop>"),
        "eos_token_id": tiny.token_id(model, "<eop>"),
        "pad_token_id": tiny.token_id(model, "<pad>"),
    }
    return named | _prefix(model), config


def glm(model):
    """GLM-large, GLM-10B."""
    blocks = {
        "": "transformer.layers.",
        "attn_norm": "input_layernorm",
        "attn_qkv": "attention.query_key_value",
        "attn_output": "attention.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    }
    others = {
        "token_embd": "word_embeddings",
        "position_embd": "transformer.position_embeddings",
        "block_position_embd": "transformer.block_position_embeddings",
        "output_norm": "transformer.final_layernorm",
    }
    config = {
        "model_type": "glm",
        "architectures": ["GLMModel"],
        "num_layers": _key(model, "block_count"),
        "hidden_size": _key(model, "embedding_length"),
        "num_attention_heads": _key(model, "attention.head_count"),
        "max_sequence_length": _key(model, "context_length"),
        "block_position_encoding": True,
        "vocab_size": model.shapes["token_embd.weight"][0],
        "eos_token_id": tiny.token_id(model, "<|endoftext|>"),
    }
    return _named(model, blocks, others), config


def glm_wrapped(model):
    named, config = glm(model)
    return {f"glm.{name}": x for name, x in named.items()}, config


def hf(model):
    """`glm` (GLM-4-9B-hf, GLM-Edge), `glm4` (0414, Z1) and `llama` of transformers. Of models with q, k, v apart."""
    architecture = model.metadata["general.architecture"]
    blocks = {
        "": "model.layers.",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "post_attention_norm": "post_self_attn_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj" if architecture == "llama" else "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
        "post_ffw_norm": "post_mlp_layernorm",
        "nextn.shared_head_norm": "shared_head.norm",
        **{f"nextn.{part}": part for part in ("eh_proj", "enorm", "hnorm")},
    }
    others = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "rope_freqs": "-"}
    named = _named(model, blocks, others)
    named.pop("-.weight", None)  # computed from the config
    heads, width = _key(model, "attention.head_count"), _key(model, "attention.key_length")
    if architecture == "llama":
        # Column i turns with i + width/2 there; GGUF has the pair side by side.
        order = [*range(0, width, 2), *range(1, width, 2)]
        for name, x in named.items():
            if "q_proj" in name or "k_proj" in name:
                named[name] = np.array([x[at + i] for at in range(0, len(x), width) for i in order])
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    config = {
        "model_type": {"chatglm": "glm"}.get(architecture, architecture),
        "num_hidden_layers": _key(model, "block_count"),
        "hidden_size": _key(model, "embedding_length"),
        "intermediate_size": _key(model, "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _key(model, "attention.head_count_kv"),
        "head_dim": width,
        "rms_norm_eps": _key(model, "attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": _key(model, "context_length"),
        "rope_theta": _key(model, "rope.freq_base"),
        "partial_rotary_factor": _key(model, "rope.dimension_count") / width,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "eos_token_id": tiny.token_id(model, "<|endoftext|>"),
    }
    return named, config


def glm4_moe(model, fused=False):
    """GLM-4.5 to 4.7 as published: a tensor for each expert's matrix, and, where there is a drafting layer, copies of
    the model's embeddings and head in it. fused: two tensors for all experts, as transformers 5 has them in memory."""
    blocks = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"}
    blocks |= {f"attn_{part}_norm": f"self_attn.{part}_norm" for part in "qk"}
    named = _mixture(model, blocks | {"post_attention_norm": "post_attention_layernorm"}, fused)
    width = _key(model, "attention.key_length")
    config = {
        "model_type": "glm4_moe",
        "head_dim": width,
        "num_key_value_heads": _key(model, "attention.head_count_kv"),
        "partial_rotary_factor": _key(model, "rope.dimension_count") / width,
    }
    return named, _mixture_config(model) | config


def glm4_moe_fused(model):
    return glm4_moe(model, fused=True)


def glm4_moe_lite(model, fused=False):
    """GLM-4.7-Flash: kv_b_proj has the rows of each head's keys, then those of its values."""
    blocks = {
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_v_b": "-",
        "attn_k_b": "-",
        "ffn_norm": "post_attention_layernorm",
    }
    named = {name: x for name, x in _mixture(model, blocks, fused).items() if not name.endswith(".-.weight")}
    for i in range(_key(model, "block_count")):
        k_b, v_b = (model.tensors[f"blk.{i}.attn_{part}_b.weight"] for part in "kv")
        heads = [row for k, v in zip(k_b, v_b) for row in (k.T, v)]
        named[f"model.layers.{i}.self_attn.kv_b_proj.weight"] = np.concatenate(heads)
    turned = _key(model, "rope.dimension_count")
    config = {
        "model_type": "glm4_moe_lite",
        "num_key_value_heads": _key(model, "attention.head_count"),
        "q_lora_rank": _key(model, "attention.q_lora_rank"),
        "kv_lora_rank": _key(model, "attention.kv_lora_rank"),
        "qk_nope_head_dim": _key(model, "attention.key_length_mla") - turned,
        "qk_rope_head_dim": turned,
        "v_head_dim": _key(model, "attention.value_length_mla"),
        "partial_rotary_factor": 1.0,
    }
    return named, _mixture_config(model) | config


def glm4_moe_lite_fused(model):
    return glm4_moe_lite(model, fused=True)


def _mixture(model, attention, fused):
    """A mixture's tensors but those that are no matrix for each of its own."""
    parts = ("gate", "up", "down")
    blocks = {
        "": "model.layers.",
        "attn_norm": "input_layernorm",
        "attn_output": "self_attn.o_proj",
        "ffn_gate_inp": "mlp.gate",
        "exp_probs_b": "mlp.gate.e_score_correction_bias",
        "nextn.shared_head_norm": "shared_head.norm",
        **{f"ffn_{part}": f"mlp.{part}_proj" for part in parts},
        **{f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in parts},
        **{f"nextn.{part}": part for part in ("eh_proj", "enorm", "hnorm")},
    }
    others = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    plain = {name: x for name, x in model.tensors.items() if "_exps." not in name}
    named = _named(tiny.Tiny(model.metadata, plain), blocks | attention, others)
    named = {name.replace("correction_bias.bias", "correction_bias"): x for name, x in named.items()}
    for i in range(_key(model, "block_count")):
        if f"blk.{i}.ffn_gate_exps.weight" in model.tensors:
            gate, up, down = (model.tensors[f"blk.{i}.ffn_{part}_exps.weight"] for part in parts)
            experts = f"model.layers.{i}.mlp.experts."
            if fused:
                both = np.stack([np.concatenate(pair) for pair in zip(gate, up)])
                named |= {f"{experts}gate_up_proj": both, f"{experts}down_proj": down}
            for e in range(0 if fused else len(gate)):
                named |= {f"{experts}{e}.{part}_proj.weight": x[e] for part, x in zip(parts, (gate, up, down))}
        if f"blk.{i}.nextn.eh_proj.weight" in model.tensors:
            named[f"model.layers.{i}.embed_tokens.weight"] = named["model.embed_tokens.weight"]
            named[f"model.layers.{i}.shared_head.head.weight"] = named["lm_head.weight"]
    return named


def _mixture_config(model):
    drafting = model.metadata.get(f"{model.metadata['general.architecture']}.nextn_predict_layers", 0)
    return {
        "num_hidden_layers": _key(model, "block_count") - drafting,
        "num_nextn_predict_layers": 1,
        "hidden_size": _key(model, "embedding_length"),
        "intermediate_size": _key(model, "feed_forward_length"),
        "moe_intermediate_size": _key(model, "expert_feed_forward_length"),
        "num_attention_heads": _key(model, "attention.head_count"),
        "n_routed_experts": _key(model, "expert_count"),
        "n_shared_experts": _key(model, "expert_shared_count"),
        "num_experts_per_tok": _key(model, "expert_used_count"),
        "routed_scaling_factor": _key(model, "expert_weights_scale"),
        "first_k_dense_replace": _key(model, "leading_dense_block_count"),
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "rms_norm_eps": _key(model, "attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": _key(model, "context_length"),
        "rope_theta": _key(model, "rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": tiny.token_id(model, "<|endoftext|>"),
    }


VISION = ("glm_ocr", "glm4v", "glm4v_moe")


def vision(text, eyes, kind):
    """A text model and its eyes as transformers' `glm_ocr` (GLM-OCR), `glm4v` (GLM-4.1V, GLM-4.6V-Flash) and
    `glm4v_moe` (GLM-4.5V, GLM-4.6V) have them: (tensors, config.json)."""
    named, config = (glm4_moe if kind == "glm4v_moe" else hf)(text)
    named.pop("model.layers.0.self_attn.rotary_emb.inv_freq", None)
    width, turning = _key(text, "attention.key_length"), _key(text, "rope.dimension_count")
    sections = list(_key(text, "rope.dimension_sections"))[:3]
    if kind != "glm4v_moe":
        # Pair i of a head is rows 2 i and 2 i + 1 there, rows i and i + turning/2 in GGUF.
        pairs = [half + i for i in range(turning // 2) for half in (0, turning // 2)]
        order = [*pairs, *range(turning, width)]
        for name, x in named.items():
            if "q_proj" in name or "k_proj" in name:
                named[name] = np.array([x[at + i] for at in range(0, len(x), width) for i in order])
    drafting = text.metadata.get(f"{text.metadata['general.architecture']}.nextn_predict_layers", 0)
    config["num_hidden_layers"] = _key(text, "block_count") - drafting
    if drafting and kind == "glm_ocr":
        last = f"model.layers.{config['num_hidden_layers']}."
        named[f"{last}embed_tokens.weight"] = named["model.embed_tokens.weight"]
        named[f"{last}shared_head.head.weight"] = named.get("lm_head.weight", named["model.embed_tokens.weight"])
    tied = config.pop("tie_word_embeddings")
    if kind == "glm4v":  # as transformers 4 spelled it
        config |= {"model_type": "glm4v_text", "rope_scaling": {"type": "default", "mrope_section": sections}}
    else:
        moved = {key: config.pop(key) for key in ("rope_theta", "partial_rotary_factor")}
        config |= {
            "model_type": f"{kind}_text",
            "rope_parameters": {"rope_type": "default", "mrope_section": sections, **moved},
        }
    named = {name.replace("model.", "model.language_model.", 1): x for name, x in named.items()}
    whole = {
        "model_type": kind,
        "text_config": config,
        "tie_word_embeddings": tied,
        "vision_config": _vision_config(eyes),
        "image_token_id": 63,
    }
    return named | eyes_of(eyes), whole


def eyes_of(eyes):
    """The tower and the merger under transformers' names; its first kernel takes two frames at once."""
    others = {
        "v.norm_embd": "post_conv_layernorm",
        "v.position_embd": "embeddings.position_embedding",
        "v.post_ln": "post_layernorm",
        "v.patch_embd": "patch_embed.proj",
        "mm.patch_merger": "downsample",
        "mm.model.fc": "merger.proj",
        "mm.post_norm": "merger.post_projection_norm",
        **{f"mm.{part}": f"merger.{part}_proj" for part in ("gate", "up", "down")},
    }
    blocks = {"ln1": "norm1", "ln2": "norm2", "attn_qkv": "attn.qkv", "attn_out": "attn.proj"}
    blocks |= {"attn_q_norm": "attn.q_norm", "attn_k_norm": "attn.k_norm"}
    blocks |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    frames = [eyes.tensors[f"v.patch_embd.weight{frame}"] for frame in ("", ".1")]
    out = {"model.visual.patch_embed.proj.weight": np.stack(frames, axis=2)}
    for name, x in eyes.tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("v.blk."):
            _, _, i, part = stem.split(".")
            out[f"model.visual.blocks.{i}.{blocks[part]}.{kind}"] = x
        elif not name.startswith("v.patch_embd.weight"):
            out[f"model.visual.{others[stem]}.{kind}"] = x
    return out


def _vision_config(eyes):
    see = {key.removeprefix("clip.vision."): value for key, value in eyes.metadata.items()}
    return {
        "depth": see["block_count"],
        "hidden_size": see["embedding_length"],
        "num_heads": see["attention.head_count"],
        "intermediate_size": see["feed_forward_length"],
        "out_hidden_size": see["projection_dim"],
        "patch_size": see["patch_size"],
        "image_size": see["image_size"],
        "rms_norm_eps": see["attention.layer_norm_epsilon"],
        "hidden_act": "silu",
        "in_channels": 3,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def preprocessor(eyes):
    """preprocessor_config.json, of GLM-OCR but for the colours."""
    return {
        "size": {"shortest_edge": 12544, "longest_edge": 9633792},
        "do_rescale": True,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": eyes.metadata["clip.vision.image_mean"],
        "image_std": eyes.metadata["clip.vision.image_std"],
        "image_processor_type": "Glm46VImageProcessor",
    }


def write_vision(folder, text, eyes, kind, *, files="safetensors", dtype="F32", shards=1):
    """A checkpoint's folder of a text model and its eyes. Returns folder."""
    folder.mkdir(parents=True, exist_ok=True)
    named, config = vision(text, eyes, kind)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(eyes)))
    write_weights(folder, {name: stored(x, dtype) for name, x in named.items()}, files, shards)
    write_tokenizer(folder, text)
    return folder


def _prefix(model):
    """P-Tuning v2: (tokens, 2 layers kv_heads head_dim), keys and values by turns."""
    parts = [
        model.tensors[f"blk.{i}.prefix_{part}.weight"]
        for i in range(_key(model, "block_count"))
        for part in "kv"
        if f"blk.{i}.prefix_{part}.weight" in model.tensors
    ]
    return {"transformer.prefix_encoder.embedding.weight": np.concatenate(parts, axis=1)} if parts else {}


# ---- tokenizers --------------------------------------------------------------------------------------------------


def write_tokenizer(folder, model):
    """The tiny model's vocabulary in the form its kind of checkpoint has."""
    architecture = model.metadata["general.architecture"]
    tokens, types = (model.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    special = {token: i for i, (token, type) in enumerate(zip(tokens, types)) if type == tiny.CONTROL}
    plain = {token: i for i, (token, type) in enumerate(zip(tokens, types)) if type == tiny.NORMAL}
    if architecture == "chatglm1":
        scores = model.metadata["tokenizer.ggml.scores"]
        pieces = [piece for piece in zip(tokens, scores, types) if piece[2] != tiny.UNUSED]
        (folder / "ice_text.model").write_bytes(sentencepiece_model(pieces))
    elif architecture == "glm":
        (folder / "vocab.json").write_text(json.dumps(plain))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(tiny.MERGES) + "\n")
        (folder / "added_tokens.json").write_text(json.dumps(special))
    else:
        value = {
            "model": {"type": "BPE", "vocab": plain, "merges": tiny.MERGES},
            "added_tokens": [{"content": token, "id": i, "special": True} for token, i in special.items()],
            "pre_tokenizer": gpt2_words() if architecture == "llama" else glm4_words(),
        }
        (folder / "tokenizer.json").write_text(json.dumps(value))
        template = model.metadata["tokenizer.chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def gpt2_words():
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def glm4_words():
    from glmlite.tokenizer.bpe import PATTERNS

    split = {"type": "Split", "pattern": {"Regex": PATTERNS["glm4"][0]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}


def sentencepiece_model(pieces, model_type=1):
    """A sentencepiece model's protobuf of (text, score, type) pieces."""

    def field(number, data):
        return bytes([number << 3 | 2]) + varint(len(data)) + data

    def varint(value):
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    out = b""
    for text, score, type in pieces:
        out += field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(type))
    return out + field(2, b"\x18" + varint(model_type)) + field(3, b"\x18\x00\x20\x00")
