"""Messages as the rest of the package may rely on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from .readers.literals import read_json

log = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant", "tool", "observation")
# OpenAI's newer name for the system's role, and its older one for a tool's.
_ALIASES = {"developer": "system", "function": "tool"}
RESULTS = ("tool", "observation")  # the roles of what a tool has returned
# Keys that name or repeat something and carry no text to the model. Past reasoning is not shown to it again, unless a
# template asks for it.
_NO_TEXT = frozenset({"role", "content", "id", "tool_call_id", "reasoning_content"})
# Stands in a message's text for an image: a Unicode noncharacter, which no text has a use for.
PLACE = "\ufdd2"

See = Callable[[Any, str], Any]


def check(messages: Sequence[Mapping[str, Any]], see: See | None = None) -> list[dict[str, Any]]:
    """Copies of the messages, their content one string each, their role one of ROLES, without keys that are None.

    Where there are images, the content is a list of `{"type": "text", "text": str}` and `{"type": "image", "image":
    what it was given as, or a data URL}`. see(image, where): what is to stand for an image instead.
    A call's arguments are a dict, or the text where it is not JSON of an object. The results of several calls stand in
    the order of the calls, if their ids tell it: most models match them by it.
    Raises ValueError, naming the message, and the part.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: {type(messages).__name__}, should be a list of messages")
    if not messages:
        raise ValueError("messages: none, should be at least one")
    return _in_order([_message(f"messages[{i}]", message, see) for i, message in enumerate(messages)])


def images_of(messages: list[dict[str, Any]]) -> list[Any]:
    """What stands for the images of checked messages, in their order."""
    return [
        part["image"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image"
    ]


def in_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checked messages with each content one string, in which `PLACE` stands where an image does, and nowhere else."""
    out: list[dict[str, Any]] = without_places(messages)
    for message in out:
        if isinstance(message["content"], list):
            message["content"] = "".join(part.get("text", PLACE) for part in message["content"])
    return out


def without_places(value: Any) -> Any:
    """What is made of strings, mappings and lists, with all in it that could be taken for an image's place left out."""
    if isinstance(value, str):
        return value.replace(PLACE, "")
    if isinstance(value, Mapping):
        return {without_places(key): without_places(item) for key, item in value.items()}
    return [without_places(item) for item in value] if isinstance(value, list | tuple) else value


def goes_on(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation, checked or not, ends with a text of the assistant's, which an answer goes on with."""
    last = messages[-1] if isinstance(messages, Sequence) and len(messages) else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return False
    parts = last.get("content")
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        parts = any(isinstance(part, Mapping) and part.get("text") for part in parts)
    return bool(parts) and not any(last.get(key) for key in ("tool_calls", "function_call", "metadata"))


def say_unread(messages: list[dict[str, Any]], reads: Collection[str] | str, reader: str) -> None:
    """Logs each key of a message that has a value and that nobody reads, once. reads: a template or names of keys that
    `reader` looks at."""
    for message in messages:
        for key, value in message.items():
            names_a_tool = key in ("name", "tool_name") and message["role"] in RESULTS
            if value not in ("", [], {}) and key not in _NO_TEXT and not names_a_tool and str(key) not in reads:
                unread(f"messages: {key!r}", reader)


@lru_cache(maxsize=1024)
def unread(what: str, reader: str) -> None:
    """Logs that `reader` has no use for `what`, the first time."""
    log.warning("%s is not read by %s", what, reader)


def _message(where: str, message: Any, see: See | None) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: {type(message).__name__}, should be a mapping with 'role' and 'content'")
    out = {key: value for key, value in message.items() if value is not None}
    role = message.get("role")
    out["role"] = _ALIASES.get(role, role) if isinstance(role, str) else role
    if out["role"] not in ROLES:
        raise ValueError(f"{where}: role {role!r}, should be one of {', '.join((*ROLES, *_ALIASES))}")
    calls = out.pop("tool_calls", None) or []
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise ValueError(f"{where}.tool_calls: {type(calls).__name__}, should be a list of calls")
    if "function_call" in out:  # of one tool, as OpenAI's API had it before
        calls = [*calls, {"function": out.pop("function_call")}]
    if calls and role != "assistant":
        raise ValueError(f"{where}: tool_calls of the role {role!r}, should be the assistant's")
    if role == "assistant":
        out.setdefault("reasoning_content", out.pop("reasoning", None))
        if not isinstance(out["reasoning_content"], str):
            del out["reasoning_content"]
    content = out.get("content", out.pop("refusal", None))
    if content is None and role != "assistant" and out["role"] not in RESULTS:
        raise ValueError(f"{where}: no content, should be text")
    out["content"] = _content(where, content, out["role"], see)
    if calls:
        out["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    if not isinstance(out.get("metadata", ""), str):
        raise ValueError(f"{where}: metadata is {type(out['metadata']).__name__}, should be the name of a tool")
    if "tools" in out:
        out["tools"] = check_tools(out["tools"], f"{where}.tools")
    return out


def _content(where: str, content: Any, role: str, see: See | None) -> str | list[dict[str, Any]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise ValueError(f"{where}: content is {type(content).__name__}, should be text or a list of parts")
    parts: list[dict[str, Any]] = []
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if isinstance(part, Mapping) and kind in ("image", "image_url"):
            at = f"{where}.content[{j}]"
            if role == "assistant":
                raise ValueError(f"{at}: an image of the assistant's, should be of another role")
            image = _image(at, part, kind)
            parts.append({"type": "image", "image": image if see is None else see(image, at)})
            continue
        if not isinstance(part, Mapping) or kind not in ("text", "refusal"):
            raise ValueError(f"{where}: a content part of type {kind!r}, should be 'text' or 'image'")
        text = part.get(kind)
        if not isinstance(text, str):
            raise ValueError(f"{where}.content[{j}].{kind}: {type(text).__name__}, should be text")
        if parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += text
        else:
            parts.append({"type": "text", "text": text})
    seen = any(part["type"] == "image" for part in parts)
    return parts if seen else "".join(part["text"] for part in parts)


def _image(where: str, part: Mapping[str, Any], kind: str) -> Any:
    """What a part has for an image. An address is a data URL: nothing is fetched, and no path is one."""
    image = part.get(kind)
    if kind == "image_url":
        image = image.get("url") if isinstance(image, Mapping) else image
        if not isinstance(image, str) or image[:5].lower() != "data:":
            told = repr(image[:40]) if isinstance(image, str) else type(image).__name__
            raise ValueError(f"{where}: an image_url of {told}, should be a data URL (data:image/png;base64,...)")
    if image is None:
        raise ValueError(f"{where}: has no image, should be {{'type': 'image', 'image': ...}}")
    return image


def _call(where: str, call: Any) -> dict[str, Any]:
    """A tool call with its arguments decoded: {"type": "function", "function": {"name", "arguments": dict}, ...}.

    What is not JSON of an object stays text: a model has written it, and is to see it again.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: should be {{'function': {{'name': ..., 'arguments': ...}}}}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with suppress(ValueError):
            decoded = read_json(arguments)
            arguments = decoded if isinstance(decoded, dict) else arguments
    elif not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: the arguments are {type(arguments).__name__}, should be an object")
    arguments = arguments if isinstance(arguments, str) else dict(arguments)
    _check_json(where, arguments)
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _in_order(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the results of calls in the order of the calls that they name by id."""
    out: list[dict[str, Any]] = []
    calls: list[Any] = []
    begin = 0
    for message in messages:
        out.append(message)
        if message["role"] not in RESULTS:
            calls, begin = [call.get("id") for call in message.get("tool_calls", ())], len(out)
        elif len(calls) == len(out) - begin > 1:
            results = {result.get("tool_call_id"): result for result in out[begin:]}
            if len(results) == len(calls) and results.keys() == set(calls):
                out[begin:] = [results[call] for call in calls]
    return out


def check_tools(tools: Sequence[Mapping[str, Any]] | None, where: str = "tools") -> list[dict[str, Any]]:
    """Tools in the shape of the OpenAI API, `{"type": "function", "function": {"name": ...}}`. Raises ValueError."""
    if tools is None:
        return []
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ValueError(f"{where}: {type(tools).__name__}, should be a list of functions")
    out = []
    for i, tool in enumerate(tools):
        if isinstance(tool, Mapping) and "function" not in tool:
            tool = {"type": "function", "function": {k: v for k, v in tool.items() if (k, v) != ("type", "function")}}
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}[{i}]: should be {{'type': 'function', 'function': {{'name': ...}}}}")
        out.append({**tool, "function": dict(function)})
        _check_json(f"{where}[{i}]", out[-1])
    return out


def _check_json(where: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: cannot be written as JSON: {error}") from None
