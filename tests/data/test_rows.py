"""Lazy mappings: nothing is loaded before it is asked for, and a party's rows are its own."""

import pickle
import tracemalloc

import pytest
import torch

from privtrain.core.parties import party_names
from privtrain.core.task import FederatedData, Rows
from privtrain.data.rows import LazyRows, by_columns, by_rows


class Simulated:
    """Makes a client's rows from its name, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, party: str) -> Rows:
        self.asked.append(party)
        number = float(party.rsplit("-", 1)[1])
        return Rows(torch.full((4, 3), number), torch.zeros(4, dtype=torch.int64))


def simulation(clients: int, load: Simulated) -> FederatedData:
    return FederatedData(
        train=LazyRows(party_names("client", clients), load),
        test=Rows(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)),
    )


def test_a_million_clients_load_only_who_is_asked() -> None:
    load = Simulated()
    data = simulation(1_000_000, load)
    assert len(data.train) == 1_000_000
    assert "client-765432" in data.train
    assert load.asked == []
    rows = data.train["client-765432"]
    assert float(rows.inputs[0, 0]) == 765432.0
    assert load.asked == ["client-765432"]


def test_a_client_costs_its_name_only() -> None:
    clients = 20_000
    tracemalloc.start()
    data = simulation(clients, Simulated())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.train) == clients
    # A name takes some 60 bytes, its places in a tuple and an index 50 more; the two tensors of
    # a client would take more than 1,000.
    assert peak / clients < 250


def test_unknown_and_doubled_names() -> None:
    rows = LazyRows(("a", "b"), Simulated())
    with pytest.raises(KeyError, match="c"):
        rows["c"]
    assert "c" not in rows
    assert list(rows) == ["a", "b"]
    with pytest.raises(ValueError, match="'b'"):
        LazyRows(("a", "b", "b"), Simulated())


def table() -> Rows:
    return Rows(torch.arange(24.0).reshape(8, 3), torch.arange(8))


def test_rows_by_party() -> None:
    index = [torch.tensor([1, 5]), torch.tensor([0]), torch.tensor([2, 3, 4, 6, 7])]
    train = by_rows(table(), ("x", "y", "z"), index)
    for name, held in zip(train, index, strict=True):
        assert torch.equal(train[name].labels, held)
        assert torch.equal(train[name].inputs, table().inputs[held])


def test_a_party_does_not_carry_the_rows_of_others() -> None:
    # A view would pickle the storage of the whole table.
    big = Rows(torch.zeros(1000, 100), torch.zeros(1000, dtype=torch.int64))
    train = by_rows(big, ("x", "y"), [torch.arange(10), torch.arange(10, 1000)])
    assert len(pickle.dumps(train["x"])) < 20_000
    columns = by_columns(big, ("x", "y"), [torch.arange(1), torch.arange(1, 100)], "y")
    assert len(pickle.dumps(columns["x"])) < 20_000


def test_writing_into_a_party_does_not_change_the_table() -> None:
    train = by_rows(table(), ("x", "y"), [torch.arange(4), torch.arange(4, 8)])
    train["x"].inputs.zero_()
    assert float(train["x"].inputs.sum()) == float(torch.arange(12.0).sum())


def test_columns_by_party() -> None:
    train = by_columns(table(), ("x", "y"), [torch.tensor([2]), torch.tensor([0, 1])], "y")
    assert train["x"].targets is None
    assert torch.equal(train["y"].labels, torch.arange(8))
    assert torch.equal(train["x"].inputs, table().inputs[:, [2]])
    again = pickle.loads(pickle.dumps(train))
    assert torch.equal(again["y"].inputs, table().inputs[:, :2])
