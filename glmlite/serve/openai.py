"""OpenAI's Chat Completions and Completions: their requests read, their answers and chunks written."""

from __future__ import annotations

import codecs
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from .._package import VERSION
from ..generate import Completion, Logprob
from ..model import Model
from . import errors
from .answering import (
    Answers,
    CallArguments,
    CallBegins,
    End,
    Progress,
    Service,
    Text,
    Thought,
    Waiting,
    arguments_of,
)
from .asked import EFFORTS, MAX_CHOICES, MAX_TOOLS, Asked, Fields, content, functions, joined, tool
from .errors import Refused
from .http import Reply, Stream, sse

__all__ = [
    "OPTIONS",
    "budget_of",
    "chat",
    "choice_of",
    "completions",
    "random_id",
    "read_chat",
    "read_completions",
    "read_thinking",
    "written",
]

MAX_PROMPTS = 64
MOST_LOGPROBS = 20
LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON has no word for
FINGERPRINT = f"glmlite-{VERSION}"
KEEP_ALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"

# Fields of `Parameters` by OpenAI's names, and by those that llama-server, vLLM and others added.
OPTIONS = {
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
    "stop_token_ids": "stop_ids",
    "ignore_eos": "ignore_eos",
    "logit_bias": "logit_bias",
}
ROLES = {"developer": "system", "function": "tool"}


# ---- requests


def read_chat(body: Mapping[str, Any]) -> Asked:
    """Raises Refused."""
    fields = Fields(body)
    options = fields.options(OPTIONS)
    if fields.flag("logprobs"):
        options["logprobs"] = fields.whole("top_logprobs", 0, MOST_LOGPROBS) or 0
    if (schema := _response_format(fields)) is not None:
        options["schema"] = schema
    tools, choice = _tools(fields)
    stream_options = fields.object("stream_options") or Fields({})
    asked = Asked(
        model=fields.text("model"),
        messages=[_message(message) for message in fields.objects("messages")],
        options=options,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=fields.flag("parallel_tool_calls", True),
        reasoning=fields.any("reasoning_format") != "none",
        choices=fields.whole("n", 1, MAX_CHOICES) or 1,
        stream=fields.flag("stream"),
        usage=stream_options.flag("include_usage"),
        progress=fields.flag("return_progress"),
        timings=fields.flag("timings_per_token"),
    )
    if not asked.messages:
        raise Refused(400, "messages: none, expected at least one", param="messages")
    read_thinking(fields, asked)
    return asked


def read_thinking(fields: Fields, asked: Asked) -> None:
    """The ways in which clients switch thinking, the more special ones last."""
    asked.effort = fields.one_of("reasoning_effort", EFFORTS)
    if asked.effort == "none":
        asked.thinking = False
    for name in ("reasoning_budget", "thinking_budget"):
        asked.thinking_budget = budget_of(fields, name, asked.thinking_budget)
    if (thinking := fields.object("thinking")) is not None:
        asked.thinking = thinking.text("type") != "disabled"
        asked.thinking_budget = budget_of(thinking, "budget_tokens", asked.thinking_budget)
    if fields.has("enable_thinking"):
        asked.thinking = fields.flag("enable_thinking")
    if (variables := fields.object("chat_template_kwargs")) is not None:
        asked.template = dict(variables.values)


def budget_of(fields: Fields, name: str, default: int | None = None) -> int | None:
    """Tokens that a thought may have; None, or a negative number: any number."""
    tokens = fields.whole(name)
    return default if tokens is None else tokens if tokens >= 0 else None


def _tools(fields: Fields) -> tuple[list[dict[str, Any]], Any]:
    """Tools and the choice among them, as `Model.chat` takes them."""
    tools = []
    for each in functions(fields, "function"):
        function = each.object("function") or each
        tools.append(
            tool(function.text("name"), function.any("description"), function.any("parameters"), function.where)
        )
    for function in fields.objects("functions", MAX_TOOLS):
        tools.append(
            tool(function.text("name"), function.any("description"), function.any("parameters"), function.where)
        )
    return choice_of(fields, "tool_choice" if fields.has("tool_choice") else "function_call", tools)


def choice_of(fields: Fields, name: str, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """The tools that may be chosen, and the choice: "auto", "none", "required" or one function."""
    value = fields.any(name)
    if value is None or not tools:
        return tools, "auto"
    if value in ("none", "auto", "required", "any"):
        return tools, "required" if value == "any" else value
    choice = fields.object(name) if isinstance(value, dict) else None
    if choice is None:
        raise fields.wrong(name, "none, auto, required or a function")
    kind = choice.text("type", "function")
    if kind == "allowed_tools":
        allowed = choice.object("allowed_tools") or choice
        names = {(each.object("function") or each).text("name") for each in allowed.objects("tools", MAX_TOOLS)}
        tools = [each for each in tools if each["function"]["name"] in names]
        return tools, allowed.one_of("mode", ("auto", "required")) or "auto"
    wanted = (choice.object("function") or choice).text("name")
    if wanted not in (each["function"]["name"] for each in tools):
        raise Refused(400, f"{name}: {json.dumps(wanted)[:80]} is none of the tools", param=name)
    return tools, {"type": "function", "function": {"name": wanted}}


def _response_format(fields: Fields) -> dict[str, Any] | None:
    form = fields.object("response_format")
    if form is None:
        return None
    kind = form.one_of("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        return form.schema("schema") or {"type": "object"}
    if kind == "json_schema":
        inner = form.object("json_schema") or form
        if (schema := inner.schema("schema")) is None:
            where = f"{inner.where}schema" if inner is not form else "response_format.json_schema"
            raise Refused(400, f"{where} is missing, expected a JSON schema", param=where)
        return schema
    return None


def _message(message: Fields) -> dict[str, Any]:
    """A message as `Model.chat` takes it."""
    role = message.text("role")
    role = ROLES.get(role, role)
    if role not in ("system", "user", "assistant", "tool"):
        raise message.wrong("role", "system, developer, user, assistant or tool")
    read = content if role in ("user", "tool") else joined
    said = read(message, "content", ("text", "input_text", "output_text"), _refusal)
    out: dict[str, Any] = {"role": role, "content": said or (message.text("refusal") if role == "assistant" else "")}
    if role == "tool":
        for name in ("tool_call_id", "name"):
            if message.has(name):
                out[name] = message.text(name)
    if role == "assistant":
        if thought := message.text("reasoning_content") or _plain(message, "reasoning"):
            out["reasoning_content"] = thought
        if calls := [_call(call) for call in message.objects("tool_calls")]:
            out["tool_calls"] = calls
        elif (old := message.object("function_call")) is not None:
            out["tool_calls"] = [_call(Fields({"function": old.values}, message.where))]
    return out


def _refusal(part: Fields) -> str | None:
    return part.text("refusal") if part.text("type") == "refusal" else None


def _plain(message: Fields, name: str) -> str:
    """A field that some clients fill with something else than text."""
    value = message.any(name)
    return value if isinstance(value, str) else ""


def _call(call: Fields) -> dict[str, Any]:
    """A call of the history. Its arguments stay the text that they are: the model's own damage comes back, too."""
    function = call.object("function")
    if function is None and (custom := call.object("custom")) is not None:
        function = Fields({"name": custom.text("name"), "arguments": {"input": custom.text("input")}}, custom.where)
    if function is None or not function.text("name"):
        raise Refused(400, f"{call.where}function.name is missing", param=f"{call.where}function.name")
    arguments = function.any("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif arguments is not None and not isinstance(arguments, str):
        raise function.wrong("arguments", "the text of a JSON object")
    out = {"type": "function", "function": {"name": function.text("name"), "arguments": arguments or "{}"}}
    return {"id": call.text("id"), **out} if call.has("id") else out


def read_completions(body: Mapping[str, Any]) -> Asked:
    """Raises Refused."""
    fields = Fields(body)
    options = fields.options(OPTIONS)
    if (count := fields.whole("logprobs", 0, MOST_LOGPROBS)) is not None:
        options["logprobs"] = count
    choices = fields.whole("n", 1, MAX_CHOICES) or 1
    if (fields.whole("best_of", 1) or choices) != choices:
        raise fields.wrong("best_of", f"as many as n, {choices}")
    stream_options = fields.object("stream_options") or Fields({})
    suffix = fields.text("suffix") if fields.has("suffix") else ""
    asked = Asked(
        model=fields.text("model"),
        prompts=_prompts(fields),
        suffix=suffix or None,
        options=options,
        choices=choices,
        stream=fields.flag("stream"),
        usage=stream_options.flag("include_usage"),
    )
    if fields.flag("echo") and "logprobs" in options:
        raise Refused(400, "echo: the log probabilities of a prompt are not told; leave out logprobs", param="echo")
    return asked


def _prompts(fields: Fields) -> list[str | list[int]]:
    value = fields.any("prompt")
    if value is None or value == []:
        return [""]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(map(_is_token, value)):
        return [value]
    if not isinstance(value, list) or not all(_is_prompt(each) for each in value):
        raise fields.wrong("prompt", "a string, token ids, or a list of either")
    if len(value) > MAX_PROMPTS:
        raise Refused(400, f"prompt has {len(value)} entries, expected at most {MAX_PROMPTS}", param="prompt")
    return value


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(map(_is_token, value)))


# ---- answers


def random_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


async def chat(service: Service, body: Mapping[str, Any]) -> Reply | Stream:
    answers = await service.begin(read_chat(body))
    if answers.asked.stream:
        return Stream(_chat_chunks(answers), answers.close)
    try:
        return Reply.json(await _chat_whole(answers))
    finally:
        answers.close()


async def _chat_chunks(answers: Answers) -> AsyncIterator[bytes]:
    asked = answers.asked
    frame = {
        "id": random_id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": answers.created,
        "model": answers.name,
        "system_fingerprint": FINGERPRINT,
    }

    def chunk(choice: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": more.pop("logprobs", None), "finish_reason": reason}]
        return sse({**frame, "choices": choices, **{name: value for name, value in more.items() if value is not None}})

    for i in range(asked.choices):
        yield chunk(i, {"role": "assistant", "content": ""})
    try:
        async for event in answers:
            if isinstance(event, Text):
                told = logprobs_of(answers.model, event.logprobs)
                speeds = timings(answers) if asked.timings else None
                yield chunk(event.choice, {"content": event.text}, logprobs=told, timings=speeds)
            elif isinstance(event, Thought):
                yield chunk(event.choice, {"content": "", "reasoning_content": event.text})
            elif isinstance(event, CallBegins):
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.call, "id": event.id, "type": "function", "function": function}
                yield chunk(event.choice, {"tool_calls": [call]})
            elif isinstance(event, CallArguments):
                part = {"index": event.call, "function": {"arguments": event.text}}
                yield chunk(event.choice, {"tool_calls": [part]})
            elif isinstance(event, Progress):
                progress = {"total": event.total, "processed": event.done, "cached": event.reused}
                yield chunk(0, {"content": ""}, prompt_progress=progress)
            elif isinstance(event, End):
                yield chunk(event.choice, {}, event.reason, timings=timings(answers))
            elif isinstance(event, Waiting):
                yield KEEP_ALIVE
    except Exception as error:
        yield sse(errors.openai(errors.told(error)))
    else:
        if asked.usage:
            yield sse({**frame, "choices": [], "usage": usage_of(answers), "timings": timings(answers)})
    yield DONE


async def _chat_whole(answers: Answers) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": ""} for _ in range(answers.asked.choices)]
    told: list[list[dict[str, Any]]] = [[] for _ in messages]
    reasons = ["stop" for _ in messages]
    async for event in answers:
        if isinstance(event, Text):
            messages[event.choice]["content"] += event.text
            told[event.choice] += (logprobs_of(answers.model, event.logprobs) or {"content": []})["content"]
        elif isinstance(event, Thought):
            message = messages[event.choice]
            message["reasoning_content"] = message.get("reasoning_content", "") + event.text
        elif isinstance(event, CallBegins):
            function = {"name": event.name, "arguments": ""}
            calls = messages[event.choice].setdefault("tool_calls", [])
            calls.append({"id": event.id, "type": "function", "function": function})
        elif isinstance(event, CallArguments):
            messages[event.choice]["tool_calls"][event.call]["function"]["arguments"] += event.text
        elif isinstance(event, End):
            reasons[event.choice] = event.reason
    for message in messages:  # a call that was cut off is none, though a stream has told of it
        calls = message.pop("tool_calls", [])
        if calls := [call for call in calls if arguments_of(call["function"]["arguments"]) is not None]:
            message["tool_calls"] = calls
    return _whole_of(answers, "chat.completion", "chatcmpl-", _chat_choices(answers.asked, messages, told, reasons))


def _chat_choices(
    asked: Asked, messages: Sequence[dict[str, Any]], told: Sequence[list[dict[str, Any]]], reasons: Sequence[str]
) -> list[dict[str, Any]]:
    """told: the log probabilities of each, as chats tell them."""
    wanted = "logprobs" in asked.options
    return [
        {
            "index": i,
            "message": _message_of(message),
            "logprobs": {"content": told[i], "refusal": None} if wanted else None,
            "finish_reason": reasons[i],
        }
        for i, message in enumerate(messages)
    ]


def _whole_of(answers: Answers, kind: str, prefix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": random_id(prefix),
        "object": kind,
        "created": answers.created,
        "model": answers.name,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": usage_of(answers),
        "timings": timings(answers),
    }


def written(
    model: Model, asked: Asked, answers: Sequence[Completion], name: str, row: str, echo: bool
) -> dict[str, Any]:
    """The whole answer to a request that is a row of many, as a client would get it: without what would be another the
    next time, the clock, how much was in the cache and random ids. name: the model's; row: what its ids are made of."""
    reasons = [each.finish_reason for each in answers]
    if asked.messages is not None:
        messages = [_written_message(each, f"{row}-{i}") for i, each in enumerate(answers)]
        told = [(logprobs_of(model, each.logprobs) or {"content": []})["content"] for each in answers]
        kind, prefix, choices = "chat.completion", "chatcmpl-", _chat_choices(asked, messages, told, reasons)
    else:
        echoed = [_echoed(model, asked, i) if echo else "" for i in range(len(answers))]
        texts = [before + each.text for before, each in zip(echoed, answers)]
        logprobs = [each.logprobs or [] for each in answers]
        kind, prefix, choices = "text_completion", "cmpl-", _text_choices(model, asked, texts, logprobs, reasons)
    prompt = sum(each.stats.prompt_tokens for each in answers[:: asked.choices])
    completion = sum(len(each.tokens) for each in answers)
    return {
        "id": prefix + row,
        "object": kind,
        "created": 0,
        "model": asked.model or name,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _written_message(answer: Completion, row: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        calls = [call.as_dict() for call in answer.tool_calls]
        message["tool_calls"] = [{**call, "id": f"call_{row}-{i}"} for i, call in enumerate(calls)]
    return message


def _message_of(message: dict[str, Any]) -> dict[str, Any]:
    """content is null where there is none beside calls or a thought."""
    bare = not message["content"] and len(message) > 2
    return {**message, "content": None if bare else message["content"], "refusal": None}


def usage_of(answers: Answers) -> dict[str, Any]:
    used = answers.usage
    return {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion,
        "prompt_tokens_details": {"cached_tokens": used.cached},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning},
    }


def timings(answers: Answers) -> dict[str, Any]:
    """Speeds, as llama-server tells them."""
    stats = answers.stats
    return {
        "cache_n": stats.reused_tokens,
        "prompt_n": stats.prompt_tokens - stats.reused_tokens,
        "prompt_ms": round(stats.prompt_seconds * 1000, 3),
        "prompt_per_second": stats.prompt_rate,
        "predicted_n": stats.generated_tokens,
        "predicted_ms": round(stats.generation_seconds * 1000, 3),
        "predicted_per_second": stats.generation_rate,
        "draft_n": stats.drafted_tokens,
        "draft_n_accepted": stats.accepted_tokens,
    }


def logprobs_of(model: Model, logprobs: Sequence[Logprob] | None) -> dict[str, Any] | None:
    """As chats tell them."""
    if logprobs is None:
        return None

    def one(token: int, logprob: float) -> dict[str, Any]:
        piece = model.tokenizer.piece(token)
        text = piece.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(piece)}

    content = [{**one(each.token, each.logprob), "top_logprobs": [one(*top) for top in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


async def completions(service: Service, body: Mapping[str, Any]) -> Reply | Stream:
    asked = read_completions(body)
    echo = bool(body.get("echo"))
    answers = await service.begin(asked)
    if asked.stream:
        return Stream(_text_chunks(answers, echo), answers.close)
    try:
        return Reply.json(await _text_whole(answers, echo))
    finally:
        answers.close()


def _echoed(model: Model, asked: Asked, choice: int) -> str:
    prompt = asked.prompts[choice // asked.choices]
    return prompt if isinstance(prompt, str) else model.detokenize(prompt)


async def _text_chunks(answers: Answers, echo: bool) -> AsyncIterator[bytes]:
    asked = answers.asked
    frame = {
        "id": random_id("cmpl-"),
        "object": "text_completion",
        "created": answers.created,
        "model": answers.name,
        "system_fingerprint": FINGERPRINT,
    }
    offsets = [_Offsets() for _ in range(asked.count)]

    def chunk(choice: int, text: str, logprobs: Any = None, reason: str | None = None, **more: Any) -> bytes:
        choices = [{"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}]
        return sse({**frame, "choices": choices, **more})

    for i in range(asked.count):
        yield chunk(i, _echoed(answers.model, asked, i) if echo else "")
    try:
        async for event in answers:
            if isinstance(event, Text):
                told = _text_logprobs(answers.model, event.logprobs, offsets[event.choice])
                yield chunk(event.choice, event.text, told)
            elif isinstance(event, End):
                yield chunk(event.choice, "", None, event.reason, timings=timings(answers))
            elif isinstance(event, Waiting):
                yield KEEP_ALIVE
    except Exception as error:
        yield sse(errors.openai(errors.told(error)))
    else:
        if asked.usage:
            yield sse({**frame, "choices": [], "usage": usage_of(answers)})
    yield DONE


async def _text_whole(answers: Answers, echo: bool) -> dict[str, Any]:
    count = answers.asked.count
    texts = [""] * count
    told: list[list[Logprob]] = [[] for _ in texts]
    reasons = ["stop"] * count
    async for event in answers:
        if isinstance(event, Text):
            texts[event.choice] += event.text
            told[event.choice] += event.logprobs or []
        elif isinstance(event, End):
            reasons[event.choice] = event.reason
    model, asked = answers.model, answers.asked
    texts = [(_echoed(model, asked, i) if echo else "") + text for i, text in enumerate(texts)]
    return _whole_of(answers, "text_completion", "cmpl-", _text_choices(model, asked, texts, told, reasons))


def _text_choices(
    model: Model, asked: Asked, texts: Sequence[str], told: Sequence[Sequence[Logprob]], reasons: Sequence[str]
) -> list[dict[str, Any]]:
    wanted = "logprobs" in asked.options
    return [
        {
            "index": i,
            "text": text,
            "logprobs": _text_logprobs(model, told[i], _Offsets()) if wanted else None,
            "finish_reason": reasons[i],
        }
        for i, text in enumerate(texts)
    ]


class _Offsets:
    """Where the tokens of an answer begin, in characters of its text; within a character, where that begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._next = 0

    def next(self, piece: bytes) -> int:
        begin = self._next
        self._next += len(self._decoder.decode(piece))
        return begin


def _text_logprobs(model: Model, logprobs: Sequence[Logprob] | None, offsets: _Offsets) -> dict[str, Any] | None:
    """As completions tell them: lists of equal length."""
    if logprobs is None:
        return None

    def text(token: int) -> str:
        return model.tokenizer.piece(token).decode("utf-8", "replace")

    return {
        "tokens": [text(each.token) for each in logprobs],
        "token_logprobs": [max(each.logprob, LEAST_LOGPROB) for each in logprobs],
        "top_logprobs": [{text(i): max(p, LEAST_LOGPROB) for i, p in each.top} for each in logprobs],
        "text_offset": [offsets.next(model.tokenizer.piece(each.token)) for each in logprobs],
    }
