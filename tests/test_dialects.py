"""Dialects: by what a file's is recognised, how its thinking is switched, and what its answers are read with."""

import pytest
from test_chat import CALL, Characters, user

from glmlite.chat import dialects, render
from glmlite.chat.readers import Marked, NamedJson, NamedPython, Reader
from glmlite.families import FAMILY

ROLES = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"]
THOUGHTS = [*ROLES, "<think>", "</think>"]
CALLS = [*THOUGHTS, "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
CHATML = ["<|im_start|>", "<|im_end|>"]

# What each family's template has in it, in words of this test.
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.metadata }}\n{{ m.content }}{% endfor %}<|assistant|>"
THINKS = TURNS + "\n<think>"
NEWLINES = (
    "{% for c in tool_calls %}<tool_call>{{ c.name }}\n<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n"
    "</tool_call>{% endfor %}{% if not enable_thinking %}/nothink{% endif %}<|assistant|>"
)
ESCAPED = "{{ '<tool_call>' + c.name + '\\n<arg_key>' + k + '</arg_key>\\n<arg_value>' + v + '</arg_value>' }}"
ADJACENT = (
    "<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}"
)
EFFORT = ADJACENT.replace("{{", "{{ reasoning_effort }}{{")
HERMES = "{% if tools %}<tools>{% endif %}<tool_call>\n{{ call | tojson }}\n</tool_call>"
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"

GPT2, LLAMA = {"tokenizer.ggml.model": "gpt2"}, {"tokenizer.ggml.model": "llama"}
LARGE = GPT2 | {"tokenizer.ggml.tokens": ["a"] * 151552}
EDGE = GPT2 | {"tokenizer.ggml.tokens": ["a"] * 59264}


class Pieces(Characters):
    def piece(self, id):
        return (self.control[id] if id < 1000 else chr(id - 1000)).encode()


def of(architecture, tokens, template=None, metadata=GPT2):
    told = {} if template is None else {"tokenizer.chat_template": template}
    return dialects.of({**metadata, **told}, Characters(tokens), architecture)


@pytest.mark.parametrize(
    ("architecture", "tokens", "template", "metadata", "name", "reads"),
    [
        ("chatglm1", ROLES[:2], None, {}, "chatglm", Reader),
        ("chatglm", ["<eos>"], None, LLAMA, "chatglm2", Reader),
        ("chatglm", ROLES, "chatglm2", LLAMA, "chatglm2", Reader),
        ("chatglm", ROLES, None, LLAMA, "chatglm3", NamedPython),
        ("chatglm", ROLES, TURNS, LLAMA, "chatglm3", NamedPython),
        ("chatglm", ROLES, None, LARGE, "glm4", NamedJson),
        ("chatglm", ROLES, TURNS, LARGE, "glm4", NamedJson),
        ("chatglm", ROLES, None, EDGE, "glm-edge", Reader),
        ("chatglm", ROLES, TURNS, EDGE, "glm-edge", Reader),
        ("glm4", ROLES, None, GPT2, "glm4-0414", NamedJson),
        ("glm4", ROLES, "chatglm4", GPT2, "glm4-0414", NamedJson),
        ("glm4", ROLES, TURNS, GPT2, "glm4-0414", NamedJson),
        ("glm4", ROLES, THINKS, GPT2, "z1", NamedJson),
        ("glm4", THOUGHTS, THINKS, GPT2, "z1", NamedJson),
        ("chatglm", ROLES, THINKS, LARGE, "z1", NamedJson),
        ("glm4", ROLES, HERMES, GPT2, "other", Marked),
        ("glm4moe", CALLS, NEWLINES, GPT2, "glm45", Marked),
        ("glm4moe", CALLS, ESCAPED, GPT2, "glm45", Marked),
        ("glm4moe", CALLS, THINKS, GPT2, "glm45", Marked),  # someone's own template
        ("glm4moe", CALLS, ADJACENT, GPT2, "glm47", Marked),
        ("deepseek2", CALLS, ADJACENT, GPT2, "glm47", Marked),
        ("glm_dsa", CALLS, EFFORT, GPT2, "glm47", Marked),
        ("llama", CHATML, PLAIN, GPT2, "other", Marked),
        ("llama", CHATML, HERMES, GPT2, "other", Marked),
        ("llama", CHATML, ADJACENT, GPT2, "glm47", Marked),
        ("no such", [], PLAIN, {}, "other", Marked),
    ],
)
def test_a_file_s_dialect(architecture, tokens, template, metadata, name, reads):
    dialect = of(architecture, tokens, template, metadata)
    assert (dialect.name, dialect.reads) == (name, reads)
    assert dialect.chat_format == ("template" if template and "<" in template else name)


@pytest.mark.parametrize(
    ("architecture", "tokens", "template"),
    [("llama", CHATML, None), ("llama", CHATML, "chatml"), ("glm4moe", CALLS, None), ("glm", ROLES, None)],
)
def test_a_file_that_says_nothing_is_no_chat_model(architecture, tokens, template):
    assert of(architecture, tokens, template) is None


def test_a_file_s_own_word_counts_first():
    for name, kind in dialects.FORMATS.items():
        dialect = of("glm4", ROLES, ADJACENT, {"glmlite.chat_format": name})
        assert type(dialect) is kind and dialect.chat_format == name


def test_every_architecture_that_writes_prompts_has_a_dialect():
    assert {row.chat for row in FAMILY.values()} - {None} <= dialects.FORMATS.keys()


@pytest.mark.parametrize(
    ("architecture", "tokens", "template", "metadata", "capabilities"),
    [
        ("chatglm1", ROLES[:2], None, {}, []),
        ("chatglm", ROLES, None, LLAMA, ["tools"]),
        ("glm4", ROLES, None, GPT2, ["tools"]),
        ("glm4", ROLES, TURNS, GPT2, []),
        ("glm4", ROLES, "{{ tools }}" + THINKS, GPT2, ["tools", "thinking"]),
        ("llama", CHATML, HERMES, GPT2, ["tools"]),
    ],
)
def test_what_a_model_can_do(architecture, tokens, template, metadata, capabilities):
    assert of(architecture, tokens, template, metadata).capabilities == capabilities


# ---- thinking


@pytest.mark.parametrize(
    ("template", "thinking", "effort", "variables"),
    [
        (NEWLINES, None, None, {}),
        (NEWLINES, False, None, {"enable_thinking": False}),
        (NEWLINES, True, None, {"enable_thinking": True}),
        (NEWLINES, None, "none", {"enable_thinking": False}),
        (NEWLINES, None, "high", {"enable_thinking": True}),
        (NEWLINES, False, "high", {"enable_thinking": False}),
        (EFFORT, None, "high", {"enable_thinking": True, "reasoning_effort": "high"}),
        (EFFORT, None, "minimal", {"enable_thinking": True, "reasoning_effort": "low"}),
        (EFFORT, None, "xhigh", {"enable_thinking": True, "reasoning_effort": "max"}),
        (EFFORT, False, "high", {"enable_thinking": False}),
        (EFFORT, None, "none", {"enable_thinking": False}),
        ("</arg_key><arg_value>{{ reasoning_effort }}", None, "none", {"reasoning_effort": "low"}),
        ("</arg_key><arg_value>{{ reasoning_effort }}", False, None, {"reasoning_effort": "low"}),
        ("</arg_key><arg_value>{{ reasoning_effort }}", None, "medium", {"reasoning_effort": "high"}),
        ("{{ thinking }}{{ reasoning_effort }}", None, "max", {"thinking": True, "reasoning_effort": "high"}),
        ("{{ thinking }}{{ reasoning_effort }}", None, "medium", {"thinking": True, "reasoning_effort": "medium"}),
        (THINKS, False, "none", {}),
        (THINKS, None, "high", {}),
    ],
)
def test_switches(template, thinking, effort, variables):
    assert of("glm4", ROLES, template).template_variables(thinking, effort) == variables


def test_a_switch_that_nothing_reads_is_told(caplog):
    for _ in range(2):
        assert of("glm4", ROLES).template_variables(False, None) == {}
    assert [record.message for record in caplog.records] == ["thinking=False is not read by the chat format glm4-0414"]


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ("<|user|>q<|assistant|>", False),
        ("<|user|>q<|assistant|><think>", True),
        ("<|user|>q<|assistant|>\n<think>\n", True),
        ("<|user|>q<|assistant|><think></think>", False),
        ("<|user|>q<|assistant|></think>", False),
        ("<|user|>q<|assistant|><think>so far", True),
        ("<|user|>a <think> b<|assistant|>", False),
        ("<|assistant|><think>a</think>b<|user|>q<|assistant|>", False),
        ("<|user|>q<|assistant|><think>a</think> b <think>", True),
    ],
)
@pytest.mark.parametrize("tokens", [ROLES, THOUGHTS, CALLS])
def test_whether_a_prompt_ends_in_a_thought(prompt, thinks, tokens):
    tokenizer = Pieces(tokens)
    dialect = dialects.of({"tokenizer.chat_template": NEWLINES}, tokenizer, "glm4moe")
    assert dialect.thinks(tokenizer.encode(prompt, special=True)) is thinks


def test_without_tokens_for_roles_only_the_end_of_a_prompt_tells():
    tokenizer = Pieces([])
    dialect = dialects.of({"tokenizer.chat_template": PLAIN}, tokenizer, "llama")
    assert dialect.thinks(tokenizer.encode("user: <think> what? assistant: <think>\n"))
    assert not dialect.thinks(tokenizer.encode("user: <think> what? assistant:"))


def test_tokens_that_stay_in_the_text():
    marks = of("glm4moe", CALLS, NEWLINES).marks
    assert marks == {CALLS.index(text): text for text in CALLS[len(ROLES) :]}
    assert of("glm4", THOUGHTS).marks == {
        THOUGHTS.index("<think>"): "<think>",
        THOUGHTS.index("</think>"): "</think>",
        THOUGHTS.index("<|assistant|>"): "\ufdd0<|assistant|>",
    }
    assert of("llama", CHATML, PLAIN).marks == {}


@pytest.mark.parametrize("architecture", ["chatglm", "glm4"])
def test_every_end_of_the_family_ends_an_answer(architecture):
    assert set(of(architecture, ROLES, None, LARGE).ends) == {"<|endoftext|>", "<|user|>", "<|observation|>"}


# ---- calls in a history, through templates


def test_calls_reach_a_template_that_reads_them():
    text = (
        "{% for m in messages %}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}"
        "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>"
        "{% endfor %}</tool_call>{% endfor %}{% endfor %}"
    )
    tokenizer = Characters(CALLS)
    metadata = {**tokenizer.metadata, "tokenizer.chat_template": text}
    ids = render(metadata, tokenizer, "glm4moe", [user("q"), CALL])
    assert tokenizer.spell(ids) == (
        "«<tool_call>»get_weather«<arg_key>»city«</arg_key>»«<arg_value>»北京«</arg_value>»«</tool_call>»"
    )
