"""Typed stub of the compiled module: the whole seam between Python and C++."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# ---- build -------------------------------------------------------------------------------------------------------

__version__: str

def isas() -> list[str]:
    """Instruction sets built into this module that this machine runs, best first."""

def built_isas() -> list[str]: ...
def default_isa() -> str:
    """The set that is used: $GLMLITE_ISA, or the best. Raises ValueError for an unknown or unsupported name."""

def default_threads() -> int:
    """Threads an Engine starts unless told: $GLMLITE_THREADS, or one per physical core within the CPU quota."""

def available_memory() -> int:
    """Bytes that this process can still have without swapping, as far as the system tells; 2**64 - 1 if it does not."""

def machine_bandwidth(threads: int) -> float:
    """GB/s that so many threads together read from memory, measured now."""

def machine_int8_peak(threads: int, isa: str = "") -> float:
    """8-bit operations, in 1e9 a second, of a kernel set's dot products on registers, measured now."""

def machine_f32_peak(threads: int, isa: str = "") -> float:
    """f32 operations, in 1e9 a second, of a kernel set's fused multiply-adds (two each) on registers, measured now."""

def machine_clock() -> float:
    """GHz of the core that this thread runs on, by a chain of multiplications of three cycles each."""

# ---- formats -----------------------------------------------------------------------------------------------------

class Storage(NamedTuple):
    """A storage format."""

    name: str  # "Q4_0", as GGUF writes it
    id: int  # GGUF's number
    values: int  # of a block
    nbytes: int  # of a block
    floats: tuple[int, ...]  # bytes of a block at which a float stands: the value, or f16 scales and minimums

def formats() -> list[Storage]:
    """All that are known, those that the engine has kernels for first."""

# ---- files -------------------------------------------------------------------------------------------------------

class TensorInfo:
    name: str
    type: str  # "Q4_0", ...; "type 42" for one that GGUF may know and we do not
    type_id: int  # GGUF's number of the type
    shape: tuple[int, ...]  # numpy order: (rows, columns)
    nbytes: int
    supported: bool  # the engine has kernels for the type
    path: str  # the file (of a split) that holds it
    offset: int  # of its first byte in that file

class Gguf:
    """A GGUF file: metadata and tensors. `path` may be any part of a split file; all parts are opened.

    check: called every 20 ms or so while the headers are read; what it raises ends that. Raises FormatError (with path
    and what is wrong), OSError (missing, unreadable; cut short meanwhile).
    """

    def __init__(self, path: str | bytes | PathLike[str], check: Callable[[], object] | None = None) -> None: ...
    version: int
    paths: list[str]
    nbytes: int  # of all parts
    # Scalars as int, float, bool, str; arrays of numbers as numpy arrays, of strings as list[bytes | str], see below.
    # A string that is not UTF-8 comes as bytes.
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]  # in file order
    def read_metadata(self, check: Callable[[], object] | None = None) -> dict[str, Any]:
        """`metadata`, with `check` called every 20 ms or so while it is made, the first time."""
    def data(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.uint8]:
        """The tensor's bytes, read now: (rows, bytes per row) or (bytes,), of which those from begin to end. Raises
        OSError."""
    def dequantize(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """The tensor as f32 in its shape, of whose first axis the part from begin to end. Raises OSError."""
    def close(self) -> None:
        """Closes the file; later use raises ValueError."""

# ---- text --------------------------------------------------------------------------------------------------------

class Bpe:
    """Byte-level byte-pair encoding. Neither making it nor encoding holds up other Python threads.

    tokens: by id. kinds: (tokens,) of each: 0 a word in GPT-2's byte alphabet, which merges may make, 1 a text as it
    stands, 2 nothing. merges: "left right", the first to be tried first. whole_words: a word that is a token is that
    token, whatever the merges would make of it. check: called every 20 ms or so; what it raises ends the making.
    Raises FormatError, naming GGUF's key, for words that are empty or there twice and merges of other tokens.
    """

    def __init__(
        self,
        tokens: list[str],
        kinds: NDArray[np.uint8],
        merges: list[str],
        *,
        whole_words: bool,
        check: Callable[[], object] | None = None,
    ) -> None: ...
    def encode(self, text: str, ends: NDArray[np.int32]) -> NDArray[np.int32]:
        """The ids of a text whose words end at these characters, the last at the text's end."""
    def pieces(self) -> list[bytes]:
        """What each token stands for."""

class Words:
    """Where text is cut into words, for tests: see csrc/text/words.h. Raises FormatError."""

    def __init__(self, classes: NDArray[np.uint32], automata: NDArray[np.int32]) -> None: ...
    def cut(self, text: bytes) -> NDArray[np.int32]:
        """Where each word ends, in bytes."""

class TextTokenizer:
    """The tokenizer of the C API, for tests: from a GGUF file that has the tables of glmlite.tokenizer.tables.

    Raises FormatError, OSError. size: ids are 0 to size - 1. ends, prefix: as the tables have them.
    """

    def __init__(self, path: str) -> None: ...
    def encode(self, text: bytes, *, special: bool) -> NDArray[np.int32]:
        """Bytes that are no UTF-8 count as U+FFFD. special: special tokens in the text count as such."""
    def begin(self, ids: list[int]) -> list[int]: ...
    def stream(self, *, skip_special: bool) -> TextStream: ...
    def piece(self, id: int) -> bytes: ...
    def is_special(self, id: int) -> bool: ...
    def find(self, text: str) -> int:
        """The id of the token with this text; -1: none."""
    @property
    def size(self) -> int: ...
    @property
    def ends(self) -> list[int]: ...
    @property
    def prefix(self) -> list[int]: ...

class TextStream:
    """The text of ids as they come, of whole characters in UTF-8."""

    def push(self, id: int) -> bytes: ...
    def finish(self) -> bytes: ...

# ---- running -----------------------------------------------------------------------------------------------------

class Cancel:
    """A flag that any thread may set; seen between ops, and in long ones."""

    def set(self) -> None: ...
    @property
    def is_set(self) -> bool: ...

class Sample(NamedTuple):
    """One sampled token. logprob: natural log, of the raw logits' softmax (before temperature, penalties, filters)."""

    token: int
    logprob: float  # NaN unless logprobs were asked for (logprobs >= 0)
    top: list[tuple[int, float]]  # the `logprobs` most likely tokens, most likely first

class SamplingOption(NamedTuple):
    """A number that says how to sample."""

    name: str
    least: float
    most: float
    above_least: bool  # `least` itself is not allowed
    whole: bool
    off: float  # without effect
    usual: float  # where neither a caller nor a file says

def sampling_options() -> list[SamplingOption]:
    """All that a Sampler takes."""

class Sampler:
    """Sampling options and state of one stream of tokens.

    Order: the allowed tokens; logit_bias; repetition, presence and frequency penalties over the last `penalty_window`
    tokens seen (prompt included); temperature 0 = the largest logit, lowest id on ties; otherwise top_k, then softmax
    of logits / temperature, top_p, min_p, one draw. The n-th draw of a seed is a fixed number (counter-based),
    so results do not depend on what else runs.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        logit_bias: Mapping[int, float] = ...,
        logprobs: int = -1,  # -1: none; 0: of the sampled token; n: and the n most likely
        stop: Sequence[int] = (),  # token ids that end the stream; the stop token is returned as the last sample
        draft: int = 0,  # tokens, at most, that a step takes along because they may be drawn next; changes no draw
        **kwargs: float,  # by the names of `sampling_options`, off where not given
    ) -> None: ...
    def accept(self, tokens: Sequence[int]) -> None:
        """Tokens that count as seen for the penalties: the prompt."""
    def take(self, tokens: Sequence[int]) -> None:
        """Tokens that stand where drawn ones would: each counts as a draw, and as seen."""
    def allow(self, words: NDArray[np.uint32] | None) -> None:
        """The tokens that the next draw may take, and no later one: token t if bit t % 32 of words[t // 32] is set;
        None: all. An engine call that fails leaves it as it was.

        Where the draw is to happen, ValueError, naming the sequence: words for another vocabulary, or no token.
        """
    def forbid(self, tokens: Sequence[int]) -> None:
        """Tokens that no draw takes from now on, where others can be had; instead of those named before."""
    @property
    def drafted(self) -> tuple[int, int]:
        """Tokens that steps took along, and how many of them were drawn."""
    def draft(self, most: int, cost: float) -> list[int]:
        """What a step would take along, where a token more makes it longer by `cost` of it. For tests."""
    def settle(self, count: int, right: int, cost: float) -> None:
        """What became of a draft: `right` of `count` tokens were drawn. For tests."""
    def sample(self, logits: NDArray[np.float32]) -> Sample:
        """Draws from (vocab,) logits and accepts the token. For tests."""

class Work:
    """What one sequence does in a call of `Engine.run`: enter `tokens`, then, with a sampler, up to `budget` tokens.

    positions: (len(tokens), AXES) int32. visible: 0 = causal; n > 0: every token sees n cached entries (a bidirectional
    context of n tokens, which must all be in this work). next_position, position_step: of the first token sampled and
    from one to the next. input: (len(tokens), width) rows for a program that takes some, those of several ops side by
    side. embeddings: (count, width) rows for the tokens that are -1, which have no id, in their order.
    """

    def __init__(
        self,
        sequence: int,
        tokens: Sequence[int] | NDArray[np.int32],
        positions: NDArray[np.int32],
        *,
        visible: int = 0,
        sampler: Sampler | None = None,
        budget: int = 1,
        next_position: tuple[int, ...] = (0, 0, 0),
        position_step: tuple[int, ...] = (1, 1, 1),
        input: NDArray[np.float32] | None = None,
        embeddings: NDArray[np.float32] | None = None,
    ) -> None: ...

AXES: int  # of a position
DRAFT: int  # tokens that samplers of a model draft at most

def page_bytes(gguf: Gguf, ops: Sequence[tuple[Any, ...]], kv_type: str = "f16") -> int:
    """Bytes of a page of the KV cache, `Engine.page_tokens` tokens, in all layers on the CPU."""

def weight_bytes(gguf: Gguf, ops: Sequence[tuple[Any, ...]]) -> tuple[int, int]:
    """Bytes of the weights as the CPU packs them, and how many of those are experts' that a mixture chooses among."""

class PackedFile:
    """Weights on disk as the CPU's kernels read them, opened. key: 32 bytes, of what the tensors hold.

    Raises OSError; FormatError if it is of other weights, of another version, or cut short.
    """

    def __init__(
        self, gguf: Gguf, ops: Sequence[tuple[Any, ...]], path: str | bytes | PathLike[str], key: bytes
    ) -> None: ...

def pack(
    gguf: Gguf,
    ops: Sequence[tuple[Any, ...]],
    path: str | bytes | PathLike[str],
    key: bytes,
    descriptor: int,
    *,
    threads: int = 0,
    background: bool = False,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Writes a PackedFile into a new file, open for writing; path: its name, for messages. threads, background,
    progress: as Engine's."""

def packed_in(gguf: Gguf, ops: Sequence[tuple[Any, ...]]) -> PackedFile | None:
    """The packed weights that a file of `glmlite export` has; None for others. Raises FormatError."""

def packed_layout(gguf: Gguf, ops: Sequence[tuple[Any, ...]]) -> tuple[int, int, int]:
    """The version of packing, a number that tells the layout of a program's weights from others, and their bytes."""

def pack_at(
    gguf: Gguf,
    ops: Sequence[tuple[Any, ...]],
    path: str | bytes | PathLike[str],
    descriptor: int,
    begin: int,
    *,
    threads: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Writes packed weights into a file that is open for writing, from byte `begin` to its end; otherwise as `pack`."""

def read_speed(path: str | bytes | PathLike[str], seconds: float = 1.0) -> float:
    """Bytes a second that many reads at once take from a file past the system's cache, measured now for so many seconds
    at most; 0 where the file is too small to tell."""

class Engine:
    """A program with its packed weights and KV cache. One call computes at a time; calls from other threads wait.

    ops: (kind, out id, width, {slot: value id}, {slot: [tensor names]}, {slot: attribute}) per op, see
    `glmlite.placement.native_ops`. kv_tokens: capacity of the cache in tokens over all sequences, in whole pages of
    `page_tokens`. kv_type: "f16" or "q8", what keys and values are rounded to in it. threads: of a step, 0 =
    `default_threads()`; adaptive: fewer while others keep the cores busy; background: with low priority. isa: "" =
    default.
    progress(done_bytes, total_bytes), every 20 ms or so -> False cancels the load.
    packed: take the weights from it, mapped; with weight_room, bytes of memory, only as many are read into memory; of a
    mixture, where all else fits, the experts that were used last.
    device: index of a GPU, -1: none; gpu_layers: how many of the last layers run on it, -1: all. Both are for `_cuda`,
    whose Engine is otherwise the same.
    """

    page_tokens: int  # class attribute: 64

    def __init__(
        self,
        gguf: Gguf,
        ops: Sequence[tuple[Any, ...]],
        *,
        kv_tokens: int,
        kv_type: str = "f16",
        threads: int = 0,
        adaptive: bool = False,
        background: bool = False,
        isa: str = "",
        progress: Callable[[int, int], Any] | None = None,
        device: int = -1,
        gpu_layers: int = -1,
        packed: PackedFile | None = None,
        weight_room: int = -1,
    ) -> None: ...
    threads: int  # of a step, at most; may be set at any time, and counts from the next step on; 0 once closed
    @property
    def threads_now(self) -> int:
        """That the step in progress, or the last one, has."""
    isa: str  # of the CPU's kernels; of a GPU its name
    vocab: int  # width of the logits
    prefix: int  # cached entries that stand before every sequence (P-Tuning)
    weight_bytes: int
    kv_bytes: int
    kv_tokens: int
    def kv_free(self) -> int:
        """Tokens that fit into pages nobody holds."""
    def new_sequence(self) -> int: ...
    def fork(self, sequence: int, length: int) -> int:
        """A new sequence that shares the first `length` cached tokens of another."""
    def truncate(self, sequence: int, length: int) -> None: ...
    def free(self, sequence: int) -> None: ...
    def length(self, sequence: int) -> int:
        """Cached tokens, the P-Tuning prefix not counted."""
    def step(self, works: Sequence[Work], rows: Sequence[int], cancel: Cancel | None = None) -> NDArray[np.float32]:
        """Runs the works' tokens in one step; logits (len(rows), vocab) of the step's tokens by index (the works'
        tokens one after another). Samplers are not used."""
    def run(
        self,
        works: Sequence[Work],
        *,
        max_ms: float = 0.0,
        cancel: Cancel | None = None,
    ) -> list[list[Sample]]:
        """One step for all works; then further steps, each entering the tokens just sampled, for the works whose
        budget is not used up and that have not sampled a stop token, until `max_ms` have passed since the start
        (at least one step) or no work is left. Per work: the tokens it sampled. The last token sampled is not in the
        cache yet: pass it as the next work's token.

        Raises Cancelled (flag set; every sequence is as before the call), RuntimeError (cache full; NaN or infinite
        logits, naming sequence and position; every sequence is as before the call), ValueError (bad token, sequence,
        positions).
        """
    def trace(self, works: Sequence[Work], rows: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """A step as `step` runs it; the value of every op by its id."""
    def squares(
        self, works: Sequence[Work], rows: Sequence[int], values: Sequence[int], cancel: Cancel | None = None
    ) -> dict[int, Any]:
        """A step as `step` runs it; of each value in `values`, by its op's id, the sums of its columns' squares,
        (width,). An id that no op has gets none, (0,). Of a `moe`, by expert that has rows: how many, and the sums of
        what enters gate and up, (dim,), and down, (ff,)."""
    def scratch_bytes(self) -> int:
        """Bytes of activations and scratch held now."""
    def release(self) -> None:
        """Gives back what `scratch_bytes` tells; the next step takes it anew."""
    def progress(self) -> float:
        """How much of the step in progress is done, 0 to 1."""
    def close(self) -> None:
        """Frees weights and cache now; later calls raise ValueError. Waits for a running call to end."""

# ---- kernels, for tests and benchmarks ------------------------------------------------------------------------------

class PackedMatrix:
    """(n, row bytes) as the file stores them, packed once. nbytes: of the panels."""

    def __init__(self, isa: str, format: str, rows: NDArray[np.uint8], threads: int = 1) -> None: ...
    nbytes: int
    def multiply(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """(T, k) -> into y (T, n): quantize, multiply."""

def kernel_linear(
    isa: str, format: str, rows: NDArray[np.uint8], x: NDArray[np.float32], threads: int = 1
) -> NDArray[np.float32]:
    """(n, row bytes) as the file stores them, (T, k) -> (T, n): quantize, pack, multiply."""

def kernel_quantize(
    isa: str, x: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]: ...
def kernel_unpack_row(isa: str, format: str, rows: NDArray[np.uint8], k: int, row: int) -> NDArray[np.float32]: ...
def dequantize(format: str, rows: NDArray[np.uint8]) -> NDArray[np.float32]: ...
def draw_weights(logits: NDArray[np.float32], temperature: float) -> NDArray[np.uint64]:
    """What each token of a row weighs in a draw: about 2^44 exp((logit - the largest) / temperature)."""

def kernel_rms_norm(
    isa: str, x: NDArray[np.float32], w: NDArray[np.float32], add: NDArray[np.float32] | None, eps: float
) -> NDArray[np.float32]: ...
def kernel_layer_norm(
    isa: str, x: NDArray[np.float32], w: NDArray[np.float32], b: NDArray[np.float32], eps: float
) -> NDArray[np.float32]: ...
def kernel_swiglu(isa: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
def kernel_gelu(isa: str, x: NDArray[np.float32], *, exact: bool = False) -> NDArray[np.float32]: ...
def kernel_attend(
    isa: str,
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    visible: NDArray[np.int64],
    scale: float,
    kv_type: str = "f16",
) -> NDArray[np.float32]:
    """q (M, head_dim), k and v (ctx, head_dim) of one KV head -> (M, head_dim), stored in pages, chunk by chunk.

    q8: queries and keys are turned by the Hadamard matrix first.
    """

class KvPages:
    """Keys and values (kv_heads, ctx, head_dim) in pages, stored once. nbytes: of the pages."""

    def __init__(
        self, isa: str, k: NDArray[np.float32], v: NDArray[np.float32], kv_type: str = "f16", threads: int = 1
    ) -> None: ...
    nbytes: int
    def attend(self, q: NDArray[np.float32], visible: NDArray[np.int64], scale: float, y: NDArray[np.float32]) -> None:
        """q (kv_heads, M, head_dim), visible (M,) -> into y, of q's shape."""

class LatentPages:
    """Entries (ctx, latent + rope) of latent attention in pages, stored once. nbytes: of the pages."""

    def __init__(
        self, isa: str, entries: NDArray[np.float32], latent: int, kv_type: str = "f16", threads: int = 1
    ) -> None: ...
    nbytes: int
    def attend(self, q: NDArray[np.float32], visible: NDArray[np.int64], scale: float, y: NDArray[np.float32]) -> None:
        """q (M, latent + rope), visible (M,) -> into y (M, latent).

        q8: latent and rope columns of queries and entries are turned by Hadamard matrices first, y is turned back.
        """

def kernel_rope(
    isa: str,
    x: NDArray[np.float32],
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
) -> NDArray[np.float32]: ...
