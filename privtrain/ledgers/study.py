"""One ledger for everything that is trained on the same rows.

Each fit has its own ledger and its own statement, and neither knows of the others: two statements
of epsilon 1 about the same rows are not epsilon 1. A study ledger adds up what all fits of a study
release. It is a write-ahead journal, too: the whole plan of a fit is paid for before the fit.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from privtrain.accounting.epsilon import best_accountant, evaluate
from privtrain.accounting.event import Event, composed, no_event, repeated
from privtrain.accounting.files import event_from_plain, event_to_plain
from privtrain.accounting.filter import THEOREM as FILTER
from privtrain.accounting.filter import RdpFilter, order_for
from privtrain.accounting.guarantees import guarantees
from privtrain.core.errors import BudgetExceededError, DataError, PrivacyError, UnsoundReleaseError
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.statement import Budget, Guarantee, Relation, Unit
from privtrain.core.task import FederatedData
from privtrain.core.trainer import PrivacyPlan
from privtrain.core.validate import check_delta
from privtrain.ledgers.journal import append_synced, lines_of, size_of, text_of
from privtrain.ledgers.run import JournalLedger, digest_of, epsilon_of

FIXED = "trainers and settings of the study were fixed before the first result was seen"
COMPOSED = "composition of all fits of the study"


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one fit was charged.

    Args:
        name: What was trained.
        unit: Whose contribution is hidden.
        relation: Which data sets are neighbours.
        event: Everything that the fit may release.
        run: What identifies a run that may be resumed; empty where it cannot be.
    """

    name: str
    unit: Unit
    relation: Relation
    event: Event
    run: str = ""


@dataclass
class StudyLedger:
    """Adds up what several fits on the same rows release, and refuses a fit beyond the budget.

    Args:
        data: The rows of the study. Fits on rows of another digest are refused.
        budget: What all fits together may spend; None for no limit. Its observer and its delta
            replace `delta` and the public.
        adaptive: Whether the next trainer or its settings may be chosen after looking at the
            results of earlier ones. Then a Rényi filter counts, at one order that follows from the
            budget, and the guarantee is the budget. Otherwise fits are composed by the best
            accountant, and the guarantee assumes that they were fixed beforehand.
        order: The order of that filter; None for the one that suits the budget.
        delta: Delta of the guarantee where there is no budget.
        journal: The file; None keeps the charges in memory only.

    Raises:
        DataError: If the data have no digest.
        PrivacyError: If the journal is another study's.
        ValueError: If `adaptive` comes without a budget, or an order without `adaptive`.
    """

    data: FederatedData = field(repr=False)
    budget: Budget | None = None
    adaptive: bool = False
    order: float | None = None
    delta: float = 1e-5
    journal: str | Path | None = None
    _charges: list[Charge] = field(default_factory=list, init=False)
    _size: int = field(default=0, init=False, repr=False)
    _begun: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.journal = None if self.journal is None else Path(self.journal)
        check_delta(self.delta)
        if self.budget is not None:
            self.delta = self.budget.delta
        if self.adaptive and self.budget is None:
            raise ValueError(
                "Expected budget=None to be a Budget where adaptive=True: a filter needs its "
                "budget before the first release."
            )
        if self.order is not None and not self.adaptive:
            raise ValueError(f"Expected order={self.order!r} to be None where adaptive=False.")
        # Fixed now, from the budget alone: an order chosen after seeing a release proves nothing.
        if self.adaptive and self.budget is not None:
            self.order = RdpFilter(self.budget, self.order or order_for(self.budget)).fixed_order
        if not self.data.digest:
            raise DataError(
                "Expected data.digest to identify the rows of the study; it is empty. Load the "
                "rows with pt.data, or set digest= to a hash of them."
            )
        if self.journal is not None and self.journal.exists():
            self._resume(self.journal)

    @property
    def observer(self) -> Observer:
        """The observer to whom the study makes its promise."""
        return PUBLIC if self.budget is None else self.budget.observer

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What was charged so far, in order; aborted fits included."""
        return tuple(self._charges)

    def spend(
        self,
        plans: tuple[PrivacyPlan, ...],
        data: FederatedData,
        *,
        name: str,
        count: int | None = None,
        run: str = "",
        resumes: bool = False,
    ) -> int:
        """Pays for a whole fit, before it begins. It is never taken back.

        Args:
            plans: What each observer will see of the fit.
            data: What is trained on.
            name: What is trained, for the list of charges.
            count: The most releases that will be made; None for the planned number.
            run: What identifies a run that may be interrupted and go on; empty where it cannot.
            resumes: Whether this run goes on where its own journal stands: it is paid for once.

        Returns:
            Which fit of the study this is, from 0: two must not draw the same noise.

        Raises:
            BudgetExceededError: If the fit does not fit the budget. Nothing is spent then.
            DataError: If the rows are others than the study's.
            UnsoundReleaseError: If the fit hides another unit, or under another relation, than
                the study so far.
            PrivacyError: If the journal cannot be written.
            UnsupportedError: If no accountant reads this fit and the earlier ones together.
        """
        if data.digest != self.data.digest:
            raise DataError(
                f"The study is about rows of digest {self.data.digest[:12]}, and these have "
                f"{data.digest[:12] or 'none'}. Open another StudyLedger for other rows."
            )
        if run and resumes:
            # Paid for when it began; its own journal says how far it came.
            for place, charge in enumerate(self._charges):
                if charge.run == run:
                    return place
        charge = self._charge(plans, name, count, run)
        if self.budget is not None:
            self._check(charge, self.budget)
        else:  # nothing is charged whose sum nobody can state
            best_accountant(self._total(charge), charge.relation)
        # On the disk first: a charge that could not be written is not made.
        self._write(charge)
        self._charges.append(charge)
        return len(self._charges) - 1

    def spend_run(
        self, ledger: JournalLedger, data: FederatedData, *, name: str, folder: Path | None
    ) -> int:
        """Pays for everything that a run's own ledger may spend; see `spend`.

        A run that goes on in its folder, with the same plan and as many releases, was paid for.
        """
        plan = digest_of(ledger.plans, ledger.delta)
        return self.spend(
            ledger.plans,
            data,
            name=name,
            count=ledger.limit,
            run="" if folder is None else f"{folder.resolve()} {plan} {ledger.limit}",
            resumes=ledger.spent > 0,
        )

    @property
    def epsilon(self) -> float:
        """Epsilon of all fits; of an adaptive study, its budget once anything is spent."""
        return self.guarantee().epsilon if self._charges else 0.0

    def guarantee(self) -> Guarantee:
        """The guarantee of all fits to the observer.

        Raises:
            PrivacyError: If nothing was charged yet.
        """
        if not self._charges:
            raise PrivacyError("Nothing was charged to this study yet, so there is no guarantee.")
        first = self._charges[0]
        plan = PrivacyPlan(
            observer=self.observer,
            unit=first.unit,
            relation=first.relation,
            event=self._total(),
            count=1,
            theorem=COMPOSED,
            assumptions=(FIXED,),
        )
        made = guarantees((plan,), spent=1, delta=self.delta)[0]
        known = self.data.assumed(first.unit, first.relation)
        made = replace(made, assumptions=(*made.assumptions, *known))
        # Each fit counts as one release here; its own statement says how many it made.
        made = replace(made, releases=len(self._charges))
        if not self.adaptive or self.budget is None:
            return made
        # A filter proves its budget and no less: how much of it is spent was chosen on the way.
        return replace(
            made,
            epsilon=self.budget.epsilon,
            accountant="rdp",
            cross_check=None,
            theorem=FILTER,
            assumptions=(f"everything is counted at order {self.order:g}", *known),
        )

    def _total(self, *further: Charge) -> Event:
        events = [charge.event for charge in (*self._charges, *further)]
        return composed(events) if events else no_event()

    def _charge(
        self, plans: tuple[PrivacyPlan, ...], name: str, count: int | None, run: str
    ) -> Charge:
        seen = [plan for plan in plans if plan.observer == self.observer]
        # The first fit sets the unit and the relation of the study.
        held = self._charges[0] if self._charges else None
        for plan in seen:
            agrees = held is None or (plan.unit, plan.relation) == (held.unit, held.relation)
            # What promises nothing, to whatever unit, makes the sum infinite.
            if agrees or math.isinf(epsilon_of(plan, 1, self.delta)):
                times = plan.count if count is None else min(count, plan.count)
                return Charge(
                    name=name,
                    unit=plan.unit if held is None else held.unit,
                    relation=plan.relation if held is None else held.relation,
                    event=repeated(plan.event, times),
                    run=run,
                )
        promised = ", ".join(sorted({f"per {p.unit}, {p.relation}" for p in seen})) or "nothing"
        wanted = "" if held is None else f" per {held.unit}, {held.relation}"
        raise UnsoundReleaseError(
            f"{name} promises the {self.observer} {promised}, and the study promises{wanted}: the "
            "two have no common sum. Train with the same unit and relation, or name the larger of "
            "them in a study of its own and state both."
        )

    def _check(self, charge: Charge, budget: Budget) -> None:
        if self.adaptive:
            # Played again from the start: the charges alone say what is left, after a restart, too.
            spent = RdpFilter(budget, self.order, charge.relation)
            for earlier in self._charges:
                spent.spend(earlier.event)
            spent.spend(charge.event)
            return
        total = evaluate(self._total(charge), budget.delta, charge.relation).epsilon
        if not total <= budget.epsilon:
            alone = evaluate(charge.event, budget.delta, charge.relation).epsilon
            before = self.epsilon
            raise BudgetExceededError(
                f"{charge.name} would bring the study to epsilon={total:.4g} at "
                f"delta={budget.delta:g}, beyond its budget of {budget.epsilon:g}: {before:.4g} is "
                f"spent, and this fit alone costs {alone:.4g}. Nothing was trained; use more noise."
            )

    # The journal

    @property
    def _header(self) -> dict[str, Any]:
        return {
            "study": self.data.digest,
            "epsilon": None if self.budget is None else self.budget.epsilon,
            "delta": self.delta,
            "observer": self.observer.name,
            "order": self.order,
        }

    def _write(self, charge: Charge) -> None:
        line: dict[str, Any] = {
            "name": charge.name,
            "unit": str(charge.unit),
            "relation": str(charge.relation),
            "run": charge.run,
        }
        if not isinstance(self.journal, Path):
            return
        line["event"] = event_to_plain(charge.event)
        lines = [line] if self._begun else [self._header, line]
        text = "".join("\n" + json.dumps(item) for item in lines).encode()
        try:
            append_synced(self.journal, text, size=self._size, first=not self._begun)
        except OSError as error:
            # Part of the text may be there: the next write goes on behind it.
            self._size = size_of(self.journal)
            raise PrivacyError(
                f"Cannot write the study's journal {self.journal}: {error}. Nothing was trained; "
                "free disk space or choose another place, then try again."
            ) from error
        self._begun = True
        self._size += len(text)

    def _resume(self, journal: Path) -> None:
        self._size, text = size_of(journal), text_of(journal)
        if ("\n" + json.dumps(self._header)).startswith(text):
            return  # a crash cut off the very first write, before anything was trained
        lines: list[dict[str, Any]] = [*lines_of(text)]
        self._begun = True
        if not lines or lines[0] != json.loads(json.dumps(self._header)):
            raise PrivacyError(
                f"The journal {journal} belongs to a study of other rows, or of another budget, "
                "delta or order, which are fixed when a study begins. Open it with those, or "
                "choose another file."
            )
        for line in lines[1:]:
            self._charges.append(
                Charge(
                    name=line["name"],
                    unit=Unit(line["unit"]),
                    relation=Relation(line["relation"]),
                    event=event_from_plain(line["event"]),
                    run=line["run"],
                )
            )
