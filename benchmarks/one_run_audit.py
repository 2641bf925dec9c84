"""What a one-run audit proves of DP-SGD and of plain SGD, with 500 mislabelled canaries in digits.

    python benchmarks/one_run_audit.py --out FOLDER

No timing: the figures are those of the table in docs/attacks.md, and FOLDER holds the comparison.
"""

import argparse
from pathlib import Path

import privtrain as pt


def compare() -> pt.Comparison:
    """Both audits, at one seed."""
    task, data = pt.data.digits(parties=1, seed=0)
    planted = pt.data.with_canaries(data, pt.data.mislabelled_rows(data, count=500), seed=0)
    private = pt.calibrate(pt.DPSGD(epochs=30, sampling_rate=0.05), planted, epsilon=3.0)
    return pt.compare(
        {"DPSGD, calibrated": private, "SGD": pt.SGD(epochs=60)},
        task,
        planted,
        attacks=[pt.OneRun(guesses=100)],
        runtimes=pt.Runtimes(star=pt.InProcess()),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    comparison = compare()
    print(comparison)
    pt.save(comparison, folder, force=True)
