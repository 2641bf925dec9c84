"""Attacks are lent shadow models on their candidates, by the run's own trainer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.core.errors import DataError, NotApplicableError, Reason
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.task import COLUMNS, Canaries, FederatedData, Rows, Task
from privtrain.runs import shadowing
from privtrain.runs import shadows as shadows_module
from privtrain.runs.attacking import attacked
from privtrain.runs.shadowing import laid_out, reuses
from tests.trainers.federations import STAR, TASK, some_rows

PARTS = {"p0": some_rows(1, 60), "p1": some_rows(2, 40)}
DATA = FederatedData(
    train=PARTS, test=some_rows(3, 80), validation=some_rows(4), public_rows=100, digest="all rows",
    canaries=Canaries(rows=some_rows(5), included=torch.ones(12, dtype=torch.bool)),
)  # fmt: skip


def test_candidates_stand_at_parties_by_their_order_alone() -> None:
    candidates = some_rows(9, 30)
    made = laid_out(DATA, candidates)
    assert made.parties == ("p0", "p1") and made.public_rows == 100
    assert torch.equal(made.pooled().inputs, candidates.inputs)
    assert [len(made.train[name]) for name in made.parties] == [15, 15]
    assert made.test is candidates and made.validation is None and made.canaries is None
    assert made.digest != DATA.digest


def test_of_columns_each_party_holds_its_own() -> None:
    inputs, labels = some_rows(9, 30).inputs, some_rows(9, 30).labels
    train = {"a": Rows(inputs[:, :2]), "b": Rows(inputs[:, 2:], labels)}
    data = FederatedData(train=train, test=some_rows(3, 8), split=COLUMNS, label_holder="b")
    candidates = some_rows(10, 20)
    made = laid_out(data, candidates)
    assert torch.equal(made.pooled().inputs, candidates.inputs)
    assert torch.equal(made.pooled().labels, candidates.labels)
    assert made.train["a"].targets is None and made.train["a"].inputs.shape == (20, 2)


@dataclass(frozen=True)
class Asking:
    """Asks for shadow models and scores by what they say without the target."""

    count: int = 4
    name: str = "asking"
    observer: Observer = PUBLIC
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> object:
        assert target.shadows is not None
        made = target.shadows(self.count)
        assert made.losses.shape == made.included.shape == (self.count, len(candidates))
        with pytest.raises(ValueError, match="read-only"):
            made.losses[0, 0] = 0.0
        assert (made.included[::2] == ~made.included[1::2]).all()
        return made.losses.mean(axis=0)


def test_models_are_trained_once_for_all_attacks_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = shadowing.shadows

    def counted(*given: object, count: int, **named: object) -> object:
        asked.append(count)
        return real(*given, count=count, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(shadowing, "shadows", counted)
    attacks = [Asking(), replace(Asking(), name="again"), Asking(6, "more")]
    data = replace(DATA, canaries=None)
    (row,) = pt.compare(
        {"x": pt.SGD(epochs=1)},
        TASK,
        data,
        attacks=attacks,
        runtimes=STAR,  # type: ignore[arg-type]
    ).rows
    assert asked == [4, 6]
    first, second, third = row.leakage
    assert first.failure is None and first.metrics == second.metrics
    for leakage, count in ((first, 4), (second, 4), (third, 6)):
        assert f"{count} shadow models" in leakage.notes
        assert any("nothing is charged" in note for note in leakage.notes)


def test_shadow_models_say_nothing_of_the_run_itself() -> None:
    """What they say of candidates follows from these alone: no better than a coin."""
    result = pt.fit(pt.SGD(epochs=1), TASK, replace(DATA, canaries=None), runtimes=STAR)
    low, high = pt.audit(result, Asking(), TASK, DATA).intervals["auc"]  # type: ignore[arg-type]
    assert low <= 0.5 <= high


def test_of_a_model_that_was_trained_elsewhere_there_are_none() -> None:
    elsewhere = pt.External(nn.Linear(5, 3).double())
    data = replace(DATA, canaries=None)
    attacks = [pt.RMIA(), pt.LossThreshold()]
    (row,) = pt.compare({"x": elsewhere}, TASK, data, attacks=attacks, runtimes=STAR).rows
    robust, loss = row.leakage
    assert robust.failure is not None and "trained elsewhere" in robust.failure.error
    assert loss.failure is None and row.error is None


def test_a_trainer_that_keeps_answers_for_other_runs_has_none(tmp_path: Path) -> None:
    kept = pt.PATE(teachers=2, queries=4, votes=pt.VoteCache(tmp_path))
    assert reuses(kept) and not reuses(replace(kept, votes=None)) and not reuses(pt.SGD())
    result = replace(pt.fit(pt.SGD(epochs=1), TASK, DATA, runtimes=STAR), trainer=kept)
    assert pt.audit(result, pt.LossThreshold(), TASK, DATA).metrics["auc"] is not None
    with pytest.raises(pt.UnsupportedError, match="computed in other runs"):
        pt.audit(result, pt.RMIA(), TASK, DATA)


class _Wide:
    def __call__(self) -> nn.Module:
        layers = [nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 3)]
        return nn.Sequential(*layers).double()


def test_attacks_with_shadow_models_find_what_was_learned_by_heart() -> None:
    """Some labels are chance, others follow from the row: the loss alone takes easy for known."""
    task, (parts, test) = Task(model=_Wide()), (some_rows(7, 200), some_rows(8, 200))

    def partly(rows: Rows) -> Rows:
        chance = torch.randint(3, (200,), generator=torch.Generator().manual_seed(len(rows)))
        return Rows(rows.inputs, torch.where(torch.arange(200) % 4 == 0, chance, rows.labels))

    data = FederatedData(train={"p": partly(parts)}, test=partly(test))
    result = pt.fit(pt.SGD(epochs=60, learning_rate=0.3), task, data, runtimes=STAR)
    found = {
        attack.name: pt.audit(result, attack, task, data).metrics["auc"] or 0.0
        for attack in (pt.LossThreshold(), pt.RMIA(), pt.LiRA(), pt.RMIA(online=False))
    }
    weakest = found.pop("loss threshold")
    assert np.min(list(found.values())) > weakest + 0.03, found


def test_a_comparison_keeps_what_a_later_audit_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, trainer = replace(DATA, canaries=None), pt.SGD(epochs=1)
    given: Any = {"attacks": [Asking()], "runtimes": STAR, "folder": tmp_path}
    (row,) = pt.compare({"x": trainer}, TASK, data, **given).rows
    (home,) = tmp_path.glob("x-*")
    # Under the comparison's own key: there is no other.
    assert len(list(home.glob("shadows-*/*"))) == 4 and not (home / "private").exists()
    asked = list[list[int]]()
    real = shadows_module.Design.answers

    def counted(self: Any, wanted: list[int], *further: Any) -> Any:
        asked.append(wanted)
        return real(self, wanted, *further)

    monkeypatch.setattr(shadows_module.Design, "answers", counted)
    result = pt.fit(trainer, TASK, data, runtimes=STAR)
    again = pt.audit(result, Asking(), TASK, data, folder=home)  # type: ignore[arg-type]
    assert again.metrics == row.leakage[0].metrics and asked == [[]]
    assert pt.audit(result, Asking(), TASK, data).metrics == again.metrics  # type: ignore[arg-type]
    assert asked == [[], [0, 1, 2, 3]]


def test_workers_reach_shadow_models(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def counted(self: Any, wanted: list[int], workers: int, *further: Any) -> Any:
        asked.append(workers)
        raise DataError("none here")

    monkeypatch.setattr(shadows_module.Design, "answers", counted)
    data = replace(DATA, canaries=None)
    given: Any = {"attacks": [Asking()], "runtimes": STAR}
    pt.compare({"x": pt.SGD(epochs=1)}, TASK, data, **given, workers=3)
    pt.compare({"x": pt.SGD(epochs=1)}, TASK, data, **given)
    assert asked == [3, 1]
    with pytest.raises(ValueError, match="workers=0"):
        pt.compare({"x": pt.SGD(epochs=1)}, TASK, data, **given, workers=0)


def test_trainers_without_shadow_models_say_why(tmp_path: Path) -> None:
    users = {"p": replace(some_rows(1, 60), users=torch.arange(60) // 3)}
    data = FederatedData(train=users, test=replace(some_rows(3, 60), users=torch.arange(100, 160)))
    of_users = pt.DPSGD(epochs=1, sampling=pt.PoissonBatches(rows_per_user=2))
    result = pt.fit(of_users, TASK, data, runtimes=STAR)
    kept = replace(result, trainer=pt.PATE(teachers=2, votes=pt.VoteCache(tmp_path)))
    for given, why in ((result, "protects users"), (kept, r"votes=...*a study pays")):
        with pytest.raises(NotApplicableError, match=why) as refused:
            pt.audit(given, pt.RMIA(), TASK, data)
        assert refused.value.reason is Reason.NO_SHADOWS


def test_a_half_that_cannot_be_trained_on_is_no_failure() -> None:
    result = pt.fit(pt.SGD(epochs=1), TASK, DATA, runtimes=STAR)
    result = replace(result, trainer=pt.PATE(teachers=90, queries=4))
    with pytest.raises(
        NotApplicableError, match=r"A half of 160 candidates.*teachers=90"
    ) as caught:
        pt.audit(result, pt.RMIA(shadows=4), TASK, DATA)
    assert caught.value.reason is Reason.NO_SHADOWS


@dataclass(frozen=True)
class Poisoning:
    """Writes into the shadow models that it was lent."""

    name: str = "poisoning"
    observer: Observer = PUBLIC
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> object:
        assert target.shadows is not None
        made = target.shadows(4)
        made.losses.setflags(write=True)
        made.losses[:] = 0.0
        return np.zeros(len(candidates))


def test_what_an_attack_writes_into_shadow_models_does_not_reach_the_next() -> None:
    result = pt.fit(pt.SGD(epochs=1), TASK, DATA, runtimes=STAR)
    lira = pt.LiRA(shadows=4)
    alone, _ = attacked(result, [lira], TASK, DATA, seed=0)
    behind, _ = attacked(result, [Poisoning(), lira], TASK, DATA, seed=0)
    assert behind[1].metrics == alone[0].metrics
