"""What the checks report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

_LONGEST = 200  # characters of a file's own words in a message


def brief(value: Any) -> str:
    """A value of the metadata, or a text with one in it, in a message: one line, not long."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        line = " ".join(value[: 2 * _LONGEST].split())
        return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
    return str(value) if isinstance(value, (bool, int, float, np.generic)) else f"of type {type(value).__name__}"


class Severity(str, Enum):
    """error: wrong answers, or the file does not run. warning: wrong in some programs or situations. note: to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Split(NamedTuple):
    """How `attn_kv_b`, of each head `keys` rows and then `values` rows, becomes `attn_k_b`, transposed, and `attn_v_b`.

    needed: those are not in the file already.
    """

    heads: int
    keys: int
    values: int
    columns: int
    needed: bool

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what stands in its place."""
        if not self.needed:
            return {}
        return {
            name.replace("attn_kv_b", "attn_k_b"): (self.heads, self.columns, self.keys),
            name.replace("attn_kv_b", "attn_v_b"): (self.heads, self.values, self.columns),
        }


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a file.

    check: its name in docs/doctor.md. where: the metadata keys or tensors. what: how it is, and how it should be.
    means: what that does to whoever uses the file. fix: what `fix` does about it, None if it cannot.
    changes: metadata keys and their right values, None for a key that has to go. splits: tensors that are two in one.
    """

    check: str
    severity: Severity
    where: str
    what: str
    means: str
    fix: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    splits: Mapping[str, Split] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Report:
    """What was found in a file, the worst first.

    paths: its parts. model: the published model that has its sizes, if there is one. glm: whether it is of the GLM
    family; other files get only the general checks. weight_bytes, seconds: of the weights that were read.
    unread: types of tensors that have no check for NaN and zeros.
    """

    paths: tuple[str, ...]
    architecture: str | None
    model: str | None
    glm: bool
    findings: tuple[Finding, ...]
    weight_bytes: int
    seconds: float
    unread: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing worse than a note."""
        return all(finding.severity == Severity.NOTE for finding in self.findings)
