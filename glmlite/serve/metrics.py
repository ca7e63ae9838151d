"""Counters and histograms, in the text form that Prometheus reads. Used on the event loop alone."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator

__all__ = ["Metrics"]

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)

_COUNTERS = {
    "glmlite_requests_total": "Requests, by API and by status or outcome.",
    "glmlite_prompt_tokens_total": "Tokens of prompts, those in the cache among them.",
    "glmlite_reused_tokens_total": "Tokens of prompts that were in the cache.",
    "glmlite_generated_tokens_total": "Tokens written.",
    "glmlite_drafted_tokens_total": "Tokens that were guessed while answers were written.",
    "glmlite_accepted_tokens_total": "Guessed tokens that were written.",
    "glmlite_prompt_seconds_total": "Seconds from the admission of requests to their first token.",
    "glmlite_generation_seconds_total": "Seconds from the first token to the last.",
    "glmlite_images_total": "Images in requests.",
    "glmlite_image_seconds_total": "Seconds that images were looked at, those that were not seen lately.",
    "glmlite_cancelled_total": "Requests that ended because their client went.",
}
_HISTOGRAMS = {
    "glmlite_first_token_seconds": "Seconds from the arrival of a request to its first token.",
    "glmlite_token_seconds": "Mean seconds between two tokens of an answer.",
}
_GAUGES = {
    "glmlite_running": "Requests that are read or written.",
    "glmlite_waiting": "Requests that wait in line.",
    "glmlite_kv_tokens": "Tokens that the cache has room for.",
    "glmlite_kv_tokens_free": "Tokens that the cache has free room for.",
    "glmlite_preempted_total": "Requests that gave their memory back and were read again.",
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    def __init__(self) -> None:
        self._counts: dict[str, dict[Labels, float]] = {name: defaultdict(float) for name in _COUNTERS}
        self._buckets = {name: [0] * (len(SECONDS) + 1) for name in _HISTOGRAMS}
        self._sums = dict.fromkeys(_HISTOGRAMS, 0.0)

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        self._counts[f"glmlite_{name}_total"][tuple(labels.items())] += value

    def observe(self, name: str, value: float) -> None:
        self._buckets[f"glmlite_{name}"][bisect_left(SECONDS, value)] += 1
        self._sums[f"glmlite_{name}"] += value

    def counts(self) -> Iterator[tuple[str, Labels, float]]:
        """(name, labels, value) of the counters that have counted."""
        for name, counts in self._counts.items():
            for labels, value in counts.items():
                yield name, labels, value

    def text(self, gauges: Iterable[tuple[str, Labels, float]]) -> str:
        """gauges: (name, labels, value) of what is counted elsewhere."""
        lines: list[str] = []
        for name, said in _COUNTERS.items():
            lines += [f"# HELP {name} {said}", f"# TYPE {name} counter"]
            counts = self._counts[name] or {(): 0.0}
            lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in counts.items()]
        for name, said in _HISTOGRAMS.items():
            lines += [f"# HELP {name} {said}", f"# TYPE {name} histogram"]
            total = 0
            for bound, count in zip([*map(str, SECONDS), "+Inf"], self._buckets[name]):
                total += count
                lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
            lines += [f"{name}_sum {_number(self._sums[name])}", f"{name}_count {total}"]
        found = list(gauges)
        for name, said in _GAUGES.items():
            lines += [f"# HELP {name} {said}", f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"]
            lines += [f"{name}{_labels(labels)} {_number(value)}" for of, labels, value in found if of == name]
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escape = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{value.translate(escape)}"' for name, value in labels) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}"
