"""Shares that data parties made become values, or the party that changed one is caught."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, TamperedShareError
from privtrain.core.runtime import Party, Payload
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.proofs import prove
from privtrain.mpc.sharing import encode, share
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.mpc.spdz2k.inputs import PROOF, SEEDS
from tests.mpc.ring64.mesh import Change, Ran, names_of, run, unchanged
from tests.mpc.spdz2k.programs import X, Y, openings

VALUES = (X, Y, torch.tensor(0.5).double(), torch.zeros(0, 3).double())


def inputs_of(values: tuple[Tensor, ...] = VALUES) -> dict[str, dict[str, Tensor]]:
    """What a data party sends both computing parties: shares, and proofs of them."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names_of(2)}
    for number, value in enumerate(values):
        integers, stream = encode(value, bits=SPDZ2k().row_bits), Keystream()
        parts = zip(names_of(2), share(integers, 2, stream), prove(integers, stream), strict=True)
        for name, one_share, proof in parts:
            found[name] |= {f"share {number}": one_share, f"proof {number}": proof}
    return found


@dataclass(frozen=True)
class Takes:
    """Opens what it takes, and a product of it."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        count = len(inputs) // 2
        with SPDZ2k().open(party) as session:
            values = session.take_all(
                [inputs[f"share {number}"] for number in range(count)],
                proofs=[inputs.get(f"proof {number}") for number in range(count)],
            )
            opened = session.reveal([*values, values[0].square()], kind="result share")
        return {str(number): value for number, value in enumerate(opened)}


def taken(inputs: dict[str, dict[str, Tensor]], change: Change = unchanged) -> Ran:
    return run(Takes(), inputs=inputs, engine=SPDZ2k(), change=change)


def test_shares_become_the_values_that_were_shared() -> None:
    ran = taken(inputs_of())
    for name in names_of(2):
        found = ran.payloads[name]
        for number, value in enumerate(VALUES):
            assert torch.equal(found[str(number)], value)
        assert float((found[str(len(VALUES))] - X * X).abs().max()) <= 2.0**-14
    # All seeds in one message, and all proofs.
    assert openings(ran, SEEDS) == openings(ran, PROOF) == 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("bit", [0, 12, 43])
def test_a_party_that_changes_its_share_is_caught(bit: int, rank: int) -> None:
    inputs = inputs_of()
    inputs[names_of(2)[rank]]["share 1"][2, 1] ^= 1 << bit
    with pytest.raises(TamperedShareError, match=r"input number 1 .* is not the one that was made"):
        taken(inputs)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("part", "words"),
    [(0, "another seed"), (9, "is not the one that was made")],
)
def test_a_party_that_changes_its_proof_is_caught(part: int, words: str, rank: int) -> None:
    inputs = inputs_of()
    inputs[names_of(2)[rank]]["proof 0"][part] ^= 1
    with pytest.raises(TamperedShareError, match=words):
        taken(inputs)


@pytest.mark.parametrize("sender", names_of(2))
@pytest.mark.parametrize("kind", ["masked input", SEEDS, PROOF])
def test_what_is_changed_on_its_way_is_caught(kind: str, sender: str) -> None:
    def change(who: str, to: str, what: str, tensor: Tensor) -> Tensor:
        if (who, what) == (sender, kind) and tensor.numel():
            tensor.view(-1)[0] ^= 4
        return tensor

    with pytest.raises(TamperedShareError):
        taken(inputs_of(), change)


def test_seeds_are_told_after_all_is_put_in() -> None:
    for link in taken(inputs_of()).links.values():
        kinds = [kind for kind, _ in link.sent]
        if SEEDS in kinds:
            assert "masked input" not in kinds[kinds.index(SEEDS) :]
            assert PROOF not in kinds[: kinds.index(SEEDS)]


@dataclass(frozen=True)
class TakesTwice:
    """Takes the same shares in two sessions."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        for _ in range(2):
            with SPDZ2k().open(party) as session:
                session.take(inputs["share 0"], proof=inputs["proof 0"])
                session.wires.check()
        return {}


def test_a_proof_serves_once() -> None:
    with pytest.raises(ProtocolError, match="serves once"):
        run(TakesTwice(), inputs=inputs_of(), engine=SPDZ2k())


def test_a_proof_of_other_rows_is_refused() -> None:
    inputs = inputs_of()
    for own in inputs.values():
        own["proof 0"] = own["proof 0"][:-1]
    with pytest.raises(ProtocolError, match="proof of an input share of shape"):
        taken(inputs)


def test_values_without_proofs_are_taken_as_they_are() -> None:
    inputs = inputs_of((X,))
    for own in inputs.values():
        own["none"] = own.pop("proof 0")
    assert torch.equal(taken(inputs).payloads["computing-1"]["0"], X)
