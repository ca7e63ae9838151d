"""What a conversion will write: a checkpoint looked through, and each tensor's type decided. Reads headers only."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import FormatError
from . import recipes
from .architectures import Config, Contents, Tensor, build
from .checkpoint import Checkpoint
from .files import load_json, missing
from .foreign import refuse_quantized
from .formats import TYPES, can_quantize, tensor_bytes
from .sources import Adapted, Float8, Source, Tied, Unpacked
from .text import text_metadata

__all__ = ["Conversion", "plan"]

log = logging.getLogger(__name__)

_SIMPLE = ("F32", "F16", "BF16", "Q8_0")  # what needs no quantizer
_QUANTIZATION_VERSION = 2  # of the block formats, as GGUF counts them


@dataclass(frozen=True)
class Conversion:
    """What a conversion will write: metadata, and each tensor with its type."""

    metadata: Mapping[str, Any]
    tensors: Sequence[tuple[Tensor, str]]
    close: Callable[[], None]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor_bytes(tensor.shape, type) for tensor, type in self.tensors)

    def roles(self) -> list[tuple[str, str, int, int]]:
        """(role, type, tensors, bytes): what is printed before the work."""
        count: Counter[tuple[str, str]] = Counter()
        nbytes: Counter[tuple[str, str]] = Counter()
        for tensor, type in self.tensors:
            role = tensor.name.removesuffix(".weight").split(".", 2)[-1] if len(tensor.shape) > 1 else "vectors"
            count[role, type] += 1
            nbytes[role, type] += tensor_bytes(tensor.shape, type)
        return [(*key, count[key], nbytes[key]) for key in count]


def plan(
    source: str | os.PathLike[str],
    type: str = "q8_0",
    *,
    tensor_types: Sequence[tuple[str, str]] = (),
    lora: str | os.PathLike[str] | None = None,
    ptuning: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Look through a checkpoint's folder (or a GGUF file) and decide what each tensor becomes. Reads headers only.

    type: a recipe of `glmlite.convert.recipes`, in any case. tensor_types: (pattern of a name, type), exceptions.
    lora: a LoRA folder of PEFT to merge. ptuning: a P-Tuning v2 checkpoint whose prefix is stored.
    """
    type = _known("type", type, recipes.RECIPES)
    types = [name.lower() for name in TYPES]
    overrides = [(pattern, _known("tensor type", kind, types).upper()) for pattern, kind in tensor_types]
    source = Path(source)
    with ExitStack() as opened:
        if source.suffix == ".gguf":
            if lora or ptuning:
                raise ValueError("lora, ptuning: only for a checkpoint, not for a GGUF file")
            from .requantize import read_gguf

            model = read_gguf(source, opened)
        else:
            model = _read_checkpoint(source, lora, ptuning, opened)
        names = {tensor.name for tensor in model.tensors}
        layers = model.metadata[f"{model.metadata['general.architecture']}.block_count"]
        tied = "output.weight" not in names
        tensors = [
            (tensor, recipes.choose(tensor.name, tensor.shape, type, layers, tied, overrides))
            for tensor in model.tensors
        ]
        unknown = {kind for _, kind in tensors if kind not in _SIMPLE}
        if unknown and not can_quantize():
            raise RuntimeError(
                f"{min(unknown).lower()}: quantizing needs numba: pip install 'glmlite[convert]' "
                "(f32, f16, bf16 and q8_0 do without)"
            )
        metadata = dict(model.metadata)
        metadata["general.file_type"] = recipes.file_type(type)
        if type not in ("f32", "f16", "bf16"):
            metadata["general.quantization_version"] = _QUANTIZATION_VERSION
        return Conversion(metadata, tensors, opened.pop_all().close)
    raise AssertionError  # an ExitStack swallows nothing


# As other programs call the types.
_SPELLED = {"fp16": "f16", "float16": "f16", "fp32": "f32", "float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}


def _known(what: str, name: str, known: Collection[str]) -> str:
    """The name in lower case. Raises ValueError, with names that are like it, if it is not known."""
    name = name.lower()
    if name in known:
        return name
    near = [_SPELLED[name]] if name in _SPELLED else [other for other in known if other.startswith(name)]
    near = near or get_close_matches(name, known)
    meant = f" (do you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(f"{what}: {name!r} is not known{meant}; known: {', '.join(known)}")


def _read_checkpoint(
    source: Path, lora: str | os.PathLike[str] | None, ptuning: str | os.PathLike[str] | None, opened: ExitStack
) -> Contents:
    folder = source if source.is_dir() else source.parent
    checkpoint = opened.enter_context(Checkpoint(source))
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise FormatError(f"{folder}: no config.json beside the weights{missing(config_path)}")
    config = Config(load_json(config_path), config_path)
    eights = Float8(checkpoint)
    refuse_quantized(checkpoint, config, {*eights.scales, *eights.scales.values()})
    tensors: Source = eights if eights.scales else Unpacked(checkpoint, config.get("quantization_bit"))
    pair = None
    if config.get("tie_word_embeddings", False):
        tied = Tied(tensors)
        if tied.differ():
            log.warning("%s: 'tie_word_embeddings' is set, but the two matrices differ: both are kept", config_path)
            config = Config({**config.values, "tie_word_embeddings": False}, config_path)
        else:
            tensors, pair = tied, tied.pair
    if lora is not None:
        adapted = Adapted(tensors, Path(lora), pair)
        opened.callback(adapted.adapter.close)
        tensors = adapted
    prefix = None if ptuning is None else opened.enter_context(Checkpoint(Path(ptuning)))
    model = build(tensors, config, prefix)
    architecture = model.metadata["general.architecture"]
    rows = next(tensor.shape[0] for tensor in model.tensors if tensor.name == "token_embd.weight")
    general = {"general.architecture": architecture, "general.name": _name(folder, config)}
    metadata = {**general, **model.metadata, **text_metadata(folder, config, architecture, rows)}
    return Contents(metadata, model.tensors)


def _name(folder: Path, config: Config) -> str:
    name = config.get("_name_or_path")
    return (name if isinstance(name, str) and name else folder.resolve().name).replace("\\", "/").rpartition("/")[2]
