"""`chat` and `stream_chat` as the makers' own code has them, and the scripts that it comes with.

What an answer becomes is what their `process_response` gives for it; nothing of their code is here.
"""

# ruff: noqa: B007, B020 - scripts overwrite the history that their loop was given

import json
import threading

import numpy as np
import pytest

import glmlite
from glmlite import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from glmlite.chat.answers import tidy
from glmlite.generate import Piece


@pytest.fixture
def pair(executor, tiny_file):
    """pair(architecture, chat format) -> (tokenizer, model)."""
    opened = []

    def open_pair(architecture="chatglm", name=None):
        metadata = {"glmlite.chat_format": name} if name else {}
        path = tiny_file(architecture, metadata=metadata)
        opened.append(AutoModelForCausalLM.from_pretrained(path))
        return AutoTokenizer.from_pretrained(path), opened[-1]

    yield open_pair
    for model in opened:
        model.model.close()


def writes(model, text):
    """Makes the model write a text; returns the list of the conversations that it is asked to answer."""
    tokenizer, asked = model.model.tokenizer, []
    ids = tokenizer.encode(text)

    def stream(messages, **options):
        asked.append((messages, options))
        return iter([Piece(tokenizer.decode([i], skip_special=True), [i]) for i in ids])

    model.model.chat_stream = stream
    return asked


@pytest.mark.parametrize(
    ("chat_format", "answer", "shown"),
    [
        ("chatglm", " 你好,我是[[训练时间]]训练的!是吗?\n", "你好，我是2023年训练的！是吗？"),
        ("chatglm", "a,b!c?d:e;f", "a,b!c?d:e;f"),
        ("chatglm", "好,b 3:好 ;好; 好 !", "好，b 3：好 ；好； 好 !"),
        ("chatglm", "好,,好", "好，，好"),
        ("chatglm", "1.好,(好)", "1.好，(好)"),
        ("chatglm2", " 你好,[[训练时间]]!", "你好,2023年!"),
        ("chatglm3", "你好,[[训练时间]]!", "你好,2023年!"),
        ("glm4", "\n你好,[[训练时间]]", "你好,2023年"),
        ("glm-edge", " 你好,[[训练时间]]", "你好,[[训练时间]]"),
        ("template", "你好,[[训练时间]] ", "你好,[[训练时间]]"),
        (None, " a ", "a"),
    ],
)
def test_what_the_makers_do_to_an_answer(chat_format, answer, shown):
    assert tidy(chat_format, answer) == shown


def test_chatglm_6b_shows_its_own_punctuation():
    model = AutoModel.from_pretrained()
    text = "你好,我是[[训练时间]]训练的!是吗?"
    model.model.chat_stream = lambda *_, **__: iter([Piece(text, [1], None, "stop")])
    tokenizer = AutoTokenizer.from_pretrained()
    shown = "你好，我是2023年训练的！是吗？"
    assert model.chat(tokenizer, "你好") == (shown, [("你好", shown)])
    assert list(model.stream_chat(tokenizer, "你好", [("a", "b")])) == [(shown, [("a", "b"), ("你好", shown)])]
    model.model.close()


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
    with pytest.raises(ValueError, match="history"):
        model.chat(tokenizer, "the", history=["in"])
    with pytest.raises(ValueError, match="role 'me'"):
        model.chat(tokenizer, "the", role="me")


@pytest.mark.parametrize("name", ["chatglm2", "chatglm3", "glm4"])
def test_three_values_and_the_conversation_they_hold(pair, name):
    tokenizer, model = pair("chatglm", name)
    asked = writes(model, "\nthe other")
    past, history = None, []
    for query in ("in", "there"):
        for _, history, past in model.stream_chat(
            tokenizer, query, history=history, past_key_values=past, return_past_key_values=True
        ):
            pass
    turns = ["in", "the other", "there", "the other"]
    if name == "chatglm2":
        assert history == [("in", "the other"), ("there", "the other")]
    else:
        assert [m["content"] for m in history] == turns
    assert [m["content"] for m in asked[1][0]] == turns[:3]
    # The conversation is what the third value holds, also where the history is not given again.
    list(model.stream_chat(tokenizer, "third", past_key_values=past))
    assert [m["content"] for m in asked[2][0]] == [*turns, "third"]
    with pytest.raises(TypeError, match="past_key_values is a tuple"):
        list(model.stream_chat(tokenizer, "x", past_key_values=((1,),)))
    with pytest.raises(ValueError, match="past_key_values"):
        model.chat(tokenizer, "x", past_key_values=past)


TOOLS = [{"name": "weather", "description": "d", "parameters": {"type": "object"}}]
CALLS = {
    "chatglm3": ("weather\n```python\ntool_call(city='北京', days=2)\n```", {"city": "北京", "days": 2}),
    "glm4": ('weather\n{"city": "北京", "days": 2}', {"city": "北京", "days": 2}),
}


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_a_tool_is_called_and_its_result_given(pair, name):
    tokenizer, model = pair("chatglm", name)
    text, parameters = CALLS[name]
    asked = writes(model, text)
    system = {"role": "system", "content": "Answer", "tools": TOOLS}
    given = [system]
    response, history = model.chat(tokenizer, "北京?", history=given)
    assert response == {"name": "weather", "parameters": parameters}
    assert history == [
        {"role": "system", "content": "Answer", "tools": TOOLS},
        {"role": "user", "content": "北京?"},
        {"role": "assistant", "metadata": "weather", "content": text.partition("\n")[2]},
    ]
    assert given == [system]
    listing = json.dumps(TOOLS, indent=4, ensure_ascii=False)
    if name == "chatglm3":
        assert asked[0][0][0] == {"role": "system", "content": f"Answer\n{listing}"}
    else:
        assert asked[0][1]["tools"] == TOOLS
    asked = writes(model, "\n晴,[[训练时间]]")
    response, history = model.chat(tokenizer, '{"sky": "clear"}', history=history, role="observation")
    assert response == "晴,2023年"
    assert history[-1] == {"role": "assistant", "metadata": "", "content": "晴,[[训练时间]]"}
    assert asked[0][0][-2]["metadata"] == "weather"


@pytest.mark.parametrize(
    ("text", "response", "entries"),
    [
        ("\nthe\nother", "the\nother", [("", "the\nother")]),
        ("the", "the", [("", "the")]),
        ("in the\nother", "in the\nother", [("", "in the\nother")]),
        ("python\nprint(1)", {"name": "python", "content": "print(1)"}, [("python", "print(1)")]),
        ("\nlet me see<|assistant|>run\nx", {"name": "run", "content": "x"}, [("", "let me see"), ("run", "x")]),
    ],
)
def test_the_line_of_the_role_names_a_tool(pair, text, response, entries):
    tokenizer, model = pair("chatglm", "chatglm3")
    writes(model, text)
    got, history = model.chat(tokenizer, "x")
    assert got == response
    assert [(m["metadata"], m["content"]) for m in history[1:]] == entries


def test_a_call_between_marks_stays_in_the_text(pair, monkeypatch):
    tokenizer, model = pair("glm4")
    call = "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"
    ids = tokenizer.tokenizer.encode(call)
    monkeypatch.setattr(model.model, "chat_stream", lambda *_, **__: iter([Piece("", ids, None, "tool_calls")]))
    history = [{"role": "system", "content": "", "tools": TOOLS}]
    monkeypatch.setattr(model.model, "chat_ids", lambda *_, **__: [1])
    assert model.chat(tokenizer, "Rome?", history=history)[0] == call


def test_code_in_a_call_is_not_run(pair):
    tokenizer, model = pair("chatglm", "chatglm3")
    history = [{"role": "system", "content": "", "tools": TOOLS}]
    for code in ("__import__('os').getpid()", "tool_call(x=open('/'))", "tool_call(", "1"):
        writes(model, f"weather\n```python\n{code}\n```")
        response, _ = model.chat(tokenizer, "x", history=list(history))
        assert response in (
            {"name": "weather", "content": f"```python\n{code}\n```"},
            {"name": "weather", "parameters": {}},
        )
        assert response.get("parameters") in (None, {})


@pytest.mark.parametrize(
    ("content", "parameters"),
    [
        (" ```python\ntool_call(city='北京')\n```", {"city": "北京"}),  # as ChatGLM3's vocabulary decodes it
        (" ```python\ntool_call()\n```\n", {}),
        ("```python\ntool_call(text='''a\n```python\nb\n```\n''')\n```", {"text": "a\n```python\nb\n```\n"}),
        (' {"city": "北京"}', {"city": "北京"}),
        ("[" * 3000, None),
        ("tool_call(x=" + "(" * 3000, None),
    ],
)
def test_the_arguments_of_a_call(pair, content, parameters):
    tokenizer, model = pair("chatglm", "chatglm3")
    writes(model, f"weather\n{content}")
    response, history = model.chat(tokenizer, "x", history=[{"role": "system", "content": "", "tools": TOOLS}])
    assert response == {"name": "weather"} | (
        {"content": content} if parameters is None else {"parameters": parameters}
    )
    assert history[-1]["content"] == content


def test_a_template_that_ends_the_line_leaves_answers_of_several_lines_whole(pair):
    tokenizer, model = pair("glm4")
    writes(model, "first\nsecond")
    assert model.chat(tokenizer, "x")[0] == "first\nsecond"


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("chatglm1", None, {"temperature": 0.95, "top_p": 0.7, "top_k": 50}),
        ("chatglm", "chatglm2", {"temperature": 0.8, "top_p": 0.8, "top_k": 50}),
        ("chatglm", "chatglm3", {"temperature": 0.8, "top_p": 0.8, "top_k": 50}),
    ],
)
def test_the_makers_defaults(pair, architecture, name, expected):
    tokenizer, model = pair(architecture, name)
    asked = writes(model, "the")
    model.chat(tokenizer, "x")
    model.chat(tokenizer, "x", do_sample=False, max_length=40)
    options = asked[0][1]
    assert {key: options[key] for key in expected} == expected
    prompt = model.model.chat_ids([{"role": "user", "content": "x"}])
    assert options["max_tokens"] == (2048 if architecture == "chatglm1" else 8192) - len(prompt)
    assert asked[1][1]["temperature"] == 0.0
    assert asked[1][1]["max_tokens"] == 40 - len(prompt)


# ---- the scripts of the makers' READMEs and demos, their import changed


def test_chatglm_6bs_readme():
    tokenizer = AutoTokenizer.from_pretrained("builtin", trust_remote_code=True)
    model = AutoModel.from_pretrained("builtin", trust_remote_code=True).half().quantize(8)
    model = model.eval()
    response, history = model.chat(tokenizer, "你好", history=[])
    response, history = model.chat(tokenizer, "晚上睡不着应该怎么办", history=history)
    assert [turn[0] for turn in history] == ["你好", "晚上睡不着应该怎么办"]
    assert history[1][1] == response
    shown = 0
    for response, history in model.stream_chat(
        tokenizer, "你好", history=[], max_length=128, top_p=0.7, temperature=0.95
    ):
        shown = len(response)
    assert shown
    model.model.close()


def test_chatglm2s_and_chatglm3s_command_line(pair):
    tokenizer, model = pair("chatglm", "chatglm3")
    past_key_values, history = None, []
    for query in ("the", "other"):
        current = 0
        for response, history, past_key_values in model.stream_chat(
            tokenizer,
            query,
            history=history,
            top_p=1,
            temperature=0.01,
            past_key_values=past_key_values,
            return_past_key_values=True,
            max_length=60,
            repetition_penalty=1.2,
        ):
            current = len(response)
    assert len(history) == 4
    assert current == len(response)


def test_chatglm3s_api(pair):
    """Ids are streamed, cut behind the prompt and decoded again and again."""
    tokenizer, model = pair("chatglm", "chatglm3")
    inputs = tokenizer.build_chat_input("the", history=[{"role": "system", "content": "in"}], role="user")
    inputs = inputs.to(model.device)
    length = len(inputs["input_ids"][0])
    eos = [tokenizer.eos_token_id, tokenizer.get_command("<|user|>"), tokenizer.get_command("<|observation|>")]

    class InvalidScoreLogitsProcessor(glmlite.LogitsProcessor):
        pass

    options = {"max_length": length + 5, "do_sample": False, "top_p": 0.8, "repetition_penalty": 1.0}
    options["logits_processor"] = [InvalidScoreLogitsProcessor()]
    for total in model.stream_generate(**inputs, eos_token_id=eos, **options):
        text = tokenizer.decode(total.tolist()[0][length:])
    assert text


def test_glm4s_command_line(pair):
    tokenizer, model = pair("glm4")

    class StopOnTokens(glmlite.StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return any(input_ids[0][-1] == stop for stop in model.config.eos_token_id)

    messages = [{"role": "user", "content": "the"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_tensors="np")
    streamer = glmlite.TextIteratorStreamer(tokenizer=tokenizer, timeout=60, skip_prompt=True, skip_special_tokens=True)
    options = {
        "input_ids": ids,
        "streamer": streamer,
        "max_new_tokens": 8,
        "do_sample": True,
        "top_p": 0.8,
        "temperature": 0.6,
        "stopping_criteria": glmlite.StoppingCriteriaList([StopOnTokens()]),
        "repetition_penalty": 1.2,
        "eos_token_id": model.config.eos_token_id,
    }
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    assert "".join(streamer) is not None
    thread.join()


def test_glm4s_readme_and_batch(pair):
    tokenizer, model = pair("glm4")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the"}], add_generation_prompt=True, return_tensors="np", return_dict=True
    ).to("cpu")
    outputs = model.generate(**inputs, max_length=40, do_sample=True, top_k=1)
    outputs = outputs[:, inputs["input_ids"].shape[1] :]
    assert isinstance(tokenizer.decode(outputs[0], skip_special_tokens=True), str)
    batch = [
        tokenizer.apply_chat_template([m], add_generation_prompt=True, tokenize=False)[12:]
        for m in ({"role": "user", "content": "the"}, {"role": "user", "content": "in there"})
    ]
    inputs = tokenizer(batch, return_tensors="np", padding="max_length", truncation=True, max_length=32)
    inputs = inputs.to(model.device)
    assert inputs.input_ids.shape == (2, 32)
    outputs = model.generate(
        **inputs,
        max_new_tokens=4,
        num_beams=1,
        logits_processor=glmlite.LogitsProcessorList(),
        eos_token_id=model.config.eos_token_id,
    )
    assert len(outputs) == 2


def test_glms_readme(tiny_file):
    path = tiny_file("glm")
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(path, trust_remote_code=True).half().eval()
    inputs = tokenizer(["Ng is a professor at [MASK].", "in [MASK]"], return_tensors="np", padding=True)
    with pytest.raises(ValueError, match="build_inputs_for_generation"):
        model.generate(**inputs)
    inputs = tokenizer.build_inputs_for_generation(inputs, max_gen_length=16).to("cpu")
    outputs = model.generate(**inputs, max_length=64, eos_token_id=tokenizer.eop_token_id)
    assert outputs.shape[0] == 2
    assert "<|startofpiece|>" in tokenizer.decode(outputs[0].tolist())
    filled = model.model.infill(
        "in [MASK]", max_tokens=64 - inputs.input_ids.shape[1], stop_ids=[tokenizer.eop_token_id]
    )
    assert filled.spans[0] == tokenizer.decode(outputs[1, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    model.model.close()


def test_p_tuning(tiny_file):
    path = tiny_file("chatglm1", prefix=4)
    config = AutoConfig.from_pretrained(path, trust_remote_code=True, pre_seq_len=4)
    model = AutoModel.from_pretrained(path, config=config, trust_remote_code=True)
    with pytest.raises(AttributeError, match=r"model.transformer: not here"):
        model.transformer.prefix_encoder.load_state_dict({})
    model.model.close()


def test_codegeex(pair):
    tokenizer, model = pair("chatglm", "chatglm2")
    inputs = tokenizer.encode("# language: Python\n# the\n", return_tensors="np")
    outputs = model.generate(inputs, max_length=40, top_k=1)
    assert np.array_equal(outputs[0][: inputs.shape[1]], inputs[0])
    assert isinstance(tokenizer.decode(outputs[0]), str)
