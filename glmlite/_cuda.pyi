"""Typed stub of the module for NVIDIA GPUs, where it was built: `_native`'s files and engines, and placing them."""

from collections.abc import Sequence
from typing import TypedDict

from ._native import Cancel as Cancel
from ._native import Engine as Engine
from ._native import Gguf as Gguf
from ._native import PackedFile as PackedFile
from ._native import Sample as Sample
from ._native import Sampler as Sampler
from ._native import TensorInfo as TensorInfo
from ._native import Work as Work
from ._native import available_memory as available_memory
from ._native import pack as pack

__version__: str

class Device(TypedDict):
    index: int
    name: str
    capability: tuple[int, int]
    total: int  # bytes of memory

class Need(TypedDict):
    """Bytes of GPU memory, of `gpu_layers` of `layers` layers."""

    layers: int
    gpu_layers: int
    weights: int
    kv: int
    scratch: int
    reserve: int
    total: int

class StepTimes(TypedDict):
    """Microseconds of a captured step, the best of several."""

    ops: list[tuple[str, float]]  # each on its own
    ahead: float  # all of it, as it runs
    in_turn: float  # with each kernel launched when the one before has ended

def devices() -> list[Device]:
    """The GPUs there are. Raises RuntimeError that says why there are none."""

def free_memory(device: int) -> int:
    """Bytes of a GPU's memory that nobody holds."""

def memory_needed(
    gguf: Gguf, ops: Sequence[tuple], *, kv_tokens: int, kv_type: str = "f16", gpu_layers: int = -1
) -> Need:
    """What the last `gpu_layers` layers take, -1: all. Needs no GPU."""

def layers_that_fit(gguf: Gguf, ops: Sequence[tuple], free: int, *, kv_tokens: int, kv_type: str = "f16") -> int:
    """The most layers that take at most `free` bytes. Needs no GPU."""

def measure_step(gguf: Gguf, ops: Sequence[tuple], *, context: int, kv_type: str = "f16", device: int = 0) -> StepTimes:
    """Loads a model on a GPU to time a step of one token that sees `context` entries of whatever is in memory."""

def machine_bandwidth(device: int) -> float:
    """GB/s of a copy within the GPU's memory, bytes read and bytes written both counted, measured now."""

def machine_bf16_rate(device: int) -> float:
    """GFLOPS of bf16 matrix instructions (mma.sync) on registers, measured now; 0 where the GPU has none."""
