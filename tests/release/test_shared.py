from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import (
    DataError,
    ProtocolError,
    TamperedShareError,
    UnsupportedError,
)
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Reply, Runtimes
from privtrain.core.statement import Adversary, Unit
from privtrain.core.trainer import Mesh, Run
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Exact
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.engine import Engine
from privtrain.mpc.ring64.ahead import Online
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.sharing import LARGEST, SUM_BITS, encode
from privtrain.release.aggregation import Sealed
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Argmax, Finish, Identity, Threshold
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, Placement
from privtrain.release.shared import SharedSum, SumAndOpen
from privtrain.runtimes.threads import Threads
from tests.contracts.aggregation import (
    OBSERVERS,
    a_party,
    a_run,
    check_aggregation,
)
from tests.contracts.aggregation import SharedSum as Double
from tests.extras import need
from tests.mpc.dealt import DealtEngine
from tests.mpc.one_party import OneParty, alone, few_bits
from tests.mpc.proved import SAID, Proved
from tests.runtimes.forked import Forked
from tests.runtimes.test_exchanges import Watched

VOTES = torch.tensor(
    [
        [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1.0, 0, 0], [0, 1, 0], [0, 1, 0]],
        [[0.0, 1, 0], [0, 0, 1], [0, 0, 1]],
    ]
)


def a_mesh_run() -> Run:
    run = a_run()
    run.mesh = Mesh(Forked(timeout=40), run.transcript, run.outcome, run.seeds)
    return run


@dataclass(frozen=True)
class Narrow(Proved):
    """An engine of fewer bits."""

    weight_bits: ClassVar[int] = 14
    row_bits: ClassVar[int] = 12
    sum_bits: ClassVar[int] = 22
    range_bits: ClassVar[int] = 42


def sealed(aggregation: SharedSum, values: Sequence[Tensor], kind: str) -> dict[str, Reply]:
    parties = [a_party(f"client-{number}") for number in range(len(values))]
    return {
        party.name: aggregation.seal(value, party, kind=kind, grid=None)
        for value, party in zip(values, parties, strict=True)
    }


def gathered(aggregation: SharedSum, replies: dict[str, Reply], run: Run, kind: str) -> Sealed:
    gathering = aggregation.begin(tuple(replies), run, round=0, kind=kind)
    total = aggregation.gather(gathering, replies, run)
    assert total.weight is None
    assert not isinstance(total.value, Tensor)
    return total.value


@pytest.mark.parametrize(
    "aggregation",
    [SharedSum(), SharedSum(CrypTen(), computing_parties=3), SharedSum(engine=DealtEngine())],
)
def test_keeps_the_promises_of_an_aggregation(aggregation: SharedSum) -> None:
    check_aggregation(aggregation)


def test_who_deals_reads_the_sum_where_it_computes_itself() -> None:
    first, second, *_ = SharedSum(CrypTen()).readers("client", "update")
    assert (first.reader, first.dealer, second.dealer) == ("computing-0",) * 3
    assert "their sum where a winner is found, as it deals triples" in first.reads
    assert "their sum" not in second.reads
    assert SharedSum().engine == Ring64()
    one, other, dealer, *_ = SharedSum().readers("client", "update")
    assert [r.reader for r in (one, other, dealer)] == ["computing-0", "computing-1", "dealer"]
    assert {r.dealer for r in (one, other, dealer)} == {"dealer"}
    assert "their sum" not in one.reads + other.reads
    assert dealer.reads.startswith("nothing") and "with a computing party" in dealer.reads


def test_sees_what_the_double_of_the_golden_table_sees() -> None:
    for observer in OBSERVERS:
        ours = SharedSum().exposure(observer, AT_AGGREGATOR, parties=10)
        assert ours == Double().exposure(observer, AT_AGGREGATOR, parties=10)


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_updates_add_up_and_nothing_else_is_opened(parties: int) -> None:
    values = [torch.linspace(-3, 2, 11) * scale for scale in (1.0, 0.3, -2.0)]
    aggregation, run = SharedSum(computing_parties=parties), a_mesh_run()
    replies = sealed(aggregation, values, "update")
    run.transcript.exchange()
    opened = gathered(aggregation, replies, run, "update").open(IDENTITY, Exact())
    assert float((opened - torch.stack(values).double().sum(0)).abs().max()) < 1e-8
    # Rounds among computing parties come after the exchange in which they got their shares.
    assert min(entry.round for entry in run.transcript.entries) == 1
    assert max(entry.round for entry in run.transcript.entries) < 20
    assert run.transcript.kinds_received_by(AGGREGATOR_NAME) == ()
    for name in aggregation.computing_names:
        kinds = set(run.transcript.kinds_received_by(name))
        assert kinds == {"public key", "sum share"}


def test_gathering_shares_goes_through_no_earlier_messages() -> None:
    aggregation, run = SharedSum(), a_run()
    run.transcript.entries = Watched()
    gathered(aggregation, sealed(aggregation, [torch.ones(3)] * 2, "update"), run, "update")
    assert Watched.passes == 0


@dataclass(frozen=True)
class Squared:
    """A finish that no engine knows."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        return aggregate**2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("finish", "engine"),
    [
        (ARGMAX, CrypTen()),
        (Threshold(2.0), CrypTen()),
        (ARGMAX, DealtEngine()),
        (ARGMAX, Ring64()),
        (Threshold(2.0), Ring64()),
    ],
)
def test_only_the_winner_or_the_answer_of_a_vote_is_opened(finish: Finish, engine: Engine) -> None:
    if engine != Ring64():
        need("crypten")
    aggregation, run = SharedSum(engine=engine), a_mesh_run()
    replies = sealed(aggregation, list(VOTES), "votes")
    opened = gathered(aggregation, replies, run, "votes").open(finish, Exact())
    assert torch.equal(opened, finish(VOTES.sum(0)))
    kinds = {entry.kind for entry in run.transcript.entries}
    assert "sum share" not in kinds
    assert kinds & {"winner share", "reached share"}


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        (IDENTITY, "sum share"),
        (ARGMAX, "winner share"),
        (Threshold(2.0), "reached share"),
        (Threshold(-0.5), "reached share"),
    ],
)
def test_the_program_of_a_party_finishes_the_sum_and_opens_that_alone(
    finish: Identity | Argmax | Threshold, kind: str
) -> None:
    engine, shares = OneParty(), {}
    for number, votes in enumerate(VOTES - 0.25):
        shares[f"{number:06d}"] = encode(votes, bits=SUM_BITS)
    opened = SumAndOpen(engine, finish)(shares, alone())["opened"]
    wanted = finish((VOTES - 0.25).double().sum(0))
    assert opened.shape == wanted.shape
    assert torch.equal(opened.to(wanted.dtype), wanted)
    assert engine.session.opened == [kind]


@pytest.mark.parametrize(
    "finish", [IDENTITY, ARGMAX, Threshold(2.0), Threshold(-0.5), Threshold(2**-12 - LARGEST)]
)
def test_sums_have_the_bits_of_their_engine(finish: Identity | Argmax | Threshold) -> None:
    engine, shares = few_bits(), {}
    (mail,) = sealed(SharedSum(), [torch.zeros(1)], "votes").values()
    assert set(mail.mail["computing-0"]) == {"votes share"}
    for number, votes in enumerate(VOTES - 0.25):
        shares[f"{number:06d}"] = encode(votes, bits=22)
    opened = SumAndOpen(engine, finish)(shares, alone())["opened"]
    wanted = finish((VOTES - 0.25).double().sum(0))
    assert torch.equal(opened.to(wanted.dtype), wanted)


def proved_run() -> Run:
    run = a_run()
    run.mesh = Mesh(Threads(timeout=20), run.transcript, run.outcome, run.seeds)
    return run


@pytest.mark.parametrize("finish", [IDENTITY, ARGMAX, Threshold(2.0)])
def test_shares_come_with_proofs_where_the_engine_asks_for_them(finish: Finish) -> None:
    aggregation, run = SharedSum(Proved()), proved_run()
    replies = sealed(aggregation, list(VOTES), "votes")
    for reply in replies.values():
        for mail in reply.mail.values():
            assert set(mail) == {"votes share", "votes proof"}
            assert mail["votes proof"].shape == (2 * 4 + 3 * 3,)
    opened = gathered(aggregation, replies, run, "votes").open(finish, Exact())
    assert torch.equal(opened.double(), finish(VOTES.double().sum(0)).double())


@pytest.mark.parametrize("changes", ["0", "1"])
def test_a_computing_party_cannot_change_a_contribution(changes: str) -> None:
    run, replies = proved_run(), sealed(SharedSum(Proved()), list(VOTES), "votes")
    total = gathered(SharedSum(Proved(changes=changes)), replies, run, "votes")
    with pytest.raises(TamperedShareError, match=SAID):
        total.open(IDENTITY, Exact())
    # The broken twin takes no notice: the sum is another one.
    careless = SharedSum(Proved(changes=changes, notices=""))
    opened = gathered(careless, replies, proved_run(), "votes").open(IDENTITY, Exact())
    assert not torch.equal(opened.float(), VOTES.sum(0))


def test_a_missing_or_odd_proof_is_refused() -> None:
    aggregation = SharedSum(Proved())
    with pytest.raises(ProtocolError, match="lacks its 'votes proof' for computing-0"):
        gathered(aggregation, sealed(SharedSum(), list(VOTES), "votes"), a_run(), "votes")
    replies = sealed(aggregation, list(VOTES), "votes")
    replies["client-1"].mail["computing-1"]["votes proof"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ProtocolError, match=r"'votes proof' has shape \(3,\), the first one \(17,"):
        gathered(aggregation, replies, a_run(), "votes")


def test_how_many_contributions_a_sum_holds_depends_on_the_engine() -> None:
    here = Runtimes(mesh=Threads())

    def most(aggregation: SharedSum, finish: Finish) -> int:
        with pytest.raises(UnsupportedError, match="hold up to") as caught:
            aggregation.check(finish, here, parties=2**30, largest=1.0)
        count = int(str(caught.value).split("hold up to ")[1].split()[0])
        aggregation.check(finish, here, parties=count, largest=1.0)
        return count

    assert most(SharedSum(), IDENTITY) == most(SharedSum(), Threshold(1.0)) == 2**19 - 1
    narrow = SharedSum(Narrow())
    # 43 bits, of which one contribution takes 12 + 22, and a gap of two sums one more; a threshold
    # lifts them by two.
    assert most(narrow, IDENTITY) == 2**9 - 1
    assert most(narrow, ARGMAX) == 2**8 - 1
    assert most(narrow, Threshold(1.0)) == 2**7 - 1


def test_what_a_computing_party_may_do_depends_on_the_engine() -> None:
    one, other, dealer, *_ = SharedSum(Proved()).readers("client", "update")
    assert [each.adversary for each in (one, other)] == [Adversary.MALICIOUS] * 2
    assert (dealer.reader, dealer.adversary) == ("dealer", Adversary.SEMI_HONEST)
    # Each share is opened under a mask for its proof, and masks are the dealer's.
    assert dealer.reads.endswith("or as a listener between them, every client's update")
    semi_honest = {each.adversary for each in SharedSum().readers("client", "update")[:3]}
    assert semi_honest == {Adversary.SEMI_HONEST}


def test_a_share_alone_says_nothing_and_repeats_nothing() -> None:
    aggregation = SharedSum()
    same = torch.ones(2000)
    replies = sealed(aggregation, [same, same], "update").values()
    for name in aggregation.computing_names:
        one, other = (reply.mail[name]["update share"] for reply in replies)
        assert not torch.equal(one, other)
        # Uniform over 64 bits: the mean of 2,000 signs lies within 0.1 (4.5 deviations).
        assert abs(float(one.sign().double().mean())) < 0.1


def test_refuses_what_it_cannot_add() -> None:
    aggregation, run = SharedSum(), a_run()
    replies = sealed(aggregation, [torch.ones(3), torch.ones(1, 3)], "update")
    one = {"client-0": replies["client-0"]}
    with pytest.raises(ProtocolError, match=r"shape \(1, 3\)"):
        gathered(aggregation, replies, run, "update")
    with pytest.raises(ProtocolError, match="lacks its 'votes share' for computing-0"):
        gathered(aggregation, one, run, "votes")
    with pytest.raises(ProtocolError, match="none"):
        gathered(aggregation, {}, run, "update")
    mail = {**one["client-0"].mail, "computing-9": {"update share": torch.ones(3)}}
    stray = {"client-0": Reply({}, mail)}
    with pytest.raises(ProtocolError, match=r"client-0 mails .* to computing-9"):
        gathered(aggregation, stray, run, "update")
    for bad in (float("nan"), LARGEST):
        with pytest.raises(DataError, match="the update of client-0"):
            sealed(aggregation, [torch.tensor([bad])], "update")
    for engine, count in ((CrypTen(), 4), (Ring64(), 6)):
        with pytest.raises(ValueError, match=f"computing_parties={count}"):
            SharedSum(engine, count)
    total = gathered(aggregation, one, run, "update")
    with pytest.raises(UnsupportedError, match="Squared"):
        total.open(Squared(), Exact())
    with pytest.raises(UnsupportedError, match="cannot be drawn on the shares"):
        total.open(IDENTITY, Gaussian(1.0, 1.0))
    with pytest.raises(UnsupportedError, match="mesh=Processes"):
        total.open(IDENTITY, Exact())
    ahead = SharedSum(engine=Ring64(material=Online(study="0" * 64, folder=Path("folder"))))
    with pytest.raises(UnsupportedError, match="Online material is for one phase of two"):
        ahead.check(IDENTITY, Runtimes(mesh=Threads()), parties=2, largest=1.0)


@pytest.mark.parametrize("noise_at", [AT_AGGREGATOR, AT_PARTY])
def test_noise_on_shares_is_refused_while_its_statement_is_known(noise_at: Placement) -> None:
    release = Release(Gaussian(1.0, 1.0), noise_at, aggregation=SharedSum())
    with pytest.raises(UnsupportedError, match="on shares"):
        release.leave([torch.ones(2)], a_party())
    double = Release(Gaussian(1.0, 1.0), noise_at, aggregation=Double())
    plans = (one.plans(unit=Unit.CLIENT, count=1, parties=100) for one in (release, double))
    assert next(plans) == next(plans)
