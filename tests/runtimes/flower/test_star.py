"""The coordinator's side of a Flower star: what it sends, and how it reads what comes back."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import torch

from privtrain.core.errors import PartyLostError
from privtrain.core.failures import traceback_of
from privtrain.core.runtime import Party, Payload, Reply, StarRuntime
from privtrain.runtimes.flower.grid import FlowerGrid
from privtrain.runtimes.in_process import InProcess
from tests.contracts.star_runtime import PARTIES, Echo, Fail, NewState, a_setting

pytest.importorskip("flwr", reason='Flower is an extra: pip install "privtrain[flower]"')

from privtrain.runtimes.flower.client import Site, client_app, quiet_import
from privtrain.runtimes.flower.simulation import LocalGrid
from privtrain.runtimes.flower.star import FlowerStar

with quiet_import():
    from flwr.app import Message


def test_one_tensor_for_all_parties_is_converted_once_and_others_are_not_mixed_up() -> None:
    class OnDemand(dict[str, Payload]):  # every payload is made when asked for, then forgotten
        def items(self):  # type: ignore[no-untyped-def,override]  # iterates like a mapping
            return ((name, {"x": torch.full((1000,), float(i))}) for i, name in enumerate(self))

    with FlowerGrid().open(a_setting()) as star:
        replies = star.map(Echo(), OnDemand.fromkeys(PARTIES, {}), round=0)
    assert [float(reply.message["x"].mean()) for reply in replies.values()] == [0.0, 1.0, 2.0]


def test_the_error_of_a_failed_party_in_this_process_is_the_cause() -> None:
    with FlowerGrid().open(a_setting()) as star, pytest.raises(PartyLostError) as caught:
        star.map(Fail(PARTIES[2], KeyError("weight")), {name: {} for name in PARTIES}, round=1)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "star_runtime.py" in traceback_of(caught.value)


@dataclass(frozen=True)
class NotATensor:
    def __call__(self, payload: Payload, party: Party) -> Reply:
        return Reply({"loss": 0.5})  # type: ignore[dict-item]  # the mistake under test


def test_a_reply_that_is_no_tensor_names_the_party() -> None:
    with FlowerGrid().open(a_setting()) as star, pytest.raises(PartyLostError) as caught:
        star.map(NotATensor(), {PARTIES[1]: {}}, round=2)
    assert caught.value.party == PARTIES[1]
    assert "AttributeError" in str(caught.value)


def test_other_processes_report_their_memory_and_this_one_does_not() -> None:
    peaks: list[int] = []
    taken: dict[str, float] = {}
    setting = replace(a_setting(), report_memory=peaks.append, report_cpu=taken.__setitem__)
    with FlowerGrid().open(setting) as star:
        star.map(Echo(), {name: {} for name in PARTIES}, round=0)
    assert peaks == [] and taken == {}
    train = setting.data.train
    site = Site(train, setting.seeds, setting.entropy, setting.device, elsewhere=True)
    grid = LocalGrid(client_app(lambda: site), train)
    there = FlowerStar(setting, grid.node_of, grid.create_message, grid.send_and_receive)
    replies = there.map(Echo(), {name: {} for name in PARTIES}, round=0)
    assert len(peaks) == len(PARTIES)
    assert min(peaks) > 10_000_000
    # Here the workers are this process.
    assert set(taken) == {str(os.getpid())} and min(taken.values()) > 0
    # It is no message of the protocol: nobody is sent it, and no byte is counted.
    assert all("memory" not in kind for reply in replies.values() for kind in reply.message)
    assert all("memory" not in entry.kind for entry in setting.transcript.entries)


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("runtime", [FlowerGrid(), InProcess()])
def test_whatever_a_party_raises_names_it_but_an_interrupt(runtime: StarRuntime) -> None:
    for error in (SystemExit(3), MuteError(), ValueError("/data/\udcff.npy")):
        with runtime.open(a_setting()) as star, pytest.raises(PartyLostError) as caught:
            star.map(Fail(PARTIES[1], error), {PARTIES[1]: {}}, round=2)
        assert type(error).__name__ in str(caught.value).encode().decode()
        assert type(caught.value.__cause__) is type(error) and caught.value.party == PARTIES[1]
    with runtime.open(a_setting()) as star, pytest.raises(KeyboardInterrupt):
        star.map(Fail(PARTIES[1], KeyboardInterrupt()), {PARTIES[1]: {}}, round=2)


def test_the_state_of_a_party_that_is_gone_is_the_last_that_was_told() -> None:
    setting, gone = a_setting(), set[str]()
    train = setting.data.train
    site = Site(train, setting.seeds, setting.entropy, setting.device)
    grid = LocalGrid(client_app(lambda: site), train)

    def send(messages: list[Message]) -> Iterable[Message]:
        nodes = {grid.node_of(name) for name in gone}
        there = [message for message in messages if message.metadata.dst_node_id not in nodes]
        return grid.send_and_receive(there)

    def rounds(states: dict[str, Payload]) -> dict[str, int]:
        return {party: int(state["rounds"]) for party, state in states.items()}

    star = FlowerStar(setting, grid.node_of, grid.create_message, send)
    a, b, c = PARTIES
    star.map(NewState(), {a: {}, b: {}}, round=0)
    assert rounds(star.states()) == {a: 1, b: 1}
    star.map(NewState(), {a: {}, b: {}, c: {}}, round=1)
    gone |= {b, c}
    assert list(star.map(NewState(), {a: {}, b: {}, c: {}}, round=2, at_least=1)) == [a]
    # Of one the state before is known, of the other one nothing.
    for _ in range(2):
        states = star.states()
        assert rounds(states) == {a: 3, b: 1}
        states[b]["rounds"].fill_(99)
    gone.clear()
    assert rounds(star.states()) == {a: 3, b: 2, c: 1}
    star.restore({a: {"rounds": torch.tensor(7)}, c: {"rounds": torch.tensor(8)}})
    gone |= {b, c}
    assert rounds(star.states()) == {a: 7, c: 8}


def test_a_client_that_fails_where_it_tells_its_state_is_no_loss() -> None:
    setting = a_setting()
    train = setting.data.train
    sites = [Site(train, setting.seeds, setting.entropy, setting.device)]
    grid = LocalGrid(client_app(lambda: sites[0]), train)
    star = FlowerStar(setting, grid.node_of, grid.create_message, grid.send_and_receive)
    star.map(NewState(), {PARTIES[0]: {}}, round=0)
    assert list(star.states()) == [PARTIES[0]]
    sites.clear()
    with pytest.raises(PartyLostError, match=f"{PARTIES[0]} .*IndexError") as caught:
        star.states()
    assert caught.value.failed
