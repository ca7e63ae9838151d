"""Yardsticks and the table of `pytest benchmarks/`."""

import functools
import pathlib
import subprocess
import sys

import machine
import pytest

from glmlite import _native

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the kernels' twins

THREADS = sorted({1, _native.default_threads()})
FIGURES = ("what", "threads", "us", "gb_s", "gops", "bandwidth", "of_bandwidth", "of_peak", "peak")


@functools.cache
def peaks(threads):
    """1e9 operations a second of the integer dot products and of f32 multiply-adds."""
    return {"int8": _native.machine_int8_peak(threads), "f32": _native.machine_f32_peak(threads)}


@pytest.fixture(params=THREADS, ids="threads{}".format)
def threads(request):
    return request.param


@pytest.fixture
def quick(request):
    """Whether results are only checked: sizes may be small."""
    return request.config.getoption("benchmark_disable")


@pytest.fixture
def measure(benchmark, quick, threads):
    """measure(what, run, nbytes, operations, peak): times run(), which reads so many bytes and does so many operations,
    of the kind that `peak` ("int8" or "f32") names."""

    def timed(what, run, nbytes, operations, peak):
        if quick:
            return benchmark(run)
        # Just before and just after: on a shared machine the bandwidth changes by half within seconds.
        before = _native.machine_bandwidth(threads)
        benchmark.pedantic(run, rounds=15, warmup_rounds=2)
        bandwidth = max(before, _native.machine_bandwidth(threads))
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {
            "what": what,
            "threads": threads,
            "us": seconds * 1e6,
            "gb_s": nbytes / seconds / 1e9,
            "gops": operations / seconds / 1e9,
            "bandwidth": bandwidth,
            "of_bandwidth": nbytes / seconds / 1e9 / bandwidth,
            "of_peak": operations / seconds / 1e9 / peaks(threads)[peak],
            "peak": peak,
        }

    return timed


def commit():
    """The checkout's, or "unknown" outside of one."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["peaks"] = {threads: peaks(threads) for threads in THREADS}
    output_json["isa"] = _native.default_isa()


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info for b in (session.benchmarks if session else []) if b.extra_info]
    if not rows:
        return
    write = terminalreporter.write_line
    write("")
    write(f"commit {commit()}")
    for line in machine.describe():
        write(line)
    write("")
    write("| kernel | threads | time, us | GB/s | machine reads | of it | GOPS | of the peak |")
    write("|---|---|---|---|---|---|---|---|")
    for row in rows:
        what, threads, us, gb_s, gops, bandwidth, of_bandwidth, of_peak, peak = (row[name] for name in FIGURES)
        write(
            f"| {what} | {threads} | {us:.0f} | {gb_s:.1f} | {bandwidth:.1f} | {of_bandwidth:.0%} "
            f"| {gops:.0f} | {of_peak:.0%} of {peak} |"
        )
