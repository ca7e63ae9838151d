"""The packages that programs use, against the server over a socket; each skips without itself (`.[sdk-test]`).

For each: plain, streamed, tools, tools streamed, a schema, 400, 401, 429, a prompt that is too long, an error amid a
stream. A scripted model says what a test needs; the built-in model, and SmolLM2 where there is one, answer for real.
"""

import base64
import importlib
import json
import os
import typing

import pictures
import pytest
from serving import Call, Scripted, Seeing, Think, Wait
from test_serve_network import served, until

import glmlite
from glmlite.serve import Settings, app

SMOLLM2 = os.environ.get("GLMLITE_SMOLLM2")
SCRIPT = {
    "hi": [Think("hm, "), Think("hello"), "Hello ", "there."],
    "weather": [Think("a tool"), Call("weather", '{"city": "Berlin"}', 4), Call("weather", '{"city": "Rome"}', 2)],
    "json": ['{"city": "Ber', 'lin", "people": 3}'],
    "broken": ["Hel", RuntimeError("numbers that are not finite")],
    "18 C": ["It is 18 C."],
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
LONG = "word " * 300
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def url():
    """Of a scripted model, with the key `k`."""
    with served(app(Scripted(SCRIPT, cached=1), Settings(api_keys=("k",)))) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def seeing():
    """Of a scripted model that takes images, which has to be asked for the colour of one."""
    pytest.importorskip("PIL", reason="images need Pillow: pip install 'glmlite[vision]'")
    model = Seeing({"which colour?": ["teal"]})
    with served(app(model)) as port:
        yield f"http://127.0.0.1:{port}", model


@pytest.fixture(scope="module")
def busy():
    """Of a model that takes no requests."""
    with served(app(Scripted(SCRIPT, limit=0))) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module", params=["builtin", "smollm2"])
def real(request):
    """Of a real model, and what it answers to the question."""
    if request.param == "smollm2" and not SMOLLM2:
        pytest.skip("GLMLITE_SMOLLM2 names no file")
    with glmlite.load(SMOLLM2 if request.param == "smollm2" else None) as model, served(app(model)) as port:
        yield f"http://127.0.0.1:{port}", model.chat(QUESTION, temperature=0, max_tokens=24).text


def package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'glmlite[sdk-test]'")


def say(text):
    return [{"role": "user", "content": text}]


# ---- openai


@pytest.fixture
def openai(url):
    return package("openai").OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)


def test_openai_plain(openai):
    answer = openai.chat.completions.create(model="m", messages=say("hi"))
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].message.reasoning_content == "hm, hello"
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    assert openai.completions.create(model="m", prompt="hi").choices[0].text == "Hello there."


def test_openai_streamed(openai):
    stream = openai.chat.completions.create(
        model="m", messages=say("hi"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there."
    assert chunks[-1].usage.completion_tokens == 4
    with openai.chat.completions.stream(model="m", messages=say("hi")) as stream:
        kinds = [event.type for event in stream]
        assert "content.done" in kinds
        assert stream.get_final_completion().choices[0].message.content == "Hello there."


def test_openai_tools(openai):
    arguments = {"model": "m", "messages": say("weather"), "tools": [TOOL]}
    message = openai.chat.completions.create(**arguments).choices[0].message
    assert [json.loads(call.function.arguments)["city"] for call in message.tool_calls] == ["Berlin", "Rome"]
    with openai.chat.completions.stream(**arguments) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert [event.arguments for event in done] == ['{"city": "Berlin"}', '{"city": "Rome"}']
    assert final.finish_reason == "tool_calls"
    results = [{"role": "tool", "tool_call_id": call.id, "content": "18 C"} for call in message.tool_calls]
    again = [*say("weather"), message.model_dump(exclude_none=True), *results]
    assert openai.chat.completions.create(model="m", messages=again).choices[0].message.content == "It is 18 C."


def test_openai_schema(openai):
    pydantic = package("pydantic")

    class City(pydantic.BaseModel):
        city: str
        people: int

    parsed = openai.chat.completions.parse(model="m", messages=say("json"), response_format=City)
    assert parsed.choices[0].message.parsed == City(city="Berlin", people=3)
    with openai.chat.completions.stream(model="m", messages=say("json"), response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed.people == 3
    assert openai.responses.parse(model="m", input="json", text_format=City).output_parsed.city == "Berlin"


def test_openai_responses(openai):
    answer = openai.responses.create(model="m", input="hi")
    assert answer.output_text == "Hello there."
    assert answer.usage.output_tokens_details.reasoning_tokens == 2
    tools = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
    with openai.responses.stream(model="m", input="weather", tools=tools) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    calls = [item for item in final.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Berlin", "Rome"]
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "18 C"} for call in calls]
    back = [*say("weather"), *(item.model_dump(exclude_none=True) for item in final.output), *outputs]
    assert openai.responses.create(model="m", input=back).output_text == "It is 18 C."


def test_openai_errors(openai, url, busy):
    sdk = package("openai")
    create = openai.chat.completions.create
    with pytest.raises(sdk.BadRequestError, match="temperature"):
        create(model="m", messages=say("hi"), temperature=-1)
    with pytest.raises(sdk.BadRequestError, match="maximum context length is 100 tokens") as raised:
        create(model="m", messages=say(LONG), stream=True)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(sdk.AuthenticationError):
        sdk.OpenAI(base_url=url + "/v1", api_key="no", max_retries=0).models.list()
    with pytest.raises(sdk.RateLimitError):
        full = sdk.OpenAI(base_url=busy + "/v1", api_key="k", max_retries=0)
        full.chat.completions.create(model="m", messages=say("hi"))
    with pytest.raises(sdk.APIError, match="failed"):
        list(create(model="m", messages=say("broken"), stream=True))
    with pytest.raises(sdk.APIStatusError) as raised:
        openai.embeddings.create(model="m", input="x")
    assert raised.value.status_code == 501


def test_openai_models(openai):
    assert [model.id for model in openai.models.list()] == ["scripted"]
    assert openai.models.retrieve("scripted").owned_by == "glmlite"


def test_openai_for_real(real):
    url, text = real
    client = package("openai").OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
    options = {"model": "m", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    assert client.chat.completions.create(**options).choices[0].message.content == text
    chunks = client.chat.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    answer = client.responses.create(model="m", input=QUESTION, temperature=0, max_output_tokens=24)
    assert answer.output_text == text
    with client.responses.stream(model="m", input=QUESTION, temperature=0, max_output_tokens=24) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == text
    several = client.chat.completions.create(**options, n=3)
    assert [choice.message.content for choice in several.choices] == [text] * 3
    logprobs = client.chat.completions.create(**options, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert bytes(byte for each in logprobs.content for byte in each.bytes).decode().strip() == text


def test_openai_schema_for_real(real):
    package("llguidance")
    pydantic = package("pydantic")

    class City(pydantic.BaseModel):
        city: typing.Literal["Berlin", "Rome"]
        people: bool

    client = package("openai").OpenAI(base_url=real[0] + "/v1", api_key="k", max_retries=0)
    parsed = client.chat.completions.parse(model="m", messages=QUESTION, response_format=City, temperature=0)
    assert parsed.choices[0].message.parsed.city in ("Berlin", "Rome")


def test_openai_images(seeing):
    url, model = seeing
    sdk = package("openai")
    client = sdk.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
    image = pictures.file_of()
    address = "data:image/png;base64," + base64.b64encode(image).decode()
    parts = [{"type": "text", "text": "which colour?"}, {"type": "image_url", "image_url": {"url": address}}]
    shown = [{"type": "text", "text": "which colour?"}, {"type": "image", "image": image}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="m", messages=messages)
    assert answer.choices[0].message.content == "teal" and answer.usage.prompt_tokens > 12
    assert model.asked[-1]["messages"][0]["content"] == shown
    with client.chat.completions.stream(model="m", messages=messages) as stream:
        assert stream.get_final_completion().choices[0].message.content == "teal"
    items = [{"type": "input_text", "text": "which colour?"}, {"type": "input_image", "image_url": address}]
    asked = [{"role": "user", "content": items}]
    assert client.responses.create(model="m", input=asked).output_text == "teal"
    assert model.asked[-1]["messages"][0]["content"] == shown
    assert client.responses.input_tokens.count(model="m", input=asked).input_tokens == answer.usage.prompt_tokens
    parts[1]["image_url"]["url"] = "https://example.org/a.png"
    with pytest.raises(sdk.BadRequestError, match="is a web address") as raised:
        client.chat.completions.create(model="m", messages=messages)
    assert raised.value.param == "messages[0].content[1].image_url.url"


# ---- anthropic


@pytest.fixture
def anthropic(url):
    return package("anthropic").Anthropic(base_url=url, api_key="k", max_retries=0)


CLAUDE_TOOL = {"name": "weather", "description": "d", "input_schema": PARAMETERS}


def test_anthropic_plain(anthropic):
    message = anthropic.messages.create(model="m", max_tokens=50, messages=say("hi"))
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[1].text == "Hello there." and message.stop_reason == "end_turn"
    assert message.usage.cache_read_input_tokens == 1 and message.usage.input_tokens == 1


def test_anthropic_streamed(anthropic):
    with anthropic.messages.stream(model="m", max_tokens=50, messages=say("hi")) as stream:
        assert "".join(stream.text_stream) == "Hello there."
        final = stream.get_final_message()
    assert final.content[0].thinking == "hm, hello" and final.usage.output_tokens == 4


def test_anthropic_tools(anthropic):
    arguments = {"model": "m", "max_tokens": 50, "messages": say("weather"), "tools": [CLAUDE_TOOL]}
    message = anthropic.messages.create(**arguments)
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [call.input["city"] for call in calls] == ["Berlin", "Rome"] and message.stop_reason == "tool_use"
    with anthropic.messages.stream(**arguments) as stream:
        streamed = stream.get_final_message()
    assert [block.input for block in streamed.content if block.type == "tool_use"] == [call.input for call in calls]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "18 C"} for call in calls]
    back = [
        *say("weather"),
        {"role": "assistant", "content": [block.model_dump() for block in message.content]},
        {"role": "user", "content": results},
    ]
    answer = anthropic.messages.create(model="m", max_tokens=50, messages=back)
    assert answer.content[0].text == "It is 18 C."


def test_anthropic_schema(anthropic):
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = anthropic.messages.create(model="m", max_tokens=50, messages=say("json"), output_config=config)
    assert json.loads(message.content[0].text) == {"city": "Berlin", "people": 3}


def test_anthropic_counts(anthropic):
    assert anthropic.messages.count_tokens(model="m", messages=say("a b c")).input_tokens == 4
    assert [model.id for model in anthropic.models.list()] == ["scripted"]
    assert anthropic.models.retrieve("scripted").display_name == "scripted"


def test_anthropic_errors(anthropic, url, busy):
    sdk = package("anthropic")
    with pytest.raises(sdk.BadRequestError, match="temperature"):
        anthropic.messages.create(model="m", max_tokens=5, messages=say("hi"), extra_body={"temperature": -1})
    with pytest.raises(sdk.BadRequestError, match="prompt is too long: 301 tokens > 100 maximum"):
        anthropic.messages.create(model="m", max_tokens=5, messages=say(LONG))
    with pytest.raises(sdk.AuthenticationError):
        sdk.Anthropic(base_url=url, api_key="no", max_retries=0).messages.count_tokens(model="m", messages=say("x"))
    with pytest.raises(sdk.RateLimitError):
        full = sdk.Anthropic(base_url=busy, api_key="k", max_retries=0)
        full.messages.create(model="m", max_tokens=5, messages=say("hi"))
    with (
        pytest.raises(sdk.APIError, match="failed"),
        anthropic.messages.stream(model="m", max_tokens=5, messages=say("broken")) as stream,
    ):
        stream.get_final_message()


def test_anthropic_for_real(real):
    url, text = real
    client = package("anthropic").Anthropic(base_url=url, api_key="k", max_retries=0)
    asked = {"model": "m", "max_tokens": 24, "messages": QUESTION, "extra_body": {"temperature": 0}}
    message = client.messages.create(**asked)
    assert message.content[0].text == text
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == text
    used = message.usage
    count = client.messages.count_tokens(model="m", messages=QUESTION).input_tokens
    assert used.input_tokens + used.cache_read_input_tokens == count


def test_anthropic_images(seeing):
    url, model = seeing
    sdk = package("anthropic")
    client = sdk.Anthropic(base_url=url, api_key="k", max_retries=0)
    image = pictures.file_of()
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(image).decode()}
    block, words = {"type": "image", "source": source}, {"type": "text", "text": "which colour?"}
    shown = {"type": "image", "image": image}
    messages = [{"role": "user", "content": [block, words]}]
    answer = client.messages.create(model="m", max_tokens=9, messages=messages)
    assert answer.content[0].text == "teal" and model.asked[-1]["messages"][0]["content"] == [shown, words]
    counted = client.messages.count_tokens(model="m", messages=messages).input_tokens
    assert counted == answer.usage.input_tokens > 12
    used = [{"type": "tool_use", "id": "t", "name": "shot", "input": {}}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    loop = [{"role": "assistant", "content": used}, {"role": "user", "content": [result, words]}]
    with client.messages.stream(model="m", max_tokens=9, messages=[*messages, *loop]) as stream:
        assert stream.get_final_message().content[0].text == "teal"
    assert model.asked[-1]["messages"][2] == {"role": "tool", "tool_call_id": "t", "content": [shown]}
    assert client.models.retrieve("m").capabilities.image_input.supported
    source["data"] = "?"
    with pytest.raises(sdk.BadRequestError, match=r"source\.data is not base64"):
        client.messages.create(model="m", max_tokens=9, messages=messages)


# ---- ollama


@pytest.fixture
def ollama(url):
    return package("ollama").Client(host=url, headers={"authorization": "Bearer k"})


def test_ollama_plain_and_streamed(ollama):
    answer = ollama.chat(model="m", messages=say("hi"))
    assert answer.message.content == "Hello there." and answer.message.thinking == "hm, hello"
    parts = list(ollama.chat(model="m", messages=say("hi"), stream=True))
    assert "".join(part.message.content for part in parts) == "Hello there."
    assert parts[-1].done and parts[-1].eval_count == 4
    assert ollama.generate(model="m", prompt="hi").response == "Hello there."
    assert "".join(part.response for part in ollama.generate(model="m", prompt="hi", stream=True)) == "Hello there."


def test_ollama_tools(ollama):
    answer = ollama.chat(model="m", messages=say("weather"), tools=[TOOL])
    assert [call.function.arguments["city"] for call in answer.message.tool_calls] == ["Berlin", "Rome"]
    parts = ollama.chat(model="m", messages=say("weather"), tools=[TOOL], stream=True)
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [call.function.arguments["city"] for call in calls] == ["Berlin", "Rome"]
    back = [*say("weather"), answer.message, {"role": "tool", "tool_name": "weather", "content": "18 C"}]
    assert ollama.chat(model="m", messages=back).message.content == "It is 18 C."


def test_ollama_schema(ollama):
    assert json.loads(ollama.chat(model="m", messages=say("json"), format=SCHEMA).message.content)["people"] == 3


def test_ollama_errors(ollama, url, busy):
    sdk = package("ollama")

    def status(client, **arguments):
        with pytest.raises(sdk.ResponseError) as raised:
            list(client.chat(model="m", stream=True, **arguments))
        return raised.value.status_code, raised.value.error

    assert status(ollama, messages=say("hi"), options={"temperature": -1})[0] == 400
    code, said = status(ollama, messages=say(LONG))
    assert code == 400 and "exceeds the available context size" in said
    assert status(sdk.Client(host=url), messages=say("hi"))[0] == 401
    assert status(sdk.Client(host=busy), messages=say("hi"))[0] == 429
    assert "failed" in status(ollama, messages=say("broken"))[1]


def test_ollama_for_real(real):
    url, text = real
    client = package("ollama").Client(host=url)
    options = {"temperature": 0, "num_predict": 24}
    assert client.chat(model="m", messages=QUESTION, options=options).message.content == text
    shown = client.show("m")
    assert "completion" in shown.capabilities
    assert shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"] >= 512
    assert client.list().models[0].model and client.ps().models[0].size > 0


def test_ollama_images(seeing, tmp_path):
    url, model = seeing
    client = package("ollama").Client(host=url)
    image = pictures.file_of()
    shown = [{"type": "image", "image": image}, {"type": "text", "text": "which colour?"}]
    (tmp_path / "a.png").write_bytes(image)
    for given in (image, str(tmp_path / "a.png")):
        messages = [{"role": "user", "content": "which colour?", "images": [given]}]
        assert client.chat(model="m", messages=messages).message.content == "teal"
        assert model.asked[-1]["messages"][0]["content"] == shown
    assert client.generate(model="m", prompt="which colour?", images=[image]).response == "teal"
    assert model.asked[-1]["messages"][0]["content"] == shown


# ---- llm


@pytest.fixture
def llm(url, tmp_path, monkeypatch):
    package("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "keys.json").write_text('{"ours": "k"}', encoding="utf-8")
    known = [
        "model_name: m",
        f"api_base: {url}/v1",
        "api_key_name: ours",
        "supports_tools: true",
        "supports_schema: true",
    ]
    lines = ["- model_id: ours", *("  " + line for line in known)]
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines), encoding="utf-8")
    return importlib.import_module("llm").get_model("ours")


def test_llm(llm):
    assert llm.prompt("hi").text() == "Hello there."
    assert llm.prompt("hi", stream=False).text() == "Hello there."
    assert json.loads(llm.prompt("json", schema=SCHEMA).text())["city"] == "Berlin"


@pytest.mark.parametrize("stream", [True, False])
def test_llm_tools(llm, stream):
    tool = importlib.import_module("llm").Tool(name="weather", description="d", input_schema=PARAMETERS)
    response = llm.prompt("weather", tools=[tool], stream=stream)
    assert [call.arguments["city"] for call in response.tool_calls()] == ["Berlin", "Rome"]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (LONG, {}, "maximum context length"),
        ("hi", {"key": "no"}, "API key"),
        ("hi", {"seed": -1, "max_tokens": 0}, "max_tokens"),
        ("broken", {}, "failed"),
    ],
)
def test_llm_errors(llm, text, options, says):
    with pytest.raises(Exception, match=says):
        llm.prompt(text, **options).text()


# ---- langchain-openai


def chain(url, key="k", **options):
    return package("langchain_openai").ChatOpenAI(
        base_url=url + "/v1", api_key=key, model="m", max_retries=0, **options
    )


def test_langchain(url):
    model = chain(url)
    assert model.invoke("hi").content == "Hello there."
    assert "".join(chunk.content for chunk in model.stream("hi")) == "Hello there."
    assert model.with_structured_output(SCHEMA | {"title": "City"}, method="json_schema").invoke("json")["people"] == 3


def test_langchain_tools(url):
    model = chain(url).bind_tools([TOOL])
    assert [call["args"]["city"] for call in model.invoke("weather").tool_calls] == ["Berlin", "Rome"]
    whole = None
    for chunk in model.stream("weather"):
        whole = chunk if whole is None else whole + chunk
    assert [call["args"]["city"] for call in whole.tool_calls] == ["Berlin", "Rome"]


def test_langchain_errors(url, busy):
    sdk = package("openai")
    overflow = importlib.import_module("langchain_core.exceptions").ContextOverflowError
    with pytest.raises(overflow):
        chain(url).invoke(LONG)
    with pytest.raises(sdk.BadRequestError):
        chain(url, temperature=-1).invoke("hi")
    with pytest.raises(sdk.AuthenticationError):
        chain(url, "no").invoke("hi")
    with pytest.raises(sdk.RateLimitError):
        chain(busy).invoke("hi")
    with pytest.raises(Exception, match="failed"):
        list(chain(url).stream("broken"))


# ---- what they wait for


def test_a_sdk_that_gives_up_frees_its_request():
    sdk = package("openai")
    model = Scripted({"hi": ["a", Wait(60)]})
    with served(app(model)) as port:
        client = sdk.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0, timeout=0.3)
        with pytest.raises(sdk.APITimeoutError):
            client.chat.completions.create(model="m", messages=say("hi"))
        with client.chat.completions.create(model="m", messages=say("hi"), stream=True, timeout=20) as stream:
            next(iter(stream))
        until(lambda: not model.running)
