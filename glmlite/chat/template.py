"""The chat template that a model file carries: a Jinja program written by whoever made the file.

It runs in Jinja's immutable sandbox: no attribute that leads to Python's internals, nothing it can change. Bounded are
the template's length, the rendered text, what one product or power makes, and the steps of all its `range()`s together.
Not bounded are the time of loops nested in loops over what it is given, and the memory of strings that it doubles and
doubles again without writing them: a service that loads files of strangers renders in a process with limits of its own.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..families import GLM_SPECIALS
from .messages import PLACE, say_unread, unread
from .tokens import BEGIN_IMAGE, END_IMAGE, IMAGE, Tokenizer

if TYPE_CHECKING:
    import jinja2.nodes
    import jinja2.parser

MAX_TEMPLATE_CHARS = 1 << 18
MAX_OUTPUT_CHARS = 1 << 24
MAX_RANGE_STEPS = 1 << 20

# A Unicode noncharacter, which no text has a use for: it breaks control tokens inside messages apart until the
# template has run, wherever the template puts them. Another shows where the last message's text ends.
_MARK, _END = "\ufdd0", "\ufdd1"
_IMAGE = "<|image|>"  # what templates write for an image


def of(metadata: Mapping[str, Any], tools: bool = False) -> str | None:
    """The file's template, or None. A name in its place ("chatglm3") is not one. `tools`: the one for tools, if any."""
    for key in ("tokenizer.chat_template.tool_use",) * tools + ("tokenizer.chat_template",):
        text = metadata.get(key)
        if isinstance(text, str) and ("{{" in text or "{%" in text):
            return text
    return None


def render(
    metadata: Mapping[str, Any],
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    variables: dict[str, Any],
    *,
    generate: bool,
    goes_on: bool = False,
    images: int = 0,
) -> str:
    """What the file's template makes of the messages, for `encode`; the prefix is left as the template has it.

    generate: up to where an answer begins. goes_on: up to the end of the last message's text. images: how many places
    of images the messages have (`messages.in_text`), and so what comes out.
    Raises ValueError for a template that is too long, fails, or refuses the messages, and for tools, calls and images
    that it has no place for.
    """
    text = of(metadata, bool(tools))
    assert text is not None
    name = metadata.get("general.name")
    reader = f"the chat template of {name if isinstance(name, str) and name else 'this model'}"
    control = _control_tokens(metadata, tokenizer, (_IMAGE,) if images else ())
    messages = [_role(message, text, tokenizer) for message in _calls_as_read(messages, text)]
    say_unread(messages, text, reader)
    for name in variables:
        if name not in read_by(text):
            unread(f"template: {name!r}", reader)
    messages = _mask(messages, control)
    if goes_on:
        messages[-1]["content"] += _END
    if tools:
        tools = _mask(tools, control)
        if re.search(r"\[['\"]tools['\"]\]", text):  # GLM-4 looks for the tools in a message
            messages = [{"role": "system", "content": "", "tools": tools}, *messages]
        elif "tools" not in text:
            raise ValueError("tools: the chat template of this model has none")
    special = {f"{kind}_token": _token_text(metadata, kind) for kind in ("bos", "eos", "unk", "padding")}
    special["pad_token"] = special.pop("padding_token")

    def run(messages: list[dict[str, Any]]) -> str:
        return _run(
            text,
            {
                **special,
                **variables,
                "messages": messages,
                "tools": tools or None,
                "add_generation_prompt": generate,
            },
        )

    made = _with_images(run, messages, images, tokenizer, reader) if images else run(messages)
    if goes_on:
        made, end, _ = made.rpartition(_END)
        if not end:
            raise ValueError(f"messages: {reader} leaves out the text that the answer is to go on with")
        made = made.replace(_END, "")
    return made


def _with_images(
    run: Callable[[list[dict[str, Any]]], str],
    messages: list[dict[str, Any]],
    count: int,
    tokenizer: Tokenizer,
    reader: str,
) -> str:
    """What a template makes of messages with images: of their parts, where it knows those, and else of their text, in
    which each image stands between the tokens that begin and end it."""
    with suppress(ValueError):
        made = run([{**message, "content": _in_parts(message["content"])} for message in messages])
        if made.count(_IMAGE) == count:
            return made.replace(_IMAGE, PLACE)
    made = run(messages)
    if made.count(PLACE) != count:
        raise ValueError(f"messages: {reader} does not show each image once")
    return made.replace(PLACE, around(tokenizer, PLACE))


def around(tokenizer: Tokenizer, place: str) -> str:
    """An image's place between the tokens that begin and end it, as far as the vocabulary has them."""
    begin, end = (text if tokenizer.id_of(text) is not None else "" for text in (BEGIN_IMAGE, END_IMAGE))
    return begin + place + end


def _in_parts(text: str) -> str | list[dict[str, str]]:
    """A text in which places of images stand as templates are given it; others stay a string."""
    first, *others = text.split(PLACE)
    if not others:
        return text
    parts = [{"type": "text", "text": first}]
    for part in others:
        parts += [{"type": "image"}, {"type": "text", "text": part}]
    return [part for part in parts if part.get("text") != ""]


def encode(tokenizer: Tokenizer, text: str, images: int = 0) -> list[int]:
    """Token ids of what `render` returns, in which control tokens that messages spell are broken apart."""
    ids: list[int] = []
    for i, between in enumerate(text.split(PLACE) if images else [text]):
        ids += [IMAGE] * (i > 0)
        for part in between.split(_MARK):
            ids += tokenizer.encode(part, special=True, prefix=False) if part else []
    return ids


def _calls_as_read(messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages with calls of tools as the template reads them: `tool_calls`, or one message for each call, with the
    tool's name as `metadata` and the arguments as content (GLM-4). A call whose arguments are no JSON is text in the
    content: templates want an object."""
    out = []
    for i, message in enumerate(messages):
        for key in ("tools", "metadata"):
            if message.get(key) and key not in template:
                raise ValueError(f"messages[{i}]: {key}, the chat template of this model has none")
        if not message.get("tool_calls") or "tool_calls" in template:
            out.append(_without_damage(message))
            continue
        if "metadata" not in template:
            raise ValueError(f"messages[{i}]: tool_calls, the chat template of this model has none")
        if message["content"]:
            out.append({key: value for key, value in message.items() if key != "tool_calls"})
        for call in message["tool_calls"]:
            arguments = call["function"]["arguments"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            out.append({"role": "assistant", "metadata": call["function"]["name"], "content": text})
    return out


def _without_damage(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls", ())
    damaged = [call["function"] for call in calls if isinstance(call["function"]["arguments"], str)]
    if not damaged:
        return message
    texts = [f"<tool_call>{function['name']}\n{function['arguments']}\n</tool_call>" for function in damaged]
    whole = [call for call in calls if call["function"] not in damaged]
    content = "\n".join(filter(None, [message["content"], *texts]))
    return (
        {**message, "content": content, "tool_calls": whole}
        if whole
        else {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}
    )


def _role(message: dict[str, Any], template: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """A tool's result under the name the template has for it: 'tool', or 'observation' as the older models say."""
    named = {role: re.search(rf"['\"]{role}['\"]", template) is not None for role in ("tool", "observation")}
    role = message["role"]
    if role == "observation" and named["tool"] and not named["observation"]:
        role = "tool"
    elif role == "tool" and not named["tool"] and (named["observation"] or tokenizer.id_of("<|observation|>")):
        role = "observation"
    return {**message, "role": role}


# ---- text that must stay text ------------------------------------------------------------------------------------


def _tokens(metadata: Mapping[str, Any]) -> Sequence[Any]:
    tokens: Sequence[Any] = metadata.get("tokenizer.ggml.tokens", ())
    return tokens


def _token_text(metadata: Mapping[str, Any], kind: str) -> str:
    token = metadata.get(f"tokenizer.ggml.{kind}_token_id")
    tokens = _tokens(metadata)
    if token is None or not 0 <= token < len(tokens):
        return ""
    text = tokens[token]
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _control_tokens(metadata: Mapping[str, Any], tokenizer: Tokenizer, more: Sequence[str]) -> re.Pattern[str] | None:
    texts = [*control_tokens(metadata, tokenizer), *more]
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def control_tokens(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """The control tokens in brackets, the longest first, which `render` breaks apart in messages. Others, GLM-4.5's
    `/nothink`, are meant to be written by users."""
    tokens = _tokens(metadata)
    kinds = metadata.get("tokenizer.ggml.token_type")
    # The tokenizer decides; types of its own, or a special name, spare it the question for 150,000 ordinary tokens.
    ids = range(len(tokens)) if kinds is None else np.flatnonzero(~np.isin(kinds, (0, 1, 5, 6))).tolist()
    ids = [*ids, *(i for text in GLM_SPECIALS if (i := tokenizer.id_of(text)) is not None)]
    texts = [tokens[i] for i in ids if tokens[i][:1] in ("<", "[") and len(tokens[i]) > 2 and tokenizer.is_special(i)]
    return sorted(texts, key=len, reverse=True)


def broken(text: str, control: Sequence[str]) -> str:
    """A message's text as `render` has it: with these tokens broken apart."""
    masked: str = _mask(text, re.compile("|".join(map(re.escape, control))) if control else None)
    return masked


def _mask(value: Any, control: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        value = value.replace(_MARK, "")
        return value if control is None else control.sub(lambda match: match[0][0] + _MARK + match[0][1:], value)
    if isinstance(value, Mapping):
        return {_mask(key, control): _mask(item, control) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item, control) for item in value]
    return value


# ---- the sandbox -------------------------------------------------------------------------------------------------


def of_row(text: str, variables: Mapping[str, Any]) -> str:
    """What a template of a user's makes of the columns of a row, in the same sandbox. Raises ValueError, also for a
    variable that the row has not."""
    return _run(text, variables, "template", strict=True)


def columns(text: str) -> frozenset[str]:
    """The names that such a template reads of a row. Raises ValueError where it is none."""
    if wrong := wrong_with(text):
        raise ValueError(f"template: {wrong}")
    return read_by(text) - _environment().globals.keys()


def wrong_with(text: str) -> str | None:
    """Why a text is no template, without running it."""
    import jinja2

    try:
        _compile(text, strict=True)
    except MemoryError:
        return "it asks for more memory than there is"
    except Exception as error:  # what is no template for jinja2 may be no program for Python, either
        line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return f"{line}{error}"
    return None


def _run(text: str, variables: Mapping[str, Any], what: str = "chat template", *, strict: bool = False) -> str:
    """strict: a variable that is not there is an error, where it would be empty."""
    import jinja2

    steps = 0

    def bounded_range(*args: int) -> range:
        nonlocal steps
        out = range(*args)
        steps += len(out)
        if steps > MAX_RANGE_STEPS:
            raise ValueError(f"ranges of more than {MAX_RANGE_STEPS} steps")
        return out

    parts: list[str] = []
    size = 0
    try:
        for part in _compile(text, strict).generate({"range": bounded_range, **variables}):
            parts.append(part)
            size += len(part)
            if size > MAX_OUTPUT_CHARS:
                raise ValueError(f"more than {MAX_OUTPUT_CHARS} characters of output")
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{what}: line {error.lineno}: {error.message}") from error
    except MemoryError:
        raise ValueError(f"{what}: it asks for more memory than there is") from None
    except Exception as error:  # a template is a program: whatever it raises is its fault, or its refusal
        raise ValueError(f"{what}: {error}") from error
    return "".join(parts)


@lru_cache(maxsize=8)
def read_by(text: str) -> frozenset[str]:
    """The names that a template reads and does not set itself; none of one that is no program: running it says why."""
    import jinja2.meta

    if len(text) > MAX_TEMPLATE_CHARS:
        return frozenset()
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(text)))
    except (jinja2.TemplateError, RecursionError):
        return frozenset()


@lru_cache(maxsize=8)
def _compile(text: str, strict: bool = False) -> jinja2.Template:
    import jinja2

    if len(text) > MAX_TEMPLATE_CHARS:
        raise ValueError(f"{len(text)} characters long, should be at most {MAX_TEMPLATE_CHARS}")
    environment = _environment().overlay(undefined=jinja2.StrictUndefined) if strict else _environment()
    return environment.from_string(text)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the assistant says, for training; here it is what it holds."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.datetime.now().strftime(format)

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """Two operators make as much as one likes of a few characters, in one step that nothing can end."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
            size = 0
            if operator == "**" and isinstance(left, int) and isinstance(right, int):
                size = left.bit_length() * right
            elif operator == "*" and isinstance(left, int) and hasattr(right, "__len__"):
                size = left * len(right)
            elif operator == "*" and isinstance(right, int) and hasattr(left, "__len__"):
                size = len(left) * right
            if size > MAX_OUTPUT_CHARS:
                raise ValueError(f"{operator} gives more than {MAX_OUTPUT_CHARS} characters")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    del environment.globals["lipsum"]  # makes text without an end
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment
