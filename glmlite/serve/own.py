"""What is no other program's API, and the small ones of llama-server that tools use: health, metrics, properties,
tokens."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from .._package import VERSION
from . import facts, openai, responses
from .answering import Service
from .asked import Fields
from .errors import Refused
from .http import Reply
from .metrics import Labels
from .pool import Entry

__all__ = [
    "apply_template",
    "count_chat",
    "count_responses",
    "detokenize",
    "gauges",
    "health",
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


async def count_chat(service: Service, body: Mapping[str, Any]) -> Reply:
    return _counted(await service.count(openai.read_chat(body)))


async def count_responses(service: Service, body: Mapping[str, Any]) -> Reply:
    return _counted(await service.count(responses.read(body)))


def _counted(tokens: int) -> Reply:
    return Reply.json({"object": "response.input_tokens", "input_tokens": tokens})


async def not_here(service: Service, body: Mapping[str, Any]) -> Reply:
    raise Refused(501, "this server does not do that; it answers chats and completions")
