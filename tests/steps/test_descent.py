"""Descent on pooled rows takes the steps of a plain loop."""

import functools

import torch

from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import initial_model, trainable
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.seeding import OnceOnly, SeededEntropy, Seeds
from privtrain.core.statement import Unit
from privtrain.core.trainer import Run
from privtrain.core.transcript import Transcript
from privtrain.ledgers.run import JournalLedger
from privtrain.release.door import Release
from privtrain.sampling.passes import batches
from privtrain.steps.descent import PooledDescent
from tests.trainers.federations import TASK, a_federation, vector


def test_momentum_and_batches_are_those_of_a_plain_loop() -> None:
    data, seeds = a_federation(17), Seeds(3)
    descent = PooledDescent(
        epochs=2,
        batch_size=5,
        learning_rate=0.1,
        optimizer=functools.partial(torch.optim.SGD, momentum=0.9),
    )
    plans = Release().plans(unit=Unit.EXAMPLE, count=1, parties=1, observers=(PUBLIC,))
    run = Run(
        ledger=JournalLedger(plans),
        transcript=Transcript(),
        seeds=seeds,
        entropy=OnceOnly(SeededEntropy(0)),
    )
    trained = descent.train(TASK, data, run)
    rows = data.pooled()
    model = initial_model(TASK, seeds["initialisation", 0, ""])
    velocity = [torch.zeros_like(p) for p in trainable(model)]
    for epoch in range(2):
        order = seeds["order", epoch, CURATOR_NAME].torch()
        for index in batches(len(rows), 5, 1, order):
            chosen = torch.arange(len(rows)) if index is None else index
            loss = TASK.loss(model(rows.inputs[chosen]), rows.labels[chosen]).mean()
            gradients = torch.autograd.grad(loss, trainable(model))
            with torch.no_grad():
                for p, v, g in zip(trainable(model), velocity, gradients, strict=True):
                    v.mul_(0.9).add_(g)
                    p.sub_(v, alpha=0.1)
    assert torch.allclose(vector(trained.module), vector(model), atol=1e-6)
