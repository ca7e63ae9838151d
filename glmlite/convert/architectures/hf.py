"""GLM under the names of transformers: GLM-4-9B-hf and GLM-Edge -> `chatglm`, GLM-4-0414 and GLM-Z1 -> `glm4`.

The latter has two more norms a block. q, k and v stay three tensors; transformers turns interleaved pairs of columns
here, as GGUF does, so no row moves.
"""

from __future__ import annotations

from ..sources import Source
from .parts import Builder, Config, head_columns, layers_of
from .rope import set_rope

_LAYERS = "model.layers."


def matches(source: Source, config: Config) -> bool:
    first = f"{_LAYERS}0."
    return f"{first}mlp.gate_up_proj.weight" in source and f"{first}self_attn.q_proj.weight" in source


def build(source: Source, config: Config, out: Builder) -> None:
    sandwich = f"{_LAYERS}0.post_self_attn_layernorm.weight" in source
    architecture = "glm4" if sandwich else "chatglm"
    config.expect("hidden_act", "silu", "swish")
    layers = layers_of(source, config, r"model\.layers\.(\d+)\.", "num_hidden_layers", "num_layers")
    dim, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = head_columns(config, dim, heads, "head_dim")
    out.set(
        architecture,
        block_count=layers,
        context_length=config.count("max_position_embeddings"),
        embedding_length=dim,
        feed_forward_length=config.count("intermediate_size"),
        attention__head_count=heads,
        attention__head_count_kv=config.count("num_key_value_heads", default=heads),
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=config.number("rms_norm_eps"),
    )
    set_rope(out, architecture, config, head_dim, rotated=0.5)

    out.take("token_embd.weight", "model.embed_tokens.weight")
    for i in range(layers):
        ours, theirs = f"blk.{i}.", f"{_LAYERS}{i}."
        out.take(ours + "attn_norm.weight", theirs + "input_layernorm.weight")
        for part in "qkv":
            out.take_both(f"{ours}attn_{part}", f"{theirs}self_attn.{part}_proj")
        out.take(ours + "attn_output.weight", theirs + "self_attn.o_proj.weight")
        if sandwich:
            out.take(ours + "post_attention_norm.weight", theirs + "post_self_attn_layernorm.weight")
        out.take(ours + "ffn_norm.weight", theirs + "post_attention_layernorm.weight")
        out.take(ours + "ffn_up.weight", theirs + "mlp.gate_up_proj.weight")
        out.take(ours + "ffn_down.weight", theirs + "mlp.down_proj.weight")
        if sandwich:
            out.take(ours + "post_ffw_norm.weight", theirs + "post_mlp_layernorm.weight")
    out.take("output_norm.weight", "model.norm.weight")
    out.take_output("lm_head.weight", config)
