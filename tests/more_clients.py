"""Packages that are too heavy for every run, against the server over a socket: litellm, by three APIs, and langchain's
for Anthropic and Ollama.

    pip install litellm langchain-anthropic langchain-ollama
    python tests/more_clients.py

A scripted model says what is needed. Prints a line for each call; ends with 1 if one was not as it should be.
"""

import json
import os
import sys
import traceback

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks for a list of prices elsewhere

from serving import Scripted
from test_serve_network import served
from test_serve_sdks import LONG, SCHEMA, SCRIPT, TOOL

from glmlite.serve import Settings, app


def say(text):
    return [{"role": "user", "content": text}]


def litellm_calls(url):
    """(name, call, check) for each of litellm's routes."""
    import litellm

    routes = {
        "openai": {"model": "openai/m", "api_base": url + "/v1", "api_key": "k"},
        "anthropic": {"model": "anthropic/m", "api_base": url, "api_key": "k"},
        "ollama_chat": {"model": "ollama_chat/m", "api_base": url, "api_key": "k"},
    }
    for name, route in routes.items():

        def ask(text, route=route, **more):
            return litellm.completion(messages=say(text), num_retries=0, **route, **more)

        def text_of(text, ask=ask, **more):
            return ask(text, **more).choices[0].message.content

        def streamed(text, ask=ask, **more):
            return "".join(chunk.choices[0].delta.content or "" for chunk in ask(text, stream=True, **more))

        def cities(ask=ask, **more):
            calls = ask("weather", tools=[TOOL], **more).choices[0].message.tool_calls
            return [json.loads(call.function.arguments)["city"] for call in calls]

        def streamed_cities(ask=ask):
            chunks = list(ask("weather", tools=[TOOL], stream=True))
            message = litellm.stream_chunk_builder(chunks, messages=say("weather")).choices[0].message
            return [json.loads(call.function.arguments)["city"] for call in message.tool_calls]

        def overflow(ask=ask):
            try:
                ask(LONG)
            except litellm.ContextWindowExceededError:
                return "overflow"

        def refused(ask=ask):
            try:
                ask("hi", temperature=-1)
            except litellm.BadRequestError:
                return "refused"

        yield f"litellm {name} plain", text_of, ("hi",), "Hello there."
        yield f"litellm {name} streamed", streamed, ("hi",), "Hello there."
        yield f"litellm {name} tools", cities, (), ["Berlin", "Rome"]
        yield f"litellm {name} tools streamed", streamed_cities, (), ["Berlin", "Rome"]
        if name != "ollama_chat":
            yield f"litellm {name} overflow", overflow, (), "overflow"
            yield f"litellm {name} bad value", refused, (), "refused"


def langchain_calls(url):
    from langchain_anthropic import ChatAnthropic
    from langchain_ollama import ChatOllama

    models = {
        "anthropic": ChatAnthropic(model="m", base_url=url, api_key="k", max_tokens=50, max_retries=0),
        "ollama": ChatOllama(model="m", base_url=url, client_kwargs={"headers": {"authorization": "Bearer k"}}),
    }
    for name, model in models.items():

        def plain(model=model):
            return model.invoke("hi").text

        def streamed(model=model):
            return "".join(chunk.text for chunk in model.stream("hi"))

        def cities(model=model):
            return [call["args"]["city"] for call in model.bind_tools([TOOL]).invoke("weather").tool_calls]

        def streamed_cities(model=model):
            whole = None
            for chunk in model.bind_tools([TOOL]).stream("weather"):
                whole = chunk if whole is None else whole + chunk
            return [call["args"]["city"] for call in whole.tool_calls]

        def schema(model=model):
            return model.with_structured_output(SCHEMA | {"title": "City"}, method="json_schema").invoke("json")[
                "people"
            ]

        yield f"langchain {name} plain", plain, (), "Hello there."
        yield f"langchain {name} streamed", streamed, (), "Hello there."
        yield f"langchain {name} tools", cities, (), ["Berlin", "Rome"]
        yield f"langchain {name} tools streamed", streamed_cities, (), ["Berlin", "Rome"]
        yield f"langchain {name} schema", schema, (), 3


def main():
    failed = 0
    with served(app(Scripted(SCRIPT, cached=1), Settings(api_keys=("k",)))) as port:
        url = f"http://127.0.0.1:{port}"
        for calls in (litellm_calls, langchain_calls):
            try:
                for name, call, arguments, wanted in calls(url):
                    try:
                        got = call(*arguments)
                    except Exception:
                        got = traceback.format_exc(limit=-2)
                    failed += got != wanted
                    print("ok    " if got == wanted else "FAILED", name, "" if got == wanted else repr(got), flush=True)
            except ImportError as error:
                print("skipped", error)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
