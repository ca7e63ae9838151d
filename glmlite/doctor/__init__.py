"""Look through a GGUF file for what is known to be wrong with files that people pass around, and correct it.

    report = examine("model.gguf")
    for finding in report.findings:
        print(finding.severity, finding.what)
    if any(finding.fix for finding in report.findings):
        fix(report, "model-fixed.gguf")

docs/doctor.md lists the checks. A file of the GLM family gets all of them, any other file those that need no
knowledge of its model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..locate import model_file
from ..mmproj import beside as eyes_beside
from ..packed import refuse_exported
from . import constants, eyes, tensors, text, values
from .finding import Finding, Report, Severity
from .repair import beside, corrected, fix, split
from .subject import Subject

__all__ = ["Finding", "Report", "Severity", "beside", "examine", "fix"]

# How many layers there are tells which model it is: first.
_CHECKS = (tensors.drafting, *text.CHECKS, *constants.CHECKS, *tensors.CHECKS, *eyes.CHECKS)


def examine(
    path: str | os.PathLike[str],
    *,
    mmproj: str | os.PathLike[str] | None = None,
    weights: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Report:
    """Look through a GGUF file, which may be any part of a split one.

    mmproj: the eyes that a vision model should fit; default: each `mmproj*.gguf` beside it is tried.
    weights: read all weights too, for NaN and zeros; without, only the header is read. threads: to read them with;
    default: as many as the machine has cores. progress: called with the bytes read and those in all; returning False
    cancels (Cancelled).

    Raises FormatError for what is no whole GGUF file (cut short, not GGUF, a part missing), OSError, Cancelled.
    """
    from .._native import Gguf

    file = model_file(path)
    gguf = Gguf(file)
    try:
        refuse_exported(file, gguf.metadata)
        subject = Subject.of(gguf)
        findings = look(subject)
        findings += tensors.kernels(subject, gguf.tensors.values())
        others = [] if mmproj is None else [model_file(mmproj)]
        if mmproj is None and subject.sections and not subject.sees:
            others = eyes_beside(file)
        findings += eyes.pair(subject, eyes.others(others))
        scan = values.scan(gguf.tensors.values(), threads, progress) if weights else None
    finally:
        gguf.close()
    if scan is not None:
        findings += scan.findings
    return Report(
        paths=subject.paths,
        architecture=subject.architecture,
        model=subject.published.name if subject.published else None,
        glm=subject.glm or subject.text("clip.projector_type") == "glm4v",
        findings=tuple(sorted(findings, key=lambda finding: list(Severity).index(finding.severity))),
        weight_bytes=scan.nbytes if scan else 0,
        seconds=scan.seconds if scan else 0.0,
        unread=scan.unread if scan else (),
    )


def look(subject: Subject) -> list[Finding]:
    """What is wrong with the metadata and the list of tensors."""
    findings: list[Finding] = []
    for check in _CHECKS:
        found = list(check(subject))
        findings += found
        if any(finding.fix for finding in found):
            # Each check sees what those before it corrected, so that corrections of one key do not undo each other.
            subject = Subject(corrected(subject.metadata, found), split(subject.shapes, found), subject.paths)
    # What reads the whole file does not tell again what is told already.
    told = {item for finding in findings for item in finding.where.split(", ")}
    return findings + [finding for check in (text.tokenizer, tensors.model) for finding in check(subject, told)]
