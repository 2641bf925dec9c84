import pytest
import torch

from privtrain.core.errors import ProtocolError
from privtrain.core.seeding import Words
from privtrain.mpc.keystream import KEY_BYTES, KeyAgreement, Keystream


def test_a_keystream_is_the_same_under_the_same_key_however_it_is_cut() -> None:
    key = bytes(range(KEY_BYTES))
    whole = Keystream(key).integers((3, 5))
    parts = Keystream(key)
    cut = torch.cat([parts.integers((4,)), parts.integers((0,)), parts.integers((11,))])
    assert torch.equal(whole.reshape(-1), cut)
    assert not torch.equal(Keystream().integers((8,)), Keystream().integers((8,)))
    with pytest.raises(ValueError, match="to be 32"):
        Keystream(b"short")


def test_a_keystream_is_its_cipher_whatever_is_computed_ahead() -> None:
    key, counts = bytes(range(KEY_BYTES)), (3, 0, 8190, 1, 20_000, 8191, 8193, 5)
    stream, plain = Keystream(key), Words(key)
    drawn = [stream.integers((count,)) for count in counts]
    # Later draws must not change earlier ones.
    for integers, count in zip(drawn, counts, strict=True):
        assert integers.tolist() == plain.take(count).view("<i8").tolist()


def test_two_parties_agree_on_a_key_for_each_purpose() -> None:
    left, right, other = KeyAgreement(), KeyAgreement(), KeyAgreement()
    assert left.key(right.public, "a") == right.key(left.public, "a")
    assert left.key(right.public, "a") != left.key(right.public, "b")
    assert left.key(right.public, "a") != left.key(other.public, "a")
    assert left.public != right.public


@pytest.mark.parametrize("sent", [bytes(KEY_BYTES), bytes(KEY_BYTES - 1), bytes([1, *bytes(31)])])
def test_what_is_no_public_key_is_the_fault_of_who_sent_it(sent: bytes) -> None:
    with pytest.raises(ProtocolError, match=sent.hex()):
        KeyAgreement().key(sent, "masks")


def test_a_half_goes_on_from_its_private_key() -> None:
    ours, theirs = KeyAgreement(), KeyAgreement()
    again = KeyAgreement(ours.private)
    assert again.public == ours.public
    assert again.key(theirs.public, "masks") == theirs.key(ours.public, "masks")
