r"""GLM-Edge: `<|role|>\n{content}`, and no `[gMASK]<sop>`. There are no tools."""

from __future__ import annotations

from ...families import ENDS, is_edge
from .dialect import Dialect, File, Messages, Token, Tools, as_json, refuse, turns


class GLMEdge(Dialect):
    """See the module."""

    name = "glm-edge"
    writes = True
    begins = False
    ends = tuple(ENDS.values())

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By its sizes."""
        return is_edge(file.architecture, file.metadata)

    def pieces(self, messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
        """The prompt."""
        refuse(self.name, messages, tools)
        return turns(messages, as_json, generate)
