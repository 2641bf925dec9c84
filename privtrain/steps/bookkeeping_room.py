"""Where formed gradients are kept, and how many of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class Workspace:
    """Memory that formed gradients are written to, kept from step to step.

    Fresh memory costs more than what is computed into it. A copy of it is empty.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._used = self._wanted = 0

    def __reduce__(self) -> tuple[type["Workspace"], tuple[()]]:
        return Workspace, ()

    def restart(self) -> None:
        """Makes all of it free again; whatever was written to it is void."""
        self._used, self._wanted = 0, 0

    def take(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Room for a tensor of a shape, with the type and device of another; not initialised."""
        size = math.prod(shape)
        self._wanted += size
        held = self._buffer
        if held.dtype != like.dtype or held.device != like.device or held.numel() < self._wanted:
            if self._used:
                return like.new_empty(shape)
            self._buffer = held = like.new_empty(self._wanted)
        start, self._used = self._used, self._used + size
        return held[start : start + size].view(shape)


@dataclass
class Room:
    """How many values of each example's gradients may still be formed and kept.

    Args:
        values: How many; the engine sets it by what activations take anyway.
        workspace: Where they are kept.
    """

    values: float
    workspace: Workspace

    def admits(self, values: int, work: int) -> bool:
        """Whether gradients are formed: they fit, and are not much dearer than measuring them.

        Args:
            values: How many values an example's gradient has.
            work: How many values it is made of.
        """
        if values > min(self.values, 2 * work):
            return False
        self.values -= values
        return True
