"""Arguments of `from_pretrained`, and what a file says before it is loaded."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

from .. import placement
from ..locate import model_file
from .arguments import Refusal

# What says how to fetch a checkpoint or how to compute, and has no bearing on what comes out of a file.
LOADING = (
    "allow_all_kernels",
    "attn_implementation",
    "cache_dir",
    "code_revision",
    "disable_mmap",
    "dtype",
    "empty_init",
    "experts_implementation",
    "force_download",
    "fusion_config",
    "ignore_mismatched_sizes",
    "kernel_config",
    "local_files_only",
    "low_cpu_mem_usage",
    "mirror",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "prefix_projection",
    "proxies",
    "resume_download",
    "return_dict",
    "revision",
    "token",
    "tqdm_class",
    "torch_dtype",
    "trust_remote_code",
    "use_auth_token",
    "use_cache",
    "use_fast",
    "use_flash_attention_2",
    "use_kernels",
    "use_safetensors",
    "weights_only",
)
_QUANTIZED = Refusal("a file's weights are quantized already; `glmlite convert --type` makes another file")
_ONE_DEVICE = Refusal("one device, or the CPU and one GPU, run a model")
LOADING_REFUSED = {
    "load_in_4bit": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "quantization_config": _QUANTIZED,
    "quantization_bit": _QUANTIZED,
    "adapter_kwargs": Refusal("`glmlite convert --lora` stores an adapter in a file"),
    "adapter_name": Refusal("`glmlite convert --lora` stores an adapter in a file"),
    "state_dict": Refusal("weights come from the file"),
    "max_memory": Refusal("pass gpu_layers"),
    "tp_plan": _ONE_DEVICE,
    "tp_size": _ONE_DEVICE,
    "device_mesh": _ONE_DEVICE,
    "distributed_config": _ONE_DEVICE,
    "generation_config": Refusal("set generation_config of the model"),
    "key_mapping": Refusal("weights come from the file"),
    "output_loading_info": Refusal("an error says what is wrong with a file"),
    "subfolder": Refusal("give the path of the .gguf file"),
    "variant": Refusal("give the path of the .gguf file"),
}


def header(
    name: str | os.PathLike[str] | None, gguf_file: str | None, pre_seq_len: int | None = None
) -> tuple[str, dict[str, Any], int | None]:
    """(path, metadata, length of the P-Tuning prefix) of a file. Raises ValueError if it has not the length asked for,
    pre_seq_len."""
    path = model_file(name if gguf_file is None else Path(os.fspath(name or "."), gguf_file))
    with closing(placement.backend("cpu").Gguf(path)) as gguf:
        tensor = gguf.tensors.get("blk.0.prefix_k.weight")
        prefix = None if tensor is None else int(tensor.shape[0])
        if pre_seq_len is not None and pre_seq_len != prefix:
            has = "no prefix" if prefix is None else f"a prefix of {prefix} tokens"
            raise ValueError(f"pre_seq_len is {pre_seq_len}, {path} has {has}; `glmlite convert --ptuning` stores one")
        return str(path), dict(gguf.metadata), prefix
