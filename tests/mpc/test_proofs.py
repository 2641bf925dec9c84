from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.proofs import ROWS, Proof, coefficients, fits, flattened, prove
from privtrain.mpc.sharing import reveal, share
from tests.mpc.test_sharing import bit_z_scores

TRIES = 4000


def stream(number: int) -> Keystream:
    return Keystream(number.to_bytes(32, "little"))


def integers(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) * 7_919 - 2**24


def read(shape: tuple[int, ...], keystream: Keystream) -> tuple[Proof, Proof]:
    values = integers(*shape)
    width = flattened(values).shape[1]
    first, second = (Proof.read(each, width) for each in prove(values, keystream))
    return first, second


def left(values: Tensor, proofs: tuple[Proof, Proof], change: Tensor, answers: Tensor) -> Tensor:
    """What is opened: coefficients times changed rows, less changed answers."""
    own, other = proofs
    rows = coefficients(own.seed, other.seed, len(flattened(values)))
    changed = flattened(values + change)
    return rows @ changed - reveal([own.answers + answers, other.answers])


@pytest.mark.parametrize("shape", [(), (1,), (9,), (0, 3), (6, 4), (5, 2, 3)])
def test_shares_that_nobody_changed_leave_nothing(shape: tuple[int, ...]) -> None:
    values, proofs = integers(*shape), read(shape, stream(1))
    zero = torch.zeros_like(values)
    opened = left(values, proofs, zero, torch.zeros_like(proofs[0].answers))
    assert opened.shape == (ROWS, flattened(values).shape[1])
    assert not opened.any()
    # The plain twin of the product, in Python's own integers.
    rows = coefficients(proofs[0].seed, proofs[1].seed, len(flattened(values))).tolist()
    answers = reveal([each.answers for each in proofs]).tolist()
    columns = flattened(values).t().tolist()
    for row, answered in zip(rows, answers, strict=True):
        for column, answer in zip(columns, answered, strict=True):
            total = sum(one * other for one, other in zip(row, column, strict=True))
            assert (total - answer) % 2**64 == 0


@pytest.mark.parametrize("bit", [0, 1, 11, 30, 43])
def test_a_changed_bit_is_left_over(bit: int) -> None:
    values, proofs = integers(6, 4), read((6, 4), stream(2))
    change = torch.zeros_like(values)
    change[3, 2] = 1 << bit
    opened = left(values, proofs, change, torch.zeros_like(proofs[0].answers))
    assert opened[:, 2].all(), "each row of coefficients alone"
    assert not opened[:, [0, 1, 3]].any()


def test_changed_answers_are_left_over() -> None:
    values, proofs = integers(6, 4), read((6, 4), stream(3))
    answers = torch.zeros_like(proofs[0].answers)
    answers[1, 2] = 1
    assert left(values, proofs, torch.zeros_like(values), answers).nonzero().tolist() == [[1, 2]]


def forgeries(passes: Callable[[Tensor], bool], bits: int) -> float:
    """How often a change of 2^(64 - bits), with unchanged answers, is not seen."""
    values = integers(5, 1)
    change = torch.zeros_like(values)
    change[4] = 1 << (64 - bits)
    passed = 0
    for number in range(TRIES):
        proofs = read((5, 1), stream(1000 + number))
        passed += passes(left(values, proofs, change, torch.zeros_like(proofs[0].answers)))
    return passed / TRIES


def test_each_row_of_coefficients_misses_as_seldom_as_it_says() -> None:
    # 2^-2 for a row where a change has two bits, and 2^-6 for three; five deviations are allowed.
    def near(found: float, wanted: float) -> bool:
        return abs(found - wanted) < 5 * (wanted * (1 - wanted) / TRIES) ** 0.5

    assert near(forgeries(lambda opened: not opened.any(), 2), 2.0 ** -(2 * ROWS))
    # The broken twin with one row only misses what three do not.
    single = forgeries(lambda opened: not opened[0].any(), 2)
    assert near(single, 2.0**-2)
    assert not near(single, 2.0 ** -(2 * ROWS))


def test_who_knew_both_seeds_before_could_change_rows_and_who_knows_one_cannot() -> None:
    values, (own, other) = integers(6, 4), read((6, 4), stream(4))
    change = torch.zeros_like(values)
    change[2, 1] = 5
    # The broken twin: seeds that are revealed before shares are put in.
    known = coefficients(own.seed, other.seed, 6) @ change
    assert not left(values, (own, other), change, known).any()
    for guess in range(50):
        seed = stream(guess + 10_000).integers((4,))
        guessed = coefficients(own.seed, seed, 6) @ change
        assert left(values, (own, other), change, guessed).any()


def test_a_party_cannot_reveal_another_seed_than_its_own() -> None:
    first, second = read((3, 2), stream(5))
    assert fits(second.seed, first.digest, 1)
    assert fits(first.seed, second.digest, 0)
    assert not fits(second.seed + torch.tensor([0, 0, 0, 1]), first.digest, 1)
    assert not fits(first.seed, first.digest, 1)
    # A digest without the role would take a seed for the other's.
    assert not fits(second.seed, first.digest, 0)
    assert not torch.equal(first.seed, second.seed)


def test_both_seeds_decide_on_the_coefficients() -> None:
    one, other = stream(6).integers((4,)), stream(7).integers((4,))
    rows = coefficients(one, other, 8)
    assert rows.shape == (ROWS, 8)
    assert torch.equal(rows, coefficients(one, other, 8))
    for changed in (coefficients(other, one, 8), coefficients(one, one, 8)):
        assert not (rows == changed).any()
    assert len(set(rows.flatten().tolist())) == rows.numel(), "rows of their own"
    assert float(bit_z_scores(coefficients(one, other, 2000).flatten()).abs().max()) < 5


def test_a_part_alone_looks_random_and_no_two_are_alike() -> None:
    same = torch.zeros(2, 4000, dtype=torch.int64)
    parts = [*prove(same, stream(10)), *prove(same, stream(11))]
    for part in parts:
        assert float(bit_z_scores(part).abs().max()) < 5
    for number, part in enumerate(parts):
        for other in parts[number + 1 :]:
            assert not (part == other).any()


def test_rows_are_shared_and_proved_from_one_stream_without_a_repeat() -> None:
    keystream = stream(8)
    shares = share(integers(6, 4), 2, keystream)
    parts = prove(integers(6, 4), keystream)
    words = torch.cat([each.flatten() for each in (*shares, *parts)])
    assert len(words.unique()) == len(words)


def test_what_is_no_proof_is_refused_with_both_shapes() -> None:
    part, _ = prove(integers(6, 4), stream(9))
    assert Proof.read(part, 4).answers.shape == (ROWS, 4)
    assert "tensor" not in repr(Proof.read(part, 4))
    for bad, width in ((part, 3), (part[1:], 4), (part.double(), 4), (part.unsqueeze(0), 4)):
        with pytest.raises(ProtocolError, match=r"proof of an input share of shape \("):
            Proof.read(bad, width)
