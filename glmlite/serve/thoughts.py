"""What models thought before their calls of tools, for clients that send a conversation back without it.

A template renders the thoughts of a tool loop: those behind the last question of the user. A client that drops them
(most do) would have the model read everything behind the first of them again, since the prompt no longer begins with
what the cache holds; and the model would not know why it called. So a thought is remembered under what stood before
it and what followed it, and put back. See Model.chat: for Python programs, `Completion.message` has the thought in it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from .images import digest

__all__ = ["Thoughts"]

MAX_COUNT = 1024
MAX_CHARS = 1 << 23


class Thoughts:
    """The latest thoughts, a bounded number and size of them. Threads may share it."""

    def __init__(self, max_count: int = MAX_COUNT, max_chars: int = MAX_CHARS):
        self._max_count = max_count
        self._max_chars = max_chars
        self._chars = 0
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, model: str, messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> None:
        """Keeps the `reasoning_content` of an answer to `messages`, if it has one."""
        thought = answer.get("reasoning_content")
        if not thought or len(thought) > self._max_chars:
            return
        *_, key = _keys(model, [*messages, answer])
        with self._lock:
            self._chars += len(thought) - len(self._known.pop(key, ""))
            self._known[key] = thought
            while len(self._known) > self._max_count or self._chars > self._max_chars:
                self._chars -= len(self._known.popitem(last=False)[1])

    def restore(self, model: str, messages: Sequence[Mapping[str, Any]], everywhere: bool) -> list[dict[str, Any]]:
        """The messages with the thoughts that the client has left out: those of the tool loop at the end, or
        `everywhere`."""
        questions = [i for i, message in enumerate(messages) if message.get("role") == "user"]
        first = 0 if everywhere or not questions else questions[-1]
        restored = [dict(message) for message in messages]
        if not self._known or all(not _bare(message) for message in messages[first:]):
            return restored
        for i, key in enumerate(_keys(model, messages)):
            if i >= first and _bare(messages[i]):
                with self._lock:
                    if (thought := self._known.get(key)) is not None:
                        self._known.move_to_end(key)
                        restored[i]["reasoning_content"] = thought
        return restored


def _bare(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "assistant" and not message.get("reasoning_content")


def _keys(model: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """A key for each message: of itself and all before it, thoughts and ids apart, which not every client keeps."""
    key = blake2b(model.encode("utf-8", "replace"), digest_size=16).digest()
    for message in messages:
        calls = [
            (call["function"]["name"], _canonical(call["function"].get("arguments")))
            for call in message.get("tool_calls") or ()
        ]
        content = message.get("content") or ""  # clients write null, or nothing, or no content at all
        said = [message.get("role"), content.strip() if isinstance(content, str) else content, calls]
        text = json.dumps(said, sort_keys=True, default=_image)
        key = blake2b(text.encode("ascii"), key=key, digest_size=16).digest()
        yield key


def _image(value: Any) -> str:
    return digest(value) if isinstance(value, bytes) else str(value)


def _canonical(arguments: Any) -> Any:
    """Arguments however they are spelled; clients write the JSON anew."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return arguments
    return arguments
