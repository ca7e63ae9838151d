"""ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2, CodeGeeX4, GLM-4-9B under their original names -> `chatglm`.

q, k, v and gate, up are one matrix each already, in GGUF's order. Their config lies about nothing but the length: the
`rope_ratio` of the long models multiplies the base of RoPE, except in ChatGLM2-6B-32k, whose code divides the
positions by it. Both write the same config; the code that lies beside the weights tells them apart, as text.
"""

from __future__ import annotations

import re

from ..files import load_bytes
from ..sources import Source
from .parts import Builder, Config, head_columns, layers_of

_LAYERS = "transformer.encoder.layers."


def matches(source: Source, config: Config) -> bool:
    return f"{_LAYERS}0.self_attention.query_key_value.weight" in source


def build(source: Source, config: Config, out: Builder) -> None:
    config.expect("rmsnorm", True)
    config.expect("post_layer_norm", True)
    config.expect("add_bias_linear", False)
    config.expect("apply_residual_connection_post_layernorm", False)
    config.expect("interleaved_qkv", False)
    layers = layers_of(source, config, rf"{re.escape(_LAYERS)}(\d+)\.", "num_layers", "num_hidden_layers")
    dim, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = head_columns(config, dim, heads, "kv_channels")
    kv_heads = config.count("multi_query_group_num", default=heads) if config.get("multi_query_attention") else heads
    ratio = config.number("rope_ratio", default=1.0)
    out.set(
        "chatglm",
        block_count=layers,
        context_length=config.count("seq_length", "max_position_embeddings", default=2048),
        embedding_length=dim,
        feed_forward_length=config.count("ffn_hidden_size"),
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=config.number("layernorm_epsilon", default=1e-5),
        rope__dimension_count=head_dim // 2,
        rope__freq_base=10000.0 if _interpolates(config) else 10000.0 * ratio,
    )
    if ratio != 1 and _interpolates(config):
        out.set("chatglm", rope__scaling__type="linear", rope__scaling__factor=ratio)

    out.take("token_embd.weight", "transformer.embedding.word_embeddings.weight")
    for i in range(layers):
        ours, theirs = f"blk.{i}.", f"{_LAYERS}{i}."
        out.take(ours + "attn_norm.weight", theirs + "input_layernorm.weight")
        out.take_both(ours + "attn_qkv", theirs + "self_attention.query_key_value")
        out.take(ours + "attn_output.weight", theirs + "self_attention.dense.weight")
        out.take(ours + "ffn_norm.weight", theirs + "post_attention_layernorm.weight")
        out.take(ours + "ffn_up.weight", theirs + "mlp.dense_h_to_4h.weight")
        out.take(ours + "ffn_down.weight", theirs + "mlp.dense_4h_to_h.weight")
    out.take("output_norm.weight", "transformer.encoder.final_layernorm.weight")
    out.take_output("transformer.output_layer.weight", config)
    out.add_prefix(layers, kv_heads, head_dim)


def _interpolates(config: Config) -> bool:
    """Whether `rope_ratio` divides the positions: ChatGLM2-6B-32k. The code is read as text and never run."""
    code = config.path.with_name("modeling_chatglm.py")
    text = load_bytes(code).decode("utf-8", "replace") if code.is_file() else ""
    divides, multiplies = (re.search(rf"{op}\s*self\.rope_ratio", text) for op in ("/", r"\*"))
    return bool(divides) and not multiplies
