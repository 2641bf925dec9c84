"""The trainer interface: plan what will be released, then train."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from privtrain.core.errors import ProtocolError, UnsoundReleaseError, UnsupportedError
from privtrain.core.observers import Observer
from privtrain.core.outcome import Outcome
from privtrain.core.result import NOT_KEPT, Members, Predictor, VotesSeen
from privtrain.core.runtime import (
    NO_STAR,
    MeshRuntime,
    Payload,
    Program,
    Reply,
    Runtimes,
    Star,
    Step,
)
from privtrain.core.seeding import OnceOnly, Seeds
from privtrain.core.statement import InputPrivacy, Relation, Unit
from privtrain.core.task import FederatedData, Task
from privtrain.core.transcript import Transcript

RELEASE = "release"
"""The kind of every release of a run that makes one kind only."""


@dataclass(frozen=True)
class Charge:
    """Releases of one kind that a run plans.

    Args:
        event: One of them, as a dp_accounting event or an `RdpCurve`.
        count: How many are planned.
    """

    # One release and a count: an accountant takes too long to be asked before each of thousands of
    # releases, so that a budget becomes a largest count once (decision 002).
    event: Any
    count: int


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What one observer will see of a training run, as events for an accountant.

    All kinds of releases are composed into one guarantee: the observer sees all of them.

    Args:
        observer: Who sees it.
        unit: Whose contribution the guarantee hides.
        relation: Which data sets are neighbours.
        charges: Kind of release, such as "check" and "answer", to what one costs and how many are
            planned; `RELEASE` where there is one kind only.
        theorem: What the guarantee rests on, with its source.
        assumptions: What has to hold for it.
        float_noise: Whether noise, where there is any, is drawn in floating point.
    """

    observer: Observer
    unit: Unit
    relation: Relation
    charges: Mapping[str, Charge]
    theorem: str = ""
    assumptions: tuple[str, ...] = ()
    float_noise: bool = True

    @property
    def counts(self) -> dict[str, int]:
        """Kind of release to how many are planned."""
        return {kind: charge.count for kind, charge in self.charges.items()}

    def beside(self, other: "PrivacyPlan") -> "PrivacyPlan":
        """One plan of all releases of two, which an observer sees about one unit.

        Raises:
            UnsoundReleaseError: If the plans are about other observers, units or relations, or
                both have a kind: their figures have no common sum.
        """
        mine, others = ((p.observer, p.unit, p.relation) for p in (self, other))
        if mine != others or self.charges.keys() & other.charges.keys():
            raise UnsoundReleaseError(
                f"Two plans cannot be one: {', '.join(self.charges)} to the {self.observer} per "
                f"{self.unit}, {self.relation}, and {', '.join(other.charges)} to the "
                f"{other.observer} per {other.unit}, {other.relation}. Use one observer, unit and "
                "relation, and a name of its own for each kind of release."
            )
        theorems = dict.fromkeys(filter(None, (self.theorem, other.theorem)))
        return replace(
            self,
            charges={**self.charges, **other.charges},
            theorem="; ".join(theorems),
            assumptions=tuple(dict.fromkeys((*self.assumptions, *other.assumptions))),
            float_noise=self.float_noise or other.float_noise,
        )


class Ledger(Protocol):
    """Counts the releases that were paid for, and lets no other one be made."""

    # Two beats, `spend` before the value exists and `use` when it is made. There is no way back: a
    # release that was aborted may have been seen, so it stays spent.

    @property
    def spent(self) -> int:
        """How many releases were spent so far, aborted ones included."""
        ...

    @property
    def spent_by_kind(self) -> Mapping[str, int]:
        """The same for each kind of release that the plan knows."""
        ...

    def spend(self, count: int = 1, *, kind: str = RELEASE) -> bool:
        """Pays for the next releases, before any of them is made.

        Args:
            count: How many releases follow.
            kind: Which of the plan's charges they are.

        Returns:
            Whether they were paid; False, and nothing spent, where they would exceed the budget.
        """
        ...

    def use(self, count: int = 1, *, kind: str = RELEASE) -> None:
        """Takes note that releases are being made now.

        Args:
            count: How many there are.
            kind: Which of the plan's charges they are.

        Raises:
            BudgetExceededError: If they were not paid for.
        """
        ...


REALISED, EXACT, VOTES = "realised", "exact", "votes"
"""Where a kept state holds the charges that are known only after the releases, by observer."""

_KEPT_BY_RUN = {
    "memory",
    "parties",
    "members",
    "assumptions",
    "notes",
    "halted",
    REALISED,
    EXACT,
    VOTES,
}


class Checkpoint(Protocol):
    """Where a run leaves what it needs to go on after an interruption."""

    def save(self, done: int, state: Mapping[str, Any]) -> None:
        """Keeps the state after a number of finished rounds.

        Args:
            done: How many.
            state: Tensors, numbers, dicts, lists; and under `REALISED` and `EXACT` events.
        """
        ...

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The last state and the number of rounds it stands after, or None at the start."""
        ...


@dataclass(frozen=True)
class Mesh:
    """The mesh of a run, which takes note of what its parties sent, knew and needed.

    Args:
        runtime: Where its parties run.
        transcript: Where their messages are recorded.
        outcome: Where their memory is.
        seeds: Public streams for all of them.
        report: Called as `report(done, total)` while the first party makes progress.
    """

    runtime: MeshRuntime
    transcript: Transcript
    outcome: Outcome
    seeds: Seeds
    report: Callable[[int, int], None] = field(default=lambda done, total: None)

    def run(
        self, programs: Mapping[str, Program], inputs: Mapping[str, Payload]
    ) -> dict[str, Payload]:
        """Lets each party run its program, and records what they sent; see `MeshRuntime.run`.

        Args:
            programs: Party to what it runs, in the order of ranks.
            inputs: Party to what it brings; who brings nothing may be left out.

        Returns:
            Party to result.
        """
        replies = self.runtime.run(programs, inputs, seeds=self.seeds, report=self.report)
        # The parties of a mesh count their rounds from 0; all of them come after those of the star.
        start = self.transcript.exchanges
        for reply in replies.values():
            self.transcript.extend(reply.entries, start=start)
            self.transcript.setups.extend(reply.setups)
            self.outcome.report_memory(reply.peak_memory_bytes)
        return {name: reply.payload for name, reply in replies.items()}


@dataclass(kw_only=True)
class Run:
    """One training run, from the coordinator's side.

    Args:
        ledger: Pays for releases.
        transcript: Records messages.
        seeds: Streams for data order and initialisation.
        entropy: Streams for noise; each name is given out once.
        star: The parties around the coordinator, which start when they are first needed; None
            where there is no runtime for them.
        mesh: The parties that talk to each other; None where there is no runtime for them.
        device: Where tensors are computed.
        progress: Called as `progress(done, total)`.
        watch: Called as `watch(done, total, predictor)`; now and then it looks how good the model
            is on validation rows, which is a diagnostic and unprotected.
        outcome: What the run leaves beside the predictor.
        checkpoint: Where `keep` leaves a state and `kept` finds it; None for a run that lies in
            no folder.
        folder: Where the run lies, for what each party of a mesh keeps for itself; None for
            nowhere.
    """

    ledger: Ledger
    transcript: Transcript
    seeds: Seeds
    entropy: OnceOnly
    star: Star | None = None
    mesh: Mesh | None = None
    device: str = "cpu"
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)
    watch: Callable[[int, int, Predictor], None] = field(
        default=lambda done, total, predictor: None
    )
    outcome: Outcome = field(default_factory=Outcome)
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    folder: Path | None = None
    # What mechanisms remember from release to release, by kind: it tells their noise.
    _memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        """Lets the named parties take a step; see `Star.map`.

        Raises:
            UnsupportedError: If the run has no star.
            ProtocolError: If others replied than were asked.
        """
        if self.star is None:
            raise UnsupportedError(NO_STAR)
        replies = self.star.map(step, payloads, round=round, at_least=at_least)
        # In the order of the parties that were asked, and nobody else's: a runtime is not believed.
        fewest = len(payloads) if at_least is None else at_least
        if list(replies) != [name for name in payloads if name in replies] or len(replies) < fewest:
            raise ProtocolError(
                f"Round {round}: {list(payloads)} were asked in this order, and {list(replies)} "
                "replied."
            )
        return replies

    def spend(self, count: int = 1, *, kind: str = RELEASE) -> bool:
        """Pays for the next releases; where they would exceed the budget, the run is marked halted.

        Args:
            count: How many releases follow.
            kind: Which of the plan's charges they are.

        Returns:
            Whether training may go on.
        """
        if self.ledger.spend(count, kind=kind):
            return True
        # No error: what was trained so far was paid for, and is returned.
        spent = self.ledger.spent_by_kind
        of_kind = f" of kind {kind!r}" if len(spent) > 1 else ""
        spent_of = f"{spent.get(kind, 0)} releases{of_kind}"
        self.outcome.halted = f"the budget was used up after {spent_of}"
        return False

    def remember(self, kind: str, advance: Callable[[Any], tuple[Tensor, Any]]) -> Tensor:
        """What a mechanism releases, from what it remembers of earlier releases of a kind.

        Args:
            kind: The kind of release: correlated noise of one kind says nothing of another's.
            advance: Makes a release and what is remembered next, of what is remembered by now,
                which is None before the first one.
        """
        released, self._memory[kind] = advance(self._memory.get(kind))
        return released

    def keep(self, done: int, **state: Any) -> None:
        """Keeps what an interrupted run needs to go on; nothing where it lies in no folder.

        Beside the trainer's own state this is what every run has: what mechanisms and parties
        remember, which rows were used, what turned out to be assumed, notes, why the run was
        halted, and realised charges. The coordinator gathers the `Party.state` of all parties for
        it, in the clear; `Party.held` is kept by nobody else, hence a state is kept between
        training rounds.

        Args:
            done: How many rounds, steps or epochs are finished.
            **state: Tensors, numbers, dicts, lists, by name.

        Raises:
            ValueError: If a name is one of the run's own.
        """
        for name in sorted(_KEPT_BY_RUN & set(state)):
            raise ValueError(f"Expected {name}=... to have another name: every run keeps its own.")
        if self.checkpoint is None:
            return
        own = {
            "memory": self._memory,
            "parties": {} if self.star is None else self.star.states(),
            "members": None if self.outcome.members is None else vars(self.outcome.members),
            "assumptions": list(self.outcome.assumptions),
            "notes": list(self.outcome.notes),
            "halted": self.outcome.halted,
            REALISED: dict(self.outcome.realised),
            EXACT: dict(self.outcome.exact),
            VOTES: None if self.outcome.history.votes is None else vars(self.outcome.history.votes),
        }
        self.checkpoint.save(done, {**state, **own})

    def kept(self) -> tuple[int, dict[str, Any]] | None:
        """How many rounds an interrupted run had finished, and the state that it kept.

        What every run has is put back already. A trainer that says which rows it used sets
        `outcome.members` before.

        Returns:
            None for a run that starts at the beginning.
        """
        saved = None if self.checkpoint is None else self.checkpoint.load()
        if saved is None:
            return None
        done, state = saved[0], dict(saved[1])
        # Without its earlier noise a correlated mechanism would begin a new sequence.
        self._memory.update(state.pop("memory", {}))
        parties = state.pop("parties", {})
        if self.star is not None and parties:
            self.star.restore(parties)
        # An earlier version kept none.
        unknown = None if self.outcome.members is None else {"doubt": NOT_KEPT}
        members = state.pop("members", unknown)
        if members is not None:
            self.outcome.members = Members(**members)
        self.outcome.assume(*state.pop("assumptions", ()))
        self.outcome.note(*state.pop("notes", ()))
        self.outcome.halted = state.pop("halted", None)
        self.outcome.realised.update(state.pop(REALISED, {}))
        self.outcome.exact.update(state.pop(EXACT, {}))
        votes = state.pop(VOTES, None)
        self.outcome.history.votes = None if votes is None else VotesSeen(**votes)
        return done, state


class Trainer(Protocol):
    """A way to train a model under some privacy technique. Configuration: frozen, pickles."""

    @property
    def token(self) -> str:
        """The name used on the command line and in files, such as `dp_sgd`."""
        ...

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        """What each observer will see of the run, before it starts."""
        ...

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        """Who reads what while the model is trained."""
        ...

    def with_noise(self, scale: float) -> "Trainer | None":
        """The same trainer with another noise scale, or None where it draws no noise."""
        ...

    @property
    def caveats(self) -> tuple[str, ...]:
        """What no guarantee says, in sentences: whom it trusts, what a protocol leaves open."""
        ...

    def train(self, task: Task, data: FederatedData, run: Run) -> Predictor:
        """Trains and returns the predictor that is published."""
        ...
