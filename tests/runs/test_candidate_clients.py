"""Clients as candidates: equally many, equally large, in an order that tells nothing."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import privtrain as pt
from privtrain.attacks.scores import auc_interval
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.result import Members, Target
from privtrain.core.task import Canaries, FederatedData, Rows, concatenate
from privtrain.runs.candidate_clients import CandidateClients, clients_leakage, drawn_clients
from tests.attacks.looking import LookingAtClients
from tests.contracts.attack import target
from tests.contracts.federation import CLIENTS, EACH, FEDERATED, clients, federation, wide_rows

DATA = clients(1)
NAMES = DATA.parties


def drawn(
    data: FederatedData = DATA,
    members: Members | None = None,
    own: frozenset[str] = frozenset(),
    attack: LookingAtClients | None = None,
    seed: int = 0,
) -> CandidateClients:
    return drawn_clients(members, data, own, attack or LookingAtClients(), seed=seed)


def taking_part(*names: str) -> Members:
    return Members(rows=dict.fromkeys(names))


def digests(rows: Rows) -> set[float]:
    return set(rows.inputs[:, 0].tolist())


def holder(candidate: Rows) -> str:
    """The party that a candidate's rows are from."""
    (name,) = [n for n in NAMES if digests(candidate) <= digests(DATA.train[n])] or ["test"]
    return name


def test_all_took_part_so_test_rows_stand_for_others() -> None:
    found = drawn()
    assert found.included.tolist() == [True] * CLIENTS + [False] * CLIENTS
    held = [holder(client) for client in found.clients]
    assert sorted(held[:CLIENTS]) == sorted(NAMES) and set(held[CLIENTS:]) == {"test"}
    outside = [digests(client) for client in found.clients[CLIENTS:]]
    assert sum(map(len, outside)) == len(set().union(*outside)) == CLIENTS * EACH
    assert "made up of test rows" in found.said


def test_clients_that_took_no_part_are_the_others() -> None:
    found = drawn(members=taking_part(*NAMES[:7]), own=frozenset(NAMES[:1]))
    held = [holder(client) for client in found.clients]
    assert set(held[:5]) <= set(NAMES[1:7]) and set(held[5:]) == set(NAMES[7:])
    assert "did not" in found.said
    few = drawn(members=taking_part(*NAMES[:9]))
    assert {holder(client) for client in few.clients[9:]} == {"test"}


def test_all_are_shown_by_as_many_rows_as_the_smallest_has() -> None:
    train = dict(DATA.train)
    train[NAMES[3]] = train[NAMES[3]].take(torch.arange(3))
    assert {len(client) for client in drawn(replace(DATA, train=train)).clients} == {3}
    assert {len(client) for client in drawn(attack=LookingAtClients(rows_each=2)).clients} == {2}
    assert len(drawn(attack=LookingAtClients(limit=4)).clients) == 8


def test_only_rows_that_were_used_and_are_no_canaries_and_not_public_are_shown() -> None:
    name, used = NAMES[0], torch.arange(EACH) < 6
    public = DATA.train[name].take(torch.tensor([0]))
    members = Members(rows={**dict.fromkeys(NAMES), name: used})
    found = drawn(replace(DATA, public=public), members=members)
    (client,) = [one for one in found.clients[:CLIENTS] if holder(one) == name]
    assert digests(client) == digests(DATA.train[name].take(torch.arange(1, 6)))
    canaries = Canaries(rows=wide_rows(7, 8), included=torch.arange(8) % 2 == 0)
    planted = pt.data.with_canaries(DATA, canaries.rows, seed=0)
    shown = set().union(*(digests(client) for client in drawn(planted).clients))
    assert shown.isdisjoint(digests(canaries.rows))


def test_the_same_seed_draws_the_same_and_another_one_others() -> None:
    first, again, other = (
        drawn(attack=LookingAtClients(rows_each=4), seed=seed) for seed in (0, 0, 1)
    )
    inputs = [concatenate([*found.clients]).inputs for found in (first, again, other)]
    assert torch.equal(inputs[0], inputs[1]) and not torch.equal(inputs[0], inputs[2])


def test_the_order_tells_nothing() -> None:
    attack, inside, outside = LookingAtClients(), list[float](), list[float]()
    users = {n: replace(rows, users=torch.arange(EACH)) for n, rows in DATA.train.items()}
    for seed in range(30):
        known = drawn(replace(DATA, train=users), seed=seed)
        clients_leakage(attack, target(pt.PUBLIC), known, seed=seed)
        _, shown, _ = attack.seen[-1]
        places = [holder(client) != "test" for client in shown]
        assert all(client.users is None for client in shown)
        inside += np.flatnonzero(places).tolist()
        outside += np.flatnonzero(~np.array(places)).tolist()
    low, high = auc_interval(np.array(inside), np.array(outside), confidence=0.999)
    assert low <= 0.5 <= high


def test_scores_are_put_back_in_the_order_of_the_truth() -> None:
    """An attack that knows who is a member finds all of them, in whatever order they come."""

    class Knowing(LookingAtClients):
        def score_clients(self, target: Target, clients: Sequence[Rows], *, seed: int) -> Tensor:
            return torch.tensor([float(holder(client) != "test") for client in clients])

    learned = clients_leakage(Knowing(), target(pt.PUBLIC), drawn(), seed=0)
    assert learned.metrics["auc"] == 1.0
    assert (learned.members, learned.non_members) == (CLIENTS, CLIENTS)
    assert any("bounds no epsilon" in note for note in learned.notes)


@pytest.mark.parametrize("shadows", [0, 4])
def test_an_audit_finds_clients_and_nothing_where_none_took_part(shadows: int) -> None:
    attack = pt.ClientMembership(shadows=shadows)
    found = pt.audit(federation(1), attack, FEDERATED, DATA)
    assert found.metrics["auc"] == 1.0 and found.unit is not None and found.unit.value == "client"
    assert found == pt.audit(federation(1), attack, FEDERATED, DATA)
    assert any("shadow models" in note for note in found.notes) == bool(shadows)
    # A run of strangers, of whom these clients are none.
    nothing = pt.audit(federation(3), attack, FEDERATED, DATA)
    low, high = nothing.intervals["auc"]
    assert low <= 0.5 <= high
    own = pt.audit(federation(1), replace(attack, observer=pt.PARTICIPANT), FEDERATED, DATA)
    assert own.members == CLIENTS - 1


def test_too_few_clients_are_refused() -> None:
    columns = replace(
        DATA,
        train={"a": Rows(torch.ones(4, 2), torch.zeros(4)), "b": Rows(torch.ones(4, 398))},
        split=pt.COLUMNS,
    )
    short = replace(DATA, test=DATA.test.take(torch.arange(3 * EACH)))
    for data, own, said in (
        (DATA, frozenset(NAMES[3:]), "at least 4 clients"),
        (short, frozenset(), "at least 4 clients"),
        (columns, frozenset(), "columns"),
    ):
        with pytest.raises(NotApplicableError, match=said) as caught:
            drawn(data, own=own)
        assert caught.value.reason is Reason.NO_CLIENTS
