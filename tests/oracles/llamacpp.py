"""Compare with llama.cpp on a real model, and store what it said for tests/test_smollm2.py.

    python tests/oracles/llamacpp.py SmolLM2-135M-Instruct.Q4_1.gguf --store tests/data/smollm2_llamacpp.json
    python tests/oracles/llamacpp.py SmolLM2-135M-Instruct.Q4_1.gguf --formats --prompts 10
    python tests/oracles/llamacpp.py --tiny

Needs llama-cpp-python (built from its source package, so for this machine), the built glmlite module and gguf.

The first compares, for every prompt of tests/data/prompts.json: the token ids; the mean over positions of the KL
divergence of each engine's distribution from the exact one, which is the numpy executor's on the dequantized weights
with f64 sums; and greedy continuations, which may part only where the exact logits of the two choices are so close that
llama.cpp's own rounding there explains it. The second has the model quantized to every format by llama.cpp and compares
the divergences. The third compares ids and logits on tiny random GLMs in F32 with real vocabularies (tests/vocab.py
says where they are). Each prints a table and exits with 1 if anything is off; docs/accuracy.md has the results.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np

from glmlite import _native, models, reference
from glmlite.models.layout import everywhere, in_order
from glmlite.placement import native_ops
from glmlite.tokenizer import Tokenizer

TESTS = pathlib.Path(__file__).resolve().parents[1]
PROMPTS = json.loads((TESTS / "data" / "prompts.json").read_text(encoding="utf-8"))
GREEDY = 32  # tokens
BAR = 1.2  # our divergence over llama.cpp's
DEVIATIONS = 3  # standard errors that explain a greedy choice

# Format -> the name of llama.cpp's mixture; `pure` then gives all matrices the one format.
FORMATS = {"F32": None, "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0"}
FORMATS |= {"Q5_1": "Q5_1", "Q2_K": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q6_K": "Q6_K"}
FORMATS |= {"IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS"}

TINY = [("chatglm", "chatglm3-6b"), ("chatglm", "glm-4-9b-chat"), ("glm4", "glm-4-9b-chat-hf")]
TINY_ERROR = 1e-3  # of the largest logit; both engines round keys and values to f16, by at most 2 ** -11 of each


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(exact, other):
    """KL(exact || other), by row."""
    p, q = log_softmax(exact), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1)


def explained_gap(kl, mean):
    """The largest exact gap of two logits that rounding explains where llama.cpp's divergence is `kl`; `mean`: of all.

    To first order kl is half the variance of its logits' errors, and that of a gap is twice a logit's. By chance kl can
    be small in one place, therefore it counts as the mean at least.
    """
    return DEVIATIONS * np.sqrt(2 * 2 * max(kl, mean))


def causal(n):
    return in_order(0, n)


class Ours:
    """Our engine and the numpy executor with one file's weights."""

    def __init__(self, path):
        gguf = _native.Gguf(str(path))
        recording = models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
        self.tokenizer = Tokenizer.from_metadata(gguf.metadata)
        self.engine = _native.Engine(gguf, native_ops(recording.ops, gguf.dequantize), kv_tokens=4096)
        # In f64 already, which the executor would otherwise make of them in every step.
        weights = {name: gguf.dequantize(name).astype(np.float64) for name in gguf.tensors}
        self.exact = reference.Reference(recording.ops, weights)

    def logits(self, ids):
        sequence = self.engine.new_sequence()
        rows = self.engine.step([_native.Work(sequence, ids, causal(len(ids)))], range(len(ids)))
        self.engine.free(sequence)
        return rows

    def exact_logits(self, texts):
        """The logits of every token of each text: a list of (tokens, vocab)."""
        works = [reference.Work(self.exact.new_sequence(), ids, causal(len(ids))) for ids in texts]
        logits = self.exact.step(works, range(sum(map(len, texts))))
        for work in works:
            self.exact.free(work.sequence)
        return np.split(logits, np.cumsum([len(ids) for ids in texts])[:-1])

    def greedy(self, ids, n):
        sequence = self.engine.new_sequence()
        sampler = _native.Sampler()
        work = _native.Work(
            sequence, ids, causal(len(ids)), sampler=sampler, budget=n, next_position=everywhere(len(ids))
        )
        (samples,) = self.engine.run([work], max_ms=1e9)
        self.engine.free(sequence)
        return [s.token for s in samples]


class LlamaCpp:
    def __init__(self, path, context=2048):
        import llama_cpp

        self.model = llama_cpp.Llama(str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False)

    def close(self):
        self.model.close()

    def tokenize(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[: len(ids)])

    def greedy(self, ids, n):
        self.model.reset()
        self.model.eval(ids)
        tokens = []
        while len(tokens) < n:
            tokens.append(int(self.model.scores[self.model.n_tokens - 1].argmax()))
            self.model.eval(tokens[-1:])
        return tokens


def parting(exact, a, b):
    """Where greedy texts a and b part, and the exact gap of the two choices there; None where they do not.

    exact: logits that are followed by a[0], a[1], ...
    """
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
    return None if at is None else (at, float(abs(exact[at, a[at]] - exact[at, b[at]])))


def compare(path, prompts, store):
    """Prints the table of prompts; what is wrong, as lines."""
    import llama_cpp

    ours, theirs = Ours(path), LlamaCpp(path)
    stored, wrong, parted = [], [], []
    kl = np.zeros((2, 0))
    print(f"{'tokens':>6} {'ids':>6} {'KL ours':>10} {'llama.cpp':>10} {'ratio':>6}  greedy")
    for number, text in enumerate(prompts):
        ids = theirs.tokenize(text)
        same = ours.tokenizer.encode(text) == ids
        if not same:
            wrong.append(f"prompt {number}: ids differ")
        greedy = theirs.greedy(ids, GREEDY)
        whole, first = ids + greedy[:-1], len(ids) - 1
        (exact,) = ours.exact_logits([whole])
        here = np.array([divergence(exact, engine.logits(whole)) for engine in (ours, theirs)])
        greedy_kl = here[1, first:]
        parts = parting(exact[first:], greedy, ours.greedy(ids, GREEDY))
        if parts is not None:
            parted.append((number, greedy_kl[parts[0]], parts[1]))
        kl = np.concatenate([kl, here[:, : len(ids)]], axis=1)
        mine, other = here[:, : len(ids)].mean(axis=1)
        print(
            f"{len(ids):6} {'same' if same else 'DIFFER':>6} {mine:10.3e} {other:10.3e} {mine / other:6.2f}  "
            + ("equal" if parts is None else "part at {}, exact gap {:.3f}".format(*parts)),
            flush=True,
        )
        row = {"ids": ids, "kl": float(f"{other:.6g}"), "greedy": greedy}
        stored.append(row | {"greedy_kl": [float(f"{x:.3g}") for x in greedy_kl]})
    mine, other = kl.mean(axis=1)
    print(f"mean over {kl.shape[1]} positions: ours {mine:.3e}, llama.cpp {other:.3e}, ratio {mine / other:.3f}")
    if not mine <= BAR * other:
        wrong.append(f"ratio of divergences {mine / other:.3f}, should be at most {BAR}")
    for number, at, gap in parted:
        allowed = explained_gap(at, other)
        print(f"prompt {number}: greedy texts part at an exact gap of {gap:.3f}, rounding explains {allowed:.3f}")
        if not gap <= allowed:
            wrong.append(f"prompt {number}: greedy texts part at an exact gap of {gap:.3f}, which is too large")
    if store:
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in stored)
        part = store.with_suffix(".part")
        part.write_text(f'{{"llama_cpp": "{llama_cpp.__version__}", "prompts": [\n{lines}\n]}}\n', encoding="utf-8")
        part.replace(store)
    return wrong


def as_lists(metadata):
    """The metadata as the gguf package takes it."""
    return {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in metadata.items()}


def widen(gguf, path, columns=256):
    """A Llama's weights as an F32 file whose matrices have multiples of `columns` columns, as the K formats need.

    It computes the same: zeros are appended to the hidden state, and groups of heads whose weights are all zero. Norms
    divide by a mean over more columns now, so their weights and eps make up for it.
    """
    import tiny

    metadata = as_lists(gguf.metadata)
    dim, heads, kv_heads = (
        metadata[f"llama.{key}"] for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    head_dim, group = dim // heads, heads // kv_heads
    wide_kv = next(n for n in range(kv_heads, 2**20) if n * group * head_dim % columns == 0)
    wide = wide_kv * group * head_dim
    assert metadata["llama.feed_forward_length"] % columns == 0
    sizes = {dim: wide, kv_heads * head_dim: wide_kv * head_dim}

    def pad(name):
        x = gguf.dequantize(name)
        x = np.pad(x, [(0, sizes.get(n, n) - n) for n in x.shape])
        return (x * np.sqrt(dim / wide)).astype(np.float32) if "norm" in name else x

    metadata |= {
        "llama.embedding_length": wide,
        "llama.attention.head_count": wide_kv * group,
        "llama.attention.head_count_kv": wide_kv,
        "llama.attention.layer_norm_rms_epsilon": metadata["llama.attention.layer_norm_rms_epsilon"] * dim / wide,
    }
    tiny.write(path, tiny.Tiny(metadata, {name: pad(name) for name in gguf.tensors}))


def quantize(source, target, format):
    """`source` with all matrices in `format`, by llama.cpp."""
    import llama_cpp

    llama_cpp._logger.set_verbose(False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{FORMATS[format]}")
    params.pure = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise RuntimeError(f"{target}: llama.cpp could not quantize")
    types = {tensor.type for tensor in _native.Gguf(str(target)).tensors.values() if len(tensor.shape) == 2}
    if types != {format}:
        raise RuntimeError(f"{target}: its matrices are {types}, should be {format}")


def compare_formats(path, prompts, formats):
    """Prints the table of formats; what is wrong, as lines."""
    wrong = []
    gguf = _native.Gguf(str(path))
    tokenizer = Tokenizer.from_metadata(gguf.metadata)
    texts = [tokenizer.encode(text) for text in prompts]
    print("| format | ours | llama.cpp | ratio | positions |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "F32.gguf"
        widen(gguf, source)
        for format in formats:
            target = source.with_name(f"{format}.gguf")
            if target != source:
                quantize(source, target, format)
            ours, theirs = Ours(target), LlamaCpp(target)
            kl = [
                [divergence(exact, engine.logits(ids)) for engine in (ours, theirs)]
                for ids, exact in zip(texts, ours.exact_logits(texts))
            ]
            mine, other = np.concatenate(kl, axis=1).mean(axis=1)
            count = sum(map(len, texts))
            print(f"| {format} | {mine:.2e} | {other:.2e} | {mine / other:.2f} | {count} |", flush=True)
            if not mine <= BAR * other:
                wrong.append(f"{format}: ratio of divergences {mine / other:.3f}, should be at most {BAR}")
            theirs.close()
            if target != source:
                target.unlink()
    return wrong


def compare_tiny(prompts):
    """Prints the table of tiny GLMs; what is wrong, as lines."""
    import tiny
    import vocab

    wrong = []
    print(f"{'architecture':>12} {'vocabulary':>18} {'ids':>10} {'error':>9}")
    for architecture, name in TINY:
        words = as_lists(vocab.metadata(name))
        model = tiny.model(architecture, dim=128, vocab=len(words["tokenizer.ggml.tokens"]), metadata=words)
        with tempfile.TemporaryDirectory() as folder:
            path = tiny.write(pathlib.Path(folder) / "tiny.gguf", model)
            ours, theirs = Ours(path), LlamaCpp(path)
            texts = [theirs.tokenize(text) for text in prompts]
            same = [ours.tokenizer.encode(text) == ids for text, ids in zip(prompts, texts)]
            error = max(
                np.max(np.abs(ours.logits(ids) - logits)) / np.max(np.abs(logits))
                for ids, logits in ((ids, theirs.logits(ids)) for ids in texts)
            )
            theirs.close()
        print(f"{architecture:>12} {name:>18} {f'{sum(same)}/{len(same)}':>10} {error:9.1e}", flush=True)
        if not all(same):
            wrong.append(f"{architecture}, {name}: ids of prompt {same.index(False)} differ")
        if not error <= TINY_ERROR:
            wrong.append(f"{architecture}, {name}: logits differ by {error:.1e} of the largest")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a GGUF file; SmolLM2's Q4_1 is what the stored reference is of")
    parser.add_argument("--store", type=pathlib.Path, help="write the reference that tests/test_smollm2.py reads")
    parser.add_argument("--prompts", type=int, help="only the first N prompts")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, help="compare these formats, or all if none is named")
    parser.add_argument("--tiny", action="store_true", help="compare tiny GLMs, no file is needed")
    arguments = parser.parse_args()
    prompts = PROMPTS[: arguments.prompts]
    sys.path.insert(0, str(TESTS))
    if arguments.tiny:
        wrong = compare_tiny(prompts)
    elif arguments.model is None:
        parser.error("the model's file is missing")
    elif arguments.formats is None:
        wrong = compare(arguments.model, prompts, arguments.store)
    else:
        wrong = compare_formats(arguments.model, prompts, arguments.formats or FORMATS)
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
