"""Law: whole numbers that a model looks up stay whole numbers in every trainer, or are refused."""

import pytest
import torch
from torch import nn

from privtrain.attacks.membership import LossThreshold
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import ModelPredictor
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.data.arrays import from_arrays
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.comparing import compare
from privtrain.runs.fitting import fit
from privtrain.runtimes.processes.mesh import Processes
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.mpc_sgd import MPCSGD
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.gradients.bookkeeping.attention import Reader, encoder

TOKENS, LENGTH = 13, 6


def looked_up() -> nn.Module:
    return nn.Sequential(nn.Embedding(TOKENS, 4), nn.Flatten(), nn.Linear(4 * LENGTH, 3))


def attending() -> nn.Module:
    return Reader(encoder(), padded=True)


def sentences(model: object, count: int = 200) -> tuple[Task, FederatedData]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(TOKENS, (count, LENGTH), generator=generator)
    inputs[:, 0] = inputs[:, 0].clamp(min=1)  # no row is padding alone
    return from_arrays(
        *(inputs, inputs[:, 0] % 3),
        model=model,  # type: ignore[arg-type]
        parties=2,
        classes=3,
        public_rows=140,
        public_fraction=0.1,
    )


TRAINERS: dict[str, Trainer] = {
    "sgd": SGD(epochs=1),
    "dp_sgd": DPSGD(epochs=1),
    "fedavg": FedAvg(rounds=1),
    "silos": FedAvg(rounds=1, local=DPSteps(Gaussian(1.0, 1.0))),
    "pate": PATE(
        teachers=2,
        queries=5,
        release=Release(GNMax(sigma=1.0), finish=ARGMAX),
        steps=PlainSteps(epochs=40, learning_rate=0.5),
        student=PlainSteps(epochs=60, learning_rate=0.1),
    ),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_tokens_reach_the_model_as_they_are(name: str) -> None:
    result = fit(TRAINERS[name], *sentences(looked_up))
    assert isinstance(result.predictor, ModelPredictor)
    assert bool(torch.isfinite(result.predictor(torch.zeros(2, LENGTH, dtype=torch.int64))).all())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_attention_is_trained_by_all_and_torch_func_is_said_once() -> None:
    task, data = sentences(attending)
    for name, trainer in TRAINERS.items():
        notes = [note for note in fit(trainer, task, data).notes if "torch.func" in note]
        assert len(notes) == (name in ("dp_sgd", "silos")), name
        assert all("Opacus" not in note for note in notes)


def test_tokens_are_compared_and_attacked() -> None:
    task, data = sentences(looked_up)
    comparison = compare(
        {name: TRAINERS[name] for name in ("sgd", "dp_sgd")}, task, data, attacks=[LossThreshold()]
    )
    for row in comparison.rows:
        assert row.error is None and len(row.leakage) == 1


def test_shares_refuse_what_is_looked_up_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"'0' \(Embedding.*cannot be trained on shares"):
        fit(MPCSGD(epochs=1), *sentences(looked_up), runtimes=Runtimes(mesh=Processes()))


@pytest.mark.parametrize("trainer", [SGD(), DPSGD(), FedAvg(rounds=1)])
def test_models_of_quantities_refuse_tokens_before_anything_is_spent(trainer: Trainer) -> None:
    tokens = Rows(torch.arange(60).reshape(30, 2) % 7, torch.arange(30) % 2)
    data = FederatedData(train={"a": tokens, "b": tokens}, test=tokens, public_rows=60)
    task = Task(model=lambda: nn.Linear(2, 2))
    with pytest.raises(DataError, match=r"type torch.int64; it raised"):
        fit(trainer, task, data)
    with pytest.raises(DataError, match=r"inputs of a of type torch.int64.*floating point"):
        fit(MPCSGD(epochs=1), task, data, runtimes=Runtimes(mesh=Processes()))
