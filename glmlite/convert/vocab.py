"""Tokenizer files of checkpoints to the GGUF metadata that glmlite.tokenizer reads (docs/tokenizers.md).

Three forms: sentencepiece models (ChatGLM-6B, ChatGLM2/3, GLM-chinese), tiktoken rank files (GLM-4-9B), and
tokenizer.json (everything since). Each function returns the `tokenizer.ggml.*` keys, without the special ids that
depend on the checkpoint's configuration, which the caller adds.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ..files import kind_of
from ..tokenizer.bpe import ALPHABET, IGNORE_MERGES, PATTERNS
from ..tokenizer.vocabulary import TokenType
from .files import load_bytes, load_json, load_text, short

# ChatGLM2/3's own code appends these to the 64789 pieces of its sentencepiece model. It calls two of them `sop` and
# `eop`, and never takes them from a text; llama.cpp does, out of every "people". So they get the brackets that GLM-4's
# have, and no word holds them.
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
_CHATGLM3 = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *_ROLES]
CHATGLM3_SPECIALS = {text: i for i, text in enumerate(_CHATGLM3, 64789)}
_MAX_TOKENS = 1 << 22  # of a vocabulary; the largest in use have 2^18
_MAX_RANKED = 1024  # bytes of a token in a rank file; GLM-4's longest has 128
# ChatGLM-6B's first release has this many image tokens before its pieces, and rows for them.
_IMAGE_TOKENS = 20000


def from_sentencepiece(
    path: Path, *, added: Mapping[tuple[str, int], int] | None = None, vocab_size: int = 0, chatglm1: bool = False
) -> dict[str, Any]:
    """A sentencepiece model: `llama` if BPE, `t5` if unigram (with pre `chatglm1` for ChatGLM-6B's).

    added: (text, id) -> type, of tokens beside the pieces. vocab_size: the model's rows; unused tokens fill up to it.
    """
    pieces, trainer, normalizer = read_sentencepiece(path)
    model = {1: "t5", 2: "llama"}.get(trainer.get(3, 1))
    if model is None:
        raise FormatError(f"{path}: sentencepiece model type {trainer[3]}, expected 1 (unigram) or 2 (BPE)")
    if not normalizer.get(5, 1) or trainer.get(24, 0):
        raise FormatError(f"{path}: a sentencepiece model that has its spaces elsewhere than before a word as `▁`")
    if chatglm1 and vocab_size >= _IMAGE_TOKENS + len(pieces):
        pieces = [("", 0.0, int(TokenType.UNUSED))] * _IMAGE_TOKENS + pieces
    tokens, scores, types = map(list, zip(*pieces))
    _mark(path, tokens, types, added or {}, vocab_size)
    scores += [0.0] * (len(tokens) - len(scores))
    metadata = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.pre": "chatglm1" if chatglm1 else "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
        "tokenizer.ggml.remove_extra_whitespaces": bool(normalizer.get(4, 1)),
        "tokenizer.ggml.add_bos_token": False,
    }
    if charsmap := normalizer.get(2):
        metadata["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    return metadata


def from_tiktoken(
    path: Path, *, added: Mapping[tuple[str, int], int], vocab_size: int = 0, pre: str = "glm4"
) -> dict[str, Any]:
    """A rank file: a line for each token, its bytes in base64 and its rank. added: (text, id) -> type, behind them."""
    ranks = {}
    for number, line in enumerate(load_bytes(path).split(b"\n"), 1):
        try:
            token, rank = line.split() if line else (b"", None)
            if len(token) > 2 * _MAX_RANKED:
                raise FormatError(f"{path}: line {number} is a token of {len(token)} characters in base64")
            if rank is not None:
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except FormatError:
            raise
        except (ValueError, binascii.Error):
            what = kind_of(path) or f"line {number} is not a token in base64 and its rank"
            raise FormatError(f"{path}: {what}") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise FormatError(f"{path}: the ranks are not 0 to {len(ranks) - 1}")
    spelled = {token: "".join(map(ALPHABET.__getitem__, token)) for token in ranks}
    tokens = [spelled[token] for token in sorted(ranks, key=ranks.__getitem__)]
    merges = [f"{spelled[a]} {spelled[b]}" for a, b in merges_of(ranks)]
    return _byte_bpe(path, tokens, added, merges, pre, vocab_size)


def from_tokenizer_json(
    path: Path, *, beside: Mapping[tuple[str, int], int] | None = None, vocab_size: int = 0
) -> dict[str, Any]:
    """A tokenizer.json that holds a byte-level BPE. beside: (text, id) -> type, of tokens that other files add."""
    data = load_json(path)
    try:
        model, added_tokens = data["model"], data.get("added_tokens", [])
        if model.get("type", "BPE") != "BPE":
            raise FormatError(f"{path}: a {short(model['type'])} model, expected BPE")
        _refuse_unknown_steps(path, data)
        patterns = _patterns_of(data.get("pre_tokenizer"))
        ignore = model.get("ignore_merges", False)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        _ids(path, [(token["content"], token["id"]) for token in added_tokens])
        added = {
            (token["content"], token["id"]): TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
            for token in added_tokens
        }
        listed = dict(added.keys())
        for (text, i), kind in (beside or {}).items():
            if listed.setdefault(text, model["vocab"].get(text, i)) != i:
                raise FormatError(
                    f"{path}: token {short(text)} has the id {listed[text]}, and {i} in the files beside it"
                )
            added.setdefault((text, i), kind)
        stood = {i: token for token, i in _ids(path, model["vocab"].items()).items()}
        for text, i in added:
            if stood.get(i, text) != text:
                raise FormatError(f"{path}: the added token {short(text)} has the id {i}, which is {short(stood[i])}")
        marked_ids = {i for _, i in added}
        words = {token: i for token, i in _ids(path, model["vocab"].items()).items() if i not in marked_ids}
        tokens = _in_order(words)
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not a tokenizer.json of a byte-level BPE: {error!r}") from None
    if patterns == PATTERNS["glm4"] and "[gMASK]" in (text for text, _ in added):
        pre = "glm4"  # whatever ignore_merges says: some conversions of GLM-4's rank file lack it
    else:
        known = (name for name in PATTERNS if PATTERNS[name] == patterns and (name in IGNORE_MERGES) == ignore)
        pre = next(known, None)
    if pre is None:
        unknown = str(data.get("pre_tokenizer"))
        raise FormatError(f"{path}: a pre_tokenizer that glmlite does not know: {unknown[:300]!r}")
    return _byte_bpe(path, tokens, added, merges, pre, vocab_size)


# What a BPE model of the tokenizers library may be told that changes ids, and the values that change none.
_NEUTRAL = {"dropout": (None, 0, 0.0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")}


def _refuse_unknown_steps(path: Path, data: Mapping[str, Any]) -> None:
    """Raises FormatError for a step of a tokenizer.json that changes ids or text and has no place in a GGUF file."""
    normalizer = data.get("normalizer")
    if normalizer is not None and normalizer.get("normalizers") != []:
        kinds = [step.get("type") for step in normalizer.get("normalizers", [normalizer])]
        raise FormatError(f"{path}: the normalizer {', '.join(map(short, kinds))}, expected none: the ids would differ")
    for key, neutral in _NEUTRAL.items():
        if (value := data["model"].get(key)) not in neutral:
            raise FormatError(f"{path}: the model's {key!r} is {short(value)}, expected none: the ids would differ")
    _refuse_flags(path, data.get("added_tokens", []))
    _refuse_post_processor(path, data)
    decoder = data.get("decoder") or {"type": "ByteLevel"}
    kinds = {step.get("type") for step in decoder.get("decoders", [decoder])}
    if kinds - {"ByteLevel", "Fuse"}:
        raise FormatError(f"{path}: the decoder {', '.join(sorted(map(str, kinds)))}, expected ByteLevel")


_PREFIXES = ([], ["[gMASK]", "<sop>"])  # what a GLM's post_processor may put first: glmlite does that itself


def _refuse_post_processor(path: Path, data: Mapping[str, Any]) -> None:
    """Before a text may stand GLM's prefix, or one token, which is another model's BOS; nothing behind it."""
    post = data.get("post_processor") or {"type": "ByteLevel"}
    for step in post.get("processors", [post]):
        if step["type"] == "ByteLevel":
            continue  # decides what part of the text a token stands for
        if step["type"] != "TemplateProcessing":
            raise FormatError(f"{path}: the post_processor {short(step['type'])}, expected none: the ids would differ")
        parts = [part.get("SpecialToken", {}).get("id") if "SpecialToken" in part else "" for part in step["single"]]
        before = parts[: parts.index("")] if "" in parts else parts
        if parts[len(before) :] != [""]:
            raise FormatError(f"{path}: the post_processor puts a token behind a text, expected none there")
        glm = "[gMASK]" in (token["content"] for token in data.get("added_tokens", []))
        if before not in _PREFIXES if glm else len(before) > 1:
            raise FormatError(
                f"{path}: the post_processor puts {short(before)} before a text, expected the model's prefix"
            )


def from_folder(folder: Path, *, vocab_size: int = 0, chatglm: bool = True) -> dict[str, Any]:
    """The vocabulary of a checkpoint's folder, whatever form it is in, filled up to `vocab_size` rows.

    chatglm: a sentencepiece tokenizer.model is ChatGLM2's or 3's, which has special tokens beside its pieces.
    """
    folder = Path(folder)
    if (path := folder / "ice_text.model").exists():
        config = load_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        if changes := [key for key in ("do_lower_case", "remove_space") if config.get(key)]:
            raise FormatError(f"{folder}: tokenizer_config.json has {' and '.join(changes)}, expected neither")
        return from_sentencepiece(path, added=_added(folder), vocab_size=vocab_size, chatglm1=True)
    path = folder / "tokenizer.model"
    sentencepiece = path.exists() and not _is_tiktoken(path)
    # Llama 2's tokenizer.json is its tokenizer.model in a form that is not read here.
    if (folder / "tokenizer.json").exists() and not sentencepiece:
        return from_tokenizer_json(folder / "tokenizer.json", beside=_added(folder), vocab_size=vocab_size)
    added = _added(folder)
    if sentencepiece:
        added = _beside_chatglm3(folder, added) if chatglm else added
        return from_sentencepiece(path, added=added, vocab_size=vocab_size)
    if path.exists():
        return from_tiktoken(path, added=added, vocab_size=vocab_size)
    if (path := folder / "cog-pretrain.model").exists():
        return _beginning_with_cls(from_sentencepiece(path, added=added, vocab_size=vocab_size))
    if (path := folder / "vocab.json").exists():
        words = _ids(path, load_json(path).items())
        if not (folder / "merges.txt").is_file():
            raise FormatError(f"{path}: no merges.txt beside it")
        merges = load_text(folder / "merges.txt").split("\n")
        merges = [merge for merge in merges if merge and not merge.startswith("#version")]
        if "<|endoftext|>" in words:
            added["<|endoftext|>", words.pop("<|endoftext|>")] = TokenType.CONTROL
        return _beginning_with_cls(_byte_bpe(path, _in_order(words), added, merges, "gpt-2", vocab_size))
    raise FormatError(f"{folder}: no ice_text.model, tokenizer.json, tokenizer.model, cog-pretrain.model or vocab.json")


# What control tokens look like. Many a fine-tune lists its own, and ChatGLM3 even the model's, as no special ones.
_CONTROL = re.compile(r"<\|.*\|>|\[\w+\]|</?\w+>|sop|eop")
_FLAGS = ("single_word", "lstrip", "rstrip")


def _added(folder: Path) -> dict[tuple[str, int], int]:
    """(text, id) -> type, of the tokens that stand beside a vocabulary.

    As in transformers, `added_tokens_decoder` of tokenizer_config.json counts before added_tokens.json.
    Raises FormatError for two tokens of one id, and for one that takes spaces or words around it into account.
    """
    path, old = folder / "tokenizer_config.json", folder / "added_tokens.json"
    config = load_json(path) if path.is_file() else {}
    special = _special_texts([config, *(load_json(p) for p in [folder / "special_tokens_map.json"] if p.is_file())])
    try:
        listed = {int(i): token for i, token in (config.get("added_tokens_decoder") or {}).items()}
        found = _ids(path, [(token["content"], i) for i, token in listed.items()])
        special |= {token["content"] for token in listed.values() if token.get("special")}
    except FormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError):
        raise FormatError(f"{path}: 'added_tokens_decoder' is not an object of ids and tokens") from None
    _refuse_flags(path, listed.values())
    if old.is_file():
        found = _ids(old, load_json(old).items()) | found
    by_id: dict[int, str] = {}
    for text, i in found.items():
        if by_id.setdefault(i, text) != text:
            raise FormatError(f"{old}: the added token {short(by_id[i])} has the id {i}, which is {short(text)}")
    return {
        (text, i): TokenType.CONTROL if text in special or _CONTROL.fullmatch(text) else TokenType.USER_DEFINED
        for text, i in found.items()
    }


def _special_texts(configs: Iterable[Mapping[str, Any]]) -> set[str]:
    """The texts under `bos_token`, `additional_special_tokens` and the like."""
    found: set[str] = set()
    for config in configs:
        for key, value in config.items():
            if key.endswith(("_token", "_tokens")):
                values = value if isinstance(value, list) else [value]
                texts = [item.get("content") if isinstance(item, dict) else item for item in values]
                found |= {text for text in texts if isinstance(text, str)}
    return found


def _refuse_flags(path: Path, tokens: Iterable[Mapping[str, Any]]) -> None:
    for token in tokens:
        if flags := [flag for flag in _FLAGS if token.get(flag)]:
            raise FormatError(f"{path}: token {short(token['content'])} has {' and '.join(flags)}, expected neither")


def _beside_chatglm3(folder: Path, added: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """ChatGLM3's special tokens and those that a fine-tune added to them. The folder may list the model's own, too, as
    its code spells them (`sop`). Raises FormatError for one that takes the place of another."""
    own = {i: text for text, i in CHATGLM3_SPECIALS.items()}
    all_of_them: dict[tuple[str, int], int] = dict.fromkeys(CHATGLM3_SPECIALS.items(), TokenType.CONTROL)
    for (text, i), kind in added.items():
        if i in own and text.strip("<>") != own[i].strip("<>"):
            raise FormatError(f"{folder}: the added token {short(text)} has the id {i}, which is {own[i]!r}")
        if i not in own:
            all_of_them[text, i] = kind
    return all_of_them


def _ids(path: Path, items: Iterable[tuple[Any, Any]]) -> dict[str, int]:
    """Token -> id, checked."""
    out: dict[str, int] = {}
    for text, i in items:
        ok = isinstance(text, str) and isinstance(i, int) and not isinstance(i, bool)
        if not ok or not 0 <= i < _MAX_TOKENS:
            raise FormatError(f"{path}: token {short(text)} has the id {short(i)}, expected 0 to {_MAX_TOKENS - 1}")
        out[text] = i
    return out


def _in_order(words: Mapping[str, int]) -> list[str]:
    """The tokens by id, "" where there is none."""
    tokens = [""] * (max(words.values(), default=-1) + 1)
    for text, i in words.items():
        tokens[i] = text
    return tokens


def _beginning_with_cls(metadata: dict[str, Any]) -> dict[str, Any]:
    """GLM's prompts begin with `[CLS]`."""
    tokens = metadata["tokenizer.ggml.tokens"]
    if "[CLS]" in tokens:
        metadata |= {"tokenizer.ggml.bos_token_id": tokens.index("[CLS]"), "tokenizer.ggml.add_bos_token": True}
    return metadata


def merges_of(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The merges that a rank file implies, first the one to try first: every way to cut a token into two tokens.

    In order of the token that the merge makes, then of its left and right part, as transformers orders them.
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        yield from sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))


def read_sentencepiece(path: Path) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any]]:
    """(text, score, type) of each piece; trainer_spec and normalizer_spec as field number -> last value."""
    pieces: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    try:
        for number, value in _fields(load_bytes(path)):
            if number == 1:
                piece = dict(_fields(value))
                text, score, kind = piece[1].decode(), piece.get(2, 0.0), piece.get(3, int(TokenType.NORMAL))
                if not isinstance(score, float) or kind not in tuple(TokenType):
                    raise ValueError("a piece that cannot be")
                pieces.append((text, score, kind))
            elif number in specs:
                specs[number] = dict(_fields(value))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error):
        raise FormatError(f"{path}: {kind_of(path) or 'not a sentencepiece model'}") from None
    if not pieces:
        raise FormatError(f"{path}: {kind_of(path) or 'a sentencepiece model without pieces'}")
    if not isinstance(specs[2].get(3, 1), int) or not isinstance(specs[3].get(2, b""), bytes):
        raise FormatError(f"{path}: a sentencepiece model whose model_type or charsmap are none")
    return pieces, specs[2], specs[3]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: int, float (32 bit) or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(message):
        key = varint()
        wire = key & 7
        if wire == 0:
            value = varint()
        elif wire == 2:
            size = varint()
            value = message[at : at + size]
            if len(value) != size:
                raise ValueError("a field reaches beyond the message")
            at += size
        elif wire == 5:
            (value,) = struct.unpack_from("<f", message, at)
            at += 4
        else:
            raise ValueError(f"wire type {wire}")
        yield key >> 3, value


def _byte_bpe(
    path: Path, tokens: list[str], marked: Mapping[tuple[str, int], int], merges: list[str], pre: str, vocab_size: int
) -> dict[str, Any]:
    """marked: (text, id) -> type, of the tokens that are found in text before it is cut into words."""
    types = [int(TokenType.NORMAL)] * len(tokens)
    _mark(path, tokens, types, marked, vocab_size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }


def _mark(
    path: Path, tokens: list[str], types: list[int], marked: Mapping[tuple[str, int], int], vocab_size: int
) -> None:
    """Puts the tokens of `marked`, (text, id) -> type, in their places; unused tokens fill the gaps and the end."""
    used = max([len(tokens), *(i + 1 for _, i in marked)])
    if 0 < vocab_size < used:
        last = next((f"; the last is {short(text)}" for text, i in marked if i == used - 1), "")
        raise FormatError(f"{path}: the tokenizer has {used} tokens, the model only {vocab_size} rows{last}")
    new = max(used, vocab_size) - len(tokens)
    tokens += [""] * new
    types += [int(TokenType.UNUSED)] * new
    for (text, i), kind in marked.items():
        if tokens[i] not in ("", text):
            raise FormatError(f"{path}: the added token {short(text)} has the id {i}, which is {short(tokens[i])}")
        if not tokens[i] or types[i] == TokenType.NORMAL:
            tokens[i], types[i] = text, int(kind)
    for i, text in enumerate(tokens):
        if not text:
            tokens[i], types[i] = f"[PAD{i}]", int(TokenType.UNUSED)


def _patterns_of(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The patterns by which a tokenizer.json's pre_tokenizer cuts text, as in PATTERNS; None if it does otherwise."""
    patterns: list[str] = []
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    for step in steps:
        if not step:
            return None
        if step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex", ""))
        elif step["type"] == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif step["type"] == "ByteLevel" and not step.get("add_prefix_space", False):
            if step.get("use_regex", True):
                patterns += PATTERNS["gpt-2"]
        else:
            return None
    return tuple(patterns)


def _is_tiktoken(path: Path) -> bool:
    """Whether a tokenizer.model is a rank file: the first line is base64, a space and a number."""
    first = load_bytes(path)[:4096].split(b"\n")[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit()
