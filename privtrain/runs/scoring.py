"""Scores by which tuning chooses, and what each of them releases."""

from dataclasses import dataclass
from typing import Protocol

import torch

from privtrain.accounting.event import Event, no_event
from privtrain.core.errors import DataError, UnsoundReleaseError, UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.result import Predictor
from privtrain.core.seeding import Seeds, Stream, global_generator
from privtrain.core.settings import kept_settings
from privtrain.core.statement import Relation, Unit
from privtrain.core.task import FederatedData, Rows
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.runs.checkpoint import LOADED_BEFOREHAND


class Score(Protocol):
    """How good a trained model is, so that the best one can be chosen."""

    @property
    def rows(self) -> Rows:
        """What it is measured on."""
        ...

    @property
    def assumption(self) -> str:
        """What has to hold for its cost."""
        ...

    def event(self, unit: Unit, relation: Relation) -> Event:
        """What measuring one model releases."""
        ...

    def measure(self, predictor: Predictor, stream: Stream) -> float:
        """The score; larger is better."""
        ...


@kept_settings()
def _correct(predictor: Predictor, rows: Rows) -> float:
    with torch.no_grad(), global_generator(Seeds(0)["score", 0, ""]):
        return float((predictor(rows.inputs).argmax(dim=1) == rows.labels).sum())


@dataclass(frozen=True)
class PublicRows:
    """Scores a model by its accuracy on rows that are declared public; that costs nothing.

    Args:
        rows: Rows with labels that anybody may read and nobody is protected in.
    """

    rows: Rows

    @property
    def assumption(self) -> str:
        return "the rows that scores were measured on are public, as the user declared"

    def event(self, unit: Unit, relation: Relation) -> Event:
        """Nothing: it is computed from what is released and what is public."""
        return no_event()

    def measure(self, predictor: Predictor, stream: Stream) -> float:
        """Accuracy, in 0..1."""
        return _correct(predictor, self.rows) / max(1, len(self.rows))


@dataclass(frozen=True)
class PrivateRows:
    """Scores a model by a noisy number of private rows that it answers correctly.

    One row changes that number by at most 1, under every relation.

    Args:
        rows: Private rows with labels, such as `data.validation`.
        mechanism: The noise, `Gaussian(1.0, noise_multiplier)` or `Laplace(1.0, ...)`: a row
            contributes at most 1.

    Raises:
        UnsoundReleaseError: If there is no noise.
        UnsupportedError: If the noise is secure.
        ValueError: If the clipping norm is not 1.
    """

    rows: Rows
    mechanism: Gaussian | Laplace

    def __post_init__(self) -> None:
        if not isinstance(self.mechanism, (Gaussian, Laplace)) or not self.mechanism.about.noisy:
            raise UnsoundReleaseError(
                f"A score on private rows needs noise, and mechanism={self.mechanism!r} draws "
                "none: choosing by it is a release. Use Gaussian(1.0, noise_multiplier) or "
                "PublicRows."
            )
        if self.mechanism.about.grid is not None:
            raise UnsupportedError(
                f"{self.mechanism} has no theorem under a selection yet. Use secure=False."
            )
        if self.mechanism.clipping_norm != 1.0:
            raise ValueError(
                f"Expected mechanism.clipping_norm={self.mechanism.clipping_norm!r} to be 1.0: a "
                "row is answered correctly or not."
            )

    @property
    def assumption(self) -> str:
        return "scores are noisy counts of correctly answered private rows, paid for in each trial"

    def event(self, unit: Unit, relation: Relation) -> Event:
        """One noised count.

        Raises:
            UnsoundReleaseError: If the unit may hold many rows.
        """
        if unit is not Unit.EXAMPLE:
            raise UnsoundReleaseError(
                f"The score hides one row, and the trainer promises something per {unit}, who may "
                "hold many of the scored rows. Score on PublicRows instead."
            )
        # Whoever reads the noised count knows none of its noise.
        seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
        return self.mechanism.event(seen, relation)

    def measure(self, predictor: Predictor, stream: Stream) -> float:
        """The number of rows answered correctly, plus noise; it may be negative."""
        # Of a count, not of a rate: a row moves it by 1, which is the mechanism's clipping norm.
        count = torch.tensor([_correct(predictor, self.rows)], dtype=torch.float64)
        noised, _ = self.mechanism.add(count, None, stream)
        return float(noised)


def check_score(score: Score, data: FederatedData) -> None:
    """Refuses scores that would leak, or make the reported figures too good.

    Raises:
        UnsoundReleaseError: If private rows are scored without noise.
        DataError: If there are no rows or labels, or they are the test rows.
    """
    # Not any `Score`: an own one could look at private rows and charge nothing for it.
    if not isinstance(score, (PublicRows, PrivateRows)):
        raise UnsoundReleaseError(
            f"Expected score={type(score).__name__} to say whose rows it looks at: rows are "
            "private unless they are declared. Use PublicRows(rows) where anybody may read them, "
            "or PrivateRows(rows, Gaussian(1.0, noise_multiplier))."
        )
    rows = score.rows
    if not isinstance(rows, Rows) or rows.targets is None or len(rows) == 0:
        raise DataError("Expected score.rows to hold rows with labels; there are none.")
    if rows.inputs is data.test.inputs:
        raise DataError(
            "Expected score.rows to be other rows than data.test: a model that was chosen on the "
            "test rows looks better there than it is. Use validation or public rows."
        )
    # By identity: the honest mistake is to hand in the training rows themselves. Of very many
    # parties the first ones only, for the others are loaded when they are sampled.
    private = [data.train[party].inputs for party in data.parties[:LOADED_BEFOREHAND]]
    if isinstance(score, PublicRows) and any(rows.inputs is inputs for inputs in private):
        raise UnsoundReleaseError(
            "PublicRows holds rows of data.train, which the statement protects. Score on other "
            "rows, or use PrivateRows(rows, Gaussian(1.0, noise_multiplier))."
        )
