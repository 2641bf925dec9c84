"""Optimizers, the gradients they are given, and one step."""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]  # private, as are hooks
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from privtrain.core.errors import READS_ROWS, DataError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.nearest import nearest
from privtrain.core.parameters import wide_type
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.task import SCALE_COLUMNS, Loss, widest_column
from privtrain.core.validate import all_finite, brief
from privtrain.gradients.gradients import check_losses, outputs_of

OptimizerFactory = Callable[..., Optimizer]
"""Called as `factory(parameters, lr=learning_rate)`."""


def check_factory(optimizer: object) -> None:
    """Refuses what names and makes no optimizer; whether it fits the model is tried later.

    Raises:
        ValueError: If it is neither the name of a class in `torch.optim` nor a factory.
    """
    if isinstance(optimizer, str):
        _named(optimizer)
    elif not callable(optimizer):
        raise ValueError(
            f"Expected optimizer={brief(optimizer)} to be the name of a class in torch.optim, such "
            "as 'SGD' or 'Adam', or a factory, such as functools.partial(torch.optim.SGD, "
            "momentum=0.9)."
        )


def make_optimizer(
    optimizer: str | OptimizerFactory, parameters: list[nn.Parameter], learning_rate: float
) -> Optimizer:
    """Any of torch's optimizers for some parameters.

    Args:
        optimizer: Name of a class in `torch.optim`, or a factory such as
            `functools.partial(torch.optim.SGD, momentum=0.9)`.
        parameters: What it updates.
        learning_rate: Its learning rate; positive.

    Returns:
        The optimizer, of exactly these parameters.

    Raises:
        ValueError: If there is no optimizer of that name, or the factory makes something else.
    """
    factory = _named(optimizer) if isinstance(optimizer, str) else optimizer
    return checked_optimizer(
        lambda: factory(parameters, lr=learning_rate), parameters, f"optimizer={optimizer!r}"
    )


def _named(optimizer: str) -> OptimizerFactory:
    factory = getattr(torch.optim, optimizer, None)
    if isinstance(factory, type) and issubclass(factory, Optimizer):
        return factory
    known = [n for n, kind in vars(torch.optim).items() if isinstance(kind, type)]
    raise ValueError(
        f"Expected optimizer={optimizer!r} to be the name of a class in torch.optim, "
        f"such as 'SGD' or 'Adam', or a factory.{nearest(optimizer, known)}"
    )


def checked_optimizer(
    make: Callable[[], object], parameters: list[nn.Parameter], what: str
) -> Optimizer:
    """What a factory made, if it can train exactly some parameters.

    Anything else would leave a model as it was, beside an epsilon that says it was trained.

    Args:
        make: Calls the factory.
        parameters: What it is given: all that require a gradient. What shall stay as it is has to
            be frozen in the model, so that no noise is drawn for it and nothing of it is sent.
        what: The argument and its value, for errors.

    Returns:
        What it made.

    Raises:
        ValueError: If it is no optimizer, needs a closure, or has other parameters.
    """
    try:
        made = make()
    except OWN_ERRORS as error:  # a user's own code may raise anything
        raise ValueError(
            f"Expected {what} to make an optimizer of the parameters that it is given; it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Optimizer):
        raise ValueError(f"Expected {what} to return a torch.optim.Optimizer, {_instead(made)}")
    step = made.step
    wanted = _wanted(step.__func__)[1:] if inspect.ismethod(step) else _wanted(step)
    if any(p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD for p in wanted):
        raise ValueError(
            f"Expected {what} to make an optimizer whose step() takes no argument; that of "
            f"{type(made).__name__} wants {', '.join(p.name for p in wanted)} to compute the loss "
            "again, which would use rows that nothing accounts for. Use SGD, Adam or another one."
        )
    own = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    given = {id(parameter) for parameter in parameters}
    if own - given:
        raise ValueError(
            f"Expected {what} to make an optimizer of the parameters that it is given; "
            f"{len(own - given)} of the {len(own)} tensors in its param_groups are others, such as "
            "copies or those of another model. Make a new optimizer at each call, of the "
            "parameters themselves."
        )
    if given - own:
        raise ValueError(
            f"Expected {what} to make an optimizer of all {len(given)} parameters that it is given;"
            f" {len(given - own)} are missing in its param_groups and would never be trained. "
            "Freeze them in the model with requires_grad_(False), or add them."
        )
    return made


# A client makes an optimizer in each round, and reading takes as long as one of its steps.
@functools.lru_cache(maxsize=64)
def _wanted(function: Callable[..., object]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function).parameters.values())


def _instead(made: object) -> str:
    """What came in place of an optimizer, and the way out."""
    if made is None:
        return "not None. End the function with return."
    if isinstance(made, type):
        return f"not the class {made.__name__}. Call it: {made.__name__}(parameters, lr=lr)."
    name = type(made).__name__
    inner = vars(made).get("optimizer") if hasattr(made, "__dict__") else None
    if isinstance(inner, Optimizer):
        return (
            f"not a {name} of one. Return the {type(inner).__name__} itself; learning rates are "
            "constant here, and a schedule can be built into the optimizer's step()."
        )
    return f"not a {name}."


def try_optimizer(
    optimizer: str | OptimizerFactory, parameters: list[nn.Parameter], learning_rate: float
) -> None:
    """Tries what `make_optimizer` makes: see `check_optimizer`, and there for its errors."""
    make = functools.partial(make_optimizer, optimizer, parameters, learning_rate)
    check_optimizer(make, parameters, f"optimizer={optimizer!r}")


TRIED = 32
"""Steps that an optimizer is given to move all of its parameters, or two for each where they are
more: some move them in turn."""


def check_optimizer(
    make: Callable[[], Optimizer], parameters: list[nn.Parameter], what: str
) -> None:
    """Tries an optimizer on parameters that are thrown away, before anything is spent.

    Args:
        make: Makes it, of these parameters.
        parameters: They are changed.
        what: The argument and its value, for errors.

    Raises:
        ValueError: If it cannot be made, is the same one at each call, fails, or does not move
            every parameter.
    """
    steps = max(TRIED, 2 * len(parameters))
    # What it draws must not move the caller's generator.
    with global_generator(Seeds(0)["optimizer trial", 0, ""]):
        optimizer = make()
        if make() is optimizer:
            raise ValueError(
                f"Expected {what} to make a new optimizer at each call; it returned one twice, "
                "so that one run would go on with the state and the parameters of another."
            )
        # Close to zero, where the smallest step is seen.
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(1e-20)
        resting = [(p, p.detach().clone()) for p in parameters if p.numel()]
        # Not one step: the first of a warm-up has a learning rate of zero, and one that adds up
        # gradients acts every few calls.
        for number in range(steps):
            for parameter in parameters:
                parameter.grad = _trial_gradient(parameter, number)
            try:
                optimizer.step()
            except OWN_ERRORS as error:  # a user's own code may raise anything
                raise ValueError(
                    f"Expected {what} to make an optimizer of dense gradients; its step() raised "
                    f"{type(error).__name__}: {error}"
                ) from error
            resting = [(p, before) for p, before in resting if torch.equal(p, before)]
            if not resting:
                return
    raise ValueError(
        f"Expected {what} to make an optimizer that moves its parameters; after {steps} steps with "
        f"gradients of 1 to 4, {len(resting)} of {len(parameters)} are where they were: "
        f"{_place(optimizer, resting[0][0])}. Raise that learning "
        "rate where it is too small, let step() move each of them within so many calls, or freeze "
        "it in the model with requires_grad_(False)."
    )


def _trial_gradient(parameter: nn.Parameter, number: int) -> Tensor:
    """Gradients of 1 to 4 that differ from value to value, and from step to step."""
    # Of equal ones, rules that subtract a mean or the last gradient would make zero.
    values = torch.linspace(1.0, 2.0, parameter.numel(), dtype=torch.float32)
    return (values * (1 + number % 2)).to(parameter).view_as(parameter)


def _place(optimizer: Optimizer, parameter: nn.Parameter) -> str:
    """Where in the groups of an optimizer a parameter stands, and with which learning rate."""
    shape = tuple(parameter.shape)
    for number, group in enumerate(optimizer.param_groups):
        if any(member is parameter for member in group["params"]):
            rate = group.get("lr", "unknown")
            return f"that of shape {shape} in param_groups[{number}] with lr={rate}"
    return f"that of shape {shape}"


def check_not_diverged(
    parameters: list[nn.Parameter], inputs: Tensor, *, said: str = READS_ROWS
) -> None:
    """Refuses a model that is not finite any more, where nothing is promised about its rows.

    Args:
        parameters: What was trained.
        inputs: What it was trained on, shape `(rows, ...)`.
        said: What else the error says; that it tells of private rows, unless they are public.

    Raises:
        DataError: With the widest column of the inputs.
    """
    if all(all_finite(parameter) for parameter in parameters):
        return
    raise DataError(
        f"Training diverged: the trained weights are not finite. {widest_column(inputs)}. "
        f"{SCALE_COLUMNS}, or lower the learning rate. {said}"
    )


# All that it makes run the same code. A user's own wrapper must not be left out with it.
_HOOKED = Optimizer.profile_hook_step(lambda optimizer: None).__code__


def advance(optimizer: Optimizer) -> None:
    """One step of an optimizer: what `optimizer.step()` does, sooner.

    Torch wraps it to run hooks and to name it to a profiler, which takes a quarter of a small step;
    where there is neither, what it wraps is called.
    """
    step = type(optimizer).step
    if (
        "step" in vars(optimizer)
        or getattr(step, "__code__", None) is not _HOOKED
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or _profiler_enabled()
    ):
        optimizer.step()
    else:
        step.__wrapped__(optimizer)  # type: ignore[attr-defined]  # as `functools.wraps` sets it


def descend(
    model: nn.Module, optimizer: Optimizer, loss: Loss, inputs: Tensor, targets: Tensor
) -> Tensor:
    """One step on the mean loss of a batch.

    Args:
        model: The model, in training mode.
        optimizer: Steps its parameters.
        loss: Loss of each example.
        inputs: Shape `(batch, ...)`, on the model's device.
        targets: Shape `(batch, ...)`, on the model's device.

    Returns:
        The mean loss before the step, detached.

    Raises:
        DataError: If the loss is not one value for each example.
    """
    # As `optimizer.zero_grad()`, without its profiling, which costs a tenth of a small step.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    # Outputs `(batch, 1)` against targets `(batch,)` become a table of all pairs, whose mean trains
    # towards the mean target without a word.
    value = check_losses(loss(outputs_of(model, inputs), targets), inputs).mean()
    # mypy: torch leaves `backward` untyped.
    value.backward()  # type: ignore[no-untyped-call]
    advance(optimizer)
    return value.detach()


class GradientVector:
    """One vector whose pieces are the gradients of parameters.

    Args:
        parameters: The parameters, on one device.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sizes = [parameter.numel() for parameter in parameters]
        like = parameters[0] if parameters else torch.zeros(0)
        # In the type of sums: a parameter of a coarser one rounds its own part only.
        dtype = wide_type(parameters)
        self._vector = torch.zeros(sum(self._sizes), dtype=dtype, device=like.device)
        # Views of one vector: a step writes it once, instead of once for each parameter.
        self._views = [
            piece.view(parameter.shape)
            for parameter, piece in zip(
                parameters, torch.split(self._vector, self._sizes), strict=True
            )
        ]

    def set(self, gradient: Tensor, divisor: float = 1.0) -> None:
        """Writes a vector, divided by a number, into the gradients of the parameters.

        Args:
            gradient: As many values as all parameters hold, shape `(parameters,)`.
            divisor: Not zero.

        Raises:
            ValueError: If the number of values differs.
        """
        if gradient.shape != self._vector.shape:
            raise ValueError(
                f"Expected gradient.shape={tuple(gradient.shape)} to be ({sum(self._sizes)},)."
            )
        torch.div(gradient, divisor, out=self._vector)
        for parameter, view in zip(self._parameters, self._views, strict=True):
            # Only where it is not there already: an optimizer may have dropped it, and a parameter
            # of another type needs a copy in each step.
            if parameter.grad is not view:
                parameter.grad = view.to(parameter.dtype)
