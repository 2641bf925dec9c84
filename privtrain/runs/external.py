"""A model that was trained elsewhere, beside those that are trained here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from privtrain.core.cost import Basis, Cost
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.observers import Observer
from privtrain.core.parameters import ModelPredictor, apart
from privtrain.core.recipe import Recipe, encoder_of
from privtrain.core.result import History, Members, Predictor, TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.statement import (
    STATED,
    Guarantee,
    InputPrivacy,
    PrivacyStatement,
    Relation,
    Unit,
)
from privtrain.core.task import FederatedData, Task
from privtrain.core.transcript import Transcript
from privtrain.core.validate import check_member
from privtrain.data.factories import factory_to_plain

ELSEWHERE = "elsewhere"

# Texts that are stored in results.
TRAINED_ELSEWHERE = "the model was trained elsewhere: privtrain computed no guarantee of it"
ROWS_STATED = f"that the model was trained on the training rows is {STATED}"


@dataclass(frozen=True)
class External:
    """A model that was trained elsewhere, as a row of a comparison that attacks can be tried on.

    Nothing is trained: `compare` measures the predictor on the test rows, and attacks ask it about
    the training rows, on which the user says that it was trained. Its guarantees are the user's
    own: they are called so wherever they are shown, and never counted as computed ones.

    Args:
        predictor: A module, of which a copy is asked in eval mode, or a function from inputs
            `(rows, ...)` to outputs `(rows, ...)`.
        guarantees: What the user states of it, as an Opacus script or a Flower run computed it;
            empty for nothing.
        trained_by: What trained it, for tables, such as "Opacus 1.6".

    Raises:
        ValueError: If the predictor cannot be called, or a guarantee is none.
    """

    predictor: Predictor | nn.Module = field(repr=False)
    guarantees: Sequence[Guarantee] = ()
    trained_by: str = ELSEWHERE
    token: ClassVar[str] = "external"

    def __post_init__(self) -> None:
        if isinstance(self.predictor, type) or not callable(self.predictor):
            raise ValueError(
                f"Expected predictor={self.predictor!r:.80} to be a module or a function from "
                "inputs to outputs."
            )
        if not isinstance(self.trained_by, str):
            raise ValueError(f"Expected trained_by={self.trained_by!r} to be text.")
        given = self.guarantees
        if isinstance(given, Guarantee):
            given = (given,)
        if isinstance(given, PrivacyStatement):
            given = given.guarantees
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"Expected guarantees={given!r:.80} to be a list, {_EXAMPLE}.")
        object.__setattr__(self, "guarantees", tuple(map(_stated, given)))

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[Any, ...]:
        """Nothing: no release is made here."""
        return ()

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        """Nothing is known of who read what."""
        return ()

    def with_noise(self, scale: float) -> None:
        """None: nothing is trained, so that no noise can be chosen."""

    @property
    def caveats(self) -> tuple[str, ...]:
        return (TRAINED_ELSEWHERE,)

    @property
    def _note(self) -> str:
        by = "elsewhere" if self.trained_by in ("", ELSEWHERE) else f"by {self.trained_by}"
        return f"trained {by}, as the user says"

    def train(self, task: Task, data: FederatedData, run: object) -> Predictor:
        """Refused: there is nothing to train."""
        raise UnsupportedError("An External model was trained elsewhere. Use fit or compare.")

    def trained_elsewhere(self, task: Task, data: FederatedData) -> TrainResult:
        """The model as a result.

        Raises:
            DataError: If it does not answer test rows with a tensor that has a row for each.
        """
        predictor = _asked(self.predictor)
        _try(predictor, data)
        nowhere = Cost(
            bytes_sent=None,
            rounds=None,
            seconds=math.nan,
            peak_memory_bytes=math.nan,
            basis=Basis.ELSEWHERE,
        )
        return TrainResult(
            predictor=predictor,
            statement=PrivacyStatement(guarantees=tuple(self.guarantees), caveats=self.caveats),
            cost=nowhere,
            history=History(),
            transcript=Transcript(),
            notes=(self._note,),
            members=Members(rows=dict.fromkeys(data.parties), doubt=ROWS_STATED),
            recipe=Recipe(
                factory=factory_to_plain(self.predictor),  # type: ignore[arg-type]
                seed=0,
                encoder=encoder_of(data.test.inputs, data.test.targets, data.encoder),
            ),
        )


_EXAMPLE = (
    "such as [pt.Guarantee(observer=pt.PUBLIC, unit='example', relation=pt.ADD_REMOVE, "
    "epsilon=3.0, delta=1e-5, accountant='prv')]"
)


def _stated(guarantee: Guarantee) -> Guarantee:
    if not isinstance(guarantee, Guarantee):
        raise ValueError(
            f"Expected guarantees to hold {guarantee!r:.80} as a Guarantee, {_EXAMPLE}."
        )
    epsilon, delta = guarantee.epsilon, guarantee.delta
    for name, value, most in (("epsilon", epsilon, math.inf), ("delta", delta, 1.0)):
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not real or not 0 <= value <= most:
            raise ValueError(f"Expected {name}={value!r} of a guarantee in [0, {most:g}].")
    check_member(tuple(Unit), unit=guarantee.unit)
    check_member(tuple(Relation), relation=guarantee.relation)
    observer = guarantee.observer
    return replace(
        guarantee,
        observer=observer if isinstance(observer, Observer) else Observer(str(observer)),
        # By their texts, too: who writes down a figure from elsewhere may write 'example'.
        unit=Unit(guarantee.unit),
        relation=Relation(guarantee.relation),
        stated=True,
    )


def _asked(predictor: Predictor | nn.Module) -> Predictor:
    # What it was in before stays: the mode is part of what identifies a trainer.
    if isinstance(predictor, ModelPredictor):
        return replace(predictor, module=apart(predictor.module).module)
    return apart(predictor) if isinstance(predictor, nn.Module) else predictor


def _try(predictor: Predictor, data: FederatedData) -> None:
    """Asks about two test rows, before hours of attacks."""
    few = data.test.inputs[:2]
    try:
        with torch.no_grad():
            outputs: object = predictor(few)
    except OWN_ERRORS as error:  # a user's own model may raise anything
        raise DataError(
            f"Expected the external predictor to take inputs of shape {tuple(few.shape)} and type "
            f"{few.dtype}; it raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(few):
        shown = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(
            f"Expected the external predictor to return a tensor with a row for each of {len(few)} "
            f"inputs; it returned {shown}. Wrap it in a function that returns logits."
        )
