"""Rounds of federated averaging: what a runtime costs on top of the training itself.

    python benchmarks/rounds.py [--quick] [--json]
    python benchmarks/rounds.py --against CHECKOUT [--quick]

10 clients hold the digits between them and train an MLP of 4,810 parameters for one epoch of
batches of 32 a round. The other side is a loop written by hand, with the same batches, the same
optimizer and the same aggregation: both end with the same model to the bit, which is checked
before anything is timed. Time is counted from the end of the first round to the end of the last,
so that neither the start of a run nor of Ray's workers is in it.

Two rows hold the releases of the last rounds of a long run against those of the first ones, by
plain sums and by sums on shares: what a release costs must not grow with the transcript. The shares
are opened once; every later opening gets the same replies, so that no start of a process hides it.

`--against` measures rounds of this checkout and of another one in turn, such as the commit before a
change.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import CHECKOUT, PAIRS, SEED, Row, checkouts, from_seconds, in_turn, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(CHECKOUT))

from privtrain.core.parameters import initial_model, load_vector, to_vector
from privtrain.core.runtime import Runtimes, StarRuntime
from privtrain.core.seeding import Seeds
from privtrain.core.task import FederatedData, Task
from privtrain.data.datasets import digits
from privtrain.release.door import Release
from privtrain.release.plain import PlainSum
from privtrain.release.shared import SharedSum
from privtrain.runs.fitting import fit
from privtrain.runtimes.flower.grid import FlowerGrid, FlowerRay
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.processes.mesh import Processes
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


STARS: dict[str, StarRuntime] = {"in-process": InProcess(), "flower-grid": FlowerGrid()}
LONG, FEW = 400, 10
"""Rounds of a run whose last releases are held against its first ones, and how many of each."""


class Replayed:
    """A mesh that works once, and then gives its first replies again and again."""

    name, real = "replayed", True

    def __init__(self) -> None:
        self._replies: Any = None

    def spmd(self, *given: Any, **options: Any) -> Any:
        """The replies of the first call."""
        if self._replies is None:
            mesh: Any = Processes()
            # By either name: the other checkout may be of another version.
            ask = mesh.spmd if hasattr(mesh, "spmd") else mesh.run
            self._replies = ask(*given, **options)
        return self._replies

    run = spmd


SECONDS: list[float] = []
"""What each release took on its way in."""


@dataclass(frozen=True)
class Timed(Release):
    """A release that says how long the aggregator took for it."""

    def arrive(self, *given: Any, **options: Any) -> Any:
        """As the release does it."""
        start = time.perf_counter()
        released = super().arrive(*given, **options)
        SECONDS.append(time.perf_counter() - start)
        return released


def late_and_early(
    aggregation: PlainSum | SharedSum, task: Task, data: FederatedData, rounds: int
) -> Row:
    """The last releases of a long run against its first ones."""
    SECONDS.clear()
    trainer = FedAvg(
        rounds=rounds, local=PlainSteps(batch_size=None), release=Timed(aggregation=aggregation)
    )
    where = Runtimes(star=InProcess(), mesh=Replayed())
    fit(trainer, task, data, runtimes=where, seed=SEED, progress=lambda done, total: None)
    # The first release opens the shares, by processes that have to start.
    sides = SECONDS[-FEW:], SECONDS[1 : FEW + 1]
    work = f"release-by-{type(aggregation).__name__}"
    return from_seconds(work, *sides, ours_name=f"round {rounds}", against_name="round 1")


def serve(name: str) -> None:
    """Answers each number of rounds by the seconds that one of them takes."""
    torch.set_num_threads(1)
    task, data = digits(parties=10, seed=SEED, validation_fraction=0.0)
    side = through(STARS[name], task, data)
    for line in sys.stdin:
        print(seconds_a_round(side, int(line)), flush=True)


def against(checkout: Path, quick: bool) -> list[Row]:
    """Rounds of this checkout and of another one, through each runtime."""
    measured, rounds = [], 8 if quick else 20
    for name in STARS:
        with checkouts(checkout, "--serve", name) as sides:
            for side in sides:
                side(2)
            ours, other = (partial(side, rounds) for side in sides)
            names = {"ours_name": f"{name}, this", "against_name": "other"}
            measured.append(in_turn(WORK, ours, other, repeats=5 if quick else PAIRS, **names))
    return measured


def rows(quick: bool) -> list[Row]:
    """One row for each runtime; Ray's only in a full run, since it takes its time to start."""
    task, data = digits(parties=10, seed=SEED, validation_fraction=0.0)
    loop = plain_loop(task, data)
    repeats, rounds = (5, 8) if quick else (31, 20)
    measured = [
        measure(through(star, task, data), loop, star.name, rounds=rounds, repeats=repeats)
        for star in STARS.values()
    ]
    measured += [
        late_and_early(aggregation, task, data, 100 if quick else LONG)
        for aggregation in (PlainSum(), SharedSum())
    ]
    if not quick:
        ray = through(FlowerRay(), task, data)
        measured.append(measure(ray, loop, FlowerRay().name, rounds=20, repeats=5))
    return measured


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main(rows, against=against)
