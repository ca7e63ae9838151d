"""Answers in the form of a JSON schema or of a grammar: which tokens may come next. By llguidance (extra `grammar`).

A constraint follows an answer token by token: `mask` says which tokens may come next, `accept` takes what came. A
`Following` does so from where it begins; `After` leaves the answer free until something has been written (the end of a
thought, `<tool_call>`), and meanwhile the engine writes in bursts.

Where only one token can come, `forced` takes it and those after it: they need not be drawn, and enter the cache
together.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .tokenizer import Tokenizer

__all__ = ["After", "Constraint", "Either", "Following", "Thought", "Vocabulary", "after_thought", "thought_of"]

Mask = NDArray[np.uint32]

BURST = 16  # tokens, at most, that an answer is written on by before its constraint is asked again
# What a model may write where JSON allows white space: compact, spaced and indented JSON, but no run of line ends, in
# which models get lost.
BLANK = r"\n? {0,8}"
BEFORE = r"\n {0,8}| {1,8}"  # the same before the first word, where a lexeme must not be empty
# What a schema or grammar may be, so that none takes more than a second or a few 100 MB, or ends the process: beyond
# these, llguidance takes a time that grows with the square of them, or recurses as deep as they are many.
MOST_VALUES = 50_000  # of JSON
MOST_SQUARED = 2_000_000  # sum over all objects, and lists of required properties, of their sizes squared
MOST_PATTERNS = 100
MOST_REFERENCES = 1_000
MOST_MULTIPLE = 100_000
NAMED = ("properties", "patternProperties", "$defs", "definitions")  # keywords whose value has a schema for each name
EXACT = 2**53 - 1  # whole numbers that f64 has
MOST_LINES = 4_000  # of a grammar
MOST_PARAMETERS = 200  # of its rules: `::`
STACK = 64 << 20  # bytes for the recursion that is left
LIMITS = {
    "initial_lexer_fuel": 1_000_000,  # 20 ms
    "step_lexer_fuel": 200_000,  # 14 ms
    "step_max_items": 100_000,  # 5 ms
    "max_items_in_row": 8_000,  # four for each property that may come next
    "max_lexer_states": 50_000,  # up to 100 MB
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


LONGEST_MESSAGE = 500
_REASONS = {"NoExtensionBias": "nothing can follow"}


class Constraint(Protocol):
    """What the tokens of an answer must follow. Not for several threads at once.

    stops: tokens after which a burst must end, because the constraint may begin with the next one.
    """

    stops: Collection[int]

    @property
    def forbidden(self) -> Collection[int]:
        """Tokens that cannot come before it has begun: the answer must not end there."""

    @property
    def active(self) -> bool:
        """The next token has to be drawn by itself."""

    @property
    def done(self) -> bool:
        """It is complete, and nothing can follow."""

    def mask(self) -> Mask | None:
        """The tokens that may come next, as `Sampler.allow` takes them; None: all. Raises RuntimeError where that is
        too hard to say."""

    def accept(self, tokens: Sequence[int]) -> None:
        """Tokens that were written. Raises RuntimeError for such as cannot follow."""

    def forced(self, most: int) -> list[int]:
        """At most so many tokens that have to come next, and are accepted by this."""

    def reset(self) -> None:
        """Back to the beginning."""


class Thought(NamedTuple):
    """What an answer may think before the part that is constrained.

    end: the token, or the text, that ends the thought. begin: the token that begins one, where the answer may begin
    with it or not; None: the prompt has begun it.
    """

    end: int | str
    begin: int | None = None


class Vocabulary:
    """A model's tokens, and constraints over them. Threads may share one.

    size: of the model's logits. What llguidance makes of the tokens takes 0.6 s for 150,000 of them, and is made when
    the first constraint is asked for.
    """

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.size = size
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._made: Any = None
        self._beginnings: dict[bytes, frozenset[int]] = {}
        self._endings: dict[bytes, Mask] = {}

    def schema(self, schema: str) -> Following:
        """JSON that validates against a schema, given as JSON text. Raises ValueError for one that llguidance cannot
        follow, ModuleNotFoundError without it."""
        own = json.loads(schema)
        _prepare("schema", own)
        if isinstance(options := own.setdefault("x-guidance", {}), dict):
            options.setdefault("whitespace_pattern", BLANK)
        lark = f"start: BEFORE? @json\nBEFORE: /{BEFORE}/\n"
        grammars = [{"lark_grammar": lark}, {"name": "json", "json_schema": own}]
        return self._following("schema", json.dumps({"grammars": grammars}))

    def grammar(self, lark: str) -> Following:
        """Text by a grammar in llguidance's variant of Lark. Raises as `schema` does."""
        lines, parameters = lark.count("\n"), lark.count("::")
        if lines > MOST_LINES:
            raise ValueError(f"grammar: {lines} lines, expected at most {MOST_LINES}")
        if parameters > MOST_PARAMETERS:
            raise ValueError(f"grammar: {parameters} parameters ('::'), expected at most {MOST_PARAMETERS}")
        lark = _prepared(lark)
        return self._following("grammar", json.dumps({"grammars": [{"lark_grammar": lark}]}))

    def piece(self, token: int) -> bytes:
        return self._tokenizer.piece(token) if token < self._tokenizer.vocab_size else b""

    def beginnings(self, text: bytes) -> frozenset[int]:
        """The tokens after which `text`, or its beginning, may have been written."""
        if text not in self._beginnings:
            ends = tuple(text[:n] for n in range(1, len(text)))
            found = (i for i, piece in enumerate(self._pieces) if piece.endswith(ends) or text in piece)
            self._beginnings[text] = frozenset(found)
        return self._beginnings[text]

    def ending(self, rest: bytes) -> Mask:
        """All tokens but those that write `rest` and after it more than white space."""
        if rest not in self._endings:
            allowed = np.ones(-(-self.size // 32) * 32, np.bool_)
            for i, piece in enumerate(self._pieces):
                if piece.startswith(rest) and piece[len(rest) :].strip():
                    allowed[i] = False
            self._endings[rest] = np.packbits(allowed, bitorder="little").view(np.uint32)
        return self._endings[rest]

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(i for i in self._tokenizer.eos_ids if i < self.size)

    @property
    def _pieces(self) -> Sequence[bytes]:
        return self._tokenizer.pieces[: self.size]

    def _following(self, what: str, grammar: str) -> Following:
        llguidance = _llguidance()
        with self._lock:
            if self._made is None:
                tokens = _Tokens(self._tokenizer, self.size)
                self._made = llguidance.LLTokenizer(tokens, eos_token=tokens.ends)

        def begin() -> Any:
            limits = llguidance.LLParserLimits(**LIMITS)
            matcher = llguidance.LLMatcher(self._made, grammar, log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # what cannot be followed even here is the grammar's fault
            return matcher

        matcher = _on_a_stack_of_its_own(begin)
        if matcher.is_error():
            raise ValueError(f"{what}: {_message(matcher)}")
        return Following(matcher, self.size)


class Following:
    """A grammar that is followed from the first token."""

    stops: Collection[int] = ()
    forbidden: Collection[int] = ()
    active = True

    def __init__(self, matcher: Any, size: int):
        self._matcher = matcher
        self._words = -(-size // 32)

    @property
    def done(self) -> bool:
        return bool(self._matcher.is_stopped())

    def mask(self) -> Mask:
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        return words[: self._words]

    def accept(self, tokens: Sequence[int]) -> None:
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def forced(self, most: int) -> list[int]:
        if self.done:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()[:most]
        if tokens:
            self.accept(tokens)
        return tokens

    def reset(self) -> None:
        self._matcher.reset()
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"the answer's schema or grammar: {_message(self._matcher)}")


class After:
    """A constraint that begins when a token, or a text, has been written; until then the answer is free.

    again: whenever it is complete, the answer is free until the next such token.
    """

    def __init__(self, trigger: int | str, constraint: Constraint, vocabulary: Vocabulary, *, again: bool = False):
        self._token = trigger if isinstance(trigger, int) else None
        self._text = trigger.encode() if isinstance(trigger, str) else b""
        self._constraint = constraint
        self._vocabulary = vocabulary
        self._again = again
        self._begun = False
        self._held = b""  # what may be the beginning of the text
        own = vocabulary.beginnings(self._text) if self._token is None else {self._token}
        self.stops: Collection[int] = frozenset(own).union(constraint.stops)

    @property
    def begun(self) -> bool:
        """The trigger has been written."""
        return self._begun

    @property
    def forbidden(self) -> Collection[int]:
        if self._begun:
            return self._constraint.forbidden
        return () if self._again else self._vocabulary.ends

    @property
    def active(self) -> bool:
        return self._constraint.active if self._begun else self._held != b""

    @property
    def done(self) -> bool:
        return self._begun and self._constraint.done

    def mask(self) -> Mask | None:
        if self._begun:
            return self._constraint.mask()
        return self._vocabulary.ending(self._text[len(self._held) :]) if self._held else None

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self._begun:
                self._constraint.accept([token])
                self._begin_anew()
            else:
                self._begun = self._triggers(token)

    def forced(self, most: int) -> list[int]:
        if not self._begun:
            return []
        tokens = self._constraint.forced(most)
        self._begin_anew()
        return tokens

    def reset(self) -> None:
        self._constraint.reset()
        self._begun, self._held = False, b""

    def _begin_anew(self) -> None:
        if self._again and self._constraint.done:
            self.reset()

    def _triggers(self, token: int) -> bool:
        if self._token is not None:
            return token == self._token
        written = self._held + self._vocabulary.piece(token)
        lengths = range(min(len(written), len(self._text) - 1), 0, -1)
        self._held = next((written[-n:] for n in lengths if self._text.startswith(written[-n:])), b"")
        return self._text in written


class Either:
    """A constraint, or another one if the answer begins with a token that leads there; white space may come first."""

    def __init__(self, token: int, other: Constraint, constraint: Constraint, vocabulary: Vocabulary):
        self._token = token
        self._other = other
        self._plain = constraint
        self._vocabulary = vocabulary
        self._chosen: Constraint | None = None
        self.stops: Collection[int] = frozenset(other.stops).union(constraint.stops)

    @property
    def forbidden(self) -> Collection[int]:
        return () if self._chosen is None else self._chosen.forbidden

    @property
    def active(self) -> bool:
        return self._chosen is None or self._chosen.active

    @property
    def done(self) -> bool:
        return self._chosen is not None and self._chosen.done

    def mask(self) -> Mask | None:
        if self._chosen is not None:
            return self._chosen.mask()
        words = self._plain.mask()
        if words is None:
            return None
        words = np.array(words)
        words[self._token // 32] |= np.uint32(1 << self._token % 32)
        return words

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self._chosen is not None:
                self._chosen.accept([token])
            elif token == self._token:
                self._other.reset()
                self._chosen = self._other
                self._chosen.accept([token])
            else:
                self._plain.accept([token])
                if not self._vocabulary.piece(token).isspace():
                    self._chosen = self._plain

    def forced(self, most: int) -> list[int]:
        return [] if self._chosen is None else self._chosen.forced(most)

    def reset(self) -> None:
        self._plain.reset()
        self._other.reset()
        self._chosen = None


def after_thought(thought: Thought | None, constraint: Constraint, vocabulary: Vocabulary) -> Constraint:
    """A constraint of what an answer says once it has thought; of all of it where it does not think."""
    if thought is None:
        return constraint
    after = After(thought.end, constraint, vocabulary)
    return after if thought.begin is None else Either(thought.begin, after, constraint, vocabulary)


def thought_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> Thought | None:
    """What an answer to a prompt may think, between `<think>` and `</think>`: the prompt has begun it, or ended it, or
    the model may begin it, if it has such a token."""
    begin, end = (tokenizer.id_of(f"<{slash}think>") for slash in ("", "/"))
    written = re.search(r"<(/?)think>\s*$", tokenizer.decode(prompt[-16:]))
    if written is None:
        return None if begin is None or end is None else Thought(end, begin)
    return None if written[1] else Thought("</think>" if end is None else end)


# ---- llguidance


class _Tokens:
    """A tokenizer as llguidance asks for it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, size: int):
        pieces = tokenizer.pieces[:size]
        self.tokens = [*pieces, *[b""] * (size - len(pieces))]
        self.special_token_ids = [i for i in tokenizer.markers if i < size]
        self._markers = tokenizer.markers
        self.ends = [i for i in tokenizer.eos_ids if i < size]
        if not self.ends:  # it wants one: a token that the model does not have
            self.tokens.append(b"")
            self.ends = [size]
        self.eos_token_id = self.ends[0]
        self.bos_token_id = None
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        """Ids that stand for exactly this text in the middle of another: as the tokenizer would cut it, if it can."""
        data = text.encode()
        for before in ("", "\n"):  # sentencepiece puts a blank before a text
            ids = self._encode(before + text, special=False)
            for skip in range(min(4, len(ids))):
                if self._are(ids[skip:], data):
                    return ids[skip:]
        return self._longest_first(data)

    def _are(self, ids: list[int], data: bytes) -> bool:
        if max(ids) >= len(self.tokens) or not self._markers.isdisjoint(ids):
            return False
        return b"".join(self.tokens[i] for i in ids) == data

    def _longest_first(self, data: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(data):
            found = (data[at:end] for end in range(min(len(data), at + self._longest), at, -1))
            piece = next((piece for piece in found if piece in self._ids), b"")
            if not piece:  # a byte that the vocabulary cannot write
                break
            ids.append(self._ids[piece])
            at += len(piece)
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: i for i, piece in enumerate(self.tokens) if piece and i not in self._markers}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)


def _prepare(what: str, schema: Any) -> Any:
    """A schema, in place, such that llguidance ends with it. Raises ValueError for one that is too large.

    Bounds of numbers that f64 does not hold exactly become narrower: llguidance overflows the stack for some of them.
    """
    values = squared = patterns = references = 0
    multiple = 1
    left: list[tuple[str, Any]] = [("", schema)]
    while left:
        key, value = left.pop()
        values += 1
        if key in ("const", "enum"):
            values += _check_constant(what, value)
        elif isinstance(value, dict):
            squared += len(value) ** 2
            patterns += len(value) if key == "patternProperties" else isinstance(value.get("pattern"), str)
            references += isinstance(value.get("$ref"), str)
            if key in NAMED:
                left += (("", item) for item in value.values())
                continue
            _narrow(what, value)
            multiple = math.lcm(multiple, _digits(value.get("multipleOf")))
            left += (item for item in value.items() if item[0] not in ("default", "examples"))
        elif isinstance(value, list):
            squared += len(value) ** 2 if key == "required" else 0
            left += (("", item) for item in value)
    for count, most, name in [
        (values, MOST_VALUES, "JSON values"),
        (squared, MOST_SQUARED, "is the sum of the sizes of its objects, squared"),
        (patterns, MOST_PATTERNS, "patterns"),
        (references, MOST_REFERENCES, "references"),
        (multiple, MOST_MULTIPLE, "is the least common multiple of its multipleOf"),
    ]:
        if count > most:
            raise ValueError(f"{what}: {count} {name}, expected at most {most}")
    return schema


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _narrow(what: str, schema: dict[str, Any]) -> None:
    for names, inside in (("minimum", "exclusiveMinimum"), -EXACT), (("maximum", "exclusiveMaximum"), EXACT):
        for name in names:
            bound: Any = schema.get(name)
            if not _is_number(bound):
                continue
            if abs(bound) > EXACT and (bound > 0) != (inside > 0):
                raise ValueError(f"{what}: {name} is {bound}, expected at most 2**53 - 1 in size")
            schema[name] = max(bound, inside) if inside < 0 else min(bound, inside)


def _check_constant(what: str, value: Any) -> int:
    """How many values a constant has."""
    count, left = 0, [value]
    while left:
        value = left.pop()
        count += 1
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        elif _is_number(value) and abs(value) > EXACT:
            raise ValueError(f"{what}: the constant {value}, expected numbers of at most 2**53 - 1 in size")
    return count


def _digits(multiple: Any) -> int:
    """The number whose multiples it has to find, for a `multipleOf`: 250 for 0.25 is 25."""
    if not _is_number(multiple) or not 0 < abs(multiple) <= EXACT:
        return 1
    _, digits, exponent = Decimal(repr(multiple)).normalize().as_tuple()
    return int("".join(map(str, digits)) + "0" * int(exponent))


def _prepared(lark: str) -> str:
    """A grammar with the schemas in it prepared."""
    parts, end = [], 0
    for match in re.finditer(r"%json\s*", lark):
        if match.start() < end:
            continue
        try:
            schema, at = json.JSONDecoder().raw_decode(lark, match.end())
        except RecursionError:
            raise ValueError("grammar: a schema in it is nested too deep") from None
        except json.JSONDecodeError:
            continue  # llguidance will say so, unless this is in a comment or a string
        parts += [lark[end : match.end()], json.dumps(_prepare("grammar", schema))]
        end = at
    return "".join([*parts, lark[end:]])


def _on_a_stack_of_its_own(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    with _stack:
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=lambda: results.append(call()), name="glmlite grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return results[0]


_stack = threading.Lock()  # the size of new threads' stacks is the process's


def _llguidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as e:
        if e.name != "llguidance":
            raise
        raise ModuleNotFoundError(
            "schema and grammar need llguidance: pip install 'glmlite[grammar]'", name="llguidance"
        ) from e
    return llguidance


def _message(matcher: Any) -> str:
    message = str(matcher.get_error()).split("\n<", 1)[0].strip()
    for name, meaning in _REASONS.items():
        message = message.replace(name, meaning)
    return message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + " ..."
