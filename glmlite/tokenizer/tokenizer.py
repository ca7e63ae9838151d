"""The tokenizer of a model file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..errors import FormatError
from ..families import GAPS, about, is_edge
from .special import SpecialSplitter
from .stream import Decoding, StreamDecoder
from .vocabulary import Metadata, TokenType, Vocabulary


class Codec(Protocol):
    """One family of vocabularies."""

    decoding: Decoding

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; nothing in it is a special token."""


# Special tokens that end an answer in whatever vocabulary has them.
_ENDS = frozenset(
    [
        "</s>",
        "<eop>",
        "eop",
        "<|endofpiece|>",
        "<|endoftext|>",
        "<|user|>",
        "<|observation|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<end_of_turn>",
        "<eos>",
        "<|return|>",
    ]
)
_END_KEYS = ("eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id")


class Tokenizer:
    """Text to token ids and back, as the model's authors' tokenizer does it. Threads may share one.

    vocab_size: ids are 0 to vocab_size - 1. bos_id, pad_id, unk_id: None where the file names none.
    eos_ids: every id that ends an answer: those the file names as end of sequence, turn or message, and every special
    token of the vocabulary that is one by its text (`</s>`, `<|endoftext|>`, `<|user|>`, `<|observation|>`, `<eop>`,
    `<|im_end|>`, `<|eot_id|>`, ...). GLM files often name only one of their three.
    prefix_ids: what a prompt begins with: `[gMASK]<sop>` where the vocabulary has both, but not for ChatGLM-6B, whose
    prompts end with them, nor for GLM-Edge, unless its template has them; else the file's beginning-of-sequence token
    if it asks for one; else nothing.
    gap_ids: what stands before the text in front of a gap, before the text behind it, and before what fills it: those
    the file names, else `<|code_prefix|>`, `<|code_suffix|>` and `<|code_middle|>`; () unless there are all three.
    """

    def __init__(self, metadata: Metadata, vocabulary: Vocabulary, codec: Codec, *, gmask_first: bool):
        self._codec = codec
        self._vocabulary = vocabulary
        self._decoding = codec.decoding
        count = self.vocab_size = len(vocabulary.tokens)

        def texts(*kinds: TokenType) -> dict[str, int]:
            spelled = (vocabulary.tokens[i] for i in vocabulary.ids_of_type(*kinds))
            return {text: vocabulary.ids[text] for text in spelled}

        control = texts(TokenType.CONTROL)
        marked = texts(TokenType.CONTROL, TokenType.USER_DEFINED)
        model = metadata.text("tokenizer.ggml.model")
        found = marked if model == "gpt2" else control  # sentencepiece finds user-defined pieces itself
        if model == "llama":
            # ChatGLM3's prompts are written `[gMASK]sop`, whatever the file calls the token.
            found = {text[1:-1]: found[text] for text in ("<sop>", "<eop>") if text in found} | found
        # Runs of white space are user-defined in some vocabularies; they are text, not markup.
        spaces = {text: i for text, i in found.items() if text.isspace()}
        self._splitters = {True: SpecialSplitter(found), False: SpecialSplitter(spaces)}
        self._marked = frozenset(marked.values())

        def named(name: str, default: int | None = None) -> int | None:
            i = metadata.id(f"tokenizer.ggml.{name}_token_id", count)
            return default if i is None else i

        self.bos_id = named("bos", control.get("<s>") if model == "llama" else None)
        self.pad_id = named("padding")
        self.unk_id = named("unknown", codec.decoding.unknown)
        ends = {i for key in _END_KEYS for i in metadata.ids(f"tokenizer.ggml.{key}", count)}
        self.eos_ids = frozenset(ends | {i for text, i in marked.items() if text in _ENDS})

        gaps = [named(name, named(old, marked.get(text))) for (name, old), text in GAPS.items()]
        self.gap_ids = () if None in gaps else tuple(i for i in gaps if i is not None)

        gmask, sop = control.get("[gMASK]"), control.get("<sop>", control.get("sop"))
        add_bos = metadata.flag("tokenizer.ggml.add_bos_token", model == "llama")
        self.prefix_ids: tuple[int, ...] = ()
        self._begins = {self.bos_id}  # what a prompt may have in place of its prefix
        if gmask is not None and sop is not None:
            if gmask_first:
                self.prefix_ids = (gmask, sop)
                self._begins |= {gmask, sop, control.get("sop")}
        elif add_bos and self.bos_id is not None:
            self.prefix_ids = (self.bos_id,)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], check: Callable[[], object] = lambda: None) -> Tokenizer:
        """The tokenizer that a file's metadata describes (docs/tokenizers.md). Raises FormatError, naming the key.

        check: called every few milliseconds; what it raises ends the making.
        """
        read = Metadata(metadata, check)
        model = read.text("tokenizer.ggml.model")
        chatglm1 = model == "t5" and read.text("tokenizer.ggml.pre", "default") == "chatglm1"
        family: Callable[[Metadata, Vocabulary], Codec]
        if model == "gpt2":
            from .bpe import ByteBPE as family
        elif chatglm1:
            from .chatglm1 import ChatGLM1 as family
        elif model in ("llama", "t5"):
            from .spm import SentencePiece as family
        else:
            raise FormatError(f"tokenizer.ggml.model: {model[:40]!r} is not known; known: gpt2, llama, t5")
        vocabulary = Vocabulary(read)
        check()
        architecture = read.text("general.architecture", "")
        template = read.text("tokenizer.chat_template", "")
        if name := read.text("glmlite.chat_format", ""):
            edge = name == "glm-edge"
        else:
            edge = is_edge(architecture, metadata) and "[gMASK]" not in template
        gmask_first = not (chatglm1 or about(architecture).prefix == "last" or edge)
        return cls(read, vocabulary, family(read, vocabulary), gmask_first=gmask_first)

    def encode(self, text: str, *, special: bool = True, prefix: bool = False) -> list[int]:
        """The ids of `text`.

        special: special tokens written in the text count as such; otherwise they are plain text, so that what a
        person types cannot forge them. prefix: as `begin` does it.
        Lone surrogates, which are no text, become U+FFFD; every other character is kept or treated as the
        vocabulary's own normalization says, control characters and NUL included. Raises TypeError if not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: {type(text).__name__}, expected str")
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids: list[int] = []
        for part in self._splitters[special].split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._codec.encode(part)
        return self.begin(ids) if prefix else ids

    def begin(self, ids: Sequence[int]) -> list[int]:
        """A prompt with `prefix_ids` in front exactly once, however much or often of it `ids` begin with.

        A beginning-of-sequence token and white space among that go, too.
        """
        if not self.prefix_ids:
            return list(ids)
        begin = 0
        for at, token in enumerate(ids):
            if token in self._begins:
                begin = at + 1
            elif not self._decoding.pieces[token].isspace():
                break
        return [*self.prefix_ids, *ids[begin:]]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, errors: str = "replace") -> str:
        """The text of `ids`. Raises ValueError for an id outside the vocabulary.

        skip_special: leave special tokens out. errors: what becomes of bytes that are no UTF-8, as in bytes.decode.
        """
        stream = StreamDecoder(self._decoding, skip_special=skip_special, errors=errors)
        return stream.push(ids) + stream.finish()

    def stream(self, *, skip_special: bool = False, errors: str = "replace") -> StreamDecoder:
        """A decoder for ids that come one after another."""
        return StreamDecoder(self._decoding, skip_special=skip_special, errors=errors)

    def piece(self, id: int) -> bytes:
        """The bytes of one token, in the middle of a text; not always whole characters."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"piece: token id {id}, expected 0 to {self.vocab_size - 1}")
        return self._decoding.pieces[id]

    @property
    def pieces(self) -> Sequence[bytes]:
        """`piece` of every id."""
        return self._decoding.pieces

    @property
    def markers(self) -> frozenset[int]:
        """Tokens that no text is written with: control tokens, the unknown token, and added ones in angle brackets
        (`<tool_call>`, `<think>`)."""
        pieces = self._decoding.pieces
        added = (i for i in self._marked if pieces[i].startswith(b"<") and pieces[i].endswith(b">"))
        return self._decoding.special.union(added)

    def is_special(self, id: int) -> bool:
        """Whether `skip_special` leaves the token out: control tokens and the unknown token."""
        return id in self._decoding.special

    def id_of(self, text: str) -> int | None:
        """The id of the token that the file spells `text` (`[gMASK]`, `<|user|>`), or None."""
        return self._vocabulary.ids.get(text)
