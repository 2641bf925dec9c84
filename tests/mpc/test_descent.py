from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, ProtocolError
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.validate import check_finite
from privtrain.mpc.descent import agreed
from privtrain.mpc.sharing import LARGEST
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.processes.mesh import Processes
from privtrain.trainers.mpc_sgd import MPCSGD
from tests.mpc.federations import CLASSES, FEATURES, by_columns, by_rows, logistic

RUNTIMES = Runtimes(star=InProcess(), mesh=Processes(timeout=60))


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
