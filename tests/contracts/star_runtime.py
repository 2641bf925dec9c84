"""What every star runtime promises, as checks that take a runtime.

A test file runs them all: `@pytest.mark.parametrize("check", CHECKS)`, then `check(runtime)`.
"""

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, PartyLostError, ProtocolError
from privtrain.core.failures import traceback_of
from privtrain.core.observers import PARTICIPANT
from privtrain.core.parties import AGGREGATOR_NAME, party_names
from privtrain.core.runtime import Party, Payload, Reply, Seen, Setting, StarRuntime, Step
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows
from privtrain.core.transcript import Entry, Transcript
from privtrain.data.rows import LazyRows

PARTIES = party_names("client", 3)
FEATURES, CLASSES = 16, 4


# ------------------------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Echo:
    """Replies with what it was sent."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        return Reply(dict(payload))


@dataclass(frozen=True)
class Train:
    """Local steps of a linear model with momentum, which the party keeps from round to round."""

    steps: int = 3
    batch: int = 8

    def __call__(self, payload: Payload, party: Party) -> Reply:
        rows = party.rows
        order = torch.randperm(
            len(rows), generator=party.seeds["order", party.round, party.name].torch()
        )
        noise = party.entropy["noise", party.round, party.name].numpy().standard_normal(FEATURES)
        weight = payload["model"].clone()
        velocity = party.state.get("velocity", torch.zeros_like(weight))
        for number in range(self.steps):
            batch = rows.take(order[number * self.batch : (number + 1) * self.batch])
            held = weight.requires_grad_()
            loss = nn.functional.cross_entropy(batch.inputs @ held, batch.labels)
            (gradient,) = torch.autograd.grad(loss, held)
            velocity = 0.9 * velocity + gradient
            weight = held.detach() - 0.1 * velocity
        party.state["velocity"] = velocity
        party.state["rounds"] = party.state.get("rounds", torch.tensor(0)) + 1
        update = (weight - payload["model"]).double() + torch.from_numpy(noise)[:, None]
        return Reply({"update": update, "rows": torch.tensor(len(rows))})


@dataclass(frozen=True)
class Fail:
    """Fails at one party.

    Args:
        at: The party.
        error: What it raises there.
    """

    at: str
    error: BaseException

    def __call__(self, payload: Payload, party: Party) -> Reply:
        if party.name == self.at:
            raise self.error
        return Reply(payload)


@dataclass(frozen=True)
class Scribble:
    """Writes into what it was sent, and replies with the very tensor it keeps."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        payload["model"].add_(1.0)
        kept = party.state.setdefault("kept", torch.zeros(2))
        kept.add_(1.0)
        return Reply({"model": payload["model"], "kept": kept})


@dataclass(frozen=True)
class NewState:
    """Counts rounds in a new state instead of changing the one it has."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        party.state = {"rounds": party.state.get("rounds", torch.tensor(0)) + 1}
        return Reply({"rounds": party.state["rounds"]})


@dataclass(frozen=True)
class Hold:
    """Tells what it holds, and holds one more; its state is another matter.

    Args:
        keeps: Whether it keeps a state, too.
        gone_at: Who is lost after it has changed what it holds.
    """

    keeps: bool = True
    gone_at: str = ""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        before = party.held.get("secret", torch.tensor(0))
        # A new store in the place of the one that it was given, as a state may be.
        party.held = {"secret": before + 1}
        if self.keeps:
            party.state["public"] = torch.tensor(7)
        if party.name == self.gone_at:
            raise GONE
        return Reply({"held": before})


@dataclass(frozen=True)
class Surroundings:
    """Tells what the party finds around it."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        told = {
            "threads": torch.tensor(torch.get_num_threads()),
            "round": torch.tensor(party.round),
            "seeds": party.seeds["order", party.round, party.name].torch().get_state(),
            "entropy": torch.from_numpy(
                party.entropy["noise", party.round, party.name].numpy().random(4)
            ),
            "inputs": party.rows.inputs,
        }
        return Reply(told)


@dataclass(frozen=True)
class Mean:
    """Replies with the mean of its rows."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        return Reply({"mean": party.rows.inputs.mean(dim=0)})


# ----------------------------------------------------------------------------------- fixtures


def rows_of(party: str) -> Rows:
    """Rows that follow from the name of the party."""
    generator = Seeds(11)["rows", 0, party].torch()
    return Rows(
        torch.randn(24, FEATURES, generator=generator),
        torch.randint(CLASSES, (24,), generator=generator),
    )


def a_setting(
    train: Mapping[str, Rows] | None = None, *, seed: int = 3, keep_payloads: bool = False
) -> Setting:
    """A setting of three small parties."""
    held = {party: rows_of(party) for party in PARTIES} if train is None else train
    return Setting(
        data=FederatedData(train=held, test=rows_of("test")),
        seeds=Seeds(seed),
        entropy=SeededEntropy(seed),
        transcript=Transcript(keep_payloads=keep_payloads),
    )


@dataclass
class PlainStar:
    """The oracle: the step called directly, with copies of everything that crosses."""

    setting: Setting
    kept: dict[str, Payload] = field(default_factory=dict)

    def map(self, step: Step, payloads: Mapping[str, Payload], *, round: int) -> dict[str, Reply]:
        replies = {}
        for party, payload in payloads.items():
            party_run = Party(
                name=party,
                round=round,
                train=self.setting.data.train,
                state=self.kept.setdefault(party, {}),
                seeds=self.setting.seeds,
                entropy=self.setting.entropy,
            )
            replies[party] = step({k: t.clone() for k, t in payload.items()}, party_run)
        return replies


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Everything that makes two tensors the same: type, shape and every bit."""
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().numpy().tobytes()


def reply_bits(replies: Mapping[str, Reply]) -> list[tuple[str, list[tuple[str, object]]]]:
    """The bits of what was replied, with the order of parties and of kinds."""
    return all_bits({party: reply.message for party, reply in replies.items()})


def all_bits(payloads: Mapping[str, Payload]) -> list[tuple[str, list[tuple[str, object]]]]:
    """The bits of payloads, with the order of parties and of kinds."""
    return [(party, [(k, bits(t)) for k, t in sent.items()]) for party, sent in payloads.items()]


def a_model(seed: int = 5) -> Tensor:
    return torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(seed))


def three_rounds(
    star_map: Callable[..., dict[str, Reply]], parties: tuple[str, ...] = PARTIES, start: int = 0
) -> list[dict[str, Reply]]:
    """Three rounds of training in which the model follows the mean of the updates."""
    step, model, replies = Train(), a_model(), []
    for round in range(start, start + 3):
        replies.append(star_map(step, {name: {"model": model} for name in parties}, round=round))
        updates = [reply.message["update"] for reply in replies[-1].values()]
        model = model + torch.stack(updates).mean(0).float()
    return replies


# ------------------------------------------------------------------------------------- checks


def is_a_frozen_value(runtime: StarRuntime) -> None:
    assert pickle.loads(pickle.dumps(runtime)) == runtime
    assert type(runtime).__name__ in repr(runtime)
    assert runtime.name
    assert not runtime.real
    with pytest.raises(dataclasses.FrozenInstanceError):
        runtime.name = "other"  # type: ignore[misc]  # the point of the check


def gives_the_bits_of_a_plain_loop(runtime: StarRuntime) -> None:
    expected = three_rounds(PlainStar(a_setting()).map)
    with runtime.open(a_setting()) as star:
        found = three_rounds(star.map)
    assert [reply_bits(replies) for replies in found] == [
        reply_bits(replies) for replies in expected
    ]
    assert any(bool(reply.message["update"].any()) for reply in found[0].values())


def another_seed_gives_other_bits(runtime: StarRuntime) -> None:
    with runtime.open(a_setting(seed=3)) as star:
        one = three_rounds(star.map)
    with runtime.open(a_setting(seed=4)) as star:
        other = three_rounds(star.map)
    assert reply_bits(one[0]) != reply_bits(other[0])


def replies_in_the_order_of_payloads(runtime: StarRuntime) -> None:
    with runtime.open(a_setting()) as star:
        for names in (PARTIES, PARTIES[::-1], PARTIES[1:]):
            replies = star.map(Echo(), {name: {} for name in names}, round=0)
            assert tuple(replies) == names


def only_named_parties_take_part(runtime: StarRuntime) -> None:
    setting = a_setting()
    with runtime.open(setting) as star:
        star.map(Train(), {PARTIES[1]: {"model": a_model()}}, round=0)
        assert set(star.states()) == {PARTIES[1]}
        assert star.map(Train(), {}, round=1) == {}
    names = {
        name for entry in setting.transcript.entries for name in (entry.sender, entry.receiver)
    }
    assert names == {PARTIES[1], AGGREGATOR_NAME}


def an_unknown_party_is_refused_before_anything_is_sent(runtime: StarRuntime) -> None:
    setting = a_setting()
    with runtime.open(setting) as star, pytest.raises(ValueError, match="stranger"):
        star.map(Echo(), {PARTIES[0]: {"x": torch.ones(1)}, "stranger": {}}, round=0)
    assert setting.transcript.entries == []


def parties_keep_their_state(runtime: StarRuntime) -> None:
    with runtime.open(a_setting()) as star:
        three_rounds(star.map)
        star.map(Train(), {PARTIES[0]: {"model": a_model()}}, round=3)
        states = star.states()
    assert {party: int(state["rounds"]) for party, state in states.items()} == {
        PARTIES[0]: 4,
        PARTIES[1]: 3,
        PARTIES[2]: 3,
    }
    assert all_bits(states) != all_bits(dict.fromkeys(PARTIES, states[PARTIES[0]]))


def a_new_state_is_kept(runtime: StarRuntime) -> None:
    with runtime.open(a_setting()) as star:
        for round in range(2):
            replies = star.map(NewState(), {PARTIES[0]: {}}, round=round)
    assert int(replies[PARTIES[0]].message["rounds"]) == 2


def restored_parties_go_on_as_if_nothing_had_happened(runtime: StarRuntime) -> None:
    with runtime.open(a_setting()) as star:
        three_rounds(star.map)
        states = star.states()
        expected = three_rounds(star.map, start=3)
    with runtime.open(a_setting()) as star:
        star.restore(states)
        assert all_bits(star.states()) == all_bits(states)
        found = three_rounds(star.map, start=3)
    assert [reply_bits(replies) for replies in found] == [
        reply_bits(replies) for replies in expected
    ]


def restoring_replaces_what_was_kept(runtime: StarRuntime) -> None:
    with runtime.open(a_setting()) as star:
        three_rounds(star.map)
        one = {PARTIES[2]: star.states()[PARTIES[2]]}
        star.restore(one)
        assert all_bits(star.states()) == all_bits(one)
        with pytest.raises(ValueError, match="stranger"):
            star.restore({"stranger": {}})


def what_a_party_holds_ends_with_its_round_and_never_leaves_it(runtime: StarRuntime) -> None:
    a, b, c = PARTIES
    setting = dataclasses.replace(a_setting(), others=("key-holder",))
    everybody: dict[str, Payload] = {name: {} for name in (*PARTIES, "key-holder")}

    def held(round: int, asked: tuple[str, ...] = PARTIES, **how: bool) -> list[int]:
        payloads = {name: everybody[name] for name in asked}
        replies = star.map(Hold(**how), payloads, round=round)
        return [int(reply.message["held"]) for reply in replies.values()]

    with runtime.open(setting) as star:
        assert held(3, tuple(everybody)) == [0, 0, 0, 0]
        assert held(3, (a, b, "key-holder")) == [1, 1, 1]
        # Of a round the party has not heard of, nothing is gone yet.
        assert held(4, (a,)) == [0]
        assert held(3, (b, c)) == [2, 1]
        assert held(4) == [1, 0, 0]
        # Who is lost holds what it held before.
        star.map(Hold(gone_at=a), {a: {}, b: {}}, round=4, at_least=1)
        assert held(4) == [2, 2, 1]
        states = star.states()
        assert {(name, kind) for name, state in states.items() for kind in state} == {
            (name, "public") for name in everybody
        }
        # A round that is taken once more begins with nothing.
        star.restore(states)
        assert held(4) == [0, 0, 0]
        assert held(4) == [1, 1, 1]
    with runtime.open(a_setting()) as star:
        assert held(0, keeps=False) == [0, 0, 0]
        assert held(0, keeps=False) == [1, 1, 1]
        assert star.states() == {}
        star.restore({})
        assert held(0, keeps=False) == [0, 0, 0]


def a_failing_party_is_named(runtime: StarRuntime) -> None:
    step = Fail(PARTIES[1], ZeroDivisionError("the mean of no rows"))
    with runtime.open(a_setting()) as star, pytest.raises(PartyLostError) as caught:
        star.map(step, {name: {} for name in PARTIES}, round=7)
    assert caught.value.party == PARTIES[1]
    for part in (PARTIES[1], "round 7", "ZeroDivisionError", "the mean of no rows"):
        assert part in str(caught.value)
    # Where it was raised is kept, too, wherever the party ran.
    assert caught.value.__cause__ is not None
    assert "star_runtime.py" in traceback_of(caught.value)


def errors_of_our_own_keep_their_type(runtime: StarRuntime) -> None:
    step = Fail(PARTIES[1], DataError("These rows have no targets."))
    with runtime.open(a_setting()) as star, pytest.raises(DataError) as caught:
        star.map(step, {name: {} for name in PARTIES}, round=7)
    assert str(caught.value) == "These rows have no targets."
    assert any(PARTIES[1] in note for note in caught.value.__notes__)


def every_tensor_is_one_entry_each_way(runtime: StarRuntime) -> None:
    setting = a_setting()
    with runtime.open(setting) as star:
        replies = three_rounds(star.map)
    size = FEATURES * CLASSES
    expected = [
        entry
        for round in range(3)
        for name in PARTIES
        for entry in (
            Entry(AGGREGATOR_NAME, name, "model", (FEATURES, CLASSES), 4 * size, round),
            Entry(name, AGGREGATOR_NAME, "update", (FEATURES, CLASSES), 8 * size, round),
            Entry(name, AGGREGATOR_NAME, "rows", (), 8, round),
        )
    ]
    entries = setting.transcript.entries
    assert sorted(entries, key=repr) == sorted(expected, key=repr)
    assert setting.transcript.rounds == len(replies) == 3
    assert all(entry.payload is None for entry in entries)
    for name in PARTIES:  # a party replies after it was sent something
        assert [e for e in entries if name in (e.sender, e.receiver)] == [
            e for e in expected if name in (e.sender, e.receiver)
        ]


@dataclass(frozen=True)
class Tell:
    """Tells what it saw beside its message."""

    def __call__(self, payload: Payload, party: Party) -> Reply:
        number = PARTIES.index(party.name)
        seen = Seen(
            numbers={"loss": number / 3, "broken": float("nan")},
            notes=(f"of {party.name}", "half of a pair: \udcff"),
            assumptions=("rows are rows",),
            used=torch.tensor([True, False, True]),
        )
        return Reply({"update": torch.ones(2)}, seen=seen if number else Seen())


def what_was_seen_travels_and_is_no_message(runtime: StarRuntime) -> None:
    setting = a_setting()
    with runtime.open(setting) as star:
        replies = star.map(Tell(), {name: {} for name in PARTIES}, round=0)
    assert replies[PARTIES[0]].seen.numbers == {}
    assert replies[PARTIES[0]].seen.used is None
    for number, name in enumerate(PARTIES[1:], start=1):
        seen = replies[name].seen
        # As doubles: every bit of a number arrives.
        assert seen.numbers["loss"] == number / 3
        assert math.isnan(seen.numbers["broken"])
        assert seen.notes[0] == f"of {name}"
        assert seen.notes[1].startswith("half of a pair")
        assert seen.assumptions == ("rows are rows",)
        assert seen.used is not None and seen.used.tolist() == [True, False, True]
    assert {entry.kind for entry in setting.transcript.entries} == {"update"}
    assert {kind for reply in replies.values() for kind in reply.message} == {"update"}


@dataclass(frozen=True)
class Mail:
    """Mails a letter to some, and tells which letters it got.

    Args:
        to: To whom.
        kind: What a letter is called.
    """

    to: tuple[str, ...]
    kind: str = "letter"

    def __call__(self, payload: Payload, party: Party) -> Reply:
        known = (*PARTIES, "key-holder")
        letter = torch.tensor([known.index(party.name), party.round])
        got = {
            f"{kind} from {sender}": read
            for sender, sent in party.mail.items()
            for kind, read in sent.items()
        }
        return Reply(got, {name: {self.kind: letter} for name in self.to if name != party.name})


def mail_arrives_in_the_receivers_next_exchange(runtime: StarRuntime) -> None:
    setting, (a, b, c) = a_setting(keep_payloads=True), PARTIES
    with runtime.open(setting) as star:
        first = star.map(Mail((b,)), {name: {} for name in PARTIES}, round=4)
        # Not in the exchange in which it was sent, whoever steps first.
        assert all(reply.message == {} for reply in first.values())
        # Nor does whoever relays it read it.
        assert all(reply.mail == {} for reply in first.values())
        # It waits while the receiver is not asked; a second one comes along, or is refused.
        star.map(Mail((b,), kind="second"), {a: {}}, round=4)
        with pytest.raises(ProtocolError, match=rf"{a} mails 'letter' to {b} twice in round 4"):
            star.map(Mail((b,)), {a: {}}, round=4)
        second = star.map(Mail(()), {b: {}, c: {}}, round=4)
        found = {kind: letter.tolist() for kind, letter in second[b].message.items()}
        assert found == {
            f"letter from {a}": [0, 4],
            f"second from {a}": [0, 4],
            f"letter from {c}": [2, 4],
        }
        assert second[c].message == {}
        # Handed over once.
        assert star.map(Mail(()), {b: {}}, round=4)[b].message == {}
    letters = [entry for entry in setting.transcript.entries if entry.kind == "letter"]
    assert [(e.sender, e.receiver, e.bytes, e.round) for e in letters[:2]] == [
        (a, b, 16, 0),
        (c, b, 16, 0),
    ]
    assert [e.payload.tolist() for e in letters if e.payload is not None][1] == [2, 4]
    # Whoever relays it is not its receiver.
    kinds = {
        e.kind for e in setting.transcript.entries if AGGREGATOR_NAME in (e.receiver, e.sender)
    }
    assert kinds == {f"letter from {a}", f"second from {a}", f"letter from {c}"}


def mail_waits_for_who_is_lost_and_ends_with_its_round(runtime: StarRuntime) -> None:
    a, b, _ = PARTIES
    with runtime.open(a_setting()) as star:
        star.map(Mail((b,)), {a: {}}, round=4)
        assert star.map(Fail(b, GONE), {a: {}, b: {}}, round=4, at_least=0).keys() == {a}
        with pytest.raises(PartyLostError):
            star.map(Fail(b, GONE), {b: {}}, round=4)
        assert list(star.map(Mail(()), {b: {}}, round=4)[b].message) == [f"letter from {a}"]
        # The mail of one round is nothing to the next one, so that a checkpoint lacks nothing.
        star.map(Mail((b,)), {a: {}}, round=4)
        star.map(Mail((b,)), {a: {}}, round=5)
        assert star.map(Mail(()), {b: {}}, round=6)[b].message == {}
        # Nor to one that is taken once more.
        star.map(Mail((b,)), {a: {}}, round=6)
        star.restore(star.states())
        assert star.map(Mail(()), {b: {}}, round=6)[b].message == {}


def mail_reaches_who_computes_on_shares_and_else_nobody_unknown(runtime: StarRuntime) -> None:
    setting = a_setting()
    with runtime.open(setting) as star:
        replies = star.map(Mail(("computing-1",)), {PARTIES[0]: {}}, round=0)
        assert replies[PARTIES[0]].mail["computing-1"]["letter"].tolist() == [0, 0]
        for name in ("stranger", AGGREGATOR_NAME, "public"):
            with pytest.raises(ProtocolError, match=f"{PARTIES[0]} mails .*'{name}'"):
                star.map(Mail((name,)), {PARTIES[0]: {}}, round=1)
    letters = {(e.sender, e.receiver, e.kind) for e in setting.transcript.entries}
    assert letters == {(PARTIES[0], "computing-1", "letter")}


def parties_without_rows_are_addressed(runtime: StarRuntime) -> None:
    setting = dataclasses.replace(a_setting(), others=("key-holder",))
    with runtime.open(setting) as star:
        sent = {"key-holder": {"x": torch.ones(2)}, PARTIES[1]: {"x": torch.zeros(2)}}
        replies = star.map(Echo(), sent, round=0)
        assert list(replies) == list(sent)
        assert replies["key-holder"].message["x"].tolist() == [1.0, 1.0]
        star.map(Mail(("key-holder",)), {PARTIES[1]: {}}, round=1)
        got = star.map(Mail(()), {"key-holder": {}}, round=1)["key-holder"].message
        assert got[f"letter from {PARTIES[1]}"].tolist() == [1, 1]
        star.map(NewState(), {"key-holder": {}}, round=3)
        assert list(star.states()) == ["key-holder"]
        with pytest.raises(DataError, match="key-holder takes part without rows"):
            star.map(Mean(), {"key-holder": {}}, round=4)
    assert ("aggregator", "key-holder") in {
        (e.sender, e.receiver) for e in setting.transcript.entries
    }
    # It was the first to receive something, and no participant.
    assert setting.transcript.view(PARTICIPANT).names == (PARTIES[1],)
    with pytest.raises(ValueError, match="hold no rows"):
        dataclasses.replace(a_setting(), others=(PARTIES[0],))


GONE = PartyLostError("the line is dead")


def who_is_lost_is_left_out(runtime: StarRuntime) -> None:
    setting, everybody = a_setting(), {name: {"x": torch.ones(1)} for name in PARTIES}
    with runtime.open(setting) as star:
        replies = star.map(Fail(PARTIES[1], GONE), everybody, round=3, at_least=2)
        assert tuple(replies) == (PARTIES[0], PARTIES[2])
        # It was sent something, and sent nothing.
        assert {e.receiver for e in setting.transcript.entries} == {AGGREGATOR_NAME, *PARTIES}
        assert PARTIES[1] not in {e.sender for e in setting.transcript.entries}
        # The next exchange is open to it again.
        assert tuple(star.map(Echo(), everybody, round=4, at_least=2)) == PARTIES


def too_few_replies_name_the_lost(runtime: StarRuntime) -> None:
    everybody: dict[str, Payload] = {name: {} for name in PARTIES}
    with runtime.open(a_setting()) as star:
        with pytest.raises(
            PartyLostError, match=f"2 of 3 .* at least 3 .*: {PARTIES[1]}"
        ) as caught:
            star.map(Fail(PARTIES[1], GONE), everybody, round=3, at_least=3)
        assert caught.value.party == PARTIES[1]
        with pytest.raises(PartyLostError, match="the line is dead"):
            star.map(Fail(PARTIES[1], GONE), everybody, round=4)
        for wrong in (4, -1):
            with pytest.raises(ValueError, match=f"at_least={wrong}"):
                star.map(Echo(), everybody, round=5, at_least=wrong)


def errors_are_no_losses(runtime: StarRuntime) -> None:
    everybody: dict[str, Payload] = {name: {} for name in PARTIES}
    for error, kind in (
        (ZeroDivisionError("the mean of no rows"), PartyLostError),
        (SystemExit(2), PartyLostError),
        (ProtocolError("a share is missing"), ProtocolError),
        (DataError("These rows have no targets."), DataError),
    ):
        with runtime.open(a_setting()) as star, pytest.raises(kind) as caught:
            star.map(Fail(PARTIES[1], error), everybody, round=7, at_least=1)
        assert type(caught.value) is kind


def the_transcript_numbers_exchanges(runtime: StarRuntime) -> None:
    setting = a_setting()
    with runtime.open(setting) as star:
        for round in (0, 0, 5):
            star.map(Echo(), {PARTIES[0]: {"x": torch.ones(1)}}, round=round)
    assert [e.round for e in setting.transcript.entries] == [0, 0, 1, 1, 2, 2]
    assert setting.transcript.rounds == 3


def payloads_are_kept_on_request(runtime: StarRuntime) -> None:
    setting = a_setting(keep_payloads=True)
    model = a_model()
    with runtime.open(setting) as star:
        replies = star.map(Train(), {PARTIES[0]: {"model": model}}, round=0)
        expected = [bits(model), *(bits(t) for t in replies[PARTIES[0]].message.values())]
        replies[PARTIES[0]].message["update"].zero_()
    kept = [entry.payload for entry in setting.transcript.entries]
    assert [bits(payload) for payload in kept if payload is not None] == expected


def every_bit_of_a_tensor_arrives(runtime: StarRuntime) -> None:
    odd = torch.tensor([0x7FC00001, -0x80000000, 1], dtype=torch.int32).view(torch.float32)
    sent = {
        "float32": odd,  # a NaN with a payload, minus zero, the smallest subnormal number
        "float64": torch.tensor([[1 / 3, float("inf")]], dtype=torch.float64),
        "float16": torch.tensor([1.5], dtype=torch.float16),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "bool": torch.tensor([[True], [False]]),
        "number": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "slice": torch.arange(10)[2:8:2],
        "leaf": torch.ones(2, requires_grad=True),
    }
    with runtime.open(a_setting()) as star:
        reply = star.map(Echo(), {PARTIES[0]: sent}, round=0)[PARTIES[0]].message
    assert list(reply) == list(sent)
    for kind, tensor in sent.items():
        assert bits(reply[kind].detach()) == bits(tensor.detach()), kind


def parties_share_no_memory(runtime: StarRuntime) -> None:
    model = torch.zeros(2)
    with runtime.open(a_setting()) as star:
        first = star.map(Scribble(), {name: {"model": model} for name in PARTIES}, round=0)
        assert not model.any()
        for reply in first.values():
            assert reply.message["model"].tolist() == [1.0, 1.0]
            reply.message["kept"].fill_(99.0)
        second = star.map(Scribble(), {name: {"model": model} for name in PARTIES}, round=1)
        assert all(reply.message["kept"].tolist() == [2.0, 2.0] for reply in second.values())
        star.states()[PARTIES[0]]["kept"].fill_(99.0)
        assert star.states()[PARTIES[0]]["kept"].tolist() == [2.0, 2.0]


def a_party_finds_its_streams_its_rows_and_one_thread(runtime: StarRuntime) -> None:
    setting = a_setting()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with runtime.open(setting) as star:
            found = star.map(Surroundings(), {name: {} for name in PARTIES}, round=4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for name, told in found.items():
        reply = told.message
        stream = setting.seeds["order", 4, name]
        secret = setting.entropy["noise", 4, name]
        assert int(reply["threads"]) == 1
        assert int(reply["round"]) == 4
        assert torch.equal(reply["seeds"], stream.torch().get_state())
        assert bits(reply["entropy"]) == bits(torch.from_numpy(secret.numpy().random(4)))
        assert bits(reply["inputs"]) == bits(rows_of(name).inputs)


def a_million_parties_load_only_those_that_are_asked(runtime: StarRuntime) -> None:
    loaded: list[str] = []

    def load(party: str) -> Rows:
        loaded.append(party)
        return rows_of(party)

    names = party_names("client", 1_000_000)
    asked = (names[7], names[999_999])
    with runtime.open(a_setting(LazyRows(names, load))) as star:
        assert loaded == []
        replies = star.map(Mean(), {name: {} for name in asked}, round=0)
    assert set(loaded) == set(asked)
    for name in asked:
        assert bits(replies[name].message["mean"]) == bits(rows_of(name).inputs.mean(dim=0))


CHECKS: tuple[Callable[[StarRuntime], None], ...] = (
    is_a_frozen_value,
    gives_the_bits_of_a_plain_loop,
    another_seed_gives_other_bits,
    replies_in_the_order_of_payloads,
    only_named_parties_take_part,
    an_unknown_party_is_refused_before_anything_is_sent,
    parties_keep_their_state,
    a_new_state_is_kept,
    restored_parties_go_on_as_if_nothing_had_happened,
    restoring_replaces_what_was_kept,
    what_a_party_holds_ends_with_its_round_and_never_leaves_it,
    a_failing_party_is_named,
    errors_of_our_own_keep_their_type,
    every_tensor_is_one_entry_each_way,
    what_was_seen_travels_and_is_no_message,
    mail_arrives_in_the_receivers_next_exchange,
    mail_waits_for_who_is_lost_and_ends_with_its_round,
    mail_reaches_who_computes_on_shares_and_else_nobody_unknown,
    parties_without_rows_are_addressed,
    who_is_lost_is_left_out,
    too_few_replies_name_the_lost,
    errors_are_no_losses,
    the_transcript_numbers_exchanges,
    payloads_are_kept_on_request,
    every_bit_of_a_tensor_arrives,
    parties_share_no_memory,
    a_party_finds_its_streams_its_rows_and_one_thread,
    a_million_parties_load_only_those_that_are_asked,
)
