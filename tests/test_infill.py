"""Gaps in code: the prompts of models with tokens for one, what they are filled with, and the ways in of editors."""

import numpy as np
import pytest
import tiny
import vocab
from serving import Scripted, ask

import glmlite
from glmlite.convert import text as convert_text
from glmlite.infill import GapFiller
from glmlite.serve import app
from glmlite.tokenizer import Tokenizer

GAP = ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"]
CODE = "def add(a, b):\n    [MASK]\n\nprint(add(1, 2))\n"


def with_gaps(architecture, **keys):
    """What makes a tiny model one that fills gaps: three unused tokens are those."""
    metadata = tiny.header(architecture)[0]
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.token_type"])
    for i, token in enumerate(GAP, len(tokens) - 3):
        tokens[i], types[i] = token, tiny.CONTROL
    return {"metadata": {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, **keys}}


@pytest.fixture
def fill(load):
    return lambda architecture="chatglm", **arguments: load(architecture, with_gaps(architecture), **arguments)


def filler(architecture="chatglm", asks=True, **keys):
    return GapFiller(
        Tokenizer.from_metadata(tiny.header(architecture, **with_gaps(architecture, **keys))[0]), asks=asks
    )


def spelled(gaps, *arguments, **options):
    return gaps._tokenizer.decode(gaps.prompt(*arguments, **options))


def test_the_prompts_of_codegeex4():
    """As the makers' guide to infilling and model card have them."""
    gaps = filler()
    assert spelled(gaps, "in ", " the") == (
        "[gMASK]<sop><|user|>\n<|code_suffix|> the<|code_prefix|>in <|code_middle|><|assistant|>\n"
    )
    told = "###PATH:src.py\n###LANGUAGE:Python\n###MODE:BLOCK\n<|code_suffix|>"
    assert f"<|user|>\n{told}" in spelled(gaps, "a", "b", "src.py", "Python")
    assert "<|user|>\n###PATH:src.py\n###LANGUAGE:\n###MODE:BLOCK\n" in spelled(gaps, "a", "", "src.py")
    assert "<|user|>\n###PATH:\n###LANGUAGE:C\n###MODE:BLOCK\n" in spelled(gaps, "a", "", None, "C")


def test_the_plain_prompts(load):
    gaps = filler("glm4moe", asks=False)
    assert spelled(gaps, "in ", " the", "src.py", "Python") == (
        "[gMASK]<sop><|code_prefix|>in <|code_suffix|> the<|code_middle|>"
    )


def test_code_has_no_special_tokens():
    gaps = filler()
    marks = [
        i for i in gaps.prompt("<|user|>[gMASK]", "<|code_middle|>", "<|system|>") if gaps._tokenizer.is_special(i)
    ]
    assert marks == [
        *map(gaps._tokenizer.id_of, ["[gMASK]", "<sop>", "<|user|>", GAP[1], GAP[0], GAP[2], "<|assistant|>"])
    ]


@pytest.mark.parametrize("names", [("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle")])
def test_a_file_names_its_tokens(names):
    """Of any spelling; the keys of today before the older ones."""
    keys = {f"tokenizer.ggml.{name}_token_id": 5 + i for i, name in enumerate(names)}
    assert filler(**keys)._tokenizer.gap_ids == (5, 6, 7)
    assert filler(**{**keys, "tokenizer.ggml.fim_pre_token_id": 9})._tokenizer.gap_ids == (9, 6, 7)
    with pytest.raises(glmlite.FormatError, match=f"{names[2]}_token_id: token id 384"):
        filler(**{**keys, f"tokenizer.ggml.{names[2]}_token_id": 384})


def test_a_vocabulary_with_two_of_them_fills_nothing(load):
    sizes = with_gaps("glm4")
    tokens = sizes["metadata"]["tokenizer.ggml.tokens"]
    tokens[tokens.index("<|code_middle|>")] = "<|other|>"
    model = load("glm4", sizes)
    assert not model.fills_blanks
    with pytest.raises(
        ValueError, match=r"this glm4 model fills no blanks.*glm, chatglm1, and those with <\|code_prefix"
    ):
        model.infill_stream("a", "b")


@pytest.mark.parametrize("architecture", ["chatglm", "glm4moe"])
def test_a_gap_is_filled(fill, architecture):
    model = fill(architecture)
    (letter,) = model.tokenize("z")
    options = {"max_tokens": 2, "logit_bias": {letter: 1e5}}
    result = model.infill(CODE, path="a.py", language="Python", **options)
    assert (result.text, result.spans) == (CODE.replace("[MASK]", "zz"), ["zz"])
    told = model.infill(CODE, **options).completions[0].stats.prompt_tokens
    assert (result.completions[0].stats.prompt_tokens > told) == (architecture == "chatglm")
    assert model.infill_stream("[MASK]", "", **options).result().text == "zz"
    likely = model.infill_stream("the ", " in", max_tokens=5).result().tokens
    assert likely == model.infill_stream("the ", " in", max_tokens=5, temperature=0).result().tokens


@pytest.mark.parametrize("architecture", ["chatglm", "glm"])
def test_what_is_no_text_is_named(fill, load, architecture):
    model = fill() if architecture == "chatglm" else load(architecture)
    for call, name in (
        (lambda: model.infill(5), "text"),
        (lambda: model.infill("[MASK]", path=5), "path"),
        (lambda: model.infill_stream(None, ""), "prefix"),
        (lambda: model.infill_stream("", b""), "suffix"),
        (lambda: model.infill_stream("", "", language=5), "language"),
    ):
        with pytest.raises(TypeError, match=f"^{name}: .*, expected str"):
            call()


@pytest.mark.parametrize(("text", "count"), [("the", "no"), ("[MASK] in [gMASK]", "2")])
def test_one_gap_at_a_time(fill, text, count):
    with pytest.raises(ValueError, match=f"the text has {count} masks, expected one"):
        fill().infill(text)


def test_what_is_nearest_to_a_gap_stays(fill):
    """With overflow "truncate"; else a text that is too long is refused."""
    model = fill(context=64)
    with pytest.raises(glmlite.ContextOverflow):
        model.infill_stream("x" * 60, "y" * 60)
    options = {"overflow": "truncate", "max_tokens": 4}
    assert model.infill_stream("x" * 60, "y" * 60, **options).result().stats.prompt_tokens == 60
    gaps = filler()
    around = len(gaps.prompt("", ""))
    for before, behind, room, left in [
        ("abcdefgh", "ijklmnop", 8, ("cdefgh", "ij")),
        ("ab", "ijklmnop", 8, ("ab", "ijklmn")),
        ("abcdefgh", "i", 8, ("bcdefgh", "i")),
        ("abcdefgh", "", 3, ("fgh", "")),
        ("abc", "def", 6, ("abc", "def")),
        ("abc", "def", 0, ("", "")),
    ]:
        assert gaps.prompt(before, behind, room=around + room) == gaps.prompt(*left)
    assert gaps.prompt("abc", "def", room=0) == gaps.prompt("", "")


@pytest.mark.parametrize("architecture", ["glm", "chatglm1"])
def test_blanks_fill_the_gap_between_two_texts(load, architecture):
    model = load(architecture)
    (letter,) = model.tokenize("z")
    options = {"max_tokens": 2, "logit_bias": {letter: 1e5}}
    done = model.infill_stream("the ", " in", **options).result()
    whole = model.infill("the [gMASK] in", **options)
    assert (done.text, done.stats.prompt_tokens) == ("zz", whole.completions[0].stats.prompt_tokens)
    start = model._infiller.start
    assert model.infill_stream(model.detokenize([start]), "", **options).result().text == "zz"  # that is text, too
    for texts, name in (("[MASK]", ""), "prefix"), (("", "a [gMASK]"), "suffix"):
        with pytest.raises(ValueError, match=f"{name}: has a mask of its own"):
            model.infill_stream(*texts)


# ---- real vocabularies


@pytest.mark.parametrize("asks", [True, False])
def test_ids_are_those_of_the_tokenizers_package(asks):
    """GLM-4's vocabulary with the three tokens where CodeGeeX4's and GLM-4.5's has them."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Peer

    peer = Peer.from_file(str(vocab.folder("glm-4-9b-chat-hf") / "tokenizer.json"))
    metadata = dict(vocab.metadata("glm-4-9b-chat-hf"))
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), np.array(metadata["tokenizer.ggml.token_type"])
    ids = dict(zip(GAP, (151347, 151349, 151348)))
    for token, i in ids.items():
        tokens[i], types[i] = token, vocab.CONTROL
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    gaps = GapFiller(Tokenizer.from_metadata({**metadata, "general.architecture": "chatglm"}), asks=asks)
    peer.add_special_tokens([AddedToken(f"<|fill{i}|>", special=True) for i in range(peer.get_vocab_size(), 151347)])
    peer.add_special_tokens([AddedToken(token, special=True) for token in (GAP[0], GAP[2], GAP[1])])
    assert {token: peer.token_to_id(token) for token in GAP} == ids
    before, behind = (
        "from typing import List\n\n\ndef 深度(s: str):\n    \t",
        "\n        depth -= 1\n\n    return 深度\n",
    )
    if asks:
        prompt = (
            f"[gMASK]<sop><|user|>\n###PATH:src/树.py\n###LANGUAGE:Python\n###MODE:BLOCK\n"
            f"<|code_suffix|>{behind}<|code_prefix|>{before}<|code_middle|><|assistant|>\n"
        )
    else:
        prompt = f"[gMASK]<sop><|code_prefix|>{before}<|code_suffix|>{behind}<|code_middle|>"
    want = peer.encode(prompt, add_special_tokens=False).ids
    assert gaps.prompt(before, behind, "src/树.py", "Python") == want


# ---- the ways in


class Filling(Scripted):
    fills_blanks = True

    def infill_stream(self, prefix, suffix, *, cancel=None, **options):
        self.asked.append({"prefix": prefix, "suffix": suffix, **options})
        return self._start(prefix, len(prefix), cancel, options)


BODY = {"input_prefix": "def f():\n", "prompt": "    ret", "input_suffix": "\n", "n_predict": 9, "temperature": 0.5}
EXTRA = {"input_extra": [{"filename": "a.py", "text": "x"}], "samplers": ["top_k", "infill"], "n_indent": 4}
ASKED = {"prefix": "def f():\n    ret", "suffix": "\n", "max_tokens": 9, "temperature": 0.5, "overflow": "truncate"}


def test_infill_of_llama_server():
    model = Filling({ASKED["prefix"]: ["urn ", "1"]})
    answer = ask(app(model), "/infill", {**BODY, **EXTRA, "stream": False})
    assert model.asked == [ASKED]
    assert answer.status == 200
    found = answer.json
    assert (found["content"], found["stop"], found["stop_type"]) == ("urn 1", True, "eos")
    assert found["tokens_predicted"] == found["timings"]["predicted_n"] == 2
    parts = ask(app(model), "/infill", {**BODY, "stream": True}).events
    assert [(part["content"], part["stop"]) for part in parts] == [("urn ", False), ("1", False), ("", True)]
    assert ask(app(model), "/infill", {**BODY, "n_predict": 0}).json["content"] == ""
    assert len(model.asked) == 2
    answer = ask(app(Scripted()), "/infill", BODY)
    assert answer.status == 400 and "does not fill gaps" in answer.json["error"]["message"]


def test_an_editor_waits_for_a_line_at_most(monkeypatch):
    """`t_max_predict_ms` ends an answer once it has a whole line."""
    clock = iter(range(100))
    monkeypatch.setattr("glmlite.serve.own.time.perf_counter", lambda: next(clock))
    model = Filling({ASKED["prefix"]: list("ab\ncd")})
    found = ask(app(model), "/infill", {**BODY, "t_max_predict_ms": 1500}).json
    assert (found["content"], found["stop_type"]) == ("ab\n", "limit")
    for never in (0, -1):
        assert ask(app(model), "/infill", {**BODY, "t_max_predict_ms": never}).json["content"] == "ab\ncd"


def test_completions_with_a_suffix_come_in_pieces():
    model = Filling({"a": ["b", "c"]})
    answer = ask(app(model), "/v1/completions", {"prompt": "a", "suffix": "d", "stream": True})
    assert [data["choices"][0]["text"] for data in answer.events[:3]] == ["", "b", "c"]
    assert model.asked == [{"prefix": "a", "suffix": "d"}]
    assert ask(app(model), "/api/generate", {"prompt": "a", "suffix": "d", "stream": False}).json["response"] == "bc"


def test_convert_names_the_tokens(tmp_path):
    tokens = ["a", *GAP, "[gMASK]", "<|endoftext|>"]
    types = np.array([1, 3, 3, 3, 3, 3], np.int32)
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    config = convert_text.Config({}, tmp_path / "config.json")
    found = convert_text._special_ids(config, {}, keys, len(tokens))
    assert [found[f"tokenizer.ggml.fim_{name}_token_id"] for name in ("pre", "suf", "mid")] == [1, 2, 3]
