"""What arguments and a study file ask for together."""

import json
from pathlib import Path
from typing import Any

import pytest

import privtrain as pt
from privtrain.command.arguments import Compare, DataArgs, Fit, RunArgs
from privtrain.command.cli import main
from privtrain.command.planning import plan_of, study_of

SEVERAL = """
data = "breast_cancer"
epsilons = [1.0, 3.0]
delta = 1e-4
seeds = 2
canaries = 100
attacks = ["loss_threshold"]
device = "cpu"
runtime = "in-process"

[data_options]
parties = 4

[trainers.central]
trainer = "sgd"
epochs = 7

[trainers."DP-SGD"]
trainer = "dp_sgd"
epochs = 3
"""
ONE = 'data = "breast_cancer"\nepsilons = [2.0]\n[trainers.dp_sgd]\nepochs = 3\n'


@pytest.fixture
def several(tmp_path: Path) -> Path:
    path = tmp_path / "several.toml"
    path.write_text(SEVERAL)
    return path


@pytest.fixture
def one(tmp_path: Path) -> Path:
    path = tmp_path / "one.toml"
    path.write_text(ONE)
    return path


def test_a_comparison_is_what_its_arguments_say() -> None:
    args = Compare(trainers=("sgd", "dp_sgd"), seeds=2, settings=("dp_sgd.epochs=5",))
    study = study_of(args)
    assert study.make_trainers() == {"sgd": pt.SGD(), "dp_sgd": pt.DPSGD(epochs=5.0)}
    assert (study.seeds, study.epsilons, study.runtime) == (2, (3.0,), "in-process")


def test_settings_change_a_study_file_and_nothing_else_of_it(several: Path) -> None:
    plain = study_of(Compare(study=several))
    study = study_of(Compare(study=several, settings=("DP-SGD.epochs=5", "central.epochs=1")))
    assert study.make_trainers() == {"central": pt.SGD(epochs=1), "DP-SGD": pt.DPSGD(epochs=5.0)}
    kept = {name: value for name, value in vars(study).items() if name != "trainers"}
    assert kept == {name: value for name, value in vars(plain).items() if name != "trainers"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"seeds": 3}, "--seeds"),
        ({"where": DataArgs(label="a")}, "--label"),
        ({"run": RunArgs(device="cuda")}, "--device"),
        ({"runtime": "flower-grid"}, "--runtime"),
        ({"canaries": 5, "secure": True}, "--secure, --canaries"),
        ({"baseline": "sgd"}, "--baseline"),
    ],
)
def test_what_a_study_says_itself_is_refused_beside_it(
    given: dict[str, Any], named: str, several: Path
) -> None:
    with pytest.raises(ValueError, match=rf"without {named}, which it says itself"):
        study_of(Compare(study=several, **given))


def test_fit_takes_data_trainer_and_promise_from_its_study(one: Path, several: Path) -> None:
    plan = plan_of(Fit(study=one))
    assert (plan.name, plan.trainer, plan.epsilon) == ("dp_sgd", pt.DPSGD(epochs=3.0), 2.0)
    assert (plan.data, plan.delta, plan.runtime, plan.notes) == (
        *("breast_cancer", 1e-5, "in-process"),
        (),
    )
    changed = Fit(study=several, trainer="DP-SGD", epsilon=1.0, settings=("learning_rate=0.1",))
    plan = plan_of(changed)
    assert plan.trainer == pt.DPSGD(epochs=3.0, learning_rate=0.1)
    assert (plan.epsilon, plan.delta, plan.data_options) == (1.0, 1e-4, {"parties": 4})
    assert plan.notes == (
        "no canaries are planted: a model that is published is not audited by them",
    )
    # What draws no noise is asked for no epsilon, as in a comparison.
    assert plan_of(Fit(study=several, trainer="central")).epsilon is None


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({}, "has the trainers central, DP-SGD: name the one to train, as by --trainer central"),
        ({"trainer": "DPSGD"}, "trainer='DPSGD' to be one of central, DP-SGD, .*mean 'DP-SGD'"),
        ({"trainer": "DP-SGD"}, "asks for the epsilons 1, 3: name the one to promise, as by --eps"),
        ({"trainer": "central", "delta": 1e-6}, "without --delta"),
        ({"trainer": "central", "where": DataArgs(parties=3)}, "without --parties"),
        ({"trainer": "central", "settings": ("epoch=1",)}, "Did you mean 'epochs'"),
    ],
)
def test_what_a_study_leaves_open_has_to_be_chosen(
    given: dict[str, Any], answer: str, several: Path
) -> None:
    with pytest.raises(ValueError, match=answer):
        plan_of(Fit(study=several, **given))


def test_without_a_study_fit_trains_dp_sgd() -> None:
    assert plan_of(Fit()).trainer == pt.DPSGD()
    plan = plan_of(Fit(trainer="sgd", settings=("epochs=2",), where=DataArgs(parties=3)))
    assert (plan.trainer, plan.data_options) == (pt.SGD(epochs=2), {"parties": 3})
    plan = plan_of(Fit(secure=True, settings=("release.mechanism.clipping_norm=2",)))
    assert plan.trainer == pt.DPSGD(release=pt.Release(pt.Gaussian(2.0, 1.0, secure=True)))


@pytest.mark.slow
def test_the_command_line_fits_a_study_with_a_setting_changed(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    words = ["fit", str(one), "--set", "epochs=0.5", "--set", "expected_batch=32"]
    assert main([*words, "--out", str(out)]) == 0
    statement = json.loads((out / "statement.json").read_text())
    public = statement["statement"]["guarantees"][0]
    # 398 rows: half an epoch of batches of 32.
    assert public["releases"] == 7 and public["epsilon"] <= 2.0
    assert f"lie in {out}" in capsys.readouterr().out


def test_the_command_line_compares_with_settings_that_its_study_file_keeps(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["compare", "--data", "breast_cancer", "--parties", "3", "--trainers", "sgd"]
    assert main([*words, "--set", "sgd.epochs=1", "--out", str(out)]) == 0
    text = (out / "study.toml").read_text()
    assert "epochs = 1" in text and 'runtime = "in-process"' in text
    assert main(["compare", "--trainers", "sgd", "--set", "sgd.epoch=1"]) == 2
    assert "Did you mean 'epochs'?" in capsys.readouterr().err
