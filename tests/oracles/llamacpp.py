"""Compare with llama.cpp on a real model, prompt by prompt, and store what it said.

    python tests/oracles/llamacpp.py SmolLM2-135M-Instruct.Q4_1.gguf --store tests/data/smollm2_llamacpp.json

Needs llama-cpp-python (built from its source package, so natively), the built glmlite module and numpy.

For every prompt of tests/data/prompts.json: the token ids of both; the mean over positions of the KL divergence of
each engine's distribution from the exact one, which is the numpy executor's on the dequantized weights with f64 sums;
and greedy continuations, which must agree up to a token where the exact logits of the two choices are no further
apart than the two engines' own errors there. Prints a table and exits with 1 if anything is off.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from glmlite import _native, models, reference
from glmlite.engine import native_ops
from glmlite.tokenizer import Tokenizer

PROMPTS = pathlib.Path(__file__).parent.parent / "data" / "prompts.json"
GREEDY = 32


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(exact, other):
    """KL(exact || other), by row."""
    p, q = log_softmax(exact), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1)


def causal(n, start=0):
    return np.stack([np.arange(start, start + n), np.zeros(n)], 1).astype(np.int32)


class Ours:
    def __init__(self, path):
        gguf = _native.Gguf(path)
        recording = models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
        self.tokenizer = Tokenizer.from_metadata(gguf.metadata)
        self.engine = _native.Engine(gguf, native_ops(recording.ops, gguf.dequantize), kv_tokens=4096)
        self.exact = reference.Reference(recording.ops, {n: gguf.dequantize(n) for n in gguf.tensors})

    def logits(self, ids):
        sequence = self.engine.new_sequence()
        rows = self.engine.step([_native.Work(sequence, ids, causal(len(ids)))], range(len(ids)))
        self.engine.free(sequence)
        return rows

    def exact_logits(self, ids, rows=None):
        sequence = self.exact.new_sequence()
        work = reference.Work(sequence, ids, causal(len(ids)))
        logits = self.exact.step([work], range(len(ids)) if rows is None else rows)
        self.exact.free(sequence)
        return logits

    def greedy(self, ids, n):
        sequence = self.engine.new_sequence()
        sampler = _native.Sampler()
        work = _native.Work(sequence, ids, causal(len(ids)), sampler=sampler, budget=n, next_position=(len(ids), 0))
        (samples,) = self.engine.run([work], max_ms=1e9)
        self.engine.free(sequence)
        return [s.token for s in samples]


class LlamaCpp:
    def __init__(self, path):
        import llama_cpp

        self.model = llama_cpp.Llama(path, n_ctx=2048, n_batch=2048, logits_all=True, verbose=False)

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


def explain(ours, theirs, ids, a, b):
    """Where greedy texts a and b part: the exact gap of the two choices, and how large the engines' errors make it."""
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
    if at is None:
        return None
    path = ids + a[:at]
    exact = ours.exact_logits(path, [len(path) - 1])[0]
    pair = [a[at], b[at]]
    errors = [abs(engine.logits(path)[-1][pair] - exact[pair]).max() for engine in (ours, theirs)]
    return {"at": at, "gap": float(abs(np.diff(exact[pair]))[0]), "allowed": float(2 * sum(errors))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--store", help="write the reference that tests/test_smollm2.py reads")
    parser.add_argument("--prompts", type=int, default=None, help="only the first N prompts")
    parser.add_argument("--no-greedy", action="store_true")
    arguments = parser.parse_args()
    ours, theirs = Ours(arguments.model), LlamaCpp(arguments.model)
    stored, wrong = [], 0
    print(f"{'tokens':>6} {'ids':>5} {'KL ours':>10} {'KL theirs':>10} {'ratio':>6}  greedy")
    total = np.zeros(2)
    count = 0
    for text in json.loads(PROMPTS.read_text(encoding="utf-8"))[: arguments.prompts]:
        ids = theirs.tokenize(text)
        same = ours.tokenizer.encode(text) == ids
        exact = ours.exact_logits(ids)
        kl = np.array([divergence(exact, engine.logits(ids)).mean() for engine in (ours, theirs)])
        total += kl * len(ids)
        count += len(ids)
        parted, greedy = None, None
        if not arguments.no_greedy:
            greedy = theirs.greedy(ids, GREEDY)
            parted = explain(ours, theirs, ids, ours.greedy(ids, GREEDY), greedy)
        unexplained = parted is not None and not parted["gap"] <= parted["allowed"]
        wrong += (not same) + unexplained
        print(
            f"{len(ids):6} {'same' if same else 'DIFFER':>5} {kl[0]:10.3e} {kl[1]:10.3e} {kl[0] / kl[1]:6.2f}  "
            + ("equal" if parted is None else str(parted)),
            flush=True,
        )
        stored.append({"ids": ids, "kl": float(kl[1]), "greedy": greedy})
    ratio = total[0] / total[1]
    print(
        f"mean over {count} positions: ours {total[0] / count:.3e}, llama.cpp {total[1] / count:.3e}, ratio {ratio:.3f}"
    )
    wrong += not ratio <= 1.2
    if arguments.store:
        target = pathlib.Path(arguments.store)
        part = target.with_suffix(".part")
        part.write_text(json.dumps(stored, separators=(",", ":")) + "\n", encoding="utf-8")
        part.replace(target)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
