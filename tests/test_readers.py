"""Readers: what models write in each dialect, and the message that it is; damaged, cut anywhere, and at random.

GLMLITE_FUZZ=10000 makes as many random cuts, and as many damaged answers, of each kind.
"""

import itertools
import json
import os
import random
import sys
from pathlib import Path

import pytest

from glmlite.chat.readers import (
    CallArguments,
    CallBegins,
    CallEnds,
    Marked,
    NamedJson,
    NamedPython,
    Reader,
    Text,
    Thought,
)

READERS = {
    "chatglm3": NamedPython,
    "glm4": NamedJson,
    "z1": NamedJson,
    "glm45": Marked,
    "glm47": Marked,
    "edge": Reader,
}
FUZZ = int(os.environ.get("GLMLITE_FUZZ", 300))


def tool(name, required=(), definitions=None, **properties):
    schemas = {key: {"type": value} if isinstance(value, str) else value for key, value in properties.items()}
    parameters = {"type": "object", "properties": schemas, "required": list(required), "$defs": definitions or {}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("look", ["at"], at="string", times="integer"),
    tool("look_up", word="string"),
    tool("clock"),
    tool("note", ["text"], text="string", tags="array", size="number", sure="boolean"),
    tool("interpreter", ["code"], code="string"),
    tool("python", ["source"], source="string"),
]


def read(reader, parts, tools=TOOLS, ended_by="stop", **options):
    reader = reader(tools, **options)
    deltas = [delta for part in parts for delta in reader.feed(part)]
    return deltas + reader.finish(ended_by)


def message(deltas):
    """(text, thought, [(name, arguments)] of the calls that are whole)."""
    text, thought, calls, open_call = "", "", [], None
    for delta in deltas:
        if isinstance(delta, Text):
            text += delta.text
        elif isinstance(delta, Thought):
            thought += delta.text
        elif isinstance(delta, CallBegins):
            open_call = [delta.name, ""]
        elif isinstance(delta, CallArguments):
            open_call[1] += delta.text
        else:
            calls.append((open_call[0], json.loads(open_call[1])))
    return text, thought, calls


def joined(deltas):
    """The deltas with neighbours of a kind as one: what no cutting may change."""
    out = []
    for kind, group in itertools.groupby(deltas, type):
        group = list(group)
        out += [kind("".join(d.text for d in group))] if kind in (Text, Thought, CallArguments) else group
    return out


def check(reader, raw, want, **options):
    """What is read, whole, one character at a time, and cut anywhere."""
    whole = read(reader, [raw], **options)
    assert message(whole) == want, raw
    for parts in [list(raw), *([raw[:i], raw[i:]] for i in range(len(raw) + 1))]:
        assert joined(read(reader, parts, **options)) == joined(whole), parts


# ---- the vectors beside the repository


def vectors():
    root = os.environ.get("GLMLITE_TOKENIZERS")
    path = Path(os.environ.get("GLMLITE_TOOLCALLS") or f"{root}/../cases/toolcalls.json")
    if not path.is_file():
        pytest.skip("no file GLMLITE_TOOLCALLS, nor cases/toolcalls.json beside GLMLITE_TOKENIZERS")
    return json.loads(path.read_text(encoding="utf-8"))


def test_vectors():
    given = vectors()
    for case in given["cases"]:
        tools = [
            {"type": "function", "function": {"name": name, "parameters": given["tools"][name]}}
            for name in case["tools"]
        ]
        want = case["expected"]
        calls = [(call["name"], call["arguments"]) for call in want["tool_calls"]]
        ended_by = "length" if case["ended_by"] == "length" else "stop"
        options = {"tools": tools, "ended_by": ended_by, "in_thought": case["prompt_opens_think"]}
        wanted = (want["content"] or "", want["reasoning_content"] or "", calls)
        check(READERS[case["dialect"]], case["raw"], wanted, **options)
        ended = "tool_calls" if calls and ended_by == "stop" else ended_by
        assert ended == want["finish_reason"], case["id"]


def test_streams_of_the_vectors():
    given = vectors()
    tools = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in given["tools"].items()]
    for stream in given["streams"]:
        text, thought, calls = "", "", []
        for delta in stream["deltas"]:
            text += delta.get("content", "")
            thought += delta.get("reasoning_content", "")
            calls += [[delta["name"], ""]] if "name" in delta else []
            if "arguments" in delta:
                calls[delta["index"]][1] += delta["arguments"]
        want = text, thought, [(name, json.loads(arguments)) for name, arguments in calls]
        assert message(read(READERS["glm47"], stream["pieces"], tools, in_thought=True)) == want


# ---- thoughts


@pytest.mark.parametrize("reader", [Reader, NamedJson, NamedPython, Marked])
@pytest.mark.parametrize("tools", [TOOLS, []])
@pytest.mark.parametrize(
    ("raw", "in_thought", "text", "thought"),
    [
        ("\n<think>a b</think>\n\nc d\n", False, "c d\n", "a b"),
        ("<think>\n a\n</think>c", False, "c", "a"),
        (" a \n\n</think>\n\nc", True, "c", "a"),
        ("a", True, "", "a"),
        ("a\n", True, "", "a"),
        ("<think>a", False, "", "a"),
        ("<think></think>c", False, "c", ""),
        ("<think> \n </think> c", False, "c", ""),
        ("<think>a</think>", False, "", "a"),
        ("<think>a</think>\n<think>b</think>c", False, "c", "a\nb"),
        ("<think>a<think>b</think>c", False, "c", "a<think>b"),
        ("<think>a</think>c", True, "c", "a"),
        ("</think>c", False, "c", ""),
        ("c <think>a</think>", False, "c <think>a</think>", ""),
        ("c </think> d", False, "c </think> d", ""),
        ("<think", False, "<think", ""),
        ("a</thin", True, "", "a</thin"),
        ("<thinking>a", False, "<thinking>a", ""),
        ("", False, "", ""),
        ("  ", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_thoughts(reader, tools, raw, in_thought, text, thought):
    check(reader, raw, (text, thought, []), tools=tools, in_thought=in_thought)


@pytest.mark.parametrize("reader", [Reader, NamedJson, NamedPython, Marked])
def test_a_thought_may_stay_in_the_text(reader):
    raw = "<think>\na\n</think>\n\nc <think>"
    check(reader, "\n" + raw, (raw, "", []), thoughts=False)
    check(reader, "a</think>\n c", ("a</think>\n c", "", []), thoughts=False, in_thought=True)


@pytest.mark.parametrize("reader", [Reader, NamedJson, NamedPython, Marked])
def test_white_space_at_the_beginning(reader):
    check(reader, " \n a", (" \n a", "", []), trim=False)
    check(reader, " \n<think>t</think> a", ("a", "t", []), trim=False)
    check(reader, "\n ", ("\n ", "", []), trim=False)
    check(reader, " and so on", (" and so on", "", []), continues=True)


# ---- calls between marks

LOOK = "<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"
ROME = ("look", {"at": "Rome"})
INSIDE = "</tool_call>, <tool_call>, <arg_key>a</arg_key> and <think>"


@pytest.mark.parametrize(
    ("raw", "text", "calls"),
    [
        (f"One.\n{LOOK}\n{LOOK}\n", "One.", [ROME, ROME]),
        (f"One.\n{LOOK}Two.{LOOK}\n Three.\n", "One.\nTwo.\nThree.\n", [ROME, ROME]),
        (f"{LOOK}</tool_call>\nDone.", "Done.", [ROME]),
        ("<tool_call>clock</tool_call>", "", [("clock", {})]),
        ("<tool_call>\n clock \r\n</tool_call>", "", [("clock", {})]),
        ("<tool_call>查/天气.v-2<arg_key>城市</arg_key><arg_value>北京</arg_value></tool_call>", "",
         [("查/天气.v-2", {"城市": "北京"})]),
        ("<tool_call>look<arg_key> at </arg_key><arg_value> a < b > c & \"d\"\\\t\u2028 </arg_value></tool_call>", "",
         [("look", {"at": " a < b > c & \"d\"\\\t\u2028 "})]),
        ("<tool_call>look\r\n<arg_key>at</arg_key>\r\n<arg_value>a\r\n</arg_value>\r\n</tool_call>", "",
         [("look", {"at": "a\r\n"})]),
        ("<tool_call>look<arg_key>at</arg_key><arg_value>a</arg_value><arg_key>at</arg_key><arg_value>b</arg_value>"
         "</tool_call>", "", [("look", {"at": "b"})]),
        ("<tool_call>look<arg_key>at</arg_key><arg_value></arg_value><arg_key>times</arg_key><arg_value></arg_value>"
         "</tool_call>", "", [("look", {"at": "", "times": ""})]),
        # Only its own mark ends a value.
        (f"<tool_call>look<arg_key>at</arg_key><arg_value>{INSIDE}</arg_value></tool_call>", "",
         [("look", {"at": INSIDE})]),
        # Text that is no call.
        ("<tool_call></tool_call>", "<tool_call></tool_call>", []),
        ("Write <tool_call> before a name.", "Write <tool_call> before a name.", []),
        ("<tool_call>\n<arg_key>a</arg_key>", "<tool_call>\n<arg_key>a</arg_key>", []),
        ("<tool_call>clock\nis a call</tool_call>", "<tool_call>clock\nis a call</tool_call>", []),
        ("<tool_call>" + "x" * 300 + "</tool_call>", "<tool_call>" + "x" * 300 + "</tool_call>", []),
        ("<tool_call>a<tool_", "<tool_call>a<tool_", []),
        ("a <arg_key>b</arg_key> </tool_call>", "a <arg_key>b</arg_key> </tool_call>", []),
    ],
)  # fmt: skip
def test_marked_calls(raw, text, calls):
    check(Marked, raw, (text, "", calls))


def test_calls_and_thoughts():
    check(Marked, f"a{LOOK}</think>b", ("b", "a", [ROME]), in_thought=True)
    check(Marked, f"a{LOOK} b</think>c", ("b\nc", "a", [ROME]), in_thought=True)
    check(Marked, f"a{LOOK}b{LOOK}c</think>d", ("b\nc\nd", "a", [ROME, ROME]), in_thought=True)
    check(Marked, f"<think>a</think>{LOOK}<think>b</think>c", ("c", "a\nb", [ROME]))
    check(Marked, "use <tool_call> here</think>c", ("c", "use <tool_call> here", []), in_thought=True)
    check(Marked, "a <tool_call></think>c", ("c", "a <tool_call>", []), in_thought=True)
    check(Marked, f"a{LOOK}</think>b", ("a\n</think>b", "", [ROME]), in_thought=True, thoughts=False)


@pytest.mark.parametrize(
    ("damaged", "times"),
    [
        ("at</arg_key>\n<arg_value>Rome</arg_value>\n", None),
        ("<arg_key>at\n<arg_value>Rome</arg_value>\n", None),
        ("<arg_key>at</arg_key>\nRome</arg_value>\n", None),
        ("<arg_key>at</arg_key>\n<arg_value>Rome\n", None),
        ("<arg_key>at</arg_key>\n<arg_value>Rome\r\n        ", None),
        ("at\n<arg_value>Rome</arg_value>", None),
        ("<arg_key>at</arg_key>Rome\n", None),
        ("<arg_key><arg_key>at</arg_key></arg_key><arg_value><arg_value>Rome</arg_value></arg_value>", None),
        ("<arg_key>at</arg_key><arg_value>Rome\n<arg_key>times</arg_key><arg_value>2</arg_value>", 2),
        ("<arg_key>at<arg_value>Rome<arg_key>times<arg_value>2", 2),
        ("<arg_key>at</arg_key>Rome<arg_key>times</arg_key>2", 2),
        ("at</arg_key><arg_value>Rome</arg_value>times</arg_key><arg_value>2</arg_value>", 2),
        ("<arg_key>at</arg_key><arg_value>Rome</arg_value><arg_key>times</arg_key>", None),
        ("<arg_key>at</arg_key><arg_value>Rome</arg_value><arg_key>times</arg_value>", None),
        ("<arg_key>at</arg_key><arg_value>Rome</arg_value><arg_value>lost</arg_value>", None),
        ("<arg_key>at</arg_key><arg_value>Rome</arg_value>, please", None),
    ],
)
@pytest.mark.parametrize("before", ["look\n", "look"])
def test_missing_marks_are_put_in(damaged, times, before):
    if before == "look" and not damaged.startswith("<"):
        before = "look\n"  # nothing else parts the name from a key without a mark
    call = ("look", {"at": "Rome"} | ({"times": times} if times else {}))
    check(Marked, f"<tool_call>{before}{damaged}</tool_call>", ("", "", [call]))
    check(Marked, f"<tool_call>{before}{damaged}</tool_call>\nDone.", ("Done.", "", [call]))
    check(
        Marked, f"<tool_call>{before}{damaged}</tool_call><tool_call>clock</tool_call>", ("", "", [call, ("clock", {})])
    )


def test_damage_within_damage_is_no_recursion():
    begin = "<tool_call>look<arg_key>at</arg_key><arg_value>Rome"
    units = [
        *("</tool_call>x<tool_call>clock<arg_value>", "</tool_call>x<tool_call>clock", "<tool_call>clock<arg_key>"),
        *("<arg_key>at<arg_value>", "<tool_call>clock<arg_value>", "</tool_call><tool_call>", "<tool_call>clock\n"),
    ]
    ends = ["", "<tool_call>clock<arg_key>", "</tool_call>", "</arg_value>"]
    for unit, end in itertools.product(units, ends):
        message(read(Marked, [begin + unit * 3000 + end]))
        message(read(Marked, [unit * 3000 + end]))


def test_a_schema_within_schemas_is_no_recursion():
    deep = {"type": "string"}
    for _ in range(5000):
        deep = {"allOf": [deep]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {**deep, "properties": {"x": deep}}}}]
    raw = "<tool_call>f<arg_key>x</arg_key><arg_value>7</arg_value><arg_key>y</arg_key><arg_value>7</arg_value>"
    assert message(read(Marked, [raw], tools))[2] == [("f", {"x": 7, "y": 7})]


@pytest.mark.parametrize("ended_by", ["stop", "length"])
@pytest.mark.parametrize(
    ("raw", "calls"),
    [
        (LOOK.replace("</tool_call>", LOOK), [ROME, ROME]),
        (LOOK.replace("</arg_value>\n</tool_call>", LOOK), [ROME, ROME]),
        ("<tool_call>{\"name\": \"look\", \"arguments\": {\"at\": \"Rome\"}}", [ROME]),
        ('<tool_call>{"name": "look", "arguments": {"at": "Rome"}}\n<tool_call>{"name": "clock"}</tool_call>',
         [ROME, ("clock", {})]),
        # What was cut is not completed, and a call without what it requires is none.
        ("<tool_call>look<arg_key>at</arg_key><arg_value>Ro", []),
        ("<tool_call>look<arg_key>at</arg_key><arg_value>Rome</arg_val", []),
        ("<tool_call>look<arg_key>at</arg_key>", []),
        ("<tool_call>look<arg_key>times</arg_key><arg_value>2</arg_value>", []),
        ("<tool_call>look<arg_key>at</arg_key><arg_value>Rome</arg_value><arg_key>tim", []),
        ("<tool_call>look<arg_key>times</arg_key><arg_value>2</arg_value><tool_call>clock</tool_call>",
         [("clock", {})]),
    ],
)  # fmt: skip
def test_a_call_without_its_end(raw, calls, ended_by):
    check(Marked, raw, ("", "", calls), ended_by=ended_by)


@pytest.mark.parametrize("end", ["", "\n", "<arg_key>", "<arg_key>times</arg_key>", "</tool_"])
def test_a_call_that_was_cut_off_between_arguments(end):
    """The next one may have been `dry_run`."""
    raw = LOOK.removesuffix("\n</tool_call>") + end
    check(Marked, raw, ("", "", []), ended_by="length")
    check(Marked, raw, ("", "", [] if "<" in end else [ROME]))


def test_a_call_whose_name_is_not_sure():
    for raw in ("<tool_call>clock", "<tool_call>clock\n"):
        check(Marked, raw, ("", "", [("clock", {})]))
        check(Marked, "a " + raw, ("a", "", []), ended_by="length")
    for raw in ("<tool_call>look", "<tool_call>look\n", "<tool_call>other", '<tool_call>{"name": "clo', "<tool_call>"):
        check(Marked, "a " + raw, ("a " + raw, "", []))
        check(Marked, "a " + raw, ("a", "", []), ended_by="length")
    value = "<tool_call>look<arg_key>at</arg_key><arg_value>a</tool_call> b"
    check(Marked, value, ("b", "", [("look", {"at": "a"})]))
    check(Marked, value, ("", "", []), ended_by="length")  # the file would be half a file


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ('{"name": "look", "arguments": {"at": "Rome"}}', [ROME]),
        ('\n{"name": "look", "parameters": {"at": "Rome"}}\n', [ROME]),
        ('{"type": "function", "function": {"name": "look", "arguments": {"at": "Rome"}}}', [ROME]),
        ('{"name": " look\\n", "arguments": "{\\"at\\": \\"Rome\\"}"}', [ROME]),
        ('{"name": "clock"}', [("clock", {})]),
        ('{"name": "clock", "arguments": null}', [("clock", {})]),
        ('{"name": "look", "arguments": "null"}', [("look", {})]),
        ('[{"name": "clock", "arguments": {}}, {"name": "look", "arguments": {"at": "Rome"}}]', [("clock", {}), ROME]),
        ('{"name": "clock"}\n{"name": "look", "arguments": {"at": "Rome"}}', [("clock", {}), ROME]),
        ("{'name': 'look', 'arguments': {'at': 'Rome', 'sure': True}}", [("look", {"at": "Rome", "sure": True})]),
        ("""{'name': 'look', 'arguments': {'at': '5" \\' \\\\'}}""", [("look", {"at": "5\" ' \\"})]),
        ("""{'name': 'look', "arguments": {'at': "it's"}}""", [("look", {"at": "it's"})]),
        ('look\n{"at": "Rome"}', [ROME]),
        ('look{"at": "Rome"}', [ROME]),
        ('{"name": "look", "arguments": {"at": "</tool_call> \\" <tool_call>"}}',
         [("look", {"at": '</tool_call> " <tool_call>'})]),
        ('{"name": "look", "arguments": {"at": "\\ud800x\\\\"}}', [("look", {"at": "\ufffdx\\"})]),
        ('{"name": "look", "arguments": {"at": "Rome"}', []),
        ('{"name": "look", "arguments": [1]}', []),
        ('{"name": 1, "arguments": {}}', []),
        ('{"name": "look", "arguments": "no"}', []),
        ('{"name": "look", "arguments": {"at": NaN}}', []),
        ("{}", []),
        ("[]", []),
        ('look\n{"at": Rome}', []),
        ('look\n[1]', []),
        ('{"name": "clock"} and more', []),
        ("[" * 100_000, []),
    ],
)  # fmt: skip
def test_json_between_marks(body, calls):
    raw = f"<tool_call>{body}</tool_call>"
    want = ("" if calls else raw, "", calls)
    if len(raw) < 1000:
        check(Marked, raw, want)
        check(Marked, f"a{raw}<tool_call>clock</tool_call>", ("a" + want[0], "", [*calls, ("clock", {})]))
    assert message(read(Marked, [raw])) == want


# ---- types


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, " 5 ", " 5 "),
        ({"type": "string"}, "null", "null"),
        ({"type": "string", "enum": ["1", "2"]}, "1", "1"),
        ({"anyOf": [{"const": "1"}, {"enum": [2, 3]}]}, "1", "1"),
        ({"anyOf": [{"const": "1"}, {"enum": [2, 3]}]}, "2", 2),
        ({"type": "integer"}, " 5\n", 5),
        ({"type": "integer"}, "5.0", 5.0),
        ({"type": "integer"}, "5.5", "5.5"),
        ({"type": "integer"}, "true", "true"),
        ({"type": "integer"}, "9" * 30, int("9" * 30)),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "integer"}, "0x" + "f" * 5000, "0x" + "f" * 5000),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "-1.5e3", -1500.0),
        ({"type": "number"}, "1e400", "1e400"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "-Infinity", "-Infinity"),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, "['a', \"b\", 'it\\'s']", ["a", "b", "it's"]),
        ({"type": "array"}, "('a', 1)", ["a", 1]),
        ({"type": "array"}, "a, b", "a, b"),
        ({"type": "object"}, "{'a': {'b': [True, None, -1]}}", {"a": {"b": [True, None, -1]}}),
        ({"type": "object"}, "{1: 2}", "{1: 2}"),
        ({"type": "object"}, "{1, 2}", "{1, 2}"),
        ({"type": "object"}, '{"a": 1, "a": 2}', {"a": 2}),
        ({"type": "object"}, "__import__('os')", "__import__('os')"),
        ({"type": "array"}, "[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
        ({"type": "array"}, "[" * 65 + "]" * 65, "[" * 65 + "]" * 65),
        ({"type": "array"}, "[" + "[]," * 100 + '"[{\\"[{"]', [[]] * 100 + ['[{"[{']),
        ({"type": "array"}, "(" * 5000 + ")" * 5000, "(" * 5000 + ")" * 5000),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": "string", "nullable": True}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "x", "x"),
        ({"oneOf": [{"type": "integer"}, {"const": "auto"}]}, "auto", "auto"),
        ({"oneOf": [{"type": "integer"}, {"const": "auto"}]}, "7", 7),
        ({"allOf": [{"type": ["string", "number"]}, {"type": "integer"}]}, "7", 7),
        ({"allOf": [{"description": "d"}, {"$ref": "#/$defs/text"}]}, "7", "7"),
        ({"$ref": "#/$defs/text"}, "7", "7"),
        ({"$ref": "#/$defs/whole"}, "7", 7),
        ({"$ref": "#/$defs/circle"}, "7", 7),
        ({"$ref": "#/$defs/two"}, "7", 7),
        ({"$ref": "#/$defs/a~1b"}, "7", "7"),
        ({"$ref": "#/nowhere"}, "7", 7),
        ({"$ref": "https://example.com/x"}, "7", 7),
        ({"enum": ["w", "a", 644]}, "644", 644),
        ({"enum": ["w", "a", "644"]}, "644", "644"),
        ({"enum": ["true", 1]}, "true", "true"),
        ({"enum": [True, "x"]}, "True", True),
        ({"enum": [1, 2]}, "3", 3),
        ({"enum": []}, "3", 3),
        ({"const": 5}, "5", 5),
        ({}, "5", 5),
        ({}, "x y", "x y"),
        ({}, '"x"', "x"),
        ({}, "", ""),
        (True, "[1]", [1]),
        ({"type": "no such type"}, "5", "5"),
        ({"type": "float"}, "5.5", 5.5),
        ({"type": "dict"}, "{'a': 1}", {"a": 1}),
        ({"type": ["int", "None"]}, "null", None),
        ({"type": "str"}, " 5", " 5"),
        ({"type": "any"}, "5", 5),
        ({"type": "BOOLEAN"}, "true", True),
        ({"type": "STRING"}, "5", "5"),
        ({"type": 3, "enum": 4, "anyOf": 5, "$ref": 6}, "5", 5),
        ({}, "'\\ud800'", "\ufffd"),
    ],
)
def test_types_of_values(schema, text, value):
    definitions = {
        "text": {"type": "string"},
        "whole": {"anyOf": [{"$ref": "#/$defs/number"}]},
        "number": {"type": "integer"},
        "circle": {"$ref": "#/$defs/circle"},
        "two": {"anyOf": [{"$ref": "#/$defs/two"}, {"$ref": "#/$defs/two"}]},
        "a/b": {"type": "string"},
    }
    tools = [tool("f", definitions=definitions, x=schema)]
    raw = f"<tool_call>f<arg_key>x</arg_key><arg_value>{text}</arg_value></tool_call>"
    if len(raw) < 1000:
        check(Marked, raw, ("", "", [("f", {"x": value})]), tools=tools)
    ((_, arguments),) = message(read(Marked, [raw], tools))[2]
    assert type(arguments["x"]) is type(value) and arguments == {"x": value}


@pytest.mark.parametrize("parameters", [None, {}, {"properties": 3}, [], {"additionalProperties": {"type": "string"}}])
def test_undeclared_arguments(parameters):
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    want = "5" if parameters and "additionalProperties" in parameters else 5
    raw = "<tool_call>f<arg_key>x</arg_key><arg_value>5</arg_value></tool_call>"
    check(Marked, raw, ("", "", [("f", {"x": want})]), tools=tools)


def test_properties_of_references():
    parameters = {"$ref": "#/$defs/p", "$defs": {"p": {"properties": {"x": {"type": "string"}}, "required": ["x"]}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    check(
        Marked, "<tool_call>f<arg_key>x</arg_key><arg_value>5</arg_value>", ("", "", [("f", {"x": "5"})]), tools=tools
    )
    check(Marked, "<tool_call>f<arg_key>y</arg_key><arg_value>5</arg_value>", ("", "", []), tools=tools)


# ---- calls without marks


@pytest.mark.parametrize(
    ("raw", "text", "calls"),
    [
        ('look\n{"at": "Rome"}', "", [ROME]),
        ('\n look \r\n\n {"at": "Rome"}\n\n', "", [ROME]),
        ('One.<|assistant|>look\n{"at": "Rome"}<|assistant|>\nclock\n{}<|assistant|>Two.', "One.\nTwo.",
         [ROME, ("clock", {})]),
        ('look\n{"at": "\\"}{", "more": [{"a": "<|assist"}]}', "",
         [("look", {"at": '"}{', "more": [{"a": "<|assist"}]})]),
        ("One.<|assistant|>\n Two.", "One.\nTwo.", []),
        ("look", "look", []),
        ("look\n", "look\n", []),
        ("look at\n{}", "look at\n{}", []),
        ("look  \t\n{}", "look  \t\n{}", []),
        ("look_out\n{}", "look_out\n{}", []),
        ('look\n{"at": "Rome"} now', 'look\n{"at": "Rome"} now', []),
        ('look\n{"at": "Rome"}\n{}', 'look\n{"at": "Rome"}\n{}', []),
        ("look\n[1]", "look\n[1]", []),
        ("look\n{'at': 'Rome'}", "look\n{'at': 'Rome'}", []),
        ('look\n{"at": 1e400}', 'look\n{"at": 1e400}', []),
        ('look\n{"at": "Ro', 'look\n{"at": "Ro', []),
        ('I look\n{"at": "Rome"}', 'I look\n{"at": "Rome"}', []),
        ('other\n{"at": "Rome"}<|assistant|>clock\n{}', 'other\n{"at": "Rome"}', [("clock", {})]),
        ("<tool_call>clock</tool_call>", "<tool_call>clock</tool_call>", []),
        ("python\nprint(1)\n", "", [("python", {"source": "print(1)"})]),
        ('python\n{"source": "1"}', "", [("python", {"source": "1"})]),
        ('python\n{"a": 1}', "", [("python", {"source": '{"a": 1}'})]),
        ("\n", "", []),
    ],
)  # fmt: skip
def test_names_and_json(raw, text, calls):
    check(NamedJson, raw, (text, "", calls))
    check(NamedJson, f"a</think>\n\n{raw}", (text, "a", calls), in_thought=True)


def test_plain_text_that_was_cut_is_no_argument():
    check(NamedJson, "python\nprint(1", ("python\nprint(1", "", []), ended_by="length")
    check(NamedPython, "interpreter\n```python\nprint(1", ("interpreter\n```python\nprint(1", "", []))


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("tool_call(at='Rome')", {"at": "Rome"}),
        ("tool_call( at = \"Rome\" , times = -3 ,)", {"at": "Rome", "times": -3}),
        ("tool_call()", {}),
        ("tool_call(\n    at='''a\n'b' \\'''',\n    times=1_000)", {"at": "a\n'b' '", "times": 1000}),
        (r"tool_call(at='\u4e2d\n\x41\101\d\\' r'\n' '')", {"at": "中\nAA\\d\\\\n"}),
        ("tool_call(at=[1, 2.5, (), (1), (1,), {'a': None}], times=true)",
         {"at": [1, 2.5, [], 1, [1], {"a": None}], "times": True}),
        ("tool_call(at=[True, False, None, true, false, null])", {"at": [True, False, None] * 2}),
        ("tool_call(at='<|assist')", {"at": "<|assist"}),
        ("tool_call(at=0x1F)", {"at": 31}),
        ("tool_call('Rome')", None),
        ("tool_call(at=Rome)", None),
        ("tool_call(at=f'x')", None),
        ("tool_call(at=1 + 1)", None),
        ("tool_call(at=open('x').read())", None),
        ("tool_call(**{})", None),
        ("tool_call(at='Rome'", None),
        ("tool_call(at='Rome)", None),
        ("tool_call(at=1e999)", None),
        ("tool_call(at=" + "9" * 5000 + ")", None),
        ("tool_call(at=" + "[" * 1000 + "]" * 1000 + ")", None),
        ("other(at='Rome')", None),
        ("tool_call(at='Rome') or 1", None),
        (r"tool_call(at='\U00110000')", None),
        (r"tool_call(at='\N{DIGIT ONE}')", None),
    ],
)  # fmt: skip
def test_names_and_python(code, arguments):
    calls = [] if arguments is None else [("look", arguments)]
    for raw in (f"look\n```python\n{code}\n```", f"\nlook \n```python\r\n{code}\r\n```\n", f"look\n{code}"):
        text = raw.lstrip() if arguments is None else ""
        if len(raw) < 1000:
            check(NamedPython, raw, (text, "", calls))
        assert message(read(NamedPython, [raw])) == (text, "", calls)


@pytest.mark.parametrize(
    ("raw", "text", "calls"),
    [
        ("\n 查。<|assistant|>clock\n```python\ntool_call()\n```", "查。", [("clock", {})]),
        ("interpreter\n```python\na = '```'\n```", "", [("interpreter", {"code": "a = '```'"})]),
        ("clock\n```python\ntool_call()\n```\nDone.", "clock\n```python\ntool_call()\n```\nDone.", []),
        ("clock\nis a tool", "clock\nis a tool", []),
        ('clock\n{"a": 1}', 'clock\n{"a": 1}', []),
        ("clock", "clock", []),
    ],
)
def test_messages_of_chatglm3(raw, text, calls):
    check(NamedPython, raw, (text, "", calls))


@pytest.mark.parametrize("reader", [NamedJson, NamedPython])
def test_ordinary_answers_hardly_wait(reader):
    """At most the longest name and two characters, of the line that could be one."""
    longest = max(len(t["function"]["name"]) for t in TOOLS)
    for raw in ("look, a bird", "interpreterx", "look  \t x", "ordinary", "look_up  and down"):
        told = 0
        one = reader(TOOLS)
        for i, character in enumerate(raw, 1):
            told += sum(len(delta.text) for delta in one.feed(character))
            waits = raw[told:i].rstrip()
            assert len(raw[told:i]) <= longest + 2 and (
                not waits or any(t["function"]["name"].startswith(waits) for t in TOOLS)
            )
    one = reader(TOOLS)
    assert one.feed("look\nI") == [Text("look\nI")]


# ---- what is common


@pytest.mark.parametrize(
    ("reader", "raw"),
    [(NamedJson, 'look\n{"at": "Rome"}'), (NamedPython, "look\ntool_call(at='Rome')"), (Marked, LOOK), (Reader, LOOK)],
)
def test_without_tools_nothing_is_a_call(reader, raw):
    check(reader, raw, (raw, "", []), tools=[])


@pytest.mark.parametrize("reader", READERS.values())
def test_calls_one_at_a_time(reader):
    raw = {
        NamedJson: "clock\n{}<|assistant|>clock\n{}<|assistant|>a",
        NamedPython: "clock\ntool_call()<|assistant|>clock\ntool_call()<|assistant|>a",
        Marked: f'<tool_call>clock</tool_call>{LOOK}<tool_call>{{"name": "clock"}}</tool_call>a',
        Reader: "a",
    }[reader]
    want = [("clock", {})] * (reader is not Reader)
    check(reader, raw, ("a", "", want), parallel=False)


def test_a_role_s_mark_may_be_spelled_otherwise():
    spelled = {"<|assistant|>": "\ufdd0<|assistant|>"}
    raw = "say <|assistant|>\ufdd0<|assistant|>clock\n{}"
    check(NamedJson, raw, ("say <|assistant|>", "", [("clock", {})]), spelled=spelled)


def test_strings_are_told_as_they_come_and_others_when_whole():
    reader = Marked(TOOLS)
    told = [reader.feed(part) for part in ("<tool_call>note", "<arg_key>", 'text</arg_key><arg_value>a"', "\n", "b")]
    assert told == [[], [CallBegins("note")], [CallArguments('{"text": "a\\"')], [], [CallArguments("\\nb")]]
    told = [
        reader.feed(p)
        for p in ("</arg_value>", "<arg_key>tags</arg_key><arg_value>[1", "]</arg_value>", "</tool_call>")
    ]
    assert told == [[CallArguments('"')], [], [CallArguments(', "tags": [1]')], [CallArguments("}"), CallEnds()]]
    assert reader.finish() == [] == reader.feed("more")


def test_nothing_is_said_after_the_end():
    reader = Marked(TOOLS)
    assert reader.feed("a ") + reader.finish() == [Text("a"), Text(" ")]
    assert reader.feed("b") == [] == reader.finish()


# ---- at random

ATOMS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    "<|assistant|>", "look", "clock", "note", "at", "text", "times", "tags", "\n", " ", "\r\n", "```python\n", "```",
    "tool_call(", ")", "at='a'", "{", "}", '{"at": "x"}', '{"name": "look", "arguments": ', "[", "]", '"', "'", "\\",
    ", ", "a", "北京", "😀", "3", "True", "1e400", "<", "</", "<tool_", "|>", "\ud800", "\u2028", "\x00", "interpreter",
]  # fmt: skip
ANSWERS = [
    (Marked, f"<think>x</think>Hi.\n{LOOK}\n<tool_call>note<arg_key>text</arg_key><arg_value>  a\n</arg_value>"
             "<arg_key>tags</arg_key><arg_value>[\"a\", 1]</arg_value></tool_call>\nBye."),
    (Marked, '<tool_call>\n{"name": "look", "arguments": {"at": "a\\"b"}}\n</tool_call>'),
    (NamedJson, 'Hi.<|assistant|>look\n{"at": "a\\"b", "times": 3}<|assistant|>python\nprint("x")'),
    (NamedPython, "Hi.<|assistant|>look\n```python\ntool_call(at='a', times=[1, {'b': None}])\n```"),
]  # fmt: skip


def cut(text, rng):
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 12)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def options(rng):
    return {
        "tools": rng.choice([TOOLS, TOOLS, TOOLS, []]),
        "in_thought": rng.random() < 0.3,
        "thoughts": rng.random() < 0.8,
        "trim": rng.random() < 0.8,
        "parallel": rng.random() < 0.8,
        "ended_by": rng.choice(["stop", "length", "cancelled"]),
    }


def damaged(text, rng):
    """The text with some of it gone, doubled, moved, or other things in it."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        b = min(b, a + rng.choice([1, 5, 12, 40]))
        change = rng.randrange(4)
        if change == 0:
            text = text[:a] + text[b:]
        elif change == 1:
            text = text[:b] + text[a:b] + text[b:]
        elif change == 2:
            text = text[:a] + rng.choice(ATOMS) + text[a:]
        else:
            text = text[:b]
    return text


def same_however_cut(reader, raw, rng):
    chosen = options(rng)
    whole = joined(read(reader, [raw], **chosen))
    assert joined(read(reader, cut(raw, rng), **chosen)) == whole, (raw, chosen)
    message(whole)  # every whole call's arguments are JSON
    for delta in whole:
        if isinstance(delta, CallArguments):
            delta.text.encode()


@pytest.mark.parametrize("reader", [Reader, NamedJson, NamedPython, Marked])
def test_random_text_cut_at_random(reader):
    rng = random.Random(reader.__name__)
    for _ in range(FUZZ):
        same_however_cut(reader, "".join(rng.choices(ATOMS, k=rng.randint(0, 25))), rng)


def test_damaged_answers_cut_at_random():
    rng = random.Random(7)
    for _ in range(FUZZ):
        reader, raw = rng.choice(ANSWERS)
        same_however_cut(reader, damaged(raw, rng), rng)


@pytest.mark.parametrize(
    ("reader", "begin", "unit"),
    [
        (Marked, "<tool_call>note<arg_key>text</arg_key><arg_value>", "a\n"),
        (Marked, "<tool_call>note<arg_key>text</arg_key><arg_value>", " "),
        (Marked, "<tool_call>note<arg_key>text</arg_key><arg_value>", "</tool_call>"),
        (Marked, "<tool_call>note<arg_key>text</arg_key><arg_value>", "<arg_key>a"),
        (Marked, "<tool_call>note<arg_key>text</arg_key><arg_value>", "<arg_key></arg_key>"),
        (Marked, "<tool_call>note<arg_key>text</arg_key><arg_value>", "<tool_call>"),
        (Marked, "<tool_call>note<arg_key>tags</arg_key><arg_value>", "'''\\"),
        (Marked, "<tool_call>note<arg_key>tags</arg_key><arg_value>", "\"\\"),
        (Marked, "<tool_call>note<arg_key>", "a"),
        (Marked, "<tool_call>note<arg_key>text</arg_key>", "a "),
        (Marked, "<tool_call>", "\n"),
        (Marked, "<tool_call>", "<tool_call>"),
        (Marked, "<tool_call>note\n", " "),
        (Marked, "<tool_call>{", "\"\\"),
        (Marked, "<tool_call>", "{\"name\":\"clock\"}"),
        (Marked, "", "\n"),
        (Marked, "", "<"),
        (Marked, "<think>", "a "),
        (NamedJson, "", "\n"),
        (NamedJson, "note\n", "\n"),
        (NamedJson, "note\n{\"text\": \"", "\\\""),
        (NamedJson, "note\n", "{"),
        (NamedPython, "note\n```\ntool_call(text='", "\\'"),
        (NamedPython, "note\n", "'''\\"),
    ],
)  # fmt: skip
def test_work_is_proportional_to_the_text(reader, begin, unit):
    """Counted in lines run, which no clock disturbs: eight times the text, at most ten times the lines."""
    few, many = (lines_run(reader, begin + unit * (n // len(unit))) for n in (500, 4000))
    assert many <= 10 * few + 2000


def lines_run(reader, text):
    """While a text is read, one character at a time."""
    lines = 0

    def count(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        read(reader, text)
    finally:
        sys.settrace(before)
    return lines
