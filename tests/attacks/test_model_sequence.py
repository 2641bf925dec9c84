"""The sequence of models equals its plain twin, and is read by whoever was sent it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import privtrain as pt
from privtrain.attacks.attack import target_for
from privtrain.attacks.model_sequence import ModelSequence
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PARTICIPANT
from privtrain.core.parameters import load_vector
from tests.contracts.attack import Lending
from tests.contracts.federation import FEDERATED, clients, federation, perceptron, wide_rows

FEW = wide_rows(5, 6)


def plain_losses() -> np.ndarray:
    """Of each model that client-00 was sent and of the published one, `(models, rows)`."""
    model, losses = perceptron(), []
    for entry in federation(1).transcript.entries:
        if entry.kind == "model" and entry.receiver in ("client-00", "public"):
            assert entry.payload is not None
            load_vector(model.parameters(), entry.payload)
            logits = model(FEW.inputs).detach()
            losses.append(torch.nn.functional.cross_entropy(logits, FEW.labels, reduction="none"))
    return torch.stack(losses).double().numpy()


def test_scores_are_those_of_the_plain_twin() -> None:
    result, losses = federation(1), plain_losses()
    assert len(losses) == 13
    seen = target_for(
        PARTICIPANT, transcript=result.transcript, predictor=result.predictor, task=FEDERATED
    )
    seen = replace(seen, shadows=Lending(FEW))
    trend = losses[:6].mean(axis=0) - losses[6:].mean(axis=0)
    np.testing.assert_allclose(
        ModelSequence(shadows=0).score(seen, FEW, seed=0), trend, rtol=1e-4, atol=1e-5
    )
    models = Lending(FEW)(4)
    p = np.exp(-models.losses)
    reference = [
        (p[models.included[:, row], row].mean() + p[~models.included[:, row], row].mean()) / 2
        for row in range(len(FEW))
    ]
    ratios = (-losses[6:] - np.log(reference)).mean(axis=0)
    np.testing.assert_allclose(
        ModelSequence(shadows=4).score(seen, FEW, seed=0), ratios, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "observer", [pt.PARTICIPANT, pt.AGGREGATOR, pt.coalition({"client-01", "client-02"})], ids=str
)
def test_it_finds_rows_of_others(observer: pt.Observer) -> None:
    attack = ModelSequence(shadows=0, observer=observer)
    found = pt.audit(federation(1), attack, FEDERATED, clients(1))
    assert found.intervals["auc"][0] > 0.9
    held = {"participant": 10, "aggregator": 0}.get(observer.name, 20)
    assert found.members == 120 - held


def test_the_public_and_runs_without_rounds_are_refused() -> None:
    with pytest.raises(NotApplicableError) as caught:
        pt.audit(federation(1), ModelSequence(observer=pt.PUBLIC), FEDERATED, clients(1))
    assert caught.value.reason is Reason.OTHER_VIEW
    pooled = pt.fit(pt.SGD(epochs=1), FEDERATED, clients(1), keep_payloads=True)
    with pytest.raises(NotApplicableError, match="the model of each round") as caught:
        pt.audit(pooled, ModelSequence(), FEDERATED, clients(1))
    assert caught.value.reason is Reason.NO_MESSAGES


def test_settings_are_checked_and_change_the_name() -> None:
    with pytest.raises(ValueError, match="shadows=2 to be a whole number >= 4"):
        ModelSequence(shadows=2)
    with pytest.raises(ValueError, match="limit=0"):
        ModelSequence(limit=0)
    assert ModelSequence().name != ModelSequence(shadows=0).name
