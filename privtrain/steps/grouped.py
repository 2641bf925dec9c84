"""One forward pass of many models of one kind, each on rows of its own.

Layers that are known are computed for all models at once: linear ones as one batched product, and
convolutions as one, too, of the patches that each place sees. Of all others `torch.func.vmap` makes
one pass.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from privtrain.core.task import Loss, cross_entropy

Weights = Mapping[str, Tensor]
"""Name in the model to the values of all models, shape `(models, ...)`."""


class Forward(Protocol):
    """One pass of many models."""

    @property
    def is_same_in_evaluation(self) -> bool:
        """Whether models in evaluation mode compute the same."""
        ...

    def __call__(self, weights: Weights, inputs: Tensor) -> Tensor:
        """Inputs `(models, batch, ...)` to outputs `(models, batch, ...)`."""
        ...


ELEMENTWISE = (
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.LeakyReLU),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.Identity, nn.Mish, nn.LogSigmoid),
)
"""Layers that treat each number by itself."""


def forward_of(model: nn.Module) -> Forward:
    """One pass of many models like this one.

    Args:
        model: One of them, in training mode, which draws nothing and keeps nothing.
    """
    layers = list(chained_layers(model))
    if all(is_known(layer) for _, layer in layers) and _has_order(layer for _, layer in layers):
        return _Chain([(name, layer) for name, layer in layers])
    return _Mapped(model)


def losses_of(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Outputs and targets of many models, `(models, batch, ...)`, to losses `(models, batch)`."""
    if loss is cross_entropy:
        # Its rows are alone, so that those of all models may lie in one table.
        return lambda outputs, targets: cross_entropy(
            outputs.flatten(0, 1), targets.flatten(0, 1)
        ).view(targets.shape[:2])
    # Model by model: what a loss does to rows that it is given together stays within one model.
    mapped: Callable[[Tensor, Tensor], Tensor] = vmap(loss)
    return mapped


class _Mapped:
    """`torch.func.vmap` of a model."""

    is_same_in_evaluation = False

    def __init__(self, model: nn.Module) -> None:
        def call(weights: Weights, inputs: Tensor) -> Any:
            return functional_call(model, dict(weights), (inputs,))

        self._call = vmap(call)

    def __call__(self, weights: Weights, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._call(dict(weights), inputs)
        return outputs


def chained_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a chain and what their names begin with; of what is no chain itself."""
    if type(model) is not nn.Sequential or _is_hooked(model):
        yield prefix, model
        return
    # Not `named_children`, which leaves out a layer that stands twice.
    for name, layer in model._modules.items():
        if layer is not None:
            yield from chained_layers(layer, f"{prefix}{name}.")


def is_known(layer: nn.Module) -> bool:
    """Whether a layer computes what its type says, of rows that are alone."""
    if _is_hooked(layer) or any(True for _ in layer.buffers()):
        return False
    if type(layer) is nn.Conv2d:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and layer.dilation == (1, 1) and layer.groups == 1
    if type(layer) is nn.MaxPool2d:
        return layer.dilation in (1, (1, 1)) and not (layer.ceil_mode or layer.return_indices)
    if type(layer) is nn.Flatten:
        return layer.start_dim == 1 and layer.end_dim == -1
    return type(layer) in (nn.Linear, nn.AvgPool2d, *ELEMENTWISE)


def _is_hooked(layer: nn.Module) -> bool:
    tables = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    return any(tables) or bool(layer._backward_pre_hooks) or "forward" in vars(layer)


def _has_order(layers: Iterator[nn.Module]) -> bool:
    """Whether images come before a Flatten, flat rows behind it, and no layer stands twice."""
    flat, images, seen = False, False, set[int]()
    for layer in layers:
        with_weights = any(True for _ in layer.parameters())
        if with_weights and id(layer) in seen:
            return False
        seen.add(id(layer))
        if type(layer) in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d):
            if flat:
                return False
            images = True
        elif type(layer) is nn.Flatten:
            flat = True
        elif type(layer) is nn.Linear:
            if images and not flat:
                return False
            flat = True
    return True


class _Chain:
    """Known layers, one after the other.

    Images lie as `(models, channels, height, width, batch)`: what a batched product makes of
    patches needs no copy then, and what is shifted moves in runs of a batch. Flat rows lie as
    `(models, batch, ...)`.
    """

    is_same_in_evaluation = True

    def __init__(self, layers: list[tuple[str, nn.Module]]) -> None:
        self._layers = layers
        self._of_images = any(type(layer) is nn.Conv2d for _, layer in layers) or any(
            type(layer) in (nn.MaxPool2d, nn.AvgPool2d) for _, layer in layers
        )

    def __call__(self, weights: Weights, inputs: Tensor) -> Tensor:
        value, images = inputs, self._of_images
        if images:
            value = inputs.movedim(1, -1).contiguous()
        for name, layer in self._layers:
            if type(layer) is nn.Flatten and images:
                value, images = value.movedim(-1, 1).flatten(2), False
            elif type(layer) is nn.Flatten:
                value = value.flatten(2)
            elif type(layer) is nn.Linear:
                value = _linear(weights, name, value)
            elif type(layer) is nn.Conv2d:
                value = _convolution(layer, weights, name, value)
            elif type(layer) is nn.MaxPool2d:
                value = max_pool(value, layer)
            elif type(layer) is nn.AvgPool2d:
                value = layer(value.movedim(-1, 1).flatten(0, 2))
                value = value.unflatten(0, (len(inputs), inputs.shape[1], -1)).movedim(1, -1)
            else:
                value = layer(value)
        return value.movedim(-1, 1) if images else value


def _linear(weights: Weights, name: str, value: Tensor) -> Tensor:
    weight, bias = weights[f"{name}weight"], weights.get(f"{name}bias")
    flat = value.flatten(1, -2)
    made: Tensor = _Products.apply(flat, weight)  # type: ignore[no-untyped-call]
    made = made if bias is None else made + bias.unsqueeze(1)
    return made.view(*value.shape[:-1], -1)


class _Products(torch.autograd.Function):
    """Rows times weights, of each model `(models, rows, inputs)` and `(models, outputs, inputs)`.

    Torch's own gradient of the weights is laid out the other way round, and copied in every step.
    """

    @staticmethod
    def forward(context: Any, value: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(value, weight)
        return torch.bmm(value, weight.transpose(1, 2))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        value, weight = context.saved_tensors
        by_value = torch.bmm(gradient, weight) if context.needs_input_grad[0] else None
        return by_value, torch.bmm(gradient.transpose(1, 2), value)


def _convolution(layer: nn.Conv2d, weights: Weights, name: str, value: Tensor) -> Tensor:
    height, width = _pair(layer.padding)  # type: ignore[arg-type]  # no text: see `is_known`
    if height or width:
        value = functional.pad(value, (0, 0, width, width, height, height))
    weight = weights[f"{name}weight"]
    bias = weights.get(f"{name}bias")
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
    made: Tensor = _Convolution.apply(value, weight, bias, _pair(layer.stride))  # type: ignore[no-untyped-call]
    return made


class _Convolution(torch.autograd.Function):
    """One batched product of the filters of each model and the patches that its images have."""

    @staticmethod
    def forward(
        context: Any, value: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int]
    ) -> Tensor:
        patches, shape = _patches(value, _pair(weight.shape[-2:]), stride)
        context.save_for_backward(patches, weight)
        context.of = (value.shape, _pair(weight.shape[-2:]), stride)
        made = torch.baddbmm(bias.unsqueeze(2), weight.flatten(2), patches)
        return made.view(*weight.shape[:2], *shape)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        patches, weight = context.saved_tensors
        flat = gradient.flatten(2)
        by_weight = torch.bmm(flat, patches.transpose(1, 2)).view_as(weight)
        if not context.needs_input_grad[0]:
            return None, by_weight, flat.sum(dim=2), None
        whole, kernel, stride = context.of
        by_patch = torch.bmm(weight.flatten(2).transpose(1, 2), flat)
        by_patch = by_patch.view(*whole[:2], kernel[0] * kernel[1], *gradient.shape[2:])
        by_value = gradient.new_zeros(whole)
        for number, view in enumerate(_shifted(by_value, kernel, stride)):
            view += by_patch[:, :, number]
        return by_value, by_weight, flat.sum(dim=2), None


def _patches(
    value: Tensor, kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[Tensor, tuple[int, ...]]:
    """What each place of a filter sees, `(models, channels x kernel, places x batch)`."""
    value = value.contiguous()
    rows = (value.shape[2] - kernel[0]) // stride[0] + 1
    columns = (value.shape[3] - kernel[1]) // stride[1] + 1
    models, channels, height, width, batch = value.stride()
    # A view in which every place of the filter has its own image, copied in one go.
    made = value.as_strided(
        (*value.shape[:2], *kernel, rows, columns, value.shape[4]),
        (models, channels, height, width, height * stride[0], width * stride[1], batch),
    )
    return made.flatten(4).flatten(1, 3), (rows, columns, value.shape[4])


def max_pool(value: Tensor, layer: nn.MaxPool2d) -> Tensor:
    """What the layer computes, of images `(models, channels, height, width, batch)`.

    Torch looks for the place of each maximum, which takes half the time of a small network; here
    shifted images are compared as a whole.
    """
    kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
    height, width = _pair(layer.padding)
    if height or width:
        value = functional.pad(value, (0, 0, width, width, height, height), value=-torch.inf)
    pooled: Tensor = _MaxPool.apply(value.flatten(0, 1), kernel, stride)  # type: ignore[no-untyped-call]
    return pooled.view(*value.shape[:2], *pooled.shape[1:])


def _pair(number: int | tuple[int, ...]) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else (number[0], number[1])


def _shifted(value: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Iterator[Tensor]:
    """For each place of the window, in the order of reading, the values there.

    Args:
        value: Shape `(..., height, width, batch)`.
        kernel: Height and width of the window.
        stride: How far it moves down and to the right.
    """
    rows = (value.shape[-3] - kernel[0]) // stride[0] + 1
    columns = (value.shape[-2] - kernel[1]) // stride[1] + 1
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            down = slice(i, i + (rows - 1) * stride[0] + 1, stride[0])
            right = slice(j, j + (columns - 1) * stride[1] + 1, stride[1])
            yield value[..., down, right, :]


class _MaxPool(torch.autograd.Function):
    """Maxima over windows; the gradient goes to the first maximum of each."""

    @staticmethod
    def forward(
        context: Any, value: Tensor, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> Tensor:
        pooled = torch.cat([_pooled(part, kernel, stride) for part in _blocks(value)])
        context.save_for_backward(value, pooled)
        context.window = (kernel, stride)
        return pooled

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        value, pooled = context.saved_tensors
        made = torch.zeros_like(value)
        parts = [_blocks(value), _blocks(made)]
        sizes = [len(part) for part in parts[0]]
        for old, new, most, left in zip(
            *parts, torch.split(pooled, sizes), torch.split(gradient, sizes), strict=True
        ):
            _spread(old, new, most, left, context.window)
        return made, None, None


_BLOCK = 2**17
"""Numbers of an image that are compared at once: so many lie in a cache."""


def _blocks(value: Tensor) -> tuple[Tensor, ...]:
    """Parts of `(images, height, width, batch)`."""
    return torch.split(value, max(1, _BLOCK // max(1, value[0].numel())))


def _pooled(value: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    first, *others = _shifted(value, kernel, stride)
    pooled = first.clone()
    for other in others:
        torch.maximum(pooled, other, out=pooled)
    return pooled


def _spread(
    old: Tensor,
    new: Tensor,
    most: Tensor,
    gradient: Tensor,
    window: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Adds the gradient of each maximum where it is first met."""
    left, first = gradient.clone(), torch.empty_like(most)
    for place, view in zip(_shifted(old, *window), _shifted(new, *window), strict=True):
        torch.eq(place, most, out=first)
        view.addcmul_(left, first)
        # What went to an earlier place of the window is gone.
        left.addcmul_(left, first, value=-1)
