r"""GLM-4-9B-chat and the GLM-4 of 0414: `<|role|>{metadata}\n{content}`.

Tools stand in a system message of their own, which GLM-4-9B's opens with a preamble. A call is the name of the tool on
the role's line, and JSON. A message without content, which is neither a call nor the result of one, is left out.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from ...families import ENDS
from ..messages import RESULTS
from ..readers import NamedJson
from . import grammars
from .dialect import Dialect, File, Messages, Token, Tools, as_json, turns

_TOOLS = "# 可用工具"


class GLM4(Dialect):
    """GLM-4-9B."""

    name = "glm4"
    reads = NamedJson
    ends = tuple(ENDS.values())
    writes = True
    thinks_first: ClassVar[bool] = False
    preamble: ClassVar[str] = (
        "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
        "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n"
    )

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By the architecture, of whose versions it is what is left."""
        return file.row.chat == cls.name

    def pieces(self, messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
        """The prompt."""
        every = [self._listing(tools)] if tools else []
        for message in messages:
            if message.get("tools"):
                every.append(self._listing(message["tools"]))
            if message["content"] or message.get("tool_calls") or message["role"] in RESULTS:
                every.append(message)
        return turns(every, as_json, generate)

    def _listing(self, tools: Tools) -> dict[str, Any]:
        text = f"{self.preamble}{_TOOLS}"
        for tool in tools:
            function = tool["function"]
            schema = json.dumps(function, indent=4, ensure_ascii=False)
            text += f"\n\n## {function['name']}\n\n{schema}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
        return {"role": "system", "content": text}

    def _grammar(self, tools: Tools, *, begun: bool, several: bool) -> str | None:
        return None if begun else grammars.named_json(tools, before=self.thinks_first)


class GLM40414(GLM4):
    """GLM-4-0414."""

    name = "glm4-0414"
    preamble = ""
