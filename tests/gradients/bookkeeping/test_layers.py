"""Every layer's formula against one example at a time."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping, BookKeepingEngine
from tests.gradients.bookkeeping.cases import CASES, C, Case, engine_of, equal, expected
from tests.gradients.loops import (
    clipped,
    example_gradients,
    in_float64,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("price", [0.0, 1e9], ids=["unformed", "formed"])
@pytest.mark.parametrize("values", [1, 300])
def test_forming_gradients_changes_nothing(
    case: Case, price: float, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privtrain.gradients.bookkeeping.norms._FORMING", price)
    monkeypatch.setattr("privtrain.gradients.bookkeeping.sum.FORMED_VALUES", values)
    found = engine_of(case.make).clipped_sum(case.rows(), C)
    equal(found, expected(case.make, case.rows()))


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_equals_one_example_at_a_time(case: Case) -> None:
    rows = case.rows()
    gradients = example_gradients(in_float64(case.make), rows)
    bound = float(gradients.norm(dim=1).median())
    engine = engine_of(case.make)
    for _ in range(2):  # nothing is left over from the first batch
        found = engine.clipped_sum(rows, bound)
    equal(found, clipped(gradients, bound).sum(dim=0))
    torch.testing.assert_close(found.norms, gradients.norm(dim=1), rtol=1e-9, atol=1e-12)
    assert engine.notes == (), "formulas must do, without the slower way"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opacus_lstm_has_formulas() -> None:
    from opacus.layers import DPLSTM

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = DPLSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(x)[0][:, -1])
            return out

    case = Case(Reads, (6, 4))
    rows = Rows(case.rows().inputs.float(), case.rows().labels)  # its first state is float32
    engine = BookKeeping().engine(in_float64(Reads).float(), cross_entropy)
    assert isinstance(engine, BookKeepingEngine)
    found = engine.clipped_sum(rows, C).value
    wanted = clipped(example_gradients(in_float64(Reads).float(), rows), C).sum(dim=0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert engine.notes == ()
