"""What is left of a sidecar whose parent is killed: it should be nothing.

    python benchmarks/orphans.py model.gguf --count 1000
    python benchmarks/orphans.py model.gguf --count 100 --sidecar dist/glmlite-x86_64-unknown-linux-gnu

Each cycle starts a small program, which starts the sidecar (`python -m glmlite.serve`, or the program given) and talks
to it over stdio or HTTP. SIGKILL ends that program at a random moment: while the sidecar starts, loads or packs, reads
a prompt, answers, stops an answer, or waits in a write to a pipe that nobody reads. Then, within `--seconds`, no
process and no zombie may be left, and no file that was not there before in the folders of temporary files, of the cache
and of the model, but for a packed file that is whole. Exit status 1 and a line for each thing that is left. Linux only.
"""

import argparse
import collections
import ctypes
import http.client
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
# What the parent does, and for how many seconds at most it is left alive then.
PHASES = {"start": 0.7, "load": 0.7, "prompt": 0.5, "answer": 0.5, "stop": 0.1, "deaf": 0.5}
PROMPT = "Tell me of the sea, the wind and the ships. "
PR_SET_CHILD_SUBREAPER = 36


def say(phase):
    print(phase, flush=True)


class Stdio:
    """A sidecar that is talked to by lines."""

    option = "--stdio"

    def __init__(self, process, ready):
        self.process = process

    def tell(self, **line):
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, body):
        self.tell(id=1, path="/v1/chat/completions", body=body)
        while '"content":"' not in (line := self.process.stdout.readline().decode()):
            assert line, "the sidecar has ended"

    def stop(self):
        self.tell(id=1, cancel=True)

    def deaf(self):
        for number in range(2, 3000):
            self.tell(id=number, path="/v1/models")


class Http:
    """A sidecar that is talked to over the network."""

    option = "--sidecar"

    def __init__(self, process, ready):
        self.port = ready["port"]

    def ask(self, body):
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body))
        self.response = self.connection.getresponse()
        while b'"content":"' not in (line := self.response.readline()):
            assert line, "the answer has ended"

    def stop(self):
        self.connection.close()

    def deaf(self):
        self.ask(body(PROMPT, 100_000))


def body(text, tokens):
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "stream": True, "ignore_eos": True, "max_tokens": tokens}


def parent(kind, sentences, command):
    """The program that starts a sidecar, and never ends it. sentences: of a prompt."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    say("start")
    process = subprocess.Popen([*command, kind.option], **pipes)
    event = {}
    while event.get("type") != "ready":
        event = json.loads(process.stdout.readline())
        if event["type"] == "loading" and event["progress"] == 0:
            say("load")
    sidecar = kind(process, event)
    while True:
        say("prompt")
        sidecar.ask(body(PROMPT * sentences, 200))
        say("answer")
        time.sleep(0.2)
        say("stop")
        sidecar.stop()
        time.sleep(0.1)
        say("deaf")
        sidecar.deaf()
        time.sleep(PHASES["deaf"])


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} | {
        str(path.relative_to(folder)) + "/" for path in (folder / "tmp").iterdir() if path.is_dir()
    }


def children():
    """Processes below this one; those that have ended are taken leave of."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    return psutil.Process().children(recursive=True)


def cycle(command, folder, kind, sentences, phase, delay, seconds):
    """Seconds until all is gone after a kill so long after the beginning of a phase, and what was left."""
    before = files(folder)
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    arguments = [sys.executable, __file__, "--parent", kind, str(sentences), *command]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == phase:
            break
    else:
        raise RuntimeError(f"{kind}: it has ended before '{phase}'")
    time.sleep(delay)
    process.kill()
    began = time.monotonic()
    while (left := children()) and time.monotonic() - began < seconds:
        time.sleep(0.005)
    took = time.monotonic() - began
    process.stdout.close()
    process.returncode = -signal.SIGKILL  # `children` has taken leave of it
    found = [f"process {each.pid} ({each.status()})" for each in left]
    for each in left:
        each.kill()
    packed = {name for name in files(folder) if name.startswith("model/") and name.endswith(".gguf.packed")}
    return took, found + [f"file {name}" for name in sorted(files(folder) - before - packed)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="with a context of 4096 or more: its prompts are long")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sentences", type=int, default=30, help="of a prompt, 12 tokens each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sidecar", nargs="+", default=[sys.executable, "-m", "glmlite.serve"])
    arguments = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("orphans.py: finds what is left on Linux only")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    draw = random.Random(arguments.seed)
    taken, problems, done = [], 0, collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("tmp", "cache", "model"):
            (folder / name).mkdir()
        model = folder / "model" / "model.gguf"
        shutil.copyfile(arguments.model, model)
        for _ in range(arguments.count):
            kind, phase = draw.choice(["stdio", "http"]), draw.choice(list(PHASES))
            delay = draw.uniform(0, PHASES[phase])
            packed = draw.choice([[], ["--packed"]])
            if packed and draw.random() < 0.5:
                model.with_name("model.gguf.packed").unlink(missing_ok=True)
            command = [*arguments.sidecar, str(model), "--context", "1024", *packed]
            took, left = cycle(command, folder, kind, arguments.sentences, phase, delay, arguments.seconds)
            taken.append(took)
            done[f"{phase}{' packed' if packed else ''}"] += 1
            problems += bool(left)
            for what in left:
                print(f"{kind} {phase} +{delay:.3f} s {' '.join(packed)}: left {what}", flush=True)
    print(", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    print(
        f"{arguments.count} cycles, {problems} that left something; gone after {statistics.median(taken):.3f} s "
        f"(median), {max(taken):.3f} s (longest)"
    )
    sys.exit(problems > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--parent"]:
        parent({"stdio": Stdio, "http": Http}[sys.argv[2]], int(sys.argv[3]), sys.argv[4:])
    else:
        main()
