"""What comes out of training, attacking and comparing."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core import shown
from privtrain.core.cost import Cost
from privtrain.core.encoding import for_terminal
from privtrain.core.errors import ProtocolError, Reason
from privtrain.core.frames import comparison_frame, history_frame
from privtrain.core.measures import ACCURACY, HIGH, Best
from privtrain.core.recipe import Recipe
from privtrain.core.statement import (
    IF_ANY,
    UNWRITTEN,
    PrivacyCurves,
    PrivacyStatement,
    Relation,
    Unit,
)
from privtrain.core.task import Rows, Task
from privtrain.core.transcript import Transcript, View


class Predictor(Protocol):
    """Anything that answers inputs with logits."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits `(rows, classes)` of inputs `(rows, ...)`, which it leaves as they are."""
        ...


Curve = list[tuple[int, float]]
"""Points `(round, value)`."""


@dataclass(frozen=True, kw_only=True)
class VotesSeen:
    """What the votes on public queries looked like.

    How many were asked and answered is public, and so is what public labels say of the answers.
    Everything else is computed from exact votes in a simulation: private, and never to be
    published.

    Args:
        asked: Queries that were put to the teachers.
        answered: Queries whose winner was released.
        label_accuracy: The part of the answers that are right by labels which are public, in 0..1;
            None where there are none.
        agreement: The part of the answers that are a class with the most votes, in 0..1. Private.
        top_shares: Answered queries by the part of the votes that the largest count has: how many
            in each twentieth from 0 to 1, one in the last. Private.
        epsilon: What the releases exactly told, by how many there were by then. Private.
    """

    asked: int
    answered: int
    label_accuracy: float | None = None
    agreement: float | None = None
    top_shares: tuple[int, ...] = ()
    epsilon: tuple[tuple[int, float], ...] = ()


@dataclass
class History:
    """What was seen over the rounds.

    Args:
        unprotected: Diagnostics of a simulation that were computed from private data without
            protection: training loss, fraction clipped, counts. Never publish them.
        epsilon: Formal epsilon to the public after a number of rounds.
        votes: What votes looked like, where there were any; most of it is private.
    """

    unprotected: dict[str, Curve] = field(default_factory=dict)
    epsilon: Curve = field(default_factory=list)
    votes: VotesSeen | None = field(default=None, metadata=IF_ANY)

    def record(self, round: int, **values: float) -> None:
        """Adds unprotected diagnostics of a round."""
        for name, value in values.items():
            # Plain floats: a tensor would hold its graph for as long as the history lives.
            self.unprotected.setdefault(name, []).append((round, float(value)))

    def to_frame(self) -> Any:
        """The curves as a frame of pandas: a row for each round, a column for each curve.

        Columns called `unprotected_...` are covered by no guarantee. Where a curve has no point,
        there is no number.

        Raises:
            UnsupportedError: If pandas is not installed.
        """
        return history_frame(self.unprotected, self.epsilon)

    def _rows(self) -> list[tuple[str, int, str, str]]:
        """Name, number of points, last round and last value of each curve."""
        named = [(f"{name} (unprotected)", curve) for name, curve in self.unprotected.items()]
        curves = [*named, ("epsilon to the public", self.epsilon)]
        return [(n, len(c), str(c[-1][0]), f"{c[-1][1]:.4g}") for n, c in curves if c]

    def __repr__(self) -> str:
        curves = [
            f"{name}: {points} points, last {value}" for name, points, _, value in self._rows()
        ]
        return f"History({'; '.join(curves)})"

    def _repr_html_(self) -> str:
        """The curves as a table for notebooks."""
        return shown.table(("curve", "points", "last round", "last value"), self._rows(), "History")


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
        card: What a reader needs to repeat the run: settings, versions, public seeds.
        recipe: How model and inputs were made, so that the model can be kept; None where nobody
            knows.
        trainer: What trained it, by which attacks train shadow models; None where it was trained
            elsewhere, or it cannot be pickled and the result was.
    """

    predictor: Predictor
    statement: PrivacyStatement
    cost: Cost
    history: History
    transcript: Transcript
    halted: str | None = None
    notes: tuple[str, ...] = ()
    members: Members | None = field(default=None, repr=False, compare=False)
    card: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    recipe: Recipe | None = field(default=None, repr=False, compare=False)
    trainer: Any = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return shown.lines(
            "TrainResult",
            promised=shown.first((g.claim for g in self.statement.guarantees), 2) or "nothing",
            halted=shown.cut(self.halted or "", 200),
            cost=str(self.cost),
            history=shown.cut(repr(self.history), 200),
            notes=shown.cut(shown.first(self.notes, 2), 200),
            further="print(result.statement), pt.evaluate(result, task, data), pt.save(result, to)",
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        # What was trained is worth more than what trained it, such as a trainer with a lambda.
        try:
            pickle.dumps(self.trainer)
        except Exception:  # whatever an object raises that cannot be pickled
            state["trainer"] = None
        return state

    def _repr_html_(self) -> str:
        """The result as tables for notebooks."""
        cost = shown.table(("cost",), [(str(self.cost),)])
        notes = shown.listed("Notes", [*([self.halted] if self.halted else []), *self.notes])
        return f"{self.statement._repr_html_()}{cost}{self.history._repr_html_()}{notes}"


class ShadowModels(Protocol):
    """What shadow models say of candidates; see `privtrain.runs.shadows.Shadows`."""

    @property
    def losses(self) -> NDArray[np.float64]:
        """The task's loss of each model on each candidate, `(models, candidates)`."""
        ...

    @property
    def included(self) -> NDArray[np.bool_]:
        """Whether each model was trained on each candidate, `(models, candidates)`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an attack may use: what its observer saw and holds. Nothing in it tells who was in.

    Args:
        view: What the attack's observer saw.
        predictor: The published predictor, or None where the observer cannot ask it.
        task: What was learned.
        own: Rows that the observer holds itself, by party; none of them is a candidate. Empty for
            the public, and where parties hold columns.
        promised: What was promised to the attack's observer, as curves.
        shadows: Trains so many models, an even number, by the run's trainer on random halves of the
            candidates, none of which says anything of the run itself; None where nobody knows how.
        population: Rows that were neither trained on nor are candidates, from the same table; None
            where there are none.
    """

    # A view and not the transcript: an attack that read what its observer never saw would measure
    # the leakage to somebody else.
    view: View
    predictor: Predictor
    task: Task
    own: Mapping[str, Rows] = field(default_factory=dict)
    promised: tuple[PrivacyCurves, ...] = ()
    shadows: Callable[[int], ShadowModels] | None = None
    population: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a part of a run failed. Unprotected: it may name parties, rows or their values.

    Args:
        error: The error's type and text.
        traceback: Where it came from; None where the library refused something on purpose.
        reason: Which of the reasons for which an attack does not apply; empty where it failed.
    """

    error: str
    traceback: str | None = None
    reason: Reason | None = field(default=None, metadata=IF_ANY)


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
        failure: Why the attack failed or does not apply, or a figure of it; None where it did not.
        unit: Whose contribution is guessed; None where that is not said, as in older files.
        relation: Which data sets its two answers tell apart; likewise.
        seconds: How long it took, with the shadow models that it was the first to ask for.
        queries: How many rows it asked the predictor about.
        roc: False and true positive rates, rising; none below ten false positives.
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
    unit: Unit | None = field(default=None, metadata=IF_ANY)
    relation: Relation | None = field(default=None, metadata=IF_ANY)
    # Files hold it beside the figures, which the same seed repeats.
    seconds: float | None = field(default=None, compare=False, metadata=UNWRITTEN)
    queries: int | None = field(default=None, metadata=IF_ANY)
    roc: tuple[tuple[float, float], ...] = field(default=(), metadata=IF_ANY)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one metric of a task is on the test rows. Unprotected, as these rows and labels are.

    Args:
        value: The value; None where it could not be measured.
        interval: Its 95% interval; None where there is none.
        method: What kind of interval it is, or why there is none.
        best: Which values are the good ones, "high" or "low".
        percent: Whether it is a fraction of rows, which tables print in percent.
        commonest: What whoever always answers the commonest class of these rows would reach; None
            where that says nothing, as of real values.
        failure: Why there is no value.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None
    method: str = ""
    best: Best = HIGH
    percent: bool = False
    commonest: float | None = None
    failure: Failure | None = None


EXACT = "exact (Clopper-Pearson)"
"""The method of the interval of a count of rows."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trainer, one seed, one asked epsilon.

    Args:
        trainer: Token of the trainer, such as `dp_sgd`.
        label: What the user called it.
        seed: Public seed of the run.
        epsilon_asked: The epsilon that was asked for, or None where the trainer takes none.
        accuracy: Accuracy on the test rows, in 0..1; None where the run or the metric failed, or
            the task has no metric of that name.
        accuracy_interval: 95% interval of the accuracy on the test rows.
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
        metrics: All metrics of the task by name, the accuracy among them; empty in rows of earlier
            versions, which have that alone. See `measurements`.
        main: The metric that leads.
        classes_predicted: How many different classes the model answers on the test rows; None
            where it answers no classes.
        predictor: The trained model, where `compare` was asked to keep models; no file of the
            comparison holds it.
        baseline: Label of the row with the same seed that the gap is measured from; None where
            the comparison has none, and in files of earlier versions.
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
    metrics: Mapping[str, Measurement] = field(default_factory=dict)
    main: str = ACCURACY
    classes_predicted: int | None = None
    baseline: str | None = None
    predictor: Predictor | None = field(default=None, repr=False, compare=False, metadata=UNWRITTEN)

    @property
    def measurements(self) -> dict[str, Measurement]:
        """Every metric by name, the main one first; empty where the run failed."""
        if self.metrics:
            return dict(sorted(self.metrics.items(), key=lambda item: item[0] != self.main))
        if self.accuracy is None and self.accuracy_failure is None:
            return {}
        measured = Measurement(
            value=self.accuracy,
            interval=self.accuracy_interval,
            method=EXACT,
            percent=True,
            failure=self.accuracy_failure,
        )
        return {ACCURACY: measured}

    @property
    def leading(self) -> Measurement | None:
        """The main metric; None where the run failed."""
        return self.measurements.get(self.main)

    def __repr__(self) -> str:
        asked = "" if self.epsilon_asked is None else f", epsilon asked {self.epsilon_asked:g}"
        found = f"failed: {shown.cut(self.error, 80)}" if self.error is not None else "no accuracy"
        if self.accuracy is not None:
            found = f"accuracy {self.accuracy:.4f}"
        return f"Row({self.label!r}, {self.trainer}, seed {self.seed}{asked}: {found})"

    @property
    def failures(self) -> tuple[tuple[str, Failure], ...]:
        """The parts that failed beside others that stand: what, and why.

        An attack that does not apply is none of them.
        """
        parts = [(name, measured.failure) for name, measured in self.measurements.items()]
        parts += [(f"{leak.attack} ({leak.observer})", leak.failure) for leak in self.leakage]
        return tuple((part, one) for part, one in parts if one is not None and one.reason is None)


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
        as_records: Gives a mapping from column to value for each row, as table.csv has them.
    """

    rows: tuple[Row, ...]
    card: Mapping[str, Any]
    study: Mapping[str, Any] | None = None
    # Values rather than methods, which would have to import the report from here (decision 009).
    # They take no part in equality: a loaded comparison equals the saved one.
    as_text: Callable[["Comparison"], str] | None = field(default=None, repr=False, compare=False)
    as_html: Callable[["Comparison"], str] | None = field(default=None, repr=False, compare=False)
    as_records: Callable[["Comparison"], list[dict[str, Any]]] | None = field(
        default=None, repr=False, compare=False
    )

    def __str__(self) -> str:
        return for_terminal(repr(self) if self.as_text is None else self.as_text(self))

    def __repr__(self) -> str:
        shortened = shown.first(map(repr, self.rows), 8)
        return f"Comparison({len(self.rows)} rows: {shortened})"

    def to_frame(self) -> Any:
        """The comparison as a frame of pandas, a row for each trainer, seed and asked epsilon.

        Its columns are those of table.csv: what no guarantee covers is called so, and each
        guarantee has columns named after its observer, unit and relation.

        Raises:
            UnsupportedError: If pandas is not installed.
        """
        if self.as_records is not None:
            return comparison_frame(self.as_records(self))
        names = ("trainer", "label", "seed", "epsilon_asked", "accuracy", "error", "halted", "met")
        return comparison_frame([{name: getattr(row, name) for name in names} for row in self.rows])

    def _repr_html_(self) -> str | None:
        """The comparison as a table for notebooks."""
        return None if self.as_html is None else self.as_html(self)
