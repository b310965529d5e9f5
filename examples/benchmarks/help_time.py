"""Measures how long `autolayer --help` takes, next to an empty Python: torch must not be imported for it.

Hardware: any. Takes 10 seconds. Expect a ratio below 5; with torch imported it would be above 50.

    python examples/benchmarks/help_time.py
"""

import statistics
import subprocess
import sys
import time

REPEATS = 20
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "autolayer --help": ["-m", "autolayer", "--help"],
    "autolayer pick --help": ["-m", "autolayer", "pick", "--help"],
}


def measure() -> dict[str, float]:
    """Median seconds per command. The commands take turns, so that a busy moment hits all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(REPEATS + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
            if repeat:  # the first round only fills the file cache
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    medians = measure()
    empty = medians["python -c pass"]
    print(f"{'command':24} {'median ms':>10} {'ratio':>6}")
    for name, median in medians.items():
        print(f"{name:24} {1000 * median:10.1f} {median / empty:6.1f}")


if __name__ == "__main__":
    main()
