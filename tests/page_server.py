"""A stand-in for `glmlite serve`, for the tests and pictures of its page: it answers as a script says.

    with StandIn() as server:
        server.scripts["Hello"] = [thought("hm"), text("Hi"), WAIT, text(" there")]

`WAIT` stops the stream until `server.go()`. A question without a script is repeated.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import glmlite

PAGE = Path(glmlite.__file__).parent / "serve" / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; frame-ancestors 'none'"
DEFAULTS = {"temperature": 0.30000001192092896, "top_p": 0.8, "top_k": 0, "min_p": 0, "repetition_penalty": 1.0}

WAIT = "wait"
BREAK = "break"
ENDLESS = "endless"


def thought(words: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": "", "reasoning_content": words}, "finish_reason": None}]}


def text(words: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": words}, "finish_reason": None}]}


def call(index: int, name: str, *pieces: str) -> list[dict[str, Any]]:
    function: dict[str, Any] = {"name": name, "arguments": ""}
    parts: list[dict[str, Any]] = [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]
    parts += [{"index": index, "function": {"arguments": piece}} for piece in pieces]
    return [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": None}]} for part in parts]


def progress(processed: int, total: int) -> dict[str, Any]:
    return {"choices": [], "prompt_progress": {"total": total, "processed": processed, "cached": 0}}


def finish(reason: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def fault(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


class Refusal:
    """An answer with another status than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": "error", "param": None, "code": code}}


class StandIn(ThreadingHTTPServer):
    """Serves the page and an API on a free port of this machine until the `with` ends."""

    daemon_threads = True

    def __init__(self, models: tuple[str, ...] = ("tiny",), key: str = ""):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.key = models, key
        self.capabilities = ["tools", "thinking"]
        self.scripts: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []  # bodies of chat requests
        self.keys: list[str | None] = []  # their authorization headers
        self.left = threading.Event()  # set when a client went away in the middle
        self.gates = threading.Semaphore(0)
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def go(self) -> None:
        """Lets one `WAIT` end."""
        self.gates.release()

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away are part of the tests


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *message: object) -> None:
        pass

    def head(self, status: int, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def reply(self, body: object, status: int = 200, **headers: str) -> None:
        self.head(status, "application/json", **headers)
        self.wfile.write(json.dumps(body).encode())

    def allowed(self) -> bool:
        if not self.server.key or self.headers["authorization"] == f"Bearer {self.server.key}":
            return True
        self.reply({"error": {"message": "invalid API key", "type": "authentication_error", "code": None}}, 401)
        return False

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            if self.allowed():
                models = [{"id": name, "object": "model"} for name in self.server.models]
                self.reply({"object": "list", "data": models})
        elif path == "/props":
            if self.allowed():
                told = {"model": self.server.models[0], "models": list(self.server.models), "version": "0.1.0"}
                self.reply({**told, "context": 4096, "defaults": DEFAULTS, "capabilities": self.server.capabilities})
        else:
            file = PAGE / (path.lstrip("/") or "index.html")
            if not file.is_file() or ".." in path:
                return self.reply({"error": {"message": "not found"}}, 404)
            self.head(200, TYPES[file.suffix])
            self.wfile.write(file.read_bytes())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.allowed():
            return
        self.server.keys.append(self.headers["authorization"])
        self.server.asked.append(body)
        last = body["messages"][-1]["content"]
        if isinstance(last, list):
            last = "".join(part.get("text", "") for part in last)
        script = self.server.scripts.get(last, [text(f"You said: {last}")])
        if isinstance(script, Refusal):
            return self.reply(script.body, script.status, **script.headers)
        self.head(200, "text/event-stream")
        try:
            self.stream(script)
        except OSError:
            self.server.left.set()

    def stream(self, script: list[Any]) -> None:
        finished = False
        self.send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for step in script:
            if step == WAIT:
                self.wfile.write(b":\n\n")
                self.server.gates.acquire(timeout=20)
            elif step == BREAK:
                return
            elif step == ENDLESS:
                for i in range(100_000):
                    self.send(text(f"word{i} "))
                    time.sleep(0.005)
            else:
                finished |= bool(step.get("choices") and step["choices"][0].get("finish_reason"))
                self.send(step)
                if "error" in step:
                    return
        if not finished:
            calls = any(step.get("choices") and step["choices"][0]["delta"].get("tool_calls") for step in dicts(script))
            self.send(finish("tool_calls" if calls else "stop"))
        usage = {"prompt_tokens": 1000, "completion_tokens": 48, "prompt_tokens_details": {"cached_tokens": 900}}
        timings = {"predicted_n": 48, "predicted_per_second": 41.6}
        self.send({"choices": [], "usage": usage, "timings": timings})
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")


def dicts(script: list[Any]) -> list[dict[str, Any]]:
    return [step for step in script if isinstance(step, dict)]


if __name__ == "__main__":
    with StandIn() as running:
        print(running.address, flush=True)
        threading.Event().wait()
