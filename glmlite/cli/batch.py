"""`glmlite batch`: many prompts, one file of answers."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import builtin
from ..options import Loading, Option
from . import console, ending, running
from .options import Sampling, Think


@dataclass
class Running(Loading):
    """Arguments of `glmlite.bulk.work.load_for`."""

    kv_tokens: Annotated[
        int | None,
        Option("Room of the cache, for all rows at once together [default: 1024 for each].", metavar="N", min=1),
    ] = None


def _text(text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, **settings)


def batch(
    rows: Annotated[
        Path,
        typer.Argument(metavar="IN", help="A file of rows: .jsonl, .csv or .parquet; - reads JSON lines from a pipe."),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]", help="The file to write, by its ending [default: print JSON lines].", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="A GGUF file, smollm2 or builtin.")
    ] = builtin.NAME,
    column: Annotated[
        str | None,
        _text("The column of the prompts: texts, or lists of messages [default: prompt, or messages].", metavar="NAME"),
    ] = None,
    template: Annotated[
        str | None,
        _text("A prompt over the columns, in Jinja; @FILE reads it from one.", metavar="TEXT"),
    ] = None,
    system: Annotated[str | None, _text("System message of all rows.", metavar="TEXT")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompts as they stand, without chat template.")
    ] = False,
    image: Annotated[str | None, _text("The column of an image: a path, a data URL, bytes.", metavar="NAME")] = None,
    schema: Annotated[Path | None, _text("A JSON schema that the answers follow.", metavar="FILE")] = None,
    tools: Annotated[
        Path | None, _text("Tools that may be called: JSON, in the form of OpenAI's API.", metavar="FILE")
    ] = None,
    think: Think = None,
    prefix: Annotated[str, _text("Stands before the names of the columns that are added.", metavar="TEXT")] = "",
    at_once: Annotated[
        int | None, _text("Rows that run at the same time [default: 64].", "--at-once", min=1, metavar="N")
    ] = None,
    ray: Annotated[
        str | None,
        _text("Have a Ray cluster answer; auto: the one that this machine is part of.", "--ray", metavar="ADDRESS"),
    ] = None,
    actors: Annotated[
        int | None, _text("With --ray: engines [default: as many as there is room for].", min=1, metavar="N")
    ] = None,
    actor_cpus: Annotated[
        float | None, _text("With --ray: CPUs of an engine [default: a node's].", min=0.1, metavar="N")
    ] = None,
    actor_gpus: Annotated[float, _text("With --ray: GPUs of an engine [default: none].", min=0, metavar="N")] = 0,
    as_completed: Annotated[
        bool, typer.Option("--as-completed", help="Write rows as they are finished, not in their order.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew: give up rows that are kept.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over OUT if it is there.")] = False,
    loading: Running = Running(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
) -> None:
    """Answer many prompts: the rows of a file, many at once.

    Each row is a prompt, by --column or --template, or a request in the form of OpenAI's batches. The answers stand
    beside the columns of the row, in new ones: answer, reasoning, tool_calls, finish_reason, prompt_tokens,
    completion_tokens, error. What prompts have in common is read once.

    With OUT, finished rows are kept beside it: stop it with Ctrl-C, or let the machine go down, and the same command
    goes on after them; OUT is then the same, byte for byte. A row that fails has its error, and the others go on; the
    exit code is 1 then.

    \b
    Examples:
      glmlite batch prompts.jsonl answers.jsonl -m smollm2 -n 100
      glmlite batch reviews.csv labelled.csv -m model.gguf -n 5 --template "Is this positive? {{ text }}"
      glmlite batch reviews.csv labelled.csv -m model.gguf -n 5 --template @prompt.txt
      glmlite batch corpus.parquet english.parquet -m model.gguf --column zh --system "Translate into English."
      glmlite batch requests.jsonl answers.jsonl -m model.gguf        (in the form of OpenAI's batches)
      glmlite batch scans.csv cards.jsonl -m glm-4.1v.gguf --column question --image file --schema card.json
      glmlite batch corpus.parquet english.parquet -m model.gguf --column zh --ray auto
      cat prompts.jsonl | glmlite batch - -m model.gguf | jq .answer
    """
    import glmlite

    from ..bulk import AT_ONCE
    from ..bulk.asking import asked_of
    from ..bulk.rows import source_of
    from ..bulk.work import check_out, load_for
    from ..bulk.writing import line_of

    if column is not None and template is not None:
        raise typer.BadParameter("--column and --template, expected one of them")
    if ray is None and (actors is not None or actor_cpus is not None or actor_gpus):
        raise typer.BadParameter("--actors, --actor-cpus and --actor-gpus are for --ray, expected that, too")
    sampling.check()
    given: Any = sys.stdin.buffer if str(rows) == "-" else rows
    # What is wrong is said before the model is loaded: of the files here, of the options below.
    if given is rows:
        source_of(rows)
    if out is not None:
        check_out(out, force)
    asked: dict[str, Any] = {
        "column": column,
        "template": running.text_at(Path(template[1:])) if template and template[0] == "@" else template,
        "system": system,
        "raw": raw,
        "image": image,
        "schema": None if schema is None else running.object_at(schema),
        "tools": None if tools is None else _tools(tools),
        "thinking": think,
        "prefix": prefix,
        **sampling.given(),
    }
    asked_of(None, **asked)
    asked["ordered"] = not as_completed
    load = partial(load_for, at_once=at_once or AT_ONCE)
    if ray is not None:
        from ..ray import Cluster

        asked["cluster"] = Cluster(ray, None, actors, actor_cpus, actor_gpus, loading.given())
        asked["at_once"] = at_once or AT_ONCE
        loading = replace(loading, packed=True)  # here it is for its template alone: mapped
        load = partial(load_for, at_once=1)
    failed, error, notes = 0, None, []
    with running.opened(model, loading, load=load) as opened, _progress() as progress:
        if out is None:
            for result in glmlite.batch(opened, given, **asked, progress=progress):
                console.write(line_of(result.values))
                if result.error is not None:
                    failed, error = failed + 1, error or result.error
        else:
            try:
                done = glmlite.batch(opened, given, out, **asked, force=force, restart=restart, progress=progress)
            except BaseException as ended_by:
                _say_kept(out, ended_by)
                raise
            failed, error = done.failed, done.error
            notes.append(str(done))
    for note in notes:
        console.note(note)
    if error is not None:
        more = "" if failed == 1 else f"; {failed - 1:,} more rows failed"
        console.note(f"glmlite: {error}{more}")
    raise typer.Exit(1 if failed else 0)


def _tools(path: Path) -> Any:
    found = running.json_at(path)
    return found if isinstance(found, list) else [found]


def _say_kept(out: Path, ended_by: BaseException) -> None:
    from ..bulk.work import journal_path

    kept = journal_path(out)
    if isinstance(ended_by, KeyboardInterrupt | ending.Ended) and kept.exists():
        with open(kept, "rb") as file:
            count = sum(1 for _ in file) - 1
        console.note(f"[{count:,} finished rows are kept; the same command goes on after them]")


@contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    """What shows `glmlite.bulk` how far a run is: the bar is of the rows that were not kept from before."""
    with console.progress("rows") as show:
        yield lambda p: show(p.done - p.kept, max(p.total - p.kept, 1), str(p))
