"""The native engine: equal to the numpy executor within what its formats explain, and to itself on every bit."""

import numpy as np
import pytest
import tiny
import twins
from twin_engine import executor

from glmlite import _native, models, reference
from glmlite.errors import Cancelled, FormatError
from glmlite.models.layout import everywhere, in_order
from glmlite.placement import native_ops

DENSE = ["chatglm", "glm4", "llama"]
CAUSAL = [*DENSE, *tiny.MIXTURES]
BIDIRECTIONAL = ["chatglm1", "glm"]
QUANTIZED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
FORMATS = ["F32", "F16", "BF16", *QUANTIZED]


class Case:
    """A tiny model as a file, as a native engine and as a numpy executor."""

    def __init__(self, path, architecture, format="F32", **sizes):
        if format in QUANTIZED:
            sizes = {"dim": 256, "heads": 8, "head_dim": 32, "ffn": 512} | sizes
            if architecture in tiny.MIXTURES:
                own = {"expert_ffn": 256, "q_rank": 256, "latent": 256, "rope_dim": 16}
                sizes |= own | ({"head_dim": 48} if architecture == "deepseek2" else {})
        self.model = tiny.model(architecture, **sizes)
        self.gguf = self.open(path / f"{architecture}.gguf", format)
        self.shapes = {name: t.shape for name, t in self.gguf.tensors.items()}
        self.recording = models.record(self.gguf.metadata, self.shapes)
        self.weights = {name: self.gguf.dequantize(name) for name in self.shapes}
        self.format = format
        self.vocab = self.recording.vocab

    def open(self, path, format):
        return _native.Gguf(tiny.write(path, self.model, format))

    def engine(self, threads=2, kv_tokens=2048, isa="", kv_type="f16"):
        ops = native_ops(self.recording.ops, self.gguf.dequantize)
        return _native.Engine(self.gguf, ops, kv_tokens=kv_tokens, kv_type=kv_type, threads=threads, isa=isa)

    def numpy(self, kv_type="f16"):
        kind = QuantizedReference if self.format in QUANTIZED else reference.Reference
        return executor(kind, self.recording.ops, self.weights, kv_type)

    def layout(self, ids):
        """(positions, visible, position of the next token, step) of a prompt."""
        where = self.recording.layout(ids, lambda text: tiny.token_id(self.model, text))
        return np.asarray(where.positions, np.int32), where.context, where.next_position, where.position_step


class QuantizedReference(reference.Reference):
    """The numpy executor with activations rounded as the kernels of quantized weights round them."""

    def _linear(self, step, x, w, alpha, b=None, add=0.0):
        return super()._linear(step, rounded(x), w, alpha, b, add)


def rounded(x):
    """(T, k) as int8 with a scale for each 32 columns keeps it."""
    q, d, _ = twins.quantize(np.asarray(x, np.float32))
    return q * np.repeat(d, 32, axis=1)


@pytest.fixture(params=["f16", "q8"])
def kv_type(request):
    return request.param


@pytest.fixture
def case(tmp_path):
    return lambda *a, **k: Case(tmp_path, *a, **k)


def causal(n, start=0):
    return in_order(start, n)


def prompt(case, n, seed=0):
    """Random ids; for a blank-infilling model with its mask and the start of the piece at the end."""
    ids = list(np.random.default_rng(seed).integers(0, 256, n))
    if case.recording.architecture == "chatglm1":
        ids = [*ids, tiny.token_id(case.model, "[gMASK]"), tiny.token_id(case.model, "<sop>")]
    if case.recording.architecture == "glm":
        ids = [*ids, tiny.token_id(case.model, "[gMASK]"), tiny.token_id(case.model, "<|startofpiece|>")]
    return [int(i) for i in ids]


def prefill(case, engine, ids, work=_native.Work):
    """Enters a prompt as its layout says: (sequence, logits of every token, next position, position step)."""
    positions, context, after, step = case.layout(ids)
    sequence = engine.new_sequence()
    logits = []
    if context:
        logits.append(
            engine.step([work(sequence, ids[:context], positions[:context], visible=context)], range(context))
        )
    rest = ids[context:]
    if rest:
        logits.append(engine.step([work(sequence, rest, positions[context:])], range(len(rest))))
    return sequence, np.concatenate(logits), after, step


def decode(engine, sequence, ids, after, step, work=_native.Work):
    """Logits of `ids` entered one at a time."""
    rows = []
    for i, token in enumerate(ids):
        at = np.add(after, np.multiply(i, step)).astype(np.int32)[None]
        rows.append(engine.step([work(sequence, [token], at)], [0])[0])
    return np.array(rows)


def assert_close(got, want, relative):
    """Relative to the largest logit of a row; NaN fails."""
    assert got.shape == want.shape
    error = np.abs(got - want).max(-1) / np.abs(want).max(-1)
    assert (error <= relative).all(), f"rows off by {error.max():.3g} of their largest logit, allowed {relative}"


# ---- equal to the specification

# Over a whole model, small differences of f32 sums grow where something is rounded coarsely: a key or value that lies
# between two f16 numbers, an activation between two int8 steps, may go either way. These bounds are for that; what
# each op computes is held to the bounds of its own sums by check_ops.
WHOLE = {"F32": 5e-3, "F16": 5e-3, "BF16": 5e-3} | dict.fromkeys(QUANTIZED, 3e-2)


def check_ops(case, parts, kv_type="f16", work=_native.Work):
    """Every op of steps (ids, positions, visible) of one sequence, from the native engine's own inputs to it."""
    engine, numpy = case.engine(kv_type=kv_type), case.numpy(kv_type)
    # In attention keys and values may round to the neighbour, 2^-11 away in f16, 1/127 of the row's largest in q8.
    neighbour = {"f16": 2e-3, "q8": 2e-2}[kv_type]
    # And between an expert's matrices a value, one of hundreds, to the next of 127 steps.
    bounds = {"attention": neighbour, "latent_attention": neighbour, "moe": 1e-3 if case.format in QUANTIZED else 1e-5}
    sequence, other = engine.new_sequence(), numpy.new_sequence()
    for ids, positions, visible in parts:
        rows = sorted({0, len(ids) // 2, len(ids) - 1})
        values = engine.trace([work(sequence, ids, positions, visible=visible)], rows)
        for op, want in numpy.check([reference.Work(other, ids, positions, visible)], rows, values):
            got = values[op.out.id]
            bound = bounds.get(op.kind, 1e-5)
            error = np.abs(got - want).max() / np.abs(want).max()
            assert error <= bound, f"{op}: off by {error:.3g} of its largest value"


def parts_of(case, ids, more=(5, 77)):
    """A prompt as its layout says, then `more` one by one, for check_ops."""
    positions, context, after, step = case.layout(ids)
    if context:
        yield ids[:context], positions[:context], context
    if ids[context:]:
        yield ids[context:], positions[context:], 0
    for i, token in enumerate(more):
        yield [token], np.add(after, np.multiply(i, step)).astype(np.int32)[None], 0


@pytest.mark.parametrize("architecture", CAUSAL + BIDIRECTIONAL)
@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_every_op_equals_numpy(case, architecture, format, kv_type):
    c = case(architecture, format)
    check_ops(c, parts_of(c, prompt(c, 40)), kv_type)


@pytest.mark.parametrize("architecture", ["llama", *tiny.MIXTURES])
@pytest.mark.parametrize("format", FORMATS)
def test_every_op_equals_numpy_in_every_format(case, architecture, format):
    c = case(architecture, format, fused=False)
    check_ops(c, parts_of(c, prompt(c, 33)))


def test_the_check_of_ops_can_fail(case):
    c = case("chatglm")
    c.weights["blk.1.ffn_norm.weight"] = c.weights["blk.1.ffn_norm.weight"] * 1.0001
    with pytest.raises(AssertionError, match=r"rms_norm\(.*blk.1.ffn_norm.weight.*off by"):
        check_ops(c, parts_of(c, prompt(c, 5)))


# Not of mixtures: a difference too small to matter may send a row to another expert.
@pytest.mark.parametrize("architecture", DENSE + BIDIRECTIONAL)
@pytest.mark.parametrize("format", FORMATS)
def test_equals_numpy(case, architecture, format):
    c = case(architecture, format, layers=3)
    engine, numpy = c.engine(), c.numpy()
    ids, more = prompt(c, 40), [5, 77, 200]
    sequence, logits, after, step = prefill(c, engine, ids)
    expected_sequence, expected, *_ = prefill(c, numpy, ids, reference.Work)
    assert_close(logits, expected, WHOLE[format])
    got = decode(engine, sequence, more, after, step)
    assert_close(got, decode(numpy, expected_sequence, more, after, step, reference.Work), WHOLE[format])


@pytest.mark.parametrize(
    "architecture, sizes",
    [
        ("llama", {"fused": False}),
        ("llama", {"head_dim": 20, "heads": 3, "kv_heads": 3}),
        ("llama", {"tied": True, "kv_heads": 1}),
        ("llama", {"factors": np.linspace(1, 4, 16).astype(np.float32)}),
        ("chatglm", {"fused": False, "tied": True}),
        ("chatglm", {"prefix": 5}),
        ("chatglm", {"prefix": 70, "rope_dim": 32}),
        ("chatglm1", {"prefix": 3}),
        ("glm4", {"bias": True, "heads": 16, "kv_heads": 1}),
    ],
    ids=str,
)
def test_every_op_equals_numpy_in_every_form(case, architecture, sizes, kv_type):
    c = case(architecture, **sizes)
    check_ops(c, parts_of(c, prompt(c, 20)), kv_type)


@pytest.mark.parametrize("architecture", DENSE + BIDIRECTIONAL)  # a router's choice is a step, with no such bound
def test_q8_pages_are_as_good_as_f16(case, architecture):
    """A code is off by 1 / (127 sqrt(12)) of its row's largest: 0.7 % of the row's rms, where the largest is 3 rms.
    Queries, keys and values of 3 layers, independent: 3 times that in the logits, were all of them attention's."""
    c = case(architecture, layers=3, heads=4, head_dim=64)
    ids, more = prompt(c, 80), [5, 77, 200]
    rows = []
    for kv_type in ("f16", "q8"):
        engine = c.engine(kv_type=kv_type)
        sequence, logits, after, step = prefill(c, engine, ids)
        rows.append(np.concatenate([logits, decode(engine, sequence, more, after, step)]))
    off = np.sqrt(np.mean((rows[1] - rows[0]) ** 2) / np.mean(rows[0] ** 2))
    assert 0 < off <= 3 * 0.007


def test_trace_names_no_difference(case):
    c = case("glm4")
    ids = prompt(c, 12)
    engine, numpy = c.engine(), c.numpy()
    native = engine.trace([_native.Work(engine.new_sequence(), ids, causal(12))], [3, 11])
    expected = numpy.trace([reference.Work(numpy.new_sequence(), ids, causal(12))], [3, 11])
    assert reference.compare([(op, native[op.out.id]) for op, _ in expected], expected, 5e-3) is None
    broken = {**native, 5: native[5] + 1}
    assert "%5" in reference.compare([(op, broken[op.out.id]) for op, _ in expected], expected, 5e-3)


# ---- equal to itself, on every bit

LONG = 300  # longer than a chunk of attention, and several pages


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("format", ["F32", "F16", "Q4_0", "Q4_K", "Q8_0", "Q6_K"])
def test_chunks_of_a_prompt_do_not_matter(case, architecture, format, kv_type):
    c = case(architecture, format, layers=2, context=512)
    ids = prompt(c, LONG)
    engine = c.engine(kv_type=kv_type)
    whole = engine.step([_native.Work(engine.new_sequence(), ids, causal(LONG))], range(LONG))
    for sizes in ([1] * LONG, [7, 1, 64, 128, 2, 98]):
        sequence, at, rows = engine.new_sequence(), 0, []
        for n in sizes:
            rows.append(engine.step([_native.Work(sequence, ids[at : at + n], causal(n, at))], range(n)))
            at += n
        np.testing.assert_array_equal(np.concatenate(rows).view(np.int32), whole.view(np.int32))
        engine.free(sequence)


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_a_prompt_of_thousands_at_once_equals_its_chunks(case, architecture, format, kv_type):
    """From 2,048 tokens on a step is done some hundred rows at a time."""
    c = case(architecture, format, layers=2, context=2304)
    ids, rows = prompt(c, 2100), [0, 700, 1400, 1999, 2099]  # one of each chunk
    engine = c.engine(kv_type=kv_type, kv_tokens=4608)
    whole = engine.step([_native.Work(engine.new_sequence(), ids, causal(2100))], rows)
    sequence, got = engine.new_sequence(), []
    for at in range(0, 2100, 500):
        part = ids[at : at + 500]
        work = _native.Work(sequence, part, causal(len(part), at))
        got.append(engine.step([work], [row - at for row in rows if at <= row < at + 500]))
    np.testing.assert_array_equal(np.concatenate(got).view(np.int32), whole.view(np.int32))


@pytest.mark.parametrize("architecture", CAUSAL + BIDIRECTIONAL)
@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_threads_and_isas_do_not_matter(case, architecture, format, kv_type):
    c = case(architecture, format, context=512)
    ids, more = prompt(c, LONG), [3, 9, 27]
    results = {}
    for isa in _native.isas():
        for threads in (1, 2, 3) if isa == _native.isas()[0] else (2,):
            engine = c.engine(threads=threads, isa=isa, kv_type=kv_type)
            assert (engine.isa, engine.threads) == (isa, threads)
            sequence, logits, after, step = prefill(c, engine, ids)
            results[isa, threads] = np.concatenate([logits, decode(engine, sequence, more, after, step)])
    first, *rest = results.values()
    assert np.isfinite(first).all()
    for other in rest:
        np.testing.assert_array_equal(other.view(np.int32), first.view(np.int32))


@pytest.mark.parametrize("architecture", CAUSAL + BIDIRECTIONAL)
@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_company_does_not_matter(case, architecture, format, kv_type):
    c = case(architecture, format)
    engine = c.engine(kv_type=kv_type)
    prompts = [prompt(c, 5 + 9 * i, seed=i) for i in range(8)]
    alone = []
    for ids in prompts:
        sequence, logits, after, step = prefill(c, engine, ids)
        alone.append((logits[-1], decode(engine, sequence, [1, 2], after, step)))
        engine.free(sequence)
    sequences = [engine.new_sequence() for _ in prompts]
    works, rest = [], []
    for sequence, ids in zip(sequences, prompts):
        positions, context, after, step = c.layout(ids)
        n = context or len(ids)
        works.append(_native.Work(sequence, ids[:n], positions[:n], visible=context))
        tail = [] if n == len(ids) else [_native.Work(sequence, ids[n:], positions[n:])]
        rest.append((tail, len(ids) - n, after, step))
    ends = np.cumsum([len(p) - r[1] for p, r in zip(prompts, rest)]) - 1
    last = engine.step(works, list(ends))
    tails = [w for tail, *_ in rest for w in tail]
    if tails:
        last = engine.step(tails, list(np.cumsum([n for _, n, *_ in rest]) - 1))
    for token in (1, 2):
        works = []
        for sequence, (_, _, after, step) in zip(sequences, rest):
            i = token - 1
            at = [np.add(after, np.multiply(i, step)).tolist()]
            works.append(_native.Work(sequence, [token], np.array(at, np.int32)))
        together = engine.step(works, range(8))
        for row, (_, expected) in zip(together, alone):
            np.testing.assert_array_equal(row, expected[token - 1])
    for row, (expected, _) in zip(last, alone):
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("length", [1, 64, 100, 256])
def test_reused_and_forked_prefixes_equal_fresh_ones(case, architecture, length, kv_type):
    c = case(architecture, "Q4_0", context=512)
    engine = c.engine(kv_type=kv_type)
    shared, end_a, end_b = prompt(c, length), prompt(c, 90, seed=1), prompt(c, 90, seed=2)
    n = length + 90

    def fresh(end):
        return engine.step([_native.Work(engine.new_sequence(), shared + end, causal(n))], range(length, n))

    def after(sequence, end):
        return engine.step([_native.Work(sequence, end, causal(90, length))], range(90))

    first = engine.new_sequence()
    engine.step([_native.Work(first, shared, causal(length))], [])
    fork = engine.fork(first, length)
    np.testing.assert_array_equal(after(first, end_a), fresh(end_a))
    np.testing.assert_array_equal(after(fork, end_b), fresh(end_b))
    engine.truncate(first, length)
    np.testing.assert_array_equal(after(first, end_b), fresh(end_b))
    late = engine.fork(fork, length)
    engine.free(fork)
    np.testing.assert_array_equal(after(late, end_a), fresh(end_a))


@pytest.mark.parametrize("architecture, isa", [*(("llama", isa) for isa in _native.isas()), ("deepseek2", "")])
def test_sequences_that_begin_alike_go_on_together_as_alone(case, architecture, isa, kv_type):
    c = case(architecture, "Q4_0", context=512)
    engine = c.engine(isa=isa, kv_type=kv_type, kv_tokens=1 << 14)
    # Forks of two beginnings at the ends of pages and of a chunk, and within a page; and one that begins like none.
    first, second = engine.new_sequence(), engine.new_sequence()
    engine.step([_native.Work(first, prompt(c, 300), causal(300))], [])
    engine.step([_native.Work(second, prompt(c, 70, seed=1), causal(70))], [])
    forks = [(first, n) for n in [300, 256, 300, 128, 100, 300, 64, 300, 200] * 2]
    forks += [(second, 70), (second, 64), (second, 70), (second, 0)]
    together, alone, lengths = [], [], []
    for i in np.random.default_rng(1).permutation(len(forks)):
        beginning, length = forks[i]
        own = 1 + 7 * int(i) % 90
        for sequences in together, alone:
            sequences.append(engine.fork(beginning, length))
            engine.step([_native.Work(sequences[-1], prompt(c, own, seed=i), causal(own, length))], [])
        lengths.append(length + own)
    for i, token in enumerate([3, 9, 27]):  # with one, two and three threads
        engine.threads = i + 1
        works = [_native.Work(s, [token], causal(1, n + i)) for s, n in zip(together, lengths)]
        rows = engine.step(works, range(len(works)))
        for sequence, length, row in zip(alone, lengths, rows):
            (want,) = engine.step([_native.Work(sequence, [token], causal(1, length + i))], [0])
            np.testing.assert_array_equal(row.view(np.int32), want.view(np.int32))
        engine.free(together.pop(5 * i))  # the others do not miss it
        engine.free(alone.pop(5 * i))
        lengths.pop(5 * i)


# ---- running


def greedy(engine, ids, n, **sampler):
    sequence = engine.new_sequence()
    work = _native.Work(
        sequence,
        ids,
        causal(len(ids)),
        sampler=_native.Sampler(**sampler),
        budget=n,
        next_position=everywhere(len(ids)),
    )
    (samples,) = engine.run([work], max_ms=60_000)
    return [s.token for s in samples], sequence


def test_run_equals_steps(case):
    c = case("chatglm")
    engine = c.engine()
    ids = prompt(c, 10)
    tokens, sequence = greedy(engine, ids, 12)
    assert len(tokens) == 12
    assert engine.length(sequence) == 10 + 11  # the last one sampled is not entered yet
    logits = engine.step([_native.Work(engine.new_sequence(), ids + tokens, causal(22))], range(9, 21))
    assert list(logits.argmax(-1)) == tokens


def test_run_stops(case):
    c = case("llama")
    engine = c.engine()
    tokens, _ = greedy(engine, prompt(c, 10), 12)
    stop = tokens[5]
    stopped, _ = greedy(engine, prompt(c, 10), 12, stop=[stop])
    assert stopped == tokens[: tokens.index(stop) + 1]


def test_run_returns_at_its_deadline_and_goes_on(case):
    c = case("llama")
    engine = c.engine()
    expected, _ = greedy(engine, prompt(c, 10), 12)
    sampler, sequence = _native.Sampler(), engine.new_sequence()
    work = _native.Work(sequence, prompt(c, 10), causal(10), sampler=sampler, budget=12, next_position=everywhere(10))
    tokens = [s.token for s in engine.run([work], max_ms=0)[0]]
    assert len(tokens) == 1
    while len(tokens) < 12:
        at = 9 + len(tokens)
        work = _native.Work(
            sequence, tokens[-1:], causal(1, at), sampler=sampler, budget=2, next_position=everywhere(at + 1)
        )
        tokens += [s.token for s in engine.run([work], max_ms=60_000)[0]]
    assert tokens[:12] == expected


def test_works_of_every_length_share_steps(case):
    c = case("llama")
    engine = c.engine()
    alone = [greedy(engine, prompt(c, 3 + i, seed=i), 2 + 3 * i)[0] for i in range(4)]
    works = []
    for i in range(4):
        ids = prompt(c, 3 + i, seed=i)
        works.append(
            _native.Work(
                engine.new_sequence(),
                ids,
                causal(len(ids)),
                sampler=_native.Sampler(),
                budget=2 + 3 * i,
                next_position=everywhere(len(ids)),
            )
        )
    idle = engine.new_sequence()
    works.insert(2, _native.Work(idle, [1, 2, 3], causal(3)))  # one that only reads
    together = [[s.token for s in samples] for samples in engine.run(works, max_ms=60_000)]
    assert together.pop(2) == []
    assert engine.length(idle) == 3
    assert together == alone


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_row_of_a_step_draws_as_alone(case, threads):
    c = case("llama")
    engine = c.engine(threads=threads)
    samplers = [{"seed": i, "temperature": i % 3, "top_p": 0.9, "logprobs": i % 2 * 3 - 1} for i in range(9)]
    works, alone = [], []
    for i, options in enumerate(samplers):
        ids = prompt(c, 3 + i, seed=i)
        for works_of in (alone, works):
            work = _native.Work(
                engine.new_sequence(),
                ids,
                causal(len(ids)),
                sampler=_native.Sampler(**options),
                budget=6,
                next_position=everywhere(len(ids)),
            )
            works_of.append(work)
    want = [engine.run([work], max_ms=60_000)[0] for work in alone]
    got = engine.run(works, max_ms=60_000)
    assert len({tuple(s.token for s in samples) for samples in want}) > 1
    for row, expected in zip(got, want):
        assert [(s.token, s.top) for s in row] == [(s.token, s.top) for s in expected]
        np.testing.assert_array_equal([s.logprob for s in row], [s.logprob for s in expected])


# ---- failing, and losing nothing


def test_cancelled_before_it_starts(case):
    c = case("chatglm")
    engine = c.engine()
    sequence, flag = engine.new_sequence(), _native.Cancel()
    engine.step([_native.Work(sequence, [1, 2, 3], causal(3))], [])
    free = engine.kv_free()
    assert not flag.is_set
    flag.set()
    assert flag.is_set
    long = _native.Work(sequence, [7] * 100, causal(100, 3), sampler=_native.Sampler())
    with pytest.raises(Cancelled):
        engine.run([long], cancel=flag)
    assert engine.length(sequence) == 3
    assert engine.kv_free() == free
    engine.run([long])
    assert engine.length(sequence) == 103


def test_a_full_cache_is_an_error_and_changes_nothing(case):
    c = case("chatglm")
    engine = c.engine(kv_tokens=256)
    a, b = engine.new_sequence(), engine.new_sequence()
    engine.step([_native.Work(a, [1] * 100, causal(100))], [])
    free = engine.kv_free()
    with pytest.raises(RuntimeError, match="KV cache is full: 128 tokens"):
        engine.step([_native.Work(a, [1] * 20, causal(20, 100)), _native.Work(b, [2] * 129, causal(129))], [])
    assert (engine.length(a), engine.length(b), engine.kv_free()) == (100, 0, free)
    engine.step([_native.Work(a, [1] * 20, causal(20, 100)), _native.Work(b, [2] * 128, causal(128))], [])
    # A burst that meets the end of the cache returns what it has.
    engine.free(b)
    work = _native.Work(a, [5], causal(1, 120), sampler=_native.Sampler(), budget=1000, next_position=everywhere(121))
    (samples,) = engine.run([work], max_ms=60_000)
    assert len(samples) == 256 - 120
    engine.free(a)
    assert engine.kv_free() == engine.kv_tokens == 256


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.1.attn_qkv.weight", "output.weight"])
def test_numbers_that_are_not_finite_name_the_token(tmp_path, name, value):
    model = tiny.model("chatglm")
    model.tensors[name][7, 3] = value
    gguf = _native.Gguf(tiny.write(tmp_path / "bad.gguf", model))
    recording = models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
    engine = _native.Engine(gguf, native_ops(recording.ops, gguf.dequantize), kv_tokens=64)
    sequence = engine.new_sequence()
    work = _native.Work(sequence, [1, 2, 3], causal(3), sampler=_native.Sampler())
    with pytest.raises(RuntimeError, match=rf"sequence {sequence}: .* not finite at token [0-2] \(id [1-3]\)"):
        engine.run([work])
    assert engine.length(sequence) == 0


def test_says_what_is_wrong(case):
    c = case("glm")
    engine = c.engine()
    sequence = engine.new_sequence()
    Work = _native.Work
    for works, rows, message in [
        ([], [], "at least one token"),
        ([Work(sequence, [], causal(0))], [], "no tokens"),
        ([Work(sequence, [c.vocab], causal(1))], [], f"token {c.vocab}, the vocabulary has {c.vocab}"),
        ([Work(sequence, [-2], causal(1))], [], "token -2"),
        ([Work(sequence, [1], causal(2))], [], "1 tokens, 2 positions"),
        ([Work(sequence, [1], causal(1, 10**6))], [], "position 1000000 on axis 0"),
        ([Work(sequence, [1], causal(1) - 1)], [], "position -1"),
        ([Work(sequence, [1], causal(1), visible=2)], [], "visible is 2, the sequence will have 1"),
        ([Work(sequence, [1], causal(1))], [1], "row 1, the step has 1"),
        ([Work(sequence, [1], causal(1)), Work(sequence, [1], causal(1))], [], "twice"),
        ([Work(99, [1], causal(1))], [], "sequence 99: there is none"),
        ([Work(0, [1], causal(1))], [], "sequence 0: there is none"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.step(works, rows)
    with pytest.raises(ValueError, match="length 1"):
        engine.fork(sequence, 1)
    with pytest.raises(ValueError, match="length -1"):
        engine.truncate(sequence, -1)
    assert engine.length(sequence) == 0
    engine.free(sequence)
    with pytest.raises(ValueError, match="there is none"):
        engine.length(sequence)


def test_programs_that_no_recorder_makes_are_refused(case):
    c = case("chatglm")
    ops = native_ops(c.recording.ops, c.gguf.dequantize)
    linear = next(i for i, op in enumerate(ops) if op[0] == "linear")

    def changed(i, at, value):
        op = list(ops[i])
        op[at] = value
        return [*ops[:i], tuple(op), *ops[i + 1 :]]

    for bad, error, message in [
        ([], ValueError, "no ops"),
        (ops[1:], ValueError, "not in order"),
        (changed(0, 0, "nonsense"), ValueError, "unknown op"),
        (changed(linear, 3, {"x": linear}), ValueError, "comes later"),
        (changed(linear, 3, {"x": linear - 1, "y": 0}), ValueError, "no input 'y'"),
        (changed(linear, 3, {}), ValueError, "input 'x' is missing"),
        (changed(linear, 2, 7), ValueError, "width 7"),
        (changed(linear, 4, {"w": ["absent"]}), FormatError, "no tensor 'absent'"),
        (changed(linear, 4, {"w": ["output_norm.weight"]}), FormatError, "expected"),
    ]:
        with pytest.raises(error, match=message):
            _native.Engine(c.gguf, bad, kv_tokens=64)
    for arguments in (
        {"kv_tokens": 0},
        {"kv_tokens": 64, "threads": -1},
        {"kv_tokens": 64, "isa": "none"},
        {"kv_tokens": 64, "kv_type": "q4"},
    ):
        with pytest.raises(ValueError):
            _native.Engine(c.gguf, ops, **arguments)
    with pytest.raises(MemoryError, match="memory could not be had"):
        _native.Engine(c.gguf, ops, kv_tokens=10**11)


def test_a_load_reports_and_can_be_cancelled(case):
    c = case("chatglm", "Q4_0")
    ops = native_ops(c.recording.ops, c.gguf.dequantize)
    seen = []
    _native.Engine(c.gguf, ops, kv_tokens=64, progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] > 0
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    with pytest.raises(Cancelled):
        _native.Engine(c.gguf, ops, kv_tokens=64, progress=lambda done, total: False)

    def broken(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _native.Engine(c.gguf, ops, kv_tokens=64, progress=broken)


def test_closed(case):
    c = case("chatglm")
    engine = c.engine()
    sequence = engine.new_sequence()
    c.gguf.close()  # an engine does not need its file any more
    engine.step([_native.Work(sequence, [1], causal(1))], [0])
    engine.close()
    engine.close()
    for call in (engine.new_sequence, engine.kv_free, lambda: engine.length(sequence)):
        with pytest.raises(ValueError, match="closed"):
            call()
    with pytest.raises(ValueError, match="closed"):
        engine.step([_native.Work(sequence, [1], causal(1))], [0])


# ---- masks


def words(*tokens, vocab):
    """A mask of these tokens."""
    mask = np.zeros(-(-vocab // 32), np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask


def test_a_mask_holds_for_the_first_draw_of_its_work_alone(case):
    c = case("chatglm")
    engine = c.engine()
    ids = prompt(c, 10)
    (row,) = engine.step([_native.Work(engine.new_sequence(), ids, causal(10))], [9])
    allowed = [3, 70, 200]
    best = allowed[row[allowed].argmax()]
    sampler, others = _native.Sampler(), _native.Sampler()
    sampler.allow(words(*allowed, vocab=c.vocab))
    masked, free = (
        _native.Work(engine.new_sequence(), ids, causal(10), sampler=s, budget=4, next_position=everywhere(10))
        for s in (sampler, others)
    )
    got, beside = ([s.token for s in samples] for samples in engine.run([masked, free], max_ms=60_000))
    follow, _ = greedy(engine, [*ids, best], 3)
    assert got == [best, *follow]
    assert beside == greedy(engine, ids, 4)[0]


def test_an_empty_mask_names_the_sequence(case):
    c = case("chatglm")
    engine = c.engine()
    for mask, message in [
        (words(vocab=c.vocab), "none of the vocabulary's tokens"),
        (words(1, vocab=c.vocab + 32), f"a vocabulary of {c.vocab} takes"),
    ]:
        sampler, sequence = _native.Sampler(), engine.new_sequence()
        sampler.allow(mask)
        with pytest.raises(ValueError, match=rf"sequence {sequence}: allow: .*{message}"):
            engine.run([_native.Work(sequence, [1], causal(1), sampler=sampler)])
        assert engine.length(sequence) == 0


@pytest.mark.parametrize("window", [0, 2, 256])
def test_a_failed_run_takes_back_what_was_drawn_and_not_the_mask(case, tmp_path, window):
    model = tiny.model("chatglm")
    model.tensors["token_embd.weight"][77] = np.inf
    gguf = _native.Gguf(tiny.write(tmp_path / "bad.gguf", model))
    recording = models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
    engine = _native.Engine(gguf, native_ops(recording.ops, gguf.dequantize), kv_tokens=64)
    options = {"temperature": 1.0, "seed": 3, "presence_penalty": 2.0, "penalty_window": window}
    sampler, fresh = (_native.Sampler(logit_bias={77: 100.0}, **options) for _ in range(2))
    mask = words(*range(100), vocab=recording.vocab)
    for s in (sampler, fresh):
        s.accept([1, 2, 3])
        s.allow(mask)
    sequence = engine.new_sequence()
    work = _native.Work(sequence, [1, 2], causal(2), sampler=sampler, budget=3, next_position=everywhere(2))
    with pytest.raises(RuntimeError, match=r"not finite at token 2 \(id 77\)"):
        engine.run([work], max_ms=60_000)
    rows = np.random.RandomState(1).standard_normal((9, recording.vocab)).astype(np.float32)
    rows[:, 77] = -1e3
    assert [sampler.sample(row).token for row in rows] == [fresh.sample(row).token for row in rows]
