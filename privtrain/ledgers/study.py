"""One ledger for everything that is trained on the same rows.

Each fit has its own ledger and its own statement, and neither knows of the others: two statements
of epsilon 1 about the same rows are not epsilon 1. A study ledger adds up what all fits of a study
release. It is a write-ahead journal, too: the whole plan of a fit is paid for before the fit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from privtrain.accounting.epsilon import best_accountant, evaluate
from privtrain.accounting.event import Event, charged, composed, no_event
from privtrain.accounting.filter import THEOREM as FILTER
from privtrain.accounting.filter import RdpFilter, order_for
from privtrain.accounting.guarantees import guarantees
from privtrain.core.errors import BudgetExceededError, DataError, PrivacyError, UnsoundReleaseError
from privtrain.core.keys import PRIVATE, has_key, keyed_digest
from privtrain.core.locks import Lock
from privtrain.core.observers import PUBLIC, Observer, check_observer
from privtrain.core.rounding import printed_up
from privtrain.core.statement import Budget, Guarantee, Relation, Unit
from privtrain.core.task import FederatedData
from privtrain.core.trainer import RELEASE, PrivacyPlan
from privtrain.core.trainer import Charge as PlannedCharge
from privtrain.core.validate import check_delta, check_is
from privtrain.ledgers.charges import BEGINNINGS, Charge, Cost, charge_to_plain, read_charge
from privtrain.ledgers.journal import JournalFile, lines_of, size_of, text_of
from privtrain.ledgers.run import JournalLedger, check_one_plan, digest_of, promises

FIXED = "trainers and settings of the study were fixed before the first result was seen"
EACH = (
    "what the statement of each fit assumes, such as that nobody knows the seed of its noise; a "
    "row that any of them gave up to the public is protected by none"
)
COMPOSED = "composition of all fits of the study"


@dataclass
class StudyLedger:
    """Adds up what several fits on the same rows release, and refuses a fit beyond the budget.

    Args:
        data: The rows of the study. Fits on rows of another digest are refused; whoever changes
            rows by hand gives them another digest.
        budget: What all fits together may spend; None for no limit. Its observer and its delta
            replace `delta` and the public.
        adaptive: Whether the next trainer or its settings may be chosen after looking at the
            results of earlier ones. Then a Rényi filter counts, at one order that follows from the
            budget, and the guarantee is the budget. Otherwise fits are composed by the best
            accountant, and the guarantee assumes that they were fixed beforehand.
        order: The order of that filter; None for the one that suits the budget.
        delta: Delta of the guarantee where there is no budget.
        journal: The file; None keeps the charges in memory only. Beside it, `private/digest.key`
            tells whether rows are the study's; without that key the journal cannot go on.

    Raises:
        DataError: If the data have no digest.
        PrivacyError: If the journal is another study's, or holds what no study writes.
        ValueError: If `adaptive` comes without a budget, an order without `adaptive`, or the
            budget's observer names a party that holds none of the data.
    """

    data: FederatedData = field(repr=False)
    budget: Budget | None = None
    adaptive: bool = False
    order: float | None = None
    delta: float = 1e-5
    journal: str | Path | None = None
    _charges: list[Charge] = field(default_factory=list, init=False)
    _file: JournalFile | None = field(default=None, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.journal = None if self.journal is None else Path(self.journal)
        check_delta(self.delta)
        check_is(FederatedData, "that of task, data = pt.data.digits()", data=self.data)
        if self.budget is not None:
            check_is(Budget, "pt.Budget(3.0, 1e-5)", budget=self.budget)
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
        check_observer(self.observer, self.data.parties)
        if isinstance(self.journal, Path):
            self._file = JournalFile(self.journal)
            if self.journal.exists():
                self._resume(self._file)

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
        counts: Mapping[str, int] | None = None,
        run: str = "",
        resumes: bool = False,
    ) -> int:
        """Pays for a whole fit, before it begins. It is never taken back.

        Args:
            plans: What each observer will see of the fit.
            data: What is trained on.
            name: What is trained, for the list of charges.
            counts: Kind of release to the most that will be made; None for the planned numbers.
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
        # No digest in the message: of all rows but one that are known, it tells the last.
        if data.digest != self.data.digest:
            raise DataError(
                f"Expected {name} to train on the rows of the study; these are others. Rows that "
                "are in both, as in a file with one row more or less, pay for both, and no ledger "
                "would add it up: train on the study's own rows. For rows of which not one is in "
                "the study, open another StudyLedger."
            )
        with self._lock:  # from the check to the list: two threads must not fill one gap
            if run and resumes:
                # Paid for when it began; its own journal says how far it came.
                for place, charge in enumerate(self._charges):
                    if charge.run == run:
                        return place
            charge = self._charge(plans, name, counts, run)
            for number, cost in enumerate(charge.costs):
                if self.budget is not None:
                    self._check(name, number, cost, self.budget)
                else:  # nothing is charged whose sum nobody can state
                    best_accountant(self._total(number, cost.event), cost.relation)
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
        plan, limits = digest_of(ledger.plans, ledger.delta), ledger.limits
        # Of one kind without its name, as in version 0.1, whose journals go on.
        named = ", ".join(f"{kind} {count}" for kind, count in sorted(limits.items()))
        limit = named if len(limits) > 1 else ledger.limit
        return self.spend(
            ledger.plans,
            data,
            name=name,
            counts=ledger.limits,
            run="" if folder is None else f"{folder.resolve()} {plan} {limit}",
            resumes=ledger.spent > 0,
        )

    @property
    def epsilon(self) -> float:
        """Epsilon of all fits; of an adaptive study, its budget once anything is spent.

        Where several units are protected, such as clients and their examples, the largest.
        """
        return self.guarantee().epsilon if self._charges else 0.0

    def guarantee(self) -> Guarantee:
        """The guarantee of all fits to the observer; of several units, that of the worst.

        Raises:
            PrivacyError: If nothing was charged yet.
        """
        return max(self.guarantees(), key=lambda made: made.epsilon)

    def guarantees(self) -> tuple[Guarantee, ...]:
        """The guarantee of all fits to the observer, for each unit that the study protects.

        Raises:
            PrivacyError: If nothing was charged yet.
        """
        with self._lock:
            if not self._charges:
                raise PrivacyError(
                    "Nothing was charged to this study yet, so there is no guarantee."
                )
            costs = self._charges[0].costs
            return tuple(self._guarantee(number, cost) for number, cost in enumerate(costs))

    def _guarantee(self, number: int, first: Cost) -> Guarantee:
        plan = PrivacyPlan(
            observer=self.observer,
            unit=first.unit,
            relation=first.relation,
            charges={RELEASE: PlannedCharge(self._total(number), 1)},
            theorem=COMPOSED,
            assumptions=(FIXED, EACH),
        )
        made = guarantees((plan,), spent={RELEASE: 1}, delta=self.delta)[0]
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
            assumptions=(f"everything is counted at order {self.order:g}", *made.assumptions[1:]),
        )

    def _total(self, number: int, *further: Event) -> Event:
        """Everything about one unit, by its place among those of the study."""
        events = [*(charge.costs[number].event for charge in self._charges), *further]
        return composed(events) if events else no_event()

    def _charge(
        self, plans: tuple[PrivacyPlan, ...], name: str, counts: Mapping[str, int] | None, run: str
    ) -> Charge:
        seen = [plan for plan in plans if plan.observer == self.observer]
        check_one_plan(seen)
        # The first fit sets the units and the relations of the study: all that it promises.
        held = [(c.unit, c.relation) for charge in self._charges[:1] for c in charge.costs]
        kinds = held or [(plan.unit, plan.relation) for plan in seen]
        costs = []
        for unit, relation in kinds:
            plan = self._plan_of(seen, unit, relation)
            if plan is None:
                break
            given = plan.counts if counts is None else counts
            made = {kind: min(given.get(kind, 0), n) for kind, n in plan.counts.items()}
            event = charged(plan.charges, made)
            costs.append(Cost(unit=unit, relation=relation, event=event))
        if not costs or len(costs) < len(kinds):
            promised = ", ".join(sorted({f"per {p.unit}, {p.relation}" for p in seen}))
            wanted = "; ".join(f" per {unit}, {relation}" for unit, relation in held)
            raise UnsoundReleaseError(
                f"{name} promises the {self.observer} {promised or 'nothing'}, and the study "
                f"promises{wanted}: the two have no common sum. Train with the same units and "
                "relations, or name the larger of them in a study of its own and state both."
            )
        first, *further = costs
        return Charge(
            name=name,
            unit=first.unit,
            relation=first.relation,
            event=first.event,
            run=run,
            further=tuple(further),
        )

    def _plan_of(
        self, seen: list[PrivacyPlan], unit: Unit, relation: Relation
    ) -> PrivacyPlan | None:
        """The plan that says what a fit costs a unit; None where it says nothing of it."""
        for plan in seen:
            if (plan.unit, plan.relation) == (unit, relation):
                return plan
        # What promises nothing, to whatever unit, makes the sum infinite.
        return next((plan for plan in seen if not promises(plan, self.delta)), None)

    def _check(self, name: str, number: int, cost: Cost, budget: Budget) -> None:
        if self.adaptive:
            # Played again from the start: the charges alone say what is left, after a restart, too.
            spent = RdpFilter(budget, self.order, cost.relation)
            for earlier in self._charges:
                spent.spend(earlier.costs[number].event)
            spent.spend(cost.event)
            return
        total = evaluate(self._total(number, cost.event), budget.delta, cost.relation).epsilon
        if not total <= budget.epsilon:
            alone = evaluate(cost.event, budget.delta, cost.relation).epsilon
            before = evaluate(self._total(number), budget.delta, cost.relation).epsilon
            raise BudgetExceededError(
                f"{name} would bring the study to epsilon={printed_up(total)} per {cost.unit} at "
                f"delta={budget.delta:g}, beyond its budget of {budget.epsilon:g}: "
                f"{printed_up(before)} is spent, and this fit alone costs {printed_up(alone)}. "
                "Nothing was trained; use more noise."
            )

    # The journal

    def _header(self, digest: str) -> dict[str, Any]:
        """The first line of the journal, with the rows' digest as it is kept there."""
        return {
            "study": digest,
            "epsilon": None if self.budget is None else self.budget.epsilon,
            "delta": self.delta,
            "observer": self.observer.name,
            "order": self.order,
        }

    def _keyed_header(self, journal: Path) -> dict[str, Any]:
        # Keyed: who has the journal and all rows but one would find that row by hashing. All
        # members: a charge to some parties says nothing of others that pool what they saw.
        digest = keyed_digest(self.data.digest, journal.parent)
        members = sorted(self.observer.corrupted)
        return {**self._header(digest), "members": members, "keyed": True}

    def _write(self, charge: Charge) -> None:
        if self._file is None:
            return
        try:
            header = {} if self._file.begun else self._keyed_header(self._file.path)
            self._file.append(header, charge_to_plain(charge))
        except (OSError, DataError) as error:
            raise PrivacyError(
                f"Cannot write the study's journal {self.journal}: {error}. Nothing was trained; "
                "free disk space or choose another place, then try again."
            ) from error

    def _resume(self, file: JournalFile) -> None:
        file.size, text = size_of(file.path), text_of(file.path)
        lines = lines_of(file.path, text, BEGINNINGS)
        first = lines[0].values if lines else {}
        old = "study" in first and "keyed" not in first
        if old and self.observer.corrupted:
            raise PrivacyError(
                f"The journal {file.path} was begun by version 0.1, which wrote down how many "
                f"parties a coalition has and not which: what the {self.observer} was charged is "
                "unknown. Choose another file, and count what this one spent beside it."
            )
        if "keyed" in first and not has_key(file.path.parent):
            raise PrivacyError(
                f"The journal {file.path} cannot go on without its key, which was in the folder "
                f"{file.path.parent / PRIVATE}: nobody can tell whether these rows are the "
                "study's. Bring the key back, or choose another file and count both."
            )
        # Rows are told by the plain digest where 0.1 began; it is not written again.
        header = self._header(self.data.digest) if old else self._keyed_header(file.path)
        if file.is_start(text, header) or (
            not lines and file.is_start(text, self._header(self.data.digest))
        ):
            return  # a crash cut off the very first write, before anything was trained
        file.begun = True
        if first != json.loads(json.dumps(header)):
            raise PrivacyError(
                f"The journal {file.path} belongs to a study of other rows, or of another "
                "observer, budget, delta or order, which are fixed when a study begins. Open it "
                "with those, or choose another file."
            )
        for line in lines[1:]:
            self._charges.append(read_charge(line, file.path, self._charges[:1]))
