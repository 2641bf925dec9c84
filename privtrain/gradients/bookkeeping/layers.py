"""Formulas of layers: per-example gradients of parameters from activations and output gradients."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.gradients.bookkeeping.example_gradients import (
    EmbeddingRows,
    ExampleGradients,
    Formed,
    Measure,
    OuterProduct,
    outer_products,
)
from privtrain.gradients.bookkeeping.norms import (
    chunk_rows,
    forming_pays,
    over_chunks,
    piece_norms,
)
from privtrain.gradients.bookkeeping.workspace import Workspace

LayerGradients = dict[str, ExampleGradients]
"""Name of a parameter of one layer, "weight" or "bias", to its gradients."""


def linear(layer: Any, inputs: Tensor, gradient: Tensor) -> LayerGradients:
    """`nn.Linear`: inputs `(batch, ..., in)`, gradient `(batch, ..., out)`."""
    # With one activation and one output gradient an example, the gradient is one outer product.
    if gradient.dim() == 2:
        return {"weight": OuterProduct(inputs, gradient), "bias": Formed(gradient)}
    outputs = gradient.flatten(1, -2)
    gradients: LayerGradients = {"weight": outer_products(inputs.flatten(1, -2), outputs)}
    if _trained(layer.bias):
        gradients["bias"] = Formed(outputs.sum(dim=1))
    return gradients


def _trained(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.requires_grad


def embedding(layer: Any, inputs: Tensor, gradient: Tensor) -> LayerGradients:
    """`nn.Embedding`: inputs `(batch, ...)`, gradient `(batch, ..., width)`."""
    rows, width = len(inputs), gradient.shape[-1]
    tokens = inputs.reshape(rows, -1)
    owners = torch.arange(rows, device=tokens.device).unsqueeze(1).expand_as(tokens)
    keys, flat = (owners * layer.num_embeddings + tokens).reshape(-1), gradient.reshape(-1, width)
    if layer.padding_idx is not None:
        # torch leaves the row of the padding token as it is.
        trained = tokens.reshape(-1) != layer.padding_idx
        keys, flat = keys[trained], flat[trained]
    # A token that an example holds twice: its gradients add up before they are measured.
    keys, place = torch.unique(keys, return_inverse=True)
    sums = flat.new_zeros(len(keys), width).index_add_(0, place, flat)
    owner, token = keys // layer.num_embeddings, keys % layer.num_embeddings
    return {"weight": EmbeddingRows(rows, owner, token, sums, layer.num_embeddings)}


def convolution(layer: Any, inputs: Tensor, gradient: Tensor) -> LayerGradients:
    """`nn.Conv1d` and `nn.Conv2d`: inputs `(batch, channels, ...)`."""
    gradients: LayerGradients = {"weight": ConvolutionWeight(Geometry.of(layer), inputs, gradient)}
    if _trained(layer.bias):
        gradients["bias"] = Formed(gradient.flatten(2).sum(dim=2))
    return gradients


def layer_norm(layer: Any, inputs: Tensor, gradient: Tensor) -> LayerGradients:
    """`nn.LayerNorm`: gradient `(batch, ..., *normalized_shape)`."""

    # Without a weight and a bias, torch takes twice as long.
    ones = inputs.new_ones(layer.normalized_shape)
    zeros = torch.zeros_like(ones)

    def normal(values: Tensor) -> Tensor:
        return functional.layer_norm(values, layer.normalized_shape, ones, zeros, layer.eps)

    return _scaled(layer, normal, inputs, gradient, _between(layer, gradient))


def rms_norm(layer: Any, inputs: Tensor, gradient: Tensor) -> LayerGradients:
    """`nn.RMSNorm`: gradient `(batch, ..., *normalized_shape)`."""

    def normal(values: Tensor) -> Tensor:
        return functional.rms_norm(values, layer.normalized_shape, eps=layer.eps)

    return _scaled(layer, normal, inputs, gradient, _between(layer, gradient))


def _between(layer: Any, gradient: Tensor) -> tuple[int, ...]:
    return tuple(range(1, gradient.dim() - len(layer.normalized_shape)))


def group_norm(layer: Any, inputs: Tensor, gradient: Tensor) -> LayerGradients:
    """`nn.GroupNorm`: gradient `(batch, channels, ...)`."""

    def normal(values: Tensor) -> Tensor:
        return functional.group_norm(values, layer.num_groups, eps=layer.eps)

    return _scaled(layer, normal, inputs, gradient, tuple(range(2, gradient.dim())))


def instance_norm(layer: Any, inputs: Tensor, gradient: Tensor) -> LayerGradients:
    """`nn.InstanceNorm1d` and so on, without running statistics."""

    def normal(values: Tensor) -> Tensor:
        return functional.instance_norm(values, eps=layer.eps)

    return _scaled(layer, normal, inputs, gradient, tuple(range(2, gradient.dim())))


def _scaled(
    layer: Any,
    normal: Callable[[Tensor], Tensor],
    inputs: Tensor,
    gradient: Tensor,
    between: tuple[int, ...],
) -> LayerGradients:
    """Weight and bias by which normalised inputs are scaled and moved.

    Args:
        layer: Whose parameters they are.
        normal: Normalises inputs again, each example by itself.
        inputs: Shape `(batch, ...)`.
        gradient: The same shape.
        between: Dimensions over which a parameter is shared.
    """

    def summed(values: Tensor) -> Tensor:
        return values.sum(dim=between) if between else values

    gradients: LayerGradients = {}
    if _trained(layer.weight):
        # A few examples at a time, so that their normalised inputs are still in the cache when
        # they are multiplied.
        size = chunk_rows(inputs[0].numel())
        pieces = zip(torch.split(inputs, size), torch.split(gradient, size), strict=True)
        products = [summed(normal(few).mul_(factor)) for few, factor in pieces]
        gradients["weight"] = Formed(torch.cat(products))
    if _trained(getattr(layer, "bias", None)):
        gradients["bias"] = Formed(summed(gradient))
    return gradients


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
class ConvolutionWeight:
    """The weight of a convolution.

    Args:
        geometry: How it walks over its input.
        inputs: Activations, shape `(batch, channels, ...)`.
        outputs: Output gradients, shape `(batch, out, ...)`.
    """

    geometry: Geometry
    inputs: Tensor
    outputs: Tensor
    rows: ClassVar[tuple[Tensor, ...]] = ()

    @property
    def values(self) -> int:
        """How many values the gradient of one example has."""
        return math.prod(self.geometry.shape)

    @property
    def forming(self) -> bool:
        """Whether these gradients are better formed."""
        out, *rest = self.geometry.shape
        widths = out + self.geometry.groups * math.prod(rest)
        return forming_pays(self.values, self.outputs[0, 0].numel(), widths)

    def form(self, start: int, stop: int, workspace: Workspace) -> Formed:
        """The gradients of some examples, measured while the cache holds them."""
        formed = workspace.take(self._shape(stop - start))
        pieces = [piece_norms(chunk.flatten(1)) for chunk in self._formed(formed, start)]
        return Formed(formed, torch.cat(pieces))

    def measure(self) -> Measure:
        # Groups of channels have weights of their own, so that their squares add up.
        squares, errors = over_chunks(self._chunks(0, len(self.inputs)))
        shape = (len(self.inputs), self.geometry.groups)
        return squares.reshape(shape).sum(dim=1), errors.reshape(shape).sum(dim=1)

    def each(self, start: int, stop: int) -> Tensor:
        formed = self.outputs.new_empty(self._shape(stop - start))
        for _ in self._formed(formed, start):
            pass
        return formed.reshape(stop - start, -1)

    def add(self, out: Tensor, factors: Tensor, *, overwrite: bool) -> None:
        # The backward pass of the convolution itself, with output gradients that are weighted: one
        # pass for all examples.
        g, outputs = self.geometry, _planes(self.outputs)
        weighted = outputs * factors.view(-1, 1, 1, 1)
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
        if overwrite:
            out.copy_(weight.flatten())
        else:
            out.add_(weight.flatten())

    def take(self, index: Tensor) -> "ConvolutionWeight":
        return ConvolutionWeight(self.geometry, self.inputs[index], self.outputs[index])

    def to(self, dtype: torch.dtype) -> "ConvolutionWeight":
        return ConvolutionWeight(self.geometry, self.inputs.to(dtype), self.outputs.to(dtype))

    def _shape(self, rows: int) -> tuple[int, int, int]:
        return rows, self.geometry.shape[0], math.prod(self.geometry.shape[1:])

    def _formed(self, formed: Tensor, start: int) -> Iterator[Tensor]:
        """Writes gradients of some examples, `(examples, out, in / groups x kernel)`.

        Yields:
            What was written last, while the cache holds it.
        """
        done, size = 0, formed.shape[2]
        for inputs, outputs in self._chunks(start, start + len(formed)):
            piece = formed[done : done + len(inputs) // self.geometry.groups]
            target = piece.view(len(inputs), -1, size)
            torch.bmm(outputs.transpose(1, 2), inputs, out=target)
            done += len(piece)
            yield piece

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows and output gradients, `(examples x groups, positions, ...)`.

        Windows are overwritten as soon as the next ones are asked for.
        """
        groups, size = self.geometry.groups, math.prod(self.geometry.shape[1:])
        positions = self.outputs[0, 0].numel()
        most = chunk_rows(positions * (self.outputs.shape[1] + groups * size))
        # One buffer for all chunks: fresh memory costs more than what is copied into it.
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


Formula = Callable[[Any, Tensor, Tensor], LayerGradients]

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
    """A layer's formula and the dimensions of its inputs, or None if it has no formula."""
    for kind, formula in _FORMULAS.items():
        if isinstance(layer, kind) and not _overridden(layer, kind):
            return None if _unusual(layer) else formula
    return None


def _overridden(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer computes something else than torch's own of its kind."""
    names = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    return any(n in vars(layer) or getattr(type(layer), n) is not getattr(kind, n) for n in names)


def _unusual(layer: Any) -> bool:
    """Whether a layer's settings break its formula, as gradients scaled by frequency do."""
    if isinstance(layer, nn.Embedding):
        return bool(layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse)
    return bool(getattr(layer, "track_running_stats", False))
