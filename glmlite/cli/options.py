"""Options that several commands share, once each."""

import inspect
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console

_MODEL = "A GGUF file, smollm2 (the sample model, downloaded once) or builtin (a small one that is always there)."
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
ModelFirst = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help=f"{_MODEL} [default: builtin]", show_default=False)
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think", help="For models that can do either: think before answering?", show_default=False
    ),
]
File = Annotated[Path | None, typer.Option("--file", "-f", help="Read it from a UTF-8 file.", show_default=False)]
Stats = Annotated[bool, typer.Option("--stats", help="Say on stderr how fast it was.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        min=1,
        metavar="N",
        help="Threads to compute with [default: the fast physical cores].",
        show_default=False,
    ),
]
Priority = Annotated[
    str | None,
    typer.Option(
        "--priority",
        metavar="HOW",
        help="normal, or background: let other programs go first [default: normal].",
        show_default=False,
    ),
]
KV_TYPE = "What the cache of the context keeps: f16, or q8, which takes half the memory [default: f16]."
KvType = Annotated[str, typer.Option("--kv-type", metavar="TYPE", help=KV_TYPE, show_default=False)]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="WHERE",
        help="Where to run: cpu, cuda, cuda:1, or auto: a GPU if one can be used and the model fits [default: auto].",
        show_default=False,
    ),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        min=0,
        metavar="N",
        help="Run only the last N layers on the GPU, the others on the CPU [default: all].",
        show_default=False,
    ),
]
Packed = Annotated[
    bool | None,
    typer.Option(
        "--packed/--no-packed",
        help="Take the weights from MODEL.packed, made the first time: starts at once, needs less memory "
        "[default: where the model does not fit].",
        show_default=False,
    ),
]
Text = Annotated[Path, typer.Argument(metavar="TEXT", help="A UTF-8 text file; - reads what is piped in.")]
Chunk = Annotated[int, typer.Option("--context", "-c", min=16, metavar="N", help="Tokens of a chunk.")]
Chunks = Annotated[
    int | None,
    typer.Option("--chunks", min=1, metavar="N", help="Read only the first N chunks.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Group:
    """A group of options; the ones given are the keyword arguments of a function of the API."""

    def given(self) -> dict[str, Any]:
        """The options that were given; what was not is the API's to choose."""
        return {name: value for name, value in asdict(self).items() if value not in (None, [])}


def _option(text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, **settings)


@dataclass
class Loading(Group):
    context: Annotated[
        int | None,
        _option("Tokens of context to make room for [default: at most 4096].", "--context", "-c", min=1, metavar="N"),
    ] = None
    kv_type: Annotated[str | None, _option(KV_TYPE, "--kv-type", metavar="TYPE")] = None
    threads: Threads = None
    priority: Priority = None
    device: Device = None
    gpu_layers: GpuLayers = None
    packed: Packed = None


@dataclass
class Sampling(Group):
    max_tokens: Annotated[
        int | None,
        _option("Stop after N tokens [default: when the model stops].", "--max-tokens", "-n", min=1, metavar="N"),
    ] = None
    temperature: Annotated[
        float | None,
        _option("0 takes the likeliest token [default: the file's, or 0.8].", min=0.0, metavar="X"),
    ] = None
    top_k: Annotated[int | None, _option("Only the N likeliest tokens; 0: all.", min=0, metavar="N")] = None
    top_p: Annotated[
        float | None,
        _option("Only the likeliest, X in all [default: the file's, or 0.8].", min=0.0, max=1.0, metavar="X"),
    ] = None
    min_p: Annotated[
        float | None, _option("Only tokens at least X times as likely as the likeliest.", min=0.0, max=1.0, metavar="X")
    ] = None
    repetition_penalty: Annotated[
        float | None, _option("Above 1: make tokens seen before less likely.", min=0.0, metavar="X")
    ] = None
    presence_penalty: Annotated[float | None, _option("Taken off the logits of tokens seen before.", metavar="X")] = (
        None
    )
    frequency_penalty: Annotated[float | None, _option("The same, times how often they were seen.", metavar="X")] = None
    seed: Annotated[int | None, _option("Same seed, same text [default: drawn].", min=0, metavar="N")] = None
    overflow: Annotated[
        str | None,
        _option(
            "What to do when the prompt is too long: error, or truncate (drop its beginning) [default: error].",
            "--overflow",
            metavar="WHAT",
        ),
    ] = None
    stop: Annotated[
        list[str] | None, _option("Stop where this text comes up; may be given several times.", metavar="TEXT")
    ] = None

    def check(self, likeliest: bool = False) -> None:
        """A word on options that change nothing, because the likeliest token is taken. likeliest: also by default."""
        drawing = ("top_k", "top_p", "min_p", "seed")
        given = [f"--{name.replace('_', '-')}" for name in drawing if getattr(self, name) is not None]
        if given and (self.temperature == 0 or (likeliest and self.temperature is None)):
            why = "--temperature 0" if self.temperature == 0 else "without --temperature"
            console.note(f"[{', '.join(given)}: no effect, {why} the likeliest token is taken]")


def thoughts(think: bool | None) -> dict[str, Any]:
    """The arguments of `Model.chat` for --think or --no-think. A thought is shown as the model writes it."""
    return {"reasoning": False} | ({} if think is None else {"thinking": think})


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose parameters of a group's type are spread into that group's options."""
    parameters = []
    groups = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = inspect.Parameter.KEYWORD_ONLY
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            for field in fields(parameter.annotation):
                parameters.append(inspect.Parameter(field.name, kind, default=field.default, annotation=field.type))
        else:
            parameters.append(parameter.replace(kind=kind))

    def spread(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return command(**values)

    spread.__name__ = command.__name__
    spread.__doc__ = command.__doc__
    spread.__module__ = command.__module__
    spread.__signature__ = inspect.Signature(parameters)
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def find(model: str) -> str | Path:
    """The path that a MODEL argument means, there or not; the sample model is downloaded with a word before it."""
    from .. import builtin, samples

    if os.path.exists(model):
        return model
    if model == builtin.NAME:
        return builtin.path()
    return get_sample(None) if model in samples.NAMES else model


def get_sample(folder: Path | None) -> Path:
    """The sample model's file, with a word before a download."""
    from .. import samples

    path = samples.find(folder)
    if path is None:
        console.note(f"Downloading SmolLM2-135M-Instruct (98 MB) to {folder or samples.place()}")
        path = samples.fetch(folder, verbose=True)
    return path
