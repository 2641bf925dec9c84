"""What every attack has to keep, whoever its observer is."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from privtrain.attacks.attack import Attack, check_target, target_for
from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.one_run.attack import OneRun
from privtrain.core.observers import Observer
from privtrain.core.parameters import ModelPredictor
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Target
from privtrain.core.statement import to_json_text
from privtrain.core.task import Canaries, Rows, Task
from privtrain.core.transcript import Transcript

ATTACKS: tuple[Attack, ...] = (
    LossThreshold(),
    LossThreshold(limit=20, batch_size=3),
    OneRun(guesses=10),
    OneRun(guesses=40, batch_size=3),
)


def rows(seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (40,), generator=generator)
    return Rows(torch.randn(40, 8, generator=generator), targets)


def target(observer: Observer) -> Target:
    transcript = Transcript(keep_payloads=True)
    transcript.send("client-0", AGGREGATOR_NAME, "update", torch.ones(4), round=0)
    transcript.send(AGGREGATOR_NAME, "client-0", "model", torch.ones(4), round=0)
    transcript.publish("model", torch.ones(4), sender=AGGREGATOR_NAME, round=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(8, 3)
    return target_for(
        observer, transcript=transcript, predictor=ModelPredictor(model),
        task=Task(model=lambda: nn.Linear(8, 3)), members=rows(1), non_members=rows(2),
        canaries=Canaries(rows=rows(3), included=torch.arange(40) % 2 == 0),
    )  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
class TestEveryAttack:
    def test_it_is_frozen_and_pickles(self, attack: Attack) -> None:
        assert pickle.loads(pickle.dumps(attack)) == attack
        with pytest.raises(dataclasses.FrozenInstanceError):
            attack.name = "other"  # type: ignore[misc]  # must not work

    def test_the_same_seed_gives_the_same_leakage(self, attack: Attack) -> None:
        before = torch.get_rng_state()
        first = attack.run(target(attack.observer), seed=3)
        assert attack.run(target(attack.observer), seed=3) == first
        assert torch.equal(torch.get_rng_state(), before)

    def test_another_observers_view_is_refused(self, attack: Attack) -> None:
        stranger = Observer("somebody else")
        with pytest.raises(ValueError, match="somebody else"):
            attack.run(target(stranger), seed=0)

    def test_it_reads_no_message_its_observer_did_not_receive(self, attack: Attack) -> None:
        seen = target(attack.observer)
        check_target(seen, attack.observer)
        if attack.observer.name == "public":
            assert seen.view.kinds == ("model",)
            assert {entry.receiver for entry in seen.view.messages} == {"public"}

    def test_what_it_learned_is_complete_and_serialises(self, attack: Attack) -> None:
        leakage = attack.run(target(attack.observer), seed=0)
        assert (leakage.attack, leakage.observer) == (attack.name, attack.observer.name)
        assert leakage.members > 0
        assert leakage.non_members > 0
        assert set(leakage.intervals) <= set(leakage.metrics)
        for name, (low, high) in leakage.intervals.items():
            value = leakage.metrics[name]
            assert value is not None
            assert low <= value <= high
        assert "this attack only" in leakage.notes[0]
        assert '"metrics"' in to_json_text(leakage)

    def test_the_rows_stay_as_they_were(self, attack: Attack) -> None:
        mine = target(attack.observer)
        before = mine.members.inputs.clone()
        attack.run(mine, seed=0)
        assert torch.equal(mine.members.inputs, before)
