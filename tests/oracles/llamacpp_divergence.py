"""What quantization does to a real model's predictions: our quantizers against llama.cpp's, type by type.

    python tests/oracles/llamacpp_divergence.py SmolLM2-135M-Instruct.Q4_1.gguf

The model's weights are dequantized, which makes an f32 model; all its matrices are quantized to one type by each
quantizer, without an importance matrix and with one; our engine reads the prompts of tests/data/prompts.json with each
file. Printed is the mean over positions of the KL divergence of the predictions from those of the f32 model, as is the
agreement about the likeliest token. The importance is the mean square of each matrix's inputs while the f32 model
reads this project's documentation, the same for both quantizers. Rows are widened to 768 columns (llamacpp.py's
`widen`), because K formats need multiples of 256. Exits with 1 where ours is worse by more than twice the standard
error of the difference. Needs llama-cpp-python, gguf, numba and the built module.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from glmlite import _native, models, reference
from glmlite.convert import writer
from glmlite.placement import native_ops
from glmlite.quantize import quantize
from glmlite.tokenizer import Tokenizer

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "oracles")]
import llamacpp  # noqa: E402
import llamacpp_quantize  # noqa: E402

CALIBRATION = 4, 512  # texts, tokens of each


def recorded(gguf):
    return models.record(gguf.metadata, {name: tensor.shape for name, tensor in gguf.tensors.items()})


class Calibration(reference.Reference):
    """The numpy executor, which adds up the squares of what its matrices meet."""

    def __init__(self, ops, weights):
        super().__init__(ops, weights)
        self.sums = {}
        self.rows = {}

    def _run(self, op, step, values):
        if op.kind == "linear":
            x = values[op.inputs["x"].id].astype(np.float64)
            for name in op.weights["w"]:
                self.sums[name] = self.sums.get(name, 0) + np.square(x).sum(0)
                self.rows[name] = self.rows.get(name, 0) + len(x)
        return super()._run(op, step, values)


def importances(gguf, tokenizer):
    """Tensor name -> mean square of its inputs' columns."""
    texts, size = CALIBRATION
    docs = sorted((TESTS.parent / "docs").glob("*.md"))
    ids = tokenizer.encode("".join(path.read_text(encoding="utf-8") for path in docs))
    # In f64 already, which the executor would otherwise make of them in every step.
    weights = {name: gguf.dequantize(name).astype(np.float64) for name in gguf.tensors}
    executor = Calibration(recorded(gguf).ops, weights)
    for begin in range(0, texts * size, size):
        work = reference.Work(executor.new_sequence(), ids[begin : begin + size], llamacpp.causal(size))
        executor.step([work], range(size))
        executor.free(work.sequence)
    return {name: (total / executor.rows[name]).astype(np.float32) for name, total in executor.sums.items()}


def theirs(x, type, importance):
    """llama.cpp's quantizer, on all cores."""
    parts = np.array_split(x, os.cpu_count() or 1)
    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(lambda part: llamacpp_quantize.quantize(part, type, importance), parts)))


def write(path, gguf, type, quantizer, weights):
    """The model with all matrices in `type`."""
    entries = []
    for name, info in gguf.tensors.items():
        x = gguf.dequantize(name)
        kind, data = "F32", x
        if x.ndim == 2:
            kind, data = type.upper(), quantizer(x, type, weights.get(name))
        entries.append(writer.Entry(name, info.shape, kind, lambda data=data: [data]))
    writer.write(path, gguf.metadata, entries)


class Engine:
    def __init__(self, path):
        gguf = _native.Gguf(str(path))
        self.engine = _native.Engine(gguf, native_ops(recorded(gguf).ops, gguf.dequantize), kv_tokens=2048)

    def logits(self, ids):
        sequence = self.engine.new_sequence()
        work = _native.Work(sequence, ids, llamacpp.causal(len(ids)))
        rows = np.array(self.engine.step([work], range(len(ids))))
        self.engine.free(sequence)
        return rows


class Exact:
    """Predictions that others are compared with; sums over the vocabulary are f64."""

    def __init__(self, logits):
        logs = logits - logits.max(-1, keepdims=True)
        self.p = np.exp(logs)
        total = self.p.sum(-1, dtype=np.float64)
        self.p /= total[:, None].astype(np.float32)
        self.negative_entropy = (self.p * logs).sum(-1, dtype=np.float64) - np.log(total)
        self.top = logits.argmax(-1)

    def compare(self, logits):
        """(2, positions): the KL divergence sum p (log p - log q), and whether the likeliest token is equal."""
        logs = logits - logits.max(-1, keepdims=True)
        cross = (self.p * logs).sum(-1, dtype=np.float64) - np.log(np.exp(logs).sum(-1, dtype=np.float64))
        return np.stack([self.negative_entropy - cross, logits.argmax(-1) == self.top])


def compare(exact, path, texts):
    engine = Engine(path)
    return np.concatenate([want.compare(engine.logits(ids)) for ids, want in zip(texts, exact)], axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file: SmolLM2's Q4_1")
    parser.add_argument("types", nargs="*", default=llamacpp_quantize.TYPES)
    parser.add_argument("--importance", type=pathlib.Path, help="an .npz to keep it in; read if it is there")
    parser.add_argument("--prompts", type=int, help="only the first N prompts")
    arguments = parser.parse_args()
    gguf = _native.Gguf(arguments.model)
    tokenizer = Tokenizer.from_metadata(gguf.metadata)
    texts = [tokenizer.encode(text) for text in llamacpp.PROMPTS[: arguments.prompts]]
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder) / "f32.gguf", pathlib.Path(folder) / "quantized.gguf"
        llamacpp.widen(gguf, source)
        wide = _native.Gguf(str(source))
        engine = Engine(source)
        exact = [Exact(engine.logits(ids)) for ids in texts]
        del engine
        if arguments.importance is None or not arguments.importance.exists():
            weights = importances(wide, tokenizer)
            if arguments.importance is not None:
                np.savez(arguments.importance, **weights)
        else:
            weights = dict(np.load(arguments.importance))
        print(f"{sum(map(len, texts))} positions; KL divergence of ours, of llama.cpp's, ratio, difference of both and")
        print("its standard error; agreement of ours and of llama.cpp's about the likeliest token\n")
        print("| type | importance | ours | llama.cpp | ratio | difference | top ours | top llama.cpp |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for type in arguments.types:
            for case, given in (("no", {}), ("yes", weights)):
                results = []
                for quantizer in (quantize, theirs):
                    write(target, wide, type, quantizer, given)
                    results.append(compare(exact, target, texts))
                (ours, top), (others, their_top) = results
                difference, error = (ours - others).mean(), (ours - others).std() / len(ours) ** 0.5
                ratio = ours.mean() / others.mean()
                print(
                    f"| {type.upper()} | {case} | {ours.mean():.6f} | {others.mean():.6f} | {ratio:.3f} "
                    f"| {difference:+.6f} ± {error:.6f} | {top.mean():.4f} | {their_top.mean():.4f} |",
                    flush=True,
                )
                if not difference <= 2 * error:
                    wrong.append(f"{type}, importance {case}: worse by {difference:.6f} ± {error:.6f}")
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
