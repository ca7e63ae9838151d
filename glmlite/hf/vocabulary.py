"""The vocabulary and the special tokens of a tokenizer, under transformers' names and those of GLM's own tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..model import infiller
from ..tokenizer import Tokenizer
from .arguments import near
from .arrays import Ids, id_list

# Special tokens that have a name in GLM's tokenizers, in each vocabulary's spelling.
NAMED = {
    "mask": ("[MASK]",),
    "gmask": ("[gMASK]",),
    "smask": ("[sMASK]",),
    "sop": ("<|startofpiece|>", "<sop>", "sop"),
    "eop": ("<|endofpiece|>", "<eop>", "eop"),
    "cls": ("[CLS]",),
    "end": ("</s>",),
}

FILES = "a GGUF file is written by `glmlite convert`"
FIXED = "the vocabulary is the file's"
ABSENT = {
    "save_pretrained": FILES,
    "save_vocabulary": FILES,
    "push_to_hub": FILES,
    "add_tokens": FIXED,
    "add_special_tokens": FIXED,
    "train_new_from_iterator": FIXED,
    "build_inputs_for_multiple_choice": "compare the texts by `glmlite.Model.logits`",
    "backend_tokenizer": "`tokenizer` is glmlite's",
}


class HFVocabulary:
    """What a tokenizer says of its tokens. `tokenizer` is glmlite's own."""

    # A name that is none cannot be set, so a misspelt one is an AttributeError.
    __slots__ = (
        "_architecture",
        "_infiller",
        "_metadata",
        "_pad_id",
        "_special",
        "_special_ids",
        "model_max_length",
        "name_or_path",
        "padding_side",
        "tokenizer",
        "truncation_side",
    )
    is_fast = False
    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, metadata: Mapping[str, Any], tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.name_or_path = ""
        self.padding_side = "left"
        self.truncation_side = "right"
        self._metadata = metadata
        self._architecture: str = metadata.get("general.architecture", "")
        self.model_max_length: int = metadata.get(f"{self._architecture}.context_length", 2**31 - 1)
        self._infiller = infiller(self._architecture, tokenizer)
        self._special = True
        self._special_ids: Ids | None = None
        pad = tokenizer.pad_id
        if pad is None and self._is_sentencepiece:  # ChatGLM2 and 3 pad with their unknown token
            pad = tokenizer.unk_id
        self._pad_id = self.eos_token_id if pad is None else pad

    def __getattr__(self, name: str) -> Any:
        kind = name.removesuffix("_id").removesuffix("_token")
        if kind in NAMED and name in (f"{kind}_token", f"{kind}_token_id"):
            found = next((i for text in NAMED[kind] if (i := self.tokenizer.id_of(text)) is not None), None)
            return found if name.endswith("_id") else self._text(found)
        if name in ABSENT:
            raise AttributeError(f"tokenizer.{name}: not here; {ABSENT[name]}")
        raise AttributeError(f"tokenizer.{name}: not here{near(name, dir(type(self)))}")

    # ---- special tokens

    @property
    def eos_token_id(self) -> int | None:
        named = self._metadata.get("tokenizer.ggml.eos_token_id")
        return min(self.tokenizer.eos_ids, default=None) if named is None else int(named)

    @property
    def eos_token(self) -> str | None:
        return self._text(self.eos_token_id)

    @property
    def bos_token_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def bos_token(self) -> str | None:
        return self._text(self.bos_token_id)

    @property
    def unk_token_id(self) -> int | None:
        return self.tokenizer.unk_id

    @property
    def unk_token(self) -> str | None:
        return self._text(self.unk_token_id)

    @property
    def pad_token_id(self) -> int | None:
        return self._pad_id

    @pad_token_id.setter
    def pad_token_id(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"pad_token_id is {token}, expected 0 to {self.vocab_size - 1}")
        self._pad_id = int(token)

    @property
    def pad_token(self) -> str | None:
        return self._text(self._pad_id)

    @pad_token.setter
    def pad_token(self, text: str) -> None:
        self._pad_id = self.get_command(text)

    @property
    def all_special_ids(self) -> Ids:
        if self._special_ids is None:
            self._special_ids = [i for i in range(self.vocab_size) if self.tokenizer.is_special(i)]
        return self._special_ids

    @property
    def all_special_tokens(self) -> list[str]:
        return [self._tokens[i] for i in self.all_special_ids]

    @property
    def additional_special_tokens(self) -> list[str]:
        named = {self.eos_token, self.bos_token, self.unk_token, self.pad_token}
        return [text for text in self.all_special_tokens if text not in named]

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        found: dict[str, Any] = {name: text for name, text in named.items() if text is not None}
        return found | {"additional_special_tokens": self.additional_special_tokens}

    @property
    def special_tokens(self) -> dict[str, int | None]:
        """ChatGLM2's and 3's name for three of them."""
        return {"<bos>": self.bos_token_id, "<eos>": self.eos_token_id, "<pad>": self.pad_token_id}

    def get_command(self, token: str) -> int:
        """The id of a special token (`[gMASK]`, `sop`, `<|user|>`, `<eos>`). Raises ValueError if there is none."""
        found = self._id(token)
        if found is None:
            found = self.special_tokens.get(token)
        if found is None:
            raise ValueError(f"{token!r} is no token of this vocabulary{near(token, self.all_special_tokens)}")
        return found

    def get_prefix_tokens(self) -> Ids:
        return list(self.tokenizer.prefix_ids)

    # ---- the vocabulary

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def __len__(self) -> int:
        return self.tokenizer.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Each token as the file spells it, with its id."""
        return {text: i for i, text in reversed(list(enumerate(self._tokens)))}

    vocab = property(get_vocab)

    def get_added_vocab(self) -> dict[str, int]:
        return {self._tokens[i]: i for i in self.all_special_ids}

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token as the file spells it, or of several; the unknown token's, or None, for no token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        found = [i for i in id_list(ids) if not (skip_special_tokens and self.tokenizer.is_special(i))]
        for i in found:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i}, expected 0 to {self.vocab_size - 1}")
        texts = [self._tokens[i] for i in found]
        return texts[0] if isinstance(ids, int) and texts else texts

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return self.tokenizer.decode([self.get_command(token) for token in tokens])

    @property
    def _tokens(self) -> Sequence[str]:
        return self._metadata["tokenizer.ggml.tokens"]  # type: ignore[no-any-return]

    @property
    def _is_sentencepiece(self) -> bool:
        """ChatGLM2's and ChatGLM3's vocabularies."""
        return self._metadata.get("tokenizer.ggml.model") == "llama" and self.tokenizer.id_of("[gMASK]") is not None

    def _text(self, token: int | None) -> str | None:
        return None if token is None else self._tokens[token]

    def _id(self, text: str) -> int | None:
        """`sop` and `<sop>` are one token; a vocabulary spells it one way or the other."""
        other = {"sop": "<sop>", "<sop>": "sop", "eop": "<eop>", "<eop>": "eop"}.get(text)
        found = self.tokenizer.id_of(text)
        return self.tokenizer.id_of(other) if found is None and other is not None else found
