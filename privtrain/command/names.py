"""What the names in a study file and on the command line stand for."""

from collections.abc import Callable, Mapping
from typing import Any

from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.one_run.attack import OneRun
from privtrain.core.runtime import Runtimes, StarRuntime
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.banded import BandedMatrix
from privtrain.mechanisms.clipping import AutomaticClipping, FlatClipping, PerLayerClipping
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Threshold
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, Placement
from privtrain.release.plain import PlainSum
from privtrain.release.shared import SharedSum
from privtrain.sampling.batches import (
    FixedSizeBatches,
    PoissonBatches,
    ShuffledEpochs,
    TruncatedPoissonBatches,
)
from privtrain.sampling.cyclic import CyclicPoisson, FixedOrder
from privtrain.sampling.sampling import Everyone, FixedSize, Poisson
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import ByExamples, FedAvg, Uniform
from privtrain.trainers.mpc_sgd import MPCSGD
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD

TRAINERS: Mapping[str, type[Any]] = {
    trainer.token: trainer for trainer in (SGD, FedAvg, DPSGD, MPCSGD, PATE)
}
"""Token to trainer; a new trainer is entered here to be known on the command line."""


ATTACKS: Mapping[str, type[Any]] = {"loss_threshold": LossThreshold, "one_run": OneRun}
"""Token to attack."""


_KINDS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Exact, Gaussian, Laplace, BandedMatrix, GNMax, LNMax),
        *(Release, PlainSum, SharedSum, Threshold, Placement),
        *(Everyone, FixedSize, Poisson, Uniform, ByExamples),
        *(PoissonBatches, TruncatedPoissonBatches, FixedSizeBatches, ShuffledEpochs),
        *(CyclicPoisson, FixedOrder),
        *(FlatClipping, PerLayerClipping, AutomaticClipping),
        *(PlainSteps, DPSteps, BookKeeping, Opacus, CrypTen),
    )
}


_CONSTANTS: Mapping[str, Any] = {
    "AT_AGGREGATOR": AT_AGGREGATOR,
    "AT_PARTY": AT_PARTY,
    "IDENTITY": IDENTITY,
    "ARGMAX": ARGMAX,
}


def make_runtimes(name: str) -> Runtimes:
    """Where parties run, by the name of the star runtime; a mesh has real processes.

    Raises:
        ValueError: If there is no such runtime.
    """
    from privtrain.runtimes.processes.mesh import Processes

    return Runtimes(star=_star(name), mesh=Processes())


def _star(name: str) -> StarRuntime:
    if name == "in-process":
        from privtrain.runtimes.in_process import InProcess

        return InProcess()
    # Flower takes a second to import, so only who asks for it waits.
    from privtrain.runtimes.flower.grid import FlowerGrid, FlowerRay

    stars: dict[str, Callable[[], StarRuntime]] = {
        "flower-grid": FlowerGrid,
        "flower-ray": FlowerRay,
    }
    if name not in stars:
        raise ValueError(f"Expected runtime={name!r} to be one of in-process, {', '.join(stars)}.")
    return stars[name]()
