"""OpenAI's Responses over a scripted model."""

import pytest
from serving import Call, Scripted, Think, ask

from glmlite.serve import app

PATH = "/v1/responses"
WHOLE = {"hi": [Think("let me "), Think("see"), "It ", "is", Call("f", '{"x": 1}', 2), Call("g", "{}")]}


def given(body):
    model = Scripted()
    answer = ask(app(model), PATH, body)
    assert answer.status == 200, answer
    return model.asked[-1]


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({"input": "hi"}, [{"role": "user", "content": "hi"}]),
        (
            {
                "instructions": "be brief",
                "input": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}],
            },
            [
                {"role": "system", "content": "be brief"},
                {"role": "system", "content": "x"},
                {"role": "user", "content": "y"},
            ],
        ),
        (
            {
                "input": [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                    {
                        "type": "reasoning",
                        "id": "rs_1",
                        "summary": [],
                        "content": [{"type": "reasoning_text", "text": "r"}],
                    },
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
                    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x":1}', "id": "fc_1"},
                    {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
                    {"type": "function_call_output", "call_id": "c1", "output": "5"},
                    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "6"}]},
                    {"type": "item_reference", "id": "rs_1"},
                    {"type": "web_search_call", "id": "ws", "status": "completed"},
                ]
            },
            [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "b",
                    "reasoning_content": "r",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "5"},
                {"role": "tool", "tool_call_id": "c2", "content": "6"},
            ],
        ),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "r"}], "encrypted_content": "z"},
                    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c1", "output": "5"},
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
                    {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
                ]
            },
            [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning_content": "r",
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "5"},
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning_content": "s",
                    "tool_calls": [{"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
            ],
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
            [{"role": "assistant", "content": "no"}],
        ),
    ],
)
def test_items_become_messages(body, messages):
    assert given(body)["messages"] == messages


def test_what_is_asked_of_the_answer():
    body = {
        "input": "hi",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "tools": [
            {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True},
            {"type": "web_search"},
            {"type": "custom", "name": "apply_patch", "format": {}},
            {"type": "local_shell"},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "string"}, "strict": True}},
        "reasoning": {"effort": "none", "summary": "auto"},
        "store": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "truncation": "auto",
        "background": False,
        "service_tier": "auto",
        "metadata": {"a": "b"},
    }
    found = given(body)
    assert found["max_tokens"] == 9 and found["temperature"] == 0.5 and found["schema"] == {"type": "string"}
    assert [each["function"]["name"] for each in found["tools"]] == ["f"]
    assert found["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert found["parallel_tool_calls"] is False
    assert (found["thinking"], found["effort"]) == (False, "none")
    assert given({"input": "hi"})["parallel_tool_calls"] is True


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "hi", "conversation": "conv_1"}, "conversation"),
        ({"input": [{"role": "user", "content": "a"}, {"type": "item_reference", "id": "msg_1"}]}, "input[1].id"),
        ({"input": "hi", "background": True}, "background"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input[0].name"),
        ({"input": "hi", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "hi", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "hi", "reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ],
)
def test_impossible_values_are_named(fields, param):
    answer = ask(app(Scripted()), PATH, fields)
    assert answer.status == 400 and answer.json["error"]["param"] == param


def test_events():
    events = ask(app(Scripted(WHOLE)), PATH, {"input": "hi", "stream": True}).events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    item, part = "response.output_item.", "response.content_part."
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        item + "added",
        part + "added",
        "response.reasoning_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        part + "done",
        item + "done",
        item + "added",
        part + "added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        part + "done",
        item + "done",
        item + "added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        item + "done",
        item + "added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        item + "done",
        "response.completed",
    ]
    indices = [event["output_index"] for event in events if "output_index" in event]
    assert indices == [0] * 7 + [1] * 7 + [2] * 5 + [3] * 4
    for event in events:
        kind = event["type"]
        assert ("item_id" in event) == ("delta" in kind or ".done" in kind or "part" in kind) - (kind == item + "done")
        assert "logprobs" in event or not kind.startswith("response.output_text")
        assert "content_index" in event or not ("text" in kind or "part" in kind)
    assert events[2]["item"]["content"] == [] and events[2]["item"]["status"] == "in_progress"
    assert events[3]["part"] == {"type": "reasoning_text", "text": ""}
    whole = events[-1]["response"]
    assert [each["status"] for each in whole["output"]] == ["completed"] * 4


def test_the_whole_response():
    whole = ask(app(Scripted(WHOLE, cached=1)), PATH, {"input": "hi", "model": "m"}).json
    required = {"id", "created_at", "model", "object", "output", "parallel_tool_calls", "tool_choice", "tools"}
    assert required <= whole.keys()
    assert whole["object"] == "response" and whole["status"] == "completed" and whole["model"] == "m"
    reasoning, message, f, g = whole["output"]
    assert reasoning["type"] == "reasoning" and reasoning["id"].startswith("rs_") and reasoning["summary"] == []
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "let me see"}]
    assert message["content"] == [{"type": "output_text", "text": "It is", "annotations": [], "logprobs": []}]
    assert (f["type"], f["call_id"], f["name"], f["arguments"]) == ("function_call", "call_0", "f", '{"x": 1}')
    assert f["id"].startswith("fc_") and g["call_id"] == "call_1"
    assert whole["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 11,
    }


def test_a_cut_response_is_incomplete():
    model = Scripted({"hi": list("abcdef")})
    body = {"input": "hi", "max_output_tokens": 2}
    whole = ask(app(model), PATH, body).json
    assert whole["status"] == "incomplete" and whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert whole["output"][0]["status"] == "incomplete"
    assert ask(app(model), PATH, {**body, "stream": True}).events[-1]["type"] == "response.incomplete"


def test_a_call_that_was_cut_is_none():
    model = Scripted({"hi": ["so", Call("f", '{"path": "/tm'), Call("g", "{}"), Call("h", "")]})
    output = ask(app(model), PATH, {"input": "hi"}).json["output"]
    assert [(item["type"], item.get("name")) for item in output] == [("message", None), ("function_call", "g")]
    events = ask(app(model), PATH, {"input": "hi", "stream": True}).events
    done = [event["item"]["status"] for event in events if event["type"] == "response.output_item.done"]
    assert done == ["completed", "incomplete", "completed", "incomplete"]


def test_what_is_left_out_is_noted_in_one_line(caplog):
    caplog.set_level("INFO", "glmlite.serve")
    items = [{"type": "x\n13:00:00 forged" * 1000}, *[{"type": "y"}] * 1000, {"role": "user", "content": "hi"}]
    assert given({"input": items, "tools": [{"type": "web_search"}, {"type": "shell"}]})["tools"] is None
    tools, items = [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]
    assert "\n" not in items and len(items) < 200 and '"y"' in items
    assert tools.endswith('"shell", "web_search"')
