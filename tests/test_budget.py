"""Thoughts of at most so many tokens: where they end, and what comes after them."""

import numpy as np
import pytest
from serving import ask
from test_serve_prefix import path as path  # the fixture

import glmlite
from glmlite.budget import Budget
from glmlite.constrain import BURST, Thought, Vocabulary
from glmlite.serve import app

LETTERS = {"a": 0, "<": 1, "/think>": 2, "</think>": 3, "<think>": 4, " ": 5, "b": 6}
END, BEGIN = LETTERS["</think>"], LETTERS["<think>"]


class Tokens:
    vocab_size = len(LETTERS)
    pieces = [text.encode() for text in LETTERS]  # noqa: RUF012
    eos_ids = ()

    def piece(self, token):
        return self.pieces[token]


def followed(budget, wanted):
    """What is written where a model wants these tokens, one at a time, and whether it was active before each."""
    written, active = [], []
    wanted = list(wanted)
    while wanted or (budget.active and budget.mask() is not None):
        active.append(budget.active)
        mask = budget.mask()
        if mask is None:
            token = wanted.pop(0)
        else:
            (token,) = (i for i in range(len(LETTERS)) if mask[0] >> np.uint32(i) & 1)
        budget.accept([token])
        written.append(token)
    return written, active


@pytest.mark.parametrize(
    ("tokens", "thought", "end", "wanted", "written"),
    [
        (3, Thought(END), [END], [0] * 5, [0, 0, 0, END, 0, 0]),
        (0, Thought(END), [END], [0, 0], [END, 0, 0]),
        (3, Thought(END), [END], [0, 0, END, 0, 0, 0], [0, 0, END, 0, 0, 0]),  # it ended by itself
        (2, Thought("</think>"), [1, 2], [0, 0, 0], [0, 0, 1, 2, 0]),  # an end that is text
        (4, Thought("</think>"), [1, 2], [0, 1, 2, 0, 0, 0], [0, 1, 2, 0, 0, 0]),
        (2, Thought(END, BEGIN), [END], [5, BEGIN, 0, 0, 0, 0], [5, BEGIN, 0, 0, END, 0, 0]),
        (0, Thought(END, BEGIN), [END], [BEGIN, 0], [BEGIN, END, 0]),
        (1, Thought(END, BEGIN), [END], [0, BEGIN, 0, 0, 0], [0, BEGIN, 0, 0, 0]),  # an answer without a thought
    ],
)
def test_a_thought_ends_with_its_budget(tokens, thought, end, wanted, written):
    budget = Budget(tokens, thought, end, None, Vocabulary(Tokens(), len(LETTERS)))
    for _ in range(2):
        assert followed(budget, wanted)[0] == written
        assert not budget.active and not budget.done and budget.forced(9) == []
        budget.reset()


def test_bursts_go_on_while_they_cannot_pass_the_end():
    budget = Budget(BURST + 2, Thought(END), [END], None, Vocabulary(Tokens(), len(LETTERS)))
    written, active = followed(budget, [0] * (BURST + 4))
    assert written == [0] * (BURST + 2) + [END, 0, 0]
    assert active == [False] * 3 + [True] * BURST + [False] * 2


def test_the_end_is_written_without_being_drawn():
    budget = Budget(1, Thought("</think>"), [1, 2], None, Vocabulary(Tokens(), len(LETTERS)))
    budget.accept([0])
    assert (budget.forced(1), budget.forced(1), budget.forced(1)) == ([1], [2], [])


@pytest.mark.parametrize("budget", [0, 1, 5, 20])
@pytest.mark.parametrize("logprobs", [None, 1])  # with them nothing is forced
def test_a_model_stops_thinking(path, budget, logprobs):
    with glmlite.load(path) as model:
        end = model.tokenizer.id_of("</think>")
        options = {"max_tokens": 60, "seed": 1, "ignore_eos": True, "logprobs": logprobs, "logit_bias": {end: -100.0}}
        free = model.chat([{"role": "user", "content": "hi"}], **options)
        held = model.chat([{"role": "user", "content": "hi"}], thinking_budget=budget, **options)
        assert free.text == "" and end not in free.tokens
        assert held.tokens[:budget] == free.tokens[:budget] and held.tokens[budget] == end
        assert end not in held.tokens[budget + 1 :] and len(held.tokens) == 60
        assert held.text
        with pytest.raises(ValueError, match=r"thinking_budget is -1, expected at least 0"):
            model.chat([{"role": "user", "content": "hi"}], thinking_budget=-1)


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("/v1/chat/completions", {"thinking_budget": 3}),
        ("/v1/chat/completions", {"reasoning_budget": 3}),
        ("/v1/chat/completions", {"thinking": {"type": "enabled", "budget_tokens": 3}}),
        ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 3}}),
    ],
)
def test_clients_ask_for_it(path, where, fields):
    with glmlite.load(path) as model:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "temperature": 0, **fields}
        answer = ask(app(model), where, body).json
        plain = model.chat(body["messages"], max_tokens=20, temperature=0, thinking_budget=3)
        if where == "/v1/messages":
            thought = answer["content"][0]["thinking"]
        else:
            thought = answer["choices"][0]["message"]["reasoning_content"]
        assert thought == plain.reasoning
