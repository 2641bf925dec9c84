"""Features: fixed, row by row, and never of rows of two teachers together."""

import pickle
from collections.abc import Callable

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.parameters import initial_model
from privtrain.core.seeding import Seeds
from privtrain.core.task import Task
from privtrain.data.models import MLP
from privtrain.data.scattering import scattering_features
from privtrain.steps.features import (
    OnFeatures,
    Scattering,
    check_features,
    check_kind,
    frozen,
    mapped,
    of_features,
    on_features,
)
from tests.trainers.federations import TASK, some_rows

INPUTS = some_rows(5, 9).inputs


def squares(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, inputs.square()], dim=1)


def an_extractor() -> nn.Module:
    """A module that mixes rows in training mode, and does not in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4), nn.Dropout(0.5)).double()
    for tensor in module.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return module


@pytest.mark.parametrize("features", [squares, an_extractor(), lambda x: x.flatten(1)])
def test_maps_of_single_rows_pass_and_a_batch_is_its_rows(
    features: Callable[[Tensor], Tensor],
) -> None:
    check_features(features, INPUTS)
    used = frozen(features)
    whole = mapped(used, INPUTS)
    for row in range(len(INPUTS)):
        assert torch.allclose(mapped(used, INPUTS[row : row + 1])[0], whole[row], atol=1e-12)
    assert not whole.requires_grad


class Counting:
    """Keeps how often it was called."""

    calls = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs + self.calls


class Running:
    """A mean that runs over all rows seen."""

    mean = 0.0

    def __call__(self, inputs: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * float(inputs.mean())
        return inputs - self.mean


BROKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "centred": lambda x: x - x.mean(dim=0),
    "scaled": lambda x: x / x.abs().max(),
    "ranked": lambda x: x.argsort(dim=0).double(),
    "counted": lambda x: x / len(x),
    "first": lambda x: x - x[:1],
    "summed": lambda x: x.cumsum(dim=0),
    "normalised": lambda x: (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1).sqrt(),
    "drawn": lambda x: x + torch.randn_like(x),
    "kept": Counting(),
    "running": Running(),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_maps_that_mix_rows_draw_or_remember_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="features of public rows differ"):
        check_features(BROKEN[name], INPUTS)


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (lambda x: x.sum(), "with 6 rows for 6 rows"),
        (lambda x: x[:, 0], "shape \\(rows, ...\\)"),
        (lambda x: x.tolist(), "list"),
        (lambda x: x / 0, "finite"),
        (lambda x: x.long(), "floating"),
        (lambda x: x @ torch.zeros(3, 3), "RuntimeError"),
        (lambda x: {}["lost"], "KeyError"),
        (lambda x: nn.functional.batch_norm(x, None, None, training=True), "ValueError"),
    ],
)
def test_what_is_no_map_is_refused_by_name(
    features: Callable[[Tensor], Tensor], match: str
) -> None:
    with pytest.raises(DataError, match=f"features=.*{match}"):
        check_features(features, INPUTS)


@pytest.mark.parametrize("wrong", [3, "scattering", Scattering, [squares]])
def test_what_cannot_be_called_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="features="):
        check_kind(wrong)


def test_one_public_row_is_enough_to_try() -> None:
    check_features(squares, INPUTS[:1])
    with pytest.raises(DataError):
        check_features(BROKEN["centred"], INPUTS[:1])


def test_the_users_module_stays_as_it_is() -> None:
    module = an_extractor()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    check_features(module, INPUTS)
    used = frozen(module)
    assert isinstance(used, nn.Module)
    mapped(used, INPUTS)
    assert module.training and not used.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_chunks_follow_from_the_shape_of_a_row_and_change_nothing() -> None:
    seen: list[int] = []

    def noted(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return inputs.flatten(1)[:, :3].clone()

    wide = torch.arange(7.0).reshape(7, 1).expand(7, 2**21)
    assert torch.equal(mapped(noted, wide)[:, 0], torch.arange(7.0))
    assert seen == [2, 2, 2, 1]
    assert mapped(noted, wide[:0]).shape == (0, 3)
    assert mapped(None, wide) is wide


def test_a_map_may_write_into_what_it_is_given() -> None:
    def doubled(inputs: Tensor) -> Tensor:
        return inputs.mul_(2)

    rows = INPUTS.clone()
    assert torch.equal(mapped(doubled, rows), 2 * INPUTS)
    assert torch.equal(rows, INPUTS)


def test_scattering_is_the_function_of_that_name() -> None:
    pytest.importorskip("kymatio")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = scattering_features(images).flatten(1)
    assert torch.equal(Scattering()(images), wanted)
    assert torch.equal(Scattering(shape=(1, 8, 8))(images.flatten(1)), wanted)
    assert torch.equal(Scattering()(images.squeeze(1)), wanted)
    assert torch.equal(
        Scattering(groups=None)(images), scattering_features(images, groups=None).flatten(1)
    )
    check_features(Scattering(), images)


def test_scattering_checks_its_settings() -> None:
    with pytest.raises(ValueError, match="groups"):
        Scattering(groups=0)
    with pytest.raises(ValueError, match="shape"):
        Scattering(shape=(8, 8))  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(Scattering(groups=3))) == Scattering(groups=3)


# ---------------------------------------------------------------------- models that read features


def test_a_task_on_features_takes_rows_and_starts_from_the_same_weights() -> None:
    inner = Task(model=MLP((10, 3), torch.float64))
    outer = on_features(inner, squares)
    stream = Seeds(0)["initialisation", 0, ""]
    plain, whole = initial_model(inner, stream), initial_model(outer, stream)
    assert torch.equal(whole(INPUTS), plain(squares(INPUTS)))
    assert of_features(outer).model is inner.model
    assert of_features(inner) is inner and on_features(inner, None) is inner
    again = cloudpickle.loads(cloudpickle.dumps(outer))
    assert torch.equal(initial_model(again, stream)(INPUTS), whole(INPUTS))


def test_an_extractor_within_a_model_is_frozen_copied_and_never_in_training_mode() -> None:
    module = an_extractor()
    task = on_features(Task(model=MLP((4, 3), torch.float64)), module)
    stream = Seeds(0)["initialisation", 0, ""]
    one, other = initial_model(task, stream), initial_model(task, stream)
    assert isinstance(one, OnFeatures) and isinstance(other, OnFeatures)
    assert isinstance(one.features, nn.Module)
    assert one.features is not other.features and one.features is not module
    one.train()
    assert one.training and one.model.training and not one.features.training
    assert {name for name, p in one.named_parameters() if p.requires_grad} == {
        "model.0.weight",
        "model.0.bias",
    }


def test_a_model_that_does_not_fit_its_features_is_named() -> None:
    task = on_features(TASK, squares)
    with pytest.raises(DataError, match=r"features= makes, of shape \('rows', 10\)"):
        initial_model(task, Seeds(0)["initialisation", 0, ""])(INPUTS)
