"""What a cluster has to show, of two nodes on this machine: by hand, or by `GLMLITE_RAY=1 pytest tests/test_ray.py`.

    python tests/ray_cluster.py [serve] [data]

Needs the extra `ray`. Prints what was shown, and ends with an AssertionError where something was not.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray import serve
from ray.cluster_utils import Cluster

import glmlite.ray

PORT = 8517
STORE = 200 * 1024 * 1024
PARALLEL = 4
CHATS = os.environ.get("GLMLITE_SMOLLM2", "smollm2")  # the built-in model reads each prompt whole: it has no beginnings


def show(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@contextmanager
def cluster(cpus):
    """Two nodes with so many CPUs each; the first is the head's."""
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        nodes.add_node(num_cpus=cpus, object_store_memory=STORE)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


# ---- requests

SCOPE = {"type": "http", "query_string": b"", "headers": [], "client": None}


def ask(path, body, *, read=None):
    """(status, headers, body) of an answer; read: called with the open response instead of reading it."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.headers, response.read() if read is None else read(response)
    finally:
        connection.close()


def chat(messages, **more):
    return ask("/v1/chat/completions", {"messages": messages, "max_tokens": 16, "temperature": 0, **more})


def said(text):
    return [{"role": "user", "content": text}]


def events(data):
    """The events of a stream, parsed; its end as the text that it is."""
    lines = [line[6:] for line in data.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def replicas():
    """Names of the replicas' actors."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(each["name"] for each in named if "#Replica#" in each["name"])


def slots(handle):
    """How many answers run, as each replica tells that a key leads to."""
    scope = {**SCOPE, "method": "GET", "path": "/slots"}
    found = []
    for _ in range(16):
        answer = handle.options(stream=True, session_id=uuid.uuid4().hex).respond.remote(scope, b"")
        body = b"".join(m["body"] for part in answer for m in part if m["type"] == "http.response.body")
        found.append(sum(bool(slot["is_processing"]) for slot in json.loads(body)))
    return found


# ---- what is shown


def shown_by_serve():
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "location": "HeadOnly"})
    serve.run(glmlite.ray.app(CHATS, replicas=2, cpus=1, parallel=PARALLEL, context=1024), route_prefix="/")
    handle = serve.get_deployment_handle("Replica", "default")
    assert len(replicas()) == 2
    show("serve: 2 replicas are there")
    streams()
    disconnect(handle)
    prefixes(handle)
    lost()
    exported()
    delete()
    scales()
    serve.shutdown()


def delete():
    """Ends the application. Ray's own wait for that has an end after a minute, which is too short on a busy machine."""
    serve.delete("default", _blocking=False)
    begun = time.monotonic()
    while "default" in serve.status().applications:
        assert time.monotonic() < begun + 600, "the application does not end"
        time.sleep(0.5)


def streams():
    question = said("Tell me of the sea.")
    status, _, whole = chat(question)
    assert status == 200, whole
    text = json.loads(whole)["choices"][0]["message"]["content"]
    times = []

    def read(response):
        found = b""
        while part := response.read1():
            times.append(time.monotonic())
            found += part
        return found

    status, headers, data = ask(
        "/v1/chat/completions",
        {"messages": question, "max_tokens": 16, "temperature": 0, "stream": True},
        read=read,
    )
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    parts = events(data)
    assert parts[-1] == "[DONE]"
    streamed = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts[:-1] if part["choices"])
    assert streamed == text, (streamed, text)
    assert len(times) > 2, "the stream came in one piece"
    show(f"serve: a stream of {len(parts)} events in {len(times)} reads has the text of the whole answer")
    for path, body in (
        ("/v1/messages", {"messages": question, "max_tokens": 4}),
        ("/api/chat", {"messages": question, "stream": False, "options": {"num_predict": 4}}),
        ("/v1/completions", {"prompt": "The sea", "max_tokens": 4}),
    ):
        status, _, whole = ask(path, body)
        assert status == 200, (path, whole)
    status, headers, whole = chat("nonsense")
    assert status == 400 and b"messages" in whole, whole
    show("serve: OpenAI's, Anthropic's and Ollama's paths answer; a wrong request is a 400")


def disconnect(handle):
    def read(response):
        response.read1()
        assert sum(slots(handle)) > 0, "nothing runs"

    body = {"messages": said("Count for ever."), "max_tokens": 900, "stream": True, "ignore_eos": True}
    ask("/v1/chat/completions", body, read=read)
    for _ in range(100):
        if not any(slots(handle)):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("an answer goes on after its client went")
    show("serve: the answer of a client that went is ended")


def prefixes(handle):
    """Twelve conversations of three rounds, with nothing in common: a round's prompt begins with the prompt before it.
    The same with keys at random shows what routing is worth."""
    shares = {name: cached_share(name, ask) for name, ask in (("own", chat), ("random", with_random_key(handle)))}
    show(
        f"serve: of the prompts that went before, cached_tokens of rounds 2 and 3 are {shares['own']:.0%}; "
        f"{shares['random']:.0%} with keys at random"
    )
    assert shares["own"] > 0.9 > shares["random"], shares


def cached_share(name, ask):
    cached, before = [], []

    def talk(number):
        messages = said(f"{number} {name} is my story. " + f"word{number} " * 60)
        read = 0
        for turn in range(3):
            status, _, whole = ask(messages)
            assert status == 200, whole
            answer = json.loads(whole)
            usage = answer["usage"]
            if turn:
                cached.append(min(usage["prompt_tokens_details"]["cached_tokens"], read))
                before.append(read)
            read = usage["prompt_tokens"]
            messages += [answer["choices"][0]["message"], *said("Go on.")]

    together(talk, range(12), at_once=2)
    return sum(cached) / sum(before)


def with_random_key(handle):
    def ask(messages):
        answer = handle.options(stream=True, session_id=uuid.uuid4().hex).respond.remote(
            {**SCOPE, "method": "POST", "path": "/v1/chat/completions"},
            json.dumps({"messages": messages, "max_tokens": 16, "temperature": 0}).encode(),
        )
        found = [message for part in answer for message in part]
        return found[0]["status"], None, b"".join(message["body"] for message in found[1:])

    return ask


def together(do, items, at_once):
    """Calls `do` with each item, so many at once. Raises what the first that failed raised."""
    rest, problems = iter(list(items)), []
    lock = threading.Lock()

    def work():
        while not problems:
            with lock:
                item = next(rest, None)
            if item is None:
                return
            try:
                do(item)
            except BaseException as error:
                problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def lost():
    """16 clients, half of them with streams; one replica is killed. Who fails is told, asks again, and is answered."""
    told, done = Counter(), Counter()
    lock = threading.Lock()
    killed = threading.Event()

    def client(number):
        for turn in range(3):
            stream = number % 2 == 0
            for _ in range(60):
                status, headers, data = chat(said(f"{number} {turn}"), max_tokens=64, stream=stream, ignore_eos=True)
                if status == 200 and stream:
                    last = events(data)[-1]
                    kind = "done" if last == "[DONE]" else "an error as the last event"
                    assert last == "[DONE]" or last["error"]["type"] == "unavailable_error", last
                elif status == 200:
                    kind = "done"
                else:
                    assert status in (429, 503) and headers["retry-after"], (status, data)
                    kind = f"{status} and Retry-After"
                with lock:
                    told[kind] += 1
                if kind == "done":
                    break
                assert killed.is_set(), kind
                time.sleep(int(headers.get("retry-after") or 1))
            else:
                raise AssertionError("never answered")
            with lock:
                done[number] += 1
                if sum(done.values()) == 12:
                    name = replicas()[0]
                    killed.set()
                    ray.kill(ray.get_actor(name, namespace="serve"))

    together(client, range(16), at_once=16)
    assert sum(done.values()) == 48
    failed = sum(count for kind, count in told.items() if kind != "done")
    show(f"serve: 16 clients, one replica killed: {dict(told)}; all 48 requests were answered in the end")
    assert 0 < failed <= PARALLEL + 2, "more failed than ran on the replica that was killed"
    for _ in range(300):
        if len(replicas()) == 2:
            break
        time.sleep(0.2)
    else:
        raise AssertionError("no new replica")
    show("serve: a new replica is there")


def exported():
    """Counters of the replicas among Ray's metrics, of all nodes."""
    for _ in range(60):
        text = ""
        for each in ray.nodes():
            with urllib.request.urlopen(
                f"http://{each['NodeManagerAddress']}:{each['MetricsExportPort']}/metrics"
            ) as r:
                text += r.read().decode()
        if found := [line for line in text.splitlines() if line.startswith("ray_glmlite_requests_total{")]:
            assert all("replica=" in line and "status=" in line for line in found), found
            show(f"serve: Ray exports ray_glmlite_requests_total and {len(set(GAUGE.findall(text))) - 1} others")
            return
        time.sleep(1)
    raise AssertionError("no metrics of ours")


GAUGE = re.compile(r"^(ray_glmlite_\w+)", re.M)


def scales():
    """From one replica to two, while there are more requests than one has places for."""
    serve.run(
        glmlite.ray.app(CHATS, replicas=(1, 2), cpus=1, parallel=PARALLEL, context=1024, fronts=2), route_prefix="/"
    )
    assert len(replicas()) == 1
    begun = time.monotonic()

    def client(number):
        while len(replicas()) < 2:
            assert time.monotonic() < begun + 600, "no second replica"
            status, _, data = chat(said(f"{number}"), max_tokens=64, ignore_eos=True)
            assert status == 200, data

    together(client, range(16), at_once=16)
    show(
        f"serve: 16 clients of one replica with {PARALLEL} places: a second one after {time.monotonic() - begun:.0f} s"
    )


# ---- rows

ROWS = 500
ASKED = {"max_tokens": 24, "temperature": 1.0, "seed": 7}


def shown_by_data(nodes, folder):
    table = pa.table({"id": range(ROWS), "text": [f"Say it in other words: number {i} is here." for i in range(ROWS)]})
    rows, alone = folder / "rows.parquet", folder / "alone.parquet"
    pq.write_table(table, rows)
    done = glmlite.batch("builtin", rows, alone, column="text", **ASKED)
    assert (done.rows, done.failed) == (ROWS, 0)
    show(f"data: one process: {done.progress}")
    command(nodes, rows, folder / "command.parquet", alone)
    ray_data(rows, folder / "parts", alone)
    killed(nodes, rows, folder / "cluster.parquet", alone)


def command(nodes, rows, out, alone):
    options = ["--column", "text", "--max-tokens", 24, "--temperature", 1, "--seed", 7, "--at-once", 16]
    cluster = ["--ray", nodes.address, "--actor-cpus", 1]
    line = [sys.executable, "-m", "glmlite", "batch", rows, out, *options, *cluster]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == alone.read_bytes()
    show("data: `glmlite batch --ray` wrote the file of one process, byte for byte, on four actors")


def ray_data(rows, out, alone):
    """Ray Data, from Parquet to Parquet; an actor is killed when the first rows are there."""
    stopped = threading.Event()

    def kill():
        while not stopped.wait(0.2):
            if pids := actors("MapWorker"):
                time.sleep(2)
                os.kill(pids[0], signal.SIGKILL)
                show(f"data: one of {len(pids)} actors of Ray Data is killed")
                return

    killer = threading.Thread(target=kill)
    killer.start()
    (
        ray.data.read_parquet(str(rows), override_num_blocks=10)
        .map_batches(
            glmlite.ray.Generate,
            fn_constructor_args=("builtin",),
            fn_constructor_kwargs={"column": "text", "number": "id", "loading": {"context": 1024}, **ASKED},
            batch_format="pyarrow",
            batch_size=50,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        .write_parquet(str(out))
    )
    stopped.set()
    killer.join()
    found = pq.read_table(out).sort_by("id").to_pylist()
    assert found == pq.read_table(alone).to_pylist()
    show(f"data: Ray Data wrote {len(found)} rows, equal to those of one process")


def killed(nodes, rows, out, alone):
    """`glmlite.batch` on a cluster: an actor is killed after a fifth of the rows, a node after a half."""
    told = []

    def progress(p):
        if len(told) == 0 and p.done > ROWS / 5:
            pids = actors("Worker")
            os.kill(pids[0], signal.SIGKILL)
            told.append(f"one of {len(pids)} actors after {p.done} rows")
        elif len(told) == 1 and p.done > ROWS / 2:
            nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)
            told.append(f"one of 2 nodes after {p.done}")

    cluster = glmlite.ray.Cluster("auto", cpus=2)
    asked = {"column": "text", "at_once": 8, "progress": progress, **ASKED}
    done = glmlite.batch("builtin", rows, out, cluster=cluster, **asked)
    assert len(told) == 2, told
    assert (done.rows, done.failed) == (ROWS, 0)
    assert out.read_bytes() == alone.read_bytes()
    show(f"data: killed were {' and '.join(told)}: {ROWS} rows, and the file is that of one process, byte for byte")


def actors(kind):
    """Processes of the actors of a class."""
    found = subprocess.run(["pgrep", "-f", rf"^ray::{kind}\b"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def main():
    wanted = sys.argv[1:] or ["serve", "data"]
    with cluster(cpus=2) as nodes, tempfile.TemporaryDirectory() as folder:
        if "serve" in wanted:
            shown_by_serve()
        if "data" in wanted:
            shown_by_data(nodes, Path(folder))


if __name__ == "__main__":
    main()
