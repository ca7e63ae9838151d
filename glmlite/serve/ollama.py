"""Ollama's API: requests read, answers written as lines of JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from . import errors, facts
from .answering import Answers, CallArguments, CallBegins, End, Service, Text, Thought, Waiting, arguments_of
from .asked import MAX_TOOLS, Asked, Fields, joined, shown, tool
from .errors import Refused
from .http import Reply, Stream, dump, kind_of
from .images import Encoded

__all__ = ["chat", "generate", "ps", "show", "tags", "version"]

LINES = "application/x-ndjson"
VERSION = "0.12.0"  # of the API: some clients compare numbers

OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


# ---- requests


def _read(fields: Fields) -> Asked:
    options = fields.object("options") or Fields({}, "options.")
    values = dict(options.values)
    if (count := options.whole("num_predict")) is not None and count <= 0:  # no limit, or to fill the context
        values["num_predict"] = None
    if (window := options.whole("repeat_last_n")) is not None and window < 0:  # the whole context
        values["repeat_last_n"] = 1 << 20
    chosen = Fields(values, "options.").options(OPTIONS)
    form = fields.any("format")
    if form == "json":
        chosen["schema"] = {"type": "object"}
    elif isinstance(form, dict):
        chosen["schema"] = fields.schema("format")
    elif form not in (None, ""):
        raise fields.wrong("format", "json or a schema")
    asked = Asked(
        model=fields.text("model") or fields.text("name"),
        options=chosen,
        stream=fields.flag("stream", True),
        schema_name="format",
    )
    think = fields.any("think")
    if isinstance(think, bool):
        asked.thinking = think
    elif think is not None:
        asked.thinking, asked.effort = True, fields.one_of("think", ("low", "medium", "high", "max"))
    return asked


def read_chat(fields: Fields) -> Asked:
    """Raises Refused."""
    asked = _read(fields)
    asked.messages = _messages(fields)
    for each in fields.objects("tools", MAX_TOOLS):
        own = each.object("function") or each
        asked.tools.append(tool(own.text("name"), own.any("description"), own.any("parameters"), own.where))
    return asked


def _messages(fields: Fields) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for message in fields.objects("messages"):
        role = {"developer": "system"}.get(message.text("role"), message.text("role"))
        if role not in ("system", "user", "assistant", "tool"):
            raise message.wrong("role", "system, user, assistant or tool")
        said = joined(message, "content", ("text",))
        if images := _images(message):
            if role not in ("user", "tool"):
                raise message.wrong("images", f"none in a message of the role {role}")
            said = shown([*images, said])
        read: dict[str, Any] = {"role": role, "content": said}
        if role == "tool":
            for theirs, ours in (("tool_name", "name"), ("name", "name"), ("tool_call_id", "tool_call_id")):
                if message.text(theirs):
                    read.setdefault(ours, message.text(theirs))
        if role == "assistant":
            if thought := message.text("thinking"):
                read["reasoning_content"] = thought
            if calls := [_call(call) for call in message.objects("tool_calls")]:
                read["tool_calls"] = calls
        out.append(read)
    return out


def _images(fields: Fields) -> list[Encoded]:
    """They stand before the text."""
    given = fields.items("images")
    for i, image in enumerate(given):
        if not isinstance(image, str):
            where = f"{fields.where}images[{i}]"
            raise Refused(400, f"{where} is {kind_of(image)}, expected base64 of an image", param=where)
    images = [Encoded(image, f"{fields.where}images[{i}]") for i, image in enumerate(given)]
    given[:] = [""] * len(given)  # they are large, and kept once
    return images


def _call(call: Fields) -> dict[str, Any]:
    function = call.object("function")
    if function is None or not function.text("name"):
        raise Refused(400, f"{call.where}function.name is missing", param=f"{call.where}function.name")
    arguments = function.any("arguments")
    if not isinstance(arguments, str):
        given = function.object("arguments")
        arguments = json.dumps(given.values if given is not None else {}, ensure_ascii=False)
    out = {"type": "function", "function": {"name": function.text("name"), "arguments": arguments}}
    return {"id": call.text("id"), **out} if call.has("id") else out


# ---- answers


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def chat(service: Service, body: Mapping[str, Any]) -> Reply | Stream:
    fields = Fields(body)
    asked = read_chat(fields)
    message = {"role": "assistant", "content": ""}
    if not asked.messages:
        return await _loaded(service, asked, fields, {"message": message})
    return await _answer(service, asked, chatting=True)


async def generate(service: Service, body: Mapping[str, Any]) -> Reply | Stream:
    """A prompt is one question of a chat, unless it is `raw` or has a suffix, or the model is none for chats."""
    fields = Fields(body)
    asked = _read(fields)
    images = _images(fields)
    prompt, suffix, system = fields.text("prompt"), fields.text("suffix"), fields.text("system")
    if not prompt and not suffix and not images:
        return await _loaded(service, asked, fields, {"response": ""})
    lease = await service.pool.lease(asked.model)
    try:
        plain = fields.flag("raw") or suffix or lease.model.chat_format is None
    finally:
        lease.release()
    if plain:
        if images:
            why = "images: they stand in chats, expected none with raw, a suffix or a model that does not chat"
            raise Refused(400, why, param="images")
        asked.prompts, asked.suffix = [prompt], suffix or None
    else:
        asked.messages = [{"role": "system", "content": system}] if system else []
        asked.messages.append({"role": "user", "content": shown([*images, prompt])})
    return await _answer(service, asked, chatting=False)


async def _loaded(service: Service, asked: Asked, fields: Fields, empty: dict[str, Any]) -> Reply:
    """A request without a question asks for the model to be there, or to go, which it does by itself."""
    reason = "unload" if fields.any("keep_alive") in (0, "0", "0s", "0m") else "load"
    if reason == "load":
        (await service.pool.lease(asked.model)).release()
    else:
        service.pool.find(asked.model)
    return Reply.json({"model": asked.model, "created_at": _now(), **empty, "done": True, "done_reason": reason})


async def _answer(service: Service, asked: Asked, chatting: bool) -> Reply | Stream:
    answers = await service.begin(asked)
    lines = Lines(answers, chatting)
    if asked.stream:
        return Stream(lines.stream(), answers.close, LINES)
    try:
        parts = [part async for event in answers for part in lines.take(event)]
        return Reply.json(lines.whole(parts))
    finally:
        answers.close()


class Lines:
    """The lines of an answer. Calls come whole, and those of a row in one line: clients number them by their place."""

    def __init__(self, answers: Answers, chatting: bool):
        self._answers = answers
        self._chatting = chatting
        self._calls: list[dict[str, Any]] = []
        self._reason = "stop"

    async def stream(self) -> AsyncIterator[bytes]:
        try:
            async for event in self._answers:
                for part in [{"content": ""}] if isinstance(event, Waiting) else self.take(event):
                    yield dump(self._line(part)) + b"\n"
            yield dump({**self._line({"content": ""}), **self._ending()}) + b"\n"
        except Exception as error:
            yield dump(errors.ollama(errors.told(error))) + b"\n"

    def take(self, event: Any) -> list[dict[str, Any]]:
        """The parts of messages that an event completes."""
        if isinstance(event, Text) and event.text:
            return [*self._called(), {"content": event.text}]
        if isinstance(event, Thought):
            return [{"content": "", "thinking": event.text}]
        if isinstance(event, CallBegins):
            function = {"index": event.call, "name": event.name, "arguments": ""}
            self._calls.append({"id": event.id, "function": function})
        if isinstance(event, CallArguments):
            self._calls[-1]["function"]["arguments"] += event.text
        if isinstance(event, End):
            self._reason = "length" if event.reason == "length" else "stop"
            return self._called()
        return []

    def _called(self) -> list[dict[str, Any]]:
        """The calls so far, without those that were cut off, if there are any."""
        calls = []
        for call in self._calls:
            if (arguments := arguments_of(call["function"]["arguments"])) is not None:
                calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        self._calls = []
        return [{"content": "", "tool_calls": calls}] if calls else []

    def whole(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"content": "".join(part["content"] for part in parts)}
        if thought := "".join(part.get("thinking", "") for part in parts):
            message["thinking"] = thought
        if calls := [call for part in parts for call in part.get("tool_calls", ())]:
            message["tool_calls"] = calls
        return {**self._line(message), **self._ending()}

    def _line(self, part: dict[str, Any]) -> dict[str, Any]:
        head = {"model": self._answers.name, "created_at": _now()}
        if self._chatting:
            return {**head, "message": {"role": "assistant", **part}, "done": False}
        return {**head, "response": part["content"], **{k: v for k, v in part.items() if k != "content"}, "done": False}

    def _ending(self) -> dict[str, Any]:
        stats, used = self._answers.stats, self._answers.usage
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": int(self._answers.seconds * 1e9),
            "load_duration": 0,
            "prompt_eval_count": used.prompt,
            "prompt_eval_duration": int(stats.prompt_seconds * 1e9),
            "eval_count": used.completion,
            "eval_duration": int(stats.generation_seconds * 1e9),
        }


# ---- models


async def version(service: Service, body: Mapping[str, Any]) -> Reply:
    return Reply.json({"version": VERSION})


async def tags(service: Service, body: Mapping[str, Any]) -> Reply:
    found = [await facts.of(service, entry) for entry in service.pool.entries()]
    return Reply.json({"models": [_listed(each) for each in found if each is not None]})


async def ps(service: Service, body: Mapping[str, Any]) -> Reply:
    running = []
    for entry in service.pool.entries():
        each = await facts.of(service, entry) if entry.model is not None and entry.model.loaded else None
        if each is not None:
            extra = {"expires_at": "0001-01-01T00:00:00Z", "size_vram": 0, "context_length": each.context}
            running.append(_listed(each) | extra)
    return Reply.json({"models": running})


def _listed(each: facts.Facts) -> dict[str, Any]:
    when = datetime.datetime.fromtimestamp(each.created, datetime.timezone.utc)
    return {
        "name": each.name,
        "model": each.name,
        "modified_at": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "size": each.nbytes,
        "digest": each.digest,
        "details": _details(each),
    }


def _details(each: facts.Facts) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": each.architecture,
        "families": [each.architecture],
        "parameter_size": each.size,
        "quantization_level": each.quantization,
    }


async def show(service: Service, body: Mapping[str, Any]) -> Reply:
    fields = Fields(body)
    each = await facts.of(service, service.pool.find(fields.text("model") or fields.text("name")))
    if each is None:
        raise Refused(500, "the model's file cannot be read")
    info = {
        "general.architecture": each.architecture,
        "general.basename": each.name,
        "general.parameter_count": each.parameters,
        f"{each.architecture}.context_length": each.context,
    }
    return Reply.json(
        {
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": each.template,
            "details": _details(each),
            "model_info": info,
            "capabilities": ["completion", *each.capabilities],
            "modified_at": _listed(each)["modified_at"],
        }
    )
