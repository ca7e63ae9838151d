"""Chat formats of the models whose files carry no template, as their makers' code builds the prompts.

Each function takes checked messages and returns pieces: a `Token` is one control token of the vocabulary, a `str` is
text, encoded on its own and without control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import FormatError
from .tokens import Tokenizer

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]
READ = ("role", "content", "tool_calls", "metadata", "tools")
"""The keys of a message that formats read; one that has no place for the last three refuses them."""


class Token(NamedTuple):
    """A control token, by its text; some vocabularies spell it another way."""

    text: str
    other: str | None = None


GMASK = Token("[gMASK]")
SOP = Token("<sop>", "sop")


def encode(tokenizer: Tokenizer, name: str, pieces: list[str | Token]) -> list[int]:
    """The ids of the pieces one after another. Raises FormatError for a token that the vocabulary lacks."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, str):
            ids += tokenizer.encode(piece, special=False, prefix=False)
            continue
        found = [tokenizer.id_of(text) for text in piece if text is not None]
        known = [token for token in found if token is not None]
        if not known:
            raise FormatError(f"tokenizer: {piece.text!r} is not in the vocabulary; the chat format {name} needs it")
        ids.append(known[0])
    return ids


# ---- rounds ------------------------------------------------------------------------------------------------------


def chatglm(messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
    r"""ChatGLM-6B: `[Round i]\n问：...\n答：...\n` from 0, a first question as it stands; at the end `[gMASK]<sop>`.

    There is no system role: the system text is put in front of the first question.
    """
    system, rounds = _rounds("chatglm", messages, tools, generate)
    if generate and len(rounds) == 1:
        text = rounds[0][0]
    else:
        text = "" if rounds else system
        for i, (question, answer) in enumerate(rounds):
            text += f"[Round {i}]\n问：{question}\n答：" + ("" if answer is None else f"{answer}\n")
    return [text, GMASK, SOP] if generate else [text]


def chatglm2(messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
    r"""ChatGLM2-6B: `[Round i]\n\n问：...\n\n答：...\n\n` from 1. System text: as `chatglm`."""
    system, rounds = _rounds("chatglm2", messages, tools, generate)
    text = "" if rounds else f"[Round 1]\n\n问：{system}"
    for i, (question, answer) in enumerate(rounds, 1):
        text += f"[Round {i}]\n\n问：{question}\n\n答：" + ("" if answer is None else f"{answer}\n\n")
    return [text]


def _rounds(name: str, messages: Messages, tools: Tools, generate: bool) -> tuple[str, list[tuple[str, str | None]]]:
    """The system text, which ends its lines, and [(question, answer)]: the first question begins with the system text,
    the last answer is None where the model is to give it."""
    _refuse(name, messages, tools)
    count = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system = "".join(message["content"] + "\n" for message in messages[:count] if message["content"])
    turns = messages[count:]
    for i, message in enumerate(turns):
        want = ("user", "assistant")[i % 2]
        if message["role"] != want:
            raise ValueError(
                f"messages[{count + i}]: role {message['role']!r}, the chat format {name} has {want!r} there"
            )
    if generate and not turns:
        raise ValueError(f"messages: there is no question; the chat format {name} ends with the user's")
    if generate and len(turns) % 2 == 0:
        raise ValueError(f"messages: the last is the assistant's; the chat format {name} ends with the user's")
    texts: list[str | None] = [message["content"] for message in turns]
    if len(texts) % 2:
        texts.append(None)
    if texts:
        texts[0] = system + str(texts[0])
    return system, [(str(question), answer) for question, answer in zip(texts[::2], texts[1::2])]


def _refuse(name: str, messages: Messages, tools: Tools) -> None:
    """Raises ValueError for what a format without tools would lose."""
    if tools:
        raise ValueError(f"tools: the chat format {name} has none")
    for i, message in enumerate(messages):
        for key in ("tools", "tool_calls", "metadata"):
            if message.get(key):
                raise ValueError(f"messages[{i}]: {key}, the chat format {name} has none")


# ---- role tokens -------------------------------------------------------------------------------------------------


def chatglm3(messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
    r"""ChatGLM3-6B: `<|role|>{metadata}\n`, then the content, each encoded on its own.

    Tools are listed as JSON in the system message. A call is a Python snippet under the name of the tool, its result
    an observation.
    """
    if tools:
        intro = "Answer the following questions as best as you can. You have access to the following tools:"
        first = {"role": "system", "content": intro}
        if messages[0]["role"] == "system":
            first, messages = messages[0], messages[1:]
        messages = [{**first, "tools": [*tools, *first.get("tools", ())]}, *messages]

    def listed(message: dict[str, Any]) -> dict[str, Any]:
        if not message.get("tools"):
            return message
        listing = json.dumps([tool["function"] for tool in message["tools"]], indent=4, ensure_ascii=False)
        return {**message, "content": f"{message['content']}\n{listing}"}

    def call(arguments: dict[str, Any]) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"```python\ntool_call({values})\n```"

    return _turns([listed(message) for message in messages], call, generate)


def glm4(messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
    r"""GLM-4-9B-chat: `<|role|>{metadata}\n{content}`; tools in a system message of their own; a call is JSON.

    A message without content, which is no call, is left out.
    """

    def listing(tools: Tools) -> dict[str, Any]:
        text = (
            "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
            "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
        )
        for tool in tools:
            function = tool["function"]
            schema = json.dumps(function, indent=4, ensure_ascii=False)
            text += f"\n\n## {function['name']}\n\n{schema}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
        return {"role": "system", "content": text}

    every = [listing(tools)] if tools else []
    for message in messages:
        if message.get("tools"):
            every.append(listing(message["tools"]))
        if message["content"] or message.get("tool_calls"):
            every.append(message)
    return _turns(every, _as_json, generate)


def glm_edge(messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
    r"""GLM-Edge: `<|role|>\n{content}`, and no `[gMASK]<sop>`."""
    _refuse("glm-edge", messages, tools)
    return _turns(messages, _as_json, generate)


def _as_json(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _turns(messages: Messages, call: Callable[[dict[str, Any]], str], generate: bool) -> list[str | Token]:
    pieces: list[str | Token] = []

    def turn(role: str, metadata: str, content: str) -> None:
        pieces.extend([Token(f"<|{role}|>"), f"{metadata}\n", content])

    for message in messages:
        role = "observation" if message["role"] == "tool" else message["role"]
        calls = message.get("tool_calls", ())
        if message["content"] or not calls:
            turn(role, message.get("metadata") or "" if role == "assistant" else "", message["content"])
        for item in calls:
            turn(role, item["function"]["name"], call(item["function"]["arguments"]))
    if generate:
        pieces.append(Token("<|assistant|>"))
    return pieces


FORMATS: dict[str, Callable[[Messages, Tools, bool], list[str | Token]]] = {
    "chatglm": chatglm,
    "chatglm2": chatglm2,
    "chatglm3": chatglm3,
    "glm4": glm4,
    "glm-edge": glm_edge,
}
