"""Tokens that steps of writing take along: the answers are the same, in fewer steps."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import Case, causal

import glmlite
from glmlite import _native, models
from glmlite.errors import Cancelled
from glmlite.models.layout import everywhere
from glmlite.placement import native_ops

COST = 0.1

# ---- what is guessed


def guess(tokens, most):
    """As after the last place where the last tokens stood, of those where most of them did: plain loops."""
    last, best, agree = len(tokens) - 1, None, 1
    for at in [i for i in range(last - 1, 0, -1) if tokens[i - 1 : i + 1] == tokens[last - 1 :]][:32]:
        same = 2
        while same < 32 and same <= at and tokens[at - same] == tokens[last - same]:
            same += 1
        if same > agree:
            best, agree = at, same
    if best is None:
        return []
    follow = list(tokens)
    for i in range(min(most, agree)):
        follow.append(follow[best + 1 + i])
    return follow[len(tokens) :]


few = st.lists(st.integers(0, 3), max_size=60)


@given(few, few, st.integers(0, 12))
@settings(max_examples=300, deadline=None)
def test_a_guess_is_what_stood_there_the_last_time(tokens, more, most):
    sampler = _native.Sampler(draft=most)
    sampler.accept(tokens)
    assert sampler.draft(20, 0.001) == guess(tokens, most)
    sampler.take(more)
    assert sampler.draft(20, 0.001) == guess(tokens + more, most)


def test_a_guess_is_as_long_as_what_agrees():
    sampler = _native.Sampler(draft=16)
    sampler.accept([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])
    assert sampler.draft(16, COST) == [3, 4]
    sampler.accept([3, 4, 5])
    assert sampler.draft(16, COST) == [6, 7, 8, 9, 1]
    assert sampler.draft(3, COST) == [6, 7, 8]


def test_what_goes_round_goes_on():
    sampler = _native.Sampler(draft=5)
    sampler.accept([8, 9] * 4)
    assert sampler.draft(5, COST) == [8, 9, 8, 9, 8]


def test_wrong_guesses_cost_little():
    """Half a step at first, then a 32nd of the time."""
    sampler = _native.Sampler(draft=7)
    sampler.accept([1, 2, 3, 4, 5, 6, 7] * 3)
    lost = 0.0
    for _ in range(1000):
        count = len(sampler.draft(7, COST))
        sampler.settle(count, 0, COST)
        lost += count * COST
    assert 1000 / 32 - 1 <= lost <= 1000 / 32 + 0.5
    assert sampler.drafted == (round(lost / COST), 0)
    for _ in range(100):  # they are right again
        count = len(sampler.draft(7, COST))
        sampler.settle(count, count, COST)
    assert count == 7


def test_a_token_that_costs_a_step_is_not_worth_it():
    sampler = _native.Sampler(draft=7)
    sampler.accept([1, 2, 3, 4] * 3)
    for _ in range(3):
        count = len(sampler.draft(7, 2.0))
        sampler.settle(count, count, 2.0)
        assert count == 0


@pytest.mark.parametrize("draft", [-1, 65])
def test_how_many_is_checked(draft):
    with pytest.raises(ValueError, match=f"draft is {draft}, expected 0 to 64"):
        _native.Sampler(draft=draft)


# ---- the same tokens


def trusted(sampler):
    """The sampler, which may guess again whatever its last guesses cost: how long a step took is none of a test's."""
    for _ in range(64):
        sampler.settle(0, 0, COST)
    return sampler


FEW = dict.fromkeys(range(12), 100.0)  # draws come from these, so what was said comes again soon
OPTIONS = [
    {},
    {"temperature": 0.2, "seed": 1},
    {"temperature": 0.7, "seed": 2, "top_p": 0.9},
    {"temperature": 0.3, "seed": 3, "top_k": 5, "frequency_penalty": 0.01, "penalty_window": 8},
    {"temperature": 0.5, "seed": 4, "logprobs": 2},
]
OPTIONS = [{"logit_bias": FEW} | options for options in OPTIONS]


def prompt(case, n, seed=0):
    """Of few tokens; for a blank-infilling model with its mask and the start of the piece at the end."""
    ends = {"chatglm1": ["[gMASK]", "<sop>"], "glm": ["[gMASK]", "<|startofpiece|>"]}
    ids = np.random.default_rng(seed).integers(0, len(FEW), n).tolist()
    return ids + [tiny.token_id(case.model, end) for end in ends.get(case.recording.architecture, ())]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """case(architecture, format, **sizes)"""
    made = {}

    def make(architecture, format="F32", **sizes):
        key = (architecture, format, tuple(sorted(sizes.items())))
        if key not in made:
            made[key] = Case(tmp_path_factory.mktemp("draft"), architecture, format, **sizes)
        return made[key]

    return make


def answers(c, engine, prompts, options, draft, budget=16, n=40):
    """Samples of each prompt, written together, and what was drafted; each sequence holds all but the last token."""
    sequences = [engine.new_sequence() for _ in prompts]
    samplers = [_native.Sampler(draft=draft, **o) for o in options]
    layouts = [c.layout(ids) for ids in prompts]
    written = [[] for _ in prompts]
    for sampler, ids in zip(samplers, prompts):
        sampler.accept(ids)
    while any(len(w) < n for w in written):
        works, who = [], [i for i, w in enumerate(written) if len(w) < n]
        for i in who:
            positions, visible, first, step = layouts[i]
            count = len(written[i])
            at = [np.asarray(first) + k * np.asarray(step) for k in (count - 1, count)]
            works.append(
                _native.Work(
                    sequences[i],
                    [written[i][-1].token] if count else prompts[i],
                    np.asarray([at[0]], np.int32) if count else positions,
                    visible=0 if count else visible,
                    sampler=trusted(samplers[i]),
                    budget=min(budget, n - count),
                    next_position=tuple(map(int, at[1])),
                    position_step=tuple(map(int, step)),
                )
            )
        for i, samples in zip(who, engine.run(works, max_ms=60_000)):
            written[i] += samples
    for sequence, ids, samples in zip(sequences, prompts, written):
        assert engine.length(sequence) == len(ids) + len(samples) - 1
        engine.free(sequence)
    assert engine.kv_free() == engine.kv_tokens
    return [[(s.token, repr(s.logprob), s.top) for s in w] for w in written], [s.drafted for s in samplers]


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
@pytest.mark.parametrize("architecture", ["chatglm", "glm4", "llama", "glm4moe", "deepseek2", "glm", "chatglm1"])
def test_answers_are_the_same(case, architecture, kv_type):
    c = case(architecture, "Q8_0")
    engine = c.engine(kv_type=kv_type, kv_tokens=1024)
    prompts = [prompt(c, 20 + 3 * i, seed=i) for i in range(len(OPTIONS))]
    want, _ = answers(c, engine, prompts, OPTIONS, 0)
    got, drafted = answers(c, engine, prompts, OPTIONS, 7, budget=5)
    assert got == want
    assert sum(count for count, _ in drafted) > sum(right for _, right in drafted) > 0
    for i in (0, 4):
        assert answers(c, engine, [prompts[i]], [OPTIONS[i]], 7)[0] == [want[i]]


def test_the_cache_is_that_of_no_drafts(case):
    """What wrong guesses leave behind is written over."""
    c = case("glm4", "Q8_0")
    engine, ids = c.engine(), prompt(c, 30)
    rows = []
    for draft in (0, 7):
        options = {"temperature": 0.7, "seed": 5, "logit_bias": FEW}
        sampler, sequence = _native.Sampler(draft=draft, **options), engine.new_sequence()
        trusted(sampler).accept(ids)
        works = [
            _native.Work(sequence, ids, causal(30), sampler=sampler, budget=60, next_position=everywhere(30)),
        ]
        (samples,) = engine.run(works, max_ms=60_000)
        rows.append(engine.step([_native.Work(sequence, [samples[-1].token], causal(1, 89))], [0]))
    count, right = sampler.drafted
    assert count > right
    np.testing.assert_array_equal(rows[0].view(np.int32), rows[1].view(np.int32))


def test_an_answer_ends_within_a_draft(case):
    c = case("chatglm")
    engine, ids = c.engine(), prompt(c, 20)
    free = greedy(engine, ids, 40)
    known = [*ids, *free, *ids]  # so that all guesses are right
    for stop in set(free):
        assert greedy(engine, ids, 40, known, stop=[stop]) == free[: free.index(stop) + 1]
    for n in range(1, 12):
        assert greedy(engine, ids, n, known) == free[:n]


def test_what_is_no_token_is_not_taken_along(case):
    c = case("chatglm")
    engine, ids = c.engine(), prompt(c, 20)
    free = greedy(engine, ids, 10)
    for bad in (c.vocab, -1, -5):
        assert greedy(engine, ids, 10, [*ids, *free[:2], bad, *ids]) == free


def greedy(engine, ids, n, known=None, draft=7, **options):
    """known: what guesses are made from."""
    sampler, sequence = _native.Sampler(draft=draft, **options), engine.new_sequence()
    trusted(sampler).accept(ids if known is None else known)
    work = _native.Work(sequence, ids, causal(len(ids)), sampler=sampler, budget=n, next_position=everywhere(len(ids)))
    (samples,) = engine.run([work], max_ms=60_000)
    assert engine.length(sequence) == len(ids) + len(samples) - 1
    engine.free(sequence)
    return [s.token for s in samples]


def test_the_end_of_the_cache_and_of_the_positions(case):
    c, ids = case("glm"), [1, 2, 3, 4] * 5
    for kv_tokens, most in ((128, 128 - 20 + 1), (512, 257 - 20 + 1)):
        engine = c.engine(kv_tokens=kv_tokens)
        want = greedy(engine, ids, 400, draft=0, logit_bias=FEW)
        assert len(want) == most
        assert greedy(engine, ids, 400, logit_bias=FEW) == want


def test_a_guess_that_is_no_number_is_dropped(tmp_path):
    """The weights are damaged where nobody goes, unless a guess does."""
    model = tiny.model("chatglm")
    model.tensors["token_embd.weight"][33] = np.inf
    gguf = _native.Gguf(tiny.write(tmp_path / "bad.gguf", model))
    recording = models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
    engine = _native.Engine(gguf, native_ops(recording.ops, gguf.dequantize), kv_tokens=256)
    tokens = []
    for draft in (0, 7):
        sampler, sequence = _native.Sampler(draft=draft, logit_bias=FEW), engine.new_sequence()
        sampler.accept([1, 2, 33, 34, 35, 1, 2])
        engine.step([_native.Work(sequence, [1], causal(1))], [])
        work = _native.Work(sequence, [2], causal(1, 1), sampler=sampler, budget=20, next_position=everywhere(2))
        assert sampler.draft(7, COST) == [33, 34][:draft]
        (samples,) = engine.run([work], max_ms=60_000)
        tokens.append([s.token for s in samples])
        assert engine.length(sequence) == 21
    assert tokens[0] == tokens[1]


def test_a_cancelled_call_leaves_all_as_it_was(case):
    c = case("glm4")
    engine, ids = c.engine(), [1, 2, 3, 4, 5] * 5
    want = greedy(engine, ids, 30, temperature=0.2, seed=7)
    sampler, sequence = _native.Sampler(draft=7, temperature=0.2, seed=7), engine.new_sequence()
    sampler.accept(ids)
    work = _native.Work(sequence, ids, causal(25), sampler=sampler, budget=30, next_position=everywhere(25))
    flag = _native.Cancel()
    flag.set()
    with pytest.raises(Cancelled):
        engine.run([work], cancel=flag)
    (samples,) = engine.run([work], max_ms=60_000)
    assert [s.token for s in samples] == want


# ---- through a model


def test_a_model_drafts_and_says_so(tiny_file, monkeypatch):
    path = tiny_file("glm4", context=512)
    ids = [1, *range(20, 60), *range(20, 30)]
    texts, stats = [], []
    for most in (0, 7):
        monkeypatch.setattr("glmlite._native.DRAFT", most)
        with glmlite.load(path) as model:
            answer = model.generate(ids, max_tokens=120, temperature=0, ignore_eos=True)
        texts.append(answer.tokens)
        stats.append(answer.stats)
    assert texts[0] == texts[1]
    assert stats[0].drafted_tokens == 0
    assert stats[1].drafted_tokens > 0
    assert 0 <= stats[1].accepted_tokens <= stats[1].drafted_tokens
