"""What comes out of training, attacking and comparing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from privtrain.core.cost import Cost
from privtrain.core.errors import ProtocolError
from privtrain.core.statement import PrivacyCurves, PrivacyStatement
from privtrain.core.task import Canaries, Rows, Task
from privtrain.core.transcript import Transcript, View


class Predictor(Protocol):
    """Anything that answers inputs with logits."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits `(rows, classes)` of inputs `(rows, ...)`, which it leaves as they are."""
        ...


Curve = list[tuple[int, float]]
"""Points `(round, value)`."""


@dataclass
class History:
    """What was seen over the rounds.

    Args:
        unprotected: Diagnostics of a simulation that were computed from private data without
            protection: training loss, fraction clipped, counts. Never publish them.
        epsilon: Formal epsilon to the public after a number of rounds.
    """

    unprotected: dict[str, Curve] = field(default_factory=dict)
    epsilon: Curve = field(default_factory=list)

    def record(self, round: int, **values: float) -> None:
        """Adds unprotected diagnostics of a round."""
        for name, value in values.items():
            # Plain floats: a tensor would hold its graph for as long as the history lives.
            self.unprotected.setdefault(name, []).append((round, float(value)))


NOT_KEPT = "which rows were used before the interruption was not kept"
"""Said of a run that goes on from a checkpoint of an earlier version."""


@dataclass(eq=False)
class Members:
    """Which training rows a run used: those that were drawn at least once.

    Who was drawn is as secret as the samples. Attacks of a simulation read it, and nothing that is
    published holds it.

    Args:
        rows: Party to a mark for each of its rows, boolean, shape `(rows,)`, or to None for all of
            its rows. A party that is not named took no part.
        doubt: Why rows that are marked may not have been used; empty where all of them were.
        made_public: Whether training made other rows public, among them perhaps canaries.
    """

    rows: dict[str, Tensor | None] = field(default_factory=dict, repr=False)
    doubt: str = ""
    made_public: bool = False

    def add(self, party: str, marks: Tensor | None = None) -> None:
        """Marks more rows of a party as used; all of them where `marks` is None.

        Raises:
            ProtocolError: If there are not as many marks as there were before.
        """
        before = self.rows.get(party)
        if before is not None and marks is not None and marks.shape != before.shape:
            raise ProtocolError(
                f"{party} marks the rows it drew by {tuple(marks.shape)} values, and by "
                f"{tuple(before.shape)} before."
            )
        known = party not in self.rows or before is not None
        both = marks if before is None or marks is None else before | marks
        self.rows[party] = both if known else None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A trained predictor, with what it promises and what it cost.

    Args:
        predictor: Answers inputs with logits.
        statement: What is promised to whom.
        cost: Bytes, rounds, seconds and memory.
        history: Diagnostics over the rounds.
        transcript: Every message that was sent.
        halted: Why training stopped early, or None where it ran to its end.
        notes: What the reader should know, such as a split that had to be made.
        members: The rows that were trained on, where they are not all training rows. A secret.
    """

    predictor: Predictor
    statement: PrivacyStatement
    cost: Cost
    history: History
    transcript: Transcript
    halted: str | None = None
    notes: tuple[str, ...] = ()
    members: Members | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an attack may use: its observer's view, and the rows whose membership it guesses.

    Args:
        view: What the attack's observer saw.
        predictor: The published predictor, or None where the observer cannot ask it.
        task: What was learned.
        members: Rows that were trained on: each of them was drawn at least once.
        non_members: Rows that were not: the test rows.
        retrain: Trains a shadow predictor on other rows from a seed, where that is possible.
        canaries: The canaries of a one-run audit, where some were planted. An attack guesses
            their coins before it looks at them.
        promised: What was promised to the attack's observer, as curves.
    """

    # A view and not the transcript: an attack that read what its observer never saw would measure
    # the leakage to somebody else.
    view: View
    predictor: Predictor
    task: Task
    members: Rows
    non_members: Rows
    retrain: Callable[[Rows, int], Predictor] | None = None
    canaries: Canaries | None = None
    promised: tuple[PrivacyCurves, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a part of a run failed. Unprotected: it may name parties, rows or their values.

    Args:
        error: The error's type and text.
        traceback: Where it came from; None where the library refused something on purpose.
    """

    error: str
    traceback: str | None = None


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What one attack learned. It speaks of this attack only; it is no evidence of safety.

    Args:
        attack: Name of the attack.
        observer: Whose view it used.
        metrics: Name to value; None where the value is not resolvable with so few rows.
        intervals: Name to a 95% confidence interval.
        members: How many members were attacked; None where the number of rows is not public.
        non_members: How many non-members were attacked, likewise.
        notes: What limits the figures.
        failure: Why the attack failed, or a figure of it; None where it did not.
    """

    attack: str
    observer: str
    # None, never zero or a default: a rate of 0.1% cannot be seen in 359 rows (sharp edges).
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    members: int | None = 0
    non_members: int | None = 0
    notes: tuple[str, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trainer, one seed, one asked epsilon.

    Args:
        trainer: Token of the trainer, such as `dp_sgd`.
        label: What the user called it.
        seed: Public seed of the run.
        epsilon_asked: The epsilon that was asked for, or None where the trainer takes none.
        accuracy: Accuracy on the test rows, in 0..1; None where the run or the metric failed.
        accuracy_interval: 95% Clopper-Pearson interval of the accuracy on the test rows.
        error: Why the run failed, or None.
        statement: What was promised.
        cost: What it cost.
        leakage: What attacks learned.
        history: Diagnostics over the rounds.
        halted: Why training stopped early, or None.
        notes: What the reader should know.
        met: Whether the asked epsilon was met; None where none was asked.
        traceback: Where the error of a failed run came from.
        accuracy_failure: Why a run that did not fail has no accuracy.
    """

    trainer: str
    label: str
    seed: int
    # Everything that a failed run has not is None: no cell is filled with a default.
    epsilon_asked: float | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    error: str | None = None
    statement: PrivacyStatement | None = None
    cost: Cost | None = None
    leakage: tuple[Leakage, ...] = ()
    history: History | None = None
    halted: str | None = None
    notes: tuple[str, ...] = ()
    met: bool | None = None
    traceback: str | None = None
    accuracy_failure: Failure | None = None

    @property
    def failures(self) -> tuple[tuple[str, Failure], ...]:
        """The parts that failed beside others that stand: what, and why."""
        parts = [("accuracy", self.accuracy_failure)]
        parts += [(f"{leak.attack} ({leak.observer})", leak.failure) for leak in self.leakage]
        return tuple((part, failure) for part, failure in parts if failure is not None)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several trainers on one task and one data set.

    Args:
        rows: One row a trainer, seed and asked epsilon.
        card: Versions, configuration, keyed digest of the data, machine and public seeds.
        study: The study that repeats the comparison, as it is written into a TOML file; None
            where the comparison was made by values that no file can name.
        as_text: Renders the comparison for a terminal; None where it was made by hand.
        as_html: Renders it for a notebook.
    """

    rows: tuple[Row, ...]
    card: Mapping[str, Any]
    study: Mapping[str, Any] | None = None
    # Values rather than methods, which would have to import the report from here (decision 009).
    # They take no part in equality: a loaded comparison equals the saved one.
    as_text: Callable[["Comparison"], str] | None = field(default=None, repr=False, compare=False)
    as_html: Callable[["Comparison"], str] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return repr(self) if self.as_text is None else self.as_text(self)

    def _repr_html_(self) -> str | None:
        """The comparison as a table for notebooks."""
        return None if self.as_html is None else self.as_html(self)
