"""What a task measures: which metric leads, and which way is better."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

import privtrain as pt
from privtrain.core.identity import value_digest
from privtrain.core.measures import Metric, better_by, metric_of, nearest
from privtrain.core.task import Task


def some(outputs: Tensor, targets: Tensor) -> float:
    return 0.5


def test_a_function_stands_for_a_metric() -> None:
    assert metric_of("own", some) == Metric(some, counts=False, best="high")
    assert metric_of("accuracy", pt.accuracy) == Metric(pt.accuracy, counts=True)
    # A user's own function may be anything, whatever its name.
    assert metric_of("accuracy", some) == Metric(some)
    for name in ("mse", "rmse", "mae", "RMSE", "log loss", "mean-squared-error"):
        assert metric_of(name, some) == Metric(some, best="low")
    assert metric_of("far", pt.rmse).best == "low"
    assert metric_of("loss", pt.accuracy).best == "high"
    given = Metric(some, counts=True, best="high")
    assert metric_of("mse", given) is given
    assert given(None, None) == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Metric(some, best="lwo"), r"best='lwo' to be 'high' or 'low'.*mean 'low'"),  # type: ignore[arg-type]
        (lambda: Metric(some, best="hi"), r"mean 'high'"),  # type: ignore[arg-type]
        (lambda: Metric(some, counts="yes"), r"counts='yes'"),  # type: ignore[arg-type]
        (lambda: Metric(0.5), r"compute=0\.5"),  # type: ignore[arg-type]
        (lambda: Metric(nn.Linear), "to be a function"),
    ],
)
def test_what_is_no_metric_is_refused_when_it_is_made(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


def task(**given: Any) -> Task:
    return Task(model=nn.Identity, **given)


def test_accuracy_leads_where_there_is_one_else_the_first() -> None:
    assert task().main == "accuracy"
    assert task(metrics={"mse": some, "accuracy": some}).main == "accuracy"
    assert task(metrics={"mse": some, "mae": some}).main == "mse"
    named = task(metrics={"mse": some, "mae": some, "accuracy": some}, main="mae")
    assert named.main == "mae" and list(named.measures) == ["mae", "mse", "accuracy"]
    assert task(metrics={}).main == "" and task(metrics={}).measures == {}


def test_other_metrics_choose_again_unless_one_was_named() -> None:
    assert replace(task(), metrics={"mse": some}).main == "mse"
    named = task(metrics={"mse": some, "mae": some}, main="mae")
    assert replace(named, name="other").main == "mae"
    with pytest.raises(ValueError, match="main='mae'"):
        replace(named, metrics={"mse": some})
    again = pickle.loads(pickle.dumps(replace(task(), metrics={"mse": some})))
    assert replace(again, metrics={"auc": some}).main == "auc"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"metrics": {"rmse": some}, "main": "rsme"},
            r"main='rsme' .*: rmse.* mean 'rmse'",
        ),
        ({"metrics": {"AUC": some}, "main": "auc"}, r"mean 'AUC'"),
        ({"main": "accurcy"}, r"mean 'accuracy'"),
        ({"metrics": {}, "main": "auc"}, "there is none"),
        ({"metrics": [some]}, "mapping from name to function"),
        ({"metrics": some}, "mapping from name to function"),
        ({"metrics": {"auc": 0.5}}, r"metrics\['auc'\]=0\.5"),
        ({"metrics": {"auc": nn.Linear}}, "a function of outputs and targets"),
        ({"metrics": {3: some}}, "names in quotes"),
    ],
)
def test_a_task_of_no_metrics_is_refused_when_it_is_made(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task(**given)


def test_better_is_above_zero_either_way() -> None:
    assert better_by(0.9, 0.8, "high") == pytest.approx(0.1)
    assert better_by(0.9, 0.8, "low") == pytest.approx(-0.1)


def test_nothing_near_asks_nothing() -> None:
    assert nearest("zebra", ("high", "low")) == ""


def test_the_usual_main_metric_is_no_part_of_what_identifies_a_task() -> None:
    """Noise and folders of earlier versions keep their identity."""
    usual = task(metrics={"accuracy": some, "auc": some})
    assert value_digest(usual) == value_digest(replace(usual, main="accuracy"))
    assert value_digest(usual) != value_digest(replace(usual, main="auc"))
    assert "main" not in repr(usual) and "main='auc'" in repr(replace(usual, main="auc"))
