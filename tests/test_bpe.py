"""Byte-level BPE: the engine's merges against the tokenizers library's, and against ten lines of Python."""

import random
import time
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import trained
import vocab
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from glmlite import Cancel, Cancelled, _native
from glmlite.errors import FormatError
from glmlite.tokenizer import Tokenizer, bpe
from glmlite.tokenizer.bpe import ALPHABET, IGNORE_MERGES, PATTERNS
from glmlite.tokenizer.vocabulary import Metadata, Vocabulary

RUNS = [" ", "  ", "\n", "\r\n", "\t", "'ll", "'s", " " * 70, "\n" * 70, "a" * 200, "7" * 90, "你" * 80, "，", ". "]
WORDS = [
    "the",
    "of",
    "don't",
    "I'LL",
    "x86_64",
    "3.14159",
    "人工智能",
    "北京大学",
    "日本語",
    "한국어",
    "עברית",
    "def",
    "f(x):",
    "\\frac{1}{2}",
    "👍🏽",
    "é",
    "é",
    "\x00",
    "ｶﾞ",
]


def text(rng):
    parts = []
    for _ in range(rng.randint(0, 60)):
        kind = rng.random()
        if kind < 0.5:
            parts.append(rng.choice(WORDS) + rng.choice(["", " "]))
        elif kind < 0.8:
            parts.append(rng.choice(RUNS))
        else:
            parts.append(
                "".join(chr(rng.choice([rng.randint(1, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])) for _ in "123")
            )
    return "".join(parts)


@pytest.fixture(scope="module")
def model():
    """(tokens, merges) that the library has learned from the texts of this repository."""
    learned = trained._bpe()["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in learned["merges"]]
    return sorted(learned["vocab"], key=learned["vocab"].get), merges


def library(model, pre):
    tokens, merges = model
    words = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(BPE(words, merges, ignore_merges=pre in IGNORE_MERGES))
    cuts = [Split(tokenizers.Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
    tokenizer.pre_tokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def ours(model, pre):
    tokens, merges = model
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }
    ).encode


@pytest.mark.parametrize("slice", [32, 64, 1024])
@pytest.mark.parametrize("pre", PATTERNS)
def test_ids_are_the_library_s_wherever_a_slice_ends(model, monkeypatch, pre, slice):
    monkeypatch.setattr(bpe, "_SLICE", slice)
    want, got, rng = library(model, pre), ours(model, pre), random.Random(f"{pre} {slice}")
    for _ in range(60):
        line = text(rng)
        assert got(line) == want(line), repr(line)


def merged(word, ids, ranks):
    """The specification: of all pairs that merge, that of the least rank, the leftmost of equals, until none does."""
    parts = [bytes([b]) for b in word]
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return [ids[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize("seed", range(5))
def test_merges_are_as_specified(seed):
    """On made-up vocabularies of two letters, where nearly everything merges; short words and long ones."""
    rng = random.Random(seed)
    tokens, merges = ["a", "b", "c"], []
    while len(merges) < 40:
        left, right = rng.choice(tokens), rng.choice(tokens)
        if len(left + right) < 12 and (left, right) not in merges:
            merges.append((left, right))
            if left + right not in tokens:
                tokens.append(left + right)
    rng.shuffle(merges)
    spelled = [" ".join(merge) for merge in merges]
    engine = _native.Bpe(tokens, np.zeros(len(tokens), np.uint8), spelled, whole_words=False)
    ids = {token.encode(): i for i, token in enumerate(tokens)}
    ranks = {(a.encode(), b.encode()): rank for rank, (a, b) in enumerate(merges)}
    for length in (1, 2, 3, 7, 31, 32, 33, 34, 100, 300):
        word = "".join(rng.choice("aab") for _ in range(length))
        assert engine.encode(word, np.array([length], np.int32)).tolist() == merged(word.encode(), ids, ranks), word


def test_a_byte_that_is_no_token_is_left_out():
    engine = _native.Bpe(["a", "b"], np.zeros(2, np.uint8), [], whole_words=False)
    assert engine.encode("axb好", np.array([2, 4], np.int32)).tolist() == [0, 1]
    assert engine.encode("", np.array([], np.int32)).tolist() == []


@pytest.mark.parametrize("ends", [[], [1], [2, 1], [4], [-1, 3], [3, 3, 4]])
def test_words_have_to_be_those_of_the_text(ends):
    engine = _native.Bpe(["a"], np.zeros(1, np.uint8), [], whole_words=False)
    with pytest.raises(ValueError, match="words that do not follow one another"):
        engine.encode("aaa", np.array(ends, np.int32))


def test_pieces():
    tokens = ["a", "Ġä½", "<|x|>", "unused", "中", "\u0144é"]
    kinds = np.array([0, 0, 1, 2, 0, 0], np.uint8)
    engine = _native.Bpe(tokens, kinds, [], whole_words=False)
    # What is not spelled in the byte alphabet stands for itself.
    assert engine.pieces() == [b"a", b" \xe4\xbd", b"<|x|>", b"", "中".encode(), "\u0144é".encode()]
    every = list(ALPHABET.values())
    assert _native.Bpe(every, np.zeros(256, np.uint8), [], whole_words=False).pieces() == [bytes([b]) for b in ALPHABET]


@pytest.mark.parametrize(
    "tokens, merges, message",
    [
        (["a", ""], [], "tokenizer.ggml.tokens: token 1 is empty"),
        (["a", "b", "a"], [], "tokenizer.ggml.tokens: token 2 is the same text as token 0"),
        (["a", "b"], ["a b"], "tokenizer.ggml.merges: merge 0 is 'a b', expected two tokens that join to a third"),
        (["a", "b", "ab"], ["a b", "ab"], "merge 1 is 'ab'"),
        (["a", "b", "ab"], ["a  b"], "merge 0 is 'a  b'"),
        (["a", "b", "ab"], [""], "merge 0 is ''"),
        (["a", "b", "ab"], ["c b"], "merge 0 is 'c b'"),
    ],
)
def test_vocabularies_that_lie(tokens, merges, message):
    with pytest.raises(FormatError, match=message):
        _native.Bpe(tokens, np.zeros(len(tokens), np.uint8), merges, whole_words=False)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="kinds"):
        _native.Bpe(["a"], np.zeros(2, np.uint8), [], whole_words=False)
    with pytest.raises(ValueError, match="kind above 2"):
        _native.Bpe(["a"], np.full(1, 3, np.uint8), [], whole_words=False)
    with pytest.raises(TypeError):
        _native.Bpe([5], np.zeros(1, np.uint8), [], whole_words=False)
    with pytest.raises(UnicodeEncodeError):
        _native.Bpe(["\ud800"], np.zeros(1, np.uint8), [], whole_words=False)


@pytest.mark.parametrize("unit", ["a", " ", "7", "\n", "ab ", "Ab3/", "你", "\x00"])
def test_long_runs_take_a_time_that_grows_with_their_length(model, unit):
    """Each of 200,000 characters; to look at all pairs again for each merge would take hours."""
    encode = ours(model, "glm4")
    line = (unit * 200_000)[:200_000]
    ids = encode(line)
    assert 0 < len(ids) <= 3 * len(line)


@pytest.mark.parametrize(
    "pre, words",
    [
        ("deepseek-llm", "Hello| world|,| | foo| |1|2|½|!|\n| | x|😀   😀  |你好| |한국| Ü|n|ï|code|ვა"),
        ("deepseek-coder", "Hello| world|,| | foo| |1|2|½|!|\n| | x|😀   😀 | |你好| |한국| Ünïcode|ვა"),
        ("seed-coder", "Hello| world|,| | foo| |1|2|½|!|\n| | x|😀|  | 😀| | 你好| 한국| Ünïcodeვა"),
        ("viking", "Hello| world|, | foo| |1|2|½|!\n | x😀|  | 😀| | 你好| 한국| Ünïcodeვა"),
        ("minerva-7b", "Hello| world|,| | foo| |1|2|½|!|\n | x|😀|  | 😀| | 你好| 한국| Ünïcodeვა"),
        ("mellum", "Hello| world|,| | foo| 12½|!|\n | x|😀|  | 😀| | 你好| 한국| Ünïcodeვა"),
        ("falcon3", "Hello| world|,| | foo| |12½|!\n| | x|😀|  | 😀| | 你好| 한국| Ünïcodeვა"),
        ("megrez", "Hello| world|,| | foo| |1|2|½|!\n| | x|😀|  | 😀| | 你好| 한국| Ünïcodeვა"),
    ],
)
def test_words_of_files_of_the_llama_architecture(pre, words):
    metadata = Metadata(vocab.small_bytes(pre))
    codec = bpe.ByteBPE(metadata, Vocabulary(metadata))
    text = words.replace("|", "")
    ends = codec._cut(text, 0).tolist()
    assert "|".join(text[begin:end] for begin, end in pairwise([0, *ends])) == words


def test_white_space_before_a_slice_s_end_is_not_the_last_of_the_text(model, monkeypatch):
    monkeypatch.setattr(bpe, "_SLICE", 64)
    line = "ab😀" + " " * 100 + "😀" + " " * 70 + "\n" + "😀" * 70 + " " * 90
    assert ours(model, "deepseek-llm")(line) == library(model, "deepseek-llm")(line)


def test_a_thread_whose_work_is_cancelled_does_not_tokenize_to_the_end(model):
    encode, cancel = ours(model, "gpt-2"), Cancel()
    with cancel.over():
        assert encode("a b")
        cancel.cancel()
        with pytest.raises(Cancelled):
            encode("a b")
    assert encode("a b")


@pytest.mark.parametrize("pre", PATTERNS)
def test_long_runs_are_cut_in_a_time_that_grows_with_their_length(model, pre):
    """A run of white space that ends in something else: tried at each of its blanks, it would take minutes."""
    encode = ours(model, pre)
    for line in (" " * 200_000 + "😀", "😀" * 100_000, "ვ" * 100_000):
        begin = time.process_time()
        assert encode(line)
        assert time.process_time() - begin < 10
