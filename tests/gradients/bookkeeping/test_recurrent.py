"""Recurrent layers as linear ones: the same function, the same gradients, the same model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.bookkeeping.recurrent import Unrolled
from tests.gradients.bookkeeping.cases import ROUNDING, C
from tests.gradients.loops import clipped, example_gradients


class Reader(nn.Module):
    """A recurrent layer whose last output and last state decide."""

    def __init__(self, start: bool = False, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.body = kind(4, 5, **options)
        ways = 2 if self.body.bidirectional else 1
        self.head = nn.Linear(5 * ways + 5, 3)
        self.start = nn.Linear(4, 5) if start else None

    def forward(self, x: Tensor) -> Tensor:
        given = x if self.body.batch_first else x.transpose(0, 1)
        state = None
        if self.start is not None:
            first = self.start(x[:, 0]).unsqueeze(0)
            state = (first, first.tanh()) if self.body.mode == "LSTM" else first
        found, after = self.body(given, state)
        hidden, cell = after if self.body.mode == "LSTM" else (after, after)
        last = found[:, -1] if self.body.batch_first else found[-1]
        out: Tensor = self.head(torch.cat([last, hidden[-1] * cell[0]], dim=1))
        return out


KINDS: list[dict[str, Any]] = [
    {"batch_first": True},
    {"batch_first": False},
    {"batch_first": True, "bias": False},
    {"batch_first": True, "num_layers": 3},
    {"batch_first": True, "num_layers": 2, "bidirectional": True},
    {"batch_first": True, "start": True},
    {"kind": nn.GRU, "batch_first": True},
    {"kind": nn.GRU, "batch_first": False, "bias": False},
    {"kind": nn.GRU, "batch_first": True, "num_layers": 2, "bidirectional": True},
    {"kind": nn.GRU, "batch_first": True, "start": True},
    {"kind": nn.RNN, "batch_first": True, "num_layers": 2},
    {"kind": nn.RNN, "batch_first": True, "nonlinearity": "relu", "start": True},
]


def model(**options: Any) -> Reader:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Reader(**options).double()


def rows(count: int = 6) -> Rows:
    generator = torch.Generator().manual_seed(1)
    inputs = 2 * torch.randn(count, 7, 4, generator=generator, dtype=torch.float64)
    return Rows(inputs, torch.randint(3, (count,), generator=generator))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_the_same_function(kind: dict[str, Any]) -> None:
    lstm = model(**kind).body
    twin = Unrolled("body", lstm)
    twin.share()
    inputs = rows().inputs if lstm.batch_first else rows().inputs.transpose(0, 1)
    torch.testing.assert_close(twin(inputs), lstm(inputs), rtol=1e-12, atol=1e-13)


class ByCells(nn.Module):
    """A cell that is called once a step, and once more from its last state."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.body, self.head = kind(4, 5, **options), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in (*x.unbind(dim=1), x[:, 0]):
            state = self.body(step, state)
        out: Tensor = self.head(state[0] * state[1] if isinstance(state, tuple) else state)
        return out


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTMCell, {}),
        (nn.LSTMCell, {"bias": False}),
        (nn.GRUCell, {}),
        (nn.RNNCell, {}),
        (nn.RNNCell, {"nonlinearity": "relu"}),
    ],
)
def test_cells_are_taken_step_by_step(kind: Any, options: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = ByCells(kind, **options).double()
    engine = BookKeeping().engine(whole, cross_entropy)
    found = engine.clipped_sum(rows(), C)
    assert engine.notes == ()
    wanted = clipped(example_gradients(whole, rows()), C).sum(dim=0)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-11)
    with pytest.raises(UnsupportedError, match=r"\(batch, features\)"):
        Unrolled("body", whole.body)(torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_sums_are_those_of_single_gradients(kind: dict[str, Any]) -> None:
    whole = model(**kind)
    names = list(whole.state_dict())
    engine = BookKeeping().engine(whole, cross_entropy)
    found = engine.clipped_sum(rows(), C)
    assert engine.notes == (), "formulas must do, without torch.func"
    gradients = example_gradients(model(**kind), rows())
    torch.testing.assert_close(found.value, clipped(gradients, C).sum(dim=0), rtol=1e-9, atol=1e-11)
    assert bool((found.norms >= gradients.norm(dim=1)).all())
    assert list(whole.state_dict()) == names
    assert "forward" not in vars(whole.body) and not whole.body._forward_hooks


def test_frozen_parts_and_replaced_parameters() -> None:
    whole = model(batch_first=True)
    whole.body.weight_ih_l0.requires_grad_(False)
    engine = BookKeeping().engine(whole, cross_entropy)
    engine.clipped_sum(rows(), C)
    whole.body.weight_hh_l0 = nn.Parameter(whole.body.weight_hh_l0.detach() * 2)
    found = engine.clipped_sum(rows(), C)
    gradients = example_gradients(whole, rows())
    torch.testing.assert_close(found.value, clipped(gradients, C).sum(dim=0), rtol=1e-9, atol=1e-11)


def test_no_contribution_exceeds_the_bound_over_long_sequences() -> None:
    whole = model(batch_first=True, num_layers=2).float()
    engine = BookKeeping().engine(whole, cross_entropy)
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-2, 1.0, 1e3):
        inputs = scale * torch.randn(1, 60, 4, generator=generator)
        found = engine.clipped_sum(Rows(inputs, torch.zeros(1, dtype=torch.long)), 1e-3)
        assert 0 < float(found.value.double().norm()) <= 1e-3 * ROUNDING


def test_dropout_between_layers_is_drawn() -> None:
    whole = model(batch_first=True, num_layers=2, dropout=0.5)
    engine = BookKeeping().engine(whole, cross_entropy)
    with torch.random.fork_rng():
        sums = [engine.clipped_sum(rows(), C).value for _ in range(2)]
    assert not torch.equal(*sums)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropout_is_between_layers_and_nowhere_else(dropout: float) -> None:
    # At one nothing is left to be drawn: all layers but the first read zeros.
    lstm = model(batch_first=True, num_layers=2, dropout=dropout).body.train()
    for found, wanted in zip(
        Unrolled("body", lstm)(rows().inputs), lstm(rows().inputs), strict=True
    ):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_packed_sequences_are_refused() -> None:
    class Packs(Reader):
        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.full((len(x),), x.shape[1])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            out: Tensor = self.head(self.body(packed)[1][0][-1].repeat(1, 2))
            return out

    engine = BookKeeping().engine(Packs(batch_first=True).double(), cross_entropy)
    with pytest.raises(UnsupportedError, match="padded to one length"):
        engine.clipped_sum(rows(), C)


class Words(nn.Module):
    """A language model whose head is the table of its words."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(11, 4), nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(1, len(x), 4, dtype=x.dtype)
        hidden, _ = self.body(input=self.table(x.long()), hx=(zeros, zeros))
        out: Tensor = nn.functional.linear(hidden, self.table.weight).mean(dim=1)
        return out


def test_an_lstm_beside_a_weight_without_a_formula() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = Words().double()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(11, (6, 5), generator=generator).double()
    tokens = Rows(inputs, torch.randint(11, (6,), generator=generator))
    engine = BookKeeping().engine(whole, cross_entropy)
    found = engine.clipped_sum(tokens, C)
    assert len(engine.notes) == 1
    wanted = clipped(example_gradients(whole, tokens), C).sum(dim=0)
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-11)
    assert "forward" not in vars(whole.body)
