"""Sessions one after the other on one mesh, each with keys and masks of its own."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.engine import with_helpers
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.sharing import encode
from privtrain.runtimes.threads import Threads
from tests.mpc.ring64.mesh import names_of, run


@dataclass(frozen=True)
class OpensAgain:
    """Products in sessions one after the other; some end by an error, with material unread."""

    fails: tuple[int, ...] = ()

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        opened = {}
        for number, width in enumerate((2, 300, 7)):
            own = encode(torch.full((width, width), 1.5))
            with suppress(ZeroDivisionError), Ring64().open(party) as session:
                shared = session.own(own if link_of(party).rank == 0 else None, (width, width), 0)
                product = session.bilinear(torch.matmul, shared, shared)
                session.dealt(partial(torch.zeros, 5000, dtype=torch.int64), (5000,))
                if number in self.fails:
                    raise ZeroDivisionError
                opened[str(number)] = session.reveal([product], kind="result share")[0]
        return opened


@pytest.mark.parametrize("fails", [(), (0,), (1,), (0, 1)])
def test_a_program_opens_one_session_after_the_other(fails: tuple[int, ...]) -> None:
    ran = run(OpensAgain(fails))
    for name in names_of(2):
        assert set(ran.payloads[name]) == {"0", "1", "2"} - {str(number) for number in fails}
        for number, opened in ran.payloads[name].items():
            width = (2, 300, 7)[int(number)]
            assert torch.equal(opened, torch.full((width, width), 2.25 * width).double())
    assert len(ran.entries("shapes")) == 1
    # Other keys, and other masks of the same value: two openings of it have nothing in common.
    keys = [tensor for kind, tensor in ran.links["dealer"].sent if kind == "public key"]
    assert len({tuple(key.tolist()) for key in keys}) == 3


def test_sessions_in_turn_over_sockets() -> None:
    programs = with_helpers(Ring64(), dict.fromkeys(names_of(3), OpensAgain((1,))))
    replies = Threads(timeout=20).run(programs, {})
    assert all(set(replies[name].payload) == {"0", "2"} for name in names_of(3))
