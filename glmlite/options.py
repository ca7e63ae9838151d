"""Options of programs that load and serve models, each said once for the two parsers that read them: the commands' one,
and argparse, which needs nothing installed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

__all__ = [
    "Device",
    "GpuLayers",
    "Group",
    "KvType",
    "Loading",
    "Mmproj",
    "Option",
    "Packed",
    "Priority",
    "Serving",
    "Threads",
    "options_of",
]


class Option(NamedTuple):
    """How an option is given. names: if not the field's name; "--yes/--no" is a switch. min, max: of a number."""

    help: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    min: float | None = None
    max: float | None = None


class Group:
    """A group of options; the ones given are the keyword arguments of a function of the API."""

    def given(self) -> dict[str, Any]:
        """The options that were given; what was not is the API's to choose."""
        return {name: value for name, value in asdict(self).items() if value not in (None, [])}  # type: ignore[call-overload]


def options_of(group: type[Any]) -> Iterator[tuple[str, Any, Option, Any]]:
    """(name, type, option, default) of each option of a group."""
    for field in fields(group):
        kind, option = get_args(field.type)
        yield field.name, kind, option, field.default


KV_TYPE = Option(
    "What the cache of the context keeps: f16, or q8, which takes half the memory [default: f16].",
    ("--kv-type",),
    "TYPE",
)
Threads = Annotated[
    int | None,
    Option("Threads to compute with [default: the fast physical cores].", ("--threads", "-t"), "N", min=1),
]
Priority = Annotated[
    str | None,
    Option("normal, or background: let other programs go first [default: normal].", ("--priority",), "HOW"),
]
KvType = Annotated[str, KV_TYPE]
Device = Annotated[
    str | None,
    Option(
        "Where to run: cpu, cuda, cuda:1, or auto: a GPU if one can be used and the model fits [default: auto].",
        ("--device",),
        "WHERE",
    ),
]
GpuLayers = Annotated[
    int | None,
    Option(
        "Run only the last N layers on the GPU, the others on the CPU [default: all].", ("--gpu-layers",), "N", min=0
    ),
]
Packed = Annotated[
    bool | None,
    Option(
        "Take the weights from MODEL.packed, made the first time: starts at once, needs less memory "
        "[default: where the model does not fit].",
        ("--packed/--no-packed",),
    ),
]
Mmproj = Annotated[
    Path | None,
    Option("The eyes of a vision model [default: MODEL itself, or mmproj*.gguf beside it].", ("--mmproj",), "FILE"),
]


@dataclass
class Loading(Group):
    """Arguments of `glmlite.load`."""

    context: Annotated[
        int | None,
        Option("Tokens of context to make room for [default: at most 4096].", ("--context", "-c"), "N", min=1),
    ] = None
    kv_type: Annotated[str | None, KV_TYPE] = None
    threads: Threads = None
    priority: Priority = None
    device: Device = None
    gpu_layers: GpuLayers = None
    packed: Packed = None
    mmproj: Mmproj = None


@dataclass
class Serving(Group):
    """How models are served."""

    models: Annotated[
        Path | None, Option("Serve every .gguf file below DIR, loaded when it is asked for.", metavar="DIR")
    ] = None
    host: Annotated[str, Option("Where to listen; 0.0.0.0: everywhere.", metavar="NAME")] = "127.0.0.1"
    port: Annotated[
        int | None, Option("0: a free one [default: 8080; with --sidecar: 0].", metavar="N", min=0, max=65535)
    ] = None
    api_key: Annotated[
        list[str] | None,
        Option("Ask for this key; several may be given [default: $GLMLITE_API_KEY].", metavar="KEY"),
    ] = None
    parallel: Annotated[int, Option("Requests that run at the same time.", metavar="N", min=1)] = 4
    queue: Annotated[int, Option("Requests that wait beside them; more get 429.", metavar="N", min=0)] = 64
    per_key: Annotated[
        int | None, Option("Requests at once with one key [default: any number].", metavar="N", min=1)
    ] = None
    timeout: Annotated[float, Option("The longest answer.", metavar="SECONDS", min=1)] = 3600
    idle: Annotated[
        float | None,
        Option(
            "Give back the memory of a model that nobody used for so long; it is loaded again when it is asked for "
            "[default: with --models 300, otherwise never].",
            metavar="SECONDS",
            min=1,
        ),
    ] = None
    kv_tokens: Annotated[
        int | None,
        Option(
            "Room of the cache, for all requests together [default: --context for each of --parallel].",
            metavar="N",
            min=1,
        ),
    ] = None
    cors: Annotated[list[str] | None, Option("Let web pages of this origin use it; *: all.", metavar="ORIGIN")] = None
    allow_host: Annotated[
        list[str] | None, Option("Another name that clients call this machine by; *: any.", metavar="NAME")
    ] = None
    strict_model: Annotated[bool, Option("404 for a model name that is not the model's.", ("--strict-model",))] = False
    keep_thinking: Annotated[
        bool, Option("Show a model that can keep them the thoughts of earlier rounds.", ("--keep-thinking",))
    ] = False
    stdio: Annotated[
        bool, Option("No network: requests, answers and events are lines of JSON on stdin and stdout.", ("--stdio",))
    ] = False
    sidecar: Annotated[
        bool,
        Option(
            "For a program that starts this one: events are lines of JSON on stdout; ends with stdin.", ("--sidecar",)
        ),
    ] = False
