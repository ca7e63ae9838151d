"""Thoughts that a client drops, and what of a conversation has to be read again.

The requests go through the application, the scheduler and its cache; the model writes what a test tells it to."""

import json

import pytest
import tiny
import twin_engine
from serving import ask

import glmlite
from glmlite import placement
from glmlite.serve import Settings, app
from glmlite.serve.thoughts import Thoughts

# As GLM-4.7's, in our own words: thoughts stand in the tool loop alone, or everywhere with clear_thinking = false.
NEW = """\
[gMASK]<sop>{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- set s = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set s.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}<|assistant|>
{%- if m.reasoning_content and (loop.index0 > s.last or (clear_thinking is defined and not clear_thinking)) -%}
<think>{{ m.reasoning_content }}</think>{% else %}</think>{% endif %}
{{- m.content }}
{%- for c in m.tool_calls %}<tool_call>{{ c.function.name }}
{%- for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>{% endfor -%}
</tool_call>{% endfor %}
{%- elif m.role == 'tool' %}<|observation|><tool_response>{{ m.content }}</tool_response>
{%- else %}<|{{ m.role }}|>{{ m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{{- '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}"""
# As GLM-4.6's: the model writes `<think>` itself, old thoughts leave an empty pair, and line ends stand between marks.
OLD = """\
[gMASK]<sop>{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- set s = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set s.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}<|assistant|>
{{- '\\n<think>' }}{% if m.reasoning_content and loop.index0 > s.last %}{{ m.reasoning_content }}{% endif -%}
{{ '</think>\\n' }}{{ m.content }}
{%- for c in m.tool_calls %}<tool_call>{{ c.function.name }}
{%- for k, v in c.function.arguments.items() -%}
{{ '\\n' }}<arg_key>{{ k }}</arg_key>{{ '\\n' }}<arg_value>{{ v }}</arg_value>{% endfor %}{{ '\\n' -}}
</tool_call>{% endfor %}
{%- elif m.role == 'tool' %}<|observation|><tool_response>{{ m.content }}</tool_response>
{%- else %}<|{{ m.role }}|>{{ m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{{- '\\n<think></think>\\n' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"""
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
    }
]


@pytest.fixture
def writing(tmp_path, monkeypatch):
    """writing(template) -> (model, script): the model writes the texts of the script one after another."""
    models = []
    script: list[int] = []
    monkeypatch.setattr(placement, "backend", lambda device: twin_engine)
    monkeypatch.setattr(twin_engine.Sampler, "_draw", lambda self, x: script.pop(0))

    def make(template):
        made = tiny.model(
            "glm4",
            layers=1,
            dim=32,
            heads=1,
            kv_heads=1,
            ffn=32,
            context=4096,
            metadata={"tokenizer.chat_template": template},
        )
        models.append(glmlite.load(tiny.write(tmp_path / f"{len(models)}.gguf", made)))
        return models[-1], script

    yield make
    for model in models:
        model.close()


def converse(model, script, *, keeps, turns=8, thinking=True, old=False, settings=None, path="/v1/chat/completions"):
    """Tokens of the prompt and of them cached, and tokens written, for every request of a conversation in which each
    turn calls a tool, twice, and answers. keeps: the client sends thoughts back."""
    application = app(model, settings or Settings())
    messages, costs = [], []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {turn}"})
        for step in range(3):
            thought = f"think {turn}.{step}" if thinking else ""
            line = "\n" if old else ""
            marks = (
                "<tool_call>look",
                "<arg_key>at</arg_key>",
                f"<arg_value>{turn}.{step}</arg_value>",
                "</tool_call>",
            )
            call = line.join(marks)
            said = call if step < 2 else f"answer {turn}"
            if thinking:
                said = f"{line + '<think>' if old else ''}{thought}</think>{line}{said}"
            end = "<|observation|>" if step < 2 else "<|user|>"
            script += [*model.tokenizer.encode(said), model.tokenizer.id_of(end)]
            body = {"messages": messages, "tools": TOOLS, "enable_thinking": thinking}
            answer = ask(application, path, body)
            assert answer.status == 200 and not script, answer
            (choice,) = answer.json["choices"]
            message = choice["message"]
            assert message.get("reasoning_content", "") == thought
            assert choice["finish_reason"] == ("tool_calls" if step < 2 else "stop")
            used = answer.json["usage"]
            costs.append(
                (used["prompt_tokens"], used["prompt_tokens_details"]["cached_tokens"], used["completion_tokens"])
            )
            if not keeps:
                message = {key: value for key, value in message.items() if key != "reasoning_content"}
            if message.get("tool_calls"):  # clients write the JSON in their own way
                function = message["tool_calls"][0]["function"]
                function["arguments"] = json.dumps(json.loads(function["arguments"]), separators=(",", ":"))
            messages.append(message)
            if step < 2:
                messages.append(
                    {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": f"saw {turn}"}
                )
    return costs


def lost(costs, step):
    """Tokens of the request before each that were in the cache and are not found again, for the requests at `step`."""
    found = []
    for i in range(1, len(costs)):
        if i % 3 == step:
            prompt, _, written = costs[i - 1]
            found.append(prompt + written - 1 - costs[i][1])  # the token that ended it was not entered
    return found


@pytest.mark.parametrize("old", [False, True], ids=["4.7", "4.6"])
@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "drops"])
def test_a_tool_loop_reads_only_what_is_new(writing, keeps, old):
    model, script = writing(OLD if old else NEW)
    costs = converse(model, script, keeps=keeps, old=old)
    assert lost(costs, 1) == lost(costs, 2) == [0] * 8
    # A new question takes the thoughts out of the last loop: it is read again from its first thought on.
    begins = [costs[i][0] for i in range(0, 21, 3)]
    for i, prompt in zip(range(3, 24, 3), begins):
        assert prompt - len("<think>") <= costs[i][1] <= prompt + len("\n<think>")


@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "drops"])
def test_all_is_kept_where_thoughts_are_to_stay(writing, keeps):
    model, script = writing(NEW)
    costs = converse(model, script, keeps=keeps, settings=Settings(keep_thinking=True))
    assert lost(costs, 0) == [0] * 7 and lost(costs, 1) == lost(costs, 2) == [0] * 8


@pytest.mark.parametrize("old", [False, True], ids=["4.7", "4.6"])
def test_all_is_kept_without_thoughts(writing, old):
    model, script = writing(OLD if old else NEW)
    costs = converse(model, script, keeps=False, thinking=False, old=old)
    assert lost(costs, 0) == [0] * 7 and lost(costs, 1) == lost(costs, 2) == [0] * 8


# ---- the memory itself

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": [2]}'}}
BEFORE = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
ANSWER = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "why"}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "5"}


def bare(**changes):
    return {**{key: value for key, value in ANSWER.items() if key != "reasoning_content"}, **changes}


def other(name="f", arguments="{}", id="x"):
    return [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]


@pytest.mark.parametrize(
    ("messages", "thought"),
    [
        ([*BEFORE, bare(), RESULT], "why"),
        ([*BEFORE, bare(content=""), RESULT], "why"),
        ([*BEFORE, bare(tool_calls=other(arguments='{"b":[2],"a":1}')), RESULT], "why"),
        ([*BEFORE, bare(tool_calls=other(arguments='{"a": 2, "b": [2]}')), RESULT], None),
        ([*BEFORE, bare(tool_calls=other("g", '{"a": 1, "b": [2]}')), RESULT], None),
        ([*BEFORE, bare(content="text"), RESULT], None),
        ([*BEFORE[1:], bare(), RESULT], None),
        ([*BEFORE, bare(), RESULT, {"role": "user", "content": "next"}], None),
        ([*BEFORE, bare(reasoning_content="the client's"), RESULT], "the client's"),
    ],
)
def test_what_is_put_back(messages, thought):
    thoughts = Thoughts()
    thoughts.remember("m", BEFORE, ANSWER)
    restored = thoughts.restore("m", messages, everywhere=False)
    assert restored[len(messages) - 2 if messages[-1] is RESULT else -3].get("reasoning_content") == thought
    assert all("reasoning_content" not in message for message in messages if message is not ANSWER) or thought
    assert thoughts.restore("another", messages, everywhere=True)[-2].get("reasoning_content") in (None, "the client's")


def test_everywhere_where_that_is_asked_for():
    thoughts = Thoughts()
    thoughts.remember("m", BEFORE, ANSWER)
    messages = [*BEFORE, bare(), RESULT, {"role": "user", "content": "next"}]
    assert thoughts.restore("m", messages, everywhere=True)[2]["reasoning_content"] == "why"


def test_the_memory_is_bounded():
    thoughts = Thoughts(max_count=3, max_chars=100)
    answers = [{"role": "assistant", "content": f"a{i}", "reasoning_content": "x" * 30} for i in range(5)]
    for answer in answers:
        thoughts.remember("m", BEFORE, answer)
    known = [
        thoughts.restore("m", [*BEFORE, {"role": "assistant", "content": f"a{i}"}], False)[-1].get("reasoning_content")
        for i in range(5)
    ]
    assert known == [None, None, *["x" * 30] * 3]
    thoughts.remember("m", BEFORE, {"role": "assistant", "content": "long", "reasoning_content": "x" * 101})
    assert thoughts._chars == 90
    thoughts.remember("m", BEFORE, answers[4])
    assert thoughts._chars == 90 and len(thoughts._known) == 3
