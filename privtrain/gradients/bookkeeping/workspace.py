"""Where formed gradients are kept for a moment."""

import math

import torch
from torch import Tensor


def widen_heap() -> None:
    """Lets the C library keep what a step frees, instead of asking the system for it each time.

    glibc raises its thresholds to the largest block that it sees freed, up to 32 MiB (mallopt(3),
    M_MMAP_THRESHOLD). The block is never touched, so that it costs no memory; elsewhere this does
    nothing. On steps with large activations page faults took a fifth of the time.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


class Workspace:
    """Memory that formed gradients are written to, kept from step to step.

    Fresh memory costs more than what is computed into it. A copy of it is empty.
    """

    def __init__(self) -> None:
        widen_heap()
        self._buffer = torch.empty(0)
        self._used = 0

    def __reduce__(self) -> tuple[type["Workspace"], tuple[()]]:
        return Workspace, ()

    def restart(self, like: Tensor, values: int) -> None:
        """Makes all of it free again; whatever was written to it is void.

        Args:
            like: A tensor of the type and on the device that are wanted.
            values: How many values will be taken at most.
        """
        held = self._buffer
        if held.dtype != like.dtype or held.device != like.device or held.numel() < values:
            self._buffer = like.new_empty(values)
        self._used = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Room for a tensor of a shape; not initialised."""
        start, self._used = self._used, self._used + math.prod(shape)
        return self._buffer[start : self._used].view(shape)
