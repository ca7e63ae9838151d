"""Checkpoints whose weights somebody has quantized in a form that is not read, told by name."""

from __future__ import annotations

import re

from ..errors import FormatError
from .architectures import Config
from .checkpoint import Checkpoint
from .files import short

__all__ = ["refuse_quantized"]

# Endings of tensor names, and the programs that write them.
_TENSORS = (
    (r"\.(qweight|qzeros|g_idx|scales)$", "GPTQ or AWQ"),
    (r"\.(SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$", "bitsandbytes"),
    (r"\.weight\.(absmax|quant_map|quant_state\..+)$", "bitsandbytes"),
    (r"\.(weight_packed|weight_shape|weight_zero_point|weight_global_scale)$", "compressed-tensors"),
    (r"\.(weight_scale_inv|input_scale|k_scale|v_scale)$", "FP8"),
    (r"\.(trellis|suh|svh|q_weight|q_scale|q_scale_max|q_groups|q_invperm)$", "EXL2 or EXL3"),
    (r"\.W_q$", "HQQ"),
    (r"\.(codebooks|codes)$", "AQLM"),
    (r"_(blocks|scales)$", "MXFP4"),
)


def refuse_quantized(checkpoint: Checkpoint, config: Config) -> None:
    """Raises FormatError for weights that are quantized in a form of others. A config that only says so, as that of a
    model that was merged after a quantized training, is not believed."""
    settings = config.get("quantization_config") or config.get("compression_config") or {}
    method = settings.get("quant_method", settings.get("quantization_method")) if isinstance(settings, dict) else None
    if method is None and isinstance(mlx := config.get("quantization"), dict) and "bits" in mlx:
        method = "MLX's"
    found = _quantized(checkpoint, own=config.get("quantization_bit") is not None)
    if found is None:
        return
    name, kind = found
    told = f"{kind}, says its name" if method is None else f"{short(method)}, says {config.path.name}"
    raise FormatError(
        f"{checkpoint.where(name)} is quantized ({told}); expected plain weights: convert the checkpoint that this was "
        "made from, and quantize it with --type"
    )


def _quantized(checkpoint: Checkpoint, own: bool) -> tuple[str, str] | None:
    """A tensor that no plain checkpoint has, and what has it. own: packed as ChatGLM's own int4 and int8 are."""
    for name in checkpoint.names:
        for pattern, kind in _TENSORS:
            if re.search(pattern, name):
                return name, kind
        if not own and name.endswith(".weight_scale"):
            return name, "scales beside the weights"
    return None
