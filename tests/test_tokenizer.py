"""Tokenizers against the libraries on the models' own files, streaming against whole decoding, and bad metadata."""

import base64
import json
import random
import re
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import vocab

from glmlite.tokenizer import Tokenizer

NAMES = list(vocab.VOCAB_SIZES)
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def items(text: str) -> list[str]:
    return re.split("[ \n]+", text)


WORDS = items(
    """人工智能 今天天气真好， 北京大学 的 了 是 「引号」 《书名》 １２３ ＡＢＣ ！ 龘 齉 臺灣 日本語 カタカナ 한국어 ไทย
    עברית العربية the of Transformer don't I'LL we've running isopropyl sopranos eopx x86_64 3.14159 12345678 0xFF <n> <s>
    [UNK] def return_value(x): for(int i=0;i<n;++i){ a[i]+=b; } #include<stdio.h> </div> \\frac{1}{2} && || := //
    ```python 王 参考 Begriff <|user <|us"""
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
    """The sentencepiece file, and the tokens that the official code appends to it."""

    def __init__(self, folder: Path):
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        appended = items("[MASK] [gMASK] [sMASK] sop eop <|system|> <|user|> <|assistant|> <|observation|>")
        self.specials = {text: i for i, text in enumerate(appended, self.sp.get_piece_size())} | {"<s>": 1, "</s>": 2}

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
        tiktoken = pytest.importorskip("tiktoken")
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
    """(name, our tokenizer, the reference) of each real vocabulary."""
    name = request.param
    folder = vocab.folder(name)
    return name, Tokenizer.from_metadata(vocab.metadata(name)), REFERENCES[name](folder)


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
            assert ours.decode(ours.encode(line)) == line


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
