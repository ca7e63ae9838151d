"""A real model against what llama.cpp said of it: token ids, rounding errors, greedy text.

Runs where SmolLM2's file is: where $GLMLITE_SMOLLM2 says, or where `glmlite sample-model` puts it. The stored numbers
come from tests/oracles/llamacpp.py, whose measures are used here too.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from oracles import llamacpp

from glmlite import samples

STORED = json.loads((Path(__file__).parent / "data" / "smollm2_llamacpp.json").read_text(encoding="utf-8"))
# The numpy executor reads all the short prompts in seconds; the long ones would take minutes.
SHORT = [prompt for prompt in STORED["prompts"] if len(prompt["ids"]) <= 26]


@pytest.fixture(scope="module")
def ours():
    path = os.environ.get("GLMLITE_SMOLLM2") or samples.find()
    if path is None:
        pytest.skip("no SmolLM2: `glmlite sample-model` downloads it, or GLMLITE_SMOLLM2 names the file")
    return llamacpp.Ours(path)


@pytest.fixture(scope="module")
def exact(ours):
    """The exact logits of the short prompts, each with llama.cpp's greedy text after it."""
    return ours.exact_logits([prompt["ids"] + prompt["greedy"][:-1] for prompt in SHORT])


def test_what_is_stored():
    lengths = [len(prompt["ids"]) for prompt in STORED["prompts"]]
    assert len(lengths) == len(llamacpp.PROMPTS) == 20
    assert min(lengths) == 5 and 850 <= max(lengths) <= 900
    assert len(SHORT) >= 8


def test_tokens_are_llama_cpp_s(ours):
    for text, prompt in zip(llamacpp.PROMPTS, STORED["prompts"]):
        assert ours.tokenizer.encode(text) == prompt["ids"]


def test_rounding_is_no_coarser_than_llama_cpp_s(ours, exact):
    texts = [prompt["ids"] for prompt in SHORT]
    kl = np.concatenate(
        [llamacpp.divergence(logits[: len(ids)], ours.logits(ids)) for ids, logits in zip(texts, exact)]
    )
    theirs = np.average([prompt["kl"] for prompt in SHORT], weights=[len(ids) for ids in texts])
    assert kl.mean() <= llamacpp.BAR * theirs


def test_greedy_text_parts_only_where_rounding_explains_it(ours, exact):
    lengths = [len(prompt["ids"]) for prompt in STORED["prompts"]]
    mean = np.average([prompt["kl"] for prompt in STORED["prompts"]], weights=lengths)
    equal = 0
    for prompt, logits in zip(SHORT, exact):
        ids, greedy = prompt["ids"], prompt["greedy"]
        parts = llamacpp.parting(logits[len(ids) - 1 :], greedy, ours.greedy(ids, len(greedy)))
        if parts is None:
            equal += 1
            continue
        at, gap = parts
        assert gap <= llamacpp.explained_gap(prompt["greedy_kl"][at], mean), f"after {ids + greedy[:at]}"
    assert equal > 0  # at least one text of 32 tokens never comes near such a choice
