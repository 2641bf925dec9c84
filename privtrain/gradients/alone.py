"""Whether rows are alone: no loss and no gradient of a row changes with the rows beside it.

What `check_apart` looks for is gradients between rows. A largest value behind `detach`, a count, a
rank or an expert that is full pass it by, and still let one row move all others. So a model is run
on the same rows among other companions, with a row less and at other places, each row's own draws
held fixed, and what may not change is compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Loss, Rows
from privtrain.gradients.companions import Change, changes, copies, groups, made_up, shortest
from privtrain.gradients.draws import WAY_OUT
from privtrain.gradients.loss_alone import ERRORS, LossTrial
from privtrain.gradients.passes import DOUBLE, Pass, Weigh, own_precision, run
from privtrain.gradients.refusals import as_it_was

ALONE = "rows do not influence one another"
"""What every guarantee of a clipped sum assumes."""

_SEED = 20180215

_DRAWS, _COINS = 4, 24
"""Draws on which a model is tried that draws for each row, and that draws for the batch as a whole:
a coin may leave out the branch that mixes rows."""


@dataclass
class RowTrial:
    """Tries once whether a model and a loss treat each row alone.

    Args:
        model: The model, in training mode.
        loss: Loss of each row.
    """

    model: nn.Module
    loss: Loss
    done: bool = field(default=False, init=False)
    """Whether a trial could tell; no other one follows."""
    assumption: str = field(default=f"{ALONE}: assumed, not tried", init=False)
    """What a guarantee has to say."""

    def on(self, rows: Rows, *, public: bool) -> None:
        """Tries the model on rows. Costs about eight steps of SGD in float64, and three times
        that if the model draws.

        Two rows, or losses that are not finite, can refuse a model but not settle it.

        Args:
            rows: As many as the model is given at once.
            public: Whether anybody may learn the outcome.

        Raises:
            UnsupportedError: If a loss or a gradient changes with other rows, if the model draws
                from a generator that cannot be held, or if it hides a parameter from autograd.
        """
        if self.done or len(rows) < 2:
            return
        told, reason, cut = self._tried(rows)
        if reason and cut and len(rows) > 3:
            # Where something else is as long as the batch, such as a weight that gets noise, draws
            # were cut into rows that are none; it is not as long with a row less.
            index = torch.arange(len(rows), device=rows.inputs.device)
            told, reason, _ = self._tried(rows.take(index[index != len(rows) // 3]))
        if reason:
            raise UnsupportedError(reason)
        self.done = told and len(rows) > 2
        if self.done:
            where = f"{len(rows)} public rows" if public else "the rows of one batch"
            marked = "" if public else " (unprotected: these rows are private)"
            self.assumption = f"{ALONE}: tried on {where}, not proved{marked}"

    def _tried(self, rows: Rows) -> tuple[bool, str, bool]:
        """Whether it could tell, the reason for a refusal, and whether draws were cut by row."""
        for seed in range(_COINS):
            trial = _Trial(self.model, self.loss, rows, seed)
            told, reason = trial.outcome()
            enough = seed + 1 >= _DRAWS and not trial.flipped
            if reason or enough or not (told and trial.drew):
                break
        return told, reason, trial.cut


class _Trial:
    """The passes over the rows of one batch under one draw, and what differs between them."""

    def __init__(self, model: nn.Module, loss: Loss, rows: Rows, seed: int) -> None:
        self.model, self.loss, self.rows, self.seed = model, loss, rows, seed
        self.cut = self.drew = self.flipped = False
        self._precision = DOUBLE
        self._groups: list[Tensor] = []
        generator = torch.Generator().manual_seed(_SEED)
        weights = 0.5 + torch.rand(len(rows), generator=generator, dtype=torch.float64)
        # Of both signs: a change of some rows must not cancel against that of others.
        self._weights = weights * (torch.randint(2, (len(rows),), generator=generator) * 2 - 1)

    def outcome(self) -> tuple[bool, str]:
        """Whether the rows could tell, and the reason for a refusal or "" for none."""
        with as_it_was(self.model) as put_back:
            first = self._first()
            self.cut = bool(first.held.by_row)
            self.drew = first.held.drew
            # A single number, by which a model may branch.
            self.flipped = bool(first.held.for_batch) or first.held.used_elsewhere
            if not bool(first.losses.isfinite().all()):
                return False, ""
            if self._entangled(first):
                return True, _depends("as its gradient passes backward through the model")
            if self.seed == 0:
                reason = self._of_the_loss(first)
                if reason:
                    return True, reason
            # What is kept of the first batch ever shows in the next pass, what is kept of the
            # batch before in those that follow.
            put_back()
            others = changes(self.rows, first.losses, first.classes)
            # Further draws are tried on some of them.
            for change in islice(others, *((None,) if self.seed == 0 else (2, None, 2))):
                reason = self._compared(first, change)
                if reason:
                    return True, reason
            reason = self._beside_copies(first) if self.seed == 0 else ""
            reason = reason or self._repeated(first) or self._hidden(first.unreached)
            return bool(first.sums.isfinite().all()), reason

    def _first(self) -> Pass:
        """The pass that others are compared with, in float64 if the model can be run in it."""
        places = range(len(self.rows))

        def weigh(losses: Tensor) -> list[Tensor]:
            self._groups = groups(self.rows, losses)
            one, other, _, stay = (self._weights * group for group in self._groups)
            return [one, other, self._loud * one + other, stay]

        try:
            return self._pass(self.rows, places, weigh)
        except ERRORS:
            self._precision = own_precision(self.model)
            return self._pass(self.rows, places, weigh)

    def _run(self, change: Change) -> Pass:
        def weigh(losses: Tensor) -> list[Tensor]:
            if change.group is None:
                return []
            weights = self._weights * self._groups[change.group]
            known = change.identities < len(weights)
            return [torch.where(known, weights[change.identities % len(weights)], 0.0)]

        return self._pass(change.rows, change.identities.tolist(), weigh)

    def _pass(self, rows: Rows, identities: Sequence[int], weigh: Weigh) -> Pass:
        return run(self.model, self.loss, rows, identities, self._precision, weigh, self.seed)

    def _of_the_loss(self, first: Pass) -> str:
        """Computes the loss alone beside other targets and outputs."""
        trial = LossTrial(
            self.model, self.loss, first.outputs, self.rows, self._precision, self.seed
        )
        what = trial.differs()
        return (self._repeated(first) or _depends(f"with {what} beside it")) if what else ""

    def _beside_copies(self, first: Pass) -> str:
        """Rows of the batch, and made-up ones, each among copies of itself."""
        change = made_up(self.rows, first.losses)
        made = (change.identities >= len(self.rows)).nonzero().squeeze(1).tolist()
        rows, before = change.rows, first
        try:
            before = self._pass(rows, range(len(rows)), lambda _: [])
        except ERRORS:
            # The model cannot take rows that are made up.
            rows, made = self.rows, []
        if self._differ(first, before, change):
            return self._repeated(first) or _depends(f"with {change.name} it is another one")

        def beside_copies(place: int) -> str:
            if not bool(before.losses[place].isfinite()):
                return ""
            return self._compared(first, copies(rows, place), before)

        for reason in map(beside_copies, (shortest(self.rows), *made[:2])):
            if reason:
                return reason
        # Who cuts off padding, and rightly, may count on its being at one end.
        padded = [beside_copies(place) for place in made[2:]]
        return padded[0] if len(padded) == 2 and all(padded) else ""

    def _compared(self, first: Pass, change: Change, before: Pass | None = None) -> str:
        try:
            other = self._run(change)
        except ERRORS:
            # The model cannot take this batch, as one of made-up rows or of another length.
            return ""
        if self._differ(before or first, other, change):
            drawn = ", ".join(other.held.for_batch)
            return self._repeated(first) or _depends(
                f"with {change.name} it is another one, although each row's own random draws are "
                f"held fixed{f' ({drawn} drew for the batch as a whole)' if drawn else ''}"
            )
        if change.name == "one row fewer" and other.held.elsewhere != first.held.elsewhere:
            return (
                "How much the model or the loss draws from numpy's or Python's global generator "
                f"depends on how many rows there are, and so does what it draws next. {WAY_OUT}"
            )
        return ""

    def _repeated(self, first: Pass) -> str:
        """Runs the first batch once more."""
        same = Change("the same", self.rows, torch.arange(len(self.rows)), None)
        if not self._differ(first, self._run(same), same):
            return ""
        return (
            "The same rows under the same random draws have another loss or gradient than a few "
            "batches before: the model or the loss keeps something of earlier batches, or draws "
            "from a generator of its own, such as numpy.random.default_rng(). Keep nothing from "
            f"batch to batch. {WAY_OUT}"
        )

    def _differ(self, first: Pass, other: Pass, change: Change) -> bool:
        """Whether losses or gradients of the rows that both batches have differ."""
        known = (change.identities < len(first.losses)).nonzero().squeeze(1)
        before, after = first.losses[change.identities[known]], other.losses[known]
        usual, rounding = first.losses.abs().median(), self._precision.losses
        room = rounding * (before.abs() + usual + 1e-3)
        # Written so that not a number differs from every number.
        if not bool(((after - before).abs() <= room).all()):
            return True
        finite = bool(first.sums.isfinite().all() and other.losses.isfinite().all())
        # A made-up row, such as one of zeros, may have no gradient where its loss is finite.
        finite = finite and bool(other.sums.isfinite().all())
        if change.group is None or not finite:
            # Zero times what a row without a finite loss has is no difference.
            return False
        return self._apart(first.sums[change.group], other.sums[0, 0])

    def _entangled(self, first: Pass) -> bool:
        """Whether the gradient of all rows is another one than that of both halves together.

        It is where a backward pass scales or cuts gradients by those of the batch.
        """
        one, other, both, _ = first.sums
        finite = bool(first.sums.isfinite().all())
        return finite and self._apart(both, self._loud * one[0] + other[0])

    @property
    def _loud(self) -> float:
        """How much more one half weighs where both are in one gradient."""
        # As much as rounding allows: small gradients beside large ones are what may be cut.
        return 100.0 if self._precision.double else 1.0

    def _apart(self, before: Tensor, projection: Tensor) -> bool:
        """Whether two sums of gradients differ."""
        room = self._precision.sums * (before[1] + 1e-6)
        return not bool((projection - before[0]).abs() <= room)

    def _hidden(self, names: tuple[str, ...]) -> str:
        """Moves parameters that autograd does not reach, and looks at the losses."""
        parameters = {name: self.model.get_parameter(name) for name in names}
        if not (names and self._moves(list(parameters.values()))):
            return ""
        hidden = [name for name, parameter in parameters.items() if self._moves([parameter])]
        return (
            f"The losses depend on {', '.join(map(repr, hidden or names))}, which autograd does "
            "not reach, so that it would never be trained: it is used behind detach(), or in a "
            "torch.autograd.Function that is not given it as an argument. Give it to the function "
            "and return its gradient, or freeze it with requires_grad_(False)."
        )

    def _moves(self, parameters: list[nn.Parameter]) -> bool:
        """Whether losses change with these parameters."""
        before = self._losses()
        values = [parameter.detach().clone() for parameter in parameters]
        generator = torch.Generator().manual_seed(_SEED)
        try:
            for parameter in parameters:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                # In its own memory: who hides a parameter may hold another view of it.
                parameter.data.add_(noise * (1 + parameter.detach().abs().max()))
            return not torch.allclose(self._losses(), before, rtol=1e-3, atol=1e-6)
        except ERRORS:
            return False
        finally:
            for parameter, value in zip(parameters, values, strict=True):
                parameter.data.copy_(value)

    def _losses(self) -> Tensor:
        own, places = own_precision(self.model), range(len(self.rows))
        # Under the same draws, or a layer that is left out would look hidden.
        return run(self.model, self.loss, self.rows, places, own, lambda _: [], self.seed).losses


def _depends(how: str) -> str:
    return (
        f"The loss or the gradient of one example depends on other examples of its batch: {how}. "
        "One row can then move a clipped sum by more than the clipping norm. Use a model and a "
        "loss that treat each example alone: no statistic, count, rank or largest value of the "
        "batch, detached or not; nn.GroupNorm in place of normalising over the batch."
    )
