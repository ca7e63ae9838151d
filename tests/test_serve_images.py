"""Images in requests of all APIs: what the model is given, what is refused, and what is bounded."""

import asyncio
import base64
import json
import time
import tracemalloc
from threading import Event

import numpy as np
import pictures
import pytest
import tiny
from serving import Call, Scripted, Seeing, Think, ask, asked

import glmlite
from glmlite import builtin
from glmlite.serve import Pool, Settings, app

pytest.importorskip("PIL", reason="images need Pillow: pip install 'glmlite[vision]'")


PNG = pictures.file_of()
TOKENS = 12  # of it
TEXT = base64.b64encode(PNG).decode()
URL = "data:image/png;base64," + TEXT
SHOWN = {"type": "image", "image": PNG}
LOOK = {"type": "text", "text": "look"}

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
OLLAMA, GENERATE = "/api/chat", "/api/generate"


def openai(url):
    return {"messages": [{"role": "user", "content": [image_url(url), LOOK]}]}


def image_url(url):
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def responses(url):
    return {"input": [{"role": "user", "content": [input_image(url), {"type": "input_text", "text": "look"}]}]}


def input_image(url):
    return {"type": "input_image", "image_url": url, "detail": "auto"}


def anthropic(text):
    return {"max_tokens": 9, "messages": [{"role": "user", "content": [block(text), LOOK]}]}


def said_by(role, part):
    return {"max_tokens": 9, "messages": [{"role": role, "content": [part]}, {"role": "user", "content": "look"}]}


def block(text):
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}}


def ollama(text):
    return {"messages": [{"role": "user", "content": "look", "images": [text]}], "stream": False}


def generate(text):
    return {"prompt": "look", "images": [text], "stream": False}


APIS = {
    CHAT: (openai, URL, "messages[0].content[0].image_url.url"),
    RESPONSES: (responses, URL, "input[0].content[0].image_url"),
    MESSAGES: (anthropic, TEXT, "messages[0].content[0].source.data"),
    OLLAMA: (ollama, TEXT, "messages[0].images[0]"),
    GENERATE: (generate, TEXT, "images[0]"),
}


def given(path, body, model=None):
    """The messages that the model is given."""
    model = model or Seeing()
    answer = ask(app(model), path, body)
    assert answer.status == 200, answer
    return model.asked[0]["messages"]


def said(answer):
    error = answer.json["error"]
    return error if isinstance(error, str) else error["message"]


# ---- what a model is given


@pytest.mark.parametrize("path", APIS)
def test_an_image_with_a_question(path):
    body, image, _ = APIS[path]
    assert given(path, body(image)) == [{"role": "user", "content": [SHOWN, LOOK]}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": URL},
        {"type": "image_url", "image_url": {"url": URL.replace("data:image/png", "DATA:")}},
        {"type": "image_url", "image_url": {"url": URL.replace("/png", "/jpeg;charset=x;a=")}},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "source": {"data": TEXT}},
        {"type": "image", "source": {"type": "url", "url": URL}},
    ],
)
def test_forms_of_a_part(part):
    assert given(CHAT, {"messages": [{"role": "user", "content": [part]}]})[0]["content"] == [SHOWN]


def test_order_and_texts_beside_each_other():
    def content(*parts):
        return given(MESSAGES, {"max_tokens": 9, "messages": [{"role": "user", "content": list(parts)}]})[0]["content"]

    one, two = ({"type": "text", "text": text} for text in ("one", "two"))
    joined = {"type": "text", "text": "one\ntwo"}
    assert content(one, two, block(TEXT), two) == [joined, SHOWN, two]
    assert content(block(TEXT), block(TEXT)) == [SHOWN, SHOWN]
    assert content(one, two) == "one\ntwo"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "tool", "tool_call_id": "c", "content": [image_url(URL)]}]}),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": [input_image(URL)]}]}),
        (
            MESSAGES,
            {
                "max_tokens": 9,
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "c", "content": [block(TEXT)]}],
                    }
                ],
            },
        ),
    ],
)
def test_a_tools_result(path, body):
    assert given(path, body) == [{"role": "tool", "tool_call_id": "c", "content": [SHOWN]}]


def test_thoughts_are_found_again_beside_images():
    model = Seeing({"look": [Think("hm"), Call("f", "{}")]})
    application = app(model)
    first = openai(URL)
    answer = ask(application, CHAT, first).json["choices"][0]["message"]
    del answer["reasoning_content"]
    for image, thought in ((URL, "hm"), ("data:;base64," + base64.b64encode(pictures.file_of((9, 9))).decode(), None)):
        again = [*openai(image)["messages"], answer, {"role": "tool", "tool_call_id": "call_0", "content": "x"}]
        ask(application, CHAT, {"messages": again})
        assert model.asked[-1]["messages"][1].get("reasoning_content") == thought


# ---- tokens


def test_tokens_are_counted():
    application = app(Seeing(cached=3))
    usage = ask(application, CHAT, openai(URL)).json["usage"]
    assert usage["prompt_tokens"] == TOKENS + 2 and usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert ask(application, MESSAGES, anthropic(TEXT)).json["usage"]["input_tokens"] == TOKENS + 2 - 3
    for path, body in (
        (CHAT + "/input_tokens", openai(URL)),
        (RESPONSES + "/input_tokens", responses(URL)),
        (MESSAGES + "/count_tokens", anthropic(TEXT)),
    ):
        assert ask(application, path, body).json["input_tokens"] == TOKENS + 2
    assert ask(application, OLLAMA, ollama(TEXT)).json["prompt_eval_count"] == TOKENS + 2
    assert ask(application, "/apply-template", openai(URL)).json["prompt"] == "\x00\x01"
    assert "glmlite_images_total 3\n" in ask(application, "/metrics").text


def test_an_image_that_does_not_fit_is_an_overflow():
    large = "data:;base64," + base64.b64encode(pictures.file_of((2000, 2000))).decode()
    model = Seeing()
    model.context = 100
    error = ask(app(model), CHAT, openai(large)).json["error"]
    assert error["code"] == "context_length_exceeded" and "maximum context length is 100 tokens" in error["message"]


# ---- what is refused


@pytest.mark.parametrize("path", APIS)
def test_a_model_that_sees_none_says_so(path):
    body, image, field = APIS[path]
    model = Scripted()
    answer = ask(app(model), path, body(image))
    assert answer.status == 400 and not model.asked
    assert said(answer).startswith(field) and "scripted sees no images" in said(answer)


def test_counting_for_a_model_that_sees_none():
    answer = ask(app(Scripted()), MESSAGES + "/count_tokens", anthropic(TEXT))
    assert answer.status == 400 and "sees no images" in said(answer)


HOSTILE, ODD = pictures.hostile(), pictures.odd()


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_is_the_clients_fault(path, name):
    body, image, field = APIS[path]
    data, says = HOSTILE[name]
    head = image.removesuffix(TEXT)
    answer = ask(app(Seeing()), path, body(head + base64.b64encode(data).decode()))
    assert answer.status == 400 and says in said(answer)
    assert said(answer).startswith(field)
    if path in (CHAT, RESPONSES):
        assert answer.json["error"]["param"] == field


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_images(name):
    assert given(CHAT, openai("data:;base64," + base64.b64encode(ODD[name]).decode()))


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("text", ["?", TEXT[:-2], TEXT + "\n", " " + TEXT, "-_" + TEXT, "好", "A=A=", "=" * 99])
def test_base64_is_strict(path, text):
    body, image, field = APIS[path]
    answer = ask(app(Seeing()), path, body(image.removesuffix(TEXT) + text))
    assert answer.status == 400 and said(answer).startswith(field + " is not base64")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://example.org/a.png", "is a web address, and this server fetches none"),
        ("HTTP://example.org/a.png", "is a web address"),
        ("file:///etc/passwd", "this server opens no files"),
        ("/etc/passwd", "is '/etc/passwd': expected the image itself"),
        ("data:text/plain;base64,aGk=", "expected the image itself"),
        ("data:image/png,abc", "expected the image itself"),
        ("", "expected the image itself"),
    ],
)
def test_nothing_is_fetched_or_opened(url, says):
    for path, body in ((CHAT, openai(url)), (RESPONSES, responses(url))):
        answer = ask(app(Seeing()), path, body)
        assert answer.status == 400 and says in said(answer)
        assert answer.json["error"]["param"] == APIS[path][2]
    source = {"type": "image", "source": {"type": "url", "url": url}}
    answer = ask(app(Seeing()), MESSAGES, {"max_tokens": 9, "messages": [{"role": "user", "content": [source]}]})
    assert answer.status == 400 and said(answer).startswith("messages[0].content[0].source.url")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url is missing"),
        (CHAT, {"messages": [{"role": "user", "content": [image_url(7)]}]}, "image_url.url is 7, expected a string"),
        (CHAT, {"messages": [{"role": "system", "content": [image_url(URL)]}]}, "expected text"),
        (CHAT, {"messages": [{"role": "assistant", "content": [image_url(URL)]}]}, "expected text"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "expected text or an image"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "is missing"),
        (MESSAGES, {"max_tokens": 9, "messages": [{"role": "user", "content": [block(None)]}]}, "data is missing"),
        (
            MESSAGES,
            {"max_tokens": 9, "system": [block(TEXT)], "messages": anthropic(TEXT)["messages"]},
            "expected text",
        ),
        (
            MESSAGES,
            said_by("user", {"type": "document", "source": {"type": "base64", "data": TEXT}}),
            "text or content",
        ),
        (MESSAGES, said_by("user", {"type": "image", "source": {"type": "file", "file_id": "f"}}), "base64 or url"),
        (MESSAGES, said_by("assistant", block(TEXT)), 'content[0].type is "image", expected none of the assistant'),
        (OLLAMA, {"messages": [{"role": "user", "images": [5]}]}, "images[0] is a number"),
        (OLLAMA, {"messages": [{"role": "user", "images": TEXT}]}, "expected a list"),
        (OLLAMA, {"messages": [{"role": "assistant", "images": [TEXT]}]}, "expected none in a message of the role"),
        (GENERATE, {**generate(TEXT), "raw": True}, "images: they stand in chats"),
        (GENERATE, {**generate(TEXT), "suffix": "x"}, "images: they stand in chats"),
    ],
)
def test_forms_that_are_none(path, body, says):
    answer = ask(app(Seeing()), path, body)
    assert answer.status == 400 and says in said(answer)


def test_the_field_is_the_clients_where_messages_are_moved():
    """A system message stands first for the model, and a tool's result is a message of its own."""
    bad = base64.b64encode(b"no image").decode()
    blocks = [{"type": "tool_result", "tool_use_id": "c", "content": [LOOK, block(bad)]}, LOOK, block(TEXT)]
    body = {"max_tokens": 9, "system": "s", "messages": [{"role": "user", "content": blocks}]}
    assert said(ask(app(Seeing()), MESSAGES, body)).startswith("messages[0].content[0].content[1].source.data: not an")
    blocks[0]["content"], blocks[2] = "fine", block(bad)
    assert said(ask(app(Seeing()), MESSAGES, body)).startswith("messages[0].content[2].source.data: not an")
    body = {"instructions": "s", **responses("data:;base64," + bad)}
    assert said(ask(app(Seeing()), RESPONSES, body)).startswith("input[0].content[0].image_url: not an")


# ---- bounds


def test_the_number_of_images_is_bounded():
    one = image_url("data:;base64," + base64.b64encode(pictures.file_of((1, 1))).decode())
    for count, status in ((100, 200), (101, 400)):
        answer = ask(app(Seeing()), CHAT, {"messages": [{"role": "user", "content": [one] * count}]})
        assert answer.status == status
    assert "messages[0].content[100].image_url.url is image 101, expected at most 100" in said(answer)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_never_held(told):
    """100 MB: refused with 413, and no more than the limit is ever in memory; where its length is told, nothing is."""
    application = app(Seeing())
    size, part = 100 << 20, b"A" * (1 << 20)
    left = [size]
    sent = []

    async def receive():
        left[0] -= len(part)
        return {"type": "http.request", "body": bytes(part), "more_body": left[0] > 0}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), *([(b"content-length", b"%d" % size)] if told else [])]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
    tracemalloc.start()
    try:
        asyncio.run(application(scope, receive, send))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent[0]["status"] == 413 and b"67108864 bytes" in sent[1]["body"]
    assert peak < 4 << 20  # the same MB is given again and again


def test_an_image_is_not_kept():
    """The text goes when it is decoded, and the bytes go when the model has them."""
    url = "data:;base64," + base64.b64encode(pictures.file_of((1024, 1024), mode="RGB", compress_level=0)).decode()
    for path, image in ((CHAT, url), (RESPONSES, url), (OLLAMA, url[13:]), (MESSAGES, url[13:])):
        model = Seeing()
        data = [json.dumps(APIS[path][0](image)).encode()]
        held = []

        async def receive(data=data):
            if data:
                return {"type": "http.request", "body": data.pop(), "more_body": False}
            await asyncio.Event().wait()

        async def send(message, model=model, held=held):
            model.asked.clear()
            held.append(tracemalloc.get_traced_memory()[0])

        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"localhost")]}
        application = app(model)
        ask(application, path, APIS[path][0](APIS[path][1]))  # what is imported stays
        tracemalloc.start()
        try:
            asyncio.run(application(scope, receive, send))
        finally:
            tracemalloc.stop()
        assert len(held) == 2 and max(held) < 1 << 20 < len(url), (path, held)


def test_a_client_that_goes_while_its_images_are_read():
    """The model is told, however it waits."""
    began, told = Event(), Event()

    class Slow(Seeing):
        def chat_stream(self, messages, *, cancel=None, **options):
            cancel.add(told.set)
            began.set()
            assert told.wait(10)
            return super().chat_stream(messages, cancel=cancel, **options)

    async def main():
        application, leave = app(Slow()), asyncio.Event()
        task = asyncio.create_task(asked(application, CHAT, openai(URL), leave=leave))
        await asyncio.to_thread(began.wait, 10)
        leave.set()
        assert (await task).status == 0
        assert "cancelled_total" in (await asked(application, "/metrics")).text

    asyncio.run(main())
    assert told.is_set()


# ---- what is told


def test_what_sees_says_so():
    for kind, sees in ((Seeing, True), (Scripted, False)):
        model = kind()
        model.path = builtin.path()
        application = app(model)
        shown = ask(application, "/api/show", {"model": "m"}).json["capabilities"]
        props = ask(application, "/props").json["capabilities"]
        listed = ask(application, "/v1/models").json["data"][0]
        assert ("vision" in shown, "vision" in props) == (sees, sees)
        assert listed["capabilities"]["vision"] is sees


def test_settings_bound_the_body():
    answer = ask(app(Seeing(), Settings(body_bytes=100)), CHAT, openai(URL))
    assert answer.status == 413


# ---- a real model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a tiny model and its eyes."""
    folder = tmp_path_factory.mktemp("models")
    sections = {"glm4.rope.dimension_sections": [4, 6, 6, 0]}
    text = tiny.model("glm4", rope_dim=32, context=8192, metadata=sections)
    tiny.write(folder / "text.gguf", text, "Q8_0")
    tiny.write(folder / "mmproj-text.gguf", tiny.eyes(), "Q8_0")
    return folder


@pytest.fixture
def real(files):
    with glmlite.load(files / "text.gguf", context=1024) as model:
        yield model


SHORT = {"max_tokens": 6, "max_output_tokens": 6, "temperature": 0, "options": {"num_predict": 6, "temperature": 0}}


def test_all_apis_give_the_models_answer(real):
    messages = [{"role": "user", "content": [SHOWN, LOOK]}]
    want = real.chat(messages, max_tokens=6, temperature=0).text
    tokens = len(real.chat_ids(messages))
    application = app(real)
    usage = []
    for path, (body, image, _) in APIS.items():
        answer = ask(application, path, {**body(image), **SHORT})
        assert answer.status == 200, answer
        assert json.dumps(want, ensure_ascii=False) in answer.text
        usage.append(answer.json.get("usage") or answer.json["prompt_eval_count"])
    assert usage[0]["prompt_tokens"] == usage[1]["input_tokens"] == usage[3] == usage[4] == tokens
    assert usage[0]["prompt_tokens_details"]["cached_tokens"] > TOKENS  # of the first question, asked in Python
    assert usage[2]["input_tokens"] + usage[2]["cache_read_input_tokens"] == tokens
    assert ask(application, MESSAGES + "/count_tokens", anthropic(TEXT)).json["input_tokens"] == tokens
    other = openai("data:;base64," + base64.b64encode(pictures.file_of((40, 60))).decode())
    cached = ask(application, CHAT, {**other, **SHORT}).json["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached < 10  # another image is not taken for this one


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_real_model_says_of_what_is_no_image(real, name):
    data, says = HOSTILE[name]
    answer = ask(app(real), CHAT, openai("data:;base64," + base64.b64encode(data).decode()))
    assert answer.status == 400 and says in said(answer) and said(answer).startswith(APIS[CHAT][2])


def test_an_image_larger_than_the_context(real):
    large = "data:;base64," + base64.b64encode(pictures.file_of((1400, 1400))).decode()
    error = ask(app(real), CHAT, openai(large)).json["error"]
    assert error["code"] == "context_length_exceeded" and "2500 tokens > 1024 maximum" in error["message"]


class Slow:
    """A tower that looks until it is told to go on, or to end."""

    nbytes = threads = 0

    def __init__(self, width):
        self.width = width
        self.began, self.go, self.ended = Event(), Event(), Event()

    def rows(self, patches, grid, *, cancel=None):
        self.began.set()
        while not self.go.wait(0.005):
            if cancel.is_set:
                self.ended.set()
                raise glmlite.Cancelled("tower: cancelled")
        return np.zeros((len(patches) // 4, self.width), np.float32)

    def progress(self):
        return 0.5

    def close(self):
        pass


@pytest.fixture
def slow(real):
    tower = Slow(real._eyes.config.width)
    real._eyes._open = lambda threads, check: tower
    return tower


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_while_the_tower_works(real, slow, stream):
    async def main():
        application, leave = app(real), asyncio.Event()
        task = asyncio.create_task(asked(application, CHAT, {**openai(URL), "stream": stream}, leave=leave))
        assert await asyncio.to_thread(slow.began.wait, 10)
        leave.set()
        await task
        assert await asyncio.to_thread(slow.ended.wait, 10)
        text = (await asked(application, "/metrics")).text
        assert 'status="gone"} 1' in text and "glmlite_cancelled_total 1" in text

    asyncio.run(main())


def test_a_stream_says_that_it_is_there_while_the_tower_works(real, slow):
    came = []

    async def read(part):
        came.append(part)
        if len(came) == 4:
            slow.go.set()

    async def main():
        application = app(real, Settings(keep_alive=0.02))
        body = {**openai(URL), "stream": True, "max_tokens": 2}
        quiet = await asked(application, CHAT, body, read=read)
        assert came[1:4] == [b":\n\n"] * 3 and quiet.events[-1] == "[DONE]"
        # Others are answered meanwhile.
        slow.go.clear()
        slow.began.clear()
        url = "data:;base64," + base64.b64encode(pictures.file_of((90, 60))).decode()
        told = {**openai(url), "stream": True, "max_tokens": 2, "return_progress": True}
        waits = asyncio.create_task(asked(application, CHAT, told))
        await asyncio.to_thread(slow.began.wait, 10)
        text = await asked(application, CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
        assert text.status == 200
        await asyncio.sleep(0.5)
        slow.go.set()
        return (await waits).events

    events = asyncio.run(main())
    progress = [event["prompt_progress"] for event in events if event != "[DONE]" and "prompt_progress" in event]
    assert progress and all(0 < each["processed"] < each["total"] for each in progress)


def test_eyes_are_found_beside_the_models_of_a_folder(files, tmp_path):
    loads = []

    def load(path, cancel):
        loads.append(path.name)
        return glmlite.load(path, context=512, cancel=cancel)

    async def main():
        application = app(Pool.folder(files, load))
        before = (await asked(application, "/v1/models")).json["data"]
        shown = (await asked(application, "/api/show", {"model": "text"})).json["capabilities"]
        assert [(each["id"], each["capabilities"]["vision"]) for each in before] == [("text", True)]
        assert "vision" in shown and loads == []
        assert "vision" in (await asked(application, "/props?model=text")).json["capabilities"]
        answer = await asked(application, CHAT, {**openai(URL), "max_tokens": 2})
        assert answer.status == 200 and loads == ["text.gguf"]
        (tmp_path / "alone.gguf").write_bytes((files / "text.gguf").read_bytes())
        alone = app(Pool.folder(tmp_path, load))
        assert "vision" not in (await asked(alone, "/props?model=alone")).json["capabilities"]
        refused = await asked(alone, CHAT, openai(URL))
        assert refused.status == 400 and "--mmproj" in said(refused)
        assert said(refused).startswith(APIS[CHAT][2])
        # Eyes that are put there later are told of, and found by the next load.
        (tmp_path / "mmproj.gguf").write_bytes((files / "mmproj-text.gguf").read_bytes())
        later = app(Pool.folder(tmp_path, load))
        assert "vision" in (await asked(later, "/props?model=alone")).json["capabilities"]
        for each in (application, alone, later):
            await each.close()

    asyncio.run(main())


def test_lines_of_json():
    """Without a network: a line may have as much as a body."""
    from glmlite.serve import stdio
    from glmlite.serve.lines import Writer

    class Out:
        data = b""

        def write(self, data):
            self.data += data
            return len(data)

    noise = np.random.default_rng(1).integers(0, 256, (600, 600, 3), np.uint8)
    large = "data:;base64," + base64.b64encode(pictures.saved(noise)).decode()
    asks = [{"id": i, "path": CHAT, "body": openai(url)} for i, url in enumerate((URL, large, "file:///a", large * 50))]
    lines = [json.dumps(each).encode() + b"\n" for each in asks]
    out, model = Out(), Seeing()

    class Pieces:
        def read(self, size):
            if lines:
                return lines.pop(0)
            while out.data.count(b"\n") < len(asks):
                time.sleep(0.005)
            return b""

    asyncio.run(stdio.serve(app(model), Pieces(), Writer(out)))
    answers = {each["id"]: each for each in map(json.loads, out.data.splitlines())}
    assert [answers[i]["status"] for i in (0, 1, 2, None)] == [200, 200, 400, 400]
    assert "opens no files" in answers[2]["body"]["error"]["message"]
    assert "JSON" in answers[None]["body"]["error"]["message"]
    assert sorted(len(each["messages"][0]["content"][0]["image"]) > 1 << 20 for each in model.asked) == [False, True]
