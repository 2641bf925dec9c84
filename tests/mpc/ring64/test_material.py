"""Material on its way: sealed, bounded, and read as it was dealt."""

import queue
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from privtrain.core.errors import PartyLostError, ProtocolError, TamperedShareError
from privtrain.core.runtime import Party, Payload
from privtrain.mpc.ring64 import material
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.material import (
    MaterialReader,
    MaterialSender,
    StreamSealer,
    StreamSource,
)
from tests.mpc.ring64.mesh import QueueLink, run

NAMES = ("computing-1", "dealer")
KEY = bytes(range(32))


def ends() -> tuple[MaterialSender, MaterialReader, QueueLink, QueueLink]:
    queues: dict[tuple[str, str], queue.Queue[object]] = {
        (one, other): queue.Queue() for one in NAMES for other in NAMES if one != other
    }
    reader, sender = (QueueLink(NAMES, rank, queues, timeout=0.05) for rank in range(2))
    return (
        MaterialSender(sender, NAMES[0], StreamSealer(KEY)),
        MaterialReader(StreamSource(reader, NAMES[1], KEY), NAMES[1]),
        sender,
        reader,
    )


def test_what_is_dealt_is_read_in_order() -> None:
    sender, reader, link, _ = ends()
    words, octets = torch.arange(100_000), torch.arange(13, dtype=torch.uint8)
    for _ in range(3):
        sender.put(octets)
        sender.put(words.view(100, 1000).t())
    sender.flush()
    for _ in range(3):
        assert torch.equal(reader.take(13, torch.uint8), octets)
        assert torch.equal(reader.take(100_000, torch.int64), words.view(100, 1000).t().reshape(-1))
    assert reader.left == 0
    assert [len(tensor) for kind, tensor in link.sent if kind == "material"] == [800_016 + 16] * 3


def test_messages_grow_so_that_the_first_comes_early() -> None:
    sender, _, link, _ = ends()
    for _ in range(1000):
        sender.put(torch.zeros(2**9, dtype=torch.int64))
    sizes = [len(tensor) - 16 for _, tensor in link.sent]
    assert sizes[0] == material.FIRST_CHUNK
    assert all(after == 2 * before for before, after in pairwise(sizes))


def test_nothing_is_on_its_way_in_clear() -> None:
    sender, _, link, _ = ends()
    sender.put(torch.zeros(1000, dtype=torch.int64))
    sender.flush()
    ((_, tensor),) = link.sent
    counts = torch.bincount(tensor.long(), minlength=256).double()
    # Of 8,000 zero bytes, 256 values of about 31 each: chi-square, 255 degrees, 1e-6 above 375.
    assert float(((counts - len(tensor) / 256) ** 2).sum()) / (len(tensor) / 256) < 375


def test_a_message_is_sealed_as_aes_gcm_seals_it() -> None:
    sender, reader, link, other = ends()
    for number in range(2):
        sender.put(torch.arange(5))
        sender.flush()
        sealed = link.sent[-1][1].numpy().tobytes()
        data = AESGCM(KEY).decrypt(bytes(11) + bytes([number]), sealed, b"material")
        assert torch.frombuffer(bytearray(data), dtype=torch.int64).tolist() == [0, 1, 2, 3, 4]
        assert reader.take(5, torch.int64).tolist() == [0, 1, 2, 3, 4]
    # Shorter than a tag.
    other.queues["dealer", NAMES[0]].put(("material", torch.zeros(15, dtype=torch.uint8), 0))
    with pytest.raises(TamperedShareError, match="was changed"):
        reader.take(1, torch.int64)


@pytest.mark.parametrize("place", [0, 500, -1])
def test_a_changed_message_is_rejected(place: int) -> None:
    sender, reader, _, link = ends()
    sender.put(torch.zeros(1000, dtype=torch.int64))
    sender.flush()
    kind, tensor, number = link.queues["dealer", NAMES[0]].get()  # type: ignore[misc]
    tensor[place] ^= 1  # type: ignore[has-type]
    link.queues["dealer", NAMES[0]].put((kind, tensor, number))  # type: ignore[has-type]
    with pytest.raises(TamperedShareError, match="message 0 of dealer was changed"):
        reader.take(1, torch.int64)


def test_a_message_does_not_come_twice_or_out_of_turn() -> None:
    for order in ((0, 0), (1, 0)):
        sender, reader, _, link = ends()
        for _ in range(2):
            sender.put(torch.zeros(1, dtype=torch.int64))
            sender.flush()
        wires = link.queues["dealer", NAMES[0]]
        messages = [wires.get(), wires.get()]
        for number in order:
            wires.put(messages[number])
        with pytest.raises(TamperedShareError, match="is not the next one"):
            for _ in range(2):
                reader.take(1, torch.int64)


def test_less_than_is_asked_for_is_an_error() -> None:
    sender, reader, _, _ = ends()
    sender.put(torch.zeros(3, dtype=torch.int64))
    sender.flush()
    with pytest.raises(TamperedShareError, match="another program"):
        reader.take(4, torch.int64)


def test_the_dealer_waits_for_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "IN_FLIGHT", 2**15)
    sender, reader, link, _ = ends()
    part = torch.zeros(2**10, dtype=torch.int64)
    for _ in range(4):
        sender.put(part)
        sender.flush()
    with pytest.raises(PartyLostError, match="sent no 'material taken'"):
        sender.put(part)
        sender.flush()
    assert len(link.sent) == 4
    reader.take(2**10, torch.int64)
    sender.flush()
    assert len(link.sent) == 5


@pytest.mark.parametrize("answer", [torch.tensor([1, 2]), torch.empty(0), torch.tensor(1.0)])
def test_an_answer_that_counts_nothing_is_the_fault_of_who_sent_it(answer: torch.Tensor) -> None:
    sender, _, _, link = ends()
    sender.put(torch.zeros(1, dtype=torch.int64))
    link.send("dealer", material.TAKEN, answer)
    with pytest.raises(ProtocolError, match="sent 'material taken' as"):
        sender.drain()


@dataclass(frozen=True)
class Square:
    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            value = session.public(torch.ones(8)) * session.take(inputs["share"])
            return {"square": session.reveal([value.square()], kind="result share")[0]}


def test_a_run_ends_where_material_was_changed() -> None:
    def flip(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
        if kind == "material":
            tensor[3] ^= 1
        return tensor

    share = {"share": torch.full((8,), 2**16)}
    inputs = {f"computing-{rank}": share for rank in range(2)}
    assert run(Square(), 2, inputs).payloads["computing-1"]["square"].tolist() == [4] * 8
    with pytest.raises(TamperedShareError, match="changed on its way"):
        run(Square(), 2, inputs, change=flip)
