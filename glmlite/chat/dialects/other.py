"""Models of other makers: what their template writes, thoughts between `<think>` and `</think>`, and calls of tools as
JSON between `<tool_call>` and `</tool_call>` (Qwen, Hermes and many more)."""

from __future__ import annotations

from ..readers import Marked
from .dialect import Dialect, File


class Other(Dialect):
    """Any model."""

    name = "other"
    reads = Marked

    @classmethod
    def recognise(cls, file: File) -> bool:
        """Any file with a template."""
        return bool(file.template)


class JsonCalls(Other):
    """A model of any architecture, GLM's too, whose template writes such calls."""

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By the mark."""
        return "<tool_call>" in file.template
