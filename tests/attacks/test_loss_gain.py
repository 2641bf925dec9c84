"""Loss gain equals its plain twin, and finds what one client's update gave away."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import privtrain as pt
from privtrain.attacks.attack import target_for
from privtrain.attacks.loss_gain import LossGain
from privtrain.core.observers import AGGREGATOR
from privtrain.core.parameters import load_vector
from privtrain.core.result import Target
from privtrain.core.transcript import Transcript
from tests.contracts.federation import (
    CLIENTS,
    FEDERATED,
    clients,
    federation,
    perceptron,
    wide_rows,
)

FEW = wide_rows(5, 2)


def short(*, broken: bool = False) -> Target:
    """The aggregator's view of the first two rounds, one of its updates perhaps broken."""
    result = federation(1)
    entries = [entry for entry in result.transcript.entries if entry.round < 2]
    if broken:
        bad = next(n for n, entry in enumerate(entries) if entry.kind == "update")
        entries[bad] = replace(entries[bad], kept=torch.full(entries[bad].shape, torch.nan))
    return target_for(
        AGGREGATOR,
        transcript=Transcript(keep_payloads=True, entries=entries),
        predictor=result.predictor,
        task=FEDERATED,
    )


def plain_gains(target: Target) -> np.ndarray:
    """Loops over rounds, clients and rows, `(rounds, clients, rows)`."""
    gains = np.zeros((2, CLIENTS, len(FEW)))
    model = perceptron()

    def loss(vector: torch.Tensor, row: int) -> float:
        load_vector(model.parameters(), vector)
        logits = model(FEW.inputs[row : row + 1]).detach()
        return float(torch.nn.functional.cross_entropy(logits, FEW.labels[row : row + 1]))

    sent = {(e.receiver, e.round): e.payload for e in target.view.messages if e.kind == "model"}
    for entry in target.view.messages:
        if entry.kind == "update":
            start, client = sent[entry.sender, entry.round], int(entry.sender[-2:])
            assert start is not None and entry.payload is not None
            for row in range(len(FEW)):
                gain = loss(start, row) - loss(entry.payload, row)
                gains[entry.round, client, row] = gain
    return gains


def test_it_is_the_largest_gain_of_all() -> None:
    gains = plain_gains(short())
    np.testing.assert_allclose(
        LossGain().score(short(), FEW, seed=0), gains.max(axis=(0, 1)), rtol=1e-4, atol=1e-5
    )
    apart = [
        [gains[r, c] - np.delete(gains[r], c, axis=0).mean(axis=0) for c in range(CLIENTS)]
        for r in range(2)
    ]
    np.testing.assert_allclose(
        LossGain(relative=True).score(short(), FEW, seed=0),
        np.max(apart, axis=(0, 1)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_update_that_is_not_a_number_says_nothing() -> None:
    whole = np.asarray(LossGain().score(short(), FEW, seed=0))
    scores = np.asarray(LossGain().score(short(broken=True), FEW, seed=0))
    assert np.isfinite(scores).all() and (scores <= whole + 1e-9).all()


def test_it_finds_rows_in_a_run_and_nobody_else_may_try() -> None:
    found = pt.audit(federation(1), LossGain(), FEDERATED, clients(1))
    assert found.intervals["auc"][0] > 0.9
    with pytest.raises(pt.UnsupportedError, match="to be one of aggregator, coalition"):
        pt.audit(federation(1), LossGain(observer=pt.PARTICIPANT), FEDERATED, clients(1))
    assert (LossGain().name, LossGain(relative=True).name) == ("loss gain", "loss gain, relative")


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"batch_size": 0}, {"relative": "no"}])
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossGain(**wrong)  # type: ignore[arg-type]
