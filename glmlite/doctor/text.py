"""Vocabulary, special tokens, stop ids, prefix, chat template."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from .. import families
from ..chat import template as templates
from ..chat.templates import CHATGLM3, GLM45, GLM47, TEMPLATES
from ..errors import FormatError
from ..families import GLM_SPECIALS
from ..tokenizer.vocabulary import TokenType
from .finding import Finding, Severity, brief
from .subject import Subject

_TOKENS, _TYPES, _PRE = (f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "pre"))
_MOST_UNUSED = 1 << 16  # tokens at the end of a vocabulary: padding to a round number, or what a converter left out
_TEMPLATE = "tokenizer.chat_template"
_ADD_BOS, _ADD_EOS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"
# How GLM-4 and later cut text, and the name that llama.cpp has for ChatGLM's and GLM-4's.
_GLM_PRE = ("glm4", "chatglm-bpe")
_PREFIX_TOKEN = re.compile(r"\[gMASK\]|<sop>|sop")
_PREFIX_RUN = re.compile(r"(?:\[gMASK\]|<sop>)(?:\s*(?:\[gMASK\]|<sop>|sop))*")
_PREFIX_PART = re.compile(r"\A\s*(\[gMASK\]|<sop>)?")  # half a prefix at the beginning of a template
_PUBLISHED = {"GLM-4.5-Air": GLM45, "GLM-4.7-Flash": GLM47}
_BOS_VARIABLE = re.compile(r"\{\{-?\s*bos_token\s*-?\}\}")


def vocabulary_size(subject: Subject) -> Iterator[Finding]:
    """A token for each row of the embeddings."""
    tokens, rows = len(subject.tokens), subject.rows
    if tokens and rows and tokens != rows:
        what = f"{tokens} tokens, but the embeddings have {rows} rows"
        means = "Programs refuse the file, or read beyond the list when a token without a text is drawn."
        if not 0 < rows - tokens <= _MOST_UNUSED:
            yield Finding("vocabulary-size", Severity.ERROR, _TOKENS, what, means)
            return
        fill = rows - tokens
        changes: dict[str, Any] = {_TOKENS: [*subject.tokens, *(f"[PAD{i}]" for i in range(tokens, rows))]}
        for key, value in ((_TYPES, TokenType.UNUSED), ("tokenizer.ggml.scores", 0)):
            array = subject.metadata.get(key)
            if isinstance(array, np.ndarray) and array.shape == (tokens,):
                changes[key] = np.append(array, np.full(fill, value, array.dtype))
        fix = f"{fill} unused tokens fill the list up"
        yield Finding("vocabulary-size", Severity.ERROR, _TOKENS, what, means, fix, changes)
    key = subject.key("vocab_size")
    told = subject.metadata.get(key)
    if told is not None and rows and subject.count("vocab_size") != rows:
        yield Finding(
            "vocabulary-size",
            Severity.WARNING,
            key,
            f"{brief(told)}, but the embeddings have {rows} rows",
            "Programs that go by it refuse the file or see other tokens.",
            f"{key} = {rows}",
            {key: rows},
        )


def token_types(subject: Subject) -> Iterator[Finding]:
    """GLM's special tokens are control tokens."""
    if not subject.glm or not subject.tokens:
        return
    control = [i for text, i in subject.ids.items() if text in GLM_SPECIALS and not text.isalpha()]
    if not control:
        return
    means = "Some programs take them for text: roles and the prefix fall to pieces, and users can forge them."
    if subject.types is None:
        fix, changes = None, {}
        # In the other vocabularies bytes and the unknown token have types of their own.
        if subject.family == "gpt2":
            types = np.full(len(subject.tokens), TokenType.NORMAL, np.int32)
            types[control] = TokenType.CONTROL
            fix, changes = f"{len(control)} control tokens, the others normal", {_TYPES: types}
        what = "not a type for each token" if _TYPES in subject.metadata else "missing"
        yield Finding("token-type", Severity.WARNING, _TYPES, what, means, fix, changes)
        return
    wrong = [i for i in control if subject.types[i] != TokenType.CONTROL]
    if wrong:
        types = subject.types.copy()
        types[wrong] = TokenType.CONTROL
        severe = any(subject.types[i] != TokenType.USER_DEFINED for i in wrong)
        names = ", ".join(subject.tokens[i] for i in wrong[:4]) + (", ..." if len(wrong) > 4 else "")
        yield Finding(
            "token-type",
            Severity.ERROR if severe else Severity.WARNING,
            _TYPES,
            f"{names}: {'type ' + str(int(subject.types[wrong[0]]))}, should be 3, control",
            means,
            "they become control tokens",
            {_TYPES: types},
        )


def pre_tokenizer(subject: Subject) -> Iterator[Finding]:
    """How a byte-level vocabulary cuts text into words."""
    if subject.family != "gpt2":
        return
    pre = subject.metadata.get(_PRE)
    means = "Text is cut into other tokens than the model was trained on, numbers and Chinese above all."
    if subject.speaks_glm:
        right: str | None = _GLM_PRE[0]
        wrong = pre not in _GLM_PRE if isinstance(pre, str) else True
    else:
        right = subject.row.pre
        wrong = not isinstance(pre, str) or (right is not None and pre != right)
    if wrong:
        what = "missing" if pre is None else brief(pre)
        what += f", should be {right}" if right else ", should name a way to cut text"
        changes = {_PRE: right} if right else {}
        yield Finding("pre", Severity.ERROR, _PRE, what, means, f"{_PRE} = {right}" if right else None, changes)


def stop_ids(subject: Subject) -> Iterator[Finding]:
    """An answer ends at any of the family's ends, so each has to be named."""
    if not subject.tokens:
        return
    named: set[int] = set()
    unusable = False
    for key in ("eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids"):
        value = subject.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(value, (int, np.integer, np.ndarray)) and np.asarray(value).dtype.kind in "iu":
            named.update(np.atleast_1d(value).tolist())
        elif value is not None:
            unusable = True
    unusable = unusable or not named <= set(range(len(subject.tokens)))
    eos = subject.token_id("eos")
    ids = {key: subject.ids[text] for key, text in families.ENDS.items() if text in subject.ids}
    # Sentencepiece vocabularies have </s> in place of <|endoftext|>.
    first = next((subject.ids[text] for text in (families.ENDS["eos"], "</s>", "<eop>") if text in subject.ids), None)
    chats = subject.glm and "eot" in ids
    key = "tokenizer.ggml.eos_token_id"
    changes: dict[str, Any] = {}
    if eos is None:
        value = subject.metadata.get(key)
        fix = None
        if subject.glm and first is not None:
            fix, changes = f"{key} = {first}", {key: first}
        what = "missing" if value is None else f"{brief(value)}, should be a token's id, below {len(subject.tokens)}"
        severity = Severity.ERROR if subject.glm or value is not None else Severity.WARNING
        yield Finding("stop-ids", severity, key, what, "Answers do not end.", fix, changes)
    missing = [name for name in ids if chats and name != "eos" and ids[name] not in named]
    if chats and "eos" in ids and eos is not None and ids["eos"] not in named:
        missing.insert(0, "eos")
    if missing:
        every = sorted({i for i in (eos, *ids.values()) if i is not None})
        changes = {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if name != "eos" or eos is None}
        changes["tokenizer.ggml.eos_token_ids"] = np.array(every, np.uint32)
        texts = ", ".join(families.ENDS[name] for name in missing)
        yield Finding(
            "stop-ids",
            # <|observation|> only follows a tool call. Ids that are none keep the file from being loaded.
            Severity.ERROR if unusable else Severity.NOTE if missing == ["eom"] else Severity.WARNING,
            ", ".join(f"tokenizer.ggml.{name}_token_id" for name in missing),
            f"{texts} not among the ids that end an answer",
            "Programs that go by these keys let the model go on and play the user's part.",
            "every end of the family is named: eos, eot, eom",
            changes,
        )


def prefix(subject: Subject) -> Iterator[Finding]:
    """`[gMASK]<sop>` stands before a prompt, once."""
    if not subject.speaks_glm:
        return
    add_bos = subject.metadata.get(_ADD_BOS, subject.family == "llama")
    bos = subject.token_id("bos")
    begins = isinstance(add_bos, (bool, np.bool_)) and bool(add_bos) and bos is not None
    first = subject.tokens[bos] if begins and bos is not None else ""
    if begins:
        # GLM-Edge's template has none, the others' spell it.
        again = first in ("[gMASK]", "<sop>", "sop")
        yield Finding(
            "prefix-doubled" if again else "prefix-wrong",
            Severity.ERROR,
            _ADD_BOS,
            f"true: {first if isinstance(first, str) else 'a token'} is put before prompts, "
            + ("which begin with [gMASK]<sop> already" if again else "GLM's begin with [gMASK]<sop>"),
            "Answers get worse: the model never saw a prompt that begins so.",
            f"{_ADD_BOS} = false",
            {_ADD_BOS: False},
        )
    if subject.metadata.get(_ADD_EOS) is True:
        yield Finding(
            "prefix-wrong",
            Severity.ERROR,
            _ADD_EOS,
            "true: a token that ends answers is put behind prompts",
            "The model takes the prompt for a finished text.",
            f"{_ADD_EOS} = false",
            {_ADD_EOS: False},
        )
    template = templates.of(subject.metadata)
    if template is None:
        return
    right = ["[gMASK]", "<sop>" if "<sop>" in subject.ids else "sop"]
    name = subject.token_id("bos")
    spelled = subject.tokens[name] if name is not None else ""
    seen = _BOS_VARIABLE.sub(lambda match: spelled if isinstance(spelled, str) else "", template)
    runs: list[list[str]] = [_PREFIX_TOKEN.findall(run[0]) for run in _PREFIX_RUN.finditer(seen)]
    if any(len(run) > 2 or len(set(run)) < len(run) for run in runs):
        once = _PREFIX_RUN.sub(lambda run: "".join(right), seen)
        yield Finding(
            "prefix-doubled",
            Severity.ERROR,
            _TEMPLATE,
            f"the template spells {max(map(''.join, runs), key=len)[:60]}, should be {''.join(right)} once",
            "Answers get worse: the model never saw a prompt that begins so.",
            "once is left",
            {_TEMPLATE: once},
        )
    elif not any(run[:1] == ["[gMASK]"] and len(run) == 2 for run in runs) and not subject.edge:
        rest = _PREFIX_PART.sub("", seen, count=1)
        known = not _PREFIX_RUN.search(rest)
        yield Finding(
            "prefix-missing",
            Severity.ERROR,
            _TEMPLATE,
            f"the template does not begin with {''.join(right)}",
            "Answers get worse, or the model never begins one: it never saw a prompt without.",
            f"{''.join(right)} is put before the template" if known else None,
            {_TEMPLATE: "".join(right) + rest} if known else {},
        )


def _own(subject: Subject) -> str | None:
    """The model's own template, if we have it: of an architecture, or of a published model where its others differ."""
    if subject.published is not None and subject.published.name in _PUBLISHED:
        return _PUBLISHED[subject.published.name]
    return TEMPLATES.get("glm-edge" if subject.edge else subject.row.chat or "")


def template(subject: Subject) -> Iterator[Finding]:
    """A chat model's file says how it is spoken to."""
    if not subject.speaks_glm or templates.of(subject.metadata) is not None or "<|user|>" not in subject.ids:
        return
    told = subject.metadata.get(_TEMPLATE)
    named = isinstance(told, str) and bool(told.strip())
    byte_level = subject.family == "gpt2"
    changes: dict[str, Any] = {}
    own = _own(subject)
    if byte_level and own:
        changes = {_TEMPLATE: own}
    elif named and told != "chatglm2" and subject.family == "llama" and subject.row.versions:
        # The format, which has tools and encodes each piece on its own, stays glmlite's way to speak.
        text = CHATGLM3 if "<sop>" in subject.ids else CHATGLM3.replace("<sop>", "sop")
        changes = {_TEMPLATE: text, "glmlite.chat_format": "chatglm3"}
    fix = "the model's own is put in" if changes else None
    if named:
        what = f"{brief(told)!r} is a name, should be the template itself"
        means = "Programs that know the name by heart may leave out [gMASK]<sop>; others take it for a text, or guess."
        yield Finding("template-name", Severity.ERROR, _TEMPLATE, what, means, fix, changes)
        return
    yield Finding(
        "template-missing",
        # ChatGLM2 and ChatGLM3 never had one.
        Severity.WARNING if byte_level else Severity.NOTE,
        _TEMPLATE,
        "missing" if told is None else "empty",
        "glmlite speaks to the model as it was trained; other programs guess, mostly ChatML, which no GLM knows.",
        fix,
        changes,
    )


def template_syntax(subject: Subject) -> Iterator[Finding]:
    """A template is a program, which has to be one."""
    text = templates.of(subject.metadata)
    wrong = text and templates.wrong_with(text)
    if wrong:
        own = _own(subject) if subject.speaks_glm else None
        yield Finding(
            "template-syntax",
            Severity.ERROR,
            _TEMPLATE,
            brief(f"the template is no Jinja program: {wrong}"),
            "No conversation can be written: the template was cut off, or damaged by whoever changed it.",
            "the model's own is put in" if own else None,
            {_TEMPLATE: own} if own else {},
        )


def template_tools(subject: Subject) -> Iterator[Finding]:
    """A model that was trained to call tools is told of them by its template."""
    template = templates.of(subject.metadata, tools=True)
    if not subject.speaks_glm or "<tool_call>" not in subject.ids or template is None or "tools" in template:
        return
    own = _own(subject)
    yield Finding(
        "template-tools",
        Severity.WARNING,
        _TEMPLATE,
        "the template never speaks of tools, which the vocabulary has marks for",
        "Tools that a program offers are refused or ignored: the template was made for one program, or cut down.",
        "the model's own is put in" if own else None,
        {_TEMPLATE: own} if own else {},
    )


def sampling(subject: Subject) -> Iterator[Finding]:
    """What a file recommends can be used."""
    from ..models import ARCHITECTURES
    from ..parameters import RECOMMENDED, sampling_defaults

    for key in RECOMMENDED.values() if subject.architecture in ARCHITECTURES else ():
        try:
            sampling_defaults({key: subject.metadata.get(key)})
        except FormatError as error:
            what = brief(str(error).rpartition("general.sampling: ")[2])
            means = "glmlite refuses the file; other programs may write nonsense."
            yield Finding("sampling", Severity.ERROR, key, what, means, "it is left out", {key: None})


def tokenizer(subject: Subject, told: Collection[str]) -> Iterator[Finding]:
    """Whatever else keeps a tokenizer from being made of the metadata. told: keys that have a finding already."""
    from ..models import ARCHITECTURES
    from ..tokenizer import Tokenizer

    if not subject.glm and subject.architecture not in ARCHITECTURES:
        return
    means = "glmlite refuses the file; other programs may read it wrongly."
    try:
        Tokenizer.from_metadata(subject.metadata)
    except FormatError as error:
        where, _, what = str(error).partition(": ")
        if where not in told:
            yield Finding("tokenizer", Severity.ERROR, brief(where), brief(what), means)


# Whether the template is one comes before what it says.
CHECKS = (
    vocabulary_size,
    token_types,
    pre_tokenizer,
    stop_ids,
    template_syntax,
    prefix,
    template,
    template_tools,
    sampling,
)
