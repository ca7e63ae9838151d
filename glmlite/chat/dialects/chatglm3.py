r"""ChatGLM3-6B: `<|role|>{metadata}\n`, then the content, each encoded on its own.

Tools are listed as JSON in the system message. A call is a Python snippet under the name of the tool, its result an
observation.
"""

from __future__ import annotations

import json
from typing import Any

from ...families import ENDS
from ..readers import NamedPython
from . import grammars
from .dialect import Dialect, File, Messages, Token, Tools, turns

_INTRODUCTION = "Answer the following questions as best as you can. You have access to the following tools:"


class ChatGLM3(Dialect):
    """See the module."""

    name = "chatglm3"
    reads = NamedPython
    ends = tuple(ENDS.values())
    writes = True

    @classmethod
    def recognise(cls, file: File) -> bool:
        """By sentencepiece: GLM-4 and GLM-Edge, of the same architecture, have other vocabularies."""
        return file.row.versions and file.metadata.get("tokenizer.ggml.model") == "llama"

    def pieces(self, messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
        """The prompt."""
        if tools:
            first = {"role": "system", "content": _INTRODUCTION}
            if messages[0]["role"] == "system":
                first, messages = messages[0], messages[1:]
            messages = [{**first, "tools": [*tools, *first.get("tools", ())]}, *messages]
        return turns([_listed(message) for message in messages], _call, generate)

    def _grammar(self, tools: Tools, *, begun: bool, several: bool) -> str | None:
        return None if begun else grammars.named_python(tools)


def _listed(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tools"):
        return message
    listing = json.dumps([tool["function"] for tool in message["tools"]], indent=4, ensure_ascii=False)
    return {**message, "content": f"{message['content']}\n{listing}"}


def _call(arguments: dict[str, Any] | str) -> str:
    if isinstance(arguments, str):  # no JSON: as it was written
        return f"```python\n{arguments}\n```"
    values = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"```python\ntool_call({values})\n```"
