"""`glmlite bench`: how fast a model is on this machine, and how much of the machine that is."""

import json
import math
import statistics
import time
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from ..models.layout import everywhere, in_order
from ..placement import gpu_index, kv_bytes_per_token, matrices_of_a_token
from . import console, running
from .cache import last_level_bytes
from .options import Device, GpuLayers, Json, KvType, Loading, ModelName, Packed, Threads

CHUNK = 512  # tokens of the prompt in one step


def bench(
    model: ModelName,
    prompt: Annotated[int, typer.Option("--prompt", "-p", min=0, metavar="N", help="Tokens of the prompt.")] = 512,
    generate: Annotated[int, typer.Option("--generate", "-n", min=0, metavar="N", help="Tokens to generate.")] = 64,
    depth: Annotated[
        int, typer.Option("--depth", "-d", min=0, metavar="N", help="Tokens in the cache before either.")
    ] = 0,
    repeat: Annotated[int, typer.Option("--repeat", "-r", min=1, metavar="N", help="Times to measure each.")] = 5,
    kv_type: KvType = "f16",
    threads: Threads = None,
    device: Device = None,
    gpu_layers: GpuLayers = None,
    packed: Packed = None,
    as_json: Json = False,
) -> None:
    """Measure reading a prompt and generating, each on its own, without sampling's or the tokenizer's help.

    Reading is compared with the machine's int8 peak, generating with its read bandwidth, both measured before every
    repetition with the same threads; on a GPU with its bf16 rate and the bandwidth of a copy. A token that is generated
    reads all weights and the keys and values of the tokens before it. Medians of the repetitions are reported, with
    the least and the most.

    \b
    Examples:
      glmlite bench smollm2
      glmlite bench model.gguf -p 512 -n 128 -d 4096 -t 4
      glmlite bench model.gguf --device cuda --gpu-layers 20
      glmlite bench model.gguf --json >> speed.jsonl
    """
    if not prompt and not generate:
        raise typer.BadParameter("nothing to measure: --prompt and --generate are 0")
    context = depth + max(prompt, 1) + generate + 1
    loading = Loading(
        context=context, kv_type=kv_type, threads=threads, device=device, gpu_layers=gpu_layers, packed=packed
    )
    with running.opened(model, loading) as opened:
        if opened.context < context:
            raise ValueError(f"{model}: {context} tokens to measure, the model was trained for {opened.context}")
        facts = measure(opened, prompt, generate, depth, repeat, kv_type)
    facts = {"model": model, "kv_type": kv_type, **facts}
    console.write(json.dumps(facts) + "\n" if as_json else _text(facts))


class Cost(NamedTuple):
    """What a token costs: bytes of weights that generating it reads, integer operations that reading it takes.

    cached: bytes of keys and values that generating it reads of each token before it.
    """

    bytes: int
    operations: int
    cached: int


def measure(model: Any, prompt: int, generate: int, depth: int, repeat: int, kv_type: str = "f16") -> dict[str, Any]:
    """Tokens per second at `depth`, and the fraction of what the machine can do."""
    native, engine = model.debug
    cost = cost_per_token(native.Gguf(model.path), kv_type)
    generated = cost.bytes + cost.cached * (depth + generate / 2)
    sequence = engine.new_sequence()
    limits: list[Limits] = []
    results: dict[str, Any] = {}
    try:
        read(engine, native, sequence, 0, depth)
        for name, count, run in (("prompt", prompt, read), ("generate", generate, write)):
            if not count:
                continue
            rates = []
            for _ in range(repeat + 1):  # the first warms up
                limits.append(machine(model))
                engine.truncate(sequence, depth)
                begin = time.perf_counter()
                run(engine, native, sequence, depth, count)
                rates.append(count / (time.perf_counter() - begin))
            item = {
                "tokens": count,
                "tokens_per_s": statistics.median(rates[1:]),
                "least": min(rates[1:]),
                "most": max(rates[1:]),
            }
            turns = list(zip(rates[1:], limits[-repeat:], strict=True))
            if name == "prompt":
                shares = [rate * cost.operations / (limit.peak * 1e9) for rate, limit in turns]
                item[f"{limits[0].kind}_peak_fraction"] = statistics.median(shares)
            else:
                shares = [rate * generated / (limit.bandwidth * 1e9) for rate, limit in turns]
                item["bandwidth_fraction"] = statistics.median(shares)
            results[name] = item
    finally:
        engine.free(sequence)
    return {
        "device": model.device,
        "isa": engine.isa,
        "threads": engine.threads,
        "depth": depth,
        "weight_bytes": engine.weight_bytes,
        "bandwidth_gb_s": statistics.median(limit.bandwidth for limit in limits),
        f"{limits[0].kind}_peak_gops": statistics.median(limit.peak for limit in limits),
        "fits_cache": generated <= limits[0].cache,
        **results,
    }


class Limits(NamedTuple):
    """What the machine can do: GB/s, and operations of a `kind`, in 1e9 a second; bytes of its cache, 0: unknown."""

    bandwidth: float
    kind: str
    peak: float
    cache: int = 0


def machine(model: Any) -> Limits:
    """Measured now, on the device that runs all of the model; of a model on both, the CPU's."""
    from .. import _native

    if model.device.startswith("cuda"):
        index = gpu_index(model.device)
        native = model.debug.native
        rate = native.machine_bf16_rate(index) or math.inf  # there is none before sm_80
        return Limits(native.machine_bandwidth(index), "bf16", rate)
    threads = model.debug.engine.threads
    peak = _native.machine_int8_peak(threads)
    return Limits(_native.machine_bandwidth(threads), "int8", peak, last_level_bytes())


def cost_per_token(gguf: Any, kv_type: str = "f16") -> Cost:
    """Counted over the matrices that a token is multiplied with.

    Reading multiplies no token with what comes after `select`: the output's matrix is for rows whose logits are wanted.
    """
    from ..models import record

    nbytes = operations = 0.0
    tensors = gguf.tensors
    ops = record(gguf.metadata, {name: tensor.shape for name, tensor in tensors.items()}).ops
    select = next((op.out.id for op in ops if op.kind == "select"), math.inf)
    for op, tensor, share in matrices_of_a_token(ops, tensors):
        nbytes += share * tensor.nbytes
        operations += 0 if op.out.id > select else 2 * share * math.prod(tensor.shape)
    return Cost(round(nbytes), round(operations), kv_bytes_per_token(gguf, ops, kv_type))


def read(engine: Any, native: Any, sequence: int, start: int, count: int) -> None:
    """Enters `count` tokens after `start` others, in chunks, without logits."""
    for begin in range(start, start + count, CHUNK):
        index = np.arange(begin, min(begin + CHUNK, start + count), dtype=np.int32)
        engine.run([native.Work(sequence, 1 + index % (engine.vocab - 1), in_order(begin, len(index)))])


def write(engine: Any, native: Any, sequence: int, start: int, count: int) -> None:
    """Generates `count` tokens after `start` others, the likeliest each time."""
    sampler = native.Sampler(temperature=0.0)
    token = np.ones(1, np.int32)
    work = native.Work(
        sequence, token, in_order(start, 1), sampler=sampler, budget=count, next_position=everywhere(start + 1)
    )
    (samples,) = engine.run([work], max_ms=math.inf)
    if len(samples) != count:
        raise RuntimeError(f"bench: {len(samples)} tokens generated, should be {count}")


def _share(fraction: float, what: str, cached: bool) -> str:
    """A fraction of a limit in words, where it is one."""
    if cached:
        return "fits the CPU's cache: bandwidth is no limit"
    return f"{fraction:.0%} of {what}" if fraction <= 1 else f"all of {what}, as it was measured"


def _text(facts: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = []
    kind = "bf16" if "bf16_peak_gops" in facts else "int8"
    for name, limit, what in (
        ("prompt", f"{kind}_peak_fraction", f"the {kind} peak"),
        ("generate", "bandwidth_fraction", "the read bandwidth"),
    ):
        if name in facts:
            item = facts[name]
            rows.append(
                (
                    f"{name} {item['tokens']} at {facts['depth']}",
                    f"{item['tokens_per_s']:.1f} tokens/s",
                    f"({item['least']:.1f} to {item['most']:.1f})",
                    _share(item[limit], what, name == "generate" and facts["fits_cache"]),
                )
            )
    head = (
        f"{facts['model']}: {console.size(facts['weight_bytes'])} of weights, {facts['isa']}, "
        f"{facts['threads']} threads; machine: {facts['bandwidth_gb_s']:.1f} GB/s, "
        f"{facts[kind + '_peak_gops']:.0f} GOPS {kind}\n"
    )
    return head + console.columns(rows, right=[1])
