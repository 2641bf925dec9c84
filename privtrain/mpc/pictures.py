"""Layers of pictures on shares with their gradients: convolution and average pooling."""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from privtrain.mpc.convolution import (
    Windows,
    conv2d,
    conv2d_inputs,
    conv2d_weight,
    sums,
    sums_inputs,
)
from privtrain.mpc.dense import Descent, Gradients, Learned, learned_of, shape_of
from privtrain.mpc.engine import Session, Shared


@dataclass(frozen=True)
class Conv2d:
    """The configuration of a convolution.

    Args:
        weight: Initial weight, `(out, in / groups, kernel height, kernel width)`; public.
        bias: Initial bias, `(out,)`, or None.
        learned: Whether weight and bias are trained.
        windows: Where the windows lie.
        groups: Groups of channels.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    learned: tuple[bool, bool]
    windows: Windows
    groups: int = 1

    @property
    def learns(self) -> bool:
        return any(self.learned)

    def open(self, session: Session) -> "SharedConv2d":
        bias = None if self.bias is None else Learned.public(session, self.bias)
        return SharedConv2d(self, Learned.public(session, self.weight), bias)

    def product(self, inputs: Tensor) -> Tensor:
        """Outputs without the bias, `(batch, out, rows, columns)`, in plaintext, float64."""
        weight = self.weight.double().cpu()
        return conv2d(inputs, weight, windows=self.windows, groups=self.groups)

    def plain(self, *inputs: Tensor) -> Tensor:
        outputs = self.product(*inputs)
        return outputs if self.bias is None else outputs + self.bias.double().cpu()[:, None, None]


@dataclass(frozen=True)
class AvgPool2d:
    """The configuration of average pooling.

    Args:
        windows: Where the windows lie; None for one window of the whole picture.
        divisor: What sums are divided by; None for the size of the window.
    """

    windows: Windows | None
    divisor: int | None = None
    learns: bool = field(default=False, init=False, repr=False)

    def open(self, session: Session) -> "SharedAvgPool2d":
        return SharedAvgPool2d(self)

    def plain(self, *inputs: Tensor) -> Tensor:
        windows = self.at(inputs[0].shape[2], inputs[0].shape[3])
        return sums(inputs[0], windows=windows) * self.factor(windows)

    def at(self, height: int, width: int) -> Windows:
        """The windows in pictures of a size."""
        return self.windows or Windows((height, width))

    def factor(self, windows: Windows) -> float:
        """What sums over these windows are multiplied by."""
        return 1 / (self.divisor or windows.kernel[0] * windows.kernel[1])


@dataclass
class SharedConv2d:
    """A convolution at one computing party.

    Args:
        layer: Its configuration.
        weight: On shares, in its shape.
        bias: On shares, `(out,)`, or None.
    """

    layer: Conv2d
    weight: Learned
    bias: Learned | None
    _inputs: Shared | None = field(default=None, repr=False)

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        (self._inputs,) = inputs
        function = partial(conv2d, windows=self.layer.windows, groups=self.layer.groups)
        outputs = session.bilinear(function, self._inputs, self.weight.value)
        if self.bias is None:
            return outputs
        return outputs + self.bias.value.reshape(1, *self.bias.shape, 1, 1)

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, needed: tuple[bool, ...]
    ) -> Gradients:
        windows, groups, inputs = self.layer.windows, self.layer.groups, self._inputs
        if inputs is None:
            raise RuntimeError("Expected forward to run before backward.")
        # Before the step: the chain rule holds at the weights of the forward pass.
        input_gradient = None
        if needed[0]:
            shape = shape_of(inputs)
            of_inputs = partial(conv2d_inputs, shape=shape, windows=windows, groups=groups)
            input_gradient = session.bilinear(of_inputs, gradient, self.weight.value)
        learns_weight, learns_bias = self.layer.learned
        if learns_weight:
            of_weight = partial(conv2d_weight, windows=windows, groups=groups)
            self.weight.descend(session, session.bilinear(of_weight, inputs, gradient), descent)
        if learns_bias and self.bias is not None:
            self.bias.descend(session, gradient.sum(3).sum(2).sum(0), descent)
        return (input_gradient,)

    def weights(self) -> list[Shared]:
        """Weight and bias, those that are learned."""
        return [each.value for each in self.learned()]

    def learned(self) -> list[Learned]:
        return learned_of(self.layer.learned, self.weight, self.bias)


@dataclass
class SharedAvgPool2d:
    """Average pooling at one computing party: sums take no message, the division rounds once.

    Args:
        layer: Its configuration.
    """

    layer: AvgPool2d
    _shape: tuple[int, int, int, int] = (0, 0, 0, 0)

    def forward(self, session: Session, *inputs: Shared) -> Shared:
        self._shape = shape_of(inputs[0])
        windows = self.layer.at(*self._shape[2:])
        total = session.linear(partial(sums, windows=windows), inputs[0])
        return session.scale(total, self.layer.factor(windows))

    def backward(
        self, session: Session, gradient: Shared, descent: Descent, needed: tuple[bool, ...]
    ) -> Gradients:
        windows = self.layer.at(*self._shape[2:])
        # Divided first: there are fewer outputs than inputs.
        divided = session.scale(gradient, self.layer.factor(windows))
        back = partial(sums_inputs, shape=self._shape, windows=windows)
        return (session.linear(back, divided),)

    def weights(self) -> list[Shared]:
        return []

    def learned(self) -> list[Learned]:
        return []
