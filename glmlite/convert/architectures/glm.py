"""GLM-large, GLM-10B and their Chinese twins -> `glm`. Some copies have all names behind `glm.`."""

from __future__ import annotations

import re

from ...errors import FormatError
from ..sources import Source
from .parts import Builder, Config, head_columns, layers_of


def matches(source: Source, config: Config) -> bool:
    return _root(source) is not None


def _root(source: Source) -> str | None:
    return next((root for root in ("", "glm.") if f"{root}transformer.position_embeddings.weight" in source), None)


def build(source: Source, config: Config, out: Builder) -> None:
    root = _root(source)
    config.expect("block_position_encoding", True)
    transformer = f"{root}transformer."
    layers = layers_of(source, config, rf"{re.escape(transformer)}layers\.(\d+)\.", "num_layers")
    dim, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = head_columns(config, dim, heads)
    rows = source.shape(f"{transformer}position_embeddings.weight")[0]
    out.set(
        "glm",
        block_count=layers,
        # A table has a row more than the context has tokens: places in a piece count from 1.
        context_length=min(config.count("max_sequence_length", default=1024), max(rows - 1, 1)),
        embedding_length=dim,
        feed_forward_length=4 * dim,
        attention__head_count=heads,
        attention__head_count_kv=heads,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_epsilon=config.number("layernorm_epsilon", default=1e-5),
    )
    table = f"{root}word_embeddings.weight"
    if source.adapted(table):
        # PEFT would adapt what tokens look up and leave the logits as they were.
        raise FormatError(f"{source.where(table)}: an adapter of the embeddings alone, which this architecture has not")
    out.take("token_embd.weight", table)
    out.take("position_embd.weight", transformer + "position_embeddings.weight")
    out.take("block_position_embd.weight", transformer + "block_position_embeddings.weight")
    for i in range(layers):
        ours, theirs = f"blk.{i}.", f"{transformer}layers.{i}."
        out.take_both(ours + "attn_norm", theirs + "input_layernorm", bias=True)
        out.take_both(ours + "attn_qkv", theirs + "attention.query_key_value", bias=True)
        out.take_both(ours + "attn_output", theirs + "attention.dense", bias=True)
        out.take_both(ours + "ffn_norm", theirs + "post_attention_layernorm", bias=True)
        out.take_both(ours + "ffn_up", theirs + "mlp.dense_h_to_4h", bias=True)
        out.take_both(ours + "ffn_down", theirs + "mlp.dense_4h_to_h", bias=True)
    out.take_both("output_norm", transformer + "final_layernorm", bias=True)
