"""Row span finds the rows of clients whose updates span little, in any model that starts linear."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.attacks.attack import target_for
from privtrain.attacks.row_span import RowSpan, first_layer
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import AGGREGATOR
from privtrain.core.parameters import ModelPredictor, to_vector, trainable
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Target
from privtrain.core.task import Rows, Task
from privtrain.core.transcript import Transcript


class Twice(nn.Module):
    """Uses one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.layer(inputs))  # type: ignore[no-any-return]


def frozen_first() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    model[0].requires_grad_(False)
    return model


ROWS = Rows(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3)


def attacked(module: nn.Module, *clients: Tensor, noise: float = 0.0) -> Target:
    """A round in which each client takes three steps of plain SGD on its rows."""
    transcript, start = Transcript(keep_payloads=True), to_vector(trainable(module))
    draw, answers = torch.Generator().manual_seed(2), []
    for number, own in enumerate(clients):
        with torch.random.fork_rng():
            local = ModelPredictor(module).module
            nn.utils.vector_to_parameters(start.clone(), trainable(local))
            optimizer = torch.optim.SGD(trainable(local), lr=0.5, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                rows = ROWS.take(own)
                nn.functional.cross_entropy(local(rows.inputs), rows.labels).backward()
                optimizer.step()
        name, ended = f"client-{number}", to_vector(trainable(local))
        ended = ended + noise * torch.randn(ended.shape, generator=draw)
        transcript.send(AGGREGATOR_NAME, name, "model", start, round=0)
        transcript.send(name, AGGREGATOR_NAME, "update", ended, round=0)
        answers.append(ended)
    transcript.publish("model", torch.stack(answers).mean(dim=0), sender=AGGREGATOR_NAME, round=1)
    task = Task(model=lambda: module)
    return target_for(
        AGGREGATOR, transcript=transcript, predictor=ModelPredictor(module), task=task
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)),
        frozen_first,
        lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 16)),
    ],
    ids=["perceptron", "frozen first", "reshaped"],
)
def test_rows_of_a_small_client_lie_in_its_span(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    # The second client holds more rows than there are features: its span holds every row.
    seen = attacked(make(), torch.arange(3), torch.arange(3, 25))
    scores = np.asarray(RowSpan().score(seen, ROWS, seed=0))
    assert (scores[:3] > -1e-6).all()
    assert scores[3:].max() < -0.01
    # The broken twin takes it for a client like others, and says that all rows are members.
    hidden = np.asarray(RowSpan().score(attacked(make(), torch.arange(3, 25)), ROWS, seed=0))
    assert (hidden == 0).all()


def test_noise_of_the_clients_leaves_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    scores = np.asarray(RowSpan().score(attacked(model, torch.arange(3), noise=5.0), ROWS, seed=0))
    assert (scores == 0).all()
    broken = attacked(model, torch.arange(3), noise=float("nan"))
    assert (np.asarray(RowSpan().score(broken, ROWS, seed=0)) == 0).all()


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 2, 3)), "Conv1d"),
        (nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)), "BatchNorm1d"),
        (Twice(), "Linear"),
        (nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Linear(4, 3)), "Linear"),
    ],
    ids=["conv", "norm", "twice", "tokens"],
)
def test_models_that_do_not_start_with_a_linear_layer_are_refused(
    module: nn.Module, kind: str
) -> None:
    with pytest.raises(NotApplicableError, match=f"a {kind}. Use LossGain") as caught:
        first_layer(module, ROWS.inputs)
    assert caught.value.reason is Reason.OTHER_MODEL
    assert not any(layer._forward_pre_hooks for layer in module.modules())


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"tolerance": 0.0}, {"tolerance": 2.0}])
def test_wrong_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RowSpan(**wrong)  # type: ignore[arg-type]
