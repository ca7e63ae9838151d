"""Llama, Mistral, SmolLM2 -> `llama`. q and k turn column i with i + n/2 there, and interleaved pairs in GGUF.

Other families use the same names of tensors for other arithmetic, so here the config's model_type counts.
"""

from __future__ import annotations

import numpy as np

from ..sources import Source
from .parts import Builder, Config, head_columns, layers_of, rows_of
from .rope import set_rope

_LAYERS = "model.layers."
_TYPES = ("llama", "mistral")


def matches(source: Source, config: Config) -> bool:
    first = f"{_LAYERS}0."
    has = f"{first}mlp.gate_proj.weight" in source and f"{first}self_attn.q_proj.weight" in source
    return has and config.get("model_type") in _TYPES


def build(source: Source, config: Config, out: Builder) -> None:
    config.expect("hidden_act", "silu", "swish")
    layers = layers_of(source, config, r"model\.layers\.(\d+)\.", "num_hidden_layers")
    dim, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", default=heads)
    head_dim = head_columns(config, dim, heads, "head_dim")
    if head_dim % 2:
        raise config.error("head_dim", head_dim, "an even number")
    orders = {
        part: _interleaved(rows_of(source, f"{_LAYERS}0.self_attn.{part}_proj.weight", count * head_dim), head_dim)
        for part, count in (("q", heads), ("k", kv_heads))
    }
    context = config.count("max_position_embeddings", default=2048)
    out.set(
        "llama",
        block_count=layers,
        # Beyond a sliding window the model sees less than we would show it.
        context_length=min(context, config.count("sliding_window", default=context)),
        embedding_length=dim,
        feed_forward_length=config.count("intermediate_size"),
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=config.number("rms_norm_eps", default=1e-6),
    )
    set_rope(out, "llama", config, head_dim, rotated=1.0)

    biased = config.get("attention_bias") is True  # then a checkpoint without is not whole
    out.take("token_embd.weight", "model.embed_tokens.weight")
    for i in range(layers):
        ours, theirs = f"blk.{i}.", f"{_LAYERS}{i}."
        out.take(ours + "attn_norm.weight", theirs + "input_layernorm.weight")
        for part in "qkv":
            out.take_both(f"{ours}attn_{part}", f"{theirs}self_attn.{part}_proj", orders.get(part), bias=biased)
        out.take_both(ours + "attn_output", theirs + "self_attn.o_proj")
        out.take(ours + "ffn_norm.weight", theirs + "post_attention_layernorm.weight")
        out.take_both(ours + "ffn_gate", theirs + "mlp.gate_proj")
        out.take_both(ours + "ffn_up", theirs + "mlp.up_proj")
        out.take_both(ours + "ffn_down", theirs + "mlp.down_proj")
    out.take("output_norm.weight", "model.norm.weight")
    out.take_output("lm_head.weight", config)


def _interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Row 2 i of a head is the checkpoint's row i, row 2 i + 1 its row i + n/2."""
    return rows.reshape(-1, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
