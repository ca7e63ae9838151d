"""What the mixtures of experts have in common: the keys of the router, and a block's feed-forward half.

The experts of a block are tensors apart (as published), or two of all experts (as transformers 5 has them in memory,
and may save them), gate and up in one, gate's rows first. GGUF has three, each of all experts.
"""

from __future__ import annotations

from ...families import SIGMOID
from ..sources import Source
from .parts import Builder, Config

_LAYERS = "model.layers."


def is_mixture(source: Source, config: Config, model_types: tuple[str, ...], attention: str) -> bool:
    """Whether some block has a router and the first one `attention`. Other families use the same names of tensors for
    other arithmetic, so the config's model_type counts, too."""
    routed = any(name.endswith(".mlp.gate.e_score_correction_bias") for name in source.names)
    has = routed and f"{_LAYERS}0.self_attn.{attention}.weight" in source
    return has and config.get("model_type") in model_types


def set_experts(out: Builder, architecture: str, config: Config, layers: int, drafting: int, *, scale: float) -> None:
    """The keys of blocks, experts and their router. scale: of the experts' weights, if the config does not say."""
    config.expect("hidden_act", "silu", "swish")
    config.expect("scoring_func", "sigmoid")
    config.expect("norm_topk_prob", True)
    config.expect("n_group", 1)
    config.expect("topk_group", 1)
    dense = next((i for i in range(layers) if f"{_LAYERS}{i}.mlp.gate.weight" in out.source), layers)
    out.set(
        architecture,
        block_count=layers + drafting,
        context_length=config.count("max_position_embeddings"),
        embedding_length=config.count("hidden_size"),
        feed_forward_length=config.count("intermediate_size"),
        attention__layer_norm_rms_epsilon=config.number("rms_norm_eps"),
        leading_dense_block_count=dense,
        expert_count=config.count("n_routed_experts"),
        expert_used_count=config.count("num_experts_per_tok"),
        expert_shared_count=config.count("n_shared_experts"),
        expert_feed_forward_length=config.count("moe_intermediate_size"),
        expert_gating_func=SIGMOID,
        expert_weights_scale=config.number("routed_scaling_factor", default=scale),
        expert_weights_norm=True,
    )
    if drafting:
        out.set(architecture, nextn_predict_layers=drafting)


def take_feed_forward(out: Builder, config: Config, i: int) -> None:
    """The second half of block `i`: three matrices, or a router, experts and those that are asked for every token."""
    ours, theirs = f"blk.{i}.ffn_", f"{_LAYERS}{i}.mlp."
    parts = ("gate", "up", "down")
    if f"{theirs}gate_proj.weight" in out.source:
        for part in parts:
            out.take(f"{ours}{part}.weight", f"{theirs}{part}_proj.weight")
        return
    out.take(f"{ours}gate_inp.weight", f"{theirs}gate.weight")
    out.take(f"blk.{i}.exp_probs_b.bias", f"{theirs}gate.e_score_correction_bias")
    experts, ffn = config.count("n_routed_experts"), config.count("moe_intermediate_size")
    if (fused := f"{theirs}experts.gate_up_proj") in out.source:
        out.take_parts(f"{ours}gate_exps.weight", fused, (experts, 2 * ffn), 0, ffn)
        out.take_parts(f"{ours}up_exps.weight", fused, (experts, 2 * ffn), ffn, 2 * ffn)
        dim = config.count("hidden_size")
        out.take_parts(f"{ours}down_exps.weight", f"{theirs}experts.down_proj", (experts, dim), 0, dim)
    else:
        for part in parts:
            names = (f"{theirs}experts.{expert}.{part}_proj.weight" for expert in range(experts))
            out.take_all(f"{ours}{part}_exps.weight", names)
    for part in parts:
        out.take(f"{ours}{part}_shexp.weight", f"{theirs}shared_experts.{part}_proj.weight")
