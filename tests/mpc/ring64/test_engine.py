"""The engine: its roles, what it says of privacy, and a run as processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from privtrain.core.errors import PartyLostError, ProtocolError, UnsupportedError
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.core.seeding import Seeds
from privtrain.core.task import Rows
from privtrain.mpc.descent import PeerDescent, SecureDescent, encoded
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.layers import translate
from privtrain.mpc.ring64.engine import Deal, Ring64, as_zeros
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.streamed import announced
from privtrain.mpc.sharing import SUM_BITS, encode, share
from privtrain.release.finish import IDENTITY
from privtrain.release.shared import SumAndOpen
from privtrain.sampling.passes import batches
from tests.mpc.ring64.mesh import names_of, run

X = torch.tensor([[1.5, -2.0, 3.0], [0.25, 4.0, -1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Product:
    """Announces its rank, and opens the product of shared rows with themselves."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            said = session.announce(torch.tensor([link_of(party).rank]))
            rows = session.take(inputs["rows"])
            opened = session.reveal([rows.matmul(rows.t())], kind="result share")[0]
        return {"result": opened, "said": torch.cat(said)}


def inputs_of(count: int) -> dict[str, Payload]:
    shares = share(encode(X), count, Keystream())
    return {
        name: {"rows": one_share} for name, one_share in zip(names_of(count), shares, strict=True)
    }


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_program_with_inputs_runs_at_the_dealer_on_zeros(count: int) -> None:
    ran = run(Product(), count, inputs_of(count))
    for name in names_of(count):
        assert torch.allclose(ran.payloads[name]["result"], X @ X.t(), atol=2**-15)
        assert ran.payloads[name]["said"].tolist() == list(range(count))
    assert ran.payloads["dealer"] == {}
    assert [setup.what for setup in ran.links["dealer"].setups] == [
        "every mask, and all that it deals from masks"
    ]


def test_the_dealer_hears_shapes_keys_and_announcements_alone() -> None:
    ran = run(Product(), 3, inputs_of(3))
    heard = {
        (entry.kind, entry.shape)
        for link in ran.links.values()
        for entry in link.entries
        if entry.receiver == "dealer"
    }
    assert {kind for kind, _ in heard} == {
        "shapes",
        "public key",
        "announcement",
        "material taken",
    }
    assert {shape for kind, shape in heard if kind == "public key"} == {(32,)}


@dataclass(frozen=True)
class Regression(Ring64):
    """Descends half the squared error: its gradient by the outputs is output - target."""

    @contextmanager
    def open(self, party: Party) -> Iterator[Ring64Session]:
        with super().open(party) as session, pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "softmax", lambda outputs: outputs)
            yield session


ROWS = {
    name: Rows(
        inputs=torch.randn(10, 3, generator=torch.Generator().manual_seed(rank)),
        targets=torch.tensor([0, 1] * 5),
    )
    for rank, name in enumerate(names_of(3))
}


def descent() -> tuple[SecureDescent, torch.nn.Module]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    program = SecureDescent(
        engine=Regression(),
        layers=translate(model),
        by_rows=True,
        epochs=2,
        batch_size=15,
        learning_rate=0.1,
        momentum=0.5,
    )
    return program, model


def in_plaintext(model: torch.nn.Module) -> torch.Tensor:
    """The weights after the same steps in float64."""
    inputs = torch.cat([rows.inputs for rows in ROWS.values()]).double()
    targets = torch.cat([rows.labels for rows in ROWS.values()])
    one_hot = torch.nn.functional.one_hot(targets, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for epoch in range(2):
        generator = Seeds(3)["order", epoch, "curator"].torch()
        for index in batches(30, 15, 1, generator):
            optimizer.zero_grad()
            error = model(inputs[index]) - one_hot[index]
            (error.square().sum() / 2 / 15).backward()
            optimizer.step()
    return torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])


def test_descent_on_rows_that_were_shared_before() -> None:
    program, model = descent()
    inputs: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names_of(3)}
    for number, (name, rows) in enumerate(ROWS.items()):
        for kind, integers in encoded(rows, name, 2, labels=True):
            shares = share(integers, 3, Keystream())
            for receiver, one_share in zip(names_of(3), shares, strict=True):
                inputs[receiver][f"{kind}/{number:06d}"] = one_share
    ran = run(program, 3, inputs)
    expected = in_plaintext(model)
    for name in names_of(3):
        assert float((ran.payloads[name]["weights"] - expected).abs().max()) < 2e-4


def test_descent_of_peers_with_a_dealer_that_has_no_rows() -> None:
    program, model = descent()
    ran = run(PeerDescent(descent=program), 3, rows=ROWS)
    expected = in_plaintext(model)
    for name in names_of(3):
        assert float((ran.payloads[name]["weights"] - expected).abs().max()) < 2e-4


@dataclass(frozen=True)
class AnnouncesOften:
    """Deals, announces, and deals again."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        said = []
        with Ring64().open(party) as session:
            for number in range(3):
                for _ in range(number):
                    session.dealt(lambda: torch.zeros(5000, dtype=torch.int64), (5000,))
                said += session.announce(torch.tensor([number * 10 + link_of(party).rank]))
        return {"said": torch.cat(said)}


def test_announcements_may_come_between_products() -> None:
    ran = run(AnnouncesOften(), 2)
    for name in names_of(2):
        assert ran.payloads[name]["said"].tolist() == [0, 1, 10, 11, 20, 21]


def test_a_sum_of_shares_is_opened() -> None:
    values = [torch.tensor([1.25, -3.0]), torch.tensor([0.5, 8.0]), torch.tensor([-2.0, 0.0])]
    inputs: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names_of(2)}
    for number, value in enumerate(values):
        shares = share(encode(value, bits=SUM_BITS), 2, Keystream())
        for name, one_share in zip(names_of(2), shares, strict=True):
            inputs[name][str(number)] = one_share
    ran = run(SumAndOpen(Ring64(), IDENTITY), 2, inputs)
    for name in names_of(2):
        assert ran.payloads[name]["opened"].tolist() == [-0.25, 5.0]
    assert ran.entries("masked share") == ran.entries("material") == []


def test_announced_shapes_hold_no_values() -> None:
    payload = {"a": torch.ones(2, 3, dtype=torch.int64), "b": torch.ones(0, dtype=torch.float64)}
    zeros = as_zeros(announced(payload))
    assert list(zeros) == ["a", "b"]
    for name, value in payload.items():
        assert torch.equal(zeros[name], torch.zeros_like(value))
        assert zeros[name].dtype == value.dtype
    assert torch.equal(announced(payload), announced({k: v * 7 for k, v in payload.items()}))
    with pytest.raises(ProtocolError, match="announced shapes"):
        as_zeros(torch.tensor([1, 2, 3], dtype=torch.uint8))


@dataclass(frozen=True)
class OpensLess:
    """Follows another program at the dealer than at the parties, which is found out."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            if session.deals:
                session.dealt(lambda: torch.zeros(3, dtype=torch.int64), (3,))
            elif link_of(party).rank == 1:
                session.dealt(lambda: torch.zeros(1, dtype=torch.int64), (1,))
        return {}


def test_material_that_is_left_over_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="16 bytes of material of dealer were not used"):
        run(OpensLess())


@dataclass(frozen=True)
class Fails:
    """Raises at one party."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            if link_of(party).rank == 0:
                raise RuntimeError("no more")
            session.announce(torch.tensor([0]))
        return {}


def test_an_error_at_one_party_ends_it_for_all() -> None:
    with pytest.raises(RuntimeError, match="no more"):
        run(Fails())


def test_a_mesh_without_a_dealer_is_refused() -> None:
    ran = run(Waits())
    link = ran.links["computing-0"]
    link.names = names_of(2)
    party = Party(
        name="computing-0",
        round=0,
        train={},
        state={},
        seeds=None,  # type: ignore[arg-type]
        entropy=None,  # type: ignore[arg-type]
        link=link,
    )
    with pytest.raises(UnsupportedError, match="needs a 'dealer'"), Ring64().open(party):
        pass


@dataclass(frozen=True)
class Waits:
    """Opens a session and does nothing."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party):
            return {}


def test_the_dealer_runs_the_program_of_the_parties() -> None:
    programs = dict.fromkeys(names_of(2), Waits())
    assert Ring64().helpers(programs) == {"dealer": Deal(Waits(), names_of(2))}
    assert Ring64().helper_names == ("dealer",)


def test_who_reads_what() -> None:
    readers = {privacy.reader: privacy for privacy in Ring64().input_privacy(names_of(2))}
    assert list(readers)[:3] == ["computing-0", "computing-1", "dealer"]
    assert all(privacy.dealer == "dealer" for privacy in readers.values())
    assert "it knows every mask" in readers["dealer"].reads
    assert any("Without them they are TCP" in caveat for caveat in Ring64().caveats)


def test_a_dealer_that_is_gone_is_named() -> None:
    @dataclass(frozen=True)
    class Gone:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            if party.name == "dealer":
                return {}
            return Waits()(inputs, party)

    with pytest.raises(PartyLostError, match="dealer is gone"):
        run(Gone())
