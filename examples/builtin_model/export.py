"""Writes what training left as a checkpoint of ChatGLM-6B's form: config, weights (f32), tokenizer."""

import json
import shutil
from pathlib import Path

import torch
from model import EPS, GLM
from objective import Encoder
from safetensors.torch import save_file
from train import SIZES


def export(folder: Path) -> Path:
    """The checkpoint's folder, `folder`/glmlite-builtin."""
    out = folder / "glmlite-builtin"
    out.mkdir(exist_ok=True)
    encode = Encoder(folder / "ice_text.model")
    model = GLM(encode.pieces.vocab_size(), **SIZES)
    model.load_state_dict(torch.load(folder / "state.pt")["model"])
    save_file(model.exported(), out / "model.safetensors", {"format": "pt"})
    shutil.copy(folder / "ice_text.model", out)
    special = {"bos_token_id": encode.sop, "eos_token_id": encode.eop, "pad_token_id": encode.pieces.pad_id()}
    config = {
        "_name_or_path": "glmlite-builtin",
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "position_encoding_2d": True,
        "vocab_size": encode.pieces.vocab_size(),
        "hidden_size": SIZES["dim"],
        "inner_hidden_size": 4 * SIZES["dim"],
        "num_attention_heads": SIZES["heads"],
        "num_layers": SIZES["layers"],
        "layernorm_epsilon": EPS,
        "max_sequence_length": 512,
        "gmask_token_id": encode.gmask,
        "mask_token_id": encode.mask,
        "torch_dtype": "float32",
        **special,
    }
    tokenizer = {"tokenizer_class": "ChatGLMTokenizer", "do_lower_case": False, "remove_space": False}
    for name, values in (
        ("config", config),
        ("tokenizer_config", tokenizer),
        ("generation_config", {"do_sample": True, "temperature": 0.3, "top_p": 0.8, **special}),
    ):
        (out / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return out
