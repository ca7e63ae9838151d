"""What a user of the library sees: load, generate, chat, infill, logits, their parameters and their errors."""

import math
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import glmlite
from glmlite import loading, placement
from glmlite.generate import Answer
from glmlite.parameters import Parameters
from glmlite.program import Recorder, Rope

PARAMETERS = {"max_tokens": 12, "ignore_eos": True, "seed": 1}
PROMPT = "the other hell in there"


# ---- loading


def test_load_reports_what_it_has(load, tiny_file):
    fractions = []
    model = load("glm4", progress=fractions.append)
    assert (model.architecture, model.name, model.context, model.vocab_size) == ("glm4", "tiny glm4", 256, 384)
    assert model.metadata["glm4.block_count"] == 2
    assert model.path == tiny_file("glm4")
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)
    assert model.memory()["weights"] > 0
    assert "kv" in model.memory()
    assert "tiny glm4" in repr(model)


def test_load_takes_str_and_works_as_context_manager(executor, tiny_file):
    with glmlite.load(str(tiny_file()), context=64, threads=1) as model:
        assert model.context == 64
    assert model.closed
    assert "closed" in repr(model)
    assert model.memory() == {"weights": 0, "kv": 0}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"context": 0}, ValueError),
        ({"context": 64.0}, TypeError),
        ({"path": 5}, TypeError),
        ({"mmproj": 5}, TypeError),
        ({"kv_type": "f32"}, ValueError),
        ({"kv_type": 16}, ValueError),
        ({"kv_tokens": 10**30}, ValueError),
        ({"threads": 10**30}, ValueError),
        ({"device": None}, TypeError),
        ({"adaptive": "no"}, TypeError),
        ({"packed": "model.packed"}, TypeError),
        ({"idle_unload": "10"}, TypeError),
        ({"progress": 5}, TypeError),
        ({"cancel": threading.Event()}, TypeError),
        ({"parallel": 0}, ValueError),
        ({"threads": -1}, ValueError),
        ({"kv_tokens": 100}, ValueError),
        ({"device": "cuda"}, RuntimeError),
    ],
)
def test_bad_arguments_are_named(tiny_file, arguments, error):
    with pytest.raises(error, match=rf"^{next(iter(arguments))}\b") as raised:
        glmlite.load(**{"path": tiny_file(), **arguments})
    assert "expected" in str(raised.value) or "needs" in str(raised.value) or error is RuntimeError


def test_a_cancel_of_another_kind_is_named(load):
    model = load()
    for ask in (model.generate, model.stream, model.logits):
        with pytest.raises(TypeError, match=r"^cancel is <threading.Event .*>, expected glmlite.Cancel"):
            ask("the", cancel=threading.Event())
    assert model.status().running == model.status().waiting == 0


def test_a_cache_that_does_not_fit_packs_nothing(tiny_file, tmp_path):
    path = tmp_path / "model.gguf"
    shutil.copyfile(tiny_file(), path)
    for packed in (None, True, False):
        with pytest.raises(MemoryError, match=r"KV cache of \d+ tokens takes .* GB, of which the machine has"):
            glmlite.load(path, device="cpu", kv_tokens=2**40, packed=packed)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_a_longer_context_than_the_model_s_is_cut_to_it(load, caplog):
    """So that a program may pass one number for every model."""
    with caplog.at_level("WARNING", "glmlite"):
        assert load(context=100_000).context == 256
    assert "context is 100000, the model was trained for 256 tokens" in caplog.text


def test_devices():
    with pytest.raises(ValueError, match=r"device is 'tpu', expected 'cpu'"):
        placement.backend("tpu")
    with pytest.raises(TypeError, match="device is 0, expected 'cpu'"):
        placement.backend(0)
    with pytest.raises(ValueError, match=r"gpu_layers is 3 and device 'cpu'"):
        glmlite.load("x.gguf", device="cpu", gpu_layers=3)


def test_no_gpu_says_why(caplog):
    with pytest.raises(RuntimeError, match=r"'cuda:1': this build .* no CUDA module .*use device='cpu' or 'auto'"):
        placement.backend("cuda:1")
    with caplog.at_level("INFO", "glmlite"):
        from glmlite import _native as native

        assert placement.backend("auto") is native
    assert "device 'auto': the CPU, because this build" in caplog.text


def test_bad_paths_are_named(executor, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        glmlite.load("THUDM/chatglm3-6b")
    with pytest.raises(ValueError, match="is a folder"):
        glmlite.load(tmp_path)
    bad = tmp_path / "模型.gguf"
    bad.write_bytes(b"not a model at all, not even nearly")
    with pytest.raises(glmlite.FormatError, match="模型"):
        glmlite.load(bad)


def test_unknown_architecture_names_file_and_key(executor, tiny_file):
    path = tiny_file(metadata={"general.architecture": "gpt9"})
    with pytest.raises(glmlite.FormatError, match=rf"{path.name}.*gpt9"):
        glmlite.load(path)


def test_a_name_that_is_no_text_is_the_file_s(load, tiny_file):
    for value in ([1, 2], 7.0, ""):
        sizes = {"metadata": {"general.name": value}}
        assert load(sizes=sizes).name == tiny_file(**sizes).stem


def test_progress_that_returns_false_cancels_the_load(load):
    with pytest.raises(glmlite.Cancelled):
        load(progress=lambda done: False)


def test_context_is_halved_until_it_fits():
    for free, want in [(2**64 - 1, 4096), (10**9, 4096), (1000 + 32 * 4095, 2048), (0, 512)]:
        assert loading._context(None, 100_000, 1000, 32, free) == want
    assert loading._context(None, 300, 1000, 32, 0) == 300
    assert loading._context(200, 300, 1000, 32, 0) == 200


def test_native_ops():
    shapes = {"e": (9, 4), "w": (6, 4), "v": (6, 4), "f": (2,)}
    r = Recorder(shapes)
    x = r.embed("e")
    rope = Rope(4, 100.0, interleaved=True, factors="f")
    r.attention(r.linear(x, ["w", "v"], add=None), 0, heads=1, kv_heads=1, head_dim=4, rope=rope)
    embed, linear, attention = placement.native_ops(r.ops, lambda name: np.array([1.0, 2.0], np.float32))
    assert embed == ("embed", 0, 4, {}, {"table": ["e"]}, {})
    assert linear == ("linear", 1, 12, {"x": 0}, {"w": ["w", "v"]}, {"alpha": 1.0})
    table = attention[5].pop("rope")
    assert attention[5] == {"layer": 0, "heads": 1, "kv_heads": 1, "head_dim": 4, "scale": 0.5, "norm_eps": 0.0}
    assert table["freq"].tolist() == [1.0, 0.1 / 2]
    assert (table["first"].tolist(), table["second"].tolist(), table["axis"].tolist()) == ([0, 2], [1, 3], [0, 0])
    assert table["magnitude"] == 1.0


# ---- generating


def test_a_stream_is_the_completion_in_pieces(load):
    model = load()
    whole = model.generate(PROMPT, temperature=1.0, **PARAMETERS)
    pieces = list(model.stream(PROMPT, temperature=1.0, **PARAMETERS))
    assert [t for p in pieces for t in p.tokens] == whole.tokens
    assert "".join(p.text for p in pieces) == whole.text == str(whole)
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert whole.text == model.tokenizer.decode(whole.tokens, skip_special=True)
    stats = whole.stats
    assert (stats.prompt_tokens, stats.generated_tokens) == (len(model.prompt_ids(PROMPT)), 12)
    assert stats.prompt_seconds > 0
    assert stats.generation_seconds > 0


def test_a_seed_repeats_an_answer_and_is_told(load):
    model = load()
    a = model.generate(PROMPT, temperature=1.0, top_p=1.0, max_tokens=20, ignore_eos=True)
    b = model.generate(PROMPT, temperature=1.0, top_p=1.0, max_tokens=20, ignore_eos=True, seed=a.seed)
    c = model.generate(PROMPT, temperature=1.0, top_p=1.0, max_tokens=20, ignore_eos=True)
    assert a.tokens == b.tokens
    assert a.tokens != c.tokens


def test_the_prefix_stands_there_once(load):
    model = load()
    prefix = [model.tokenizer.id_of("[gMASK]"), model.tokenizer.id_of("<sop>")]
    assert model.prompt_ids("hell")[:2] == prefix
    assert model.prompt_ids("[gMASK]<sop>hell") == model.prompt_ids("hell")
    assert model.tokenize("hell") == model.prompt_ids("hell")[2:]
    assert model.detokenize(model.tokenize("hell [MASK]")) == "hell [MASK]"


def test_logits(load):
    model = load()
    ids = model.prompt_ids(PROMPT * 10)
    every = model.logits(ids, all=True)
    assert every.shape == (len(ids), 384)
    assert np.array_equal(model.logits(ids), every[-1])
    assert np.array_equal(model.logits(ids[:50]), every[49])
    greedy = model.generate(ids, temperature=0, max_tokens=1, logprobs=2, ignore_eos=True)
    assert greedy.tokens == [int(np.argmax(every[-1]))]
    (logprob,) = greedy.logprobs
    log_p = every[-1].astype(np.float64) - every[-1].max()
    log_p -= np.log(np.exp(log_p).sum())
    assert abs(logprob.logprob - log_p.max()) <= 1e-12
    assert [t for t, _ in logprob.top] == np.argsort(-log_p, kind="stable")[:2].tolist()


def test_logit_bias_and_stop_ids(load):
    model = load()
    forced = model.generate(PROMPT, logit_bias={65: 1e5}, **PARAMETERS)
    assert forced.tokens == [65] * 12
    stopped = model.generate(PROMPT, logit_bias={65: 1e5}, stop_ids=[65], **PARAMETERS)
    assert (stopped.tokens, stopped.finish_reason, stopped.stop) == ([], "stop", 65)


def test_the_prompt_counts_for_the_penalties(load):
    """A token of the prompt is as if it had been written."""
    model = load()
    forced = {"logit_bias": {65: 100.0, 66: 90.0}, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    for name, value in (("presence_penalty", 50.0), ("frequency_penalty", 50.0), ("repetition_penalty", 100.0)):
        assert model.generate([1, 2], **forced, **{name: value}).tokens == [65]
        assert model.generate([1, 65], **forced, **{name: value}).tokens == [66]
    assert model.generate([65, 2], **forced, presence_penalty=50.0, penalty_window=1).tokens == [65]


def test_numbers_may_be_numpy_s(load):
    model = load()
    bias = {np.int64(2): np.float32(1e5)}
    got = model.generate([1], max_tokens=np.int64(2), seed=np.uint64(3), temperature=np.float32(0.5), logit_bias=bias)
    assert got.tokens == [2, 2]
    assert model.generate([1], max_tokens=2, stop_ids=np.array([2]), logit_bias=bias).stop == 2


def test_stop_strings_across_tokens(load):
    model = load()
    (letter,) = model.tokenize("z")
    done = model.generate(PROMPT, logit_bias={letter: 1e5}, stop=["zzz"], **PARAMETERS)
    assert (done.text, done.tokens, done.finish_reason, done.stop) == ("", [letter] * 3, "stop", "zzz")


def test_stop_strings_may_come_from_whatever_iterates():
    assert glmlite.Parameters(stop=(text for text in ("a", "b"))).stop == ("a", "b")
    for stop, error in ((iter(["a", 1]), TypeError), (iter(["a", ""]), ValueError), (5, TypeError)):
        with pytest.raises(error, match="stop is"):
            glmlite.Parameters(stop=stop)


def test_switches_of_the_wrong_type_are_refused(load):
    model = load()
    for name, value in (
        ("thinking", "off"),
        ("thinking", 0),
        ("effort", 3),
        ("reasoning", "no"),
        ("parallel_tool_calls", 0),
    ):
        with pytest.raises(TypeError, match=f"{name} is {value!r}, expected"):
            model.chat([{"role": "user", "content": "hi"}], max_tokens=1, **{name: value})


@pytest.mark.parametrize("name", ["context", "parallel", "max_queue", "kv_tokens", "threads", "gpu_layers"])
def test_numbers_that_no_machine_has_are_named(name):
    for value in (2**40 + 1, 10**30):
        with pytest.raises(ValueError, match=f"{name} is {value}, expected at least"):
            glmlite.load(**{name: value})


def test_end_tokens_end_unless_ignored(load):
    model = load()
    (eos,) = (i for i in [model.tokenizer.id_of("<|user|>")] if i in model.tokenizer.eos_ids)
    done = model.generate(PROMPT, logit_bias={eos: 1e5}, max_tokens=5)
    assert (done.text, done.finish_reason, done.stop) == ("", "stop", eos)
    ignored = model.generate(PROMPT, logit_bias={eos: 1e5}, max_tokens=5, ignore_eos=True)
    assert (ignored.tokens, ignored.finish_reason) == ([eos] * 5, "length")


def test_defaults_come_from_the_file(load):
    greedy = load(sizes={"metadata": {"general.sampling.temp": 0.0}})
    assert len({tuple(greedy.generate(PROMPT, max_tokens=4, ignore_eos=True).tokens) for _ in range(3)}) == 1
    with pytest.raises(glmlite.FormatError, match=r"general\.sampling.*temperature"):
        load(sizes={"metadata": {"general.sampling.temp": -1.0}})


def test_progress_of_the_prompt(load):
    model = load()
    seen = []
    model.generate([5] * 100, max_tokens=1, on_progress=lambda *x: seen.append(x))
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


# ---- the context


def test_overflow_is_an_error_with_numbers(load):
    model = load(context=64)
    for _ in range(2):
        with pytest.raises(glmlite.ContextOverflow, match=r"64 tokens.*context of 64"):
            model.generate([1] * 64)
    with pytest.raises(glmlite.ContextOverflow, match="65 tokens"):
        model.logits([1] * 65)
    assert model.logits([1] * 64).shape == (384,)
    last = model.generate([1] * 63, ignore_eos=True)
    assert (len(last.tokens), last.finish_reason) == (1, "length")


def test_generation_ends_with_the_context(load):
    done = load(context=64).generate([1] * 20, max_tokens=1000, ignore_eos=True)
    assert (len(done.tokens), done.finish_reason) == (44, "length")


def test_truncation_keeps_the_beginning_and_the_newest(load):
    model = load(context=64)
    prefix = list(model.tokenizer.prefix_ids)
    ids = [*prefix, *range(100)]
    cut = model.generate(ids, overflow="truncate", seed=1, max_tokens=10, ignore_eos=True)
    want = model.generate([*prefix, *range(48, 100)], seed=1, max_tokens=10, ignore_eos=True)
    assert cut.stats.prompt_tokens == 54
    assert cut.tokens == want.tokens
    assert model.generate(ids, overflow="truncate", ignore_eos=True).stats.prompt_tokens == 48
    assert model.generate(ids, overflow="truncate", max_tokens=500, ignore_eos=True).stats.prompt_tokens == 32
    assert model.generate(ids[:20], overflow="truncate", max_tokens=5).stats.prompt_tokens == 20


def prompts(model):
    """The prompts that the model is given from now on."""
    seen = []
    submit = model._scheduler.submit
    model._scheduler.submit = lambda request: (seen.append(list(request.tokens)), submit(request))[1]
    return seen


def test_truncation_of_a_chat_drops_whole_messages(load):
    model = load("glm4", context=128)
    seen = prompts(model)
    system = {"role": "system", "content": "the"}
    rounds = [
        {"role": role, "content": content}
        for i in range(6)
        for role, content in (("user", f"{i} " * 10), ("assistant", f"yes {i}"))
    ]
    last = {"role": "user", "content": "last"}
    messages = [system, *rounds, last]
    with pytest.raises(glmlite.ContextOverflow, match="overflow='truncate'"):
        model.chat(messages)
    for start in (model.chat, model.chat_stream):
        start(messages, overflow="truncate", max_tokens=30)
        left = model.chat_ids([system, *rounds[-4:], last])
        assert seen.pop() == left and len(left) <= 98 < len(model.chat_ids([system, *rounds[-6:], last]))
    model.chat(messages, overflow="truncate", max_tokens=64)
    assert seen.pop() == model.chat_ids([system, *rounds[-2:], last])
    model.chat([system, last], overflow="truncate", max_tokens=4)
    assert seen.pop() == model.chat_ids([system, last])
    model.chat([system, *rounds, {"role": "user", "content": "x" * 110}], overflow="truncate", max_tokens=30)
    assert seen.pop() == model.chat_ids([system, {"role": "user", "content": "x" * 110}])
    with pytest.raises(glmlite.ContextOverflow, match=r"the last question have \d+ tokens and leave no room"):
        model.chat([system, *rounds, {"role": "user", "content": "x" * 120}], overflow="truncate")


def test_bad_prompts(load):
    model = load()
    with pytest.raises(ValueError, match="empty"):
        model.generate([])
    with pytest.raises(ValueError, match=r"token id 384, expected 0 to 383"):
        model.generate([384])
    with pytest.raises(ValueError, match="logit_bias: token id 400"):
        model.generate([1], logit_bias={400: 1.0})
    with pytest.raises(TypeError, match="temprature"):
        model.generate([1], temprature=1)
    for prompt in (None, 5, b"abc", ["1"], [1.5], np.array([[1, 2]])):
        with pytest.raises(TypeError, match="expected token ids"):
            model.generate(prompt)
        with pytest.raises(TypeError, match=r"ids is .*, expected token ids"):
            model.detokenize(prompt)
    assert model.generate(np.array([1, 2]), max_tokens=1).stats.prompt_tokens == 2


# ---- chat and blanks


def test_chat_renders_and_generates(load):
    assert load("glm").chat_format is None
    model = load("glm4")
    assert model.chat_format == "template"
    messages = [{"role": "user", "content": "hell <|user|>"}]
    ids = model.chat_ids(messages)
    assert ids.count(model.tokenizer.id_of("<|user|>")) == 1
    assert ids[:2] == list(model.tokenizer.prefix_ids)
    got = model.chat(messages, **PARAMETERS)
    assert got.tokens == model.generate(ids, **PARAMETERS).tokens
    streamed = list(model.chat_stream(messages, **PARAMETERS))
    assert [t for p in streamed for t in p.tokens] == got.tokens


BARE = {"tokenizer.chat_template": None}
QUESTION = [{"role": "user", "content": "the"}]


@pytest.mark.parametrize("architecture", ["chatglm", "glm4", "chatglm1"])
@pytest.mark.parametrize("metadata", [BARE, {}])
def test_the_line_end_after_the_role_is_no_text(load, architecture, metadata):
    model = load(architecture, sizes={"metadata": metadata})
    (line,) = model.tokenize("<n>" if architecture == "chatglm1" else "\n", special=architecture == "chatglm1")
    options = {"max_tokens": 3, "temperature": 0, "logit_bias": {line: 1e4}, "logprobs": 0}
    done = model.chat(QUESTION, **options)
    assert (done.text, done.tokens, len(done.logprobs)) == ("", [line] * 3, 3)
    pieces = list(model.chat_stream(QUESTION, **options))
    assert "".join(p.text for p in pieces) == "" and [t for p in pieces for t in p.tokens] == [line] * 3
    # A line end as a stop string is one in the answer.
    assert model.chat(QUESTION, stop="\n", **options).finish_reason == "length"
    # What is continued is text as it is.
    assert model.generate(model.chat_ids(QUESTION), **options).text == "\n\n\n"


def test_white_space_within_an_answer_stays():
    decoder = SimpleNamespace(push=lambda ids: " \n\u3000a b\n"[ids[0]], finish=lambda: "")
    samples = [SimpleNamespace(token=i, logprob=0.0, top=[]) for i in range(7)]
    answers = [Answer(decoder, Parameters(), [], 7, trim=trim) for trim in (True, False)]
    texts = []
    for answer in answers:
        answer.take(samples[:2])
        answer.take(samples[2:])
        texts.append([answer.events.get().text for _ in range(2)])
    assert texts == [["", "a b\n"], [" \n", "\u3000a b\n"]]


def test_another_model_whose_prompt_ends_the_line_may_begin_with_white_space(load):
    model = load("llama")
    (space,) = model.tokenize("\t")
    options = {"max_tokens": 2, "temperature": 0, "logit_bias": {space: 1e4}}
    assert model.chat(QUESTION, **options).text == "\t\t"
    model = load("llama", sizes={"metadata": {"tokenizer.chat_template": "{{ messages[0].content }}:"}})
    assert model.chat(QUESTION, **options).text == ""


@pytest.mark.parametrize("text", ["{% for m in messages %}<|user|>{{ m.content }}{% endfor %}", "chatglm4", "", None])
@pytest.mark.parametrize("architecture", ["chatglm", "glm4"])
def test_the_prefix_stands_once_whatever_the_template_is(load, architecture, text):
    model = load(architecture, sizes={"metadata": {"tokenizer.chat_template": text}})
    prefix = [model.tokenizer.id_of("[gMASK]"), model.tokenizer.id_of("<sop>")]
    ids = model.chat_ids(QUESTION)
    assert ids[:3] == [*prefix, model.tokenizer.id_of("<|user|>")] and not set(prefix) & set(ids[2:])
    for spelled in ("", "[gMASK]<sop>", "[gMASK]<sop>[gMASK]<sop>", "<sop>", "[gMASK] <sop>"):
        assert model.prompt_ids(spelled + "the") == [*prefix, *model.tokenize("the")]
    seen = prompts(model)
    model.generate("the", max_tokens=1)
    model.generate([*prefix, *prefix, 5], max_tokens=1)  # ids are taken as they are
    model.generate([5], max_tokens=1)
    assert seen == [[*prefix, *model.tokenize("the")], [*prefix, *prefix, 5], [5]]


def test_chatglm_6b_has_it_at_the_end_once(load):
    model = load("chatglm1")
    want = model.tokenize("the[gMASK]<sop>")
    for text in ("the", "the[gMASK]", "the[gMASK]<sop>", "the[gMASK]<sop>[gMASK]<sop>"):
        assert model.prompt_ids(text) == want
    assert model.chat_ids(QUESTION) == want


def test_glm_edge_has_no_prefix(load):
    sizes = {"bias": False, "rope_dim": 32, "tied": True, "metadata": {"tokenizer.chat_template": "chatglm4"}}
    model = load("chatglm", sizes=sizes)
    assert model.chat_format == "glm-edge"
    assert model.chat_ids(QUESTION)[0] == model.prompt_ids("<|user|>")[0] == model.tokenizer.id_of("<|user|>")


def test_variables_of_a_template(load):
    model = load("glm4")
    for wrong, error in (({"messages": []}, ValueError), ([], TypeError), ({1: 2}, TypeError)):
        with pytest.raises(error, match="template"):
            model.chat(QUESTION, template=wrong)


@pytest.mark.parametrize("architecture", ["glm", "chatglm1"])
def test_infill_fills_each_mask(load, architecture):
    model = load(architecture)
    (letter,) = model.tokenize("z")
    result = model.infill("the [MASK] in [MASK]!", max_tokens=2, logit_bias={letter: 1e5})
    assert result.spans == ["zz", "zz"]
    assert str(result) == "the zz in zz!"
    again = model.infill("the [MASK] in [MASK]!", max_tokens=5)
    assert again.text == model.infill("the [MASK] in [MASK]!", max_tokens=5).text
    assert [len(c.tokens) <= 5 for c in again.completions] == [True, True]
    with pytest.raises(ValueError, match="no mask"):
        model.infill("the other")


def test_prompts_of_blanks(load):
    glm = load("glm")
    names = [glm.detokenize([i]) for i in glm.prompt_ids("in [MASK]")]
    assert (names[0], names[-3:]) == ("[CLS]", ["[MASK]", "<|endoftext|>", "<|startofpiece|>"])
    assert glm.detokenize(glm.prompt_ids("in"))[-34:] == "[gMASK]<|endoftext|><|startofpiece|>"[-34:]
    first = load("chatglm1")
    assert first.detokenize(first.prompt_ids("in")) == "in[gMASK]<sop>"
    assert first.prompt_ids("in[gMASK]<sop>") == first.prompt_ids("in")


@pytest.mark.parametrize("architecture", ["glm", "chatglm1"])
def test_what_fills_a_mask_is_text(load, architecture):
    """Not a stop string, half a character or a mask, which would be filled in its turn."""
    model = load(architecture)
    z, first_byte, mask = *model.tokenize("z"), model.tokenize("中")[-3], model.tokenizer.id_of("[MASK]")
    assert model.infill("the [MASK]!", max_tokens=2, logit_bias={z: 1e5}, stop="zz").text == "the !"
    assert model.infill("the [MASK]!", max_tokens=3, logit_bias={z: 1e5}, stop="zz").spans == [""]
    assert model.infill("the [MASK]!", max_tokens=1, logit_bias={first_byte: 1e5}).text == "the !"
    result = model.infill("the [MASK] in [MASK]!", max_tokens=2, logit_bias={mask: 1e5})
    assert (result.text, [len(c.tokens) for c in result.completions]) == ("the  in !", [2, 2])


def test_the_second_piece_of_glm_sees_the_first(load):
    """As the model was trained: one context, the pieces one after another, each at the place of its mask."""
    model = load("glm")
    result = model.infill("the [MASK] in [MASK]!", max_tokens=4)
    start = model.tokenizer.id_of("<|startofpiece|>")
    prompt = model.prompt_ids("the [MASK] in [MASK]!")
    second = model.generate([*prompt, *result.completions[0].tokens, start], max_tokens=4, temperature=0)
    assert second.tokens == result.completions[1].tokens
    assert result.completions[1].stats.prompt_tokens == len(prompt) + len(result.completions[0].tokens) + 1


@pytest.mark.parametrize("architecture", ["glm", "chatglm1"])
def test_a_blank_is_not_cut_off(load, architecture):
    """Of a text that is too long goes what is before the blank that is filled: another would take its answer."""
    model = load(architecture, context=64)
    (letter,) = model.tokenize("z")
    options = {"overflow": "truncate", "max_tokens": 2, "logit_bias": {letter: 1e5}}
    before, behind = "the [MASK] in " + "x" * 70, "y" * 50
    assert model.infill("x" * 70 + f"[MASK]{behind}", **options).completions[0].stats.prompt_tokens == 62
    assert model.infill("x" * 20 + "[MASK]" + "y" * 40 + "[MASK]", **options).spans == ["zz", "zz"]
    for text in (f"{before}[MASK]", f"[MASK]{behind}{behind}"):
        with pytest.raises(glmlite.ContextOverflow, match="from its blank on the prompt has"):
            model.infill(text, **options)
    with pytest.raises(glmlite.ContextOverflow, match="from its blank on the prompt has"):
        model.generate(f"[MASK]{behind}{behind}", **options)


def test_infill_of_other_models_names_those_that_can(load):
    with pytest.raises(ValueError, match=r"this chatglm model fills no blanks.*glm, chatglm1"):
        load().infill("[MASK]")


def test_the_public_names():
    assert all(hasattr(glmlite, name) for name in glmlite.__all__)
    assert math.isfinite(glmlite.Stats().prompt_seconds)
