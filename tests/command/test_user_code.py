"""What users name as my_file.py:NAME."""

import json
import sys
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.command.cli import MISUSED, main
from privtrain.command.names import ATTACKS, KINDS, TRAINERS
from privtrain.command.study_file import Study, read_study, write_study
from privtrain.command.tables import make_trainer
from privtrain.command.user_code import import_named, reference_of
from privtrain.core.identity import value_digest
from tests.command import forked
from tests.command.own_parts import EVERYTHING, study


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_are_imported_from_files(tmp_path: Path) -> None:
    path = tmp_path / "own_model_of_test.py"
    path.write_text("from torch import nn\ndef make():\n    return nn.Linear(64, 10)\n")
    assert import_named(f"{path}:make", "model")().out_features == 10
    with pytest.raises(ValueError, match=r"model='.*' to name a function.*it has no other"):
        import_named(f"{path}:other", "model")
    with pytest.raises(ValueError, match="Expected model='nonsense'"):
        import_named("nonsense", "model")
    with pytest.raises(pt.DataError, match=r"There is no file .missing\.py., which task="):
        import_named("missing.py:make", "task")
    broken = tmp_path / "broken_model_of_test.py"
    broken.write_text("def make(:")
    with pytest.raises(pt.DataError, match=r"Cannot import .*broken_model_of_test.*SyntaxError"):
        import_named(f"{broken}:make", "model")
    with pytest.raises(pt.DataError, match=r"Cannot import 'no_such_module' of model=.*No module"):
        import_named("no_such_module:make", "model")


def test_a_file_is_imported_once_and_named_as_it_was_given(folder: Path) -> None:
    (folder / "own_parts_once.py").write_text(EVERYTHING)
    reference = "own_parts_once.py:MyTrainer"
    assert make_trainer(reference, {"epochs": 2}) == make_trainer(reference, {"epochs": 2})
    assert reference_of(TRAINERS[reference]) == reference
    assert reference_of(pt.SGD) == "privtrain.trainers.sgd:SGD"
    (folder / "deeper").mkdir()
    (folder / "deeper" / "own_parts_once.py").write_text(EVERYTHING)
    old = TRAINERS[reference]
    other = TRAINERS["deeper/own_parts_once.py:MyTrainer"]
    assert other is not old
    assert reference_of(other) == "deeper/own_parts_once.py:MyTrainer"
    assert reference_of(old) == reference


@pytest.mark.parametrize("stem", ["torch", "json", "wave", "transformers"])
def test_a_file_called_like_a_module_replaces_nothing(stem: str, folder: Path) -> None:
    """Loaded already, or one of the standard library that somebody may import later."""
    (folder / f"{stem}.py").write_text(EVERYTHING)
    before = sys.modules.get(stem)
    own = TRAINERS[f"{stem}.py:MyTrainer"]
    assert sys.modules.get(stem) is before
    assert reference_of(own) == f"{stem}.py:MyTrainer"
    assert TRAINERS[f"{stem}.py:MyTrainer"] is own
    # By what it computes, although a library has its file's name.
    (folder / "deeper").mkdir()
    method = "\n    def with_noise(self, scale):\n        return self\n"
    changed = EVERYTHING.replace('= "mine"\n', f'= "mine"\n{method}')
    (folder / "deeper" / f"{stem}.py").write_text(changed)
    assert value_digest(TRAINERS[f"deeper/{stem}.py:MyTrainer"]()) != value_digest(own())


def test_a_file_that_fails_leaves_no_module(folder: Path) -> None:
    (folder / "own_parts_failing.py").write_text("raise RuntimeError('no')")
    with pytest.raises(pt.DataError, match="RuntimeError: no"):
        import_named("own_parts_failing.py:make", "model")
    assert "own_parts_failing" not in sys.modules


def test_a_file_in_the_folder_above_is_imported_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own_parts_above.py").write_text(EVERYTHING)
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    reference = "../own_parts_above.py:MyTrainer"
    assert make_trainer(reference) == make_trainer(reference)


@pytest.mark.parametrize("name", ["trainer", "attack", "kind"])
def test_a_setting_that_would_hide_the_class_is_refused(name: str, folder: Path) -> None:
    (folder / "own_parts_hiding.py").write_text(
        "from dataclasses import dataclass\n"
        "import privtrain as pt\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Hidingtrainer(pt.SGD):\n    trainer: str = 'sgd'\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Hidingattack(pt.LossThreshold):\n    attack: str = 'one_run'\n"
        "@dataclass(frozen=True)\n"
        "class Hidingkind(pt.Gaussian):\n    kind: str = 'Laplace'\n"
    )
    table = {"trainer": TRAINERS, "attack": ATTACKS, "kind": KINDS}[name]
    with pytest.raises(ValueError, match=f"to have no setting '{name}'"):
        table[f"own_parts_hiding.py:Hiding{name}"]


def test_an_attack_may_call_something_else_guesses(folder: Path) -> None:
    (folder / "own_parts_guesses.py").write_text(
        "from dataclasses import dataclass\n"
        "import privtrain as pt\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own(pt.LossThreshold):\n    guesses: int | None = None\n"
    )
    (own,) = Study(attacks=("own_parts_guesses.py:Own",)).make_attacks()
    assert getattr(own, "guesses", 0) is None


def test_an_own_attack_says_how_many_canaries_it_needs(folder: Path) -> None:
    (folder / "own_parts_canaries.py").write_text(
        "from dataclasses import dataclass\n"
        "import privtrain as pt\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own(pt.LossThreshold):\n    canaries_needed: int = 30\n"
    )
    attacks = ("own_parts_canaries.py:Own",)
    with pytest.raises(ValueError, match="canaries=29 >= 30"):
        Study(attacks=attacks, canaries=29).make_attacks()
    assert len(Study(attacks=attacks, canaries=30).make_attacks()) == 1


def test_an_attack_without_a_name_is_refused_when_a_study_is_written() -> None:
    with pytest.raises(ValueError, match="attack=None"):
        Study(trainers={"sgd": {}}, attacks=({"limit": 3},)).to_plain()


def test_a_class_that_no_reference_leads_to_is_refused() -> None:
    class Local:
        pass

    with pytest.raises(pt.UnsupportedError, match=r"cannot hold .*Local"):
        reference_of(Local)


def test_a_study_with_references_comes_back(folder: Path) -> None:
    (folder / "own_parts_back.py").write_text(EVERYTHING)
    own = [f"own_parts_back.py:{name}" for name in ("MyTrainer", "MyAttack", "MyMechanism")]
    (folder / "in.toml").write_text(study(*own))
    first = read_study(folder / "in.toml")
    write_study(first, folder / "out.toml")
    again = read_study(folder / "out.toml")
    assert all(f'"{name}"' in (folder / "out.toml").read_text() for name in own)
    assert again.make_trainers() == first.make_trainers()
    assert again.make_attacks() == first.make_attacks()
    assert again.to_plain() == first.to_plain()


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        ("missing_parts.py:MyTrainer", "no file 'missing_parts.py', which trainer="),
        ("own_parts_wrong.py:Missing", "trainer='own_parts_wrong.py:Missing' to name a fun"),
        ("own_parts_wrong.py:function", "function' to name a frozen dataclass"),
        ("own_parts_wrong.py:Thawed", "Thawed' to name a frozen dataclass"),
        ("own_parts_wrong.py:Bare", "Bare' to name a frozen dataclass"),
        (
            "own_parts_wrong.py:Half",
            "Half' to have caveats, input_privacy, plan, train, with_noise, as",
        ),
    ],
)
def test_what_is_no_trainer_is_refused_before_anything_is_trained(
    reference: str, match: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "own_parts_wrong.py").write_text(
        "from dataclasses import dataclass\n"
        "def function(): pass\n"
        "@dataclass\nclass Thawed: pass\n"
        "@dataclass(frozen=True)\nclass Half:\n    token: str\n"
        "class Bare(Half):\n    token = 'bare'\n"
    )
    assert main(["compare", "--trainers", reference, "--out", "run"]) == MISUSED
    assert match in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_a_mechanism_needs_the_members_of_one(folder: Path) -> None:
    (folder / "own_parts_half.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Half:\n    def bound(self, contribution): pass\n"
    )
    release = {"kind": "Release", "mechanism": {"kind": "own_parts_half.py:Half"}}
    said = r"mechanism='own_parts_half.py:Half' to have about, add, bound_again, event"
    with pytest.raises(ValueError, match=said):
        make_trainer("dp_sgd", {"release": release})


@pytest.mark.slow
@pytest.mark.parametrize("place", ["own_parts.py", "own_package.parts"])
def test_references_are_compared_by_the_command_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "own_package").mkdir()
    for file in ("own_parts.py", "own_package/parts.py"):
        (tmp_path / file).write_text(EVERYTHING)
    own = [f"{place}:{name}" for name in ("MyTrainer", "MyAttack", "MyMechanism")]
    (tmp_path / "in.toml").write_text(study(*own))
    done = forked.run(tmp_path, "compare", "in.toml", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    again = forked.run(tmp_path, "compare", "run/study.toml", "--out", "again", "--json")
    assert again.returncode == 0, again.stderr
    rows, repeated = (json.loads(each.stdout)["rows"] for each in (done, again))
    assert [row["trainer"] for row in rows] == ["mine", "fedavg"]
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in repeated]
    assert [row["leakage"] for row in rows] == [row["leakage"] for row in repeated]


@pytest.mark.slow
def test_references_are_given_as_words(tmp_path: Path) -> None:
    (tmp_path / "own_parts.py").write_text(EVERYTHING)
    words = ["--data", "breast_cancer", "--runtime", "in-process", "--out"]
    own = ["--trainers", "own_parts.py:MyTrainer", "--attacks", "own_parts.py:MyAttack"]
    done = forked.run(tmp_path, "compare", *own, *words, "compared")
    assert done.returncode == 0, done.stderr
    fit = forked.run(tmp_path, "fit", "--trainer", "own_parts.py:MyTrainer", *words, "fitted")
    assert fit.returncode == 0, fit.stderr
