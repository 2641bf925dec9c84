"""The figure of a trainer: many models, some of which are attacked with the others as shadows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.attacks.membership import row_losses
from privtrain.attacks.scores import auc
from privtrain.attacks.scoring import rmia
from privtrain.core.observers import AGGREGATOR, PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.statement import Unit
from privtrain.core.task import COLUMNS, Canaries, FederatedData, Rows, Task
from privtrain.data.models import MLP
from privtrain.report.progress import silent
from privtrain.runs import auditing_trainers
from privtrain.runs.auditing_trainers import Trained, judged, train_pairs
from privtrain.runs.shadows import complementary_halves
from tests.attacks.looking import Looking
from tests.laws.test_referee import truth_of
from tests.trainers.federations import STAR, some_rows

TASK = Task(model=MLP((5, 40, 3), torch.float64))


def by_chance(seed: int, count: int) -> Rows:
    """Rows whose labels are coin flips: who knows a label has seen the row."""
    labels = torch.randint(3, (count,), generator=torch.Generator().manual_seed(seed))
    return Rows(some_rows(seed, count).inputs, labels)


PARTS = {"p0": by_chance(1, 41), "p1": by_chance(2, 30)}
DATA = FederatedData(train=PARTS, test=some_rows(3, 4))
LEARNED = pt.SGD(epochs=150, learning_rate=0.5)
UNLEARNED = pt.SGD(epochs=1, learning_rate=1e-9)


def made(
    trainer: Any, data: FederatedData = DATA, *, targets: int = 3, shadows: int = 4
) -> Trained:
    return train_pairs(
        trainer, TASK, data, targets=targets, shadows=shadows, seed=0, where=STAR, device="cpu",
        progress=silent,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned() -> Trained:
    return made(LEARNED, targets=4, shadows=6)


@pytest.fixture(scope="module")
def unlearned() -> Trained:
    """Models that hardly moved from where they started: so many that the design names each row."""
    return made(UNLEARNED, targets=10, shadows=18)


def test_models_come_in_pairs_on_halves_of_each_party(learned: Trained) -> None:
    included = learned.included
    assert included.shape == learned.losses.shape == (8, 71)
    assert (included[::2] == ~included[1::2]).all()
    assert set(included[:, :41].sum(axis=1)) <= {20, 21}
    assert set(included[:, 41:].sum(axis=1)) == {15}
    assert (learned.truth == included[::2]).all()
    assert torch.equal(learned.rows.inputs, DATA.pooled().inputs)


def test_more_pairs_are_trained_where_shadows_ask_for_them() -> None:
    assert [len(made(UNLEARNED, targets=t, shadows=s).losses) for t, s in ((2, 6), (5, 4))] == [
        8,
        10,
    ]


def test_a_target_is_a_model_of_its_members(learned: Trained) -> None:
    for number, predictor in enumerate(learned.targets):
        losses = row_losses(predictor, TASK, learned.rows, 64).numpy()
        assert np.array_equal(losses, learned.losses[2 * number])
        members = learned.truth[number]
        assert losses[members].mean() < losses[~members].mean() / 2


def test_figures_equal_the_plain_loop_over_targets(learned: Trained) -> None:
    areas = []
    for number in range(4):
        # Of the pair after the target's, and of the next one.
        shadows = [model % 8 for model in range(2 * number + 2, 2 * number + 6)]
        ratios = rmia.online_ratios(
            learned.losses[2 * number], learned.losses[shadows], learned.included[shadows]
        )
        members = learned.included[2 * number]
        areas.append(auc(ratios[members], ratios[~members]))
    found = judged(learned, pt.RMIA(shadows=4), seed=0)
    assert found.metrics["auc"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert found.metrics["auc_deviation"] == pytest.approx(np.std(areas, ddof=1), abs=1e-12)
    assert found.metrics["tpr_at_1%_fpr"] is None
    low, high = found.intervals["auc"]
    assert low < np.mean(areas) < high
    assert found.queries == 4 * 71
    assert (found.members or 0) + (found.non_members or 0) == 71


def test_what_is_found_is_said_with_its_limits() -> None:
    attacks = [pt.LossThreshold(), pt.LiRA(shadows=4), pt.RMIA(shadows=4, online=False)]
    settings: dict[str, Any] = {"targets": 3, "shadows": 4, "runtimes": STAR}
    found = pt.audit_trainer(LEARNED, TASK, DATA, attacks, **settings)
    assert [one.attack for one in found] == ["loss threshold", "LiRA", "RMIA offline"]
    for one in found:
        assert one.failure is None and one.metrics["auc"] is not None and one.metrics["auc"] > 0.55
        assert (one.unit, one.relation) == (Unit.EXAMPLE, pt.ADD_REMOVE)
        assert any("3 targets" in note for note in one.notes)
        assert any("bounds no epsilon" in note for note in one.notes)
        assert any("nothing is charged" in note for note in one.notes)
    assert pt.audit_trainer(LEARNED, TASK, DATA, attacks[1:2], **settings) == found[1:2]
    other = pt.audit_trainer(LEARNED, TASK, DATA, attacks[1:2], seed=1, **settings)
    assert other[0].metrics != found[1].metrics


def test_of_a_trainer_on_shares_its_plaintext_twin_is_attacked() -> None:
    parts = {"a": replace(PARTS["p0"], inputs=PARTS["p0"].inputs[:, :2], targets=None),
             "b": replace(PARTS["p0"], inputs=PARTS["p0"].inputs[:, 2:])}  # fmt: skip
    data = FederatedData(train=parts, test=some_rows(3, 4), split=COLUMNS, label_holder="b")
    secure = pt.MPCSGD(epochs=2, engine=pt.Ring64())
    found, plain = (made(one, data) for one in (secure, secure.plaintext_twin()))
    assert np.array_equal(found.losses, plain.losses) and found.losses.shape == (6, 41)
    assert any("twin" in note for note in found.notes) and not plain.notes


def test_public_rows_are_no_candidates_and_limits_hold_on_either_side(learned: Trained) -> None:
    known = Rows(PARTS["p1"].inputs[5:20])
    some = made(UNLEARNED, replace(DATA, public=known))
    assert some.losses.shape == some.included.shape == (6, 56) and len(some.rows) == 56
    rest = torch.cat([PARTS["p0"].inputs, PARTS["p1"].inputs[:5], PARTS["p1"].inputs[20:]])
    assert torch.equal(some.rows.inputs, rest)

    attacked = auditing_trainers._within(learned.truth, pt.LossThreshold(limit=12), 0)
    sides = learned.truth[:, attacked.numpy()]
    largest = np.maximum(sides.sum(axis=1), (~sides).sum(axis=1)).max()
    assert largest == 12 and len(attacked) > 16
    found = judged(learned, pt.LossThreshold(limit=12), seed=0)
    assert found.queries == 4 * len(attacked)


def test_equal_rows_and_scores_that_are_no_numbers_are_counted(learned: Trained) -> None:
    class Half(Looking):
        def score(self, target: Target, candidates: Rows, *, seed: int) -> Any:
            return np.where(candidates.inputs[:, 0] > 0, np.nan, np.inf)

    twice = learned.only(torch.tensor([*range(71), 0, 0]))
    notes = judged(twice, Half(), seed=0).notes
    assert any(note.startswith("2 of the candidates are equal") for note in notes)
    unscored = 4 * int((twice.rows.inputs[:, 0] > 0).sum())
    assert any(note.startswith(f"{unscored} scores were not a number") for note in notes)


@dataclass(frozen=True)
class Asking:
    """Asks for shadow models and scores nothing."""

    count: int = 4
    name: str = "asking"
    observer: Observer = PUBLIC
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Any:
        assert target.shadows is not None
        with pytest.raises(ValueError, match="read-only"):
            target.shadows(self.count).included[0, 0] = True
        return np.zeros(len(candidates))


def test_an_attack_that_fails_leaves_the_others_standing() -> None:
    attacks = [Asking(), Asking(5), Asking(6), pt.LossThreshold()]
    found = pt.audit_trainer(
        UNLEARNED, TASK, DATA, attacks, targets=2, shadows=4, runtimes=STAR, seed=3
    )
    assert [one.failure is None for one in found] == [True, False, False, True]
    assert found[0].metrics["auc"] == 0.5
    for one, count in zip(found[1:3], (5, 6), strict=True):
        assert one.failure is not None and f"count={count}" in one.failure.error
        assert not one.metrics


# What attacks receive, and attacks that cheat


@dataclass
class LookingAtAll(Looking):
    """Is no other one for every target, so that it keeps what it was handed of all of them."""

    def __deepcopy__(self, memo: object) -> "LookingAtAll":
        return self


def test_nothing_that_an_attack_on_targets_of_a_trainer_receives_leads_to_the_truth(
    learned: Trained, tmp_path: Path
) -> None:
    looking = LookingAtAll()
    assert judged(learned, looking, seed=0).failure is None
    assert len(looking.seen) == 4
    for number, (handed, candidates, seed) in enumerate(looking.seen):
        assert handed.shadows is not None
        members = torch.from_numpy(learned.truth[number].copy())
        sides = [learned.rows.take(side.nonzero()[:, 0]) for side in (members, ~members)]
        secret = (DATA, learned, learned.losses, learned.included, learned.rows)
        truth = truth_of(candidates, *sides, (*secret, learned.rows.inputs), tmp_path)
        assert truth.included.sum() == learned.truth[number].sum()
        assert truth.found(handed, handed.shadows(6), candidates, seed) == []


@dataclass
class Remembering:
    """Knows the next targets again by their losses, and what it was lent of them."""

    known: dict[tuple[float, ...], dict[bytes, bool]] = field(default_factory=dict)
    name: str = "remembering"
    observer: Observer = PUBLIC
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Any:
        assert target.shadows is not None
        models, keys = target.shadows(18), [row.numpy().tobytes() for row in candidates.inputs]
        for losses, marks in zip(models.losses, models.included, strict=True):
            told = dict(zip(keys, marks.tolist(), strict=True))
            self.known[tuple(np.sort(losses).round(9))] = told
        own = row_losses(target.predictor, target.task, candidates, 64).numpy()
        told = self.known.get(tuple(np.sort(own).round(9)), {})
        return [told.get(key, False) for key in keys]


@dataclass(frozen=True)
class DrawingAgain(Asking):
    """Draws the design again under the seed that it was given, and finds its rows there."""

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Any:
        assert target.shadows is not None
        included = target.shadows(18).included
        again = complementary_halves([41, 30], 20, seed).numpy()
        best, scores = 0, np.zeros(len(candidates))
        for number in range(10):
            pairs = [(number + step) % 10 for step in range(1, 10)]
            lent = again[[2 * pair + model for pair in pairs for model in (0, 1)]]
            places = [np.flatnonzero((column == lent.T).all(axis=1)) for column in included.T]
            found = [again[2 * number, place[0]] if len(place) else 0 for place in places]
            if (hits := sum(map(len, places))) > best:
                best, scores = hits, np.array(found, dtype=float)
        return scores


def interval(trained: Trained, attack: Any) -> tuple[float, float]:
    found = judged(trained, attack, seed=0)
    assert found.failure is None, found.failure
    return found.intervals["auc"]


def test_who_remembers_other_targets_finds_nothing(
    unlearned: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = interval(unlearned, Remembering())
    assert low <= 0.5 <= high
    monkeypatch.setattr(auditing_trainers.copy, "deepcopy", lambda one: one)
    assert (judged(unlearned, Remembering(), seed=0).metrics["auc"] or 0.0) > 0.9


def test_who_draws_the_design_again_finds_nothing(
    unlearned: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = interval(unlearned, DrawingAgain())
    assert low <= 0.5 <= high
    monkeypatch.setattr(auditing_trainers, "design_seed", lambda data, seed: seed)
    assert interval(made(UNLEARNED, targets=10, shadows=18), DrawingAgain())[0] > 0.9


# Refused before anything is trained

CANARIES = Canaries(rows=some_rows(5), included=torch.ones(12, dtype=torch.bool))


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"targets": 1}, ValueError, "targets=1"),
        ({"shadows": 2}, ValueError, "shadows=2"),
        ({"shadows": 5}, ValueError, "shadows=5 to be even"),
        ({"attacks": [pt.RMIA(shadows=8)]}, ValueError, "shadows=4 >= 8, which 'RMIA'"),
        ({"attacks": [pt.OneRun()]}, ValueError, "guesses coins"),
        ({"attacks": pt.RMIA()}, ValueError, "attacks"),
        ({"attacks": [Asking(observer=AGGREGATOR)]}, pt.UnsupportedError, "'aggregator'"),
        ({"attacks": [Asking(needs_messages=True)]}, pt.UnsupportedError, "no messages"),
        ({"trainer": pt.External(nn.Linear(5, 3))}, pt.UnsupportedError, "trained elsewhere"),
        ({"seed": 0.5}, ValueError, "seed"),
        ({"data": replace(DATA, canaries=CANARIES)}, pt.DataError, "12 canaries"),
        (
            {"data": replace(DATA, train={**PARTS, "p2": some_rows(3, 1)})},
            pt.DataError,
            "'p2' has fewer",
        ),
        ({"data": replace(DATA, public=Rows(DATA.pooled().inputs))}, pt.DataError, "not public"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_training(
    changed: dict[str, Any], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **named: object) -> Sequence[object]:
        raise AssertionError("a model was trained")

    monkeypatch.setattr(auditing_trainers.Design, "predictors", never)
    given: dict[str, Any] = {"trainer": UNLEARNED, "task": TASK, "data": DATA}
    given |= {"attacks": [pt.LossThreshold()], "targets": 3, "shadows": 4, "runtimes": STAR}
    given |= changed
    with pytest.raises(error, match=match):
        pt.audit_trainer(
            given.pop("trainer"),
            given.pop("task"),
            given.pop("data"),
            given.pop("attacks"),
            **given,
        )


def test_a_trainer_that_keeps_answers_is_refused(tmp_path: Path) -> None:
    kept = pt.PATE(teachers=2, queries=4, votes=pt.VoteCache(tmp_path))
    with pytest.raises(pt.UnsupportedError, match="keeps what it computed"):
        pt.audit_trainer(kept, TASK, DATA, [pt.LossThreshold()], runtimes=STAR)


def test_a_limit_that_leaves_one_side_alone_is_named() -> None:
    (found,) = pt.audit_trainer(
        LEARNED, TASK, DATA, [pt.LossThreshold(limit=1)], targets=3, shadows=4
    )
    assert found.failure is not None
    assert "limit of 'loss threshold'" in found.failure.error
