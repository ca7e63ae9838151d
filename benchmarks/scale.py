"""A job over very many rows on many machines, simulated: how long, how much is done twice, how long its end takes.

    python benchmarks/scale.py                    # the table of docs/scale.md
    python benchmarks/scale.py --rows 1e8 --nodes 200 --cores 8 --model glm-4-9b --days-between-losses 1

It is a discrete-event simulation: what happens at a node is an event, rows come in units. What it assumes:

1. Speed. A step of n rows takes `first + (n - 1) / read` seconds: one row is bound by memory, more are bound by
   arithmetic at the speed of reading a prompt. Both are measured for 2 cores of an AMD EPYC (Zen 5) in
   docs/benchmarks.md. (Measured steps of 4 are 10 to 20 % faster than that.) The same section's single thread reads at
   57 % of two threads' speed and generates at 61 %, so both are taken to grow with cores; that is right for machines
   whose memory grows with their cores, and is to be measured by `glmlite bench` on yours.
2. Rows. A prompt has `own` tokens of its own and `shared` ones that are read once per node. Answers are log-normal,
   with the mean `answer` and a sigma of 0.8: a few are many times as long as the mean.
3. Nodes differ: log-normal with a sigma of 0.08, for the 15 % by which virtual machines drift; and one node in a
   hundred has half the speed, for as long as the job runs.
4. Losses. Nodes are lost at random (exponential), with all the rows that they have at hand: AHEAD + 1 batches, half
   done on the mean. Another node comes after `replace` seconds, fetches the model at 0.5 GB/s, and packs it.
5. The program that hands out rows takes `DRIVER` seconds for each row, reading, journal and writing together. Where
   that is what bounds the job, the rows are split in as many files and programs as are needed (`drivers`), evenly.
   The simulation hands out more rows at a time, until the last ones, so that it ends; of such a unit that is lost, all
   is done again, which overstates what a loss costs.
6. The end. A node that finds no more rows is idle. What runs is given to nobody else, or, with `--twice`, to idle nodes
   as well, and the first to end counts. The last row of a batch runs alone: its longest answer, at one row's speed.
7. Ray itself (its control store, its network) is taken to cost nothing and not to fail. That is an assumption; Ray's
   own figures end at some thousands of nodes.
8. Price: dollars for a core and hour, a parameter and no quotation.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from dataclasses import dataclass, replace

AT_ONCE = 64  # rows that a node runs at once: a batch
AHEAD = 2  # batches that it has besides
DRIVER = 60e-6  # seconds per row; docs/scale.md says how it was measured
SIGMA = 0.8  # of answers
DRIFT = 0.08
SLOW = 0.01  # of nodes, which have half the speed
FETCH = 0.5e9  # bytes/s
PACK = 0.25e9  # bytes/s
DAY = 86400.0


@dataclass(frozen=True)
class Model:
    """On 2 cores: seconds of a step of one row, prompt tokens per second, bytes."""

    first: float
    read: float
    nbytes: float


MODELS = {
    "glm-edge-1.5b": Model(1 / 70.2, 460.0, 0.86e9),  # Q4_0
    "glm-4-9b": Model(1 / 12.6, 82.9, 5.4e9),  # Q4_0
}


@dataclass(frozen=True)
class Job:
    rows: float = 1e9
    nodes: int = 1000
    cores: int = 16
    model: str = "glm-edge-1.5b"
    own: int = 100
    shared: int = 500
    answer: int = 50
    days_between_losses: float = 30.0  # of one node
    replace: float = 300.0  # seconds until another node is there
    batch: int = AT_ONCE  # rows that a node takes together
    twice: bool = False
    price: float = 0.04  # dollars for a core and hour
    units: int = 200_000  # rows come in so many units, or in what a node has at a time where that is more

    @property
    def hand(self) -> float:
        """Rows that a node has at a time."""
        return self.batch * (1 + AHEAD)

    @property
    def unit(self) -> float:
        return max(self.hand, self.rows / self.units)

    @property
    def scale(self) -> float:
        return self.cores / 2

    @property
    def step(self) -> float:
        """Seconds of a step of all rows of a node."""
        m = MODELS[self.model]
        return (m.first + (AT_ONCE - 1) / m.read) / self.scale

    @property
    def row(self) -> float:
        """Seconds of a node for a row, where it has as many as it can run."""
        return self.own / (MODELS[self.model].read * self.scale) + self.answer * self.step / AT_ONCE

    @property
    def loading(self) -> float:
        """Seconds from a node to its first answer."""
        m = MODELS[self.model]
        return m.nbytes / FETCH + m.nbytes / PACK + self.shared / (m.read * self.scale)

    @property
    def drivers(self) -> int:
        return max(1, math.ceil(DRIVER * self.nodes / self.row))


@dataclass
class Outcome:
    hours: float  # until the last row
    ideal: float  # hours, of equal nodes that are never lost
    again: float  # of the rows, that were done in vain
    losses: int
    end: float  # seconds from the first node that finds no more rows to the last row
    idle: float  # of the nodes' time

    def dollars(self, job: Job) -> float:
        return self.hours * job.nodes * job.cores * job.price


def longest(rows: float, rng: random.Random) -> float:
    """Of so many log-normal answers of mean 1, by the quantile of a uniform draw."""
    top = rng.random() ** (1 / rows)
    return math.exp(-SIGMA * SIGMA / 2 + SIGMA * _normal(top))


def _normal(p: float) -> float:
    """The quantile of a standard normal, near enough for p > 0.5 (Abramowitz and Stegun 26.2.23)."""
    t = math.sqrt(-2 * math.log(max(1e-300, 1 - p)))
    return t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)))


def run(job: Job, seed: int = 0) -> Outcome:
    rng = random.Random(seed)
    lived = job.days_between_losses * DAY

    def speed() -> float:
        return math.exp(rng.gauss(0, DRIFT)) * (0.5 if rng.random() < SLOW else 1.0)

    speeds = [speed() for _ in range(job.nodes)]
    lose = [rng.expovariate(1 / lived) for _ in range(job.nodes)]
    events = [(job.loading, node, -1) for node in range(job.nodes)]  # (time, node, the unit that ends or -1)
    heapq.heapify(events)
    rest = job.rows  # that nobody has had
    sizes: list[float] = []  # of units
    running: dict[int, int] = {}  # on how many nodes each runs
    again: list[int] = []  # those that were lost
    finished: set[int] = set()
    done = in_vain = busy = now = 0.0
    idle = math.inf  # when the first node found no more rows
    losses = 0

    def leave(unit: int) -> None:
        running[unit] -= 1
        if not running[unit]:
            del running[unit]

    while done < job.rows - 0.5:
        now, node, unit = heapq.heappop(events)
        if unit >= 0:
            leave(unit)
            if unit in finished:
                in_vain += sizes[unit]
            else:
                finished.add(unit)
                done += sizes[unit]
        # The next unit: one that was lost, a new one, or, at the end, one that another node has.
        if again:
            unit = again.pop()
        elif rest > 0.5:
            # At the end, as it really is: what a node has at a time.
            size = min(rest, job.unit if rest > 2 * job.nodes * job.unit else job.hand)
            rest -= size
            unit = len(sizes)
            sizes.append(size)
        else:
            idle = min(idle, now)
            alone = (each for each, count in running.items() if count == 1 and each not in finished)
            unit = next(alone, -1) if job.twice else -1  # the oldest
            if unit < 0:
                continue
        running[unit] = running.get(unit, 0) + 1
        size = sizes[unit]
        deviation = math.sqrt(math.expm1(SIGMA * SIGMA) / size)
        seconds = size * job.row * max(0.2, 1 + deviation * rng.gauss(0, 1))
        if rest <= 0.5:  # what runs beside it gets less and less: its longest answer, alone
            seconds += job.answer * longest(size, rng) * MODELS[job.model].first / job.scale
        seconds /= speeds[node]
        while now > lose[node]:  # it was lost while it was idle
            lose[node] += rng.expovariate(1 / lived)
        if now + seconds < lose[node]:
            busy += seconds
            heapq.heappush(events, (now + seconds, node, unit))
            continue
        # Lost: rows that were finished are kept, those at hand are done again, by whoever is free.
        losses += 1
        in_vain += job.hand / 2
        leave(unit)
        if unit not in running and unit not in finished:
            again.append(unit)
        back = lose[node] + job.replace + job.loading
        lose[node] = back + rng.expovariate(1 / lived)
        speeds[node] = speed()
        heapq.heappush(events, (back, node, -1))
    idle = min(idle, now)
    share = 1 - busy / (now * job.nodes)
    return Outcome(now / 3600, job.rows * job.row / job.nodes / 3600, in_vain / job.rows, losses, now - idle, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = Job()
    for name, value in given.__dict__.items():
        kind = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value), "default": value}
        parser.add_argument("--" + name.replace("_", "-"), **kind)
    job = Job(**vars(parser.parse_args()))
    jobs = [job]
    if job == given:
        jobs = [
            job,
            replace(job, days_between_losses=1.0),
            replace(job, batch=10_000),
            replace(job, batch=10_000, twice=True),
            replace(job, nodes=100),
            replace(job, model="glm-4-9b"),
            replace(job, model="glm-4-9b", days_between_losses=1.0),
        ]
    print(
        "| model | nodes | a node lives | batch | twice | hours | ideal | end | idle | in vain | lost | programs | $ |"
    )
    print("|" + "---|" * 13)
    for each in jobs:
        o = run(each)
        print(
            f"| {each.model} | {each.nodes} x {each.cores} | {each.days_between_losses:g} days | {each.batch:,} | "
            f"{'yes' if each.twice else 'no'} | {o.hours:.2f} | {o.ideal:.2f} | {o.end:.0f} s | {o.idle:.2%} | "
            f"{o.again:.4%} | {o.losses} | {each.drivers} | {o.dollars(each):,.0f} |"
        )


if __name__ == "__main__":
    main()
