"""Results on disk, and what prints of them."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import privtrain as pt
from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.result import History, TrainResult
from privtrain.core.statement import to_plain
from privtrain.report.files import plain_comparison, read_comparison
from privtrain.report.records import to_csv

TASK, DATA = pt.data.breast_cancer(parties=3)


@cache
def result() -> TrainResult:
    return pt.fit(pt.DPSGD(epochs=2.0), TASK, DATA)


def test_a_result_is_written_with_its_model(tmp_path: Path) -> None:
    measured = pt.evaluate(result(), TASK, DATA)
    folder = pt.save(result(), tmp_path / "r", evaluation=measured)
    assert sorted(os.listdir(folder)) == ["model", "result.json"]
    document = json.loads((folder / "result.json").read_text())
    assert document["statement"] == json.loads(json.dumps(result().statement.to_json()))
    assert document["history"]["epsilon"] == [list(p) for p in result().history.epsilon]
    assert document["evaluation"]["metrics"] == dict(measured)
    assert {"history.unprotected", "evaluation"} <= set(document["unprotected"])
    assert not {"transcript", "members", "predictor"} & set(document)
    model = pt.load_model(folder)
    assert torch.equal(model(DATA.test.inputs), result().predictor(DATA.test.inputs))
    assert f"accuracy: {measured['accuracy']:.4f}" in (folder / "model/model_card.md").read_text()


def test_a_result_without_a_torch_model_is_written_without_it(tmp_path: Path) -> None:
    own = replace(result(), predictor=lambda inputs: inputs[:, :2])
    pt.save(own, tmp_path / "r")
    document = json.loads((tmp_path / "r/result.json").read_text())
    assert document["model"] is None and "not kept" in document["notes"][-1]
    assert os.listdir(tmp_path / "r") == ["result.json"]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    pt.save(result(), tmp_path / "r")
    with pytest.raises(DataError, match="force"):
        pt.save(result(), tmp_path / "r")
    pt.save(result(), tmp_path / "r", force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(DataError, match=r"notes\.txt"):
            pt.save(result(), tmp_path / "other", force=force)


@pytest.mark.slow
def test_a_comparison_is_still_written_as_before(tmp_path: Path) -> None:
    made = pt.compare({"sgd": pt.SGD(epochs=1)}, TASK, DATA)
    pt.save(made, tmp_path / "c")
    assert pt.load(tmp_path / "c") == made
    with pytest.raises(ValueError, match="not a History"):
        pt.save(History(), tmp_path / "h")  # type: ignore[arg-type]


def test_load_says_how_a_result_is_read(tmp_path: Path) -> None:
    pt.save(result(), tmp_path / "r")
    with pytest.raises(DataError, match="load_model"):
        pt.load(tmp_path / "r")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PrivtrainError, match="full"):
        pt.save(result(), tmp_path / "r")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------ prints


def test_prints_are_short() -> None:
    made = result()
    lengths = {
        "result": len(repr(made)),
        "statement": len(repr(made.statement)),
        "history": len(repr(made.history)),
        "transcript": len(repr(made.transcript)),
        "curves": len(repr(made.statement.curves[0])),
    }
    assert max(lengths.values()) < 1_200, lengths
    assert str(made) == repr(made)
    # In full where it is asked for.
    assert "float noise: research use" in str(made.statement)


def test_prints_name_what_matters() -> None:
    made = replace(result(), halted="the budget was used up")
    assert made.statement.guarantees[0].claim in repr(made)
    assert "the budget was used up" in repr(made) and "unprotected" in repr(made)
    row = pt.compare({"a": pt.SGD(epochs=1)}, TASK, DATA).rows[0]
    assert repr(row).startswith("Row('a', sgd, seed 0: accuracy 0.")


def test_notebooks_show_tables_and_escape_names() -> None:
    odd = pt.coalition({"<script>alert(1)</script>"})
    guarantee = replace(result().statement.guarantees[0], observer=odd)
    statement = replace(result().statement, guarantees=(guarantee,), caveats=("<b>",))
    history = History(unprotected={"<i>": [(1, 2.0)]})
    page = replace(result(), statement=statement, history=history)._repr_html_()
    assert "<table>" in page and "<script>" not in page and "<b>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and "(unprotected)" in page


def test_a_comparison_becomes_a_frame_like_its_table() -> None:
    pytest.importorskip("pandas")
    task, data = pt.data.breast_cancer(parties=2)
    here = pt.Runtimes(star=pt.InProcess())
    made = pt.compare({"a": pt.SGD(epochs=1), "b": pt.DPSGD(epochs=1.0)}, task, data, runtimes=here)
    frame = made.to_frame()
    assert len(frame) == 2
    header = to_csv(made).splitlines()[0].split(",")
    assert list(frame.columns) == header
    assert frame["accuracy"].tolist() == [row.accuracy for row in made.rows]
    assert list(read_comparison(to_plain(plain_comparison(made))).to_frame().columns) == header
