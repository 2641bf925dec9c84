"""The teachers of a party in several processes: the same bits as in one."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Task
from privtrain.data.models import MLP
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.steps.ridge import Ridge
from privtrain.steps.together import Grouped, Together
from privtrain.trainers.crowd import Crowd, _split, _worked
from tests.trainers.federations import STAR, TASK, a_federation, some_rows, vector
from tests.trainers.test_teachers import a_pate, squares, with_public

STEPS = PlainSteps(epochs=2, batch_size=4, learning_rate=0.1, optimizer="Adam")


def a_crowd(steps: Any, features: Any = None, model: Any = None, teachers: int = 9) -> Crowd:
    task = TASK if model is None else Task(model=model)
    asked = some_rows(50, 20).inputs
    asked = asked if features is None else features(asked)
    return Crowd(
        steps=steps.prepared(task, asked, 3),
        task=task,
        features=features,
        classes=3,
        asked=asked,
        draws=Draws(Seeds(3), SeededEntropy(3), 1, "p"),
        held={number: some_rows(30 + number, number) for number in range(teachers)},
    )


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()


CROWDS: dict[str, dict[str, Any]] = {
    "networks": {"steps": STEPS},
    "networks that draw, by a function without a name": {
        "steps": STEPS,
        "model": lambda: with_dropout(),
    },
    "networks on features": {
        "steps": STEPS,
        "model": MLP((10, 3), torch.float64),
        "features": lambda rows: squares(rows),
    },
    "together": {"steps": Together(steps=STEPS)},
    "ridge": {"steps": Ridge(), "teachers": 70},
}


def named(name: str) -> Crowd:
    crowd = a_crowd(**CROWDS[name])
    if name != "together":
        return crowd
    # In groups of two, so that there are some to share out.
    assert isinstance(crowd.steps, Grouped)
    return replace(crowd, steps=replace(crowd.steps, at_once=2))


@pytest.mark.parametrize("name", sorted(CROWDS))
def test_parts_that_left_the_process_give_the_same_bits(name: str) -> None:
    crowd = named(name)
    alone, shared = list(crowd.scores()), list[Tensor]()
    for part in crowd.parts(2):
        shared += torch.load(BytesIO(_worked(part)), weights_only=True)
    assert len(alone) == len(shared) == len(crowd.held)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["networks that draw, by a function without a name", "together"])
def test_processes_give_the_bits_of_one(name: str) -> None:
    crowd = named(name)
    alone, shared = list(crowd.scores()), list(crowd.scores_of_workers(2))
    assert len(alone) == len(shared)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_workers_get_whole_groups_in_order_and_some_get_none() -> None:
    groups = [[0, 1], [2, 3], [4]]
    for workers in (1, 2, 3, 5):
        parts = _split(groups, workers)
        assert len(parts) == workers
        assert [group for part in parts for group in part] == groups


def test_what_leaves_the_process_holds_no_secret_stream_and_no_other_rows() -> None:
    part = a_crowd(STEPS)._only([2, 3])
    assert sorted(part.held) == [2, 3]
    with pytest.raises(RuntimeError, match="where none may be drawn"):
        part.draws.entropy["noise", 1, "p"]


@pytest.mark.slow
def test_a_whole_fit_has_the_same_student_and_counts_the_time_of_its_workers() -> None:
    data = with_public(a_federation(30, 30))
    trainer = a_pate(steps=STEPS, queries=20)
    alone = fit(trainer, TASK, data, runtimes=STAR)
    shared = fit(a_pate(steps=STEPS, queries=20, workers=2), TASK, data, runtimes=STAR)
    assert repr(a_pate(workers=2)) == repr(a_pate())
    one, other = alone.predictor, shared.predictor
    assert torch.equal(vector(one.module), vector(other.module))  # type: ignore[attr-defined]
    # Importing torch in a process of its own takes a second of its time.
    assert shared.cost.cpu_seconds > alone.cost.cpu_seconds + 0.5


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_the_number_of_workers_is_checked(wrong: Any) -> None:
    with pytest.raises(ValueError, match="workers"):
        a_pate(workers=wrong)
