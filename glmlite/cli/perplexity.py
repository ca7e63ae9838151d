"""`glmlite perplexity`: how well a model predicts a text, and how far quantizing has moved it."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from . import console, running
from .options import Chunk, Chunks, Json, KvType, ModelName, Packed, Text, Threads, find


def perplexity(
    model: ModelName,
    text: Text,
    against: Annotated[
        str | None,
        typer.Option(metavar="F16.gguf", help="Compare with this model, of the same vocabulary.", show_default=False),
    ] = None,
    context: Chunk = 512,
    chunks: Chunks = None,
    prefix: Annotated[
        bool,
        typer.Option(
            "--prefix/--no-prefix",
            help="Begin each chunk as the model's texts begin ([gMASK]<sop>); llama.cpp does not for GLM.",
        ),
    ] = True,
    kv_type: KvType = "f16",
    threads: Threads = None,
    packed: Packed = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts a text, and how far its predictions are from another model's.

    The text is cut into chunks of --context tokens, and the second half of each is scored, as llama.cpp's tool does
    it, so that the figures can be compared: perplexity is exp of the mean negative log-likelihood of a token, lower is
    better. What follows ± is a standard error. With --against, also the Kullback-Leibler divergence from that model and
    how often both have the same likeliest token, in total and by position in the chunk; both models are in memory.

    Models with a bidirectional context (ChatGLM-6B, GLM) read the first half of a chunk as context and are scored on
    the second, which fills the [gMASK] after it; such figures compare only with each other.

    Ctrl-C stops, and the figures of the chunks that are done are printed.

    \b
    Examples:
      glmlite perplexity model.gguf wiki.test.txt
      glmlite perplexity model-q4_k_m.gguf text.txt --against model-f16.gguf --chunks 20
      glmlite perplexity model.gguf text.txt --kv-type q8 --against model.gguf
      glmlite perplexity model.gguf text.txt --json >> figures.jsonl
    """
    from .. import evaluate

    words = running.text_at(text)
    result = None

    with console.progress("loading") as loading, console.progress("reading") as reading:

        def show(done: int, total: int, so_far: Any) -> None:
            nonlocal result
            result = so_far
            reading(done, total, "reading" if result is None else f"perplexity {result.value:.4f}")

        try:
            result = evaluate.perplexity(
                find(model),
                words,
                against=None if against is None else find(against),
                context=context,
                chunks=chunks,
                prefix=prefix,
                kv_type=kv_type,
                threads=threads,
                packed=packed,
                loading=lambda done: loading(done, 1),
                progress=show,
            )
        except KeyboardInterrupt:
            if result is None:
                raise
    names = {"model": model} | ({} if against is None else {"against": against})
    console.write(json.dumps(names | asdict(result)) + "\n" if as_json else _text(names, result))
    if result.chunks < result.of:
        console.note(f"[stopped after {result.chunks} of {result.of} chunks]")
        raise typer.Exit(130)


def _text(names: dict[str, str], result: Any) -> str:
    rows = [("perplexity", f"{result.value:.4f} ± {result.error:.4f}")]
    head = ("position", "tokens", "perplexity")
    if (d := result.divergence) is not None:
        rows += [
            (f"perplexity of {names['against']}", f"{d.perplexity:.4f} ± {d.perplexity_error:.4f}"),
            ("KL divergence, mean", f"{d.mean:.6f} ± {d.error:.6f}"),
            ("KL divergence, median", f"{d.median:.6f}"),
            ("KL divergence, 99%", f"{d.p99:.6f}"),
            ("KL divergence, largest", f"{d.max:.6f}"),
            ("same likeliest token", f"{d.same_top:.2%} ± {d.same_top_error:.2%}"),
        ]
        head += ("KL divergence", "same likeliest")
    table = [head]
    for b in result.positions:
        row = (f"{b.begin}-{b.end - 1}", b.tokens, f"{b.perplexity:.4f}")
        table.append(row if b.divergence is None else (*row, f"{b.divergence:.6f}", f"{b.same_top:.2%}"))
    chunks = f"{names['model']}: {result.tokens} tokens scored, in {result.chunks} chunks of {result.context}\n"
    return chunks + console.columns(rows) + "\n" + console.columns(table, right=range(1, len(head)))
