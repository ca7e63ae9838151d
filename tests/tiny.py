"""A tiny random model of any architecture, in memory or as a GGUF file of any weight format, with a tokenizer.

    model = tiny.model("chatglm", layers=3, kv_heads=1)         # metadata and f32 tensors
    tiny.write(path, tiny.model("chatglm"), format="Q4_0")      # the same as a file
    metadata, shapes = tiny.header("chatglm", dim=4096)         # without the numbers, so of any size

A tensor depends on its name, its shape and the seed alone. The numbers come from numpy's RandomState, whose
stream is frozen, so that logits stored by tests/oracles stay true. Needs numpy; `write` needs the gguf package.
"""

import zlib
from dataclasses import dataclass

import numpy as np

# Control tokens of each architecture; the first ends a text.
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
SPECIALS = {
    "chatglm": ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *_ROLES],
    "chatglm1": ["<eop>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<pad>"],
    "glm": ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<|startofpiece|>", "<|endofpiece|>", "[CLS]"],
    "llama": ["<|im_end|>", "<|im_start|>", "<|endoftext|>"],
}
SPECIALS |= dict.fromkeys(("glm4", "glm4moe", "deepseek2"), SPECIALS["chatglm"])
MIXTURES = ("glm4moe", "deepseek2")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # values of tokenizer.ggml.token_type
MERGES = ["t h", "th e", "Ġ the", "i n", "e r", "h e", "l l", "o u"]
PRE = {"chatglm": "chatglm-bpe", "glm4": "glm4", "llama": "smollm", "chatglm1": "chatglm1", "glm": "gpt-2"}
PRE |= dict.fromkeys(MIXTURES, "glm4")

_GLM4_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = dict.fromkeys(("chatglm", "glm4", *MIXTURES), _GLM4_TEMPLATE) | {"llama": _CHATML_TEMPLATE}


@dataclass(frozen=True)
class Tiny:
    metadata: dict
    tensors: dict

    @property
    def shapes(self):
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def model(architecture, *, seed=0, factors=None, **sizes):
    """A random model. factors: Llama 3's, that divide the frequencies of RoPE. sizes: as `header` has them."""
    metadata, shapes = header(architecture, **sizes)
    tensors = {name: tensor(name, shape, seed) for name, shape in shapes.items()}
    if factors is not None:
        tensors["rope_freqs.weight"] = np.asarray(factors, np.float32)
    return Tiny(metadata, tensors)


def header(
    architecture,
    *,
    layers=2,
    dim=64,
    heads=4,
    kv_heads=None,
    head_dim=32,
    ffn=96,
    vocab=384,
    context=256,
    eps=1e-5,
    rope_dim=None,
    bias=None,
    fused=True,
    tied=False,
    prefix=0,
    head_norms=False,
    dense=1,
    experts=8,
    used=2,
    expert_ffn=32,
    shared=1,
    scale=1.8,
    drafting=False,
    q_rank=32,
    latent=64,
    value_dim=32,
    metadata=None,
):
    """Metadata and shapes.

    Defaults that depend on the architecture: kv_heads (2; chatglm1 and glm: as many as heads), rope_dim (llama: all of
    a head; others: half), bias (chatglm and glm4moe: of q, k, v). prefix: P-Tuning tokens.
    head_norms: of q and k. Mixtures: `dense` leading blocks of width `ffn`, then `experts` of width `expert_ffn`, of
    which `used` are chosen, beside `shared` ones; drafting: one more block, which drafts. deepseek2: q_rank and latent
    are the ranks of q and of keys and values, value_dim the columns of a head's value, head_dim those of its query.
    metadata: keys to add or replace; a key of value None is left out.
    """
    infilling = architecture in ("chatglm1", "glm")
    kv_heads = kv_heads or (heads if infilling else 2)
    mixture = architecture in MIXTURES
    bias = architecture in ("chatglm", "glm4moe") if bias is None else bias
    rope_dim = rope_dim or (head_dim if architecture == "llama" else head_dim // 2)
    fused = fused and architecture not in ("llama", *MIXTURES)
    q, kv = heads * head_dim, kv_heads * head_dim
    shapes = {"token_embd.weight": (vocab, dim)}

    def linear(name, n, k, biased):
        shapes[f"{name}.weight"] = (n, k)
        if biased:
            shapes[f"{name}.bias"] = (n,)

    def norm(name):
        shapes[f"{name}.weight"] = (dim,)
        if infilling:
            shapes[f"{name}.bias"] = (dim,)

    for i in range(layers + drafting):
        w = f"blk.{i}."
        norm(w + "attn_norm")
        if architecture == "deepseek2":
            linear(w + "attn_q_a", q_rank, dim, False)
            shapes[w + "attn_q_a_norm.weight"] = (q_rank,)
            linear(w + "attn_q_b", q, q_rank, False)
            linear(w + "attn_kv_a_mqa", latent + rope_dim, dim, False)
            shapes[w + "attn_kv_a_norm.weight"] = (latent,)
            shapes[w + "attn_k_b.weight"] = (heads, latent, head_dim - rope_dim)
            shapes[w + "attn_v_b.weight"] = (heads, value_dim, latent)
        elif not fused:
            for name, n in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
                linear(w + name, n, dim, bias)
        else:
            linear(w + "attn_qkv", q + 2 * kv, dim, bias or infilling)
        if head_norms:
            shapes[w + "attn_q_norm.weight"] = shapes[w + "attn_k_norm.weight"] = (head_dim,)
        values = heads * value_dim if architecture == "deepseek2" else q
        linear(w + "attn_output", dim, values, infilling or (bias and architecture == "llama"))
        norm(w + ("post_attention_norm" if architecture == "glm4moe" else "ffn_norm"))
        if mixture and i >= dense:
            linear(w + "ffn_gate_inp", experts, dim, False)
            shapes[w + "exp_probs_b.bias"] = (experts,)
            for name, shape in (("gate", (expert_ffn, dim)), ("up", (expert_ffn, dim)), ("down", (dim, expert_ffn))):
                shapes[f"{w}ffn_{name}_exps.weight"] = (experts, *shape)
            if shared:
                linear(w + "ffn_gate_shexp", shared * expert_ffn, dim, False)
                linear(w + "ffn_up_shexp", shared * expert_ffn, dim, False)
                linear(w + "ffn_down_shexp", dim, shared * expert_ffn, False)
            continue
        if architecture == "llama" or mixture:
            linear(w + "ffn_gate", ffn, dim, bias and not mixture)
            linear(w + "ffn_up", ffn, dim, bias and not mixture)
        else:
            linear(w + "ffn_up", ffn if infilling else 2 * ffn, dim, infilling)
        linear(w + "ffn_down", dim, ffn, infilling or (bias and architecture == "llama"))
        if architecture == "glm4":
            norm(w + "post_attention_norm")
            norm(w + "post_ffw_norm")
        if prefix:
            shapes[w + "prefix_k.weight"] = shapes[w + "prefix_v.weight"] = (prefix, kv)
    if drafting:
        linear(w + "nextn.eh_proj", dim, 2 * dim, False)
        for name in ("enorm", "hnorm", "shared_head_norm"):
            norm(f"{w}nextn.{name}")
    norm("output_norm")
    if not tied and architecture != "glm":
        shapes["output.weight"] = (vocab, dim)
    if architecture == "glm":
        shapes["position_embd.weight"] = shapes["block_position_embd.weight"] = (context + 1, dim)

    own = {
        "block_count": layers + drafting,
        "context_length": context,
        "embedding_length": dim,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    if infilling:
        own["attention.layer_norm_epsilon"] = eps
    else:
        own["attention.layer_norm_rms_epsilon"] = eps
        own["rope.dimension_count"] = rope_dim
        own["rope.freq_base"] = 10000.0
    if architecture == "chatglm1":
        own["residual_alpha"] = 56**0.5
    if mixture:
        own |= {
            "leading_dense_block_count": dense,
            "expert_count": experts,
            "expert_used_count": used,
            "expert_shared_count": shared,
            "expert_feed_forward_length": expert_ffn,
            "expert_weights_scale": scale,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
        }
    if drafting:
        own["nextn_predict_layers"] = 1
    if architecture == "deepseek2":
        own |= {
            "attention.head_count_kv": 1,
            "attention.key_length": latent + rope_dim,
            "attention.value_length": latent,
            "attention.key_length_mla": head_dim,
            "attention.value_length_mla": value_dim,
            "attention.q_lora_rank": q_rank,
            "attention.kv_lora_rank": latent,
        }
    every = {"general.architecture": architecture, "general.name": f"tiny {architecture}"}
    every |= {f"{architecture}.{key}": value for key, value in own.items()}
    every |= tokenizer(architecture, vocab) | (metadata or {})
    return {key: value for key, value in every.items() if value is not None}, shapes


def eyes(*, layers=2, dim=64, heads=2, ffn=96, out=64, inner=128, side=0, bias=True, seed=0, metadata=None):
    """Random eyes (`mmproj`) for text models of `out` columns. As GLM-OCR has them with biases and norms of the heads;
    as the others do with a `side` of learned positions and no biases. inner: of the merger's feed forward."""
    shapes = {f"v.patch_embd.weight{frame}": (dim, 3, 14, 14) for frame in ("", ".1")}
    shapes["v.patch_embd.bias"] = (dim,)
    if side:
        shapes |= {"v.norm_embd.weight": (dim,), "v.position_embd.weight": (side * side, dim)}
    for i in range(layers):
        w = f"v.blk.{i}."
        shapes |= {w + "ln1.weight": (dim,), w + "ln2.weight": (dim,)}
        matrices = {"attn_qkv": (3 * dim, dim), "attn_out": (dim, dim)}
        matrices |= {"ffn_gate": (ffn, dim), "ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}
        for name, shape in matrices.items():
            shapes[f"{w}{name}.weight"] = shape
            if bias:
                shapes[f"{w}{name}.bias"] = shape[:1]
        if bias:
            shapes |= {f"{w}attn_{x}_norm.weight": (dim // heads,) for x in "qk"}
    shapes["v.post_ln.weight"] = (dim,)
    shapes |= {"mm.patch_merger.weight": (out, dim, 2, 2), "mm.patch_merger.bias": (out,)}
    shapes |= {"mm.model.fc.weight": (out, out), "mm.post_norm.weight": (out,), "mm.post_norm.bias": (out,)}
    shapes |= {"mm.gate.weight": (inner, out), "mm.up.weight": (inner, out), "mm.down.weight": (out, inner)}
    keys = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.projector_type": "glm4v",
        "clip.has_vision_encoder": True,
        "clip.use_silu": True,
        "clip.vision.block_count": layers,
        "clip.vision.embedding_length": dim,
        "clip.vision.feed_forward_length": inner,
        "clip.vision.attention.head_count": heads,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.patch_size": 14,
        "clip.vision.image_size": 336,
        "clip.vision.projection_dim": out,
        "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073],
        "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return Tiny(keys | (metadata or {}), {name: tensor(name, shape, seed) for name, shape in shapes.items()})


def patches(grid, seed=0):
    """(rows * columns, 588) f32 of a random image."""
    uniform = np.random.RandomState(seed).random_sample((grid[0] * grid[1], 588))
    return (4 * uniform - 2).astype(np.float32)


def wide(architecture, **sizes):
    """A model whose matrices have rows of 256 columns, the block of the K formats; but for `attn_k_b`, with rows of 192
    as in the published deepseek2."""
    wide = {"dim": 256, "heads": 8, "ffn": 256, "expert_ffn": 256, "q_rank": 256, "latent": 256}
    if architecture == "deepseek2":
        wide |= {"head_dim": 256, "rope_dim": 64}
    return model(architecture, **(wide | sizes))


def tokenizer(architecture, vocab):
    """Tokenizer metadata for `vocab` tokens: 256 bytes with ids as their values, a few words, the special tokens, and
    unused ones. Byte-level BPE; for chatglm1 sentencepiece's unigram with its tokens for white space. {} if `vocab` is
    too small for it."""
    unigram = architecture == "chatglm1"
    typed = _unigram_tokens() if unigram else _bpe_tokens()
    typed += [(token, CONTROL) for token in SPECIALS[architecture]]
    if len(typed) > vocab:
        return {}
    typed += [(f"[PAD{i}]", UNUSED) for i in range(vocab - len(typed))]
    tokens, types = map(list, zip(*typed))
    metadata = {
        "tokenizer.ggml.model": "t5" if unigram else "gpt2",
        "tokenizer.ggml.pre": PRE[architecture],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.eos_token_id": tokens.index(SPECIALS[architecture][0]),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATES.get(architecture),
    }
    if unigram:
        metadata["tokenizer.ggml.scores"] = [-10.0 if type == BYTE else -1.0 for type in types]
        metadata["tokenizer.ggml.add_space_prefix"] = metadata["tokenizer.ggml.remove_extra_whitespaces"] = False
    else:
        metadata["tokenizer.ggml.merges"] = MERGES
    if "<|user|>" in tokens:
        metadata["tokenizer.ggml.eot_token_id"] = tokens.index("<|user|>")
    return metadata


def _bpe_tokens():
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [(token, NORMAL) for token in [*map(byte_symbol, range(256)), *merged]]


def _unigram_tokens():
    typed = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)] + [("<unk>", UNKNOWN)]
    typed += [(token, NORMAL) for token in ("\u2581", "\u2581the", "th", "in", "\u4f60", "\u597d")]
    spaces = ["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))]
    return typed + [(token, USER_DEFINED) for token in spaces]


def checksum(model):
    """A sum of all weights, stored beside an oracle's numbers, to see that it is the model they belong to."""
    total = 0
    for name in sorted(model.tensors):
        total = zlib.crc32(model.tensors[name].tobytes(), zlib.crc32(name.encode(), total))
    return total


def token_id(model, token):
    """The id of a token by its text, None if there is none: the lookup that layouts ask for."""
    tokens = model.metadata.get("tokenizer.ggml.tokens", ())
    return tokens.index(token) if token in tokens else None


def byte_symbol(byte):
    """The character that stands for a byte in byte-level vocabularies: itself if it prints, else from U+0100 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in prints else chr(256 + [b for b in range(256) if b not in prints].index(byte))


def tensor(name, shape, seed=0):
    """Random f32 values, those of `model`; by the name they are as large as such a tensor's usually are."""
    # The sum of four uniform numbers is nearly normal, and needs no function whose last bit depends on the platform.
    uniform = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).random_sample((4, *shape))
    x = (uniform.sum(axis=0) - 2) * np.sqrt(3)
    if name.endswith(("norm.weight", "ln.weight", "ln1.weight", "ln2.weight", "norm_embd.weight")):
        x = 1 + 0.1 * x
    elif name.endswith(".bias"):
        x = 0.3 * x
    elif "_embd." in name:
        x = 0.02 * x  # small, as trained ones are, so that the norms' eps shows
    elif "prefix_" not in name:
        x = x / np.sqrt(shape[-1])
    return x.astype(np.float32)


def write(path, model, format="F32"):
    """The model as a GGUF file; matrices in `format`, or in what llama.cpp takes where its blocks do not fit the rows;
    vectors, routers, position tables and prefixes in F32. Returns path."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, model.metadata["general.architecture"])
    for key, value in model.metadata.items():
        if key != "general.architecture":  # the writer has put it
            _add(writer, key, value)
    for name, x in model.tensors.items():
        if x.ndim == 1 or any(part in name for part in ("position_embd", "prefix_", "ffn_gate_inp")):
            writer.add_tensor(name, x)
        elif x.ndim == 4:  # kernels of convolutions are never quantized
            writer.add_tensor(name, x if format == "F32" else x.astype(np.float16))
        else:
            kind = FALLBACK.get(format, format) if x.shape[-1] % 256 else format
            writer.add_tensor(name, quantize(x, kind, name), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


# What stands in for a format of 256 values a block in rows that it does not fit.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
# Formats without a quantizer in the gguf package: bytes of a block, where its f16 scales stand, and the mean of
# its codes, which the second scale (of the mins) has to take off for the values to be centred.
_RANDOM_BLOCKS = {
    "Q2_K": (84, 80, 82, 1.5),
    "Q3_K": (110, 108, None, 0),
    "Q4_K": (144, 0, 2, 7.5),
    "Q5_K": (176, 0, 2, 15.5),
    "Q6_K": (210, 208, None, 0),
    "IQ4_NL": (18, 0, None, 0),
    "IQ4_XS": (136, 0, None, 0),
}


def quantize(x, format, name=""):
    """x (..., k) as the file stores it. Where gguf has no quantizer: random blocks of the size of x's values."""
    from gguf import GGMLQuantizationType, quants

    if format == "F32":
        return x
    if format == "F16":
        return x.astype(np.float16)
    type = GGMLQuantizationType[format]
    if format not in _RANDOM_BLOCKS:
        return quants.quantize(x, type)
    size, scale_at, min_at, mean = _RANDOM_BLOCKS[format]
    values = 32 if format == "IQ4_NL" else 256
    random = np.random.RandomState(zlib.crc32(f"{format}/{name}".encode()))
    blocks = random.randint(0, 256, (x.size // values, size)).astype(np.uint8)

    def scaled(scale):
        for at, d in ((scale_at, scale), (min_at, scale * mean)):
            if at is not None:
                blocks[:, at : at + 2] = np.frombuffer(np.float16(d).tobytes(), np.uint8)
        return blocks.reshape(*x.shape[:-1], -1)

    return scaled(np.std(x) / np.std(quants.dequantize(scaled(1.0), type)))
