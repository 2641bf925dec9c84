"""A model as one vector and back; models that start from a stream."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, PrivacyError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.models import made_anew
from privtrain.core.result import Predictor
from privtrain.core.seeding import Stream
from privtrain.core.task import Task


def initial_model(task: Task, stream: Stream) -> nn.Module:
    """The task's model, initialised from a stream.

    Args:
        task: What is learned.
        stream: Where the initial weights come from.

    Returns:
        A new model on the CPU, which shares nothing with another one.

    Raises:
        ValueError: If the task's factory returns what it returned before.
    """
    return made_anew(task.model, stream)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient, in the model's order, shared ones once."""
    # What is frozen never changes, so nothing of it has to be bounded or sent. `parameters()` lists
    # a shared tensor once; counted twice, its gradient would also enter a norm twice.
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def wide_type(tensors: Iterable[Tensor]) -> torch.dtype:
    """The type in which values of these tensors are added up: float32, or a wider one of theirs."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of parameters that are clipped, noised and averaged."""

STEPPED = (*REAL, torch.complex64, torch.complex128)
"""Types of parameters that torch's optimizers step."""

SUMMED = REAL[1:]
"""Types of parameters of which clipped sums of per-example gradients are formed."""


def check_types(model: nn.Module, allowed: Sequence[torch.dtype]) -> None:
    """Refuses models that train numbers of other types than are allowed.

    Args:
        model: The model; what is frozen may be of any type.
        allowed: `SUMMED`, `REAL` or `STEPPED`.

    Raises:
        UnsupportedError: With the parameter, and what to use in its place.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter.dtype in allowed:
            continue
        why = "which torch's optimizers do not step. Use float32."
        if parameter.is_complex():
            why = (
                "and complex numbers are neither bounded nor noised. Train the real and the "
                "imaginary part as two parameters of type float32, put together in forward by "
                "torch.complex(real, imaginary)."
            )
        elif parameter.dtype is torch.float16:
            why = (
                "which rounds clipping factors below 6e-5 so coarsely that contributions exceed "
                "the clipping norm. Use model.bfloat16(), or float32."
            )
        kind = str(parameter.dtype).removeprefix("torch.")
        raise UnsupportedError(f"The parameter {name!r} is of type {kind}, {why}")


def check_no_autocast() -> None:
    """Refuses to work within `torch.autocast`, which would round sums, and keep old weights.

    Raises:
        UnsupportedError: With the way out.
    """
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise UnsupportedError(
                f"torch.autocast({device!r}) is on around training: it would round clipped sums, "
                "and keeps the cast of a weight from before the first step until it ends. Use it "
                "in the model's forward alone."
            )


def float_buffers(model: nn.Module) -> list[Tensor]:
    """Floating-point buffers, such as running means: what training writes without a gradient."""
    # Counters, such as the number of batches seen, are integers: their average means nothing.
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def to_vector(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors as one new vector, in their order.

    Args:
        tensors: Parameters, gradients or buffers.

    Returns:
        A detached copy, shape `(parameters,)`; empty where there are no tensors.
    """
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    # `cat` copies even a single tensor: what was sent must not change with the model afterwards.
    return torch.cat(flat) if flat else torch.zeros(0)


@torch.no_grad()
def load_vector(tensors: Iterable[Tensor], vector: Tensor) -> None:
    """Copies a vector into tensors, in their order.

    The values are copied: torch's own `vector_to_parameters` makes the model an alias of the
    vector, so that local training would change the global model.

    Args:
        tensors: Where the values go.
        vector: As many values as the tensors hold together, shape `(parameters,)`.

    Raises:
        ValueError: If the number of values differs.
    """
    targets = list(tensors)
    # Before the first copy: an error must not leave a model half overwritten.
    expected = sum(target.numel() for target in targets)
    if expected != vector.numel():
        raise ValueError(f"Expected vector.numel()={vector.numel()} to be {expected}.")
    start = 0
    for target in targets:
        size = target.numel()
        # `copy_` also converts: a float64 average leaves a float32 model in float32.
        target.copy_(vector[start : start + size].view_as(target))
        start += size


@contextmanager
def unwritten(model: nn.Module, parameters: list[nn.Parameter], step: int) -> Iterator[None]:
    """Looks whether a model writes to its own parameters while gradients are computed.

    Noise covers what an optimizer does with a noised sum. A parameter that `forward` overwrites
    would carry rows out beside it. Values are compared at steps 0, 1, 2, 4, 8, ... only.

    Args:
        model: The model.
        parameters: Its trainable parameters.
        step: Which step this is, from 0.

    Raises:
        PrivacyError: If a parameter was written to, or replaced by another one.
    """
    versions = [parameter._version for parameter in parameters]
    before = to_vector(parameters) if step & (step - 1) == 0 else None
    yield
    same = all(a is b for a, b in zip(trainable(model), parameters, strict=False))
    written = versions != [parameter._version for parameter in parameters]
    if before is not None and same and not written:
        # Bits: NaN is equal to nothing.
        written = not torch.equal(before.view(torch.uint8), to_vector(parameters).view(torch.uint8))
    if written or not same or len(trainable(model)) != len(parameters):
        raise PrivacyError(
            "The model writes to its own trainable parameters while gradients are computed, which "
            "no noise covers. Let an optimizer alone change what is trained."
        )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model: its parameters and buffers, under the names of its `state_dict`.

    Extra state, whatever a model calls so, is left out.
    """
    if any(
        type(layer).get_extra_state is not nn.Module.get_extra_state for layer in model.modules()
    ):
        # It is not even asked for: a module that was never run may have none.
        return {name: tensor.detach() for name, tensor in _registered(model)}
    held = {_place(tensor) for tensor in (*model.parameters(), *model.buffers())}
    # By place: a model may save its parameters under other names than it has them.
    return {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and _place(value) in held
    }


def _registered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, layer in model.named_modules(remove_duplicate=False):
        for name, buffer in layer.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in layer._non_persistent_buffers_set:
                yield name, buffer


def trained_state_of(model: nn.Module) -> dict[str, Tensor]:
    """The part of `state_of` that is trainable parameters: all that a release covers."""
    held = {_place(parameter) for parameter in trainable(model)}
    return {name: value for name, value in state_of(model).items() if _place(value) in held}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads what `state_of` or `trained_state_of` saved; what is missing stays as it is."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    model.load_state_dict(tensors, strict=False)


def _place(tensor: Tensor) -> int:
    return tensor.data_ptr()


@dataclass(frozen=True)
class ModelPredictor:
    """A trained model as a predictor.

    Args:
        module: The model.
        buffers_released: Whether also its buffers follow from releases and public rows alone, as
            those of a student do.
    """

    module: nn.Module
    buffers_released: bool = False

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of inputs.

        Args:
            inputs: Shape `(rows, ...)`, on any device.

        Returns:
            Logits on the inputs' device, shape `(rows, classes)`.
        """
        # Without dropout and with stored statistics: an answer depends on its own row alone, and
        # asking does not change the model.
        self.module.eval()
        where = next(self.module.parameters(), torch.empty(0)).device
        # A copy: a model may write into what it is given, and these rows are asked about again.
        logits: Tensor = self.module(inputs.to(where, copy=True))
        return logits.to(inputs.device)


@dataclass(eq=False)
class Counted:
    """A predictor that counts the rows it is asked about.

    Args:
        predictor: What answers.
        rows: How many rows it was asked about.
    """

    predictor: Predictor
    rows: int = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        self.rows += len(inputs)
        return self.predictor(inputs)


def module_of(predictor: Predictor) -> nn.Module | None:
    """The model behind a predictor, whose weights were published; None where it is no model."""
    behind = predictor.predictor if isinstance(predictor, Counted) else predictor
    return behind.module if isinstance(behind, ModelPredictor) else None


def apart(module: nn.Module) -> ModelPredictor:
    """A module as a predictor that shares nothing with it: asking leaves the user's as it was.

    Args:
        module: In any mode; its copy answers in eval mode.

    Returns:
        The predictor.

    Raises:
        DataError: If the module cannot be copied.
    """
    try:
        with torch.no_grad():
            return ModelPredictor(copy.deepcopy(module).eval())
    except OWN_ERRORS as error:  # a module's own code may raise anything
        raise DataError(
            f"Expected the {type(module).__name__} to be a module that can be copied: {error} "
            "Clear what it keeps from earlier batches, or give a function from inputs to outputs."
        ) from error
