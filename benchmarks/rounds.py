"""Rounds of federated averaging: what a runtime costs on top of the training itself.

    python benchmarks/rounds.py [--quick] [--json]

10 clients hold the digits between them and train an MLP of 4,810 parameters for one epoch of
batches of 32 a round. The other side is a loop written by hand, with the same batches, the same
optimizer and the same aggregation: both end with the same model to the bit, which is checked
before anything is timed. Time is counted from the end of the first round to the end of the last,
so that neither the start of a run nor of Ray's workers is in it.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import SEED, Row, from_seconds, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from privtrain.core.parameters import initial_model, load_vector, to_vector
from privtrain.core.runtime import Runtimes, StarRuntime
from privtrain.core.seeding import Seeds
from privtrain.core.task import FederatedData, Task
from privtrain.data.datasets import digits
from privtrain.runs.fitting import fit
from privtrain.runtimes.flower.grid import FlowerGrid, FlowerRay
from privtrain.runtimes.in_process import InProcess
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.fedavg import FedAvg

WORK = "fedavg-mlp4810-10-clients"
BATCH, RATE = 32, 0.1

Stamp = Callable[[int, int], None]
Side = Callable[[int, Stamp], torch.Tensor]
"""Trains for so many rounds, calls the stamp after each, and gives the model as a vector."""


def plain_loop(task: Task, data: FederatedData) -> Side:
    """What somebody would write who needs federated averaging once."""
    held = {party: data.train[party] for party in data.parties}

    def train(rounds: int, stamp: Stamp) -> torch.Tensor:
        seeds = Seeds(SEED)
        model = initial_model(task, seeds["initialisation", 0, ""]).train()
        parameters = list(model.parameters())
        current = to_vector(parameters)
        for round in range(rounds):
            total = torch.zeros_like(current, dtype=torch.float64)
            for party, rows in held.items():
                load_vector(parameters, current)
                optimizer = torch.optim.SGD(parameters, lr=RATE)
                order = torch.randperm(len(rows), generator=seeds["order", round, party].torch())
                for index in torch.split(order, BATCH):
                    optimizer.zero_grad()
                    loss = task.loss(model(rows.inputs[index]), rows.labels[index]).mean()
                    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                    optimizer.step()
                total += to_vector(parameters)
            current = (total / len(held)).float()
            stamp(round + 1, rounds)
        return current

    return train


def through(runtime: StarRuntime, task: Task, data: FederatedData) -> Side:
    """The same training as a user would ask for it."""

    def train(rounds: int, stamp: Stamp) -> torch.Tensor:
        trainer = FedAvg(rounds=rounds, local=PlainSteps(batch_size=BATCH, learning_rate=RATE))
        where = Runtimes(star=runtime)
        result = fit(trainer, task, data, runtimes=where, seed=SEED, progress=stamp)
        return to_vector(result.predictor.module.parameters())  # type: ignore[attr-defined]

    return train


def seconds_a_round(side: Side, rounds: int) -> float:
    """The time of a round, the first one left out."""
    stamps: list[float] = []
    side(rounds, lambda done, total: stamps.append(time.perf_counter()))
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1)


def measure(ours: Side, loop: Side, name: str, *, rounds: int, repeats: int) -> Row:
    """Both sides in turn, after a run of each that has to end with the same model."""
    models = [side(2, lambda done, total: None) for side in (ours, loop)]
    if not torch.equal(*models):
        raise SystemExit(f"{name} and the plain loop end with different models.")
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            seconds[index].append(seconds_a_round((ours, loop)[index], rounds))
    return from_seconds(WORK, *seconds, ours_name=name, against_name="plain loop")


def rows(quick: bool) -> list[Row]:
    """One row for each runtime; Ray's only in a full run, since it takes its time to start."""
    task, data = digits(parties=10, seed=SEED, validation_fraction=0.0)
    loop = plain_loop(task, data)
    repeats, rounds = (9, 8) if quick else (31, 20)
    measured = [
        measure(through(star, task, data), loop, star.name, rounds=rounds, repeats=repeats)
        for star in (InProcess(), FlowerGrid())
    ]
    if not quick:
        ray = through(FlowerRay(), task, data)
        measured.append(measure(ray, loop, FlowerRay().name, rounds=20, repeats=5))
    return measured


if __name__ == "__main__":
    main(rows)
