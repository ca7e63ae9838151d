"""Compare `glmlite perplexity` and `glmlite imatrix` with llama.cpp on a real model and text.

    python tests/oracles/evaluate.py model-f16.gguf text.txt --chunks 8
    llama-imatrix -m model-f32.gguf -f text.txt -c 512 --chunks 8 --process-output -o theirs.gguf
    python tests/oracles/evaluate.py model-f32.gguf text.txt --chunks 8 --imatrix theirs.gguf

Needs the built glmlite module, and llama-cpp-python for the first. Only for models whose texts begin with nothing or
with one token: elsewhere llama.cpp begins chunks in another way. docs/quantization.md has the results.

Perplexity: the same tokens, chunks and scored halves. Two engines that differ by rounding alone give a token's negative
log-likelihood with an error whose mean is zero to first order, and the divergence between them to second order. So the
mean difference may be three of its standard errors and the mean divergence, no more.

Importance: the sums of squares of each column, relative to llama.cpp's, which adds in f32 and whose attention rounds
otherwise: half of the columns within 1e-4, all within 1 %.
"""

import argparse
import sys

import numpy as np

from glmlite import evaluate
from glmlite.convert import imatrix

DEVIATIONS = 3
COLUMN_MEDIAN, COLUMN_MOST = 1e-4, 1e-2


def perplexity(path, text, context, chunks):
    """Prints a table; whether the engines agree."""
    from llama_cpp import Llama

    theirs = Llama(str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False)
    nll, divergence = [], []
    with evaluate.Reader(path, context) as reader:
        work = reader.chunks(text, chunks)
        for chunk in work:
            theirs.reset()
            theirs.eval(chunk.tokens)
            at = chunk.first
            for logits in reader.logits(chunk, lambda done: None):
                for row in logits:
                    q, p = evaluate.log_softmax(row), evaluate.log_softmax(theirs.scores[at])
                    target = chunk.tokens[at + 1]
                    nll.append((-q[target], -p[target]))
                    divergence.append(np.dot(np.exp(p), p - q))
                    at += 1
    ours, theirs = np.array(nll).T
    off = ours - theirs
    allowed = DEVIATIONS * evaluate.standard_error(off) + np.mean(divergence)
    command = evaluate.perplexity(path, text, context=context, chunks=chunks)
    print(f"tokens scored              {len(off)}, in {len(work)} chunks of {context}")
    print(f"perplexity, glmlite        {np.exp(ours.mean()):.5f} ± {command.error:.5f} (command: {command.value:.5f})")
    print(f"perplexity, llama.cpp      {np.exp(theirs.mean()):.5f}")
    print(f"difference of the means    {off.mean():+.3g}, allowed {allowed:.3g}")
    print(f"divergence between them    {np.mean(divergence):.3g}")
    return abs(off.mean()) <= allowed and abs(np.log(command.value) - ours.mean()) <= 1e-9


def importance(path, text, context, chunks, theirs):
    """Prints a table; whether the matrices agree."""
    theirs = imatrix.read(theirs)
    ours = imatrix.collect(path, text, context=context, chunks=chunks, output=True)
    unknown = set(theirs.entries) - set(ours.entries)
    error, worst = [], ("", 0.0)
    for name in theirs.entries.keys() - unknown:
        (x, n), (y, m) = ours.entries[name], theirs.entries[name]
        if n != m:
            print(f"{name}: {n} rows, llama.cpp {m}")
            return False
        error.append(np.abs(x - y) / y)
        worst = max(worst, (name, float(error[-1].max())), key=lambda item: item[1])
    error = np.concatenate(error)
    median, p99, most = np.quantile(error, [0.5, 0.99, 1])
    print(f"tensors, columns           {len(theirs.entries)}, {len(error)}; unknown here: {sorted(unknown) or 'none'}")
    print(f"relative error, median     {median:.3g}")
    print(f"relative error, 99 %       {p99:.3g}")
    print(f"relative error, largest    {most:.3g} ({worst[0]})")
    return not unknown and median <= COLUMN_MEDIAN and most <= COLUMN_MOST


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--imatrix", help="llama.cpp's, of the same text")
    a = parser.parse_args()
    with open(a.text, encoding="utf-8") as file:
        text = file.read()
    if a.imatrix:
        return importance(a.model, text, a.context, a.chunks, a.imatrix)
    return perplexity(a.model, text, a.context, a.chunks)


if __name__ == "__main__":
    sys.exit(not main())
