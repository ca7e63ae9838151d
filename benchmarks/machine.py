"""What this machine is and can do at best: print it with every figure.

    python benchmarks/machine.py

The clock is that of a chain of multiplications, three cycles each on x86-64 and on most others. `noise` is how far the
slowest of nine equal pieces of work on registers was behind the fastest, when nothing that a program does differs; two
threads that give much less than twice one are threads of one core, or another machine's work takes its share.
"""

import platform
import statistics
import subprocess
import sys

from glmlite import _native


def cpu():
    """The CPU's model, as the system calls it."""
    try:
        if sys.platform == "darwin":
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        name, family, model = (next((v for k, v in fields.items() if k.strip() == key), "").strip() for key in KEYS)
        return f"{name}, family {family}, model {model}" if family else name or platform.machine()
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or platform.machine()


KEYS = ("model name", "cpu family", "model")


def describe(threads=None):
    """Lines: the CPU, its kernel sets, its clock, its limits, and how far they may be trusted."""
    threads = threads or _native.default_threads()
    isa = _native.default_isa()
    clocks = [_native.machine_clock() for _ in range(9)]
    clock = statistics.median(clocks)
    one, all_ = _native.machine_int8_peak(1), _native.machine_int8_peak(threads)
    f32 = _native.machine_f32_peak(threads)
    return [
        f"{cpu()}; kernels: {isa} (of {', '.join(_native.isas())})",
        f"clock {clock:.2f} GHz, noise {max(clocks) / min(clocks) - 1:.0%}",
        f"{threads} threads: {all_:.0f} GOPS int8 ({all_ / one:.2f} x one thread), {f32:.0f} GFLOPS f32, "
        f"{_native.machine_bandwidth(threads):.1f} GB/s",
    ]


if __name__ == "__main__":
    print(*describe(), sep="\n")
