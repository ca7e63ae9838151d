"""An existing ChatGLM script runs with only its import changed."""

import threading

import numpy as np
import pytest
import tiny

from glmlite import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    ContextOverflow,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

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
    with pytest.raises(ValueError, match="max_new_tokens is 0, expected at least 1"):
        model.generate([[1, 2, 3]], max_new_tokens=0)
    with pytest.raises(ValueError, match="eos_token_id is 384, expected ids below 384"):
        model.generate([[1, 2, 3]], eos_token_id=[1, 384])
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


@pytest.mark.parametrize(
    ("name", "value", "nothing"),
    [
        ("num_beams", 4, 1),
        ("typical_p", 0.9, 1.0),
        ("no_repeat_ngram_size", 3, 0),
        ("min_new_tokens", 2, 0),
        ("min_length", 20, 0),
        ("forced_eos_token_id", 3, None),
        ("prefix_allowed_tokens_fn", len, None),
        ("guidance_scale", 1.5, 1.0),
        ("output_scores", True, False),
        ("max_time", 1.0, None),
        ("inputs_embeds", np.zeros((1, 3, 64)), None),
        ("past_key_values", (), None),
        ("assistant_model", object(), None),
        ("penalty_alpha", 0.6, 0.0),
        ("bad_words_ids", [[257, 32]], [[257]]),
        ("sequence_bias", {(257, 32): 1.0}, {(257,): 0.0}),
    ],
)
def test_each_argument_of_transformers_counts_or_is_named(pair, name, value, nothing):
    tokenizer, model = pair()
    ids = tokenizer.encode("the", return_tensors="np")
    assert model.generate(ids, max_new_tokens=1, **{name: nothing}).shape[1] == ids.shape[1] + 1
    if name == "past_key_values":
        value = object()
    for call in (
        lambda: model.generate(ids, max_new_tokens=1, **{name: value}),
        lambda: model.generate(ids, generation_config={name: value}, max_new_tokens=1),
        lambda: model.chat(tokenizer, "the", max_new_tokens=1, **{name: value}),
        lambda: list(model.stream_generate(ids, max_new_tokens=1, **{name: value})),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            call()


def test_a_misspelt_argument_is_named(pair):
    tokenizer, model = pair()
    for call in (
        lambda: model.generate([[1]], max_new_token=3),
        lambda: model.generate([[1]], generation_config={"max_new_token": 3}),
        lambda: GenerationConfig(max_new_token=3),
        lambda: setattr(model.generation_config, "max_new_token", 3),
        lambda: model.chat(tokenizer, "the", max_new_token=3),
    ):
        with pytest.raises(TypeError, match=r"max_new_token'.*did you mean max_new_tokens"):
            call()


def test_what_counts_counts(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    n = ids.shape[1]
    free = model.generate(ids, max_new_tokens=8, **EVERY_END)[0, n:].tolist()
    without = model.generate(ids, max_new_tokens=8, bad_words_ids=[[free[0]]], **EVERY_END)[0, n:].tolist()
    assert free[0] not in without
    for forbidden in ({"suppress_tokens": [free[0]]}, {"sequence_bias": [[[free[0]], float("-inf")]]}):
        assert model.generate(ids, max_new_tokens=8, **forbidden, **EVERY_END)[0, n:].tolist() == without
    assert model.generate(ids, max_length=n + 3, **EVERY_END).shape[1] == n + 3
    assert model.generate(ids, max_length=n + 3, max_new_tokens=5, **EVERY_END).shape[1] == n + 5
    config = GenerationConfig(max_new_tokens=4, eos_token_id=383)
    assert model.generate(ids, generation_config=config).shape[1] == n + 4
    assert model.generate(ids, generation_config=config.to_dict(), max_new_tokens=2).shape[1] == n + 2
    model.generation_config.max_new_tokens = 3
    assert model.generate(ids, **EVERY_END).shape[1] == n + 3
    assert model.generate(inputs=ids, **EVERY_END, return_dict_in_generate=True).sequences.shape[1] == n + 3
    assert model.generate(tokenizer("the other", return_tensors="np"), **EVERY_END).shape[1] == n + 3


def test_an_answer_ends_at_a_stop_string(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    n = ids.shape[1]
    free = model.generate(ids, max_new_tokens=8, **EVERY_END)[0, n:].tolist()
    stop = tokenizer.decode(free[2:3])
    for stops in (stop, [stop], ["no such text", stop]):
        out = model.generate(ids, max_new_tokens=8, stop_strings=stops, tokenizer=tokenizer, **EVERY_END)[0, n:]
        assert out.tolist() == free[: free.index(free[2]) + 1]


def test_a_special_token_as_a_stop_string(pair):
    tokenizer, model = pair(metadata={"tokenizer.ggml.eot_token_id": None})
    ids = tokenizer.encode("the", return_tensors="np")
    bias = {(tokenizer.get_command("<|system|>"),): 1e4}
    out = model.generate(ids, max_new_tokens=8, stop_strings=["<|system|>"], sequence_bias=bias)
    assert out[0, ids.shape[1] :].tolist() == [tokenizer.get_command("<|system|>")]


def test_transformers_own_defaults(pair):
    """do_sample without numbers: temperature 1, the 50 most likely tokens; penalties see the whole prompt."""
    _, model = pair()
    seen = {}
    model.model.stream = lambda prompt, **given: seen.update(given) or (_ for _ in ()).throw(RuntimeError)
    for options, expected in (
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}),
        ({}, {"temperature": 0.0, "repetition_penalty": 1.0, "penalty_window": 256, "max_tokens": None}),
        ({"eos_token_id": [5, -1]}, {"stop_ids": [5], "ignore_eos": True}),
    ):
        with pytest.raises(RuntimeError):
            model.generate([[1, 2]], **options)
        assert {name: seen[name] for name in expected} == expected


def test_the_files_recommendation_is_the_models(pair):
    recommended = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7}
    _, model = pair(metadata=recommended)
    assert (model.generation_config.temperature, model.generation_config.top_k) == (0.5, 7)
    assert model.generation_config.eos_token_id == sorted(model.model.tokenizer.eos_ids)
    config = GenerationConfig.from_pretrained(model.name_or_path, top_p=0.9)
    assert (config.temperature, config.top_p, config.do_sample) == (0.5, 0.9, None)
    with pytest.raises(AttributeError, match="temprature"):
        _ = config.temprature


def test_several_samples_of_one_prompt(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    options = {"max_new_tokens": 6, "temperature": 1.5, **EVERY_END}
    out = model.generate(ids, do_sample=True, num_return_sequences=3, seed=1, **options)
    assert len(np.unique(out, axis=0)) == 3
    assert np.array_equal(out[:1], model.generate(ids, do_sample=True, seed=1, **options))
    with pytest.raises(ValueError, match="num_return_sequences is 3"):
        model.generate(ids, num_return_sequences=3, **options)
    with pytest.raises(ValueError, match="num_return_sequences is 0, expected at least 1"):
        model.generate(ids, num_return_sequences=0, do_sample=True, **options)


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([[1, 2], [3]], ValueError, "rows of different lengths; pass padding=True"),
        ("the other", TypeError, "input_ids is 'the other', expected token ids"),
        ([["the"]], TypeError, "expected token ids"),
        ([[None]], TypeError, "expected token ids"),
        ([[1.5]], TypeError, "expected token ids"),
    ],
)
def test_what_is_no_prompt_is_named(pair, ids, error, words):
    _, model = pair()
    with pytest.raises(error, match=words):
        model.generate(ids, max_new_tokens=1)


def test_a_streamer_ends_where_no_answer_begins(pair):
    tokenizer, model = pair()
    streamer = TextIteratorStreamer(tokenizer, timeout=5)
    with pytest.raises(ContextOverflow):
        model.generate([[1] * (model.model.context + 1)], streamer=streamer)
    assert "".join(streamer) == ""


# ---- streams


def test_a_streamer_gets_the_prompt_and_each_token(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    got = []

    class Streamer:
        def put(self, value):
            got.append(value.tolist())

        def end(self):
            got.append("end")

    out = model.generate(ids, max_new_tokens=4, streamer=Streamer(), **EVERY_END)
    assert got == [ids.tolist(), *([token] for token in out[0, ids.shape[1] :].tolist()), "end"]
    with pytest.raises(ValueError, match="2 rows"):
        model.generate(np.repeat(ids, 2, 0), streamer=Streamer())


def test_an_answer_is_read_while_it_is_written(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    options = {"input_ids": ids, "streamer": streamer, "max_new_tokens": 6, **EVERY_END}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    done = model.generate(ids, max_new_tokens=6, **EVERY_END)
    assert text == tokenizer.decode(done[0, ids.shape[1] :], skip_special_tokens=True)
    with pytest.raises(TypeError, match="skip_special_token'"):
        TextIteratorStreamer(tokenizer, skip_special_token=True)


def test_a_printed_answer(pair, capsys):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    out = model.generate(ids, max_new_tokens=6, streamer=TextStreamer(tokenizer), **EVERY_END)
    assert capsys.readouterr().out == tokenizer.decode(out[0]) + "\n"


def test_stopping_criteria(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    n = ids.shape[1]
    free = model.generate(ids, max_new_tokens=8, **EVERY_END)[0].tolist()

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            assert scores is None
            return input_ids[0][-1] == free[n + 2]

    out = model.generate(ids, max_new_tokens=8, stopping_criteria=StoppingCriteriaList([Stop()]), **EVERY_END)
    assert out[0].tolist() == free[: free.index(free[n + 2], n) + 1]
    *_, last = model.stream_generate(ids, max_new_tokens=8, stopping_criteria=[Stop()], **EVERY_END)
    assert last.tolist() == out.tolist()


def test_processors_that_change_nothing_are_taken(pair):
    tokenizer, model = pair("chatglm1")

    class InvalidScoreLogitsProcessor(LogitsProcessor):
        pass

    for processors in (LogitsProcessorList(), [InvalidScoreLogitsProcessor()]):
        assert model.chat(tokenizer, "the", logits_processor=processors, max_new_tokens=2)


def test_ids_so_far(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    done = model.generate(ids, max_new_tokens=4, **EVERY_END)
    steps = list(model.stream_generate(ids, max_new_tokens=4, **EVERY_END))
    assert [step.shape[1] for step in steps] == [ids.shape[1] + i for i in range(1, 5)]
    assert steps[-1].tolist() == done.tolist()
    for out, _ in model.stream_generate(ids, max_new_tokens=4, return_past_key_values=True, **EVERY_END):
        assert out.shape[0] == 1


def test_logits(pair):
    tokenizer, model = pair()
    ids = tokenizer.encode("the other", return_tensors="np")
    out = model(ids, use_cache=False)
    assert out.logits.shape == (1, ids.shape[1], 384)
    assert np.array_equal(out["logits"][0, -1], model.model.logits(ids[0].tolist()))
    with pytest.raises(ValueError, match="labels"):
        model(ids, labels=ids)
    with pytest.raises(ValueError, match="padding"):
        model(**tokenizer(["the", "in the"], padding=True, return_tensors="np"))


# ---- loading and moving


def test_loading_takes_or_names(tiny_file, executor):
    path = tiny_file("glm4")
    for loader in (AutoModel, AutoModelForSeq2SeqLM):
        model = loader.from_pretrained(
            path, trust_remote_code=True, torch_dtype="auto", low_cpu_mem_usage=True, device_map={"": "cpu"}, context=64
        ).eval()
        assert (model.model.context, model.device, model.dtype) == (64, "cpu", "float32")
        model.model.close()
    for name, value in (
        ("load_in_4bit", True),
        ("load_in_8bit", True),
        ("quantization_config", object()),
        ("max_memory", {0: "4GB"}),
        ("output_loading_info", True),
        ("adapter_kwargs", {"x": 1}),
    ):
        with pytest.raises(ValueError, match=name):
            AutoModel.from_pretrained(path, **{name: value})
    with pytest.raises(TypeError, match=r"contxt.*did you mean context"):
        AutoModel.from_pretrained(path, contxt=64)
    with pytest.raises(ValueError, match="config"):
        AutoModel.from_pretrained(path, config={})


def test_a_config(tiny_file, executor):
    path = tiny_file("chatglm", prefix=5)
    config = AutoConfig.from_pretrained(path, trust_remote_code=True, pre_seq_len=5, prefix_projection=False)
    assert (config.pre_seq_len, config.hidden_size, config.num_layers, config.vocab_size) == (5, 64, 2, 384)
    model = AutoModel.from_pretrained(path, config=config, trust_remote_code=True)
    assert model.config.eos_token_id == [264, 269, 271, 273]
    assert model.config.max_position_embeddings == 256
    model.config.use_cache = False
    assert AutoConfig.from_pretrained(tiny_file("chatglm1")).eos_token_id == tiny.token_id(
        tiny.model("chatglm1"), "<eop>"
    )
    for wrong in (path, tiny_file("glm4")):
        for kind in (AutoConfig, AutoModel):
            with pytest.raises(ValueError, match=r"pre_seq_len is 128.*--ptuning"):
                kind.from_pretrained(wrong, pre_seq_len=128)
    AutoModel.from_pretrained(path, pre_seq_len=5).model.close()
    assert AutoConfig.from_pretrained(tiny_file("deepseek2", drafting=True)).num_hidden_layers == 2
    with pytest.raises(AttributeError, match=r"config.num_layer\b.*did you mean num_layers"):
        _ = config.num_layer
    model.model.close()


@pytest.mark.parametrize("shape", [(0, 3), (1, 2, 3)])
def test_ids_of_no_row_or_of_too_many_axes(pair, shape):
    _, model = pair("glm4")
    with pytest.raises(ValueError, match=rf"input_ids is \({shape[0]}, .*expected \(rows, n\) ids, at least one row"):
        model.generate(np.zeros(shape, np.int64), max_new_tokens=2)


def test_methods_of_torch(pair, caplog):
    _, model = pair()
    assert model.half().float().bfloat16().eval().cpu().to("cpu").to("torch.float16") is model
    assert model.quantize(4) is model
    assert "quantize(4): the weights stay" in caplog.text
    for name in ("train", "get_input_embeddings", "resize_token_embeddings", "transformer", "save_pretrained", "evl"):
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=f"model.{name}: not here"):
            getattr(model, name)
    with pytest.raises(ValueError, match="mps"):
        model.to("mps")


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
