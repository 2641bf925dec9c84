"""What a trainer, or a part of one, may be able to do besides training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from privtrain.core.result import Predictor, TrainResult
from privtrain.core.runtime import (
    Draws,
    Payload,
    Program,
    Runtimes,
)
from privtrain.core.task import FederatedData, Rows, Split, Task
from privtrain.core.trainer import Trainer


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


@runtime_checkable
class Adapting(Protocol):
    """A trainer whose model reads something else than rows, such as fixed features of them."""

    def read_beside(self) -> object:
        """What it reads that was made before the fit: it must not come from protected rows."""
        ...

    def adapted(self, task: Task) -> Task:
        """The task whose model takes rows; it is trained, asked and kept in place of the given."""
        ...


def trained_task(trainer: object, task: Task) -> Task:
    """The task whose model a trainer trains, and which is asked and kept."""
    return trainer.adapted(task) if isinstance(trainer, Adapting) else task


@runtime_checkable
class Reusing(Protocol):
    """A trainer that may keep what it computed of private rows, and use it in another run."""

    def check_reuse(self, runtimes: Runtimes, study: Any) -> None:
        """Refuses to keep what nobody would add up, before anything is spent.

        Args:
            runtimes: Where parties run.
            study: The `StudyLedger` that pays, or None.
        """
        ...

    def said_of_reuse(self, study: Any) -> tuple[str, ...]:
        """What stands beside every figure of the run, once it is paid for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where a party of a mesh keeps its own part of a run, to take it up from there.

    Args:
        folder: The party's own folder; nobody else's files lie there.
        name: The party; others, such as who helps it, keep nothing there.
        study: A digest of what must be equal at all parties, beside the trainer's settings.
    """

    folder: Path
    name: str
    study: str


@runtime_checkable
class MeshTrainer(Protocol):
    """A trainer whose parties hold their own rows and train among themselves: `privtrain party`.

    What it computes with must follow from the study file: all parties compare their settings,
    the initial weights and who takes part, before anything is shared.
    """

    def peer_programs(
        self,
        names: Sequence[str],
        *,
        task: Task,
        model: nn.Module,
        split: Split,
        rows: Rows | None,
        keeping: Keeping | None = None,
    ) -> Mapping[str, Program]:
        """What each party runs, in the order of ranks: who holds rows, then who helps them.

        A program finds its party's rows in `party.train[party.name]`.

        Args:
            names: The parties that hold rows, by rank.
            task: What is learned.
            model: With the initial weights, which are public.
            split: How the table is cut among the parties.
            rows: This party's own rows; None where it holds none. Nobody else's are known.
            keeping: Where this party keeps its part of the run; None where parties keep nothing.

        Raises:
            ValueError: If the trainer is set for another number of parties.
            DataError: If own rows or the model cannot be trained on, or what is kept is damaged or
                another run's.
            UnsupportedError: If the task cannot be.
        """
        ...

    def finish_peer(self, model: nn.Module, result: Payload, rows: Rows, split: Split) -> bool:
        """Puts what a program returned at a party with rows into the model.

        Returns:
            Whether this party has the trained model; others are not sent it.

        Raises:
            DataError: If the result cannot be believed for own rows.
            ProtocolError: If it cannot be believed for other reasons.
        """
        ...

    def peer_statement(self, names: Sequence[str]) -> tuple[str, ...]:
        """What is promised to whom and who reads what, a sentence each.

        Args:
            names: The parties that hold rows, by rank.
        """
        ...


@runtime_checkable
class Finished(Protocol):
    """A trainer whose model was trained elsewhere: nothing is trained, planned or spent."""

    def trained_elsewhere(self, task: Task, data: FederatedData) -> TrainResult:
        """The model as a result, with what its user states of it.

        Args:
            task: What was learned.
            data: The rows that it was trained on, and rows for testing.
        """
        ...


@runtime_checkable
class Warming(Protocol):
    """A trainer that can be warmed up: imports, first calls of optimizers and engines."""

    def briefly(self) -> Trainer:
        """The same kind of trainer at its least work, with no function of the user's in it.

        It is trained once on made-up rows before a clock starts, and thrown away.
        """
        ...


@runtime_checkable
class Twinned(Protocol):
    """A trainer that computes under cryptography what could be computed in plaintext."""

    def plaintext_twin(self) -> Trainer:
        """The same steps in plaintext: same passes, batches, order and learning rate.

        What the cryptography costs in accuracy is the gap to it, whatever other trainers do.
        """
        ...


@runtime_checkable
class Summing(Protocol):
    """A trainer that may add up messages under cryptography."""

    def with_plain_sum(self) -> Trainer | None:
        """The same trainer with plain sums, which are equal up to fixed point; None if it has them.

        Its shadow models need not be hidden from parties that do not exist.
        """
        ...


@runtime_checkable
class TrainsMany(Protocol):
    """A trainer that trains many models at the same time, as shadow models of an attack.

    Nothing is released, and no ledger is charged: the models are for whoever holds the rows.
    """

    def train_many(
        self,
        task: Task,
        data: FederatedData,
        included: Tensor,
        draws: Sequence[Draws],
        progress: Callable[[int, int], None],
    ) -> Sequence[Predictor]:
        """Trains each model on some of the rows, as it would be trained on these alone.

        Args:
            task: What is learned.
            data: The rows of all models, and public figures, which are those of each model.
            included: Which of `data.pooled()` each model trains on, boolean, shape
                `(models, rows)`.
            draws: The streams of each model, as those of a fit of its own.
            progress: Called as `progress(done, total)`, in steps or rounds.

        Returns:
            What each model answers, in their order.

        Raises:
            UnsupportedError: With the reason, if these models have to be trained one by one.
            DataError: If the rows of a model cannot be trained on.
        """
        ...
