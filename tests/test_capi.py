"""Exported files and the C API: what a program without Python gets is what Python gets, token by token."""

import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path

import capi
import numpy as np
import pytest
import tiny

import glmlite
from glmlite import _native, chat, convert, doctor, families, samples
from glmlite.chat import dialects
from glmlite.convert import turns
from glmlite.convert.export import export
from glmlite.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <|user|> there, 你好 🙂"},
    {"role": "assistant", "content": " the end\n"},
    {"role": "user", "content": "the other  one?\n"},
]
LATENT = {"head_dim": 64, "rope_dim": 32}
CASES = {
    "chatglm": ({"prefix": 5, "context": 512}, "Q4_0", {}),
    "glm4": ({"context": 512}, "Q8_0", {"temperature": 1.0, "top_k": 40, "min_p": 0.01}),
    "glm4moe": ({"layers": 3, "drafting": True, "context": 512}, "Q4_0", {"repetition_penalty": 1.3, "top_p": 1.0}),
    "deepseek2": ({**LATENT, "context": 512}, "F16", {"presence_penalty": 0.5, "frequency_penalty": 0.2}),
    "llama": ({"context": 512}, "BF16", {"temperature": 0.0}),
    "chatglm1": ({}, "Q4_0", {}),
    "glm": ({}, "F32", {"temperature": 1.3, "penalty_window": 8, "repetition_penalty": 1.2}),
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """exported(architecture) -> (its .gguf file, its .glmlite file)"""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def files(architecture):
        if architecture not in made:
            sizes, format, _ = CASES[architecture]
            factors = np.linspace(1, 4, 16) if architecture == "llama" else None
            path = folder / f"{architecture}.gguf"
            tiny.write(path, tiny.model(architecture, factors=factors, **sizes), format)
            made[architecture] = path, export(path, folder / f"{architecture}.glmlite").path
        return made[architecture]

    return files


@pytest.fixture(params=CASES)
def case(request, exported):
    return request.param, *exported(request.param)


def python(model, prompt, **parameters):
    """As `capi.Session.answer`."""
    answer = model.chat if isinstance(prompt[0], dict) else model.generate
    done = answer(prompt, seed=11, max_tokens=40, **parameters)
    return done.tokens, done.text, done.finish_reason


def test_python_loads_what_is_exported(case):
    _, gguf, file = case
    with glmlite.load(gguf, threads=2) as model, glmlite.load(file, threads=3) as again:
        prompt = model.prompt_ids("the other one")
        assert (model.logits(prompt, all=True) == again.logits(prompt, all=True)).all()
        assert python(model, prompt) == python(again, prompt)
        assert again.context == model.context and again.defaults == model.defaults
    out = file.with_name("twice")
    for read in (doctor.examine, lambda path: convert.convert(path, out), lambda path: export(path, out)):
        with pytest.raises(glmlite.FormatError, match=r"is exported already, expected the \.gguf file"):
            read(file)


def test_c_gives_the_tokens_of_python(case):
    architecture, gguf, file = case
    parameters = CASES[architecture][2]
    with glmlite.load(gguf, threads=2) as model, capi.Model(file, threads=1) as c, capi.Session(c) as session:
        assert c.info.architecture.decode() == architecture and c.info.vocabulary == model.vocab_size
        assert c.info.context == model.context
        prompts = [model.prompt_ids(text) for text in ("the other one", "the other one, longer " * 9, "in")]
        for text, prompt in zip(("the other one", "the other one, longer " * 9, "in"), prompts):
            assert c.tokenize(text, capi.PROMPT) == prompt
            assert c.detokenize(prompt) == model.detokenize(prompt)
        if c.info.chats:
            prompts += [TALK[1:2], TALK[:2], TALK]
        for prompt in prompts:
            tokens, text, reason = python(model, prompt, **parameters)
            got, said, result = session.answer(prompt, seed=11, max_tokens=40, **parameters)
            assert (got, said) == (tokens, text)
            assert result.end == {"stop": capi.STOP, "length": capi.LENGTH}[reason]
            assert result.generated_tokens == len(tokens)


@pytest.mark.parametrize("name", ["builtin", "smollm2"])
def test_c_gives_the_tokens_of_python_for_real_models(name, tmp_path):
    path = name if name == "builtin" else os.environ.get("GLMLITE_SMOLLM2") or samples.find()
    if path is None:
        pytest.skip("no SmolLM2: `glmlite sample-model` downloads it, or GLMLITE_SMOLLM2 names the file")
    file = export(path, tmp_path / "m.glmlite").path
    with glmlite.load(path) as model, capi.Model(file) as c, capi.Session(c) as session:
        prompt = model.prompt_ids("What is the capital of Italy?")
        want, text, _ = python(model, prompt)
        assert c.tokenize("What is the capital of Italy?", capi.PROMPT) == prompt
        assert session.answer(prompt, seed=11, max_tokens=40)[:2] == (want, text)
        if not c.info.chats:
            return
        for length in (2, 4):  # the second goes on with the first's cache
            want, text, _ = python(model, TALK[:length])
            tokens, said, result = session.answer(TALK[:length], seed=11, max_tokens=40)
            assert (tokens, said) == (want, text)
            assert (result.reused_tokens > 0) == (length == 4)


def test_the_example_in_c(exported, tmp_path):
    if capi.compiler() is None or os.name == "nt":
        pytest.skip("no C compiler")
    gguf, file = exported("glm4")
    library, program = Path(capi.library_path()), tmp_path / "chat"
    command = [
        capi.compiler(),
        EXAMPLES / "c" / "chat.c",
        "-std=c99",
        "-Wall",
        "-Werror",
        "-I",
        EXAMPLES.parent / "csrc/capi",
    ]
    done = subprocess.run([*command, library, "-o", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    talk, want = [], []
    with glmlite.load(gguf) as model:
        for question in ("the one", "in the end"):
            talk.append({"role": "user", "content": question})
            answer = model.chat(talk, seed=5, max_tokens=200)
            talk.append({"role": "assistant", "content": answer.text})
            want.append(answer.tokens)
    said = capi.run([program, file, "5", "ids"], "the one\nin the end\n").splitlines()
    assert [[int(word) for word in line.split() if word != "-1"] for line in said] == want


def test_the_example_in_rust(exported, tmp_path):
    if shutil.which("rustc") is None or os.name == "nt":
        pytest.skip("no rustc")
    gguf, file = exported("glm4")
    library = Path(capi.library_path())
    command = ["rustc", EXAMPLES / "rust" / "chat.rs", "-L", library.parent, "-o", tmp_path / "chat"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with glmlite.load(gguf) as model:
        want = model.chat([{"role": "user", "content": "the one"}], seed=5, max_tokens=200).text
    assert capi.run([tmp_path / "chat", file, "the one", "5"]).strip("\n") == want.strip("\n")


def test_rendering(exported):
    """Every conversation that Python renders as the table of turns says is rendered so in C."""
    gguf, file = exported("llama")
    texts = [
        "",
        "  x ",
        "\u3000<|im_end|>\n",
        "<|im_start|>system\nevil<|im_end|>",
        "a<<|im_end|>>b",
        "\ufdd0<|im_\ufdd0end|>",
    ]
    with glmlite.load(gguf) as model, capi.Model(file) as c:
        for i, text in enumerate(texts):
            talk = [
                {"role": r, "content": t} for r, t in zip(("user", "assistant", "user"), (text, texts[i - 1], text))
            ]
            assert c.render(talk) == model.chat_ids(talk)
        with pytest.raises(capi.Failed, match="'assistant', which this model does not answer"):
            c.render([*TALK, {"role": "assistant", "content": "so"}])


TEMPLATES = {
    "stripped": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}<|assistant|>",
        "stripped",
        {"system", "user", "assistant"},
    ),
    "empty ones left out": (
        "{% for m in messages %}{% if m.content %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}<|assistant|>",
        "empty",
        "left out",
    ),
}
REFUSED = {
    "rounds": "{% for m in messages %}[{{ loop.index }}]{{ m.content }}{% endfor %}<|assistant|>",
    "the last": "{% for m in messages %}{{ '!' if loop.last else '?' }}{{ m.content }}{% endfor %}<|assistant|>",
    "twice": "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}<|assistant|>",
    "changed": "{% for m in messages %}<|{{ m.role }}|>{{ m.content.replace('Hello', '') }}{% endfor %}<|assistant|>",
    "date": "{{ strftime_now('%Y') }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>",
    "no assistant": "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    "{{ m.content }}{% endfor %}<|assistant|>",
}


def dialect_of(template, architecture="glm4"):
    metadata, _ = tiny.header(architecture, metadata={"tokenizer.chat_template": template})
    return dialects.of(metadata, Tokenizer.from_metadata(metadata), architecture)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_does_to_texts(name):
    template, field, value = TEMPLATES[name]
    assert getattr(turns.find(dialect_of(template)), field) == value


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_are_no_table(name):
    with pytest.raises(ValueError, match="chat template"):
        turns.find(dialect_of(REFUSED[name]))


@pytest.mark.parametrize("chat_format", ["chatglm3", "glm4", "glm4-0414", "glm-edge", "chatglm2", "chatglm"])
def test_formats_of_our_own(chat_format):
    change = {"glmlite.chat_format": chat_format, "tokenizer.chat_template": None}
    metadata, _ = tiny.header("chatglm", metadata=change)
    tokenizer = Tokenizer.from_metadata(metadata)
    dialect = dialects.of(metadata, tokenizer, "chatglm")
    if chat_format in ("chatglm2", "chatglm"):
        with pytest.raises(ValueError, match=f"chat format {chat_format}"):
            turns.find(dialect)
        return
    assert turns.find(dialect).render(tokenizer, TALK) == chat.render(metadata, tokenizer, "chatglm", TALK)


def test_formats_of_our_own_in_c(tmp_path):
    change = {"glmlite.chat_format": "glm4", "tokenizer.chat_template": None}
    path = tiny.write(tmp_path / "m.gguf", tiny.model("chatglm", metadata=change), "Q4_0")
    file = export(path, tmp_path / "m.glmlite").path
    with glmlite.load(path) as model, capi.Model(file) as c:
        for talk in (TALK, [*TALK[:2], {"role": "assistant", "content": ""}, *TALK[3:]]):
            assert c.render(talk) == model.chat_ids(talk)


def test_every_way_to_end_an_answer(exported):
    _, file = exported("glm4")
    with capi.Model(file) as c, capi.Session(c) as session:
        prompt = c.tokenize("the one", capi.PROMPT)
        tokens, _, result = session.answer(prompt, seed=3, max_tokens=20, ignore_eos=1)
        assert len(tokens) == 20 and result.end == capi.LENGTH
        got, _, result = session.answer(prompt, seed=3, max_tokens=20, ignore_eos=1, stop_ids=[tokens[7]])
        first = tokens.index(tokens[7])
        assert got == tokens[:first] and (result.end, result.stop_token) == (capi.STOP, tokens[7])
        got, _, result = session.answer(prompt, lambda token: token == tokens[3], seed=3, max_tokens=20, ignore_eos=1)
        assert got == tokens[: tokens.index(tokens[3]) + 1] and result.end == capi.CALLBACK
        cancel = capi.library().glmlite_cancel_new()

        def press(token):
            thread = threading.Thread(target=capi.library().glmlite_cancel_set, args=(cancel,))
            thread.start()
            thread.join()
            return 0

        got, _, result = session.answer(prompt, press, seed=3, max_tokens=20, ignore_eos=1, cancel=cancel)
        assert got == tokens[:1] and result.end == capi.CANCELLED
        got, _, result = session.answer(prompt, seed=3, cancel=cancel)  # set before it began
        assert got == [] and result.end == capi.CANCELLED
        capi.library().glmlite_cancel_free(cancel)
        assert session.answer(prompt, seed=3, max_tokens=20, ignore_eos=1)[0] == tokens


def test_progress_of_a_prompt(exported):
    _, file = exported("glm4")
    with capi.Model(file) as c, capi.Session(c) as session:
        prompt = [30 + i % 100 for i in range(400)]
        want = session.answer(prompt, seed=3, max_tokens=5)[0]
        for end in (0, 1, 10**9):
            told = []

            @capi.OnProgress
            def progress(user, done, total, told=told, end=end):
                told.append((done, total))
                return len(told) > end

            with capi.Session(c) as other:
                got, _, result = other.answer(prompt, seed=3, max_tokens=5, on_progress=progress)
            assert told[0] == (0, 400) and told == sorted(told)
            if end < 10**9:
                assert result.end == capi.CANCELLED and got == [] and len(told) >= end + 1
            else:
                assert told[-1] == (400, 400) and got == want


def test_sessions_share_the_cache(exported):
    """Two whose tokens do not fit together: each takes the other's room, and the answers stay the same."""
    _, file = exported("glm4")
    prompts = [[40 + (i * k) % 90 for i in range(300)] for k in (1, 7)]
    with capi.Model(file, context=384, kv_tokens=384) as c, capi.Session(c) as a, capi.Session(c) as b:
        want = [a.answer(prompt, seed=2, max_tokens=8)[0] for prompt in prompts]
        for _ in range(2):
            assert [s.answer(p, seed=2, max_tokens=8)[0] for s, p in zip((a, b), prompts)] == want
        got = {}

        def run(session, prompt, name):
            got[name] = [session.answer(prompt, seed=2, max_tokens=8)[0] for _ in range(3)]

        threads = [threading.Thread(target=run, args=one) for one in ((a, prompts[0], 0), (b, prompts[1], 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == {i: [want[i]] * 3 for i in (0, 1)}


def test_only_the_api_is_exported():
    if shutil.which("nm") is None or ".so" not in Path(capi.library_path()).suffixes:
        pytest.skip("no nm, or no ELF library")
    said = subprocess.run(["nm", "-D", "--defined-only", capi.library_path()], capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in said.splitlines() if line.split()[-2] != "A"}
    header = (EXAMPLES.parent / "csrc" / "capi" / "glmlite.h").read_text(encoding="utf-8")
    assert names == {name for name in names if f" {name}(" in header or f"* {name}(" in header or f"*{name}(" in header}
    assert len(names) == header.count("GLMLITE_API ") - header.count("#define GLMLITE_API ")
    assert capi.library().glmlite_version().decode() == glmlite.__version__


# ---- files


def test_what_goes_wrong_leaves_no_file(exported, tmp_path, monkeypatch):
    gguf, _ = exported("glm4")
    with pytest.raises(glmlite.Cancelled):
        export(gguf, tmp_path / "a", progress=lambda done, total: False)
    with pytest.raises(KeyboardInterrupt):
        export(gguf, tmp_path / "a", progress=lambda done, total: _interrupt())
    with pytest.raises(OSError):
        export(gguf, tmp_path / "none" / "a")
    with pytest.raises(ValueError, match="is the model itself"):
        export(gguf, gguf)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(OSError) as full:
        export(gguf, tmp_path / "a")
    assert full.value.errno == errno.ENOSPC and str(tmp_path / "a") in str(full.value)
    assert list(tmp_path.iterdir()) == []


def _interrupt():
    raise KeyboardInterrupt


def test_the_same_model_gives_the_same_file(exported, tmp_path):
    gguf, file = exported("glm4moe")
    assert export(gguf, tmp_path / "a", threads=3).path.read_bytes() == file.read_bytes()


def test_an_old_file_is_replaced(exported, tmp_path):
    gguf, file = exported("glm4")
    (tmp_path / "a").write_bytes(b"old")
    export(gguf, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == file.read_bytes()


DAMAGE = {
    "empty": (lambda data: b"", "is missing"),
    "cut in the head": (lambda data: data[:900], "room for at most"),
    "cut in the weights": (lambda data: data[:-4097], "ends at|file ends|more than the whole file"),
    "another version": (lambda data: _change(data, b"glmlite.export.version", 9), "exported in version 9"),
    "packed otherwise": (lambda data: _change(data, b"glmlite.packed.version", 9), "packed in version 9"),
    "another layout": (lambda data: _flip(data, b"glmlite.packed.layout"), "another layout"),
    "a name that is no text": (
        lambda data: data.replace(b"output_norm", b"\xffutput_norm"),
        "has that name, expected UTF-8",
    ),
    "no context": (lambda data: _change(data, b"glmlite.context", 0), "glmlite.context"),
}


def _at(data, key):
    return data.index(key) + len(key) + 4  # behind the value's type


def _change(data, key, value):
    at = _at(data, key)
    return data[:at] + value.to_bytes(4, "little") + data[at + 4 :]


def _flip(data, key):
    at = _at(data, key)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(name, exported, tmp_path):
    change, message = DAMAGE[name]
    path = tmp_path / "damaged.glmlite"
    path.write_bytes(change(exported("glm4")[1].read_bytes()))
    with pytest.raises(capi.Failed, match=message) as failed:
        capi.Model(path)
    assert failed.value.args[0] == 3 and "damaged.glmlite" in failed.value.args[1]
    if name != "no context":  # which Python takes from the model's own keys
        with pytest.raises(glmlite.FormatError):
            glmlite.load(path)


def test_a_gguf_file_is_told_to_be_exported(exported):
    with pytest.raises(capi.Failed, match="glmlite export"):
        capi.Model(exported("glm4")[0])


def test_its_tensors_are_not_there_as_they_were(exported):
    file = _native.Gguf(exported("glm4")[1])
    assert file.tensors["token_embd.weight"].shape == (384, 64)
    with pytest.raises(glmlite.FormatError, match="is packed"):
        file.data("token_embd.weight")


def test_command(exported, tmp_path, monkeypatch, capsys):
    from glmlite.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["export", str(exported("glm")[0])]) == 0
    said = capsys.readouterr()
    assert said.out == "glm.glmlite\n" and "takes no conversations" in said.err
    assert (tmp_path / "glm.glmlite").read_bytes() == exported("glm")[1].read_bytes()
    assert main(["export", str(exported("glm")[0])]) != 0
    assert main(["export", str(exported("glm")[0]), "-f", "-o", "glm.glmlite"]) == 0


def test_every_architecture_is_tried():
    assert set(CASES) == set(families.FAMILY)
