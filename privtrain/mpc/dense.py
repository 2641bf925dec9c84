"""Layers on shares with their gradients: linear maps, rectifiers, flattening and sums."""

from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from torch import Tensor

from privtrain.mpc.engine import Session, Shared

Gradients = tuple[Shared | None, ...]
"""The gradient of each input of a layer; None where nobody needs it."""


class Layer(Protocol):
    """A layer of the torch model, before it is on shares. Configuration: frozen, pickles."""

    @property
    def learns(self) -> bool:
        """Whether it has weights that are trained."""
        ...

    def open(self, session: Session) -> "SharedLayer":
        """The layer with its initial weights, which are public, on shares."""
        ...

    def plain(self, *inputs: Tensor) -> Tensor:
        """Outputs `(batch, ...)` of inputs in plaintext, float64."""
        ...


class SharedLayer(Protocol):
    """A layer at one computing party."""

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        """Outputs `(batch, ...)` of inputs `(batch, ...)`; keeps what `backward` needs."""
        ...

    def backward(
        self, session: Session, gradient: Shared, descent: "Descent", needed: tuple[bool, ...]
    ) -> Gradients:
        """Takes the descent step and returns the gradients of the inputs.

        Args:
            session: The open engine.
            gradient: Of the summed loss with respect to the outputs, in their shape.
            descent: The rule by which weights follow a gradient.
            needed: Of which inputs the gradient is computed.
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

    @property
    def learns(self) -> bool:
        return any(self.learned)

    def open(self, session: Session) -> "SharedLinear":
        bias = None if self.bias is None else session.public(self.bias)
        return SharedLinear(self, session.public(self.weight.t()), bias)

    def product(self, inputs: Tensor) -> Tensor:
        """Outputs without the bias, `(batch, out)`, in plaintext, float64."""
        return inputs @ self.weight.double().cpu().t()

    def plain(self, *inputs: Tensor) -> Tensor:
        outputs = self.product(*inputs)
        return outputs if self.bias is None else outputs + self.bias.double().cpu()


@dataclass(frozen=True)
class ReLU:
    """The configuration of a rectifier."""

    learns: bool = field(default=False, init=False, repr=False)

    def open(self, session: Session) -> "SharedReLU":
        return SharedReLU()

    def plain(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()


@dataclass(frozen=True)
class Flatten:
    """The configuration of pictures `(batch, channels, height, width)` as `(batch, values)`."""

    learns: bool = field(default=False, init=False, repr=False)

    def open(self, session: Session) -> "SharedFlatten":
        return SharedFlatten()

    def plain(self, *inputs: Tensor) -> Tensor:
        return inputs[0].flatten(1)


@dataclass(frozen=True)
class Addition:
    """The configuration of a sum of two values of one shape."""

    learns: bool = field(default=False, init=False, repr=False)

    def open(self, session: Session) -> "SharedAddition":
        return SharedAddition()

    def plain(self, *inputs: Tensor) -> Tensor:
        left, right = inputs
        return left + right


@dataclass
class SharedLinear:
    """A linear map at one computing party.

    Args:
        layer: Its configuration.
        weight: On shares, `(in, out)`.
        bias: On shares, `(out,)`, or None.
    """

    layer: Linear
    weight: Shared = field(repr=False)
    bias: Shared | None = field(repr=False)
    _inputs: Shared | None = field(default=None, repr=False)
    _weight_step: Shared | None = field(default=None, repr=False)
    _bias_step: Shared | None = field(default=None, repr=False)

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        (self._inputs,) = inputs
        # A Beaver triple of matrices: one opening for the whole product, not one an element.
        outputs = self._inputs.matmul(self.weight)
        return outputs if self.bias is None else outputs + self.bias

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, needed: tuple[bool, ...]
    ) -> Gradients:
        # Before the step: the chain rule holds at the weights of the forward pass.
        input_gradient = gradient.matmul(self.weight.t()) if needed[0] else None
        learns_weight, learns_bias = self.layer.learned
        if learns_weight and self._inputs is not None:
            # dL/dW = inputs^T @ dL/doutputs, dL/db = sum over the batch of dL/doutputs.
            weight_gradient = self._inputs.t().matmul(gradient)
            self._weight_step = descent(session, weight_gradient, self._weight_step)
            self.weight = self.weight - self._weight_step
        if learns_bias and self.bias is not None:
            self._bias_step = descent(session, gradient.sum(0), self._bias_step)
            self.bias = self.bias - self._bias_step
        return (input_gradient,)

    def weights(self) -> list[Shared]:
        """Weight `(out, in)` and bias, those that are learned."""
        learns_weight, learns_bias = self.layer.learned
        learned = [self.weight.t()] if learns_weight else []
        return [*learned, self.bias] if learns_bias and self.bias is not None else learned


@dataclass
class SharedReLU:
    """A rectifier at one computing party."""

    _positive: Shared | None = field(default=None, repr=False)

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        # The comparison is the expensive part; backward multiplies by the same shared bits.
        values, self._positive = session.relu(*inputs)
        return values

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, needed: tuple[bool, ...]
    ) -> Gradients:
        return (gradient if self._positive is None else gradient * self._positive,)

    def weights(self) -> list[Shared]:
        return []


@dataclass
class SharedFlatten:
    """Pictures as rows, at one computing party; takes no message."""

    _shape: tuple[int, ...] = ()

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        self._shape = shape_of(inputs[0])
        return inputs[0].reshape(self._shape[0], prod(self._shape[1:]))

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, needed: tuple[bool, ...]
    ) -> Gradients:
        return (gradient.reshape(*self._shape),)

    def weights(self) -> list[Shared]:
        return []


@dataclass
class SharedAddition:
    """A sum at one computing party; takes no message."""

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        left, right = inputs
        return left + right

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, needed: tuple[bool, ...]
    ) -> Gradients:
        return gradient, gradient

    def weights(self) -> list[Shared]:
        return []


def shape_of(pictures: Shared) -> tuple[int, int, int, int]:
    """Batch, channels, height and width."""
    return pictures.size(0), pictures.size(1), pictures.size(2), pictures.size(3)
