"""The module that tests of CUDA run on: glmlite._cuda with a GPU, or, where there is none, the same sources compiled
for the emulator of tests/native/cuda_host, if they are:

    cmake -S . -B build-cuda-host -G Ninja -DGLMLITE_CUDA=EMULATED && cmake --build build-cuda-host --target _cuda

The emulator checks arithmetic, indexing, barriers and what the executor does. It is no test on a GPU.
"""

import functools
import importlib.util
import os
from pathlib import Path

FOLDER = Path(os.environ.get("GLMLITE_CUDA_HOST", Path(__file__).parent.parent / "build-cuda-host"))


@functools.cache
def load():
    """(module, is it the emulator), or (None, why there is none)."""
    try:
        from glmlite import _cuda

        _cuda.devices()
        return _cuda, False
    except (ImportError, RuntimeError) as error:
        why = error
    for file in FOLDER.glob("_cuda*.so"):
        spec = importlib.util.spec_from_file_location("glmlite._cuda", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, True
    return None, f"no GPU ({why}) and no emulator in {FOLDER.name}, see tests/cuda_module.py"


def shuffle(test: str) -> None:
    """What the emulator leaves to chance, for a test of this name; GLMLITE_CUDA_SEED changes it."""
    module, emulated = load()
    if emulated is True:
        module.options().seed = 1 + int(os.environ.get("GLMLITE_CUDA_SEED", "0")) + sum(map(ord, test))
