"""The rows of a comparison, gathered over seeds: what all renderings share."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from privtrain.core.observers import AGGREGATOR, CURATOR, PARTICIPANT, PUBLIC, Observer
from privtrain.core.result import Comparison, Leakage, Row
from privtrain.core.statement import (
    SIMULATED,
    Adversary,
    ExactCost,
    Guarantee,
    InputPrivacy,
    Security,
    Unit,
)
from privtrain.report.cells import Interval, asked, promised
from privtrain.report.gaps import baseline_of, gap
from privtrain.report.over_seeds import Measured, Spread, hull, over_seeds, spread

T = TypeVar("T")

ONE_CLASS_FLAG = "predicts one class only"
"""The flag of a model that answers all test rows alike."""

SIMULATED_FLAG = "simulated entropy"
"""The flag of a run whose noise, shares and keys come from a seed."""

COALITION = "coalition"
"""The column of all coalitions."""

OBSERVERS = (*map(str, (PUBLIC, PARTICIPANT, AGGREGATOR, CURATOR)), COALITION)
"""The order of columns; further observers follow in the order in which they appear."""


# Gathered once for all renderings: text, LaTeX, pictures and page cannot disagree on a figure.
@dataclass(frozen=True)
class Group:
    """All seeds of one trainer at one asked epsilon.

    Args:
        trainer: Token of the trainer.
        label: What the user called it.
        epsilon_asked: The epsilon that was asked for, or None.
        rows: One for each seed.
        gap: By how much the main metric is better than that of the baseline with the same seed, as
            a mean; None where the baseline of a seed is missing.
        baseline: Label of that baseline; None where there is none.
    """

    trainer: str
    label: str
    epsilon_asked: float | None
    rows: tuple[Row, ...]
    gap: float | None
    baseline: str | None = None

    @property
    def done(self) -> tuple[Row, ...]:
        """The rows that did not fail."""
        return tuple(row for row in self.rows if row.error is None)

    @property
    def errors(self) -> tuple[str, ...]:
        """Errors of the rows that failed, each text once."""
        return unique(row.error for row in self.rows if row.error is not None)

    @property
    def seeds(self) -> str:
        """How many seeds are behind the figures: "3", or "2 of 3"."""
        # A mean over the seeds that finished is one over chosen seeds, so it says how many failed.
        done, tried = len(self.done), len(self.rows)
        return str(done) if done == tried else f"{done} of {tried}"

    @property
    def name(self) -> str:
        """The label, with the asked epsilon where there is one."""
        if self.epsilon_asked is None:
            return self.label
        return f"{self.label}, ε {asked(self.epsilon_asked)}"

    def spread(self, value: Callable[[Row], float | None]) -> Spread | None:
        """A value over the seeds; None where a finished row has none."""
        return spread(value(row) for row in self.done)

    @property
    def accuracy(self) -> Spread | None:
        """Accuracy over the seeds, in 0..1."""
        return self.spread(lambda row: row.accuracy)

    @property
    def accuracy_interval(self) -> Interval | None:
        """The smallest interval that holds the 95% intervals of all seeds."""
        return hull([row.accuracy_interval for row in self.done])

    def cost(self, name: str) -> float | None:
        """The mean of a field of the cost."""
        costs = self.spread(lambda row: None if row.cost is None else getattr(row.cost, name))
        return None if costs is None else costs.mean

    @property
    def bytes_by_busiest_party(self) -> float | None:
        """Bytes sent by the party that sends most, as a mean."""
        # A total hides a bottleneck: an aggregator may send as much as all its clients together.
        busiest = self.spread(_busiest)
        return None if busiest is None else busiest.mean

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        """For each observer, unit and relation the guarantee of the worst seed."""
        # Seeds are separate runs: what the row promises is what each of them promises.
        return _by_kind(_guarantees(self.done), operator.gt)

    def promised(self, column: str) -> tuple[Guarantee, ...]:
        """The guarantees that belong into an observer's column, data-dependent ones last."""
        # Shown apart and after the formal ones, and never in their place.
        mine = [g for g in self.guarantees if column_of(g.observer) == column]
        return tuple(sorted(mine, key=lambda g: (g.data_dependent, g.stated)))

    def exact_costs(self, column: str) -> tuple[ExactCost, ...]:
        """What releases exactly told an observer, of the seed in which it is most; private."""
        largest: dict[tuple[object, ...], ExactCost] = {}
        for row in self.done:
            for cost in () if row.statement is None else row.statement.exact:
                kind = (cost.observer, cost.unit, cost.relation)
                if kind not in largest or cost.epsilon > largest[kind].epsilon:
                    largest[kind] = cost
        return tuple(cost for cost in largest.values() if column_of(cost.observer) == column)

    @property
    def publishing(self) -> tuple[str, ...]:
        """What of the figures may be published, what may not, and why; empty where all may."""
        statements = [row.statement for row in self.done if row.statement is not None]
        return unique(text for statement in statements for text in statement.publishing)

    @property
    def input_privacy(self) -> tuple[InputPrivacy, ...]:
        """Who reads what, each entry once."""
        statements = [row.statement for row in self.done if row.statement is not None]
        return unique(entry for statement in statements for entry in statement.input_privacy)

    @property
    def headlines(self) -> tuple[Guarantee, ...]:
        """For each unit the formal guarantee to the public of the worst seed, the worst first."""
        worst: dict[Unit, Guarantee] = {}
        for row in self.done:
            for g in () if row.statement is None else headlines(row.statement.guarantees):
                if g.unit not in worst or g.epsilon > worst[g.unit].epsilon:
                    worst[g.unit] = g
        return _worst_first(worst.values())

    @property
    def headline(self) -> Guarantee | None:
        """The worst of the headlines, as `PrivacyStatement.epsilon` has it; None without one."""
        return next(iter(self.headlines), None)

    @property
    def stated(self) -> bool:
        """Whether the user states a finite epsilon to the public, which nothing computed here."""
        return any(
            g.stated and g.observer == PUBLIC and math.isfinite(g.epsilon) for g in self.guarantees
        )

    @property
    def attacks(self) -> tuple[Leakage, ...]:
        """The attacks that were run, each once, as the first seed has them."""
        first: dict[tuple[str, str], Leakage] = {}
        for row in self.done:
            for leakage in row.leakage:
                name = (leakage.attack, leakage.observer)
                # One that failed stands for the others where all of them did.
                if name not in first or not first[name].metrics:
                    first[name] = leakage
        return tuple(first.values())

    @property
    def accuracy_failed(self) -> bool:
        """Whether the accuracy of a run could not be measured that did not fail itself."""
        return any(row.accuracy_failure is not None for row in self.done)

    @property
    def attack_failed(self) -> bool:
        """Whether an attack failed on a run that did not fail itself."""
        failures = (leakage.failure for row in self.done for leakage in row.leakage)
        return any(one is not None and one.reason is None for one in failures)

    def having(self, attack: Leakage, metric: str) -> tuple[Leakage, ...]:
        """The leakage by an attack in each of the seeds in which it has a metric."""
        return tuple(
            leakage
            for row in self.done
            for leakage in row.leakage
            if (leakage.attack, leakage.observer) == (attack.attack, attack.observer)
            and metric in leakage.metrics
        )

    def measured(self, attack: Leakage, metric: str) -> Measured | None:
        """A metric of an attack over the seeds; None where no row has it."""
        leakages = self.having(attack, metric)
        if not leakages:
            return None
        values = [leakage.metrics[metric] for leakage in leakages]
        return over_seeds(metric, values, [leakage.intervals.get(metric) for leakage in leakages])

    def strongest(self, metric: str) -> Measured | None:
        """The largest value of a metric among the attacks; None where no attack has it."""
        # First the mean of each attack, then the largest: the best of all seeds is luck.
        measured = [self.measured(attack, metric) for attack in self.attacks]
        return max(
            (figure for figure in measured if figure is not None),
            key=lambda figure: -math.inf if figure.value is None else figure.value,
            default=None,
        )

    @property
    def flags(self) -> tuple[str, ...]:
        """What must not be overlooked, in a few words each."""
        return tuple(_flags(self))


def groups(comparison: Comparison) -> tuple[Group, ...]:
    """The rows gathered over seeds, in the order in which they first appear."""
    rows_of: dict[tuple[str, str, float | None], list[Row]] = {}
    for row in comparison.rows:
        rows_of.setdefault((row.trainer, row.label, row.epsilon_asked), []).append(row)
    # By identity: two runs may be equal, and a row holds values that have no hash.
    gaps = {id(row): gap(row, comparison) for row in comparison.rows}
    return tuple(
        Group(
            *(trainer, label, asked, tuple(rows), _mean_gap(rows, gaps)),
            baseline=baseline_of(rows[0], comparison),
        )
        for (trainer, label, asked), rows in rows_of.items()
    )


def _mean_gap(rows: list[Row], gaps: dict[int, float | None]) -> float | None:
    of_finished = spread(gaps[id(row)] for row in rows if row.error is None)
    return None if of_finished is None else of_finished.mean


def unique(values: Iterable[T]) -> tuple[T, ...]:
    """Each value once, in the order of first appearance."""
    return tuple(dict.fromkeys(values))


def deltas(gathered: Iterable[Group]) -> tuple[str, ...]:
    """The deltas of all guarantees, as they are printed, each once."""
    return unique(promised(g.delta) for group in gathered for g in group.guarantees)


def headlines(guarantees: Iterable[Guarantee]) -> tuple[Guarantee, ...]:
    """For each unit the strongest formal guarantee to the public, the worst of them first.

    Guarantees of one unit each hold, so the best is the answer. Several units are no alternatives
    to each other, so none of them stands for the others: the first one has the epsilon that
    `PrivacyStatement.epsilon` gives. A data-dependent epsilon is itself private and never among
    them.
    """
    best: dict[Unit, Guarantee] = {}
    for g in guarantees:
        # Nor one that the user states: nothing computed it here.
        formal = g.observer == PUBLIC and not g.data_dependent and not g.stated
        if formal and (g.unit not in best or g.epsilon < best[g.unit].epsilon):
            best[g.unit] = g
    return _worst_first(best.values())


def _worst_first(guarantees: Iterable[Guarantee]) -> tuple[Guarantee, ...]:
    return tuple(sorted(guarantees, key=lambda guarantee: -guarantee.epsilon))


def _by_kind(
    guarantees: Iterable[Guarantee], better: Callable[[float, float], bool]
) -> tuple[Guarantee, ...]:
    """One guarantee for each observer, unit and relation."""
    chosen: dict[tuple[object, ...], Guarantee] = {}
    for new in guarantees:
        # Kinds are never weighed against each other: their epsilons are not comparable.
        kind = (new.observer, new.unit, new.relation, new.data_dependent, new.stated)
        if kind not in chosen or better(new.epsilon, chosen[kind].epsilon):
            chosen[kind] = new
    return tuple(chosen.values())


def _guarantees(rows: Iterable[Row]) -> Iterator[Guarantee]:
    """The strongest guarantee of each kind, row by row."""
    for row in rows:
        if row.statement is not None:
            # Within a run two theorems about one kind both hold: the smaller epsilon is promised.
            yield from _by_kind(row.statement.guarantees, operator.lt)


def observers(gathered: Iterable[Group]) -> tuple[str, ...]:
    """The observers somebody states a guarantee to; all coalitions share one column."""
    named = unique(column_of(g.observer) for group in gathered for g in group.guarantees)
    known = [name for name in OBSERVERS if name in named]
    return (*known, *(name for name in named if name not in OBSERVERS))


def column_of(observer: Observer) -> str:
    """The column an observer belongs into."""
    return COALITION if observer.is_coalition else observer.name


def _busiest(row: Row) -> float | None:
    # Bytes without their senders: who sends most is unknown, and is not zero.
    cost = row.cost
    if cost is None or (cost.bytes_sent != 0 and not cost.bytes_sent_by_party):
        return None
    return max(cost.bytes_sent_by_party.values(), default=0)


def _flags(group: Group) -> Iterator[str]:
    failed = len(group.rows) - len(group.done)
    if failed:
        yield "failed" if failed == len(group.rows) else f"{failed} of {len(group.rows)} failed"
    for part in unique(part for row in group.done for part, _ in row.failures):
        times = sum(part in dict(row.failures) for row in group.done)
        seeds = "" if times == len(group.done) else f" in {times} of {len(group.done)}"
        yield f"{part} failed{seeds}"
    if any(row.halted for row in group.done):
        yield "halted"
    alike = sum(row.classes_predicted == 1 for row in group.done)
    if alike:
        yield ONE_CLASS_FLAG + (
            "" if alike == len(group.done) else f" in {alike} of {len(group.done)}"
        )
    if any(row.met is False for row in group.done):
        # Six digits: at three an asked 1.5 and a spent 1.5002 would look equal.
        spent = None if group.headline is None else group.headline.epsilon
        yield f"asked {asked(group.epsilon_asked)}, spent {promised(spent, 6)}"
    if any(is_simulated(row) for row in group.done):
        yield SIMULATED_FLAG


def is_simulated(row: Row) -> bool:
    """Whether the statement says that its randomness came from a seed."""
    return SIMULATED in conditions(row)


def conditions(row: Row) -> tuple[str, ...]:
    """The caveats of a row, and what its guarantees assume about randomness."""
    if row.statement is None:
        return ()
    assumed = (text for g in row.statement.guarantees for text in g.assumptions)
    simulated = (text for text in assumed if text == SIMULATED)
    return unique((*simulated, *row.statement.caveats))


def rests_on(row: Row) -> tuple[str, ...]:
    """Theorems and assumptions of a row's guarantees, each once; `conditions` has the others."""
    if row.statement is None:
        return ()
    said = {f"if {text}" for text in conditions(row)}
    texts = unique(text for g in row.statement.guarantees for text in g.rests_on)
    return tuple(text for text in texts if text not in said)


def readers(gathered: Iterable[Group]) -> Iterator[tuple[str, tuple[InputPrivacy, ...]]]:
    """Who reads what, once for each label."""
    by_label: dict[str, list[InputPrivacy]] = {}
    for group in gathered:
        by_label.setdefault(group.label, []).extend(group.input_privacy)
    return ((label, unique(entries)) for label, entries in by_label.items() if entries)


def protected_by(entry: InputPrivacy) -> str:
    """What keeps a reader from reading more, in a few words."""
    # Cryptography protects inputs, noise outputs: a reader of releases is protected from by the
    # guarantee to it, which stands in the other table.
    if entry.adversary is Adversary.UNTRUSTED:
        return "reads releases only; see what is promised to it"
    if entry.security is Security.NONE:
        words = ["nothing" if entry.honest else f"nothing: {entry.reader} is {entry.adversary}"]
    else:
        words = [f"{entry.security} security, {entry.adversary}"]
    if entry.dealer:
        words.append(f"dealer: {entry.dealer}")
    if entry.honest:
        words.append(f"has to be honest: {entry.honest}")
    return "; ".join(words)


FAILED = "Failed (unprotected)"

Remarks = tuple[tuple[str, tuple[str, ...]], ...]
"""Texts, each with the runs it belongs to."""


def remarks(comparison: Comparison) -> tuple[tuple[str, Remarks], ...]:
    """What the reader has to know beside the figures, by heading; empty headings are left out."""
    rows = comparison.rows
    sections = (
        (FAILED, _gather(_errors(rows))),
        ("Halted early", _gather((row.halted, row) for row in rows)),
        ("Notes", _gather((note, row) for row in rows for note in row.notes)),
        ("Guarantees rest on", _gather((text, row) for row in rows for text in rests_on(row))),
        ("Caveats", _gather((text, row) for row in rows for text in conditions(row))),
        (
            "Attacks (unprotected)",
            _gather(
                (f"{leakage.attack}: {note}", row)
                for row in rows
                for leakage in row.leakage
                for note in (*leakage.notes, *_not_applicable(leakage))
            ),
        ),
    )
    return tuple((title, _placed(texts, rows)) for title, texts in sections if texts)


def _not_applicable(leakage: Leakage) -> tuple[str, ...]:
    """Why an attack says nothing, in a whole sentence; the table has a word for it."""
    failure = leakage.failure
    return () if failure is None or failure.reason is None else (failure.error,)


def _errors(rows: Iterable[Row]) -> Iterator[tuple[str | None, Row]]:
    for row in rows:
        yield row.error, row
        for part, failure in row.failures:
            yield f"{part}: {failure.error}", row


def tracebacks(comparison: Comparison) -> Remarks:
    """Where errors came from, each text once with the runs it belongs to."""
    rows = comparison.rows
    pairs = [(row.traceback, row) for row in rows]
    pairs += [(failure.traceback, row) for row in rows for _, failure in row.failures]
    return _placed(_gather(pairs), rows)


def _gather(pairs: Iterable[tuple[str | None, Row]]) -> dict[str, list[Row]]:
    """Text to the rows it stands in."""
    rows_of: dict[str, list[Row]] = {}
    for text, row in pairs:
        if text:
            rows_of.setdefault(text, []).append(row)
    return rows_of


def _placed(texts: dict[str, list[Row]], rows: Sequence[Row]) -> Remarks:
    return tuple((text, _places(where, rows)) for text, where in texts.items())


def _places(where: Sequence[Row], rows: Sequence[Row]) -> tuple[str, ...]:
    """Names the rows: by label where all with this label are meant, else by epsilon and seed."""
    # What a finished run says, a failed one cannot say.
    could = rows if where[0].error is not None else [row for row in rows if row.error is None]
    if len(where) == len(could) > 1:
        return ("all",)
    names: list[str] = []
    for label in unique(row.label for row in where):
        mine = [row for row in could if row.label == label]
        meant = [row for row in where if row.label == label]
        names += [label] if len(meant) == len(mine) else _runs(meant)
    return tuple(names)


def _runs(rows: Sequence[Row]) -> list[str]:
    seeds: dict[str, list[str]] = {}
    for row in rows:
        at = "" if row.epsilon_asked is None else f", ε {asked(row.epsilon_asked)}"
        seeds.setdefault(f"{row.label}{at}", []).append(str(row.seed))
    return [
        f"{name}, {'seed' if len(numbers) == 1 else 'seeds'} {', '.join(numbers)}"
        for name, numbers in seeds.items()
    ]
