"""Bodies as agents and editors send them (tests/data/requests, in our own words after their bug reports), and damaged
ones: all are answered, or refused as the client's fault."""

import asyncio
import base64
import copy
import json
import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pictures
import pytest
from serving import Call, Scripted, Seeing, Think, ask, asked

import glmlite
from glmlite import builtin
from glmlite.serve import Pool, app

FILES = sorted((Path(__file__).parent / "data" / "requests").glob("*.json"))
if not find_spec("PIL"):  # of glmlite[vision]
    FILES = [path for path in FILES if not path.stem.startswith("image-")]
RECORDED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
ANSWER = [Think("hm"), "Hello", Call("read_file", '{"path": "a.py"}')]


class Answering(Seeing):
    """Answers everything."""

    context = 1 << 20
    path = builtin.path()

    def _start(self, said, *rest):
        self.script = {said if isinstance(said, str) else tuple(said): ANSWER}
        return super()._start(said, *rest)


@pytest.fixture(scope="module")
def real():
    with glmlite.load() as model:
        yield model


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_requests_are_answered(name, real):
    recorded = RECORDED[name]
    headers = list(recorded["headers"].items())
    if recorded["path"].startswith("/api/show"):
        assert ask(app(real), recorded["path"], recorded["body"], headers=headers).status == 200
        return
    answer = ask(app(Answering()), recorded["path"], recorded["body"], headers=headers)
    assert answer.status == 200, answer
    assert "Hello" in answer.text or "input_tokens" in answer.text
    assert '"error":{' not in answer.text


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema", "schema": {"type": "?"}}},
            "response_format",
        ),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "schema": {"type": "?"}}}}, "text.format"),
        (
            "/v1/messages",
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "?"}}}},
            "output_config",
        ),
        ("/api/chat", {"format": {"type": "?"}}, "format"),
        ("/v1/chat/completions", {"stop_token_ids": [1 << 30]}, "stop_token_ids"),
    ],
)
def test_what_only_the_model_finds_wrong_has_the_name_of_the_field(path, fields, name, real):
    body = {"messages": [{"role": "user", "content": "hi"}], "input": "hi", "max_tokens": 1, **fields}
    answer = ask(app(real), path, body)
    error = answer.json["error"]
    assert answer.status == 400
    assert (error if isinstance(error, str) else error["message"]).startswith(name)
    assert "param" not in error or error["param"] == name


@pytest.mark.parametrize("name", [name for name in RECORDED if "schema" not in name and "agents" not in name])
def test_recorded_requests_to_a_real_model(name, real):
    """The built-in one, whose format has no tools, and whose prompts of ids have an end: a refusal says so."""
    recorded = RECORDED[name]
    body = {**recorded["body"], "max_tokens": 4, "max_output_tokens": 4, "max_completion_tokens": None}
    answer = ask(app(real), recorded["path"], body, headers=list(recorded["headers"].items()))
    assert answer.status in (200, 400)
    why = ("tool", "context size", "too long", "gMASK", "sees no images")
    assert answer.status == 200 or any(each in answer.text for each in why)


def test_a_billing_header_changes_no_prompt(real):
    """What Claude Code puts first is another text in each request: no beginning would ever be kept."""
    recorded = RECORDED["claude-code-first"]
    counts = []
    for cch in ("aaaaa", "b"):
        body = copy.deepcopy(recorded["body"])
        body["system"][0]["text"] = f"x-anthropic-billing-header: cch={cch};"
        model = Scripted()
        ask(app(model), recorded["path"], body)
        counts.append(model.asked[0]["messages"])
    assert counts[0] == counts[1] and "billing" not in str(counts)


# ---- damage

JUNK = [
    None,
    True,
    0,
    -1,
    1.5,
    1e300,
    2**70,
    "",
    "x",
    "\x00\ud7ff",
    [],
    {},
    [[]],
    [None],
    {"type": "x"},
    {"a": {"b": []}},
]


NO_IMAGES = ["?" * 99, "A", "A=A=", "aGk=\n", "data:", "http://example.org/a.png", "file:///etc/passwd"]


@cache
def image_files():
    """Files that are no images, and odd ones."""
    return (
        [b""]
        if not find_spec("PIL")
        else [*(data for data, _ in pictures.hostile().values()), *pictures.odd().values()]
    )


def junk_image(chance):
    """What is no base64, or base64 of a file, which may be damaged."""
    if chance.random() < 0.3:
        return chance.choice(NO_IMAGES)
    data = bytearray(chance.choice(image_files()))
    for _ in range(chance.choice((0, 0, 1, 4)) if data else 0):
        data[chance.randrange(len(data))] = chance.choice((0, 1, 127, 255, chance.randrange(256)))
    return base64.b64encode(data).decode()


def worse_image(text, chance):
    """A string that may be an image's, changed within or put in another's place."""
    head, _, data = text.rpartition(",")
    if chance.random() < 0.5 or not data:
        return (head + "," if head and chance.random() < 0.8 else "") + junk_image(chance)
    at = chance.randrange(len(data))
    return text[: len(text) - len(data)] + data[:at] + chance.choice(("", "A", "/", "=", "\u597d")) + data[at + 1 :]


def damaged(body, chance):
    """A copy with a few things that do not belong there."""
    body = copy.deepcopy(body)
    for _ in range(chance.randint(1, 4)):
        at, steps = body, chance.randint(1, 9)
        for _ in range(steps):
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.7:
                at = at[key]
                continue
            kind = chance.random()
            if isinstance(at[key], str) and len(at[key]) > 60 and chance.random() < 0.8:
                at[key] = worse_image(at[key], chance)
            elif kind < 0.6:
                at[key] = copy.deepcopy(chance.choice(JUNK))
            elif kind < 0.8:
                del at[key]
            elif isinstance(at, dict):
                at[chance.choice(("content", "role", "type", "name", "text"))] = copy.deepcopy(chance.choice(JUNK))
            break
    return body


async def fuzz(seed, count=None, deadline=None, clock=None):
    """The worst that damaged bodies bring about: (requests, what failed)."""
    chance = random.Random(seed)
    application = app(Pool.of(Answering()))
    names = list(RECORDED)
    done, failed = 0, []
    while (count is None or done < count) and (deadline is None or clock() < deadline):
        recorded = RECORDED[chance.choice(names)]
        body = damaged(recorded["body"], chance)
        data = json.dumps(body).encode()
        if chance.random() < 0.1:
            at = chance.randrange(len(data))
            data = data[:at] + bytes(chance.randrange(256) for _ in range(3)) + data[at + chance.randrange(4) :]
        answer = await asyncio.wait_for(asked(application, recorded["path"], data), 20)
        done += 1
        if answer.status not in (200, 400, 404, 413) or b"the server failed" in b"".join(answer.parts):
            failed.append((recorded["path"], data, answer))
    return done, failed


def test_damaged_requests_are_the_clients_fault():
    done, failed = asyncio.run(fuzz(1, count=400))
    assert done == 400
    assert not failed, failed[0]
