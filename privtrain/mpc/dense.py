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

    def learned(self) -> "list[Learned]":
        """What training changes, in the order of `weights`."""
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


@dataclass
class Learned:
    """A weight at one computing party, and the step that it took last.

    Args:
        value: On shares.
        shape: Its shape.
        step: On shares, in the same shape; None before the first step.
    """

    value: Shared = field(repr=False)
    shape: tuple[int, ...]
    step: Shared | None = field(default=None, repr=False)

    def descend(self, session: Session, gradient: Shared, descent: Descent) -> None:
        """Takes a step."""
        self.step = descent(session, gradient, self.step)
        self.value = self.value - self.step

    @classmethod
    def public(cls, session: Session, value: Tensor) -> "Learned":
        """A weight at its public start."""
        return cls(session.public(value), tuple(value.shape))


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
        bias = None if self.bias is None else Learned.public(session, self.bias)
        return SharedLinear(self, Learned.public(session, self.weight.t()), bias)

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
    weight: Learned
    bias: Learned | None
    _inputs: Shared | None = field(default=None, repr=False)

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        (self._inputs,) = inputs
        # A Beaver triple of matrices: one opening for the whole product, not one an element.
        outputs = self._inputs.matmul(self.weight.value)
        return outputs if self.bias is None else outputs + self.bias.value

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, needed: tuple[bool, ...]
    ) -> Gradients:
        # Before the step: the chain rule holds at the weights of the forward pass.
        input_gradient = gradient.matmul(self.weight.value.t()) if needed[0] else None
        learns_weight, learns_bias = self.layer.learned
        if learns_weight and self._inputs is not None:
            # dL/dW = inputs^T @ dL/doutputs, dL/db = sum over the batch of dL/doutputs.
            self.weight.descend(session, self._inputs.t().matmul(gradient), descent)
        if learns_bias and self.bias is not None:
            self.bias.descend(session, gradient.sum(0), descent)
        return (input_gradient,)

    def weights(self) -> list[Shared]:
        """Weight `(out, in)` and bias, those that are learned."""
        learned = [each.value for each in self.learned()]
        return [learned[0].t(), *learned[1:]] if self.layer.learned[0] else learned

    def learned(self) -> list[Learned]:
        return learned_of(self.layer.learned, self.weight, self.bias)


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

    def learned(self) -> list[Learned]:
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

    def learned(self) -> list[Learned]:
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

    def learned(self) -> list[Learned]:
        return []


def learned_of(learned: tuple[bool, bool], weight: Learned, bias: Learned | None) -> list[Learned]:
    """Weight and bias, those that are trained."""
    pairs = zip(learned, (weight, bias), strict=True)
    return [each for trains, each in pairs if trains and each is not None]


def shape_of(pictures: Shared) -> tuple[int, int, int, int]:
    """Batch, channels, height and width."""
    return pictures.size(0), pictures.size(1), pictures.size(2), pictures.size(3)
