"""Anthropic's Messages: requests read, answers and events written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from . import errors
from .answering import Answers, CallArguments, CallBegins, End, Service, Text, Thought, Waiting, arguments_of
from .asked import Asked, Fields, content, functions, joined, part_of, shown, text_of, tool
from .errors import Refused
from .http import Reply, Stream, sse
from .openai import budget_of, random_id

__all__ = ["count_tokens", "messages", "read"]

OPTIONS = {
    "max_tokens": "max_tokens",
    "stop_sequences": "stop",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
}
EFFORTS = ("low", "medium", "high", "xhigh", "max")
# Claude Code's first words, which are other ones in every request, so that no prompt would begin as the one before.
BILLING = "x-anthropic-billing-header"
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


# ---- requests


def read(body: Mapping[str, Any], counting: bool = False) -> Asked:
    """counting: of a request whose tokens are to be counted, which needs no `max_tokens`. Raises Refused."""
    fields = Fields(body)
    if not counting and not fields.has("max_tokens"):
        raise Refused(400, "max_tokens: missing, expected an integer", param="max_tokens")
    options = fields.options(OPTIONS)
    output = fields.object("output_config") or Fields({})
    form = output.object("format") or fields.object("output_format")
    if form is not None and form.text("type") == "json_schema":
        if (schema := form.schema("schema")) is None:
            raise Refused(400, f"{form.where}schema is missing, expected a JSON schema", param=f"{form.where}schema")
        options["schema"] = schema
    tools = _tools(fields)
    choice, parallel = _choice(fields, tools)
    asked = Asked(
        model=fields.text("model"),
        messages=[*_system(fields), *_messages(fields)],
        options=options,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        effort=output.one_of("effort", EFFORTS),
        stream=fields.flag("stream"),
        schema_name="output_config.format",
    )
    if (thinking := fields.object("thinking")) is not None:
        asked.thinking = thinking.text("type") != "disabled"
        asked.thinking_budget = budget_of(thinking, "budget_tokens")
    if not fields.items("messages"):
        raise Refused(400, "messages: none, expected at least one", param="messages")
    return asked


def _system(fields: Fields) -> list[dict[str, Any]]:
    value = fields.any("system")
    blocks = [{"type": "text", "text": value}] if isinstance(value, str) else value
    kept = [block for block in blocks or [] if not _bills(block)] if isinstance(blocks or [], list) else blocks
    text = joined(Fields({"system": kept}), "system", ("text",), between="\n")
    return [{"role": "system", "content": text}] if text else []


def _bills(block: Any) -> bool:
    text = block.get("text") if isinstance(block, dict) else None
    return isinstance(text, str) and text.lstrip().lower().startswith(BILLING)


def _messages(fields: Fields) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for message in fields.objects("messages"):
        role = message.text("role")
        if role not in ("user", "assistant", "system"):
            raise message.wrong("role", "user or assistant")
        if isinstance(message.any("content"), list):
            blocks = list(message.objects("content"))
            out += _answered(message, blocks) if role == "assistant" else _said(message, blocks, role)
        else:
            out.append({"role": role, "content": message.text("content")})
    return out


def _said(message: Fields, blocks: list[Fields], role: str) -> list[dict[str, Any]]:
    """A user's message: results of tools first, then the text and the images."""
    out: list[dict[str, Any]] = []
    rest = []
    for block in blocks:
        if block.text("type") == "tool_result":
            result = content(block, "content", ("text",), _document, "\n")
            if not result and block.flag("is_error"):
                result = "error"
            out.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": result})
        else:
            rest.append(part_of(block, ("text",), _document))
    if rest or not out:
        out.append({"role": role, "content": shown(rest, "\n") if role == "user" else text_of(rest, "\n")})
    return out


def _document(block: Fields) -> str | None:
    """Documents that are text. Raises Refused for others, which the model would not see."""
    kind = block.text("type")
    if kind in ("search_result", "tool_reference"):
        return json.dumps(block.values, ensure_ascii=False)
    source = block.object("source") if kind == "document" else None
    if source is None:
        return None
    form = source.one_of("type", ("text", "content"))  # a PDF file is not left out without a word
    return source.text("data") if form == "text" else joined(source, "content", ("text",), between="\n")


def _answered(message: Fields, blocks: list[Fields]) -> list[dict[str, Any]]:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        kind = block.text("type")
        if kind == "text":
            texts.append(block.text("text"))
        elif kind == "thinking":
            thoughts.append(block.text("thinking"))
        elif kind == "tool_use":
            if not block.text("name"):
                raise Refused(400, f"{block.where}name is missing", param=f"{block.where}name")
            given = block.object("input")
            arguments = json.dumps(given.values if given is not None else {}, ensure_ascii=False)
            function = {"name": block.text("name"), "arguments": arguments}
            calls.append({"id": block.text("id"), "type": "function", "function": function})
        elif kind in ("image", "document"):
            raise block.wrong("type", "none of the assistant's: it stands in messages of users and results of tools")
    out: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        out["reasoning_content"] = "".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    return [out]


def _tools(fields: Fields) -> list[dict[str, Any]]:
    tools = []
    for each in functions(fields, "custom"):
        tools.append(tool(each.text("name"), each.any("description"), each.any("input_schema"), each.where))
    return tools


def _choice(fields: Fields, tools: list[dict[str, Any]]) -> tuple[Any, bool]:
    choice = fields.object("tool_choice")
    if choice is None or not tools:
        return "auto", True
    parallel = not choice.flag("disable_parallel_tool_use")
    kind = choice.one_of("type", ("auto", "any", "tool", "none"))
    if kind != "tool":
        return {"any": "required", "none": "none"}.get(kind or "auto", "auto"), parallel
    name = choice.text("name")
    if name not in (each["function"]["name"] for each in tools):
        raise choice.wrong("name", "the name of one of the tools")
    return {"type": "function", "function": {"name": name}}, parallel


# ---- answers


async def messages(service: Service, body: Mapping[str, Any]) -> Reply | Stream:
    answers = await service.begin(read(body))
    message = Message(answers)
    if answers.asked.stream:
        return Stream(message.stream(), answers.close)
    try:
        async for event in answers:
            message.take(event)
        return Reply.json(message.ended)
    finally:
        answers.close()


async def count_tokens(service: Service, body: Mapping[str, Any]) -> Reply:
    return Reply.json({"input_tokens": await service.count(read(body, counting=True))})


class Message:
    """The message that grows, block by block, and the events that tell of it."""

    def __init__(self, answers: Answers):
        self._answers = answers
        self._json = ""  # of the call that is open
        self._cut: list[str] = []  # ids of calls that were cut off
        self.whole: dict[str, Any] = {
            "id": random_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": answers.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        self._open = False

    @property
    def ended(self) -> dict[str, Any]:
        """All of it, without calls that were cut off; a stream has told of them before that was known."""
        content = [block for block in self.whole["content"] if block.get("id") not in self._cut]
        return {**self.whole, "content": content, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        """Tokens from the cache are no input tokens there. How many they are is known once the prompt is read."""
        used = self._answers.usage
        return {
            "input_tokens": used.prompt - used.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": used.cached,
            "output_tokens": used.completion,
        }

    async def stream(self) -> AsyncIterator[bytes]:
        yield _event("message_start", message=self.whole)
        yield _event("ping")
        try:
            async for event in self._answers:
                if isinstance(event, Waiting):
                    yield _event("ping")
                elif told := self.take(event):
                    yield b"".join(told)
        except Exception as error:
            refused = errors.told(error)
            yield sse(errors.anthropic(refused, random_id("req_")), "error")
        else:
            delta = {"stop_reason": self.whole["stop_reason"], "stop_sequence": self.whole["stop_sequence"]}
            yield _event("message_delta", delta=delta, usage=self._usage())
            yield _event("message_stop")

    def take(self, event: Any) -> list[bytes]:
        """What is to be told of an event."""
        if isinstance(event, Thought):
            told = self._begin({"type": "thinking", "thinking": "", "signature": ""})
            self._block["thinking"] += event.text
            return [*told, self._delta({"type": "thinking_delta", "thinking": event.text})]
        if isinstance(event, Text) and event.text:
            told = self._begin({"type": "text", "text": ""})
            self._block["text"] += event.text
            return [*told, self._delta({"type": "text_delta", "text": event.text})]
        if isinstance(event, CallBegins):
            return self._begin({"type": "tool_use", "id": event.id, "name": event.name, "input": {}})
        if isinstance(event, CallArguments):
            self._json += event.text
            return [self._delta({"type": "input_json_delta", "partial_json": event.text})]
        if isinstance(event, End):
            told = self._end()
            self.whole["stop_reason"] = REASONS[event.reason]
            if event.reason == "stop" and event.stop is not None:
                self.whole |= {"stop_reason": "stop_sequence", "stop_sequence": event.stop}
            return told
        return []

    @property
    def _block(self) -> dict[str, Any]:
        block: dict[str, Any] = self.whole["content"][-1]
        return block

    def _begin(self, block: dict[str, Any]) -> list[bytes]:
        """Begins a block, unless the one that is open goes on."""
        if self._open and self._block["type"] == block["type"] != "tool_use":
            return []
        told = self._end()
        self.whole["content"].append(block)
        self._open = True
        return [*told, _event("content_block_start", index=len(self.whole["content"]) - 1, content_block=block)]

    def _end(self) -> list[bytes]:
        if not self._open:
            return []
        told = []
        block = self._block
        if block["type"] == "thinking":
            told.append(self._delta({"type": "signature_delta", "signature": ""}))
        if block["type"] == "tool_use":
            arguments, self._json = arguments_of(self._json), ""
            block["input"] = arguments or {}
            if arguments is None:
                self._cut.append(block["id"])
        self._open = False
        return [*told, _event("content_block_stop", index=len(self.whole["content"]) - 1)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=len(self.whole["content"]) - 1, delta=delta)


def _event(kind: str, **more: Any) -> bytes:
    return sse({"type": kind, **more}, kind)
