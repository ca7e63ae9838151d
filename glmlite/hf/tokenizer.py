"""A tokenizer with transformers' names, and with those of the tokenizers that GLM checkpoints bring along."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

from .. import chat
from ..families import about
from ..tokenizer import Tokenizer
from .arguments import Refusal, check, near, unknown
from .arrays import BatchEncoding, Ids, batch, cut, id_list, limit, loaded_kind, tensor
from .dialogue import conversation
from .files import LOADING, LOADING_REFUSED, header
from .vocabulary import FIXED, HFVocabulary

Texts = str | Sequence[Any]

NO_TRAINING = Refusal("it is for training")
ONLY_IDS = Refusal("glmlite gives ids and their attention mask")
REFUSED = {
    "text_pair": Refusal("encode the two texts as one"),
    "text_target": NO_TRAINING,
    "text_pair_target": NO_TRAINING,
    "boxes": ONLY_IDS,
    "stride": Refusal("cut a long text yourself", 0),
    "return_token_type_ids": ONLY_IDS,
    "return_overflowing_tokens": ONLY_IDS,
    "return_special_tokens_mask": ONLY_IDS,
    "return_offsets_mapping": ONLY_IDS,
    "return_length": ONLY_IDS,
    "return_assistant_tokens_mask": NO_TRAINING,
}
MAKING = dict.fromkeys(
    ("add_bos_token", "add_eos_token", "additional_special_tokens", "bos_token", "eos_token", "unk_token"),
    Refusal(FIXED),
) | {"add_prefix_space": Refusal(FIXED), "clean_up_tokenization_spaces": Refusal("pass it to decode")}
IGNORED = ("verbose",)
CONVERSATION = (
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "enable_thinking",
)
DECODING_TAKEN = ("skip_special_tokens", "clean_up_tokenization_spaces")
DECODING = ("use_source_tokenizer", "spaces_between_special_tokens")  # mean something to vocabularies of other models
SPACES = {  # what clean_up_tokenization_spaces puts right in English
    f" {text}": text for text in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")
} | {" ' ": "'"}


class AutoTokenizer:
    """transformers' class of this name, as far as scripts for GLMs use it."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        gguf_file: str | None = None,
        padding_side: str = "left",
        truncation_side: str = "right",
        model_max_length: int | None = None,
        encode_special_tokens: bool = True,
        chat_template: str | None = None,
        pad_token: str | None = None,
        **options: Any,
    ) -> HFTokenizer:
        """The tokenizer of a GGUF file (default: the built-in model); a path as `glmlite.load` takes it.

        encode_special_tokens: tokens spelled in a text (`<|user|>`) are those tokens. Arguments that mean nothing here
        (trust_remote_code, use_fast, revision, ...) are taken.
        """
        known = ("padding_side", "truncation_side", "model_max_length", "chat_template", "pad_token", "gguf_file")
        check("AutoTokenizer", options, known=known, ignored=(*LOADING, "legacy"), refused=LOADING_REFUSED | MAKING)
        path, metadata, _ = header(pretrained_model_name_or_path, gguf_file)
        tokenizer = HFTokenizer(metadata, Tokenizer.from_metadata(metadata))
        tokenizer.name_or_path = path
        tokenizer.padding_side = padding_side
        tokenizer.truncation_side = truncation_side
        tokenizer._special = encode_special_tokens
        if model_max_length is not None:
            tokenizer.model_max_length = model_max_length
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        if pad_token is not None:
            tokenizer.pad_token = pad_token
        return tokenizer


class HFTokenizer(HFVocabulary):
    """A tokenizer with transformers' names. `tokenizer` is glmlite's own.

    padding_side: "left", where GLM's tokenizers pad. truncation_side: "right". model_max_length: what the model was
    trained for. chat_template: the file's, and any other after it is set.
    """

    __slots__ = ()

    # ---- text to ids

    def __call__(
        self,
        text: Texts,
        *,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        split_special_tokens: bool = False,
        **options: Any,
    ) -> BatchEncoding:
        """input_ids and attention_mask of a text or of several; a list of ids stands for a text.

        add_special_tokens: the model's tokens around each text. padding, truncation, max_length, padding_side: as in
        transformers. split_special_tokens: tokens spelled in a text are text. return_tensors: "np" or "pt".
        """
        known = ("add_special_tokens", "truncation", "max_length", "pad_to_multiple_of", "return_attention_mask")
        check("tokenizer", options, known=known, ignored=IGNORED, refused=REFUSED)
        if isinstance(text, bytes) or not (isinstance(text, Sequence) or hasattr(text, "dtype")):
            raise TypeError(f"tokenizer: {reprlib.repr(text)}, expected a text, or a list of several")
        single = isinstance(text, str) or _is_ids(text)
        texts: Sequence[Any] = [text] if single else text
        if is_split_into_words and not all(_is_ids(t) for t in texts):
            raise ValueError("tokenizer: is_split_into_words=True is not done here; join the words to a text")
        special = self._special and not split_special_tokens
        if truncation is None and max_length is not None and padding is False:
            truncation = True  # as transformers takes it
        room = limit(truncation, max_length, self.model_max_length)
        rows = [self._encode(t, special, add_special_tokens, room) for t in texts]
        return self._batch(
            rows,
            single=single,
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
        )

    def encode(self, text: str | Sequence[int], **options: Any) -> Any:
        """The input_ids alone; return_tensors gives (1, n) ids."""
        return self(text, **options)["input_ids"]

    encode_plus = batch_encode_plus = __call__

    def pad(
        self,
        encoded_inputs: Any,
        *,
        padding: Any = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        **options: Any,
    ) -> BatchEncoding:
        """Pads what was encoded without padding: an encoding of several texts, or several encodings."""
        check("tokenizer.pad", options, ignored=IGNORED, refused={})
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = {key: [one[key] for one in encoded_inputs] for key in encoded_inputs[0]}
        for name in encoded_inputs:
            if name not in self.model_input_names:
                raise ValueError(f"tokenizer.pad: {name!r}, expected {' and '.join(self.model_input_names)}")
        rows, masks = encoded_inputs["input_ids"], encoded_inputs.get("attention_mask")
        single = not len(rows) or not hasattr(rows[0], "__len__")
        return self._batch(
            [id_list(row) for row in ([rows] if single else rows)],
            masks=None if masks is None else [id_list(mask) for mask in ([masks] if single else masks)],
            single=single,
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
        )

    def tokenize(self, text: str, *, add_special_tokens: bool = False, **options: Any) -> list[str]:
        check("tokenizer.tokenize", options, refused={"pair": REFUSED["text_pair"]})
        return [self._tokens[i] for i in self._encode(text, self._special, add_special_tokens, None)]

    def build_inputs_with_special_tokens(self, token_ids_0: Sequence[int], token_ids_1: Any = None) -> Ids:
        check("tokenizer", {"token_ids_1": token_ids_1}, refused={"token_ids_1": REFUSED["text_pair"]})
        return self._around(id_list(list(token_ids_0)))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        check("tokenizer", {"pair": pair}, refused={"pair": REFUSED["text_pair"]})
        return len(self._around([]))

    def build_inputs_for_generation(
        self, model_input: Mapping[str, Any], max_gen_length: int | None = None, **options: Any
    ) -> BatchEncoding:
        """GLM's: each row with the token that starts a piece. max_gen_length: pass max_new_tokens to `generate`."""
        check("build_inputs_for_generation", options, ignored=("padding",), refused={"targets": NO_TRAINING})
        if self._infiller is None:
            raise ValueError(f"build_inputs_for_generation: {self._architecture} models fill no blanks")
        given = model_input["input_ids"]
        kind = "pt" if hasattr(given, "detach") else "np"
        rows, masks = ([id_list(row) for row in model_input[key]] for key in self.model_input_names)
        start = self._infiller.start
        for row, mask in zip(rows, masks):
            if start not in row:
                row.append(start)
                mask.append(1)
        return BatchEncoding(input_ids=tensor(rows, kind), attention_mask=tensor(masks, kind))

    def _encode(self, text: Any, special: bool, add_special_tokens: bool, room: int | None) -> Ids:
        ids = self.tokenizer.encode(text, special=special) if isinstance(text, str) else _given_ids(text)
        if not add_special_tokens:
            return cut(ids, room, self.truncation_side)
        prefix = self.get_prefix_tokens()
        ids = ids[len(prefix) :] if prefix and ids[: len(prefix)] == prefix else ids
        around = len(self._around([]))
        if room is not None and room < around:
            raise ValueError(f"max_length is {room}, the special tokens alone are {around}")
        return self._around(cut(ids, None if room is None else room - around, self.truncation_side))

    def _around(self, ids: Ids) -> Ids:
        """ids with the model's special tokens, as its own tokenizer puts them."""
        blanks = self._infiller
        if blanks is None:
            return self.get_prefix_tokens() + ids
        if blanks.blanks.several:  # GLM's mask and the start of a piece are the script's to add
            return [*blanks.before, *ids, *blanks.after]
        return blanks.prompt(ids)

    def _batch(
        self,
        rows: Sequence[Ids],
        *,
        padding: Any,
        max_length: int | None,
        padding_side: str | None,
        return_attention_mask: bool | None = None,
        **options: Any,
    ) -> BatchEncoding:
        if padding == "max_length" and max_length is None:
            max_length = self.model_max_length
        side = self.padding_side if padding_side is None else padding_side
        pad_id = 0 if self._pad_id is None else self._pad_id
        out = batch(rows, pad_id=pad_id, padding=padding, max_length=max_length, padding_side=side, **options)
        if return_attention_mask is False:
            del out["attention_mask"]
        return out

    # ---- ids to text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> Any:
        """The text of ids, or the texts of several rows of them."""
        check("tokenizer.decode", options, known=DECODING_TAKEN, ignored=DECODING, refused={})
        if (hasattr(token_ids, "ndim") and token_ids.ndim > 1) or _is_rows(token_ids):
            return self.batch_decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces)
        ids = [i for i in id_list(token_ids) if i not in self._never_shown()]
        text = self.tokenizer.decode(ids, skip_special=skip_special_tokens)
        if clean_up_tokenization_spaces:
            for spaced, plain in SPACES.items():
                text = text.replace(spaced, plain)
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **options) for row in sequences]

    def _never_shown(self) -> set[int | None]:
        """Ids that the makers' own `decode` leaves out, whether it is asked to or not."""
        if about(self._architecture).shows_special:
            return {self._pad_id}
        if not self._is_sentencepiece:
            return set()
        if self._chat_format == "chatglm2":
            return set(self.all_special_ids)
        return {self.bos_token_id, self.eos_token_id, self.unk_token_id}

    # ---- conversations

    @property
    def chat_template(self) -> str | None:
        return chat.template.of(self._metadata)

    @chat_template.setter
    def chat_template(self, text: str) -> None:
        self._metadata = self._with_template(text)

    def _with_template(self, text: str) -> Mapping[str, Any]:
        """The metadata with another template: a Jinja program, or the name of one that the file has."""
        named = self._metadata.get(f"tokenizer.chat_template.{text}")
        changed = {**self._metadata, "tokenizer.chat_template": named or text}
        changed.pop("glmlite.chat_format", None)
        if chat.template.of(changed) is None:
            raise ValueError(f"chat_template is {text!r:.60}, expected a Jinja template")
        return changed

    @property
    def _chat_format(self) -> str | None:
        return chat.chat_format(self._metadata, self.tokenizer, self._architecture)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **template: Any,
    ) -> Any:
        """Ids (or text) of a conversation or of several. template: variables for the file's template.

        return_dict: False, as GLM's own tokenizers have it.
        """
        refused = {
            "documents": Refusal("put them into a message"),
            "return_assistant_tokens_mask": NO_TRAINING,
            "tokenizer_kwargs": Refusal("pass padding, truncation and max_length themselves"),
        }
        asked = {"documents": documents, "tokenizer_kwargs": tokenizer_kwargs}
        template.pop("sanitize_control_tokens", None)  # a control token in a message is text here anyway
        if "return_assistant_tokens_mask" in template:
            asked["return_assistant_tokens_mask"] = template.pop("return_assistant_tokens_mask")
        check("apply_chat_template", asked, refused=refused)
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt: expected one of them")
        metadata = self._metadata if chat_template is None else self._with_template(chat_template)
        read = chat.template.of(metadata) or ""
        for name in template:  # a misspelt argument would be a variable that nobody reads
            if name not in CONVERSATION and name not in read and near(name, CONVERSATION):
                raise unknown("apply_chat_template", name, CONVERSATION)

        def render(messages: Sequence[Mapping[str, Any]]) -> Ids:
            ids = chat.render(
                metadata,
                self.tokenizer,
                self._architecture,
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **template,
            )
            return self._open(ids, messages) if continue_final_message else ids

        several = isinstance(conversation, Sequence) and len(conversation) > 0
        single = not several or isinstance(conversation[0], Mapping)
        rows = [render(messages) for messages in ([conversation] if single else conversation)]
        if not tokenize:
            texts = [self.tokenizer.decode(row) for row in rows]
            return texts[0] if single else texts
        room = limit(truncation, max_length, self.model_max_length)
        out = self._batch(
            [cut(row, room, self.truncation_side) for row in rows],
            single=single,
            padding=padding,
            max_length=max_length,
            padding_side=None,
            return_tensors=return_tensors,
        )
        return out if return_dict else out["input_ids"]

    def _open(self, ids: Ids, messages: Sequence[Mapping[str, Any]]) -> Ids:
        """The ids of a conversation up to the end of its last message's text, which the model is to go on with."""
        last = chat.messages.check(messages)[-1]["content"].strip()
        text = self.tokenizer.decode(ids)
        end = text.rfind(last) + len(last)
        for count in range(len(ids), 0, -1):
            read = self.tokenizer.decode(ids[:count])
            if last and read == text[:end]:
                return ids[:count]
            if len(read) < end:
                break
        raise ValueError("continue_final_message: the template does not end the last message where its text ends")

    def build_prompt(self, query: str, history: Sequence[Any] | None = None) -> str:
        """ChatGLM2's: the text of a question after (question, answer) pairs."""
        if self._chat_format not in ("chatglm", "chatglm2"):
            raise ValueError(f"build_prompt: the chat format is {self._chat_format}; use apply_chat_template")
        messages, _ = conversation(self._chat_format, history, query, "user")
        text = {"chatglm": chat.dialects.chatglm.text, "chatglm2": chat.dialects.chatglm2.text}[self._chat_format]
        return text(messages, [], True)

    def build_single_message(self, role: str, metadata: str, message: str, tokenize: bool = True) -> Any:
        """ChatGLM3's and GLM-4's: the ids (or the text) of one message."""
        if role not in chat.messages.ROLES:
            raise ValueError(f"role {role!r}, should be one of {', '.join(chat.messages.ROLES)}")
        if not tokenize:
            return f"<|{role}|>{metadata}\n{message}"
        encode: Callable[[str], Ids] = lambda text: self.tokenizer.encode(text, special=False)  # noqa: E731
        return [self.get_command(f"<|{role}|>"), *encode(f"{metadata}\n"), *encode(message)]

    def build_chat_input(self, query: str, history: Sequence[Any] | None = None, role: str = "user") -> BatchEncoding:
        """ChatGLM3's: the prompt of a conversation; torch's tensors where the program has loaded torch."""
        messages, tools = conversation(self._chat_format, history, query, role)
        ids = chat.render(self._metadata, self.tokenizer, self._architecture, messages, tools=tools)
        return self._batch(
            [ids], single=True, padding=False, max_length=None, padding_side=None, return_tensors=loaded_kind()
        )


def _is_ids(value: Any) -> bool:
    return not isinstance(value, str) and len(value) > 0 and not hasattr(value[0], "__len__")


def _given_ids(row: Any) -> Ids:
    if hasattr(row, "dtype") or (isinstance(row, list | tuple) and all(isinstance(i, Integral) for i in row)):
        return id_list(row)
    pair = f"; {REFUSED['text_pair'].instead}" if isinstance(row, list | tuple) and len(row) == 2 else ""
    raise TypeError(f"tokenizer: {reprlib.repr(row)}, expected a text, or a list of token ids{pair}")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and hasattr(value[0], "__len__")
