"""A plain torch model as layers on shares, and a step of gradient descent through them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import trainable
from privtrain.mpc import graph
from privtrain.mpc.convolution import Pair, Windows
from privtrain.mpc.dense import Addition, Descent, Flatten, Layer, Linear, ReLU, SharedLayer
from privtrain.mpc.engine import Engine, Session, Shared
from privtrain.mpc.graph import SUPPORTED, Call
from privtrain.mpc.pictures import AvgPool2d, Conv2d

PICTURES = (Conv2d, AvgPool2d)
OF_PICTURES = (nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Layers that take pictures, here and in torch."""

Probabilities = Callable[[Session, Shared], Shared]
"""What a model's outputs `(batch, out)` say of targets, in their shape; less these it is the
gradient of the loss by the outputs."""


@dataclass(frozen=True)
class Node:
    """A layer in its place: what it takes, and where its weights stand.

    Args:
        name: The layer's name in the torch model.
        layer: The layer.
        sources: The values it takes: 0 is the rows, n the result of node number n, from 1.
        place: The number of its first weight among the torch model's trained parameters.
    """

    name: str
    layer: Layer
    sources: tuple[int, ...]
    place: int = 0

    def open(self, session: Session) -> "SharedNode":
        """The same on shares."""
        return SharedNode(self, self.layer.open(session))


@dataclass
class SharedNode:
    """A layer in its place at one computing party.

    Args:
        node: Its configuration.
        layer: The layer on shares.
    """

    node: Node
    layer: SharedLayer


def translate(model: nn.Module) -> tuple[Node, ...]:
    """A torch model as layers on shares, in the order in which they run.

    Args:
        model: What `torch.fx` follows, of layers known here; its weights become public initial
            weights.

    Returns:
        The layers. `nn.Flatten` of flat rows disappears: rows are shared flat.

    Raises:
        UnsupportedError: If a layer cannot be trained on shares, with its name.
    """
    calls = graph.calls_of(model)
    flat = [not any(isinstance(call.layer, OF_PICTURES) for call in calls)]
    values, nodes = [0], list[Node]()
    places = _places(model, calls)
    for call in calls:
        sources = tuple(values[source] for source in call.sources)
        layer = _layer(call, [flat[source] for source in sources])
        if layer is None:
            values.append(sources[0])
            continue
        nodes.append(Node(call.name, layer, sources, places.get(id(call.layer), 0)))
        values.append(len(nodes))
        flat.append(flat[sources[0]] or isinstance(layer, Flatten))
    if not nodes or not isinstance(nodes[-1].layer, Linear):
        raise UnsupportedError(f"A model on shares must end in nn.Linear; got {model}.")
    return tuple(nodes)


def takes_pictures(nodes: Sequence[Node]) -> bool:
    """Whether rows enter as pictures `(channels, height, width)`; else they are flat."""
    return bool(pictures_at(nodes))


def pictures_at(nodes: Sequence[Node]) -> str:
    """The first layer that takes pictures, for errors; empty where there is none."""
    takers = (node for node in nodes if isinstance(node.layer, PICTURES))
    return next((f"{node.name!r} ({type(node.layer).__name__})" for node in takers), "")


def check_engine(engine: Engine, nodes: Sequence[Node], probabilities: Probabilities) -> None:
    """Refuses what an engine cannot compute.

    Args:
        engine: The engine.
        nodes: The model.
        probabilities: What the loss makes of outputs.

    Raises:
        UnsupportedError: With the loss or the first such layer, and the way out.
    """
    if probabilities is sigmoid and not engine.sigmoid:
        raise UnsupportedError(
            f"The loss binary_cross_entropy cannot be computed by {engine.name}, which has no "
            "sigmoid. Use engine=pt.Ring64(), or cross_entropy of two classes."
        )
    if takes_pictures(nodes) and not engine.pictures:
        raise UnsupportedError(
            f"The layer {pictures_at(nodes)} cannot be computed by {engine.name}, which knows "
            "products of matrices alone. Use engine=pt.Ring64()."
        )


def _layer(call: Call, flat: Sequence[bool]) -> Layer | None:
    """The layer of a call on flat values or pictures; None where it changes nothing."""
    layer = call.layer
    if isinstance(layer, nn.Linear):
        if not flat[0]:
            raise _refused(call, "takes pictures; put nn.Flatten in front of it. It")
        return Linear(*_weights(layer))
    if isinstance(layer, OF_PICTURES):
        if flat[0]:
            raise _refused(call, "takes flat rows, not pictures. It")
        return _of_pictures(call)
    if isinstance(layer, nn.ReLU):
        return ReLU()
    if isinstance(layer, graph.Addition):
        if flat[0] != flat[1]:
            raise _refused(call, "adds pictures and flat values. It")
        return Addition()
    if isinstance(layer, nn.Flatten) and layer.start_dim == 1:
        if flat[0]:
            return None
        if layer.end_dim in (-1, 3):
            return Flatten()
    raise _refused(call)


def _of_pictures(call: Call) -> Layer:
    layer = call.layer
    if isinstance(layer, nn.Conv2d):
        padding = _padding(call, layer)
        windows = Windows(
            _pair(layer.kernel_size), _pair(layer.stride), padding, _pair(layer.dilation)
        )
        return Conv2d(*_weights(layer), windows, layer.groups)
    if isinstance(layer, nn.AvgPool2d):
        windows = Windows(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))
        if layer.ceil_mode:
            raise _refused(call, "has ceil_mode=True. It")
        # Windows at the edge would have divisors of their own.
        if any(windows.padding) and not layer.count_include_pad and not layer.divisor_override:
            raise _refused(call, "has padding and count_include_pad=False. It")
        return AvgPool2d(windows, layer.divisor_override)
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1), [1, 1]):
        return AvgPool2d(None)
    raise _refused(call)


def _padding(call: Call, layer: nn.Conv2d) -> Pair:
    """Zeros at each side, which words such as "same" stand for, too."""
    if layer.padding_mode != "zeros":
        raise _refused(call, "pads by other values than zeros. It")
    if layer.padding == "valid":
        return 0, 0
    if layer.padding != "same":
        return _pair(layer.padding)
    total = [
        each * (size - 1) for each, size in zip(layer.dilation, layer.kernel_size, strict=True)
    ]
    if any(zeros % 2 for zeros in total):
        raise _refused(call, "pads by more zeros at one side than at the other. It")
    return total[0] // 2, total[1] // 2


def _pair(value: Any) -> Pair:
    height, width = value if isinstance(value, Sequence) else (value, value)
    return int(height), int(width)


def _refused(call: Call, why: str = "") -> UnsupportedError:
    said = f"The layer {call.name!r} ({call.layer}) {why}".rstrip()
    return UnsupportedError(f"{said} cannot be trained on shares; supported are {SUPPORTED}.")


def _weights(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor | None, tuple[bool, bool]]:
    # A layer may be frozen in part: what is not learned is neither stepped nor opened.
    bias = None if layer.bias is None else layer.bias.detach()
    learned = (
        layer.weight.requires_grad,
        layer.bias is not None and layer.bias.requires_grad,
    )
    return layer.weight.detach(), bias, learned


def _places(model: nn.Module, calls: Sequence[Call]) -> dict[int, int]:
    """Layer to the number of its first weight among the trained ones, each of which has one layer.

    Raises:
        UnsupportedError: If a weight is trained by two layers, or by none.
    """
    numbers = {id(parameter): number for number, parameter in enumerate(trainable(model))}
    owners: dict[int, str] = {}
    places: dict[int, int] = {}
    for call in calls:
        layer = call.layer
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        for weight in (layer.weight, layer.bias):
            if weight is None or not weight.requires_grad:
                continue
            number = numbers.get(id(weight))
            if number is None:
                raise _refused(call, "computes its weights from others. It")
            if number in owners:
                raise _refused(call, f"has the weights of {owners[number]!r}, which ran before. It")
            owners[number] = call.name
            places.setdefault(id(layer), number)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and numbers[id(parameter)] not in owners:
            raise UnsupportedError(
                f"The parameter {name!r} is trained, and no layer that runs has it. Use "
                "requires_grad=False for it, or leave it out."
            )
    return places


def evaluated(nodes: Sequence[Node], rows: Tensor) -> Iterator[tuple[Node, list[Tensor], Tensor]]:
    """Runs layers in plaintext.

    Args:
        nodes: The model.
        rows: float64, flat or pictures as the model takes them.

    Yields:
        Each node with its inputs and its outputs.
    """
    values = [rows]
    for node in nodes:
        inputs = [values[source] for source in node.sources]
        values.append(node.layer.plain(*inputs))
        yield node, inputs, values[-1]


def softmax(session: Session, outputs: Shared) -> Shared:
    """Probabilities of classes, for cross-entropy; `(batch, classes)`."""
    return session.softmax(outputs)


def sigmoid(session: Session, outputs: Shared) -> Shared:
    """The probability of class 1 by one logit, for logistic loss; `(batch, 1)`."""
    return session.sigmoid(outputs)


def step(
    session: Session,
    layers: Sequence[SharedNode],
    inputs: Shared,
    targets: Shared,
    descent: Descent,
    probabilities: Probabilities = softmax,
) -> None:
    """One step of gradient descent on the mean loss of a batch, all of it on shares.

    Args:
        session: The open engine.
        layers: The model.
        inputs: Shape `(batch, features)`, or pictures.
        targets: One-hot labels, `(batch, classes)`, or 0 and 1, `(batch, 1)`.
        descent: The rule by which weights follow a gradient.
        probabilities: What the loss makes of outputs; softmax is that of cross-entropy.
    """
    values, needed = [inputs], [False]
    for each in layers:
        sources = each.node.sources
        values.append(each.layer.forward(session, *(values[source] for source in sources)))
        # What lies before the first trained weight needs no gradient.
        needed.append(each.node.layer.learns or any(needed[source] for source in sources))
    # The gradient of cross-entropy is softmax - target, so the loss itself is never needed.
    gradients: list[Shared | None] = [None] * len(layers)
    gradients.append(probabilities(session, values[-1]) - targets)
    for number, each in reversed(list(enumerate(layers, 1))):
        gradient, sources = gradients[number], each.node.sources
        if gradient is None or not needed[number]:
            continue
        wanted = tuple(needed[source] for source in sources)
        back = each.layer.backward(session, gradient, descent, wanted)
        for source, part in zip(sources, back, strict=True):
            before = gradients[source]
            # A value that is used twice has the sum of both gradients.
            gradients[source] = part if before is None or part is None else before + part


def trained(layers: Sequence[SharedNode]) -> list[Shared]:
    """The trained weights, on shares, in the order of the torch model's trained parameters."""
    in_order = sorted(layers, key=lambda each: each.node.place)
    return [weight for each in in_order for weight in each.layer.weights()]
