"""The main job: `privtrain compare` on digits, five trainers, one epsilon, one seed.

    python benchmarks/compare_digits.py [--quick] [--json]
    python benchmarks/compare_digits.py --against CHECKOUT [--quick]

Each run is a process of its own, started as a user starts it, in a new folder. It is held against
what it may take: 90 seconds, and 1.5 GB of memory in the main process. MPC's parties are
processes of their own and report their memory in the comparison.

`--against` runs this checkout and another one in turn, such as the commit before a change.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import PAIRS, ROOT, SEED, Report, Row, from_seconds, in_turn, main

SECONDS_ALLOWED = 90.0
BYTES_ALLOWED = 1.5e9
TRAINERS = ("sgd", "fedavg", "dp_sgd", "mpc_sgd", "pate")
EXTRAS: Report = {}


def run_once(folder: Path, checkout: Path = ROOT) -> tuple[float, int]:
    """One comparison; returns wall-clock seconds and the main process's peak memory in bytes."""
    command = [sys.executable, "-m", "privtrain", "compare", "--data", "digits", "--json"]
    command += ["--trainers", *TRAINERS, "--epsilon", "3", "--seeds", "1", "--out", str(folder)]
    start = time.perf_counter()
    # First on the path, wherever privtrain may be installed from.
    surroundings = {**os.environ, "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(command, cwd=checkout, env=surroundings, stdout=subprocess.DEVNULL)
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


def against(checkout: Path, quick: bool) -> list[Row]:
    """Seconds of whole runs of this checkout and of another one."""
    with tempfile.TemporaryDirectory() as place:

        def seconds(root: Path) -> float:
            return run_once(Path(tempfile.mkdtemp(dir=place)), root)[0]

        return [
            in_turn(
                "compare-digits-five-trainers",
                lambda: seconds(ROOT),
                lambda: seconds(checkout.resolve()),
                ours_name="this",
                against_name="other",
                repeats=1 if quick else PAIRS,
            )
        ]


def _figures(folder: Path) -> list[Report]:
    document = json.loads((folder / "comparison.json").read_text())
    return [
        {"trainer": row["trainer"], "accuracy": row["accuracy"], "cost": row["cost"]}
        for row in document["rows"]
    ]


if __name__ == "__main__":
    main(rows, extras=EXTRAS, against=against)
