"""Checkpoints whose weights somebody has quantized in a form that is not read, told by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .architectures import Config
from .checkpoint import Checkpoint
from .files import load_json, short

__all__ = ["refuse_quantized"]

# Endings of tensor names, and the programs that write them.
_TENSORS = (
    (r"\.(trellis|suh|svh|q_weight|q_scale|q_scale_max|q_groups|q_invperm)$", "EXL2 or EXL3"),
    (r"\.(SCB|weight_format|(weight\.)?(nested_)?(absmax|quant_map)|(weight\.)?quant_state\..+)$", "bitsandbytes"),
    (r"\.g_idx$", "GPTQ"),
    (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
    (r"\.(weight_packed|weight_shape|weight_zero_point|weight_global_scale)$", "compressed-tensors"),
    (r"\.(weight_scale_inv|input_scale|k_scale|v_scale|activation_scale)$", "FP8"),
    (r"_blocks$", "MXFP4"),
    (r"\.weight_scales$", "EETQ"),
    (r"\.weight\._(data|scale|shift|packed)(\._data)?$|\.(input|output)_scale$", "quanto"),
    (r"\.(W_q|W_q_meta|meta\..+)$", "HQQ"),
    (r"\.(codebooks|codes)$", "AQLM"),
    (r"\.(centroids|indices|res_centroids|outlier_centroids)$", "VPTQ"),
    (r"_scales$", "MXFP4"),
)
_PLAIN = ("F64", "F32", "F16", "BF16")
# Configurations of quantizers beside config.json, and the keys under which they and config.json name the method.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_METHODS = ("quant_method", "quantization_method", "quant_algo")


def refuse_quantized(checkpoint: Checkpoint, config: Config, read: Collection[str] = ()) -> None:
    """Raises FormatError for weights that are quantized in a form of others, and for a config that says so.

    read: tensors of a quantized form that can be read. bitsandbytes quantizes plain weights as they are loaded: a model
    that was merged after such a training has them.
    """
    names = [name for name in checkpoint.names if name not in read]
    found = _quantized(checkpoint, names, own=bool(config.get("quantization_bit")))
    if found is None and read:
        return
    method = _method(config)
    if found is None and method is not None and "bitsandbytes" not in method[0]:
        raise FormatError(
            f"{config.path}: the weights are quantized ({method[0]}, says {method[1]}), expected plain ones: convert "
            "the checkpoint that this was made from; if they are plain, remove what says so"
        )
    if found is None:
        return
    name, kind = found
    told = f"{kind}, by its tensors" if method is None else f"{method[0]}, says {method[1]}"
    raise FormatError(
        f"{checkpoint.where(name)} is quantized ({told}); expected plain weights: convert the checkpoint that this was "
        "made from, and quantize it with --type"
    )


def _method(config: Config) -> tuple[str, str] | None:
    """What the folder calls the quantization, and where."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    for values in (config.values, text):
        for key in ("quantization_config", "compression_config"):
            settings = values.get(key)
            if isinstance(settings, dict) and settings:
                return _named(settings, "bitsandbytes" if "load_in_4bit" in settings else key), config.path.name
        if isinstance(mlx := values.get("quantization"), dict) and "bits" in mlx:
            return "MLX", config.path.name
    for file, usual in _FILES.items():
        path = config.path.with_name(file)
        if path.is_file():
            return _in_file(path, usual), file
    return None


def _in_file(path: Path, usual: str) -> str:
    try:
        settings = load_json(path)
    except FormatError:
        return short(usual)
    inner = settings.get("quantization")
    return _named(inner if isinstance(inner, dict) else settings, usual)


def _named(settings: dict[str, Any], usual: str) -> str:
    return short(next((settings[key] for key in _METHODS if isinstance(settings.get(key), str)), usual))


def _quantized(checkpoint: Checkpoint, names: Sequence[str], own: bool) -> tuple[str, str] | None:
    """A tensor that no plain checkpoint has, and what has it. own: packed as ChatGLM's own int4 and int8 are."""
    for pattern, kind in _TENSORS:
        if (name := next((name for name in names if re.search(pattern, name)), None)) is not None:
            return name, kind
    for name in names:
        dtype, base = checkpoint.dtype(name), name.rpartition(".")[0]
        if name.endswith(".scales"):
            return name, "MLX" if f"{base}.biases" in checkpoint else "GPTQ or AWQ"
        if dtype.startswith("F8"):
            return name, f"{dtype}: FP8"
        if not own and name.endswith(".weight_scale"):
            return name, "scales beside the weights"
        if name.endswith(".weight") and dtype not in _PLAIN and len(checkpoint.shape(name)) == 2 and not own:
            return name, f"{dtype}: whole numbers"
    return None
