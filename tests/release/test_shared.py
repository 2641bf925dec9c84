from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import DataError, ProtocolError, UnsupportedError
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Payload, Runtimes
from privtrain.core.statement import Unit
from privtrain.core.trainer import Run
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mpc.sharing import LARGEST, encode
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Argmax, Finish, Identity, Threshold
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, Placement
from privtrain.release.plain import PlainSum
from privtrain.release.shared import SUM_BITS, SharedSum, SumAndOpen, share_kind
from privtrain.runtimes.processes.mesh import Processes
from tests.contracts.aggregation import (
    OBSERVERS,
    a_party,
    a_run,
    check_aggregation,
)
from tests.contracts.aggregation import SharedSum as Double
from tests.mpc.one_party import OneParty, alone

VOTES = torch.tensor(
    [
        [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1.0, 0, 0], [0, 1, 0], [0, 1, 0]],
        [[0.0, 1, 0], [0, 0, 1], [0, 0, 1]],
    ]
)


def a_mesh_run() -> Run:
    run = a_run()
    run.runtimes = Runtimes(mesh=Processes(timeout=40))
    return run


def sealed(aggregation: SharedSum, values: Sequence[Tensor], kind: str) -> list[Payload]:
    parties = [a_party(f"client-{number}") for number in range(len(values))]
    return [
        aggregation.seal(value, party, kind=kind)
        for value, party in zip(values, parties, strict=True)
    ]


@pytest.mark.parametrize("parties", [2, 3])
def test_keeps_the_promises_of_an_aggregation(parties: int) -> None:
    check_aggregation(SharedSum(computing_parties=parties))


def test_sees_what_the_double_of_the_golden_table_sees() -> None:
    for observer in OBSERVERS:
        ours = SharedSum().exposure(observer, AT_AGGREGATOR, parties=10)
        assert ours == Double().exposure(observer, AT_AGGREGATOR, parties=10)


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_updates_add_up_and_nothing_else_is_opened(parties: int) -> None:
    values = [torch.linspace(-3, 2, 11) * scale for scale in (1.0, 0.3, -2.0)]
    aggregation, run = SharedSum(computing_parties=parties), a_mesh_run()
    messages = sealed(aggregation, values, "update")
    for message in messages:
        for kind, one in message.items():
            run.transcript.send("client-0", AGGREGATOR_NAME, kind, one, round=0)
    total = aggregation(messages, run, kind="update").value
    assert not isinstance(total, Tensor)
    opened = total.open(IDENTITY)
    plain = PlainSum()([{"update": value} for value in values], run, kind="update").value
    assert isinstance(plain, Tensor)
    assert float((opened - plain).abs().max()) < 1e-8
    assert run.transcript.kinds_received_by(AGGREGATOR_NAME) == ()
    for name in aggregation.computing_names:
        kinds = set(run.transcript.kinds_received_by(name))
        assert kinds == {share_kind("update", name), "public key", "sum share"}


@dataclass(frozen=True)
class Squared:
    """A finish that no engine knows."""

    def __call__(self, aggregate: Tensor) -> Tensor:
        return aggregate**2


@pytest.mark.slow
@pytest.mark.parametrize("finish", [ARGMAX, Threshold(2.0)])
def test_only_the_winner_or_the_answer_of_a_vote_is_opened(finish: Finish) -> None:
    aggregation, run = SharedSum(), a_mesh_run()
    total = aggregation(sealed(aggregation, list(VOTES), "votes"), run, kind="votes").value
    assert not isinstance(total, Tensor)
    opened = total.open(finish)
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
    party, engine = alone(), OneParty()
    for number, votes in enumerate(VOTES - 0.25):
        party.inputs[f"{number:06d}"] = encode(votes, bits=SUM_BITS)
    opened = SumAndOpen(engine, finish, start=7)(party)["opened"]
    wanted = finish((VOTES - 0.25).double().sum(0))
    assert opened.shape == wanted.shape
    assert torch.equal(opened.to(wanted.dtype), wanted)
    assert engine.session.opened == [kind]


def test_a_share_alone_says_nothing_and_repeats_nothing() -> None:
    aggregation = SharedSum()
    same = torch.ones(2000)
    first, second = sealed(aggregation, [same, same], "update")
    for name in aggregation.computing_names:
        one, other = (message[share_kind("update", name)] for message in (first, second))
        assert not torch.equal(one, other)
        # Uniform over 64 bits: the mean of 2,000 signs lies within 0.1 (4.5 deviations).
        assert abs(float(one.sign().double().mean())) < 0.1


def test_refuses_what_it_cannot_add() -> None:
    aggregation, run = SharedSum(), a_run()
    messages = sealed(aggregation, [torch.ones(3), torch.ones(1, 3)], "update")
    with pytest.raises(ProtocolError, match=r"shape \(1, 3\)"):
        aggregation(messages, run, kind="update")
    with pytest.raises(ProtocolError, match="votes"):
        aggregation(messages[:1], run, kind="votes")
    with pytest.raises(ProtocolError, match="none"):
        aggregation([], run, kind="update")
    for bad in (float("nan"), LARGEST):
        with pytest.raises(DataError, match="the update of client-0"):
            sealed(aggregation, [torch.tensor([bad])], "update")
    with pytest.raises(ValueError, match="computing_parties=4"):
        SharedSum(computing_parties=4)
    total = aggregation(messages[:1], run, kind="update").value
    assert not isinstance(total, Tensor)
    with pytest.raises(UnsupportedError, match="Squared"):
        total.open(Squared())
    with pytest.raises(UnsupportedError, match="mesh=Processes"):
        total.open(IDENTITY)


@pytest.mark.parametrize("noise_at", [AT_AGGREGATOR, AT_PARTY])
def test_noise_on_shares_is_refused_while_its_statement_is_known(noise_at: Placement) -> None:
    release = Release(Gaussian(1.0, 1.0), noise_at, aggregation=SharedSum())
    with pytest.raises(UnsupportedError, match="on shares"):
        release.leave([torch.ones(2)], a_party())
    double = Release(Gaussian(1.0, 1.0), noise_at, aggregation=Double())
    plans = (one.plans(unit=Unit.CLIENT, count=1, parties=100) for one in (release, double))
    assert next(plans) == next(plans)
