"""`glmlite imatrix`: which columns of the weights matter."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..files import refuse_to_overwrite
from . import console, running
from .options import Chunk, Chunks, ModelName, Text, Threads, find


def imatrix(
    model: ModelName,
    text: Text,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.gguf",
            help="The file to write [default: MODEL.imatrix.gguf, here].",
            show_default=False,
        ),
    ] = None,
    context: Chunk = 512,
    chunks: Chunks = None,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Also for the matrix that makes the logits.")
    ] = False,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over OUT.gguf if it is there.")] = False,
) -> None:
    """Make an importance matrix, with which `glmlite convert --imatrix` quantizes better.

    The model reads the text in chunks, and the squares of what enters each weight matrix are summed by column. Take the
    model unquantized (or q8_0) and a text of the kind that it is to work with; 50 chunks are plenty. The file has
    llama.cpp's form.

    \b
    Examples:
      glmlite imatrix model-f16.gguf text.txt
      glmlite imatrix model-f16.gguf text.txt -o model.imatrix.gguf --chunks 100
      glmlite convert model-f16.gguf --type q4_k_m --imatrix model.imatrix.gguf
    """
    from .. import convert as conversion

    path = find(model)
    out = out or Path(f"{Path(path).name.removesuffix('.gguf')}.imatrix.gguf")
    for read, what in ((path, "the model"), (text, "the text")):
        if out.exists() and os.path.exists(read) and out.samefile(read):
            raise ValueError(f"{out}: is {what} itself, expected another name")
    refuse_to_overwrite(out, force)
    words = running.text_at(text)
    with console.progress("loading") as loading, console.progress("reading") as reading:
        matrix = conversion.imatrix.collect(
            path,
            words,
            context=context,
            chunks=chunks,
            output=process_output,
            dataset="" if str(text) == "-" else text.name,
            threads=threads,
            loading=lambda done: loading(done, 1),
            progress=reading,
        )
    conversion.imatrix.write(out, matrix)
    console.note(f"{len(matrix.entries)} tensors, {matrix.chunks} chunks of {matrix.chunk_size} tokens")
    console.write(f"{out}\n")
