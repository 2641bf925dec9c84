"""The main job: `privtrain compare` on digits, five trainers, one epsilon, one seed.

    python benchmarks/compare_digits.py [--quick] [--json]

Each run is a process of its own, started as a user starts it, in a new folder. It is held against
what it may take: 90 seconds, and 1.5 GB of memory in the main process. MPC's parties are
processes of their own and report their memory in the comparison.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import SEED, Report, Row, from_seconds, main

ROOT = Path(__file__).resolve().parent.parent
SECONDS_ALLOWED = 90.0
BYTES_ALLOWED = 1.5e9
TRAINERS = ("sgd", "fedavg", "dp_sgd", "mpc_sgd", "pate")
EXTRAS: Report = {}


def run_once(folder: Path) -> tuple[float, int]:
    """One comparison; returns wall-clock seconds and the main process's peak memory in bytes."""
    command = [sys.executable, "-m", "privtrain", "compare", "--data", "digits", "--json"]
    command += ["--trainers", *TRAINERS, "--epsilon", "3", "--seeds", "1", "--out", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
    return seconds, usage.ru_maxrss * 1024


def rows(quick: bool) -> list[Row]:
    """Seconds of whole runs against the allowance; figures of each trainer beside."""
    seconds, memory = [], []
    with tempfile.TemporaryDirectory() as place:
        for number in range(1 if quick else 5):
            folder = Path(place) / str(number)
            took, peak = run_once(folder)
            seconds.append(took)
            memory.append(peak)
        EXTRAS["trainers"] = _figures(folder)
    EXTRAS["peak_memory_bytes"] = memory
    EXTRAS["peak_memory_over_allowed"] = max(memory) / BYTES_ALLOWED
    EXTRAS["seed_of_the_run"] = SEED
    return [
        from_seconds(
            "compare-digits-five-trainers",
            seconds,
            [SECONDS_ALLOWED] * len(seconds),
            ours_name="privtrain compare",
            against_name="allowance of 90 s",
        )
    ]


def _figures(folder: Path) -> list[Report]:
    document = json.loads((folder / "comparison.json").read_text())
    return [
        {"trainer": row["trainer"], "accuracy": row["accuracy"], "cost": row["cost"]}
        for row in document["rows"]
    ]


if __name__ == "__main__":
    main(rows, extras=EXTRAS)
