"""What version 0.1 wrote is read by every later version.

The folder, the study and the journal in `tests/runs/fixtures/version_0_1` were written by version
0.1 and are never written again. A later version may add entries, never change the meaning of one
that is there.
"""

import csv
import io
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import privtrain as pt
from privtrain.command.cli import MISUSED, main
from privtrain.command.study_file import read_study
from privtrain.report.files import plain_comparison
from privtrain.report.summary import is_simulated
from tests.runs.folders import contents

OLD = Path(__file__).parent / "fixtures" / "version_0_1"
FINISHED = OLD / "comparison"
EPSILONS = {
    "DP-SGD": 2.9978987587411603,
    "FedAvg, client level": 2.9997960802153236,
    "FedAvg, DP in each silo": 2.9991495482040538,
    "PATE": 2.999609743081014,
}


def holds(new: Any, old: Any, place: str = "") -> None:
    """Everything that was written is there, with the same value; there may be more."""
    if isinstance(old, dict):
        for name, value in old.items():
            assert name in new, f"{place}.{name} is gone"
            holds(new[name], value, f"{place}.{name}")
    elif isinstance(old, list):
        assert len(new) == len(old), place
        for number, value in enumerate(old):
            holds(new[number], value, f"{place}[{number}]")
    else:
        assert new == old, place


def test_a_finished_comparison_comes_back_as_it_was_written() -> None:
    written = json.loads((FINISHED / "comparison.json").read_text())
    holds(plain_comparison(pt.load(FINISHED)), written)


def test_its_figures_are_those_that_were_printed() -> None:
    rows = {row.label: row for row in pt.load(FINISHED).rows}
    assert rows["FedAvg, too few clients"].error is not None
    for label, epsilon in EPSILONS.items():
        statement = rows[label].statement
        assert statement is not None
        assert statement.epsilon() == epsilon


def test_its_rows_have_the_one_metric_of_their_time() -> None:
    for row in pt.load(FINISHED).rows:
        assert row.metrics == {} and row.main == "accuracy"
        if row.error is None:
            assert {n: m.value for n, m in row.measurements.items()} == {"accuracy": row.accuracy}


def test_its_seeded_runs_are_still_known_as_simulated() -> None:
    rows = {row.label: row for row in pt.load(FINISHED).rows}
    assert all(is_simulated(rows[label]) for label in EPSILONS)
    assert not is_simulated(rows["FedAvg, too few clients"])


@pytest.mark.slow
def test_it_can_be_rendered_again(tmp_path: Path) -> None:
    pt.save(pt.load(FINISHED), tmp_path)
    old, new = (
        list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
        for folder in (FINISHED, tmp_path)
    )

    # Figures of attacks say in their names since 0.2 that no guarantee covers them.
    def renamed_of(name: str) -> str:
        # And data-dependent ones that they hold in one direction only.
        marked = name.replace("/data_dependent]", "/data_dependent/one_sided]")
        # Gaps name their baseline beside them.
        marked = marked.replace("gap_to_pooled", "gap")
        return re.sub(r"^leakage", "unprotected_leakage", marked)

    renamed = [{renamed_of(name): cell for name, cell in line.items()} for line in old]
    holds(new, renamed)
    figures = re.compile(r"^    .* & .*\\\\$", re.MULTILINE)
    old_lines, new_lines = (
        figures.findall((folder / "table.tex").read_text()) for folder in (FINISHED, tmp_path)
    )
    # Newer versions have more columns, and round promises up: the rows are the same ones.
    for line, before in zip(new_lines, old_lines, strict=True):
        cells, kept = ({cell.strip(" \\") for cell in row.split("&")} for row in (line, before))
        assert line.split("&")[0] == before.split("&")[0]
        assert len(kept - cells) <= len(before.split("&")) / 2, (line, before)


def test_a_digest_without_a_key_is_not_written_again(tmp_path: Path) -> None:
    old = json.loads((FINISHED / "comparison.json").read_text())["card"]["data"]["sha256"]
    pt.save(pt.load(FINISHED), tmp_path)
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert old.encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("mark", ["kept", "gone"])
def test_no_row_is_taken_up_by_a_comparison_that_goes_on(mark: str, tmp_path: Path) -> None:
    """Nothing in it tells which model, loss and code a row belongs to."""
    folder = tmp_path / "rows"
    shutil.copytree(FINISHED / "rows", folder)
    if mark == "gone":
        (folder / "comparison.id").unlink()
    before = contents(tmp_path)
    study = read_study(FINISHED / "study.toml")
    task, data = pt.data.breast_cancer(**study.data_options)
    with pytest.raises(pt.DataError, match=r"version 0\.1 .*Choose another folder"):
        pt.compare(
            study.make_trainers(),
            task,
            data,
            attacks=study.make_attacks(),
            epsilons=study.epsilons,
            delta=study.delta,
            folder=folder,
        )
    assert contents(tmp_path) == before


@pytest.mark.parametrize("below", ["DP-SGD-epsilon-3-seed-0-5314f923", "pooled-seed-0-8337ba6b"])
def test_no_run_goes_on_where_version_0_1_stopped(below: str, tmp_path: Path) -> None:
    folder = tmp_path / "row"
    shutil.copytree(FINISHED / "rows" / below, folder)
    before = contents(folder)
    task, data = pt.data.breast_cancer(parties=4)
    with pytest.raises(pt.PrivtrainError, match=r"version 0\.1|another plan"):
        pt.fit(pt.DPSGD(epochs=1) if "DP" in below else pt.SGD(), task, data, folder=folder)
    assert contents(folder) == before


def test_the_command_line_reports_it_and_does_not_resume_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(FINISHED, folder)
    before = contents(folder)
    resume = ["compare", str(folder / "study.toml"), "--out", str(folder), "--resume"]
    assert main(resume) == MISUSED
    said = capsys.readouterr().err
    assert "version 0.1" in said and "--out ANOTHER_FOLDER" in said
    assert contents(folder) == before
    assert main(["report", str(folder), "--json"]) == 0
    printed = capsys.readouterr()
    assert "errata" in printed.err
    assert json.loads(printed.out)["rows"][0]["accuracy"] == before_accuracy(before)
    # Its rows are as old as before.
    assert main(resume) == MISUSED


def before_accuracy(before: dict[str, bytes]) -> float:
    rows = json.loads(before["comparison.json"])["rows"]
    return float(rows[0]["accuracy"])


def test_a_study_says_what_it_said() -> None:
    path = FINISHED / "study.toml"
    holds(read_study(path).to_plain(), tomllib.loads(path.read_text()))


def test_a_setting_that_is_gone_is_read_and_no_longer_written() -> None:
    path = OLD / "every_kind.toml"
    old, new = tomllib.loads(path.read_text()), read_study(path).to_plain()
    assert old["trainers"]["fixed"]["gradients"].pop("mode") == "hooks"
    assert new["trainers"]["fixed"]["gradients"] == {"kind": "Opacus"}
    holds(new, old)


def test_a_journal_of_a_study_goes_on(tmp_path: Path) -> None:
    journal = tmp_path / "study_ledger.jsonl"
    shutil.copy(OLD / "study_ledger.jsonl", journal)
    _, data = pt.data.breast_cancer(parties=4, seed=0)
    ledger = pt.StudyLedger(data, delta=1e-4, journal=journal)
    assert ledger.guarantee().epsilon == 2.936325732185718
