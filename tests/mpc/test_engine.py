"""Engines of any kind: who helps them, and what a session computes, on the toy engine."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from privtrain.core.errors import UnsupportedError
from privtrain.core.runtime import Party, Payload, Program, link_of
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.engine import ranks_of, with_helpers
from privtrain.mpc.sharing import encode
from privtrain.runtimes.processes.mesh import Processes
from tests.mpc.dealt import Deal, DealtEngine

NAMES = ("computing-0", "computing-1")


@dataclass(frozen=True)
class Compute:
    """What a session computes on the toy engine, opened."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(6, 5, dtype=torch.float64, generator=generator) * 6
        y = torch.randn(5, 3, dtype=torch.float64, generator=generator)
        with DealtEngine().open(party) as session:
            integers = encode(x) if link_of(party).rank == 1 else None
            left, right = session.own(integers, (6, 5), 1), session.public(y)
            values = {
                "matmul": (left.matmul(right), x @ y),
                "softmax": (session.softmax(left), torch.softmax(x, 1)),
                "positive": (session.positive(left), (x > 0).double()),
                "scale": (session.scale(left, -0.003), x * -0.003),
                "square": (left.square(), x * x),
                "largest": (session.largest(session.public(torch.tensor([1.0, 3, 3]))), [0, 1, 0]),
            }
            opened = session.reveal([value for value, _ in values.values()], kind="test")
        pairs = zip(values.items(), opened, strict=True)
        return {
            name: (found - torch.as_tensor(expected, dtype=torch.float64)).abs().max()
            for (name, (_, expected)), found in pairs
        }


def test_the_toy_engine_computes_what_a_session_promises() -> None:
    programs = with_helpers(DealtEngine(), dict.fromkeys(NAMES, Compute()))
    replies = Processes(timeout=30).run(programs, {})
    for name in NAMES:
        errors = {key: float(value) for key, value in replies[name].payload.items()}
        assert errors.pop("positive") == errors.pop("largest") == 0
        assert max(errors.values()) < 0.004
    assert replies["dealer"].payload == {}


def test_helpers_come_after_the_computing_parties() -> None:
    programs = {name: Deal(()) for name in NAMES}
    assert with_helpers(CrypTen(), programs) == programs
    helped = with_helpers(DealtEngine(), programs)
    assert list(helped) == [*NAMES, "dealer"]
    assert helped["dealer"] == Deal(NAMES)


@dataclass(frozen=True)
class Helped(DealtEngine):
    """An engine whose helper has another name."""

    helper: str = "dealer"

    def helpers(self, programs: Mapping[str, Program]) -> Mapping[str, Program]:
        return {self.helper: Deal(tuple(programs))}


@pytest.mark.parametrize("helper", ["computing-1", "hospital"])
def test_a_helper_is_called_as_nobody_else_is(helper: str) -> None:
    with pytest.raises(ValueError, match=f"the helpers of dealt .*{helper}"):
        with_helpers(Helped(helper), {name: Deal(()) for name in NAMES})


def test_readers_are_known_by_their_ranks() -> None:
    assert ranks_of(NAMES, None) is None
    assert ranks_of(NAMES, ()) == ()
    assert ranks_of(NAMES, ("computing-1", "computing-0", "computing-1")) == (0, 1)
    with pytest.raises(ValueError, match=r"computing-0, computing-1; 'dealer' does not"):
        ranks_of(NAMES, ("computing-0", "dealer"))


def test_a_party_of_a_star_has_no_link() -> None:
    party = Party(
        name="site-0", round=0, train={}, state={}, seeds=Seeds(0), entropy=SeededEntropy(0)
    )
    with pytest.raises(UnsupportedError, match="site-0 has no link"), CrypTen().open(party):
        pass
