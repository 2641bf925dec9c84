import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.core.settings import kept_settings
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.runs.fitting import fit
from privtrain.trainers.sgd import SGD


def state() -> tuple[object, ...]:
    return torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()


def change() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    np.seterr(all="ignore")


def test_settings_are_put_back() -> None:
    before = state()
    with kept_settings():
        change()
        assert state() != before
    assert state() == before
    with pytest.raises(KeyError), kept_settings():
        change()
        raise KeyError
    assert state() == before


class Changing(nn.Module):
    """Changes the types of the process when it is made."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_default_dtype(torch.float64)
        np.seterr(all="ignore")
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(x.double())
        return answer


def test_a_model_does_not_change_what_the_next_fit_is_computed_with() -> None:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    rows = Rows(inputs, (inputs[:, 0] > 0).long())
    data, before = FederatedData(train={"a": rows}, test=rows), state()
    fit(SGD(epochs=1), Task(model=Changing), data)
    assert state() == before
    made = fit(SGD(epochs=1), Task(model=lambda: nn.Linear(3, 2)), data)
    assert made.predictor(inputs).dtype is torch.float32
