"""Models without a formula for each parameter are taken one example at a time."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import to_vector, trainable
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.bookkeeping.torch_func import TorchFuncEngine
from tests.gradients.bookkeeping import attention
from tests.gradients.bookkeeping.cases import C, Case, engine_of, equal, expected
from tests.gradients.loops import (
    Make,
    Outside,
    Own,
    clipped,
    coupled_sum,
    example_gradients,
    in_float64,
    rows_for,
)


@pytest.mark.parametrize("make", [Own, Outside])
def test_a_weight_outside_of_layers_is_taken_one_example_at_a_time(make: Make) -> None:
    rows = rows_for(make)
    engine = engine_of(make)
    for _ in range(2):
        found = engine.clipped_sum(rows, C)
        equal(found, expected(make, rows))
        torch.testing.assert_close(
            found.norms, example_gradients(in_float64(make), rows).norm(dim=1)
        )
    assert len(engine.notes) == 1
    assert "torch.func" in engine.notes[0]
    bad = Rows(rows.inputs.clone(), rows.labels)
    bad.inputs[0, 0] = float("nan")
    found = engine.clipped_sum(bad, C)
    equal(found, expected(make, rows.take(torch.arange(1, 7))))
    assert found.non_finite == 1


class TimeFirst(nn.Module):
    """Gives its layers inputs of shape (time, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.transpose(0, 1))
        return out.mean(dim=0)


class Places(nn.Module):
    """Adds what it learned of each place, looked up once for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(9, 4), nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        placed = self.table(x.long().abs() % 9) + self.place(torch.arange(x.shape[1]))
        out: Tensor = self.head(torch.tanh(placed).mean(dim=1))
        return out


@pytest.mark.parametrize("count", [1, 5, 7, 20])
@pytest.mark.parametrize(("make", "shape"), [(TimeFirst, (7, 6)), (Places, (7,))])
def test_layers_that_do_not_see_one_row_each_are_taken_one_example_at_a_time(
    make: Make, shape: tuple[int, ...], count: int
) -> None:
    rows = Case(make, shape, 9 if make is Places else 0).rows(count)
    engine = engine_of(make)
    equal(engine.clipped_sum(rows, C), expected(make, rows))
    assert len(engine.notes) == 1
    assert "does not count the examples" in engine.notes[0]


def test_an_empty_batch_adds_up_to_zero() -> None:
    model, rows = in_float64(Own), rows_for(Own)
    found = TorchFuncEngine(model, cross_entropy).clipped_sum(rows.take(torch.arange(0)), C)
    assert torch.equal(found.value, torch.zeros_like(to_vector(trainable(model))))
    assert len(found.norms) == len(found.losses) == 0


# Frozen in evaluation mode, torch's encoder packs its rows; what is trained does not.
packing = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
hint = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")


@packing
@hint
@pytest.mark.parametrize("name", attention.ATTENTION)
def test_clipped_gradients_of_attention_are_those_of_a_plain_loop(name: str) -> None:
    make, rows = attention.ATTENTION[name], attention.tokens()
    engine = engine_of(make)
    engine.try_on(rows)
    wanted = clipped(example_gradients(in_float64(make).train(), rows), C)
    equal(engine.clipped_sum(rows, C), wanted.sum(dim=0))
    for row in range(len(rows)):
        equal(engine.clipped_sum(rows.take(torch.tensor([row])), C), wanted[row])
    assert len(engine.notes) == 1 and "torch.func" in engine.notes[0]
    assert all(
        layer.use_nested_tensor
        for layer in engine.model.modules()
        if isinstance(layer, nn.TransformerEncoder) and name == "frozen"
    )


@pytest.mark.parametrize("causal", [True, False])
def test_own_attention_of_linear_layers_needs_no_torch_func(causal: bool) -> None:
    def make() -> nn.Module:
        return attention.Own(causal)

    engine = engine_of(make)
    equal(engine.clipped_sum(attention.tokens(), C), expected(make, attention.tokens()))
    assert engine.notes == ()


@hint
@pytest.mark.parametrize("weights", [True, False, None])
def test_one_row_moves_a_sum_of_attention_by_its_bound_at_most(weights: bool | None) -> None:
    """With dropout in the attention, each row's own draws held fixed."""

    def make() -> nn.Module:
        if weights is None:
            return attention.Reader(attention.encoder(dropout=0.3), padded=True)
        return attention.Heads(weights, dropout=0.3)

    rows = attention.tokens(30)
    engine, every = engine_of(make), torch.arange(len(rows))
    engine.clipped_sum(rows, 0.01)
    for row in (0, 11, len(rows) - 1):
        whole = coupled_sum(engine, rows, every, 0.01)
        without = coupled_sum(engine, rows, every[every != row], 0.01)
        assert 0.005 < float((whole - without).norm()) <= 0.01 * (1 + 1e-9)


def test_dropout_of_attention_is_drawn_for_each_row() -> None:
    one = attention.tokens(1)
    same = one.take(torch.zeros(20, dtype=torch.long))
    engine = engine_of(lambda: attention.Heads(dropout=0.5))
    norms = engine.clipped_sum(same, C).norms
    assert len(torch.unique(norms)) > 10


def test_rows_that_attend_to_one_another_are_refused() -> None:
    engine = engine_of(lambda: attention.TimeForBatch(batch_first=False))
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        engine.try_on(attention.tokens())


class Chooses(nn.Module):
    """Asks for a value, and has a parameter that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.own = nn.Linear(6, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.own
        return out if bool(torch.isfinite(out).all()) else out.nan_to_num()


def test_what_torch_func_cannot_take_is_refused_before_training() -> None:
    engine = BookKeeping().engine(in_float64(Chooses), cross_entropy)
    with pytest.raises(
        UnsupportedError, match=r"'own' is used outside.*no value of a row"
    ) as error:
        engine.try_on(rows_for(Own))
    assert "Opacus" not in str(error.value) and "unprotected" not in str(error.value)
