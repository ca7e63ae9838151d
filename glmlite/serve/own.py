"""What is no other program's API, and the small ones of llama-server that tools use: health, metrics, properties,
tokens, code for editors."""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any

from .._package import VERSION
from . import errors, facts, openai, responses
from .answering import Answers, End, Service, Text, Waiting
from .asked import Asked, Fields
from .errors import Refused
from .http import Reply, Stream, sse
from .metrics import Labels
from .pool import Entry

__all__ = [
    "apply_template",
    "count_chat",
    "count_responses",
    "detokenize",
    "gauges",
    "health",
    "infill",
    "metrics",
    "model",
    "models",
    "not_here",
    "props",
    "slots",
    "tokenize",
]


async def health(service: Service, body: Mapping[str, Any]) -> Reply:
    if service.pool.closed:
        raise Refused(503, "the server is ending")
    if service.pool.loading:
        raise Refused(503, "Loading model", retry=1)
    return Reply.json({"status": "ok"})


async def metrics(service: Service, body: Mapping[str, Any]) -> Reply:
    text = service.metrics.text(gauges(service))
    return Reply(text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


def gauges(service: Service) -> Iterator[tuple[str, Labels, float]]:
    """(name, labels, value) of what the models that are loaded do now."""
    for entry in service.pool.entries():
        if entry.model is None or entry.model.closed:
            continue
        labels = (("model", entry.name),)
        status = entry.model.status()
        for name in ("running", "waiting", "kv_tokens", "kv_tokens_free"):
            yield f"glmlite_{name}", labels, getattr(status, name)
        yield "glmlite_preempted_total", labels, status.preempted


async def models(service: Service, body: Mapping[str, Any]) -> Reply:
    """One answer for the packages of OpenAI and of Anthropic, which ask the same path and read different keys."""
    data = [await _listed(service, entry) for entry in service.pool.entries()]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return Reply.json({"object": "list", "data": data, "has_more": False, **ends})


async def model(service: Service, body: Mapping[str, Any], name: str) -> Reply:
    return Reply.json(await _listed(service, service.pool.find(name)))


async def _listed(service: Service, entry: Entry) -> dict[str, Any]:
    when = datetime.datetime.fromtimestamp(entry.created, datetime.timezone.utc)
    listed: dict[str, Any] = {
        "id": entry.name,
        "object": "model",
        "type": "model",
        "created": entry.created,
        "created_at": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "display_name": entry.name,
        "owned_by": "glmlite",
    }
    if entry.model is not None:
        listed |= {"max_model_len": entry.model.context, "context_length": entry.model.context}
        sees = entry.model.images
    else:
        each = await facts.of(service, entry)
        sees = each is not None and "vision" in each.capabilities
    return {**listed, "capabilities": {"vision": sees, "image_input": {"supported": sees}}}


async def props(service: Service, body: Mapping[str, Any]) -> Reply:
    entry = service.pool.find(Fields(body).text("model"))
    each = await facts.of(service, entry)
    loaded = entry.model
    return Reply.json(
        {
            "model": entry.name,
            "models": [known.name for known in service.pool.entries()],
            "context": loaded.context if loaded is not None else each.context if each is not None else 0,
            "defaults": loaded.defaults if loaded is not None else {},
            "chat_format": loaded.chat_format if loaded is not None else None,
            "capabilities": list(each.capabilities) if each is not None else [],
            "total_slots": loaded.parallel if loaded is not None else 0,
            "version": VERSION,
        }
    )


async def slots(service: Service, body: Mapping[str, Any]) -> Reply:
    """As many as requests may run at the same time; which of them is which is not told apart."""
    found: list[dict[str, Any]] = []
    for entry in service.pool.entries():
        if entry.model is not None and not entry.model.closed:
            running = entry.model.status().running
            for i in range(entry.model.parallel):
                slot = {"id": len(found), "model": entry.name, "n_ctx": entry.model.context}
                found.append({**slot, "is_processing": i < running})
    return Reply.json(found)


async def tokenize(service: Service, body: Mapping[str, Any]) -> Reply:
    fields = Fields(body)
    text = fields.text("content") or fields.text("prompt")
    special, prefix, pieces = fields.flag("parse_special", True), fields.flag("add_special"), fields.flag("with_pieces")
    lease = await service.pool.lease(fields.text("model"))
    try:
        loaded = lease.model
        ids = await service.work(lambda cancel: loaded.tokenize(text, special=special, prefix=prefix))
        if pieces:
            return Reply.json({"tokens": [{"id": i, "piece": loaded.detokenize([i])} for i in ids]})
        return Reply.json({"tokens": ids})
    finally:
        lease.release()


async def detokenize(service: Service, body: Mapping[str, Any]) -> Reply:
    fields = Fields(body)
    tokens = fields.items("tokens")
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise fields.wrong("tokens", "token ids")
    lease = await service.pool.lease(fields.text("model"))
    try:
        loaded = lease.model
        return Reply.json({"content": await service.work(lambda cancel: loaded.detokenize(tokens))})
    finally:
        lease.release()


async def apply_template(service: Service, body: Mapping[str, Any]) -> Reply:
    asked = openai.read_chat(body)
    lease = await service.pool.lease(asked.model)
    try:
        ids = await service.work(partial(service.render, lease, asked), asked)
        return Reply.json({"prompt": lease.model.detokenize([i for i in ids if i >= 0])})  # images are no text
    finally:
        lease.release()


async def infill(service: Service, body: Mapping[str, Any]) -> Reply | Stream:
    """What plugins of editors ask: `prompt` is the beginning of the line that goes on. Other files (`input_extra`) are
    not looked at. Of texts that are too long counts what is nearest to the gap."""
    fields = Fields(body)
    if fields.whole("n_predict") == 0:  # a way to have other files read ahead
        return Reply.json({"content": "", "stop": True})
    asked = Asked(
        model=fields.text("model"),
        prompts=[fields.text("input_prefix") + fields.text("prompt")],
        suffix=fields.text("input_suffix"),
        options={**fields.options({"n_predict": "max_tokens", **openai.OPTIONS}), "overflow": "truncate"},
        stream=fields.flag("stream"),
    )
    seconds = max(fields.number("t_max_predict_ms") or 0, 0) / 1000
    answers = await service.begin(asked)
    if asked.stream:
        return Stream(_filling_lines(answers, seconds), answers.close)
    try:
        parts = [part async for part in _filling(answers, seconds) if part is not None]
        return Reply.json({**parts[-1], "content": "".join(part["content"] for part in parts)})
    finally:
        answers.close()


async def _filling_lines(answers: Answers, seconds: float) -> AsyncIterator[bytes]:
    try:
        async for part in _filling(answers, seconds):
            yield openai.KEEP_ALIVE if part is None else sse(part)
    except Exception as error:
        yield sse(errors.openai(errors.told(error)))


async def _filling(answers: Answers, seconds: float) -> AsyncIterator[dict[str, Any] | None]:
    """Parts of an answer, the last with what it came to; None: nothing has come for a while. seconds: after so many it
    ends once it has a whole line; 0: never."""
    begun, line, kind, word = 0.0, False, "limit", ""
    async for event in answers:
        if isinstance(event, Text):
            yield {"content": event.text, "stop": False}
            now = time.perf_counter()
            begun, line = begun or now, line or "\n" in event.text
            if seconds and line and now - begun > seconds:
                break
        elif isinstance(event, End):
            word = event.stop or ""
            kind = "limit" if event.reason == "length" else "word" if word else "eos"
        elif isinstance(event, Waiting):
            yield None
    used = answers.usage
    yield {
        "content": "",
        "stop": True,
        "stop_type": kind,
        "stopping_word": word,
        "model": answers.name,
        "tokens_predicted": used.completion,
        "tokens_evaluated": used.prompt,
        "tokens_cached": used.cached,
        "timings": openai.timings(answers),
    }


async def count_chat(service: Service, body: Mapping[str, Any]) -> Reply:
    return _counted(await service.count(openai.read_chat(body)))


async def count_responses(service: Service, body: Mapping[str, Any]) -> Reply:
    return _counted(await service.count(responses.read(body)))


def _counted(tokens: int) -> Reply:
    return Reply.json({"object": "response.input_tokens", "input_tokens": tokens})


async def not_here(service: Service, body: Mapping[str, Any]) -> Reply:
    raise Refused(501, "this server does not do that; it answers chats and completions")
