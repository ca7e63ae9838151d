"""`glmlite doctor`: what is wrong with a file, and a copy without it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import refuse_to_overwrite
from . import console
from .options import Json, ModelName, find

_UNREADABLE = 2


def doctor(
    file: ModelName,
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT.gguf", help="With --fix: the file to write [default: FILE-fixed.gguf].", show_default=False
        ),
    ] = None,
    mmproj: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The eyes of a vision model [default: each mmproj*.gguf beside it].",
            show_default=False,
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write a corrected copy; FILE stays as it is.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over OUT.gguf if it is there.")] = False,
    as_json: Json = False,
) -> int:
    """Look for what is known to be wrong with GGUF files that people pass around, and correct it.

    Prompt prefix, stop ids, special tokens, chat template, constants of the model, missing tensors, eyes that do not
    fit, NaN and zeros in the weights. Files of other families than GLM get the checks that need no knowledge of the
    model.

    \b
    Exit codes: 0 nothing wrong (with --fix: no longer, in the copy), 1 something is, 2 the file cannot be read.

    \b
    Examples:
      glmlite doctor model.gguf
      glmlite doctor model.gguf --fix
      glmlite doctor model.gguf --fix better.gguf
      glmlite doctor model.gguf --mmproj mmproj-model.gguf
      glmlite doctor model.gguf --json
    """
    from .. import doctor as doctors

    if out is not None and not fix:
        raise typer.BadParameter("OUT.gguf is only for --fix")
    path = find(file)
    try:
        with console.progress(f"Reading {Path(path).name}") as show:
            report = doctors.examine(path, mmproj=mmproj, progress=show)
    except (ValueError, OSError) as error:
        if as_json:
            console.write(json.dumps({"file": str(path), "error": " ".join(str(error).split())}) + "\n")
        console.error(error)
        return _UNREADABLE
    if not as_json:
        console.write(_text(report))
    copy = None
    if fix and any(finding.fix for finding in report.findings):
        out = out or doctors.beside(report.paths[0])
        refuse_to_overwrite(out, force)
        with console.progress(f"Writing {out.name}") as show:
            doctors.fix(report, out, progress=show)
        # Its weights are those of the file, byte for byte.
        copy = doctors.examine(out, mmproj=mmproj, weights=False)
    findings = report.findings if copy is None else _remaining(report.findings, copy.findings)
    if as_json:
        console.write(json.dumps(_facts(report, out if copy else None, findings), ensure_ascii=False, indent=1) + "\n")
    elif fix:
        console.write(_outcome(out if copy else None, findings))
    return 0 if all(finding.severity == "note" for finding in findings) else 1


def _remaining(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """What is wrong with the copy: its header was read again, its weights are what they were."""
    return [*after, *(finding for finding in before if finding.check in ("not-finite", "all-zero", "imatrix-gating"))]


# ---- as text and as JSON -----------------------------------------------------------------------------------------


def _text(report: Any) -> str:
    rows = [("file", path) for path in report.paths]
    model = f", the sizes of {report.model}" if report.model else ""
    rows.append(("architecture", f"{report.architecture or 'none'}{model}"))
    if not report.glm:
        rows.append(("checks", "general ones only: not of the GLM family, as far as the file says"))
    rate = f" ({report.weight_bytes / report.seconds / 1e9:.1f} GB/s)" if report.seconds > 0 else ""
    rows.append(("weights", f"{console.size(report.weight_bytes)} read in {report.seconds:.1f} s{rate}"))
    if report.unread:
        rows.append(("not read", f"tensors of {', '.join(report.unread)}"))
    parts = [console.columns(rows)]
    for finding in report.findings:
        parts.append(f"\n{finding.severity.value}: {finding.check}\n")
        parts.append(f"  {finding.where}: {finding.what}\n  {finding.means}\n")
        parts.append(f"  --fix: {finding.fix}\n" if finding.fix else "  --fix cannot correct it.\n")
    parts.append(f"\n{_count(report.findings)}\n")
    return "".join(parts)


def _outcome(out: Path | None, findings: Sequence[Any]) -> str:
    if out is None:
        return "nothing to correct, no file written\n"
    return f"{out}: {_count(findings)}\n"


def _count(findings: Sequence[Any]) -> str:
    counts = []
    for severity in ("error", "warning", "note"):
        if n := sum(finding.severity == severity for finding in findings):
            counts.append(f"{n} {severity}{'s' if n > 1 else ''}")
    if not counts:
        return "nothing wrong found"
    fixable = sum(finding.fix is not None for finding in findings)
    return f"{', '.join(counts)}; --fix corrects {'all' if fixable == len(findings) else fixable or 'none'}"


def _facts(report: Any, out: Path | None, remaining: Sequence[Any]) -> dict[str, Any]:
    facts = {
        "file": report.paths[0],
        "architecture": report.architecture,
        "model": report.model,
        "glm": report.glm,
        "ok": report.ok,
        "findings": [_finding(finding) for finding in report.findings],
        "weights": {"bytes": report.weight_bytes, "seconds": report.seconds, "unread": list(report.unread)},
    }
    if out is not None:
        facts["fixed"] = {"file": str(out), "findings": [_finding(finding) for finding in remaining]}
    return facts


def _finding(finding: Any) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in ("check", "severity", "where", "what", "means", "fix")}
