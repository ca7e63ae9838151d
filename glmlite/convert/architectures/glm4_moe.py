"""GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7, the text models of GLM-4.5V and GLM-4.6V -> `glm4moe`: transformers'
`glm4_moe` and `glm4v_moe`.

Column i of a head turns with i + n/2 there and in GGUF, so no row moves.
"""

from __future__ import annotations

from ..sources import Source
from .drafting import depth, take_drafting
from .experts import is_mixture, set_experts, take_feed_forward
from .parts import Builder, Config, head_columns
from .rope import set_rope


def matches(source: Source, config: Config) -> bool:
    return is_mixture(source, config, ("glm4_moe", "glm4v_moe", "glm4v_moe_text"), "q_proj")


def build(source: Source, config: Config, out: Builder) -> None:
    layers, drafting = depth(source, config)
    set_experts(out, "glm4moe", config, layers, drafting, scale=1.0)
    heads = config.count("num_attention_heads")
    head_dim = head_columns(config, config.count("hidden_size"), heads, "head_dim")
    out.set(
        "glm4moe",
        attention__head_count=heads,
        attention__head_count_kv=config.count("num_key_value_heads", default=heads),
        attention__key_length=head_dim,
        attention__value_length=head_dim,
    )
    set_rope(out, "glm4moe", config, head_dim, rotated=0.5)

    out.take("token_embd.weight", "model.embed_tokens.weight")
    for i in range(layers + drafting):
        # Without what the config says a layer has, the checkpoint is not whole.
        biased, normed = (i < layers and config.get(key) is True for key in ("attention_bias", "use_qk_norm"))
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        out.take(ours + "attn_norm.weight", theirs + "input_layernorm.weight")
        for part in "qkv":
            out.take_both(f"{ours}attn_{part}", f"{theirs}self_attn.{part}_proj", bias=biased)
        for part in "qk":
            out.take(f"{ours}attn_{part}_norm.weight", f"{theirs}self_attn.{part}_norm.weight", optional=not normed)
        out.take(ours + "attn_output.weight", theirs + "self_attn.o_proj.weight")
        out.take(ours + "post_attention_norm.weight", theirs + "post_attention_layernorm.weight")
        take_feed_forward(out, config, i)
        if i >= layers:
            take_drafting(out, i)
    out.take("output_norm.weight", "model.norm.weight")
    out.take_output("lm_head.weight", config)
