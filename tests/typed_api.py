"""Every way to call the public API, for the type checker (`mypy`); nothing here runs.

A line with a `type: ignore` is a mistake that the checker has to find: with strict settings, one that it does not
find is an error, too.
"""

import asyncio
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import glmlite


def loads() -> None:
    model: glmlite.Model = glmlite.load()
    glmlite.load(
        "~/model.gguf", context=8192, parallel=2, kv_tokens=16384, kv_type="q8", threads=4, priority="background"
    )
    glmlite.load(Path("model.gguf"), device="cuda:1", gpu_layers=20, progress=lambda done: done < 0.5)
    glmlite.load("model.gguf", parallel=8, max_queue=32)
    glmlite.load(b"model.gguf", progress=print, cancel=glmlite.Cancel())
    with glmlite.load("builtin") as opened:
        name: str = opened.name
        vocab: int = opened.vocab_size
    version: str = glmlite.__version__
    print(model, name, vocab, version)
    glmlite.load("model.gguf", contxt=8192)  # type: ignore[call-arg]
    glmlite.load(context="8192")  # type: ignore[arg-type]


def rows(model: glmlite.Model) -> None:
    for result in glmlite.batch(model, ["one", "two"], max_tokens=5, at_once=2, ordered=False):
        answer: str | None = result.answer
        print(result.number, answer, result.error, result.values["finish_reason"])
    asked = glmlite.Parameters(temperature=0.0)
    done = glmlite.batch("model.gguf", Path("in.csv"), "out.csv", asked, template="{{ a }}", force=True, restart=True)
    count: int = done.rows + done.failed
    print(count, done.progress.rows_per_second, done.error, done)
    glmlite.batch(
        None, [{"prompt": "x"}], Path("out.parquet"), progress=lambda p: print(p.done), cancel=glmlite.Cancel()
    )
    glmlite.batch(model, ["x"], restart=True)  # type: ignore[call-overload]
    glmlite.batch(model, 5)  # type: ignore[call-overload]
    glmlite.batch(model, ["x"], colum="a")  # type: ignore[call-overload]
    glmlite.batch(model, ["x"], column=5)  # type: ignore[call-overload]


def answers(model: glmlite.Model) -> str:
    done: glmlite.Completion = model.generate("The capital of France", max_tokens=20, temperature=0.0, stop=["\n"])
    done = model.generate([1, 2, 3], logit_bias={5: -1.0}, logprobs=2, stop_ids=[7], ignore_eos=True, seed=None)
    done = model.generate("x", schema={"type": "object"}, max_tokens=9)
    done = model.generate("x", glmlite.Parameters(schema=True), grammar=None)
    model.generate("x", grammar=b"start: /a/")  # type: ignore[arg-type]
    asked = glmlite.Parameters(temperature=0.2, top_p=0.9)
    done = model.generate("x", asked, seed=1, on_progress=lambda read, of: None)
    reply: glmlite.Completion = model.chat(
        [{"role": "user", "content": "你好"}],
        asked,
        tools=[{"name": "now", "parameters": {}}],
        tool_choice="required",
        parallel_tool_calls=False,
        thinking=True,
        effort="low",
        reasoning=True,
        template={"clear_thinking": False},
        overflow="truncate",
        cancel=glmlite.Cancel(),
    )
    ids: list[int] = model.chat_ids([{"role": "user", "content": "hi"}], tools=[], template={"x": 1})
    filled: glmlite.Infill = model.infill("a [MASK] b", max_tokens=4)
    running: glmlite.Generation = model.infill_stream("a ", " b", path="a.py", max_tokens=4)
    print(running.result().text)
    for page in model.ocr(["scan.pdf", b"..."], pages="3-7", dpi=90, cut=True, on_progress=print):
        text: str = page.error or page.text
        print(text, page.seconds.read, [part.box for part in page.blocks])
    model.ocr(Path("card.png"), fields={"name": ""}, cancel=glmlite.Cancel())
    numbers: NDArray[np.float32] = model.logits(ids, all=True, cancel=glmlite.Cancel())
    seconds: float = done.stats.prompt_seconds + reply.stats.generation_seconds
    print(filled.spans[0], numbers.shape, seconds, done.logprobs, done.stop, done.finish_reason.upper())
    calls: tuple[glmlite.ToolCall, ...] = reply.tool_calls
    thought: str | None = reply.reasoning
    print(thought, [call.as_dict()["id"] + call.name + call.arguments for call in calls], reply.message["content"])
    model.chat([], tool_choice=3)  # type: ignore[arg-type]
    model.generate("x", temprature=0.1)  # type: ignore[call-arg]
    model.generate("x", max_tokens="many")  # type: ignore[arg-type]
    model.generate("x", {"seed": 1})  # type: ignore[arg-type]
    model.chat("hi")  # type: ignore[arg-type]
    model.ocr("scan.pdf", fields=["name"])  # type: ignore[arg-type]
    model.chat([], stream=True)  # type: ignore[call-arg]
    for _ in done:  # type: ignore[attr-defined]
        pass
    return reply.text + str(done)


def pieces(model: glmlite.Model) -> None:
    generation: glmlite.Generation = model.stream("x", max_tokens=5)
    for piece in generation:
        text: str = piece.text
        reason: str | None = piece.finish_reason
        print(text, piece.tokens, reason, generation.stats.generated_tokens)
        parts: tuple[glmlite.CallPart, ...] = piece.calls
        print(piece.reasoning.upper(), [(part.index, part.id, part.name, part.arguments) for part in parts])
    with model.chat_stream([{"role": "user", "content": "x"}], seed=1) as chatting:
        first: glmlite.Piece = next(chatting)
        chatting.cancel()
    whole: glmlite.Completion = chatting.result()
    print(first, whole)


def without_waiting(model: glmlite.Model) -> None:
    generation = model.stream("x")
    generation.on_event(lambda: print("something to take"))
    piece: glmlite.Piece | None = generation.take()
    place: int = generation.place
    read: glmlite.Progress = generation.progress
    status: glmlite.SchedulerStatus = model.status()
    print(piece, place, read.done / read.total, status.waiting)
    generation.on_event(print, "more")  # type: ignore[call-arg]


async def coroutines(model: glmlite.Model) -> glmlite.Completion:
    loaded: glmlite.Model = await glmlite.aload("model.gguf", context=512)
    async for piece in loaded.chat_stream([{"role": "user", "content": "x"}]):
        print(piece.text)
    task = asyncio.ensure_future(glmlite.aload("model.gguf"))
    task.cancel()
    await glmlite.aload(contxt=512)  # type: ignore[call-arg]
    return await model.stream("x")


def errors(model: glmlite.Model) -> None:
    try:
        model.generate("x")
    except glmlite.ContextOverflow as error:
        print(error)
    except glmlite.Busy as error:
        print(error.waiting)
    except (glmlite.Closed, glmlite.Cancelled, glmlite.FormatError):
        model.close()
