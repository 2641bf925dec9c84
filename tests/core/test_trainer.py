"""A run from the coordinator's side: what it keeps, takes up, remembers and records."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.core.result import NOT_KEPT, Members
from privtrain.core.runtime import MeshReply, Party, Payload
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Rows
from privtrain.core.trainer import RELEASE, Mesh, Run
from privtrain.core.transcript import Entry, Setup
from tests.contracts.aggregation import InMemory, OpenLedger, a_run


class Remembering:
    """A star whose parties keep a state, and nothing else."""

    def __init__(self) -> None:
        self.held: dict[str, Payload] = {}

    def map(self, step: object, payloads: Mapping[str, Payload], *, round: int) -> Any:
        raise AssertionError("nobody is asked anything here")

    def states(self) -> dict[str, Payload]:
        return self.held

    def restore(self, states: Mapping[str, Payload]) -> None:
        self.held = dict(states)


def a_kept_run() -> tuple[Run, InMemory, Remembering]:
    run, kept, star = a_run(), InMemory(), Remembering()
    run.checkpoint, run.star = kept, star
    return run, kept, star


def counted(run: Run, kind: str) -> float:
    """The number of releases of a kind, as a mechanism that counts them remembers it."""
    return float(run.remember(kind, lambda n: (torch.tensor((n or 0) + 1.0), (n or 0) + 1)))


def test_what_every_run_has_is_kept_beside_the_trainers_own_state_and_put_back() -> None:
    before, kept, star = a_kept_run()
    star.held = {"a": {"count": torch.tensor(3.0)}}
    assert [counted(before, kind) for kind in ("votes", "votes", "check")] == [1, 2, 1]
    before.outcome.members = Members({"a": torch.tensor([True, False])}, "perhaps", True)
    before.outcome.assume("rows are alone", "the sum is exact")
    before.outcome.realised["public"] = "an event"
    before.outcome.note("a note", "another one")
    before.outcome.halted = "the budget was used up"
    before.keep(4, model=torch.ones(2), seen=[{"loss": 1.0}])

    after, _, fresh = a_kept_run()
    after.checkpoint = kept
    after.outcome.assume("the sum is exact")
    after.outcome.note("another one")
    found = after.kept()
    assert found is not None
    done, state = found
    assert done == 4
    assert set(state) == {"model", "seen"}
    assert fresh.held == star.held
    assert [counted(after, kind) for kind in ("votes", "check", "new")] == [3, 2, 1]
    assert after.outcome.assumptions == ["the sum is exact", "rows are alone"]
    assert after.outcome.realised == {"public": "an event"}
    assert after.outcome.notes == ["another one", "a note"]
    assert after.outcome.halted == "the budget was used up"
    members = after.outcome.members
    assert members is not None
    assert (members.doubt, members.made_public) == ("perhaps", True)
    marks = members.rows["a"]
    assert marks is not None
    assert marks.tolist() == [True, False]


def test_a_run_that_used_all_rows_keeps_no_members() -> None:
    before, kept, _ = a_kept_run()
    before.keep(1, model=0)
    after = a_run()
    after.checkpoint = kept
    assert after.kept() == (1, {"model": 0})
    assert after.outcome.members is None


def test_what_an_earlier_version_did_not_keep_is_doubted() -> None:
    """Version 0.2 began without members, assumptions and charges in a state."""
    run, kept, _ = a_kept_run()
    kept.save(2, {"model": 1})
    run.outcome.members = Members()
    assert run.kept() == (2, {"model": 1})
    assert run.outcome.members.doubt == NOT_KEPT
    other = a_run()
    other.checkpoint = kept
    other.kept()
    assert other.outcome.members is None


def test_a_run_at_its_start_and_one_in_no_folder_have_kept_nothing() -> None:
    run, kept, _ = a_kept_run()
    assert run.kept() is None
    homeless = a_run()
    homeless.keep(1, model=torch.ones(1))
    assert homeless.kept() is None
    assert kept.state == {}


@pytest.mark.parametrize(
    "name", ["memory", "parties", "members", "assumptions", "notes", "halted", "realised"]
)
def test_a_trainer_cannot_overwrite_what_the_run_keeps(name: str) -> None:
    run, kept, _ = a_kept_run()
    with pytest.raises(ValueError, match=name):
        run.keep(1, **{name: 0})
    assert kept.state == {}


def test_a_trainers_own_copy_of_a_state_is_its_own() -> None:
    """Taking a state up must not empty what the next save or a second look finds."""
    run, kept, _ = a_kept_run()
    run.keep(1, model=0)
    whole = dict(kept.state)
    run.kept()
    assert kept.state == whole


def test_a_budget_that_is_used_up_halts_the_run() -> None:
    class Empty(OpenLedger):
        def spend(self, count: int = 1, *, kind: str = RELEASE) -> bool:
            return False

    run = a_run(ledger=Empty(spent=7))
    assert not run.spend()
    assert run.outcome.halted == "the budget was used up after 7 releases"
    assert a_run().spend()


def test_a_run_without_a_star_says_what_it_needs() -> None:
    with pytest.raises(UnsupportedError, match="star=InProcess"):
        a_run().map(lambda payload, party: payload, {}, round=0)


def test_a_mesh_records_what_its_parties_sent_knew_and_needed() -> None:
    class Two:
        name, real = "two", False

        def run(
            self, programs: Any, inputs: Mapping[str, Payload], *, seeds: Seeds, report: Any
        ) -> Any:
            assert seeds == Seeds(4)
            report(1, 2)
            return {
                name: MeshReply(
                    payload=programs[name](value),
                    entries=[Entry(name, "other", "share", (1,), 4, number)],
                    setups=[Setup(name, "triples")],
                    peak_memory_bytes=100 - number,
                )
                for number, (name, value) in enumerate(inputs.items())
            }

    run, seen = a_run(), list[tuple[int, int]]()
    mesh = Mesh(Two(), run.transcript, run.outcome, Seeds(4), lambda *done: seen.append(done))

    def doubled(value: Payload) -> Payload:
        return {"x": 2 * value["x"]}

    inputs: dict[str, Payload] = {"a": {"x": torch.ones(1)}, "b": {"x": torch.zeros(1)}}
    programs: Any = dict.fromkeys(inputs, doubled)
    replies = mesh.run(programs, inputs)
    assert {name: reply["x"].tolist() for name, reply in replies.items()} == {"a": [2], "b": [0]}
    assert [entry.sender for entry in run.transcript.entries] == ["a", "b"]
    assert [setup.party for setup in run.transcript.setups] == ["a", "b"]
    assert run.outcome.peak_memory_bytes == 100
    assert seen == [(1, 2)]


def test_a_partys_draws_give_no_stream_that_the_party_was_given() -> None:
    party = Party(
        name="a",
        round=2,
        train={"a": Rows(torch.zeros(1, 1))},
        state={},
        seeds=Seeds(1),
        entropy=SeededEntropy(0),
        device="cpu",
    )
    draws = party.draws
    assert (draws.name, draws.round, draws.seeds, draws.device) == ("a", 2, Seeds(1), "cpu")
    assert draws.cache is party.cache
    drawn: Tensor = torch.from_numpy(draws.entropy["noise", 2, "a"].numpy().random(3))
    twin = torch.from_numpy(SeededEntropy(0)["noise", 2, "a"].numpy().random(3))
    assert torch.equal(drawn, twin)
    for again in (party.entropy, party.draws.entropy):
        with pytest.raises(RuntimeError, match="asked for twice"):
            again["noise", 2, "a"]
