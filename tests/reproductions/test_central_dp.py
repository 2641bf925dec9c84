"""Reproductions: recipes train, noise is the papers', and a finished run is not lost."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from privtrain.core.errors import DataError
from reproductions import central_dp
from reproductions.central_dp import RECIPES, Args, Job, classic_sigma
from tests.data.conftest import data_directory

__all__ = ["data_directory"]


@pytest.mark.parametrize(("name", "published"), [("cnn", 1.23)])
def test_the_classic_noise_is_the_published_one(name: str, published: float) -> None:
    """Tramer and Boneh 2021: batch 512, 4,680 steps, epsilon 2.992 at 1.23."""
    assert classic_sigma(RECIPES[name], 60_000, 2.992) == pytest.approx(published, abs=5e-3)


def test_the_most_wanted_runs_come_first() -> None:
    found = list(central_dp.jobs(Args()))
    assert {job.epsilon for job in found[:15]} == {3.0}
    assert len(found) == len(set(found)) == 3 * (3 * (2 + 2 + 1)) + 3


def test_finished_runs_are_kept_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(central_dp, "RESULTS", tmp_path / "results" / "central_dp.json")
    args = Args(only=("cnn",), epsilons=(3.0,), seeds=2)
    first, *others = central_dp.missing(args)
    figures = {"sigma": 1.2, "epsilon_pld": 2.9, "epsilon_rdp": 3.1, "seconds": 5.0}
    central_dp.write({**vars(first), **figures, "accuracy": 0.975})
    assert central_dp.missing(args) == others
    central_dp.write({**vars(first), **figures, "accuracy": 0.985, "seed": 1})
    assert len(json.loads(central_dp.RESULTS.read_text())["rows"]) == 2
    shown = central_dp.table(central_dp.read())
    assert "| cnn | 3 | pld | 1.200 | 2.900 | 3.100 | 98.00 ± 0.71 (97.50–98.50) | 2 | 5 |" in shown


def test_what_is_done_is_said_and_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(central_dp, "RESULTS", tmp_path / "central_dp.json")
    monkeypatch.setattr(
        central_dp, "trained", lambda job, args: {**vars(job), "accuracy": next(accuracies)}
    )
    accuracies = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    args = Args(only=("cnn",), epsilons=(3.0,), seeds=1)
    assert central_dp.main(args) == 0
    assert [row["accuracy"] for row in central_dp.read()] == [0.1, 0.2]
    capsys.readouterr()
    assert central_dp.main(args) == 0
    said = capsys.readouterr().out
    assert "2 of 2 runs are in" in said and "--again repeats them" in said
    assert central_dp.main(Args(only=("cnn",), epsilons=(3.0,), seeds=1, again=True)) == 0
    assert "runs are in" not in capsys.readouterr().err
    assert [row["accuracy"] for row in central_dp.read()] == [0.3, 0.4], "in their places"
    # Beside what is done, what is missing is run, and its lines stay JSON.
    assert central_dp.main(Args(only=("cnn",), epsilons=(3.0,), seeds=2)) == 0
    shown = capsys.readouterr()
    assert "2 of 4 runs are in" in shown.err
    assert [json.loads(line)["accuracy"] for line in shown.out.splitlines()] == [0.5, 0.6]


def test_data_are_found_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVTRAIN_DATA", str(tmp_path))
    job = Job(recipe="adult", epsilon=3.0, accounting="pld", seed=0)
    with pytest.raises(DataError, match=re.escape(f"Looked in {tmp_path / 'adult'}")):
        central_dp.trained(job, Args())
    monkeypatch.delenv("PRIVTRAIN_DATA")
    with pytest.raises(DataError, match="PRIVTRAIN_DATA"):
        central_dp.trained(job, Args(smoke=True))


def test_the_page_shows_what_was_measured() -> None:
    page = (Path(central_dp.__file__).parents[1] / "docs" / "reproductions.md").read_text()
    assert central_dp.table(central_dp.read()) in page


def test_other_seeds_can_be_asked_for() -> None:
    found = central_dp.jobs(Args(only=("cnn",), epsilons=(3.0,), seeds=2, first_seed=7))
    assert [(job.accounting, job.seed) for job in found] == [
        ("pld", 7),
        ("paper", 7),
        ("pld", 8),
        ("paper", 8),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": ("cn",)}, "Expected only='cn' to be one of adult, cnn, scatternet"),
        ({"epsilons": (0.0,)}, r"Expected epsilons=0\.0 > 0"),
        ({"seeds": 0}, "Expected seeds=0"),
        ({"workers": 0}, "Expected workers=0"),
        ({"first_seed": -1}, "Expected first_seed=-1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Args(**settings)


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_finished_and_stops_the_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that is stopped cannot finish its run, which would leave a file after a minute."""
    monkeypatch.setattr(central_dp, "trained", slow_but_for_seed_0)
    todo = [Job(recipe="adult", epsilon=3.0, accounting="pld", seed=seed) for seed in range(3)]
    rows = central_dp.results(todo, Args(workers=2, directory=tmp_path))
    assert next(rows) == {"seed": 0}
    with pytest.raises(KeyboardInterrupt):
        rows.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def slow_but_for_seed_0(job: Job, args: Args) -> dict[str, object]:
    if job.seed > 0:
        time.sleep(60)
        (args.directory / str(job.seed)).touch()
    return {"seed": job.seed}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("cnn", 0.7), ("scatternet", 0.9), ("adult", 0.8)])
def test_two_hundred_steps_of_each_recipe(name: str, least: float, data_directory: Path) -> None:
    """Well above chance, which is 0.1 for digits; the full recipes take minutes."""
    job = Job(recipe=name, epsilon=8.0, accounting="pld", seed=0)
    row = central_dp.trained(job, Args(directory=data_directory, smoke=True))
    assert row["steps"] == 200
    assert row["rows"] == 4096
    assert float(str(row["accuracy"])) > least
    assert 0 < float(str(row["epsilon_pld"])) < float(str(row["epsilon_rdp"]))
