"""GLM-4.7-Flash -> `deepseek2`: transformers' `glm4_moe_lite`.

Of each head's rows in kv_b_proj the first make keys of the latent and the rest values. GGUF has them apart: those of
the keys transposed, since they go into the query, so that the latent itself is the one key that all heads share.
"""

from __future__ import annotations

from ..sources import Source
from .drafting import depth, take_drafting
from .experts import is_mixture, set_experts, take_feed_forward
from .parts import Builder, Config
from .rope import set_rope


def matches(source: Source, config: Config) -> bool:
    return is_mixture(source, config, ("glm4_moe_lite",), "kv_b_proj")


def build(source: Source, config: Config, out: Builder) -> None:
    config.expect("rope_interleave", True)
    config.expect("attention_bias", False)
    layers, drafting = depth(source, config)
    set_experts(out, "deepseek2", config, layers, drafting, scale=1.8)
    heads, latent = config.count("num_attention_heads"), config.count("kv_lora_rank")
    kept, turned, value = (config.count(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    out.take("token_embd.weight", "model.embed_tokens.weight")
    out.set(
        "deepseek2",
        vocab_size=out.tensors[-1].shape[0],
        attention__head_count=heads,
        attention__head_count_kv=1,
        attention__q_lora_rank=config.count("q_lora_rank"),
        attention__kv_lora_rank=latent,
        attention__key_length=latent + turned,
        attention__value_length=latent,
        attention__key_length_mla=kept + turned,
        attention__value_length_mla=value,
    )
    set_rope(out, "deepseek2", config, turned, rotated=1.0)

    for i in range(layers + drafting):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        attention, kv_b = theirs + "self_attn.", theirs + "self_attn.kv_b_proj.weight"
        out.take(ours + "attn_norm.weight", theirs + "input_layernorm.weight")
        out.take(ours + "attn_q_a.weight", attention + "q_a_proj.weight")
        out.take(ours + "attn_q_a_norm.weight", attention + "q_a_layernorm.weight")
        out.take(ours + "attn_q_b.weight", attention + "q_b_proj.weight")
        out.take(ours + "attn_kv_a_mqa.weight", attention + "kv_a_proj_with_mqa.weight")
        out.take(ours + "attn_kv_a_norm.weight", attention + "kv_a_layernorm.weight")
        out.take_parts(ours + "attn_k_b.weight", kv_b, (heads, kept + value), 0, kept, transposed=True)
        out.take_parts(ours + "attn_v_b.weight", kv_b, (heads, kept + value), kept, kept + value)
        out.take(ours + "attn_output.weight", attention + "o_proj.weight")
        out.take(ours + "ffn_norm.weight", theirs + "post_attention_layernorm.weight")
        take_feed_forward(out, config, i)
        if i >= layers:
            take_drafting(out, i)
    out.take("output_norm.weight", "model.norm.weight")
    out.take_output("lm_head.weight", config)
