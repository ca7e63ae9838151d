"""From messages to the token ids a chat model expects.

Each way of speaking is a dialect (`glmlite.chat.dialects`), which a file is recognised by. A file that carries a chat
template (`tokenizer.chat_template`, Jinja) is asked with it. One that carries none belongs to an older model, whose
rounds or role tokens its dialect writes; `chat_format` says which.

Text that comes in messages stays text: a control token spelled in a message (`<|user|>`) is encoded as the characters
it is written with and cannot open a turn. `/nothink` and tokens that a file does not mark as control tokens
(`<think>`) keep their meaning, because templates look for them in what the user writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import dialects
from . import messages as checked
from .dialects.dialect import no_template
from .fitting import fit
from .messages import check, goes_on, images_of
from .tokens import Prompt, Tokenizer

__all__ = ["Prompt", "chat_format", "check", "fit", "goes_on", "images_of", "offered", "render", "variables"]


def chat_format(metadata: Mapping[str, Any], tokenizer: Tokenizer, architecture: str) -> str | None:
    """How a model is spoken to: "template" (the file's own), the name of a dialect that writes prompts itself
    (`glmlite.chat.dialects.FORMATS`), or None.

    The metadata key `glmlite.chat_format` decides where it is present; it is how a converted ChatGLM2 is told from a
    ChatGLM3, whose vocabulary a file may list for both. Then comes the file's template. Without either, the
    architecture has one dialect (glmlite.families), or the vocabulary tells its versions apart, whatever name the file
    has in place of a template: of those, only "chatglm2" says more than the vocabulary. None: not a chat model, as far
    as the file says.

    Raises FormatError for a `glmlite.chat_format` that is not known.
    """
    dialect = dialects.of(metadata, tokenizer, architecture)
    return None if dialect is None else dialect.chat_format


def render(
    metadata: Mapping[str, Any],
    tokenizer: Tokenizer,
    architecture: str,
    messages: Sequence[Mapping[str, Any]],
    /,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    **kwargs: Any,
) -> Prompt:
    """Token ids of a conversation; for the engine each `IMAGE` among them is repeated for the rows of its image.

    messages: `{"role": "system" | "user" | "assistant" | "tool" | "observation", "content": text}`, the text a string
        or a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}` parts; an assistant's message
        may carry `tool_calls` in the shape of the OpenAI API, or `metadata` (the name of the tool it calls).
        docs/chat.md lists what else they may have.
    tools: functions the model may call, in the shape of the OpenAI API or as the bare `function` objects.
    add_generation_prompt: end where the assistant's answer begins.
    continue_final_message: end with the text of the last message, the assistant's, which the answer goes on with.
    kwargs: variables for the file's template (`enable_thinking=False`); formats of our own take none.

    The tokenizer's prefix (`[gMASK]<sop>`, or BOS) stands at the front exactly once, also where the template forgets
    or repeats it. The exceptions are the models': ChatGLM-6B's prompt ends with `[gMASK]<sop>`, GLM-Edge's has none.

    Raises ValueError for messages that are not a conversation, for what neither the template nor the format has a
    place for, for a model without a chat format, and for a template that fails, FormatError (a ValueError) for a
    vocabulary that lacks a token its format needs.
    """
    messages = checked.check(messages)
    tools = checked.check_tools(tools)
    dialect = dialects.of(metadata, tokenizer, architecture)
    if dialect is None:
        raise ValueError(no_template(metadata, architecture))
    if continue_final_message and not checked.goes_on(messages):
        raise ValueError("messages: the last is no text of the assistant's to continue")
    generate = add_generation_prompt and not continue_final_message
    return dialect.render(messages, tools, kwargs, generate=generate, goes_on=continue_final_message)


def offered(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] = "auto"
) -> list[dict[str, Any]]:
    """The tools that an answer may call, checked: none with the choice "none".

    choice: "auto", "none", "required", or `{"type": "function", "function": {"name": ...}}`. Raises ValueError for
    others, and where there is no tool to choose.
    """
    found = checked.check_tools(tools)
    if choice in ("auto", "none"):
        return found if choice == "auto" else []
    named = choice.get("function") if isinstance(choice, Mapping) else None
    name = named.get("name") if isinstance(named, Mapping) else None
    if choice != "required" and not isinstance(name, str):
        raise ValueError(
            f"tool_choice is {choice!r:.80}, expected 'auto', 'none', 'required' or "
            "{'type': 'function', 'function': {'name': ...}}"
        )
    if choice != "required" and all(tool["function"]["name"] != name for tool in found):
        raise ValueError(f"tool_choice: there is no tool {name!r} to choose")
    if not found:
        raise ValueError("tool_choice is 'required', expected tools to choose from")
    return found


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
