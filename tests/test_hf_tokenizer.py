"""The tokenizer under transformers' names. Ids, padding and truncation are those that transformers 5.24 gave for the
same vocabulary, or what the makers' own tokenizers do."""

import json

import numpy as np
import pytest
import tiny

import glmlite
from glmlite import AutoTokenizer

PAIR = ["the other", "hell in there"]
FIRST, SECOND = [266, 268, 257, 32, 111, 257, 114], [266, 268, 261, 262, 32, 259, 258, 114, 101]
PAD = 264


@pytest.fixture
def tokenizer(tiny_file):
    return AutoTokenizer.from_pretrained(tiny_file("glm4"))


@pytest.mark.parametrize(
    ("text", "options", "ids", "masks"),
    [
        (PAIR, {"padding": True}, [[PAD, PAD, *FIRST], SECOND], [[0] * 2 + [1] * 7, [1] * 9]),
        (PAIR, {"padding": True, "padding_side": "right"}, [[*FIRST, PAD, PAD], SECOND], [[1] * 7 + [0] * 2, [1] * 9]),
        (PAIR, {"padding": "max_length", "max_length": 10}, [[PAD] * 3 + FIRST, [PAD, *SECOND]], None),
        (PAIR, {"padding": "max_length", "max_length": 5, "truncation": True}, [FIRST[:5], SECOND[:5]], [[1] * 5] * 2),
        (PAIR, {"padding": True, "pad_to_multiple_of": 8}, [[PAD] * 9 + FIRST, [PAD] * 7 + SECOND], None),
        (PAIR, {"truncation": True, "max_length": 4}, [FIRST[:4], SECOND[:4]], None),
        (PAIR[1], {"truncation": "only_first", "max_length": 4, "add_special_tokens": False}, SECOND[2:6], [1] * 4),
        (PAIR[1], {"max_length": 3}, SECOND[:3], [1] * 3),
        (PAIR[1], {"max_length": 3, "truncation": False}, SECOND, [1] * 9),
        ("<|user|>the", {}, [266, 268, 271, 257], None),
        ("", {}, [266, 268], [1, 1]),
        (["the", ""], {"padding": "longest"}, [[266, 268, 257], [PAD, 266, 268]], [[1] * 3, [0, 1, 1]]),
    ],
)
def test_ids_padding_and_truncation(tokenizer, text, options, ids, masks):
    out = tokenizer(text, **options)
    assert out.input_ids == ids
    if masks is not None:
        assert out.attention_mask == masks
    assert tokenizer.batch_encode_plus([text] if isinstance(text, str) else text, **options)["input_ids"][-1] in (
        ids,
        ids[-1],
    )


def test_sides_are_the_tokenizers(tokenizer, tiny_file):
    tokenizer.truncation_side = "left"
    assert tokenizer(PAIR[1], truncation=True, max_length=4).input_ids == [266, 268, 114, 101]
    other = AutoTokenizer.from_pretrained(tiny_file("glm4"), padding_side="right", model_max_length=4)
    assert other(["", "the"], padding=True).input_ids == [[266, 268, PAD], [266, 268, 257]]
    assert len(other(PAIR[1], truncation=True).input_ids) == 4
    with pytest.raises(AttributeError, match="paddingside"):
        tokenizer.paddingside = "left"
    with pytest.raises(ValueError, match="padding_side is 'top'"):
        tokenizer(PAIR, padding=True, padding_side="top")
    with pytest.raises(ValueError, match="max_length is 1"):
        tokenizer("the", truncation=True, max_length=1)


def test_arrays_and_masks(tokenizer):
    out = tokenizer(PAIR, padding=True, return_tensors="np")
    assert out.input_ids.shape == out["attention_mask"].shape == (2, 9)
    assert "attention_mask" not in tokenizer("the", return_attention_mask=False)
    assert tokenizer.encode("the", return_tensors="np").tolist() == [[266, 268, 257]]
    separate = [tokenizer(text) for text in PAIR]
    assert tokenizer.pad(separate, return_tensors="np")["input_ids"].tolist() == out.input_ids.tolist()
    assert tokenizer.pad({"input_ids": [FIRST, SECOND]}).attention_mask == out.attention_mask.tolist()
    assert tokenizer.batch_encode_plus([[257, 32]], is_split_into_words=True).input_ids == [[266, 268, 257, 32]]
    with pytest.raises(AttributeError, match="token_type_ids"):
        _ = out.token_type_ids


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"return_offsets_mapping": True}, ValueError, "return_offsets_mapping"),
        ({"return_token_type_ids": True}, ValueError, "return_token_type_ids"),
        ({"text_pair": "x"}, ValueError, "text_pair"),
        ({"stride": 2}, ValueError, "stride"),
        ({"truncation": "only_second"}, ValueError, "only_second"),
        ({"padding": "long"}, ValueError, "padding is 'long'"),
        ({"return_tensors": "tf"}, ValueError, "'tf'"),
        ({"truncaton": True}, TypeError, "truncaton.*did you mean truncation"),
        ({"return_offset_mapping": True}, TypeError, "did you mean return_offsets_mapping"),
    ],
)
def test_what_is_not_done_is_named(tokenizer, options, error, words):
    for call in (tokenizer, tokenizer.encode, tokenizer.encode_plus):
        with pytest.raises(error, match=words):
            call("the", **options)
    assert tokenizer("the", verbose=False, stride=0, return_offsets_mapping=False, text_pair=None).input_ids


def test_words_are_not_split(tokenizer):
    with pytest.raises(ValueError, match="is_split_into_words"):
        tokenizer([["the", "other"]], is_split_into_words=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "None, expected a text"),
        (5, "5, expected a text"),
        (b"the", "b'the', expected a text"),
        ({"the": 1}, "expected a text"),
        (["the", None], "None, expected a text, or a list of token ids"),
        ([1.5], "1.5"),
        ([("the", "other")], "encode the two texts as one"),
    ],
)
def test_what_is_no_text_is_named(tokenizer, text, words):
    with pytest.raises(TypeError, match=words):
        tokenizer(text)


def test_one_message_is_no_conversation(tokenizer):
    with pytest.raises(ValueError, match="messages: dict, should be a list of messages"):
        tokenizer.apply_chat_template({"role": "user", "content": "the"})


def test_special_tokens(tokenizer):
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 264)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 264)
    assert (tokenizer.mask_token, tokenizer.mask_token_id, tokenizer.gmask_token_id) == ("[MASK]", 265, 266)
    assert (tokenizer.sop_token, tokenizer.eop_token_id, tokenizer.unk_token, tokenizer.bos_token_id) == (
        "<sop>",
        269,
        None,
        None,
    )
    assert tokenizer.all_special_ids == list(range(264, 274))
    assert "<|user|>" in tokenizer.additional_special_tokens
    assert tokenizer.special_tokens_map["eos_token"] == "<|endoftext|>"
    assert [tokenizer.get_command(t) for t in ("[gMASK]", "sop", "<sop>", "<|user|>", "<eos>")] == [
        266,
        268,
        268,
        271,
        264,
    ]
    with pytest.raises(ValueError, match=r"'<\|usr\|>'.*did you mean <\|user\|>"):
        tokenizer.get_command("<|usr|>")
    assert tokenizer.get_prefix_tokens() == [266, 268]
    assert tokenizer.build_inputs_with_special_tokens([257]) == [266, 268, 257]
    assert tokenizer.num_special_tokens_to_add() == 2
    tokenizer.pad_token = "[MASK]"
    assert tokenizer.pad_token_id == 265
    tokenizer.pad_token_id = tokenizer.eos_token_id
    assert tokenizer.pad_token == tokenizer.eos_token


def test_vocabulary(tokenizer):
    assert tokenizer.vocab_size == len(tokenizer) == len(tokenizer.get_vocab()) == 384
    assert tokenizer.convert_tokens_to_ids(["the", "<|user|>", "nope"]) == [257, 271, None]
    assert tokenizer.convert_tokens_to_ids("the") == 257
    assert tokenizer.convert_ids_to_tokens([256, 257]) == ["th", "the"]
    assert tokenizer.convert_ids_to_tokens(257) == "the"
    assert tokenizer.convert_ids_to_tokens([266, 257], skip_special_tokens=True) == ["the"]
    assert tokenizer.tokenize("the other") == ["the", "Ġ", "o", "the", "r"]
    assert tokenizer.convert_tokens_to_string(["the", "Ġ", "in"]) == "the in"
    assert tokenizer.get_added_vocab()["[gMASK]"] == 266
    assert tokenizer.model_max_length == 256


def test_decoding(tokenizer):
    assert tokenizer.decode(FIRST, skip_special_tokens=True) == "the other"
    assert tokenizer.decode(np.array([FIRST, FIRST]), skip_special_tokens=True) == ["the other"] * 2
    assert tokenizer.decode(257) == "the"
    spaced = tokenizer.encode("in , the .", add_special_tokens=False)
    assert tokenizer.decode(spaced, clean_up_tokenization_spaces=False) == "in , the ."
    assert tokenizer.decode(spaced, clean_up_tokenization_spaces=True) == "in, the."
    with pytest.raises(TypeError, match=r"skip_special_token'.*did you mean skip_special_tokens"):
        tokenizer.decode(FIRST, skip_special_token=True)


@pytest.mark.parametrize("name", ["save_pretrained", "add_tokens", "build_inputs_for_multiple_choice", "vocabs"])
def test_a_method_that_is_not_here_is_named(tokenizer, name):
    assert not hasattr(tokenizer, name)
    with pytest.raises(AttributeError, match=f"tokenizer.{name}: not here"):
        getattr(tokenizer, name)


def test_loading_takes_what_means_nothing(tiny_file, tmp_path):
    path = tiny_file("glm4")
    AutoTokenizer.from_pretrained(
        path, trust_remote_code=True, use_fast=False, revision="main", token=None, legacy=False
    )
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    with pytest.raises(TypeError, match=r"trust_remote_cod'.*did you mean trust_remote_code"):
        AutoTokenizer.from_pretrained(path, trust_remote_cod=True)
    with pytest.raises(ValueError, match="add_eos_token"):
        AutoTokenizer.from_pretrained(path, add_eos_token=True)
    for loader in (AutoTokenizer, glmlite.AutoModel, glmlite.AutoConfig):
        with pytest.raises(FileNotFoundError, match="glmlite convert"):
            loader.from_pretrained("THUDM/chatglm3-6b")
        with pytest.raises(ValueError, match="glmlite convert"):
            loader.from_pretrained(tmp_path)


# ---- conversations

HI = [{"role": "user", "content": "the"}]
BYE = [{"role": "user", "content": "in"}, {"role": "assistant", "content": "other"}]


def test_templates_of_several_conversations(tokenizer):
    ids = tokenizer.apply_chat_template([HI, BYE], add_generation_prompt=False)
    assert ids == [tokenizer.apply_chat_template(messages) for messages in (HI, BYE)]
    out = tokenizer.apply_chat_template([HI, BYE], padding=True, return_tensors="np", return_dict=True)
    assert out.attention_mask.sum(axis=1).tolist() == [5, 10]
    assert out.input_ids[0, -5:].tolist() == ids[0]
    cut = tokenizer.apply_chat_template(BYE, truncation=True, max_length=4)
    assert cut == ids[1][:4]
    assert tokenizer.apply_chat_template([HI, HI], tokenize=False) == ["[gMASK]<sop><|user|>\nthe"] * 2


def test_a_template_of_ones_own(tokenizer):
    template = "{% for m in messages %}<|user|>{{ m.content }}{{ tail }}{% endfor %}"
    assert tokenizer.apply_chat_template(HI, chat_template=template, tail="in", tokenize=False) == (
        "[gMASK]<sop><|user|>thein"
    )
    tokenizer.chat_template = template
    assert tokenizer.chat_template == template
    assert tokenizer.apply_chat_template(HI, tokenize=False) == "[gMASK]<sop><|user|>the"
    with pytest.raises(ValueError, match="chat_template"):
        tokenizer.chat_template = "chatglm4"


def test_a_misspelt_argument_is_no_variable(tokenizer):
    with pytest.raises(TypeError, match=r"return_tensor'.*did you mean return_tensors"):
        tokenizer.apply_chat_template(HI, return_tensor="np")
    assert tokenizer.apply_chat_template(HI, anything=1) == tokenizer.apply_chat_template(HI, enable_thinking=False)


def test_the_last_message_is_continued(tokenizer):
    ids = tokenizer.apply_chat_template(BYE, continue_final_message=True)
    assert tokenizer.decode(ids) == "[gMASK]<sop><|user|>\nin<|assistant|>\nother"
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>\n{% endfor %}"
    text = tokenizer.apply_chat_template(BYE, continue_final_message=True, tokenize=False)
    assert text.endswith("<|user|>in<|endoftext|>\n<|assistant|>other")
    with pytest.raises(ValueError, match="continue_final_message"):
        tokenizer.apply_chat_template(BYE, continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(ValueError, match="documents"):
        tokenizer.apply_chat_template(BYE, documents=[{"text": "x"}])


def test_chatglm3s_own_names(tiny_file):
    """Messages are encoded on their own: role, line of the role, text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_file("chatglm", metadata={"glmlite.chat_format": "chatglm3"}))
    message = tokenizer.build_single_message("user", "", "the<|user|>")
    assert message == [271, *b"\n", 257, *b"<|us", 260, *b"|>"]
    assert tokenizer.build_single_message("user", "x", "the", tokenize=False) == "<|user|>x\nthe"
    tools = [{"name": "weather", "description": "d", "parameters": {}}]
    history = [{"role": "system", "content": "Answer", "tools": tools}, *HI, {"role": "assistant", "content": "in"}]
    inputs = tokenizer.build_chat_input("where", history=history)
    assert list(inputs) == ["input_ids", "attention_mask"]
    listing = json.dumps(tools, indent=4, ensure_ascii=False)
    assert tokenizer.decode(inputs["input_ids"][0]) == (
        f"[gMASK]<sop><|system|>\nAnswer\n{listing}<|user|>\nthe<|assistant|>\nin<|user|>\nwhere<|assistant|>"
    )
    assert "tools" in history[0]
    with pytest.raises(ValueError, match="build_prompt"):
        tokenizer.build_prompt("the")


def test_chatglm2s_prompt(tiny_file):
    tokenizer = AutoTokenizer.from_pretrained(tiny_file("chatglm", metadata={"glmlite.chat_format": "chatglm2"}))
    assert (
        tokenizer.build_prompt("q2", [("q1", "a1")]) == "[Round 1]\n\n问：q1\n\n答：a1\n\n[Round 2]\n\n问：q2\n\n答："
    )


def test_glms_own_names(tiny_file):
    tokenizer = AutoTokenizer.from_pretrained(tiny_file("glm"))
    ids = tokenizer("in [MASK] the", return_tensors="np")
    assert tokenizer.decode(ids.input_ids[0]) == "[CLS]in [MASK] the<|endoftext|>"
    inputs = tokenizer.build_inputs_for_generation(ids, max_gen_length=12)
    assert tokenizer.decode(inputs["input_ids"][0]) == "[CLS]in [MASK] the<|endoftext|><|startofpiece|>"
    assert inputs.attention_mask.shape == inputs.input_ids.shape
    assert tokenizer.eop_token == "<|endofpiece|>"
    assert (tokenizer.smask_token, tokenizer.cls_token) == ("[sMASK]", "[CLS]")
    with pytest.raises(ValueError, match="targets"):
        tokenizer.build_inputs_for_generation(ids, targets="x")


def test_chatglm_6b_cuts_the_text_and_not_its_ending(tiny_file):
    pad = tiny.token_id(tiny.model("chatglm1"), "<pad>")
    tokenizer = AutoTokenizer.from_pretrained(tiny_file("chatglm1", metadata={"tokenizer.ggml.padding_token_id": pad}))
    assert tokenizer.decode(tokenizer("in the in the", truncation=True, max_length=4).input_ids).endswith(
        "[gMASK]<sop>"
    )
    assert len(tokenizer("in the in the", truncation=True, max_length=4).input_ids) == 4
    padded = tokenizer(["in", "in the"], padding=True).input_ids
    assert padded[0][0] == pad
    assert tokenizer.decode(padded[0]) == tokenizer.decode(tokenizer("in").input_ids)
