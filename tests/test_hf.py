"""An existing ChatGLM script runs with only its import changed."""

import numpy as np
import pytest

from glmlite import AutoModelForCausalLM, AutoTokenizer

EVERY_END = {"eos_token_id": 383}  # a token that never comes


@pytest.fixture
def pair(load, executor, tiny_file):
    """hf(architecture) -> (tokenizer, model)."""
    opened = []

    def open_pair(architecture="chatglm", **sizes):
        path = tiny_file(architecture, **sizes)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        opened.append(AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, torch_dtype="auto"))
        return tokenizer, opened[-1]

    yield open_pair
    for model in opened:
        model.model.close()


def test_the_script(pair):
    tokenizer, model = pair()
    model = model.half().eval()
    input_ids = tokenizer.encode("the other", return_tensors="np")
    output = model.generate(input_ids, max_length=20, **EVERY_END)
    assert output.shape == (1, 20)
    assert output.dtype == input_ids.dtype
    assert np.array_equal(output[:, : input_ids.shape[1]], input_ids)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    assert text.startswith("the other")
    greedy = model.model.generate(input_ids[0], temperature=0, max_tokens=20 - input_ids.shape[1], ignore_eos=True)
    assert output[0, input_ids.shape[1] :].tolist() == greedy.tokens


def test_torch_in_torch_out(pair):
    torch = pytest.importorskip("torch")
    tokenizer, model = pair()
    inputs = tokenizer("the other", return_tensors="pt").to("cpu")
    output = model.generate(**inputs, max_new_tokens=3)
    assert isinstance(output, torch.Tensor)
    assert output.dtype == torch.long
    assert tokenizer.decode(output[0])


def test_a_padded_batch_equals_its_rows(pair):
    tokenizer, model = pair()
    texts = ["the other", "hell in there, the other"]
    batch = tokenizer(texts, return_tensors="np", padding=True)
    assert batch["attention_mask"].tolist()[1] == [1] * batch.input_ids.shape[1]
    assert batch.attention_mask[0, 0] == 0
    output = model.generate(**batch, max_new_tokens=6, **EVERY_END)
    assert output.shape == (2, batch.input_ids.shape[1] + 6)
    for text, row in zip(texts, output):
        alone = model.generate(tokenizer.encode(text), max_new_tokens=6, **EVERY_END)
        assert row[-6:].tolist() == alone[0, -6:].tolist()
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(texts, return_tensors="np")


def test_the_end_token_is_part_of_the_output_and_the_rest_is_padding(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    free = model.generate(ids, max_new_tokens=8, **EVERY_END)[0, ids.shape[1] :].tolist()
    end = free[3]
    output = model.generate(np.repeat(ids, 2, 0), max_new_tokens=8, eos_token_id=[end])
    at = free.index(end)
    assert output[0, ids.shape[1] :].tolist() == free[: at + 1]


def test_sampling(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    options = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 1.0, **EVERY_END}
    a, b = (model.generate(ids, do_sample=True, seed=s, **options) for s in (1, 2))
    assert not np.array_equal(a, b)
    assert np.array_equal(a, model.generate(ids, do_sample=True, seed=1, **options))
    assert np.array_equal(model.generate(ids, **options), model.generate(ids, **options | {"temperature": 0.3}))


def test_bad_arguments(pair):
    tokenizer, model = pair()
    with pytest.raises(ValueError, match="num_beams"):
        model.generate([[1]], num_beams=4)
    with pytest.raises(ValueError, match="max_length is 2"):
        model.generate([[1, 2, 3]], max_length=2)
    with pytest.raises(ValueError, match="attention_mask"):
        model.generate([[1, 2, 3]], attention_mask=[[1]])
    with pytest.raises(ValueError, match="return_tensors"):
        tokenizer.encode("x", return_tensors="tf")


@pytest.mark.parametrize("name", ["streamer", "stopping_criteria", "logits_processor"])
def test_what_would_change_the_result_is_not_ignored(pair, name):
    tokenizer, model = pair("chatglm1")
    ids = tokenizer.encode("the", return_tensors="np")
    with pytest.raises(ValueError, match=name):
        model.generate(ids, max_new_tokens=1, **{name: object()})
    with pytest.raises(ValueError, match=name):
        model.chat(tokenizer, "the", max_new_tokens=1, **{name: object()})
    assert model.generate(ids, max_new_tokens=1, use_cache=True, **{name: None}).shape == (1, ids.shape[1] + 1)


def test_cuda_says_why_not(pair, tiny_file):
    _, model = pair()
    for ask in (model.cuda, lambda: model.to("cuda:0")):
        with pytest.raises(RuntimeError, match="CUDA"):
            ask()
    with pytest.raises(RuntimeError, match="CUDA"):
        AutoModelForCausalLM.from_pretrained(tiny_file(), device_map="cuda")


def test_tokenizer_methods(pair):
    tokenizer, _ = pair("glm4")
    ids = tokenizer.encode("the")
    assert ids == tokenizer("the")["input_ids"]
    assert tokenizer.decode(ids) == "[gMASK]<sop>the"
    assert tokenizer.encode("the", add_special_tokens=False) == ids[2:]
    assert tokenizer.batch_decode([ids, ids[2:]], skip_special_tokens=True) == ["the", "the"]
    assert tokenizer.eos_token_id == tokenizer.tokenizer.id_of("<|endoftext|>")
    assert len(tokenizer) == 384
    messages = [{"role": "user", "content": "the"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "[gMASK]<sop><|user|>\nthe<|assistant|>\n"
    inputs = tokenizer.apply_chat_template(messages, return_tensors="np", return_dict=True)
    assert inputs.input_ids.shape == inputs.attention_mask.shape == (1, 5)


def test_first_chatglm_encodes_with_its_ending(pair):
    tokenizer, model = pair("chatglm1")
    ids = tokenizer.encode("the", return_tensors="np")
    assert tokenizer.decode(ids[0]) == "the[gMASK]<sop>"
    assert model.generate(ids, max_new_tokens=4).shape[0] == 1


@pytest.mark.parametrize(("architecture", "pairs"), [("chatglm1", True), ("glm4", False)])
def test_chat_and_stream_chat(pair, architecture, pairs):
    tokenizer, model = pair(architecture)
    response, history = model.chat(tokenizer, "the", history=[], max_new_tokens=6, seed=1)
    if pairs:
        assert history == [("the", response)]
    else:
        assert [m["role"] for m in history] == ["user", "assistant"]
        assert history[1]["content"] == response
    *_, (streamed, grown) = model.stream_chat(tokenizer, "other", history, max_new_tokens=6, do_sample=False)
    again, _ = model.chat(tokenizer, "other", history, max_new_tokens=6, do_sample=False)
    assert streamed == again
    assert len(grown) == len(history) + (1 if pairs else 2)
    assert grown[: len(history)] == history


def test_a_history_keeps_its_form(pair):
    tokenizer, model = pair("glm4")
    _, history = model.chat(tokenizer, "the", history=[("in", "there")], max_new_tokens=2)
    assert history[0] == ("in", "there")
    assert history[1][0] == "the"
