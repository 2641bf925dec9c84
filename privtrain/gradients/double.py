"""A model in float64 for a while, whatever type it is written in."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_WIDER = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64)
_WIDER |= dict.fromkeys((torch.complex64, torch.complex32), torch.complex128)


@contextmanager
def in_double(model: nn.Module) -> Iterator[None]:
    """Computes in float64 within it: parameters, buffers, and what a forward pass makes anew.

    Rounding then neither hides a small difference nor tips a rectifier. The parameters stay the
    objects that they are, so that closures see them, and get their own values back, bit by bit.

    Args:
        model: The model.
    """
    tensors = [tensor for tensor in _tensors(model) if tensor.dtype in _WIDER]
    values = [tensor.data for tensor in tensors]
    try:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value.to(_WIDER[value.dtype])
        with _Double():  # type: ignore[no-untyped-call]
            yield
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value


def widened(tensor: Tensor) -> Tensor:
    """Floating-point values in float64, others as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class _Double(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes float64 wherever an operation is given or asked for a coarser type."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _WIDER:
            kwargs = kwargs | {"dtype": _WIDER[kwargs["dtype"]]}
        written = _written(func)
        args = tuple(
            value if place in written else _wider(value) for place, value in enumerate(args)
        )
        made = func(*args, **kwargs)
        fresh = not any(isinstance(value, Tensor) for value in [*args, *kwargs.values()])
        return _wider(made) if fresh else made


@lru_cache(maxsize=4096)
def _written(func: Any) -> frozenset[int]:
    """Places of the arguments that an operation writes to; those keep their type."""
    arguments = enumerate(func._schema.arguments)
    return frozenset(n for n, each in arguments if each.alias_info and each.alias_info.is_write)


def _wider(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _WIDER:
        return value.to(_WIDER[value.dtype])
    return value
