"""How long commands take to start: the median over runs, beside that of a Python that does nothing.

    python benchmarks/startup.py [--runs 15]

Runs of the commands alternate, so that a machine that slows down slows all of them. Ends with status 1 where a limit is
broken.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

LIMITS = {  # seconds
    "spheregen --help": 0.5,
    "spheregen --version": 0.5,
    "spheregen plugins list": 3.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    commands = {"python -c pass": [sys.executable, "-c", "pass"]}
    commands |= {name: [sys.executable, "-m", *name.split()] for name in LIMITS}
    for command in commands.values():  # files come from the disk's cache, byte code is there
        run(command)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            seconds[name].append(run(command))
    print(f"{'command':28}{'median':>9}{'least':>9}{'limit':>9}")
    broken = False
    for name, found in seconds.items():
        median, limit = statistics.median(found), LIMITS.get(name)
        broken |= limit is not None and median > limit
        print(f"{name:28}{median:8.2f}s{min(found):8.2f}s" + (f"{limit:8.1f}s" if limit else ""))
    sys.exit(broken)


def run(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
