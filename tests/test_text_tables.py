"""The tokenizers of the C API, from tables, against those of Python: ids, words and text."""

import functools
import random
from pathlib import Path

import numpy as np
import pytest
import test_bpe
import test_tokenizer
import tokenizers
import vocab
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import Sequence, Split

from glmlite import _native, builtin
from glmlite.convert.writer import write
from glmlite.errors import FormatError
from glmlite.tokenizer import Tokenizer, automata
from glmlite.tokenizer.bpe import PATTERNS, patterns
from glmlite.tokenizer.tables import tables

ROOT = Path(__file__).parents[1]
SCALARS = [*range(0xD800), *range(0xE000, 0x110000)]
MARKS = ["\u2581", "\u2581\u2581", "<n>", "<|blank_3|>", "<0x41>", "<unk>", "<s>", "[gMASK]", "sop", "\x00", "ﷺ", "ﬁ"]
KINDS = [*"aAſ's1٣ \n\r\t\u00a0你ʰǅ\u0301!/_$😀\u200d\u3000\x85lLveErRtTmdD\u2028½\u0378が\U000e0001", "  ", "the"]


def random_texts(count: int, seed: int, parts: list[str]) -> list[str]:
    rng = random.Random(seed)

    def part() -> str:
        return chr(rng.choice(SCALARS)) if rng.random() < 0.2 else rng.choice(parts)

    return ["".join(part() for _ in range(rng.randint(1, 40))) for _ in range(count)]


def every_character(step: int) -> list[str]:
    """Texts of one character in `step` of all, each between others."""
    contexts = [("", ""), (" ", "a"), ("1", "'"), ("\n", "A"), ("'", "s"), ("!", " ")]
    blocks = [SCALARS[begin : begin + 4096 : step] for begin in range(0, len(SCALARS), 4096)]
    return ["".join(a + chr(c) + b for c in block) for block in blocks for a, b in contexts]


TEXTS = [
    *((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md", "csrc/gguf.cpp")),
    *test_tokenizer.LINES,
    *random_texts(1000, 1, [*KINDS, *MARKS]),
]


def made(metadata, folder):
    """(Python's tokenizer, the one from tables)."""
    write(folder / "tables.gguf", tables(metadata), [])
    return Tokenizer.from_metadata(metadata), _native.TextTokenizer(str(folder / "tables.gguf"))


@pytest.fixture(scope="module", params=[*test_tokenizer.NAMES, "builtin"])
def pair(request, tmp_path_factory):
    metadata = (
        _native.Gguf(str(builtin.path())).metadata if request.param == "builtin" else vocab.metadata(request.param)
    )
    return made(metadata, tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize("special", [True, False])
def test_ids_are_python_s(pair, special):
    python, ours = pair
    for text in [*TEXTS, *(every_character(211) if not special else [])]:
        assert ours.encode(text.encode(), special=special).tolist() == python.encode(text, special=special), repr(text)


def test_ids_of_a_long_text_are_python_s(pair):
    """Sums of scores grow with it, and what differs in their last bits decides between ways that tie."""
    python, ours = pair
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    assert len(text) > 200_000
    assert ours.encode(text.encode(), special=True).tolist() == python.encode(text)


def test_text_is_python_s(pair):
    """Also of ids that follow one another in no text."""
    python, ours = pair
    rng = random.Random(3)
    for text in test_tokenizer.LINES:
        ids = [i for i in python.encode(text) if rng.random() < 0.8]
        ids += [rng.randrange(python.vocab_size) for _ in range(3)]
        assert ours.begin(ids) == python.begin(ids)
        for skip in (True, False):
            theirs, stream = python.stream(skip_special=skip), ours.stream(skip_special=skip)
            for i in ids:
                assert stream.push(i).decode() == theirs.push([i]), (ids, i)
            assert stream.finish().decode() == theirs.finish(), ids


def test_what_else_a_host_asks(pair):
    python, ours = pair
    assert (ours.size, ours.ends, tuple(ours.prefix)) == (python.vocab_size, sorted(python.eos_ids), python.prefix_ids)
    for i in range(ours.size):
        assert (ours.piece(i), ours.is_special(i)) == (python.piece(i), python.is_special(i))
    for text in ("[gMASK]", "sop", "<|user|>", "no token"):
        assert ours.find(text) == (-1 if (i := python.id_of(text)) is None else i)
    for call in (ours.piece, ours.stream(skip_special=True).push):
        with pytest.raises(ValueError, match="token id"):
            call(ours.size)


def test_bytes_that_are_no_text_count_as_python_replaces_them(pair):
    python, ours = pair
    rng = random.Random(4)
    for _ in range(500):
        data = bytes(rng.choice([0x41, 0x20, 0x80, 0xA0, 0xBF, 0xC2, 0xE4, 0xED, 0xF0, 0xF4, 0xFF]) for _ in range(12))
        assert ours.encode(data, special=False).tolist() == python.encode(data.decode(errors="replace"), special=False)


@functools.cache
def automaton(pre):
    return _native.Words(*automata.tables(patterns(pre)))


def words(pre, text):
    data = text.encode()
    begins = np.frombuffer(data, np.uint8) & 0xC0 != 0x80
    return np.cumsum(begins)[automaton(pre).cut(data) - 1].tolist()


def library(pre, text):
    cuts = [Split(tokenizers.Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
    return [end for _, (_, end) in Sequence(cuts).pre_tokenize_str(text)]


DISTINCT = {PATTERNS[pre]: pre for pre in PATTERNS}.values()


@pytest.mark.parametrize("pre", DISTINCT)
def test_words_are_the_library_s(pre):
    rng = random.Random(pre)
    lines = [test_bpe.text(rng) for _ in range(300)]
    for text in [*TEXTS[:3], *lines, *random_texts(300, 2, KINDS), *every_character(211)]:
        assert words(pre, text) == library(pre, text), repr(text[:80])


@pytest.mark.parametrize("pre", ["glm4", "gpt-4o", "deepseek-llm"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1) | st.text("aA's \n\r1ſ.\u0301", min_size=1))
def test_words_of_any_text(pre, text):
    text = text.encode(errors="replace").decode()
    assert words(pre, text) == library(pre, text)


def test_classes_are_the_library_s():
    """Of every character, whether a pattern takes it that takes nothing else."""
    for atom in (r"\s", "(?i:s)"):
        matched = _native.Words(*automata.tables([atom]))
        split = Split(tokenizers.Regex(atom), "isolated")
        for begin in range(0, len(SCALARS), 1 << 14):
            text = "".join(map(chr, SCALARS[begin : begin + (1 << 14)]))
            begins = np.frombuffer(text.encode(), np.uint8) & 0xC0 != 0x80
            got = np.cumsum(begins)[matched.cut(text.encode()) - 1].tolist()
            assert got == [end for _, (_, end) in split.pre_tokenize_str(text)], atom


@pytest.mark.parametrize(
    "pattern, texts",
    [
        ("a|ab", ["ab"]),
        ("(?:a|ab)(?:c|bcd)", ["abcd", "abc"]),
        ("a?b{1,3}c*", ["abbbbcc", "c", "bc"]),
        ("a(?!b)", ["ab ac a"]),
        ("(?<!a)b+", ["ab bb abb"]),
        ("a++b|a", ["aab aac"]),
        ("a+$", ["aaba a\naa", "aa"]),
        ("(?i:ab)c", ["abc ABc aBC"]),
        (r"[^(\s|.]+x", ["abx(x|xx x"]),
    ],
)
def test_patterns_mean_what_the_library_takes_them_for(pattern, texts):
    matched = _native.Words(*automata.tables([pattern]))
    split = Split(tokenizers.Regex(pattern), "isolated")
    for text in texts:
        assert matched.cut(text.encode()).tolist() == [end for _, (_, end) in split.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("a*", "matches no character"),
        ("(a)", r"'\(a\)' is not supported"),
        (r"\bx", "not supported"),
        ("a{2}", "not supported"),
        ("(?:ab)++", "not supported"),
        ("(?=a)b", "not supported"),
        ("(?:a", "not supported"),
        ("a.", "not supported"),
        ("^a", "not supported"),
        ("a+?", "not supported"),
        ("$+", "not supported"),
    ],
)
def test_patterns_that_are_refused(pattern, message):
    with pytest.raises(FormatError, match=message):
        automata.tables([pattern])


def test_tables_are_refused_where_python_refuses(tmp_path):
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.pre: 'glm5' is not known"):
        tables(vocab.small_bytes("glm5"))
    with pytest.raises(FormatError, match=r"glmlite\.text\.model: is missing"):
        write(tmp_path / "none.gguf", {}, [])
        _native.TextTokenizer(str(tmp_path / "none.gguf"))


@pytest.mark.parametrize("unit", ["a", " ", "你", "ab ", "[gMASK]"])
def test_long_runs_take_a_time_that_grows_with_their_length(pair, unit):
    """To look at each part of a run from each of its places would take hours."""
    _, ours = pair
    text = (unit * 300_000)[:300_000]
    ids = ours.encode(text.encode(), special=False).tolist()
    assert 0 < len(ids) <= 3 * len(text) or not text.strip()
