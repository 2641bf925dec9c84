"""Models that were trained elsewhere, and what their users state of them."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import privtrain as pt
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import ModelPredictor
from privtrain.core.statement import STATED, PrivacyStatement, to_plain
from privtrain.report.files import plain_comparison, read_comparison
from privtrain.report.html import comparison_fragment, comparison_html
from privtrain.report.latex import to_latex
from privtrain.report.records import to_csv
from privtrain.report.summary import groups
from privtrain.runs.rows import cells

TASK, DATA = pt.data.breast_cancer(parties=3)
HERE = pt.Runtimes(star=pt.InProcess())


def stated(epsilon: float = 2.5, **other: Any) -> pt.Guarantee:
    given = {"observer": pt.PUBLIC, "unit": "example", "relation": "add_remove", "delta": 1e-5}
    return pt.Guarantee(**{**given, "accountant": "prv", "epsilon": epsilon, **other})


def elsewhere() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 4), nn.Dropout(0.5), nn.Linear(4, 2))


EXTERNAL = pt.External(elsewhere(), guarantees=[stated()], trained_by="a script")


@cache
def compared() -> pt.Comparison:
    trainers = {"here": pt.DPSGD(epochs=1.0), "elsewhere": EXTERNAL, "sgd": pt.SGD(epochs=1)}
    options: Any = {"attacks": [pt.LossThreshold()], "runtimes": HERE}
    return pt.compare(trainers, TASK, DATA, **options)


def test_it_is_a_row_that_is_measured_and_attacked() -> None:
    made = compared()
    row = made.rows[1]
    assert (row.trainer, row.epsilon_asked, row.met, row.error) == ("external", None, None, None)
    with torch.no_grad():
        outputs = elsewhere().eval()(DATA.test.inputs)
    assert row.accuracy == float((outputs.argmax(1) == DATA.test.labels).double().mean())
    (leak,) = row.leakage
    assert leak.metrics["auc"] is not None and 0 <= leak.metrics["auc"] <= 1
    assert any(STATED in note for note in leak.notes)
    assert row.cost is None
    assert read_comparison(json.loads(json.dumps(to_plain(plain_comparison(made))))) == made


def test_what_is_stated_never_stands_as_computed() -> None:
    made = compared()
    statement = made.rows[1].statement
    assert statement is not None
    assert math.isinf(statement.epsilon())
    assert STATED in str(statement)
    here, other, _ = groups(made)
    assert other.headlines == () and other.headline is None
    assert here.headlines != ()
    assert [g.stated for g in other.promised("public")] == [True]
    assert [g.stated for g in here.promised("public")] == [False]


@pytest.mark.parametrize("epsilons", [(), (1.0, 3.0)])
def test_it_takes_no_budget(epsilons: tuple[float, ...]) -> None:
    made = list(cells({"elsewhere": EXTERNAL}, [0, 1], epsilons))
    assert [(cell.seed, cell.epsilon) for cell in made] == [(0, None), (1, None)]


RENDERINGS = {
    "text": str,
    "fragment": comparison_fragment,
    "page": comparison_html,
    "latex": to_latex,
    "csv": lambda made: to_csv(made).replace("_", " "),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "page" else []) for n in RENDERINGS]
)
def test_every_rendering_says_what_is_stated(name: str) -> None:
    made = compared()
    assert STATED in RENDERINGS[name](made)
    # Without its one stated guarantee no rendering says so.
    assert STATED not in RENDERINGS[name](replace(made, rows=made.rows[::2]))


def test_what_is_stated_has_columns_of_its_own() -> None:
    made = compared()
    table = to_csv(made)
    header, _, row, _ = table.splitlines()
    named = "epsilon[public/example/add_remove/stated_by_the_user]"
    assert named in header and "2.5" in row
    plain = [g for r in made.rows if r.statement for g in r.statement.to_json()["guarantees"]]
    assert [g["stated"] for g in plain if g["epsilon"] == 2.5] == [True]


def test_a_promise_of_a_user_hides_what_a_computed_one_hides() -> None:
    data = replace(DATA, published=False, public_rows=None)
    made = pt.compare({"elsewhere": EXTERNAL, "sgd": pt.SGD(epochs=1)}, TASK, data, runtimes=HERE)
    assert made.card["data"]["test_rows"] == "not public"
    assert made.rows[1].cost is not None and made.rows[1].cost.bytes_sent is None


def test_the_same_guarantee_stated_and_computed_are_two() -> None:
    made = compared()
    computed = made.rows[0].statement
    assert computed is not None
    again = pt.External(elsewhere(), guarantees=computed)
    assert all(g.stated for g in again.guarantees)
    assert not any(g.stated for g in computed.guarantees)


def test_fit_returns_it_as_it_is() -> None:
    result = pt.fit(EXTERNAL, TASK, DATA)
    assert result.statement.guarantees[0].stated
    assert "trained elsewhere" in str(result.cost)
    assert pt.evaluate(result, TASK, DATA)["accuracy"] == compared().rows[1].accuracy
    with pytest.raises(UnsupportedError, match="budget"):
        pt.fit(EXTERNAL, TASK, DATA, budget=pt.Budget(1.0))


def test_it_can_be_kept_and_its_promises_stay_stated(tmp_path: Path) -> None:
    result = pt.fit(EXTERNAL, TASK, DATA)
    pt.save_model(result, tmp_path / "m")
    model = pt.load_model(tmp_path / "m", model=elsewhere)
    assert torch.equal(model(DATA.test.inputs), result.predictor(DATA.test.inputs))
    assert model.statement.guarantees[0].stated and model.encoder == DATA.encoder
    page = (tmp_path / "m/model_card.md").read_text()
    assert f"nobody here: {STATED}" in page


def test_a_model_that_opacus_wrapped_is_measured_and_attacked() -> None:
    wrapper = pytest.importorskip("opacus").GradSampleModule
    inner = elsewhere()
    made = pt.compare(
        {"wrapped": pt.External(wrapper(inner)), "inner": pt.External(inner)},
        *(TASK, DATA),
        attacks=[pt.LossThreshold()],
        runtimes=HERE,
    )
    wrapped, plain = made.rows
    assert wrapped.error is None and wrapped.accuracy == plain.accuracy
    assert wrapped.leakage[0].metrics == plain.leakage[0].metrics


def test_any_function_of_inputs_will_do(tmp_path: Path) -> None:
    def answers(inputs: Tensor) -> Tensor:
        return torch.stack([inputs[:, 0], 1 - inputs[:, 0]], dim=1)

    made = pt.compare({"f": pt.External(answers)}, TASK, DATA, folder=tmp_path, runtimes=HERE)
    assert made.rows[0].error is None
    # A row is found again by what the function computes.
    again = pt.compare({"f": pt.External(answers)}, TASK, DATA, folder=tmp_path, runtimes=HERE)
    assert again.rows == made.rows
    kept = pt.load_model(pt.save_model(pt.fit(pt.SGD(epochs=1), TASK, DATA), tmp_path / "m"))
    assert pt.fit(pt.External(kept, guarantees=kept.statement), TASK, DATA).statement.guarantees


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"predictor": nn.Linear}, "predictor"),
        ({"predictor": 3}, "predictor"),
        ({"guarantees": 3.0}, "guarantees"),
        ({"guarantees": [3.0]}, "Guarantee"),
        ({"guarantees": [stated(-1.0)]}, "epsilon=-1.0"),
        ({"guarantees": [stated(math.nan)]}, "epsilon=nan"),
        ({"guarantees": [stated(delta=2.0)]}, "delta=2.0"),
        ({"guarantees": [stated(unit="row")]}, "unit='row' to be one of client, example, user"),
        ({"guarantees": [stated(unit=3)]}, "unit=3 to be one of client, example, user"),
        ({"guarantees": [stated(relation="other")]}, "'other' to be one of add_remove, "),
        ({"trained_by": 3}, "trained_by"),
    ],
)
def test_what_is_none_is_refused_when_it_is_made(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pt.External(**{"predictor": elsewhere(), **options})


@pytest.mark.parametrize(
    ("predictor", "said"),
    [
        (nn.Linear(7, 2), "raised RuntimeError"),
        (lambda inputs: inputs.numpy(), "returned ndarray"),
        (lambda inputs: inputs.sum(), r"returned \(\)"),
        (lambda inputs: inputs[:1], r"returned \(1, 30\)"),
    ],
)
def test_a_predictor_that_does_not_answer_is_refused(predictor: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        pt.fit(pt.External(predictor), TASK, DATA)


def test_it_prints_on_one_line_and_in_plain_values() -> None:
    assert repr(EXTERNAL).startswith("External(guarantees=") and "Linear" not in repr(EXTERNAL)
    assert isinstance(PrivacyStatement(guarantees=tuple(EXTERNAL.guarantees)).to_json(), dict)
    json.dumps(compared().card)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_comparison_with_another_architecture_goes_on(tmp_path: Path, wrapped: bool) -> None:
    other = elsewhere()
    given: Any = ModelPredictor(other) if wrapped else other
    trainers: Any = {"elsewhere": pt.External(given)}
    options: Any = {"folder": tmp_path / "c", "keep_models": True, "runtimes": HERE}
    first = pt.compare(trainers, TASK, DATA, **options)
    # The mode is part of what identifies the trainer: in another one the row would be made anew.
    assert other.training
    again = pt.compare(trainers, TASK, DATA, **options)
    assert again.rows == first.rows
    assert len(list((tmp_path / "c").glob("*/row.json"))) == 1
    inputs = DATA.test.inputs
    for row in (*first.rows, *again.rows):
        assert row.predictor is not None
        assert torch.equal(row.predictor(inputs), elsewhere().eval()(inputs))


def test_a_function_is_a_predictor_after_going_on(tmp_path: Path) -> None:
    trainers: Any = {"elsewhere": pt.External(lambda inputs: inputs[:, :2])}
    options: Any = {"folder": tmp_path / "c", "keep_models": True, "runtimes": HERE}
    made = [pt.compare(trainers, TASK, DATA, **options).rows[0] for _ in range(2)]
    assert made[0] == made[1] and all(row.predictor is not None for row in made)


def test_a_module_that_cannot_be_copied_is_named() -> None:
    class Kept(nn.Module):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("not this one")

    with pytest.raises(DataError, match="Kept to be a module that can be copied: not this one"):
        pt.External(Kept()).trained_elsewhere(TASK, DATA)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "trained elsewhere, as the user says"),
        ({"trained_by": ""}, "trained elsewhere, as the user says"),
        ({"trained_by": "a script"}, "trained by a script, as the user says"),
    ],
)
def test_what_trained_it_is_told(given: dict[str, Any], said: str) -> None:
    assert pt.External(elsewhere(), **given).trained_elsewhere(TASK, DATA).notes == (said,)
