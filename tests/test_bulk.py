"""Many rows through one model: every form of input and output, what is wrong with single rows and with whole files, and
runs that are ended at any moment. GLMLITE_KILLS=30 kills a run as often (default: 3)."""

import csv
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
import tiny
from test_constrain import TOOLS, thinker  # noqa: F401 (thinker: a fixture)

import glmlite
from glmlite.bulk import rows as reading
from glmlite.bulk.asking import FIELDS, Prompt, PromptOptions, Question, asked_of, seed_of
from glmlite.bulk.running import WINDOW, answers
from glmlite.bulk.work import journal_path
from glmlite.cli import main
from glmlite.journal import Journal, Other
from glmlite.parameters import Options, Parameters

WAIT = 120  # seconds for what takes a few: a loaded machine is slow
KILLS = int(os.environ.get("GLMLITE_KILLS", "3"))
SMALL = {"max_tokens": 8, "seed": 5}


@pytest.fixture(scope="module")
def model():
    with glmlite.load(context=512, parallel=8, kv_tokens=4096) as model:
        yield model


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(path, rows):
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def prompts(count, shared="Answer in one word, please. "):
    return [{"prompt": f"{shared}{i} and {i * 7 % 11}?", "id": i} for i in range(count)]


def errors(results):
    return {result.number: result.error for result in results if result.error is not None}


# ---- answers


def test_each_row_is_answered_as_alone(model):
    rows = prompts(20)
    found = list(glmlite.batch(model, rows, **SMALL))
    assert [result.number for result in found] == list(range(20))
    for i, (row, result) in enumerate(zip(rows, found)):
        alone = model.chat([{"role": "user", "content": row["prompt"]}], max_tokens=8, seed=seed_of(5, i))
        assert result.answer == result.values["answer"] == alone.text
        assert result.values == row | {
            "answer": alone.text,
            "reasoning": alone.reasoning,
            "tool_calls": None,
            "finish_reason": alone.finish_reason,
            "prompt_tokens": alone.stats.prompt_tokens,
            "completion_tokens": len(alone.tokens),
            "error": None,
        }


def test_answers_depend_on_neither_neighbours_nor_order(model):
    rows = prompts(24)
    once = {r.number: r.values for r in glmlite.batch(model, rows, **SMALL)}
    few = {r.number: r.values for r in glmlite.batch(model, rows, at_once=1, **SMALL)}
    loose = {r.number: r.values for r in glmlite.batch(model, rows, ordered=False, **SMALL)}
    others = [{**row, "prompt": "x" * i} if i % 2 else row for i, row in enumerate(rows)]
    beside = {r.number: r.values for r in glmlite.batch(model, others, **SMALL)}
    assert once == few == loose
    assert all(once[i] == beside[i] for i in range(0, 24, 2))
    assert {r.answer for r in glmlite.batch(model, ["hello"] * 6, max_tokens=8)} != {once[0]["answer"]}


def test_what_prompts_have_in_common_is_read_once(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", tiny.model("chatglm", layers=1, context=512))
    texts = [letter * 200 + f" {i}" for i in range(6) for letter in "abcdefgh"]  # mixed up
    with glmlite.load(path, parallel=4, kv_tokens=2048) as model:
        found = list(glmlite.batch(model, texts, **SMALL))
        read = model.status().prompt_tokens - model.status().reused_tokens
        lengths = [result.values["prompt_tokens"] for result in found]
        assert model.status().reused_tokens > 0.7 * sum(lengths), read
        for i in (0, 13, 47):
            alone = model.chat([{"role": "user", "content": texts[i]}], max_tokens=8, seed=seed_of(5, i))
            assert found[i].answer == alone.text


def test_rows_have_seeds_of_their_own(model):
    assert len({r.answer for r in glmlite.batch(model, ["hello"] * 12, temperature=1.5, max_tokens=8)}) > 3
    assert seed_of(0, 0) == 14680368682093457738 and seed_of(5, 3) == 6392240615234010488  # answers hang on them
    assert len({seed_of(run, row) for run in range(30) for row in range(30)}) == 900


def test_a_column_a_template_and_what_stands_before(model):
    rows = [{"q": "1 + 1", "my text": "?"}, {"q": "Hi", "my text": "!"}]
    asked = ["1 + 1?", "Hi!"]
    want = [
        model.chat(
            [{"role": "system", "content": "Short."}, {"role": "user", "content": text}], max_tokens=5, seed=s
        ).text
        for text, s in zip(asked, (seed_of(0, 0), seed_of(0, 1)))
    ]
    made = glmlite.batch(model, rows, template='{{ q }}{{ row["my text"] }}', system="Short.", max_tokens=5)
    assert [result.answer for result in made] == want
    whole = [{"text": text} for text in asked]
    assert [r.answer for r in glmlite.batch(model, whole, column="text", system="Short.", max_tokens=5)] == want
    messages = [[{"role": "system", "content": "Short."}, {"role": "user", "content": text}] for text in asked]
    assert [r.answer for r in glmlite.batch(model, [{"messages": m} for m in messages], max_tokens=5)] == want
    raw = glmlite.batch(model, asked, raw=True, max_tokens=5)
    assert [r.answer for r in raw] == [
        model.generate(t, max_tokens=5, seed=seed_of(0, i)).text for i, t in enumerate(asked)
    ]


def test_answers_follow_a_schema(model):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    for result in glmlite.batch(model, prompts(5), schema=schema, max_tokens=40):
        assert json.loads(result.answer)["n"] in (1, 2)
    with pytest.raises(ValueError, match="uniqueItems"):
        glmlite.batch(model, prompts(2), schema={"type": "array", "uniqueItems": True})


def test_a_request_s_own_schema_stands_before_the_grammar_of_the_run(model):
    pytest.importorskip("llguidance")
    rows = [request(0, response_format={"type": "json_object"}), request(1)]
    own, run = (result.answer for result in glmlite.batch(model, rows, grammar='start: "yes"'))
    assert own.startswith("{") and run == "yes"


def test_calls_of_tools_are_the_same_the_next_time(thinker):  # noqa: F811
    pytest.importorskip("llguidance")
    asked = {"tools": TOOLS, "tool_choice": "required", "thinking": False, "max_tokens": 150}
    found = [[r.values for r in glmlite.batch(thinker, prompts(3), **asked)] for _ in range(2)]
    assert found[0] == found[1]
    assert [row["error"] for row in found[0]] == [None] * 3 and all(row["tool_calls"] for row in found[0])


# ---- OpenAI's form


def request(i, url="/v1/chat/completions", **body):
    body = {"model": "any", "max_tokens": 6, **body}
    if "prompt" not in body:
        body.setdefault("messages", [{"role": "user", "content": f"number {i}"}])
    return {"custom_id": f"r{i}", "method": "POST", "url": url, "body": body}


def test_requests_of_openais_batches(model):
    rows = [
        request(0),
        request(1, seed=3, n=2),
        request(2, "/v1/completions", prompt="Once", logprobs=1),
        request(4, "/v1/completions", prompt=["Once"], echo=True),
        request(3, logprobs=True, top_logprobs=2),
    ]
    summary = glmlite.batch(model, jsonl("in.jsonl", rows), "out.jsonl")
    assert (summary.rows, summary.failed, summary.error) == (5, 0, None)
    first, two, text, echoed, told = lines("out.jsonl")
    assert [row["custom_id"] for row in lines("out.jsonl")] == ["r0", "r1", "r2", "r4", "r3"]
    assert set(first) == {"id", "custom_id", "response", "error"} and first["error"] is None
    assert first["response"]["status_code"] == 200
    body = first["response"]["body"]
    alone = model.chat(rows[0]["body"]["messages"], max_tokens=6, seed=seed_of(0, 0))
    assert body["choices"][0]["message"] == {"role": "assistant", "content": alone.text, "refusal": None}
    assert body["object"] == "chat.completion" and body["choices"][0]["finish_reason"] == alone.finish_reason
    prompt, written = alone.stats.prompt_tokens, len(alone.tokens)
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    texts = [choice["message"]["content"] for choice in two["response"]["body"]["choices"]]
    assert texts == [model.chat(rows[1]["body"]["messages"], max_tokens=6, seed=s).text for s in (3, 4)]
    choice = text["response"]["body"]["choices"][0]
    assert len(choice["logprobs"]["tokens"]) > 0
    assert echoed["response"]["body"]["choices"][0]["text"].startswith("Once")
    assert all(len(each["top_logprobs"]) == 2 for each in told["response"]["body"]["choices"][0]["logprobs"]["content"])
    with pytest.raises(ValueError, match=r"out\.csv: answers to requests in OpenAI's form are JSON lines"):
        glmlite.batch(model, "in.jsonl", "out.csv")


def test_requests_that_fail_do_so_alone(model):
    rows = [
        request(0),
        request(1, max_tokens=0),
        request(2, url="/v1/embeddings"),
        request(3, messages=[{"role": "user", "content": "long " * 2000}]),
        {"custom_id": "r4", "body": 5},
        request(5, response_format={"type": "json_schema", "json_schema": {"schema": {"type": 7}}}),
        request(6, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        request(7),
        request(8, url=["/v1/chat/completions"]),
    ]
    summary = glmlite.batch(model, jsonl("in.jsonl", rows), "out.jsonl")
    found = lines("out.jsonl")
    assert [row["custom_id"] for row in found] == [f"r{i}" for i in range(9)]
    assert [i for i, row in enumerate(found) if row["error"] is None] == [0, 7]
    assert summary.failed == 7 and summary.error.startswith("line 2: max_tokens is 0")
    for number, word in (
        (1, "max_tokens"),
        (2, "/v1/embeddings"),
        (3, "too long"),
        (4, "body"),
        (5, "schema"),
        (6, "web address"),
        (8, "url is ["),
    ):
        assert found[number]["error"]["message"].startswith(f"line {number + 1}: ")
        assert word in found[number]["error"]["message"]
        assert found[number]["response"]["status_code"] == 400
        assert found[number]["response"]["body"]["error"]["message"] in found[number]["error"]["message"]
    assert found[3]["error"]["code"] == "context_length_exceeded"


def test_lines_among_requests_that_are_none(model):
    Path("in.jsonl").write_bytes(json.dumps(request(0)).encode() + b'\n{"custom_id": "r1", "body": \n\xff\n')
    found = glmlite.batch(model, "in.jsonl", "out.jsonl")
    assert found.failed == 2 and found.error.startswith("line 2: is no JSON")
    for row, text in zip(lines("out.jsonl")[1:], ("line 2: is no JSON", "line 3: byte 0 is not UTF-8")):
        assert row["response"] is None and row["error"]["code"] == "invalid_row"
        assert row["error"]["message"].startswith(text)


# ---- files


def test_csv_in_and_out(model):
    Path("in.csv").write_text('id,text\n1,"two\nlines"\n2,"say ""hi"""\n\n3,三\n', encoding="utf-8-sig")
    summary = glmlite.batch(model, "in.csv", "out.csv", column="text", **SMALL)
    assert summary.rows == 3 and summary.failed == 0
    with open("out.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["id", "text", *FIELDS]
    assert [(row["id"], row["text"]) for row in found] == [("1", "two\nlines"), ("2", 'say "hi"'), ("3", "三")]
    want = [r.answer for r in glmlite.batch(model, [row["text"] for row in found], **SMALL)]
    assert [row["answer"] for row in found] == want and all(row["error"] == "" for row in found)


def test_a_field_of_csv_may_be_longer_than_pythons_reader_has_it(model):
    long = "x" * 200_000  # csv's own limit is 131,072
    Path("in.csv").write_text(f"id,prompt\n{long},hi\n", encoding="utf-8")
    (found,) = glmlite.batch(model, "in.csv", **SMALL)
    assert found.error is None and found.values["id"] == long


def test_parquet_keeps_the_types_of_its_columns(model):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    count = 2100  # more than two batches
    table = pa.table(
        {
            "at": pa.array(range(count), pa.timestamp("ns")),
            "prompt": [f"{i}" for i in range(count)],
            "list": pa.array([[i, None] for i in range(count)], pa.list_(pa.int16())),
            "code": pa.array(["ab"[i % 2] for i in range(count)]).dictionary_encode(),
        }
    )
    pq.write_table(table, "in.parquet", row_group_size=500)
    summary = glmlite.batch(model, "in.parquet", "out.parquet", max_tokens=1, raw=True)
    assert summary.rows == count
    found = pq.read_table("out.parquet")
    assert found.select(table.column_names).equals(table)
    assert found.column_names == [*table.column_names, *FIELDS]
    assert found.schema.field("prompt_tokens").type == pa.int64() and found["error"].null_count == count
    numbers = random.Random(1).sample(range(count), 5)
    for i in numbers:
        assert found["answer"][i].as_py() == model.generate(f"{i}", max_tokens=1, seed=seed_of(0, i)).text


def test_parquet_values_that_python_has_no_form_for_are_a_rows_own(model):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    ns = pa.timestamp("ns")
    deep = pa.struct([("a", pa.list_(ns)), ("b", pa.map_(pa.string(), pa.list_(ns, 1)))])
    damaged = pa.array([b"ok", b"\xff", b"\xfe"], pa.binary()).view(pa.string())
    table = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "deep": pa.array([{"a": [1234567891], "b": [("k", [1001])]}] * 3, deep),
            "took": pa.array([1001, None, 1001], pa.duration("ns")),
            "hour": pa.array([1001, None, 1001], pa.time64("ns")),
            "far": pa.array([0, 10**12, None], pa.timestamp("s")),
            "damaged": damaged,
            "bytes": [b"\x00\xff", b"", None],
        }
    )
    pq.write_table(table, "in.parquet")
    summary = glmlite.batch(model, "in.parquet", "out.jsonl", **SMALL)
    assert (summary.failed, summary.error) == (2, "row 2: 'damaged' is not UTF-8")
    found = lines("out.jsonl")
    assert found[0]["deep"] == {"a": ["1970-01-01T00:00:01.234567"], "b": [["k", ["1970-01-01T00:00:00.000001"]]]}
    assert (found[0]["took"], found[0]["hour"]) == ("0:00:00.000001", "00:00:00.000001")
    assert found[0]["damaged"] == "ok" and [row["damaged"] for row in found[1:]] == [None, None]
    assert found[0]["far"] == "1970-01-01T00:00:00" and "1000000000000" in found[1]["far"]
    assert [row["bytes"] for row in found] == ["AP8=", "", None]
    glmlite.batch(model, "in.parquet", "out.parquet", **SMALL)
    assert pq.read_table("out.parquet").select(table.column_names).equals(pq.read_table("in.parquet"))


def test_columns_of_json_lines_become_columns_of_tables(model):
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": "a", "n": 1, "x": 1, "ok": True, "mixed": 1, "deep": {"k": [1]}},
        {"prompt": "b", "x": 1.5, "ok": None, "mixed": "one", "late": "三", "huge": 2**70},
    ]
    jsonl("in.jsonl", rows)
    glmlite.batch(model, "in.jsonl", "out.parquet", **SMALL)
    found = pq.read_table("out.parquet")
    types = {name: str(found.schema.field(name).type) for name in found.column_names}
    assert types | dict.fromkeys(FIELDS) == {
        "prompt": "string",
        "n": "int64",
        "x": "double",
        "ok": "bool",
        "mixed": "string",
        "deep": "string",
        "late": "string",
        "huge": "string",
    } | dict.fromkeys(FIELDS)
    assert found.to_pylist()[1]["mixed"] == '"one"' and found.to_pylist()[0]["deep"] == '{"k": [1]}'
    glmlite.batch(model, "in.jsonl", "out.csv", **SMALL)
    with open("out.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["prompt", "n", "x", "ok", "mixed", "deep", "late", "huge", *FIELDS]
    assert found[1]["late"] == "三" and found[0]["deep"] == '{"k": [1]}'


def test_what_a_form_has_no_place_for_is_written_all_the_same(model):
    row = {"prompt": "a\rb", "half\ud800": "\ud800é", "x": float("nan"), "deep": [{"y": float("inf")}]}
    Path("in.jsonl").write_text(json.dumps(row))
    glmlite.batch(model, "in.jsonl", "out.jsonl", **SMALL)
    found = json.loads(Path("out.jsonl").read_text("utf-8"), parse_constant=pytest.fail)
    assert (found["half?"], found["x"], found["deep"]) == ("?é", None, [{"y": None}])
    glmlite.batch(model, "in.jsonl", "out.csv", **SMALL)
    with open("out.csv", encoding="utf-8", newline="") as file:
        (found,) = csv.DictReader(file)
    assert (found["prompt"], found["half?"], found["deep"]) == ("a\rb", "?é", '[{"y": null}]')
    assert Path("out.csv").read_bytes().count(b"\r") == 1
    pq = pytest.importorskip("pyarrow.parquet")
    glmlite.batch(model, "in.jsonl", "out.parquet", **SMALL)
    (found,) = pq.read_table("out.parquet").to_pylist()
    assert (found["prompt"], found["half?"], found["deep"]) == ("a\rb", "?é", '[{"y": null}]')


def test_without_pyarrow_the_error_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("in.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'glmlite\[batch\]'"):
        glmlite.batch(model, "in.parquet")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'glmlite\[batch\]'"):
        glmlite.batch(model, prompts(1), "out.parquet")


# ---- what is wrong


def test_rows_that_fail_are_named_and_the_others_go_on(model):
    good = b'{"prompt": "hi"}'
    Path("in.jsonl").write_bytes(
        b"\xef\xbb\xbf"
        + b"\n".join(
            [
                good,
                b'{"prompt": "\xff\xfe"}',
                b"{broken",
                b"[1]",
                b"",
                b'{"text": "no such column"}',
                b'{"prompt": 5}',
                b'{"prompt": "' + b"long " * 2000 + b'"}',
                b"[" * 100000,
                b'{"prompt": "\\ud800"}',
                good,
            ]
        )
    )
    summary = glmlite.batch(model, "in.jsonl", "out.jsonl", **SMALL)
    found = lines("out.jsonl")
    assert summary.rows == len(found) == 10
    said = {i: row["error"] for i, row in enumerate(found) if row["error"] is not None}
    for number, text in {
        1: "line 2: byte 12 is not UTF-8",
        2: "line 3: is no JSON: Expecting property name",
        3: "line 4: is list, expected a JSON object",
        4: "line 6: has no column 'prompt'; there is 'text'",
        5: "line 7: 'prompt' is int, expected a text or messages",
        6: "line 8: the prompt has ",
        7: "line 9: is no JSON",
    }.items():
        assert said.pop(number).startswith(text)
    assert set(said) <= {8}
    assert summary.error == "line 2: byte 12 is not UTF-8"
    assert found[0]["answer"] and found[9]["answer"] and found[4]["text"] == "no such column"


def test_a_table_whose_rows_are_damaged(model):
    Path("in.csv").write_bytes(b'prompt,id\nhi,1\nb\xe9,2\nshort\nlong,4,5\n"torn"x,6\nlast,7\n')
    found = list(glmlite.batch(model, "in.csv", **SMALL))
    said = errors(found)
    assert set(said) == {1, 2, 3, 4}
    assert said[1] == "line 3: 'prompt' is not UTF-8" and said[2] == "line 4: has 1 fields, expected 2"
    assert said[3] == "line 5: has 3 fields, expected 2" and said[4].startswith("line 6: is no CSV")
    assert found[5].values["id"] == "7" and found[5].answer


def test_templates_that_fail(model):
    rows = [{"a": 1, "b": [1]}, {"a": 2}, {"a": 0, "b": "x"}]
    said = errors(glmlite.batch(model, rows, template="{{ b }} {{ 1 // a }}", **SMALL))
    assert set(said) == {1, 2}
    assert said[1] == "row 2: template: 'b' is undefined" and "zero" in said[2]
    for template, why in (
        ("{{ a", "line 1: unexpected end of template"),
        ("x\n{% if %}", "line 2:"),
        ("{% break %}", "'break' outside loop"),
        ("{{ nothing }}", "has no column 'nothing'; there is 'a', 'b'"),
    ):
        with pytest.raises(ValueError, match=why):
            glmlite.batch(model, rows, template=template)
    secret = errors(glmlite.batch(model, rows[:1], template="{{ a.__class__.__mro__ }}", **SMALL))
    assert "unsafe" in secret[0] or "undefined" in secret[0]
    assert (
        "ranges" in errors(glmlite.batch(model, rows[:1], template="{% for i in range(10**9) %}{% endfor %}{{ a }}"))[0]
    )


@pytest.mark.parametrize(
    "name, data, why",
    [
        ("in.csv", b"", r"in\.csv: is empty"),
        ("in.csv", b"a,a\n1,2\n", "several columns are called 'a'"),
        ("in.csv", b"a,b\n1,2\n", r"in\.csv: which column has the prompts\? .* there is 'a', 'b'"),
        ("in.jsonl", b'{"a": 1}\n', r"in\.jsonl: which column has the prompts\?"),
        ("in.parquet", b"PAR1 cut short", r"in\.parquet: is no whole Parquet file"),
        ("in.txt", b"hello", r"in\.txt: a file of rows ends with \.jsonl, \.csv or \.parquet"),
        ("in.csv", b'"prompt"x,a\n1,2\n', r"in\.csv: the line with the names of the columns is no CSV"),
        ("in.csv", b"prompt,answer\nx,y\n", "has a column 'answer' of its own, .*prefix"),
    ],
)
def test_files_that_cannot_be_read_end_it_before_it_begins(model, capfd, name, data, why):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    Path(name).write_bytes(data)
    with pytest.raises(ValueError, match=why):
        glmlite.batch(model, name, "out.jsonl")
    assert main(["batch", name, "out.jsonl"]) == 1
    assert capfd.readouterr().err.count("\n") <= 2
    assert sorted(os.listdir()) == [name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_with_a_name_is_not_waited_for(model):
    os.mkfifo("in.jsonl")
    with pytest.raises(ValueError, match=r"in\.jsonl: is no regular file"):
        glmlite.batch(model, "in.jsonl", "out.jsonl")


def test_what_cannot_be_written_is_said_before_a_model_is_loaded(folder, capfd):
    jsonl("in.jsonl", prompts(1))
    jsonl("there.jsonl", [])
    Path("folder.jsonl").mkdir()
    for out, given, why in (
        ("folder.jsonl", {"force": True}, IsADirectoryError),
        ("there.jsonl", {}, FileExistsError),
        ("out.txt", {}, ValueError),
    ):
        with pytest.raises(why, match=out):
            glmlite.batch("no model", "in.jsonl", out, **given)
        assert main(["batch", "in.jsonl", out, "-m", "no model", *(f"--{name}" for name in given)]) == 1
        assert out in capfd.readouterr().err
    assert main(["batch", "in.jsonl", "-m", "no model", "--top-p", "0"]) == 1
    assert capfd.readouterr().err == "glmlite: top_p is 0.0, expected more than 0 to 1\n"
    assert main(["batch", "in.jsonl", "--actors", "2"]) == 2 and "--ray" in capfd.readouterr().err


def test_a_parquet_file_that_was_cut_short(model):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": [f"{i}" for i in range(500)]}), "whole.parquet")
    data = Path("whole.parquet").read_bytes()
    for end in (0, 3, len(data) // 2, len(data) - 1):
        Path("cut.parquet").write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"cut\.parquet: is no whole Parquet file"):
            glmlite.batch(model, "cut.parquet", "out.jsonl")
    Path("hole.parquet").write_bytes(data[:4] + b"\xff" * 300 + data[304:])
    with pytest.raises(ValueError, match=r"hole\.parquet: is damaged"):
        glmlite.batch(model, "hole.parquet", "out.jsonl")
    with pytest.raises(ValueError, match=r"has no column 'text'; there is 'prompt'"):
        glmlite.batch(model, "whole.parquet", "out.jsonl", column="text")
    assert not Path("out.jsonl").exists()


def test_arguments_that_cannot_be(model):
    for given, why in (
        ({"column": "a", "template": "{{ a }}"}, "a column and a template"),
        ({"raw": True, "system": "x"}, "system: raw prompts have none"),
        ({"raw": True, "thinking": True}, "thinking: raw prompts have none"),
        ({"image": "picture"}, "has no column 'picture'"),
        ({"tools": 5}, "tools: int, should be a list"),
        ({"tool_choice": "some"}, "tool_choice is 'some'"),
        ({"thinking_budget": -1}, "thinking_budget is -1"),
        ({"logprobs": 2}, "logprobs: the columns of answers have no place"),
    ):
        with pytest.raises(ValueError, match=why):
            glmlite.batch(model, prompts(1), **given)
    texts = {"column": 5, "template": 5, "system": b"x", "image": 5, "prefix": None, "effort": 5}
    for name, value in (texts | {"raw": "no", "thinking": "off"}).items():
        with pytest.raises(TypeError, match=f"{name} is "):
            glmlite.batch(model, prompts(1), **{name: value})
    with pytest.raises(ValueError, match="system: the rows of rows are requests in OpenAI's form"):
        glmlite.batch(model, [request(1)], system="Be short.")
    with pytest.raises(ValueError, match="at_once is 0"):
        glmlite.batch(model, prompts(1), at_once=0)
    with pytest.raises(FileNotFoundError):
        glmlite.batch(model, "nowhere.jsonl")
    with pytest.raises(ValueError, match="as they are completed"):
        glmlite.batch(model, prompts(1), "out.csv", ordered=False)
    jsonl("out.jsonl", [])
    with pytest.raises(FileExistsError):
        glmlite.batch(model, prompts(1), "out.jsonl", **SMALL)
    glmlite.batch(model, prompts(1), "out.jsonl", force=True, **SMALL)
    assert len(lines("out.jsonl")) == 1


def test_rows_of_a_program_go_to_a_file_as_those_of_a_file(model):
    rows = [MappingProxyType({"prompt": "a"}), "a", {"prompt": "a"}]
    glmlite.batch(model, rows, "out.jsonl", **SMALL)
    glmlite.batch(model, jsonl("in.jsonl", [{"prompt": "a"}] * 3), "want.jsonl", **SMALL)
    assert lines("out.jsonl") == lines("want.jsonl")
    with tempfile.NamedTemporaryFile() as file:  # no `io.IOBase`
        file.write(Path("in.jsonl").read_bytes())
        file.seek(0)
        found = [result.values for result in glmlite.batch(model, file, **SMALL)]
    assert found == lines("want.jsonl")
    with pytest.raises(TypeError, match="row 2: cannot be written as JSON: Object of type bytes"):
        glmlite.batch(model, ["a", {"prompt": "a", "b": b"x"}], "new.jsonl")
    with open("in.jsonl", encoding="utf-8") as text, pytest.raises(TypeError, match="open as text"):
        glmlite.batch(model, text)
    assert not Path("new.jsonl").exists()


def test_files_of_options_that_are_none_are_named(folder, capfd):
    jsonl("in.jsonl", prompts(1))
    for text, why in (
        ("null", "is NoneType, expected a JSON object"),
        ("[" * 10**5, "is no JSON"),
        ("{", "is no JSON"),
    ):
        Path("o.json").write_text(text)
        assert main(["batch", "in.jsonl", "--schema", "o.json"]) == 1
        assert f"o.json: {why}" in capfd.readouterr().err
    Path("o.json").write_text("[" * 10**5)
    assert main(["batch", "in.jsonl", "--tools", "o.json"]) == 1
    assert "o.json: is no JSON" in capfd.readouterr().err


def test_keywords_are_the_fields():
    assert list(PromptOptions.__annotations__) == [*Options.__annotations__, *(f.name for f in fields(Prompt))]
    asked = asked_of(Parameters(top_k=3), template="{{ a }}", raw=True, max_tokens=5)
    assert asked == (Prompt(template="{{ a }}", raw=True), Parameters(top_k=3, max_tokens=5))
    with pytest.raises(TypeError, match="'colum' is no parameter"):
        glmlite.batch(None, ["x"], colum="a")
    described = glmlite.batch.__doc__
    assert all(f.name in described for f in fields(Prompt))


def test_a_column_of_an_answers_name_that_comes_late_is_told(model):
    rows = [*prompts(reading.PEEKED), {"prompt": "a", "error": "mine"}, {"prompt": "b"}]
    found = [result.error for result in glmlite.batch(model, rows, max_tokens=1)]
    assert found[-2].startswith("row 101: has a column 'error' of its own, which would be written over")
    assert {*found[:-2], found[-1]} == {None}


def test_a_prefix_keeps_columns_of_the_same_name(model):
    rows = [{"prompt": "hi", "answer": "gold"}]
    with pytest.raises(ValueError, match="--prefix"):
        glmlite.batch(model, rows)
    (found,) = glmlite.batch(model, rows, prefix="model_", **SMALL)
    assert found.values["answer"] == "gold" and found.values["model_answer"] == found.answer


def test_a_row_that_the_model_has_no_eyes_for(model):
    Path("x.png").write_bytes(b"no image")
    said = errors(
        glmlite.batch(model, [{"prompt": "what?", "image": "x.png"}, {"prompt": "x", "image": ""}], image="image")
    )
    assert "sees no images" in said[0] and "'image' is empty" in said[1]


# ---- many rows


class Instant:
    """An answer that is there at once, or when it is let go."""

    def __init__(self, gate=None):
        self.closed = False
        self.gate = gate

    def on_end(self, wake):
        if self.gate is None:
            wake()
        else:
            self.gate.append(wake)

    def result(self):
        stats = SimpleNamespace(prompt_tokens=1, reused_tokens=0)
        return SimpleNamespace(finish_reason="stop", tokens=[1], stats=stats)

    def close(self):
        self.closed = True


class Asking:
    def __init__(self, start=None):
        self.started = []
        self.start = start or (lambda row: Instant())

    def question(self, row):
        def start():
            self.started.append(row.number)
            return [self.start(row)]

        return Question(row.values["key"], start, lambda answers: {"answer": "x"})

    def failure(self, row, error):
        return {"error": str(error)}


def made(count, read=None):
    for i in range(count):
        if read is not None:
            read.append(i)
        yield reading.Row(i, f"row {i + 1}", {"key": f"{i * 7919 % 1000:03}"})


def test_common_beginnings_come_one_after_another_and_memory_is_bounded():
    asking, read = Asking(), []
    rows = made(5 * WINDOW, read)
    finished = set()
    for part in answers(rows, asking, at_once=4, cancel=glmlite.Cancel()):
        finished |= {each.row.number for each in part}
        assert len(read) - len(finished) <= 2 * WINDOW
    assert finished == set(range(5 * WINDOW))
    for at in range(0, 5 * WINDOW, WINDOW):
        window = asking.started[at : at + WINDOW]
        assert sorted(window) == list(range(at, at + WINDOW))
        keys = [f"{i * 7919 % 1000:03}" for i in window]
        assert keys == sorted(keys)


def test_no_more_run_than_may():
    gate = []
    asking = Asking(lambda row: Instant(gate))
    run = answers(made(50), asking, at_once=4, cancel=glmlite.Cancel())
    most = 0
    done = 0
    while done < 50:
        part = next(run)
        done += len(part)
        most = max(most, len(gate))
        if gate:
            gate.pop(0)()
    assert most <= 8


def test_a_model_that_is_busy_is_asked_again():
    tries = itertools.count()

    def start(row):
        if next(tries) % 3 == 0:
            raise glmlite.Busy("later")
        return Instant()

    found = [each for part in answers(made(4), Asking(start), at_once=2, cancel=glmlite.Cancel()) for each in part]
    assert sorted(each.row.number for each in found) == [0, 1, 2, 3] and not any(each.failed for each in found)


def test_more_answers_than_a_model_takes_are_not_waited_for(folder):
    with glmlite.load(context=64, parallel=1, max_queue=1) as model:
        rows = [request(0, n=3), request(1, n=2), request(2, "/v1/completions", prompt=["a"] * 3)]
        found = [result.error for result in glmlite.batch(model, rows)]
    assert found == [
        f"row {i}: n: 3 answers, expected at most 2, as the model takes" if i != 2 else None for i in (1, 2, 3)
    ]


def test_a_closed_model_ends_it_and_a_cancel_too(model):
    def closed(row):
        raise glmlite.Closed("gone")

    with pytest.raises(glmlite.Closed):
        list(answers(made(4), Asking(closed), at_once=2, cancel=glmlite.Cancel()))
    cancel = glmlite.Cancel()
    threading.Timer(0.2, cancel.cancel).start()
    with pytest.raises(glmlite.Cancelled):
        glmlite.batch(model, prompts(2000), "out.jsonl", cancel=cancel, ignore_eos=True, max_tokens=50)
    assert not Path("out.jsonl").exists()
    assert model.chat([{"role": "user", "content": "hi"}], max_tokens=2).text


def test_progress_is_told(model):
    rows = [*prompts(40), {"prompt": 5}]
    for given, out, total in ((rows, (), 41), (iter(rows), (), 0), (rows, ("out.jsonl",), 41)):
        told = []
        found = glmlite.batch(model, given, *out, progress=told.append, max_tokens=4, seed=1)
        if not out:
            assert len(list(found)) == 41
        assert all(a.done <= b.done for a, b in itertools.pairwise(told)) and {p.total for p in told} == {total}
        assert (told[-1].done, told[-1].failed, told[-1].kept) == (41, 1, 0)
        assert 0 < told[-1].written <= 160 and told[-1].read > 400
        assert str(told[-1]).startswith(f"41{' of 41' if total else ''} rows, 1 failed, ")


# ---- journals, and runs that are ended


def test_a_journal_keeps_what_is_whole(folder):
    header = {"input": "a"}
    path = folder / "j"
    journal = Journal(path, header, None)
    offsets = journal.add([{"row": i, "text": "三\ud800"} for i in range(3)])
    assert [journal.at(offset)["row"] for offset in offsets] == [0, 1, 2]
    with pytest.raises(BlockingIOError):
        Journal(path, header, None)
    journal.close()
    data = path.read_bytes()
    begin = data.index(b"\n") + 1
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        found = {}
        again = Journal(path, header, lambda record, offset, found=found: found.update({record["row"]: offset}))
        assert list(found) == list(range(max(data[:end].count(b"\n") - 1, 0)))
        again.add([{"row": 9}])
        again.close()
        assert json.loads(path.read_bytes().splitlines()[-1]) == {"row": 9}
    path.write_bytes(data[:begin] + b"\0" * 50 + b"\n" + data[begin:])  # as after a power cut
    Journal(path, header, lambda record, offset: pytest.fail("there is none")).close()
    assert path.read_bytes() == data[:begin]
    for other in (b"[]\n", b"what is this\n", data.replace(b'"a"', b'"b"')):
        path.write_bytes(other)
        with pytest.raises(Other):
            Journal(path, header, None)
        assert path.read_bytes() == other
        Journal(path, header, None, restart=True).close()


class Stopped(Exception):
    pass


def stopped_after(model, rows, out, count, **options):
    """A run that ends by an exception once so many rows are finished."""

    def stop(progress):
        if progress.done >= count:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmlite.bulk.work.TELL_SECONDS", 0)
        with pytest.raises(Stopped):
            glmlite.batch(model, rows, out, progress=stop, **options)


def test_a_run_goes_on_where_it_was(model):
    jsonl("in.jsonl", [*prompts(30), {"prompt": 7}, *prompts(5)])
    glmlite.batch(model, "in.jsonl", "whole.jsonl", **SMALL)
    stopped_after(model, "in.jsonl", "out.jsonl", 10, **SMALL)
    kept = lines(journal_path(Path("out.jsonl")))
    assert not Path("out.jsonl").exists() and len(kept) > 10
    asked = []
    chat_stream = model.chat_stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "chat_stream", lambda *a, **k: asked.append(k["seed"]) or chat_stream(*a, **k))
        summary = glmlite.batch(model, "in.jsonl", "out.jsonl", **SMALL)
    assert summary.progress.kept == len(kept) - 1 and len(asked) + len(kept) - 1 in (35, 36)
    assert not {seed_of(5, row["row"]) for row in kept[1:]} & set(asked)
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]
    assert summary.failed == 1 and summary.error.startswith("line 31: ")


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
def test_a_file_that_is_changed_under_a_run_ends_it_and_rows_are_kept(model, name):
    rows = prompts(3 * WINDOW, "")
    whole = "prompt\n" + "".join(f"{row['prompt']}\n" for row in rows)
    whole = whole if name == "in.csv" else "".join(json.dumps(row) + "\n" for row in rows)
    asked = {"max_tokens": 1, "raw": True}

    def run(change, **options):
        Path(name).write_text(whole)
        told = []

        def progress(p):
            told.append(p)
            if len(told) == 1:
                change()

        return glmlite.batch(model, name, "out.jsonl", progress=progress, **asked, **options)

    def appended():
        with open(name, "a") as file:
            file.write('"x"\n' * 5)

    for change in (appended, lambda: os.truncate(name, len(whole) // 4)):
        with pytest.raises(OSError, match=f"{name}: was changed while its rows were answered"):
            run(change, restart=True)
        assert journal_path(Path("out.jsonl")).exists()
    assert run(lambda: os.utime(name)).progress.kept > 0  # the same content
    assert len(lines("out.jsonl")) == len(rows)


def test_kept_rows_are_for_the_same_input_model_and_options(model):
    jsonl("in.jsonl", prompts(30))
    stopped_after(model, "in.jsonl", "out.jsonl", 5, **SMALL)
    for change, why in (
        ({"max_tokens": 9}, r"another options \(max_tokens\)"),
        ({"system": "x"}, r"another prompts \(system\)"),
        ({"column": "id"}, r"another prompts \(column\)"),
    ):
        with pytest.raises(ValueError, match=why + ".*--restart"):
            glmlite.batch(model, "in.jsonl", "out.jsonl", **SMALL | change)
    why = "another context and another kv_type"
    with glmlite.load(context=256, kv_type="q8") as other, pytest.raises(ValueError, match=why):
        glmlite.batch(other, "in.jsonl", "out.jsonl", **SMALL)
    jsonl("in.jsonl", prompts(31))
    with pytest.raises(ValueError, match="another input"):
        glmlite.batch(model, "in.jsonl", "out.jsonl", **SMALL)
    glmlite.batch(model, "in.jsonl", "out.jsonl", restart=True, **SMALL)
    assert len(lines("out.jsonl")) == 31
    assert not journal_path(Path("out.jsonl")).exists()


def test_rows_as_they_are_finished_are_all_there(model):
    jsonl("in.jsonl", prompts(40))
    glmlite.batch(model, "in.jsonl", "whole.jsonl", **SMALL)
    stopped_after(model, "in.jsonl", "out.jsonl", 10, ordered=False, **SMALL)
    glmlite.batch(model, "in.jsonl", "out.jsonl", ordered=False, **SMALL)
    assert sorted(lines("out.jsonl"), key=lambda row: row["id"]) == lines("whole.jsonl")


ROOT = Path(__file__).resolve().parents[1]


def start(*args, **settings):
    command = [sys.executable, "-m", "glmlite", "batch", *args]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


def finished(out):
    path = journal_path(Path(out))
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def until(out, count, process):
    begin = time.monotonic()
    while finished(out) < count and process.poll() is None:
        assert time.monotonic() - begin < WAIT
        time.sleep(0.002)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_killed_at_any_moment_it_comes_to_the_same(folder):
    count = 150
    jsonl("in.jsonl", [{"prompt": p["prompt"] if i % 10 else 5} for i, p in enumerate(prompts(count))])
    options = ["in.jsonl", "out.jsonl", "-n", "20", "--seed", "7", "--at-once", "4", "--context", "256"]
    whole = start(*["whole.jsonl" if o == "out.jsonl" else o for o in options])
    assert whole.wait(WAIT) == 1
    chance = random.Random(2)
    kills = 0
    code = None
    while code is None:
        process = start(*options)
        if kills < KILLS:
            before = finished("out.jsonl")
            until("out.jsonl", before + chance.randrange(1, max(2, count // KILLS // 2)), process)
            time.sleep(chance.random() * 0.02)
            process.kill()
            kills += process.wait(WAIT) == -signal.SIGKILL
            process.communicate()
        else:
            _, err = process.communicate(timeout=WAIT)
            code = process.returncode
    assert code == 1 and b"15 failed" in err, err
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_it_at_once_and_says_how_to_go_on(folder, number, code):
    jsonl("in.jsonl", prompts(3000))
    process = start("in.jsonl", "out.jsonl", "-n", "40", "--context", "256")
    until("out.jsonl", 5, process)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == code, err
    assert f"[{finished('out.jsonl'):,} finished rows are kept; the same command goes on after them]".encode() in err
    assert not Path("out.jsonl").exists()


# ---- the command


def test_the_command_prints_lines_and_reads_a_pipe(folder, monkeypatch, capfd):
    data = b'{"prompt": "hi"}\n{"prompt": 3}\n'
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
    assert main(["batch", "-", "-n", "4"]) == 1
    out, err = capfd.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert found[0]["answer"] and found[1]["error"].startswith("line 2: 'prompt' is int")
    assert "glmlite: line 2: 'prompt' is int" in err
    jsonl("in.jsonl", [{"q": "one"}, {"q": "two"}])
    Path("p.txt").write_text("Say {{ q }}", encoding="utf-8")
    assert main(["batch", "in.jsonl", "out.jsonl", "--template", "@p.txt", "-n", "4", "--seed", "3"]) == 0
    out, err = capfd.readouterr()
    assert out == "" and "out.jsonl: 2 rows, 0 failed" in err
    assert main(["batch", "in.jsonl", "out.jsonl", "--column", "q"]) == 1
    assert "--force" in capfd.readouterr().err
    assert main(["batch", "in.jsonl", "--column", "q", "--template", "x"]) == 2
    assert main(["batch", "in.jsonl", "--column", "q", "-n", "2", "--as-completed", "--at-once", "2"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2
