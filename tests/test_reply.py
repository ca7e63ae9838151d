"""Replies: what a reader tells becomes parts of a stream and calls with ids; pieces and completions that carry them."""

import re
from types import SimpleNamespace

import pytest
from test_readers import LOOK, ROME, TOOLS, cut
from twin_engine import Sample

import glmlite
from glmlite.chat.readers import Marked, NamedJson
from glmlite.chat.reply import CallPart, Part, Reply, ToolCall
from glmlite.generate import Answer, Generation, Piece
from glmlite.parameters import Parameters
from glmlite.scheduler import Stats


def test_parts_keep_the_order():
    reply = Reply(Marked(TOOLS))
    parts = reply.feed(f"<think>a</think>b{LOOK}c{LOOK.replace('Rome', 'Oslo')}<think>d</think>")
    first, second = parts[0].calls[0], parts[1].calls[0]
    assert parts == [
        Part("a", "b", (first, CallPart(0, arguments='{"at": "Rome"}'))),
        Part("", "\nc", (second, CallPart(1, arguments='{"at": "Oslo"}'))),
        Part("\nd"),
    ]
    assert (first.index, first.name, second.index, second.name) == (0, "look", 1, "look")
    assert re.fullmatch("call_[a-zA-Z0-9]{24}", first.id) and first.id != second.id
    assert reply.calls == [
        ToolCall(first.id, "look", '{"at": "Rome"}'),
        ToolCall(second.id, "look", '{"at": "Oslo"}'),
    ]
    assert reply.finish("stop") == [] == reply.feed("x")


def test_a_call_that_was_cut_is_none():
    reply = Reply(Marked(TOOLS))
    (part,) = reply.feed("<tool_call>look<arg_key>at</arg_key><arg_value>Ro")
    assert [c.name or c.arguments for c in part.calls] == ["look", '{"at": "Ro']
    assert reply.finish("length") == [] and reply.calls == []


def test_a_call_as_a_message_has_it():
    call = ToolCall("call_1", "look", "{}")
    assert call.as_dict() == {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


# ---- the sink: which tokens stay in the text


class Decoder:
    """Token i is the i-th of some bytes, whole characters come out; a mark's token has none."""

    def __init__(self, pieces):
        import codecs

        self.pieces = pieces
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids):
        return "".join(self.utf8.decode(self.pieces[i]) for i in ids)

    def finish(self):
        rest = self.utf8.decode(b"", final=True)
        self.utf8.reset()
        return rest


def answered(pieces, tokens, *, marks, stop=(), trim=False, bursts=1):
    sink = Answer(Decoder(pieces), Parameters(stop=stop), [99], 100, trim, marks)
    for i in range(0, len(tokens), bursts):
        if sink.take([Sample(t, 0.0, []) for t in tokens[i : i + bursts]]):
            break
    events = [sink.events.get() for _ in range(sink.events._queue.qsize())]
    return "".join(p.text for p in events), events[-1].finish_reason, sink.stop


@pytest.mark.parametrize("bursts", [1, 2, 10])
def test_marks_stay_in_the_text_and_no_stop_string_is_found_in_them(bursts):
    pieces = [b"a<", b"", b"tool", "北".encode()[:2], b"|>", b"\n "]
    marks = {1: "<|assistant|>"}

    def text(*tokens, **options):
        return answered(pieces, tokens, marks=marks, bursts=bursts, **options)

    assert text(0, 1, 2, 99) == ("a<<|assistant|>tool", "stop", 99)
    assert text(0, 1, 2, 99, stop=["<|", "|>", "ant", ">tool", "<tool"]) == ("a<<|assistant|>tool", "stop", 99)
    assert text(0, 1, 4, 99, stop=["|>"]) == ("a<<|assistant|>", "stop", "|>")
    assert text(1, 0, 2, 99, stop=["<tool"]) == ("<|assistant|>a", "stop", "<tool")
    assert text(3, 1, 2, 99) == ("\ufffd<|assistant|>tool", "stop", 99)
    assert text(5, 1, 5, 2, 99, trim=True) == ("<|assistant|>\n tool", "stop", 99)
    assert text(3, 1, 2, 99, stop=["\ufffd"]) == ("", "stop", "\ufffd")


# ---- the handle


def generation(reply, *pieces):
    scheduler = SimpleNamespace(submit=lambda request: None)
    request = SimpleNamespace(stats=Stats(), cancel=lambda: None)
    sink = Answer(Decoder([]), Parameters(), [], 1)
    for piece in pieces:
        sink.events.put(piece)
    return Generation(scheduler, request, sink, None, 1, None, None, reply)


def test_one_call_of_the_engine_may_be_several_pieces():
    written = [Piece("<think>a</th", [1, 2], []), Piece(f"ink>b{LOOK}", [3]), Piece(f"c{LOOK}d", [4], None, "stop")]
    pieces = list(generation(Reply(Marked(TOOLS)), *written))
    said = [(p.reasoning, p.text, [c.name or c.arguments for c in p.calls], p.tokens) for p in pieces]
    call = ["look", '{"at": "Rome"}']
    assert said == [("a", "", [], [1, 2]), ("", "b", call, [3]), ("", "\nc", call, [4]), ("", "\nd", [], [])]
    assert [p.finish_reason for p in pieces] == [None, None, None, "tool_calls"]
    assert [p.logprobs for p in pieces] == [[], None, None, None]


@pytest.mark.parametrize(
    ("text", "reason", "ended", "want"),
    [
        (f"<think>a</think>b{LOOK}", "stop", "tool_calls", ("b", "a", [ROME])),
        (f"b{LOOK}c", "length", "length", ("b\nc", None, [ROME])),
        ("<tool_call>look<arg_key>at</arg_key><arg_value>R", "length", "length", ("", None, [])),
        ("<think>a", "length", "length", ("", "a", [])),
        ("b <tool", "cancelled", "cancelled", ("b <tool", None, [])),
        ("b", "stop", "stop", ("b", None, [])),
    ],
)
def test_a_completion_has_all_that_was_said(text, reason, ended, want):
    import json
    import random

    rng = random.Random(text)
    for parts in ([text], list(text), *(cut(text, rng) for _ in range(20))):
        written = [Piece(part, [i]) for i, part in enumerate(parts)] + [Piece("", [], None, reason)]
        done = generation(Reply(Marked(TOOLS)), *written).result()
        calls = [(call.name, json.loads(call.arguments)) for call in done.tool_calls]
        assert (done.text, done.reasoning, calls) == want and done.finish_reason == ended
        assert done.tokens == list(range(len(parts)))
        message = done.message
        assert message["content"] == (want[0] or None) and message["role"] == "assistant"
        assert message.get("reasoning_content") == want[1]
        assert message.get("tool_calls", []) == [call.as_dict() for call in done.tool_calls]


def test_without_a_reply_the_text_is_as_written():
    (piece,) = generation(None, Piece(LOOK, [1], None, "stop"))
    assert (piece.text, piece.finish_reason, piece.calls) == (LOOK, "stop", ())


def test_a_loop_that_is_left_between_pieces_of_one_call_cancels():
    cancelled = []
    running = generation(
        Reply(NamedJson(TOOLS)), Piece("clock\n{}<|assistant|>a<|assistant|>clock\n{}", [1], None, "stop")
    )
    running._request.cancel = lambda: cancelled.append(1)
    for piece in running:
        assert piece.calls and piece.finish_reason is None
        break
    assert cancelled == [1] and not running.finished
    assert running.result().finish_reason == "tool_calls"


# ---- a model

PREFIX = "[gMASK]<sop>{% if tools %}<|system|>{{ tools | tojson }}{% endif %}"
TURNS = PREFIX + "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
THINKING = TURNS + "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}"
MARKED = THINKING + "{# <arg_key></arg_key><arg_value> #}"
QUESTION = [{"role": "user", "content": "q"}]


@pytest.fixture
def writes(load, monkeypatch):
    """writes(template, text, tokens a call) -> a model that writes a text; `asked` has the prompts."""

    def loaded(template, text, burst=1):
        model = load("glm4", sizes={"context": 4096, "metadata": {"tokenizer.chat_template": template}})
        ids = [*model.tokenize(text), model.tokenizer.id_of("<|user|>")]
        model.asked = []

        def submit(request):
            model.asked.append(model.detokenize(request.tokens))
            for i in range(0, len(ids), burst):
                if request.sink.take([Sample(token, 0.0, []) for token in ids[i : i + burst]]):
                    break

        monkeypatch.setattr(model._scheduler, "submit", submit)
        return model

    return loaded


@pytest.mark.parametrize("burst", [1, 3, 1000])
@pytest.mark.parametrize(
    ("template", "text", "want"),
    [
        (MARKED, f"a</think>b{LOOK}", ("b", "a", [ROME], "tool_calls")),
        (THINKING, 'a</think>\n\nb<|assistant|>look\n{"at": "Rome"}', ("b", "a", [ROME], "tool_calls")),
        (TURNS, '\nlook\n{"at": "Rome"}', ("", None, [ROME], "tool_calls")),
        (TURNS, "\n b\n", ("b\n", None, [], "stop")),
        (
            "{{ messages[0].content }}<tool_call>{{ tools }}",
            f"<think>a</think>b{LOOK}",
            ("b", "a", [ROME], "tool_calls"),
        ),
    ],
)
def test_a_chat_reads_what_the_model_writes(writes, template, text, want, burst):
    import json

    done = writes(template, text, burst).chat(QUESTION, tools=TOOLS)
    calls = [(call.name, json.loads(call.arguments)) for call in done.tool_calls]
    assert (done.text, done.reasoning, calls, done.finish_reason) == want


def test_marks_spelled_in_other_tokens_are_text(writes):
    """The role's token parts messages, the thirteen characters do not."""
    model = writes(TURNS, "")
    spelled = [*model.tokenize("say <|assistant|>now", special=False), model.tokenizer.id_of("<|user|>")]
    model._scheduler.submit = lambda request: request.sink.take([Sample(token, 0.0, []) for token in spelled])
    assert model.chat(QUESTION, tools=TOOLS).text == "say <|assistant|>now"


def test_a_choice_of_tools(writes):
    model = writes(MARKED, f"a</think>{LOOK}{LOOK}")
    assert len(model.chat(QUESTION, tools=TOOLS).tool_calls) == 2
    assert len(model.chat(QUESTION, tools=TOOLS, parallel_tool_calls=False).tool_calls) == 1
    assert len(model.chat(QUESTION, tools=TOOLS, tool_choice="required").tool_calls) == 2
    named = {"type": "function", "function": {"name": "look"}}
    assert len(model.chat(QUESTION, tools=TOOLS, tool_choice=named).tool_calls) == 2
    assert all('"look_up"' in prompt for prompt in model.asked)
    done = model.chat(QUESTION, tools=TOOLS, tool_choice="none")
    assert done.tool_calls == () and done.text == LOOK + LOOK and '"look_up"' not in model.asked[-1]
    assert model.chat(QUESTION).text == LOOK + LOOK


@pytest.mark.parametrize(
    ("choice", "tools", "error"),
    [
        ("any", TOOLS, "tool_choice is 'any', expected 'auto', 'none', 'required' or"),
        ({"type": "function"}, TOOLS, "tool_choice is "),
        (3, TOOLS, "tool_choice is 3"),
        ({"function": {"name": "hear"}}, TOOLS, "tool_choice: there is no tool 'hear' to choose"),
        ("required", [], "tool_choice is 'required', expected tools to choose from"),
    ],
)
def test_a_choice_that_is_none(load, choice, tools, error):
    with pytest.raises(ValueError, match=error):
        load("glm4").chat(QUESTION, tools=tools, tool_choice=choice)


def test_thoughts_of_a_chat(writes):
    model = writes(MARKED, "\na\n</think>\n\nb")
    assert (model.chat(QUESTION).text, model.chat(QUESTION).reasoning) == ("b", "a")
    whole = model.chat(QUESTION, reasoning=False)
    assert (whole.text, whole.reasoning) == ("a\n</think>\n\nb", None)
    model.chat(QUESTION, thinking=False)
    assert model.asked[-1].endswith("<|assistant|></think>")
    model.chat(QUESTION, effort="none")
    assert model.asked[-1].endswith("<|assistant|></think>")
    model.chat(QUESTION, thinking=False, template={"enable_thinking": True})
    assert model.asked[-1].endswith("<|assistant|><think>")


def test_a_last_text_of_the_assistant_s_goes_on(writes):
    template = TURNS.replace("<|assistant|>", "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    model = writes(template, " upon\n a")
    done = model.chat([*QUESTION, {"role": "assistant", "content": "Once"}])
    assert done.text == " upon\n a" and model.asked[-1].endswith("<|user|>q<|assistant|>Once")
    model.chat([*QUESTION, {"role": "assistant", "content": [{"type": "text", "text": ""}]}])
    assert model.asked[-1].endswith("<|assistant|>")
    model = writes(template, "look\n{}")
    assert model.chat([*QUESTION, {"role": "assistant", "content": "I"}], tools=TOOLS).tool_calls == ()


def test_the_text_of_a_raw_continuation_is_read_by_nobody(writes):
    model = writes(MARKED, f"<think>a</think>{LOOK}")
    assert model.generate("q").text == f"<think>a</think>{LOOK}"
    assert model.generate("q").reasoning is None


def test_public_names():
    assert glmlite.ToolCall is ToolCall and glmlite.CallPart is CallPart
