"""Tokenizers against the libraries on the models' own files, streaming against whole decoding, and bad metadata."""

import base64
import json
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
import vocab

from glmlite.convert import vocab as convert
from glmlite.errors import FormatError
from glmlite.tokenizer import Tokenizer
from glmlite.tokenizer.bpe import PATTERNS

NAMES = [*(vocab.TRAINED + name for name in vocab.VOCAB_SIZES), *vocab.VOCAB_SIZES]
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def items(text: str) -> list[str]:
    return re.split("[ \n]+", text)


WORDS = items(
    """人工智能 今天天气真好， 北京大学 的 了 是 「引号」 《书名》 １２３ ＡＢＣ ！ 龘 齉 臺灣 日本語 カタカナ 한국어
    ไทย עברית العربية the of Transformer don't I'LL we've running isopropyl sopranos eopx x86_64 3.14159 12345678
    0xFF <n> <s> [UNK] def return_value(x): for(int i=0;i<9;++i){ a[i]+=b; } #include<stdio.h> </div> \\frac{1}{2} && ||
    := // ```python 王 参考 Begriff <|user <|us"""
)
ODD = items(
    """\U00020000 \U0002a6d6 \U0002b740 \U0002ceb0 \U00030000 \U000323af 𠮷 㐀 ｶﾞ ㍿ ﷺ ﬁ ½ ™ Å é e\u0301 n\u0303\u0323
    ก\u0e33 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇨🇳 🇺🇸🇯 😀 👍🏽 ☃️ 1️⃣ \u200b \u200e \ufeff \u00a0 \u3000 \u2003
    \u2028 \u0085 \ufffd \x00 \x01 \x07 \x08 \x0b \x0c \x1b[31m \x7f \x80 \x9f \ue000 \U0010ffff"""
)
SPACES = [*(" " * n for n in (1, 2, 3, 17, 79, 80, 81, 163)), *"\t\n\r", "\t\t\t", "\n\n", "\r\n", " \n ", "\t \n"]
SPECIALS = items(
    """[MASK] [gMASK] [sMASK] <sop> <eop> [gMASK]sop [MASK]eop <|system|> <|user|> <|assistant|> <|observation|>
    <|endoftext|> <|begin_of_image|> <|end_of_video|> <unused_0> <ENC> <dBLOCK> </s> <pad> <|blank_7|> <|tab|>
    <|user|><|user|>"""
)


def lines(count: int = 2000) -> list[str]:
    """Mixed text, the same in every run. Every special token occurs, also inside words and at both ends."""
    rng = random.Random(20240601)
    parts = [*SPECIALS, *ODD, *SPACES, *WORDS]
    out = [*parts, ""]
    while len(out) < count:
        weights = rng.choice([(8, 1, 4, 1), (3, 3, 3, 3), (1, 8, 1, 0), (5, 0, 9, 0)])
        groups = rng.choices([WORDS, ODD, SPACES, SPECIALS], weights, k=rng.randint(1, 24))
        line = "".join(rng.choice(group) + rng.choice(["", "", " "]) for group in groups)
        if rng.random() < 0.3:
            line += "".join(chr(rng.choice([rng.randint(0x4E00, 0x9FFF), rng.randint(0x20, 0x2FF)])) for _ in range(9))
        out.append(line)
    return out[:count]


LINES = lines()


# ---- the models' own tokenizers, straight on their libraries ---------------------------------------------------------


class Reference:
    """A sentencepiece file. Special tokens cut the text; each part is encoded and decoded by itself."""

    sp: sentencepiece.SentencePieceProcessor
    specials: dict[str, int]

    def split(self, text: str):
        """Plain parts and special tokens; `sop` and `eop` only behind a mask token."""
        letters = "|".join(t for t in self.specials if t.isalpha())
        pattern = "|".join(re.escape(t) for t in sorted(self.specials, key=len, reverse=True) if not t.isalpha())
        if letters:
            pattern += rf"|(?:(?<=\[MASK\])|(?<=\[gMASK\])|(?<=\[sMASK\]))(?:{letters})"
        return [part for part in re.split(f"({pattern})", text) if part]

    def encode(self, text: str, special: bool) -> list[int]:
        if not special:
            return self.plain(text)
        ids = []
        for part in self.split(text):
            # A mask token's `sop` is told from the text "sop" by what comes before it.
            known = part in self.specials and (not part.isalpha() or (ids and self.is_mask(ids[-1])))
            ids += [self.specials[part]] if known else self.plain(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Special tokens by their text, each run between them by the library."""
        texts = {i: text for text, i in self.specials.items()}
        out, run = "", []
        for i in [*ids, None]:
            if i is None or i in texts:
                out += self.from_tokens(self.sp.decode(run)) + texts.get(i, "")
                run = []
            else:
                run.append(i)
        return out

    @staticmethod
    def from_tokens(text: str) -> str:
        return text

    def is_mask(self, i: int) -> bool:
        return i in [self.specials[t] for t in ("[MASK]", "[gMASK]", "[sMASK]")]


class ChatGLM3(Reference):
    """The sentencepiece file, and the tokens that the official code appends to it; `sop` is `<sop>` as well."""

    def __init__(self, folder: Path):
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        appended = items("[MASK] [gMASK] [sMASK] sop eop <|system|> <|user|> <|assistant|> <|observation|>")
        self.specials = {text: i for i, text in enumerate(appended, 64789)} | {"<s>": 1, "</s>": 2}
        self.specials |= {f"<{text}>": self.specials[text] for text in ("sop", "eop")}

    def plain(self, text: str) -> list[int]:
        return self.sp.encode(text)


class ChatGLM6B(Reference):
    """As the official tokenizer: white space to tokens, longest runs first; back after decoding."""

    def __init__(self, folder: Path):
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
        control = [i for i in range(self.sp.get_piece_size()) if self.sp.is_control(i)]
        self.specials = {self.sp.id_to_piece(i): i for i in control}

    @staticmethod
    def to_tokens(text: str) -> str:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for n in range(80, 1, -1):
            text = text.replace(" " * n, f"<|blank_{n}|>")
        return text

    @staticmethod
    def from_tokens(text: str) -> str:
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for n in range(2, 81):
            text = text.replace(f"<|blank_{n}|>", " " * n)
        return text

    def plain(self, text: str) -> list[int]:
        return self.sp.encode(self.to_tokens(text))

    def normalize(self, text: str) -> str:
        """What the model's character map, and its removal of blanks, leave of a text."""
        return self.from_tokens(self.sp.normalize(self.to_tokens(text)).lstrip("\u2581").replace("\u2581", " "))


class GLM4:
    """The rank file in tiktoken, with the pattern and the special tokens of the official tokenizer."""

    def __init__(self, folder: Path):
        import tiktoken

        rows = (line.split() for line in (folder / "tokenizer.model").read_bytes().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
        added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        self.specials = {token["content"]: int(i) for i, token in added.items()}
        self.encoding = tiktoken.Encoding(
            "glm4", pat_str=GLM4_PATTERN, mergeable_ranks=ranks, special_tokens=self.specials
        )

    def encode(self, text: str, special: bool) -> list[int]:
        allowed = "all" if special else set()
        return self.encoding.encode(text, allowed_special=allowed, disallowed_special=())

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)


class GLM4Json:
    """The tokenizer.json in the tokenizers library; ignore_merges, which this conversion lacks, is set."""

    def __init__(self, folder: Path):
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.model.ignore_merges = True

    def encode(self, text: str, special: bool) -> list[int]:
        self.tokenizer.encode_special_tokens = not special
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


REFERENCES = {
    "chatglm-6b": ChatGLM6B,
    "chatglm3-6b": ChatGLM3,
    "glm-4-9b-chat": GLM4,
    "glm-4-9b-chat-hf": GLM4Json,
}


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """(name, our tokenizer, the reference) of each real vocabulary, and of one of each form that is trained here."""
    folder, metadata = vocab.folder(request.param), vocab.metadata(request.param)
    name = request.param.removeprefix(vocab.TRAINED)
    return name, Tokenizer.from_metadata(metadata), REFERENCES[name](folder)


@pytest.mark.parametrize("special", [True, False])
def test_encode_and_decode_as_the_models_own_tokenizer(pair, special):
    _, ours, reference = pair
    for line in LINES:
        ids = ours.encode(line, special=special)
        assert ids == reference.encode(line, special), repr(line)
        assert ours.decode(ids) == reference.decode(ids), repr(line)


def test_round_trip_keeps_what_the_vocabulary_keeps(pair):
    name, ours, reference = pair
    for line in LINES:
        kept = reference.normalize(line) if name == "chatglm-6b" else line
        assert ours.decode(ours.encode(line, special=False)) == kept, repr(line)
        if name != "chatglm-6b":
            spelled = re.sub(r"(?<=MASK\])(sop|eop)", r"<\1>", line) if name == "chatglm3-6b" else line
            assert ours.decode(ours.encode(line)) == spelled


def test_streamed_text_is_the_whole_text(pair):
    _, ours, _ = pair
    rng = random.Random(7)
    for line in LINES:
        ids = ours.encode(line)
        if rng.random() < 0.2:  # broken characters too
            ids = [i for i in ids if rng.random() < 0.8]
        stream, parts = ours.stream(), []
        while ids[sum(len(p) for p in parts) :]:
            at = sum(len(p) for p in parts)
            parts.append(ids[at : at + rng.randint(1, 3)])
        text = "".join(stream.push(part) for part in parts) + stream.finish()
        assert text == ours.decode(ids), repr(line)


# ---- small vocabularies: every family without the models' files ------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    metadata = {"llama": vocab.small_sentencepiece(), "chatglm1": vocab.small_sentencepiece("chatglm1")}
    metadata |= {pre: vocab.small_bytes(pre) for pre in PATTERNS}
    return {name: Tokenizer.from_metadata(values) for name, values in metadata.items()}


def test_every_known_pre_loses_nothing(small):
    text = " ab  AB's 'S ab123456 你好!?\r\n\t ǅ\u0301 \x00 ABCdef 👍🏽 \n\n  x"
    for pre in PATTERNS:
        assert small[pre].decode(small[pre].encode(text)) == text, pre


def test_pre_decides_where_words_are_cut():
    digits = {"glm4": ["123", "45"], "qwen2": list("12345"), "smollm": list("12345"), "gpt-2": ["12345"]}
    for pre, words in digits.items():
        metadata = vocab.small_bytes(pre)
        grown = ["12", "123", "1234", "12345", "45"]
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *grown]
        metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [1] * len(grown))
        metadata["tokenizer.ggml.merges"] = ["1 2", "12 3", "123 4", "1234 5", "4 5"]
        tokenizer = Tokenizer.from_metadata(metadata)
        assert [tokenizer.piece(i).decode() for i in tokenizer.encode("12345")] == words, pre


def test_a_word_that_is_a_token_needs_no_merges():
    for pre, whole in {"glm4": True, "chatglm-bpe": True, "llama-bpe": True, "qwen2": False, "smollm": False}.items():
        metadata = vocab.small_bytes(pre)
        metadata["tokenizer.ggml.merges"] = []
        tokenizer = Tokenizer.from_metadata(metadata)
        assert (len(tokenizer.encode("ab")) == 1) == whole, pre


def test_special_tokens_in_text(small):
    for name in ("llama", "chatglm1", "glm4"):
        tokenizer = small[name]
        gmask, user = tokenizer.id_of("[gMASK]"), tokenizer.id_of("<|user|>")
        ids = tokenizer.encode("ab<|user|>[gMASK]<|user|>")
        assert ids[-3:] == [user, gmask, user]
        assert tokenizer.decode(ids) == "ab<|user|>[gMASK]<|user|>"
        assert tokenizer.decode(ids, skip_special=True) == "ab"
        assert all(map(tokenizer.is_special, ids[-3:])) and not tokenizer.is_special(ids[0])
        plain = tokenizer.encode("ab<|user|>", special=False)
        assert user not in plain and tokenizer.decode(plain) == "ab<|user|>"


def test_a_special_token_of_letters_counts_only_behind_a_mask(small):
    tokenizer = small["glm4"]
    sop, gmask = tokenizer.id_of("sop"), tokenizer.id_of("[gMASK]")
    assert tokenizer.encode("[gMASK]sop") == [gmask, sop]
    for text in ("sop", "isopropyl", "[gMASK] sop", "<|user|>sop"):
        assert sop not in tokenizer.encode(text), text


def test_sop_of_chatglm3_in_either_spelling():
    metadata = vocab.small_sentencepiece()
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[tokens.index("sop")] = "<other>"
    tokenizer = Tokenizer.from_metadata(metadata)
    prefix = [tokenizer.id_of("[gMASK]"), tokenizer.id_of("<sop>")]
    assert tokenizer.encode("[gMASK]sop") == tokenizer.encode("[gMASK]<sop>") == prefix
    assert prefix[1] not in tokenizer.encode("sop people")


def test_the_longest_special_token_wins():
    metadata = vocab.small_bytes()
    longer = ["<|user|>x", "<|user|><|"]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *longer]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [3, 3])
    tokenizer = Tokenizer.from_metadata(metadata)
    user, with_x, with_bar = map(tokenizer.id_of, ("<|user|>", *longer))
    assert tokenizer.encode("<|user|><|user|>x") == [with_bar, *tokenizer.encode("user|>x")]
    assert tokenizer.encode("<|user|><<|user|>x") == [user, *tokenizer.encode("<"), with_x]


def test_user_defined_tokens_are_text_that_stays_and_white_space_is_never_markup():
    metadata = vocab.small_bytes()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<think>", "    "]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [4, 4])
    tokenizer = Tokenizer.from_metadata(metadata)
    think, spaces = tokenizer.id_of("<think>"), tokenizer.id_of("    ")
    assert tokenizer.encode("<think>    ") == [think, spaces]
    assert tokenizer.decode([think, spaces], skip_special=True) == "<think>    "
    plain = tokenizer.encode("<think>    ", special=False)
    assert think not in plain and plain[-1] == spaces


def test_prefix_once(small):
    tokenizer = small["glm4"]
    prefix = (tokenizer.id_of("[gMASK]"), tokenizer.id_of("<sop>"))
    assert tokenizer.prefix_ids == prefix
    assert tokenizer.encode("ab", prefix=True) == [*prefix, *tokenizer.encode("ab")]
    assert tokenizer.encode("[gMASK]<sop>ab", prefix=True) == tokenizer.encode("[gMASK]<sop>ab")
    assert tokenizer.encode("", prefix=True) == list(prefix)
    assert small["chatglm1"].prefix_ids == ()


@pytest.mark.parametrize(
    "template",
    ["", "chatglm4", "<|user|>{{ text }}", "[gMASK]<sop><|user|>{{ text }}", "{{ bos_token }}<|user|>{{ text }}"],
)
@pytest.mark.parametrize("bos", ["[gMASK]", "<sop>", "<|endoftext|>", None])
def test_the_vocabulary_decides_on_the_prefix(template, bos):
    metadata = vocab.small_bytes() | {"tokenizer.chat_template": template}
    if bos is not None:
        metadata |= {
            "tokenizer.ggml.bos_token_id": metadata["tokenizer.ggml.tokens"].index(bos),
            "tokenizer.ggml.add_bos_token": True,
        }
    tokenizer = Tokenizer.from_metadata(metadata)
    prefix = [tokenizer.id_of("[gMASK]"), tokenizer.id_of("<sop>")]
    assert tokenizer.encode("ab", prefix=True) == [*prefix, *tokenizer.encode("ab")]


@pytest.mark.parametrize(
    "beginning",
    [
        "[gMASK]",
        "<sop>",
        "[gMASK]<sop>",
        "[gMASK]sop",
        "[gMASK]<sop>[gMASK]<sop>",
        "\n[gMASK] <sop>",
        "<|endoftext|>[gMASK]<sop>",
        "[gMASK]<sop><|endoftext|>",
    ],
)
def test_a_prefix_is_completed_and_never_doubled(beginning):
    metadata = vocab.small_bytes()
    metadata["tokenizer.ggml.bos_token_id"] = metadata["tokenizer.ggml.tokens"].index("<|endoftext|>")
    tokenizer = Tokenizer.from_metadata(metadata)
    prefix = [tokenizer.id_of("[gMASK]"), tokenizer.id_of("<sop>")]
    text = tokenizer.encode("\n ab[MASK]")
    assert tokenizer.begin(tokenizer.encode(beginning + "\n ab[MASK]")) == [*prefix, *text]
    assert tokenizer.encode(beginning + "\n ab[MASK]", prefix=True) == [*prefix, *text]
    assert tokenizer.begin(text) == [*prefix, *text]


def edge(count=0, **keys):
    """The metadata of a file like GLM-Edge's, of `count` tokens; keys of `chatglm`."""
    metadata = vocab.small_bytes() | {"general.architecture": "chatglm"}
    more = max(count - len(metadata["tokenizer.ggml.tokens"]), 0)
    metadata["tokenizer.ggml.tokens"] = metadata["tokenizer.ggml.tokens"] + [f"[PAD{i}]" for i in range(more)]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], np.full(more, 5, np.int32))
    return metadata | {f"chatglm.{name.replace('__', '.')}": value for name, value in keys.items()}


WHOLE = {"rope__dimension_count": 128, "embedding_length": 2048, "attention__head_count": 16}
HALF = WHOLE | {"rope__dimension_count": 64}
T = "tokenizer.chat_template"


@pytest.mark.parametrize(
    ("metadata", "prefixed"),
    [
        (edge(59264), False),
        (edge(59264, **HALF), False),  # old converters had half of it turn
        (edge(59264) | {T: "chatglm4"}, False),
        (edge(59264) | {T: "<|user|>{{ text }}"}, False),
        (edge(59264) | {T: "[gMASK]<sop><|user|>{{ text }}"}, True),  # a fine-tune's own
        (edge(59264) | {"glmlite.chat_format": "glm4"}, True),
        (edge(59264) | {"general.architecture": "glm4"}, True),
        (edge(59300, **WHOLE), False),  # with added tokens
        (edge(59300, **HALF), True),  # a GLM-4 whose vocabulary was cut
        (edge(40, **WHOLE) | {"chatglm.attention.key_length": np.uint32(128)}, False),
        (edge(151552, **WHOLE), True),
        (edge(**HALF) | {"glmlite.chat_format": "glm-edge"}, False),
    ],
)
def test_only_glm_edge_goes_without_a_prefix(metadata, prefixed):
    assert len(Tokenizer.from_metadata(metadata).prefix_ids) == 2 * prefixed


def test_chatglm1_has_no_prefix_whatever_its_file_says():
    metadata = vocab.small_sentencepiece("chatglm1") | {"general.architecture": "chatglm1"}
    assert Tokenizer.from_metadata(metadata | {T: "[gMASK]<sop>{{ text }}"}).prefix_ids == ()
    metadata["tokenizer.ggml.pre"] = "default"
    assert Tokenizer.from_metadata(metadata).prefix_ids == ()


def test_a_bos_is_the_prefix_where_a_file_asks_for_one():
    metadata = vocab.small_bytes()
    metadata["tokenizer.ggml.tokens"][-len(vocab.SPECIALS) :] = ["<s>", "</s>", "<a>", "<b>", "<c>", "<d>"]
    bos = {"tokenizer.ggml.bos_token_id": 260}
    assert Tokenizer.from_metadata(metadata | bos).prefix_ids == ()
    tokenizer = Tokenizer.from_metadata(metadata | bos | {"tokenizer.ggml.add_bos_token": True})
    assert tokenizer.prefix_ids == (260,)
    assert tokenizer.encode("<s><s>ab", prefix=True) == [260, *tokenizer.encode("ab")]


def test_end_ids():
    metadata = vocab.small_bytes()
    text = metadata["tokenizer.ggml.tokens"]
    ends = {text.index("<|user|>"), text.index("<|endoftext|>")}
    assert Tokenizer.from_metadata(metadata).eos_ids == ends
    named = {"tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.eot_token_id": np.uint32(4)}
    named["tokenizer.ggml.eos_token_ids"] = np.array([5, 6], np.uint32)
    assert Tokenizer.from_metadata(metadata | named).eos_ids == ends | {3, 4, 5, 6}
    pieces = vocab.small_sentencepiece()
    pieces["tokenizer.ggml.tokens"][-1] = "<|im_end|>"
    pieces["tokenizer.ggml.token_type"][-1] = 4
    assert len(pieces["tokenizer.ggml.tokens"]) - 1 in Tokenizer.from_metadata(pieces).eos_ids
    # "</s>" is an ordinary token in many byte-level vocabularies: it ends nothing.
    words = {"tokenizer.ggml.tokens": [*text, "</s>"]}
    words["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], 1)
    assert Tokenizer.from_metadata(metadata | words).eos_ids == ends


def test_older_files_with_user_defined_specials_or_no_types(small):
    for metadata in (vocab.small_bytes(), vocab.small_sentencepiece()):
        kinds = metadata["tokenizer.ggml.token_type"]
        tokenizer = Tokenizer.from_metadata(metadata | {"tokenizer.ggml.token_type": np.where(kinds == 3, 4, kinds)})
        assert tokenizer.is_special(tokenizer.id_of("<|user|>")) and len(tokenizer.prefix_ids) == 2
        assert tokenizer.id_of("sop") not in tokenizer.encode("isopropyl")
    metadata = vocab.small_bytes()
    del metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.pre"]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("<|user|> ab12345") == small["glm4"].encode("<|user|> ab12345")


def test_glm_specials_that_a_file_calls_ordinary_words(small):
    metadata = vocab.small_bytes()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_metadata(metadata | {"tokenizer.ggml.token_type": np.where(kinds == 3, 1, kinds)})
    assert tokenizer.prefix_ids == small["glm4"].prefix_ids and tokenizer.eos_ids == small["glm4"].eos_ids
    assert tokenizer.encode("[gMASK]<sop><|user|> ab") == small["glm4"].encode("[gMASK]<sop><|user|> ab")
    assert not tokenizer.is_special(tokenizer.id_of("sop"))  # a word of GLM-4's


def test_return_ends_an_answer():
    metadata = vocab.small_bytes()
    metadata["tokenizer.ggml.tokens"][-1] = "<|return|>"
    assert len(metadata["tokenizer.ggml.tokens"]) - 1 in Tokenizer.from_metadata(metadata).eos_ids


@pytest.mark.parametrize("pre", ["default", "chatglm1"])
@pytest.mark.parametrize("named", [True, False])
def test_of_many_unknown_tokens_one_is_meant(small, named, pre):
    metadata = vocab.small_sentencepiece(pre)
    count = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *["[PAD]"] * 40]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [2] * 40)
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.zeros(40, np.float32))
    if named:
        metadata["tokenizer.ggml.unknown_token_id"] = 0
    tokenizer = Tokenizer.from_metadata(metadata | {"tokenizer.ggml.padding_token_id": count + 39})
    plain = small["llama" if pre == "default" else "chatglm1"]
    assert tokenizer.unk_id == plain.unk_id == 0
    assert tokenizer.decode([0]) == plain.decode([0])
    assert tokenizer.decode([count, count + 38]) == "" and not tokenizer.is_special(count)
    assert tokenizer.is_special(count + 39)
    assert tokenizer.encode("ab你 [PAD]", special=False) == plain.encode("ab你 [PAD]")


def test_the_named_unknown_token_counts():
    metadata = vocab.small_sentencepiece()
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    metadata["tokenizer.ggml.token_type"][-1] = 2
    metadata["tokenizer.ggml.unknown_token_id"] = last
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.unk_id == last and tokenizer.decode([last]) == " \u2047 " and tokenizer.decode([0]) == ""


def test_types_of_a_sentencepiece_file_without_any(small):
    metadata = vocab.small_sentencepiece()
    del metadata["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_metadata(metadata)
    for text in ("ab 你 😀\x01", "[gMASK]<sop><|user|>ab"):
        assert tokenizer.encode(text) == small["llama"].encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id == 0 and tokenizer.is_special(tokenizer.id_of("<|user|>"))


def test_unused_tokens_may_have_one_text(small):
    for name, metadata in (("llama", vocab.small_sentencepiece()), ("glm4", vocab.small_bytes())):
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "", "", "ab", "<0x41>"]
        metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [5] * 4)
        if "tokenizer.ggml.scores" in metadata:
            metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.float32([0] * 4))
        assert Tokenizer.from_metadata(metadata).encode("abA") == small[name].encode("abA")


def test_surrogates_and_control_characters(small):
    for name in ("llama", "chatglm1", "glm4"):
        tokenizer = small[name]
        assert tokenizer.encode("a\ud800b\udc00") == tokenizer.encode("a\ufffdb\ufffd")
        assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")  # a pair is a character
        with pytest.raises(TypeError, match="bytes, expected str"):
            tokenizer.encode(b"ab")
        control = "".join(map(chr, range(32))) + "\x7f\x85"
        assert tokenizer.decode(tokenizer.encode(control)) == control


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """The ids of the single bytes of `data`."""
    by_piece = {tokenizer.piece(i): i for i in reversed(range(tokenizer.vocab_size))}
    if tokenizer.id_of("<0x00>") is not None:
        return [tokenizer.id_of(f"<0x{b:02X}>") for b in data]
    return [by_piece[bytes([b])] for b in data]


@pytest.mark.parametrize("name", ["llama", "chatglm1", "glm4"])
def test_streaming_waits_for_whole_characters_and_replaces_what_can_be_none(small, name):
    tokenizer = small[name]

    def pushes(data: bytes) -> list[str]:
        stream = tokenizer.stream()
        return [stream.push([i]) for i in byte_ids(tokenizer, data)] + [stream.finish()]

    assert pushes("é你😀".encode()) == ["", "é", "", "", "你", "", "", "", "😀", ""]
    assert pushes(b"a\xe4b") == ["a", "", "\ufffdb", ""]  # certain once b comes
    assert pushes(b"\xff\xc3\xa9") == ["\ufffd", "", "é", ""]
    assert pushes(b"\xed\xa0")[1] != ""  # a surrogate, an overlong form, more than U+10FFFF: certain at once
    assert pushes(b"\xe0\x9f")[1] != "" and pushes(b"\xf4\x90")[1] != "" and pushes(b"\xc1")[0] != ""
    assert pushes(b"\xf5")[0] != "" and pushes(b"\xf4\x8f")[:2] == ["", ""]
    # sentencepiece replaces each byte, tiktoken and tokenizers a character's beginning
    assert "".join(pushes(b"\xf0\x9f\x98")) == "\ufffd" * (1 if name == "glm4" else 3)
    stream = tokenizer.stream()
    user = tokenizer.id_of("<|user|>")
    assert stream.push([*byte_ids(tokenizer, b"\xe4"), user]) == "\ufffd<|user|>"


def test_streamed_bytes_are_the_bytes_python_decodes(small):
    rng = random.Random(3)
    edges = bytes(
        [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xE4, 0xED, 0xF0, 0xF3, 0xF4, 0xF5]
    )
    for _ in range(3000):
        data = bytes(rng.choices(edges, k=rng.randint(1, 7)))
        stream = small["glm4"].stream()
        text = "".join(stream.push([i]) for i in byte_ids(small["glm4"], data)) + stream.finish()
        assert text == data.decode("utf-8", "replace"), data


def test_decode_errors(small):
    for name in ("llama", "glm4"):
        ids = byte_ids(small[name], b"a\xffb")
        assert small[name].decode(ids, errors="ignore") == "ab"
        with pytest.raises(UnicodeDecodeError):
            small[name].decode(ids, errors="strict")
        for bad in (-1, small[name].vocab_size):
            with pytest.raises(ValueError, match=f"token id {bad}"):
                small[name].decode([bad])
            with pytest.raises(ValueError, match=f"token id {bad}"):
                small[name].piece(bad)


def test_the_blank_before_a_text():
    with_blank = Tokenizer.from_metadata(vocab.small_sentencepiece())
    assert [with_blank.piece(i) for i in with_blank.encode("ab ab")] == [b" ab", b" ab"]
    assert with_blank.decode(with_blank.encode("  ab<|user|> ab")) == "  ab<|user|> ab"
    without = Tokenizer.from_metadata(vocab.small_sentencepiece() | {"tokenizer.ggml.add_space_prefix": False})
    assert [without.piece(i) for i in without.encode("ab ab")] == [b"ab", b" ab"]
    assert without.decode(without.encode(" ab")) == " ab"


def test_threads_share_a_tokenizer(small):
    for name in ("llama", "chatglm1", "glm4"):
        tokenizer = small[name]
        alone = [tokenizer.encode(line) for line in LINES[:400]]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(tokenizer.encode, LINES[:400])) == alone


# ---- vocabularies made by the libraries' own trainers: GLM-10B's two forms ------------------------------------------


def test_unigram_vocabulary_with_appended_specials(tmp_path):
    """GLM-large-chinese: a unigram model with nmt_nfkc, special tokens behind its pieces."""
    (tmp_path / "corpus.txt").write_text("\n".join(WORDS * 20 + ["今天 天气 很好 hello world"] * 50), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "cog-pretrain"),
        vocab_size=260,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "cog-pretrain.model"))
    specials = ["<|endoftext|>", "[CLS]", "[MASK]", "[gMASK]", "[sMASK]", "<|startofpiece|>", "<|endofpiece|>"]
    size = original.get_piece_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({text: size + i for i, text in enumerate(specials)}))
    metadata = convert.from_folder(tmp_path, vocab_size=size + 20)
    assert metadata["tokenizer.ggml.model"] == "t5"
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.vocab_size == size + 20 and tokenizer.id_of("[gMASK]") == size + 3
    assert tokenizer.prefix_ids == (size + 1,)
    assert {tokenizer.id_of("<|endofpiece|>"), tokenizer.id_of("<|endoftext|>")} <= tokenizer.eos_ids
    unknown = 0
    for line in LINES[::4]:
        ids = tokenizer.encode(line, special=False)
        assert ids == original.encode(line), repr(line)
        assert tokenizer.decode(ids) == original.decode(ids), repr(line)
        unknown += tokenizer.unk_id in ids
    assert unknown > 10  # no byte fallback here: the unknown token is decoded as the library does


def test_gpt2_files_with_added_specials(tmp_path):
    """GLM-10B: vocab.json and merges.txt of GPT-2's kind, special tokens in added_tokens.json."""
    from tokenizers import models, pre_tokenizers, trainers

    original = tokenizers.Tokenizer(models.BPE())
    original.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    original.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
    original.model.save(str(tmp_path))
    size = original.get_vocab_size()
    specials = ["<|endoftext|>", "[CLS]", "[MASK]", "[gMASK]", "[sMASK]", "<|startofpiece|>", "<|endofpiece|>"]
    (tmp_path / "added_tokens.json").write_text(json.dumps({text: size + i for i, text in enumerate(specials)}))
    tokenizer = Tokenizer.from_metadata(convert.from_folder(tmp_path, vocab_size=1000))
    assert tokenizer.vocab_size == 1000 and tokenizer.prefix_ids == (size + 1,)
    assert tokenizer.encode("[CLS]a[MASK]")[::2] == [size + 1, size + 2]
    for line in LINES[::4]:
        ids = tokenizer.encode(line, special=False)
        assert ids == original.encode(line).ids, repr(line)
        assert tokenizer.decode(ids) == line


# ---- SmolLM2 against llama.cpp ---------------------------------------------------------------------------------------


def test_smollm2_as_llama_cpp():
    path = os.environ.get("GLMLITE_SMOLLM2")
    if not path:
        pytest.skip("GLMLITE_SMOLLM2 names no SmolLM2 GGUF file")
    import gguf

    fields = gguf.GGUFReader(path).fields
    tokenizer = Tokenizer.from_metadata({k: f.contents() for k, f in fields.items() if k.startswith("tokenizer.")})
    rows = json.loads((Path(__file__).parent / "data" / "smollm2_tokens.json").read_text(encoding="utf-8"))["lines"]
    assert len(rows) == 200
    for row in rows:
        assert tokenizer.encode(row["text"], special=row["special"]) == row["ids"], repr(row["text"])


# ---- bad metadata ----------------------------------------------------------------------------------------------------

TOKENS, TYPES, SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
MERGES, CHARSMAP = "tokenizer.ggml.merges", "tokenizer.ggml.precompiled_charsmap"


def put(key, at, value):
    """Replaces one element of the array under `key`."""

    def change(metadata):
        metadata[key] = metadata[key].copy()
        metadata[key][at] = value

    return change


def setting(key, value):
    return lambda metadata: metadata.__setitem__(key, value)


def trie(at, value):
    """Replaces one unit of the character map's trie."""

    def change(metadata):
        data = bytearray(vocab.charsmap())
        data[4 + 4 * at : 8 + 4 * at] = value.to_bytes(4, "little")
        metadata[CHARSMAP] = np.frombuffer(bytes(data), np.uint8)

    return change


BAD = {
    "all": [
        ("tokenizer.ggml.model", lambda m: m.pop("tokenizer.ggml.model")),
        ("tokenizer.ggml.model", setting("tokenizer.ggml.model", "bert")),
        ("tokenizer.ggml.model", setting("tokenizer.ggml.model", 3)),
        (TOKENS, lambda m: m.pop(TOKENS)),
        (TOKENS, setting(TOKENS, [])),
        (TOKENS, setting(TOKENS, np.zeros(3))),
        (TOKENS, put(TOKENS, 257, b"\xff\xfe")),
        (TOKENS, put(TOKENS, 257, "\ud800")),
        (TOKENS, put(TOKENS, 257, 12)),
        (TOKENS, put(TOKENS, 257, "a" * 100_000)),
        (TOKENS, put(TOKENS, -1, "")),
        (TYPES, lambda m: m.__setitem__(TYPES, m[TYPES][:-1])),
        (TYPES, put(TYPES, 5, 7)),
        (TYPES, put(TYPES, 5, -1)),
        (TYPES, setting(TYPES, np.zeros((2, 2), np.int32))),
        (TYPES, setting(TYPES, ["a"])),
        ("tokenizer.ggml.bos_token_id", setting("tokenizer.ggml.bos_token_id", 10**6)),
        ("tokenizer.ggml.bos_token_id", setting("tokenizer.ggml.bos_token_id", -1)),
        ("tokenizer.ggml.bos_token_id", setting("tokenizer.ggml.bos_token_id", "0")),
        ("tokenizer.ggml.bos_token_id", setting("tokenizer.ggml.bos_token_id", [1, 2])),
        ("tokenizer.ggml.eos_token_ids", setting("tokenizer.ggml.eos_token_ids", [2**40])),
        ("tokenizer.ggml.eos_token_ids", setting("tokenizer.ggml.eos_token_ids", [[1], [2, 3]])),
        ("tokenizer.ggml.add_bos_token", setting("tokenizer.ggml.add_bos_token", "yes")),
        ("tokenizer.chat_template", setting("tokenizer.chat_template", 1)),
    ],
    "glm4": [
        ("tokenizer.ggml.pre", setting("tokenizer.ggml.pre", "glm5")),
        ("tokenizer.ggml.pre", setting("tokenizer.ggml.pre", ["glm4"])),
        (TOKENS, put(TOKENS, 257, "ab")),
        (TOKENS, put(TOKENS, 3, "")),
        (MERGES, lambda m: m.pop(MERGES)),
        (MERGES, put(MERGES, 0, "a")),
        (MERGES, put(MERGES, 0, " ab")),
        (MERGES, put(MERGES, 0, "a b c")),
        (MERGES, put(MERGES, 0, "a Ġ")),
        (MERGES, put(MERGES, 0, "nothing here")),
        (MERGES, put(MERGES, 0, b"\xff")),
        (MERGES, setting(MERGES, "a b")),
    ],
    "llama": [
        (TOKENS, put(TOKENS, -1, "\u2581")),
        (TOKENS, put(TOKENS, -1, "a\0b")),
        (TOKENS, put(TOKENS, -1, "a" * 2000)),
        (TOKENS, put(TOKENS, 7, "<0x100>")),
        (TOKENS, put(TOKENS, 7, "<0x07>")),
        (TOKENS, put(TYPES, 7, 1)),
        (TOKENS, lambda m: m.__setitem__(TYPES, np.where(m[TYPES] == 1, 5, m[TYPES]))),
        (TYPES, put(TYPES, 0, 1)),
        (SCORES, lambda m: m.pop(SCORES)),
        (SCORES, lambda m: m.__setitem__(SCORES, m[SCORES][1:])),
        (SCORES, put(SCORES, 3, np.nan)),
        (SCORES, put(SCORES, 3, np.inf)),
        (SCORES, setting(SCORES, ["1"])),
        ("tokenizer.ggml.add_space_prefix", setting("tokenizer.ggml.add_space_prefix", 2.5)),
        (CHARSMAP, setting(CHARSMAP, np.zeros(3, np.uint8))),
        (CHARSMAP, setting(CHARSMAP, np.full(2000, 255, np.uint8))),
        (CHARSMAP, setting(CHARSMAP, np.frombuffer(vocab.charsmap()[:-1], np.uint8))),
        (CHARSMAP, setting(CHARSMAP, np.frombuffer(vocab.charsmap()[:-2] + b"\xff\0", np.uint8))),
        (CHARSMAP, setting(CHARSMAP, np.frombuffer(vocab.charsmap()[:-1] + b"b" * 2000 + b"\0", np.uint8))),
        (CHARSMAP, setting(CHARSMAP, np.array([300, 1]))),
        (CHARSMAP, trie(0, 300 << 10)),  # a child outside the trie
        (CHARSMAP, trie(0, 0x7FFFFC00 | 0x200)),
        (CHARSMAP, trie(1 ^ ord("A") ^ 2, 1 << 31 | 2)),  # a replacement behind the last
    ],
    "chatglm1": [(TOKENS, put(TOKENS, -1, "<|blank_81|>"))],
}
CASES = [(family, *case) for family in ("llama", "chatglm1", "glm4") for case in BAD["all"] + BAD.get(family, [])]


@pytest.mark.parametrize("family, key, change", CASES)
def test_bad_metadata_is_refused_by_name(family, key, change):
    metadata = vocab.small_bytes() if family == "glm4" else vocab.small_sentencepiece(family)
    if family == "llama":
        metadata["tokenizer.ggml.pre"] = "default"
    change(metadata)
    with pytest.raises(FormatError, match=f"^{re.escape(key)}: "):
        Tokenizer.from_metadata(metadata)


def test_an_unknown_pre_lists_the_known():
    with pytest.raises(FormatError, match=r"'glm5' is not known; known: .*glm4.*smollm"):
        Tokenizer.from_metadata(vocab.small_bytes("glm5"))


def test_the_character_map_of_the_small_vocabulary_is_a_good_one(small):
    assert small["llama"].decode(small["llama"].encode("AxA")) == "bxb"


def test_many_special_tokens_do_not_make_a_text_slow():
    metadata = vocab.small_bytes()
    many = [f"<{i}" for i in range(50_000)]
    metadata[TOKENS] = [*metadata[TOKENS], *many]
    metadata[TYPES] = np.append(metadata[TYPES], np.full(len(many), 3))
    tokenizer = Tokenizer.from_metadata(metadata)
    start = time.process_time()
    ids = tokenizer.encode("<" * 50_000)
    assert time.process_time() - start < 5  # 50,000 tokens tried at 50,000 places would take minutes
    assert tokenizer.decode(ids) == "<" * 50_000


def test_imports_nothing_heavy():
    code = (
        "import sys, glmlite.tokenizer, glmlite.tokenizer.bpe, glmlite.tokenizer.chatglm1\n"
        "heavy = {'transformers', 'google', 'huggingface_hub', 'torch', 'tiktoken'}\n"
        "heavy &= {m.split('.')[0] for m in sys.modules}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# ---- tokenizer files of checkpoints ----------------------------------------------------------------------------------


def test_rank_file_and_tokenizer_json_give_the_same_metadata():
    ours, theirs = vocab.metadata("glm-4-9b-chat"), vocab.metadata("glm-4-9b-chat-hf")
    assert ours.keys() == theirs.keys() and len(ours[MERGES]) == 318088
    for key, value in ours.items():
        equal = value == theirs[key]
        assert np.all(equal), key


@pytest.mark.parametrize(
    "name, data",
    [
        ("tokenizer.model", b"\x0a\xff"),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"IQ== 0\nIg== 2\n"),
        ("tokenizer.model", b"IQ== 0\n???? 1\n"),
        ("ice_text.model", b"\x80" * 50),
        ("tokenizer.json", b'{"model": {"type": "Unigram"}}'),
        (
            "tokenizer.json",
            b'{"model": {"merges": [], "vocab": {}}, "pre_tokenizer": {"type": "Metaspace"}}',
        ),
        ("tokenizer.json", b'{"model"'),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"merges": 3, "vocab": {}}}'),
        ("other", b""),
    ],
)
def test_bad_tokenizer_files(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=re.escape(str(tmp_path))):
        convert.from_folder(tmp_path)


def test_the_first_release_of_chatglm_6b_has_image_tokens_first():
    folder = vocab.folder("chatglm-6b")
    first = Tokenizer.from_metadata(convert.from_folder(folder, vocab_size=150528))
    later = Tokenizer.from_metadata(vocab.metadata("chatglm-6b"))
    text = "你好 world[gMASK]<sop>"
    assert first.encode(text) == [20000 + i for i in later.encode(text)]
    assert first.encode(text)[-2:] == [150001, 150004] and first.vocab_size == 150528
    assert first.decode(first.encode(text)) == later.decode(later.encode(text)) == text


def test_more_tokens_than_rows(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(FormatError, match="2 tokens, the model only 1 rows"):
        convert.from_folder(tmp_path, vocab_size=1)
