"""Constants of the model that its tensors do not show: eps, RoPE, the experts' router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import families
from .finding import Finding, Severity, brief
from .subject import Subject

_LARGEST_EPS = 1e-3
_CLOSE = 1e-4  # of a f32 and what was rounded on the way to it


def eps(subject: Subject) -> Iterator[Finding]:
    """The constant of the norms."""
    if not subject.glm:
        return
    name = "attention.layer_norm_epsilon" if subject.row.layer_norm else "attention.layer_norm_rms_epsilon"
    value = subject.metadata.get(subject.key(name))
    told = subject.number(name)
    right = subject.published.eps if subject.published else None
    if value is None:
        what, severity = "missing", Severity.ERROR
    elif told is None or not 0 < told <= _LARGEST_EPS:
        what, severity = f"{brief(value)}, no eps", Severity.ERROR
    elif right is not None and abs(told - right) > _CLOSE * right:
        what, severity = f"{told:.6g}", Severity.WARNING
    else:
        return
    yield _wrong(
        subject, "eps", severity, name, what, right, "Every norm is a little off, more so where activations are small."
    )


def rotary_part(subject: Subject) -> Iterator[Finding]:
    """How many columns of a head RoPE turns."""
    right = _rotated(subject)
    if right is None:
        return
    name = "rope.dimension_count"
    value = subject.metadata.get(subject.key(name))
    if value is None and right == subject.head_dim:
        return  # what its absence means
    if subject.count(name) != right:
        what = f"missing, which means all {subject.head_dim}" if value is None else brief(value)
        means = "Words lose their order: the text falls apart after a few tokens."
        yield _wrong(subject, "rotary-part", Severity.ERROR, name, what, right, means)


def _rotated(subject: Subject) -> int | None:
    """Columns that turn, as far as it can be known without the file's word."""
    sections = subject.metadata.get(subject.key("rope.dimension_sections"))
    if subject.row.half_rope and isinstance(sections, np.ndarray) and sections.dtype.kind in "iu":
        pairs = int(sections[:4].astype(np.int64).clip(0, 1 << 16).sum())  # of a vision model
        if pairs:
            return 2 * pairs
    if subject.published is not None:
        return subject.published.rope_dim
    half = subject.row.half_rope and not subject.edge  # which turns all
    return subject.head_dim // 2 if half and subject.head_dim else None


def rope_base(subject: Subject) -> Iterator[Finding]:
    """The base of RoPE, and what is done for a long context."""
    model = subject.published
    if model is None or model.rope_dim is None:
        return
    name = "rope.freq_base"
    base = subject.number(name) if subject.key(name) in subject.metadata else 1e4
    context = subject.count("context_length")
    scaling = "none"
    if (key := subject.key("rope.scaling.type")) in subject.metadata:
        scaling = subject.text(key)  # None for what is no text
    right = model.bases.get(context or 0, model.base)
    means = "The text falls apart, at once or when it gets long."
    if right is not None and scaling == "none" and (base is None or abs(base - right) > _CLOSE * right):
        value = subject.metadata.get(subject.key(name))
        what = "missing, which means 10000" if value is None else brief(value)
        yield _wrong(subject, "rope-base", Severity.ERROR, name, what, right, means)
        return
    if scaling == "none" and base == 1e4 and model.context and (context or 0) > model.context:
        yield Finding(
            "rope-long",
            Severity.WARNING,
            subject.key("context_length"),
            f"{context}, but base 10000 without scaling reaches {model.context} tokens",
            f"Text falls apart beyond {model.context} tokens; load it with a shorter context.",
        )
    name = "rope.scaling.original_context_length"
    if scaling == "yarn" and model.context and subject.metadata.get(subject.key(name)) is None:
        means = "Programs refuse the file or stretch the wrong frequencies."
        yield _wrong(subject, "rope-long", Severity.ERROR, name, "missing", model.context, means)


def router(subject: Subject) -> Iterator[Finding]:
    """GLM's experts are chosen by sigmoid, their weights normalised and scaled."""
    if not subject.row.experts or not subject.glm:
        return
    name, right = "expert_gating_func", families.SIGMOID
    value = subject.metadata.get(subject.key(name))
    matrix = next((key for key in subject.metadata if key.startswith("quantize.imatrix.")), None)
    # Programs took softmax for what other makers' models, of the same architecture, do not say.
    if matrix is not None and subject.row.glm == "by vocabulary" and subject.count(name) != right:
        yield Finding(
            "imatrix-gating",
            Severity.WARNING,
            matrix,
            "quantized with an importance matrix, and nothing says that experts are chosen by sigmoid",
            "If the matrix was made with experts chosen by softmax (before 21 January 2026), it weights the wrong "
            "columns and answers are worse. A newer file is better.",
        )
    if value is None:
        means = "Programs that do not know the model better take softmax and give worse answers."
        yield _wrong(subject, "gating", Severity.WARNING, name, "missing", right, means, "2, sigmoid")
    elif subject.count(name) != right:
        what = "1, softmax" if subject.count(name) == 1 else brief(value)
        means = "The wrong experts answer, with the wrong weights: loops and nonsense; an imatrix made so is wrong too."
        yield _wrong(subject, "gating", Severity.ERROR, name, what, right, means, "2, sigmoid")
    name = "expert_weights_norm"
    value = subject.metadata.get(subject.key(name))
    if value is not True:
        means = "The experts' share of the answer has the wrong size."
        what = "missing, which means false" if value is None else brief(value)
        yield _wrong(subject, "expert-weights", Severity.ERROR, name, what, True, means, "true")
    name = "expert_weights_scale"
    scale = subject.published.scale if subject.published else None
    value, told = subject.metadata.get(subject.key(name)), subject.number(name)
    if value is None or told is None or (scale is not None and abs(told - scale) > _CLOSE):
        means = "The experts' share of the answer has the wrong size."
        what = "missing, which some programs take for 1" if value is None else brief(value)
        severity = Severity.WARNING if value is None and scale == 1 else Severity.ERROR
        yield _wrong(subject, "expert-weights", severity, name, what, scale, means)
    routers = {n.split(".")[1] for n in subject.shapes if n.startswith("blk.") and ".ffn_gate_inp." in n}
    biased = {n.split(".")[1] for n in subject.shapes if n.startswith("blk.") and ".exp_probs_b" in n}
    if routers - biased:
        yield Finding(
            "router-bias",
            Severity.ERROR,
            f"blk.{min(routers - biased, key=_order)}.exp_probs_b.bias",
            f"missing, in {len(routers - biased)} of {len(routers)} blocks with experts",
            "The wrong experts answer. The file has to be made again with a converter that knows the model.",
        )


def experts(subject: Subject) -> Iterator[Finding]:
    """How many experts there are, and from which block on, is seen in the tensors; how many a token goes through is
    not."""
    if not subject.row.experts or not subject.glm:
        return
    layers = subject.blocks - subject.drafts
    dense = min((block for block in layers if f"blk.{block}.ffn_gate_inp.weight" in subject.shapes), default=-1)
    down = subject.shapes.get(f"blk.{dense}.ffn_down_exps.weight", ())
    rows = subject.shapes.get(f"blk.{dense}.ffn_gate_inp.weight", ())[:1]
    # A router that is missing would make a block of experts a dense one.
    whole = all(f"blk.{block}.ffn_gate.weight" in subject.shapes for block in range(dense))
    if whole and len(down) == 3 and rows == down[:1]:
        means = "Programs look for tensors that are not there, or refuse those that are."
        for name, right in (
            ("leading_dense_block_count", dense),
            ("expert_count", down[0]),
            ("expert_feed_forward_length", down[2]),
        ):
            value = subject.metadata.get(subject.key(name))
            absent = value is None and (right == 0 or name == "expert_feed_forward_length")
            if not absent and subject.count(name) != right:
                what = "missing" if value is None else brief(value)
                yield _wrong(subject, "experts", Severity.ERROR, name, what, right, means)
    name, used = "expert_used_count", subject.published.used if subject.published else None
    value = subject.metadata.get(subject.key(name))
    if used is not None and subject.count(name) != used:
        severity = Severity.ERROR if value is None else Severity.WARNING
        means = "A token goes through too few experts, or too many: answers get worse, or slower."
        yield _wrong(subject, "experts", severity, name, "missing" if value is None else brief(value), used, means)


def _order(block: str) -> tuple[int, str]:
    return (int(block) if block.isdecimal() and len(block) < 10 else 1 << 31, block)


def _wrong(
    subject: Subject,
    check: str,
    severity: Severity,
    name: str,
    what: str,
    right: Any,
    means: str,
    spelled: str | None = None,
) -> Finding:
    """A key that should have another value; right: None if that is not known."""
    key = subject.key(name)
    if right is None:
        return Finding(check, severity, key, what, means)
    spelled = spelled or (f"{right:.10g}" if isinstance(right, float) else str(right))
    of = f" in {subject.published.name}" if subject.published else ""
    return Finding(check, severity, key, f"{what}, should be {spelled}{of}", means, f"{key} = {spelled}", {key: right})


CHECKS = (eps, rotary_part, rope_base, router, experts)
