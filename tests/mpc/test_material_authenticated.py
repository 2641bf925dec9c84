"""Material of spdz2k on its way to either party, that all of it is used, and keys of sessions."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, TamperedShareError
from privtrain.core.runtime import Party, Payload
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.material import KIND, MaterialReader
from privtrain.mpc.ring64.streamed import PUBLIC_KEY
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.mpc.spdz2k.wires import DealerWires
from tests.mpc.ring64.mesh import QueueLink, names_of, run
from tests.mpc.ring64.test_session import shared
from tests.mpc.test_uniform import ALARM
from tests.mpc.views import Seen, alarm

TURNS = 3
SENT = 16
"""Bytes behind the content of a sealed message."""


@dataclass(frozen=True)
class Rectifies:
    """Rectifies a value several times in each of two sessions, each with material of its own.

    Args:
        errors: What each party raised.
        surplus: Values that the dealer deals and nobody asks for.
    """

    errors: dict[str, Exception] = field(default_factory=dict)
    surplus: int = 0

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        try:
            return {str(number): self.once(party) for number in range(2)}
        except Exception as error:
            self.errors[party.name] = error
            raise

    def once(self, party: Party) -> Tensor:
        with SPDZ2k().open(party) as session:
            value = shared(session, party, torch.full((200,), -2.5), 0)
            total = value * 0
            for turn in range(TURNS):
                total = total + session.relu(value + 2 * turn)[0]
            (opened,) = session.reveal([total], kind="result share")
            if session.deals:
                session.wires.random((self.surplus,))
            return opened


Deliver = Callable[[dict[str, list[Tensor]], str, str], list[Tensor]]
"""What arrives in place of the last message to somebody, of all that were sent so far."""


def changed(sent: dict[str, list[Tensor]], to: str, other: str) -> list[Tensor]:
    message = sent[to][-1].clone()
    if len(sent[to]) == 2:
        message[len(message) // 2] ^= 1
    return [message]


def repeated(sent: dict[str, list[Tensor]], to: str, other: str) -> list[Tensor]:
    return [sent[to][0]] if len(sent[to]) == 2 else sent[to][-1:]


def swapped(sent: dict[str, list[Tensor]], to: str, other: str) -> list[Tensor]:
    number = len(sent[to])
    return [] if number == 1 else sent[to][::-1] if number == 2 else sent[to][-1:]


def missing(sent: dict[str, list[Tensor]], to: str, other: str) -> list[Tensor]:
    return [] if len(sent[to]) == 2 else sent[to][-1:]


def of_the_other_party(sent: dict[str, list[Tensor]], to: str, other: str) -> list[Tensor]:
    return sent[other][-1:] or sent[to][-1:]


def of_another_session(sent: dict[str, list[Tensor]], to: str, other: str) -> list[Tensor]:
    # A mark lies between the sessions.
    ends = [number for number, message in enumerate(sent[to]) if not message.numel()]
    return [sent[to][0]] if ends and len(sent[to]) == ends[0] + 2 else sent[to][-1:]


@pytest.mark.parametrize("to", names_of(2))
@pytest.mark.parametrize(
    "deliver", [changed, repeated, swapped, missing, of_the_other_party, of_another_session]
)
def test_material_that_is_not_the_next_is_refused(
    deliver: Deliver, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, sent = QueueLink.send, defaultdict[str, list[Tensor]](list)
    other = next(name for name in names_of(2) if name != to)

    def on_its_way(self: QueueLink, receiver: str, kind: str, tensor: Tensor) -> None:
        messages = [tensor]
        if kind == PUBLIC_KEY and sent[receiver]:
            sent[receiver].append(torch.empty(0))
        if kind == KIND:
            sent[receiver].append(tensor.clone())
            if receiver == to:
                messages = deliver(sent, to, other)
        for message in messages:
            send(self, receiver, kind, message)

    monkeypatch.setattr(QueueLink, "send", on_its_way)
    program = Rectifies()
    with pytest.raises(TamperedShareError, match="was changed on its way, or is not the next one"):
        run(program, engine=SPDZ2k(), timeout=5)
    assert isinstance(program.errors[to], TamperedShareError)
    # Nor does the other party read anything.
    assert set(program.errors) >= set(names_of(2))


def test_all_material_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = defaultdict[str, int](int)
    take = MaterialReader.take

    def counted(self: MaterialReader, count: int, dtype: torch.dtype) -> Tensor:
        taken[self.source.link.name] += count * dtype.itemsize  # type: ignore[attr-defined]
        return take(self, count, dtype)

    monkeypatch.setattr(MaterialReader, "take", counted)
    ran = run(Rectifies(), engine=SPDZ2k())
    for name in names_of(2):
        assert all(set(value.tolist()) == {1.5} for value in ran.payloads[name].values())
        messages = [entry for entry in ran.entries(KIND) if entry.receiver == name and entry.bytes]
        assert taken[name] == sum(entry.bytes - SENT for entry in messages)
        assert len(messages) >= 2 * TURNS


def test_material_that_is_left_over_is_refused() -> None:
    program = Rectifies(surplus=5)
    with pytest.raises(ProtocolError, match="120 bytes of material of dealer were not used"):
        run(program, engine=SPDZ2k())


@dataclass(frozen=True)
class Keys:
    """Shares of keys in sessions one after the other: of MACs `(sessions, 3)`, and of bits."""

    sessions: int

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        keys, bit_keys = [], []
        for _ in range(self.sessions):
            with SPDZ2k().open(party) as session:
                if not session.deals:
                    keys.append(session.wires.unit[1:].clone())
                    bit_keys.append(int(session.wires._bit_key.view(np.int64)))  # type: ignore[attr-defined]
        return {"keys": torch.stack(keys), "bits": torch.tensor(bit_keys)} if keys else {}


def keys_of(sessions: int) -> tuple[dict[str, list[Seen]], Tensor, Tensor]:
    """What parties see of keys of one run, and the keys of MACs and of bits."""
    payloads = run(Keys(sessions), engine=SPDZ2k()).payloads
    parties = [payloads[name] for name in names_of(2)]
    seen = {
        f"{what} at {number}": [Seen.of(payload[what])]
        for number, payload in enumerate(parties)
        for what in ("keys", "bits")
    }
    return (
        seen,
        parties[0]["keys"] + parties[1]["keys"],
        parties[0]["bits"] ^ parties[1]["bits"],
    )


def test_each_session_and_each_run_has_keys_of_its_own() -> None:
    seen, keys, bit_keys = keys_of(64)
    assert alarm(seen) > ALARM
    assert int(keys.min()) >= 0 and int(keys.max()) < 1 << 20
    assert alarm({"keys": [Seen.of(keys, 20)], "bits": [Seen.of(bit_keys >> 1, 63)]}) > ALARM
    assert set((bit_keys & 1).tolist()) == {1}
    assert alarm({"other run": [Seen.of(keys_of(64)[1] ^ keys, 20)]}) > ALARM


def test_keys_that_come_again_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = DealerWires.__post_init__

    def the_same(self: DealerWires) -> None:
        self._own = Keystream(bytes(32))
        begin(self)

    monkeypatch.setattr(DealerWires, "__post_init__", the_same)
    seen, keys, bit_keys = keys_of(64)
    assert alarm(seen) > ALARM
    assert alarm({"keys": [Seen.of(keys[:, 0], 20)]}) < ALARM
    assert alarm({"bits": [Seen.of(bit_keys >> 1, 63)]}) < ALARM
