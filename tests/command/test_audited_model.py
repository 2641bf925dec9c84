"""The audit command on one model."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from privtrain.command.audited_model import state_dict
from privtrain.command.cli import main
from privtrain.core.errors import DataError

CODE = """
from torch import nn
def make():
    return nn.Linear(40, 2)
def single():
    return nn.Linear(40, 1)
def three():
    return nn.Linear(40, 3)
def smaller():
    return nn.Linear(3, 2)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables with random labels, and a model that knows the labels of the first by heart."""
    folder = tmp_path_factory.mktemp("model")
    draw = torch.Generator().manual_seed(0)
    names = ",".join(f"c{n}" for n in range(40))
    tables = {}
    for name in ("mine", "others"):
        rows = torch.randn(20, 40, generator=draw).round(decimals=3)
        labels = (torch.arange(20) % 2)[torch.randperm(20, generator=draw)]
        lines = [
            ",".join([*(f"{value:.3f}" for value in row), str(label)])
            for row, label in zip(rows.tolist(), labels.tolist(), strict=True)
        ]
        (folder / f"{name}.csv").write_text("\n".join([f"{names},outcome", *lines]))
        tables[name] = (rows, labels)
    (folder / "factories_of_audit.py").write_text(CODE)
    inputs, labels = tables["mine"]
    model = nn.Linear(40, 2)
    # More columns than rows: the smallest of the exact fits has smaller margins elsewhere.
    solved = (torch.linalg.pinv(inputs.double()) @ (2.0 * labels - 1).double()).float()
    with torch.no_grad():
        model.weight.copy_(torch.stack([-5 * solved, 5 * solved]))
        model.bias.zero_()
    torch.save(model.state_dict(), folder / "model.pt")
    return folder


def words_of(place: Path, *further: str) -> list[str]:
    words = ["audit", "--model", str(place / "model.pt"), "--data", str(place / "mine.csv")]
    return [*words, "--label", "outcome", *further]


def test_a_foreign_model_is_attacked_where_the_user_names_who_was_a_member(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(place, "--factory", f"{place / 'factories_of_audit.py'}:make")
    words += ["--non-members", str(place / "others.csv"), "--attacks", "loss_threshold", "rmia"]
    assert main([*words, "--observers", "all", "--json"]) == 0
    loss, shadowed = json.loads(capsys.readouterr().out)
    # It is as sure of each member, and less of most others.
    assert loss["auc"] > 0.7 and loss["epsilon"] is None
    assert shadowed["error"] == "not applicable: no shadow models"
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "is what the user says: all rows of" in out and "no formal epsilon" in out
    assert "shadow models are not there without the trainer" in out


def test_a_kept_model_is_attacked_on_the_split_of_its_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(place / "mine.csv"), "--label", "outcome"]
    fit = ["fit", "--trainer", "sgd", *data, "--set", "epochs=1", "--out", str(place / "fit")]
    assert main(fit) == 0
    capsys.readouterr()
    assert main(["audit", "--model", str(place / "fit"), *data]) == 0
    out = capsys.readouterr().out
    assert "loss threshold" in out and "guarantees are those that the folder states" in out
    norms = ["audit", "--model", str(place / "fit"), *data, "--attacks", "gradient_norm", "--json"]
    assert main(norms) == 0
    (norm,) = json.loads(capsys.readouterr().out)
    assert norm["error"] is None and norm["auc"] is not None, "its weights are published"
    other = ["audit", "--model", str(place / "fit"), *data, "--drop", "c1"]
    assert main(other) == 2
    assert "Expected the inputs to be made as for the model" in capsys.readouterr().err


def test_a_kept_model_of_an_own_factory_names_the_option_that_makes_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(place / "mine.csv"), "--label", "outcome"]
    made = f"{place / 'factories_of_audit.py'}:make"
    fit = ["fit", "--trainer", "sgd", *data, "--set", "epochs=1", "--out", str(tmp_path / "own")]
    assert main([*fit, "--model", made]) == 0
    capsys.readouterr()
    words = ["audit", "--model", str(tmp_path / "own"), *data]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "--factory FILE:NAME" in said and "--made-by" not in said
    assert main([*words, "--factory", made]) == 0


def test_one_logit_tells_two_classes_apart_and_other_widths_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = torch.load(place / "model.pt", weights_only=True)
    # The same probabilities: the difference of two logits.
    one = {name: (value[1] - value[0])[None] for name, value in both.items()}
    torch.save(one, tmp_path / "one.pt")
    torch.save(nn.Linear(40, 3).state_dict(), tmp_path / "three.pt")
    code = f"{place / 'factories_of_audit.py'}"
    others = ("--non-members", str(place / "others.csv"), "--json", "--attacks", "loss_threshold")
    found = []
    for model, made in ((place / "model.pt", "make"), (tmp_path / "one.pt", "single")):
        words = words_of(place, "--factory", f"{code}:{made}", *others, "label_only")
        words[2] = str(model)
        assert main(words) == 0
        told = json.loads(capsys.readouterr().out)
        assert [each["error"] for each in told] == [None, None]
        found.append(told[0]["auc"])
    assert found[0] == pytest.approx(found[1], abs=0.02)
    words = words_of(place, "--factory", f"{code}:three", *others)
    words[2] = str(tmp_path / "three.pt")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "to give 2 logits a row" in said and "--factory" in said


def test_non_members_that_are_members_are_said_or_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, others = ((place / f"{name}.csv").read_text() for name in ("mine", "others"))
    (tmp_path / "some.csv").write_text("\n".join([others, *mine.splitlines()[1:3]]))
    (tmp_path / "same.csv").write_text("\n".join(mine.splitlines()[:6]))
    words = words_of(place, "--factory", f"{place / 'factories_of_audit.py'}:make")
    assert main([*words, "--non-members", str(tmp_path / "some.csv")]) == 0
    assert "2 of the non-members are equal to a member" in capsys.readouterr().out
    assert main([*words, "--non-members", str(tmp_path / "same.csv")]) == 2
    assert "to have rows that --data lacks" in capsys.readouterr().err


def test_what_is_no_model_of_these_rows_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"{place / 'factories_of_audit.py'}"
    for further, said in (
        ((), "Expected --factory FILE:NAME"),
        (("--factory", f"{code}:smaller"), "are not those of the model"),
        (("--factory", f"{code}:make", "--drop", "c1"), "does not take the rows"),
        (("--factory", f"{code}:make", "--observers", "aggregator"), "to be public"),
    ):
        assert main(words_of(place, *further)) == 2
        assert said in capsys.readouterr().err


def test_nothing_but_tensors_is_read(place: Path, tmp_path: Path) -> None:
    assert set(state_dict(place / "model.pt")) == {"weight", "bias"}
    torch.save(nn.Linear(2, 2), tmp_path / "code.pt")
    with pytest.raises(DataError, match=r"pickled code.*torch\.save\(model\.state_dict"):
        state_dict(tmp_path / "code.pt")
    torch.save({"weight": torch.ones(2), "epoch": 3}, tmp_path / "more.pt")
    with pytest.raises(DataError, match="a dict of name to tensor"):
        state_dict(tmp_path / "more.pt")
    (tmp_path / "torn.pt").write_bytes((place / "model.pt").read_bytes()[:200])
    with pytest.raises(DataError, match=r"torn\.pt"):
        state_dict(tmp_path / "torn.pt")
    with pytest.raises(DataError, match="Cannot read model"):
        state_dict(tmp_path / "none.pt")
