"""What all dialects have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from ...errors import FormatError
from ...families import Architecture, about
from .. import template
from ..messages import PLACE, images_of, in_text, say_unread, unread, without_places
from ..readers import ASSISTANT, END_THINK, THINK, Reader
from ..tokens import BEGIN_IMAGE, END_IMAGE, IMAGE, Prompt, Tokenizer

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]


class Token(NamedTuple):
    """A control token, by its text; some vocabularies spell it another way."""

    text: str
    other: str | None = None


GMASK = Token("[gMASK]")
SOP = Token("<sop>", "sop")

_TEMPLATE = "tokenizer.chat_template"
# The keys of a message that formats read; one that has no place for the last three refuses them.
_READ = ("role", "content", "tool_calls", "metadata", "tools")


class File(NamedTuple):
    """What a dialect is recognised by."""

    metadata: Mapping[str, Any]
    tokenizer: Tokenizer
    architecture: str

    @property
    def template(self) -> str:
        """The file's chat template, or that for tools; empty if it has none."""
        return template.of(self.metadata) or template.of(self.metadata, tools=True) or ""

    @property
    def row(self) -> Architecture:
        """What is known of its architecture."""
        return about(self.architecture)

    @property
    def named(self) -> str:
        """What stands in place of a template: files of 2024 have a name there."""
        told = self.metadata.get(_TEMPLATE)
        return told if isinstance(told, str) and told != self.template else ""

    def has(self, token: str) -> bool:
        """Whether the vocabulary has a token."""
        return self.tokenizer.id_of(token) is not None


class Dialect:
    """How one file's model is spoken to.

    name: as `glmlite.chat_format` has it, of those that write prompts themselves. writes: it does, for files without
    a template. begins: such a prompt begins with the tokenizer's prefix. reads: what reads its answers. ends: the
    tokens that an answer ends with. efforts: the words of OpenAI's API that its templates have another for.
    """

    name: ClassVar[str]
    reads: ClassVar[type[Reader]] = Reader
    efforts: ClassVar[Mapping[str, str]] = {"minimal": "low", "xhigh": "high", "max": "high"}
    ends: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[bool] = False
    begins: ClassVar[bool] = True

    def __init__(self, file: File):
        self.file = file

    @classmethod
    def recognise(cls, file: File) -> bool:
        """Whether a file's model speaks so. Those that stand before it in the list have said no."""
        raise NotImplementedError

    def pieces(self, messages: Messages, tools: Tools, generate: bool) -> list[str | Token]:
        """The prompt of checked messages, for files without a template: a `Token` is one control token of the
        vocabulary, a `str` is text, encoded on its own and without control tokens."""
        raise NotImplementedError

    @property
    def capabilities(self) -> list[str]:
        """What the model can do beside answering, as far as its file tells: "tools", "thinking"."""
        if self.chat_format != "template":
            return ["tools"] if self.reads is not Reader else []
        text = self.file.template
        return ["tools"] * ("tools" in text) + ["thinking"] * (THINK in text)

    # ---- switches

    def template_variables(self, thinking: bool | None, effort: str | None) -> dict[str, Any]:
        """The variables of the file's template that switch thinking on or off, and say how much; none that it does not
        read.

        effort: "none" (which is off), "minimal", "low", "medium", "high", "xhigh" or "max", as OpenAI's API has it.
        Raises TypeError: "off" would think.
        """
        if not isinstance(thinking, bool | None):
            raise TypeError(f"thinking is {thinking!r}, expected True, False or None")
        if not isinstance(effort, str | None):
            raise TypeError(f"effort is {effort!r}, expected a word or None")
        read = template.read_by(self.file.template) if self.chat_format == "template" else frozenset()
        if thinking is None and effort is not None:
            thinking = effort != "none"
        found: dict[str, Any] = {}
        for name in ("enable_thinking", "thinking"):
            if thinking is not None and name in read:
                found[name] = thinking
        if "reasoning_effort" in read and (thinking is False or effort is not None):
            if thinking is not False:
                found["reasoning_effort"] = self.efforts.get(str(effort), effort)
            elif not found:  # nothing else says that it should not think
                found["reasoning_effort"] = "low"
        if thinking is not None and not found:
            unread(f"thinking={thinking}", f"the chat format {self.chat_format}")
        return found

    # ---- answers

    @property
    def marks(self) -> dict[int, str]:
        """The tokens that an answer's text has to keep for its reader, and how each is spelled for it."""
        tokenizer = self.file.tokenizer
        ids = {mark: tokenizer.id_of(mark) for mark in self.reads.marks}
        return {i: _SPELLED.get(mark, mark) for mark, i in ids.items() if i is not None}

    def reader(self, prompt: Sequence[int], tools: Tools, *, goes_on: bool = False, **options: Any) -> Reader:
        """What reads the answer to a prompt, whose marks are spelled as `marks` has them.

        tools: checked, those that a call counts of. goes_on: the prompt ends with the assistant's text. options:
        of `glmlite.chat.readers.Reader`.
        """
        thinks = self.thinks(prompt)
        return self.reads(
            tools,
            in_thought=thinks,
            continues=goes_on and not thinks,
            trim=self.trims(prompt),
            spelled=_SPELLED,
            **options,
        )

    def grammar(self, tools: Tools, choice: str | Mapping[str, Any] = "auto", parallel: bool = True) -> str | None:
        """The grammar of calls in the model's own form, in llguidance's variant of Lark; None: there is none.

        tools: checked. choice: as `glmlite.chat.offered` takes it. "required", or a tool by name: of all that the model
        writes after its thought. "auto": of one call, from behind `trigger` to its end.
        """
        if isinstance(choice, Mapping):
            tools = [tool for tool in tools if tool["function"]["name"] == choice["function"]["name"]]
        if not tools or choice == "none":
            return None
        return self._grammar(tools, begun=choice == "auto", several=parallel)

    def _grammar(self, tools: Tools, *, begun: bool, several: bool) -> str | None:
        """begun: `trigger` has been written."""
        return None

    @property
    def trigger(self) -> int | str | None:
        """The token, or the text, that a call begins with; None: nothing tells a call before it is whole."""
        return None

    def thinks(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thought."""
        tokenizer = self.file.tokenizer
        thoughts = {tokenizer.id_of(THINK), tokenizer.id_of(END_THINK)}
        begin = next((n for n in range(len(prompt), 0, -1) if self._is_role(prompt[n - 1], thoughts)), None)
        text = b"".join(map(tokenizer.piece, prompt[begin or max(0, len(prompt) - 16) :]))
        if begin is None:  # without tokens for roles the text may be anyone's
            return text.rstrip().endswith(THINK.encode())
        return text.rfind(THINK.encode()) > text.rfind(END_THINK.encode())

    def _is_role(self, token: int, thoughts: Collection[int | None]) -> bool:
        return self.file.tokenizer.is_special(token) and token not in thoughts

    # ---- prompts

    @property
    def chat_format(self) -> str | None:
        """What makes the prompts: "template", the file's own, or the name of a format; None: nothing does."""
        if "glmlite.chat_format" not in self.file.metadata and template.of(self.file.metadata) is not None:
            return "template"
        return self.name if self.writes else None

    def open_pieces(self, messages: Messages, tools: Tools) -> list[str | Token]:
        """As `pieces`, for a conversation whose last message, the assistant's, goes on."""
        return self.pieces(messages, tools, False)

    def render(
        self,
        messages: Messages,
        tools: Tools,
        variables: dict[str, Any],
        *,
        generate: bool,
        goes_on: bool,
    ) -> Prompt:
        """Token ids of checked messages, see `glmlite.chat.render`. generate: up to where an answer begins. goes_on: up
        to the end of the last message's text, which is the assistant's."""
        images = images_of(messages)
        if images:
            messages, tools = in_text(messages), without_places(tools)
        return Prompt(self._render(messages, tools, variables, len(images), generate, goes_on), images)

    def _render(
        self,
        messages: Messages,
        tools: Tools,
        variables: dict[str, Any],
        images: int,
        generate: bool,
        goes_on: bool,
    ) -> list[int]:
        """images: how many places in the messages' text stand for one."""
        metadata, tokenizer, architecture = self.file
        if "glmlite.chat_format" not in metadata and template.of(metadata, bool(tools)) is not None:
            if goes_on and self.file.row.prefix == "last":  # which stands before the answer's text
                ids = self._render(messages[:-1], tools, variables, images, generate=True, goes_on=False)
                return ids + tokenizer.encode(messages[-1]["content"], special=False, prefix=False)
            text = template.render(
                metadata, tokenizer, messages, tools, variables, generate=generate, goes_on=goes_on, images=images
            )
            return self._with_prefix(template.encode(tokenizer, text, images), generate)
        if not self.writes:
            raise ValueError(no_template(metadata, architecture))
        if variables:
            raise ValueError(
                f"chat: format {self.name} takes no {', '.join(variables)}; only a file's own template does"
            )
        say_unread(messages, _READ, f"the chat format {self.name}")
        pieces = self.open_pieces(messages, tools) if goes_on else self.pieces(messages, tools, generate)
        ids = encode(tokenizer, self.name, _around_images(tokenizer, pieces) if images else pieces)
        return tokenizer.begin(ids) if self.begins else ids

    def _with_prefix(self, ids: list[int], generate: bool) -> list[int]:
        """What a template made, with the prefix exactly once."""
        tokenizer = self.file.tokenizer
        if self.file.row.prefix == "last":
            end = [tokenizer.id_of(text) for text in ("[gMASK]", "<sop>")]
            return [i for i in ids if i not in end] + [i for i in end if i is not None and generate]
        prefix = tokenizer.prefix_ids
        ids = tokenizer.begin(ids)
        if len(prefix) == 1:  # templates put BOS before each round (Llama 2)
            return ids
        return ids[: len(prefix)] + [i for i in ids[len(prefix) :] if i not in prefix]

    def trims(self, prompt: Sequence[int]) -> bool:
        """Whether white space at the beginning of an answer is no text of it.

        It is not in the GLM family, whose models write the line end after `<|assistant|>` themselves, and not where a
        prompt ends without white space of its own.
        """
        tokenizer = self.file.tokenizer
        return tokenizer.id_of("[gMASK]") is not None or not tokenizer.piece(prompt[-1])[-1:].isspace()


# A role's mark within an answer is spelled with a Unicode noncharacter before it, so that text which spells the mark is
# text. The marks of thoughts and calls are read wherever they are spelled: some vocabularies have no tokens for them.
_SPELLED = {ASSISTANT: f"\ufdd0{ASSISTANT}"}


def no_template(metadata: Mapping[str, Any], architecture: str) -> str:
    """What to say of a file that has no way to speak."""
    told = metadata.get(_TEMPLATE)
    named = f" but the name {told[:40]!r} in its place" if isinstance(told, str) and told else ""
    return f"chat: this {architecture} model has no chat template{named}; generate from plain text instead"


def _around_images(tokenizer: Tokenizer, pieces: list[str | Token]) -> list[str | Token | int]:
    """Pieces whose text has places of images, with those as ids."""
    begin, end = (tokenizer.id_of(text) for text in (BEGIN_IMAGE, END_IMAGE))
    image = [i for i in (begin, IMAGE, end) if i is not None]
    out: list[str | Token | int] = []
    for piece in pieces:
        first, *others = piece.split(PLACE) if isinstance(piece, str) else [piece]
        out.append(first)
        for part in others:
            out += [*image, part]
    return out


def encode(tokenizer: Tokenizer, name: str, pieces: Sequence[str | Token | int]) -> list[int]:
    """The ids of the pieces one after another. Raises FormatError for a token that the vocabulary lacks."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
            continue
        if isinstance(piece, str):
            ids += tokenizer.encode(piece, special=False, prefix=False)
            continue
        found = [tokenizer.id_of(text) for text in piece if text is not None]
        known = [token for token in found if token is not None]
        if not known:
            raise FormatError(f"tokenizer: {piece.text!r} is not in the vocabulary; the chat format {name} needs it")
        ids.append(known[0])
    return ids


def refuse(name: str, messages: Messages, tools: Tools) -> None:
    """Raises ValueError for what a format without tools would lose."""
    if tools:
        raise ValueError(f"tools: the chat format {name} has none")
    for i, message in enumerate(messages):
        for key in ("tools", "tool_calls", "metadata"):
            if message.get(key):
                raise ValueError(f"messages[{i}]: {key}, the chat format {name} has none")


def turns(messages: Messages, call: Callable[[dict[str, Any] | str], str], generate: bool) -> list[str | Token]:
    r"""`<|role|>{metadata}\n`, then the content, for each message and each call of a tool.

    call: the content of a call, made of its arguments.
    """
    pieces: list[str | Token] = []

    def turn(role: str, metadata: str, content: str) -> None:
        pieces.extend([Token(f"<|{role}|>"), f"{metadata}\n", content])

    for message in messages:
        role = "observation" if message["role"] == "tool" else message["role"]
        calls = message.get("tool_calls", ())
        if message["content"] or not calls:
            turn(role, message.get("metadata") or "" if role == "assistant" else "", message["content"])
        for item in calls:
            turn(role, item["function"]["name"], call(item["function"]["arguments"]))
    if generate:
        pieces.append(Token("<|assistant|>"))
    return pieces


def as_json(arguments: dict[str, Any] | str) -> str:
    """The arguments of a call as most dialects write them; those that were no JSON, as they were written."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
