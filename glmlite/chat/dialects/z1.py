"""GLM-Z1, and other models of GLM-4's vocabulary that think: as the GLM-4 of 0414, after a thought.

Prompts end with `<think>`; there is no switch.
"""

from __future__ import annotations

from .dialect import File
from .glm4 import GLM40414


class Z1(GLM40414):
    """See the module."""

    name = "z1"
    writes = False
    thinks_first = True

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By a template that knows thoughts, for a vocabulary of the family."""
        return "<think>" in file.template and file.has("[gMASK]") and file.has("<|observation|>")
