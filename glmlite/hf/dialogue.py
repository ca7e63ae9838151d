"""What `chat` of the makers' own models takes for a history, and what it makes of an answer.

ChatGLM-6B and ChatGLM2 keep (question, answer) pairs, ChatGLM3 and GLM-4 messages. ChatGLM3 and GLM-4 write the name
of a tool, if they call one, into the line that the role stands in, and several messages may follow one another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..chat.answers import tidy
from ..chat.readers.literals import read_call, read_json
from ..tokenizer import Tokenizer

Messages = list[dict[str, Any]]
_NAME = re.compile(r"[\w.:-]+", re.ASCII)


def is_pairs(chat_format: str | None, history: Sequence[Any]) -> bool:
    """Whether a history is of pairs; an empty one is of the model's own kind."""
    return not isinstance(history[0], Mapping) if history else chat_format in ("chatglm", "chatglm2")


def conversation(
    chat_format: str | None, history: Sequence[Any] | None, query: str, role: str
) -> tuple[Messages, list[Any] | None]:
    """(messages with the query at the end, tools). Tools stand in a system message of the history."""
    messages: Messages = []
    for turn in history or ():
        if isinstance(turn, Mapping):
            messages.append(dict(turn))
        elif isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2:
            messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turn)]
        else:
            raise ValueError(f"history: {turn!r:.60}, expected (question, answer) pairs or messages")
    messages.append({"role": role, "content": query})
    tools = None
    for message in messages:
        if "tools" not in message:
            continue
        if chat_format == "chatglm3":  # lists them as they are given, below its own text
            listing = json.dumps(message.pop("tools"), indent=4, ensure_ascii=False)
            message["content"] = f"{message.get('content') or ''}\n{listing}"
        else:
            tools = message.pop("tools")
    return [m for m in messages if tools is None or m["role"] != "system" or m.get("content")], tools


class Answer:
    """An answer while it is written.

    line_open: the prompt ends with the role's token, so the rest of that line, which is the name of a tool or nothing,
    is part of the answer. tools: were offered. stops: strings that end an answer and are not shown.
    """

    def __init__(
        self, chat_format: str | None, tokenizer: Tokenizer, *, line_open: bool, tools: bool, stops: Sequence[str]
    ):
        self._format = "glm4" if line_open and chat_format == "template" else chat_format
        self._tokenizer = tokenizer
        self._assistant = tokenizer.id_of("<|assistant|>") if line_open else None
        self._tools = tools
        self._stops = stops
        self._of_tokens = line_open or tools  # the text of calls is in no piece
        self._texts = [""]
        self._decoder = tokenizer.stream(skip_special=True)

    def push(self, text: str, tokens: Sequence[int]) -> None:
        """The next text; its tokens say more where the line of the role counts, or a tool may be called."""
        if not self._of_tokens:
            self._texts[-1] += text
            return
        for token in tokens:
            if token == self._assistant:
                self._texts[-1] += self._decoder.finish()
                self._decoder = self._tokenizer.stream(skip_special=True)
                self._texts.append("")
            else:
                self._texts[-1] += self._decoder.push([token])

    def read(self) -> tuple[Any, Messages]:
        """(the response, the messages for the history): a text, or {"name", "parameters"} of a tool's call."""
        response: Any = ""
        messages = []
        for text in self._texts:
            for stop in self._stops:
                text = text.removesuffix(stop)
            name, content = self._split(text)
            messages.append({"role": "assistant", "metadata": name, "content": content})
            response = tidy(self._format, content)
            if name:
                parameters = _parameters(content) if self._tools else None
                called = {"content": content} if parameters is None else {"parameters": parameters}
                response = {"name": name, **called}
        return response, messages

    def _split(self, text: str) -> tuple[str, str]:
        line, newline, rest = text.partition("\n")
        if self._assistant is not None and newline and _NAME.fullmatch(line.strip()):
            return line.strip(), rest
        return "", text.strip()


def _parameters(content: str) -> Any:
    """The arguments of a call: JSON, as GLM-4 writes it, or Python in a fence and a blank before it, as ChatGLM3.
    None: it is neither, or not whole yet."""
    with suppress(ValueError):
        return read_json(content)
    code = content.strip()
    if code.startswith("```"):
        code = code.partition("\n")[2].removesuffix("```")
    with suppress(ValueError):
        return read_call(code, "tool_call")
    return None
