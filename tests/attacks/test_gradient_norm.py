"""Gradient norms equal those of one backward pass for each row, for any model."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.attacks import gradient_norm
from privtrain.attacks.gradient_norm import GradientNorm, gradient_norms
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PUBLIC, QUERIER
from privtrain.core.parameters import Counted, ModelPredictor
from privtrain.core.result import Predictor
from privtrain.core.task import Rows, cross_entropy
from tests.attacks.looking import judged
from tests.attacks.test_membership import noise_rows, overfitted
from tests.contracts.attack import rows, target

LABELS = torch.arange(9) % 3


class Tied(nn.Module):
    """Uses one matrix twice, and a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.last.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.last(self.first(inputs).tanh())[:, :3]


class Recurrent(nn.Module):
    """An LSTM, which `torch.func` does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.layer(inputs.view(-1, 2, 4))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.layer(inputs.view(-1, 2, 4)).flatten(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.words(inputs).mean(dim=1))


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def made(factory: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return factory()


def plain(module: nn.Module, given: Rows) -> list[float]:
    """One backward pass for each row, in float64."""
    wide, norms = copy.deepcopy(module).double().eval(), []
    for row, label in zip(given.inputs, given.labels, strict=True):
        wide.zero_grad()
        one = row[None].double() if row.is_floating_point() else row[None]
        cross_entropy(wide(one), label[None]).sum().backward()
        grads = [p.grad.flatten() for p in wide.parameters() if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))
    return norms


@pytest.mark.parametrize("factory", [pictures, Tied, Recurrent, Attention, Tokens])
def test_norms_are_those_of_one_row_after_another(
    factory: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = made(factory)
    inputs = rows(1, 9).inputs
    given = Rows(inputs.abs().long() if factory is Tokens else inputs, LABELS)
    expected = plain(module, given)
    np.testing.assert_allclose(gradient_norms(module, cross_entropy, given), expected, rtol=1e-9)
    # A few rows at a time, as where a model is large.
    monkeypatch.setattr(gradient_norm, "_VALUES", 1_000)
    np.testing.assert_allclose(gradient_norms(module, cross_entropy, given), expected, rtol=1e-9)


def test_the_model_stays_as_it_is() -> None:
    module = made(pictures).train()
    before = copy.deepcopy(module.state_dict())
    gradient_norms(module, cross_entropy, Rows(rows(1, 9).inputs, LABELS))
    assert module.training and all(p.grad is None for p in module.parameters())
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


def test_rows_of_confident_predictions_do_not_tie() -> None:
    """In float32 the gradient of the true class is rounded to 0."""
    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0], [0.0]]))
        module.bias.zero_()
    given = Rows(torch.tensor([[18.0], [20.0], [25.0]]), torch.zeros(3, dtype=torch.long))
    norms = gradient_norms(module, cross_entropy, given)
    # The gradient of the logits is (p - 1, 1 - p), that of weights and biases follows.
    p = np.exp(-given.inputs[:, 0].double().numpy())
    size = np.sqrt(2 * (1 + given.inputs[:, 0].double().numpy() ** 2))
    np.testing.assert_allclose(norms, p / (1 + p) * size, rtol=1e-4)


def test_a_loss_that_holds_float32_weights_is_taken_in_its_own_types() -> None:
    module, weights = made(pictures), torch.eye(3)

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs @ weights, targets)

    given = Rows(rows(1, 9).inputs, LABELS)
    norms = gradient_norms(module, weighted, given)
    np.testing.assert_allclose(norms, plain(module, given), rtol=1e-4)


def test_a_model_that_is_published_frozen_is_read_by_all_weights() -> None:
    module, given = made(pictures), Rows(rows(1, 9).inputs, LABELS)
    expected = plain(module, given)
    frozen = copy.deepcopy(module).requires_grad_(False)
    np.testing.assert_allclose(gradient_norms(frozen, cross_entropy, given), expected, rtol=1e-9)


def test_a_loss_of_a_whole_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task\.loss to give one value a row"):
        gradient_norms(made(pictures), nn.functional.cross_entropy, Rows(rows(1, 9).inputs, LABELS))


def test_a_model_that_was_trained_on_noise_leaks_and_is_not_asked() -> None:
    members, others = noise_rows(60, 1), noise_rows(60, 2)
    asked = Counted(overfitted(members))
    found = judged(GradientNorm(), target(PUBLIC, asked), members, others)
    assert found.intervals["auc"][0] > 0.75
    assert asked.rows == 0


class Rounded(nn.Module):
    """Holds whole numbers, which have no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Parameter(torch.ones(8, 3, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    "predictor", [lambda x: x, ModelPredictor(nn.Flatten()), ModelPredictor(Rounded())]
)
def test_without_weights_it_does_not_apply(predictor: Predictor) -> None:
    with pytest.raises(NotApplicableError, match="Use LabelOnly") as error:
        GradientNorm().score(replace(target(PUBLIC), predictor=predictor), rows(1), seed=0)
    assert error.value.reason is Reason.NO_WEIGHTS


def test_who_has_no_weights_cannot_carry_it_out() -> None:
    assert QUERIER.name not in GradientNorm.about.observers
    assert PUBLIC.name in GradientNorm.about.observers
    with pytest.raises(ValueError, match="limit"):
        GradientNorm(limit=0)
