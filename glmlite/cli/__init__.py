"""The commands: thin users of the public API. `main` is what `glmlite` and `python -m glmlite` run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .. import ending
from . import console

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 (failed, one line on stderr says why), 2 (usage), 130 (Ctrl-C),
    128 + the number of the signal that told it to end."""
    try:
        console.prepare()
        with ending.told():
            return _run(list(sys.argv[1:] if argv is None else argv) or ["--help"])
    except KeyboardInterrupt:
        return 130
    except ending.Ended as ended:
        return 128 + ended.number
    except BrokenPipeError:
        # The reader has gone (`| head`). Nothing may be written at exit either, or Python complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, ValueError, RuntimeError, MemoryError) as error:
        console.error(error)
        return 1


def _run(args: list[str]) -> int:
    try:
        import typer
    except ModuleNotFoundError as error:
        raise ImportError(f"the commands need {error.name}: pip install 'glmlite[cli]'") from None

    from .app import app

    usage_error = typer.BadParameter.__base__  # click's UsageError, wherever this version of typer has click
    try:
        return int(typer.main.get_command(app).main(args=args, prog_name="glmlite", standalone_mode=False) or 0)
    except usage_error as error:
        where = f"glmlite {error.ctx.info_name}" if error.ctx and error.ctx.parent else "glmlite"
        message = " ".join(error.format_message().split())
        if "unexpected extra argument" in message:
            message += " a text of several words stands in quotes"
        console.note(f"{where}: {message} ({where} --help shows how)")
        return 2
    except typer.Abort:
        return 130
