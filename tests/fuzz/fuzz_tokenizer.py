"""Coverage-guided fuzzing of tokenizer metadata.

    PYTHONPATH=tests:. python tests/fuzz/fuzz_tokenizer.py -max_total_time=1200 [corpus folder]

needs the package `atheris`. A small good vocabulary of some family is damaged in a few places. It must be refused with
FormatError, or work: any text encodes to ids of the vocabulary, any ids decode, and streaming gives the same text.
"""

import sys

import atheris
import numpy as np

with atheris.instrument_imports(include=["glmlite"]):
    import vocab

    from glmlite.errors import FormatError
    from glmlite.tokenizer import (
        Tokenizer,
        chatglm1,  # noqa: F401 (the sentencepiece families, instrumented too)
    )
    from glmlite.tokenizer.bpe import PATTERNS

NAMED = [f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")] + ["eos_token_ids"]


def anything(data: atheris.FuzzedDataProvider):
    """A value of any type that a GGUF file can hold."""
    kind = data.ConsumeIntInRange(0, 9)
    if kind == 0:
        return data.ConsumeInt(8)
    if kind == 1:
        return data.ConsumeFloat()
    if kind == 2:
        return data.ConsumeBool()
    if kind == 3:
        return text(data)
    if kind == 4:
        return np.array(data.ConsumeIntListInRange(data.ConsumeIntInRange(0, 8), -(2**31), 2**31), np.int64)
    if kind == 5:
        return np.array(data.ConsumeFloatListInRange(data.ConsumeIntInRange(0, 8), -1e39, 1e39))
    if kind == 6:
        return [text(data) for _ in range(data.ConsumeIntInRange(0, 8))]
    if kind == 7:
        return [data.ConsumeBytes(4), text(data)]
    if kind == 8:
        return np.frombuffer(data.ConsumeBytes(64), np.uint8)
    return None


def text(data: atheris.FuzzedDataProvider) -> str:
    return data.ConsumeUnicode(data.ConsumeIntInRange(0, 40))


def damage(metadata: dict, data: atheris.FuzzedDataProvider) -> None:
    key = data.PickValueInList([*metadata, *(f"tokenizer.ggml.{name}" for name in NAMED)])
    value = metadata.get(key)
    how = data.ConsumeIntInRange(0, 4)
    if how == 0 or value is None:
        metadata[key] = anything(data)
    elif isinstance(value, list) and value:
        at = data.ConsumeIntInRange(0, len(value) - 1)
        other = value[data.ConsumeIntInRange(0, len(value) - 1)]
        new = data.PickValueInList([text(data), other, f"{other} {value[at]}"])
        metadata[key] = value[:at] + [new] * (how < 3) + value[at + 1 :] + value[:1] * (how == 4)
    elif isinstance(value, np.ndarray) and value.size:
        value = value.copy()
        at = data.ConsumeIntInRange(0, value.size - 1)
        if value.dtype == np.float32:
            value[at] = data.ConsumeFloat()
        else:
            value[at] = data.ConsumeIntInRange(0, 255) if value.dtype == np.uint8 else data.ConsumeIntInRange(-2, 9)
        metadata[key] = value[: at + 1] if how == 4 else value
    elif how < 3:
        metadata[key] = text(data)
    else:
        metadata.pop(key)


def one(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    pre = data.PickValueInList(["default", "chatglm1", *PATTERNS])
    sentencepiece = data.ConsumeBool() or pre == "chatglm1"
    metadata = vocab.small_sentencepiece(pre) if sentencepiece else vocab.small_bytes(pre)
    for _ in range(data.ConsumeIntInRange(0, 6)):
        damage(metadata, data)
    try:
        with np.errstate(all="ignore"):
            tokenizer = Tokenizer.from_metadata(metadata)
    except FormatError:
        return
    line = text(data) + data.PickValueInList(["", " ab AAb", "[gMASK]sop<|user|>", "\n\t    你\ud800"])
    for special in (True, False):
        ids = tokenizer.encode(line, special=special, prefix=special)
        assert all(0 <= i < tokenizer.vocab_size for i in ids), ids
        same_when_streamed(tokenizer, ids)
    same_when_streamed(tokenizer, [i % tokenizer.vocab_size for i in data.ConsumeIntListInRange(12, 0, 2**16)])


def same_when_streamed(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    streamed = "".join(stream.push([i]) for i in ids) + stream.finish()
    assert streamed == tokenizer.decode(ids), (streamed, ids)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
