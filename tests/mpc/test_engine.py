"""Engines of any kind through one suite on each way of running parties, and who helps them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from privtrain.core.errors import UnsupportedError
from privtrain.core.extras import is_missing, missing
from privtrain.core.runtime import MeshReply, Party, Payload, Program
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.transcript import Entry
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.engine import phases, ranks_of, with_helpers
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.runtimes.certificates import make_credentials
from privtrain.runtimes.links import SocketLink
from privtrain.runtimes.sockets import TLS
from privtrain.runtimes.threads import Threads
from tests.contracts.engine import CHECKS, TIMEOUT, Bounds, Case
from tests.mpc.dealt import Deal, DealtEngine
from tests.mpc.proved import Proved
from tests.runtimes.forked import Forked

NAMES = ("computing-0", "computing-1")


@dataclass(frozen=True, kw_only=True)
class TLSThreads(Threads):
    """Parties in threads, over the links that hosts with keys have."""

    def run(
        self, programs: Mapping[str, Program], inputs: Mapping[str, Payload], **others: Any
    ) -> dict[str, MeshReply]:
        keys = {name: TLS(own) for name, own in make_credentials(tuple(programs)).items()}

        def link(names: tuple[str, ...], rank: int, *rest: Any) -> SocketLink:
            return SocketLink(names, rank, *rest, transport=keys[names[rank]])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("privtrain.runtimes.threads.SocketLink", link)
            return super().run(programs, inputs, **others)


# As docs/mpc.md says.
RING64 = Bounds(product=1.6e-5, scaled=6e-5, softmax=1e-4, sigmoid=6e-4)
# A class e^-8 or less times as likely as the first one counts as impossible.
SPDZ2K = Bounds(product=6.2e-5, scaled=6.5e-5, softmax=5e-4, sigmoid=5.1e-4)
CRYPTEN = Bounds(product=1e-3, scaled=1e-4, softmax=3e-3)
DEALT = Bounds(product=4e-3, scaled=4e-3, softmax=4e-3)

CASES = {
    "ring64 in threads": Case(Ring64(), Threads(timeout=TIMEOUT), RING64, 3),
    "ring64 over TLS": Case(Ring64(), TLSThreads(timeout=TIMEOUT), RING64, 2),
    "ring64 in processes": Case(Ring64(), Forked(timeout=TIMEOUT), RING64, 2),
    "spdz2k in threads": Case(SPDZ2k(), Threads(timeout=TIMEOUT), SPDZ2K, 2),
    "spdz2k over TLS": Case(SPDZ2k(), TLSThreads(timeout=TIMEOUT), SPDZ2K, 2),
    "spdz2k in processes": Case(SPDZ2k(), Forked(timeout=TIMEOUT), SPDZ2K, 2),
    "CrypTen in processes": Case(CrypTen(), Forked(timeout=TIMEOUT), CRYPTEN, 2),
    "CrypTen in three processes": Case(CrypTen(), Forked(timeout=TIMEOUT), CRYPTEN, 3),
    "the toy engine": Case(DealtEngine(), Threads(timeout=TIMEOUT), DEALT, 2),
    "ring64 with proofs": Case(Proved(), Threads(timeout=TIMEOUT), RING64, 2),
}
# The toy's dealer runs a program of its own, which nobody can stop in the middle.
FEWER = {
    "CrypTen in three processes": CHECKS[:-1],
    "the toy engine": CHECKS[:-1],
    "ring64 with proofs": CHECKS[1:-1],
}
TRIED = [
    pytest.param(
        case, check, id=f"{name}-{check.__name__}", marks=[pytest.mark.slow] * case.runtime.real
    )
    for name, case in CASES.items()
    for check in FEWER.get(name, CHECKS)
]


@pytest.mark.parametrize(("case", "check"), TRIED)
def test_keeps_the_promises_of_an_engine(case: Case, check: Callable[[Case], None]) -> None:
    if case.engine == CrypTen() and is_missing("crypten"):
        pytest.skip(str(missing("This test", "crypten")))
    check(case)


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


def test_offline_and_online_are_counted_apart() -> None:
    entries = [
        Entry("bank", "computing-0", "input share", (1,), 1, 0),
        Entry("dealer", "computing-1", "material", (1000,), 1000, 1),
        Entry("computing-1", "dealer", "material taken", (2,), 20, 2),
        Entry("computing-0", "computing-1", "masked share", (3,), 300, 2),
        Entry("computing-1", "computing-0", "masked share", (3,), 300, 2),
        Entry("computing-1", "computing-0", "weight share", (4,), 4000, 5),
    ]
    (said,) = phases(DealtEngine(), entries, NAMES)
    assert "from and to dealer, 1,020 bytes" in said and "4,600 bytes in 2 rounds" in said
    assert phases(CrypTen(), entries, NAMES) == ()
