"""Stores what transformers makes of images on tiny random models (`glm_ocr`, `glm4v`, `glm4v_moe`):
tests/data/<case>.npz.

Run with an interpreter that has torch and transformers (5.24 or newer): `python tests/oracles/transformers_vision.py`.
A file holds how to make the text model and its eyes again (tests/tiny.py), a checksum of their weights, the grids of
the images in patches (tiny.patches, seeds 0, 1, ..), the ids, of which -1 are images, the rows of each image, the
positions and the logits.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import checkpoints  # noqa: E402
import tiny  # noqa: E402

IMAGE, OTHERS = 63, {"video_token_id": 62, "image_start_token_id": 60, "image_end_token_id": 61}
OTHERS |= {"video_start_token_id": 59, "video_end_token_id": 58}
TEXT = {"vocab": 64, "heads": 2, "kv_heads": 1, "fused": False}

# name -> transformers' class, arguments of tiny.model and of tiny.eyes, grids in patches
CASES = {
    "vision-ocr": (
        "GlmOcr",
        {"architecture": "glm4", "layers": 3, "rope_dim": 32, "tied": True, "sections": [4, 6, 6, 0]},
        {"layers": 3, "dim": 64, "heads": 4, "out": 64, "inner": 192},
        [(6, 4), (2, 10)],
    ),
    "vision-4.1v": (
        "Glm4v",
        {"architecture": "glm4", "bias": True, "sections": [2, 3, 3, 0]},
        {"dim": 96, "heads": 3, "ffn": 64, "side": 24, "bias": False},
        [(2, 2), (10, 4), (4, 26)],
    ),
    "vision-4.5v": (
        "Glm4vMoe",
        {"architecture": "glm4moe", "scale": 1.5, "sections": [2, 3, 3, 0]},
        {"ffn": 64, "side": 24, "bias": False},
        [(6, 6)],
    ),
}


def main():
    for case, (kind, sizes, eyes, grids) in CASES.items():
        architecture = sizes["architecture"]
        text = {key: value for key, value in sizes.items() if key not in ("architecture", "sections")} | TEXT
        text["metadata"] = {f"{architecture}.rope.dimension_sections": sizes["sections"]}
        recipe = {"architecture": architecture, "sizes": text, "eyes": eyes, "grids": grids}
        model, seeing = tiny.model(architecture, **text), tiny.eyes(**eyes)
        theirs = build(kind, model, seeing, sizes["sections"][:3], recipe)
        ids = prompt(grids)
        asked = {
            "input_ids": torch.tensor(np.where(ids < 0, IMAGE, ids))[None].long(),
            "mm_token_type_ids": torch.tensor(ids < 0).int()[None],
            "image_grid_thw": torch.tensor([(1, *grid) for grid in grids]),
        }
        patches = np.concatenate([tiny.patches(grid, i) for i, grid in enumerate(grids)])
        frames = patches.reshape(len(patches), 3, 1, -1).repeat(2, axis=2).reshape(len(patches), -1)
        with torch.no_grad():
            pixels = torch.tensor(frames)
            rows = torch.cat(theirs.model.get_image_features(pixels, asked["image_grid_thw"]).pooler_output)
            positions, _ = theirs.model.get_rope_index(**asked)
            logits = theirs(pixel_values=pixels, **asked).logits[0]
        np.savez_compressed(
            TESTS / "data" / f"{case}.npz",
            recipe=json.dumps(recipe),
            checksum=[tiny.checksum(model), tiny.checksum(seeing)],
            ids=ids.astype(np.int32),
            rows=rows.numpy(),
            positions=positions[:, 0].T.numpy().astype(np.int32),
            logits=logits.numpy(),
        )
        print(f"{case}: {rows.shape}, {logits.shape}, largest {rows.abs().max():.3f}, {logits.abs().max():.3f}")


def prompt(grids):
    """Text, then each image with text behind it."""
    random = np.random.RandomState(1)
    parts = [random.randint(0, 58, 5)]
    for rows, columns in grids:
        parts += [[60], np.full(rows * columns // 4, -1), [61], random.randint(0, 58, 4)]
    return np.concatenate(parts)


def build(kind, model, eyes, sections, recipe):
    """transformers' model with the weights of a tiny one and of its eyes."""
    architecture = recipe["architecture"]
    key = {k.removeprefix(f"{architecture}."): v for k, v in model.metadata.items()}
    w = {name: torch.tensor(x) for name, x in (model.tensors | eyes.tensors).items()}
    heads, kv_heads, head_dim = (key[f"attention.{k}"] for k in ("head_count", "head_count_kv", "key_length"))
    text = {
        "vocab_size": len(w["token_embd.weight"]),
        "hidden_size": key["embedding_length"],
        "intermediate_size": key["feed_forward_length"],
        "num_hidden_layers": key["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": key["attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": key["context_length"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": key["rope.freq_base"],
            "partial_rotary_factor": key["rope.dimension_count"] / head_dim,
            "mrope_section": sections,
        },
    }
    if architecture == "glm4moe":
        text |= {
            "moe_intermediate_size": key["expert_feed_forward_length"],
            "n_routed_experts": key["expert_count"],
            "n_shared_experts": key["expert_shared_count"],
            "num_experts_per_tok": key["expert_used_count"],
            "routed_scaling_factor": key["expert_weights_scale"],
            "first_k_dense_replace": key["leading_dense_block_count"],
        }
    see = eyes.metadata
    vision = {
        "depth": see["clip.vision.block_count"],
        "hidden_size": see["clip.vision.embedding_length"],
        "num_heads": see["clip.vision.attention.head_count"],
        "out_hidden_size": see["clip.vision.projection_dim"],
        "intermediate_size": len(w["v.blk.0.ffn_up.weight"]) if kind == "GlmOcr" else len(w["mm.up.weight"]),
    }
    config = getattr(transformers, f"{kind}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        tie_word_embeddings="output.weight" not in w,
        **OTHERS,
    )
    config._attn_implementation = "eager"
    theirs = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    state = {"model.language_model.embed_tokens.weight": w["token_embd.weight"]}
    state["model.language_model.norm.weight"] = w["output_norm.weight"]
    state["lm_head.weight"] = w.get("output.weight", w["token_embd.weight"])
    turning = key["rope.dimension_count"] if architecture == "glm4" else 0
    for i in range(key["block_count"]):
        state |= block(w, f"blk.{i}.", f"model.language_model.layers.{i}.", head_dim, turning)
    seen = {name: torch.tensor(x) for name, x in checkpoints.eyes_of(eyes).items()}
    theirs.load_state_dict(state | seen, strict=True)
    return theirs


def block(w, ours, theirs, head_dim, turning):
    """A block under the names of transformers. turning: rows of a head of q and k that GGUF has in halves."""
    four = f"{ours}post_ffw_norm.weight" in w
    norms = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    if four:
        norms |= {"ffn_norm": "post_attention_layernorm", "post_attention_norm": "post_self_attn_layernorm"}
        norms["post_ffw_norm"] = "post_mlp_layernorm"
    names = norms | {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {"attn_output": "self_attn.o_proj"}
    up = "gate_up_proj" if four else "up_proj"
    names |= {"ffn_up": f"mlp.{up}", "ffn_gate": "mlp.gate_proj", "ffn_down": "mlp.down_proj"}
    names |= {f"ffn_{x}_shexp": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")}
    names["ffn_gate_inp"] = "mlp.gate"
    state = {}
    for name, other in names.items():
        for part in ("weight", "bias"):
            x = w.get(f"{ours}{name}.{part}")
            if x is not None:
                if name in ("attn_q", "attn_k"):
                    x = interleaved(x, head_dim, turning)
                state[f"{theirs}{other}.{part}"] = x
    if f"{ours}exp_probs_b.bias" in w:
        gate_up = torch.cat([w[f"{ours}ffn_{x}_exps.weight"] for x in ("gate", "up")], dim=1)
        state |= {
            f"{theirs}mlp.gate.e_score_correction_bias": w[f"{ours}exp_probs_b.bias"],
            f"{theirs}mlp.experts.gate_up_proj": gate_up,
            f"{theirs}mlp.experts.down_proj": w[f"{ours}ffn_down_exps.weight"],
        }
    return state


def interleaved(x, head_dim, turning):
    """Rows i and i + turning / 2 of each head one after the other."""
    heads = x.reshape(-1, head_dim, *x.shape[1:])
    turned = heads[:, :turning].reshape(len(heads), 2, turning // 2, *x.shape[1:]).transpose(1, 2)
    return torch.cat([turned.reshape(heads[:, :turning].shape), heads[:, turning:]], dim=1).reshape(x.shape)


if __name__ == "__main__":
    main()
