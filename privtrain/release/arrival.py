"""What arrives is not believed: single messages are bounded again, or refused by name.

A party that deviates may send anything. What the aggregator can read of a message it checks; what
it cannot read is an assumption, which the statement names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.core.runtime import Payload
from privtrain.core.statement import ADD_REMOVE
from privtrain.core.trainer import Run
from privtrain.core.validate import all_finite, check_count, check_non_negative, check_positive
from privtrain.mechanisms.mechanism import Mechanism

BOUNDED_AGAIN = "bounded_again"
"""Diagnostic: how many messages of a round were above the bound and were bounded again."""

UNREADABLE = "parties bound their own contributions: nobody can read them"
"""What is assumed where no single message can be read."""

UNCOUNTED = "a party's message has no bound: how many contributions it adds up is its own knowledge"
"""What is assumed where nobody but the party knows how many contributions it adds up."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a message is held to, in public figures.

    Args:
        contributions: How many bounded contributions a party may add up: for all parties, or for
            each of them by name. None where only the party knows, so that its message has no bound.
        shape: Shape of a message without its weight, None for a size that is not known; None
            altogether for the shape of the first message.
        largest_weight: Upper bound on a weight, which is the last value of a weighted message;
            infinity for none. None for messages without weights.
        weight_of_one: The weight in the message of a single contribution, where a message of a
            larger weight adds up as many of them; None where weights change no bound.

    Raises:
        ValueError: If a number of contributions is below 1, or a weight below 0.
    """

    contributions: int | Mapping[str, int] | None = 1
    shape: tuple[int | None, ...] | None = None
    largest_weight: float | None = None
    weight_of_one: float | None = None

    def __post_init__(self) -> None:
        given = self.contributions
        counts = given.values() if isinstance(given, Mapping) else () if given is None else (given,)
        for count in counts:
            check_count(contributions=count)
        if self.largest_weight is not None and self.largest_weight != float("inf"):
            check_non_negative(largest_weight=self.largest_weight)
        if self.weight_of_one is not None:
            check_positive(weight_of_one=self.weight_of_one)

    def contributions_of(self, party: str, weight: Tensor | None = None) -> int | None:
        """How many contributions a party may add up; None where that is not public.

        Args:
            party: Its name.
            weight: The weight in its message, shape `(1,)`, not negative.
        """
        given = self.contributions
        count = given[party] if isinstance(given, Mapping) else given
        if count is None or weight is None or self.weight_of_one is None:
            return count
        return count * max(1, math.ceil(float(weight) / self.weight_of_one))


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """The aggregator's check of messages that it can read.

    Args:
        mechanism: How contributions were to be bounded.
        own_noise: Fraction of the mechanism's variance that every party drew; None for no noise.
        expected: What messages are held to.
    """

    mechanism: Mechanism
    own_noise: float | None
    expected: Expected

    def admit(
        self, messages: Mapping[str, Payload], run: Run, *, round: int, kind: str
    ) -> dict[str, Payload]:
        """The messages that may be added up.

        An honest message keeps its bits. Without own noise, one that is too large is bounded again
        and counted; with own noise it is refused, since scaling it would bias the sum.

        Args:
            messages: Party to message.
            run: The run, whose history counts what was bounded again.
            round: Communication round, from 0.
            kind: What the messages are called in the transcript.

        Raises:
            ProtocolError: If a message cannot be an honest one, with the name of its party.
        """
        values = {party: _tensor(party, message, kind) for party, message in messages.items()}
        shape = self._shape(values)
        admitted, bounded_again = {}, 0
        for party, value in values.items():
            self._check(party, value, kind, shape)
            body, weight = self._parted(party, value, kind)
            contributions = self.expected.contributions_of(party, weight)
            kept = self._kept(party, body, run, round, kind, contributions)
            if kept is not body:
                bounded_again += 1
                value = kept if weight is None else torch.cat([kept, weight])
            admitted[party] = {kind: value}
        # A count, without names, and only where there is one: who deviates is not made public.
        if bounded_again:
            run.outcome.history.record(round + 1, **{BOUNDED_AGAIN: float(bounded_again)})
        return admitted

    def _shape(self, messages: Mapping[str, Tensor]) -> tuple[int | None, ...]:
        """The shape that a message has to have, its weight included."""
        shape = self.expected.shape
        if shape is None:
            return next((tuple(value.shape) for value in messages.values()), ())
        if self.expected.largest_weight is None:
            return shape
        (values,) = shape
        return (None if values is None else values + 1,)

    def _check(self, party: str, value: Tensor, kind: str, shape: tuple[int | None, ...]) -> None:
        """Refuse what is not of the expected shape, or no real number."""
        if len(value.shape) != len(shape) or any(
            wanted not in (None, size) for wanted, size in zip(shape, value.shape, strict=True)
        ):
            raise ProtocolError(
                f"The {kind!r} of {party} has shape {tuple(value.shape)}, not {shape} as expected."
            )
        # Whole numbers can be added up, but neither bounded nor weighted.
        whole = not (self._bounding or self.expected.largest_weight is not None)
        if not (value.is_floating_point() or (whole and not value.is_complex())):
            raise ProtocolError(
                f"The {kind!r} of {party} is of type {value.dtype}, not of floating point as "
                "expected."
            )

    def _parted(self, party: str, value: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
        """A message without its weight, and its weight, shape `(1,)`."""
        largest = self.expected.largest_weight
        if largest is None:
            return value, None
        weight = float(value[-1])
        # The slack is for a weight that was rounded to the type of the message.
        if not (math.isfinite(weight) and 0 <= weight <= largest * (1 + 1e-6)):
            raise ProtocolError(
                f"The weight that {party} sent with its {kind!r} is {weight:g}, which does not lie "
                f"in [0, {largest:g}]."
            )
        return value[:-1], value[-1:]

    @property
    def _bounding(self) -> bool:
        return self.mechanism.sensitivity(ADD_REMOVE) is not None

    def _kept(
        self, party: str, body: Tensor, run: Run, round: int, kind: str, contributions: int | None
    ) -> Tensor:
        """The message itself, or what is left of it under the bound."""
        if not self._bounding or contributions is None:
            if self._bounding:
                run.outcome.assume(UNCOUNTED)
            if not all_finite(body):
                raise ProtocolError(
                    f"Round {round}: the {kind} of {party} is not finite. Lower the learning rate, "
                    "check the rows for extreme values, or clip contributions with "
                    "Release(Gaussian(clipping_norm, 0.0))."
                )
            return body
        if self.own_noise is None:
            return self.mechanism.bound_again(body, contributions)
        reach = self.mechanism.reach(body, contributions, fraction=self.own_noise)
        run.outcome.assume(
            f"a party that deviates may move the sum by up to {reach.times:.3g} times its bound "
            f"({reach.bound:g}): a message with its own noise is refused beyond "
            f"{reach.radius:.3g} only"
        )
        if not reach.kept:
            raise ProtocolError(
                f"Round {round}: {party} sent {kind!r} of norm {reach.norm:.6g}, and honest ones "
                f"stay within {reach.radius:.6g} but with probability 2^-40. Scaling would bias "
                "the sum, so it is refused."
            )
        return body


def _tensor(party: str, message: Payload, kind: str) -> Tensor:
    """The tensor that is to be added; a sender may have sent anything under its name."""
    if kind not in message:
        raise ProtocolError(
            f"Expected the message of {party} to hold {kind!r}; got {sorted(message)}."
        )
    value: object = message[kind]
    if not isinstance(value, Tensor):
        raise ProtocolError(
            f"The {kind!r} of {party} is of type {type(value).__name__}, no tensor as expected."
        )
    if (
        value.layout is not torch.strided
        or value.is_meta
        or value.is_quantized
        or value.is_nested
        or (value.is_floating_point() and value.dtype.itemsize < 2)
    ):
        raise ProtocolError(
            f"The {kind!r} of {party} is of type {value.dtype}, layout {value.layout}, on "
            f"{value.device}: no dense tensor of numbers as expected."
        )
    return value.detach() if value.requires_grad else value


def with_weight(total: Tensor, weight: float) -> Tensor:
    """A vector with its weight as the last value.

    Args:
        total: Shape `(parameters,)`.
        weight: The weight; any finite number.

    Returns:
        Shape `(parameters + 1,)`; in float32 at least, since half precision cannot count rows.

    Raises:
        ValueError: If it is no vector.
    """
    if total.dim() != 1:
        raise ValueError(f"Expected a vector to carry weight={weight}; got {tuple(total.shape)}.")
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    return torch.cat([wide, wide.new_tensor([weight])])
