"""The server behind uvicorn, over sockets: clients that go, that read slowly, Ctrl-C; and lines of JSON."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from serving import Scripted, Wait

import glmlite
from glmlite.serve import Settings, app, command, running, stdio
from glmlite.serve.lines import Writer

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'glmlite[serve]'")

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def served(application, **options):
    """The port at which uvicorn serves the application, on a thread."""
    config = uvicorn.Config(
        application, log_config=None, log_level="critical", lifespan="on", timeout_graceful_shutdown=1, **options
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
        assert not thread.is_alive()


def body(**fields):
    return {"messages": [{"role": "user", "content": "hi"}], **fields}


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def post(port, path, fields, headers=""):
    """A socket on which a request was sent."""
    data = json.dumps(fields).encode()
    connection = connected(port)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    connection.sendall(head.encode() + data)
    return connection


def until(condition, seconds=20):
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.001)
    return time.monotonic() - began


@pytest.fixture(params=["h11", "httptools"])
def parser(request, monkeypatch):
    """Each of the two that uvicorn may read HTTP with."""
    module = pytest.importorskip(f"uvicorn.protocols.http.{request.param}_impl", reason=f"{request.param} is missing")
    name = {"h11": "H11Protocol", "httptools": "HttpToolsProtocol"}[request.param]
    monkeypatch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", getattr(module, name))


def ended(connection, seconds):
    """Whether the server closes a connection, of which nothing else comes, within so many seconds."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


def received(connection, what):
    """What comes up to some bytes: head and body of an answer may come apart."""
    came = b""
    while what not in came:
        piece = connection.recv(10_000)
        assert piece
        came += piece
    return came


def test_who_does_not_say_what_it_wants_is_not_waited_for(parser):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    model = Scripted({"hi": ["a", Wait(0.8), "b"]})
    with served(app(model), http=running.protocol(0.3, 60)) as port:
        silent, half, again = (socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3))
        half.sendall(head)
        again.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received(again, b'"ok"')
        again.sendall(head)
        answered = post(port, CHAT, body())  # slower than that, and waited for
        assert ended(silent, 5) and ended(half, 5) and ended(again, 5)
        received(answered, b'"content":"ab"')
        assert not ended(answered, 0.5)  # the next request may come


def test_more_connections_than_the_system_allows_are_refused(parser, monkeypatch):
    monkeypatch.setattr(running, "most_connections", lambda: 3)
    with served(app(Scripted()), http=running.protocol(60, 60)) as port:
        first = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5)]
        assert [ended(connection, 0.5) for connection in first] == [False] * 3 + [True] * 2
        first.pop().close()
        first[0].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        first[0].settimeout(20)
        received(first[0], b'"ok"')


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_closes_frees_the_request(stream):
    model = Scripted({"hi": ["a", Wait(60), "b"]})
    with served(app(model)) as port:
        connection = post(port, CHAT, body(stream=stream))
        until(lambda: model.running and model.running[0].pieces)
        connection.close()
        until(lambda: not model.running)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_real_model_is_free_soon_after(stream, where):
    with glmlite.load(kv_tokens=4096) as model, served(app(model)) as port:
        long = "Why? " * 80 if where == "reading" else "Why?"
        fields = {"messages": [{"role": "user", "content": long}], "ignore_eos": True, "stream": stream}
        connection = post(port, CHAT, fields)
        until(lambda: model.status().running == 1)
        if where == "writing":
            until(lambda: model.status().generated_tokens > 0)
        connection.close()
        until(lambda: model.status().running == model.status().waiting == 0)
        assert model.generate("the", max_tokens=2).tokens


def test_a_client_that_does_not_read_is_let_go():
    model = Scripted({"hi": ["x" * 100_000] * 2000})
    with served(app(model, Settings(patience=0.3))) as port:
        connection = post(port, CHAT, body(stream=True))
        until(lambda: model.running)
        until(lambda: not model.running)
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_the_connection_of_a_client_that_does_not_read_ends(stream, parser):
    """One that reads slowly is waited for. What is sent is more than the system's buffers take: the rest waits in the
    server, where to close the connection would wait for it."""
    size = 30_000_000

    def read(seconds):
        """Bytes that come, of those that stop being read after 5 MB for so long."""
        came = 0
        with post(port, CHAT, body(stream=stream), "Connection: close\r\n") as connection:
            while piece := connection.recv(1_000_000):
                came += len(piece)
                if came > 5_000_000:
                    time.sleep(seconds)
                    seconds = 0
        return came

    with served(app(Scripted({"hi": ["x" * size]})), http=running.protocol(60, 0.2)) as port:
        assert read(0) > size
        assert read(1) < size


@pytest.mark.parametrize("before", [b"GET /health", b"POST /v1/completions"])
@pytest.mark.parametrize("line", [b"X: " + b"a" * 1000, b"X: a\r\n" * 200])
def test_headers_have_a_bound(before, line, parser):
    """Those before a body, and those behind its last chunk."""
    with served(app(Scripted()), http=running.protocol(60, 60)) as port, connected(port) as connection:
        connection.sendall(before + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        if before.startswith(b"POST"):
            connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                connection.sendall(line)


def test_a_body_in_small_chunks_is_no_header(parser):
    data = json.dumps(body()).encode()
    chunks = b"".join(b"1;%s\r\n%c\r\n" % (b"a" * 10_000, byte) for byte in data)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served(app(Scripted()), http=running.protocol(60, 60)) as port, connected(port) as connection:
        connection.sendall(head.encode() + chunks + b"0\r\n\r\n")
        received(connection, b'"content":"yes"')


def test_the_page_and_the_answers_over_one_connection():
    with served(app(Scripted())) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/", headers={"accept": "text/html"})
        page = connection.getresponse()
        text = page.read()
        assert page.status == 200 and text.startswith(b"<!")
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy
        connection.request("GET", "/", headers={"accept": "text/html", "if-none-match": page.headers["etag"]})
        again = connection.getresponse()
        assert again.status == 304 and again.read() == b""
        for name, kind in (("/app.js", "text/javascript"), ("/style.css", "text/css"), ("/icon.svg", "image/svg+xml")):
            connection.request("GET", name)
            file = connection.getresponse()
            assert file.status == 200 and file.read()
            assert file.headers["content-type"].startswith(kind)
            assert file.headers["x-content-type-options"] == "nosniff"
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"Ollama is running"
        connection.request("POST", CHAT, json.dumps(body()))
        assert json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] == "yes"
        connection.close()


# ---- the command


@contextlib.contextmanager
def started(*arguments, **options):
    """`glmlite serve` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "glmlite", "serve", *arguments]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def address(process):
    """The port, once the model is served."""
    for line in process.stderr:
        if " is served at http://127.0.0.1:" in line:
            return int(line.split("127.0.0.1:")[1].split(";")[0])
    raise AssertionError("it has ended")


@pytest.mark.parametrize("fails", [False, True])
def test_an_end_while_the_model_loads_is_no_failure_of_the_load(fails):
    async def lifespan(_scope, receive, send):
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    class App:
        def __init__(self):
            self.ended = asyncio.Event()
            self.service = SimpleNamespace(pool=self, settings=Settings())

        async def __call__(self, scope, receive, send):
            await lifespan(scope, receive, send)

        async def ready(self):
            if not fails:
                await self.ended.wait()
            raise RuntimeError("not loaded")

        async def close(self):
            self.ended.set()

    async def over():
        await asyncio.sleep(10 if fails else 0.1)

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        arguments = App(), [listening], lambda: pytest.fail("it was not loaded")
        if fails:
            with pytest.raises(RuntimeError, match="not loaded"):
                running.run(*arguments, ended=over)
        else:
            running.run(*arguments, ended=over)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals between processes there")
def test_ctrl_c_ends_the_server_and_tells_clients():
    with started("--port", "0", "--context", "512", stderr=subprocess.PIPE, text=True) as process:
        port = address(process)
        fields = body(stream=True, ignore_eos=True, logit_bias={"5": 100})
        streaming = post(port, CHAT, fields)
        reading = streaming.makefile("rb")
        while b"chat.completion.chunk" not in reading.readline():
            pass
        process.send_signal(signal.SIGINT)
        rest = reading.read().decode()
        assert process.wait(10) == 130
        assert "finish_reason" in rest or "unavailable_error" in rest
        assert rest.rstrip().endswith("0") and "[DONE]" in rest  # the last, empty chunk: it was ended, not cut
        streaming.close()


def test_what_is_wrong_is_one_line(tmp_path):
    empty = str(tmp_path)
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    cases = [
        (["--port", port], 1, "in use"),
        (["missing.gguf"], 1, "missing.gguf"),
        (["--models", "nowhere"], 1, "no such folder"),
        (["--models", empty, "--port", port], 1, f"[no .gguf file below {empty} yet]"),
        (["--host", "no host"], 1, "glmlite: no host: "),
        (["--cors", "chat.example"], 1, "origins: 'chat.example', expected"),
        (["builtin", "--models", "."], 2, "expected one of them"),
        (["--mmproj", "mmproj.gguf", "--models", "."], 2, "expected one of them"),
    ]
    for arguments, code, says in cases:
        with started(*arguments, stderr=subprocess.PIPE, text=True) as process:
            error = process.communicate(timeout=60)[1]
            assert process.returncode == code
            assert says in error and "Traceback" not in error
    taken.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost", "::", "::1"])
def test_the_address_that_is_shown_is_one_that_answers(host):
    try:
        sockets = running.bind(host, 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.enter_context(each)
        url = urlsplit(command._url(host, sockets[0].getsockname()[1]))
        socket.create_connection((url.hostname, url.port), timeout=20).close()


def test_lines_of_json():
    with started("--stdio", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:

        def tell(*lines):
            for line in lines:
                process.stdin.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
            process.stdin.flush()

        def hear():
            while "id" not in (line := json.loads(process.stdout.readline())):
                pass
            return line

        tell({"id": "a", "path": CHAT, "body": body(temperature=0, max_tokens=4)})
        answer = hear()
        tell({"id": "a", "path": "/health"})
        assert hear() == {"id": "a", "status": 200, "body": {"status": "ok"}}
        assert answer["id"] == "a" and answer["body"]["choices"][0]["message"]["content"]
        tell({"id": 2, "path": CHAT, "body": body(temperature=0, max_tokens=4, stream=True)})
        parts = [hear()]
        while not parts[-1].get("done"):
            parts.append(hear())
        assert {part["id"] for part in parts} == {2}
        text = "".join(part["event"]["choices"][0]["delta"].get("content", "") for part in parts[:-1])
        assert text == answer["body"]["choices"][0]["message"]["content"]
        tell(b"{broken", {"path": CHAT}, {"id": 3, "path": "/nowhere"}, {"id": 4, "path": CHAT, "body": {}})
        statuses = sorted((str(each["id"]), each["status"]) for each in (hear() for _ in range(4)))
        assert statuses == [("3", 404), ("4", 400), ("None", 400), ("None", 400)]
        tell(
            {"id": 5, "path": CHAT, "body": body(stream=True, ignore_eos=True, max_tokens=400)},
            {"id": 5, "cancel": True},
        )
        while not (last := hear()).get("done"):
            pass
        assert last["status"] in (200, 499)
        tell({"id": 6, "path": CHAT, "body": body(ignore_eos=True)})
        process.stdin.close()
        assert process.wait(10) == 0


def test_lines_come_in_any_pieces():
    class Pieces:
        def __init__(self, pieces):
            self.pieces = list(pieces)

        def read(self, size):
            return self.pieces.pop(0) if self.pieces else b""

    class Out:
        data = b""

        def write(self, data):
            self.data += data[:7]
            return len(data[:7])

    names = [0, "one", 1.5]
    asks = [{"id": name, "path": "/tokenize", "body": {"content": "好" * i}} for i, name in enumerate(names)]
    lines = b"\n".join(json.dumps(each).encode() for each in asks) + b"\n" + b"x" * 5000 + b"\n\n"
    for size in (1, 5, 4000, 9000):
        out = Out()

        async def main(size=size, out=out):
            pieces = Pieces(lines[i : i + size] for i in range(0, len(lines), size))
            real = pieces.read

            def read(count):
                if not pieces.pieces:
                    until(lambda: out.data.count(b"\n") == 4)
                return real(count)

            pieces.read = read
            await stdio.serve(app(Scripted(), Settings(body_bytes=1000)), pieces, Writer(out))

        asyncio.run(main())
        answers = {str(each["id"]): each for each in map(json.loads, out.data.splitlines())}
        assert [len(answers[str(name)]["body"]["tokens"]) for name in names] == [0, 3, 6]
        assert answers["None"]["status"] == 400 and "JSON" in answers["None"]["body"]["error"]["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="no signals between processes there")
def test_ctrl_c_ends_lines_of_json():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started("--stdio", **pipes) as process:
        process.stdin.write(b'{"id": 1, "path": "/health"}\n{"id": 2')
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        error = process.stderr.read()
        assert b"Traceback" not in error and b"Fatal" not in error
