"""Attacks are lent shadow models on their candidates, by the run's own trainer."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.task import COLUMNS, Canaries, FederatedData, Rows, Task
from privtrain.runs import shadowing
from privtrain.runs.shadowing import laid_out
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
