"""The in-process star keeps the promises of every star."""

from collections.abc import Callable

import pytest
import torch

from privtrain.core.runtime import Party, Payload, Reply, StarRuntime
from privtrain.runtimes.in_process import InProcess
from tests.contracts.star_runtime import CHECKS, PARTIES, a_setting


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_promises_of_a_star(check: Callable[[StarRuntime], None]) -> None:
    check(InProcess())


def test_parties_step_one_after_the_other_in_the_order_of_payloads() -> None:
    seen: list[str] = []

    def step(payload: Payload, party: Party) -> Reply:
        seen.append(party.name)
        return Reply({"update": torch.zeros(1)})

    setting = a_setting()
    with InProcess().open(setting) as star:
        star.map(step, {name: {} for name in PARTIES[::-1]}, round=0)
    assert tuple(seen) == PARTIES[::-1]
    assert [entry.sender for entry in setting.transcript.entries] == list(PARTIES[::-1])


def test_an_interruption_is_no_lost_party() -> None:
    def step(payload: Payload, party: Party) -> Reply:
        raise KeyboardInterrupt

    with InProcess().open(a_setting()) as star, pytest.raises(KeyboardInterrupt):
        star.map(step, {PARTIES[0]: {}}, round=0)


def test_threads_are_put_back_after_a_failure() -> None:
    def step(payload: Payload, party: Party) -> Reply:
        raise ZeroDivisionError

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with InProcess().open(a_setting()) as star, pytest.raises(Exception, match="ZeroDivision"):
            star.map(step, {PARTIES[0]: {}}, round=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
