"""Scores: the noise that they claim, and what would leak."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from privtrain.accounting.selection import RandomTrials
from privtrain.core.errors import DataError, UnsoundReleaseError
from privtrain.core.identity import value_digest
from privtrain.core.measures import Metric
from privtrain.core.metrics import accuracy, auc, rmse
from privtrain.core.seeding import SeededEntropy
from privtrain.core.task import Rows
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.release.door import Release
from privtrain.runs import tuning
from privtrain.runs.scoring import PrivateRows, PublicRows
from privtrain.runs.tuning import tune
from privtrain.sampling.batches import ShuffledEpochs
from privtrain.trainers.dp_sgd import DPSGD
from tests.statistics import std_is
from tests.trainers.federations import STAR, TASK, a_federation

DATA = replace(a_federation(12, 9, 15, public_rows=36), digest="ab" * 32)
OTHERS = a_federation(14, 7).pooled()
PUBLIC_ROWS = PublicRows(OTHERS)
NOISE, EPOCHS = 3.0, 2


def setting(learning_rate: float = 0.5, noise: float = NOISE) -> DPSGD:
    return DPSGD(
        epochs=EPOCHS,
        expected_batch=12.0,
        learning_rate=learning_rate,
        sampling=ShuffledEpochs(),
        release=Release(Gaussian(1.0, noise)),
    )


def tuned(score: Any = PUBLIC_ROWS, mean: float = 3.0, **options: Any) -> tuning.Tuned:
    given: dict[str, Any] = {"trainers": {"slow": setting(1e-9), "fast": setting()}, **options}
    trials = RandomTrials(mean=mean)
    return tune(
        given.pop("trainers"), TASK, DATA, score=score, trials=trials, runtimes=STAR, **given
    )


def predict(inputs: Any) -> Any:
    return one_hot((inputs.flatten(1)[:, 0] > 0).long(), 2)


@pytest.mark.parametrize("factor", [2 / 3, 1.0, 3 / 2])
def test_the_noise_of_a_private_score_has_the_stated_size(factor: float) -> None:
    """1,000 scores tell 4 from 2.7 and from 6; the right answer count is their mean."""
    score, entropy = PrivateRows(OTHERS, Gaussian(1.0, 4.0 * factor)), SeededEntropy(3)
    found = np.array([score.measure(predict, entropy["score", n, ""]) for n in range(1000)])
    exact = len(OTHERS) * PublicRows(OTHERS).measure(predict, entropy["score", 0, ""])
    assert std_is(found - exact, 4.0) == (factor == 1.0)


def test_scores_that_would_leak_are_refused() -> None:
    with pytest.raises(UnsoundReleaseError, match="draws none"):
        PrivateRows(OTHERS, Gaussian(1.0, 0.0))
    with pytest.raises(ValueError, match=r"clipping_norm=2\.0"):
        PrivateRows(OTHERS, Laplace(2.0, 1.0))
    with pytest.raises(UnsoundReleaseError, match="SimpleNamespace"):
        tuned(SimpleNamespace(rows=OTHERS))
    with pytest.raises(DataError, match=r"data\.test"):
        tuned(PublicRows(DATA.test))
    with pytest.raises(UnsoundReleaseError, match=r"data\.train"):
        tuned(PublicRows(DATA.train[DATA.parties[0]]))
    with pytest.raises(DataError, match="labels"):
        tuned(PublicRows(Rows(OTHERS.inputs[:0], OTHERS.labels[:0])))


@pytest.mark.parametrize("score", [PUBLIC_ROWS, PrivateRows(OTHERS, Gaussian(1.0, 4.0))])
def test_what_a_model_sets_while_it_is_scored_does_not_reach_the_next_trial(score: Any) -> None:
    def changing(inputs: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        return predict(inputs)

    score.measure(changing, SeededEntropy(0)["score", 0, ""])
    assert torch.zeros(1).dtype is torch.float32 and torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_a_single_logit_is_counted_by_its_sign(shape: tuple[int, ...]) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0))
    rows = Rows(logits.reshape(20, 1), (logits > 0.3).float())
    right = int(((logits > 0) == (logits > 0.3)).sum())
    stream = SeededEntropy(0)["score", 0, ""]
    public = PublicRows(rows).measure(lambda inputs: inputs.reshape(shape), stream)
    assert public == right / 20
    quiet = PrivateRows(rows, Gaussian(1.0, 1e-9))
    private = quiet.measure(lambda inputs: inputs.reshape(shape), stream)
    assert private == pytest.approx(right, abs=1e-6)


def one_decides(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Says that it counts rows, and lets the largest target decide of all of them."""
    return float(targets.max() < 2)


@pytest.mark.parametrize("metric", [accuracy, one_decides])
@pytest.mark.parametrize("single", [True, False])
def test_one_row_moves_a_private_score_by_one_whatever_the_metric(
    metric: Any, single: bool
) -> None:
    logits = torch.randn(30, 1 if single else 3, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(30) % 2
    changed = targets.clone()
    # Neither 0 nor 1: of all rows at once it would be no target of a single logit.
    changed[7] = 2
    scores = [
        PrivateRows(
            Rows(logits, given), Gaussian(1.0, 1e-9), metric=Metric(metric, counts=True)
        ).measure(lambda inputs: inputs, SeededEntropy(0)["score", 0, ""])
        for given in (targets, changed)
    ]
    assert abs(scores[0] - scores[1]) < 1 + 1e-6
    assert scores[0] > 2


def test_private_rows_need_a_metric_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tuning, "fit_trial", lambda *given, **options: pytest.fail("a trial was run")
    )
    private = PrivateRows(OTHERS, Gaussian(1.0, 4.0))
    for name, metric in (("auc", auc), ("accuracy", lambda o, t: 0.5), ("rmse", rmse)):
        task = replace(TASK, metrics={name: metric})
        with pytest.raises(UnsoundReleaseError, match=f"main metric '{name}' is no count"):
            tune({"a": setting()}, task, DATA, score=private, runtimes=STAR)


def test_the_metric_of_a_score_is_no_part_of_its_identity_until_it_is_another() -> None:
    """The noise of earlier versions is that of today."""
    score = PublicRows(OTHERS)
    assert value_digest(score) == value_digest(score.by(Metric(accuracy, counts=True)))
    assert value_digest(score) != value_digest(score.by(Metric(auc)))
