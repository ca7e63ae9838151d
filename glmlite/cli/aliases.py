"""What people type who come from other programs: taken where it means the same, told what it is called here where not.

One table for options, one for their values, one for commands. Names are those of llama.cpp, ollama, mlx-lm,
chatglm.cpp and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer.core

from .. import builtin
from . import arguments, console

# Ours, and what it is called elsewhere.
OPTIONS = {
    "--temperature": "--temp -temp",
    "--max-tokens": "--n-predict --predict --num-predict --max-new-tokens --n-tokens",
    "--context": "--ctx-size --ctx --n-ctx --num-ctx --context-size --context-length --max-context-length "
    "--max-kv-size --max-seq-len",
    "--threads": "--n-threads --num-threads -tb --threads-batch",
    "--gpu-layers": "-ngl --n-gpu-layers --num-gpu",
    "--repetition-penalty": "--repeat-penalty",
    "--seed": "--rng-seed",
    "--stop": "-r --reverse-prompt --stop-sequence",
    "--system": "-sys --sys --system-prompt --system-message",
    "--file": "--prompt-file",
    "--raw": "-no-cnv --no-conversation --ignore-chat-template",
    "--think": "--enable-thinking",
    "--no-think": "--nothink --no-thinking --disable-thinking",
    "--stats": "--verbose --timings --show-timings",
    "--kv-type": "-ctk -ctv --cache-type-k --cache-type-v --kv-bits --kv-cache-type",
    "--device": "-dev",
    "--type": "--outtype --ftype --quantize --quantization --dtype",
    "--lora": "--lora-model --adapter-path --lora-base-path",
    "--force": "--overwrite",
}
# Options elsewhere that are arguments here, by the argument's place: the model, then the text or the file to write.
MODEL = ("-m", "--model", "--model-path", "--hf-path", "--input")
TEXT = ("-p", "--prompt", "--text")
FILE = ("-f", "--file")
OUT = ("-o", "--out", "--outfile", "--output")

# What has no place here, and why.
_SAMPLING = "there is no such way of sampling here; --temperature, --top-k, --top-p, --min-p and penalties there are"
_FROM_FILE = "the file says it"
_ALWAYS = "leave it out: it is always so"
_OWN = "leave it out: it is chosen by itself"
_NO_GRAMMAR = "not in the commands (schema= and grammar= in Python, response_format of `glmlite serve`)"
_CHAT = "leave it out: `glmlite chat` is the conversation, `glmlite run` the single answer"
_SERVER = "that is for `glmlite serve`"
NOT_HERE = {
    "-i --interactive --interactive-first -cnv --conversation -st --single-turn --multiline-input -mli": _CHAT,
    "--color --simple-io --nowordwrap": "leave it out: answers are plain text",
    "--no-display-prompt --hidethinking": "leave it out: only the answer is shown",
    "--mlock --no-mmap --mmap --low-vram --cache-prompt --jinja -fa --flash-attn --no-perf": _ALWAYS,
    "-b --batch-size -ub --ubatch-size --numa --prefill-step-size --keepalive --keep --split-mode -sm": _OWN,
    "--mirostat --mirostat-lr --mirostat-ent --typical --typical-p --tfs --dynatemp-range --dry-multiplier "
    "--xtc-probability --samplers --sampling-seq --num-beams --do-sample --greedy": _SAMPLING,
    "--repeat-last-n": "256 tokens count for the penalties; `penalty_window` in Python",
    "--rope-scaling --rope-freq-base --rope-freq-scale --yarn-orig-ctx --chat-template --chat-template-file "
    "--eps --gqa": _FROM_FILE,
    "--grammar --grammar-file --json-schema --format -j": _NO_GRAMMAR,
    "--main-gpu -mg --tensor-split -ts": "here it is --device cuda:N, one GPU",
    "--context-shift --no-context-shift": "here it is --overflow truncate or error",
    "--reasoning-budget --reasoning-format": "here it is --think or --no-think",
    "--lora": "merge it with `glmlite convert CHECKPOINT --lora DIR`",
    "-l --max-length": "here it is --max-tokens for the answer, --context for prompt and answer together",
    "-hf -hfr --hf-repo --hf-file -mu --model-url": "`glmlite convert owner/name` downloads a checkpoint",
    "--trust-remote-code": "leave it out: no code of a checkpoint is run",
    "--load-in-4bit --load-in-8bit": "here the file has its type: `glmlite convert CHECKPOINT --type q4_k_m`",
    "--kl-divergence --kl-divergence-base": "here it is --against F16.gguf",
    "-v --verbose-prompt --log-disable --log-file": "there is no log; --stats says how fast it was",
    "-e --escape": "leave it out: the text is taken as the shell gives it",
    "--host --port": _SERVER,
    "--in-prefix --in-suffix --ignore-eos --logit-bias": "not in the commands (see glmlite.Parameters)",
}
_NOT_HERE = {name: why for names, why in NOT_HERE.items() for name in names.split()}
_OURS = {name: ours for ours, names in OPTIONS.items() for name in names.split()}

# Values, by our option: (pattern, what is meant). Case does not matter.
VALUES = {
    "--device": [(r"gpu|nvidia", "cuda"), (r"(?:cuda|gpu)[:\s]?(\d+)", r"cuda:\1"), (r"none|cpu:0|cpu0", "cpu")],
    "--kv-type": [(r"q8_0|int8|8", "q8"), (r"fp16|float16|16", "f16")],
    "--type": [
        (r"fp(16|32)|float(16|32)", r"f\1\2"),
        (r"half", "f16"),
        (r"float|full", "f32"),
        (r"bfloat16", "bf16"),
        (r"q8|int8|8|8bit", "q8_0"),
        (r"(q[45]_k)", r"\1_m"),
    ],
    "--overflow": [(r"shift|truncation", "truncate")],
}
REFUSED = {
    "--device": (
        r"metal|mps|vulkan|rocm|hip|opencl|sycl|tpu|npu|xpu|directml",
        "runs on CPUs and NVIDIA GPUs: cpu, cuda",
    ),
    "--kv-type": (r"q[2-7]\w*|iq\w*|[2-7]|int4|bf16|f32", "the cache is f16 or q8"),
    "--type": (r"q4|int4|4|4bit|w4a16", "did you mean q4_k_m, q4_k_s or q4_0?"),
    "--seed": (r"-\d+", "leave it out for a seed that is drawn"),
    "--max-tokens": (r"0|-\d+", "leave it out: the model stops by itself"),
    "--context": (r"0|-\d+", "leave it out for the model's own, at most 4096"),
    "--threads": (r"0|-\d+", "leave it out for the fast physical cores"),
    "--gpu-layers": (r"-\d+|all|auto|max", "leave it out for all layers"),
    "--top-k": (r"-\d+", "0 takes all tokens"),
}

COMMANDS = {
    "run": "generate ask complete completion prompt query",
    "chat": "interactive main cli",
    "inspect": "show info dump metadata",
    "doctor": "check verify validate fix",
    "convert": "quantize quant export merge",
    "bench": "benchmark",
    "perplexity": "ppl eval evaluate",
    "infill": "fim fill",
    "batch": "bulk map label",
    "ocr": "scan parse read pdf2md vision",
    "serve": "server llama-server api",
    "sample-model": "download pull get fetch install create",
    "--version": "version",
}
_COMMANDS = {name: ours for ours, names in COMMANDS.items() for name in names.split()}


class Command(typer.core.TyperCommand):
    """A command that knows what its options are called elsewhere, and shows what the library warns of."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ours(self, ctx, args))

    def invoke(self, ctx: Any) -> Any:
        if self.name == "serve":  # which shows its log itself, with the time of each line
            return super().invoke(ctx)
        with console.logged():
            return super().invoke(ctx)


class Commands(typer.core.TyperGroup):
    """The list of commands, which knows what they are called elsewhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in ("help", "-?", "/?"):  # `glmlite help run`
            args = [*args[1:2], "--help"]
        if args and args[0].startswith("-") and not args[0].startswith(("-h", "-V", "--h", "--v")):
            ctx.fail(f"{args[0]}: a command comes first, as in `glmlite chat` or `glmlite run`")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        if name in ("list", "ls", "ps", "stop", "rm", "push"):
            ctx.fail(f"no command '{name}': models are files, and a server ends with Ctrl-C")
        if name.lower() in _COMMANDS:
            ctx.fail(f"no command '{name}': here it is `glmlite {_COMMANDS[name.lower()]}`")
        near = get_close_matches(name.lower(), self.list_commands(ctx), 2, 0.6)
        if near:
            ctx.fail(f"no command '{name}', did you mean {' or '.join(near)}?")
        if arguments.means_a_model(name) or " " in name:
            what = "chat" if arguments.means_a_model(name) else "run"
            ctx.fail(f"no command '{name}', did you mean `glmlite {what} {_quoted(name)}`?")
        ctx.fail(f"no command '{name}'; there are {', '.join(self.list_commands(ctx))}")


def ours(command: Any, ctx: Any, args: Sequence[str]) -> list[str]:
    """The arguments with every option and value as it is called here."""
    options = {name: p for p in command.get_params(ctx) for name in (*p.opts, *p.secondary_opts) if name[0] == "-"}
    places = [p.name for p in command.get_params(ctx) if p.param_type_name == "argument"]
    by_option: dict[str, str] = {}
    known, rest = [], []
    queue = list(args)
    while queue:
        token = queue.pop(0)
        if token == "--":
            rest += queue
            break
        if len(token) < 2 or token[0] != "-":
            rest.append(token)
            continue
        name, equals, value = token.partition("=")
        name = name.lower().replace("_", "-") if name.startswith("--") else name
        option = _option(name, options)
        place = None if option else _place(name, places)
        if option is None and place is None:
            if not name.startswith("--") and name[:2] in options and name not in _NOT_HERE:  # -n5
                known.append(token)
                continue
            if name == "-s" and {"--seed", "--system"} & options.keys():
                ctx.fail("-s: here it is --seed N, or --system TEXT")
            if name in _OURS:
                ctx.fail(f"{name}: {ctx.info_name} has no {_OURS[name]}, which it is called here")
            if name in _NOT_HERE:
                ctx.fail(f"{name}: {_NOT_HERE[name]}")
            known.append(token)
            continue
        if option is not None and options[option].is_flag:
            known.append(option + equals + value)
            continue
        if not equals:
            if not queue:
                ctx.fail(f"{token}: its value is missing")
            value = queue.pop(0)
        if place is not None:
            by_option[place] = value
        elif option is not None:
            known.append(f"{option}={_value(ctx, option, value)}" if option[:2] == "--" else f"{option}{value}")
    return [*known, *(["--"] if rest or by_option else []), *_placed(ctx, places, by_option, rest)]


def _option(name: str, options: dict[str, Any]) -> str | None:
    """The option of this command that a name means; its long name, by which values are known."""
    ours = name if name in options else _OURS.get(name, "")
    if ours not in options:
        return None
    param = options[ours]
    names = param.opts if ours in param.opts else param.secondary_opts
    return next((n for n in names if n.startswith("--")), ours)


def _place(name: str, places: Sequence[str]) -> str | None:
    """The argument of this command that an option elsewhere is."""
    second = {"prompt": TEXT, "text": (*TEXT, *FILE), "out": OUT}.get(places[1], ()) if len(places) > 1 else ()
    if places and name in MODEL:
        return places[0]
    return places[1] if name in second else None


def _placed(ctx: Any, places: Sequence[str], by_option: dict[str, str], rest: list[str]) -> list[str]:
    """The arguments in their places. Those given as options leave the others what is left."""
    if not by_option:
        return rest
    if len(places) > 1 and places[1] in by_option and places[0] not in by_option and not rest:
        if ctx.info_name not in ("run", "chat", "infill"):
            return rest
        rest = [builtin.NAME]
    left, taken = list(rest), []
    for place in places:
        if place in by_option:
            taken.append(by_option[place])
        elif left:
            taken.append(left.pop(0))
    return taken + left


def _value(ctx: Any, option: str, value: str) -> str:
    if option in REFUSED and re.fullmatch(REFUSED[option][0], value, re.I):
        ctx.fail(f"{option} {value}: {REFUSED[option][1]}")
    for pattern, meant in VALUES.get(option, ()):
        if match := re.fullmatch(pattern, value, re.I):
            return re.sub(r"\\(\d)", lambda group: match[int(group[1])] or "", meant)
    return value.lower() if option in VALUES else value


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text
