"""Every trainer through the contract of trainers."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from privtrain.data.datasets import breast_cancer, digits
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.banded import BandedMatrix
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY, SPLIT
from privtrain.sampling.cyclic import CyclicPoisson
from privtrain.sampling.sampling import FixedSize, Poisson
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.steps.semi_supervised import SemiSupervised
from privtrain.steps.weights import ByExamples
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.contracts.trainer import CHECKS, Case

SIX, FEW = breast_cancer(parties=6), breast_cancer(parties=3, public_fraction=0.2)
IMAGES = digits(parties=4)
adam = functools.partial(torch.optim.Adam, lr=0.05)


def a_case(name: str, trainer: object, floor: float, private: bool = True) -> Case:
    task, data = FEW if isinstance(trainer, PATE) else SIX
    known = replace(data, public_rows=400)
    return Case(
        name=name,
        trainer=trainer,  # type: ignore[arg-type]
        task=task,
        data=known,
        floor=floor,
        private=private,
    )


PLAIN = PlainSteps(epochs=2, batch_size=16, learning_rate=0.5)
CASES = (
    a_case("sgd", SGD(epochs=10, learning_rate=0.5), 0.9, private=False),
    a_case("sgd-adam", SGD(epochs=5, learning_rate=0.05, optimizer="Adam"), 0.9, private=False),
    a_case("dp_sgd", DPSGD(epochs=8, learning_rate=2.0), 0.85),
    a_case(
        "dp_sgd-secure",
        DPSGD(epochs=8, learning_rate=2.0, release=Release(Gaussian(1.0, 1.0, secure=True))),
        0.85,
    ),
    a_case("dp_sgd-opacus", DPSGD(epochs=8, learning_rate=2.0, gradients=Opacus()), 0.85),
    a_case(
        "dp_sgd-banded",
        DPSGD(
            epochs=8,
            learning_rate=2.0,
            sampling=CyclicPoisson(4),
            release=Release(BandedMatrix(1.0, 1.0, bands=4, steps=50)),
        ),
        0.85,
    ),
    a_case("fedavg", FedAvg(rounds=6, local=PLAIN), 0.9, private=False),
    a_case(
        "fedavg-server",
        FedAvg(rounds=8, local=PLAIN, server_optimizer=adam, sampling=FixedSize(4)),
        0.85,
        private=False,
    ),
    a_case(
        "fedavg-by-examples",
        FedAvg(rounds=5, local=PLAIN, weights=ByExamples(), sampling=Poisson(0.7)),
        0.9,
        private=False,
    ),
    a_case(
        "fedavg-client-dp", FedAvg(rounds=6, local=PLAIN, release=Release(Gaussian(2.0, 0.6))), 0.8
    ),
    a_case(
        "fedavg-weights-dp",
        FedAvg(
            rounds=6,
            local=PLAIN,
            weights=ByExamples(bound=80),
            release=Release(Gaussian(2.0, 0.6)),
            sampling=FixedSize(5),
        ),
        0.8,
    ),
    a_case(
        "fedavg-poisson-dp",
        FedAvg(rounds=6, local=PLAIN, release=Release(Gaussian(2.0, 0.6)), sampling=Poisson(0.8)),
        0.8,
    ),
    a_case(
        "fedavg-local-dp",
        FedAvg(rounds=6, local=PLAIN, release=Release(Gaussian(2.0, 0.3), AT_PARTY)),
        0.8,
    ),
    a_case(
        "fedavg-split-dp",
        FedAvg(
            rounds=6, local=PLAIN, release=Release(Gaussian(2.0, 0.6), SPLIT(honest_survivors=6))
        ),
        0.8,
    ),
    a_case(
        "fedavg-silos",
        FedAvg(
            rounds=6,
            local=DPSteps(Gaussian(1.0, 1.0), sampling_rate=0.25, learning_rate=1.0),
        ),
        0.85,
    ),
    a_case(
        "pate",
        PATE(
            teachers=9,
            queries=60,
            release=Release(GNMax(sigma=1.5), finish=ARGMAX),
            student=SemiSupervised(steps=100, learning_rate=0.05),
        ),
        0.75,
    ),
    a_case(
        "pate-laplace",
        PATE(
            teachers=9,
            queries=60,
            release=Release(LNMax(scale=1.5), finish=ARGMAX),
            steps=PlainSteps(epochs=40, learning_rate=0.5),
            student=PlainSteps(epochs=60, learning_rate=0.1),
        ),
        0.75,
    ),
)


SLOW = {"sgd-adam", "dp_sgd-opacus", "fedavg-weights-dp", "fedavg-split-dp", "pate-laplace"}
"""Cases that differ little from another one, left to the full suite."""

DEAR = {"spends_what_it_planned", "the_same_seed_gives_the_same_bits"}
"""Checks that train: in the quick suite for one trainer of each kind."""


def promises() -> Iterator[object]:
    """Every case with every check."""
    for case in CASES:
        for check in CHECKS:
            slow = case.name in SLOW or (check.__name__ in DEAR and "-" in case.name)
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(case, check, marks=marks, id=f"{case.name}-{check.__name__}")


@pytest.mark.parametrize(("case", "check"), list(promises()))
def test_it_keeps_the_promises_of_a_trainer(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "floor"),
    [
        (SGD(epochs=10), 0.9),
        (DPSGD(epochs=20), 0.8),
        (FedAvg(rounds=15), 0.9),
        (FedAvg(rounds=15, local=DPSteps(Gaussian(1.0, 1.0))), 0.75),
        (PATE(teachers=12, queries=200, release=Release(GNMax(2.0), finish=ARGMAX)), 0.7),
    ],
    ids=lambda value: getattr(value, "token", None),
)
def test_digits_are_learned(trainer: object, floor: float) -> None:
    task, data = IMAGES
    case = Case(
        name="digits",
        trainer=trainer,  # type: ignore[arg-type]
        task=task,
        data=data,
        floor=floor,
        private=False,
    )
    from tests.contracts.trainer import learns

    learns(case)
