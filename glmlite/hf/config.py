"""What a file says of its model, under transformers' names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ..tokenizer import Tokenizer
from .arguments import check, near
from .files import LOADING, LOADING_REFUSED, header


class Config(SimpleNamespace):
    """A model's sizes and token ids. Changing it changes nothing."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"config.{name}: the file does not say{near(name, vars(self))}")


def config(path: str, metadata: Mapping[str, Any], tokenizer: Tokenizer, context: int, prefix: int | None) -> Config:
    """eos_token_id: one id where ChatGLM's own configs have one, else a list if the model has several ends."""
    architecture = metadata["general.architecture"]

    def size(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    named = metadata.get("tokenizer.ggml.eos_token_id")
    ends = sorted(tokenizer.eos_ids, key=lambda i: (i != named, i))
    one = len(ends) == 1 or metadata.get("tokenizer.ggml.model") != "gpt2"
    layers, drafting, heads = size("block_count"), size("nextn_predict_layers"), size("attention.head_count")
    if isinstance(layers, int) and isinstance(drafting, int):
        layers -= drafting  # which transformers does not count
    return Config(
        name_or_path=path,
        _name_or_path=path,
        model_type=architecture,
        vocab_size=tokenizer.vocab_size,
        hidden_size=size("embedding_length"),
        intermediate_size=size("feed_forward_length"),
        num_hidden_layers=layers,
        num_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=size("attention.head_count_kv"),
        head_dim=size("attention.key_length"),
        max_position_embeddings=size("context_length"),
        max_sequence_length=context,
        seq_length=context,
        pre_seq_len=prefix,
        eos_token_id=ends[0] if one and ends else ends or None,
        bos_token_id=tokenizer.bos_id,
        pad_token_id=tokenizer.pad_id,
        is_encoder_decoder=False,
        use_cache=True,
        torch_dtype="float32",
    )


class AutoConfig:
    """transformers' class of this name."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        gguf_file: str | None = None,
        pre_seq_len: int | None = None,
        **options: Any,
    ) -> Config:
        """pre_seq_len: of a P-Tuning prefix, which has to be in the file. Raises ValueError for another length."""
        check("AutoConfig", options, known=("pre_seq_len", "gguf_file"), ignored=LOADING, refused=LOADING_REFUSED)
        path, metadata, prefix = header(pretrained_model_name_or_path, gguf_file, pre_seq_len)
        context = int(metadata.get(f"{metadata['general.architecture']}.context_length", 0))
        return config(path, metadata, Tokenizer.from_metadata(metadata), context, prefix)
