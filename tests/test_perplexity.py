"""`glmlite perplexity`: its figures against logits of the numpy executor and against plain loops; its edges."""

import io
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import glmlite
from glmlite import evaluate
from glmlite.cli import console, main
from glmlite.errors import Cancelled
from glmlite.evaluate import perplexity
from glmlite.models import record
from glmlite.reference import Reference, Work
from glmlite.tokenizer import Tokenizer

TEXT = "the other hell in there, her ether; where all the thin [gMASK] letters fell in the end of it. " * 3
CAUSAL = ["chatglm", "glm4", "llama"]
BIDIRECTIONAL = ["chatglm1", "glm"]
CONTEXT = 64
# What the logits of the engine and of the numpy executor may differ by, of a row's largest (tests/test_engine.py).
WHOLE = 5e-3


def chunks_of(model, context=CONTEXT, text=TEXT, prefix=True):
    """(tokens, index of the first that is scored, bidirectional tokens) of a text's chunks, written a second time."""
    ids = Tokenizer.from_metadata(model.metadata).encode(text, special=False)
    name = model.metadata["general.architecture"]
    found = []
    if name in (*CAUSAL, *tiny.MIXTURES):
        begin = [tiny.token_id(model, t) for t in ("[gMASK]", "<sop>")] if prefix and name != "llama" else []
        ids = begin + ids
        while len(ids) >= context:
            found.append((begin + ids[len(begin) : context], context // 2 + 1, 0))
            ids = ids[context:]
        return found
    before, after = {"chatglm1": ([], ["[gMASK]", "<sop>"])}.get(
        name, (["[CLS]"], ["[gMASK]", "<|endoftext|>", "<|startofpiece|>"])
    )
    before, after = ([tiny.token_id(model, t) for t in tokens] for tokens in (before, after))
    size = context - len(before) - len(after)
    while len(ids) >= size:
        head = before + ids[: size // 2] + after
        found.append((head + ids[size // 2 : size], len(head), len(head) - 1))
        ids = ids[size:]
    return found


def numpy_trace(model, tokens, context):
    """The values of every op by its id, (T, width), by the numpy executor."""
    recording = record(model.metadata, model.shapes)
    layout = recording.layout(tokens, lambda text: tiny.token_id(model, text))
    assert layout.context == context
    reference = Reference(recording.ops, model.tensors, kv_dtype=np.float16)
    sequence = reference.new_sequence()
    steps = []
    for begin, end, visible in ((0, context, context), (context, len(tokens), 0)):
        if begin < end:
            work = Work(sequence, tokens[begin:end], layout.positions[begin:end], visible)
            steps.append(reference.trace([work], range(end - begin)))
    return {ops[0][0].out.id: np.concatenate([value for _, value in ops]) for ops in zip(*steps)}


def log_softmax(row):
    row = [float(x) for x in row]
    largest = max(row)
    total = math.fsum(math.exp(x - largest) for x in row)
    return [x - largest - math.log(total) for x in row]


@pytest.fixture
def native():
    from glmlite import _native

    return _native


def close(got, want, relative=1e-9):
    return abs(got - want) <= relative * abs(want)


# ---- the figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CAUSAL + BIDIRECTIONAL)
def test_equals_the_numpy_executor(executor, tiny_file, architecture):
    model = tiny.model(architecture)
    nll, bound = [], []
    chunks = chunks_of(model)
    assert len(chunks) >= 3
    for tokens, first, context in chunks:
        assert len(tokens) == CONTEXT
        logits = numpy_trace(model, tokens, context)[record(model.metadata, model.shapes).ops[-1].out.id]
        for i in range(first, len(tokens)):
            nll.append(-log_softmax(logits[i - 1])[tokens[i]])
            # The token's own logit and the logarithm of the sum are each off by no more than the row's worst logit.
            bound.append(2 * WHOLE * np.abs(logits[i - 1]).max())
    got = perplexity(tiny_file(architecture), TEXT, context=CONTEXT)
    assert (got.tokens, got.chunks, got.of, got.context) == (len(nll), len(chunks), len(chunks), CONTEXT)
    assert abs(math.log(got.value) - np.mean(nll)) <= np.mean(bound)
    assert close(got.error / got.value, np.std(nll, ddof=1) / len(nll) ** 0.5, 0.05)
    assert got.divergence is None


def test_every_figure_against_plain_loops(executor, tiny_file):
    """From the same engine's logits, so that nothing is left to rounding."""
    paths = tiny_file("chatglm"), tiny_file("chatglm", eps=1e-3)
    scored = []
    with glmlite.load(paths[0]) as model, glmlite.load(paths[1]) as other:
        for tokens, first, _ in chunks_of(tiny.model("chatglm")):
            ours, theirs = (m.logits(tokens, all=True) for m in (model, other))
            for i in range(first, len(tokens)):
                q, p = log_softmax(ours[i - 1]), log_softmax(theirs[i - 1])
                divergence = math.fsum(math.exp(b) * (b - a) for a, b in zip(q, p))
                scored.append((i, -q[tokens[i]], -p[tokens[i]], divergence, np.argmax(p) == np.argmax(q)))
    index, nll, nll_other, divergence, same = map(np.array, zip(*scored))
    n = len(nll)
    assert 0 < same.sum() < n
    got = perplexity(paths[0], TEXT, against=paths[1], context=CONTEXT)
    d = got.divergence
    assert close(got.value, math.exp(math.fsum(nll) / n))
    assert close(got.error, got.value * np.std(nll, ddof=1) / math.sqrt(n))
    assert close(d.perplexity, math.exp(math.fsum(nll_other) / n))
    assert close(d.perplexity_error, d.perplexity * np.std(nll_other, ddof=1) / math.sqrt(n))
    assert close(d.mean, math.fsum(divergence) / n)
    assert close(d.error, np.std(divergence, ddof=1) / math.sqrt(n))
    assert close(d.median, np.median(divergence)) and close(d.max, max(divergence))
    below, above = sorted(divergence)[-2:]  # 0.99 * 92 = 91.08, between the last two of 93
    assert n == 93 and close(d.p99, below + 0.08 * (above - below))
    assert d.same_top == same.sum() / n
    assert close(d.same_top_error, math.sqrt(d.same_top * (1 - d.same_top) / (n - 1)))

    assert [(b.begin, b.end) for b in got.positions] == [(33, 41), (41, 48), (48, 56), (56, 64)]
    for b in got.positions:
        here = [(b.begin <= i < b.end) for i in index]
        assert b.tokens == sum(here)
        assert close(b.perplexity, math.exp(np.mean(nll[here])))
        assert close(b.divergence, np.mean(divergence[here])) and close(b.same_top, np.mean(same[here]))


def test_a_model_does_not_differ_from_itself(native, tiny_file):
    path = tiny_file("llama")
    got = perplexity(path, TEXT, against=path, context=CONTEXT)
    d = got.divergence
    assert (d.perplexity, d.mean, d.max, d.same_top) == (got.value, 0, 0, 1)


def test_pieces_change_nothing(native, tiny_file, monkeypatch):
    for architecture in ("chatglm", "glm"):
        whole = perplexity(tiny_file(architecture), TEXT, context=CONTEXT, threads=1)
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "STEP", 5)
            patch.setattr(evaluate, "LOGITS", 1)
            assert perplexity(tiny_file(architecture), TEXT, context=CONTEXT, threads=2) == whole


def test_without_prefix_chunks_begin_with_the_text(native, tiny_file):
    chunks = chunks_of(tiny.model("chatglm"), prefix=False)
    with glmlite.load(tiny_file("chatglm")) as model:
        rows = [(model.logits(tokens, all=True)[i - 1], tokens[i]) for tokens, i, _ in chunks for i in range(i, 64)]
    want = math.exp(np.mean([-log_softmax(row)[token] for row, token in rows]))
    got = perplexity(tiny_file("chatglm"), TEXT, context=CONTEXT, prefix=False)
    assert close(got.value, want)
    assert not close(perplexity(tiny_file("chatglm"), TEXT, context=CONTEXT).value, want, 1e-4)


# ---- the edges ---------------------------------------------------------------------------------------------------


def test_only_the_first_chunks(native, tiny_file):
    got = perplexity(tiny_file(), TEXT, context=CONTEXT, chunks=2)
    assert (got.chunks, got.of) == (2, 2)
    assert got.tokens == 2 * (CONTEXT // 2 - 1)


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("the end", {}, r"the text has \d tokens, a chunk 64: take a longer text, or a smaller context"),
        ("", {}, r"the text has 2 tokens, a chunk 64"),
        (TEXT, {"context": 15}, "context is 15, expected at least 16"),
        (TEXT, {"context": 257}, "context is 257, the model was trained for 256"),
        (TEXT, {"chunks": 0}, "chunks is 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_named(native, tiny_file, text, options, error):
    with pytest.raises(ValueError, match=error):
        perplexity(tiny_file(), text, **{"context": CONTEXT} | options)


def test_vocabularies_that_differ(native, tiny_file):
    with pytest.raises(ValueError, match=r"has a vocabulary of 400 tokens, .* of 384: only models of one vocabulary"):
        perplexity(tiny_file(), TEXT, context=CONTEXT, against=tiny_file(vocab=400))
    tokens = tiny.model("chatglm").metadata["tokenizer.ggml.tokens"]
    other = tiny_file(metadata={"tokenizer.ggml.tokens": [*tokens[:-1], "another"]})
    with pytest.raises(ValueError, match=r"token 383 is 'another', in .* '\[PAD\d+\]': only models of one vocabulary"):
        perplexity(tiny_file(), TEXT, context=CONTEXT, against=other)


def test_progress_has_the_figures_so_far(executor, tiny_file):
    seen = []
    final = perplexity(
        tiny_file(), TEXT, context=CONTEXT, against=tiny_file(seed=1), progress=lambda *now: seen.append(now)
    )
    done, totals, results = zip(*seen)
    assert list(done[-1:]) == [final.chunks * CONTEXT] == list(set(totals))
    assert max(done) == done[-1] and results[-1] == final
    first = next(result for result in results if result is not None)
    assert (first.chunks, first.of, first.tokens) == (1, final.of, CONTEXT // 2 - 1)


def test_progress_cancels(native, tiny_file):
    with pytest.raises(Cancelled):
        perplexity(tiny_file(), TEXT, context=CONTEXT, progress=lambda *_: False)


def test_ctrl_c_ends_a_step(executor, tiny_file):
    with evaluate.Reader(tiny_file(), CONTEXT) as reader:
        flags = []

        def endless(cancel):
            flags.append(cancel)
            while not cancel.is_set:
                pass
            raise Cancelled("so it should be")

        def interrupted(part):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reader.run(endless, interrupted)
        assert flags[0].is_set


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_command(native, tiny_file, text_file, capsys):
    model, other = str(tiny_file()), str(tiny_file(seed=1))
    assert main(["perplexity", model, text_file, "-c", "64"]) == 0
    out = capsys.readouterr().out
    want = perplexity(model, TEXT, context=CONTEXT)
    assert f"perplexity  {want.value:.4f} ± {want.error:.4f}" in out and "KL" not in out
    assert main(["perplexity", model, text_file, "-c", "64", "--against", other]) == 0
    out = capsys.readouterr().out
    want = perplexity(model, TEXT, context=CONTEXT, against=other)
    lines = [line.split() for line in out.splitlines()]
    assert ["KL", "divergence,", "median", f"{want.divergence.median:.6f}"] in lines
    b = want.positions[0]
    assert ["33-40", "24", f"{b.perplexity:.4f}", f"{b.divergence:.6f}", f"{b.same_top:.2%}"] in lines


def test_command_json(native, tiny_file, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode()), encoding="utf-8"))
    model = str(tiny_file())
    assert main(["perplexity", model, "-", "-c", "64", "--chunks", "1", "--against", model, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert (facts["model"], facts["against"], facts["chunks"], facts["tokens"]) == (model, model, 1, 31)
    assert facts["divergence"]["mean"] == 0 and len(facts["positions"]) == 4


@pytest.mark.parametrize("chunks", [0, 1])
def test_command_stopped_prints_what_is_known(native, tiny_file, text_file, capsys, monkeypatch, chunks):
    """Ctrl-C: the figures of whole chunks; nothing if there is none."""
    first = perplexity(tiny_file(), TEXT, context=CONTEXT, chunks=1)
    real = evaluate.Reader.logits
    begun = []

    def interrupted(*arguments):
        begun.append(1)
        if len(begun) > chunks:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(evaluate.Reader, "logits", interrupted)
    assert main(["perplexity", str(tiny_file()), text_file, "-c", "64"]) == 130
    out, err = capsys.readouterr()
    if chunks:
        assert f"perplexity  {first.value:.4f} ±" in out
        assert err == "[stopped after 1 of 3 chunks]\n"
    else:
        assert (out, err) == ("", "")


def test_command_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    assert main(["perplexity", "model.gguf", str(tmp_path / "bad.txt")]) == 1
    assert capsys.readouterr().err.endswith("bad.txt: byte 3 is not UTF-8\n")
    assert main(["perplexity", "model.gguf", str(tmp_path / "none.txt")]) == 1
    assert capsys.readouterr().err.endswith("none.txt: No such file or directory\n")
    assert main(["perplexity", "model.gguf", "text.txt", "-c", "4"]) == 2


def test_the_bar_shows_the_running_value(monkeypatch):
    """On a terminal only; elsewhere the third argument is taken and nothing is shown."""
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False))
    with console.progress("reading") as show:
        assert show(1, 2, "perplexity 3.5") is None
