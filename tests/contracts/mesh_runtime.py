"""What every mesh runtime promises: roles with own programs, links, and who is at fault."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.core.failures import traceback_of
from privtrain.core.links import Link
from privtrain.core.observers import DEALER, coalition
from privtrain.core.runtime import MeshReply, MeshRuntime, Party, Payload, Program, link_of
from privtrain.core.seeding import SYSTEM, Seeds
from privtrain.core.transcript import Transcript
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.sharing import share

TRIPLE = "triple share"


@dataclass(frozen=True)
class Deal:
    """The dealer: a triple (a, b, ab) modulo 2^64 in additive shares, one to each other party."""

    kind: str = TRIPLE

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        link = link_of(party)
        link.knows("the triple that it deals")
        words = party.entropy["triple", 0, party.name].words().take(2).astype("int64")
        a, b = torch.from_numpy(words)
        triple = torch.stack([a, b, a * b])
        others = [name for name in link.names if name != party.name]
        for name, own_share in zip(others, share(triple, len(others), Keystream()), strict=True):
            link.send(name, self.kind, own_share)
        return {}


@dataclass(frozen=True)
class Multiply:
    """One of two parties, each with one factor: the product, by one opening under a triple."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        link = link_of(party)
        (other,) = [name for name in link.names[:2] if name != party.name]
        a, b, c = link.receive(link.names[2], TRIPLE)
        own = inputs["factor"]
        # The other factor of each is a share of zero here.
        x, y = (own, own * 0) if link.rank == 0 else (own * 0, own)
        masked_share = torch.stack([x - a, y - b])
        link.send(other, "masked share", masked_share)
        d, e = masked_share + link.receive(other, "masked share")
        product_share = c + d * b + e * a + (d * e if link.rank == 0 else 0)
        link.send(other, "product share", product_share)
        link.report(1, 1)
        return {"product": product_share + link.receive(other, "product share")}


FACTORS = {"left": {"factor": torch.tensor(-12345)}, "right": {"factor": torch.tensor(678_901)}}


def multiply(runtime: MeshRuntime, **others: Program) -> dict[str, MeshReply]:
    """Two parties and a dealer; some of them may run another program."""
    programs: dict[str, Program] = {
        "left": Multiply(),
        "right": Multiply(),
        "dealer": Deal(),
    } | others
    return runtime.run(programs, FACTORS)


def recorded(replies: Mapping[str, MeshReply]) -> Transcript:
    transcript = Transcript()
    transcript.extend([entry for reply in replies.values() for entry in reply.entries])
    for reply in replies.values():
        transcript.setups.extend(reply.setups)
    return transcript


def a_dealer_without_inputs_helps_two_parties(runtime: MeshRuntime) -> None:
    replies = multiply(runtime)
    assert list(replies) == ["left", "right", "dealer"]
    for name in FACTORS:
        assert int(replies[name].payload["product"]) == -12345 * 678_901
    assert replies["dealer"].payload == {}
    transcript = recorded(replies)
    sent = [(e.sender, e.receiver, e.kind, e.shape, e.bytes, e.round) for e in transcript.entries]
    assert sent == [
        ("left", "right", "masked share", (2,), 16, 1),
        ("left", "right", "product share", (), 8, 2),
        ("right", "left", "masked share", (2,), 16, 1),
        ("right", "left", "product share", (), 8, 2),
        ("dealer", "left", TRIPLE, (3,), 24, 0),
        ("dealer", "right", TRIPLE, (3,), 24, 0),
    ]
    assert transcript.rounds == 3
    # What the dealer knows is in its view; what the others open among themselves is not.
    view = transcript.view(DEALER)
    assert view.kinds == (TRIPLE,)
    assert [setup.what for setup in view.setup] == ["the triple that it deals"]
    pooled = transcript.view(coalition({"dealer", "left"}))
    assert set(pooled.kinds) == {TRIPLE, "masked share", "product share"}


@dataclass(frozen=True)
class LookAround:
    """What a party is given, and what it draws."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        link = link_of(party)
        drawn = party.entropy["secret", 0, ""].words().take(1).astype("int64")
        try:
            _ = party.entropy["secret", 0, ""]
            again = 1
        except RuntimeError:
            again = 0
        public = party.seeds["order", 0, ""].words().take(1).astype("int64")
        facts = {
            "rank": link.names.index(party.name),
            "own rank": link.rank,
            "system": int(party.entropy.kind is SYSTEM),
            "again": again,
            "rows": len(party.train),
            "inputs": len(inputs),
            "drawn": int(drawn[0]),
            "public": int(public[0]),
        }
        return {name: torch.tensor(value) for name, value in facts.items()}


def each_party_draws_secrets_of_its_own_and_shares_seeds(runtime: MeshRuntime) -> None:
    programs = dict.fromkeys(("a", "b"), LookAround())
    replies = runtime.run(programs, {"b": {"x": torch.ones(1)}}, seeds=Seeds(5))
    a, b = ({k: int(v) for k, v in replies[name].payload.items()} for name in "ab")
    assert (a["rank"], a["own rank"], b["rank"], b["own rank"]) == (0, 0, 1, 1)
    assert (a["inputs"], b["inputs"], a["rows"], b["rows"]) == (0, 1, 0, 0)
    assert a["system"] == b["system"] == 1 and a["again"] == b["again"] == 0
    assert a["drawn"] != b["drawn"]
    expected = int(Seeds(5)["order", 0, ""].words().take(1).astype("int64")[0])
    assert a["public"] == b["public"] == expected


@dataclass(frozen=True)
class Fail:
    """A role that does something else."""

    deed: Callable[[Link], None]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        self.deed(link_of(party))
        return {}


def die(link: Link) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(link: Link) -> None:
    raise ZeroDivisionError("one over nothing")


def leave(link: Link) -> None:
    return


def a_role_that_dies_is_named(runtime: MeshRuntime) -> None:
    with pytest.raises(PartyLostError, match=r"dealer .*SIGKILL") as caught:
        multiply(runtime, dealer=Fail(die))
    assert caught.value.party == "dealer"


def a_role_whose_program_raises_is_named(runtime: MeshRuntime) -> None:
    with pytest.raises(PartyLostError, match="right failed: ZeroDivisionError: one over") as caught:
        multiply(runtime, right=Fail(fail))
    assert caught.value.party == "right"
    assert "mesh_runtime.py" in traceback_of(caught.value)


def a_role_that_ends_early_is_named(runtime: MeshRuntime) -> None:
    with pytest.raises(ProtocolError, match="right ended while left still waited for it"):
        multiply(runtime, right=Fail(leave))


def another_kind_names_both_and_the_party(runtime: MeshRuntime) -> None:
    with pytest.raises(ProtocolError, match=r"dealer sent 'random bits' where .* 'triple share'"):
        multiply(runtime, dealer=Deal(kind="random bits"))


def inputs_that_nobody_reads_are_refused(runtime: MeshRuntime) -> None:
    with pytest.raises(ValueError, match=r"inputs of \['right'\]"):
        runtime.run({"left": Multiply()}, FACTORS)
    with pytest.raises(ValueError, match="run a program"):
        runtime.run({}, {})


QUICK = (
    a_dealer_without_inputs_helps_two_parties,
    each_party_draws_secrets_of_its_own_and_shares_seeds,
    inputs_that_nobody_reads_are_refused,
)
CHECKS = (
    *QUICK,
    a_role_that_dies_is_named,
    a_role_whose_program_raises_is_named,
    a_role_that_ends_early_is_named,
    another_kind_names_both_and_the_party,
)
"""The whole suite; what is not quick ends in a failure, which takes seconds."""
