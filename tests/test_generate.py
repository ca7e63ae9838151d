"""Parameters, stop strings, the sink that turns samples into pieces, and the sampler against its twin."""

import inspect
import itertools
import json
import math
import random
import threading
from dataclasses import fields
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import twin_engine
from twin_engine import Sample

from glmlite import _native
from glmlite.errors import FormatError
from glmlite.generate import Answer, Generation, Piece, StopStrings
from glmlite.parameters import Options, Parameters, sampling_defaults
from glmlite.scheduler import Stats

SAMPLER_OF_THE_TWIN = inspect.signature(twin_engine.Sampler).parameters


class Decoder:
    """Token i is the i-th of some bytes; whole characters come out, as of `Tokenizer.stream`."""

    def __init__(self, pieces):
        import codecs

        self.pieces = pieces
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids):
        return "".join(self.utf8.decode(self.pieces[i]) for i in ids)

    def finish(self):
        return self.utf8.decode(b"", final=True)


def samples(*tokens):
    return [Sample(t, -0.5, []) for t in tokens]


def answer(pieces, *, stop=(), stop_ids=(), max_tokens=100, **parameters):
    return Answer(Decoder(pieces), Parameters(stop=stop, **parameters), stop_ids, max_tokens)


def events(sink):
    return [sink.events.get() for _ in range(sink.events._queue.qsize())]


# ---- parameters

CIRCLE: dict = {}
CIRCLE["not"] = CIRCLE


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"presence_penalty": math.inf},
        {"seed": -1},
        {"seed": 2**64},
        {"logprobs": -1},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop_ids": [-1]},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: -(10**400)}},
        {"logprobs": 1001},
        {"temperature": 20000},
        {"presence_penalty": 500},
        {"frequency_penalty": -200},
        {"repetition_penalty": 1000},
        {"logit_bias": {1: 2e6}},
        {"penalty_window": 2**20 + 1},
        {"overflow": "ignore"},
        {"schema": "{"},
        {"schema": ""},
        {"schema": "[" * 100_000},
        {"schema": {"const": math.nan}},
        {"schema": {"const": "x" * 250_000}},
        {"schema": CIRCLE},
        {"grammar": " "},
        {"grammar": "x" * 250_001},
        {"grammar": "start: /a/", "schema": True},
    ],
)
def test_bad_values_name_the_parameter(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Parameters.of(None, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 1.5},
        {"top_k": True},
        {"temperature": "hot"},
        {"on_progress": 3},
        {"stop": 5},
        {"stop": [1]},
        {"stop_ids": 3},
        {"stop_ids": ["a"]},
        {"logit_bias": [1]},
        {"schema": 5},
        {"schema": False},
        {"schema": "[1]"},
        {"schema": dict},
        {"schema": {"const": {1}}},
        {"grammar": b"start: /a/"},
    ],
)
def test_bad_types_name_the_parameter(given):
    with pytest.raises(TypeError, match=next(iter(given))):
        Parameters.of(None, **given)


def test_a_schema_is_kept_as_json_in_its_order():
    class Point:
        @staticmethod
        def model_json_schema():
            return {"type": "object", "properties": {"y": {}, "x": {}}}

    text = '{"type": "object", "properties": {"y": {}, "x": {}}}'
    for given in (Point.model_json_schema(), text, text.replace(" ", ""), MappingProxyType(json.loads(text)), Point):
        assert Parameters(schema=given).schema == text
    for given in (True, "true"):
        assert Parameters(schema=given).schema == '{"type": "object"}'
    assert Parameters.of(Parameters(schema=text), seed=1).schema == text


def test_unknown_parameter_lists_the_known():
    with pytest.raises(TypeError, match=r"'temprature'.*temperature"):
        Parameters.of(None, temprature=1)


def test_none_means_the_default_and_given_values_win():
    base = Parameters(min_p=0.1, seed=3)
    p = Parameters.of(base, temperature=None, top_k=0, stop="x")
    assert (p.temperature, p.top_k, p.min_p, p.stop, p.seed) == (None, 0, 0.1, ("x",), 3)
    sampling = p.sampling({"temperature": 0.3, "top_k": 7})
    assert (sampling["temperature"], sampling["top_k"], sampling["top_p"], sampling["min_p"]) == (0.3, 0, 0.8, 0.1)


def test_every_bound_is_the_engine_s():
    """One table: what Python lets through, the engine takes; what the engine refuses, Python has refused by name."""
    options = _native.sampling_options()
    assert {option.name for option in options} <= {f.name for f in fields(Parameters)}
    for option in options:
        assert option.name in SAMPLER_OF_THE_TWIN
        step = 1 if option.whole else 1e-9
        inside = [option.most, option.off, option.usual, option.least + step * option.above_least]
        for value in inside:
            value = int(value) if option.whole else value
            _native.Sampler(**Parameters(**{option.name: value}).sampling({}))
        outside = [option.most + step * 10, option.least - (0 if option.above_least else step * 10)]
        for value in [*outside, *([1.5] if option.whole else [])]:
            with pytest.raises(ValueError, match=rf"^{option.name} is .*, expected "):
                _native.Sampler(**{option.name: value})
            with pytest.raises((ValueError, TypeError), match=rf"^{option.name} is .*, expected "):
                Parameters(**{option.name: int(value) if option.whole and value == int(value) else value})
    with pytest.raises(TypeError, match="'temprature' is no option"):
        _native.Sampler(temprature=1.0)
    with pytest.raises(TypeError, match="temperature is no number"):
        _native.Sampler(temperature="hot")


def test_keywords_are_the_fields():
    assert list(Options.__annotations__) == [f.name for f in fields(Parameters)]


def test_defaults_of_a_file():
    metadata = {"general.sampling.temp": 0.5, "general.sampling.penalty_last_n": 64, "general.name": "x"}
    assert sampling_defaults(metadata) == {"temperature": 0.5, "penalty_window": 64}
    with pytest.raises(FormatError, match=r"general.sampling.*top_p"):
        sampling_defaults({"general.sampling.top_p": 7.0})


# ---- stop strings


def test_stop_strings_do_not_depend_on_how_the_text_is_cut():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("ab。", k=rng.randint(0, 12)))
        stops = ["".join(rng.choices("ab。", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        ends = [(i, -len(s)) for i in range(len(text) + 1) for s in stops if text[:i].endswith(s)]
        want = text[: min(ends)[0] + min(ends)[1]] if ends else text
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 6)))
        finder, got, stop = StopStrings(stops), "", None
        for a, b in itertools.pairwise([0, *cuts, len(text)]):
            certain, stop = finder.push(text[a:b])
            got += certain
            assert want.startswith(got), (text, stops, cuts)
            if stop:
                break
        got += finder.flush()
        assert (got, bool(stop)) == (want, bool(ends)), (text, stops, cuts)


def test_only_what_may_start_a_stop_string_is_held_back():
    finder = StopStrings(["END", "NOW"])
    assert finder.push("abcE") == ("abc", None)
    assert finder.push("xEN") == ("Ex", None)
    assert finder.push("D tail") == ("", "END")


# ---- pieces


def test_stop_string_across_tokens_and_bytes():
    sink = answer([b"x", "停".encode()[:2], "停".encode()[2:] + b"S", b"TOP", b"tail"], stop=["停STOP"])
    assert not sink.take(samples(0, 1))
    assert not sink.take(samples(2))
    assert sink.take(samples(3, 4))
    assert events(sink) == [
        Piece("x", [0, 1]),
        Piece("", [2]),
        Piece("", [3], None, "stop"),
    ]
    assert sink.stop == "停STOP"


def test_stop_token_flushes_what_was_held_and_is_no_part():
    sink = answer([b"a", b"S", b"</s>"], stop=["STOP"], stop_ids=[2], logprobs=0)
    assert sink.take(samples(0, 1, 2))
    (piece,) = events(sink)
    assert (piece.text, piece.tokens, piece.finish_reason, sink.stop) == ("aS", [0, 1], "stop", 2)
    assert [p.logprob for p in piece.logprobs] == [-0.5, -0.5]


def test_max_tokens_ends_with_length_and_whole_characters():
    sink = answer([b"a", "停".encode()[:2]], max_tokens=2)
    assert sink.take(samples(0, 1, 0))
    assert events(sink) == [Piece("a", [0, 1], None, "length")]
    sink = answer(["停".encode()[:2], b"</s>"], stop_ids=[1])
    assert sink.take(samples(0, 1))
    assert events(sink) == [Piece("\ufffd", [0], None, "stop")]  # the model itself went on to something else


# ---- the native sampler and its twin

SAMPLERS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 1e-14},
    {"temperature": 1.3, "min_p": 0.2, "top_p": 0.9, "top_k": 30},
    {"temperature": 0.9, "repetition_penalty": 1.5, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"repetition_penalty": 3.0, "penalty_window": 4},
    {"temperature": 1.0, "logit_bias": {3: 5.0, 7: -math.inf}},
    {"temperature": 1.0, "logit_bias": {3: 5.0, 7: -math.inf}, "repetition_penalty": 1.2, "top_p": 0.9},
    {"temperature": 1e-3, "top_p": 0.9},
    {"temperature": 1e-300},
    {"temperature": 1e4},
    {"temperature": 1e4, "top_k": 7, "top_p": 1e-300},
]


def assert_same_draws(got, want, rows):
    for logits in rows:
        a, b = got.sample(logits), want.sample(logits)
        assert a.token == b.token
        assert [t for t, _ in a.top] == [t for t, _ in b.top]
        a, b = ([s.logprob, *(x for _, x in s.top)] for s in (a, b))
        assert np.allclose(a, b, rtol=1e-15, atol=1e-12, equal_nan=True)  # sums of f64 terms in another order


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
@pytest.mark.parametrize("vocab", [50, 300])
def test_sampler_against_twin(executor, options, vocab):
    rng = np.random.RandomState(vocab)
    options = {"seed": 2**63 + 5, "logprobs": 3, **options}
    samplers = executor.Sampler(**options), twin_engine.Sampler(**options)
    for sampler in samplers:
        sampler.accept([1, 2, 3, 3])
    assert_same_draws(*samplers, (3 * rng.standard_normal((60, vocab))).astype(np.float32))


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_sampler_on_special_rows(executor, options):
    """Ties, zeros of both signs, a flat row, one token for certain, a row of one, huge and tiny numbers."""
    rng = np.random.RandomState(2)
    rows = [
        rng.randint(-2, 3, 40),
        np.where(np.arange(40) % 3, -0.0, 0.0),
        np.full(40, 7.5),
        1000.0 * (np.arange(40) == 17),
        1e-30 * rng.standard_normal(40),
        3e38 * rng.uniform(-1, 1, 40),
        np.full(40, -3.4e38),
    ]
    rows = [np.asarray(row, np.float32) for row in rows for _ in range(8)]
    samplers = executor.Sampler(seed=9, **options), twin_engine.Sampler(seed=9, **options)
    assert_same_draws(*samplers, rows)
    if "logit_bias" not in options:
        assert executor.Sampler(seed=9, **options).sample(np.float32([2.5])).token == 0


def words(allowed):
    """A mask of (vocab,) bools, with rubbish in the bits after the vocabulary."""
    padded = np.concatenate([allowed, np.ones(-len(allowed) % 32, bool)])
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
@pytest.mark.parametrize("vocab", [50, 320])
def test_masked_draws_against_the_twin(executor, options, vocab):
    """Few tokens, half of them, all but one; log probabilities stay those of the whole row."""
    rng = np.random.RandomState(vocab)
    options = {"seed": 5, "logprobs": 3, **options}
    got, want = executor.Sampler(**options), twin_engine.Sampler(**options)
    for _ in range(60):
        allowed = rng.uniform(size=vocab) < rng.choice([0.03, 0.5, 0.99])
        allowed[rng.randint(vocab)] = True
        for sampler in (got, want):
            sampler.allow(words(allowed))
        (row,) = rows = (3 * rng.standard_normal((1, vocab))).astype(np.float32)
        before = want.state()
        token = want.sample(row).token
        assert allowed[token]
        want.restore(before)
        assert_same_draws(got, want, rows)


def test_a_mask_is_one_draw_s(executor):
    row = np.arange(40, dtype=np.float32)
    sampler = executor.Sampler()
    sampler.allow(words(np.arange(40) == 7))
    assert [sampler.sample(row).token for _ in range(2)] == [7, 39]
    sampler.allow(words(np.arange(40) == 7))
    sampler.allow(None)
    assert sampler.sample(row).token == 39
    sampler.allow(words(np.arange(40) == 7))
    sampler.take([1, 2])
    assert sampler.sample(row).token == 39


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_a_mask_of_all_ones_changes_nothing(executor, options):
    rng = np.random.RandomState(3)
    free, masked = (executor.Sampler(seed=7, logprobs=2, **options) for _ in range(2))
    for row in (3 * rng.standard_normal((100, 70))).astype(np.float32):
        masked.allow(words(np.ones(70, bool)))
        assert free.sample(row) == masked.sample(row)


def test_greedy_under_a_mask_is_the_largest_that_is_allowed(executor):
    rng = np.random.RandomState(6)
    sampler = executor.Sampler()
    for row in rng.standard_normal((100, 100)).astype(np.float32).round(1):  # with ties
        allowed = rng.uniform(size=100) < 0.2
        allowed[rng.randint(100)] = True
        sampler.allow(words(allowed))
        assert sampler.sample(row).token == np.flatnonzero(allowed)[row[allowed].argmax()]


def test_tokens_that_are_taken_count_as_draws(executor):
    rng = np.random.RandomState(8)
    options = {"temperature": 1.2, "seed": 3, "presence_penalty": 0.5, "penalty_window": 3}
    drawn, taken = (executor.Sampler(**options) for _ in range(2))
    rows = rng.standard_normal((12, 33)).astype(np.float32)
    tokens = [drawn.sample(row).token for row in rows]
    taken.take(tokens[:5])
    assert [taken.sample(row).token for row in rows[5:]] == tokens[5:]


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_forbidden_tokens_against_the_twin(executor, options):
    rng = np.random.RandomState(11)
    samplers = executor.Sampler(seed=5, **options), twin_engine.Sampler(seed=5, **options)
    for forbidden in ([3, 7, 11, 99], range(0, 50, 2), []):
        for sampler in samplers:
            sampler.forbid(list(forbidden))
        for row in (3 * rng.standard_normal((40, 50))).astype(np.float32):
            tokens = {sampler.sample(row).token for sampler in samplers}
            assert len(tokens) == 1
            assert not tokens & set(forbidden)


def test_a_mask_that_nothing_can_be_drawn_from(executor):
    sampler, row = executor.Sampler(), np.zeros(40, np.float32)
    sampler.allow(words(np.zeros(40, bool)))
    with pytest.raises(ValueError, match="none of the vocabulary's tokens"):
        sampler.sample(row)
    sampler.allow(np.ones(3, np.uint32))
    with pytest.raises(ValueError, match=r"3 words.*vocabulary of 40 takes 2"):
        sampler.sample(row)
    with pytest.raises(ValueError, match="no words"):
        _native.Sampler().allow(np.ones(0, np.uint32))
    with pytest.raises(ValueError, match="one-dimensional"):
        _native.Sampler().allow(np.ones((1, 2), np.uint32))
    with pytest.raises(TypeError):
        _native.Sampler().allow(np.ones(2, np.int64))
    with pytest.raises(TypeError, match="take: tokens must be integers"):
        _native.Sampler().take(["a"])


def test_all_tokens_may_be_banned(executor):
    """Then they are equal."""
    bias = dict.fromkeys(range(5), -math.inf)
    row = np.arange(5, dtype=np.float32)
    assert executor.Sampler(logit_bias=bias).sample(row).token == 0
    sampler = executor.Sampler(logit_bias=bias, temperature=1.0)
    assert {sampler.sample(row).token for _ in range(100)} == set(range(5))


@pytest.mark.parametrize("temperature", [1e-3, 0.3, 0.8, 1.0, 2.5, 1e4])
def test_weights_are_those_of_the_softmax(temperature):
    """Whole numbers, of exp within 2^-46 of it and half a unit for rounding; those of the twin, bit for bit."""
    rng = np.random.RandomState(4)
    logits = np.sort((4 * min(temperature, 10) * rng.standard_normal(5000)).astype(np.float32))[::-1].copy()
    weights = twin_engine.draw_weights(logits, temperature)
    x = (logits.astype(np.longdouble) - logits[0]) / temperature
    exact = 2.0**44 * np.exp(x)
    assert (np.abs(weights - exact) <= 0.5 + 2.0**-46 * exact).all()
    assert (np.diff(weights) <= 0).all() and weights[0] == 2**44
    from glmlite import _native as native

    np.testing.assert_array_equal(native.draw_weights(logits, temperature), weights)


def test_twin_sampler_draws_what_the_probabilities_say():
    """4000 draws: each count within 5 standard deviations of its expectation."""
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    sampler = twin_engine.Sampler(temperature=1.0, seed=3)
    counts = np.bincount([sampler.sample(logits).token for _ in range(4000)], minlength=4)
    p = np.exp(logits)
    assert (np.abs(counts - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p))).all()


# ---- the handle


class Reading:
    """A scheduler that only tells how far the prompt of the request is read."""

    def __init__(self, *done):
        self.done = list(done)

    def submit(self, request):
        pass

    def check_wait(self):
        pass

    def reading(self, request):
        return (self.done.pop(0) if len(self.done) > 1 else self.done[0]), 100


def generation(scheduler, seen):
    request = SimpleNamespace(stats=Stats(prompt_tokens=100), cancel=lambda: None)
    sink = answer([b"a"])
    return Generation(scheduler, request, sink, lambda *x: seen.append(x), 1, None), sink


def test_progress_never_runs_backwards(monkeypatch):
    monkeypatch.setattr("glmlite.delivery.TICK", 0.001)
    seen = []
    running, sink = generation(Reading(10, 50, 0, 30), seen)
    threading.Timer(0.1, sink.take, [samples(0)]).start()
    next(running)
    assert seen[:4] == [(10, 100), (50, 100), (50, 100), (50, 100)]
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


def test_no_progress_is_told_of_a_cancelled_request():
    seen = []
    running, _ = generation(Reading(10), seen)
    running.cancel()
    assert running.result().finish_reason == "cancelled"
    assert seen == []
