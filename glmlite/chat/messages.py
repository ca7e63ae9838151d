"""Messages as the rest of the package may rely on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "user", "assistant", "tool", "observation")


def check(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages, their content one string each. Raises ValueError, naming the message."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: {type(messages).__name__}, should be a list of messages")
    if not messages:
        raise ValueError("messages: none, should be at least one")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: {type(message).__name__}, should be a mapping with 'role' and 'content'")
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}: role {role!r}, should be one of {', '.join(ROLES)}")
    calls = message.get("tool_calls")
    content = message.get("content")
    if content is None and not (role == "assistant" and calls):
        raise ValueError(f"{where}: no content, should be text")
    out = {**message, "content": _text(where, content)}
    if calls:
        out["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    return out


def _text(where: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError(f"{where}: content is {type(content).__name__}, should be text or a list of text parts")
    parts = []
    for part in content:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{where}: a content part of type {kind!r}, should be 'text'")
        parts.append(part["text"])
    return "".join(parts)


def _call(where: str, call: Any) -> dict[str, Any]:
    """A tool call with its arguments decoded: {"type": "function", "function": {"name", "arguments": dict}, ...}."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: should be {{'function': {{'name': ..., 'arguments': ...}}}}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: the arguments are not JSON: {error}") from None
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: the arguments are {type(arguments).__name__}, should be an object")
    return {"type": "function", **call, "function": {**function, "arguments": dict(arguments)}}


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools in the shape of the OpenAI API, `{"type": "function", "function": {"name": ...}}`. Raises ValueError."""
    out = []
    for i, tool in enumerate(tools or ()):
        if isinstance(tool, Mapping) and "function" not in tool:
            tool = {"type": "function", "function": tool}
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"tools[{i}]: should be {{'type': 'function', 'function': {{'name': ...}}}}")
        out.append({**tool, "function": dict(function)})
    return out
