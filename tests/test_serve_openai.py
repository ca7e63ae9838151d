"""OpenAI's Chat Completions and Completions over a scripted model: what is read, and what is written in which order."""

import pytest
from serving import OF_CHATS, Call, Scripted, Think, Wait, ask

from glmlite.generate import Logprob, Piece
from glmlite.serve import Settings, app

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
WHOLE = {"hi": [Think("let me "), Think("see"), "It ", "is", Call("f", '{"x": 1}', 3), Call("g", "{}")]}


def hi(**more):
    return {"messages": [{"role": "user", "content": "hi"}], **more}


def given(body, model=None):
    """What the model is asked when a client sends `body`."""
    model = model or Scripted()
    answer = ask(app(model), CHAT, body)
    assert answer.status == 200, answer
    return model.asked[-1]


# ---- requests


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 128000}, {"max_tokens": 128000}),
        ({"max_tokens": None, "temperature": None, "stop": None, "seed": None, "tools": None, "n": None}, {}),
        ({"max_tokens": -1}, {}),
        ({"max_tokens": 5.0}, {"max_tokens": 5}),
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
            {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
        ),
        ({"top_p": 0}, {"top_p": 1e-6}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1, "frequency_penalty": -1}),
        ({"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"seed": 2**70}, {"seed": 0}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": ["a", "", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": ""}, {}),
        ({"stop_token_ids": [1, 2], "ignore_eos": True}, {"stop_ids": [1, 2], "ignore_eos": True}),
        ({"logit_bias": {"5": -100, "7": 1.5}}, {"logit_bias": {5: -100, 7: 1.5}}),
        ({"logit_bias": {}}, {}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": False, "top_logprobs": 3}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        ({"response_format": {"type": "json_object", "schema": {"type": "array"}}}, {"schema": {"type": "array"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "string"}}}},
            {"schema": {"type": "string"}},
        ),
        ({"user": "u", "store": True, "prediction": {}, "modalities": ["text"], "nobody": [1]}, {}),
    ],
)
def test_options(fields, options):
    found = given(hi(**fields))
    assert {name: value for name, value in found.items() if name not in OF_CHATS} == options


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function.name"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"logit_bias": []}, "logit_bias"),
        ({"top_logprobs": 50, "logprobs": True}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"model": 5}, "model"),
        ({"model": "x" * 4097}, "model"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools[0].function"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "schema": {"title": "x" * 300_000}}}, "response_format.schema"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"stream_options": 1}, "stream_options"),
    ],
)
def test_impossible_values_are_named(fields, param):
    answer = ask(app(Scripted()), CHAT, hi(**fields))
    assert answer.status == 400
    assert answer.json["error"]["param"] == param
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_a_number_that_no_float_holds():
    answer = ask(app(Scripted()), CHAT, b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}')
    assert answer.status == 400 and "1e999 is too large a number" in answer.json["error"]["message"]


@pytest.mark.parametrize("number", [b"1" + 400 * b"0", b"-1" + 400 * b"0"])
def test_an_integer_that_no_float_holds(number):
    for field, param in ((b'"temperature": %s', "temperature"), (b'"logit_bias": {"1": %s}', "logit_bias.1")):
        body = b'{"messages": [{"role": "user", "content": "hi"}], %s}' % (field % number)
        answer = ask(app(Scripted()), CHAT, body)
        assert answer.status == 400 and answer.json["error"]["param"] == param


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "user", "content": None, "name": "bob"}, {"role": "user", "content": ""}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]},
            {"role": "user", "content": "abc"},
        ),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "refusal": "no", "audio": None}, {"role": "assistant", "content": "no"}),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "r"},
            {"role": "assistant", "content": "a", "reasoning_content": "r"},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "r"},
            {"role": "assistant", "content": "a", "reasoning_content": "r"},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": {"effort": "low"}},
            {"role": "assistant", "content": "a"},
        ),
        ({"role": "assistant", "tool_calls": [CALL]}, {"role": "assistant", "content": "", "tool_calls": [CALL]}),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{broken"}},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{broken"}}],
            },
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": None},
            {"role": "tool", "content": "", "tool_call_id": "c1"},
        ),
        ({"role": "function", "name": "f", "content": "5"}, {"role": "tool", "content": "5", "name": "f"}),
    ],
)
def test_messages(message, read):
    assert given({"messages": [message, {"role": "user", "content": "hi"}]})["messages"][0] == read


@pytest.mark.parametrize(
    ("fields", "names", "choice"),
    [
        ({"tools": [TOOL]}, ["f"], "auto"),
        ({"tools": [TOOL], "tool_choice": "none"}, ["f"], "none"),
        ({"tools": [TOOL], "tool_choice": "required"}, ["f"], "required"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            ["f"],
            {"type": "function", "function": {"name": "f"}},
        ),
        (
            {
                "tools": [TOOL, {"type": "function", "function": {"name": "g"}}],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]},
                },
            },
            ["g"],
            "required",
        ),
        ({"tools": [TOOL, {"type": "custom", "custom": {"name": "c"}}]}, ["f"], "auto"),
        ({"functions": [TOOL["function"]], "function_call": "auto"}, ["f"], "auto"),
        (
            {"functions": [TOOL["function"]], "function_call": {"name": "f"}},
            ["f"],
            {"type": "function", "function": {"name": "f"}},
        ),
        ({"tool_choice": "required"}, [], "auto"),
        ({"tools": [], "tool_choice": "auto"}, [], "auto"),
    ],
)
def test_tools(fields, names, choice):
    found = given(hi(**fields, parallel_tool_calls=False))
    assert [each["function"]["name"] for each in found["tools"] or []] == names
    assert found["tool_choice"] == choice
    assert found["parallel_tool_calls"] is False


def test_schemas_of_tools_keep_their_order():
    parameters = {"type": "object", "properties": {"z": {}, "a": {}, "m": {}}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert str(given(hi(tools=tools))["tools"][0]["function"]["parameters"]) == str(parameters)


@pytest.mark.parametrize(
    ("fields", "thinking", "effort", "template"),
    [
        ({}, None, None, {}),
        ({"reasoning_effort": "none"}, False, "none", {}),
        ({"reasoning_effort": "high"}, None, "high", {}),
        ({"thinking": {"type": "disabled"}}, False, None, {}),
        ({"thinking": {"type": "enabled"}}, True, None, {}),
        ({"enable_thinking": False}, False, None, {}),
        ({"chat_template_kwargs": {"enable_thinking": False, "unheard_of": 1}}, None, None, {"enable_thinking": False}),
    ],
)
def test_thinking(fields, thinking, effort, template):
    found = given(hi(**fields))
    assert (found["thinking"], found["effort"], found["template"]) == (thinking, effort, template)
    assert given(hi(**fields), Scripted(template="{{ messages }}"))["template"] == {}


def test_thoughts_are_kept_where_the_server_is_told_so():
    model = Scripted(template="{{ messages }}{{ clear_thinking }}")
    ask(app(model, Settings(keep_thinking=True)), CHAT, hi())
    assert model.asked[0]["template"] == {"clear_thinking": False}


def test_thoughts_can_stay_in_the_text():
    assert given(hi(reasoning_format="none"))["reasoning"] is False
    assert given(hi(reasoning_format="auto"))["reasoning"] is True


# ---- answers


def test_a_stream_in_its_order():
    events = ask(app(Scripted(WHOLE)), CHAT, hi(stream=True, model="any")).events
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["model"] == "any" for chunk in chunks)
    assert all({"created", "system_fingerprint"} <= chunk.keys() for chunk in chunks)
    choices = [chunk["choices"] for chunk in chunks]
    assert all(len(choice) == 1 and choice[0]["index"] == 0 for choice in choices)
    deltas = [choice[0]["delta"] for choice in choices]
    begins = [
        {"id": f"call_{i}", "type": "function", "function": {"name": n, "arguments": ""}} for i, n in enumerate("fg")
    ]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "", "reasoning_content": "let me "},
        {"content": "", "reasoning_content": "see"},
        {"content": "It "},
        {"content": "is"},
        {"tool_calls": [{"index": 0, **begins[0]}]},
        *({"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"x', '": ', "1}")),
        {"tool_calls": [{"index": 1, **begins[1]}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [choice[0]["finish_reason"] for choice in choices] == [None] * 11 + ["tool_calls"]
    assert "timings" in chunks[-1] and "usage" not in chunks[-1]


def test_a_whole_answer_is_what_its_stream_says():
    answer = ask(app(Scripted(WHOLE, cached=1)), CHAT, hi()).json
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["logprobs"] is None
    assert choice["message"] == {
        "role": "assistant",
        "content": "It is",
        "reasoning_content": "let me see",
        "refusal": None,
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 10,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert answer["timings"]["cache_n"] == 1


def test_content_is_null_beside_calls_alone():
    message = ask(app(Scripted({"hi": [Call("f", "{}")]})), CHAT, hi()).json["choices"][0]["message"]
    assert message["content"] is None
    message = ask(app(Scripted({"hi": [Think("for ever")]})), CHAT, hi()).json["choices"][0]["message"]
    assert message["content"] is None and message["reasoning_content"] == "for ever"
    assert ask(app(Scripted({"hi": []})), CHAT, hi()).json["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": True, "include_obfuscation": 1}]
)
def test_usage_comes_only_when_asked_for(options):
    events = ask(app(Scripted()), CHAT, hi(stream=True, stream_options=options)).events
    usages = [event for event in events[:-1] if event["choices"] == []]
    assert len(usages) == bool(options and options["include_usage"])
    assert not usages or usages[0]["usage"]["completion_tokens"] == 1


def test_the_limit_is_told():
    model = Scripted({"hi": list("abcdef")})
    assert ask(app(model), CHAT, hi(max_tokens=2)).json["choices"][0]["finish_reason"] == "length"


def test_a_call_that_was_cut_is_none():
    """Whoever acted on half of its arguments might delete the wrong file. A stream has told of it before."""
    cut = [Call("f", '{"path": "/tm'), Call("g", "{}"), Call("h", "")]
    message = ask(app(Scripted({"hi": cut})), CHAT, hi()).json["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["g"]
    message = ask(app(Scripted({"hi": ["so", *cut[:1]]})), CHAT, hi()).json["choices"][0]["message"]
    assert message["content"] == "so" and "tool_calls" not in message


def test_choices_are_told_apart():
    model = Scripted({"hi": ["a", Wait(0.01), "b"]})
    answer = ask(app(model), CHAT, hi(n=3, seed=5)).json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["ab"] * 3
    assert [asked["seed"] for asked in model.asked] == [5, 6, 7]
    assert answer["usage"]["prompt_tokens"] == 2 and answer["usage"]["completion_tokens"] == 6
    events = ask(app(model), CHAT, hi(n=3, stream=True)).events[:-1]
    for i in range(3):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == i]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "ab"
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]


def test_progress_where_it_is_asked_for():
    events = ask(app(Scripted({"hi": [Wait(0.5), "a"]})), CHAT, hi(stream=True, return_progress=True)).events
    progress = [event["prompt_progress"] for event in events[:-1] if "prompt_progress" in event]
    assert progress and progress[0] == {"total": 2, "processed": 1, "cached": 0}
    assert not any("prompt_progress" in e for e in ask(app(Scripted()), CHAT, hi(stream=True)).events[:-1])


LOGPROBS = [Logprob(104, -0.5, [(104, -0.5), (105, float("-inf"))])]


def test_logprobs():
    model = Scripted({"hi": [Think("x"), Piece("h", [104], LOGPROBS)]})
    content = ask(app(model), CHAT, hi(logprobs=True, top_logprobs=2)).json["choices"][0]["logprobs"]["content"]
    assert content == [
        {
            "token": "h",
            "logprob": -0.5,
            "bytes": [104],
            "top_logprobs": [
                {"token": "h", "logprob": -0.5, "bytes": [104]},
                {"token": "i", "logprob": -9999.0, "bytes": [105]},
            ],
        }
    ]
    streamed = ask(app(model), CHAT, hi(logprobs=True, stream=True)).events[:-1]
    assert [e["choices"][0]["logprobs"]["content"][0]["token"] for e in streamed if e["choices"][0]["logprobs"]] == [
        "h"
    ]


# ---- completions


def test_completions():
    answer = ask(app(Scripted({"once": [" upon", " a"]})), TEXT, {"prompt": "once", "echo": True}).json
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "once upon a", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["completion_tokens"] == 2


def test_completions_streamed():
    body = {"prompt": "once", "stream": True, "echo": True, "stream_options": {"include_usage": True}}
    events = ask(app(Scripted({"once": [" upon", " a"]})), TEXT, body).events
    assert [e["choices"][0]["text"] for e in events[:-2]] == ["once", " upon", " a", ""]
    assert [e["choices"][0]["finish_reason"] for e in events[:-2]] == [None] * 3 + ["stop"]
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 2
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (None, [""]),
        ("", [""]),
    ],
)
def test_prompts(prompt, asked):
    model = Scripted()
    answer = ask(app(model), TEXT, {"prompt": prompt, "n": 2})
    assert answer.status == 200
    assert [each["prompt"] for each in model.asked] == [each for each in asked for _ in range(2)]
    assert [choice["index"] for choice in answer.json["choices"]] == list(range(2 * len(asked)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
    ],
)
def test_impossible_completions(fields, param):
    answer = ask(app(Scripted()), TEXT, fields)
    assert answer.status == 400 and answer.json["error"]["param"] == param


def test_logprobs_of_completions():
    model = Scripted({"a": [Piece("h", [104], LOGPROBS), Piece("i", [105], [Logprob(105, -1.0, [])])]})
    logprobs = ask(app(model), TEXT, {"prompt": "a", "logprobs": 2}).json["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["h", "i"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"h": -0.5, "i": -9999.0}, {}],
        "text_offset": [0, 1],
    }
    streamed = ask(app(model), TEXT, {"prompt": "a", "logprobs": 2, "stream": True}).events[:-1]
    assert [e["choices"][0]["logprobs"]["text_offset"] for e in streamed if e["choices"][0]["logprobs"]] == [[0], [1]]


def test_tokens_within_a_character_are_at_its_place():
    said = "é!".encode()
    model = Scripted({"a": [Piece("", [said[0]], [Logprob(said[0], -1.0, [])])]})
    model.script["a"].append(Piece("é!", list(said[1:]), [Logprob(token, -1.0, []) for token in said[1:]]))
    whole = ask(app(model), TEXT, {"prompt": "a", "logprobs": 0}).json["choices"][0]["logprobs"]
    assert whole["text_offset"] == [0, 0, 1]
    events = ask(app(model), TEXT, {"prompt": "a", "logprobs": 0, "stream": True}).events[:-1]
    told = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
    assert [offset for each in told for offset in each["text_offset"]] == whole["text_offset"]
