"""Many rows through one model: a file of prompts or of requests becomes a file of answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, overload

from ..cancel import Cancel
from ..model import Model
from ..parameters import Parameters, check_integer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .asking import PromptOptions
    from .work import Cluster, Progress, Result, Summary

__all__ = ["AT_ONCE", "batch"]

AT_ONCE = 64  # rows: so many queries of a common beginning attention takes at once; others were not compared

AnyPath: TypeAlias = "str | os.PathLike[str]"


@overload
def batch(
    model: Model | AnyPath | None,
    rows: AnyPath | BinaryIO | Iterable[Mapping[str, Any] | str],
    out: None = None,
    parameters: Parameters | None = None,
    /,
    *,
    at_once: int | None = None,
    cluster: Cluster | None = None,
    ordered: bool = True,
    progress: Callable[[Progress], object] | None = None,
    cancel: Cancel | None = None,
    **options: Unpack[PromptOptions],
) -> Iterator[Result]: ...


@overload
def batch(
    model: Model | AnyPath | None,
    rows: AnyPath | BinaryIO | Iterable[Mapping[str, Any] | str],
    out: AnyPath,
    parameters: Parameters | None = None,
    /,
    *,
    at_once: int | None = None,
    cluster: Cluster | None = None,
    ordered: bool = True,
    force: bool = False,
    restart: bool = False,
    progress: Callable[[Progress], object] | None = None,
    cancel: Cancel | None = None,
    **options: Unpack[PromptOptions],
) -> Summary: ...


def batch(
    model: Model | AnyPath | None,
    rows: AnyPath | BinaryIO | Iterable[Mapping[str, Any] | str],
    out: AnyPath | None = None,
    parameters: Parameters | None = None,
    /,
    *,
    at_once: int | None = None,
    cluster: Cluster | None = None,
    ordered: bool = True,
    force: bool = False,
    restart: bool = False,
    progress: Callable[[Progress], object] | None = None,
    cancel: Cancel | None = None,
    **options: Unpack[PromptOptions],
) -> Iterator[Result] | Summary:
    """Answer many rows, many at once; what their prompts have in common is read once.

        for result in glmlite.batch(model, ["One?", "Two?"], max_tokens=20):
            print(result.number, result.error or result.answer)

        glmlite.batch("model.gguf", "in.parquet", "out.parquet", template="Label it: {{ text }}", max_tokens=5)

    model: a loaded one, or a path as `glmlite.load` takes it.
    rows: a file of JSON lines, CSV or Parquet (needs glmlite[batch]), by its ending; an open file of JSON lines; or
        mappings, or prompts.
    out: the file to write, by its ending. With it, the call returns a `Summary` when all is written; finished rows
        are kept beside it meanwhile, and after an end of whatever kind the same call goes on after them. Without it,
        the call returns at once, and results come as they are iterated.
    parameters, and among the options changes to them (max_tokens, temperature, ...): of all rows, as for `Model.chat`.
        Each row gets a seed of its own, from `seed` (by default 0) and the row's number: so its answer does not depend
        on what runs beside it.

    Options of the prompts, of which there are none unless you give them:

    column: of the prompts, each a text or a list of messages; by default "prompt", or "messages". template: or else a
        Jinja template over the columns (`row["a b"]` for a name that is none in Jinja). Rows with `custom_id` and
        `body` are requests in the form of OpenAI's batches, and so are the results.
    system: a message before each prompt. raw=True: continue texts without the chat template. image: a column of images:
        paths, from the folder of the rows on, data URLs, or bytes. tools, tool_choice, thinking, effort,
        thinking_budget: as for `Model.chat`.
    prefix: stands before the names of the columns that are added: answer, reasoning, tool_calls, finish_reason,
        prompt_tokens, completion_tokens, error.

    Of the run:

    at_once: rows that run at the same time; by default as many as the model runs, or 64 of one that is loaded here.
    cluster: a `glmlite.ray.Cluster`, whose engines answer the rows, `at_once` (64) each.
    ordered: rows come in their order; False: as they are finished.
    force: write over a file that is there. restart: give up the rows that are kept.
    progress: called with a `Progress`, ten times a second at most, by the thread that waits.
    cancel: ends it, from any thread: Cancelled.

    A row that fails has an `error`, and the others go on.

    Raises ValueError and TypeError (arguments, a column that is not there, kept rows of another run), OSError,
    FileExistsError, ModuleNotFoundError, Cancelled, Closed.
    """
    from .asking import asked_of, asking_of
    from .rows import Given, Source, source_of
    from .work import Work, check_out, into_file, load_for, results, spooled

    if at_once is not None:
        check_integer("at_once", at_once, 1)
    prompt, p = asked_of(parameters, **options)
    cancel = Cancel() if cancel is None else cancel
    if out is not None:
        check_out(Path(out), force)
    with ExitStack() as stack:
        source: Source
        if isinstance(rows, str | os.PathLike):
            source = source_of(Path(rows))
        elif out is None and not hasattr(rows, "read"):
            source = Given(rows)
        else:
            source = stack.enter_context(spooled(rows))
        if not isinstance(model, Model):
            # With a cluster it is here for its template alone: mapped, of which hardly a page is read.
            loading = {"at_once": at_once or AT_ONCE} if cluster is None else {"at_once": 1, "packed": True}
            model = stack.enter_context(load_for(model, cancel=cancel, **loading))
        asking = asking_of(model, source, prompt, p, cancel)
        most = at_once or (model.parallel if cluster is None else AT_ONCE)
        work = Work(model, source, asking, p, most, ordered, cancel, progress, cluster)
        if out is not None:
            return into_file(work, Path(out), force=force, restart=restart)
        found = results(work)
        return _with(stack.pop_all(), found)


def _with(stack: ExitStack, results: Iterator[Result]) -> Iterator[Result]:
    """Results; what they need is closed at their end."""
    with stack:
        yield from results
