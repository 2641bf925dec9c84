"""What a run's messages say of its models: those that were sent, and how clients changed them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.parameters import (
    ModelPredictor,
    apart,
    float_buffers,
    load_vector,
    module_of,
    trainable,
)
from privtrain.core.parties import AGGREGATOR_NAME, PUBLIC_NAME
from privtrain.core.result import Target
from privtrain.core.transcript import Entry


def own_module(target: Target) -> nn.Module:
    """A copy of the published model, into which other values can be loaded.

    Raises:
        NotApplicableError: If what was published is no model.
    """
    module = module_of(target.predictor)
    if module is None:
        raise NotApplicableError(
            "This attack loads what was sent into the published model, and there is none: what "
            "was published only answers. Use LossThreshold.",
            Reason.NO_WEIGHTS,
        )
    return apart(module).module


def with_values(module: nn.Module, vector: Tensor) -> ModelPredictor:
    """The module as a predictor, overwritten by what a message held.

    Args:
        module: Its own copy of the model; see `own_module`.
        vector: Trainable parameters, and float buffers behind them where those were sent, too.
    """
    tensors: list[Tensor] = [*trainable(module)]
    if vector.numel() != sum(tensor.numel() for tensor in tensors):
        tensors = [*tensors, *float_buffers(module)]
    load_vector(tensors, vector)
    return ModelPredictor(module)


def models_sent(target: Target, module: nn.Module) -> list[Tensor]:
    """The models that the observer sent or was sent, each once, and the published one.

    Args:
        target: What the attack was given, with the tensors of messages.
        module: The published model, which says how long a message of a model is.

    Returns:
        In the order in which they were sent, each of shape `(values,)`.

    Raises:
        NotApplicableError: If there are not at least two: what is published, everybody sees.
    """
    models: dict[tuple[bool, int], Tensor] = {}
    for entry in target.view.messages:
        public = entry.receiver == PUBLIC_NAME
        if (public or entry.sender == AGGREGATOR_NAME) and _is_model(entry, module):
            models.setdefault((public, entry.round), _payload(entry))
    if len(models) < 2:
        raise NotApplicableError(
            "This attack reads the model of each round, and this observer saw none but what was "
            "published: nothing of that kind was sent. Use LossThreshold.",
            Reason.NO_MESSAGES,
        )
    return list(models.values())


@dataclass(frozen=True, eq=False)
class Update:
    """What one client answered in one round.

    Args:
        party: The client.
        round: The exchange.
        sent: The model that it was sent, float64, shape `(values,)`.
        change: How it changed that model, of the same type and shape; where changes are clipped and
            noised before they leave, what is left of it.
    """

    party: str
    round: int
    sent: Tensor
    change: Tensor


def updates_of(target: Target, module: nn.Module) -> Iterator[Update]:
    """Every other client's update that the observer can read, with the model that it started from.

    A client answers either with its model or with the change of it. Which, is told by the next
    model: it is near the average of the answers, or near that average and the model before.

    Args:
        target: What the attack was given, with the tensors of messages.
        module: The published model, which says how long a message of a model is.

    Returns:
        In the order of the rounds, one by one: together they take several times the messages.

    Raises:
        NotApplicableError: If it can read none, as where they were sent as shares.
    """
    rounds = [one for one in _rounds(target, module) if one.answers]
    if not any(set(one.answers).difference(target.own) for one in rounds):
        raise NotApplicableError(
            "This attack reads single updates of clients beside the model that each was sent, and "
            "this observer saw none. Use ModelSequence, or LossThreshold.",
            Reason.NO_MESSAGES,
        )
    readings = itertools.product((1.0, 0.0), UNITS)
    share, unit = min(
        readings, key=lambda reading: sum(one.misfit(*reading) for one in rounds[:DECIDING])
    )
    return (
        Update(party, one.number, start, one.value(answer, unit) - share * start)
        for one in rounds
        for start in [one.sent.double()]
        for party, answer in one.answers.items()
        # Of its own parties the observer knows the rows.
        if party not in target.own
    )


UNITS = (1.0, 2.0**-20)
"""What weights are multiplied by before they are sent: bounded ones, and such without a bound."""

DECIDING = 5
"""The first rounds, by which it is told whether clients answer models or changes."""


@dataclass(eq=False)
class _Round:
    """The model that clients were sent, their answers, and the next model, as they were sent."""

    number: int
    sent: Tensor
    following: Tensor
    answers: dict[str, Tensor] = field(default_factory=dict)

    def value(self, answer: Tensor, unit: float) -> Tensor:
        """What a client answered, in float64, without its weight: that is the number behind it."""
        wide = answer.double()
        values = wide[: len(self.sent)]
        return values / wide[-1] * unit if len(wide) > len(values) else values

    def misfit(self, share: float, unit: float) -> float:
        """How far the next model is from what it should be if answers hold a share of `sent`."""
        total, count = torch.zeros(len(self.sent), dtype=torch.float64), 0
        for answer in self.answers.values():
            value = self.value(answer, unit)
            if bool(value.isfinite().all()):
                total, count = total + value, count + 1
        expected = total / max(1, count) + (1.0 - share) * self.sent
        return float((expected - self.following).square().sum())


def _rounds(target: Target, module: nn.Module) -> list[_Round]:
    rounds: dict[int, _Round] = {}
    for entry in target.view.messages:
        public = entry.receiver == PUBLIC_NAME
        if (public or entry.sender == AGGREGATOR_NAME) and _is_model(entry, module):
            model = _payload(entry)
            if public or entry.round not in rounds:
                for last in list(rounds.values())[-1:]:
                    last.following = model
            if not public:
                rounds.setdefault(entry.round, _Round(entry.round, model, model))
        asked = rounds.get(entry.round)
        if entry.kind == "update" and asked is not None and entry.receiver == AGGREGATOR_NAME:
            answer = _payload(entry)
            # One number more is the client's weight.
            if answer.is_floating_point() and answer.numel() - len(asked.sent) in (0, 1):
                asked.answers[entry.sender] = answer
    return list(rounds.values())


def _is_model(entry: Entry, module: nn.Module) -> bool:
    """Whether a message is a model: trainable parameters, perhaps with float buffers."""
    parameters = sum(tensor.numel() for tensor in trainable(module))
    buffers = sum(tensor.numel() for tensor in float_buffers(module))
    length = entry.shape[0] if len(entry.shape) == 1 else -1
    return entry.kind == "model" and length in (parameters, parameters + buffers)


def _payload(entry: Entry) -> Tensor:
    if entry.payload is None:
        raise NotApplicableError(
            "Expected kept payloads: use fit(..., keep_payloads=True).", Reason.NO_TENSORS
        )
    return entry.payload.detach().cpu()
