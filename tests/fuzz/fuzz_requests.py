"""Damages the recorded requests and sends them to the application: none may be the server's failure.

    python tests/fuzz/fuzz_requests.py [MINUTES] [SEED]

Prints the body that failed and ends with 1. What it finds becomes a test.
"""

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_serve_requests import fuzz


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 1
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"seed {seed}, {minutes:g} minutes", flush=True)
    done, failed = asyncio.run(fuzz(seed, deadline=time.monotonic() + 60 * minutes, clock=time.monotonic))
    print(f"{done} requests, {len(failed)} failed")
    for path, data, answer in failed[:5]:
        print(path, data, answer)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
