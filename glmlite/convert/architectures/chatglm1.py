"""ChatGLM-6B -> `chatglm1`. Everything has a bias but the output; rows of query_key_value stand head by head."""

from __future__ import annotations

import math
import re

from ..sources import Source
from .parts import Builder, Config, head_columns, layers_of, rows_of

_LAYERS = "transformer.layers."
_DEFAULT_LAYERS = 28  # of the published config class: what alpha is computed from, whatever the depth


def matches(source: Source, config: Config) -> bool:
    return f"{_LAYERS}0.attention.query_key_value.weight" in source and "transformer.word_embeddings.weight" in source


def build(source: Source, config: Config, out: Builder) -> None:
    config.expect("position_encoding_2d", True)
    layers = layers_of(source, config, rf"{re.escape(_LAYERS)}(\d+)\.", "num_layers")
    dim, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = head_columns(config, dim, heads)
    out.set(
        "chatglm1",
        block_count=layers,
        context_length=config.count("max_sequence_length", default=2048),
        embedding_length=dim,
        feed_forward_length=config.count("inner_hidden_size", default=4 * dim),
        attention__head_count=heads,
        attention__head_count_kv=heads,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_epsilon=config.number("layernorm_epsilon", default=1e-5),
        residual_alpha=math.sqrt(2 * _DEFAULT_LAYERS),
    )
    # [q0 k0 v0 q1 k1 v1 ...] -> [Q K V]
    rows = rows_of(source, f"{_LAYERS}0.attention.query_key_value.weight", 3 * dim)
    order = rows.reshape(heads, 3, head_dim).swapaxes(0, 1).reshape(-1)

    out.take("token_embd.weight", "transformer.word_embeddings.weight")
    for i in range(layers):
        ours, theirs = f"blk.{i}.", f"{_LAYERS}{i}."
        out.take_both(ours + "attn_norm", theirs + "input_layernorm", bias=True)
        out.take_both(ours + "attn_qkv", theirs + "attention.query_key_value", order, bias=True)
        out.take_both(ours + "attn_output", theirs + "attention.dense", bias=True)
        out.take_both(ours + "ffn_norm", theirs + "post_attention_layernorm", bias=True)
        out.take_both(ours + "ffn_up", theirs + "mlp.dense_h_to_4h", bias=True)
        out.take_both(ours + "ffn_down", theirs + "mlp.dense_4h_to_h", bias=True)
    out.take_both("output_norm", "transformer.final_layernorm", bias=True)
    if "lm_head.weight" in source:
        out.take_output("lm_head.weight", config)
    out.add_prefix(layers, heads, head_dim)
