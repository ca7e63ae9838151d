"""Stores LoRA adapters as PEFT writes them, and what PEFT merges them to: tests/data/peft/<case>/.

Run with an interpreter that has torch and peft: `python tests/oracles/peft_lora.py`.
A folder has PEFT's own adapter_config.json and adapter_model.*, and want.json: how to make the base again (form and
arguments of tests/checkpoints.py and tiny.model), and of each weight that PEFT changed the product with a fixed vector.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import checkpoints  # noqa: E402
import tiny  # noqa: E402

SIZES = {"vocab": 24, "layers": 2, "head_dim": 16}
# case -> form, architecture, arguments of LoraConfig, whether it is saved as safetensors
CASES = {
    "chatglm3": ("chatglm", "chatglm", {"r": 3, "lora_alpha": 6, "target_modules": ["query_key_value"]}, True),
    "chatglm-6b-rslora": (
        "chatglm1",
        "chatglm1",
        {"r": 3, "lora_alpha": 5, "target_modules": ["query_key_value", "dense"], "use_rslora": True},
        False,
    ),
    "llama-patterns": (
        "hf",
        "llama",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 3},
            "alpha_pattern": {"v_proj": 7, "layers.0.mlp.down_proj": 9},
        },
        True,
    ),
    "glm4-saved": (
        "hf",
        "glm4",
        {"r": 2, "target_modules": ["o_proj", "gate_up_proj"], "modules_to_save": ["embed_tokens", "norm"]},
        True,
    ),
    "llama-embeddings": ("hf", "llama", {"r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "lm_head"]}, True),
    "chatglm3-bias": (
        "chatglm",
        "chatglm",
        {"r": 2, "target_modules": ["query_key_value"], "bias": "lora_only"},
        True,
    ),
}


class Base(torch.nn.Module):
    """Modules under the names of a checkpoint, with its weights."""

    def __init__(self, named):
        super().__init__()
        for name in sorted({name.rpartition(".")[0] for name in named if name.endswith("weight")}):
            weight, bias = named[f"{name}.weight"], named.get(f"{name}.bias")
            if weight.ndim == 1:
                leaf = torch.nn.LayerNorm(len(weight), bias=bias is not None)
            elif "embed" in name:
                leaf = torch.nn.Embedding(*weight.shape)
            else:
                leaf = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            leaf.load_state_dict({k: torch.tensor(x) for k, x in (("weight", weight), ("bias", bias)) if x is not None})
            *path, last = name.split(".")
            parent = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, torch.nn.Module())
                parent = parent._modules[part]
            parent.add_module(last, leaf)

    def get_input_embeddings(self):
        return next(m for m in self.modules() if isinstance(m, torch.nn.Embedding) or hasattr(m, "lora_embedding_A"))

    def get_output_embeddings(self):
        return getattr(self, "lm_head", None)


def vector(size):
    return np.random.RandomState(size).randn(size)


def main():
    for case, (form, architecture, config, safe) in CASES.items():
        model = tiny.model(architecture, **SIZES, **({"fused": False} if form == "hf" else {}))
        named, _ = getattr(checkpoints, form)(model)
        named = {name: x for name, x in named.items() if not name.endswith("inv_freq")}
        adapted = peft.get_peft_model(Base(named), peft.LoraConfig(**config))
        torch.manual_seed(1)
        with torch.no_grad():
            for x in (x for x in adapted.parameters() if x.requires_grad):
                x.copy_(torch.randn_like(x).half())  # few digits make small files
        folder = TESTS / "data" / "peft" / case
        shutil.rmtree(folder, ignore_errors=True)
        adapted.save_pretrained(str(folder), safe_serialization=safe)
        (folder / "README.md").unlink(missing_ok=True)
        merged = {name: x.double().numpy() for name, x in adapted.merge_and_unload().state_dict().items()}
        assert set(merged) == set(named)
        changed = {name: x for name, x in merged.items() if not np.array_equal(x, named[name])}
        products = {name: (x @ vector(x.shape[-1])).tolist() for name, x in changed.items() if x.ndim == 2}
        products |= {name: x.tolist() for name, x in changed.items() if x.ndim == 1}
        want = {
            "peft": peft.__version__,
            "form": form,
            "architecture": architecture,
            "sizes": SIZES | ({"fused": False} if form == "hf" else {}),
            "products": {name: [float(f"{v:.8g}") for v in np.atleast_1d(x)] for name, x in products.items()},
        }
        (folder / "want.json").write_text(json.dumps(want, separators=(",", ":")) + "\n")
        print(case, sum(path.stat().st_size for path in folder.iterdir()), sorted(changed))


if __name__ == "__main__":
    main()
