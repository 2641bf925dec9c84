"""The ledger: a write-ahead journal that pays for releases before they are made.

A plan is reserved as a whole and turned into a number of releases of each kind; after that,
spending is counting. What is written down is never taken back: not by an error, not by a resumed
run.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from privtrain.accounting.epsilon import evaluate
from privtrain.accounting.event import charged
from privtrain.accounting.library import field_names
from privtrain.core.errors import BudgetExceededError, PrivacyError, UnsoundReleaseError
from privtrain.core.locks import Lock
from privtrain.core.observers import AGGREGATOR, CURATOR, Observer
from privtrain.core.rounding import printed_up
from privtrain.core.statement import Budget
from privtrain.core.trainer import RELEASE, PrivacyPlan
from privtrain.core.validate import check_count, check_member
from privtrain.ledgers.journal import JournalFile, Line, lines_of, size_of, text_of, unreadable


def epsilon_of(plan: PrivacyPlan, counts: Mapping[str, int], delta: float) -> float:
    """Epsilon of a plan's observer after some releases; 0 before the first one.

    Args:
        plan: What the observer sees.
        counts: Kind of release to how many were made; 0 where it is not named.
        delta: In (0, 1).
    """
    if not any(counts.get(kind, 0) for kind in plan.charges):
        return 0.0
    return evaluate(charged(plan.charges, counts), delta, plan.relation).epsilon


def promises(plan: PrivacyPlan, delta: float) -> bool:
    """Whether a plan promises anything: what is finite after one release of each kind stays so."""
    return math.isfinite(epsilon_of(plan, dict.fromkeys(plan.charges, 1), delta))


def planned_counts(plans: Iterable[PrivacyPlan]) -> dict[str, int]:
    """Kind of release to how many are planned; the most, where plans differ."""
    counts: dict[str, int] = {}
    for plan in plans:
        for kind, count in plan.counts.items():
            counts[kind] = max(count, counts.get(kind, 0))
    return counts


def capacity(plans: tuple[PrivacyPlan, ...], budget: Budget | None) -> dict[str, int]:
    """How many of the planned releases fit a budget.

    Where not all of them do, every kind is cut to the same fraction of its planned number, rounded
    up, so that none of them is cut to nothing.

    Args:
        plans: What each observer will see.
        budget: The budget, or None for the whole plan.

    Returns:
        Kind of release to the largest number, at most the planned one, within the budget.

    Raises:
        BudgetExceededError: If not one release of each kind fits.
        ValueError: If the plan says nothing of the budget's observer.
    """
    planned = planned_counts(plans)
    if budget is None:
        return planned
    watched = [plan for plan in plans if plan.observer == budget.observer]
    if not watched:
        names = ", ".join(sorted({plan.observer.name for plan in plans}))
        raise ValueError(f"Expected observer={budget.observer.name!r} to be one of {names}.")
    most = max(planned.values(), default=0)
    fitting = min(_largest_count(plan, planned, most, budget) for plan in watched)
    if fitting == 0 and most > 0:
        each = dict.fromkeys(planned, 1)
        single = max(epsilon_of(plan, each, budget.delta) for plan in watched)
        way = (
            "Nothing that this trainer releases is noised; use a mechanism such as Gaussian."
            if math.isinf(single)
            else "Use more noise, or let calibrate() choose it."
        )
        of_each = "" if len(planned) == 1 else f" of each kind ({', '.join(planned)})"
        raise BudgetExceededError(
            f"Not one release{of_each} fits epsilon={budget.epsilon:g} at delta={budget.delta:g} "
            f"to the {budget.observer}: a single one{of_each and ' of each'} costs "
            f"{printed_up(single)}. "
            f"{way}"
        )
    return _part_of(planned, fitting, most)


def _part_of(planned: Mapping[str, int], part: int, most: int) -> dict[str, int]:
    """A fraction `part / most` of each planned number, rounded up."""
    # In whole numbers; of a single kind, whose number is `most`, it is `part` itself.
    return {kind: -(-count * part // most) if most else 0 for kind, count in planned.items()}


def check_one_plan(plans: Iterable[PrivacyPlan]) -> None:
    """Refuses two plans about what one observer sees of one unit.

    Each of them would hold for a part of what it sees, and the figure of a part is no promise.

    Raises:
        UnsoundReleaseError: If an observer has two plans about a unit.
    """
    for (observer, unit), number in Counter((p.observer, p.unit) for p in plans).items():
        if number > 1:
            raise UnsoundReleaseError(
                f"{number} plans say what the {observer} sees of one {unit}, and what it sees is "
                "all of them. Make one plan of them, with a name for each kind of release: "
                "PrivacyPlan.beside."
            )


def _largest_count(plan: PrivacyPlan, planned: Mapping[str, int], most: int, budget: Budget) -> int:
    """The largest fraction, in parts of `most`, of all planned numbers that fits the budget."""

    def fits(part: int) -> bool:
        return epsilon_of(plan, _part_of(planned, part, most), budget.delta) <= budget.epsilon

    if fits(most):
        return most
    # Epsilon never falls with the count, so that bisection finds the last count that fits.
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def digest_of(plans: tuple[PrivacyPlan, ...], delta: float) -> str:
    """What identifies a set of plans in a journal."""
    parts = [(_named(p.observer), p.unit, p.relation, *_charged(p)) for p in plans]
    return hashlib.sha256(_identity((parts, delta)).encode()).hexdigest()[:32]


def _charged(plan: PrivacyPlan) -> tuple[Any, ...]:
    """What a plan charges; one kind without its name, as in version 0.1, whose journals go on."""
    kinds = [(kind, charge.event, charge.count) for kind, charge in plan.charges.items()]
    return kinds[0][1:] if len(kinds) == 1 else (sorted(kinds, key=lambda part: part[0]),)


def _named(observer: Observer) -> Observer:
    """An observer under the name of version 0.1, so that its journals go on."""
    if observer == CURATOR:
        return AGGREGATOR
    count = len(observer.corrupted)
    if not count:
        return observer
    return replace(observer, name=f"coalition of {count} {'party' if count == 1 else 'parties'}")


def _identity(value: Any) -> str:
    """Everything a value consists of, the same in every process.

    Not `repr`: that of a set follows the process's hash seed, that of a curve is abbreviated.
    """
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_identity, value)))}}}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_identity, value))}]"
    names = getattr(value, "__dataclass_fields__", None) or field_names(value)
    if not names:
        return repr(value)
    return f"{type(value).__name__}{_identity([getattr(value, name) for name in names])}"


@dataclass
class JournalLedger:
    """Counts releases and writes them down, synced, before they are made.

    Args:
        plans: What each observer will see.
        budget: What may be spent at most; None for the whole plan.
        delta: The delta of the statement, which becomes part of the journal's identity.
        journal: The file; None keeps the count in memory only.
        block: How many releases of a kind one sync reserves. An unfinished block stays spent.
    """

    plans: tuple[PrivacyPlan, ...]
    budget: Budget | None = None
    delta: float = 1e-5
    journal: Path | None = None
    block: int = 1
    # Of each kind, under its name.
    _limit: dict[str, int] = field(init=False, repr=False)
    _spent: dict[str, int] = field(init=False)
    _used: dict[str, int] = field(init=False)
    _written: dict[str, int] = field(init=False)
    _file: JournalFile | None = field(default=None, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count(block=self.block)
        self._limit = capacity(self.plans, self.budget)
        self._spent = dict.fromkeys(self._limit, 0)
        self._used, self._written = dict(self._spent), dict(self._spent)
        if self.journal is not None:
            self._file = JournalFile(self.journal)
            if self.journal.exists():
                self._resume(self._file)

    @property
    def limit(self) -> int:
        """How many releases may be spent altogether."""
        return sum(self._limit.values())

    @property
    def limits(self) -> dict[str, int]:
        """Kind of release to how many may be spent."""
        return dict(self._limit)

    @property
    def spent(self) -> int:
        """How many releases were spent so far, aborted ones included."""
        return sum(self._spent.values())

    @property
    def spent_by_kind(self) -> dict[str, int]:
        """Kind of release to how many were spent so far, aborted ones included."""
        return dict(self._spent)

    def spend(self, count: int = 1, *, kind: str = RELEASE) -> bool:
        """Pays for the next releases, before any of them is made.

        Args:
            count: How many releases follow; at least 1.
            kind: Which of the plan's charges they are.

        Returns:
            Whether they were paid; False, and nothing spent, where the limit would be exceeded.

        Raises:
            PrivacyError: If the journal cannot be written.
            ValueError: If the plan has no such kind.
        """
        check_count(count=count)
        if not self._limit:  # nothing was planned
            return False
        check_member(tuple(self._limit), kind=kind)
        with self._lock:  # from the check to the count: two threads must not pay once
            after, written = self._spent[kind] + count, self._written[kind]
            if after > self._limit[kind]:
                return False
            # Written before it is counted: a crash in between spends too much, never too little.
            if after > written:
                # A whole block at a time: one sync pays for several releases.
                target = max(after, min(self._limit[kind], written + self.block))
                self._write({"spent_up_to": target, **self._kind_in_line(kind)})
                self._written[kind] = target
            self._spent[kind] = after
            return True

    def repeat(self) -> None:
        """Counts from the start again, for a run that makes the same releases to the bit.

        What was released before is released once more, which tells nobody anything new. What is
        written down stays there: only what goes beyond it is added.
        """
        with self._lock:
            self._spent = dict.fromkeys(self._limit, 0)
            self._used = dict(self._spent)

    def use(self, count: int = 1, *, kind: str = RELEASE) -> None:
        """Takes note that releases are being made now.

        Raises:
            BudgetExceededError: If they were not paid for.
            ValueError: If the count is negative. Zero is a further part of the last release.
        """
        check_count(0, count=count)
        with self._lock:
            used, paid = self._used.get(kind, 0), self._spent.get(kind, 0)
            if used + count > paid or used + count == 0:
                several = kind in self._limit and len(self._limit) > 1
                of_kind, named = (f" of kind {kind!r}", f"kind={kind!r}") if several else ("", "")
                raise BudgetExceededError(
                    f"A release{of_kind} was about to be made that was not paid for ({used} of "
                    f"{paid} paid releases are made). Call run.spend({named}) before it."
                )
            self._used[kind] = used + count

    def close(self) -> None:
        """Writes down that the run finished: what a block reserved beyond it was never used."""
        with self._lock:
            for kind, spent in self._spent.items():
                if self._written[kind] > spent:
                    self._write({"finished_at": spent, **self._kind_in_line(kind)})
                    self._written[kind] = spent

    def _kind_in_line(self, kind: str) -> dict[str, int | str]:
        """What a line of the journal says of the kind: nothing where there is one only."""
        # As in version 0.1, which had no kinds: its journals go on.
        return {"kind": kind} if len(self._limit) > 1 else {}

    def _write(self, line: dict[str, int | str]) -> None:
        if self._file is None:
            return
        try:
            self._file.append(self._first_line, line)
        except OSError as error:
            raise PrivacyError(
                f"Cannot write the privacy journal {self.journal}: {error}. Nothing was released; "
                "free disk space or choose another folder, then resume."
            ) from error

    @property
    def _first_line(self) -> dict[str, int | str]:
        return {"plan": digest_of(self.plans, self.delta)}

    def _resume(self, file: JournalFile) -> None:
        file.size = size_of(file.path)
        text = text_of(file.path)
        if file.is_start(text, self._first_line):
            return  # a crash cut off the very first write, before anything was spent
        lines = lines_of(file.path, text, _BEGINNINGS)
        file.begun = True
        if not lines or lines[0].values != self._first_line:
            raise PrivacyError(
                f"The privacy journal {file.path} belongs to another plan. Resume with the "
                "settings it was started with, or choose another folder."
            )
        # The last line counts. A block that was reserved and not closed stays spent: which of its
        # releases were made before the crash is unknown.
        planned, before = planned_counts(self.plans), dict.fromkeys(self._written, 0)
        for line in lines[1:]:
            kind = self._kind_of(line, file.path)
            written = self._written[kind]
            count = _count_of(line, file.path, before[kind], written, planned[kind])
            # What a finished run never used is part of its last block; nothing before falls.
            if count != written:
                before[kind] = min(written, count)
            self._written[kind] = count
        self._spent, self._used = dict(self._written), dict(self._written)

    def _kind_of(self, line: Line, journal: Path) -> str:
        """The kind of release that an entry speaks of, which it names where there are several."""
        kinds = tuple(self._limit)
        several = len(kinds) > 1
        kind = line.values.get("kind") if several else "".join(kinds)
        if kind not in kinds or ("kind" in line.values) != several:
            why = f"{json.dumps(line.values)} names none of the kinds {', '.join(kinds)}"
            raise unreadable(journal, line.number, why)
        return str(kind)


def _count_of(line: Line, journal: Path, before: int, written: int, planned: int) -> int:
    """How many releases of a kind are spent after an entry.

    Args:
        line: The entry.
        journal: The file, for messages.
        before: How many were spent before the last block.
        written: How many were, with it.
        planned: How many are planned.
    """
    key, value = next(iter(line.values.items()), ("", None))
    # No boolean, which is a whole number to Python, and no float.
    if len(line.values) == 1 + ("kind" in line.values) and type(value) is int:
        if key == "spent_up_to" and max(written, 1) <= value <= planned:
            return value
        # Twice where writing it failed after it stood there.
        if key == "finished_at" and (before < value <= written or 0 < value == written):
            return value
    raise unreadable(
        journal,
        line.number,
        f"{json.dumps(line.values)} after {written} of {planned} planned releases",
    )


_BEGINNINGS = ('{"plan": "', '{"spent_up_to": ', '{"finished_at": ')
"""How the entries of a run's journal begin."""
