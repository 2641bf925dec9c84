"""Messages of a Flower star: every bit arrives, steps are unpickled once, errors name the party."""

from dataclasses import dataclass

import pytest
import torch

from privtrain.core.errors import PartyLostError, UnsupportedError
from privtrain.core.runtime import Party, Payload, Reply
from privtrain.runtimes.flower.grid import FlowerGrid
from privtrain.runtimes.in_process import InProcess
from tests.contracts.star_runtime import PARTIES, a_setting, bits

pytest.importorskip("flwr", reason='Flower is an extra: pip install "privtrain[flower]"')

from flwr.app import Array, Error
from flwr.common.constant import ErrorCode

from privtrain.runtimes.flower.client import raised_at, to_array, to_tensor

TENSORS = [
    torch.linspace(-1, 1, 7),
    torch.eye(3, dtype=torch.float64),
    torch.tensor(3),
    torch.zeros(2, 0, 4),
    torch.tensor([True, False]),
    torch.arange(12.0).reshape(3, 4).T,
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: str(tuple(tensor.shape)))
def test_arrays_are_flowers_own(tensor: torch.Tensor) -> None:
    ours, theirs = to_array(tensor), Array(tensor.contiguous())
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data
    assert bits(to_tensor(theirs)) == bits(tensor) == bits(torch.from_numpy(ours.numpy()))


def test_a_type_that_flower_cannot_hold_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"bfloat16.*float32"):
        to_array(torch.ones(2, dtype=torch.bfloat16))


@dataclass(frozen=True)
class Counting:
    """Counts in the worker's cache how often this very step was unpickled."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        seen = party.cache.setdefault("steps", [])
        if not any(step is self for step in seen):
            seen.append(self)
        return Reply({"different": torch.tensor(len(seen))})


def test_a_client_unpickles_a_step_once() -> None:
    with FlowerGrid().open(a_setting()) as star:
        for round in range(3):
            replies = star.map(Counting(), {name: {} for name in PARTIES}, round=round)
    assert [int(reply.message["different"]) for reply in replies.values()] == [1, 1, 1]


def test_the_client_works_on_a_copy_of_the_step() -> None:
    step = Counting()
    with FlowerGrid().open(a_setting()) as star:
        star.map(step, {PARTIES[0]: {}}, round=0)
    with InProcess().open(a_setting()) as plain:
        plain.map(step, {PARTIES[0]: {}}, round=0)
    assert not vars(step)


def test_errors_of_flower_itself_name_the_party() -> None:
    gone = raised_at("client-1", 3, Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"))
    assert isinstance(gone, PartyLostError)
    assert gone.party == "client-1"
    assert str(gone) == "client-1 was lost in round 3: Node Unavailable"
    assert "error 0" in str(raised_at("client-1", 3, Error(ErrorCode.UNKNOWN)))
