"""The trainer interface: plan what will be released, then train."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from privtrain.core.cost import PublicCost
from privtrain.core.errors import ProtocolError, UnsupportedError
from privtrain.core.observers import Observer
from privtrain.core.result import History, Members, Predictor
from privtrain.core.runtime import (
    NO_MESH,
    MeshReply,
    Payload,
    Program,
    Reply,
    Runtimes,
    Star,
    Step,
)
from privtrain.core.seeding import Entropy, OnceOnly, Seeds
from privtrain.core.statement import InputPrivacy, Relation, Unit
from privtrain.core.task import FederatedData, Task
from privtrain.core.transcript import Transcript


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What one observer will see of a training run, as events for an accountant.

    Args:
        observer: Who sees it.
        unit: Whose contribution the guarantee hides.
        relation: Which data sets are neighbours.
        event: One release, as a dp_accounting event or an `RdpCurve`.
        count: How many releases are planned.
        theorem: What the guarantee rests on, with its source.
        assumptions: What has to hold for it.
        float_noise: Whether noise, where there is any, is drawn in floating point.
    """

    observer: Observer
    unit: Unit
    relation: Relation
    # One release and a count: an accountant takes too long to be asked before each of thousands of
    # releases, so that a budget becomes a largest count once (decision 002).
    event: Any
    count: int
    theorem: str = ""
    assumptions: tuple[str, ...] = ()
    float_noise: bool = True


class Ledger(Protocol):
    """Counts the releases that were paid for, and lets no other one be made."""

    # Two beats, `spend` before the value exists and `use` when it is made. There is no way back: a
    # release that was aborted may have been seen, so it stays spent.

    @property
    def spent(self) -> int:
        """How many releases were spent so far, aborted ones included."""
        ...

    def spend(self, count: int = 1) -> bool:
        """Pays for the next releases, before any of them is made.

        Args:
            count: How many releases follow.

        Returns:
            Whether they were paid; False, and nothing spent, where they would exceed the budget.
        """
        ...

    def use(self, count: int = 1) -> None:
        """Takes note that releases are being made now.

        Raises:
            BudgetExceededError: If they were not paid for.
        """
        ...


class Checkpoint(Protocol):
    """Where a trainer leaves what it needs to go on after an interruption."""

    def save(self, done: int, state: Mapping[str, Any]) -> None:
        """Keeps the state after a number of finished rounds: tensors, numbers, dicts, lists."""
        ...

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The last state and the number of rounds it stands after, or None at the start."""
        ...


@dataclass
class Run:
    """One training run, from the coordinator's side.

    Args:
        runtimes: Where parties run.
        ledger: Pays for releases.
        transcript: Records messages.
        seeds: Streams for data order and initialisation.
        entropy: Streams for noise; each name is given out once.
        checkpoint: Keeps what a resumed run needs.
        open_star: Starts the parties of the star when first needed.
        history: Diagnostics over the rounds.
        device: Where tensors are computed.
        progress: Called as `progress(done, total)`.
        watch: Called as `watch(done, total, predictor)`; now and then it looks how good the model
            is on validation rows, which is a diagnostic and unprotected.
        halted: Why training stopped early, or None.
        notes: What the reader of the result should know.
        peak_memory_bytes: Largest memory of another process of this run.
        realised: Events that are known only after the releases, by observer name.
        memory: What mechanisms remember from release to release, by kind of message.
        members: Which training rows were used; None where all of them were.
        assumptions: What turned out to be assumed by every guarantee while the run went on.
        public_cost: Bytes and rounds by public figures alone, which are published beside a promise
            that counts on a secret sample or hides a number; None withholds them there.
    """

    runtimes: Runtimes
    ledger: Ledger
    transcript: Transcript
    seeds: Seeds
    entropy: OnceOnly
    checkpoint: Checkpoint
    open_star: Callable[[], Star]
    history: History = field(default_factory=History)
    device: str = "cpu"
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)
    watch: Callable[[int, int, Predictor], None] = field(
        default=lambda done, total, predictor: None
    )
    halted: str | None = None
    notes: list[str] = field(default_factory=list)
    peak_memory_bytes: int = 0
    realised: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    members: Members | None = None
    assumptions: list[str] = field(default_factory=list)
    public_cost: PublicCost | None = None
    _star: Star | None = field(default=None, repr=False)

    @property
    def star(self) -> Star:
        """The open star; its parties start when it is first asked for."""
        # A trainer without rounds then starts no parties, whatever a runtime makes of starting one.
        if self._star is None:
            self._star = self.open_star()
        return self._star

    @property
    def party_entropy(self) -> Entropy:
        """The entropy that parties draw from."""
        # The source, not this side's once-only wrapper: each party keeps its own account of the
        # names that it drew.
        return self.entropy.source

    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        """Lets the named parties take a step; see `Star.map`."""
        replies = self.star.map(step, payloads, round=round, at_least=at_least)
        # In the order of the parties that were asked, and nobody else's: a runtime is not believed.
        fewest = len(payloads) if at_least is None else at_least
        if list(replies) != [name for name in payloads if name in replies] or len(replies) < fewest:
            raise ProtocolError(
                f"Round {round}: {list(payloads)} were asked in this order, and {list(replies)} "
                "replied."
            )
        return replies

    def spmd(self, program: Program, inputs: Mapping[str, Payload]) -> dict[str, Payload]:
        """Lets all parties of the mesh run a program, and records what they sent.

        Args:
            program: What every party runs.
            inputs: Party to what it brings, in the order of ranks.

        Returns:
            Party to result.

        Raises:
            UnsupportedError: If the run has no mesh.
        """
        if self.runtimes.mesh is None:
            raise UnsupportedError(NO_MESH)
        replies = self.runtimes.mesh.spmd(program, inputs, report=self.progress)
        # The parties of a mesh count their rounds from 0; all of them come after those of the star.
        start = self.transcript.exchanges
        return {name: self._account(reply, start) for name, reply in replies.items()}

    def _account(self, reply: MeshReply, start: int) -> Payload:
        self.transcript.extend(reply.entries, start=start)
        self.transcript.setups.extend(reply.setups)
        self.report_memory(reply.peak_memory_bytes)
        return reply.payload

    def report_memory(self, peak: int) -> None:
        """Takes note of the largest resident memory of another process of this run, in bytes."""
        # The largest process, not their sum: real parties have a machine each.
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)

    def spend(self, count: int = 1) -> bool:
        """Pays for the next releases; where they would exceed the budget, the run is marked halted.

        Args:
            count: How many releases follow.

        Returns:
            Whether training may go on.
        """
        if self.ledger.spend(count):
            return True
        # No error: what was trained so far was paid for, and is returned.
        self.halted = f"the budget was used up after {self.ledger.spent} releases"
        return False


@runtime_checkable
class Checking(Protocol):
    """A trainer, or a part of one, that can tell beforehand what it would refuse in training."""

    def check(self, task: Task, model: nn.Module) -> None:
        """Refuses a task or a setting, before anything is trained or spent.

        Args:
            task: What is learned.
            model: A model of the task that nobody will use afterwards.
        """
        ...


@runtime_checkable
class CheckingRows(Protocol):
    """A trainer, or a part of one, that can tell beforehand which rows it would refuse."""

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        """Refuses rows that the model cannot be trained on, before anything is spent.

        Args:
            data: Who holds which rows.
            model: A model of the task in training mode that nobody will use afterwards.
        """
        ...


@runtime_checkable
class Addressing(Protocol):
    """A trainer that addresses parties without rows."""

    @property
    def others(self) -> tuple[str, ...]:
        """Their names, such as that of a holder of keys."""
        ...


@runtime_checkable
class Trying(Protocol):
    """A trainer, or a part of one, that tries a model and a loss on rows that are not private."""

    def try_beforehand(self, task: Task, data: FederatedData, model: nn.Module) -> None:
        """Refuses what it would refuse in training, before anything is spent.

        Args:
            task: What is learned.
            data: Whose public or test rows are tried; of training rows the shape alone is used.
            model: A model of the task in training mode that nobody will use afterwards.
        """
        ...


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

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the figures leave out or a protocol does not protect from, in sentences."""
        ...

    def with_noise(self, scale: float) -> "Trainer | None":
        """The same trainer with another noise scale, or None where it draws no noise."""
        ...

    def train(self, task: Task, data: FederatedData, run: Run) -> Predictor:
        """Trains and returns the predictor that is published."""
        ...
