"""Stores how transformers saves small models, and their logits: tests/data/checkpoints/<case>.npz.

Run with an interpreter that has torch and transformers: `python tests/oracles/transformers_checkpoints.py`.
A file holds the config.json as transformers writes it, the names and shapes of the tensors in model.safetensors (a
tensor's values are tiny.tensor's of its name), tokens and logits.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import tiny  # noqa: E402

HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
YARN = {**HALF, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64
SIZES = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128}
SIZES |= {"pad_token_id": 0, "eos_token_id": 264}
MIXTURE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "routed_scaling_factor": 2.5}
MIXTURE |= {"attention_bias": True, "rope_parameters": HALF}
LATENT = {"q_lora_rank": 40, "kv_lora_rank": 48, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 20}
LATENT |= {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_hidden_layers": 3}
LATENT |= {"num_key_value_heads": 4, "head_dim": 8}
# The norms of the latents have this whatever the config says.
LATENT |= {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

# case -> class, arguments of its config. *-fused: tensors as they are in memory, with all experts in two.
CASES = {
    "glm-4-9b-hf": ("Glm", {"attention_bias": True, "rms_norm_eps": 1.5625e-7, "rope_parameters": HALF}),
    "glm-edge": (
        "Glm",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {**HALF, "partial_rotary_factor": 1.0},
            "attention_bias": False,
        },
    ),
    "glm-4-9b-0414": ("Glm4", {"attention_bias": True, "rms_norm_eps": 1e-5, "rope_parameters": HALF}),
    "glm-4-32b-0414": ("Glm4", {"num_attention_heads": 6, "attention_bias": False, "rope_parameters": HALF}),
    "glm-z1-yarn": ("Glm4", {"attention_bias": True, "rope_parameters": YARN}),
    "llama-2": ("Llama", {"num_key_value_heads": 4, "head_dim": 16}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "glm-4.5": ("Glm4Moe", MIXTURE | {"use_qk_norm": True, "first_k_dense_replace": 2, "num_hidden_layers": 4}),
    "glm-4.5-air-fused": ("Glm4Moe", MIXTURE | {"routed_scaling_factor": 1.0}),
    "glm-4.7-flash": ("Glm4MoeLite", LATENT),
    "glm-4.7-flash-fused": ("Glm4MoeLite", LATENT | {"n_shared_experts": 2}),
}


def main():
    (TESTS / "data" / "checkpoints").mkdir(exist_ok=True)
    for case, (kind, arguments) in CASES.items():
        config = getattr(transformers, f"{kind}Config")(**(SIZES | arguments))
        config._experts_implementation = "eager"  # the others have no f64
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            values = json.loads((Path(folder) / "config.json").read_text())
            with safe_open(f"{folder}/model.safetensors", "pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            if case.endswith("-fused"):
                shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
            state = {name: torch.tensor(tiny.tensor(name, shape)) for name, shape in shapes.items()}
            save_file(state, f"{folder}/model.safetensors", {"format": "pt"})
            model, told = type(model).from_pretrained(folder, config=config, dtype="float32", output_loading_info=True)
        assert not any(told.values()), told
        tokens = np.random.RandomState(1).randint(0, 256, 10)
        with torch.no_grad():
            logits = model.double()(torch.tensor(tokens)[None]).logits[0].float().numpy()
        np.savez_compressed(
            TESTS / "data" / "checkpoints" / f"{case}.npz",
            config=json.dumps(values),
            shapes=json.dumps(shapes),
            tokens=tokens.astype(np.int32),
            logits=logits,
        )
        print(f"{case}: {len(shapes)} tensors, largest logit {np.abs(logits).max():.3f}")


if __name__ == "__main__":
    main()
