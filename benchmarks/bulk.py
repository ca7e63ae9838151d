"""Rows a second through one model: `glmlite batch`, a loop over `Model.chat`, and llama-server fed by some clients.

    python benchmarks/bulk.py model.gguf
    python benchmarks/bulk.py model.gguf --llama-server ~/llama.cpp/build/bin/llama-server --json out.json
    python benchmarks/bulk.py model.gguf --kills 30

Every row is a question of some 20 tokens after --shared tokens that all rows have in common, and gets --answer tokens,
greedy, without an end before. The loop and the server may be given fewer rows (--loop-rows, --server-rows): their rate
does not depend on how many there are. Loading is not counted. All have the same threads; the answers of the first two
are checked to be the same.

--kills kills a run of `glmlite batch` with -9 at so many random moments, resumes it each time, and compares what comes
out, byte by byte, with a run that nobody disturbed. Exit status 1 where they differ.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import serve

import glmlite
from glmlite.bulk import AT_ONCE
from glmlite.bulk.work import journal_path, load_for

ROOT = Path(__file__).resolve().parents[1]


def rows_of(model, count, shared):
    """Prompts that have `shared` tokens of the model's in common, and then differ."""
    chance = random.Random(1)
    words = serve.WORDS.split()
    same = ""
    while len(model.tokenize(same)) < shared:
        same += chance.choice(words) + " "
    return [
        f"{same}\n\nText {i}: {' '.join(chance.choice(words) for _ in range(12))}. What is it about?"
        for i in range(count)
    ]


def asked_of(args):
    return {"max_tokens": args.answer, "temperature": 0.0, "ignore_eos": True}


def of_batch(args, prompts, folder):
    """(rows a second, answers, what was read and written)."""
    source = Path(folder) / "rows.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    with load_for(args.model, args.at_once, context=args.context, threads=args.threads) as model:
        summary = glmlite.batch(model, source, Path(folder) / "out.jsonl", force=True, **asked_of(args))
    if summary.failed:
        sys.exit(f"batch: {summary.error}")
    answers = [json.loads(line)["answer"] for line in (Path(folder) / "out.jsonl").open(encoding="utf-8")]
    return summary.progress.rows_per_second, answers, str(summary)


def of_loop(args, prompts):
    with glmlite.load(args.model, context=args.context, threads=args.threads) as model:
        begin = time.perf_counter()
        chats = [model.chat([{"role": "user", "content": prompt}], **asked_of(args)) for prompt in prompts]
        return len(prompts) / (time.perf_counter() - begin), [chat.text for chat in chats]


@contextmanager
def llama_server(args):
    """Its URL, while it runs."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [args.llama_server, "-m", str(args.model), "--port", str(port), "--host", "127.0.0.1"]
    command += ["-np", str(args.clients), "-c", str(args.clients * args.context), "-t", str(args.threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"{args.llama_server}: ended with {process.returncode}")
            try:
                if urllib.request.urlopen(f"{url}/health").status == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def of_server(args, prompts):
    """(rows a second, tokens of a prompt)."""
    model = glmlite.load(args.model, context=args.context)
    texts = [model.detokenize(model.chat_ids([{"role": "user", "content": prompt}])) for prompt in prompts]
    model.close()

    async def load(url):
        rest = iter(texts)

        async def client():
            return [await serve.one(url, text, args.answer, "default") for text in rest]

        begin = time.perf_counter()
        done = await asyncio.gather(*(client() for _ in range(args.clients)))
        return len(texts) / (time.perf_counter() - begin), done[0][0]["prompt"]

    with llama_server(args) as url:
        return asyncio.run(load(url))


def killed(args, prompts, folder):
    """Whether a run that was killed args.kills times comes to the same."""
    folder = Path(folder)
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")

    def start(out):
        command = [sys.executable, "-m", "glmlite", "batch", source, folder / out, "-m", args.model]
        command += ["-n", str(args.answer), "--seed", "1", "--at-once", str(args.at_once), "-c", str(args.context)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen([*map(str, command)], env=env)

    def finished():
        path = journal_path(folder / "killed.jsonl")
        return path.read_bytes().count(b"\n") - 1 if path.exists() else 0

    def same():
        return (folder / "killed.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()

    if start("whole.jsonl").wait():
        sys.exit("the run that nobody disturbs failed")
    chance = random.Random(args.kills)
    kills = 0
    while kills < args.kills:
        before = finished()
        process = start("killed.jsonl")
        goal = before + chance.random() * (len(prompts) - before) / (args.kills - kills)
        while finished() < goal and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        process.kill()
        ended = process.wait() != -signal.SIGKILL
        if not ended:
            kills += 1
            print(f"kill {kills}: {finished()} of {len(prompts)} rows are kept", flush=True)
        if (folder / "killed.jsonl").exists() and kills < args.kills:  # it has ended: once more
            if not same():
                break
            (folder / "killed.jsonl").unlink()
        elif ended:
            break  # it failed
    code = start("killed.jsonl").wait() if not (folder / "killed.jsonl").exists() else 0
    good = kills == args.kills and not code and same()
    print(f"killed {kills} times: {'the same, byte for byte' if good else 'NOT THE SAME'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--shared", type=int, default=500, help="tokens that all rows begin with")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, help="default: as glmlite chooses")
    parser.add_argument("--loop-rows", type=int, help="rows for the loop [default: all]")
    parser.add_argument("--server-rows", type=int, help="rows for the server [default: all]")
    parser.add_argument("--llama-server", help="the program")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, help="kill a run so often, and measure nothing")
    parser.add_argument("--json", type=Path, help="write what was measured")
    args = parser.parse_args()
    with glmlite.load(args.model, context=args.context) as model:
        prompts = rows_of(model, args.rows, args.shared)
        args.threads = args.threads or model.threads
    with tempfile.TemporaryDirectory() as folder:
        if args.kills:
            sys.exit(not killed(args, prompts, folder))
        rate, answers, said = of_batch(args, prompts, folder)
        print(f"batch         {rate:8.2f} rows/s   {said.partition(': ')[2]}", flush=True)
        found = {"batch": rate}
        some = prompts[: args.loop_rows]
        rate, alone = of_loop(args, some)
        found["loop"] = rate
        print(f"loop          {rate:8.2f} rows/s   batch is {found['batch'] / rate:.2f} x as fast", flush=True)
        if alone != answers[: len(alone)]:
            sys.exit("the answers of the loop are others")
        if args.llama_server:
            rate, tokens = of_server(args, prompts[: args.server_rows])
            found["llama-server"] = rate
            more = f"batch is {found['batch'] / rate:.2f} x as fast; {tokens} tokens in its first prompt"
            print(f"llama-server  {rate:8.2f} rows/s   {more}", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "rows/s": found}, indent=1)
        )


if __name__ == "__main__":
    main()
