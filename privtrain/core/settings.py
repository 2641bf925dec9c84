"""Settings of the process that a user's code may change, and that what follows would run with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_AUTOCAST = ("cpu", "cuda")


def _set_default_device(device: torch.device) -> None:
    # None first: where none was set, each call of torch would pass through the one set here.
    torch.set_default_device(None)
    if torch.get_default_device() != device:
        torch.set_default_device(device)


def _set_autocast(enabled: list[bool]) -> None:
    for device, on in zip(_AUTOCAST, enabled, strict=True):
        torch.set_autocast_enabled(device, on)
    # It holds casts of weights from before the next step.
    torch.clear_autocast_cache()


# How each setting is read and set. Neither torch's number of threads nor filters of warnings, which
# another thread's step changes for a while: what is read meanwhile must not be put back.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (lambda: [torch.is_autocast_enabled(device) for device in _AUTOCAST], _set_autocast),
    (np.geterr, lambda errors: np.seterr(**errors)),
)


def read_settings() -> list[Any]:
    """The settings as they are, for a process that shall compute as this one does."""
    return [read() for read, _ in _SETTINGS]


def set_settings(values: Sequence[Any]) -> None:
    """Sets what `read_settings` read."""
    for (read, write), value in zip(_SETTINGS, values, strict=True):
        if read() != value:
            write(value)


@contextmanager
def kept_settings() -> Iterator[None]:
    """Puts back what a user's model, loss, optimizer, metric or attack may have set.

    These are torch's default type and device, determinism, precision of products, anomaly
    detection and autocast, whether it records gradients or is in inference mode, and what numpy
    does about floating-point errors. What the thread shares with others, such as the default type,
    is put back for them, too.
    """
    before = read_settings()
    records = torch.is_grad_enabled()
    try:
        # The same mode again: when it ends, torch leaves what was entered within, too.
        with torch.inference_mode(torch.is_inference_mode_enabled()):
            torch.set_grad_enabled(records)
            yield
    finally:
        set_settings(before)


@contextmanager
def recorded_gradients() -> Iterator[None]:
    """Lets torch record gradients, whatever the caller turned off around it."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
