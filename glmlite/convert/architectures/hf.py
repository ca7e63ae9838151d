"""GLM under the names of transformers: GLM-4-9B-hf and GLM-Edge -> `chatglm`, GLM-4-0414, GLM-Z1 and the text models of
GLM-OCR, GLM-4.1V and GLM-4.6V-Flash -> `glm4`.

The latter has two more norms a block. q, k and v stay three tensors; transformers turns interleaved pairs of columns
here, as GGUF does, so no row moves. Only where images have axes of their own column i turns with i + n/2 in GGUF: there
the even rows of what turns in a head of q and k come before the odd ones.
"""

from __future__ import annotations

import numpy as np

from ..sources import Source
from .drafting import depth, take_drafting
from .parts import Builder, Config, head_columns, rows_of
from .rope import set_rope

_LAYERS = "model.layers."


def matches(source: Source, config: Config) -> bool:
    first = f"{_LAYERS}0."
    return f"{first}mlp.gate_up_proj.weight" in source and f"{first}self_attn.q_proj.weight" in source


def build(source: Source, config: Config, out: Builder) -> None:
    sandwich = f"{_LAYERS}0.post_self_attn_layernorm.weight" in source
    architecture = "glm4" if sandwich else "chatglm"
    config.expect("hidden_act", "silu", "swish")
    layers, drafting = depth(source, config, "num_layers")
    dim, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", default=heads)
    head_dim = head_columns(config, dim, heads, "head_dim")
    out.set(
        architecture,
        block_count=layers + drafting,
        context_length=config.count("max_position_embeddings"),
        embedding_length=dim,
        feed_forward_length=config.count("intermediate_size"),
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=config.number("rms_norm_eps"),
    )
    if drafting:
        out.set(architecture, nextn_predict_layers=drafting)
    turning = set_rope(out, architecture, config, head_dim, rotated=0.5)
    orders: dict[str, np.ndarray] = {}
    if f"{architecture}.rope.dimension_sections" in out.metadata:
        for part, count in (("q", heads), ("k", kv_heads)):
            rows = rows_of(source, f"{_LAYERS}0.self_attn.{part}_proj.weight", count * head_dim)
            orders[part] = _halves(rows, head_dim, turning)

    out.take("token_embd.weight", "model.embed_tokens.weight")
    for i in range(layers + drafting):
        ours, theirs = f"blk.{i}.", f"{_LAYERS}{i}."
        # Without what the config says a layer has, the checkpoint is not whole.
        biased = i < layers and config.get("attention_bias") is True
        out.take(ours + "attn_norm.weight", theirs + "input_layernorm.weight")
        for part in "qkv":
            out.take_both(f"{ours}attn_{part}", f"{theirs}self_attn.{part}_proj", orders.get(part), bias=biased)
        out.take(ours + "attn_output.weight", theirs + "self_attn.o_proj.weight")
        if sandwich:
            out.take(ours + "post_attention_norm.weight", theirs + "post_self_attn_layernorm.weight")
        out.take(ours + "ffn_norm.weight", theirs + "post_attention_layernorm.weight")
        out.take(ours + "ffn_up.weight", theirs + "mlp.gate_up_proj.weight")
        out.take(ours + "ffn_down.weight", theirs + "mlp.down_proj.weight")
        if sandwich:
            out.take(ours + "post_ffw_norm.weight", theirs + "post_mlp_layernorm.weight")
        if i >= layers:
            take_drafting(out, i)
    out.take("output_norm.weight", "model.norm.weight")
    out.take_output("lm_head.weight", config)


def _halves(rows: np.ndarray, head_dim: int, turning: int) -> np.ndarray:
    """Row i of a head is the checkpoint's row 2 i, row i + turning/2 its row 2 i + 1."""
    rows = rows.reshape(-1, head_dim)
    parts = rows[:, 0:turning:2], rows[:, 1:turning:2], rows[:, turning:]
    return np.concatenate(parts, axis=1).reshape(-1)
