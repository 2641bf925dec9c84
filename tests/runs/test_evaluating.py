"""How good a model is, by all metrics of a task."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import privtrain as pt
from privtrain.core.errors import DataError
from privtrain.core.task import accuracy
from privtrain.runs.evaluating import evaluate

TASK, DATA = pt.data.breast_cancer(parties=3)


def predictor(inputs: Tensor) -> Tensor:
    return torch.stack([inputs.mean(1), 1 - inputs.mean(1)], dim=1)


def rows_of_class_one(outputs: Tensor, targets: Tensor) -> float:
    return float(targets.sum())


def test_all_metrics_are_measured_on_test_rows() -> None:
    task = replace(TASK, metrics={"ones": rows_of_class_one, "accuracy": accuracy})
    made = evaluate(predictor, task, DATA)
    assert made["accuracy"] == accuracy(predictor(DATA.test.inputs), DATA.test.labels)
    assert made["ones"] == int(DATA.test.labels.sum())
    low, high = made.intervals["accuracy"]
    assert 0 < low < made["accuracy"] < high < 1
    assert dict(made) == dict(made.metrics) and len(made) == 2
    assert made.intervals["ones"][0] < made["ones"] < made.intervals["ones"][1]
    assert list(made) == ["accuracy", "ones"]


def test_a_result_and_its_predictor_are_measured_alike() -> None:
    result = pt.fit(pt.SGD(epochs=1), TASK, DATA)
    assert evaluate(result, TASK, DATA) == evaluate(result.predictor, TASK, DATA.test)


def test_a_metric_cannot_change_the_rows() -> None:
    def spoiling(outputs: Tensor, targets: Tensor) -> float:
        outputs.zero_()
        targets.zero_()
        return 0.0

    task = replace(TASK, metrics={"spoiling": spoiling, "accuracy": accuracy})
    before = DATA.test.labels.clone()
    assert (
        evaluate(predictor, task, DATA)["accuracy"] == evaluate(predictor, TASK, DATA)["accuracy"]
    )
    assert torch.equal(DATA.test.labels, before)


def test_rows_without_targets_are_refused() -> None:
    with pytest.raises(DataError, match="targets"):
        evaluate(predictor, TASK, replace(DATA.test, targets=None))


def test_the_print_is_short_and_says_what_is_unprotected() -> None:
    made = evaluate(predictor, TASK, DATA)
    assert "unprotected" in repr(made) and len(repr(made)) < 200
    assert "unprotected" in made._repr_html_()


def test_a_module_is_measured_in_eval_mode_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(30, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    net = nn.Sequential(*layers)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = evaluate(net, TASK, DATA)
    assert net.training and all(layer.training for layer in layers)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        assert made["accuracy"] == accuracy(net.eval()(DATA.test.inputs), DATA.test.labels)


def test_a_row_is_measured_by_the_model_that_it_kept() -> None:
    compared = pt.compare({"sgd": pt.SGD(epochs=1)}, TASK, DATA, keep_models=True)
    (row,) = compared.rows
    assert evaluate(row, TASK, DATA)["accuracy"] == row.accuracy
    with pytest.raises(DataError, match=r"'sgd' of the comparison has no model.*keep_models"):
        evaluate(replace(row, predictor=None), TASK, DATA)
    with pytest.raises(ValueError, match="a row of a comparison"):
        evaluate(compared, TASK, DATA)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [TASK, None, "model", nn.Linear])
def test_what_is_no_model_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="what pt\\.fit returned"):
        evaluate(wrong, TASK, DATA)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="to be a Task"):
        evaluate(predictor, DATA, TASK)  # type: ignore[arg-type]
