"""The predict command."""

from pathlib import Path

import numpy as np
import pytest

import privtrain as pt
from privtrain.command.cli import main

NEW = "id,city,age\n1,Rome,3\n2,Bern,38\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [(n % 40, ("Bern", "Rome")[n % 2], "ill" if n % 40 > 20 else "well") for n in range(160)]
    text = "\n".join(f"{age},{city},{label}" for age, city, label in rows)
    (tmp_path / "own.csv").write_text(f"age,city,y\n{text}\n")
    task, data = pt.data.from_csv(tmp_path / "own.csv", ranges={"age": (0, 40)}, parties=2)
    result = pt.fit(pt.SGD(epochs=100, learning_rate=2.0), task, data)
    pt.save(result, tmp_path / "run")
    (tmp_path / "new.csv").write_text(NEW)
    return tmp_path


def test_each_row_has_its_class_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(folder / "run"), "--data", str(folder / "new.csv")]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "prediction,output[ill],output[well]"
    assert [line.split(",")[0] for line in lines] == ["well", "ill"]
    words = ["predict", str(folder / "run/model"), "--data", str(folder / "new.csv")]
    assert main([*words, "--out", str(folder / "deep/p.csv")]) == 0
    written = (folder / "deep/p.csv").read_text()
    assert written.splitlines() == [header, *lines]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age\n3\n", "'city'"),
        (
            "age,city\n3,Paris\n",
            "line 2, column 'city': expected one of 'Bern', 'Rome', not 'Paris'",
        ),
        ("age,city\n,Rome\n", "line 2, column 'age'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_place(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (folder / "new.csv").write_text(text)
    out = folder / "p.csv"
    words = ["predict", str(folder / "run"), "--data", str(folder / "new.csv"), "--out", str(out)]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_no_file_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(folder / "run"), "--data", str(folder / "new.csv"), "--out"]
    (folder / "p.csv").write_text("mine")
    assert main([*words, str(folder / "p.csv")]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, str(folder / "new.csv"), "--force"]) == 2
    assert (folder / "new.csv").read_text() == NEW and (folder / "p.csv").read_text() == "mine"
    assert main([*words, str(folder / "p.csv"), "--force"]) == 0
    assert "prediction" in (folder / "p.csv").read_text()


def test_a_folder_without_a_model_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), "--data", str(folder / "new.csv")]) == 2
    assert "no model" in capsys.readouterr().err


def test_what_made_a_model_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from torch import nn\ndef make():\n    return nn.Linear(4, 3)\n"
    (folder / "my_model_of_predict.py").write_text(code)
    from privtrain.command.user_code import import_named

    named = f"{folder / 'my_model_of_predict.py'}:make"
    inputs, targets = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    task, data = pt.data.from_arrays(
        inputs, targets, parties=2, model=import_named(named, "model"), classes=3
    )
    pt.save_model(pt.fit(pt.SGD(epochs=1), task, data), folder / "m")
    np.savez(folder / "new.npz", x=inputs[:3])
    words = ["predict", str(folder / "m"), "--data", str(folder / "new.npz")]
    assert main(words) == 2
    assert "--made-by FILE.py:make" in capsys.readouterr().err
    assert main([*words, "--made-by", named]) == 0
    assert capsys.readouterr().out.startswith("prediction,output[0],output[1],output[2]\n")
