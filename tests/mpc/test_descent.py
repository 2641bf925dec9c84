from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, ProtocolError
from privtrain.core.parameters import initial_model, to_vector
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import Seeds
from privtrain.core.task import FederatedData, Rows, Task, concatenate
from privtrain.core.validate import check_finite
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.descent import INPUTS, LABELS, PeerDescent, SecureDescent, agreed
from privtrain.mpc.layers import translate
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.sharing import LARGEST, encode
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess
from privtrain.sampling.passes import batches
from privtrain.trainers.mpc_sgd import MPCSGD
from tests.mpc.federations import (
    CLASSES,
    FEATURES,
    by_columns,
    by_rows,
    logistic,
    perceptron,
    table,
)
from tests.mpc.one_party import Nobody, OneParty, alone
from tests.mpc.ring64.mesh import names_of, run
from tests.runtimes.forked import Forked

RUNTIMES = Runtimes(star=InProcess(), mesh=Forked(timeout=60))


def fails(data: FederatedData, model: type[nn.Module] = logistic) -> None:  # type: ignore[assignment]
    fit(MPCSGD(epochs=1), Task(model=model), data, runtimes=RUNTIMES)


def broken(inputs: Tensor, targets: Tensor | None) -> FederatedData:
    good = by_rows()
    return replace(good, train={**good.train, "party-1": Rows(inputs, targets)})


def test_rows_that_cannot_be_shared_are_refused_before_any_process_starts() -> None:
    x, y = torch.zeros(2, FEATURES), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="party-1"):
        fails(broken(x[:0], y[:0]))
    for bad in (float("nan"), float("inf"), LARGEST, -1e30):
        with pytest.raises(ValueError, match="party-1"):
            fails(broken(torch.full_like(x, bad), y))
    with pytest.raises(DataError, match="labels of party-1"):
        fails(broken(x, y + CLASSES))
    with pytest.raises(DataError, match="party-1"):
        fails(broken(x, y.float()))
    with pytest.raises(DataError):
        fails(broken(x[:, 1:], y))
    check_finite(x=x)


def test_the_column_that_cannot_be_shared_is_named() -> None:
    x, y = torch.zeros(2, FEATURES), torch.zeros(2, dtype=torch.long)
    x[1, 7] = 1e6
    with pytest.raises(DataError, match=r"party-1 .*Column 7 .* from 0 to 1e\+06.*scale="):
        fails(broken(x, y))


def test_values_that_leave_fixed_point_are_refused_before_any_process_starts() -> None:
    def huge(weight: float) -> nn.Module:
        layer = nn.Linear(FEATURES, CLASSES)
        nn.init.constant_(layer.weight, weight)
        return layer

    with pytest.raises(DataError, match=r"parameter 'weight'.* 5000"):
        fails(by_rows(), lambda: huge(5_000.0))  # type: ignore[arg-type]
    x, y = torch.full((2, FEATURES), 4_000.0), torch.zeros(2, dtype=torch.long)
    with pytest.raises(DataError, match=r"logits.* reach 1\.92e\+08 .*initial.*Column 0 "):
        fails(broken(x, y), lambda: huge(4_000.0))  # type: ignore[arg-type]


def test_data_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(DataError, match="12 features, the model takes 5"):
        fails(by_rows(), lambda: nn.Linear(5, CLASSES))  # type: ignore[arg-type]
    columns = by_columns()
    with pytest.raises(DataError, match="label"):
        fails(replace(columns, label_holder="bank"))


def test_opened_weights_are_equal_everywhere_and_within_fixed_point() -> None:
    weights = torch.tensor([1.0, -2.0])
    wide = torch.zeros(4, 3)
    wide[1, 2] = -900.0
    assert torch.equal(agreed({"a": weights, "b": weights.clone()}, wide), weights)
    with pytest.raises(ProtocolError, match="b opened other weights than a"):
        agreed({"a": weights, "b": weights + 1}, wide)
    for bad in (weights * LARGEST, weights * float("nan")):
        with pytest.raises(ProtocolError, match=r"outside fixed point.*Column 2 .* from -900 to 0"):
            agreed({"a": bad}, wide)


# ------------------------------------------------------------------- the program, of one party


def program(
    model: nn.Module, *, by_rows: bool = True, batch_size: int | None = 20
) -> SecureDescent:
    return SecureDescent(
        engine=OneParty(),
        layers=translate(model),
        by_rows=by_rows,
        epochs=2,
        batch_size=batch_size,
        learning_rate=0.25,
        momentum=0.9,
    )


def by_hand(model: nn.Module, rows: Rows, batch_size: int | None) -> Tensor:
    """The weights after the same steps by torch."""
    model = model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9)
    for epoch in range(2):
        order = Seeds(5)["order", epoch, CURATOR_NAME].torch()
        for index in batches(len(rows), batch_size, 1, order):
            chosen = torch.arange(len(rows)) if index is None else index
            optimizer.zero_grad()
            logits = model(rows.inputs[chosen])
            nn.functional.cross_entropy(logits, rows.labels[chosen]).backward()
            optimizer.step()
    return to_vector(model.parameters())


@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("make", [logistic, perceptron])
def test_the_steps_are_those_of_gradient_descent(
    make: Callable[[], nn.Module], batch_size: int | None
) -> None:
    model = initial_model(Task(model=make), Seeds(5)["initialisation", 0, ""])
    rows = table()
    fixed = (rows.inputs.double() * 2**16).round() / 2**16
    descent, link = program(model, batch_size=batch_size), Nobody()
    inputs: dict[str, Tensor] = {}
    # Two data parties' rows, which are joined in the order of their keys.
    for number, part in enumerate(torch.arange(len(rows)).split(50)):
        one_hot = nn.functional.one_hot(rows.labels[part], CLASSES)
        inputs[f"{INPUTS}/{number}"] = encode(rows.inputs[part])
        inputs[f"{LABELS}/{number}"] = encode(one_hot)
    opened = descent(inputs, alone(link=link))["weights"]
    peer = PeerDescent(descent=descent)
    wanted = by_hand(model, Rows(fixed, rows.targets), batch_size)
    for found in (opened, peer({}, alone(rows))["weights"]):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    steps = 2 * (1 if batch_size is None else 5)
    assert link.reported == [(done, steps) for done in range(1, steps + 1)]
    assert isinstance(descent.engine, OneParty)
    assert descent.engine.session.opened == 2 * ["weight share"]


def check(sizes: list[list[int]], *, by_rows: bool = True) -> None:
    descent = program(logistic(), by_rows=by_rows)
    PeerDescent(descent=descent)._check(sizes, ("a", "b", "c")[: len(sizes)])


def test_parties_that_fit_together_are_not_refused() -> None:
    check([[30, FEATURES, 1], [5, FEATURES, 1]])
    check([[30, 5, 0], [30, FEATURES - 5, 1]], by_rows=False)
    check([[30, 5, 1], [30, FEATURES - 5, 0]], by_rows=False)


@pytest.mark.parametrize(
    ("sizes", "by_rows", "said"),
    [
        ([[30, FEATURES, 1], [30, 5, 1]], True, "b has 5 features, the model takes 12"),
        ([[30, 5, 1], [29, FEATURES - 5, 0]], False, "b has 29 rows, a has 30"),
        ([[30, 5, 1], [30, 5, 0]], False, "All columns together are 10"),
        ([[30, FEATURES, 1], [30, FEATURES, 0]], True, r"held by \['a'\]; .* every party"),
        ([[30, 5, 1], [30, FEATURES - 5, 1]], False, r"\['a', 'b'\]; .* exactly one party"),
        ([[30, 5, 0], [30, FEATURES - 5, 0]], False, r"held by \[\]; .* exactly one party"),
    ],
)
def test_parties_that_do_not_fit_together_are_refused(
    sizes: list[list[int]], by_rows: bool, said: str
) -> None:
    with pytest.raises(ProtocolError, match=said):
        check(sizes, by_rows=by_rows)


def pictures(*shape: int, count: int = 10) -> Rows:
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
    return Rows((inputs * 2**10).round() / 2**10, torch.arange(count) % 2)


def of_pictures() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


def test_peers_agree_on_the_shape_of_pictures() -> None:
    torch.manual_seed(2)
    model = of_pictures()
    descent = replace(program(model), engine=Ring64())
    held = [pictures(1, 3, 3), pictures(1, 3, 3, count=15)]
    ran = run(PeerDescent(descent=descent), 2, rows=dict(zip(names_of(2), held, strict=True)))
    optimizer = torch.optim.SGD(model.double().parameters(), lr=0.25, momentum=0.9)
    rows = concatenate(held)
    for epoch in range(2):
        for index in batches(25, 20, 1, Seeds(3)["order", epoch, CURATOR_NAME].torch()):
            optimizer.zero_grad()
            logits = model(rows.inputs[index].double())
            nn.functional.cross_entropy(logits, rows.labels[index]).backward()
            optimizer.step()
    wanted = to_vector(model.parameters())
    for name in names_of(2):
        assert float((ran.payloads[name]["weights"] - wanted).abs().max()) < 5e-4
    odd = dict(zip(names_of(2), [held[0], pictures(1, 1, 9)], strict=True))
    with pytest.raises(ProtocolError, match=r"computing-1 has pictures of shape \(1, 1, 9\)"):
        run(PeerDescent(descent=descent), 2, rows=odd)


def test_every_size_of_batch_is_held_against_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, float]] = []

    def note(bounds: Bounds, *arguments: Any) -> None:
        tried.append((arguments[3], arguments[4].rate))

    monkeypatch.setattr("privtrain.mpc.descent.check_worst_case", note)
    descent = program(logistic(), batch_size=20)
    descent.check_ranges(90)
    assert tried == []
    stated = replace(descent, bounds=Bounds(rows=4.0, weights=4.0))
    for rows, sizes in ((90, [20, 10]), (80, [20]), (7, [7])):
        stated.check_ranges(rows)
        assert tried == [(size, stated.learning_rate / size) for size in sizes]
        tried.clear()
    replace(stated, batch_size=None).check_ranges(33)
    assert tried == [(33, stated.learning_rate / 33)]


@pytest.mark.parametrize(
    ("rows", "weights", "said"),
    [
        (4.0, 4095.0, r"batches of 90.* product \(layer '1\.2'\).* lacks 3 bits"),
        (3.0, 4.0, r"inputs of computing-0 reach 3\.5, beyond the stated rows=3\.0"),
        (3.5, 4.0, ""),
    ],
)
def test_parties_refuse_what_breaks_bounds_before_a_row_is_shared(
    rows: float, weights: float, said: str
) -> None:
    kinds = set()

    def listen(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
        kinds.add(kind)
        return tensor

    inputs = table().inputs.clamp(-2, 2)
    inputs[3, 5] = 3.5
    whole = Rows(inputs, table().targets)
    parts = [whole.take(part) for part in torch.arange(90).split(45)]
    held = dict(zip(names_of(2), parts, strict=True))
    descent = replace(program(perceptron(), batch_size=None), engine=Ring64(), epochs=1)
    peer = PeerDescent(descent=replace(descent, bounds=Bounds(rows=rows, weights=weights)))
    if not said:
        run(peer, 2, rows=held, change=listen)
        assert "masked share" in kinds
        return
    with pytest.raises(DataError, match=said):
        run(peer, 2, rows=held, change=listen)
    assert kinds <= {"shapes", "public key", "announcement"}
