"""What stands on the command line: models and texts, options as other programs call them, files of other kinds."""

import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import glmlite
from glmlite import builtin
from glmlite.cli import arguments, main
from glmlite.errors import FormatError
from glmlite.locate import model_file, near


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- a model or a text -------------------------------------------------------------------------------------------

MODELS = r"""
./models/chatglm3-6b models/x ../x ~/models/x /no/such/file C:\models\x.gguf C:/models/x models\x $HOME/x x.gguf X.GGUF
x.safetensors pytorch_model.bin ggml-model.ggml chatglm3-6b chatglm2-6b-int4 glm-4-9b-chat GLM-4-9B-0414 glm4 glm4:9b
chatglm glm-edge-1.5b-chat codegeex4-all-9b THUDM/chatglm3-6b zai-org/glm-edge-1.5b-chat smollm smollm2 SmolLM2-135M
builtin built-in buildin bultin llama3.2:1b tinyllama qwen2.5-7b-instruct my-model-7b-q4_k_m https://example.com/x
./模型/x
""".split()  # noqa: SIM905
MODELS += ["/disk/my models/chatglm3-6b", "C:\\Program Files\\x\\y.gguf", "./my model.gguf", "my model.gguf"]
TEXTS = """\
hello|Why?|你好|你好？|他/她是谁|谁写了 chatglm3-6b|42|chit-chat|builtins are what|1/2?
What is 1/2 + 1/3|What does and/or mean?|explain /etc/passwd|/usr/bin or /usr/local/bin|./configure fails, why
Tell me about glm-4-9b-chat|What is in model.gguf and what for?""".replace("\n", "|").split("|")
TEXTS += ["a\nb/c", "", "x" * 5000, "a\0b"]


@pytest.mark.parametrize("text", MODELS)
def test_what_looks_like_a_model_is_one(text):
    assert arguments.model_and_text(text, None) == (text, None)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_a_question_stays_a_question(text):
    assert arguments.model_and_text(text, None) == ("builtin", text)
    assert arguments.model_and_text("x.gguf", text) == ("x.gguf", text)


def test_what_is_there_is_a_model_and_what_is_nearly_called_so_too(folder):
    assert arguments.model_and_text("hello", None) == ("builtin", "hello")
    (folder / "hello").touch()
    assert arguments.model_and_text("hello", None) == ("hello", None)
    (folder / "Storyteller.gguf").touch()
    assert near("storyteler") == near("storyteller") == ["Storyteller.gguf"]
    assert arguments.model_and_text("storyteler", None) == ("storyteler", None)


@pytest.mark.parametrize("command", ["chat", "run", "infill"])
@pytest.mark.parametrize("text", [["./no/model"], ["chatglm3-6b"], ["./no/model", "a [MASK]"]])
def test_a_mistyped_path_is_answered_by_no_other_model(command, text, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main([command, *text]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"glmlite: {text[0]}: no such file, expected a .gguf file")
    assert (f"`glmlite {command} builtin TEXT`" in err) == (len(text) == 1)


def test_a_missing_model_comes_with_what_may_have_been_meant(folder, capsys):
    (folder / "glm4-q8_0.gguf").touch()
    for arguments_, hint in (
        (["run", "glm4-q8.gguf", "hi"], "did you mean glm4-q8_0.gguf?"),
        (["inspect", "other.gguf"], "in that folder: glm4-q8_0.gguf"),
        (["bench", "no/glm4.gguf"], "there is no folder no"),
        (["doctor", "THUDM/chatglm3-6b"], "`glmlite convert THUDM/chatglm3-6b` downloads it"),
        (["run", "smollm", "hi"], "did you mean smollm2?"),
        (["run", "hello", "world"], "a text of several words stands in quotes"),
        (["run", "hello", "my", "world"], "a text of several words stands in quotes"),
        (["chat", "https://example.com/x.gguf"], "is a web address"),
    ):
        assert main(arguments_) in (1, 2)
        assert hint in capsys.readouterr().err, arguments_


# ---- another thing in place of a file ----------------------------------------------------------------------------


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
OTHERS = [
    ({"m/config.json": b"{}"}, "m", "is a checkpoint's folder", "`glmlite convert m` makes a .gguf file of it"),
    ({"m/pytorch_model.bin": b"PK"}, "m", "is a checkpoint's folder", "`glmlite convert m`"),
    ({"m/a.safetensors": SAFETENSORS}, "m/a.safetensors", "is a safetensors file", "`glmlite convert m`"),
    ({"m/pytorch_model.bin": b"PK\3\4..."}, "m/pytorch_model.bin", "is a PyTorch checkpoint", "`glmlite convert m`"),
    ({"m/old.pt": b"\x80\x02}q"}, "m/old.pt", "is a PyTorch checkpoint", "`glmlite convert m`"),
    ({"chatglm-ggml.bin": b"ggml\1\0\0\0"}, "chatglm-ggml.bin", "is a ggml file from before GGUF", "glmlite convert"),
    ({"l/adapter_config.json": b"{}"}, "l", "is a LoRA adapter's folder", "convert CHECKPOINT --lora l"),
    ({"l/adapter_config.json": b"{}", "l/a.bin": b"PK"}, "l/a.bin", "is part of a LoRA adapter", "--lora l"),
    ({"g/a.gguf": b"", "g/b.gguf": b""}, "g", "is a folder, expected a file", "g/a.gguf, g/b.gguf"),
    ({"c/snapshots/1f/config.json": b"{}"}, "c", "is a hub's cache", "`glmlite convert c/snapshots/1f`"),
    ({"a/glm4/config.json": b"{}"}, "a", "is a folder of checkpoints", "`glmlite convert a/glm4`"),
    ({"d/x.txt": b"x"}, "d", "is a folder without a model", "glmlite convert FOLDER"),
    ({"x.gguf.part1of2": b"GGUF"}, "x.gguf.part1of2", "is a piece of a file that was cut", "copy /b"),
    ({"x.gguf-split-b": b"GGUF"}, "x.gguf-split-b", "is a piece of a file that was cut", "cat PIECES"),
    ({"x.gguf.crdownload": b"GGUF"}, "x.gguf.crdownload", "is an unfinished download", ""),
    ({"x.gguf": b"GGUF", "x.gguf.aria2": b""}, "x.gguf", "'x.gguf.aria2' is beside it: the download has not ended", ""),
    (
        {"x-00001-of-00002.gguf": b"GGUF", "x-00002-of-00002.gguf.aria2": b""},
        "x-00001-of-00002.gguf",
        "'x-00002-of-00002.gguf.aria2' is beside it",
        "",
    ),
    ({"x.gguf": b"version https://git-lfs.github.com/spec/v1\n"}, "x.gguf", "is a Git LFS pointer", "git lfs pull"),
    ({"x.gguf": b"<!DOCTYPE html>"}, "x.gguf", "is a page of HTML", "download"),
    ({"x.gguf": b""}, "x.gguf", "is empty", ""),
    ({"x.gguf.gz": b"\x1f\x8b\x08"}, "x.gguf.gz", "is compressed by gzip", "unpack"),
    ({"m/config.json": b"{}"}, "m/config.json", "is a small file of a checkpoint", "`glmlite convert m`"),
]


@pytest.mark.parametrize(("files", "path", "what", "how"), OTHERS, ids=[row[2] + row[1] for row in OTHERS])
def test_every_command_says_what_stands_in_place_of_a_model(folder, capsys, files, path, what, how):
    write(folder, {**files, "text.txt": b"some text"})
    how = how.replace("/", os.sep) if "convert" not in how or "/" not in how else how
    for command in ("run", "chat", "infill", "bench", "inspect", "doctor", "perplexity", "imatrix"):
        more = {"run": ["hi"], "infill": ["a [MASK]"], "perplexity": ["text.txt"], "imatrix": ["text.txt"]}
        assert main([command, path, *more.get(command, [])]) == (2 if command == "doctor" else 1), command
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"glmlite: {path}: {what}"), command
        assert how.replace(os.sep, "/") in err.replace(os.sep, "/")
        assert err.count("\n") == 1
    with pytest.raises((FormatError, ValueError), match=re.escape(f"{path}: {what}")):
        glmlite.load(path)


def test_model_file_knows_homes_and_variables(folder, monkeypatch):
    (folder / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert model_file("~/x.gguf") == model_file("$HOME/x.gguf") == folder / "x.gguf"
    assert model_file(b"x.gguf") == Path("x.gguf")
    assert model_file("builtin") == model_file(None) == builtin.path()


# ---- options as other programs call them -------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What `glmlite.load` and the model are asked for."""
    calls = []

    class Model:
        architecture, chat_format, context, metadata = "glm", "template", 100, {}

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def chat_stream(self, messages, *, on_progress, **settings):
            calls.append((messages[-1]["content"], settings))
            stats = SimpleNamespace(prompt_tokens=1, reused_tokens=0, generated_tokens=1, prompt_seconds=1.0)
            stats.generation_seconds = 0.0
            return Pieces([SimpleNamespace(text="ok", finish_reason="stop")], stats)

        stream = chat_stream

    class Pieces(list):
        def __init__(self, pieces, stats):
            super().__init__(pieces)
            self.stats = stats

    def load(path, *, progress, **options):
        calls.append((Path(path).name, options))
        return Model()

    monkeypatch.setattr(glmlite, "load", load)
    return calls


@pytest.mark.parametrize(
    ("options", "loading", "settings"),
    [
        ("--temp 0", {}, {"temperature": 0.0}),
        ("--temp=0.5 --top_k 5 --Top-P 0.5", {}, {"temperature": 0.5, "top_k": 5, "top_p": 0.5}),
        ("--n-predict 3", {}, {"max_tokens": 3}),
        ("--max_new_tokens 3", {}, {"max_tokens": 3}),
        ("--num-predict=3 -n4", {}, {"max_tokens": 4}),
        ("--repeat-penalty 1.5 --rng-seed 3", {}, {"repetition_penalty": 1.5, "seed": 3}),
        ("-r stop --reverse-prompt STOP", {}, {"stop": ["stop", "STOP"]}),
        ("--ctx-size 64 --n-threads 2", {"context": 64, "threads": 2}, {}),
        ("--max-kv-size 64 -t 2", {"context": 64, "threads": 2}, {}),
        ("-ngl 3 --device GPU", {"gpu_layers": 3, "device": "cuda"}, {}),
        ("--n-gpu-layers 0 --device CPU", {"gpu_layers": 0, "device": "cpu"}, {}),
        ("--device cuda1", {"device": "cuda:1"}, {}),
        ("--packed", {"packed": True}, {}),
        ("--no-packed", {"packed": False}, {}),
        ("-ctk Q8_0", {"kv_type": "q8"}, {}),
        ("--kv-type F16", {"kv_type": "f16"}, {}),
        ("--kv-bits 8", {"kv_type": "q8"}, {}),
        ("--overflow TRUNCATE", {}, {"overflow": "truncate"}),
        ("--nothink", {}, {"thinking": False}),
    ],
)
@pytest.mark.parametrize("command", ["run", "chat"])
def test_options_of_other_programs_are_taken(asked, command, options, loading, settings):
    assert main([command, "m.gguf", "hi", *options.split()]) == 0
    assert asked == [("m.gguf", loading), ("hi", {"reasoning": False, **settings})]


@pytest.mark.parametrize(
    ("arguments_", "model", "text"),
    [
        (["-m", "m.gguf", "-p", "a text"], "m.gguf", "a text"),
        (["--prompt=a text", "--model=m.gguf"], "m.gguf", "a text"),
        (["-m", "m.gguf", "a text"], "m.gguf", "a text"),
        (["m.gguf", "-p", "a text"], "m.gguf", "a text"),
        (["-p", "./a/text"], "builtin.gguf", "./a/text"),
        (["-m", "m.gguf", "-p", "--temp"], "m.gguf", "--temp"),
        (["m.gguf", "--stop", "-m", "--", "-m x"], "m.gguf", "-m x"),
    ],
)
def test_model_and_prompt_may_be_options(asked, arguments_, model, text):
    assert main(["run", *arguments_]) == 0
    assert (asked[0][0], asked[1][0]) == (model, text)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("run m.gguf hi --color", "glmlite run: --color: leave it out: answers are plain text"),
        ("run m.gguf hi -i", "glmlite run: -i: leave it out: `glmlite chat` is the conversation"),
        ("run m.gguf hi --no-display-prompt", "--no-display-prompt: leave it out: only the answer is shown"),
        ("run m.gguf hi -s 3", "-s: here it is --seed N, or --system TEXT"),
        ("run m.gguf hi --mirostat 2", "--mirostat: there is no such way of sampling here"),
        ("run m.gguf hi -fa", "-fa: leave it out: it is always so"),
        ("run m.gguf hi -n -1", "--max-tokens -1: leave it out: the model stops by itself"),
        ("run m.gguf hi --seed -1", "--seed -1: leave it out for a seed that is drawn"),
        ("run m.gguf hi -c 0", "--context 0: leave it out for the model's own"),
        ("run m.gguf hi --device mps", "--device mps: runs on CPUs and NVIDIA GPUs"),
        ("run m.gguf hi --kv-type q4_0", "--kv-type q4_0: the cache is f16 or q8"),
        ("run m.gguf hi --temperatur 1", "No such option: --temperatur (Possible options: --temperature)"),
        ("convert m --type q4", "--type q4: did you mean q4_k_m, q4_k_s or q4_0?"),
        ("inspect m.gguf --temp 1", "--temp: inspect has no --temperature, which it is called here"),
        ("--temp 1", "glmlite: --temp: a command comes first"),
        ("quantize a b", "no command 'quantize': here it is `glmlite convert`"),
        ("server", "no command 'server': here it is `glmlite serve`"),
        ("ps", "no command 'ps': models are files, and a server ends with Ctrl-C"),
        ("run m.gguf hi --port 80", "--port: that is for `glmlite serve`"),
        ("chta", "no command 'chta', did you mean chat?"),
        ("m.gguf", "no command 'm.gguf', did you mean `glmlite chat m.gguf`?"),
    ],
)
def test_options_that_are_not_taken_say_what_there_is(asked, capsys, line, error):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, asked) == ("", [])
    assert error in err and err.count("\n") == 1


def test_help_of_a_command_may_be_asked_for_in_words(capsys):
    assert main(["help", "bench"]) == 0
    assert capsys.readouterr().out.startswith("Usage: glmlite bench")


def test_aliases_do_not_make_the_help_longer(capsys):
    assert main(["run", "--help"]) == 0
    assert "--n-predict" not in capsys.readouterr().out


# ---- the page about the commands ---------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs/commands.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## ([a-z][a-z-]*)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def options_of(command):
    import typer

    from glmlite.cli.app import app

    found = typer.main.get_command(app).commands[command]
    return {name for p in found.params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")}


def test_the_page_has_every_command():
    import typer

    from glmlite.cli.app import app

    assert set(SECTIONS) == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", SECTIONS)
def test_the_page_has_the_options_of_each_command_and_no_others(command):
    said = set(re.findall(r"(?<!\w)--[a-z][\w-]*", SECTIONS[command]))
    of_run = {"--threads", "--device"} | set(re.findall(r"(?<!\w)--[a-z][\w-]*", SECTIONS["run"]))
    shared = (
        of_run if command in ("batch", "chat", "infill", "serve") else set()
    )  # what `run` says of them is not said again
    there = options_of(command)
    assert there - said - shared == set()
    assert said - there <= {"--imatrix", "--type"}  # of `convert`, which others point to
