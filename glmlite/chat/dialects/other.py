"""Models of other makers: what their template writes, thoughts between `<think>` and `</think>`, and calls of tools as
JSON between `<tool_call>` and `</tool_call>` (Qwen, Hermes and many more)."""

from __future__ import annotations

from ..readers import Marked
from ..readers.marked import CALL
from . import grammars
from .dialect import Dialect, File, Tools


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

    @property
    def trigger(self) -> int | str | None:
        """The mark of a call."""
        token = self.file.tokenizer.id_of(CALL)
        return CALL if token is None else token

    def _grammar(self, tools: Tools, *, begun: bool, several: bool) -> str | None:
        return grammars.json_between_marks(tools, self.file.tokenizer.id_of, begun=begun, several=several)
