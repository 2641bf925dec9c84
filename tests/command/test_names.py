"""Names: public ones, entry points and references, without a list that is written by hand."""

import filecmp
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.command import names, tokens
from privtrain.command.cli import main
from privtrain.command.study_file import Study
from privtrain.command.tables import from_table, make_trainer, to_table
from tests.command import forked
from tests.command.own_parts import ATTACK, EVERYTHING, MECHANISM, TRAINER, privtrain, study

ROOT = Path(pt.__file__).parent
GROUPS = {"trainers": "MyTrainer", "attacks": "MyAttack", "mechanisms": "MyMechanism"}
PARTS = {
    "mechanisms": ("MyMechanism", MECHANISM),
    "trainers": ("MyTrainer", TRAINER),
    "attacks": ("MyAttack", ATTACK),
}


def distribution(folder: Path, name: str, **groups: str) -> None:
    """Installs a distribution that adds names: group to a line of its entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[privtrain.{group}]\n{line}\n" for group, line in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path of imports, in which distributions can be installed."""
    monkeypatch.syspath_prepend(tmp_path)
    tokens.added_names.cache_clear()
    yield tmp_path
    tokens.added_names.cache_clear()


def test_trainers_and_attacks_have_the_names_of_their_files() -> None:
    assert set(names.TRAINERS) == {"sgd", "fedavg", "dp_sgd", "mpc_sgd", "pate"}
    assert {name: names.ATTACKS[name] for name in names.ATTACKS} == {
        "gradient_norm": pt.GradientNorm,
        "label_only": pt.LabelOnly,
        "client_membership": pt.ClientMembership,
        "lira": pt.LiRA,
        "loss_gain": pt.LossGain,
        "loss_threshold": pt.LossThreshold,
        "model_sequence": pt.ModelSequence,
        "one_run": pt.OneRun,
        "population_loss": pt.PopulationLoss,
        "rmia": pt.RMIA,
        "row_span": pt.RowSpan,
    }
    assert names.constants() == {
        "AT_AGGREGATOR": pt.AT_AGGREGATOR,
        "AT_PARTY": pt.AT_PARTY,
        "IDENTITY": pt.IDENTITY,
        "ARGMAX": pt.ARGMAX,
    }


def test_kinds_are_the_public_settings_and_no_trainers() -> None:
    assert names.KINDS["ByExamples"] is pt.ByExamples
    assert names.KINDS["Placement"] is type(pt.AT_PARTY)
    assert {"SGD", "FedAvg", "SPLIT", "LossThreshold", "Budget"}.isdisjoint(names.KINDS)
    for name in names.KINDS:
        assert names.KINDS.name_of(names.KINDS[name]) == name


def test_runtimes_have_the_names_of_their_classes() -> None:
    assert sorted(names.STARS) == ["flower-grid", "flower-ray", "in-process"]
    assert names.make_runtimes("in-process").star == pt.InProcess()
    with pytest.raises(ValueError, match="runtime='mesh' to be one of flower-grid, flower-ray"):
        names.make_runtimes("mesh")


def test_the_table_loads_no_framework() -> None:
    program = (
        "import sys; from privtrain.command import names; "
        "[*names.TRAINERS, *names.ATTACKS, *names.KINDS, names.constants()]; "
        "print([m for m in ('flwr', 'opacus', 'crypten', 'ray', 'dp_accounting', 'sklearn', "
        "'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"


def test_entry_points_add_names(folder: Path) -> None:
    (folder / "added_parts.py").write_text(EVERYTHING)
    lines = {group: f"my_{group} = added_parts:{name}" for group, name in GROUPS.items()}
    distribution(folder, "added", **lines)
    assert make_trainer("my_trainers", {"epochs": 2}) == make_trainer(
        "added_parts:MyTrainer", {"epochs": 2}
    )
    mechanism = {"kind": "my_mechanisms", "clipping_norm": 1.0, "noise_multiplier": 2.0}
    assert to_table(from_table(mechanism)) == mechanism | {"secure": False}
    plain = Study(trainers={"my_trainers": {}}, attacks=("my_attacks",)).to_plain()
    assert plain["trainers"]["my_trainers"]["trainer"] == "my_trainers"
    assert plain["attacks"][0]["attack"] == "my_attacks"
    with pytest.raises(ValueError, match="one of dp_sgd, fedavg, mpc_sgd, my_trainers, pate, sgd"):
        make_trainer("my_trainer")


def test_a_name_of_two_distributions_is_refused_with_both(folder: Path) -> None:
    distribution(folder, "first-one", trainers="sgd = nowhere:X\ntwice = nowhere:X")
    distribution(folder, "second-one", trainers="twice = nowhere:X")
    with pytest.raises(ValueError, match="trainer='sgd' to name one class; privtrain and first-on"):
        make_trainer("sgd")
    with pytest.raises(ValueError, match=r"first-one and second-one|second-one and first-one"):
        make_trainer("twice")
    assert make_trainer("fedavg") == pt.FedAvg()


def test_what_is_written_is_no_name_that_is_refused(folder: Path) -> None:
    (folder / "clashing_parts.py").write_text(EVERYTHING)
    own = "clashing_parts:MyMechanism"
    distribution(folder, "first-one", mechanisms=f"Gaussian = {own}\ntwice = {own}")
    distribution(folder, "second-one", mechanisms="twice = nowhere:X")
    assert names.KINDS.name_of(names.KINDS[own]) == own


def test_an_entry_point_that_cannot_be_loaded_stops_only_who_asks_for_it(folder: Path) -> None:
    (folder / "broken_part.py").write_text("1 / 0\n")
    distribution(folder, "broken", trainers="mine = broken_part:X\nlost = no_such_module_here:X")
    distribution(folder, "wrong", attacks="mine = json:JSONDecoder")
    match = "trainer='mine', broken_part:X of broken: ZeroDivisionError.*uninstall broken"
    with pytest.raises(pt.DataError, match=match):
        make_trainer("mine")
    with pytest.raises(pt.DataError, match="no_such_module_here"):
        make_trainer("lost")
    with pytest.raises(ValueError, match="attack='mine' to name a frozen dataclass"):
        Study(attacks=("mine",)).make_attacks()
    assert make_trainer("sgd") == pt.SGD()


@pytest.mark.slow
def test_entry_points_are_compared_by_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "added_parts.py").write_text(EVERYTHING)
    lines = {group: f"my_{group} = added_parts:{name}" for group, name in GROUPS.items()}
    distribution(tmp_path, "added", **lines)
    (tmp_path / "in.toml").write_text(study("my_trainers", "my_attacks", "my_mechanisms"))
    done = forked.run(tmp_path, "compare", "in.toml", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["trainer"] for row in rows] == ["mine", "fedavg"]
    assert all(len(row["leakage"]) == 1 for row in rows)
    written = (tmp_path / "run" / "study.toml").read_text()
    assert all(f'"my_{group}"' in written for group in GROUPS)


def added_lines(before: Path, after: Path) -> dict[str, int]:
    """File to number of lines that were added; every other file is as it was."""
    files = [path.relative_to(after) for path in after.rglob("*.py")]
    assert {path.relative_to(before) for path in before.rglob("*.py")} <= set(files)
    changed = {}
    for file in files:
        if (before / file).exists() and filecmp.cmp(before / file, after / file, shallow=False):
            continue
        old = (before / file).read_text().splitlines() if (before / file).exists() else []
        new = (after / file).read_text().splitlines()
        left = iter(new)
        assert all(line in left for line in old), f"{file} lost a line"
        changed[str(file)] = len(new) - len(old)
    return changed


@pytest.mark.slow
def test_a_new_part_is_one_file_and_one_line(tmp_path: Path) -> None:
    copy = tmp_path / "privtrain"
    # What is compiled already is true of the copy; the rest are files that are being written.
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("*.pyc.*"))
    lines = (copy / "__init__.py").read_text().splitlines(keepends=True)
    (first,) = [n for n, line in enumerate(lines) if line == "if TYPE_CHECKING:\n"]
    expected = {"__init__.py": len(PARTS)}
    for package, (name, text) in PARTS.items():
        (copy / package / "own_part.py").write_text(text)
        lines.insert(first + 1, f"    from privtrain.{package}.own_part import {name} as {name}\n")
        expected[f"{package}/own_part.py"] = len(text.splitlines())
    (copy / "__init__.py").write_text("".join(lines))
    assert added_lines(ROOT, copy) == expected
    names = [name for name, _ in PARTS.values()]
    shown = subprocess.run(
        [sys.executable, "-c", f"import privtrain; print({{*{names}}} <= {{*privtrain.__all__}})"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert shown.stdout == "True\n"
    tokens_of = ("mine", "my_attack", "MyMechanism")
    (tmp_path / "in.toml").write_text(study(*tokens_of))
    done = privtrain(tmp_path, "compare", "in.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "run" / "study.toml").read_text()
    assert all(f'"{token}"' in written for token in tokens_of)


def test_the_command_line_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in shown for name in [*names.ATTACKS, *names.STARS])
