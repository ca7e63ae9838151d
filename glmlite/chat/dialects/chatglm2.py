r"""ChatGLM2-6B: `[Round i]\n\n问：...\n\n答：...\n\n` from 1. System text: as in `chatglm`. There are no tools."""

from __future__ import annotations

from .dialect import Dialect, File, Messages, Token, Tools
from .rounds import rounds


class ChatGLM2(Dialect):
    """See the module."""

    name = "chatglm2"
    writes = True
    ends = ("</s>",)

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By a vocabulary without role tokens. Some files list ChatGLM3's; then only the name tells."""
        return file.row.versions and (not file.has("<|user|>") or file.named == cls.name)

    def pieces(self, messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
        """The prompt."""
        return [text(messages, tools, generate)]

    def open_pieces(self, messages: Messages, tools: Tools) -> list[str | Token]:
        """The prompt, and what the answer begins with."""
        return [text(messages[:-1], tools, True) + messages[-1]["content"]]


def text(messages: Messages, tools: Tools, generate: bool) -> str:
    """The text of a conversation."""
    system, turns = rounds(ChatGLM2.name, messages, tools, generate)
    out = "" if turns else f"[Round 1]\n\n问：{system}"
    for i, (question, answer) in enumerate(turns, 1):
        out += f"[Round {i}]\n\n问：{question}\n\n答：" + ("" if answer is None else f"{answer}\n\n")
    return out
