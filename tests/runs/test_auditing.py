"""Auditing hands an attack its observer's view, and the rows that are protected."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from privtrain.attacks.membership import LossThreshold
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME, PUBLIC_NAME
from privtrain.core.result import Leakage, Target
from privtrain.core.task import Rows
from privtrain.data.canaries import noise_rows, with_canaries
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.auditing import audit
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

DATA = a_federation(20, 20)


@dataclass
class Looking:
    """Keeps what it was handed."""

    observer: Observer = PUBLIC
    name: str = "looking"
    seen: list[tuple[Target, int]] = field(default_factory=list)

    def run(self, target: Target, *, seed: int) -> Leakage:
        self.seen.append((target, seed))
        return Leakage(attack=self.name, observer=self.observer.name, metrics={})


@pytest.mark.parametrize(
    ("observer", "receivers"),
    [
        (PUBLIC, {PUBLIC_NAME}),
        (AGGREGATOR, {PUBLIC_NAME, AGGREGATOR_NAME}),
        (PARTICIPANT, {PUBLIC_NAME, "p0"}),
        (coalition({"p1", AGGREGATOR_NAME}), {PUBLIC_NAME, "p1", AGGREGATOR_NAME}),
    ],
    ids=["public", "aggregator", "participant", "coalition"],
)
def test_an_attack_is_handed_its_observers_view_alone(
    observer: Observer, receivers: set[str]
) -> None:
    result = fit(FedAvg(rounds=2), TASK, DATA, runtimes=STAR)
    attack = Looking(observer)
    leakage = audit(result, attack, TASK, DATA, seed=7)
    ((target, seed),) = attack.seen
    assert seed == 7
    assert leakage.attack == "looking"
    assert target.view.observer == observer
    assert {entry.receiver for entry in target.view.messages} == receivers
    assert target.predictor is result.predictor


def test_members_are_the_training_rows_and_non_members_the_test_rows() -> None:
    attack = Looking()
    audit(fit(SGD(epochs=1), TASK, DATA, runtimes=STAR), attack, TASK, DATA)
    ((target, _),) = attack.seen
    assert torch.equal(target.members.inputs, DATA.pooled().inputs)
    assert torch.equal(target.non_members.inputs, DATA.test.inputs)


def test_rows_that_became_public_are_no_members() -> None:
    trainer = PATE(teachers=4, queries=10, release=Release(GNMax(1.0), finish=ARGMAX))
    result = fit(trainer, TASK, DATA, runtimes=STAR)
    attack = Looking()
    audit(result, attack, TASK, DATA)
    ((target, _),) = attack.seen
    assert result.members is not None
    assert 0 < len(target.members) < len(DATA.pooled())
    assert torch.equal(target.members.inputs, result.members.inputs)
    planted = with_canaries(DATA, noise_rows(DATA, 8))
    audit(result, attack, TASK, planted)
    assert attack.seen[1][0].canaries is None, "a canary may have become public"


def test_canaries_and_the_curves_promised_to_the_observer_are_handed_on() -> None:
    planted = replace(with_canaries(DATA, noise_rows(DATA, 8)), public_rows=40)
    trainer = DPSGD(epochs=1, expected_batch=8)
    result = fit(trainer, TASK, planted, runtimes=STAR)
    public, aggregator = Looking(), Looking(AGGREGATOR)
    audit(result, public, TASK, planted)
    audit(result, aggregator, TASK, planted)
    assert public.seen[0][0].canaries is planted.canaries
    assert torch.equal(public.seen[0][0].members.inputs, DATA.pooled().inputs)
    assert torch.equal(public.seen[0][0].members.labels, DATA.pooled().labels)
    assert public.seen[0][0].promised == result.statement.curves != ()
    assert aggregator.seen[0][0].promised == ()


def test_memorised_labels_leak_and_noise_hides_them() -> None:
    """Random labels can only be learned by heart."""
    generator = torch.Generator().manual_seed(0)
    rows = some_rows(4, 300)
    labels = torch.randint(3, (300,), generator=generator)
    wide = replace(TASK, model=_Wide())
    data = replace(
        DATA,
        train={"a": Rows(rows.inputs[:100], labels[:100])},
        test=Rows(rows.inputs[100:], labels[100:]),
    )
    by_heart = fit(SGD(epochs=200, learning_rate=0.5), wide, data, runtimes=STAR)
    leaking = audit(by_heart, LossThreshold(), wide, data, seed=0)
    assert leaking.metrics["auc"] is not None
    assert leaking.metrics["auc"] > 0.75
    local = PlainSteps(epochs=5)
    private = FedAvg(rounds=2, local=local, release=Release(Gaussian(0.5, 5.0)))
    hidden = audit(fit(private, wide, data, runtimes=STAR), LossThreshold(), wide, data, seed=0)
    low, high = hidden.intervals["auc"]
    assert low <= 0.5 <= high
    again = audit(by_heart, LossThreshold(), wide, data, seed=0)
    assert again == leaking


class _Wide:
    def __call__(self) -> torch.nn.Module:
        layers = [torch.nn.Linear(5, 200), torch.nn.ReLU(), torch.nn.Linear(200, 3)]
        return torch.nn.Sequential(*layers).double()
