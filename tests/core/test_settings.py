from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.core.settings import kept_settings, read_settings, recorded_gradients, set_settings
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.runs.fitting import fit
from privtrain.trainers.sgd import SGD


def state() -> tuple[object, ...]:
    made = torch.ones(2) + 1
    return (
        *(torch.get_default_dtype(), torch.get_default_device()),
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        *(torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision()),
        *(torch.is_autocast_enabled("cpu"), np.geterr()),
        *(made.dtype, made.device, made.is_inference()),
    )


CHANGES: dict[str, Callable[[], object]] = {
    "type": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "gradients": lambda: torch.set_grad_enabled(False),
    "inference": lambda: HELD.enter_context(torch.inference_mode()),
    "determinism": lambda: torch.use_deterministic_algorithms(True),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "numpy": lambda: np.seterr(all="raise"),
}
HELD = ExitStack()
"""Keeps what is entered, which torch would leave when it is collected."""


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_settings_are_put_back(change: Callable[[], object]) -> None:
    before = state()
    with kept_settings():
        change()
        assert state() != before
    assert state() == before
    with pytest.raises(KeyError), kept_settings():
        change()
        raise KeyError
    assert state() == before


def test_another_process_may_be_set_as_this_one() -> None:
    before = read_settings()
    with kept_settings():
        torch.set_default_dtype(torch.float64)
        np.seterr(over="raise")
        taken = read_settings()
        set_settings(before)
        assert torch.get_default_dtype() is before[0]
        set_settings(taken)
        assert torch.get_default_dtype() is torch.float64 and np.geterr()["over"] == "raise"
    assert read_settings() == before


def test_settings_of_the_caller_stay() -> None:
    with torch.no_grad(), kept_settings():
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        before = state()
        with kept_settings():
            assert state() == before
            torch.set_grad_enabled(True)
        assert state() == before
        with recorded_gradients():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
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
