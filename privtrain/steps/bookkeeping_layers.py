"""Which layers are booked, and the parts of their parameters' per-example gradients."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.steps.bookkeeping_parts import (
    Formed,
    Lookups,
    Measure,
    Part,
    Room,
    Single,
    chunk_rows,
    over_chunks,
    over_time,
)

Parts = dict[str, Part]
"""Name of a parameter of one layer, "weight" or "bias", to its part."""


def linear(layer: Any, inputs: Tensor, gradient: Tensor, room: Room) -> Parts:
    """`nn.Linear`: inputs `(batch, ..., in)`, gradient `(batch, ..., out)`."""
    if gradient.dim() == 2:
        return {"weight": Single(inputs, gradient), "bias": Formed(gradient)}
    outputs = gradient.flatten(1, -2)
    parts: Parts = {"bias": Formed(outputs.sum(dim=1))}
    if layer.weight.requires_grad:
        parts["weight"] = over_time(inputs.flatten(1, -2), outputs, room)
    return parts


def embedding(layer: Any, inputs: Tensor, gradient: Tensor, room: Room) -> Parts:
    """`nn.Embedding`: inputs `(batch, ...)`, gradient `(batch, ..., width)`."""
    rows, width = len(inputs), gradient.shape[-1]
    tokens = inputs.reshape(rows, -1)
    owners = torch.arange(rows, device=tokens.device).unsqueeze(1).expand_as(tokens)
    keys, flat = (owners * layer.num_embeddings + tokens).reshape(-1), gradient.reshape(-1, width)
    if layer.padding_idx is not None:
        kept = tokens.reshape(-1) != layer.padding_idx
        keys, flat = keys[kept], flat[kept]
    keys, place = torch.unique(keys, return_inverse=True)
    sums = flat.new_zeros(len(keys), width).index_add_(0, place, flat)
    owner, token = keys // layer.num_embeddings, keys % layer.num_embeddings
    return {"weight": Lookups(rows, owner, token, sums, layer.num_embeddings)}


def convolution(layer: Any, inputs: Tensor, gradient: Tensor, room: Room) -> Parts:
    """`nn.Conv1d` and `nn.Conv2d`: inputs `(batch, channels, ...)`."""
    parts: Parts = {"bias": Formed(gradient.flatten(2).sum(dim=2))}
    if layer.weight.requires_grad:
        parts["weight"] = Windows(Geometry.of(layer), inputs, gradient).cheaper(room)
    return parts


def layer_norm(layer: Any, inputs: Tensor, gradient: Tensor, room: Room) -> Parts:
    """`nn.LayerNorm`: gradient `(batch, ..., *normalized_shape)`."""
    normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _scaled(normal, gradient, len(layer.normalized_shape))


def rms_norm(layer: Any, inputs: Tensor, gradient: Tensor, room: Room) -> Parts:
    """`nn.RMSNorm`: gradient `(batch, ..., *normalized_shape)`."""
    normal = functional.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _scaled(normal, gradient, len(layer.normalized_shape))


def _scaled(normal: Tensor, gradient: Tensor, dimensions: int) -> Parts:
    def summed(values: Tensor) -> Tensor:
        between = tuple(range(1, values.dim() - dimensions))
        return values.sum(dim=between) if between else values

    return {"weight": Formed(summed(normal * gradient)), "bias": Formed(summed(gradient))}


def group_norm(layer: Any, inputs: Tensor, gradient: Tensor, room: Room) -> Parts:
    """`nn.GroupNorm`: gradient `(batch, channels, ...)`."""
    return _by_channel(functional.group_norm(inputs, layer.num_groups, eps=layer.eps), gradient)


def instance_norm(layer: Any, inputs: Tensor, gradient: Tensor, room: Room) -> Parts:
    """`nn.InstanceNorm1d` and so on, without running statistics."""
    return _by_channel(functional.instance_norm(inputs, eps=layer.eps), gradient)


def _by_channel(normal: Tensor, gradient: Tensor) -> Parts:
    shape = (*gradient.shape[:2], -1)
    weight = (normal * gradient).reshape(shape).sum(dim=2)
    return {"weight": Formed(weight), "bias": Formed(gradient.reshape(shape).sum(dim=2))}


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input; one dimension is a second one of size 1.

    Args:
        shape: Shape of the weight, `(out, in / groups, height, width)`.
        stride: Steps, two numbers.
        padding: Zeros at both ends, two numbers.
        dilation: Distances within the kernel, two numbers.
        groups: Groups of channels.
        around: What is padded beforehand, as `functional.pad` wants it; empty for nothing.
        mode: How it is padded.
    """

    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    around: tuple[int, ...]
    mode: str

    @classmethod
    def of(cls, layer: Any) -> "Geometry":
        """The geometry of an `nn.Conv1d` or `nn.Conv2d`."""
        lead = (1,) if layer.weight.dim() == 3 else ()
        beforehand = layer.padding_mode != "zeros" or isinstance(layer.padding, str)
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        zeros = (0, 0) if beforehand else ((0,) * len(lead) + tuple(layer.padding))
        return cls(
            (*layer.weight.shape[:2], *lead, *layer.weight.shape[2:]),
            (*lead, *layer.stride),
            zeros,
            (*lead, *layer.dilation),
            layer.groups,
            tuple(layer._reversed_padding_repeated_twice) if beforehand else (),
            mode,
        )

    def padded(self, inputs: Tensor) -> Tensor:
        """Inputs, `(batch, channels, height, width)`, with what is padded beforehand."""
        if any(self.around):
            inputs = functional.pad(inputs, self.around, mode=self.mode)
        return inputs if inputs.dim() == 4 else inputs.unsqueeze(2)

    def windows(self, inputs: Tensor) -> Tensor:
        """What each output looks at: `(batch x groups, outputs, in / groups x kernel)`."""
        kernel = self.shape[2:]
        if kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            columns = inputs.flatten(2)
        else:
            columns = functional.unfold(inputs, kernel, self.dilation, self.padding, self.stride)
        size = self.shape[1] * kernel[0] * kernel[1]
        return columns.reshape(len(inputs) * self.groups, size, -1).transpose(1, 2)


@dataclass(frozen=True)
class Windows:
    """The weight of a convolution, measured a few examples at a time.

    Args:
        geometry: How it walks over its input.
        inputs: Activations, shape `(batch, channels, ...)`.
        outputs: Output gradients, shape `(batch, out, ...)`.
    """

    geometry: Geometry
    inputs: Tensor
    outputs: Tensor

    def cheaper(self, room: Room) -> Part:
        """These gradients, formed at once where there is room and it pays."""
        positions, channels = self.outputs[0, 0].numel(), self.outputs.shape[1]
        work = positions * (channels + self.geometry.groups * math.prod(self.geometry.shape[1:]))
        if room.take(math.prod(self.geometry.shape), work):
            return Formed(self._formed(0, len(self.inputs)))
        return self

    def measure(self) -> Measure:
        """Squared norms by the cheaper form, and what two orders of summation may differ by.

        Groups of channels do not meet.
        """
        squares, errors = over_chunks(self._chunks(0, len(self.inputs)))
        shape = (len(self.inputs), self.geometry.groups)
        return squares.reshape(shape).sum(dim=1), errors.reshape(shape).sum(dim=1)

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples."""
        return self._formed(start, stop).reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sum, by the backward pass of the convolution itself."""
        g = self.geometry
        inputs, outputs = g.padded(self.inputs), _planes(self.outputs)
        weighted = outputs * factors.to(outputs.dtype).reshape(-1, 1, 1, 1)
        _, weight, _ = torch.ops.aten.convolution_backward(
            weighted,
            inputs,
            out.view(g.shape),
            None,
            g.stride,
            g.padding,
            g.dilation,
            False,
            (0, 0),
            g.groups,
            (False, True, False),
        )
        out.add_(weight.view_as(out))

    def take(self, index: Tensor) -> "Windows":
        """The part of some examples."""
        return Windows(self.geometry, self.inputs[index], self.outputs[index])

    def _formed(self, start: int, stop: int) -> Tensor:
        """Gradients `(examples, out, in / groups x kernel)`."""
        height, size = self.geometry.shape[0], math.prod(self.geometry.shape[1:])
        formed = self.outputs.new_empty(stop - start, height, size)
        done = 0
        for inputs, outputs in self._chunks(start, stop):
            rows = len(inputs) // self.geometry.groups
            target = formed[done : done + rows].view(len(inputs), -1, size)
            torch.bmm(outputs.transpose(1, 2), inputs, out=target)
            done += rows
        return formed

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows and output gradients, `(examples x groups, positions, ...)`."""
        positions = self.outputs[0, 0].numel()
        each = positions * (self.outputs.shape[1] + math.prod(self.geometry.shape[1:]))
        rows = chunk_rows(each * self.geometry.groups)
        for first in range(start, stop, rows):
            chosen = slice(first, min(first + rows, stop))
            inputs = self.geometry.windows(self.geometry.padded(self.inputs[chosen]))
            outputs = self.outputs[chosen].reshape(len(inputs), -1, positions)
            yield inputs, outputs.transpose(1, 2)


def _planes(values: Tensor) -> Tensor:
    return values if values.dim() == 4 else values.unsqueeze(2)


Formula = Callable[[Any, Tensor, Tensor, Room], Parts]

_FORMULAS: Mapping[type[nn.Module], tuple[Formula, int]] = {
    nn.Linear: (linear, 0),
    nn.Embedding: (embedding, 0),
    nn.Conv1d: (convolution, 3),
    nn.Conv2d: (convolution, 4),
    nn.LayerNorm: (layer_norm, 0),
    nn.RMSNorm: (rms_norm, 0),
    nn.GroupNorm: (group_norm, 0),
    nn.InstanceNorm1d: (instance_norm, 3),
    nn.InstanceNorm2d: (instance_norm, 4),
    nn.InstanceNorm3d: (instance_norm, 5),
}
"""Layer to its formula, and to how many dimensions its inputs must have (0: any)."""


def formula_of(layer: nn.Module) -> tuple[Formula, int] | None:
    """How a layer is booked, or None: another forward pass or a parameter that is computed."""
    for kind, formula in _FORMULAS.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return None if _unusual(layer) else formula
    return None


def _unusual(layer: Any) -> bool:
    """Settings under which the formulas do not hold, such as gradients scaled by frequency."""
    if isinstance(layer, nn.Embedding):
        return bool(layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse)
    return bool(getattr(layer, "track_running_stats", False))
