"""Changes the code that makes promises, one place at a time, and looks whether a test fails.

    python -m tests.mutants draw --count 120 --out tests/mutants.json     # a new sample
    python -m tests.mutants run tests/mutants.json                        # tries all of it

A change is kept as (function, old, new): a line inside a function, whatever file the function lies
in, so that a sample can be tried again after code has moved. Each is tried against the tests of its
own package. With a coverage file written by `pytest --cov-context=test`, only those tests run that
reach the changed line.

A change that makes no difference for any input that can occur is marked "equivalent" by hand, and
says why. It is not tried again, but its line has to stand.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISING = re.compile(
    "(accounting|mechanisms|sampling|ledgers|release|gradients|steps|trainers)/"
    "|attacks/one_run/|mpc/(sharing|keystream|descent)"
)
"""What makes promises: bounds, noise, accounting, ledgers, sampling, releases."""

COMPARED = ("Lt", "LtE", "Gt", "GtE", "Eq", "NotEq", "Is", "IsNot")
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{a}" for a in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul")),
    *("core/ReplaceBinaryOperator_Pow_Mul", "core/ReplaceBinaryOperator_FloorDiv_Div"),
    *(f"core/ReplaceComparisonOperator_{a}_{b}" for a in COMPARED for b in COMPARED),
    *("core/ReplaceAndWithOr", "core/ReplaceOrWithAnd", "core/AddNot"),
    *("core/ReplaceTrueWithFalse", "core/ReplaceFalseWithTrue", "core/NumberReplacer"),
    *("core/ReplaceUnaryOperator_USub_UAdd", "core/ReplaceUnaryOperator_Delete_Not"),
)


EQUIVALENT = "equivalent"
"""The result of a change that no test can notice."""


@dataclass(frozen=True)
class Change:
    """One line of one function, as it was and as it becomes; why, where that is equivalent."""

    function: str
    old: str
    new: str
    result: str = "untried"
    why: str = ""


def functions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, int, int]]:
    """Qualified names of all functions and methods, with their first and last lines."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{outer}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node.lineno, node.end_lineno or node.lineno
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, outer)


@cache
def spans(text: str) -> tuple[tuple[str, int, int], ...]:
    """The functions of a file's text; see `functions`."""
    return tuple(functions(ast.parse(text)))


def places(root: Path, change: Change) -> list[tuple[Path, int]]:
    """Where the line of a change stands: files and line numbers from 1."""
    found = []
    for path in sorted((root / "privtrain").rglob("*.py")):
        text = path.read_text()
        lines = text.split("\n")
        for name, first, last in spans(text):
            if name == change.function:
                numbers = range(first, last + 1)
                found += [(path, n) for n in numbers if lines[n - 1].strip() == change.old]
    return list(dict.fromkeys(found))


def positions(path: Path) -> list[tuple[Path, str, int]]:
    """Every place of a file that an operator can change: file, operator, number of the place."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes, known = list(ast_nodes(get_ast(path.read_text()))), set(operator_names())
    found = []
    for name in filter(known.__contains__, OPERATORS):
        operator = get_operator(name)()
        count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        found += [(path, name, number) for number in range(count)]
    return found


def changed(path: Path, name: str, number: int) -> Change | None:
    """The change of one place; None where it is not one line inside a function."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    text = path.read_text()
    lines, after = (
        text.split("\n"),
        (mutate_code(text, get_operator(name)(), number) or text).split("\n"),
    )
    if len(after) != len(lines):
        return None
    moved = [n for n, (a, b) in enumerate(zip(lines, after, strict=True), 1) if a != b]
    owners = {n: f for f, a, b in spans(text) for n in range(a, b + 1)}
    if len(moved) != 1 or moved[0] not in owners:
        return None
    n = moved[0]
    return Change(owners[n], lines[n - 1].strip(), after[n - 1].strip())


def draw(count: int, seed: int, out: Path) -> None:
    """Draws a sample over all files that make promises, at most one change a line."""
    drawn = random.Random(seed)
    package = ROOT / "privtrain"
    files = [
        p for p in sorted(package.rglob("*.py")) if PROMISING.match(str(p.relative_to(package)))
    ]
    pool = [place for path in files for place in positions(path)]
    drawn.shuffle(pool)
    sample: dict[tuple[str, str], Change] = {}
    for place in pool:
        change = changed(*place)
        if change is not None and len(places(ROOT, change)) == 1:
            sample.setdefault((change.function, change.old), change)
        if len(sample) == count:
            break
    write(out, list(sample.values()))


def write(path: Path, sample: list[Change]) -> None:
    """Writes a sample, a line for each change."""
    entries = ({key: value for key, value in asdict(each).items() if value} for each in sample)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n")


def tests_of(path: Path, root: Path) -> Path:
    """The tests of a file's package."""
    return root / "tests" / path.relative_to(root / "privtrain").parts[0]


def reaching(coverage: Path, path: Path, line: int, room: Path, root: Path) -> list[str] | None:
    """The tests of a room that reach a line; None where the file does not say."""
    from coverage.numbits import num_in_numbits

    with sqlite3.connect(coverage) as database:
        rows = database.execute(
            "select context.context, numbits from line_bits join file on file.id = file_id "
            "join context on context.id = context_id where file.path like ?",
            (f"%/{path.relative_to(root)}",),
        ).fetchall()
    within = str(room.relative_to(root))
    named = [context.rpartition("|")[0] for context, bits in rows if num_in_numbits(line, bits)]
    found = sorted({name for name in named if name.startswith(within)})
    return found or None


def outcome(change: Change, copy: Path, coverage: Path | None, slow: bool) -> str:
    """What the tests say of one change: killed, lived, or gone where its line is not there."""
    stands = places(copy, change)
    if len(stands) != 1:
        return "gone" if not stands else "ambiguous"
    if change.result == EQUIVALENT:
        return EQUIVALENT
    ((path, line),) = stands
    text = path.read_text()
    lines = text.split("\n")
    lines[line - 1] = lines[line - 1].replace(change.old, change.new)
    room = tests_of(path, copy)
    own = sorted(room.rglob(f"test_{path.stem}*.py")) if room.is_dir() else []
    chosen = [str(file.relative_to(copy)) for file in own] + [str(room.relative_to(copy))]
    if coverage is not None:
        chosen = reaching(coverage, path, line, room, copy) or chosen
    listed = copy / "chosen.txt"
    listed.write_text("\n".join(chosen))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n0"]
    command += [] if slow else ["-m", "not slow"]
    variables = {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    path.write_text("\n".join(lines))
    try:
        done = subprocess.run(
            [*command, f"@{listed}"],
            cwd=copy,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        path.write_text(text)
    # 5: no quick test reaches the line. All other codes come from the change: a test failed, or
    # nothing can be imported any more.
    return "lived" if done.returncode in (0, 5) else "killed"


def run(sample: Path, workers: int, coverage: Path | None, slow: bool) -> None:
    """Tries a sample and writes the results back."""
    tried = [Change(**entry) for entry in json.loads(sample.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / str(number) / "checkout" for number in range(workers)]
        for copy in copies:
            for part in ("privtrain", "tests", "docs", "benchmarks", "scenarios", "reproductions"):
                shutil.copytree(ROOT / part, copy / part)
            for file in ROOT.glob("[!.]*.*"):
                shutil.copy(file, copy)

        def share(number: int) -> list[tuple[int, Change]]:
            made = []
            for place in range(number, len(tried), workers):
                result = outcome(tried[place], copies[number], coverage, slow)
                print(f"{result:9} {tried[place].function}: {tried[place].new}", flush=True)
                made.append((place, replace(tried[place], result=result)))
            return made

        with ThreadPoolExecutor(workers) as pool:
            done = [entry for part in pool.map(share, range(workers)) for entry in part]
    results = [change for _, change in sorted(done, key=lambda entry: entry[0])]
    write(sample, results)
    print(dict(Counter(change.result for change in results)))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="draws a sample")
    drawing.add_argument("--count", type=int, default=120)
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--out", type=Path, default=ROOT / "tests" / "mutants.json")
    running = commands.add_parser("run", help="tries a sample")
    running.add_argument("sample", type=Path, nargs="?", default=ROOT / "tests" / "mutants.json")
    running.add_argument("--workers", type=int, default=2)
    running.add_argument("--coverage", type=Path, help="a .coverage file with contexts")
    running.add_argument("--slow", action="store_true", help="slow tests, too")
    given = parser.parse_args()
    if given.command == "draw":
        draw(given.count, given.seed, given.out)
    else:
        run(given.sample, given.workers, given.coverage, given.slow)


if __name__ == "__main__":
    main()
