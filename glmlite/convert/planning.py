"""What a conversion will write: a checkpoint looked through, and each tensor's type decided. Reads headers only."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..models.glm4v import TENSORS
from . import recipes
from .architectures import Config, Contents, Tensor, build, eyes
from .checkpoint import Checkpoint
from .files import load_json, missing
from .foreign import refuse_quantized
from .formats import TYPES, can_quantize, tensor_bytes
from .sources import Adapted, Float8, Source, Tied, Unpacked
from .text import text_metadata

__all__ = ["Conversion", "plan"]

log = logging.getLogger(__name__)

_SIMPLE = ("F32", "F16", "BF16", "Q8_0")  # what needs no quantizer
_ROLE = re.compile(r"^(v\.)?blk\.\d+\.")  # what the name of a block's tensor has before its role
_QUANTIZATION_VERSION = 2  # of the block formats, as GGUF counts them


@dataclass(frozen=True)
class Conversion:
    """What a conversion will write: metadata, and each tensor with its type.

    type: the recipe. source: what is read. eyes: of a model that sees, what a second file gets.
    """

    metadata: Mapping[str, Any]
    tensors: Sequence[tuple[Tensor, str]]
    type: str
    close: Callable[[], None]
    source: Path | None = None
    eyes: Conversion | None = None

    def paths(self, out: Path) -> list[Path]:
        """The files that are written where the first is `out`: the eyes' is `mmproj-NAME-TYPE.gguf` beside it."""
        if self.eyes is None:
            return [out]
        ending = f"-{self.type}"
        name = out.stem[: -len(ending)] if out.stem.lower().endswith(ending) else out.stem
        return [out, out.with_name(f"mmproj-{name}-{self.eyes.type}.gguf")]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor_bytes(tensor.shape, type) for tensor, type in self.tensors)

    def roles(self) -> list[tuple[str, str, int, int]]:
        """(role, type, tensors, bytes): what is printed before the work."""
        count: Counter[tuple[str, str]] = Counter()
        nbytes: Counter[tuple[str, str]] = Counter()
        for tensor, type in self.tensors:
            role = _ROLE.sub(r"\1", tensor.name.removesuffix(".weight")) if len(tensor.shape) > 1 else "vectors"
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
    mmproj_type: str = "f16",
    one_file: bool = False,
) -> Conversion:
    """Look through a checkpoint's folder (or a GGUF file) and decide what each tensor becomes. Reads headers only.

    type: a recipe of `glmlite.convert.recipes`, in any case. tensor_types: (pattern of a name, type), exceptions; those
    for eyes begin with `v.` or `mm.`, where they are made beside a text model.
    lora: a LoRA folder of PEFT to merge. ptuning: a P-Tuning v2 checkpoint whose prefix is stored.
    mmproj_type: f32, f16, bf16 or q8_0, of the eyes of a model that sees. one_file: they get no file of their own.
    """
    type = _known("type", type, recipes.RECIPES)
    mmproj_type = _known("type of the eyes", mmproj_type, recipes.EYES)
    types = [name.lower() for name in TYPES]
    overrides = [(pattern, _known("tensor type", kind, types).upper()) for pattern, kind in tensor_types]
    source = Path(source)
    with ExitStack() as opened:
        model: Contents | None
        if _is_gguf(source):
            if lora or ptuning:
                raise ValueError("lora, ptuning: only for a checkpoint, not for a GGUF file")
            from .requantize import read_gguf

            model, seeing = read_gguf(source, opened)
        else:
            model, seeing = _read_checkpoint(source, lora, ptuning, opened)
        second = None
        if model is None and seeing is not None:
            work = _decided(seeing, _known("type of the eyes", type, recipes.EYES), overrides)
        elif model is not None:
            work = _decided(model, type, overrides)
            if seeing is not None:
                own = [(pattern, kind) for pattern, kind in overrides if pattern.startswith(TENSORS)]
                second = _decided(seeing, mmproj_type, own)
        names = [tensor.name for part in (work, second) if part for tensor, _ in part.tensors]
        for pattern, _ in overrides:
            if not any(recipes.matches(pattern, name) for name in names):
                raise ValueError(
                    f"--tensor-type: no tensor is called like {pattern!r}, expected a part of a name or a shell's "
                    f"pattern; the last is {names[-1]!r}"
                )
        if second is not None and one_file:
            keys = {key: value for key, value in second.metadata.items() if key.startswith(eyes.KEYS)}
            work = replace(work, metadata={**work.metadata, **keys}, tensors=[*work.tensors, *second.tensors])
            second = None
        unknown = {kind for part in (work, second) if part for _, kind in part.tensors if kind not in _SIMPLE}
        if unknown and not can_quantize():
            raise RuntimeError(
                f"{min(unknown).lower()}: quantizing needs numba: pip install 'glmlite[convert]' "
                "(f32, f16, bf16 and q8_0 do without)"
            )
        return replace(work, source=source, eyes=second, close=opened.pop_all().close)
    raise AssertionError  # an ExitStack swallows nothing


def _is_gguf(source: Path) -> bool:
    """By its first bytes: caches call files by their hashes."""
    if source.suffix == ".gguf" or not source.is_file():
        return source.suffix == ".gguf"
    with source.open("rb") as file:
        return file.read(4) == b"GGUF"


def _decided(model: Contents, type: str, overrides: Sequence[tuple[str, str]]) -> Conversion:
    """Each tensor with its type, and the keys that say so."""
    names = {tensor.name for tensor in model.tensors}
    layers = model.metadata.get(f"{model.metadata['general.architecture']}.block_count", 0)
    tied = "output.weight" not in names
    tensors = [
        (tensor, recipes.choose(tensor.name, tensor.shape, type, layers, tied, overrides)) for tensor in model.tensors
    ]
    metadata = {**model.metadata, "general.file_type": recipes.file_type(type)}
    if type not in ("f32", "f16", "bf16"):
        metadata["general.quantization_version"] = _QUANTIZATION_VERSION
    return Conversion(metadata, tensors, type, lambda: None)


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
) -> tuple[Contents, Contents | None]:
    """The text model, and the eyes, if there are any."""
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
    whole, config = config, eyes.text_config(config)
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
    text, seen = eyes.apart(tensors)
    model = build(text, config, prefix)
    architecture = model.metadata["general.architecture"]
    rows = next(tensor.shape[0] for tensor in model.tensors if tensor.name == "token_embd.weight")
    name = {"general.name": _name(folder, whole)}
    metadata = {"general.architecture": architecture, **name, **model.metadata}
    metadata |= text_metadata(folder, config, architecture, rows)
    if seen is None:
        return Contents(metadata, model.tensors), None
    if f"{architecture}.rope.dimension_sections" not in metadata:
        raise FormatError(f"{config_path}: no 'mrope_section', expected one of a model with eyes")
    seeing = eyes.build(seen, whole, metadata[f"{architecture}.embedding_length"])
    return Contents(metadata, model.tensors), Contents({**eyes.MMPROJ, **name, **seeing.metadata}, seeing.tensors)


def _name(folder: Path, config: Config) -> str:
    name = config.get("_name_or_path")
    return (name if isinstance(name, str) and name else folder.resolve().name).replace("\\", "/").rpartition("/")[2]
