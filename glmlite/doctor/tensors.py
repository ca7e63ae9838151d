"""Which tensors there are, and their shapes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

from ..errors import FormatError
from .finding import Finding, Severity, brief
from .subject import Subject

_SHOWN = 3
_INCOMPLETE = "The file does not run. It has to be downloaded or made again."


def architecture(subject: Subject) -> Iterator[Finding]:
    """The key that everything else hangs on."""
    if subject.architecture is None:
        key = "general.architecture"
        what = "missing" if key not in subject.metadata else "not a text"
        yield Finding("architecture", Severity.ERROR, key, what, "No program knows how to run the file.")


def embeddings(subject: Subject) -> Iterator[Finding]:
    """Tensors without which nothing runs."""
    for name in ("token_embd.weight", "output_norm.weight"):
        if subject.glm and name not in subject.shapes:
            yield Finding("tensor-missing", Severity.ERROR, name, "missing", _INCOMPLETE)


def output(subject: Subject) -> Iterator[Finding]:
    """The matrix of the logits, which the embeddings replace where it is missing."""
    if not subject.glm or "output.weight" in subject.shapes or "token_embd.weight" not in subject.shapes:
        return
    # Of the models that share an architecture's name only GLM-Edge ties them.
    known = subject.published
    untied = not known.tied if known else subject.row.versions and not subject.edge
    if untied and not subject.row.tied:
        yield Finding(
            "output-missing",
            Severity.ERROR,
            "output.weight",
            "missing, and no model of this kind uses its embeddings instead",
            "Programs use the embeddings and write nonsense. The file has to be made again.",
        )


def blocks(subject: Subject) -> Iterator[Finding]:
    """Each block has what the others have, in the same shapes."""
    by_part: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in subject.shapes.items():
        head, _, rest = name.partition(".")
        block, _, part = rest.partition(".")
        if head == "blk" and block.isascii() and block.isdecimal() and len(block) < 8:
            by_part[part][int(block)] = shape
    layers = subject.layers
    if layers is None or not by_part:
        return
    found = {block for where in by_part.values() for block in where}
    absent = _gaps(found, layers)
    if absent[0]:
        yield Finding(
            "tensor-missing",
            Severity.ERROR,
            f"blk.{absent[1][0]}",
            f"no tensors of {_many(absent, 'block')}, {subject.key('block_count')} says {layers}",
            _INCOMPLETE,
        )
    # Experts, and what came with other converters, differ from block to block.
    mixed = any("_exps" in part or "_inp" in part for part in by_part)
    for part, where in by_part.items():
        inside = {block: shape for block, shape in where.items() if block < layers}
        if not inside or mixed or not subject.glm:
            continue
        lacking = sorted(block for block in found if block < layers and block not in inside)
        # A part that few blocks have is one too many in those.
        if lacking and 2 * len(lacking) <= len(inside) + len(lacking):
            count = (len(lacking), lacking[:_SHOWN])
            what = f"missing; {len(inside)} other blocks have it"
            where_ = ", ".join(f"blk.{block}.{part}" for block in count[1]) + (", ..." if count[0] > _SHOWN else "")
            yield Finding("tensor-missing", Severity.ERROR, where_, what, _INCOMPLETE)
        usual, times = Counter(inside.values()).most_common(1)[0]
        for block, shape in inside.items():
            if shape != usual and times > 1:
                what = f"{shape}, in {times} other blocks {usual}"
                yield Finding("tensor-shape", Severity.ERROR, f"blk.{block}.{part}", what, _INCOMPLETE)


def _gaps(found: set[int], layers: int) -> tuple[int, list[int]]:
    """How many blocks below `layers` are not found, and the first of them."""
    first: list[int] = []
    block = 0
    while len(first) < _SHOWN and block < layers and block <= len(found) + _SHOWN:
        if block not in found:
            first.append(block)
        block += 1
    return layers - sum(block < layers for block in found), first


def _many(gaps: tuple[int, list[int]], what: str) -> str:
    count, first = gaps
    names = ", ".join(map(str, first)) + (", ..." if count > len(first) else "")
    return f"{what}{'s' if count > 1 else ''} {names}"


def model(subject: Subject, told: Collection[str]) -> Iterator[Finding]:
    """Whatever else keeps the architecture from being run. told: keys and tensors that have a finding already."""
    from ..models import ARCHITECTURES, record

    if subject.architecture not in ARCHITECTURES:
        return
    try:
        record(subject.metadata, subject.shapes)
    except FormatError as error:
        names = str(error).split("'")[1::2]
        if not any(name == item or name.startswith(f"{item}.") for name in names for item in told):
            where = next((name for name in names if "." in name), "tensors")
            kind = "tensor-shape" if where in subject.shapes else "model"
            yield Finding(kind, Severity.ERROR, brief(where), brief(str(error)), "The file does not run here.")


CHECKS = (architecture, embeddings, output, blocks)
