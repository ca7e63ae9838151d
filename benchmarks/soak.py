"""Hours in minutes: many clients, some of which go, send nonsense or read slowly; nothing may be lost by it.

    python benchmarks/soak.py [MODEL] --minutes 30 --clients 64

The server runs in a process of its own. First every question is asked alone; then all clients ask at random, over all
APIs, streamed and whole, for so long. It is an error if

- a greedy answer differs from the one given alone, or a stream has another's text;
- a request fails, or is not answered, that was none of the client's fault (429, a full queue, is not one);
- a client that has gone is still worked for a second later, when all are quiet;
- memory, threads, open files or pages of the cache are more at the end than they were after the first minute.

Prints a line a minute; ends with 1 if there was an error. Needs psutil and uvicorn.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time

QUESTIONS = [
    *(f"What is {a} plus {b}?" for a in range(2, 8) for b in (3, 5)),
    *(f"Name {n} colours." for n in ("one", "two", "three")),
    "What is the capital of France?",
    "Tell me a long story about a bear. " * 4,
    "你好",
]
TOKENS = 40
LONGEST = 300  # seconds of a request before it counts as lost
RSS_SLACK = 48 << 20  # bytes: what Python's allocator and the caches of text may keep


class Lost(Exception):
    """An answer is not what it should be."""


class Server:
    """The process that serves."""

    def __init__(self, model, parallel):
        command = [sys.executable, __file__, "--child", model or "", "--parallel", str(parallel)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = json.loads(self.process.stdout.readline())["port"]

    def stats(self, last=False):
        self.process.stdin.write("last\n" if last else "stats\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def child(model_path, parallel):
    """Serves, and answers each line of stdin with how things stand; after "last" without what is kept for reuse."""
    import gc
    import socket
    import threading

    import psutil
    import uvicorn

    import glmlite
    from glmlite.serve import Settings, app

    model = glmlite.load(model_path or None, parallel=parallel, kv_tokens=parallel * 1024, context=512)
    application = app(model, Settings(queue=48, patience=5.0, body_seconds=5.0))
    config = uvicorn.Config(application, log_config=None, log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    process = psutil.Process()
    for line in sys.stdin:
        gc.collect()
        status = model.status()
        stats = {
            "rss": process.memory_info().rss,
            "threads": process.num_threads(),
            "files": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
            "running": status.running + status.waiting,
            "live": sum(application.service.live.values()),
            "held": application._held,
        }
        if line.strip() == "last":
            pool = model._scheduler.pool
            for sequence in list(pool.kept):
                pool.free(sequence)
            stats["pages_missing"] = model.debug.engine.kv_tokens - model.debug.engine.kv_free()
        print(json.dumps(stats), flush=True)
    os._exit(0)


async def exchange(*arguments, **options):
    """As `exchanged`; a request that is not answered is lost."""
    try:
        return await asyncio.wait_for(exchanged(*arguments, **options), LONGEST)
    except asyncio.TimeoutError:
        raise Lost(f"{arguments[1:]} was not answered in {LONGEST} s") from None


async def exchanged(port, path, data, *, leave=None, slow=0.0, limit=1 << 16):
    """The status and the body of a request; (0, what came) for a client that goes after `leave` seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        if leave is not None:
            await asyncio.sleep(leave)
            return 0, b""
        received = b""
        while part := await reader.read(200 if slow else 1 << 16):
            received += part
            if slow:
                await asyncio.sleep(slow)
    finally:
        writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = unchunked(body)
    return int(head.split()[1]), body


def unchunked(body):
    out = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        out += rest[:count]
        body = rest[count + 2 :]
        if not count:
            return out
    raise Lost("a stream that was cut")


def request(question, kind, stream):
    """The path and body of a question in one of the APIs."""
    messages = [{"role": "user", "content": question}]
    if kind == "anthropic":
        return "/v1/messages", {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    if kind == "ollama":
        options = {"temperature": 0, "num_predict": TOKENS}
        return "/api/chat", {"messages": messages, "options": options, "stream": stream}
    if kind == "responses":
        return "/v1/responses", {"input": question, "max_output_tokens": TOKENS, "temperature": 0, "stream": stream}
    body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    return "/v1/chat/completions", body


def text_of(kind, stream, body):
    """What was said."""
    if kind == "ollama":
        return "".join(json.loads(line)["message"]["content"] for line in body.splitlines())
    if not stream:
        answer = json.loads(body)
        if kind == "anthropic":
            return "".join(block.get("text", "") for block in answer["content"])
        if kind == "responses":
            return "".join(part["text"] for item in answer["output"] for part in item["content"])
        return answer["choices"][0]["message"]["content"]
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    if any("error" in event and event["error"] for event in events):
        raise Lost(f"an error in a stream: {events[-1]}")
    if kind == "anthropic":
        return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    if kind == "responses":
        return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


async def client(port, alone, chance, until, counts):
    bad = [
        b"{",
        b"[]",
        b'{"messages": 5}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": -1, "options": {"temperature": -1}}',
        b"\xff",
    ]
    while time.monotonic() < until:
        question = chance.choice(QUESTIONS)
        kind = chance.choice(("openai", "anthropic", "ollama", "responses"))
        stream = chance.random() < 0.6
        path, body = request(question, kind, stream)
        what = chance.random()
        if what < 0.1:
            status, _ = await exchange(port, path, chance.choice(bad))
            if status != 400:
                raise Lost(f"{path}: a bad body got {status}")
            counts["bad"] += 1
        elif what < 0.3:
            body |= {"max_tokens": 400, "max_output_tokens": 400}
            await exchange(port, path, json.dumps(body).encode(), leave=chance.random() * chance.choice((0.02, 0.5)))
            counts["gone"] += 1
        else:
            slow = chance.random() * 0.02 if what < 0.4 else 0.0
            status, answer = await exchange(port, path, json.dumps(body).encode(), slow=slow, limit=1 << 12)
            if status == 429:
                counts["busy"] += 1
                await asyncio.sleep(0.1)
                continue
            if status != 200:
                raise Lost(f"{path}: {status}: {answer[:300]!r}")
            said = text_of(kind, stream, answer)
            if said != alone[question]:
                raise Lost(f"{kind}, stream {stream}: {question!r} got {said!r}, alone {alone[question]!r}")
            counts["right"] += 1


async def soak(args):
    server = Server(args.model, args.parallel)
    alone = {}
    for question in QUESTIONS:
        _, answer = await exchange(server.port, *_encoded(request(question, "openai", False)))
        alone[question] = text_of("openai", False, answer)
    seed = args.seed if args.seed is not None else int(time.time())
    print(f"seed {seed}, {len(QUESTIONS)} questions", flush=True)
    counts = dict.fromkeys(("right", "busy", "gone", "bad"), 0)
    began, first, problems = time.monotonic(), None, []
    for minute in range(max(args.minutes, 2)):
        until = time.monotonic() + args.minute_seconds
        clients = [
            client(server.port, alone, random.Random(f"{seed} {minute} {i}"), until, counts)
            for i in range(args.clients)
        ]
        problems += [each for each in await asyncio.gather(*clients, return_exceptions=True) if each is not None]
        await asyncio.sleep(1)
        stats = server.stats()
        first = first or stats
        print(f"{time.monotonic() - began:6.0f} s", counts, stats, f"{len(problems)} problems", flush=True)
        if stats["running"] or stats["live"] or stats["held"]:
            problems.append(Lost(f"work for nobody: {stats}"))
        if problems:
            break
    last = server.stats(last=True)
    print("at the end", last)
    for name, slack in (("rss", RSS_SLACK), ("threads", 2), ("files", 4)):
        if last[name] > first[name] + slack:
            problems.append(Lost(f"{name}: {last[name]}, after the first minute {first[name]}"))
    if last["pages_missing"]:
        problems.append(Lost(f"{last['pages_missing']} tokens of the cache are in no sequence and not free"))
    for problem in problems[:10]:
        print(type(problem).__name__, problem)
    server.process.stdin.close()
    server.process.wait()
    return 1 if problems else 0


def _encoded(asked):
    path, body = asked
    return path, json.dumps(body).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a GGUF file; the built-in model")
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--minute-seconds", type=float, default=60.0, help="shorter minutes, to try the script")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.parallel)
    return asyncio.run(soak(args))


if __name__ == "__main__":
    sys.exit(main())
