"""Which tensors there are, and their shapes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ..errors import FormatError
from ..models.glm4v import TENSORS as EYES
from .finding import Finding, Severity, Split, brief
from .subject import Subject, block_of

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


def drafting(subject: Subject) -> Iterator[Finding]:
    """The last blocks may draft instead of being layers, which the keys have to say."""
    told_blocks, told = subject.count("block_count"), subject.count("nextn_predict_layers") or 0
    if not subject.glm or told_blocks is None or not subject.blocks:
        return
    found, drafts = max(subject.blocks) + 1, sorted(subject.drafts)
    names = [subject.key("block_count"), subject.key("nextn_predict_layers")]
    if subject.blocks == subject.drafts:
        what = f"missing: the file holds block {drafts[0]} alone, which drafts"
        means = "It runs only beside its model's file, in programs that take another file to draft with."
        yield Finding("drafting-only", Severity.ERROR, "blk.0", what, means)
    elif drafts and (told_blocks, told) != (found, len(drafts)) and drafts == [*range(found - len(drafts), found)]:
        what = f"{told_blocks} blocks, {told} of which draft; there are {found}, {len(drafts)} of which has what drafts"
        means = "A block that drafts is run as a layer, or a layer is left out: nonsense. Or the file is refused."
        fix = f"{names[0]} = {found}, {names[1]} = {len(drafts)}"
        changes: dict[str, Any] = {names[0]: found, names[1]: len(drafts)}
        yield Finding("drafting", Severity.ERROR, ", ".join(names), what, means, fix, changes)
    elif told and not drafts:
        # Blocks that are not there are no fault of the model; one too few run are.
        lost = found == told_blocks - told
        # A block that was one to draft with, and has lost what only such a block has, is run as no layer.
        spent = found == told_blocks and subject.published is not None
        known = lost or (not spent and found == told_blocks and subject.recognised(found) is not None)
        what = f"{told_blocks} blocks, {told} of which draft; there are {found}, none of which has what drafts"
        harmless = lost or spent
        means = "Programs that expect a drafting layer fail." if harmless else "A layer is left out: nonsense."
        fix = f"{names[0]} = {found}, without {names[1]}" if known else None
        changes = {names[0]: found, names[1]: None} if known else {}
        severity = Severity.WARNING if harmless else Severity.ERROR
        yield Finding("drafting", severity, ", ".join(names), what, means, fix, changes)
    elif not drafts and found > told_blocks:
        whole = len(subject.blocks) == found
        what = f"{told_blocks} blocks; there are {found}, none of which has what drafts"
        means = "The last layers are left out: nonsense. Or the file is refused."
        fix = f"{names[0]} = {found}" if whole else None
        yield Finding("drafting", Severity.ERROR, names[0], what, means, fix, {names[0]: found} if whole else {})
    elif not drafts and found == told_blocks and not subject.published and subject.recognised(found - 1):
        what = f"no block drafts, of {found}; the model has {found - 1} layers, and a block that drafts"
        means = "A block that drafts is run as a layer: nonsense."
        yield Finding("drafting", Severity.ERROR, names[1], what, means, f"{names[1]} = 1", {names[1]: 1})


def latent(subject: Subject) -> Iterator[Finding]:
    """GLM-4.7-Flash's matrices from and to the latent stand apart, those of the keys transposed."""
    both = [name for name in subject.shapes if name.startswith("blk.") and name.endswith(".attn_kv_b.weight")]
    if not both or not subject.glm:
        return
    # One of the two beside it: which of them is right cannot be seen.
    halves = [{name.replace("attn_kv_b", part) in subject.shapes for part in ("attn_k_b", "attn_v_b")} for name in both]
    split = None if {True, False} in halves else _split(subject, both)
    fix, changes = None, {}
    if split is not None:
        turned = subject.count("rope.dimension_count") or 0
        needed = [name for name in both if name.replace("attn_kv_b", "attn_k_b") not in subject.shapes]
        fix = "they are taken apart; keys of block formats become F16" if needed else "they are left out"
        sizes = {
            "head_count_kv": 1,
            "key_length": split.columns + turned,
            "value_length": split.columns,
            "key_length_mla": split.keys + turned,
            "value_length_mla": split.values,
        }
        changes = {subject.key(f"attention.{name}"): size for name, size in sizes.items()}
    yield Finding(
        "kv-b",
        Severity.ERROR,
        both[0],
        f"keys and values of the latent in one matrix, in {len(both)} blocks, should be attn_k_b and attn_v_b",
        "The file does not run here, and slowly or not at all in other programs.",
        fix,
        changes,
        {name: split._replace(needed=name in needed) for name in both} if split is not None else {},
    )


def _split(subject: Subject, both: list[str]) -> Split | None:
    """How the matrices are taken apart, by what the others of the block say; None if they do not fit together."""
    block = both[0].removesuffix("attn_kv_b.weight")
    heads, turned = subject.count("attention.head_count"), subject.count("rope.dimension_count")
    shapes = {subject.shapes[name] for name in both}
    q_b, output = (subject.shapes.get(f"{block}attn_{name}.weight", ()) for name in ("q_b", "output"))
    if not heads or turned is None or len(shapes) != 1 or len(q_b) != 2 or len(output) != 2:
        return None
    rows, *columns = shapes.pop()
    keys, values = q_b[0] // heads - turned, output[1] // heads
    fits = len(columns) == 1 and rows == heads * (keys + values) and keys > 0 and values > 0
    return Split(heads, keys, values, columns[0], True) if fits else None


def blocks(subject: Subject) -> Iterator[Finding]:
    """Each block has what the others have, in the same shapes."""
    by_part: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in subject.shapes.items():
        if (place := block_of(name)) is not None:
            by_part[place[1]][place[0]] = shape
    layers, found = subject.layers, subject.blocks
    if layers is None or not by_part or found == subject.drafts:
        return
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
    """Whatever else keeps the architecture from being run, or its drafting layer. told: keys and tensors that have a
    finding already."""
    from ..models import ARCHITECTURES, draft, record

    if subject.architecture not in ARCHITECTURES:
        return
    severity, means = Severity.ERROR, "The file does not run here."
    try:
        record(subject.metadata, subject.shapes)
        severity, means = Severity.WARNING, "Programs that draft refuse the file; without drafting it runs."
        draft(subject.metadata, subject.shapes)
    except FormatError as error:
        names = str(error).split("'")[1::2]
        if not any(name == item or name.startswith(f"{item}.") for name in names for item in told):
            where = next((name for name in names if "." in name), "tensors")
            missing = block_of(where) is not None or where.endswith((".weight", ".bias"))
            kind = "tensor-shape" if where in subject.shapes else "tensor-missing" if missing else "model"
            yield Finding(kind, severity, brief(where), brief(str(error)), means)


def kernels(subject: Subject, tensors: Iterable[Any]) -> Iterator[Finding]:
    """Types that the engine does not multiply with, of what the model is loaded from: `_native.TensorInfo`s."""
    from ..models import ARCHITECTURES

    layers = subject.layers if subject.architecture in ARCHITECTURES else None

    def used(name: str) -> bool:
        if subject.sees and name.startswith(EYES):
            return True
        return layers is not None and ((place := block_of(name)) is None or place[0] < layers)

    if unsupported := [tensor for tensor in tensors if not tensor.supported and used(tensor.name)]:
        types = ", ".join(sorted({tensor.type for tensor in unsupported}))
        what = f"{types}, which there is nothing here to run, of {len(unsupported)} tensors"
        means = "The file does not run here; programs that know the type may run it."
        yield Finding("model", Severity.ERROR, brief(unsupported[0].name), what, means)


CHECKS = (architecture, embeddings, output, latent, blocks)
