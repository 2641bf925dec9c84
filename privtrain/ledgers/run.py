"""The ledger: a write-ahead journal that pays for releases before they are made.

A plan is reserved as a whole and turned into a number of releases; after that, spending is
counting. What is written down is never taken back: not by an error, not by a resumed run.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from privtrain.accounting.epsilon import evaluate
from privtrain.accounting.event import repeated
from privtrain.accounting.library import field_names
from privtrain.core.errors import BudgetExceededError, PrivacyError, UnsoundReleaseError
from privtrain.core.locks import Lock
from privtrain.core.observers import Observer
from privtrain.core.statement import Budget
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import check_count
from privtrain.ledgers.journal import JournalFile, Line, lines_of, size_of, text_of, unreadable


def epsilon_of(plan: PrivacyPlan, count: int, delta: float) -> float:
    """Epsilon of a plan's observer after a number of releases; 0 before the first one."""
    if count == 0:
        return 0.0
    return evaluate(repeated(plan.event, count), delta, plan.relation).epsilon


def capacity(plans: tuple[PrivacyPlan, ...], budget: Budget | None) -> int:
    """How many of the planned releases fit a budget.

    Args:
        plans: What each observer will see.
        budget: The budget, or None for the whole plan.

    Returns:
        The largest number of releases, at most the planned one, within the budget.

    Raises:
        BudgetExceededError: If not one release fits.
        ValueError: If the plan says nothing of the budget's observer.
    """
    planned = max((plan.count for plan in plans), default=0)
    if budget is None:
        return planned
    watched = [plan for plan in plans if plan.observer == budget.observer]
    if not watched:
        names = ", ".join(sorted({plan.observer.name for plan in plans}))
        raise ValueError(f"Expected observer={budget.observer.name!r} to be one of {names}.")
    fitting = min(_largest_count(plan, budget) for plan in watched)
    if fitting == 0 and planned > 0:
        single = max(epsilon_of(plan, 1, budget.delta) for plan in watched)
        way = (
            "Nothing that this trainer releases is noised; use a mechanism such as Gaussian."
            if math.isinf(single)
            else "Use more noise, or let calibrate() choose it."
        )
        raise BudgetExceededError(
            f"Not one release fits epsilon={budget.epsilon:g} at delta={budget.delta:g} to the "
            f"{budget.observer}: a single one costs {single:.4g}. {way}"
        )
    return fitting


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
                "all of them. Compose their events into one plan, with "
                "privtrain.accounting.event.composed."
            )


def _largest_count(plan: PrivacyPlan, budget: Budget) -> int:
    def fits(count: int) -> bool:
        return epsilon_of(plan, count, budget.delta) <= budget.epsilon

    if fits(plan.count):
        return plan.count
    # Epsilon never falls with the count, so that bisection finds the last count that fits.
    low, high = 0, plan.count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def digest_of(plans: tuple[PrivacyPlan, ...], delta: float) -> str:
    """What identifies a set of plans in a journal."""
    parts = [(_named(p.observer), p.unit, p.relation, p.event, p.count) for p in plans]
    return hashlib.sha256(_identity((parts, delta)).encode()).hexdigest()[:32]


def _named(observer: Observer) -> Observer:
    """An observer under the name of version 0.1, so that its journals go on."""
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
        block: How many releases one sync reserves. An unfinished block stays spent.
    """

    plans: tuple[PrivacyPlan, ...]
    budget: Budget | None = None
    delta: float = 1e-5
    journal: Path | None = None
    block: int = 1
    _limit: int = field(init=False, repr=False)
    _spent: int = field(default=0, init=False)
    _used: int = field(default=0, init=False)
    _written: int = field(default=0, init=False)
    _file: JournalFile | None = field(default=None, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count(block=self.block)
        self._limit = capacity(self.plans, self.budget)
        if self.journal is not None:
            self._file = JournalFile(self.journal)
            if self.journal.exists():
                self._resume(self._file)

    @property
    def limit(self) -> int:
        """How many releases may be spent altogether."""
        return self._limit

    @property
    def spent(self) -> int:
        """How many releases were spent so far, aborted ones included."""
        return self._spent

    def spend(self, count: int = 1) -> bool:
        """Pays for the next releases, before any of them is made.

        Args:
            count: How many releases follow; at least 1.

        Returns:
            Whether they were paid; False, and nothing spent, where the limit would be exceeded.

        Raises:
            PrivacyError: If the journal cannot be written.
        """
        check_count(count=count)
        with self._lock:  # from the check to the count: two threads must not pay once
            if self._spent + count > self._limit:
                return False
            # Written before it is counted: a crash in between spends too much, never too little.
            if self._spent + count > self._written:
                # A whole block at a time: one sync pays for several releases.
                target = max(self._spent + count, min(self._limit, self._written + self.block))
                self._write({"spent_up_to": target})
                self._written = target
            self._spent += count
            return True

    def repeat(self) -> None:
        """Counts from the start again, for a run that makes the same releases to the bit.

        What was released before is released once more, which tells nobody anything new. What is
        written down stays there: only what goes beyond it is added.
        """
        with self._lock:
            self._spent = self._used = 0

    def use(self, count: int = 1) -> None:
        """Takes note that releases are being made now.

        Raises:
            BudgetExceededError: If they were not paid for.
            ValueError: If the count is negative. Zero is a further part of the last release.
        """
        check_count(0, count=count)
        with self._lock:
            if self._used + count > self._spent or self._used + count == 0:
                raise BudgetExceededError(
                    f"A release was about to be made that was not paid for ({self._used} of "
                    f"{self._spent} paid releases are made). Call run.spend() before it."
                )
            self._used += count

    def close(self) -> None:
        """Writes down that the run finished: what a block reserved beyond it was never used."""
        with self._lock:
            if self._written > self._spent:
                self._write({"finished_at": self._spent})
                self._written = self._spent

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
        before = 0
        for line in lines[1:]:
            count = self._count_of(line, file.path, before)
            # What a finished run never used is part of its last block; nothing before falls.
            if count != self._written:
                before = min(self._written, count)
            self._written = count
        self._spent = self._used = self._written

    def _count_of(self, line: Line, journal: Path, before: int) -> int:
        """How many releases are spent after an entry; `before` were before its block."""
        planned = max((plan.count for plan in self.plans), default=0)
        key, value = next(iter(line.values.items()), ("", None))
        # No boolean, which is a whole number to Python, and no float.
        if len(line.values) == 1 and type(value) is int:
            if key == "spent_up_to" and max(self._written, 1) <= value <= planned:
                return value
            # Twice where writing it failed after it stood there.
            if key == "finished_at" and (
                before < value <= self._written or 0 < value == self._written
            ):
                return value
        raise unreadable(
            journal,
            line.number,
            f"{json.dumps(line.values)} after {self._written} of {planned} planned releases",
        )


_BEGINNINGS = ('{"plan": "', '{"spent_up_to": ', '{"finished_at": ')
"""How the entries of a run's journal begin."""
