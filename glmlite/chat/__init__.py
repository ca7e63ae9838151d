"""From messages to the token ids a chat model expects.

A file that carries a chat template (`tokenizer.chat_template`, Jinja) is asked with it. One that carries none belongs
to an older model, whose rounds or role tokens are written here; `chat_format` says which.

Text that comes in messages stays text: a control token spelled in a message (`<|user|>`) is encoded as the characters
it is written with and cannot open a turn. `/nothink` and tokens that a file does not mark as control tokens
(`<think>`) keep their meaning, because templates look for them in what the user writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..errors import FormatError
from . import formats, template
from . import messages as checked

__all__ = ["chat_format", "render"]

# GLM-Edge has a vocabulary of 59,264 tokens, GLM-4 one of 151,552.
_EDGE_VOCABULARY = 100_000


class Tokenizer(Protocol):
    """What rendering asks of a tokenizer."""

    @property
    def prefix_ids(self) -> Sequence[int]: ...
    def encode(self, text: str, *, special: bool = ..., prefix: bool = ...) -> list[int]: ...
    def id_of(self, text: str) -> int | None: ...
    def is_special(self, id: int) -> bool: ...


def chat_format(metadata: Mapping[str, Any], tokenizer: Tokenizer, architecture: str) -> str | None:
    """How a model is spoken to: "template" (the file's own), the name of a format of `glmlite.chat.formats`, or None.

    The metadata key `glmlite.chat_format` decides where it is present; it is how a converted ChatGLM2 is told from a
    ChatGLM3, whose vocabulary a file may list for both. Then comes the file's template. Without either, the vocabulary
    of a `chatglm` file tells the model. None: not a chat model, as far as the file says.

    Raises FormatError for a `glmlite.chat_format` that is not known.
    """
    name = metadata.get("glmlite.chat_format")
    if name is not None:
        if name not in formats.FORMATS:
            raise FormatError(f"glmlite.chat_format: {name!r} is not known; known: {', '.join(formats.FORMATS)}")
        return name
    if template.of(metadata) is not None:
        return "template"
    if architecture == "chatglm1":
        return "chatglm"
    if architecture == "glm4":
        return "glm4"
    if architecture != "chatglm":
        return None
    if tokenizer.id_of("<|user|>") is None:
        return "chatglm2"
    if metadata.get("tokenizer.ggml.model") == "llama":
        return "chatglm3"
    return "glm4" if len(metadata.get("tokenizer.ggml.tokens", ())) > _EDGE_VOCABULARY else "glm-edge"


def render(
    metadata: Mapping[str, Any],
    tokenizer: Tokenizer,
    architecture: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **kwargs: Any,
) -> list[int]:
    """Token ids of a conversation, ready for the engine.

    messages: `{"role": "system" | "user" | "assistant" | "tool" | "observation", "content": text}`, the text a string
        or a list of `{"type": "text", "text": ...}` parts; an assistant's message may carry `tool_calls` in the shape
        of the OpenAI API, or `metadata` (the name of the tool it calls).
    tools: functions the model may call, in the shape of the OpenAI API or as the bare `function` objects.
    add_generation_prompt: end where the assistant's answer begins.
    kwargs: variables for the file's template (`enable_thinking=False`); formats of our own take none.

    The tokenizer's prefix (`[gMASK]<sop>`, or BOS) stands at the front exactly once, also where the template forgets
    or repeats it. The exceptions are the models': ChatGLM-6B's prompt ends with `[gMASK]<sop>`, GLM-Edge's has none.

    Raises ValueError for messages that are not a conversation, for a model without a chat format, and for a template
    that fails, FormatError (a ValueError) for a vocabulary that lacks a token its format needs.
    """
    messages = checked.check(messages)
    tools = checked.check_tools(tools)
    name = chat_format(metadata, tokenizer, architecture)
    if name is None:
        raise ValueError(f"chat: this {architecture} model has no chat template; generate from plain text instead")
    if name == "template":
        ids = template.render(metadata, tokenizer, messages, tools, add_generation_prompt, kwargs)
    else:
        if kwargs:
            raise ValueError(f"chat: format {name} takes no {', '.join(kwargs)}; only a file's own template does")
        ids = formats.encode(tokenizer, name, formats.FORMATS[name](messages, tools, add_generation_prompt))
    if name in ("chatglm", "glm-edge"):
        return ids
    prefix = list(tokenizer.prefix_ids)
    start = next((i for i, token in enumerate(ids) if token not in prefix), len(ids))
    return prefix + ids[start:]
