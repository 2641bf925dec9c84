"""How the teachers of one party are trained, and what they say of queries: the protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from privtrain.core.runtime import Draws
from privtrain.core.task import Rows, Task


@dataclass(frozen=True)
class Teacher:
    """One teacher before its training.

    Args:
        rows: What it alone learns from; perhaps none.
        draws: Its streams, under its own name.
    """

    rows: Rows
    draws: Draws


class TeacherSteps(Protocol):
    """How teachers are trained.

    What a teacher says depends on its own rows and on public values alone, to the bit: with one row
    more or less, one vote moves.
    """

    @property
    def trains_model(self) -> bool:
        """Whether a teacher is the task's model, which then has to read what teachers read."""
        ...

    def check(self, task: Task, model: nn.Module) -> None:
        """Refuses a task or a setting, before anything is trained or spent."""
        ...

    def fewest_rows(self, model: nn.Module) -> int:
        """How many rows a teacher needs to be trained at all.

        Args:
            model: A model of the task, in training mode.
        """
        ...

    @property
    def at_once(self) -> int:
        """How many teachers are trained in one go; public, since shapes decide about last bits."""
        ...

    def prepared(self, task: Task, queries: Tensor, classes: int) -> "TeacherSteps":
        """The steps as they are taken, decided by settings and public rows alone.

        Args:
            task: What is learned.
            queries: Public rows as teachers read them, shape `(queries, ...)`.
            classes: How many classes there are.
        """
        ...

    def teach(
        self, task: Task, group: Sequence[Teacher], queries: Tensor, classes: int
    ) -> list[Tensor]:
        """Trains teachers, and asks each about all queries.

        Args:
            task: What is learned; its model reads the rows as they are given here.
            group: As many teachers as `at_once` says, or the rest.
            queries: Shape `(queries, ...)`, on the device of the draws.
            classes: How many classes there are, by the model's outputs and never by rows.

        Returns:
            Scores of each teacher on the CPU, shape `(queries, classes)`. One that has too few rows
            to be trained says what depends on nothing private.
        """
        ...
