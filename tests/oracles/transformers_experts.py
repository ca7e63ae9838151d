"""Stores logits of tiny random mixtures of experts as computed by transformers (`glm4_moe`, `glm4_moe_lite`), and those
of their drafting layers: tests/data/<case>.npz.

Run with an interpreter that has torch and transformers (5.24 or newer, whose MtpModel drafts):
`python tests/oracles/transformers_experts.py`. A file holds how to make the model again (tests/tiny.py), a checksum of
its weights, the tokens, the logits, and `drafts`: row j has seen the tokens up to j + 1.

transformers makes the norms of MLA's latents with an eps of 1e-6, whatever the config says. GGUF has one eps, which
llama.cpp takes for them too, as we do; so they are given it here.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.modeling_layers import MtpModel

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import tiny  # noqa: E402

# name -> architecture, arguments of tiny.model, tokens
CASES = {
    "glm-4.5-air": ("glm4moe", {"layers": 3, "experts": 16, "used": 3, "scale": 1.0, "drafting": True}, 24),
    "glm-4.5": ("glm4moe", {"layers": 4, "dense": 2, "kv_heads": 1, "head_norms": True, "scale": 2.5}, 24),
    "glm-4.5-tied": ("glm4moe", {"bias": False, "tied": True, "shared": 2, "dense": 0, "drafting": True}, 24),
    "glm-4.7-flash": (
        "deepseek2",
        {"layers": 3, "experts": 16, "used": 4, "head_dim": 96, "rope_dim": 32, "latent": 128, "drafting": True},
        24,
    ),
    "glm-4.7-flash-odd": (
        "deepseek2",
        {"heads": 5, "head_dim": 80, "rope_dim": 16, "q_rank": 64, "shared": 2, "dense": 0, "tied": True},
        24,
    ),
}


def main():
    for case, (architecture, sizes, length) in CASES.items():
        recipe = {"architecture": architecture, "sizes": {"vocab": 64, **sizes}}
        model = tiny.model(architecture, **recipe["sizes"])
        tokens = np.random.RandomState(1).randint(0, 64, length)
        theirs, drafting = build(model)
        ids = torch.tensor(tokens)[None]
        stored = {}
        with torch.no_grad():
            out = theirs(ids, output_hidden_states=True)
            if drafting is not None:
                positions = torch.arange(1, length)[None]
                rows = drafting.forward_layer(0, out.hidden_states[-1][:, :-1], positions, None, input_ids=ids[:, 1:])
                stored["drafts"] = drafting._project_to_logits(rows)[0].numpy()
        np.savez_compressed(
            TESTS / "data" / f"{case}.npz",
            recipe=json.dumps(recipe),
            checksum=tiny.checksum(model),
            tokens=tokens.astype(np.int32),
            logits=out.logits[0].numpy(),
            **stored,
        )
        print(f"{case}: {out.logits.shape}, largest {out.logits.abs().max():.3f}, {', '.join(stored) or 'no drafts'}")


def build(model):
    """transformers' model with the weights of a tiny one, and its drafting layer, if it has one."""
    architecture = model.metadata["general.architecture"]
    key = {k.removeprefix(f"{architecture}."): v for k, v in model.metadata.items()}
    w = {name: torch.tensor(x) for name, x in model.tensors.items()}
    layers = key["block_count"] - key.get("nextn_predict_layers", 0)
    dense, eps = key["leading_dense_block_count"], key["attention.layer_norm_rms_epsilon"]
    rope = {"rope_type": "default", "rope_theta": key["rope.freq_base"]}
    sizes = {
        "vocab_size": w["token_embd.weight"].shape[0],
        "hidden_size": key["embedding_length"],
        "intermediate_size": key["feed_forward_length"],
        "moe_intermediate_size": key["expert_feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": key["attention.head_count"],
        "n_routed_experts": key["expert_count"],
        "n_shared_experts": key["expert_shared_count"],
        "num_experts_per_tok": key["expert_used_count"],
        "routed_scaling_factor": key["expert_weights_scale"],
        "rms_norm_eps": eps,
        "max_position_embeddings": key["context_length"],
        "tie_word_embeddings": "output.weight" not in w,
        "pad_token_id": None,
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }
    if architecture == "glm4moe":
        head_dim = key["attention.key_length"]
        config = transformers.Glm4MoeConfig(
            **sizes,
            num_key_value_heads=key["attention.head_count_kv"],
            head_dim=head_dim,
            rope_parameters=rope | {"partial_rotary_factor": key["rope.dimension_count"] / head_dim},
            first_k_dense_replace=dense,
            use_qk_norm="blk.0.attn_q_norm.weight" in w,
            attention_bias="blk.0.attn_q.bias" in w,
        )
        theirs = transformers.Glm4MoeForCausalLM(config)
    else:
        turning = key["rope.dimension_count"]
        config = transformers.Glm4MoeLiteConfig(
            **sizes,
            num_key_value_heads=key["attention.head_count"],
            q_lora_rank=key["attention.q_lora_rank"],
            kv_lora_rank=key["attention.kv_lora_rank"],
            qk_nope_head_dim=key["attention.key_length_mla"] - turning,
            qk_rope_head_dim=turning,
            v_head_dim=key["attention.value_length_mla"],
            rope_parameters=rope,
            mlp_layer_types=["dense" if i < dense else "sparse" for i in range(layers)],
            num_mtp_layers=1,
            mtp_mlp_layer_types=["sparse"],
        )
        theirs = transformers.Glm4MoeLiteForCausalLM(config)
    state = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"]}
    state["lm_head.weight"] = w.get("output.weight", w["token_embd.weight"])
    for i in range(layers):
        state |= block(w, f"blk.{i}.", f"model.layers.{i}.", i < dense)
    theirs.load_state_dict(state, strict=True)
    parts = [theirs.eval()]
    if layers < key["block_count"]:
        drafting = MtpModel(theirs, 1).eval()
        state = block(w, f"blk.{layers}.", "layers.0.mtp_block.", False)
        names = {"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "shared_head_norm": "post_norm"}
        state |= {f"layers.0.{other}.weight": w[f"blk.{layers}.nextn.{name}.weight"] for name, other in names.items()}
        own = {name for name in drafting.state_dict() if name.startswith("layers.")}
        assert own == state.keys(), own ^ state.keys()
        drafting.load_state_dict(state, strict=False)  # what is missing is the trunk's
        parts.append(drafting)
    for part in parts:
        for name, module in part.named_modules():
            if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
                module.variance_epsilon = eps
    return theirs, parts[1] if len(parts) > 1 else None


# Tensors that both have, by the name in a block.
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate_inp": "mlp.gate",
}


def block(w, ours, theirs, dense):
    """A block under the names of transformers."""
    state = {}
    for name, other in NAMES.items():
        for kind in ("weight", "bias"):
            if f"{ours}{name}.{kind}" in w:
                state[f"{theirs}{other}.{kind}"] = w[f"{ours}{name}.{kind}"]
    for name in ("gate", "up", "down"):
        suffix, place = ("", "") if dense else ("_shexp", "shared_experts.")
        state[f"{theirs}mlp.{place}{name}_proj.weight"] = w[f"{ours}ffn_{name}{suffix}.weight"]
    if not dense:
        state[theirs + "mlp.gate.e_score_correction_bias"] = w[ours + "exp_probs_b.bias"]
        gate_up = [w[f"{ours}ffn_{name}_exps.weight"] for name in ("gate", "up")]
        state[theirs + "mlp.experts.gate_up_proj"] = torch.cat(gate_up, dim=1)
        state[theirs + "mlp.experts.down_proj"] = w[ours + "ffn_down_exps.weight"]
    if ours + "attn_k_b.weight" in w:
        keys = w[ours + "attn_k_b.weight"].transpose(1, 2)  # (heads, plain columns, latent)
        both = torch.cat([keys, w[ours + "attn_v_b.weight"]], dim=1)
        state[theirs + "self_attn.kv_b_proj.weight"] = both.reshape(-1, both.shape[-1])
    return state


if __name__ == "__main__":
    main()
