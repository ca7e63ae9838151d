"""From messages to the token ids a chat model expects.

A file that carries a chat template (`tokenizer.chat_template`, Jinja) is asked with it. One that carries none belongs
to an older model, whose rounds or role tokens are written here; `chat_format` says which.

Text that comes in messages stays text: a control token spelled in a message (`<|user|>`) is encoded as the characters
it is written with and cannot open a turn. `/nothink` and tokens that a file does not mark as control tokens
(`<think>`) keep their meaning, because templates look for them in what the user writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FormatError
from ..families import about, is_edge
from . import formats, template
from . import messages as checked
from .fitting import fit
from .tokens import Tokenizer

__all__ = ["chat_format", "fit", "render", "trims", "variables"]

_TEMPLATE = "tokenizer.chat_template"


def chat_format(metadata: Mapping[str, Any], tokenizer: Tokenizer, architecture: str) -> str | None:
    """How a model is spoken to: "template" (the file's own), the name of a format of `glmlite.chat.formats`, or None.

    The metadata key `glmlite.chat_format` decides where it is present; it is how a converted ChatGLM2 is told from a
    ChatGLM3, whose vocabulary a file may list for both. Then comes the file's template. Without either, the
    architecture has one format (glmlite.families), or the vocabulary tells its versions apart, whatever name the file
    has in place of a template: of those, only "chatglm2" says more than the vocabulary. None: not a chat model, as far
    as the file says.

    Raises FormatError for a `glmlite.chat_format` that is not known.
    """
    name = metadata.get("glmlite.chat_format")
    if name is not None:
        if name not in formats.FORMATS:
            raise FormatError(f"glmlite.chat_format: {name!r} is not known; known: {', '.join(formats.FORMATS)}")
        return str(name)
    if template.of(metadata) is not None:
        return "template"
    row = about(architecture)
    if not row.versions:
        return row.chat
    if tokenizer.id_of("<|user|>") is None or metadata.get(_TEMPLATE) == "chatglm2":
        return "chatglm2"
    if metadata.get("tokenizer.ggml.model") == "llama":
        return "chatglm3"
    return "glm-edge" if is_edge(architecture, metadata) else row.chat


def render(
    metadata: Mapping[str, Any],
    tokenizer: Tokenizer,
    architecture: str,
    messages: Sequence[Mapping[str, Any]],
    /,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **kwargs: Any,
) -> list[int]:
    """Token ids of a conversation, ready for the engine.

    messages: `{"role": "system" | "user" | "assistant" | "tool" | "observation", "content": text}`, the text a string
        or a list of `{"type": "text", "text": ...}` parts; an assistant's message may carry `tool_calls` in the shape
        of the OpenAI API, or `metadata` (the name of the tool it calls). docs/chat.md lists what else they may have.
    tools: functions the model may call, in the shape of the OpenAI API or as the bare `function` objects.
    add_generation_prompt: end where the assistant's answer begins.
    kwargs: variables for the file's template (`enable_thinking=False`); formats of our own take none.

    The tokenizer's prefix (`[gMASK]<sop>`, or BOS) stands at the front exactly once, also where the template forgets
    or repeats it. The exceptions are the models': ChatGLM-6B's prompt ends with `[gMASK]<sop>`, GLM-Edge's has none.

    Raises ValueError for messages that are not a conversation, for what neither the template nor the format has a
    place for, for a model without a chat format, and for a template that fails, FormatError (a ValueError) for a
    vocabulary that lacks a token its format needs.
    """
    messages = checked.check(messages)
    tools = checked.check_tools(tools)
    name = chat_format(metadata, tokenizer, architecture)
    if tools and "glmlite.chat_format" not in metadata and template.of(metadata, tools=True):
        name = "template"
    if name is None:
        told = metadata.get(_TEMPLATE)
        named = f" but the name {told[:40]!r} in its place" if isinstance(told, str) and told else ""
        raise ValueError(
            f"chat: this {architecture} model has no chat template{named}; generate from plain text instead"
        )
    if name != "template":
        if kwargs:
            raise ValueError(f"chat: format {name} takes no {', '.join(kwargs)}; only a file's own template does")
        checked.say_unread(messages, formats.READ, f"the chat format {name}")
        ids = formats.encode(tokenizer, name, formats.FORMATS[name](messages, tools, add_generation_prompt))
        return ids if name in ("chatglm", "glm-edge") else tokenizer.begin(ids)
    ids = template.render(metadata, tokenizer, messages, tools, add_generation_prompt, kwargs)
    if about(architecture).prefix == "last":
        end = [tokenizer.id_of(text) for text in ("[gMASK]", "<sop>")]
        return [i for i in ids if i not in end] + [i for i in end if i is not None and add_generation_prompt]
    prefix = tokenizer.prefix_ids
    ids = tokenizer.begin(ids)
    if len(prefix) == 1:  # templates put BOS before each round (Llama 2)
        return ids
    return ids[: len(prefix)] + [i for i in ids[len(prefix) :] if i not in prefix]


def trims(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether white space at the beginning of an answer is no text of it.

    It is not in the GLM family, whose models write the line end after `<|assistant|>` themselves, and not where a
    prompt ends without white space of its own.
    """
    return tokenizer.id_of("[gMASK]") is not None or not tokenizer.piece(prompt[-1])[-1:].isspace()


def variables(template: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is given as `template=`, checked: variables by name. Raises TypeError, and ValueError for names that have
    parameters of their own."""
    if template is None:
        return {}
    if not isinstance(template, Mapping) or not all(isinstance(name, str) for name in template):
        raise TypeError(f"template is {type(template).__name__}, expected a mapping of names to values")
    for name in ("messages", "tools", "add_generation_prompt"):
        if name in template:
            raise ValueError(f"template: {name!r} is no variable of it to set; pass it as a parameter")
    return dict(template)
