"""Tokenizer files in the makers' forms, trained on the texts of this repository: what a stranger's tests run on.

folder("chatglm3-6b")    # tokenizer.model (sentencepiece, BPE), as ChatGLM2 and 3 have it
folder("chatglm-6b")     # ice_text.model (sentencepiece, unigram)
folder("glm-4-9b-chat")  # tokenizer.model (ranks), tokenizer_config.json
folder("glm-4-9b-chat-hf")  # tokenizer.json
"""

import atexit
import base64
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import pre_tokenizers

from glmlite.tokenizer.bpe import ALPHABET, PATTERNS

BYTES = {character: byte for byte, character in ALPHABET.items()}
GLM4_SPECIALS = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>"]
GLM4_SPECIALS += ["<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_video|>"]
SPACES = ["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))]


@functools.cache
def corpus():
    root = Path(__file__).parent.parent
    files = [*sorted((root / "docs").glob("*.md")), root / "README.zh.md", *sorted(Path(__file__).parent.glob("*.py"))]
    text = "\n".join(file.read_text("utf-8") for file in files)
    return [line[:1000] for line in text.split("\n") if line.strip()]


@functools.cache
def folder(name):
    path = Path(tempfile.mkdtemp(prefix="glmlite-tokenizer-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    {"chatglm-6b": _ice, "chatglm3-6b": _pieces, "glm-4-9b-chat": _ranks, "glm-4-9b-chat-hf": _json}[name](path)
    return path


def _sentencepiece(path, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    path.write_bytes(model.getvalue())


def _pieces(path):
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    _sentencepiece(path / "tokenizer.model", model_type="bpe", vocab_size=3000, **options)


def _ice(path):
    control = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<pad>"]
    options = {"control_symbols": control, "user_defined_symbols": SPACES}
    _sentencepiece(path / "ice_text.model", model_type="unigram", vocab_size=3000, **options)


@functools.cache
def _bpe():
    """A byte-level BPE of GLM-4's pattern, as JSON."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    (pattern,) = PATTERNS["glm4"]
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=sorted(BYTES), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return json.loads(tokenizer.to_str())


def _ranks(path):
    words = sorted(_bpe()["model"]["vocab"].items(), key=lambda item: item[1])
    rows = [(base64.b64encode(bytes(BYTES[c] for c in word)).decode(), rank) for word, rank in words]
    (path / "tokenizer.model").write_text("".join(f"{token} {rank}\n" for token, rank in rows))
    added = {str(len(rows) + i): {"content": text, "special": True} for i, text in enumerate(GLM4_SPECIALS)}
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))


def _json(path):
    data = _bpe()
    first = len(data["model"]["vocab"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data["added_tokens"] = [{"id": first + i, "content": text, **plain} for i, text in enumerate(GLM4_SPECIALS)]
    data["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (path / "tokenizer.json").write_text(json.dumps(data))
