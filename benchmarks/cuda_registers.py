"""What the compiler makes of each CUDA kernel: registers and spills by compute capability.

Needs nvcc and c++filt, no GPU.

    python benchmarks/cuda_registers.py [--sm 75 80 ...] > table.md
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

CUDA = pathlib.Path(__file__).parent.parent / "csrc" / "cuda"
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin"]
FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
FORMATS += ["IQ4_NL", "IQ4_XS"]  # in the order of blocks.h


def kernel_name(mangled: str) -> str:
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    name = re.sub(r"\(glmlite::Format\)(\d+)", lambda m: FORMATS[int(m[1])], name)
    name = re.sub(r"\(glmlite::KvType\)(\d+)", lambda m: ["f16", "q8"][int(m[1])], name)
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|\(int\)|\(bool\)|glmlite::|cuda::|^void ", "", name)
    return re.sub(r"\(.*", "", name).strip()


def compile(file: pathlib.Path, sm: str) -> dict[str, str]:
    """Kernel -> registers, and where there are any, bytes of stack and of spills."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-arch=sm_{sm}", "-o", f"{folder}/cubin", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        done.stdout + done.stderr,
        re.S,
    )
    table = {}
    for name, stack, stores, loads, registers in found:
        spills = f", spills {stores}/{loads}" if stores != "0" or loads != "0" else ""
        table[kernel_name(name)] = registers + (f" (stack {stack}{spills})" if stack != "0" else "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sm", nargs="+", default=["75", "80", "86", "89", "90a", "120"])
    sms = parser.parse_args().sm
    print("| kernel | " + " | ".join(f"sm_{sm}" for sm in sms) + " |")
    print("|---" * (len(sms) + 1) + "|")
    for file in sorted(CUDA.glob("*.cu")):
        tables = [compile(file, sm) for sm in sms]
        for kernel in sorted(tables[0]):
            print(f"| `{kernel}` | " + " | ".join(t.get(kernel, "") for t in tables) + " |")


if __name__ == "__main__":
    main()
