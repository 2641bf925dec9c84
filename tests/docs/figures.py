"""Figures of the pages: each table follows from a kept result, and the result from a command.

    python -m tests.docs.figures stale           # which pages are stale, and why (make stale)
    python -m tests.docs.figures run NAME        # runs the commands of a table, keeps the result
    python -m tests.docs.figures write           # writes all tables from their kept results

In a page a table stands behind `<!-- figures: NAME -->`. Its kept result, `docs/results/NAME.json`,
holds the figures, the commands, when and with which versions they ran, and digests of the code that
they ran. A table is stale where it differs from its result, or where that code has changed since.
"""

import ast
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from privtrain.core.result import Comparison
from privtrain.core.rounding import outwards, printed_down, printed_up
from privtrain.report import cells
from privtrain.report.files import load
from privtrain.report.summary import groups
from privtrain.runs.card import versions
from tests.docs.operations import authenticated_lines, network_lines, ops_lines
from tests.docs.pages import CHECKOUT, DOCS

RESULTS = DOCS / "results"
TRAINING = tuple(
    f"privtrain/{room}"
    for room in (
        *("core", "accounting", "data", "mechanisms", "sampling", "attacks", "gradients"),
        *("release", "steps", "trainers", "runs"),
    )
)
"""What every trained figure follows from. Reports only print it."""
SECURE = ("privtrain/mpc", "privtrain/runtimes")

Values = dict[str, Any]
"""What JSON can hold."""


@dataclass(frozen=True)
class Run:
    """What one command left behind."""

    comparison: Comparison
    said: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a page.

    Args:
        page: The page, relative to the checkout.
        commands: Name of a part to a command, to which `--out FOLDER` is added.
        takes: About how long that takes on two idle cores.
        code: Files and folders that the figures follow from.
        figures: Makes them of the runs.
        lines: Writes them as the lines of the table.
        kept: Where they are kept, where a benchmark does so itself.
    """

    page: str
    commands: Mapping[str, tuple[str, ...]]
    takes: str
    code: tuple[str, ...]
    figures: Callable[[Mapping[str, Run]], Values]
    lines: Callable[[Values], Iterable[str]]
    kept: str = ""


def percent(accuracy: float) -> str:
    return cells.percent(accuracy)


def with_interval(row: Values) -> str:
    low, high = outwards(*row["interval"], 1, scale=100)
    return f"{percent(row['accuracy'])} ({low}-{high})"


def epsilon(value: float | str, digits: int = 2) -> str:
    """An epsilon with two decimals, rounded up."""
    number = float(value)
    if math.isinf(number):
        return "inf"
    return f"{math.ceil(round(10**digits * number, 9)) / 10**digits:.{digits}f}"


def means(comparison: Comparison) -> Values:
    """Label, and asked epsilon where there is one, to what its seeds show."""
    made: Values = {}
    for group in groups(comparison):
        finished = [row for row in group.rows if row.accuracy is not None]
        first = finished[0]
        guarantees = [g for row in finished if row.statement for g in row.statement.guarantees]
        private = [g.epsilon for g in guarantees if g.data_dependent]
        made[group.name] = {
            "accuracy": fmean(row.accuracy or 0.0 for row in finished),
            "interval": first.accuracy_interval,
            "epsilon": str(group.headline.epsilon) if group.headline else "inf",
            "data_dependent": max(private, default=None),
            "bytes_sent": None if first.cost is None else first.cost.bytes_sent,
            "seeds": len(finished),
        }
    return made


# hospitals

WAYS = ("pooled", "north alone", "south alone", "west alone", "federated")
NOISED, SHARED = "federated, DP in silos", "under MPC"


def hospitals(runs: Mapping[str, Run]) -> Values:
    return means(runs["all"].comparison)


def hospitals_lines(figures: Values) -> Iterable[str]:
    yield "| way | accuracy | epsilon to public, participant, aggregator | sent |"
    yield "|---|---|---|---|"
    twin = f"{SHARED}, in plaintext"
    for name in (*WAYS, f"{NOISED}, ε 3", SHARED, twin):
        row = figures[name]
        said = name.removesuffix(", ε 3")
        sent = cells.size(row["bytes_sent"]).replace("0 B", "0")
        yield f"| {said} | {with_interval(row)} | {epsilon(row['epsilon'])} | {sent} |"


# bank_and_shop


def bank_and_shop(runs: Mapping[str, Run]) -> Values:
    return means(runs["all"].comparison)


def bank_and_shop_lines(figures: Values) -> Iterable[str]:
    yield "| way | accuracy | epsilon to the public | sent |"
    yield "|---|---|---|---|"
    for name, row in figures.items():
        sent = cells.size(row["bytes_sent"]).replace("0 B", "0")
        yield (
            f"| {name.partition(', ε')[0]} | {with_interval(row)} | {epsilon(row['epsilon'])} | "
            f"{sent} |"
        )


# teachers


def teachers(runs: Mapping[str, Run]) -> Values:
    made: Values = {}
    for part, run in runs.items():
        sigma = re.search(r"sigma=([\d.]+)", run.said)
        made[part] = {
            "sigma": float(sigma.group(1)) if sigma else None,
            **{name.split(",")[0]: row for name, row in means(run.comparison).items()},
        }
    return made


def teachers_lines(figures: Values) -> Iterable[str]:
    yield (
        "| formal epsilon | sigma | PATE | data-dependent (private; largest of the seeds) | DP-SGD "
        "| pooled |"
    )
    yield "|---|---|---|---|---|---|"
    for part, row in figures.items():
        yield (
            f"| {part} | {row['sigma']:.1f} | {percent(row['PATE']['accuracy'])} | "
            f"{epsilon(row['PATE']['data_dependent'])} | {percent(row['DP-SGD']['accuracy'])} | "
            f"{percent(row['pooled']['accuracy'])} |"
        )


# census


def census(runs: Mapping[str, Run]) -> Values:
    return means(runs["all"].comparison)


def census_lines(figures: Values) -> Iterable[str]:
    plain = figures["pooled"]["accuracy"]
    yield f"| epsilon | accuracy | points below SGD without a promise ({percent(plain)}) |"
    yield "|---|---|---|"
    for name, row in figures.items():
        if name != "pooled":
            price = 100 * (plain - row["accuracy"])
            asked = name.rpartition(" ")[2]
            yield f"| {asked} | {percent(row['accuracy'])} | {price + 0.0:.1f} |"


# audit


def audit(runs: Mapping[str, Run]) -> Values:
    return {
        row.label: {
            "epsilon": str(row.statement.epsilon() if row.statement else math.inf),
            **dict(row.leakage[0].metrics),
        }
        for row in runs["all"].comparison.rows
    }


def audit_lines(figures: Values) -> Iterable[str]:
    names = ("epsilon_lower_bound", "ceiling", "correct", "f_dp_p_value", "gaussian_family_epsilon")
    yield f"| | stated epsilon | {' | '.join(names)} |"
    yield "|---|---|---|---|---|---|---|"
    for label, row in figures.items():
        said = label.replace("DPSGD", "`DPSGD`") if label != "SGD" else "`SGD`"
        p_value = row["f_dp_p_value"]
        tested = "none: nothing is promised" if p_value is None else printed_up(p_value, 2)
        yield (
            f"| {said} | {epsilon(row['epsilon'])} | {printed_down(row[names[0]], 3)} | "
            f"{row['ceiling']:.2f} | {row['correct']:.0f} of {row['guesses']:.0f} | {tested} | "
            f"{printed_down(row[names[4]], 3)} |"
        )


# DP-FTRL, which its benchmark keeps


def ftrl_lines(figures: Values) -> Iterable[str]:
    yield (
        "| rows, model | epsilon | bands | predicted noise, DP-FTRL / DP-SGD | accuracy of DP-FTRL "
        "| of DP-SGD | seeds of 5 in which DP-FTRL is better |"
    )
    yield "|---|---|---|---|---|---|---|"
    before = ""
    for row in figures["rows"]:
        what = f"{row['work'].rpartition(', epsilon')[0]}, {row['steps']:,} steps"
        pairs = zip(row["ours_accuracy_by_seed"], row["against_accuracy_by_seed"], strict=True)
        better = sum(ours > against for ours, against in pairs)
        yield (
            f"| {'' if what == before else what + ' '}| {row['epsilon']:g} | {row['bands']} | "
            f"{row['ours_predicted_noise']:.1f} / {row['against_predicted_noise']:.1f} | "
            f"{100 * row['ours_accuracy_mean']:.1f} | {100 * row['against_accuracy_mean']:.1f} | "
            f"{better} |"
        )
        before = what


# Membership over several targets, which its benchmark keeps


LARGEST = (("auc", 1, 3), ("tpr_at_1%_fpr", 100, 2), ("tpr_at_0.1%_fpr", 100, 2))


def membership_lines(figures: Values) -> Iterable[str]:
    yield "| trainer (accuracy on members, on others) | attack | AUC | TPR at 1% FPR | at 0.1% |"
    yield "|---|---|---|---|---|"
    before = ""
    for row in figures["rows"]:
        work = row["work"]
        what = f"{work} ({percent(row['accuracy_in'])}, {percent(row['accuracy_out'])})"
        if work != before and "largest_auc" in row:
            rates = " | ".join(
                printed_up(scale * row[f"largest_{name}"], digits)
                for name, scale, digits in LARGEST
            )
            yield f"| {what} | *at most, by its trade-off curve* | {rates} |"
            what = ""
        low, high = outwards(*row["auc_interval"], 3)
        yield (
            f"| {what if work != before else ''} | {row['ours']} | {row['auc']:.3f} ({low}-{high}) "
            f"| {100 * row['tpr_at_1%_fpr']:.1f} | {100 * row['tpr_at_0.1%_fpr']:.2f} |"
        )
        before = work


TABLES: Mapping[str, Table] = {
    "hospitals": Table(
        page="docs/scenarios.md",
        commands={"all": ("scenarios/hospitals.py",)},
        takes="a minute",
        code=("scenarios/hospitals.py", *TRAINING, *SECURE),
        figures=hospitals,
        lines=hospitals_lines,
    ),
    "bank_and_shop": Table(
        page="docs/scenarios.md",
        commands={"all": ("scenarios/bank_and_shop.py",)},
        takes="half a minute, with Adult in PRIVTRAIN_DATA",
        code=("scenarios/bank_and_shop.py", *TRAINING, *SECURE),
        figures=bank_and_shop,
        lines=bank_and_shop_lines,
    ),
    "teachers": Table(
        page="docs/scenarios.md",
        commands={
            "1": ("scenarios/teachers.py", "--epsilon", "1", "--seeds", "3"),
            "3": ("scenarios/teachers.py", "--seeds", "3"),
            "8": ("scenarios/teachers.py", "--epsilon", "8", "--seeds", "3"),
        },
        takes="a minute",
        code=("scenarios/teachers.py", *TRAINING),
        figures=teachers,
        lines=teachers_lines,
    ),
    "census": Table(
        page="docs/scenarios.md",
        commands={"all": ("scenarios/census.py",)},
        takes="a minute, with Adult in PRIVTRAIN_DATA",
        code=("scenarios/census.py", *TRAINING),
        figures=census,
        lines=census_lines,
    ),
    "audit": Table(
        page="docs/attacks.md",
        commands={"all": ("benchmarks/one_run_audit.py",)},
        takes="half a minute",
        code=("benchmarks/one_run_audit.py", *TRAINING),
        figures=audit,
        lines=audit_lines,
    ),
    "dp_ftrl": Table(
        page="docs/trainers/dp_sgd.md",
        commands={"all": ("benchmarks/dp_ftrl.py",)},
        takes="some ten minutes, with MNIST in PRIVTRAIN_DATA",
        code=("benchmarks/dp_ftrl.py", *TRAINING),
        figures=lambda runs: {},
        lines=ftrl_lines,
        kept="benchmarks/results/dp_ftrl.json",
    ),
    "membership": Table(
        page="docs/attacks.md",
        commands={"all": ("benchmarks/membership.py",)},
        takes="some fifteen minutes, with MNIST in PRIVTRAIN_DATA",
        code=("benchmarks/membership.py", *TRAINING),
        figures=lambda runs: {},
        lines=membership_lines,
        kept="benchmarks/results/membership.json",
    ),
    **{
        name: Table(
            page="docs/mpc.md",
            commands={"all": ("benchmarks/mpc_ops.py", "--spu", "PYTHON")},
            takes="some five minutes, with spu==0.9.5 in an environment of its own",
            code=("benchmarks/mpc_ops.py", "benchmarks/on_shares", *SECURE),
            figures=lambda runs: {},
            lines=lines,
            kept="benchmarks/results/mpc_ops.json",
        )
        for name, lines in (
            ("mpc_ops", ops_lines),
            ("mpc_authenticated", authenticated_lines),
            ("mpc_network", network_lines),
        )
    },
}

NOT_HELD = (
    ("docs/scenarios.md", "hospitals over six seeds", "no command keeps it yet"),
    ("docs/reproductions.md", "DP-SGD", "python reproductions/central_dp.py --again"),
    ("docs/reproductions.md", "PATE", "python reproductions/pate.py --again"),
    ("docs/trainers/mpc_sgd.md", "rounds, bytes, seconds", "python benchmarks/secure_step.py"),
    ("docs/trainers/pate.md", "accuracies", "python benchmarks/gnmax.py"),
    ("docs/attacks.md", "broken twins", "python -m tests.laws.test_broken_twins"),
)
"""Figures that no kept result holds yet: page, what, and the command that makes them."""


def kept_in(name: str) -> Path:
    return CHECKOUT / TABLES[name].kept if TABLES[name].kept else RESULTS / f"{name}.json"


def digests(paths: Iterable[str]) -> dict[str, str]:
    """File or folder to a digest of its code; comments and docstrings make no difference."""
    return {path: _digest(CHECKOUT / path) for path in paths}


def _digest(place: Path) -> str:
    hashed = hashlib.sha256()
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        hashed.update(str(path.relative_to(CHECKOUT)).encode())
        hashed.update(_code(path.read_text(encoding="utf-8")).encode())
    return hashed.hexdigest()[:16]


def _code(text: str) -> str:
    """Code without comments, layout and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return ast.dump(tree)


def text_of(name: str) -> str:
    """A table as its kept result says it."""
    document = json.loads(kept_in(name).read_text(encoding="utf-8"))
    figures = document if TABLES[name].kept else document["figures"]
    return "\n".join(TABLES[name].lines(figures))


def text_in_page(name: str) -> str:
    """A table as it stands in its page.

    Raises:
        ValueError: If the page has no such table.
    """
    found = _place(name).search((CHECKOUT / TABLES[name].page).read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{TABLES[name].page} has no table behind <!-- figures: {name} -->.")
    return found.group(2)


def _place(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- figures: {name} -->\n\n?)((?:\|.*\n?)+)(?<!\n)", re.MULTILINE)


def reasons(name: str) -> list[str]:
    """Why a table is stale; nothing where it is not."""
    table = TABLES[name]
    if not kept_in(name).exists():
        return ["there is no kept result"]
    said = []
    if text_in_page(name) != text_of(name):
        said.append("the page differs from the kept result: python -m tests.docs.figures write")
    document = json.loads(kept_in(name).read_text(encoding="utf-8"))
    if "code" not in document:
        made = f"commit {document.get('commit', 'unknown')}, {document.get('date', '')}"
        said.append(f"made by {made}, before results named their code")
    else:
        now = digests(table.code)
        changed = [path for path in table.code if document["code"].get(path) != now[path]]
        if changed:
            said.append(f"changed since {document['date']}: {', '.join(changed)}")
    return said


def run(name: str) -> None:
    """Runs the commands of a table and keeps what they show."""
    table, runs = TABLES[name], {}
    code = digests(table.code)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        for part, command in table.commands.items():
            folder = Path(place) / part
            done = subprocess.run(
                [sys.executable, *command, "--out", str(folder)],
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                capture_output=True,
                text=True,
                check=True,
            )
            runs[part] = Run(load(folder), done.stdout)
    keep(name, runs, code, time.monotonic() - start)


def keep(name: str, runs: Mapping[str, Run], code: Mapping[str, str], seconds: float) -> None:
    """Writes the kept result of a table."""
    table = TABLES[name]
    known = versions()
    document = {
        "commands": {part: f"python {' '.join(made)}" for part, made in table.commands.items()},
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "versions": {name: known[name] for name in ("privtrain", "python", "torch", "numpy")},
        "code": code,
        "figures": table.figures(runs),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def write(name: str) -> None:
    """Writes a table into its page."""
    page = CHECKOUT / TABLES[name].page
    text = page.read_text(encoding="utf-8")
    made = text_of(name)
    page.write_text(
        _place(name).sub(lambda found: found.group(1) + made, text, count=1), encoding="utf-8"
    )


def stale() -> int:
    """Prints which pages are stale, and why; 1 where any is."""
    found = 0
    for name, table in TABLES.items():
        why = reasons(name)
        found += bool(why)
        commands = "; ".join(f"python {' '.join(made)}" for made in table.commands.values())
        print(f"{table.page}, {name}: {'; '.join(why) if why else 'up to date'}")
        if why:
            print(f"    again: {commands} ({table.takes})")
    for page, what, command in NOT_HELD:
        print(f"{page}, {what}: held by no kept result ({command})")
    return int(found > 0)


def main(arguments: list[str]) -> int:
    """See the top of this file."""
    if arguments == ["stale"]:
        return stale()
    if arguments == ["write"]:
        for name in TABLES:
            write(name)
        return 0
    if len(arguments) == 2 and arguments[0] == "run" and arguments[1] in TABLES:
        run(arguments[1])
        write(arguments[1])
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
