"""OpenAI's Responses: requests read, answers and events written. Nothing is kept between requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from . import errors
from .answering import Answers, CallArguments, CallBegins, End, Service, Text, Thought, Waiting, arguments_of
from .asked import EFFORTS, Asked, Fields, content, functions, joined, left_out, tool
from .errors import Refused
from .http import Reply, Stream, sse
from .openai import KEEP_ALIVE, OPTIONS, choice_of, random_id, read_thinking

__all__ = ["read", "responses"]

OWN_OPTIONS = {"max_output_tokens": "max_tokens", **OPTIONS}
THOUGHTS = "rs_"  # with this the ids of reasoning items begin
TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


# ---- requests


def read(body: Mapping[str, Any]) -> Asked:
    """Raises Refused."""
    fields = Fields(body)
    for name in ("previous_response_id", "conversation"):
        if fields.has(name):
            why = f"{name}: answers are not kept here; send the whole conversation as input"
            raise Refused(400, why, param=name)
    if fields.flag("background"):
        raise Refused(400, "background: answers are not kept here; leave it out", param="background")
    options = fields.options(OWN_OPTIONS)
    if (schema := _text_format(fields)) is not None:
        options["schema"] = schema
    tools = _tools(fields)
    tools, choice = choice_of(fields, "tool_choice", tools)
    asked = Asked(
        model=fields.text("model"),
        messages=_messages(fields),
        options=options,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=fields.flag("parallel_tool_calls", True),
        stream=fields.flag("stream"),
        schema_name="text.format",
    )
    read_thinking(fields, asked)
    if (reasoning := fields.object("reasoning")) is not None:
        asked.effort = reasoning.one_of("effort", EFFORTS) or asked.effort
        if asked.effort == "none":
            asked.thinking = False
    if not asked.messages:
        raise Refused(400, "input: nothing, expected a text or items", param="input")
    return asked


def _tools(fields: Fields) -> list[dict[str, Any]]:
    tools = []
    for each in functions(fields, "function"):
        own = each.object("function") or each
        tools.append(tool(own.text("name"), own.any("description"), own.any("parameters"), own.where))
    return tools


def _text_format(fields: Fields) -> dict[str, Any] | None:
    text = fields.object("text")
    form = text.object("format") if text is not None else None
    if form is None:
        return None
    kind = form.one_of("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        if (schema := form.schema("schema")) is None:
            raise Refused(400, f"{form.where}schema is missing, expected a JSON schema", param=f"{form.where}schema")
        return schema
    return None


def _messages(fields: Fields) -> list[dict[str, Any]]:
    """A conversation of items: calls and thoughts that stand alone there belong to the assistant's message."""
    messages: list[dict[str, Any]] = []
    if instructions := fields.text("instructions"):
        messages.append({"role": "system", "content": instructions})
    if isinstance(fields.any("input"), str):
        return [*messages, {"role": "user", "content": fields.text("input")}]
    thought = ""
    others = set()
    for item in fields.objects("input"):
        kind = item.text("type", "message")
        if kind == "reasoning":
            thought += joined(item, "content", TEXTS) or joined(item, "summary", TEXTS)
        elif kind == "message":
            message = _message(item)
            if message["role"] == "assistant":
                if thought:
                    message["reasoning_content"], thought = thought, ""
            else:
                thought = ""
            messages.append(message)
        elif kind == "function_call":
            last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
            if last is None or thought:
                last = {"role": "assistant", "content": ""}
                messages.append(last)
            if thought:
                last["reasoning_content"], thought = thought, ""
            call = {"name": item.text("name"), "arguments": item.text("arguments") or "{}"}
            if not call["name"]:
                raise Refused(400, f"{item.where}name is missing", param=f"{item.where}name")
            calls = last.setdefault("tool_calls", [])
            calls.append({"id": item.text("call_id"), "type": "function", "function": call})
        elif kind == "function_call_output":
            output = content(item, "output", TEXTS)
            messages.append({"role": "tool", "tool_call_id": item.text("call_id"), "content": output})
        elif kind == "item_reference" and not item.text("id").startswith(THOUGHTS):
            why = f"{item.where}id: answers are not kept here; send the item itself, as clients do with store: false"
            raise Refused(400, why, param=f"{item.where}id")
        else:
            others.add(kind)
    left_out("items", others)
    return messages


def _message(item: Fields) -> dict[str, Any]:
    role = {"developer": "system"}.get(item.text("role"), item.text("role"))
    if role not in ("system", "user", "assistant"):
        raise item.wrong("role", "system, developer, user or assistant")
    refusal = _refusal if role == "assistant" else None
    read = content if role == "user" else joined
    return {"role": role, "content": read(item, "content", TEXTS, refusal)}


def _refusal(part: Fields) -> str | None:
    return part.text("refusal") if part.text("type") == "refusal" else None


# ---- answers


async def responses(service: Service, body: Mapping[str, Any]) -> Reply | Stream:
    asked = read(body)
    answers = await service.begin(asked)
    response = Response(answers, body)
    if asked.stream:
        return Stream(response.stream(), answers.close)
    try:
        async for event in answers:
            response.take(event)
        return Reply.json(response.ended)
    finally:
        answers.close()


class Response:
    """The response that grows, item by item, and the events that tell of it."""

    def __init__(self, answers: Answers, body: Mapping[str, Any]):
        self._answers = answers
        self._number = -1
        self._item: dict[str, Any] | None = None
        asked = answers.asked
        self.whole: dict[str, Any] = {
            "id": random_id("resp_"),
            "object": "response",
            "created_at": answers.created,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") if isinstance(body.get("metadata"), dict) else {},
            "model": answers.name,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": asked.effort, "summary": None},
            "store": False,
            "temperature": body.get("temperature"),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p"),
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }

    @property
    def ended(self) -> dict[str, Any]:
        """All of it, without calls that were cut off; a stream has told of them before that was known."""
        return {**self.whole, "output": [item for item in self.whole["output"] if not _is_cut(item)]}

    async def stream(self) -> AsyncIterator[bytes]:
        # Of the objects that grow, an event has what they are at that moment: it is written before it is given out.
        yield self._event("response.created", response=self.whole)
        yield self._event("response.in_progress", response=self.whole)
        try:
            async for event in self._answers:
                if isinstance(event, Waiting):
                    yield KEEP_ALIVE
                elif told := self.take(event):
                    yield b"".join(told)
        except Exception as error:
            refused = errors.told(error)
            code = "rate_limit_exceeded" if refused.status == 429 else "server_error"
            self.whole |= {"status": "failed", "error": {"code": code, "message": refused.message}}
            yield self._event("response.failed", response=self.whole)
        else:
            kind = "completed" if self.whole["status"] == "completed" else "incomplete"
            yield self._event(f"response.{kind}", response=self.whole)

    def take(self, event: Any) -> list[bytes]:
        """What is to be told of an event."""
        if isinstance(event, Thought):
            return self._text("reasoning", event.text)
        if isinstance(event, Text):
            return self._text("message", event.text) if event.text else []
        if isinstance(event, CallBegins):
            item = {
                "type": "function_call",
                "id": random_id("fc_"),
                "call_id": event.id,
                "name": event.name,
                "arguments": "",
                "status": "in_progress",
            }
            return [*self._close(), self._add(item)]
        if isinstance(event, CallArguments):
            assert self._item is not None
            self._item["arguments"] += event.text
            return [self._of_item("response.function_call_arguments.delta", delta=event.text)]
        if isinstance(event, End):
            closed = self._close("incomplete" if event.reason == "length" else "completed")
            self._finish(event.reason)
            return closed
        return []

    def _finish(self, reason: str) -> None:
        used = self._answers.usage
        self.whole["usage"] = {
            "input_tokens": used.prompt,
            "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
            "output_tokens": used.completion,
            "output_tokens_details": {"reasoning_tokens": used.reasoning},
            "total_tokens": used.prompt + used.completion,
        }
        self.whole["status"] = "completed"
        if reason == "length":
            self.whole |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}

    def _text(self, kind: str, text: str) -> list[bytes]:
        """The next piece of a thought or a message, which begins an item where the last one was of another kind."""
        told: list[bytes] = []
        if self._item is None or self._item["type"] != kind:
            told += self._close()
            item: dict[str, Any]
            if kind == "reasoning":
                item = {"type": kind, "id": random_id(THOUGHTS), "summary": [], "content": [], "status": "in_progress"}
                part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
            else:
                item = {
                    "type": kind,
                    "id": random_id("msg_"),
                    "role": "assistant",
                    "status": "in_progress",
                    "content": [],
                }
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            told.append(self._add(item))
            item["content"].append(part)
            told.append(self._of_item("response.content_part.added", content_index=0, part=part))
        assert self._item is not None
        self._item["content"][0]["text"] += text
        name, more = _TEXT_EVENTS[kind]
        told.append(self._of_item(f"{name}.delta", content_index=0, delta=text, **more()))
        return told

    def _add(self, item: dict[str, Any]) -> bytes:
        self._item = item
        self.whole["output"].append(item)
        return self._event("response.output_item.added", output_index=self._index, item=item)

    def _close(self, status: str = "completed") -> list[bytes]:
        """Ends the item that is open."""
        item = self._item
        if item is None:
            return []
        item["status"] = "incomplete" if _is_cut(item) else status
        told: list[bytes] = []
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            told.append(self._of_item("response.function_call_arguments.done", **done))
        else:
            name, more = _TEXT_EVENTS[item["type"]]
            part = item["content"][0]
            told.append(self._of_item(f"{name}.done", content_index=0, text=part["text"], **more()))
            told.append(self._of_item("response.content_part.done", content_index=0, part=part))
        told.append(self._event("response.output_item.done", output_index=self._index, item=item))
        self._item = None
        return told

    @property
    def _index(self) -> int:
        return len(self.whole["output"]) - 1

    def _of_item(self, kind: str, **more: Any) -> bytes:
        assert self._item is not None
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **more)

    def _event(self, kind: str, **more: Any) -> bytes:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **more}, kind)


def _is_cut(item: Mapping[str, Any]) -> bool:
    return item["type"] == "function_call" and arguments_of(item["arguments"]) is None


_TEXT_EVENTS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "reasoning": ("response.reasoning_text", dict),
    "message": ("response.output_text", lambda: {"logprobs": []}),
}
