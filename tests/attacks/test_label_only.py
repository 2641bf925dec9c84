"""Label-only attacks read classes alone, within their budget, and find distances."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from privtrain.attacks.label_only import LabelOnly, Labels
from privtrain.attacks.scores import Scores
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import Counted
from privtrain.core.result import Predictor
from privtrain.core.seeding import Seeds
from privtrain.core.task import Rows
from tests.attacks.looking import judged
from tests.attacks.test_membership import noise_rows, overfitted
from tests.contracts.attack import rows, target

METHODS = ("noise", "boundary")
NORMAL = torch.linspace(1.0, 2.0, 8, dtype=torch.float64)


def flat(inputs: Tensor) -> Tensor:
    """Two classes with a flat boundary through zero, as one logit."""
    return inputs.double() @ NORMAL


def half_spaces(count: int = 200) -> Rows:
    """Rows of which every tenth is answered wrongly; columns have different units, one has none."""
    inputs = rows(1, count).inputs * torch.tensor([1.0, 1, 1, 3, 1, 1, 1, 0])
    wrong = torch.arange(count) % 10 == 0
    return Rows(inputs, (flat(inputs) > 0).long() ^ wrong)


def scores_of(attack: LabelOnly, predictor: Predictor, given: Rows, seed: int = 0) -> Scores:
    return np.asarray(attack.score(target(PUBLIC, predictor), given, seed=seed))


@dataclass
class Asked:
    """Counts how many rows it is asked at a time."""

    predictor: Predictor
    sizes: list[int] = field(default_factory=list)

    def __call__(self, inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs))
        return self.predictor(inputs)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_the_class_is_read(method: str) -> None:
    def shouting(inputs: Tensor) -> Tensor:
        """The same classes, with other logits at each call."""
        sure = torch.randn(len(inputs), generator=generator).double().square() + 0.1
        return torch.stack([torch.zeros(len(inputs)), sure * flat(inputs).sign()], dim=1)

    generator = torch.Generator().manual_seed(0)
    given = half_spaces(60)
    attack = LabelOnly(method=method, queries=50)
    assert np.array_equal(scores_of(attack, flat, given), scores_of(attack, shouting, given))


def test_noise_is_that_of_a_loop_over_rows_and_copies() -> None:
    given = half_spaces(30)
    scores = scores_of(LabelOnly(queries=12, scale=0.7, batch_size=7), flat, given, seed=3)
    unit = given.inputs.double().numpy().std(axis=0)
    for row, label, score in zip(given.inputs, given.labels, scores, strict=True):
        draws = Seeds(3)["label-only", 0, ""].torch()
        kept = right = int((flat(row) > 0) == label)
        for _ in range(11):
            noise = torch.randn(8, generator=draws, dtype=torch.float64).numpy()
            copy = torch.from_numpy(row.double().numpy() + 0.7 * unit * noise).float()
            kept += int((flat(copy) > 0) == label)
        assert score == pytest.approx(kept / 12 - (1 - right), abs=1e-12)


@pytest.mark.parametrize(("queries", "most", "alike"), [(100, 1.4, 0.98), (400, 1.1, 0.99)])
def test_distances_are_those_to_a_flat_boundary(queries: int, most: float, alike: float) -> None:
    given = half_spaces()
    scores = scores_of(LabelOnly(method="boundary", queries=queries), flat, given)
    unit = given.inputs.double().std(dim=0, correction=0)
    true = (flat(given.inputs).abs() / (NORMAL * unit).norm()).numpy()
    right = scores >= 0
    assert np.array_equal(~right, np.arange(200) % 10 == 0)
    ratios = scores[right] / true[right]
    # A point that was found cannot lie nearer than the boundary, but for rounding of rows.
    assert ratios.min() > 1 - 1e-4 and np.quantile(ratios, 0.95) < most
    assert spearmanr(scores[right], true[right])[0] > alike


def test_distances_are_those_to_a_flat_boundary_in_many_dimensions() -> None:
    """Half of the columns are constant: no direction is wasted on them."""
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(64, generator=generator, dtype=torch.float64)
    moved = torch.arange(64) % 2
    inputs = torch.randn(200, 64, generator=generator, dtype=torch.float64) * moved
    given = Rows(inputs, (inputs @ normal > 0).long())
    scores = scores_of(LabelOnly(method="boundary"), lambda x: x @ normal, given)
    unit = inputs.std(dim=0, correction=0)
    true = (inputs @ normal).abs() / (normal * unit).norm()
    ratios = scores / true.numpy()
    assert ratios.min() > 1 - 1e-9 and np.median(ratios) < 1.55
    assert spearmanr(scores, true)[0] > 0.99


def test_distances_are_those_to_a_ball_that_many_directions_miss() -> None:
    given = Rows(rows(1, 400).inputs.double(), torch.zeros(400, dtype=torch.long))
    unit = given.inputs.std(dim=0, correction=0)
    centre = given.inputs[0] + 0.9 * unit * (torch.arange(8) == 0)

    def outside(inputs: Tensor) -> Tensor:
        """How far from a ball of radius 1, in units of the columns; the first row is within."""
        return ((inputs - centre) / unit).norm(dim=1) - 1

    scores = scores_of(LabelOnly(method="boundary", queries=150), lambda x: -outside(x), given)
    true, right = outside(given.inputs).numpy(), scores >= 0
    assert np.array_equal(right, true >= 0)
    ratios = scores[right] / true[right]
    assert ratios.min() > 1 - 1e-9 and ratios.max() < 1.25


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("queries", [2, 9, 30, 101])
def test_no_row_is_asked_more_often_than_the_budget_says(method: str, queries: int) -> None:
    given, asked = half_spaces(60), Asked(flat)
    counted = Counted(asked)
    scores_of(LabelOnly(method=method, queries=queries), counted, given)
    # Each call asks once about each row at most.
    assert max(asked.sizes) <= 60 and len(asked.sizes) <= queries
    assert counted.rows == sum(asked.sizes)
    if method == "noise" or queries == 101:
        assert len(asked.sizes) == queries
    # Rows that are answered wrongly are not asked again where nothing is gained by it.
    assert asked.sizes[1:] == [60 if method == "noise" else 54] * (len(asked.sizes) - 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_is_answered_wrongly_is_the_last_of_all(method: str) -> None:
    given = half_spaces(60)
    scores = scores_of(LabelOnly(method=method, queries=30), flat, given)
    wrong = np.arange(60) % 10 == 0
    assert scores[wrong].max() <= 0 < scores[~wrong].min()


@pytest.mark.parametrize("method", METHODS)
def test_where_one_class_alone_is_answered_rows_tie(method: str) -> None:
    scores = scores_of(
        LabelOnly(method=method, queries=30), lambda x: torch.ones(len(x)), half_spaces(60)
    )
    right = half_spaces(60).labels.numpy() == 1
    assert set(scores[right]) == {1.0 if method == "noise" else np.inf}
    assert scores[~right].max() < 0 or method == "noise"


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_column_stays_as_it_is(method: str) -> None:
    def watching(inputs: Tensor) -> Tensor:
        assert bool((inputs[:, 7] == 0).all())
        return flat(inputs)

    scores_of(LabelOnly(method=method, queries=40), watching, half_spaces(60))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_was_trained_on_noise_leaks(method: str) -> None:
    members, others = noise_rows(60, 1), noise_rows(60, 2)
    seen = target(PUBLIC, overfitted(members))
    found = judged(LabelOnly(method=method, queries=60, scale=0.3), seen, members, others)
    assert found.intervals["auc"][0] > 0.75


def test_pictures_are_attacked_and_another_seed_draws_other_noise() -> None:
    given = half_spaces(60)
    pictures = Rows(given.inputs.view(60, 2, 4), given.labels)
    for method in METHODS:
        attack = LabelOnly(method=method, queries=40)
        scores = scores_of(attack, flat, given)
        seen = scores_of(attack, lambda x: flat(x.flatten(1)), pictures)
        np.testing.assert_allclose(scores, seen, rtol=1e-12)
        assert not np.array_equal(scores, scores_of(attack, flat, given, seed=1))


def test_what_classes_are_answered() -> None:
    nan = float("nan")
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0], [nan, 1.0, 0.0]])
    assert Labels(lambda x: logits, 3, 8)(torch.ones(3, 8)).tolist() == [1, 0, -1]
    single = torch.tensor([[0.5], [-0.5], [nan]])
    assert Labels(lambda x: single, 2, 8)(torch.ones(3, 8)).tolist() == [1, 0, -1]
    for wrong, classes in ((single, 3), (torch.ones(3, 4, 5), 4)):
        with pytest.raises(NotApplicableError, match="logits of") as error:
            Labels(lambda x, wrong=wrong: wrong, classes, 8)(torch.ones(3, 8))
        assert error.value.reason is Reason.NO_CLASSES


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Rows(torch.ones(4, 8), torch.rand(4)), Reason.NO_CLASSES),
        (Rows(torch.ones(4, 8), torch.tensor([0, -1, 1, 0])), Reason.NO_CLASSES),
        (Rows(torch.ones(4, 8), torch.ones(4, 3).long()), Reason.NO_CLASSES),
        (Rows(torch.ones(4, 8).long(), torch.ones(4).long()), Reason.NO_REAL_INPUTS),
    ],
)
def test_why_it_does_not_apply(given: Rows, reason: Reason) -> None:
    asked = Counted(flat)
    with pytest.raises(NotApplicableError, match="Use LossThreshold") as error:
        LabelOnly().score(replace(target(PUBLIC), predictor=asked), given, seed=0)
    assert error.value.reason is reason and asked.rows == 0


@pytest.mark.parametrize(
    "wrong", [{"method": "loud"}, {"queries": 1}, {"scale": 0.0}, {"limit": 0}, {"batch_size": 0}]
)
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LabelOnly(**wrong)  # type: ignore[arg-type]
    assert LabelOnly(method="boundary").name == "label-only boundary"
