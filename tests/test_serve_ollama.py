"""Ollama's API over a scripted model."""

import pytest
from serving import OF_CHATS, Call, Scripted, Think, ask

import glmlite
from glmlite import builtin
from glmlite.serve import app, facts

WHOLE = {"hi": [Think("let me "), "It ", "is", Call("f", '{"x": 1}', 2), Call("g", "{}")]}


def hi(**more):
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}


def given(body, path="/api/chat"):
    model = Scripted()
    answer = ask(app(model), path, body)
    assert answer.status == 200, answer
    return model.asked[-1]


def test_lines():
    answer = ask(app(Scripted(WHOLE, cached=1)), "/api/chat", hi())
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = answer.lines
    assert [line["done"] for line in lines] == [False] * 4 + [True]
    assert all(line["model"] == "m" and line["created_at"].endswith("Z") for line in lines)
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "", "thinking": "let me "},
        {"role": "assistant", "content": "It "},
        {"role": "assistant", "content": "is"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call_0", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
                {"id": "call_1", "function": {"index": 1, "name": "g", "arguments": {}}},
            ],
        },
        {"role": "assistant", "content": ""},
    ]
    last = lines[-1]
    assert last["done_reason"] == "stop" and last["prompt_eval_count"] == 2 and last["eval_count"] == 8
    for name in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(last[name], int)


def test_a_whole_answer():
    answer = ask(app(Scripted(WHOLE)), "/api/chat", hi(stream=False)).json
    assert answer["message"]["content"] == "It is" and answer["message"]["thinking"] == "let me "
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["f", "g"]
    assert answer["done"] is True


def test_generate():
    lines = ask(app(Scripted(WHOLE)), "/api/generate", {"model": "m", "prompt": "hi", "system": "s"}).lines
    assert "".join(line["response"] for line in lines) == "It is"
    assert lines[0]["thinking"] == "let me " and "message" not in lines[0]
    found = given({"prompt": "hi", "system": "s"}, "/api/generate")
    assert found["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    assert given({"prompt": "hi", "raw": True}, "/api/generate")["prompt"] == "hi"
    answer = ask(app(Scripted()), "/api/generate", {"prompt": "hi", "suffix": "ho"})
    assert answer.status == 400 and "gaps" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "fields", "reason"),
    [
        ("/api/generate", {}, "load"),
        ("/api/generate", {"keep_alive": 0}, "unload"),
        ("/api/chat", {}, "load"),
        ("/api/chat", {"messages": [], "keep_alive": "0"}, "unload"),
    ],
)
def test_nothing_asked(path, fields, reason):
    answer = ask(app(Scripted()), path, {"model": "m", **fields}).json
    assert answer["done"] is True and answer["done_reason"] == reason


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (
            {"options": {"num_predict": 5, "num_ctx": 8192, "temperature": 0, "mirostat": 2}},
            {"max_tokens": 5, "temperature": 0},
        ),
        ({"options": {"num_predict": -1}}, {}),
        ({"options": {"num_predict": -2}}, {}),
        ({"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, {"repetition_penalty": 1.1, "penalty_window": 64}),
        ({"options": {"stop": ["a"], "seed": 3}}, {"stop": ["a"], "seed": 3}),
        ({"format": "json"}, {"schema": {"type": "object"}}),
        ({"format": {"type": "array"}}, {"schema": {"type": "array"}}),
        ({"format": ""}, {}),
        ({"keep_alive": "5m"}, {}),
    ],
)
def test_options(fields, options):
    found = given(hi(**fields))
    assert {name: value for name, value in found.items() if name not in OF_CHATS} == options


@pytest.mark.parametrize(
    ("think", "asked"),
    [(True, (True, None)), (False, (False, None)), ("high", (True, "high")), (None, (None, None))],
)
def test_think(think, asked):
    found = given(hi(think=think))
    assert (found["thinking"], found["effort"]) == asked


def test_messages_and_tools():
    messages = [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "r",
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "tool_name": "f", "content": "5"},
    ]
    found = given(hi(messages=messages, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]))
    assert found["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "r",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        },
        {"role": "tool", "content": "5", "name": "f"},
    ]
    assert found["tools"][0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"options": {"temperature": "x"}}, "options.temperature"),
        ({"options": 5}, "options"),
        ({"format": 5}, "format"),
        ({"think": "huge"}, "think"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{"role": "x", "content": "x"}]}, "messages[0].role"),
    ],
)
def test_impossible_values_are_named(fields, says):
    answer = ask(app(Scripted()), "/api/chat", hi(**fields))
    assert answer.status == 400 and says in answer.json["error"]


def test_versions_are_numbers():
    assert all(part.isdecimal() for part in ask(app(Scripted()), "/api/version").json["version"].split("."))


def test_what_is_told_of_a_model():
    with glmlite.load(context=64) as model:
        application = app(model)
        shown = ask(application, "/api/show", {"name": "whatever"}).json
        info = shown["model_info"]
        assert info[f"{info['general.architecture']}.context_length"] == 64
        assert shown["capabilities"][0] == "completion"
        assert shown["details"]["format"] == "gguf" and shown["details"]["parameter_size"] == "5.8M"
        (listed,) = ask(application, "/api/tags").json["models"]
        assert listed["name"] == listed["model"] == "builtin" and listed["size"] == builtin.path().stat().st_size
        assert ask(application, "/api/ps").json["models"][0]["name"] == "builtin"


@pytest.mark.parametrize(
    ("template", "capabilities"),
    [
        ("{{ messages }}", ()),
        ("{{ tools }}", ("tools",)),
        ("<think>", ("thinking",)),
        ("{% if tools %}{{ enable_thinking }}{% endif %}", ("tools", "thinking")),
    ],
)
def test_what_a_model_can_do_is_known_before_it_is_loaded(template, capabilities):
    assert facts._capabilities(template, None) == capabilities


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_was_cut_is_none(stream):
    said = {"hi": [Call("f", '{"path": "/tm'), Call("g", "{}"), "and", Call("h", "")]}
    answer = ask(app(Scripted(said)), "/api/chat", hi(stream=stream))
    calls = [call for line in answer.lines for call in line["message"].get("tool_calls", ())]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == [("g", {})]
