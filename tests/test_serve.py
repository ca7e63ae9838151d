"""The server as such: paths, keys, hosts, bounds, clients that go, models that come and go. No network."""

import asyncio
import gzip
import json
import os
import sys
import threading
import time

import pytest
from serving import Call, Scripted, Think, Wait, ask, asked

from glmlite.cancel import check_thread
from glmlite.serve import Pool, Settings, app, errors, running
from glmlite.serve.errors import Refused

HI = {"messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


# ---- paths


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/chat/completions", "//v1/chat/completions", "/v1/v1/chat/completions?beta=true"]
)
def test_paths_are_taken_as_clients_spell_them(path):
    assert ask(app(Scripted()), path, HI).json["choices"][0]["message"]["content"] == "yes"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("HEAD", "/", 200),
        ("GET", "/v1/models/scripted", 200),
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 501),
        ("POST", "/api/pull", 501),
        ("OPTIONS", "/v1/chat/completions", 204),
        ("GET", "/../pyproject.toml", 404),
        ("GET", "/page/../app.py", 404),
    ],
)
def test_what_is_where(method, path, status):
    answer = ask(app(Scripted()), path, b"{}" if method == "POST" else None, method=method)
    assert answer.status == status
    assert status != 405 or answer.headers["allow"]
    if method == "HEAD":
        assert answer.text == "" and int(answer.headers["content-length"]) > 0


def test_what_is_nowhere_is_told_in_the_form_of_its_api():
    application = app(Scripted())
    assert ask(application, "/v1/nowhere").json["error"]["type"] == "not_found_error"
    assert ask(application, "/api/nowhere").json == {"error": "there is nothing at /api/nowhere"}
    anthropic = ask(application, "/v1/messages/batches", headers=[("anthropic-version", "2023-06-01")]).json
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "not_found_error")


def test_mounted_below_a_path():
    assert ask(app(Scripted()), "/llm/v1/models", root="/llm").status == 200
    assert ask(app(Scripted()), "/llm/v1/models", root="/llm/").status == 200
    assert ask(app(Scripted()), "/llm/v1/models").status == 404


def test_a_path_is_one_line_of_the_log(caplog):
    with caplog.at_level("INFO", "glmlite.serve"):
        ask(app(Scripted()), "/v1\r\n12:00:00 GET /admin 200\x1b[2J")
    assert "GET /v1%0D%0A12%3A00%3A00%20GET%20/admin%20200%1B%5B2J 404" in caplog.text


# ---- who may ask


@pytest.mark.parametrize(
    "header", [("authorization", "Bearer s3"), ("x-api-key", "s3"), ("Authorization", "bearer s3")]
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
def test_a_key_by_either_header_on_every_path(path, header):
    application = app(Scripted(), Settings(api_keys=("s2", "s3")))
    body = {**HI, "max_tokens": 5, "stream": False}
    assert ask(application, path, body, headers=[header]).status == 200
    for wrong in ([], [("authorization", "Bearer s")], [("x-api-key", "s33")], [("authorization", "Bearer")]):
        assert ask(application, path, body, headers=wrong).status == 401
    assert ask(application, "/health").status == 200


def test_a_key_of_other_letters():
    application = app(Scripted(), Settings(api_keys=("ключ é",)))
    for key, status in (("ключ é", 200), ("ключ e", 401)):
        assert ask(application, CHAT, HI, headers=[("x-api-key", key)]).status == status


def test_errors_have_the_form_of_their_api():
    application = app(Scripted(), Settings(api_keys=("k",)))
    openai = ask(application, CHAT, HI).json["error"]
    assert openai["type"] == "authentication_error" and openai["code"] == "invalid_api_key" and "param" in openai
    assert "no API key" in openai["message"]
    wrong = ask(application, CHAT, HI, headers=[("x-api-key", "other")])
    assert wrong.status == 401 and "a wrong API key" in wrong.json["error"]["message"]
    answer = ask(application, "/v1/messages", HI)
    assert answer.json["type"] == "error" and answer.json["error"]["type"] == "authentication_error"
    assert answer.json["request_id"] == answer.headers["request-id"]
    assert isinstance(ask(application, "/api/chat", HI).json["error"], str)
    assert ask(application, "/v1/models", headers=[("anthropic-version", "2023-06-01")]).json["type"] == "error"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),
        ("LOCALHOST.", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("box", 200),
    ],
)
def test_a_name_of_elsewhere_is_refused(host, status, monkeypatch):
    monkeypatch.setattr("serving.HOST", [("host", host)])
    settings = Settings(hosts=("localhost", "box"))
    assert ask(app(Scripted(), settings), CHAT, HI).status == status
    assert ask(app(Scripted(), Settings(hosts=("*",))), CHAT, HI).status == 200
    key = Settings(api_keys=("k",))
    assert ask(app(Scripted(), key), CHAT, HI, headers=[("x-api-key", "k")]).status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8080", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:9999", 403),
        ("http://[", 403),
        ("vscode-webview://abc", 200),
    ],
)
def test_a_page_of_elsewhere_cannot_post(origin, status):
    answer = ask(app(Scripted()), CHAT, HI, headers=[("origin", origin)])
    assert answer.status == status
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_cors_where_it_is_asked_for():
    application = app(Scripted(), Settings(origins=("https://chat.example",)))
    origin = ("origin", "https://chat.example")
    asking = [origin, ("access-control-request-headers", "authorization,content-type")]
    before = ask(application, CHAT, method="OPTIONS", headers=asking)
    assert before.status == 204
    assert before.headers["access-control-allow-origin"] == "https://chat.example"
    assert before.headers["access-control-allow-headers"] == "authorization,content-type"
    assert ask(application, CHAT, HI, headers=[origin]).headers["access-control-allow-origin"] == origin[1]
    other = ask(application, CHAT, HI, headers=[("origin", "https://evil.example")])
    assert other.status == 403 and "access-control-allow-origin" not in other.headers
    assert ask(app(Scripted(), Settings(origins=("*",))), CHAT, HI, headers=[("origin", "null")]).status == 200


# ---- bounds


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"[]", 400, "a list, should be an object"),
        (b'{"a": NaN}', 400, "NaN"),
        (b'{"a": -1e400}', 400, "-1e400 is too large a number"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"a":' * 100000, 400, "nested deeper"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, 400, "nested deeper"),
        (b'{"a": ' + b"1" * 5000 + b"}", 400, "not JSON"),
        (b'{"a": [' + b"[]," * 1_000_001 + b"1]}", 413, "values"),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', 413, "bytes"),
    ],
)
def test_bad_bodies(body, status, says):
    application = app(Scripted(), Settings(body_bytes=4 << 20))
    for path in (CHAT, "/v1/messages", "/api/chat"):
        answer = ask(application, path, body, chunks=3)
        assert answer.status == status
        assert says in answer.text


def test_a_compressed_body_is_refused_with_the_reason():
    answer = ask(app(Scripted()), CHAT, gzip.compress(json.dumps(HI).encode()), headers=[("content-encoding", "gzip")])
    assert answer.status == 415 and "compressed (gzip)" in answer.json["error"]["message"]
    assert ask(app(Scripted()), CHAT, HI, headers=[("content-encoding", "identity")]).status == 200


def test_a_body_that_does_not_come():
    async def main():
        async def receive():
            await asyncio.sleep(10)

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        await app(Scripted(), Settings(body_seconds=0.05))(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(main()) == 408


def test_lone_surrogates_are_no_text():
    model = Scripted()
    answer = ask(app(model), CHAT, b'{"model": "\\ud800x", "messages": [{"role": "user", "content": "a\\udfff"}]}')
    assert answer.json["model"] == "\ufffdx"
    assert model.asked[0]["messages"][0]["content"] == "a\ufffd"


def test_a_full_queue_is_429_before_anything_is_sent():
    model = Scripted({"hi": [Wait(0.2), "late"]}, limit=2)

    async def main():
        application = app(model)
        return await asyncio.gather(*(asked(application, CHAT, {**HI, "stream": True}) for _ in range(4)))

    answers = asyncio.run(main())
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429]
    full = next(answer for answer in answers if answer.status == 429)
    assert int(full.headers["retry-after"]) > 0
    assert full.json["error"]["type"] == "rate_limit_error"
    assert not model.running


def test_the_server_bounds_the_queue_too():
    model = Scripted({"hi": [Wait(0.2), "late"]})
    model.parallel = 1

    async def main():
        application = app(model, Settings(queue=1))
        answers = await asyncio.gather(*(asked(application, CHAT, HI) for _ in range(4)))
        return (
            answers,
            (await asked(application, CHAT, {**HI, "n": 2})).status,
            await asked(application, CHAT, {**HI, "n": 3}),
        )

    answers, fits, never = asyncio.run(main())
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429]
    assert fits == 200
    assert never.status == 400 and never.json["error"]["param"] == "n"


def test_requests_of_one_key():
    model = Scripted({"hi": [Wait(0.2), "late"]})

    async def main():
        application = app(model, Settings(api_keys=("a", "b"), per_key=1))
        keys = ["a", "a", "b"]
        return await asyncio.gather(*(asked(application, CHAT, HI, headers=[("x-api-key", key)]) for key in keys))

    assert [answer.status for answer in asyncio.run(main())] == [200, 429, 200]


def test_nothing_stays_held():
    """Of requests that were answered, refused, or left: bodies and places of keys."""
    application = app(Scripted({"hi": ["a", RuntimeError("x")]}), Settings(api_keys=("k",), per_key=2))
    key = [("x-api-key", "k")]
    for _ in range(3):
        for body in (HI, {"messages": 5}, b"{", {**HI, "stream": True}):
            ask(application, CHAT, body, headers=key)
        ask(application, "/v1/models", headers=key)
    assert "glmlite_cancelled_total 0" in ask(application, "/metrics", headers=key).text  # a failure is none

    async def left():
        leave = asyncio.Event()
        leave.set()
        await asked(application, CHAT, {**HI, "stream": True}, headers=key, leave=leave)

    asyncio.run(left())
    assert application._held == 0 and not any(application._by_key.values())
    assert not any(application.service.live.values())


def test_an_answer_that_takes_too_long_ends_as_cut():
    model = Scripted({"hi": ["a", Wait(60), "b"]})
    choice = ask(app(model, Settings(seconds=0.1)), CHAT, HI).json["choices"][0]
    assert choice["message"]["content"] == "a"
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ValueError("messages[0]: role 'x', should be another"), 400, "invalid_request_error"),
        (TypeError("temperature is 'x', expected a number"), 400, "invalid_request_error"),
        (MemoryError(), 503, "unavailable_error"),
        (ImportError("needs glmlite[grammar]"), 501, "not_supported_error"),
        (KeyError("ours"), 500, "server_error"),
    ],
)
def test_what_a_model_raises(error, status, kind):
    answer = ask(app(Scripted({"hi": error})), CHAT, {**HI, "stream": True})
    assert answer.status == status
    assert answer.json["error"]["type"] == kind
    if status == 400:
        assert answer.json["error"]["param"] == str(error).replace(":", " ").split()[0]


def test_overflow_is_said_in_every_clients_words():
    long = {"messages": [{"role": "user", "content": "word " * 200}], "max_tokens": 5}
    application = app(Scripted())
    error = ask(application, CHAT, long).json["error"]
    assert error["code"] == "context_length_exceeded"
    for phrase in ("maximum context length is 100 tokens", "exceeds the available context size", "prompt is too long"):
        assert phrase in error["message"]
    answer = ask(application, "/v1/messages", long)
    assert answer.status == 400
    assert answer.json["error"]["message"] == "prompt is too long: 201 tokens > 100 maximum"
    assert "too long" in ask(application, "/api/chat", long).json["error"]


# ---- clients that go, or read slowly


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_client_that_goes_frees_its_request(stream, where):
    script = [Wait(60), "a"] if where == "reading" else ["a", "b", Wait(60), "c"]
    model = Scripted({"hi": script})

    async def main():
        application, leave = app(model), asyncio.Event()
        task = asyncio.create_task(asked(application, CHAT, {**HI, "stream": stream}, leave=leave))
        while not model.running or (where == "writing" and len(model.running[0].pieces) < 2):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        began = time.monotonic()
        leave.set()
        await task
        assert not model.running
        return time.monotonic() - began, (await asked(application, "/metrics")).text

    seconds, metrics = asyncio.run(main())
    assert seconds < 1
    assert 'glmlite_requests_total{api="openai",status="gone"} 1' in metrics
    assert "glmlite_cancelled_total 1" in metrics


def test_the_end_of_a_servers_task_frees_the_request():
    model = Scripted({"hi": ["a", Wait(60)]})

    async def main():
        task = asyncio.create_task(asked(app(model), CHAT, {**HI, "stream": True}))
        while not model.running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not model.running

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, HI, "completion_tokens"),
        ("/v1/completions", {"prompt": "hi"}, "completion_tokens"),
        ("/v1/responses", {"input": "hi"}, "output_tokens"),
        ("/v1/messages", {**HI, "max_tokens": 90}, "output_tokens"),
        ("/api/chat", {**HI, "stream": False}, "eval_count"),
    ],
)
def test_what_a_model_has_written_beyond_an_answer_is_not_counted(path, body, name):
    """A step of several answers may have written on behind a stop string before that was found."""

    class Ahead(Scripted):
        end = 7

        def _start(self, *arguments):
            answer = super()._start(*arguments)
            answer.stats.generated_tokens = 5
            return answer

    answer = ask(app(Ahead({"hi": ["a", "b"]})), path, body).json
    assert (answer.get("usage") or answer)[name] == 3  # with the one that ended it
    assert answer.get("stop_sequence") is None


def test_what_a_thread_does_for_a_client_that_goes_ends():
    began, ended = threading.Event(), threading.Event()

    class Slow(Scripted):
        def tokenize(self, text, **options):
            began.set()
            try:
                while True:
                    check_thread("tokenize")
            finally:
                ended.set()

    async def main():
        leave = asyncio.Event()
        asking = asyncio.create_task(asked(app(Slow()), "/tokenize", {"content": "a"}, leave=leave))
        assert await asyncio.to_thread(began.wait, 20)
        leave.set()
        assert (await asking).status == 0
        assert await asyncio.to_thread(ended.wait, 20)

    asyncio.run(main())


def test_a_slow_reader_holds_nothing_without_bound_and_is_let_go():
    model = Scripted({"hi": ["x"] * 5000})

    async def main():
        async def read(part):
            if b"x" in part:
                await asyncio.sleep(60)

        application = app(model, Settings(patience=0.5))
        answer = asyncio.create_task(asked(application, CHAT, {**HI, "stream": True}, read=read))
        while not model.running:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        written = len(model.running[0].pieces)
        await answer
        assert not model.running
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return written

    assert asyncio.run(main()) < 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_of_an_answer_is_not_waited_for_without_bound(stream):
    model = Scripted({"hi": ["x"]})

    async def main():
        async def read(part):
            if not stream or not part:
                await asyncio.sleep(60)

        application = app(model, Settings(patience=0.05))
        await asyncio.wait_for(asked(application, CHAT, {**HI, "stream": stream}, read=read), 5)
        return (await asked(application, "/metrics")).text

    assert 'glmlite_requests_total{api="openai",status="gone"} 1' in asyncio.run(main())
    assert not model.running


def test_silence_is_filled():
    model = Scripted({"hi": [Wait(0.3), "late"]})
    application = app(model, Settings(keep_alive=0.05))
    assert ":\n\n" in ask(application, CHAT, {**HI, "stream": True}).text
    assert ask(application, "/v1/messages", {**HI, "max_tokens": 9, "stream": True}).text.count('"ping"') > 2
    assert len(ask(application, "/api/chat", HI).lines) > 3
    assert ask(application, CHAT, HI).json["choices"][0]["message"]["content"] == "late"


def test_an_error_in_the_middle():
    model = Scripted({"hi": ["a", RuntimeError("nan in the logits")]})
    body = {**HI, "max_tokens": 9, "stream": True}
    for path in (CHAT, "/v1/completions"):
        events = ask(app(Scripted({"hi": model.script["hi"]})), path, {**body, "prompt": "hi"}).events
        assert events[-2]["error"]["type"] == "server_error" and events[-1] == "[DONE]"
        assert not any(event["choices"][0]["finish_reason"] for event in events[:-2])
    assert ask(app(model), "/v1/messages", body).events[-1]["type"] == "error"
    assert ask(app(model), "/v1/responses", {"input": "hi", "stream": True}).events[-1]["type"] == "response.failed"
    assert "error" in ask(app(model), "/api/chat", HI).lines[-1]
    assert ask(app(model), CHAT, HI).status == 500


def test_the_end_of_the_server_is_told():
    async def main():
        model = Scripted({"hi": ["a", Wait(60)]})
        application = app(Pool.file(model.path, lambda path, cancel: model))
        await application.service.pool.ready()
        paths = [(CHAT, True), (CHAT, False), ("/v1/messages", True)]
        body = {**HI, "max_tokens": 9}
        tasks = [asyncio.create_task(asked(application, path, {**body, "stream": s})) for path, s in paths]
        while len(model.running) < 3:
            await asyncio.sleep(0.001)
        await application.close()
        streamed, whole, messages = await asyncio.gather(*tasks)
        assert streamed.events[-2]["error"]["type"] == "unavailable_error"
        assert whole.status == 503
        assert messages.events[-1]["error"]["type"] == "overloaded_error"
        assert (await asked(application, CHAT, HI)).status == 503
        assert (await asked(application, "/health")).status == 503

    asyncio.run(main())


# ---- models


def test_any_name_is_served_unless_that_is_strict():
    for name in ("gpt-4o", "claude-x", "scripted:latest", "", None):
        assert ask(app(Scripted()), CHAT, {**HI, "model": name}).status == 200
    strict = app(Pool.of(Scripted(), strict=True))
    assert ask(strict, CHAT, {**HI, "model": "scripted"}).status == 200
    assert ask(strict, CHAT, {**HI, "model": "SCRIPTED.gguf"}).status == 200
    answer = ask(strict, CHAT, {**HI, "model": "gpt-4o"})
    assert answer.status == 404 and answer.json["error"]["code"] == "model_not_found"
    assert ask(strict, "/api/chat", {**HI, "model": "gpt-4o"}).status == 404


def test_the_models_list_serves_both_packages():
    listed = ask(app({"a/b": Scripted(), "c": Scripted()}), "/v1/models").json
    assert [each["id"] for each in listed["data"]] == ["a/b", "c"]
    assert listed["object"] == "list" and listed["has_more"] is False
    assert (listed["first_id"], listed["last_id"]) == ("a/b", "c")
    assert {"object", "type", "created", "created_at", "display_name", "owned_by"} <= set(listed["data"][0])
    assert ask(app({"a/b": Scripted(), "c": Scripted()}), "/v1/models/a/b").json["id"] == "a/b"
    assert ask(app({"a": Scripted(), "c": Scripted()}), CHAT, {**HI, "model": "x"}).status == 404


class Folder:
    """A folder of files that are no models, and a load that makes scripted ones."""

    def __init__(self, path, names, seconds=0.05):
        self.path = path
        self.seconds = seconds
        self.loads = []
        self.models = {}
        for name in names:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(b"GGUF")

    def load(self, path, cancel):
        self.loads.append(path.stem)
        time.sleep(self.seconds)
        path.read_bytes()
        if path.stem == "broken":
            raise ValueError("broken: no GGUF file")
        model = Scripted()
        model.name, model.path = path.stem, path
        self.models[path.stem] = model
        return model

    def app(self):
        return app(Pool.folder(self.path, self.load))


def test_models_of_a_folder_are_loaded_when_asked_for_once(tmp_path):
    folder = Folder(tmp_path, ["a.gguf", "sub/b.gguf", "c-00001-of-00002.gguf", "c-00002-of-00002.gguf", "broken.gguf"])
    (tmp_path / "mmproj-a.gguf").write_bytes(b"GGUF")  # no model

    async def main():
        application = folder.app()
        names = [each["id"] for each in (await asked(application, "/v1/models")).json["data"]]
        assert names == ["a", "broken", "c", "sub/b"]
        assert folder.loads == []
        answers = await asyncio.gather(*(asked(application, CHAT, {**HI, "model": "a"}) for _ in range(5)))
        assert [answer.status for answer in answers] == [200] * 5
        assert folder.loads == ["a"]
        assert (await asked(application, CHAT, {**HI, "model": "b"})).status == 200  # its name without the folder
        assert (await asked(application, CHAT, {**HI, "model": "x"})).status == 404
        broken = await asked(application, CHAT, {**HI, "model": "broken"})
        assert broken.status == 400 and "no GGUF file" in broken.text
        (tmp_path / "d.gguf").write_bytes(b"GGUF")
        assert (await asked(application, CHAT, {**HI, "model": "d"})).status == 200
        await application.close()
        assert all(model.closed for model in folder.models.values())

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_name_that_is_no_text_can_be_asked_for(tmp_path):
    folder = Folder(tmp_path, [os.fsdecode(b"caf\xe9.gguf")])
    models = ask(folder.app(), "/v1/models").json["data"]
    assert [each["id"] for each in models] == ["caf\ufffd"]
    answer = ask(folder.app(), CHAT, {**HI, "model": "caf\ufffd"})
    assert answer.status == 200 and answer.json["model"] == "caf\ufffd"


def test_memory_that_is_short_is_taken_from_the_least_recently_used(tmp_path, monkeypatch):
    folder = Folder(tmp_path, ["a.gguf", "b.gguf", "c.gguf"], 0)

    async def main():
        application = folder.app()
        for name in "ab":
            await asked(application, CHAT, {**HI, "model": name})
        monkeypatch.setattr("glmlite._native.available_memory", lambda: 0 if not folder.models["a"].closed else 1 << 40)
        await asked(application, CHAT, {**HI, "model": "c"})
        assert [folder.models[name].closed for name in "abc"] == [True, False, False]
        await application.close()

    asyncio.run(main())


def test_a_model_that_gave_its_memory_back_finds_room_again(tmp_path, monkeypatch):
    folder = Folder(tmp_path, ["a.gguf", "b.gguf"], 0)

    async def main():
        application = folder.app()
        for name in "ab":
            await asked(application, CHAT, {**HI, "model": name})
        folder.models["a"].loaded = False
        monkeypatch.setattr("glmlite._native.available_memory", lambda: 0 if not folder.models["b"].closed else 1 << 40)
        await asked(application, CHAT, {**HI, "model": "a"})
        assert [folder.models[name].closed for name in "ab"] == [False, True]
        assert folder.loads == ["a", "b"]
        await application.close()

    asyncio.run(main())


def test_a_file_that_is_another_one_is_loaded_anew(tmp_path):
    """Where the model had given its memory back; one that is in memory answers on."""
    folder = Folder(tmp_path, ["a.gguf", "b.gguf", "c.gguf"], 0)

    async def main():
        application = folder.app()

        async def status(name):
            return (await asked(application, CHAT, {**HI, "model": name})).status

        assert [await status(name) for name in "ab"] == [200, 200]
        first = folder.models["a"]
        (tmp_path / "a.gguf").write_bytes(b"GGUF, another one")
        assert await status("a") == 200 and folder.loads == ["a", "b"]
        first.loaded = False
        assert await status("a") == 200 and folder.loads == ["a", "b", "a"] and first.closed
        folder.models["a"].loaded = False
        assert await status("a") == 200 and folder.loads == ["a", "b", "a"]
        folder.models["b"].loaded = False
        (tmp_path / "b.gguf").unlink()
        assert await status("b") == 500 and folder.models["b"].closed and await status("b") == 404
        await application.close()

    asyncio.run(main())


def test_a_file_that_cannot_be_read_is_told():
    gone = FileNotFoundError(2, "No such file or directory", "a.gguf")
    assert errors.told(gone).message == "[Errno 2] No such file or directory: 'a.gguf'"


def test_a_model_that_is_being_loaded():
    async def main():
        def load(path, cancel):
            while not going.is_set():
                time.sleep(0.001)
            return Scripted()

        going = threading.Event()
        application = app(Pool.file(Scripted.path, load))
        answer = await asked(application, CHAT, HI)
        assert answer.status == 503 and answer.json["error"]["message"] == "Loading model"
        assert (await asked(application, "/health")).status == 503
        going.set()
        await application.service.pool.ready()
        assert (await asked(application, "/health")).status == 200
        assert (await asked(application, CHAT, HI)).status == 200
        await application.close()

    asyncio.run(main())


def test_a_load_that_fails_at_the_beginning():
    def load(path, cancel):
        raise ValueError("no GGUF file")

    async def main():
        application = app(Pool.file(Scripted.path, load))
        with pytest.raises(ValueError, match="no GGUF file"):
            await application.service.pool.ready()

    asyncio.run(main())


# ---- what is told


def test_own_paths():
    application = app(Scripted({"hi": [Think("hm"), Call("f", "{}")]}, cached=1))
    ask(application, CHAT, HI)
    props = ask(application, "/props?model=x").json
    assert props["model"] == "scripted" and props["context"] == 100 and props["defaults"]["temperature"] == 0.8
    assert len(ask(application, "/slots").json) == 4
    assert ask(application, "/tokenize", {"content": "ab"}).json == {"tokens": [97, 98]}
    assert ask(application, "/tokenize", {"content": "ab", "with_pieces": True}).json["tokens"][0]["piece"] == "a"
    assert ask(application, "/detokenize", {"tokens": [97, 98]}).json == {"content": "ab"}
    assert ask(application, "/detokenize", {"tokens": ["a"]}).status == 400
    assert "prompt" in ask(application, "/apply-template", HI).json
    assert ask(application, "/v1/chat/completions/input_tokens", HI).json["input_tokens"] == 2
    assert ask(application, "/v1/responses/input_tokens", {"input": "hi"}).json["input_tokens"] == 2
    assert [entry.users for entry in application.service.pool.entries()] == [0]
    metrics = ask(application, "/metrics").text
    for line in (
        'glmlite_requests_total{api="openai",status="200"} ',
        "glmlite_prompt_tokens_total 2",
        "glmlite_reused_tokens_total 1",
        "glmlite_generated_tokens_total 3",
        "glmlite_first_token_seconds_count 1",
        "glmlite_token_seconds_count 1",
        'glmlite_running{model="scripted"} 0',
        'glmlite_kv_tokens_free{model="scripted"} 900',
        'glmlite_preempted_total{model="scripted"} 2',
    ):
        assert line in metrics


def test_the_root():
    application = app(Scripted())
    assert ask(application, "/").text == "Ollama is running"


def test_without_uvicorn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match=r"pip install 'glmlite\[serve\]'"):
        running.run(app(Scripted()), [], lambda: None)


@pytest.mark.parametrize(("host", "error"), [("no host", OSError), ("a..b", (OSError, ValueError))])
def test_a_host_that_is_none(host, error):
    with pytest.raises(error) as caught:
        running.bind(host, 0)
    assert host in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken(host):
    (first, *more) = running.bind(host, 0)
    try:
        with pytest.raises(OSError, match="--port"):
            running.bind(host, first.getsockname()[1])
    finally:
        for each in (first, *more):
            each.close()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="api_keys"):
        Settings(api_keys="key")
    for key in ("key\n", " key", "a\nb"):
        with pytest.raises(ValueError, match="api_keys: one has"):
            Settings(api_keys=("k", key))
    with pytest.raises(ValueError, match="body_bytes"):
        Settings(body_bytes=0)
    for origin in ("chat.example", "https://chat.example/", "https://Chat.example", "https://", "a b"):
        with pytest.raises(ValueError, match="origins"):
            Settings(origins=(origin,))
    Settings(origins=("*", "null", "https://chat.example:8443", "tauri://localhost", "http://[::1]:3000"))
    assert Refused(400, "x").headers == []
