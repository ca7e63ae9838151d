r"""ChatGLM-6B: `[Round i]\n问：...\n答：...\n` from 0, a first question as it stands; at the end `[gMASK]<sop>`.

There is no system role: the system text is put in front of the first question. There are no tools.
"""

from __future__ import annotations

from .dialect import GMASK, SOP, Dialect, File, Messages, Token, Tools
from .rounds import rounds


class ChatGLM(Dialect):
    """See the module."""

    name = "chatglm"
    writes = True
    begins = False
    ends = ("<eop>",)

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By the architecture, which has no other."""
        return file.row.chat == cls.name

    def pieces(self, messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
        """The prompt."""
        return [text(messages, tools, generate), GMASK, SOP] if generate else [text(messages, tools, generate)]

    def open_pieces(self, messages: Messages, tools: Tools) -> list[str | Token]:
        """The prompt, and what the answer begins with."""
        return [*self.pieces(messages[:-1], tools, True), messages[-1]["content"]]


def text(messages: Messages, tools: Tools, generate: bool) -> str:
    """The text of a conversation, without the control tokens that a prompt ends with."""
    system, turns = rounds(ChatGLM.name, messages, tools, generate)
    if generate and len(turns) == 1:
        return turns[0][0]
    out = "" if turns else system
    for i, (question, answer) in enumerate(turns):
        out += f"[Round {i}]\n问：{question}\n答：" + ("" if answer is None else f"{answer}\n")
    return out
