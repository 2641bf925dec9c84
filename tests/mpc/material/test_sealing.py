"""A sealed block opens once, for its use, at its receiver, and nowhere else."""

import copy
import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privtrain.core.errors import ProtocolError, TamperedShareError
from privtrain.mpc.keystream import KeyAgreement
from privtrain.mpc.material import sealing
from privtrain.mpc.material.sealing import Label, Opener, Sealer, label_of

KEY = bytes(range(32))
STUDY, RECEIVER = "5f" * 32, "computing-0"


def a_sealer(key: bytes = KEY, study: str = STUDY, receiver: str = RECEIVER) -> Sealer:
    return Sealer(key, study=study, receiver=receiver)


def an_opener(key: bytes = KEY, study: str = STUDY, receiver: str = RECEIVER) -> Opener:
    return Opener(key, study=study, receiver=receiver)


def opened(opener: Opener, block: bytes, step: int = 3, operation: str = "relu") -> bytes:
    return opener.open(block, step=step, operation=operation, size=5)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 2**64 - 1), st.text(max_size=9))))
def test_blocks_open_in_their_order(blocks: list[tuple[bytes, int, str]]) -> None:
    dealer, party = KeyAgreement(), KeyAgreement()
    sealer = a_sealer(dealer.key(party.public, "material"))
    opener = an_opener(party.key(dealer.public, "material"))
    for number, (content, step, operation) in enumerate(blocks):
        block = sealer.seal(content, step=step, operation=operation)
        label = label_of(block)
        assert (label.number, label.step, label.size) == (number, step, len(content))
        assert label.operation == operation
        assert opener.open(block, step=step, operation=operation, size=len(content)) == content
        assert opener.next == number + 1


def test_a_change_anywhere_is_rejected() -> None:
    sealer, opener = a_sealer(), an_opener()
    block = sealer.seal(b"first", step=3, operation="relu")
    for place in range(len(block)):
        for bit in range(8):
            changed = bytearray(block)
            changed[place] ^= 1 << bit
            with pytest.raises(TamperedShareError):
                opened(opener, bytes(changed))
    for length in range(len(block)):
        with pytest.raises(TamperedShareError, match="whole sealed block"):
            opened(opener, block[:length])
    with pytest.raises(TamperedShareError, match="whole sealed block"):
        opened(opener, block + b"\0")
    # None of them used the number up, or settled another session.
    assert opened(opener, block) == b"first"


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_other_bytes_are_no_block(block: bytes) -> None:
    with pytest.raises(TamperedShareError):
        opened(an_opener(), block)


@pytest.mark.parametrize(
    ("key", "study", "receiver"),
    [
        (bytes(32), STUDY, RECEIVER),
        (KEY, "60" * 32, RECEIVER),
        (KEY, STUDY, "computing-1"),
        (KEY, STUDY + RECEIVER[0], RECEIVER[1:]),
    ],
)
def test_another_key_study_or_receiver_is_rejected(key: bytes, study: str, receiver: str) -> None:
    block = a_sealer().seal(b"first", step=3, operation="relu")
    with pytest.raises(TamperedShareError, match="another study, party or key"):
        opened(an_opener(key, study, receiver), block)


def test_another_use_is_refused_with_both() -> None:
    block = a_sealer().seal(b"first", step=3, operation="relu")
    opener = an_opener()
    for step, operation, size in [(4, "relu", 5), (3, "matmul", 5), (3, "relu", 6)]:
        words = f"to be {size} bytes for step {step}, '{operation}'; it is 5 bytes for step 3"
        with pytest.raises(ProtocolError, match=words):
            opener.open(block, step=step, operation=operation, size=size)
    assert opened(opener, block) == b"first"


def test_swapped_left_out_and_repeated_blocks_are_refused() -> None:
    sealer, opener = a_sealer(), an_opener()
    first, second, third = (sealer.seal(b"12345", step=3, operation="relu") for _ in range(3))
    with pytest.raises(ProtocolError, match=r"Expected block 0 .* got block 1"):
        opened(opener, second)
    opened(opener, first)
    with pytest.raises(ProtocolError, match=r"Expected block 1 .* got block 0"):
        opened(opener, first)
    with pytest.raises(ProtocolError, match="got block 2"):
        opened(opener, third)
    opener.skip(2)
    opened(opener, third)
    with pytest.raises(ValueError, match="number=2 >= 3"):
        opener.skip(2)


def test_a_session_is_not_mixed_with_another_one_under_the_same_key() -> None:
    one, other, opener = a_sealer(), a_sealer(), an_opener()
    opened(opener, one.seal(b"first", step=3, operation="relu"))
    other.seal(b"first", step=3, operation="relu")
    with pytest.raises(TamperedShareError, match="sent again"):
        opened(opener, other.seal(b"other", step=3, operation="relu"))
    # Nor does a header of this session make a block of the other one open.
    foreign = other.seal(b"other", step=3, operation="relu")
    forged = foreign[:16] + one.session + foreign[32:]
    with pytest.raises(TamperedShareError):
        opened(opener, forged)


def test_no_nonce_repeats_under_a_key() -> None:
    """Equal content, use and agreed key: two nonces alike would give equal or related blocks."""
    sealer, other = a_sealer(), a_sealer()
    blocks = [one.seal(bytes(64), step=0, operation="x") for one in (sealer, sealer, other)]
    assert len({block[-80:-16] for block in blocks}) == 3
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            copied(sealer)


def test_a_forked_sealer_seals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer = a_sealer()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(RuntimeError, match="fork"):
        sealer.seal(b"", step=0, operation="x")


def test_wrong_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"len\(key\)=3"):
        a_sealer(b"key")
    with pytest.raises(ValueError, match=r"len\(key\)=3"):
        an_opener(b"key")
    sealer = a_sealer()
    for step, operation in [(-1, "x"), (2**64, "x"), (0, "x" * 2**16)]:
        with pytest.raises(ValueError, match="step="):
            sealer.seal(b"", step=step, operation=operation)
    monkeypatch.setattr(sealing, "LARGEST", 4)
    with pytest.raises(ValueError, match="several blocks"):
        sealer.seal(b"12345", step=0, operation="x")


def test_a_label_says_its_use() -> None:
    label = Label(session=bytes(16), number=1, step=2, operation="matmul", size=8)
    assert label.use == "8 bytes for step 2, 'matmul'"


def test_one_session_for_several_receivers_and_their_keys() -> None:
    session = bytes(range(16))
    blocks = [
        Sealer(key, study=STUDY, receiver=receiver, session=session).seal(
            b"first", step=3, operation="relu"
        )
        for key, receiver in ((KEY, RECEIVER), (bytes(32), "computing-1"))
    ]
    assert {label_of(block).session for block in blocks} == {session}
    # Under one nonce, but other keys: nothing but the header is alike.
    assert blocks[0][-21:] != blocks[1][-21:]
    assert opened(an_opener(), blocks[0]) == b"first"
    with pytest.raises(TamperedShareError, match="another study, party or key"):
        opened(an_opener(), blocks[1])
    with pytest.raises(ValueError, match=r"len\(session\)=3 to be 16"):
        Sealer(KEY, study=STUDY, receiver=RECEIVER, session=b"old")
