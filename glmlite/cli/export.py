"""`glmlite export`: a model as one file for programs without Python."""

from pathlib import Path
from typing import Annotated

import typer

from ..files import refuse_to_overwrite
from . import console, ending, options


def export(
    model: options.ModelName,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="OUT.glmlite", help="The file to write [default: MODEL.glmlite].", show_default=False
        ),
    ] = None,
    threads: options.Threads = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over OUT.glmlite if it is there.")] = False,
) -> None:
    """Write a model as one file that the C API runs, without Python; `glmlite` itself runs it, too.

    It has the weights as the engine reads them: it is mapped, so it loads at once, and processes share it.

    \b
    Examples:
      glmlite export glm-edge-1.5b-chat-q4_0.gguf
      glmlite export smollm2 -o program/model.glmlite
    """
    from ..convert.export import export as write

    out = out or Path(f"{Path(model).name.removesuffix('.gguf')}.glmlite")
    refuse_to_overwrite(out, force)
    try:
        with console.progress(f"Writing {out.name}", rate=True) as show:
            refused = write(model, out, threads=threads, progress=show).chat_refused
    except (KeyboardInterrupt, ending.Ended):
        console.note(f"glmlite: {out}: stopped, nothing is left of it")
        raise
    if refused is not None:
        console.note(f"{out}: its model continues texts, but takes no conversations: {refused}")
    console.write(f"{out}\n")
