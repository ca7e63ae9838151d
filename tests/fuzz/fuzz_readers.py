"""Fuzzing of the readers of what models write.

    PYTHONPATH=tests:. python tests/fuzz/fuzz_readers.py --seconds 1800 [--seed 1]

Random and damaged answers are read whole and cut at random. Anything but the same deltas, valid JSON in every whole
call and no exception is printed, with the seed that makes it again, and the exit status is 1. So is a text that takes
more than a second: the longest have some 100,000 characters.
"""

import argparse
import random
import sys
import time
import traceback

from test_readers import ANSWERS, ATOMS, READERS, damaged, same_however_cut

SECONDS = 1  # of the processor, for one text; reading it takes a tenth


def answer(rng):
    """(reader, text)."""
    if rng.random() < 0.5:
        reader, text = rng.choice(ANSWERS)
        return reader, damaged(text, rng)
    reader = rng.choice(list(READERS.values()))
    atoms = rng.sample(ATOMS, rng.randint(1, len(ATOMS)))
    if rng.random() < 0.02:  # the same again and again, between a beginning and an end
        parts = ["".join(rng.choices(ATOMS, k=rng.randint(0, 6))) for _ in range(3)]
        return reader, parts[0] + parts[1] * rng.choice([100, 3000]) + parts[2]
    return reader, "".join(rng.choices(atoms, k=rng.choice([10, 30, 100, 300])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begin = time.monotonic()
    seed = arguments.seed
    while time.monotonic() < begin + arguments.seconds:
        rng = random.Random(seed)
        reader, text = answer(rng)
        before = time.process_time()
        try:
            same_however_cut(reader, text, rng)
        except Exception:
            traceback.print_exc()
            sys.exit(f"seed {seed}: {reader.__name__} {text[:2000]!r}")
        if time.process_time() - before > SECONDS:
            sys.exit(f"seed {seed}: {reader.__name__} takes {time.process_time() - before:.1f} s for {len(text)}")
        seed += 1
    print(f"{seed - arguments.seed} texts, from seed {arguments.seed}: all well")


if __name__ == "__main__":
    main()
