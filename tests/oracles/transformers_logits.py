"""Stores logits of tiny random models as computed by transformers (`glm`, `glm4`, `llama`): tests/data/<case>.npz.

Run with an interpreter that has torch and transformers: `python tests/oracles/transformers_logits.py`.
A file holds how to make the model again (tests/tiny.py), a checksum of its weights, the tokens and the logits.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import tiny  # noqa: E402

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64

# name -> architecture, arguments of tiny.model, RoPE scaling as transformers names it, tokens
CASES = {
    "chatglm3": ("chatglm", {"layers": 3, "kv_heads": 1}, None, 24),
    "glm-4-9b": ("chatglm", {"heads": 16, "kv_heads": 1, "eps": 1.5625e-7}, None, 24),
    "glm-edge": ("chatglm", {"rope_dim": 32, "bias": False, "tied": True}, None, 24),
    "chatglm-split": ("chatglm", {"heads": 4, "kv_heads": 4, "head_dim": 64, "fused": False}, None, 16),
    "glm4-9b": ("glm4", {"layers": 3, "kv_heads": 1, "bias": True}, None, 24),
    "glm4-32b": ("glm4", {"heads": 16, "kv_heads": 1, "fused": False}, None, 24),
    "glm4-yarn": ("glm4", {"kv_heads": 1}, YARN, 64),
    "glm-ocr": ("glm4", {"kv_heads": 4, "rope_dim": 32, "tied": True}, None, 24),
    "llama": ("llama", {"layers": 3, "kv_heads": 1}, None, 24),
    "llama3": ("llama", {"heads": 4, "kv_heads": 2, "head_dim": 64}, LLAMA3, 96),
    "llama-bias": ("llama", {"kv_heads": 4, "bias": True, "tied": True}, None, 24),
}


def main():
    for case, (architecture, sizes, scaling, length) in CASES.items():
        recipe = {"architecture": architecture, "sizes": {"vocab": 64, **sizes}}
        if scaling is YARN:
            recipe["sizes"]["metadata"] = {
                "glm4.rope.scaling.type": "yarn",
                "glm4.rope.scaling.factor": YARN["factor"],
                "glm4.rope.scaling.original_context_length": YARN["original_max_position_embeddings"],
            }
        if scaling is LLAMA3:
            recipe["sizes"]["factors"] = llama3_factors(sizes["head_dim"], 10000.0, **LLAMA3)
        model = tiny.model(architecture, **recipe["sizes"])
        tokens = np.random.RandomState(1).randint(0, 64, length)
        theirs = build(model, scaling)
        with torch.no_grad():
            logits = theirs(torch.tensor(tokens)[None]).logits[0].float().numpy()
        np.savez_compressed(
            TESTS / "data" / f"{case}.npz",
            recipe=json.dumps(recipe),
            checksum=tiny.checksum(model),
            tokens=tokens.astype(np.int32),
            logits=logits,
        )
        print(f"{case}: {logits.shape}, largest {np.abs(logits).max():.3f}")


def llama3_factors(dim, theta, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings, **_):
    """What divides the frequencies, as GGUF's `rope_freqs.weight` holds it (Llama 3.1's report, appendix)."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
    turns = original_max_position_embeddings / wavelength
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return [float(f) for f in 1 / ((1 - smooth) / factor + smooth)]


def build(model, scaling):
    """The transformers model with the weights of a tiny one."""
    architecture = model.metadata["general.architecture"]
    key = {k.removeprefix(f"{architecture}."): v for k, v in model.metadata.items()}
    head_dim, heads, kv_heads = (key[f"attention.{k}"] for k in ("key_length", "head_count", "head_count_kv"))
    w = {name: torch.tensor(x) for name, x in model.tensors.items()}
    classes = {"chatglm": (GlmConfig, GlmForCausalLM), "glm4": (Glm4Config, Glm4ForCausalLM)}
    config_class, model_class = classes.get(architecture, (LlamaConfig, LlamaForCausalLM))
    rope = {"rope_type": "default", "rope_theta": key["rope.freq_base"], **(scaling or {})}
    if architecture != "llama":
        rope["partial_rotary_factor"] = key["rope.dimension_count"] / head_dim
    config = config_class(
        vocab_size=w["token_embd.weight"].shape[0],
        hidden_size=key["embedding_length"],
        intermediate_size=key["feed_forward_length"],
        num_hidden_layers=key["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=key["attention.layer_norm_rms_epsilon"],
        max_position_embeddings=key["context_length"],
        rope_parameters=rope,
        tie_word_embeddings="output.weight" not in w,
        attention_bias=any(name.endswith("bias") for name in w),
        pad_token_id=0,
        **({"mlp_bias": any("ffn_up.bias" in name for name in w)} if architecture == "llama" else {}),
    )
    state = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"]}
    state["lm_head.weight"] = w.get("output.weight", w["token_embd.weight"])
    for i in range(key["block_count"]):
        state |= block(w, i, architecture, heads, kv_heads, head_dim)
    theirs = model_class(config).eval()
    theirs.load_state_dict(state, strict=True)
    return theirs


def block(w, i, architecture, heads, kv_heads, head_dim):
    """Block i under the names of transformers."""
    ours, theirs = f"blk.{i}.", f"model.layers.{i}."
    state = {theirs + "input_layernorm.weight": w[ours + "attn_norm.weight"]}
    if architecture == "glm4":
        state[theirs + "post_attention_layernorm.weight"] = w[ours + "ffn_norm.weight"]
        state[theirs + "post_self_attn_layernorm.weight"] = w[ours + "post_attention_norm.weight"]
        state[theirs + "post_mlp_layernorm.weight"] = w[ours + "post_ffw_norm.weight"]
    else:
        state[theirs + "post_attention_layernorm.weight"] = w[ours + "ffn_norm.weight"]
    for kind in ("weight", "bias"):
        if f"{ours}attn_qkv.{kind}" in w:
            rows = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
            parts = torch.split(w[f"{ours}attn_qkv.{kind}"], rows)
        else:
            parts = [w.get(f"{ours}attn_{p}.{kind}") for p in "qkv"]
        for name, part in zip("qkv", parts):
            if part is None:
                continue
            if architecture == "llama" and name != "v":
                # transformers turns column i with i + n/2: put the even rows of a head before the odd ones.
                part = part.reshape(-1, head_dim // 2, 2, *part.shape[1:]).transpose(1, 2).reshape(part.shape)
            state[f"{theirs}self_attn.{name}_proj.{kind}"] = part
        mlp = {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj", "ffn_gate": "mlp.gate_proj"}
        mlp["ffn_up"] = "mlp.up_proj" if architecture == "llama" else "mlp.gate_up_proj"
        for name, other in mlp.items():
            if f"{ours}{name}.{kind}" in w:
                state[f"{theirs}{other}.{kind}"] = w[f"{ours}{name}.{kind}"]
    return state


if __name__ == "__main__":
    main()
