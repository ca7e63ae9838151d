"""What is refused, and the forms in which the APIs say so."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any

from ..errors import Busy, Cancelled, Closed, ContextOverflow, FormatError
from ..parameters import Parameters

__all__ = ["Refused", "anthropic", "of", "ollama", "openai", "overflow", "told"]

log = logging.getLogger("glmlite.serve")

RETRY_SECONDS = 2  # what a client that found no place is told to wait

_OPENAI = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    501: "not_supported_error",
    503: "overloaded_error",
}
# Fields by which a model's errors begin: those of `Parameters`, and what its methods take.
_NAMES = {"messages", "prompt", "tool_choice", "tools", *(field.name for field in dataclasses.fields(Parameters))}
_FIELD = re.compile(r"((\w+)(?:\[\d+\]|\.\w+)*)(?::| is )")


class Refused(Exception):
    """A request that gets no answer.

    status: of HTTP. param: the field that is wrong. code: a word for programs. retry: seconds after which it may be
    tried again. allow: the methods that are allowed. prompt, context: tokens, where the prompt does not fit.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
        allow: tuple[str, ...] = (),
        prompt: int = 0,
        context: int = 0,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry = retry
        self.allow = allow
        self.prompt = prompt
        self.context = context

    @property
    def headers(self) -> list[tuple[str, str]]:
        allow = [("allow", ", ".join(self.allow))] if self.allow else []
        return allow if self.retry is None else [*allow, ("retry-after", str(self.retry))]


def of(error: Exception) -> Refused | None:
    """What a model's exception means to a client; None: a mistake of ours, whose text is not for clients."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(429, f"too many requests wait: {error}", code="rate_limit_exceeded", retry=RETRY_SECONDS)
    if isinstance(error, Closed | Cancelled):
        return Refused(503, "the server is ending, or the model was unloaded", retry=RETRY_SECONDS)
    if isinstance(error, ContextOverflow):
        return overflow(error.tokens, error.context)
    if isinstance(error, MemoryError):
        return Refused(503, f"there is not enough memory: {error}" if str(error) else "there is not enough memory")
    if isinstance(error, ImportError):
        return Refused(501, str(error))
    if isinstance(error, FormatError | OSError):  # a model's file
        return Refused(500, str(error))
    if isinstance(error, TypeError | ValueError):
        field = _FIELD.match(str(error))
        return Refused(400, str(error), param=field[1] if field and field[2] in _NAMES else None)
    return None


def told(error: Exception) -> Refused:
    """What a client is told of an exception; one that is a mistake of ours is logged."""
    if (refused := of(error)) is None:
        log.error("an answer failed", exc_info=error)
        refused = Refused(500, f"the server failed: {type(error).__name__}")
    return refused


def overflow(prompt: int, context: int) -> Refused:
    """A prompt of so many tokens that does not fit. Clients recognise it by its code, or by one of these phrases, and
    then shorten the conversation."""
    return Refused(
        400,
        f"the prompt exceeds the available context size: prompt is too long: {prompt} tokens > {context} maximum "
        f"(this model's maximum context length is {context} tokens)",
        param="messages",
        code="context_length_exceeded",
        prompt=prompt,
        context=context,
    )


def openai(refused: Refused) -> dict[str, Any]:
    kind = _OPENAI.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    return {"error": {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}}


def anthropic(refused: Refused, request_id: str) -> dict[str, Any]:
    kind = _ANTHROPIC.get(refused.status, "invalid_request_error" if refused.status < 500 else "api_error")
    message = refused.message
    if refused.code == "context_length_exceeded":
        message = f"prompt is too long: {refused.prompt} tokens > {refused.context} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def ollama(refused: Refused) -> dict[str, Any]:
    return {"error": refused.message}
