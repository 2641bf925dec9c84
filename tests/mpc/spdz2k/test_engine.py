"""The engine: its roles, what it says of privacy, and what ends a run."""

import json
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import PartyLostError, TamperedShareError, UnsupportedError
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.core.seeding import Seeds, SystemEntropy
from privtrain.core.statement import Adversary, Security
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64 import material
from privtrain.mpc.ring64.engine import Deal
from privtrain.mpc.sharing import encode, share
from privtrain.mpc.spdz2k.check import Strength
from privtrain.mpc.spdz2k.engine import FINISHED, SPDZ2k
from tests.mpc.ring64.mesh import names_of, run
from tests.mpc.spdz2k.programs import OfTwo, X, Y

NAMES = names_of(2)
PRODUCT = OfTwo(lambda s, x, y: x.matmul(y))


@dataclass(frozen=True)
class Product:
    """Announces its rank, and opens the product of shared rows with themselves."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            said = session.announce(torch.tensor([link_of(party).rank]))
            rows = session.take(inputs["rows"])
            opened = session.reveal([rows.matmul(rows.t())], kind="result share")[0]
        return {"result": opened, "said": torch.cat(said)}


def inputs_of_both() -> dict[str, Payload]:
    shares = share(encode(X, bits=SPDZ2k().row_bits), 2, Keystream())
    return {name: {"rows": part} for name, part in zip(NAMES, shares, strict=True)}


def test_a_program_with_inputs_runs_at_the_dealer_on_zeros() -> None:
    ran = run(Product(), 2, inputs_of_both(), engine=SPDZ2k())
    for name in NAMES:
        assert torch.allclose(ran.payloads[name]["result"], X @ X.t(), atol=2**-13)
        assert ran.payloads[name]["said"].tolist() == [0, 1]
    assert ran.payloads["dealer"] == {}
    assert [setup.what for setup in ran.links["dealer"].setups] == [
        "every mask, and all that it deals from masks"
    ]


def test_the_dealer_hears_shapes_keys_announcements_and_the_end_alone() -> None:
    ran = run(Product(), 2, inputs_of_both(), engine=SPDZ2k())
    heard = {
        entry.kind
        for link in ran.links.values()
        for entry in link.entries
        if entry.receiver == "dealer"
    }
    assert heard == {"shapes", "public key", "announcement", "material taken", FINISHED}
    # It hears that the last check passed, and nothing of what was checked.
    for name in NAMES:
        sent = [(kind, len(message)) for kind, message in ran.links[name].sent if kind == FINISHED]
        assert sent == [(FINISHED, 0)]


@pytest.mark.parametrize(
    ("kind", "sender"),
    [("shapes", NAMES[0]), ("announcement", NAMES[0]), ("announcement", NAMES[1])],
)
def test_who_tells_the_dealer_something_else_is_caught(kind: str, sender: str) -> None:
    told: list[str] = []

    def change(who: str, to: str, what: str, tensor: Tensor) -> Tensor:
        if (who, to, what) == (sender, "dealer", kind):
            told.append(to)
            # Of shapes, one more row.
            place = tensor.numpy().tobytes().index(b"[6") + 1 if kind == "shapes" else 0
            tensor[place] ^= 1
        return tensor

    with pytest.raises(TamperedShareError):
        run(Product(), 2, inputs_of_both(), engine=SPDZ2k(), change=change)
    assert told == ["dealer"]


def test_it_is_a_value_that_says_what_it_promises() -> None:
    engine = SPDZ2k()
    assert pickle.loads(pickle.dumps(engine)) == engine
    assert repr(engine) == "SPDZ2k()"
    assert (engine.name, engine.helper_names, engine.most_parties) == ("spdz2k", ("dealer",), 2)
    assert engine.exact_truncation and engine.opens_to_some
    assert engine.authenticated and not engine.keeps_shares and not engine.pictures
    said = " ".join(engine.caveats)
    for words in (
        "at most 2^-40 a run (with SharedSum, a sum); N runs have N times that",
        "up to what a deviating party puts in as rows or contributions of its own",
        "does not say who deviated",
        "somebody who sits between them and the dealer reads every input",
        "no fairness",
        "colludes with nobody",
        "reaches 2^42 wrap around",
    ):
        assert words in said
    assert Strength().error_bits > 40


def test_computing_parties_may_deviate_and_the_dealer_may_not() -> None:
    rows = {each.reader: each for each in SPDZ2k().input_privacy(NAMES)}
    listener = "a listener on the network between the computing parties"
    assert list(rows) == [*NAMES, "dealer", listener]
    for name in NAMES:
        assert rows[name].adversary is Adversary.MALICIOUS
    assert rows["dealer"].adversary is Adversary.SEMI_HONEST
    assert "it knows every mask" in rows["dealer"].reads
    for row in rows.values():
        assert (row.dealer, row.security) == ("dealer", Security.COMPUTATIONAL)
        assert "the dealer towards both" in row.honest


@pytest.mark.parametrize("count", [1, 3, 5])
def test_two_parties_compute(count: int) -> None:
    with pytest.raises(UnsupportedError, match=f"2 computing parties, not with {count}"):
        SPDZ2k().check(count)
    if count > 1:
        with pytest.raises(UnsupportedError, match=f"not with {count}"):
            run(PRODUCT, count, engine=SPDZ2k())


def test_the_dealer_runs_the_program_of_the_parties() -> None:
    programs = dict.fromkeys(NAMES, PRODUCT)
    assert SPDZ2k().helpers(programs) == {"dealer": Deal(PRODUCT, NAMES)}


def test_a_mesh_without_a_dealer_is_refused() -> None:
    link = run(PRODUCT, engine=SPDZ2k()).links["computing-0"]
    link.names = NAMES
    party = Party(
        name="computing-0",
        round=0,
        train={},
        state={},
        seeds=Seeds(0),
        entropy=SystemEntropy(),
        link=link,
    )
    with pytest.raises(UnsupportedError, match="spdz2k needs a 'dealer'"), SPDZ2k().open(party):
        pass


@pytest.mark.parametrize("place", [0, 12, 1000, -1])
@pytest.mark.parametrize("party", NAMES)
def test_material_that_was_changed_is_refused(party: str, place: int) -> None:
    def change(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
        if (to, kind) == (party, "material") and tensor.numel():
            tensor[place % tensor.numel()] ^= 1
        return tensor

    program = OfTwo(lambda s, x, y: s.relu(x)[0])
    with pytest.raises(TamperedShareError, match="'material' message 0 of dealer was changed"):
        run(program, engine=SPDZ2k(), change=change)


@pytest.mark.parametrize("party", NAMES)
def test_material_of_the_other_party_or_of_another_place_is_refused(party: str) -> None:
    sent: list[Tensor] = []

    def replayed(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
        if (to, kind) == (party, "material"):
            sent.append(tensor.clone())
            return sent[0]
        return tensor

    def many(s, x, y):  # type: ignore[no-untyped-def]
        for _ in range(60):
            x = s.relu(x)[0]
        return x

    with pytest.raises(TamperedShareError, match="'material' message 1 of dealer was changed"):
        run(OfTwo(many), engine=SPDZ2k(), change=replayed)
    assert len(sent) > 1


@pytest.mark.parametrize("lost", ["dealer", *NAMES])
def test_who_is_lost_is_named(lost: str) -> None:
    @dataclass(frozen=True)
    class Gone:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            return {} if party.name == lost else PRODUCT(inputs, party)

    programs = dict.fromkeys(NAMES, Gone())
    with pytest.raises(PartyLostError, match=f"{lost} is gone"):
        run(Gone(), engine=SPDZ2k(), programs=programs)


def test_an_error_at_one_party_ends_it_for_all() -> None:
    @dataclass(frozen=True)
    class Fails:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            with SPDZ2k().open(party) as session:
                if link_of(party).rank == 0:
                    raise RuntimeError("no more")
                session.announce(torch.tensor([0]))
            return {}

    with pytest.raises(RuntimeError, match="no more"):
        run(Fails(), engine=SPDZ2k())


def test_no_secret_of_a_session_is_printed() -> None:
    secrets: list[tuple[str, Tensor]] = []

    @dataclass(frozen=True)
    class Prints:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            with SPDZ2k().open(party) as session:
                bits = SPDZ2k().row_bits
                held = encode(Y, bits=bits) if link_of(party).rank == 0 else None
                x = session.own(held, tuple(Y.shape), 0).square()
                mask, wires = session.masked(x)[1], session.wires
                words = torch.cat([wires.unit[1:], x.share.words.flatten(), mask.words.flatten()])
                secrets.append((repr(session) + repr(wires) + repr(x) + repr(mask), words))
                session.reveal([x], kind="result share")
            return {}

    run(Prints(), engine=SPDZ2k())
    for said, words in secrets:
        assert "Wires" in said
        assert not [word for word in words.tolist() if abs(word) > 2**32 and str(word) in said]


@dataclass(frozen=True)
class InTheirOrder:
    """Multiplies what it is handed in the order in which it comes."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            first, second = (session.take(part) for part in inputs.values())
            opened = session.reveal([first.matmul(second)], kind="result share")[0]
        return {"result": opened}


def test_a_dealer_that_is_told_another_order_of_inputs_is_caught() -> None:
    values = {"left": X[:3, :3], "right": Y[:3, :3]}
    parts = {name: share(encode(value), 2, Keystream()) for name, value in values.items()}
    inputs = {name: {key: parts[key][rank] for key in parts} for rank, name in enumerate(NAMES)}
    ran = run(InTheirOrder(), 2, inputs, engine=SPDZ2k())
    assert torch.allclose(ran.payloads[NAMES[1]]["result"], X[:3, :3] @ Y[:3, :3], atol=2**-13)

    def turned(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
        if kind != "shapes":
            return tensor
        said = json.loads(tensor.numpy().tobytes())
        return torch.frombuffer(bytearray(json.dumps(said[::-1]).encode()), dtype=torch.uint8)

    with pytest.raises(TamperedShareError, match="for these shapes and announcements"):
        run(InTheirOrder(), 2, inputs, engine=SPDZ2k(), change=turned)


@dataclass(frozen=True)
class FewThenMany:
    """Compares a few values, then more than may be on their way at once."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            opened = []
            for count in (3, 400):
                x = session.own(
                    encode(torch.ones(count)) if party.name == NAMES[0] else None, (count,), 0
                )
                opened += session.reveal([session.positive(x)], kind="result share")
        return {"ones": torch.cat(opened)}


def test_keys_of_one_comparison_may_be_more_than_may_be_on_their_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(material, "IN_FLIGHT", 1 << 16)
    ran = run(FewThenMany(), engine=SPDZ2k(), timeout=5.0)
    assert ran.payloads[NAMES[1]]["ones"].tolist() == [1.0] * 403


def test_a_message_of_another_kind_is_an_altered_one() -> None:
    def other_kind(party: Party) -> None:
        link_of(party).send(NAMES[1], "result share", torch.zeros(1))

    @dataclass(frozen=True)
    class Odd(Product):
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            if party.name == NAMES[0]:
                other_kind(party)
            return super().__call__(inputs, party)

    with pytest.raises(TamperedShareError, match="read nothing of it"):
        run(Odd(), 2, inputs_of_both(), engine=SPDZ2k())


@pytest.mark.parametrize("said", [torch.zeros(()), torch.zeros(2).long(), torch.zeros(1)])
def test_what_is_announced_has_the_shape_and_type_of_the_own(said: Tensor) -> None:
    def garbled(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
        return said if kind == "announcement" and sender == NAMES[0] else tensor

    with pytest.raises(TamperedShareError, match="'announcement' of computing"):
        run(Product(), 2, inputs_of_both(), engine=SPDZ2k(), change=garbled)
