"""Options that several commands share, once each."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..options import Device, GpuLayers, Group, KvType, Loading, Option, Packed, Serving, Threads
from . import console

__all__ = ["Device", "GpuLayers", "KvType", "Loading", "Packed", "Serving", "Threads"]

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
Text = Annotated[Path, typer.Argument(metavar="TEXT", help="A UTF-8 text file; - reads what is piped in.")]
Chunk = Annotated[int, typer.Option("--context", "-c", min=16, metavar="N", help="Tokens of a chunk.")]
Chunks = Annotated[
    int | None,
    typer.Option("--chunks", min=1, metavar="N", help="Read only the first N chunks.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _option(text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, **settings)


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
    seed: Annotated[int | None, _option("Same seed, same text [default: drawn; batch: 0].", min=0, metavar="N")] = None
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
    parameters = [p.replace(annotation=_for_typer(p.annotation, p.default)) for p in parameters]

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


def _for_typer(annotation: Any, default: Any) -> Any:
    """An annotation with typer's option in the place of ours."""
    kind, *rest = get_args(annotation)
    if not rest or not isinstance(rest[0], Option):
        return annotation
    option: Option = rest[0]
    shown = default is not None and "[default" not in option.help
    bounds = {name: value for name in ("min", "max") if (value := getattr(option, name)) is not None}
    given = typer.Option(*option.names, help=option.help, metavar=option.metavar, show_default=shown, **bounds)
    return Annotated[kind, given]


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
