r"""GLM-4.5 and 4.6: a thought between `<think>` and `</think>`, calls of tools between marks.

    <tool_call>name\n<arg_key>key</arg_key>\n<arg_value>value</arg_value>\n</tool_call>

Files have templates; there is no format for one without.
"""

from __future__ import annotations

from typing import ClassVar

from ...families import ENDS
from ..readers import Marked
from ..readers.marked import CALL
from . import grammars
from .dialect import Dialect, File, Tools


class GLM45(Dialect):
    """See the module."""

    name = "glm45"
    reads = Marked
    line: ClassVar[str] = "\n"  # between marks
    ends = tuple(ENDS.values())

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By a template that writes the marks of arguments, or by a vocabulary that has them beside any template."""
        return bool(file.template) and ("<arg_key>" in file.template or file.has("<arg_key>"))

    @property
    def trigger(self) -> int | str | None:
        """The mark of a call."""
        return self.file.tokenizer.id_of(CALL)

    def _grammar(self, tools: Tools, *, begun: bool, several: bool) -> str | None:
        return grammars.marked(tools, self.file.tokenizer.id_of, line=self.line, begun=begun, several=several)
