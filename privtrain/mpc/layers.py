"""A plain torch model as layers on shares: linear maps and ReLU, with their gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.engine import Session, Shared

SUPPORTED = "nn.Linear, nn.ReLU, nn.Flatten (in front) and nn.Sequential of these"


class Layer(Protocol):
    """What one layer of the torch model becomes on shares. Configuration: frozen, pickles."""

    def open(self, session: Session) -> "SharedLayer":
        """The layer with its initial weights, which are public, on shares."""
        ...


class SharedLayer(Protocol):
    """A layer at one computing party."""

    def forward(self, session: Session, inputs: Shared) -> Shared:
        """Outputs `(batch, out)` of inputs `(batch, in)`; keeps what `backward` needs."""
        ...

    def backward(
        self, session: Session, gradient: Shared, descent: "Descent", *, first: bool
    ) -> Shared:
        """Takes the descent step and gives the gradient of the inputs.

        Args:
            session: The open engine.
            gradient: Of the summed loss with respect to the outputs, `(batch, out)`.
            descent: How weights follow a gradient.
            first: Whether nobody needs the inputs' gradient; then it is not computed.
        """
        ...

    def weights(self) -> list[Shared]:
        """The trained weights, on shares."""
        ...


@dataclass(frozen=True)
class Descent:
    """Gradient descent with momentum, as torch's SGD does it.

    Args:
        rate: Learning rate divided by the number of rows in the batch.
        momentum: Momentum in [0, 1).
    """

    rate: float
    momentum: float

    def __call__(self, session: Session, gradient: Shared, before: Shared | None) -> Shared:
        """What is subtracted from the weights, given what was subtracted before."""
        step = session.scale(gradient, self.rate)
        if before is None or self.momentum == 0:
            return step
        return session.scale(before, self.momentum) + step


@dataclass(frozen=True)
class Linear:
    """A linear map.

    Args:
        weight: Initial weight, `(out, in)`; public.
        bias: Initial bias, `(out,)`, or None.
        learned: Whether weight and bias are trained.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    learned: tuple[bool, bool]

    def open(self, session: Session) -> "SharedLinear":
        """The layer on shares."""
        bias = None if self.bias is None else session.public(self.bias)
        return SharedLinear(self, session.public(self.weight.t()), bias)


@dataclass(frozen=True)
class ReLU:
    """A rectifier."""

    def open(self, session: Session) -> "SharedReLU":
        """The layer on shares: it has no weights."""
        return SharedReLU()


@dataclass
class SharedLinear:
    """A linear map at one computing party.

    Args:
        layer: The layer it came from.
        weight: On shares, `(in, out)`.
        bias: On shares, `(out,)`, or None.
    """

    layer: Linear
    weight: Shared
    bias: Shared | None
    _inputs: Shared | None = None
    _weight_step: Shared | None = None
    _bias_step: Shared | None = None

    def forward(self, session: Session, inputs: Shared) -> Shared:
        """`inputs @ weight + bias`."""
        self._inputs = inputs
        outputs = inputs.matmul(self.weight)
        return outputs if self.bias is None else outputs + self.bias

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, *, first: bool
    ) -> Shared:
        """Takes the step; see `SharedLayer.backward`."""
        passed = gradient if first else gradient.matmul(self.weight.t())
        learns_weight, learns_bias = self.layer.learned
        if learns_weight and self._inputs is not None:
            slope = self._inputs.t().matmul(gradient)
            self._weight_step = descent(session, slope, self._weight_step)
            self.weight = self.weight - self._weight_step
        if learns_bias and self.bias is not None:
            self._bias_step = descent(session, gradient.sum(0), self._bias_step)
            self.bias = self.bias - self._bias_step
        return passed

    def weights(self) -> list[Shared]:
        """Weight `(out, in)` and bias, those that are learned."""
        learns_weight, learns_bias = self.layer.learned
        found = [self.weight.t()] if learns_weight else []
        return [*found, self.bias] if learns_bias and self.bias is not None else found


@dataclass
class SharedReLU:
    """A rectifier at one computing party."""

    _open: Shared | None = None

    def forward(self, session: Session, inputs: Shared) -> Shared:
        """The inputs where they are positive."""
        self._open = session.positive(inputs)
        return inputs * self._open

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, *, first: bool
    ) -> Shared:
        """The gradient where the inputs were positive."""
        return gradient if self._open is None else gradient * self._open

    def weights(self) -> list[Shared]:
        """None."""
        return []


def translate(model: nn.Module) -> tuple[Layer, ...]:
    """A torch model as layers on shares, in order.

    Args:
        model: A logistic regression or a multi-layer perceptron; its weights become public
            initial weights.

    Returns:
        The layers. `nn.Flatten` in front disappears: rows are shared flat.

    Raises:
        UnsupportedError: If a layer cannot be trained on shares, with its name.
    """
    layers: list[Layer] = []
    for name, layer in _leaves(model, ""):
        if isinstance(layer, nn.Linear):
            layers.append(_linear(layer))
        elif isinstance(layer, nn.ReLU):
            layers.append(ReLU())
        elif not (isinstance(layer, nn.Flatten) and layer.start_dim == 1 and not layers):
            raise UnsupportedError(
                f"The layer {name or 'model'!r} ({layer}) cannot be trained on shares; "
                f"supported are {SUPPORTED}."
            )
    if not layers or not isinstance(layers[-1], Linear):
        raise UnsupportedError(f"A model on shares must end in nn.Linear; got {model}.")
    return tuple(layers)


def _leaves(model: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    # Only Sequential says in which order its children run.
    if type(model) is not nn.Sequential:
        yield prefix, model
        return
    for name, child in model.named_children():
        yield from _leaves(child, f"{prefix}.{name}".lstrip("."))


def _linear(layer: nn.Linear) -> Linear:
    bias = None if layer.bias is None else layer.bias.detach()
    learned = (
        layer.weight.requires_grad,
        layer.bias is not None and layer.bias.requires_grad,
    )
    return Linear(layer.weight.detach(), bias, learned)


def step(
    session: Session,
    layers: Sequence[SharedLayer],
    inputs: Shared,
    targets: Shared,
    descent: Descent,
) -> None:
    """One step of gradient descent on the mean cross-entropy of a batch, all of it on shares.

    Args:
        session: The open engine.
        layers: The model.
        inputs: Shape `(batch, features)`.
        targets: One-hot labels, `(batch, classes)`.
        descent: How weights follow a gradient.
    """
    values = inputs
    for layer in layers:
        values = layer.forward(session, values)
    # The gradient of cross-entropy is softmax - target, so the loss itself is never needed.
    gradient = session.softmax(values) - targets
    for place, layer in reversed(list(enumerate(layers))):
        gradient = layer.backward(session, gradient, descent, first=place == 0)
