"""Which row each row of a comparison is measured against: one named baseline, or its own twin."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from privtrain.core.abilities import Twinned
from privtrain.core.nearest import nearest
from privtrain.core.trainer import Trainer
from privtrain.report.gaps import POOLED

IN_PLAINTEXT = "in plaintext"
"""Ends the label of a twin."""


@dataclass(frozen=True)
class Baselines:
    """The trainers of a comparison with the twins that it adds, and what each is measured from.

    Args:
        trainers: Label to trainer; a twin follows the last one whose twin it is.
        baseline: Label to the label of its baseline; None where there is none.
        owners: Label of each twin that is added to the labels of those whose twin it is.
    """

    trainers: Mapping[str, Trainer]
    baseline: Mapping[str, str | None]
    owners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def instead(self, twin: str | None) -> str | None:
        """The baseline of those whose twin is left out: that of the twin."""
        return None if twin is None else self.baseline[twin]


def with_twins(trainers: Mapping[str, Trainer], baseline: str | None = None) -> Baselines:
    """Adds to each trainer that computes under cryptography its plaintext twin.

    It is the baseline of that trainer, if none is named. Other trainers may take more steps, so
    that a gap to them would be called the price of cryptography and be one of training less.

    Args:
        trainers: Label to trainer.
        baseline: Label of the trainer that all others are measured against; None for the first
            pooled one without any privacy.

    Raises:
        ValueError: If no trainer has that label.
    """
    named = baseline if baseline is not None else _pooled(trainers)
    if baseline is not None and baseline not in trainers:
        raise ValueError(
            f"Expected baseline={baseline!r} to be the label of a trainer, which are "
            f"{', '.join(map(repr, trainers))}.{nearest(baseline, map(str, trainers))}"
        )
    made: dict[str, Trainer] = {}
    against: dict[str, str | None] = {}
    owners: dict[str, tuple[str, ...]] = {}
    for label, trainer in trainers.items():
        made[label], against[label] = trainer, named
        # A class in place of a value has the method, too; it is refused where trainers are.
        if isinstance(trainer, type) or not isinstance(trainer, Twinned):
            continue
        twin = trainer.plaintext_twin()
        same = [name for name, other in {**trainers, **made}.items() if other == twin]
        own = same[0] if same else _free(f"{label}, {IN_PLAINTEXT}", {**trainers, **made})
        against[label] = own if baseline is None else baseline
        if own not in trainers:
            owners[own] = (*owners.get(own, ()), label)
            # Behind the last of its owners: whether it is needed is known by then.
            made.pop(own, None)
            made[own], against[own] = twin, named
    return Baselines(made, against, owners)


def _pooled(trainers: Mapping[str, Trainer]) -> str | None:
    """The first label of a pooled trainer without any privacy."""
    tokens = {label: getattr(trainer, "token", None) for label, trainer in trainers.items()}
    return next((label for label, token in tokens.items() if token == POOLED), None)


def _free(label: str, trainers: Mapping[str, Trainer]) -> str:
    return _free(f"{label} again", trainers) if label in trainers else label
