"""Load on servers with OpenAI's Completions: tokens a second in all, and the time to the first token.

    python benchmarks/serve.py ours=http://127.0.0.1:8080 llama-server=http://127.0.0.1:8081
    python benchmarks/serve.py ours=http://127.0.0.1:8080 --clients 8 --prompt 512 --answer 128 --json out.json
    python benchmarks/serve.py --plot docs/serve.png out.json

The same client for each, in turns: so many connections that ask one after another, streamed, greedy, without an end
before `--answer` tokens. With --shared on, three quarters of every prompt are the same; with off, they differ from the
first word on, so that no cache helps. A prompt is as many words as --prompt, which are some more tokens; the server's
count is what is reported. Every answer is checked to be of its length; a server whose answer to the same question is
another one the second time is named.

The servers decide how many requests they run at once: give each as many places as the most clients, and room for them
(`glmlite serve --parallel 16`, `llama-server -np 16 -c TOTAL`). Client and server share the machine; --json keeps all
that was measured. Only Python's own library is used, but for --plot, which needs matplotlib.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

WORDS = "time way year work day life world hand part place case week company system program question fact water house"


class Failure(Exception):
    """A server did not answer as it should."""


async def stream(url, body):
    """The data of the events of one request, as (seconds since it was sent, data)."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port or 80)
    try:
        data = json.dumps(body).encode()
        head = (
            f"POST {address.path.rstrip('/')}/v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + data)
        status = int((await reader.readline()).split()[1])
        headers = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip().lower()
        if status != 200:
            raise Failure(f"{url}: {status}: {(await reader.read(2000)).decode('utf-8', 'replace')}")
        chunked = headers.get("transfer-encoding") == "chunked"
        rest = b""
        while part := await _part(reader, chunked):
            now = time.perf_counter() - began
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    yield now, json.loads(line[6:])
    finally:
        writer.close()


async def _part(reader, chunked):
    """The next bytes of a body; empty at its end."""
    if not chunked:
        return await reader.read(1 << 16)
    size = int(await reader.readline() or b"0", 16)
    data = await reader.readexactly(size)
    await reader.readline()
    return data


async def one(url, prompt, answer, model):
    """One request, as a dict of what was measured."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": answer,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, first, last, usage = "", None, 0.0, None
    async for now, event in stream(url, body):
        if "error" in event:
            raise Failure(f"{url}: {event['error']}")
        written = "".join(choice.get("text") or "" for choice in event["choices"])
        if written:
            first = now if first is None else first
            last = now
        text += written
        usage = event.get("usage") or usage
    if first is None or usage is None:
        raise Failure(f"{url}: an answer without text or usage")
    if usage["completion_tokens"] != answer:
        raise Failure(f"{url}: {usage['completion_tokens']} tokens, expected {answer}")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return {"first": first, "last": last, "text": text, "prompt": usage["prompt_tokens"], "cached": cached}


def prompts(count, words, shared, seed):
    """Texts of so many words. shared: three quarters of each are the same."""
    chance = random.Random(seed)
    vocabulary = WORDS.split()

    def some(n):
        return [chance.choice(vocabulary) for _ in range(n)]

    same = some(words * 3 // 4 if shared else 0)
    return [" ".join([*same, *some(words - len(same))]) for _ in range(count)]


async def load(url, args, clients, shared, seed):
    """So many clients at once; what each of their requests took, and how long it took in all."""
    texts = iter(prompts(clients * args.requests, args.prompt, shared, seed))
    done = []

    async def client():
        for _ in range(args.requests):
            text = next(texts)
            done.append({"asked": text, **await one(url, text, args.answer, args.model)})

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return done, time.perf_counter() - began


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))]


def summary(done, seconds, args):
    """What is reported of one load."""
    first = [each["first"] for each in done]
    between = [(each["last"] - each["first"]) / max(args.answer - 1, 1) for each in done]
    return {
        "tokens_per_second": len(done) * args.answer / seconds,
        "requests_per_second": len(done) / seconds,
        "first_p50": percentile(first, 50),
        "first_p99": percentile(first, 99),
        "between_p50": percentile(between, 50),
        "between_p99": percentile(between, 99),
        "prompt_tokens": statistics.median(each["prompt"] for each in done),
    }


async def measure(servers, args):
    rows = []
    for name, url in servers:  # both are warm, and say the same twice
        text = prompts(1, args.prompt, False, 99)[0]
        once, again = [(await one(url, text, args.answer, args.model))["text"] for _ in range(2)]
        if once != again:
            print(f"{name}: a greedy answer is another one when it is asked for again")
    for shared in args.shared:
        for clients in args.clients:
            for repeat in range(args.repeat):
                for name, url in servers:  # taking turns
                    seed = f"{shared} {clients} {repeat}"
                    done, seconds = await load(url, args, clients, shared, seed)
                    row = {"server": name, "shared": shared, "clients": clients, "repeat": repeat}
                    rows.append(row | summary(done, seconds, args))
                    print(line(rows[-1]), flush=True)
    return rows


def line(row):
    return (
        f"{row['server']:14} shared {'on ' if row['shared'] else 'off'} {row['clients']:3} clients"
        f"{row['tokens_per_second']:9.1f} tokens/s   first p50 {row['first_p50']:7.3f} s  p99 {row['first_p99']:7.3f} s"
        f"   between p50 {1000 * row['between_p50']:7.1f} ms"
    )


def medians(rows):
    """One row for each load of each server."""
    keys = dict.fromkeys((row["shared"], row["clients"], row["server"]) for row in rows)
    out = []
    for shared, clients, server in keys:
        same = [r for r in rows if (r["shared"], r["clients"], r["server"]) == (shared, clients, server)]
        row = {"server": server, "shared": shared, "clients": clients}
        values = {name: statistics.median(r[name] for r in same) for name in same[0] if name not in (*row, "repeat")}
        out.append(row | values)
    return out


def plot(path, rows):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    shown = (("tokens_per_second", "tokens/s in all"), ("first_p99", "first token, p99, s"))
    for axis, (value, label) in zip(axes, shown):
        for server in dict.fromkeys(row["server"] for row in rows):
            for shared in dict.fromkeys(row["shared"] for row in rows):
                own = [row for row in rows if (row["server"], row["shared"]) == (server, shared)]
                name = f"{server}{', shared beginning' if shared else ''}"
                points = [[row[key] for row in own] for key in ("clients", value)]
                axis.plot(*points, marker="o", linestyle="--" if shared else "-", label=name)
        axis.set_xlabel("clients")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", nargs="+", help="NAME=URL, or with --plot files that --json wrote")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=128, help="words of a prompt")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--shared", choices=["on", "off", "both"], default="both")
    parser.add_argument("--model", default="default")
    parser.add_argument("--json", help="write all that was measured")
    parser.add_argument("--plot", help="draw what --json wrote")
    args = parser.parse_args()
    if args.plot:
        rows = [row for path in args.servers for row in json.loads(Path(path).read_text(encoding="utf-8"))["rows"]]
        plot(args.plot, medians(rows))
        return
    args.shared = {"on": [True], "off": [False], "both": [False, True]}[args.shared]
    rows = asyncio.run(measure([tuple(server.split("=", 1)) for server in args.servers], args))
    print("\nmedians")
    for row in medians(rows):
        print(line(row))
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
