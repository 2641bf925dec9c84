"""What parties say of how they computed gradients reaches the result, once."""

import torch

from privtrain.core.task import FederatedData, Rows, Task
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.runs.fitting import fit
from privtrain.steps.private import DPSteps
from privtrain.trainers.fedavg import FedAvg
from tests.gradients.loops import Own, mlp
from tests.trainers.federations import STAR


def notes_of(task: Task) -> tuple[str, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator)
    rows = Rows(inputs, torch.randint(3, (60,), generator=generator))
    train = {name: rows.take(torch.arange(20 * i, 20 * i + 20)) for i, name in enumerate("abc")}
    data = FederatedData(train=train, test=rows, public_rows=60)
    local = DPSteps(Gaussian(1.0, 1.0), expected_batch=5.0)
    result = fit(FedAvg(rounds=2, local=local), task, data, runtimes=STAR, delta=1e-3)
    assert set(result.history.unprotected) >= {"training_loss", "non_finite"}
    assert not [name for name in result.history.unprotected if "note" in name]
    return result.notes


def test_the_result_says_once_that_parties_could_not_book_the_model() -> None:
    (note,) = notes_of(Task(model=Own))
    assert "torch.func" in note
    assert "'weight'" in note


def test_a_model_that_is_booked_needs_no_note() -> None:
    assert notes_of(Task(model=mlp)) == ()
