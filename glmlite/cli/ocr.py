"""`glmlite ocr`: documents to Markdown."""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import Loading, Option
from . import console, ending, running


@dataclass
class Reading(Loading):
    """Arguments of `glmlite.load`, of which the context has a whole page at 150 dpi and a long answer."""

    context: Annotated[int, Option("Tokens of context to make room for.", ("--context", "-c"), "N", min=1)] = 8192


def ocr(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="PDF, PNG, JPEG, TIFF, WebP; of a folder, the documents in it."),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL.gguf", help="A vision model, as GLM-OCR.", show_default=False)
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.md",
            help="The file to write; a folder (NAME/ makes one): a file in it for each document [default: print].",
            show_default=False,
        ),
    ] = None,
    pages: Annotated[
        str | None,
        typer.Option(metavar="3-7", help="Which pages: 5, 3-7, or 1,4,9- [default: all].", show_default=False),
    ] = None,
    dpi: Annotated[
        float | None,
        typer.Option(metavar="N", help="How finely pages are rendered [default: 150].", show_default=False),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="90 dpi: much quicker, and good enough for large print.")
    ] = False,
    task: Annotated[
        str, typer.Option(metavar="WHAT", help="text, or all of a page as one table or formula: table, formula.")
    ] = "text",
    fields: Annotated[
        Path | None,
        typer.Option(
            metavar="CARD.json",
            help='What to extract: a JSON object with empty values, {"name": "", "total": 0}.',
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each page: text, blocks, seconds, error.")
    ] = False,
    text_layer: Annotated[
        bool, typer.Option("--text-layer", help="Take the text that a PDF has of its own, where it has any.")
    ] = False,
    cut: Annotated[
        bool | None,
        typer.Option(
            "--cut/--no-cut",
            help="Read a page in blocks (columns first, ruled tables as tables), or whole, which is slower "
            "[default: blocks, for text].",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Tokens that a block may have.")
    ] = 8192,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over OUT.md if it is there.")] = False,
    loading: Reading = Reading(),  # noqa: B008
) -> None:
    """Read documents: text as Markdown, tables as HTML, formulas as LaTeX.

    Nothing leaves the machine. With -o, finished pages are kept beside the file while it is being made: stop it with
    Ctrl-C, or let the machine go down, and the same command goes on after the last finished page. A page that cannot
    be read is named, in the file too, and the others follow.

    --fields asks for what you name, and writes a line of JSON for each page; it needs glmlite[grammar].

    \b
    Examples:
      glmlite ocr scan.pdf -m glm-ocr.gguf -o scan.md
      glmlite ocr scan.pdf -m glm-ocr.gguf --pages 3-7 --fast
      glmlite ocr letters/ receipt.jpg -m glm-ocr.gguf -o texts/
      glmlite ocr table.png -m glm-ocr.gguf --task table
      glmlite ocr cards/ -m glm-ocr.gguf --fields card.json > cards.jsonl
      glmlite ocr report.pdf -m glm-ocr.gguf --text-layer --json
    """
    from ..ocr import sources_of
    from ..ocr.reading import DPI, FAST_DPI

    if fast and dpi is not None:
        raise typer.BadParameter(f"--fast is --dpi {FAST_DPI}: give one of them")
    wanted = None if fields is None else running.object_at(fields, 'an object with empty values, {"name": ""}')
    lines = as_json or wanted is not None
    sources = sources_of(files)
    targets = _targets(sources, out, ".jsonl" if lines else ".md", force)
    asked: dict[str, Any] = {
        "pages": pages,
        "dpi": FAST_DPI if fast else DPI if dpi is None else dpi,
        "task": task,
        "fields": wanted,
        "cut": cut,
        "text_layer": text_layer,
        "max_tokens": max_tokens,
    }
    computing = {"context": loading.context, "kv_type": loading.kv_type, "device": loading.device}
    journals: list[Any] = []
    with running.opened(model, loading) as opened:
        failed = False
        try:
            for target, documents in targets:
                write = _as_lines if lines else _as_markdown
                failed = _read(opened, documents, target, asked, computing, write, force, journals) or failed
        except (KeyboardInterrupt, ending.Ended, OSError):
            if count := sum(len(journal.pages) for journal in journals):
                console.note(f"[{count} finished pages are kept; the same command goes on after them]")
            raise
    for journal in journals:
        journal.remove()
    raise typer.Exit(1 if failed else 0)


def _read(
    model: Any,
    sources: Any,
    target: Path | None,
    asked: dict[str, Any],
    computing: dict[str, Any],
    write: Any,
    force: bool,
    journals: list[Any],
) -> bool:
    """Reads documents into one target; whether a page failed."""
    from ..files import refuse_to_overwrite, replacing
    from ..ocr import key_of, read

    found: dict[tuple[int, int], Any] = {}
    several = len(sources) > 1
    plain = asked["task"] == "text" and asked["fields"] is None
    layered = 0
    with _progress() as progress:
        kept: dict[tuple[int, int], Any] = {}
        reading = read(
            model, sources, skip=lambda document, number: (document, number) in kept, on_progress=progress, **asked
        )
        key = "" if target is None else key_of([_digest(source) for source in sources], [asked, computing], model)
        with closing(reading), _journal(target, key, journals) as journal:
            if target is not None:
                if journal.written and target.exists() and not force:
                    console.note(f"[{target} is there from before]")
                    return bool(journal.failed)
                refuse_to_overwrite(target, force)
                kept.update(journal.pages)
                found.update(journal.pages)
                _say_kept(journal)
            for page in reading:
                found[page.document, page.number] = page
                layered += bool(page.characters) and not page.layer and plain
                if target is None:
                    console.write(write(page, several))
                elif page.error is None:
                    journal.add(page)
                _say(page)
            failed = any(page.error is not None for page in found.values())
            if target is not None and any(page.number for page in found.values()):
                journal.end(failed)
                with replacing(target) as file:
                    for _, page in sorted(found.items()):
                        file.write(write(page, several).encode("utf-8", "replace"))  # a file's name may be no UTF-8
    if layered:
        console.note(f"[pages that have text of their own: {layered}; --text-layer takes it without reading them]")
    if target is not None and any(page.number for page in found.values()):
        console.write(f"{target}\n")
    return failed


@contextmanager
def _journal(target: Path | None, key: str, journals: list[Any]) -> Iterator[Any]:
    """A target's journal, which is one of `journals` afterwards if there is something in it; None without a target."""
    from ..ocr import Journal

    if target is None:
        yield None
        return
    journal = Journal(target, key)
    journals.append(journal)
    try:
        yield journal
    finally:
        if journal.pages or journal.written:
            journal.close()
        else:
            journals.remove(journal)
            journal.remove()


def _targets(sources: Any, out: str | None, ending: str, force: bool) -> list[tuple[Path | None, list[Any]]]:
    """What goes into which file."""
    from ..files import refuse_to_overwrite
    from ..ocr import was_written

    if out is None:
        return [(None, sources)]
    if not out:  # which would be the folder that one is in
        raise ValueError("--out: an empty name, expected a file or a folder")
    folder = Path(out)
    targets: list[tuple[Path, list[Any]]] = [(folder, sources)]
    if folder.is_dir() or out.endswith(("/", os.sep)):
        folder.mkdir(parents=True, exist_ok=True)
        stems = [Path(source.name).stem.lower() for source in sources]
        names = [Path(source.name) for source in sources]
        # The ending tells a.pdf from a.png.
        plain = [name.stem if stems.count(name.stem.lower()) == 1 else name.name for name in names]
        targets = [(folder / (name + ending), [source]) for name, source in zip(plain, sources)]
        first: dict[Path, str] = {}
        for target, (source,) in targets:
            if (other := first.setdefault(target, source.name)) is not source.name:
                raise ValueError(f"{target}: is the file of {other} and of {source.name}, expected different names")
    read = [source.value for source in sources if isinstance(source.value, Path) and source.value.exists()]
    for target, _ in targets:
        if not target.parent.is_dir():
            raise ValueError(f"{out}: there is no folder {target.parent}, expected one that is there")
        if target.exists() and any(target.samefile(path) for path in read):
            raise ValueError(f"{target}: is a document to read, expected another file to write")
        refuse_to_overwrite(target, force or was_written(target))
    return list(targets)


def _say_kept(journal: Any) -> None:
    if journal.stale:
        console.note(f"[{journal.path}: kept pages are of other files, options or another model; begun anew]")
    elif journal.pages:
        console.note(f"[{len(journal.pages)} pages are kept from before: {journal.path}]")


def _digest(source: Any) -> str:
    try:
        return str(source.digest())
    except (OSError, ValueError) as error:  # the page that stands for the document says so
        return type(error).__name__


@contextmanager
def _progress() -> Iterator[Any]:
    """What shows `Doing` as a bar: page 3 of 12, reading 40 %."""
    with console.progress("page 1, rendering") as show:
        yield lambda doing: show(doing.done + doing.fraction / 2, doing.total, str(doing))


def _say(page: Any) -> None:
    """A line on stderr for each page, and for what went wrong with it."""
    where = " ".join(page.source.split()) + (f", page {page.number} of {page.pages}" if page.pages > 1 else "")
    if page.error is not None:
        console.note(f"glmlite: {page.error}")
        return
    for note in page.notes:
        console.note(f"[{where}: {note}]")
    s = page.seconds
    how = "its own text" if page.layer else f"blocks {len(page.blocks)}, tokens {page.tokens}"
    console.note(f"{where}: {how}; render {s.render:.1f} s, cut {s.cut:.1f}, read {s.read:.1f}, write {s.write:.1f}")


def _as_markdown(page: Any, several: bool) -> str:
    """A page's text under a comment that says which page it is; a document of one page has none."""
    if page.pages == 1 and not several and page.error is None:
        return f"{page.text}\n"
    at = f"page {page.number}" if page.number else "not read"
    said = f"{f'{page.source}, ' if several else ''}{at}{'' if page.error is None else f': {page.error}'}"
    # The name of a file must not end the comment.
    said = " ".join(said.split()).replace("--", "- -").replace(">", "&gt;")
    return f"<!-- {said} -->\n\n" + (f"{page.text}\n\n" if page.text else "")


def _as_lines(page: Any, several: bool) -> str:
    return json.dumps(page.as_dict() | {"tokens": page.tokens}, ensure_ascii=False) + "\n"
