"""The executor for NVIDIA GPUs: equal to numpy, to itself on every bit, and what it says when something is missing.

Runs on a GPU, or on the emulator where that was built, see tests/cuda_module.py; otherwise skipped.
"""

import ast
import itertools
import logging
import re
import sys
import threading
from pathlib import Path

import cuda_module
import numpy as np
import plain_gguf
import pytest
import test_engine
import test_package
import tiny
from test_drafting import trusted
from test_engine import BIDIRECTIONAL, DENSE, FORMATS, assert_close, causal, check_ops, parts_of, prompt
from test_tower import Kernels, Stored

import glmlite
from glmlite import models, placement, reference
from glmlite.errors import Cancelled
from glmlite.models import glm4v
from glmlite.models.layout import everywhere
from glmlite.placement import native_ops

cuda, emulated = cuda_module.load()
pytestmark = pytest.mark.skipif(cuda is None, reason=str(emulated))
on_emulator = pytest.mark.skipif(emulated is not True, reason="asks the emulator for a fault")


@pytest.fixture(autouse=True)
def machine(request):
    """The emulator, with faults to set: each test begins with a whole machine, and its own order of threads."""
    cuda_module.shuffle(request.node.name)
    if emulated is not True:
        yield None
        return
    options = cuda.options()
    before = {name: getattr(options, name) for name in ("memory", "devices", "driver", "fail_after", "ahead_in_graphs")}
    yield options
    for name, value in before.items():
        setattr(options, name, value)
    cuda.recover()


class Case(test_engine.Case):
    """A tiny model for this module's engines; `gpu_layers`: of them on the GPU."""

    gpu_layers = -1

    def open(self, path, format):
        tensors = []
        for name, x in self.model.tensors.items():
            plain = format == "F32" or x.ndim == 1 or "position_embd" in name or "prefix_" in name
            tensors.append((name, x) if plain else (name, x.shape, format))
        return cuda.Gguf(plain_gguf.write(path, self.model.metadata, tensors))

    def engine(self, kv_tokens=512, kv_type="f16", device=0, gpu_layers=None):
        ops = native_ops(self.recording.ops, self.gguf.dequantize)
        layers = self.gpu_layers if gpu_layers is None else gpu_layers
        options = {"kv_tokens": kv_tokens, "kv_type": kv_type, "threads": 2, "device": device, "gpu_layers": layers}
        return cuda.Engine(self.gguf, ops, **options)

    def need(self, kv_tokens=512, **options):
        ops = native_ops(self.recording.ops, self.gguf.dequantize)
        return cuda.memory_needed(self.gguf, ops, kv_tokens=kv_tokens, **options)


@pytest.fixture
def case(tmp_path):
    return lambda *a, **k: Case(tmp_path, *a, **k)


def work(sequence, ids, start=0, **more):
    return cuda.Work(sequence, ids, causal(len(ids), start), **more)


def bits(rows):
    return np.asarray(rows, np.float32).view(np.int32)


def test_stub():
    stub = ast.parse((Path(glmlite.__file__).parent / "_cuda.pyi").read_text("utf-8"))
    functions = {name: node for name, node in test_package.declared_members(stub.body).items() if node is not None}
    for name, node in functions.items():
        if not (emulated and name.startswith("machine_")):
            assert test_package.compiled_parameters(getattr(cuda, name)) == test_package.declared_parameters(node), name


# ---- equal to the specification


@pytest.mark.parametrize("architecture", DENSE + BIDIRECTIONAL)
@pytest.mark.parametrize("format, kv_type", [("F32", "f16"), ("Q4_0", "q8")])
def test_every_op_equals_numpy(case, architecture, format, kv_type):
    c = case(architecture, format)
    check_ops(c, parts_of(c, prompt(c, 20)), kv_type, cuda.Work)


@pytest.mark.parametrize("format", FORMATS)
def test_every_op_equals_numpy_in_every_format(case, format):
    c = case("llama", format, fused=False)
    check_ops(c, parts_of(c, prompt(c, 9), more=[5]), work=cuda.Work)


@pytest.mark.parametrize(
    "architecture, sizes",
    [
        ("llama", {"head_dim": 20, "heads": 3, "kv_heads": 3}),
        ("llama", {"tied": True, "kv_heads": 1}),
        ("chatglm", {"prefix": 70, "rope_dim": 32}),
        ("chatglm1", {"prefix": 3}),
        ("glm4", {"bias": True, "heads": 16, "kv_heads": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("gpu_layers", [-1, 1])
def test_every_op_equals_numpy_in_every_form(case, architecture, sizes, gpu_layers):
    c = case(architecture, **sizes)
    c.gpu_layers = gpu_layers
    check_ops(c, parts_of(c, prompt(c, 20)), work=cuda.Work)


@pytest.mark.parametrize("name", ["vision-ocr", "vision-4.1v"])
@pytest.mark.parametrize("format, kv_type", [("F32", "f16"), ("Q4_0", "q8")])
@pytest.mark.parametrize("gpu_layers", [-1, 1])
def test_rows_of_images_in_text(case, tmp_path, name, format, kv_type, gpu_layers):
    """Positions on three axes, and rows in place of the table's: every op equals numpy's, and chunks give its bits."""
    stored = Stored(name)
    c = case("glm4", format)
    c.model, c.gpu_layers = stored.text, gpu_layers
    c.gguf = c.open(tmp_path / "images.gguf", format)
    shapes = {name: t.shape for name, t in c.gguf.tensors.items()}
    c.recording = models.record(c.gguf.metadata, shapes)
    c.weights = {name: c.gguf.dequantize(name) for name in shapes}
    ids, at, rows = stored.ids, stored.positions, stored.rows
    engine, numpy = c.engine(kv_type=kv_type), c.numpy(kv_type)
    values = engine.trace([cuda.Work(engine.new_sequence(), ids, at, embeddings=rows)], range(len(ids)))
    check = numpy.check([reference.Work(numpy.new_sequence(), ids, at, embeddings=rows)], range(len(ids)), values)
    for op, want in check:
        error = np.abs(values[op.out.id] - want).max() / np.abs(want).max()
        assert error <= ({"f16": 2e-3, "q8": 2e-2}[kv_type] if op.kind == "attention" else 1e-5), op
    sequence, logits, given = engine.new_sequence(), [], 0
    for begin in range(len(ids)):  # captured, where all of it runs there
        part = rows[given : given + int(ids[begin] < 0)]
        given += len(part)
        w = cuda.Work(sequence, ids[begin : begin + 1], at[begin : begin + 1], embeddings=part)
        logits.append(engine.step([w], [0])[0])
    np.testing.assert_array_equal(bits(logits), bits(values[len(c.recording.ops) - 1]))


@pytest.mark.parametrize("eyes", [{"heads": 4}, {"dim": 96, "heads": 3, "side": 24, "bias": False}], ids=str)
@pytest.mark.parametrize("format, kv_type", [("F32", "f16"), ("Q4_0", "q8")])
def test_every_op_of_eyes_equals_numpy(tmp_path, eyes, format, kv_type):
    """A program that begins with rows, two inputs side by side, and attention that keeps nothing."""
    eyes = tiny.eyes(**eyes)
    plain = {name for name, x in eyes.tensors.items() if format == "F32" or x.ndim != 2 or name == glm4v.POSITIONS}
    tensors = [(name, x) if name in plain else (name, x.shape, format) for name, x in eyes.tensors.items()]
    gguf = cuda.Gguf(plain_gguf.write(tmp_path / "eyes.gguf", eyes.metadata, tensors))
    programs = models.record_eyes(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    weights = {name: gguf.dequantize(name) for name in gguf.tensors}
    grid = (10, 12)
    given = tiny.patches(grid)
    if programs.config.side:
        given = np.hstack([given, glm4v.learned_positions(weights[glm4v.POSITIONS], grid, 2)])
    merged = np.random.RandomState(3).standard_normal((9, 4 * programs.config.dim)).astype(np.float32)
    rounding = Kernels if format == "Q4_0" else reference.Reference
    for ops, rows, at, visible in (
        (programs.tower, given, glm4v.positions(grid, 2), len(given)),
        (programs.merger, merged, causal(9), 0),
    ):
        engine = cuda.Engine(gguf, native_ops(ops, gguf.dequantize), kv_tokens=256, kv_type=kv_type, device=0)
        numpy = test_engine.executor(rounding, ops, weights, kv_type)
        ids = [reference.NO_ID] * len(rows)
        values = engine.trace(
            [cuda.Work(engine.new_sequence(), ids, at, visible=visible, input=rows)], range(len(rows))
        )
        for op, want in numpy.check(
            [reference.Work(numpy.new_sequence(), ids, at, visible, rows)], range(len(rows)), values
        ):
            error = np.abs(values[op.out.id] - want).max() / np.abs(want).max()
            assert error <= ({"f16": 2e-3, "q8": 2e-2}[kv_type] if op.kind == "attention" else 1e-5), op
        before = engine.scratch_bytes()
        engine.release()
        assert before > 0 and engine.scratch_bytes() == 0
        again = engine.step([cuda.Work(engine.new_sequence(), ids, at, visible=visible, input=rows)], range(len(rows)))
        np.testing.assert_array_equal(bits(again), bits(values[len(ops) - 1]))


@pytest.mark.parametrize("architecture", DENSE + BIDIRECTIONAL)
def test_layers_on_both_equal_all_on_one(case, architecture):
    """Within what separates the CPU and the GPU, which add up in different orders."""
    c = case(architecture, layers=3)
    ids, rows = prompt(c, 30), {}
    for layers in (0, 1, 2, 3, 99):
        engine = c.engine(gpu_layers=layers)
        assert ("cuda:0" in engine.isa, " + " in engine.isa) == (layers > 0, 0 < layers < 3)
        sequence, logits, after, step = test_engine.prefill(c, engine, ids, cuda.Work)
        rows[layers] = np.concatenate([logits, test_engine.decode(engine, sequence, [5, 77], after, step, cuda.Work)])
    for layers in (1, 2, 3):
        assert_close(rows[layers], rows[0], test_engine.WHOLE["F32"])
    np.testing.assert_array_equal(bits(rows[99]), bits(rows[3]))


# ---- equal to itself, on every bit

LONG = 72  # more than a page, and more than the steps that are captured


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
@pytest.mark.parametrize("architecture, format", [("chatglm", "F32"), ("glm4", "Q4_0"), ("llama", "Q6_K")])
def test_chunks_of_a_prompt_do_not_matter(case, architecture, format, kv_type):
    c = case(architecture, format, ffn=256)
    ids = prompt(c, LONG)
    engine = c.engine(kv_type=kv_type)
    whole = engine.step([work(engine.new_sequence(), ids)], range(LONG))
    assert np.isfinite(whole).all()
    for sizes in ([*[1] * 12, 50, *[1] * 10], [7, 1, 32, 2, 16, 14]):
        sequence, at, rows = engine.new_sequence(), 0, []
        for n in sizes:
            rows.append(engine.step([work(sequence, ids[at : at + n], at)], range(n)))
            at += n
        np.testing.assert_array_equal(bits(np.concatenate(rows)), bits(whole))
        engine.free(sequence)


@pytest.mark.parametrize("architecture, format", [("chatglm", "F32"), ("glm4", "Q4_0")])
def test_company_does_not_matter(case, architecture, format):
    c = case(architecture, format, ffn=256)
    engine = c.engine(kv_tokens=1024)
    prompts = [prompt(c, n, seed=n) for n in (3, 20, 37, 66)]
    alone = []
    for ids in prompts:
        sequence = engine.new_sequence()
        last = engine.step([work(sequence, ids)], [len(ids) - 1])
        alone.append(np.concatenate([last, engine.step([work(sequence, [9], len(ids))], [0])]))
        engine.free(sequence)
    sequences = [engine.new_sequence() for _ in prompts]
    ends = np.cumsum([len(ids) for ids in prompts]) - 1
    together = engine.step([work(s, ids) for s, ids in zip(sequences, prompts)], list(ends))
    next_one = engine.step([work(s, [9], len(ids)) for s, ids in zip(sequences, prompts)], range(4))
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(bits([together[i], next_one[i]]), bits(expected))


def test_forks_and_truncation_equal_fresh_sequences(case):
    c = case("chatglm", "Q4_0", prefix=3)
    engine = c.engine()
    shared, end = prompt(c, 70), prompt(c, 12, seed=1)
    fresh = engine.step([work(engine.new_sequence(), shared + end)], range(70, 82))
    first = engine.new_sequence()
    engine.step([work(first, shared)], [])
    fork = engine.fork(first, 70)  # shares a page that is written next
    np.testing.assert_array_equal(bits(engine.step([work(first, end, 70)], range(12))), bits(fresh))
    np.testing.assert_array_equal(bits(engine.step([work(fork, end, 70)], range(12))), bits(fresh))
    engine.truncate(first, 70)
    np.testing.assert_array_equal(bits(engine.step([work(first, end, 70)], range(12))), bits(fresh))


@pytest.mark.parametrize("gpu_layers", [-1, 1])
def test_replayed_graphs_equal_launches(case, gpu_layers):
    """A shape of step is launched the first time, captured the second, replayed from then on; traced steps never."""
    c = case("glm4", "Q4_0")
    captured, plain = c.engine(gpu_layers=gpu_layers), c.engine(gpu_layers=gpu_layers)
    a, b = captured.new_sequence(), plain.new_sequence()
    logits = len(c.recording.ops) - 1
    for i, token in enumerate(prompt(c, 6)):
        got = captured.step([work(a, [token], i)], [0])
        np.testing.assert_array_equal(bits(got), bits(plain.trace([work(b, [token], i)], [0])[logits]))
    # Another sequence, at another place, of the same shape; then a larger step, which moves the memory it uses.
    other = captured.new_sequence()
    again = captured.step([work(other, prompt(c, 6))], range(6))
    expected = plain.trace([work(plain.new_sequence(), prompt(c, 6))], range(6))[logits]
    np.testing.assert_array_equal(bits(again), bits(expected))
    captured.step([work(captured.new_sequence(), prompt(c, LONG))], range(LONG))
    got = captured.step([work(other, [7], 6)], [0])
    np.testing.assert_array_equal(bits(got), bits(plain.trace([work(b, [7], 6)], [0])[logits]))


@on_emulator
def test_steps_are_captured_in_turn_where_a_driver_refuses_others(case, machine):
    c = case("glm4", "Q4_0")
    captured, plain = c.engine(), c.engine()
    machine.ahead_in_graphs = False
    a, b = captured.new_sequence(), plain.new_sequence()
    for i, token in enumerate(prompt(c, 4)):
        got = captured.step([work(a, [token], i)], [0])
        want = plain.trace([work(b, [token], i)], [0])[len(c.recording.ops) - 1]
        np.testing.assert_array_equal(bits(got), bits(want))


# Kernels that an op of a step of one token is, where all matrices are of one quantized format.
KERNELS = {
    **dict.fromkeys(["embed", "rms_norm", "layer_norm", "linear", "gelu", "select"], 1),
    "swiglu": 0,  # in the kernel of the linear before it
    "attention": 3,  # turns and store, pages, merging
}


@on_emulator
@pytest.mark.parametrize("architecture", ["glm4", "chatglm", "llama"])
def test_launches_of_a_step(case, architecture):
    """What a token costs a small model on a GPU: its ops, the turns of all layers, a check of the logits."""
    c = case(architecture, "Q4_0", ffn=256)
    engine, ops = c.engine(), c.recording.ops
    sequence = engine.new_sequence()
    norms_of_norms = sum(a.kind == b.kind == "rms_norm" for a, b in itertools.pairwise(ops))  # in one kernel
    for i in range(3):  # launched, captured, replayed
        before = cuda.launches()
        engine.step([work(sequence, [5], i)], [0])
        assert cuda.launches() - before == sum(KERNELS[op.kind] for op in ops) - norms_of_norms + 2


def test_a_step_can_be_timed(case):
    c = case("chatglm", "Q4_0")
    times = cuda.measure_step(c.gguf, native_ops(c.recording.ops, c.gguf.dequantize), context=100)
    assert [name.split()[0] for name, _ in times["ops"]] == [op.kind for op in c.recording.ops]
    assert all(0 <= time < 1e6 for _, time in times["ops"])
    assert 0 < times["ahead"] < 1e6 and 0 < times["in_turn"] < 1e6


def test_sampling_runs_as_on_the_cpu(case):
    c = case("chatglm", "F32")
    ids, tokens = prompt(c, 20), []
    for device in (-1, 0):
        engine = c.engine(device=device)
        w = work(engine.new_sequence(), ids, sampler=cuda.Sampler(), budget=12, next_position=everywhere(20))
        (samples,) = engine.run([w], max_ms=1e9)
        tokens.append([s.token for s in samples])
    assert tokens[0] == tokens[1] and len(tokens[0]) == 12


# ---- tokens drawn on the GPU: those that the CPU's sampler draws from the same logits

SAMPLERS = [
    {},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20, "repetition_penalty": 1.3},
    {"temperature": 0.6},
    {"temperature": 0.7, "logprobs": 2},  # needs the logits
    {"temperature": 1e4},  # more tokens to put in order than a block can
    {"temperature": 0.9, "logit_bias": {i: i / 500 for i in range(1100)}},  # more changes than there is room for
]


def run(engine, prompts, samplers, budget=4):
    """Tokens."""
    sequences = [engine.new_sequence() for _ in prompts]
    works = [
        work(sequence, ids, sampler=s, budget=budget, next_position=everywhere(len(ids)))
        for sequence, ids, s in zip(sequences, prompts, samplers)
    ]
    samples = engine.run(works, max_ms=1e9)
    for sequence in sequences:
        engine.free(sequence)
    return [[s.token for s in of_work] for of_work in samples]


def run_by_hand(engine, ids, sampler, budget=4):
    """With the CPU's sampler."""
    sequence, tokens = engine.new_sequence(), []
    for at in range(budget):
        next_ones = [work(sequence, tokens[-1:], len(ids) + at - 1)] if tokens else [work(sequence, ids)]
        (logits,) = engine.step(next_ones, [0 if tokens else len(ids) - 1])
        tokens.append(sampler.sample(logits).token)
    engine.free(sequence)
    return tokens


@pytest.mark.parametrize("gpu_layers", [-1, 1])
def test_tokens_are_those_of_the_cpus_sampler(case, gpu_layers):
    """In mixed company, in captured steps of several tokens, and alone."""
    c = case("glm4", vocab=2500, layers=2)
    engine = c.engine(gpu_layers=gpu_layers)
    prompts = [prompt(c, 3 + i, seed=i) for i in range(len(SAMPLERS))]
    samplers = lambda: [cuda.Sampler(seed=i, **options) for i, options in enumerate(SAMPLERS)]  # noqa: E731
    want = [run_by_hand(engine, ids, s) for ids, s in zip(prompts, samplers())]
    assert run(engine, prompts, samplers()) == want
    for i in (1, 5):
        assert run(engine, [prompts[i]], [samplers()[i]]) == [want[i]]


@pytest.mark.parametrize("gpu_layers", [-1, 1])
def test_drafts_change_no_token(case, gpu_layers):
    """Each guess has a draw of its own on the GPU, with the penalties and the number that it has in its turn."""
    c = case("glm4", layers=2)
    engine = c.engine(gpu_layers=gpu_layers)
    few = {"logit_bias": dict.fromkeys(range(12), 100.0)}
    options = [{**few, **each} for each in SAMPLERS[:3]]
    prompts = [[i % 12 for i in prompt(c, 20, seed=seed)] for seed in range(len(options))]

    def answers(draft):
        samplers = [cuda.Sampler(seed=i, draft=draft, **each) for i, each in enumerate(options)]
        for sampler, ids in zip(samplers, prompts):
            trusted(sampler).accept(ids)
        return run(engine, prompts, samplers, budget=16), [sampler.drafted for sampler in samplers]

    want, _ = answers(0)
    got, drafted = answers(7)
    assert got == want
    assert sum(count for count, _ in drafted) > sum(right for _, right in drafted) > 0


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "logit_bias": {3: 2.0}}], ids=str)
def test_masked_and_forbidden_tokens_beside_others(case, options):
    """A masked row comes to the CPU; what is forbidden does not keep a row from being drawn on the GPU."""
    c = case("glm4", vocab=2500, layers=2)
    engine = c.engine()
    ids = prompt(c, 5)

    def samplers(forbidden):
        made = [cuda.Sampler(seed=i, **options) for i in range(3)]
        made[0].allow(test_engine.words(*range(0, 2500, 7), vocab=2500))
        made[1].forbid(forbidden)
        return made

    free = run(engine, [ids] * 3, samplers([]))[1]
    got = run(engine, [ids] * 3, samplers(free))
    assert got == [run_by_hand(engine, ids, sampler) for sampler in samplers(free)]
    assert got[0][0] % 7 == 0
    assert got[1][0] != free[0]


def test_more_draws_than_foreseen(case):
    c = case("chatglm", kv_heads=1)
    engine = c.engine(kv_tokens=18 * 64)
    prompts = [prompt(c, 2, seed=i) for i in range(18)]
    before = engine.scratch_bytes()
    samplers = lambda: [cuda.Sampler(seed=i, temperature=1.0, presence_penalty=0.5) for i in range(18)]  # noqa: E731
    got = run(engine, prompts, samplers(), budget=2)
    assert engine.scratch_bytes() > before
    for i in (0, 9, 17):
        assert run(engine, [prompts[i]], [samplers()[i]], budget=2) == [got[i]]


@on_emulator
@pytest.mark.parametrize("options, kernels", [({}, 2), ({"temperature": 1.0}, 4)], ids=str)
def test_a_step_returns_a_token_or_logits(case, options, kernels):
    c = case("chatglm")
    engine, launches = c.engine(), []
    for logprobs in (-1, 0):
        before = cuda.launches()
        run(engine, [prompt(c, 5)], [cuda.Sampler(logprobs=logprobs, **options)], budget=3)
        launches.append(cuda.launches() - before)
    assert launches[0] - launches[1] == 3 * kernels


def test_a_failed_run_takes_back_what_was_drawn(case):
    c = case("chatglm", "F32")
    c.model.tensors["token_embd.weight"][77] = np.inf
    c.gguf = c.open(c.gguf.paths[0] + ".bad", "F32")
    engine, flat = c.engine(), np.zeros(1000, np.float32)
    options = {"temperature": 1.0, "seed": 3, "presence_penalty": 0.5, "logit_bias": {77: 100.0}}
    sampler, sequence = cuda.Sampler(**options), engine.new_sequence()
    w = work(sequence, [1, 2], sampler=sampler, budget=3, next_position=everywhere(2))
    with pytest.raises(RuntimeError, match=r"not finite at token 2 \(id 77\)"):
        engine.run([w], max_ms=1e9)
    assert engine.length(sequence) == 0
    fresh = cuda.Sampler(**options)
    assert [sampler.sample(flat).token for _ in range(9)] == [fresh.sample(flat).token for _ in range(9)]
    w = work(sequence, [1, 2], sampler=cuda.Sampler(logit_bias={c.vocab: 1.0}))
    with pytest.raises(ValueError, match=rf"logit_bias: token {c.vocab}, the vocabulary has {c.vocab}"):
        engine.run([w])
    assert engine.length(sequence) == 0


# ---- what goes wrong


def test_values_that_are_not_finite_are_named(case):
    c = case("chatglm", "F32")
    c.model.tensors["token_embd.weight"][77, 3] = np.inf
    c.gguf = c.open(c.gguf.paths[0] + ".bad", "F32")
    engine = c.engine()
    a, b = engine.new_sequence(), engine.new_sequence()
    with pytest.raises(RuntimeError, match=rf"sequence {b}: the model's numbers are not finite at token 2 \(id 77\)"):
        engine.step([work(a, [1, 2]), work(b, [3, 4, 77])], [1])
    assert engine.length(b) == 0
    assert np.isfinite(engine.step([work(b, [3, 4])], [1])).all()


def test_a_cancel_is_seen(case):
    c = case("chatglm")
    engine = c.engine()
    sequence, flag = engine.new_sequence(), cuda.Cancel()
    flag.set()
    with pytest.raises(Cancelled):
        engine.step([work(sequence, [1, 2])], [1], flag)
    assert engine.length(sequence) == 0
    flag = cuda.Cancel()
    threading.Timer(0.01, flag.set).start()
    with pytest.raises(Cancelled):
        for _ in range(10_000):
            engine.step([work(sequence, prompt(c, LONG))], [], flag)
            engine.truncate(sequence, 0)
    assert engine.length(sequence) == 0
    seen = []
    ops = native_ops(c.recording.ops, c.gguf.dequantize)
    with pytest.raises(Cancelled):
        progress = lambda done, total: seen.append((done, total)) or len(seen) < 4  # noqa: E731
        cuda.Engine(c.gguf, ops, kv_tokens=64, device=0, gpu_layers=1, progress=progress)
    assert len(seen) == 4 and seen[0][0] == 0 and len({total for _, total in seen}) == 1


def test_progress_of_a_load_is_whole(case):
    c, seen = case("llama", "Q4_0"), []
    ops = native_ops(c.recording.ops, c.gguf.dequantize)
    for layers in (-1, 1):
        seen.clear()
        cuda.Engine(c.gguf, ops, kv_tokens=64, device=0, gpu_layers=layers, progress=lambda *now: seen.append(now))
        assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0


def test_what_a_model_needs_is_what_it_takes(case):
    c = case("chatglm", "Q4_0", layers=3)
    for layers in (1, 2, -1):
        need, engine = c.need(gpu_layers=layers), c.engine(gpu_layers=layers)
        assert need["total"] == sum(need[part] for part in ("weights", "kv", "scratch", "reserve"))
        if layers == -1:
            assert (engine.weight_bytes, engine.kv_bytes) == (need["weights"], need["kv"])
            assert engine.scratch_bytes() == need["scratch"]
            engine.step([work(engine.new_sequence(), prompt(c, LONG))], [0])
            assert engine.scratch_bytes() == need["scratch"]  # room enough was made while loading
    totals = [c.need(gpu_layers=n)["total"] for n in range(4)]
    assert totals[0] == 0
    ops = native_ops(c.recording.ops, c.gguf.dequantize)
    for free in [0, *(total + more for total in totals[1:] for more in (-1, 0))]:
        fitting = [layers for layers, total in enumerate(totals) if total <= free]
        assert cuda.layers_that_fit(c.gguf, ops, free, kv_tokens=512) == max(fitting)


def test_too_much_memory_says_how_to_need_less(case):
    c = case("chatglm", "Q4_0", layers=3)
    with pytest.raises(MemoryError, match=r"cuda:0 .*3 of 3 layers need [\d.]+ GB of GPU memory \(weights .*KV cache"):
        c.engine(kv_tokens=1 << 34)
    with pytest.raises(MemoryError, match=r"free; no layer fits; a smaller context takes less"):
        c.engine(kv_tokens=1 << 34, kv_type="q8")
    c.engine().close()


@on_emulator
def test_memory_for_some_layers(case, machine):
    c = case("chatglm", "Q4_0", layers=3)
    machine.memory = c.need(gpu_layers=1)["total"]
    with pytest.raises(MemoryError, match=r"gpu_layers=1 fits, the rest then runs on the CPU; .*kv_type='q8'"):
        c.engine()
    engine = c.engine(gpu_layers=1)
    assert np.isfinite(engine.step([work(engine.new_sequence(), [1, 2])], [1])).all()
    engine.close()
    machine.memory = c.need()["total"]
    engine = c.engine()
    # A step whose logits need more than there is fails alone.
    sequence = engine.new_sequence()
    machine.memory = 0
    with pytest.raises(MemoryError, match="a step of 72 tokens"):
        engine.step([work(sequence, prompt(c, LONG))], range(LONG))
    machine.memory = 1 << 30
    assert np.isfinite(engine.step([work(sequence, prompt(c, LONG))], range(LONG))).all()


@on_emulator
@pytest.mark.parametrize("kernels", [0, 3, 30])
def test_a_lost_gpu_is_an_error_and_the_process_lives(case, machine, kernels):
    c = case("chatglm")
    engine, cpu = c.engine(), c.engine(device=-1)
    sequence = engine.new_sequence()
    for i in range(3):  # so that a graph runs when it happens
        expected = engine.step([work(sequence, [5], i)], [0])
    machine.fail_after = cuda.launches() + kernels
    with pytest.raises(RuntimeError, match=r"cuda:0 .*the GPU failed and the model on it is lost: .*; load it again"):
        for i in range(3, 9):
            engine.step([work(sequence, [5], i)], [0])
    for call in (lambda: engine.step([work(sequence, [5], engine.length(sequence))], [0]), c.engine):
        with pytest.raises(RuntimeError, match=r"cuda|CUDA"):
            call()
    assert np.isfinite(cpu.step([work(cpu.new_sequence(), [5])], [0])).all()
    engine.close()
    machine.fail_after = 2**64 - 1
    cuda.recover()
    engine = c.engine()
    sequence = engine.new_sequence()
    for i in range(3):
        got = engine.step([work(sequence, [5], i)], [0])
    np.testing.assert_array_equal(bits(got), bits(expected))


@on_emulator
@pytest.mark.parametrize(
    "fault, why",
    [
        ({"driver": 0}, "there is no NVIDIA driver on this machine"),
        ({"driver": 12020}, r"the NVIDIA driver is too old: it runs CUDA 12.2, this build of glmlite needs 13.0"),
        ({"devices": 0}, "there is a driver, but no NVIDIA GPU that this process may use"),
    ],
)
def test_no_gpu_says_why(machine, installed, caplog, fault, why):
    for name, value in fault.items():
        setattr(machine, name, value)
    with pytest.raises(RuntimeError, match=f"device 'cuda': {why}; use device='cpu' or 'auto'"):
        placement.backend("cuda")
    with caplog.at_level(logging.INFO, "glmlite"):
        assert placement.backend("auto").__name__ == "glmlite._native"
    assert f"device 'auto': the CPU, because {why.replace(chr(92), '')}" in caplog.text


# ---- glmlite.load


@pytest.fixture
def installed(monkeypatch):
    """As if the emulated module were the package's own."""
    monkeypatch.setitem(sys.modules, "glmlite._cuda", cuda)


@pytest.fixture
def file(tmp_path):
    model = tiny.model("glm4", layers=3)
    return plain_gguf.write(tmp_path / "tiny.gguf", model.metadata, list(model.tensors.items()))


def test_load_on_a_device(installed, file):
    prompt, texts = list(range(40, 60)), {}
    for device, layers, where in [
        ("cpu", None, "cpu"),
        ("cuda", None, "cuda:0"),
        ("cuda:0", 2, "cpu + cuda:0"),
        ("cuda", 0, "cpu"),
        ("cuda", 99, "cuda:0"),
        ("auto", None, "cuda:0"),
    ]:
        with glmlite.load(file, device=device, gpu_layers=layers) as model:
            assert model.device == where
            texts[device, layers] = model.generate(prompt, max_tokens=8, temperature=0).tokens
    assert len({tuple(tokens) for tokens in texts.values()}) == 1


def test_images_are_looked_at_on_the_cpu(installed, tmp_path):
    pytest.importorskip("PIL", reason="needs glmlite[vision]")
    sections = {"glm4.rope.dimension_sections": [4, 6, 6, 0]}
    model = tiny.model("glm4", rope_dim=32, metadata=sections)
    file = plain_gguf.write(tmp_path / "text.gguf", model.metadata, list(model.tensors.items()))
    eyes = tiny.eyes()
    plain_gguf.write(tmp_path / "mmproj.gguf", eyes.metadata, list(eyes.tensors.items()))
    image = np.random.RandomState(0).randint(0, 256, (60, 90, 3)).astype(np.uint8)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "hi"}]}]
    answers = {}
    for device, layers in (("cpu", None), ("cuda", None), ("cuda", 1)):
        with glmlite.load(file, device=device, gpu_layers=layers) as model:
            asked = model.chat_stream(messages, max_tokens=8, temperature=0)
            asked.cancel()
            assert asked.result().finish_reason == "cancelled"
            answers[device, layers] = model.chat(messages, max_tokens=8, temperature=0, ignore_eos=True).tokens
    assert len({tuple(tokens) for tokens in answers.values()}) == 1 and len(answers["cpu", None]) == 8


def test_load_says_what_is_not_there(installed, file):
    with pytest.raises(RuntimeError, match=r"'cuda:7': there is no GPU cuda:7, this machine has cuda:0 \("):
        glmlite.load(file, device="cuda:7")
    with pytest.raises(ValueError, match=r"gpu_layers is -1, expected at least 0"):
        glmlite.load(file, device="cuda", gpu_layers=-1)


@pytest.mark.parametrize(
    "architecture, sizes, why",
    [
        ("glm4", {"head_dim": 160, "heads": 2, "rope_dim": 64}, "attention .*layer 0: heads of 160, the GPU takes 128"),
        ("glm4moe", {}, "route %14 'blk.1.ffn_gate_inp.weight': the GPU has no kernels for it"),
        ("deepseek2", {}, "head_linear %5 'blk.0.attn_k_b.weight': the GPU has no kernels for it"),
    ],
)
def test_auto_runs_on_the_cpu_what_has_no_kernels(installed, tmp_path, caplog, architecture, sizes, why):
    model = tiny.model(architecture, **sizes)
    path = plain_gguf.write(tmp_path / "m.gguf", model.metadata, list(model.tensors.items()))
    with pytest.raises(ValueError, match=why):
        glmlite.load(path, device="cuda")
    with caplog.at_level(logging.INFO, "glmlite"), glmlite.load(path) as loaded:
        assert loaded.device == "cpu"
    assert re.search(f"device 'auto': the CPU, because {why}", caplog.text)


@on_emulator
def test_auto_takes_what_fits(installed, file, machine, caplog):
    with caplog.at_level(logging.INFO, "glmlite"), glmlite.load(file) as model:
        assert model.device == "cuda:0"
    assert "device 'auto': cuda:0; 3 of 3 layers need 0.1" in caplog.text
    caplog.clear()
    machine.memory = 100 << 20
    with caplog.at_level(logging.INFO, "glmlite"), glmlite.load(file) as model:
        assert model.device == "cpu"
    assert "device 'auto': the CPU, because 3 of 3 layers need 0.1" in caplog.text
    assert "gpu_layers=0 would fit" in caplog.text
    with pytest.raises(MemoryError, match="GPU memory"):
        glmlite.load(file, device="cuda")
