import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from privtrain.core.observers import (
    AGGREGATOR,
    CURATOR,
    DEALER,
    PARTICIPANT,
    PUBLIC,
    QUERIER,
    Observer,
    coalition,
)
from privtrain.core.parties import AGGREGATOR_NAME, CURATOR_NAME, PUBLIC_NAME
from privtrain.core.payloads import PayloadStore, Wanted
from privtrain.core.transcript import Entry, Setup, Transcript


def a_star(keep: bool = False) -> Transcript:
    """Two rounds of a star with two clients, then the published model."""
    made = Transcript(keep_payloads=keep)
    for round in range(2):
        for client in ("client-0", "client-1"):
            made.send(AGGREGATOR_NAME, client, "model", torch.zeros(10), round=round)
            made.send(client, AGGREGATOR_NAME, "update", torch.zeros(10), round=round)
    made.publish("model", torch.zeros(10), sender=AGGREGATOR_NAME, round=2)
    return made


def received(transcript: Transcript, observer: Observer) -> list[tuple[str, str, str]]:
    return [(e.sender, e.receiver, e.kind) for e in transcript.view(observer).messages]


PUBLISHED = (AGGREGATOR_NAME, PUBLIC_NAME, "model")


def test_the_public_sees_only_what_is_published() -> None:
    view = a_star().view(PUBLIC)
    assert received(a_star(), PUBLIC) == [PUBLISHED]
    assert (view.own, view.setup, view.kinds) == ((), (), ("model",))


def test_the_aggregator_sees_every_update_and_every_model_that_it_sent() -> None:
    view = a_star().view(AGGREGATOR)
    assert view.kinds == ("model", "update")
    # In a star there is no other message: its view is the whole transcript.
    assert list(view.messages) == a_star().entries
    assert view.own == ("the inputs and random choices of aggregator",)
    assert view.names == (AGGREGATOR_NAME,)


def test_the_curator_knows_what_it_sent() -> None:
    made = Transcript()
    made.send("hospital-0", CURATOR_NAME, "rows", torch.zeros(5, 2), round=0)
    made.send(CURATOR_NAME, "hospital-0", "question", torch.zeros(2), round=0)
    for observer in (
        CURATOR,
        AGGREGATOR,
        CURATOR,
        coalition({AGGREGATOR_NAME}),
        coalition({CURATOR_NAME}),
    ):
        assert list(made.view(observer).messages) == made.entries


def test_a_participant_sees_its_rounds_models_its_own_updates_and_nobody_elses() -> None:
    view = a_star().view(PARTICIPANT)
    assert view.own == ("the inputs and random choices of client-0",)
    assert view.names == ("client-0",)
    one_round = [
        (AGGREGATOR_NAME, "client-0", "model"),
        ("client-0", AGGREGATOR_NAME, "update"),
    ]
    assert received(a_star(), PARTICIPANT) == [*one_round, *one_round, PUBLISHED]


def test_a_participant_holds_rows_whoever_else_was_asked_first() -> None:
    made = Transcript(others=("key-holder",))
    made.send(AGGREGATOR_NAME, "key-holder", "cohort", torch.zeros(2), round=0)
    made.send("client-1", "computing-0", "share", torch.zeros(2), round=0)
    made.send("client-0", "north/teacher-3", "labels", torch.zeros(2), round=0)
    # Of nobody with rows is it said that something came.
    assert made.view(PARTICIPANT).names == ()
    made.send("client-0", "client-1", "mask", torch.zeros(2), round=1)
    assert made.view(PARTICIPANT).names == ("client-1",)
    made.send(AGGREGATOR_NAME, "client-0", "model", torch.zeros(2), round=1)
    view = made.view(PARTICIPANT)
    assert view.names == ("client-0",)
    assert view.kinds == ("labels", "mask", "model")
    # Elsewhere the same name may be a party's.
    assert Transcript(entries=made.entries).view(PARTICIPANT).names == ("key-holder",)


def test_a_coalition_sees_what_its_members_see() -> None:
    both = a_star().view(coalition({"client-0", "client-1"}))
    assert list(both.messages) == a_star().entries
    alone = a_star().view(coalition({"client-0"}))
    assert alone.messages == a_star().view(PARTICIPANT).messages
    inside = a_star().view(coalition({"client-0", AGGREGATOR_NAME}))
    # Both ends of a message saw it: it stands there once.
    assert list(inside.messages) == a_star().entries
    assert len(inside.own) == 2


def test_the_curator_of_pooled_rows_sees_what_an_aggregator_sees_and_is_no_participant() -> None:
    made = Transcript()
    for party in ("hospital-0", "hospital-1"):
        made.send(party, CURATOR_NAME, "rows", torch.zeros(5, 2), round=0)
    made.publish("model", torch.zeros(3), sender=CURATOR_NAME, round=1)
    view = made.view(AGGREGATOR)
    assert view.kinds == ("model", "rows")
    assert view.own == ("the inputs and random choices of curator",)
    assert made.view(CURATOR) == replace(view, observer=CURATOR)
    assert a_star().view(CURATOR).messages == a_star().view(AGGREGATOR).messages
    assert made.view(PARTICIPANT).kinds == ("model",)
    assert made.view(PUBLIC).kinds == ("model",)


def test_setup_material_is_in_the_view_of_who_has_it_alone() -> None:
    made = Transcript()
    for rank in range(3):
        for other in range(3):
            if rank != other:
                made.send(
                    f"computing-{rank}", f"computing-{other}", "share", torch.zeros(4), round=0
                )
    made.knows("computing-0", "every triple")
    dealt = (Setup("computing-0", "every triple"),)
    dealer = made.view(DEALER)
    assert dealer.setup == dealt
    # Who deals as one of the parties also reads what that party is sent.
    assert all("computing-0" in (e.sender, e.receiver) for e in dealer.messages)
    assert len(dealer.messages) == 4
    assert made.view(coalition({"computing-0"})).setup == dealt
    for observer in (PUBLIC, AGGREGATOR, QUERIER, coalition({"computing-1", "computing-2"})):
        assert made.view(observer).setup == ()


def test_nobody_who_was_not_there_sees_anything_unpublished() -> None:
    for observer in (DEALER, QUERIER, coalition({"client-9"}), Observer("somebody")):
        assert received(a_star(), observer) == [PUBLISHED]
    assert Transcript().view(PARTICIPANT).messages == ()


def test_bytes_and_rounds_are_those_between_parties() -> None:
    made = a_star()
    made.send("client-0", AGGREGATOR_NAME, "votes", torch.zeros(3, dtype=torch.float64), round=7)
    made.send("client-0", AGGREGATOR_NAME, "flag", torch.zeros((), dtype=torch.bool), round=7)
    made.send("client-1", AGGREGATOR_NAME, "nothing", torch.zeros(0), round=7)
    assert made.bytes_sent == 8 * 40 + 24 + 1
    assert made.bytes_sent_by_party == {AGGREGATOR_NAME: 160, "client-0": 105, "client-1": 80}
    assert sum(made.bytes_sent_by_party.values()) == made.bytes_sent
    assert list(made.bytes_sent_by_party) == sorted(made.bytes_sent_by_party)
    assert made.rounds == 3  # publishing is no round
    assert made.kinds_received_by(AGGREGATOR_NAME) == ("flag", "nothing", "update", "votes")
    assert Transcript().rounds == Transcript().bytes_sent == 0


def test_rounds_of_a_mesh_follow_those_that_are_there() -> None:
    made = a_star()
    mesh = [
        Entry("computing-0", "computing-1", "share", (1,), 8, 0),
        Entry("computing-0", "computing-1", "share", (1,), 8, 2),
        Entry("computing-1", "computing-0", "share", (1,), 8, 0),
    ]
    assert [made.exchange(), made.exchange()] == [0, 1]
    for _ in range(2):
        made.extend(mesh, start=made.exchanges)
    assert [e.round for e in made.entries[-6:]] == [2, 4, 2, 5, 7, 5]
    assert made.exchange() == 8
    assert made.rounds == 2 + 4
    one = Transcript()
    one.extend(mesh)
    assert one.entries == mesh


def test_entries_say_what_was_sent_in_order() -> None:
    entries = a_star().entries
    assert entries[0] == Entry(AGGREGATOR_NAME, "client-0", "model", (10,), 40, 0)
    assert [e.round for e in entries] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert entries[-1].bytes == 0


def test_the_channel_numbers_its_exchanges_and_others_come_after_them() -> None:
    made = Transcript()
    assert [made.exchange() for _ in range(3)] == [0, 1, 2]
    made.extend([Entry("a", "b", "share", (1,), 4, number) for number in (0, 1)], start=3)
    assert [entry.round for entry in made.entries] == [3, 4]
    assert made.exchange() == 5
    # What a checkpoint kept bears its numbers already.
    again = Transcript()
    again.extend(made.entries)
    assert again.entries == made.entries
    assert again.exchange() == 5


def test_payloads_are_kept_on_request_only_and_as_copies() -> None:
    assert all(entry.payload is None for entry in a_star().entries)
    made = Transcript(keep_payloads=True)
    tensor = torch.ones(2, requires_grad=True)
    made.send("client-0", AGGREGATOR_NAME, "update", tensor, round=0)
    made.publish("model", tensor, sender=AGGREGATOR_NAME, round=0)
    with torch.no_grad():
        tensor += 1
    for entry in made.entries:
        assert entry.payload is not None
        assert entry.payload.tolist() == [1.0, 1.0]
        assert not entry.payload.requires_grad
        assert "tensor" not in repr(entry)


def test_transcripts_pickle() -> None:
    made = a_star(keep=True)
    copy = pickle.loads(pickle.dumps(made))
    assert copy.entries == made.entries
    assert copy.view(AGGREGATOR) == made.view(AGGREGATOR)


def a_pool(transcript: Transcript) -> None:
    """Rows at a curator, who asks nothing back."""
    for party in ("a", "b"):
        transcript.send(party, CURATOR_NAME, "rows", torch.ones(5), round=0)
    transcript.publish("model", torch.ones(3), sender=CURATOR_NAME, round=1)


def a_federation(transcript: Transcript) -> None:
    transcript.knows("dealer-0", "triples")
    for round in range(2):
        for client in ("a", "b"):
            transcript.send(AGGREGATOR_NAME, client, "model", torch.ones(5), round=round)
            transcript.send(client, AGGREGATOR_NAME, "update", torch.ones(5), round=round)
        transcript.send("a", "b", "share", torch.ones(2), round=round)
        transcript.send("dealer-0", "a", "triple", torch.ones(2), round=round)
    transcript.publish("model", torch.ones(3), sender=AGGREGATOR_NAME, round=2)


@pytest.mark.parametrize("kinds", [(), ("update",), ("model", "rows")])
@pytest.mark.parametrize("sent", [a_pool, a_federation])
@pytest.mark.parametrize(
    "observer",
    [
        *(PUBLIC, PARTICIPANT, AGGREGATOR, CURATOR, DEALER, QUERIER),
        coalition({"b"}),
        coalition({"b", AGGREGATOR_NAME}),
        coalition({"participant"}),
    ],
    ids=str,
)
def test_a_store_keeps_what_an_observer_sees_and_nothing_else(
    observer: Observer, sent: Callable[[Transcript], None], kinds: tuple[str, ...]
) -> None:
    # The plain way: keep everything, and cut the view when the run has ended.
    whole = Transcript(keep_payloads=True)
    sent(whole)
    assert all(entry.payload is not None for entry in whole.entries)
    seen = {id(entry) for entry in whole.view(observer).messages}
    kept = Transcript(True, PayloadStore((Wanted(observer, kinds),)))
    sent(kept)
    expected = [id(e) in seen and (not kinds or e.kind in kinds) for e in whole.entries]
    assert [entry.payload is not None for entry in kept.entries] == expected
    assert kept == whole, "headers are the same"
    assert kept.bytes_sent == whole.bytes_sent


def test_a_store_for_everybody_keeps_everything_and_one_for_nobody_nothing() -> None:
    for wanted, number in (((Wanted(None),), 4), ((), 0), ((Wanted(None, ("model",)),), 2)):
        made = Transcript(True, PayloadStore(wanted))
        made.send("a", "b", "share", torch.ones(2), round=0)
        made.send("a", "b", "model", torch.ones(2), round=0)
        made.send("b", CURATOR_NAME, "rows", torch.ones(2), round=0)
        made.publish("model", torch.ones(2), sender="b", round=0)
        assert [entry.payload is not None for entry in made.entries].count(True) == number
        assert len(pickle.loads(pickle.dumps(made)).entries) == 4


def test_who_writes_into_a_payload_changes_nothing() -> None:
    entry = a_star(keep=True).entries[0]
    assert entry.payload is not None and entry.payload is not entry.payload
    entry.payload.fill_(3.0)
    assert not entry.payload.any()
