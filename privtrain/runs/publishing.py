"""What leaves a fit: a module made anew, which receives parameters and checked buffers by name.

The module that was trained saw private rows, and may have kept them: in an attribute, a buffer, a
hook, a list on its class. It stays behind.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import PrivacyError
from privtrain.core.models import check_alike, stream_of
from privtrain.core.parameters import ModelPredictor, initial_model, trainable
from privtrain.core.reachable import Snapshot, anywhere, changed, snapshot, tensor_digest, walk
from privtrain.core.result import Predictor
from privtrain.core.seeding import Seeds, Stream, global_generator
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Run
from privtrain.ledgers.study import StudyLedger
from privtrain.runs.earlier import from_earlier_fits, remember, varies

# Texts that are stored in results.
PUBLIC_START = "initial weights do not depend on the protected rows"
STUDY_START = "initial weights came out of earlier fits of the study, whose guarantee counts both"
OWN_OBJECT = "the predictor is the trainer's own object: what it keeps is not checked"

_INITIAL = ("initialisation", 0, "")
_FEW = 4


@dataclass(frozen=True)
class Start:
    """What a fit starts from, checked before anything is spent.

    Args:
        task: What is learned.
        module: Its model, made anew; it is never run, and published in the end.
        stream: Where its initial weights came from.
        reachable: What could be reached from it before training, beside parameters and buffers.
        promises: Whether anything is promised to anybody.
        assumptions: What every guarantee assumes of the initial weights.
    """

    task: Task
    module: nn.Module
    stream: Stream
    reachable: Snapshot
    promises: bool
    assumptions: tuple[str, ...]


def checked_start(
    task: Task,
    data: FederatedData,
    seeds: Seeds,
    *,
    promises: bool,
    study: StudyLedger | None = None,
    beside: object = None,
) -> Start:
    """Makes a task's model twice, and refuses what one run could learn from another.

    Args:
        task: What is learned.
        data: What will be trained on; rows for testing, which nobody protects, try the model.
        seeds: The run's public streams.
        promises: Whether anything is promised to anybody.
        study: Where the fit is charged, or None.
        beside: What the trainer reads beside the model, such as a map of features.

    Returns:
        The start of the fit.

    Raises:
        ValueError: If the task's factory makes no new module at each call.
        PrivacyError: If something is promised, and the model keeps what it saw outside of itself,
            or starts from what an earlier fit made of these rows.
    """
    stream = seeds[_INITIAL]
    module, tried = initial_model(task, stream), initial_model(task, stream)
    check_alike(task.model, tried, module)
    if not promises:
        return Start(task, module, stream, {}, False, ())
    read = (*_named(module), *_tensors_of(beside))
    loose, counted = from_earlier_fits(read, data, study)
    if loose:
        raise PrivacyError(
            f"The model starts from {loose[0]!r}, which an earlier fit made of these rows: the "
            "guarantee of this fit would not cover it. Give both fits the same study_ledger=, "
            "which adds up what they release, or start from other weights."
        )
    assumptions = (STUDY_START,) if counted else ()
    if not counted and _is_given(task, module):
        assumptions = (PUBLIC_START,)
    start = Start(task, module, stream, snapshot(module), True, assumptions)
    for number, few in enumerate(_trial_rows(data)):
        _try(tried, task, few, Seeds(0)["model trial", number, ""])
        # After each: what an earlier trial left there would look as if nothing had changed.
        _check_reachable(start, "Nothing was trained")
    return start


def _tensors_of(beside: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a map holds, in closures and modules that it calls, too."""
    for path, value in walk(beside, anywhere):
        if isinstance(value, Tensor):
            yield f"features{path if path[:1] in ('', '[', '(') else f'.{path}'}", value


def _is_given(task: Task, module: nn.Module) -> bool:
    """Whether some initial weights do not follow from the seed: they were loaded from somewhere."""
    if isinstance(task.model, nn.Module):
        return True
    other = initial_model(task, Seeds(0)["another start", 0, ""])
    pairs = zip(module.parameters(), other.parameters(), strict=False)
    return any(varies(a) and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _trial_rows(data: FederatedData) -> Iterator[Rows]:
    """Twice a few rows that nobody protects."""
    rows = data.test if data.public is None or data.public.targets is None else data.public
    for first in (0, _FEW // 2):
        place = torch.arange(first, first + _FEW, device=rows.inputs.device) % len(rows)
        yield rows.take(place).to("cpu")


def _try(model: nn.Module, task: Task, rows: Rows, stream: Stream) -> None:
    """Takes rows through the model, forward and backward, as training does."""
    with global_generator(stream):
        try:
            _outcome(model.train(), task, rows).sum().backward()  # type: ignore[no-untyped-call]
        except Exception:
            # The trainer says in its own words what is wrong with the model.
            return


def _outcome(model: nn.Module, task: Task, rows: Rows) -> Tensor:
    logits: Tensor = model(rows.inputs)
    return logits if rows.targets is None else task.loss(logits, rows.targets)


def _check_reachable(start: Start, what: str) -> None:
    if not start.promises:
        return
    for path in changed(start.reachable, snapshot(start.module)):
        raise PrivacyError(
            f"The model keeps what it saw outside of itself, in {path!r}, which can be reached "
            f"from every model of its kind, and no noise covers it. {what}. Keep nothing of the "
            "inputs in classes, globals, default arguments or closures."
        )


def published(
    predictor: Predictor,
    start: Start,
    data: FederatedData,
    run: Run,
    study: StudyLedger | None = None,
) -> Predictor:
    """The predictor that leaves a fit, whose modules are made anew.

    Args:
        predictor: What the trainer returned.
        start: What the fit started from.
        data: The rows it was trained on.
        run: The run; it is told where something could not be made anew.
        study: Where the fit was charged, or None.

    Returns:
        The predictor with new modules. One without modules, or of modules that are not the task's
        model, is the trainer's own object, which is noted.

    Raises:
        PrivacyError: If something is promised, and a buffer or frozen parameter has changed, or
            the model kept something outside of itself.
    """
    renewing = _Renewing(start, run.device)
    fresh: Predictor = renewing.renewed(predictor)
    _check_reachable(start, "What was spent stays spent")
    remember(renewing.trained, data, study)
    known = isinstance(predictor, (ModelPredictor, nn.Module)) and not renewing.foreign
    if start.promises and not known:
        run.outcome.notes.append(OWN_OBJECT)
    return fresh


def renewed(predictor: Predictor, start: Start, device: str) -> Predictor:
    """A published predictor again, in the module of another start from the same weights.

    Args:
        predictor: What `published` returned.
        start: What a fit of the same task, seeds and rows would have started from.
        device: Where the module is to lie.
    """
    made: Predictor = _Renewing(start, device).renewed(predictor)
    return made


class _Renewing:
    """Makes the modules of one predictor anew."""

    def __init__(self, start: Start, device: str) -> None:
        self.trained: list[Tensor] = []
        self.foreign = False
        self._start, self._device = start, device
        # By identity: a module that stands in two places stays one.
        self._made: dict[int, nn.Module] = {}

    def renewed(self, value: Any, *, buffers: bool = False) -> Any:
        """A value in which every module of the task is a new one."""
        if isinstance(value, nn.Module):
            if id(value) not in self._made:
                self._made[id(value)] = self._module(value, buffers)
            return self._made[id(value)]
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            items = [self.renewed(item) for item in value]
            same = all(a is b for a, b in zip(items, value, strict=True))
            return value if same else type(value)(items)
        if type(value) is dict:
            made = {key: self.renewed(item) for key, item in value.items()}
            return value if all(made[key] is value[key] for key in value) else made
        if is_dataclass(value) and not isinstance(value, type):
            released = isinstance(value, ModelPredictor) and value.buffers_released
            parts = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
            new = {name: self.renewed(part, buffers=released) for name, part in parts.items()}
            new = {name: part for name, part in new.items() if part is not parts[name]}
            return replace(value, **new) if new else value
        return value

    def _module(self, trained: nn.Module, buffers: bool) -> nn.Module:
        stream = stream_of(trained)
        made = self._initial(stream)
        if _kind(trained) != _kind(made) or _shapes(trained) != _shapes(made):
            return self._unlike(trained, made_here=stream is not None)
        initial, final = dict(_named(made)), dict(_named(trained))
        taken = [name for name in initial if not _equal(initial[name], final[name])]
        if self._start.promises:
            covered = dict(made.named_buffers()) if buffers else {}
            covered |= {name: p for name, p in made.named_parameters() if p.requires_grad}
            for name in taken:
                # Averages of equal numbers may differ in their last bits; the first ones stay.
                if name not in covered and not _close(initial[name], final[name]):
                    raise PrivacyError(_uncovered(name, made))
            taken = [name for name in taken if name in covered]
        _copy({name: (final[name], initial[name]) for name in taken})
        self.trained += [initial[name] for name in taken]
        layers = dict(trained.named_modules())
        for name, layer in made.named_modules():
            layer.training = layers[name].training
        return made.to(self._device)

    def _initial(self, stream: Stream | None) -> nn.Module:
        start = self._start
        # Of two modules in one predictor, the second needs one of its own, too.
        if not self._made and stream in (None, start.stream):
            return start.module
        return initial_model(start.task, stream or start.stream)

    def _unlike(self, trained: nn.Module, *, made_here: bool) -> nn.Module:
        """What becomes of a module that is not as the task makes them."""
        if self._start.promises and made_here:
            raise PrivacyError(
                f"Training has changed which parameters and buffers the {type(trained).__name__} "
                "has, so that it cannot be told which of them noise covers. Make all of them in "
                "the model's constructor."
            )
        self.foreign = True
        known = {tensor_digest(tensor) for _, tensor in _named(self._start.module)}
        self.trained += [p for p in trainable(trained) if tensor_digest(p) not in known]
        return trained


def _uncovered(name: str, module: nn.Module) -> str:
    """Why something that has changed is not published."""
    frozen = name in dict(module.named_parameters())
    what = f"the frozen parameter {name!r}" if frozen else f"the buffer {name!r}"
    return (
        f"Training has changed {what}, and no noise covers it. Nothing is published, and what was "
        "spent stays spent. Keep nothing of the inputs in the model; nn.GroupNorm needs no "
        "statistics, and what is trained must require a gradient when the model is made."
    )


def _kind(module: nn.Module) -> tuple[str, str]:
    # By name: a class that is made in a function is another one at each call.
    return type(module).__module__, type(module).__qualname__


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in _named(module)]


def _equal(initial: Tensor, final: Tensor) -> bool:
    # Bits, not values: NaN is equal to nothing.
    return tensor_digest(initial) == tensor_digest(final)


def _close(initial: Tensor, final: Tensor) -> bool:
    if not (initial.is_floating_point() and final.is_floating_point()):
        return False
    one, other = (tensor.detach().cpu().double() for tensor in (initial, final))
    return torch.allclose(one, other, rtol=1e-6, atol=0.0, equal_nan=True)


@torch.no_grad()
def _copy(pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    for source, target in pairs.values():
        if source.dtype == target.dtype:
            target.copy_(source)
        else:  # a trainer that works in another type
            target.data = source.detach().cpu().clone()


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
