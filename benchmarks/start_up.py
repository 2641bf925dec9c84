"""How long a user waits for help, a list, or the answer to a misspelt name: no torch, no Flower.

    python benchmarks/start_up.py [--quick] [--json]

CPU seconds of whole processes, beside those of a process that imports torch and does nothing.
The target for help is 0.3 s of CPU on the machine of the other results.
"""

import os
import subprocess
import sys
from functools import partial

from harness import CHECKOUT, Row, in_turn, main

OURS = {
    "import privtrain": ["-c", "import privtrain"],
    "privtrain --help": ["-m", "privtrain", "--help"],
    "privtrain trainers": ["-m", "privtrain", "trainers"],
    "a misspelt trainer": ["-m", "privtrain", "compare", "--trainers", "dpsgd"],
    "a misspelt data set": ["-m", "privtrain", "fit", "--data", "digts"],
}
TORCH = ["-c", "import torch"]


def cpu_seconds(arguments: list[str]) -> float:
    """CPU seconds of one Python process and its children, whatever it prints."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # 2 is what a misspelt name is answered with.
    if process.returncode not in (0, 2):
        raise SystemExit(f"{arguments} ended with {process.returncode}.")
    return used.ru_utime + used.ru_stime


def rows(quick: bool) -> list[Row]:
    """Each way to start, beside torch alone."""
    chosen = {work: OURS[work] for work in list(OURS)[1:2]} if quick else OURS
    for arguments in (*chosen.values(), TORCH):  # compiles what is not compiled yet
        cpu_seconds(arguments)
    return [
        in_turn(
            work,
            partial(cpu_seconds, arguments),
            partial(cpu_seconds, TORCH),
            ours_name="CPU time",
            against_name="import torch",
            repeats=5 if quick else 15,
        )
        for work, arguments in chosen.items()
    ]


if __name__ == "__main__":
    main(rows)
