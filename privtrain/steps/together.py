"""Teachers trained together: the steps of many small models as one computation.

Each teacher takes the steps that it would take alone: its own initial weights, batches, order and
number of steps. Shapes, and with them the last bits, follow from settings and public rows alone, so
that no teacher's bits depend on how many rows another one has.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privtrain.core.errors import UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.parameters import ModelPredictor, initial_model, trainable
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds, global_generator
from privtrain.core.task import Rows, Task, check_party_rows
from privtrain.core.validate import check_is
from privtrain.sampling.passes import batches
from privtrain.steps.grouped import Forward, forward_of, losses_of
from privtrain.steps.optimizers import advance, make_optimizer
from privtrain.steps.plain import PlainSteps, normalises_batches
from privtrain.steps.teaching import Teacher, TeacherSteps

_MEMORY, _MOST = 2**27, 128
"""Bytes of weights and activations of a group, which a cache nearly holds; and its most models."""

_ELEMENTWISE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers that treat each number by itself, whatever lies beside it."""


@dataclass(frozen=True, kw_only=True)
class Together:
    """The steps of `PlainSteps`, of many teachers at once.

    Where a model, a loss or an optimizer is nothing that can be computed so, teachers are trained
    one by one. Which it is follows from settings and public rows, and both give the same votes up
    to rounding, which is tried on made-up teachers in float64 beforehand.

    Args:
        steps: What each teacher does.
    """

    steps: PlainSteps = PlainSteps()

    def __post_init__(self) -> None:
        check_is(PlainSteps, "PlainSteps()", steps=self.steps)

    @property
    def trains_model(self) -> bool:
        return self.steps.trains_model

    def check(self, task: Task, model: nn.Module) -> None:
        self.steps.check(task, model)

    def fewest_rows(self, model: nn.Module) -> int:
        return self.steps.fewest_rows(model)

    @property
    def at_once(self) -> int:
        return 1

    def prepared(self, task: Task, queries: Tensor, classes: int) -> TeacherSteps:
        if not _can(self.steps, task, queries, classes):
            return self.steps
        return Grouped(steps=self.steps, at_once=_group_of(self.steps, task, queries))

    def teach(
        self, task: Task, group: Sequence[Teacher], queries: Tensor, classes: int
    ) -> list[Tensor]:
        return self.steps.teach(task, group, queries, classes)


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Steps of groups of teachers that were found to be those of single ones; see `Together`.

    Args:
        steps: What each teacher does; its batches have a size.
        at_once: Teachers in a group.
    """

    steps: PlainSteps
    at_once: int

    @property
    def trains_model(self) -> bool:
        return True

    def check(self, task: Task, model: nn.Module) -> None:
        self.steps.check(task, model)

    def fewest_rows(self, model: nn.Module) -> int:
        return self.steps.fewest_rows(model)

    def prepared(self, task: Task, queries: Tensor, classes: int) -> "Grouped":
        return self

    def teach(
        self, task: Task, group: Sequence[Teacher], queries: Tensor, classes: int
    ) -> list[Tensor]:
        models = [
            initial_model(task, each.draws.seeds["teacher", 0, each.draws.name]).train()
            for each in group
        ]
        models = [model.to(str(queries.device)) for model in models]
        train_together(self.steps, task, models, group)
        forward = forward_of(models[0])
        if forward.is_same_in_evaluation:
            return _asked_together(forward, models, queries, self.steps.batch_size)
        scores = []
        for model, teacher in zip(models, group, strict=True):
            draws = teacher.draws
            with global_generator(draws.seeds["votes", 0, draws.name]):
                scores.append(ModelPredictor(model)(queries).cpu())
        return scores


@torch.no_grad()
def _asked_together(
    forward: Forward, models: Sequence[nn.Module], queries: Tensor, at_once: int | None
) -> list[Tensor]:
    """What each model says of all queries, `(queries, classes)`."""
    weights, kept = _stacked(models)
    parts = [
        # Copies of a view, which need no memory: every model is asked the same.
        forward({**weights, **kept}, part.expand(len(models), *part.shape))
        for part in torch.split(queries, max(1, at_once or len(queries)))
    ]
    return list(torch.cat(parts, dim=1).cpu())


def train_together(
    steps: PlainSteps, task: Task, models: Sequence[nn.Module], group: Sequence[Teacher]
) -> None:
    """Trains each model on the rows of its teacher, as `steps` would one by one.

    Args:
        steps: What each teacher does; its batches have a size.
        task: Its loss is used.
        models: Initial models of one kind, in training mode; changed in place.
        group: Their teachers; one without rows leaves its model as it is.
    """
    device = next(models[0].parameters()).device
    plan = _Plan.of(steps, group, device)
    weights, kept = _stacked(models)
    optimizer = make_optimizer(steps.optimizer, [*weights.values()], steps.learning_rate)  # type: ignore[list-item]
    # Of large tensors each further pass over memory costs as much as the product did.
    for settings in optimizer.param_groups:
        if "fused" in settings:
            settings.update(fused=True, foreach=False)
    forward, losses = forward_of(models[0]), losses_of(task.loss)
    for step in range(plan.steps):
        inputs, targets, shares = plan.batch(step)
        for weight in weights.values():
            weight.grad = None
        # Each teacher's mean over its own batch; the sum has the gradients of all of them.
        value = losses(forward({**weights, **kept}, inputs), targets)
        (value * shares).sum().backward()  # type: ignore[no-untyped-call]
        advance(optimizer)
        # Who is through stays as it is, while others go on: teachers are not equally large.
        for number in plan.ending(step):
            _take(models[number], weights, number)


@dataclass(frozen=True)
class _Plan:
    """Which rows each teacher takes in each step.

    Args:
        rows: Those of all teachers, one after the other.
        places: Rows of each step, teacher and place in the batch, `(steps, teachers, batch)`.
        shares: What each of them counts, zero where a batch is not full; of the same shape.
        last: The number of steps of each teacher.
    """

    rows: Rows
    places: Tensor
    shares: Tensor
    last: tuple[int, ...]

    @property
    def steps(self) -> int:
        return max(self.last)

    @staticmethod
    def of(steps: PlainSteps, group: Sequence[Teacher], device: torch.device) -> "_Plan":
        size = steps.batch_size
        if size is None:
            raise UnsupportedError("Expected batch_size=None to be a number of rows.")
        taken = [_batches(steps, teacher) for teacher in group]
        last = tuple(len(each) for each in taken)
        places = torch.zeros(max(last), len(group), size, dtype=torch.long)
        shares = torch.zeros(max(last), len(group), size, dtype=torch.float64)
        start = 0
        for number, (teacher, own) in enumerate(zip(group, taken, strict=True)):
            # Where a batch is not full, its teacher's first row stands in and counts nothing: of
            # zeros a model may make what is not finite.
            places[:, number] = start if len(teacher.rows) else 0
            for step, index in enumerate(own):
                places[step, number, : len(index)] = start + index
                shares[step, number, : len(index)] = 1 / len(index)
            start += len(teacher.rows)
        rows = _together([teacher.rows for teacher in group]).to(str(device))
        shares = shares.to(device, rows.inputs.dtype if rows.inputs.is_floating_point() else None)
        return _Plan(rows, places.to(device), shares, last)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and shares of one step, `(teachers, batch, ...)`."""
        index = self.places[step]
        flat = index.flatten()
        inputs = self.rows.inputs.index_select(0, flat)
        inputs = inputs.view(*index.shape, *inputs.shape[1:])
        targets = self.rows.labels.index_select(0, flat)
        targets = targets.view(*index.shape, *targets.shape[1:])
        return inputs, targets, self.shares[step]

    def ending(self, step: int) -> list[int]:
        """The teachers whose last step this is."""
        return [number for number, last in enumerate(self.last) if last == step + 1]


def _batches(steps: PlainSteps, teacher: Teacher) -> list[Tensor]:
    """The rows of each of a teacher's steps, as `PlainSteps` takes them."""
    rows, draws = teacher.rows, teacher.draws
    if len(rows) == 0:
        return []
    check_party_rows(draws.name, rows)
    order = draws.seeds["order", draws.round, draws.name].torch()
    taken = batches(len(rows), steps.batch_size, steps.epochs, order)
    return [torch.arange(len(rows)) if index is None else index for index in taken]


def _together(parts: Sequence[Rows]) -> Rows:
    """All rows, and one more where there are none."""
    inputs = torch.cat([rows.inputs for rows in parts])
    targets = torch.cat([rows.labels for rows in parts])
    if len(inputs) == 0:
        inputs = inputs.new_zeros(1, *inputs.shape[1:])
        targets = targets.new_zeros(1, *targets.shape[1:])
    return Rows(inputs, targets)


def _stacked(models: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trainable weights of all models by name, and all else that they compute with."""
    weights, kept = dict[str, Tensor](), dict[str, Tensor]()
    for name, first in models[0].named_parameters():
        whole = torch.stack([model.get_parameter(name).detach() for model in models])
        (weights if first.requires_grad else kept)[name] = whole
    for name, _ in models[0].named_buffers():
        kept[name] = torch.stack([model.get_buffer(name) for model in models])
    return {name: nn.Parameter(whole) for name, whole in weights.items()}, kept


@torch.no_grad()
def _take(model: nn.Module, weights: dict[str, Tensor], number: int) -> None:
    for name, whole in weights.items():
        model.get_parameter(name).copy_(whole[number])


def _group_of(steps: PlainSteps, task: Task, queries: Tensor) -> int:
    """How many teachers a group has, by settings and the shapes of a model and of public rows."""
    model = initial_model(task, Seeds(0)["together", 0, ""])
    per_row = [queries[0].numel()]

    def noted(layer: nn.Module, inputs: Any, outputs: Any) -> None:
        if isinstance(outputs, Tensor):
            patch = 1.0
            if isinstance(layer, nn.Conv2d):
                patch += layer.weight[0].numel() / layer.out_channels
            per_row.append(int(outputs.numel() * patch))

    for layer in model.modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_hook(noted)
    with torch.no_grad(), global_generator(Seeds(0)["together", 1, ""]):
        model.eval()(queries[:1].cpu())
    # Weights, gradients and two numbers of an optimizer; activations and their gradients.
    numbers = 4 * sum(parameter.numel() for parameter in model.parameters())
    numbers += 2 * sum(per_row) * (steps.batch_size or 1)
    size = max((parameter.element_size() for parameter in model.parameters()), default=4)
    return max(2, min(_MOST, _MEMORY // (numbers * size)))


# ----------------------------------------------------------------- whether both ways are the same


def _can(steps: PlainSteps, task: Task, queries: Tensor, classes: int) -> bool:
    """Whether teachers can be trained together, tried in float64 on made-up ones."""
    model = initial_model(task, Seeds(0)["together", 0, ""]).train()
    parameters = trainable(model)
    floating = all(p.is_floating_point() for p in model.parameters())
    # Of a batch without a size the shape would tell how many rows the largest teacher has.
    if steps.batch_size is None or not parameters or not floating or len(queries) == 0:
        return False
    if normalises_batches(model):
        return False
    try:
        made = make_optimizer(steps.optimizer, parameters, steps.learning_rate)
        return is_elementwise(made) and _agree(steps, task, queries, classes)
    except OWN_ERRORS:  # whatever a model or a loss says to what it was not written for
        return False


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether what it does to a number depends on that number alone."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return type(optimizer) in _ELEMENTWISE and not any(hooks) and "step" not in vars(optimizer)


_COUNTS = (5, 0, 3, 1)
"""Rows of the made-up teachers: batches of two sizes, one that ends early, and one without rows."""


def _agree(steps: PlainSteps, task: Task, queries: Tensor, classes: int) -> bool:
    """Whether made-up teachers end at the same weights both ways."""
    tried = replace(steps, epochs=2, batch_size=2)
    seeds, start = Seeds(0), 0
    wide = queries[torch.arange(sum(_COUNTS), device=queries.device) % len(queries)].cpu()
    wide = wide.double() if wide.is_floating_point() else wide
    labels = torch.arange(len(wide)) % max(1, classes)
    group = []
    for number, count in enumerate(_COUNTS):
        rows = Rows(wide[start : start + count], labels[start : start + count])
        draws = Draws(seeds, SeededEntropy(0), 0, f"tried/{number}")
        group.append(Teacher(rows, draws))
        start += count
    first = [initial_model(task, seeds["tried", n, ""]).double().train() for n in range(len(group))]
    second, before = copy.deepcopy(first), copy.deepcopy(first)
    for model, teacher in zip(first, group, strict=True):
        if len(teacher.rows):
            tried(model, task, teacher.rows, teacher.draws)
    with global_generator(seeds["tried", 0, "drawn"]):
        train_together(tried, task, second, group)
    moved = _far(first[0], before[0])
    return moved > 0 and all(
        _far(one, other) <= 1e-8 for one, other in zip(first, second, strict=True)
    )


@torch.no_grad()
def _far(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two models, relative to their largest value; inf for a NaN."""
    far = 0.0
    others = dict((*other.named_parameters(), *other.named_buffers()))
    for name, tensor in (*one.named_parameters(), *one.named_buffers()):
        if tensor.numel():
            difference = (tensor.double() - others[name].double()).abs().max()
            relative = float(difference / tensor.double().abs().max().clamp(min=1.0))
            far = max(far, relative) if relative == relative else float("inf")
    return far
