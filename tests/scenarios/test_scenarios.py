"""Every scenario: one file, a header that says who holds and learns what, a help worth reading."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import privtrain as pt
from privtrain.core.result import Row
from scenarios import bank_and_shop, census, hospitals, teachers

FILES = sorted((Path(__file__).parents[2] / "scenarios").glob("*.py"))
SCENARIOS = [path for path in FILES if "__main__" in path.read_text()]
"""The others lie beside a scenario that imports them."""
LONGEST = 150


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_one_story_a_file(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    header = text.split('"""')[1]
    assert "Who holds what:" in header
    assert "Who learns what:" in header


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_public_names(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if "import privtrain" in line]
    assert lines == ["import privtrain as pt"]
    assert "from privtrain" not in path.read_text()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_page_names_every_scenario(path: Path) -> None:
    page = (path.parents[1] / "docs" / "scenarios.md").read_text()
    assert f"scenarios/{path.name}" in page


@pytest.mark.slow
@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_help_tells_the_story(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for part in ("Who holds what", "Who learns what", "--epsilon", "--out"):
        assert part in done.stdout
    federated = "star=" in path.read_text()  # who needs no coordinator has no --processes
    assert ("--processes" in done.stdout) == federated


@pytest.mark.parametrize("scenario", [bank_and_shop, census, hospitals, teachers])
def test_a_taken_folder_is_refused_before_training(
    scenario: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    monkeypatch.setattr(scenario, "compare", lambda args: pytest.fail("it was trained"))
    with pytest.raises(pt.DataError, match=r"to be empty; --force overwrites it"):
        scenario.main(scenario.Args(out=tmp_path))


def test_alone_is_one_hospital_and_the_same_test_rows() -> None:
    _, data = pt.data.breast_cancer(parties=hospitals.HOSPITALS)
    own = hospitals.alone(data, "south")
    assert own.parties == ("south",)
    assert own.train["south"].inputs.equal(data.train["south"].inputs)
    assert own.test.inputs.equal(data.test.inputs)
    assert own.public_rows is None


@pytest.mark.parametrize("queries", [50, 123, 150])
def test_enough_public_images_for_the_queries(queries: int) -> None:
    _, data = teachers.load(teachers.Args(), queries)
    assert data.public is not None
    # By coins: as many as the student learns from, and enough to be asked about.
    assert queries <= len(data.public) < max(240, queries) + 4 * 240**0.5
    assert data.public.targets is None


def test_none_takes_what_suits_the_data() -> None:
    assert teachers.ensemble(teachers.Args()) == teachers.DIGITS
    assert teachers.ensemble(teachers.Args(data="mnist")).teachers == 250
    asked = teachers.ensemble(teachers.Args(teachers=20, queries=30))
    assert (asked.teachers, asked.queries) == (20, 30)
    assert asked.steps == teachers.DIGITS.steps


def test_a_failed_row_is_named_and_not_read_as_a_figure() -> None:
    row = Row(trainer="mpc_sgd", label=hospitals.SHARED, seed=0, error="PartyLostError: gone")
    broken = pt.Comparison(rows=(row,), card={})
    assert hospitals.reading(broken, hospitals.Args()) == "Failed, see the table: under MPC."
    renamed = replace(broken, rows=(replace(row, label="PATE"),))
    assert teachers.reading(renamed) == "Failed, see the table: PATE."
