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
    Single,
    chunk_rows,
    over_chunks,
    over_time,
)
from privtrain.steps.bookkeeping_room import Room

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
        dilation: Distances within the kernel, two numbers.
        groups: Groups of channels.
        around: What is padded beforehand, as `functional.pad` wants it.
        mode: How it is padded.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    around: tuple[int, ...]
    mode: str

    @classmethod
    def of(cls, layer: Any) -> "Geometry":
        """The geometry of an `nn.Conv1d` or `nn.Conv2d`."""
        lead = (1,) if layer.weight.dim() == 3 else ()
        return cls(
            (*layer.weight.shape[:2], *lead, *layer.weight.shape[2:]),
            (*lead, *layer.stride),
            (*lead, *layer.dilation),
            layer.groups,
            tuple(layer._reversed_padding_repeated_twice),
            "constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        )

    def padded(self, inputs: Tensor) -> Tensor:
        """Padded inputs, `(batch, channels, height, width)`."""
        if any(self.around):
            inputs = functional.pad(inputs, self.around, mode=self.mode)
        return inputs if inputs.dim() == 4 else inputs.unsqueeze(2)

    def windows(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What each output looks at: a view `(batch, channels, *kernel, *output)`.

        Args:
            inputs: Padded, `(batch, channels, height, width)`.
            outputs: Shape `(batch, out, height, width)`.
        """
        batch, channel, *place = inputs.stride()
        within = [step * apart for step, apart in zip(place, self.dilation, strict=True)]
        between = [step * apart for step, apart in zip(place, self.stride, strict=True)]
        shape = (*inputs.shape[:2], *self.shape[2:], *outputs.shape[2:])
        return inputs.as_strided(
            shape, (batch, channel, *within, *between), inputs.storage_offset()
        )


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
        if not room.admits(math.prod(self.geometry.shape), work):
            return self
        formed = room.workspace.take(self.outputs, self._shape(len(self.inputs)))
        return Formed(self._form(formed, 0))

    def measure(self) -> Measure:
        """Squared norms by the cheaper form, and what two orders of summation may differ by.

        Groups of channels do not meet.
        """
        squares, errors = over_chunks(self._chunks(0, len(self.inputs)))
        shape = (len(self.inputs), self.geometry.groups)
        return squares.reshape(shape).sum(dim=1), errors.reshape(shape).sum(dim=1)

    def each(self, start: int, stop: int) -> Tensor:
        """The gradients of some examples."""
        formed = self.outputs.new_empty(self._shape(stop - start))
        return self._form(formed, start).reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor) -> None:
        """Adds the weighted sum, by the backward pass of the convolution itself."""
        g, outputs = self.geometry, _planes(self.outputs)
        weighted = outputs * factors.to(outputs.dtype).reshape(-1, 1, 1, 1)
        _, weight, _ = torch.ops.aten.convolution_backward(
            weighted,
            g.padded(self.inputs),
            out.view(g.shape),
            None,
            g.stride,
            (0, 0),
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

    def _shape(self, rows: int) -> tuple[int, int, int]:
        return rows, self.geometry.shape[0], math.prod(self.geometry.shape[1:])

    def _form(self, formed: Tensor, start: int) -> Tensor:
        """Writes gradients of some examples, `(examples, out, in / groups x kernel)`."""
        done, size = 0, formed.shape[2]
        for inputs, outputs in self._chunks(start, start + len(formed)):
            rows = len(inputs) // self.geometry.groups
            target = formed[done : done + rows].view(len(inputs), -1, size)
            torch.bmm(outputs.transpose(1, 2), inputs, out=target)
            done += rows
        return formed

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows and output gradients, `(examples x groups, positions, ...)`.

        Windows are void as soon as the next ones are asked for.
        """
        groups, size = self.geometry.groups, math.prod(self.geometry.shape[1:])
        positions = self.outputs[0, 0].numel()
        most = chunk_rows(positions * (self.outputs.shape[1] + groups * size))
        buffer = self.inputs.new_empty(min(most, stop - start) * groups * size * positions)
        for first in range(start, stop, most):
            chosen = slice(first, min(first + most, stop))
            outputs = _planes(self.outputs[chosen])
            view = self.geometry.windows(self.geometry.padded(self.inputs[chosen]), outputs)
            columns = buffer[: view.numel()]
            columns.view(view.shape).copy_(view)
            yield (
                columns.view(-1, size, positions).transpose(1, 2),
                outputs.reshape(len(outputs) * groups, -1, positions).transpose(1, 2),
            )


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
