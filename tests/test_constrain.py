"""Answers in the form of a schema or a grammar: what may come next, when that begins, and what comes out."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import vocab

import glmlite
from glmlite import constrain
from glmlite.constrain import After, Thought, Vocabulary, after_thought, thought_of
from glmlite.parameters import Parameters
from glmlite.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'glmlite[grammar]'")


@pytest.fixture(scope="module")
def model():
    with glmlite.load(parallel=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def vocabulary(model):
    return Vocabulary(model.tokenizer, model.vocab_size)


def allowed(mask, size):
    """The tokens of a mask."""
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[:size]).tolist())


def follows(constraint, tokenizer, text):
    """How much of the text can be written, a token at a time, each as its mask allows."""
    written = []
    for token in tokenizer.encode(text, special=False):
        mask = constraint.mask()
        if mask is not None and token not in allowed(mask, tokenizer.vocab_size):
            break
        constraint.accept([token])
        written.append(token)
    return tokenizer.decode(written)


# ---- what llguidance is told of a vocabulary


@pytest.mark.parametrize("name", [vocab.TRAINED + name for name in vocab.VOCAB_SIZES])
def test_forced_text_becomes_tokens_that_are_exactly_it(name):
    tokenizer = Tokenizer.from_metadata(vocab.metadata(name))
    tokens = constrain._Tokens(tokenizer, tokenizer.vocab_size)
    whole = ["a", " a", "\n\n", '{"name": "', '", "', "</think>", "<|user|>", "  indented", "你好，世界"]
    for text in [*whole, "\x07", "é", "🙂"]:
        ids = tokens(text)
        assert b"".join(tokens.tokens[i] for i in ids) == text.encode(), text
        assert not tokenizer.markers & set(ids)
    for text in whole:
        assert len(tokens(text)) < len(text.encode()) or len(text) < 3  # not byte by byte


def test_forced_text_is_never_a_marker():
    class Marked:
        vocab_size, eos_ids, markers = 4, frozenset(), frozenset([0])
        pieces = (b"<x>", b"<", b"x", b">")
        encode = staticmethod(lambda text, special: [0])  # as sentencepiece does with user-defined pieces

    assert constrain._Tokens(Marked(), 4)("<x>") == [1, 2, 3]


def test_a_vocabulary_that_lacks_tokens_or_an_end(model):
    class Few:
        vocab_size, eos_ids, markers = 3, frozenset(), frozenset()
        pieces = (b"a", b"ab", b"")
        encode = staticmethod(lambda text, special: [9])

    few = Few()
    few.piece = few.pieces.__getitem__
    for size in (2, 3, 40):
        following = Vocabulary(few, size).grammar('start: "aab" "ab"*')
        written = []
        while not following.done and len(written) < 9:
            tokens = sorted(allowed(following.mask(), size))
            assert following.mask().shape == (-(-size // 32),)
            written.append(tokens[-1])
            following.accept(written[-1:])
        assert b"".join(few.pieces[i] for i in written).startswith(b"aabab")


# ---- schemas and grammars


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"a":1,"b":"x"}', True),
        ('{"a": 1, "b": "x"}', True),
        ('\n{\n  "a": 1,\n  "b": "x"\n}', True),
        ('  {"a": 12345, "b": "中文 \\" \\u0007"}', True),
        ('{"a": 1,\n\n', False),
        ('{"a": 1.5', False),
        ('{"b": "x"', False),
        ('{"a": 1, "b": "x", "c"', False),
        ("Here is", False),
    ],
)
def test_what_a_schema_allows(model, vocabulary, text, whole):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    following = vocabulary.schema(json.dumps(schema))
    assert (follows(following, model.tokenizer, text) == text) is whole
    assert following.done is whole


def test_white_space_may_be_what_a_schema_says(model, vocabulary):
    compact = vocabulary.schema('{"type": "object", "x-guidance": {"whitespace_flexible": false}}')
    assert follows(compact, model.tokenizer, '{"a": 1}') == '{"a": 1}'
    none = vocabulary.schema('{"type": "object", "x-guidance": {"whitespace_pattern": "~~"}}')
    assert follows(none, model.tokenizer, '{"a": 1}') != '{"a": 1}'


def test_a_grammar(model, vocabulary):
    following = vocabulary.grammar('start: ("yes" | "no") /[.!]/')
    assert follows(following, model.tokenizer, "no!") == "no!"
    assert following.done
    following.reset()
    assert not following.done
    assert follows(following, model.tokenizer, "yes?") == "yes"
    with pytest.raises(RuntimeError, match="the answer's schema or grammar: "):
        following.accept(model.tokenizer.encode("?"))


def nested(count):
    schema = {}
    for _ in range(count):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def chain(count):
    links = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(count)}
    return {"$defs": {**links, f"d{count}": {}}, "$ref": "#/$defs/d0"}


def patterns(count):
    return {"type": "object", "patternProperties": {f"^x{i}$": {} for i in range(count)}}


REFUSED_SCHEMAS = {
    "not": ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
    "unique items": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "look-around": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "a pattern that is none": ({"type": "string", "pattern": "("}, "unclosed group"),
    "an unknown type": ({"type": "strin"}, "strin"),
    "an unknown format": ({"type": "string", "format": "nope"}, "nope"),
    "a reference to nothing": ({"$ref": "#/$defs/no"}, "does not exist"),
    "a reference to elsewhere": ({"$ref": "https://example.com/x"}, "not fetch"),
    "a circle": ({"allOf": [{"$ref": "#"}, {"type": "string"}]}, "circular"),
    "nothing": ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "unsatisfiable"),
    "a lone surrogate": ({"const": "\ud800"}, "schema: "),
    "wrong options": ({"x-guidance": 5}, "invalid type"),
    "deep": (nested(125), "recursion limit"),
    "too many properties": ({"properties": {f"p{i}": {} for i in range(1500)}}, "squared, expected at most"),
    "too many required ones": ({"required": [f"p{i}" for i in range(1500)]}, "squared, expected at most"),
    "too many patterns": (patterns(101), "101 patterns, expected at most 100"),
    "too many references": (chain(1001), "references, expected at most"),
    "a constant that f64 does not have": ({"const": [{"a": 2**53 + 1}]}, "the constant 9007199254740993"),
    "an enum that f64 does not have": ({"enum": [1, -1e300]}, "the constant -1e+300"),
    "a bound that f64 does not have": ({"type": "integer", "minimum": 2**63}, "minimum is 9223372036854775808"),
    "too many multiples": ({"type": "integer", "multipleOf": 999_983}, "999983 is the least common multiple"),
    "too many negative multiples": ({"type": "number", "multipleOf": -7.61811}, "761811 is the least common multiple"),
    "too many multiples at once": ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "988027 is the least"),
    "too many values": ({"enum": list(range(50_000))}, "values, expected at most"),
}


@pytest.mark.parametrize("name", REFUSED_SCHEMAS)
def test_a_schema_that_cannot_be_followed_says_why(vocabulary, name):
    schema, message = REFUSED_SCHEMAS[name]
    with pytest.raises(ValueError, match=r"^schema: ") as refused:
        vocabulary.schema(json.dumps(schema))
    assert message in str(refused.value)
    assert len(str(refused.value)) < 600


REFUSED_GRAMMARS = {
    "no rule": ("// nothing", "no start rule"),
    "an unknown name": ("start: nope", "nope"),
    "GBNF": ('root ::= "a"', "1(7)"),
    "an unknown token": ("start: <|nope|>", "nope"),
    "nothing can be written": ("start: start", "nothing can follow"),
    "parentheses": ("start: " + "(" * 50_000 + '"a"' + ")" * 50_000, "deeply nested"),
    "a deep regex": ("start: /" + "(" * 50_000 + "a" + ")" * 50_000 + "/", "regex"),
    "too many rules": ("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(9000)) + 'r9000: "a"', "lines"),
    "too many parameters": ("start: a::0\n" + "b::0\n" * 300, "parameters"),
    "a deep schema": ("start: %json " + "[" * 100_000, "deep"),
    "a large schema": ("start: %json " + json.dumps(patterns(200)), "200 patterns"),
    "a schema that is none": ("start: %json {", "json"),
}


@pytest.mark.parametrize("name", REFUSED_GRAMMARS)
def test_a_grammar_that_cannot_be_followed_says_why(vocabulary, name):
    grammar, message = REFUSED_GRAMMARS[name]
    with pytest.raises(ValueError, match=r"^grammar: ") as refused:
        vocabulary.grammar(grammar)
    assert message in str(refused.value)


def test_bounds_that_f64_does_not_have_become_narrower(vocabulary):
    schema = {"type": "integer", "minimum": -(2**63), "exclusiveMaximum": 2**63, "default": 2**63}
    named = {"type": "object", "properties": {"maximum": schema, "const": schema, "minimum": {}}}
    prepared = constrain._prepare("schema", named)["properties"]
    narrow = {"type": "integer", "minimum": -(2**53) + 1, "exclusiveMaximum": 2**53 - 1, "default": 2**63}
    assert prepared == {"maximum": narrow, "const": narrow, "minimum": {}}
    lark = f"start: %json {json.dumps({'maximum': 1e300})} | %json {{ }} // %json {{"
    assert constrain._prepared(lark) == 'start: %json {"maximum": 9007199254740991} | %json {} // %json {'
    assert not vocabulary.schema(json.dumps({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1})).done


HOSTILE = {
    "a tree": {"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}, "required": ["l", "r"]},
    "a circle": {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
    "a long chain": chain(999),
    "deep": nested(40),
    "many properties": {"type": "object", "properties": {f"p{i}": {} for i in range(1200)}},
    "many patterns": patterns(100),
    "many words": {"enum": [f"word {i}" for i in range(40_000)]},
    "catastrophic": {"type": "string", "pattern": "^((a+)+|(a|a)*)+b$"},
    "exponential": {"type": "string", "pattern": "(a|b)*a(a|b){40}$"},
    "squared": {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
    "long": {"type": "string", "minLength": 10**9},
    "many items": {"type": "array", "minItems": 10**9},
    "doubled": {
        "$defs": {**{f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}, "d60": {"const": 1}},
        "$ref": "#/$defs/d0",
    },
    "a long constant": {"const": "x" * 200_000},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_followed_or_given_up(vocabulary, name):
    following = vocabulary.schema(json.dumps(HOSTILE[name]))
    rng = np.random.RandomState(0)
    try:
        for _ in range(100):
            following.accept([int(rng.choice(sorted(allowed(following.mask(), vocabulary.size))))])
            following.forced(100)
            if following.done:
                break
    except RuntimeError as error:
        assert "too many" in str(error)


# ---- constraints that begin later


class Script:
    """A constraint of these tokens, one after another."""

    stops = forbidden = ()
    active = True

    def __init__(self, *tokens):
        self.tokens, self.at = tokens, 0

    @property
    def done(self):
        return self.at == len(self.tokens)

    def mask(self):
        words = np.zeros(32, np.uint32)
        token = self.tokens[self.at]
        words[token // 32] = 1 << token % 32
        return words

    def accept(self, tokens):
        for token in tokens:
            assert token == self.tokens[self.at]
            self.at += 1

    def forced(self, most):
        return []

    def reset(self):
        self.at = 0


class Pieces(Vocabulary):
    """A vocabulary of these pieces."""

    def __init__(self, *pieces, ends=()):
        class Tokens:
            vocab_size, eos_ids = len(pieces), frozenset(ends)

        Tokens.pieces = [piece.encode() for piece in pieces]
        Tokens.piece = lambda self, token: self.pieces[token]
        super().__init__(Tokens(), len(pieces))


def test_after_a_token():
    words = Pieces("a", "b", "</think>", "x", "y", "<end>", ends=[5])
    constraint = After(2, Script(3, 4), words)
    assert set(constraint.stops) == {2}
    assert (constraint.active, constraint.mask(), constraint.done) == (False, None, False)
    assert set(constraint.forbidden) == {5}
    constraint.accept([0, 1, 3])
    assert not constraint.active
    constraint.accept([2])
    assert constraint.active and allowed(constraint.mask(), 6) == {3}
    assert set(constraint.forbidden) == set()
    constraint.accept([3, 4])
    assert constraint.done
    constraint.reset()
    assert not constraint.active and not constraint.done


def test_after_a_text_wherever_its_tokens_are_cut():
    pieces = ["a", "<", "</", "think", ">", ">\n", ">x", "/think>", "a<", "</think> ", "hm</thi", "nk"]
    words = Pieces(*pieces)
    name = {piece: i for i, piece in enumerate(pieces)}
    for text in (
        ["<", "/think>"],
        ["a", "</", "think", ">"],
        ["a<", "/think>"],
        ["hm</thi", "nk", ">\n"],
        ["</think> "],
    ):
        constraint = After("</think>", Script(0), words)
        for i, piece in enumerate(text):
            assert constraint.active is (i > 0 and text[i - 1] != "a")
            mask = constraint.mask()
            assert mask is None or name[piece] in allowed(mask, len(pieces))
            assert name[piece] in constraint.stops or piece == "a" or i > 0
            constraint.accept([name[piece]])
        assert constraint.active and allowed(constraint.mask(), len(pieces)) == {0}, text
    constraint = After("</think>", Script(0), words)
    constraint.accept([name[piece] for piece in ("</", "think", "<", "</", "think")])
    assert name[">x"] not in allowed(constraint.mask(), len(pieces))  # what follows the text could not be taken back
    assert allowed(constraint.mask(), len(pieces)) == set(range(len(pieces))) - {name[">x"]}
    constraint.accept([name["a"]])
    assert not constraint.active


def test_again_and_again():
    words = Pieces("a", "<call>", "x", "</call>", ends=[0])
    constraint = After(1, Script(2, 3), words, again=True)
    for _ in range(3):
        assert not constraint.active and not constraint.forbidden  # the answer may end here
        constraint.accept([0, 1])
        assert constraint.active
        constraint.accept([2])
        constraint.accept([3])
        assert not constraint.done


@pytest.mark.parametrize("thinks", [False, True])
def test_an_answer_that_may_think_first(thinks):
    words = Pieces("\n", "<think>", "hm", "</think>", "x", "y", ends=[5])
    constraint = after_thought(Thought(end=3, begin=1), Script(0, 4), words)
    assert constraint.active
    assert allowed(constraint.mask(), 6) == {0, 1}
    constraint.accept([0])
    assert allowed(constraint.mask(), 6) == {1, 4}
    assert not constraint.done and constraint.forced(9) == []
    if thinks:
        constraint.accept([1])
        assert not constraint.active and set(constraint.forbidden) == {5}
        constraint.accept([2, 2])
        constraint.accept([3])
        assert allowed(constraint.mask(), 6) == {0}
        constraint.accept([0])
    assert constraint.active
    constraint.accept([4])
    assert constraint.done
    constraint.reset()
    assert allowed(constraint.mask(), 6) == {0, 1}


@pytest.mark.parametrize(
    ("prompt", "thought"),
    [
        ("<|user|>hi<|assistant|>", Thought(1, 0)),
        ("<|assistant|><think>", Thought(1)),
        ("<|assistant|>\n<think>\n", Thought(1)),
        ("<|assistant|><think></think>", None),
        ("<|assistant|></think>\n", None),
        ("say <think><|assistant|>", Thought(1, 0)),
    ],
)
def test_what_an_answer_to_a_prompt_thinks(prompt, thought):
    class Tokens:
        def __init__(self, *marks):
            self.id_of = dict(zip(marks, range(9))).get

        def decode(self, ids):
            return prompt[-len(ids) :]

    ids = [0] * min(16, len(prompt))
    assert thought_of(Tokens("<think>", "</think>"), ids) == thought
    plain = thought_of(Tokens(), ids)  # a model that has no tokens for it
    assert plain == (Thought("</think>") if thought == Thought(1) else None)


# ---- whole answers

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "people": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a capital", "a village"]},
    },
    "required": ["name", "people", "kind"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "the city?"}]


def test_an_answer_ends_where_its_json_does(model):
    for schema in (CITY, json.dumps(CITY), Parameters(schema=CITY).schema):
        answer = model.chat(QUESTION, schema=schema, seed=1, temperature=1.0)
        assert set(json.loads(answer.text)) == {"name", "people", "kind"}
        assert (answer.finish_reason, answer.stop) == ("stop", None)
        assert answer.stats.generated_tokens == len(answer.tokens)
    assert json.loads(model.generate("a city", Parameters(schema=CITY), ignore_eos=True).text)
    assert model.generate("a", schema=True, seed=3, max_tokens=40).text.strip().startswith("{")
    answer = model.generate("is it?", grammar='start: "yes" | "no"')
    assert (answer.text in ("yes", "no"), answer.finish_reason) == (True, "stop")
    exact = model.generate("is it?", grammar='start: "yes" | "no"', max_tokens=len(answer.tokens))
    assert (exact.text, exact.finish_reason) == (answer.text, "stop")


def test_an_answer_that_is_cut_says_length(model):
    whole = model.chat(QUESTION, schema=CITY, seed=1, temperature=1.0)
    for count in (1, 2, 10, len(whole.tokens) - 1):
        answer = model.chat(QUESTION, schema=CITY, seed=1, temperature=1.0, max_tokens=count)
        assert (answer.tokens, answer.finish_reason) == (whole.tokens[:count], "length")
    stopped = model.chat(QUESTION, schema=CITY, seed=1, temperature=1.0, stop=["people"])
    assert (stopped.finish_reason, stopped.stop) == ("stop", "people")


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0}, {"temperature": 1.3, "top_p": 0.8, "presence_penalty": 1.0, "logit_bias": {40: 3.0}}],
    ids=str,
)
def test_forced_tokens_are_those_that_masks_leave(model, monkeypatch, options):
    forced = constrain.Following.forced
    count = []

    def counting(self, most):
        count.append(len(tokens := forced(self, most)))
        return tokens

    for seed in range(8):
        monkeypatch.setattr(constrain.Following, "forced", counting)
        answer = model.chat(QUESTION, schema=CITY, seed=seed, **options)
        every = model.chat(QUESTION, schema=CITY, seed=seed, logprobs=1, **options)
        monkeypatch.setattr(constrain.Following, "forced", lambda self, most: [])
        drawn = model.chat(QUESTION, schema=CITY, seed=seed, **options)
        assert answer.tokens == drawn.tokens == every.tokens
        assert answer.text == drawn.text
        assert all(p.logprob <= 0 for p in every.logprobs)
    assert max(count) > 1  # several at once


def test_a_grammar_that_allows_everything_changes_nothing(model):
    for seed in range(5):
        free = model.generate("Once", seed=seed, temperature=1.0, max_tokens=40)
        bound = model.generate("Once", seed=seed, temperature=1.0, max_tokens=40, grammar="start: <[*]>*")
        assert bound.tokens == free.tokens


def test_many_at_once_are_as_each_alone(model):
    asked = [{"schema": CITY}, {}, {"grammar": "start: /[a-z]{5,30}/"}, {"schema": {"type": "array"}}, {}]
    more = {"temperature": 1.0, "max_tokens": 40}
    alone = [model.generate("x", seed=i, **more, **what).tokens for i, what in enumerate(asked)]
    together = [model.stream("x", seed=i, **more, **what) for i, what in enumerate(asked)]
    assert [generation.result().tokens for generation in together] == alone


@pytest.mark.parametrize("executor", ["twin"], indirect=True)
def test_a_call_that_fails_after_its_draws_changes_nothing(load):
    """What is drawn in it is drawn again, when each of its requests runs alone."""
    opened = load("glm4", {"context": 512})
    asked = [{"schema": CITY}, {"grammar": 'start: "abc" /[x-z]{20}/'}, {}]
    more = {"temperature": 1.0, "max_tokens": 40, "presence_penalty": 0.5, "ignore_eos": True}
    alone = [opened.generate("x", seed=i, **more, **what).tokens for i, what in enumerate(asked)]
    engine, failed = opened._engine, []
    enter = engine._enter

    def failing(work, *rest):
        last = len(engine.steps[-1]) > 1 and work.sequence == max(engine._pages)
        if last and len(failed) < 30 and len(engine.steps) % 3 == 0:
            failed.append(len(engine.steps))
            raise RuntimeError("the engine fails")
        return enter(work, *rest)

    engine._enter = failing
    together = [opened.stream("x", seed=i, **more, **what) for i, what in enumerate(asked)]
    assert [generation.result().tokens for generation in together] == alone
    assert failed


# ---- thoughts and calls

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
TEMPLATE = (
    "[gMASK]<sop>{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' if opens else '' }}"
    "{# <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call> #}"
)
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    for name, properties in (("look", {"n": {"type": "integer", "maximum": 99}}), ("wait", {}))
]


@pytest.fixture
def thinker(load):
    """A tiny model of random weights with the tokens and the template of GLM-4.7."""
    metadata = tiny.tokenizer("glm4", 384)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    unused = [i for i, token in enumerate(tokens) if token.startswith("[PAD")]
    for i, mark in zip(unused, MARKS):
        tokens[i], types[i] = mark, tiny.USER_DEFINED
    return load("glm4", {"metadata": metadata | {"tokenizer.chat_template": TEMPLATE}, "context": 512})


def ask(model, seed=0, *, likes=None, **options):
    """likes: marks that it is to write, and how much."""
    bias = {model.tokenizer.id_of(mark): by for mark, by in (likes or {}).items()}
    options = {"temperature": 1.0, "max_tokens": 150, "logit_bias": bias, **options}
    return model.chat([{"role": "user", "content": "hi"}], seed=seed, **options)


@pytest.mark.parametrize("template", [{"opens": True}, {"opens": False}, {"enable_thinking": False}], ids=str)
def test_a_schema_counts_after_the_thought(thinker, template):
    thoughts = Counter()
    for seed in range(12):
        likes = {"</think>": 4.0, "<think>": 12.0 * (seed % 2)}
        answer = ask(thinker, seed, likes=likes, schema=CITY, template=template)
        thoughts[answer.reasoning is not None] += 1
        assert answer.finish_reason in ("stop", "length")
        if answer.finish_reason == "stop":
            assert set(json.loads(answer.text)) == set(CITY["properties"])
    assert (thoughts[True] > 0) is not ("enable_thinking" in template)
    assert thoughts[False] or template == {"opens": True}


def test_a_thought_must_not_be_the_end(thinker):
    """A model that wants to end in its thought goes on."""
    ends = dict.fromkeys(thinker.tokenizer.eos_ids, 50.0)
    answer = ask(thinker, schema=CITY, template={"opens": True}, logit_bias=ends, max_tokens=40)
    assert (answer.finish_reason, len(answer.tokens)) == ("length", 40)
    assert ask(thinker, template={"opens": True}, logit_bias=ends).finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}], ids=str)
def test_calls_that_have_to_be(thinker, choice):
    for seed in range(4):
        more = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
        answer = ask(thinker, seed, template={"enable_thinking": False}, schema=CITY if seed % 2 else None, **more)
        (call,) = answer.tool_calls
        assert call.name in (("look", "wait") if choice == "required" else ("look",))
        assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "array", "items": {"type": "string", "pattern": "^(?!x)"}},
        {"type": "array", "items": {"type": "float"}},
        {"type": "array", "items": None},
        {"type": "integer", "minimum": "0"},
        {"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}},
    ],
    ids=str,
)
def test_calls_of_tools_whose_schema_cannot_be_followed(thinker, odd):
    """The names of tools and arguments hold all the same."""
    parameters = {"type": "object", "properties": {"odd": odd, "n": {"type": "integer"}}, "required": ["odd"]}
    tools = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    for seed in range(2):
        answer = ask(thinker, seed, template={"enable_thinking": False}, tools=tools, tool_choice="required")
        for call in answer.tool_calls:
            assert call.name == "look" and json.loads(call.arguments).keys() <= {"odd", "n"}
        assert answer.tool_calls or answer.finish_reason == "length"


def test_a_call_or_an_answer_in_the_schema(thinker):
    seen = Counter()
    for seed in range(12):
        likes = {"<tool_call>": 12.0 * (seed % 2)}
        answer = ask(thinker, seed, likes=likes, schema=CITY, tools=TOOLS, template={"enable_thinking": False})
        seen[bool(answer.tool_calls), answer.finish_reason] += 1
        if answer.finish_reason == "stop":
            assert set(json.loads(answer.text)) == set(CITY["properties"])
        for call in answer.tool_calls:
            assert call.name in ("look", "wait") and isinstance(json.loads(call.arguments), dict)
    assert {calls for calls, _ in seen} == {True, False}


# ---- random schemas

SCHEMAS = int(os.environ.get("GLMLITE_SCHEMAS", "100"))


def test_every_finished_answer_validates(model):
    """Random schemas, random text: what is finished is valid, what is not says length; $GLMLITE_SCHEMAS of them."""
    import jsonschema
    from hypothesis import HealthCheck, Phase, given, settings
    from schemas import schemas

    asked = []
    plain = {"derandomize": True, "database": None, "deadline": None, "phases": [Phase.generate]}

    @settings(max_examples=SCHEMAS, suppress_health_check=list(HealthCheck), **plain)
    @given(schemas())
    def ask(schema):
        asked.append(schema)

    ask()

    def answer(seed):
        try:
            return model.generate("x", schema=asked[seed], seed=seed, temperature=1.0, top_p=1.0, max_tokens=80)
        except (ValueError, RuntimeError) as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(len(asked))))
    reasons = Counter()
    for schema, got in zip(asked, answers):
        if isinstance(got, str):
            assert got.startswith("schema: ") or "nothing can follow" in got, got
            reasons["refused"] += 1
            continue
        reasons[got.finish_reason] += 1
        if got.finish_reason == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(got.text))
    assert set(reasons) == {"refused", "stop", "length"}
    assert reasons["stop"] > len(asked) / 4
