"""Anthropic's Messages over a scripted model."""

import pytest
from serving import Call, Scripted, Think, ask

from glmlite.serve import app

PATH = "/v1/messages"
WHOLE = {"hi": [Think("let me "), Think("see"), "It ", "is", Call("f", '{"x": 1}', 2), Call("g", "{}")]}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"x": {}}}}


def hi(**more):
    return {"model": "claude-x", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}], **more}


def given(body):
    model = Scripted()
    answer = ask(app(model), PATH, body)
    assert answer.status == 200, answer
    return model.asked[-1]


CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


@pytest.mark.parametrize(
    ("messages", "read"),
    [
        ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}],
                }
            ],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "r", "signature": "s"},
                        {"type": "redacted_thinking", "data": "zzz"},
                        {"type": "text", "text": "b"},
                        {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "and this"},
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "5"}]},
                        {"type": "tool_result", "tool_use_id": "t2"},
                        {"type": "tool_result", "tool_use_id": "t3", "is_error": True},
                        {"type": "tool_result", "tool_use_id": "t4", "content": "7", "is_error": True},
                    ],
                },
            ],
            [
                {"role": "assistant", "content": "b", "reasoning_content": "r", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "t1", "content": "5"},
                {"role": "tool", "tool_call_id": "t2", "content": ""},
                {"role": "tool", "tool_call_id": "t3", "content": "error"},
                {"role": "tool", "tool_call_id": "t4", "content": "7"},
                {"role": "user", "content": "and this"},
            ],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "doc"}}
                    ],
                }
            ],
            [{"role": "user", "content": "doc"}],
        ),
        ([{"role": "user", "content": []}], [{"role": "user", "content": ""}]),
    ],
)
def test_messages(messages, read):
    assert given(hi(messages=messages))["messages"] == read


@pytest.mark.parametrize(
    ("system", "read"),
    [
        ("be brief", "be brief"),
        (
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}],
            "a\nb",
        ),
        (
            [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=0f3a1;"},
                {"type": "text", "text": "b"},
            ],
            "b",
        ),
        ("x-anthropic-billing-header: cch=1;", None),
        ([], None),
        (None, None),
    ],
)
def test_system(system, read):
    found = given(hi(system=system))["messages"]
    assert [message["content"] for message in found if message["role"] == "system"] == ([read] if read else [])


@pytest.mark.parametrize(
    ("fields", "choice", "parallel"),
    [
        ({}, "auto", True),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, "auto", False),
        ({"tool_choice": {"type": "any"}}, "required", True),
        ({"tool_choice": {"type": "none"}}, "none", True),
        ({"tool_choice": {"type": "tool", "name": "f"}}, {"type": "function", "function": {"name": "f"}}, True),
    ],
)
def test_tools(fields, choice, parallel):
    found = given(hi(tools=[TOOL, {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}], **fields))
    (tool,) = found["tools"]
    assert tool["function"] == {"name": "f", "description": "d", "parameters": TOOL["input_schema"]}
    assert found["tool_choice"] == choice and found["parallel_tool_calls"] is parallel


@pytest.mark.parametrize(
    ("thinking", "enabled"),
    [
        (None, None),
        ({"type": "enabled"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive", "display": "summarized"}, True),
        ({"type": "disabled"}, False),
    ],
)
def test_thinking(thinking, enabled):
    assert given(hi(thinking=thinking))["thinking"] is enabled


def test_options():
    schema = {"type": "object"}
    found = given(
        hi(
            max_tokens=128000,
            stop_sequences=["a"],
            temperature=1,
            top_p=0.9,
            top_k=40,
            output_config={"effort": "high", "format": {"type": "json_schema", "schema": schema}},
            metadata={"user_id": "u"},
            service_tier="auto",
            context_management={"edits": []},
            mcp_servers=[],
        )
    )
    assert found["max_tokens"] == 128000 and found["stop"] == ["a"] and found["top_k"] == 40
    assert found["temperature"] == 1 and found["top_p"] == 0.9 and found["schema"] == schema


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens: missing"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            'messages[0].content[0].source.type is "base64"',
        ),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is missing"),
        ({"system": 5}, "system"),
        ({"tools": [{"name": ""}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"temperature": "x"}, "temperature"),
    ],
)
def test_impossible_values_are_named(fields, says):
    answer = ask(app(Scripted()), PATH, hi(**fields))
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert says in answer.json["error"]["message"]


def test_a_call_that_was_cut_is_none():
    said = {"hi": ["so", Call("f", '{"path": "/tm'), Call("g", "{}"), Call("h", "")]}
    content = ask(app(Scripted(said)), PATH, hi()).json["content"]
    assert [(block["type"], block.get("name")) for block in content] == [("text", None), ("tool_use", "g")]


def test_events():
    events = ask(app(Scripted(WHOLE, cached=1)), PATH, hi(stream=True)).events
    start, delta, stop = "content_block_start", "content_block_delta", "content_block_stop"
    assert [event["type"] for event in events] == [
        *("message_start", "ping"),
        *(start, delta, delta, delta, stop),
        *(start, delta, delta, stop),
        *(start, delta, delta, stop),
        *(start, delta, stop),
        *("message_delta", "message_stop"),
    ]
    message = events[0]["message"]
    assert message["id"].startswith("msg_") and message["content"] == [] and message["stop_reason"] is None
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == 2
    assert [e["index"] for e in events if "index" in e] == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 3
    assert events[2]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert [e["delta"]["type"] for e in events[3:6]] == ["thinking_delta"] * 2 + ["signature_delta"]
    assert events[7]["content_block"] == {"type": "text", "text": ""}
    assert events[11]["content_block"] == {"type": "tool_use", "id": "call_0", "name": "f", "input": {}}
    assert "".join(e["delta"]["partial_json"] for e in events[12:14]) == '{"x": 1}'
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 9 and events[-2]["usage"]["cache_read_input_tokens"] == 1


def test_the_whole_message():
    answer = ask(app(Scripted(WHOLE, cached=1)), PATH, hi())
    message = answer.json
    assert message["type"] == "message" and message["role"] == "assistant" and message["model"] == "claude-x"
    assert answer.headers["request-id"]
    assert message["content"] == [
        {"type": "thinking", "thinking": "let me see", "signature": ""},
        {"type": "text", "text": "It is"},
        {"type": "tool_use", "id": "call_0", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "call_1", "name": "g", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"
    assert message["usage"] == {
        "input_tokens": 1,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1,
        "output_tokens": 9,
    }


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 2}, "max_tokens", None),
        ({"stop_sequences": ["zz"]}, "stop_sequence", "zz"),
    ],
)
def test_why_it_ended(fields, reason, sequence):
    message = ask(app(Scripted({"hi": list("abc")})), PATH, hi(**fields)).json
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_tokens_are_counted():
    body = {"model": "claude-x", "messages": [{"role": "user", "content": "a b c"}], "tools": [TOOL]}
    assert ask(app(Scripted()), PATH + "/count_tokens?beta=true", body).json == {"input_tokens": 4}
