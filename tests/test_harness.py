"""Benchmarks print exactly one JSON list of rows, and interleave what they measure."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
HARNESS = ROOT / "benchmarks" / "harness.py"
# Its figures are those of a page, and no times.
UNTIMED = (HARNESS, HARNESS.with_name("one_run_audit.py"))
KEYS = ["work", "ours", "against", "ratio_median", "ratio_min", "ratio_max", "repeats"]
KEYS += ["ours_ms", "against_ms"]


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sides_are_interleaved_and_their_order_alternates(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that only the sides move: what a machine is busy with is no part of the test.
    clock = 0.0
    calls: list[str] = []

    def side(name: str, seconds: float) -> None:
        nonlocal clock
        calls.append(name)
        clock += seconds

    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock)
    row = harness.compare(
        "work",
        lambda: side("A", 4.0),
        lambda: side("B", 1.0),
        ours_name="long",
        against_name="short",
        repeats=5,
        warmup=1,
    )
    assert "".join(calls) == "AB" + "AB" + "BA" + "AB" + "BA" + "AB"
    assert list(row) == KEYS
    assert row["repeats"] == 5
    assert row["ratio_min"] == row["ratio_median"] == row["ratio_max"] == 4.0
    assert (row["ours_ms"], row["against_ms"]) == (4000.0, 1000.0)


def test_too_few_repeats_are_refused(harness: ModuleType) -> None:
    with pytest.raises(ValueError, match="repeats=4"):
        harness.compare("x", lambda: None, lambda: None, ours_name="a", against_name="b", repeats=4)
    with pytest.raises(ValueError):
        harness.from_seconds("x", [1.0], [1.0, 2.0], ours_name="a", against_name="b")


def test_results_name_no_host_and_no_path(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    row = harness.from_seconds("x", [1.0, 2.0], [2.0, 2.0], ours_name="a", against_name="b")
    written = harness.save("example", [row], {"epsilon": 1.0}).read_text()
    report = json.loads(written)
    assert set(report) == {
        "rows", "machine", "versions", "commit", "seed", "date", "epsilon"
    }  # fmt: skip
    assert report["rows"] == [row]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", report["date"])
    import platform

    assert platform.node() not in written
    assert str(ROOT) not in written
    assert "/home" not in written


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path not in UNTIMED)
)
def test_a_quick_benchmark_prints_one_json_list(name: str) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows
    if name == "mpc_ops":
        assert {row["against"] for row in rows} == {
            *("crypten", "crypten-stock tfp", "crypten-stock ttp"),
            *("ring64 online, 2 parties", "ring64 total, 2 parties"),
            *("ring64 online", "ring64 total"),
        }
        assert {row["ours"] for row in rows} == {
            f"{engine} {kind}" for engine in ("ring64", "spdz2k") for kind in ("online", "total")
        }
    for row in rows:
        assert list(row)[: len(KEYS)] == KEYS
        # Whole comparisons and trainings take long, so their quick forms run once.
        assert row["repeats"] >= (
            1 if name in ("compare_digits", "membership", "mpc_training", "observers") else 5
        )
        assert 0 < row["ratio_min"] <= row["ratio_median"] <= row["ratio_max"]
