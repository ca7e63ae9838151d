"""`glmlite convert`: a GGUF file from what people have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import ending
from ..files import refuse_to_overwrite
from . import console


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A checkpoint's folder, a hub name (owner/name), or a GGUF file."),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT.gguf", help="The file to write [default: SOURCE-TYPE.gguf].", show_default=False),
    ] = None,
    type: Annotated[
        str,
        typer.Option(
            "--type",
            "-t",
            metavar="TYPE",
            help="f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_k_s, q4_0, iq4_xs or iq4_nl.",
        ),
    ] = "q8_0",
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="Another type for the tensors whose name matches; may be given several times.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Merge this LoRA adapter of PEFT.", show_default=False)
    ] = None,
    ptuning: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Store this P-Tuning v2 prefix.", show_default=False)
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Quantize with this importance matrix.", show_default=False),
    ] = None,
    mmproj_type: Annotated[
        str,
        typer.Option(metavar="TYPE", help="Of a vision model's eyes (mmproj): f32, f16, bf16 or q8_0."),
    ] = "f16",
    one_file: Annotated[
        bool, typer.Option("--one-file", help="Put a vision model's eyes into OUT.gguf, not into a file beside it.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Threads to quantize with [default: the physical cores]; the file does not depend on it.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over OUT.gguf if it is there.")] = False,
) -> None:
    """Make a GGUF file from a checkpoint, in little memory and without torch.

    A vision model becomes two: OUT.gguf, and mmproj-OUT-f16.gguf beside it.

    \b
    Examples:
      glmlite convert chatglm3-6b
      glmlite convert glm-4-9b-chat glm4.gguf --type q4_k_m
      glmlite convert zai-org/glm-edge-1.5b-chat
      glmlite convert zai-org/GLM-OCR --mmproj-type q8_0
      glmlite convert chatglm-6b --ptuning checkpoint-3000 --type f16
      glmlite convert model-f16.gguf model-q4_0.gguf --type q4_0 --tensor-type attn_v=q6_k
      glmlite convert model-f16.gguf --type q4_k_m --imatrix model-f16.imatrix.gguf
    """
    from .. import convert as conversion
    from .. import hub

    out = out or _beside(source, type)
    refuse_to_overwrite(out, force)
    importance = None if imatrix is None else conversion.imatrix.read(imatrix).weights()
    folder = hub.fetch(source) if hub.is_name(source) else source
    work = conversion.plan(
        folder,
        type,
        tensor_types=_pairs(tensor_type or []),
        lora=lora,
        ptuning=ptuning,
        mmproj_type=mmproj_type,
        one_file=one_file,
    )
    paths = work.paths(out)
    try:
        for path in paths:
            refuse_to_overwrite(path, force)
        parts = [work] if work.eyes is None else [work, work.eyes]
        console.note(console.columns(_rows(parts), right=[2, 3]).rstrip())
        if importance is not None:
            _note_unweighted(conversion.unweighted(work, importance), imatrix)
        names = " and ".join(path.name for path in paths)
        size = console.size(sum(part.nbytes for part in parts))
        with console.progress(f"Writing {names} ({size})", rate=True) as show:
            conversion.work_off(work, out, progress=show, importance=importance, threads=threads)
    except (KeyboardInterrupt, ending.Ended):
        console.note(f"glmlite: {out}: stopped, nothing is left of it")
        raise
    finally:
        work.close()
    console.write("".join(f"{path}\n" for path in paths))


def _rows(parts: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What each kind of tensor becomes, as a table."""
    rows: list[tuple[Any, ...]] = [("role", "type", "tensors", "size")]
    for part in parts:
        rows += [(role, kind.lower(), count, console.size(nbytes)) for role, kind, count, nbytes in part.roles()]
    return rows


def _note_unweighted(names: list[str], imatrix: Path) -> None:
    """A word on tensors that one would expect to find in an importance matrix."""
    unexpected = [name for name in names if name not in ("token_embd.weight", "output.weight")]
    if unexpected:
        console.note(
            f"{imatrix}: has nothing for {len(unexpected)} of the tensors, which are quantized without it: "
            f"{', '.join(unexpected[:3])}{', ...' if len(unexpected) > 3 else ''}"
        )


def _beside(source: str, type: str) -> Path:
    """A name in the current folder, after the source's."""
    path = Path(source)
    name = path.resolve().name if path.is_dir() else path.name.removesuffix(".gguf")
    return Path(f"{name}-{type.lower()}.gguf")


def _pairs(texts: list[str]) -> list[tuple[str, str]]:
    pairs = [text.rpartition("=") for text in texts]
    for text, (pattern, _, kind) in zip(texts, pairs):
        if not pattern or not kind:
            raise ValueError(f"--tensor-type: {text!r}, expected PATTERN=TYPE")
    return [(pattern, kind) for pattern, _, kind in pairs]
