"""Shared by all benchmarks: two sides measured in turn, their ratio, a table or JSON.

A benchmark file compares what is ours with something that does the same work:

    from harness import compare, main

    def rows(quick: bool) -> list[Row]:
        return [compare("work", ours, against, ours_name="ours", against_name="loop")]

    if __name__ == "__main__":
        main(rows)

Machines differ, ratios less: both sides run in one process, A B, B A, A B, ..., after a warm-up.

With `--against CHECKOUT` a benchmark that offers it measures this checkout and another one, such as
the commit before a change: each side in a process of its own, which work in turn.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""work, ours, against, ratio_median, ratio_min, ratio_max, repeats, ours_ms, against_ms."""

Report = dict[str, Any]
"""What a full run writes: rows, machine, versions, commit, seed, date, and extras."""

ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = Path(os.environ.get("PRIVTRAIN_CHECKOUT", ROOT))
"""The checkout that this process measures: files of this folder put it at the head of the path."""

PAIRS = 15
"""Of two checkouts: how many pairs of timings."""

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "scipy", "torch", "flwr", "opacus", "crypten", "dp-accounting")
SEED = 0


def compare(
    work: str,
    ours: Callable[[], object],
    against: Callable[[], object],
    *,
    ours_name: str,
    against_name: str,
    repeats: int = 5,
    warmup: int = 1,
) -> Row:
    """Times two ways of doing the same work, in turn.

    Args:
        work: What is done.
        ours: Does it our way.
        against: Does it the other way.
        ours_name: What our way is called.
        against_name: What the other way is called.
        repeats: Pairs of timings; at least 5.
        warmup: Untimed runs of each side beforehand.

    Returns:
        One row: the ratio ours / against of each pair (median, smallest, largest), and the median
        milliseconds of each side.

    Raises:
        ValueError: If there are too few repeats.
    """
    if repeats < 5:
        raise ValueError(f"Expected repeats={repeats} >= 5: fewer say nothing about the spread.")
    sides = (ours, against)
    for _ in range(warmup):
        for side in sides:
            side()
    timed = (lambda: _seconds(ours), lambda: _seconds(against))
    return in_turn(work, *timed, ours_name=ours_name, against_name=against_name, repeats=repeats)


def in_turn(
    work: str,
    ours: Callable[[], float],
    against: Callable[[], float],
    *,
    ours_name: str,
    against_name: str,
    repeats: int,
) -> Row:
    """A row from two sides that say themselves how many seconds they took; asked in turn."""
    sides, seconds = (ours, against), (list[float](), list[float]())
    for repeat in range(repeats):
        # Alternating the order: whoever goes second finds warmer caches.
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            seconds[index].append(sides[index]())
    return from_seconds(work, *seconds, ours_name=ours_name, against_name=against_name)


@contextmanager
def checkouts(other: Path, *arguments: str) -> Iterator[list[Callable[[object], float]]]:
    """This benchmark in a process for this checkout and in one for another, for as long as asked.

    Args:
        other: The other checkout.
        arguments: What both processes are started with. They answer each line that they read by
            a line of seconds, and end with their input.

    Yields:
        For each of the two what asks it a question and gives the seconds of its answer.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, sys.argv[0], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PRIVTRAIN_CHECKOUT": str(root)},
            text=True,
        )
        for root in (ROOT, other.resolve())
    ]

    def asking(process: Any) -> Callable[[object], float]:
        def ask(question: object) -> float:
            process.stdin.write(f"{question}\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        return ask

    try:
        yield [asking(process) for process in processes]
    finally:
        for process in processes:
            process.communicate()


def from_seconds(
    work: str,
    ours: list[float],
    against: list[float],
    *,
    ours_name: str,
    against_name: str,
) -> Row:
    """A row from paired timings that were taken elsewhere, as inside other processes.

    Args:
        work: What is done.
        ours: Seconds of our side, one a repeat.
        against: Seconds of the other side, in the same order.
        ours_name: What our way is called.
        against_name: What the other way is called.

    Returns:
        The row.

    Raises:
        ValueError: If the timings are not paired.
    """
    ratios = [mine / theirs for mine, theirs in zip(ours, against, strict=True)]
    return {
        "work": work,
        "ours": ours_name,
        "against": against_name,
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "repeats": len(ratios),
        "ours_ms": 1e3 * statistics.median(ours),
        "against_ms": 1e3 * statistics.median(against),
    }


def main(
    build_rows: Callable[..., list[Row]],
    *,
    options: Mapping[str, str] | None = None,
    extras: Report | None = None,
    against: Callable[[Path, bool], list[Row]] | None = None,
) -> None:
    """The command line of a benchmark file: `--quick`, `--json`, and perhaps `--against`.

    Args:
        build_rows: Measures; called with whether it has to be quick (under a minute), and with
            what is given for each option, or None, by its name.
        options: Further options that take a word: name to what `--help` says.
        extras: Further keys of the results file, read after measuring.
        against: Measures this checkout and the one that it is called with, in turn.
    """
    stem = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=f"benchmarks/{stem}.py", description=_story())
    parser.add_argument("--quick", action="store_true", help="fewer and smaller, under a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON list of rows only")
    if against is not None:
        parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the other checkout")
    for name, story in (options or {}).items():
        parser.add_argument(f"--{name}", help=story)
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in options or {}}
    _pin_threads()
    if against is not None and arguments.against is not None:
        rows = against(arguments.against, arguments.quick)
        stem, extras = f"{stem}_against", {"other_commit": commit(arguments.against)}
    else:
        rows = build_rows(arguments.quick, **given)
    if arguments.json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print(table(rows))
    if not arguments.quick:
        save(stem, rows, extras or {})


def save(stem: str, rows: list[Row], extras: Report) -> Path:
    """Writes `results/<stem>.json`. It names the kind of machine, never the host or a path.

    Args:
        stem: Name of the benchmark file, without its ending.
        rows: What was measured.
        extras: Further keys.

    Returns:
        The file.
    """
    report: Report = {
        "rows": rows,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "seed": SEED,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **extras,
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{stem}.json"
    target.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return target


def table(rows: list[Row]) -> str:
    """The rows for a terminal.

    Args:
        rows: What was measured.

    Returns:
        One line a row; keys beyond the usual ones stand at its end.
    """
    usual = {"work", "ours", "against", "repeats", "ours_ms", "against_ms"}
    usual |= {"ratio_median", "ratio_min", "ratio_max"}
    lines = [f"{'work':32} {'ours / against':34} {'ratio':>8} {'spread':>17} {'ms':>21}"]
    for row in rows:
        sides = f"{row['ours']} / {row['against']}"
        spread = f"{row['ratio_min']:.3g} - {row['ratio_max']:.3g}"
        times = f"{row['ours_ms']:.4g} / {row['against_ms']:.4g}"
        extra = "  ".join(f"{key}={value}" for key, value in row.items() if key not in usual)
        line = f"{row['work']:32} {sides:34} {row['ratio_median']:8.3g} {spread:>17} {times:>21}"
        lines.append(f"{line}  {extra}".rstrip())
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """The kind of machine: system, architecture, processors; no name."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that a figure depends on."""
    installed = {}
    for name in ("privtrain", *PACKAGES):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def commit(here: Path = ROOT) -> str:
    """The commit of a checkout that was measured, with "+changes" where files differ from it."""
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", "privtrain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _seconds(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _story() -> str:
    story = sys.modules["__main__"].__doc__ or ""
    return story.strip().split("\n\n")[0]


def _pin_threads() -> None:
    import torch

    torch.set_num_threads(1)
