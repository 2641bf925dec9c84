"""Parties start when they are first needed, once, and are closed with the run."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from privtrain.core.runtime import Party, Payload, Reply, Setting
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows
from privtrain.core.transcript import Transcript
from privtrain.runs.opening import LateStar

ROWS = Rows(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
SETTING = Setting(
    data=FederatedData(train={"a": ROWS}, test=ROWS),
    seeds=Seeds(0),
    entropy=SeededEntropy(0),
    transcript=Transcript(),
)


class Noting:
    """A runtime that notes what is asked of it."""

    name, real = "noting", False

    def __init__(self) -> None:
        self.said: list[object] = []

    @contextmanager
    def open(self, setting: Setting) -> Iterator[Any]:
        self.said.append(setting)
        yield self
        self.said.append("closed")

    def map(
        self, step: Any, payloads: Mapping[str, Payload], *, round: int, at_least: int | None
    ) -> Any:
        self.said.append(("map", step, dict(payloads), round, at_least))
        return {party: Reply(payload) for party, payload in payloads.items()}

    def states(self) -> dict[str, Payload]:
        return {"a": {}}

    def restore(self, states: Mapping[str, Payload]) -> None:
        self.said.append(("restore", dict(states)))


def step(payload: Payload, party: Party) -> Reply:
    return Reply(payload)


def test_nothing_starts_where_nothing_is_asked() -> None:
    runtime = Noting()
    with ExitStack() as stack:
        assert LateStar(runtime, SETTING, stack).states() == {}
    assert runtime.said == []


def test_parties_start_at_the_first_question_once_and_end_with_the_stack() -> None:
    runtime = Noting()
    with ExitStack() as stack:
        star = LateStar(runtime, SETTING, stack)
        assert star.map(step, {"a": {}}, round=3) == {"a": Reply({})}
        star.map(step, {}, round=4, at_least=0)
        assert star.states() == {"a": {}}
    asked = [("map", step, {"a": {}}, 3, None), ("map", step, {}, 4, 0)]
    assert runtime.said == [SETTING, *asked, "closed"]


def test_a_state_that_is_put_back_starts_them() -> None:
    runtime = Noting()
    with ExitStack() as stack:
        LateStar(runtime, SETTING, stack).restore({"a": {}})
    assert runtime.said == [SETTING, ("restore", {"a": {}}), "closed"]
