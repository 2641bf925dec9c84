"""A plain torch model as layers on shares: linear maps and ReLU, with their gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.engine import Session, Shared

SUPPORTED = "nn.Linear, nn.ReLU, nn.Flatten (in front) and nn.Sequential of these"


class Layer(Protocol):
    """A layer of the torch model, before it is on shares. Configuration: frozen, pickles."""

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
        """Takes the descent step and returns the gradient of the inputs.

        Args:
            session: The open engine.
            gradient: Of the summed loss with respect to the outputs, `(batch, out)`.
            descent: The rule by which weights follow a gradient.
            first: Whether this is the first layer: the gradient of its inputs is not computed.
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

    def __call__(self, session: Session, gradient: Shared, previous: Shared | None) -> Shared:
        """The step to subtract from the weights, given the previous step."""
        # torch multiplies its velocity by the learning rate at the end. At a constant learning rate
        # that product obeys the same recursion.
        step = session.scale(gradient, self.rate)
        if previous is None or self.momentum == 0:
            return step
        return session.scale(previous, self.momentum) + step


@dataclass(frozen=True)
class Linear:
    """The configuration of a linear map.

    Args:
        weight: Initial weight, `(out, in)`; public.
        bias: Initial bias, `(out,)`, or None.
        learned: Whether weight and bias are trained.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    learned: tuple[bool, bool]

    def open(self, session: Session) -> "SharedLinear":
        bias = None if self.bias is None else session.public(self.bias)
        return SharedLinear(self, session.public(self.weight.t()), bias)


@dataclass(frozen=True)
class ReLU:
    """The configuration of a rectifier."""

    def open(self, session: Session) -> "SharedReLU":
        return SharedReLU()


@dataclass
class SharedLinear:
    """A linear map at one computing party.

    Args:
        layer: Its configuration.
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
        self._inputs = inputs
        # A Beaver triple of matrices: one opening for the whole product, not one an element.
        outputs = inputs.matmul(self.weight)
        return outputs if self.bias is None else outputs + self.bias

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, *, first: bool
    ) -> Shared:
        # Before the step: the chain rule holds at the weights of the forward pass.
        input_gradient = gradient if first else gradient.matmul(self.weight.t())
        learns_weight, learns_bias = self.layer.learned
        if learns_weight and self._inputs is not None:
            # dL/dW = inputs^T @ dL/doutputs, dL/db = sum over the batch of dL/doutputs.
            weight_gradient = self._inputs.t().matmul(gradient)
            self._weight_step = descent(session, weight_gradient, self._weight_step)
            self.weight = self.weight - self._weight_step
        if learns_bias and self.bias is not None:
            self._bias_step = descent(session, gradient.sum(0), self._bias_step)
            self.bias = self.bias - self._bias_step
        return input_gradient

    def weights(self) -> list[Shared]:
        """Weight `(out, in)` and bias, those that are learned."""
        learns_weight, learns_bias = self.layer.learned
        learned = [self.weight.t()] if learns_weight else []
        return [*learned, self.bias] if learns_bias and self.bias is not None else learned


@dataclass
class SharedReLU:
    """A rectifier at one computing party."""

    _positive: Shared | None = None

    def forward(self, session: Session, inputs: Shared) -> Shared:
        # The comparison is the expensive part; backward multiplies by the same shared bits.
        values, self._positive = session.relu(inputs)
        return values

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, *, first: bool
    ) -> Shared:
        return gradient if self._positive is None else gradient * self._positive

    def weights(self) -> list[Shared]:
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
    # A layer may be frozen in part: what is not learned is neither stepped nor opened.
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
        descent: The rule by which weights follow a gradient.
    """
    values = inputs
    for layer in layers:
        values = layer.forward(session, values)
    # The gradient of cross-entropy is softmax - target, so the loss itself is never needed.
    gradient = session.softmax(values) - targets
    for number, layer in reversed(list(enumerate(layers))):
        gradient = layer.backward(session, gradient, descent, first=number == 0)
