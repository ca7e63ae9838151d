"""Grammars of calls: what a model may write where it has to call a tool. Checked by llguidance, if there is one."""

import re

import pytest
from test_dialects import ADJACENT, CALLS, CHATML, HERMES, LARGE, LLAMA, NEWLINES, ROLES, THINKS, of
from test_readers import TOOLS, message, read, tool

from glmlite.chat import offered

llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'glmlite[grammar]'")


class Bytes:
    """A vocabulary of single bytes and marks, as llguidance asks for it."""

    is_tokenizer_wrapper = True

    def __init__(self, marks):
        self.marks = marks
        self.tokens = [*(mark.encode() for mark in marks), *(bytes([b]) for b in range(256)), b"<eos>"]
        self.special_token_ids = [*range(len(marks)), len(self.tokens) - 1]
        self.eos_token_id = len(self.tokens) - 1
        self.bos_token_id = None

    def __call__(self, text):
        return [len(self.marks) + byte for byte in text.encode()]

    def ids(self, text):
        marks = re.split("(" + "|".join(map(re.escape, self.marks)) + ")", text) if self.marks else [text]
        return [i for part in marks for i in ([self.marks.index(part)] if part in self.marks else self(part))]


def follows(dialect, tokens, tools, text, choice="required", parallel=True):
    """Whether the grammar allows a text, and that it ends there."""
    grammar = dialect.grammar(offered(tools, choice), choice, parallel)
    vocabulary = Bytes(tokens)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer(vocabulary), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = vocabulary.ids(text)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


PLACE = tool(
    "place",
    ["at"],
    definitions={"many": {"type": "array", "items": {"type": "number"}}},
    at="string",
    kind={"enum": ["a", "北京"]},
    n="integer",
    many={"$ref": "#/$defs/many"},
    note={"type": ["string", "null"]},
)
ODD = tool("odd", x={"not": {"type": "string"}, "type": "object", "uniqueItems": True})
FREE = {"type": "function", "function": {"name": "free"}}
CLOCK = tool("clock")
ALL = [PLACE, CLOCK, ODD, FREE]


def call(line, name, *pairs):
    arguments = "".join(f"<arg_key>{key}</arg_key>{line}<arg_value>{value}</arg_value>{line}" for key, value in pairs)
    return f"<tool_call>{name}{line}{arguments}</tool_call>"


@pytest.mark.parametrize(("template", "line"), [(NEWLINES, "\n"), (ADJACENT, "")])
def test_calls_between_marks(template, line):
    dialect = of("glm4moe", CALLS, template)

    def allowed(text, **options):
        return follows(dialect, CALLS, ALL, text, **options)

    whole = call(line, "place", ("n", "-3"), ("at", " x\n<y> "), ("kind", "北京"), ("many", "[1, 2.5]"), ("note", "?"))
    clock = call(line, "clock")
    for text in (whole, clock, "\n" + clock, call(line, "place", ("at", "")), call(line, "free", ("any", "thing")),
                 call(line, "odd", ("x", "{}")), clock + line + whole + line + clock):  # fmt: skip
        assert allowed(text), text
        assert len(message(read(dialect.reads, [text], ALL))[2]) == text.count("<tool_call>")
    refused = [
        *("", "Hello", "clock", call(line, "other"), whole[:-1], clock + "text", clock.removesuffix("</tool_call>")),
        *(call(line, "place"), call(line, "place", ("n", "1.5"), ("at", "x")), call(line, "clock", ("at", "x"))),
        *(call(line, "place", ("at", "x"), ("kind", "c")), call(line, "place", ("at", "x"), ("y", "z"))),
    ]
    for text in refused:
        assert not allowed(text), text
    assert not allowed(clock + line + clock, parallel=False) and allowed(clock, parallel=False)
    named = {"type": "function", "function": {"name": "clock"}}
    assert allowed(clock, choice=named) and not allowed(whole, choice=named)
    assert allowed(whole.removeprefix("<tool_call>"), choice="auto")
    assert not allowed(whole.removeprefix("<tool_call>") + line + clock, choice="auto")
    assert dialect.trigger == CALLS.index("<tool_call>")


@pytest.mark.parametrize(
    ("architecture", "tokens", "template", "metadata", "before"),
    [("glm4", ROLES, None, {}, ""), ("chatglm", ROLES, None, LARGE, ""), ("glm4", ROLES, THINKS, {}, "\n\n")],
)
def test_a_name_and_json(architecture, tokens, template, metadata, before):
    dialect = of(architecture, tokens, template, metadata)

    def allowed(text, **options):
        return follows(dialect, tokens, ALL, text, **options)

    assert allowed('place\n{"at": "x", "n": 3, "many": [1.5]}') and allowed("clock\n{}") and allowed('odd\n{"x": {}}')
    assert allowed(before + "clock\n{}") and allowed("\nclock\n{}") is bool(before)
    for text in ("Hello", "clock", "clock\n", "other\n{}", "place\n{}", 'place\n{"at": 3}', "clock\n{}\nclock\n{}"):
        assert not allowed(text), text
    named = {"type": "function", "function": {"name": "clock"}}
    assert allowed("clock\n{}", choice=named) and not allowed('place\n{"at": "x"}', choice=named)
    assert dialect.grammar(ALL, "auto") is None is dialect.trigger


def test_a_name_and_python():
    dialect = of("chatglm", ROLES, None, LLAMA)
    text = "clock\n```python\ntool_call()\n```"
    assert follows(dialect, ROLES, ALL, text) and not follows(dialect, ROLES, ALL, "Hello")
    assert message(read(dialect.reads, [text], ALL))[2] == [("clock", {})]
    assert dialect.grammar(ALL, "auto") is None is dialect.trigger


@pytest.mark.parametrize("tokens", [CHATML, [*CHATML, "<tool_call>", "</tool_call>"]])
def test_json_between_marks(tokens):
    dialect = of("llama", tokens, HERMES)

    def allowed(text, **options):
        return follows(dialect, tokens, ALL, text, **options)

    clock = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    place = '<tool_call>\n{"name": "place", "arguments": {"at": "x"}}\n</tool_call>'
    for text in (clock, f"\n\n{place}", f"{clock}\n{place}"):
        assert allowed(text), text
        assert len(message(read(dialect.reads, [text], ALL))[2]) == text.count("<tool_call>")
    for text in ("Hello", clock[:-1], clock.replace("clock", "other"), place.replace('"x"', "3"), clock + "x"):
        assert not allowed(text), text
    assert not allowed(clock + clock, parallel=False)
    assert allowed(clock.removeprefix("<tool_call>"), choice="auto")
    assert dialect.trigger == ("<tool_call>" if tokens == CHATML else tokens.index("<tool_call>"))


def test_models_without_tools_and_vocabularies_without_marks_have_no_grammar():
    assert of("chatglm1", ROLES[:2], None, {}).grammar(TOOLS, "required") is None
    assert of("llama", CHATML, "{{ messages }}").grammar(TOOLS, "required") is None
    assert of("glm4moe", ROLES, NEWLINES).grammar(TOOLS, "required") is None
    assert of("glm4moe", CALLS, NEWLINES).grammar([], "auto") is None
    assert of("glm4moe", CALLS, NEWLINES).grammar(TOOLS, "none") is None


def test_every_tool_of_the_readers_tests_has_a_grammar():
    for architecture, tokens, template, metadata in (
        ("glm4moe", CALLS, NEWLINES, {}),
        ("glm4moe", CALLS, ADJACENT, {}),
        ("glm4", ROLES, None, {}),
        ("chatglm", ROLES, None, LLAMA),
        ("llama", CHATML, HERMES, {}),
    ):
        assert not follows(of(architecture, tokens, template, metadata), tokens, TOOLS, "")
