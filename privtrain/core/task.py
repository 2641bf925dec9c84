"""What is learned, and from which rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import READS_ROWS, DataError
from privtrain.core.fields import told_unless
from privtrain.core.holdings import Holdings
from privtrain.core.measures import ACCURACY, Compute, Metric, main_of, metric_of
from privtrain.core.metrics import accuracy
from privtrain.core.models import Model, described
from privtrain.core.recipe import Encoder
from privtrain.core.statement import ADD_REMOVE, Relation, Unit
from privtrain.core.validate import check_computable, check_finite, check_ordinary


class Split(StrEnum):
    """How a table is cut among parties."""

    ROWS = "rows"
    COLUMNS = "columns"


ROWS = Split.ROWS
"""Every party holds some rows, with all columns."""

COLUMNS = Split.COLUMNS
"""Every party holds some columns of all rows; one of them also holds the labels."""


@dataclass(frozen=True)
class Rows:
    """A data set in memory.

    Args:
        inputs: Shape `(rows, ...)`; floating point, or whole numbers that a model looks up, such
            as tokens, which stay whole numbers.
        targets: Shape `(rows,)` or `(rows, ...)`; class indices or values. None where the holder
            has no labels.
        users: Whose row each is, shape `(rows,)`, int64; None where rows belong to nobody.
    """

    inputs: Tensor
    targets: Tensor | None = None
    users: Tensor | None = None

    def __post_init__(self) -> None:
        columns = {"inputs": self.inputs, "targets": self.targets, "users": self.users}
        for name, column in columns.items():
            if column is not None and not isinstance(column, Tensor):
                raise DataError(
                    f"Expected {name} to be a tensor, not a {type(column).__name__}. Use "
                    f"torch.as_tensor({name}), or pt.data.from_arrays."
                )
            if column is not None and not column.is_nested and column.ndim == 0:
                raise DataError(f"Expected {name} of shape () to have a first dimension: the rows.")
            # Torch lets no gradient flow by what was made within `torch.inference_mode`.
            if column is not None and column.is_inference():
                with torch.inference_mode(False):
                    object.__setattr__(self, name, column.clone())
        if self.inputs.is_nested:
            check_ordinary(inputs=self.inputs)
        # At once and not in a batch: a shifted column of users would protect the wrong ones.
        if self.users is not None and (
            self.users.shape != (len(self.inputs),) or self.users.is_floating_point()
        ):
            raise DataError(
                f"Expected users of shape {tuple(self.users.shape)} and type {self.users.dtype} to "
                f"have the shape ({len(self.inputs)},) and to be whole numbers: one user a row."
            )
        if self.targets is not None and len(self.inputs) != len(self.targets):
            raise DataError(
                f"Expected inputs with {len(self.inputs)} rows and targets with "
                f"{len(self.targets)} rows to have equally many."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labels(self) -> Tensor:
        """The targets.

        Raises:
            DataError: If there are none.
        """
        if self.targets is None:
            raise DataError("These rows have no targets; their holder does not hold the labels.")
        return self.targets

    def take(self, index: Tensor) -> "Rows":
        """The rows at an index, shape `(chosen,)`."""
        targets = None if self.targets is None else self.targets[index]
        users = None if self.users is None else self.users[index]
        return Rows(self.inputs[index], targets, users)

    def to(self, device: str) -> "Rows":
        """The same rows on a device."""
        targets = None if self.targets is None else self.targets.to(device)
        users = None if self.users is None else self.users.to(device)
        return Rows(self.inputs.to(device), targets, users)


def concatenate(parts: list[Rows], names: Sequence[str] = ()) -> Rows:
    """Several data sets as one, in their order.

    Args:
        parts: At least one data set; all with targets or all without, and so with users.
        names: What messages call them.

    Returns:
        All rows.

    Raises:
        DataError: If the rows of one have another shape than those of the first.
    """
    for number, part in enumerate(parts):
        for what, given, first in (
            ("inputs", part.inputs, parts[0].inputs),
            ("targets", part.targets, parts[0].targets),
        ):
            if given is not None and first is not None and given.shape[1:] != first.shape[1:]:
                called = [repr(names[n]) if names else f"number {n}" for n in (number, 0)]
                raise DataError(
                    f"Expected {what} of {called[0]} with rows of shape {tuple(given.shape[1:])} "
                    f"to have rows of shape {tuple(first.shape[1:])}, as those of {called[1]} "
                    "have. Give all parties the same columns, or split=pt.COLUMNS."
                )
    return Rows(
        torch.cat([part.inputs for part in parts]),
        _concatenated([part.targets for part in parts]),
        _concatenated([part.users for part in parts]),
    )


def _concatenated(columns: list[Tensor | None]) -> Tensor | None:
    """One column of all parts, or None where a part lacks it."""
    present = [column for column in columns if column is not None]
    return torch.cat(present) if len(present) == len(columns) else None


def widest_column(inputs: Tensor) -> str:
    """The column whose values are largest in magnitude, and its range, in words for an error.

    Args:
        inputs: Shape `(rows, ...)`; at least one value. What is said of them is unprotected.
    """
    flat = inputs.detach().flatten(1) if inputs.dim() > 1 else inputs.detach().reshape(-1, 1)
    number = int(flat.abs().amax(0).nan_to_num(nan=torch.inf).argmax())
    column = flat[:, number]
    place = torch.unravel_index(torch.tensor(number), inputs.shape[1:] or (1,))
    name = ", ".join(str(int(index)) for index in place)
    return (
        f"Column {name if len(place) == 1 else f'({name})'} of the inputs (counted from 0) has the "
        f"widest values, from {float(column.min()):g} to {float(column.max()):g}"
    )


SCALE_COLUMNS = (
    "Scale columns by public constants, as scale= of pt.data.from_arrays and ranges= of "
    "pt.data.from_csv do"
)
"""The way out where inputs are too large."""


def check_party_rows(party: str, rows: Rows) -> None:
    """Refuses rows of a party that could not be trained on.

    Args:
        party: Its name.
        rows: Its rows.

    Raises:
        DataError: If there are none, or they cannot be computed with; see `check_values`.
    """
    if len(rows) == 0:
        raise DataError(
            f"The party {party!r} holds no rows. Leave it out, or use another partition. "
            f"{READS_ROWS}"
        )
    check_party_values(party, rows)


def check_party_values(party: str, rows: Rows) -> None:
    """Refuses values of a party that could not be trained on; there may be none.

    Args:
        party: Its name.
        rows: Its rows.

    Raises:
        DataError: If they cannot be computed with; see `check_values`.
    """
    check_values(f"train[{party}]", rows)


def check_values(name: str, rows: Rows) -> None:
    """Refuses rows of which torch cannot compute a loss; there may be none.

    Args:
        name: What messages call them.
        rows: The rows.

    Raises:
        DataError: If inputs or targets are NaN, infinite or complex, no dense tensor, of unsigned
            whole numbers of more than 8 bits, or require a gradient.
    """
    columns = {name: rows.inputs}
    if rows.targets is not None:
        columns[f"{name}.targets"] = rows.targets
    check_computable(**columns)
    try:
        check_finite(**columns)
    except ValueError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Rows that an audit may have planted: each is in the training rows or not, by its own coin.

    Args:
        rows: All canaries, planted or not.
        included: Whether each of them was planted, boolean, shape `(canaries,)`.

    Raises:
        DataError: If there are not as many coins as rows, or the rows have no targets.
    """

    rows: Rows
    included: Tensor

    def __post_init__(self) -> None:
        # Boolean and no 0 or 1: as an index, whole numbers would pick rows 0 and 1 again and again.
        if self.included.shape != (len(self.rows),) or self.included.dtype != torch.bool:
            raise DataError(
                f"Expected included of shape {tuple(self.included.shape)} and type "
                f"{self.included.dtype} to hold one boolean for each of {len(self.rows)} rows."
            )
        if self.rows.targets is None:
            raise DataError("Expected canaries with targets; these have none.")

    def __len__(self) -> int:
        return len(self.rows)


HELD_AS_GIVEN = "who holds which rows is given"
AS_SPLIT = "it speaks of the training rows as split, whose number is public"


@dataclass(frozen=True, kw_only=True)
class FederatedData:
    """Rows that belong to several parties, and rows for testing that belong to nobody.

    Args:
        train: For each party, in the order of names, its rows. May load them when asked.
        test: Rows for the figures that are reported.
        validation: Rows for choosing settings; apart from the test rows.
        public: Rows that anybody may read, such as the unlabelled ones a PATE student asks about.
        split: Whether parties hold rows or columns.
        label_holder: With `COLUMNS`, the party that holds the labels.
        public_rows: A public figure of how many training rows there are, for sampling rates.
            None where the number is private. Never measured by the library.
        name: What the data set is called.
        digest: SHA-256 of the rows. It can be tried, so it is written down under a key only.
        notes: What the reader should know, such as that categories were read from private rows.
        canaries: What `pt.data.with_canaries` planted. Read by `audit` alone, never by training.
        assumptions: What every guarantee about these rows assumes, such as that the classes are
            public.
        by_coin: Whether the training rows were chosen from a table, by a coin for each row.
        published: Whether the rows are a published data set, so that anybody can count them.
        encoder: How inputs were made of a table or of arrays, so that a model that is kept can be
            asked about new rows; None where nobody knows.
    """

    # A mapping that may load when asked: a million simulated clients cost no memory until sampled.
    train: Mapping[str, Rows]
    test: Rows
    validation: Rows | None = None
    public: Rows | None = None
    split: Split = ROWS
    label_holder: str | None = None
    # Stated and never counted: a rate from the true number tells what that number is, and
    # neighbours under add/remove would be sampled at different rates (decision 004).
    public_rows: int | None = None
    name: str = "data"
    digest: str = ""
    notes: tuple[str, ...] = ()
    canaries: Canaries | None = None
    assumptions: tuple[str, ...] = ()
    by_coin: bool = False
    published: bool = False
    encoder: Encoder | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.train, Mapping):
            raise DataError(
                f"Expected train to be a mapping from party to Rows, not a "
                f"{type(self.train).__name__}. Use {{'party-0': Rows(inputs, targets)}}, or "
                "pt.data.from_arrays."
            )
        for name in ("test", "validation", "public"):
            part = getattr(self, name)
            if not (isinstance(part, Rows) or (part is None and name != "test")):
                raise DataError(
                    f"Expected {name} to be Rows, not a {type(part).__name__}. Use "
                    "Rows(inputs, targets)."
                )

    def __repr__(self) -> str:
        return self._holdings.text()

    def _repr_html_(self) -> str:
        return self._holdings.html()

    def plot(self) -> Any:
        """Draws who holds what: a bar for each party, its classes stacked. It is unprotected.

        Returns:
            A figure of matplotlib, for `savefig` or the last line of a notebook's cell.

        Raises:
            UnsupportedError: If matplotlib is not installed; the message says by what it is.
        """
        return self._holdings.plot()

    @property
    def _holdings(self) -> Holdings:
        figure = "not stated" if self.public_rows is None else f"{self.public_rows:,}"
        planted = 0 if self.canaries is None else len(self.canaries)
        return Holdings.of(
            self.name,
            self.train,
            {"test": self.test, "validation": self.validation, "public": self.public},
            by_columns=self.split is COLUMNS,
            lines=(
                f"public figure of training rows: {figure}; the counts above are unprotected",
                *([f"{self.label_holder} holds the labels"] if self.label_holder else ()),
                *([f"{planted:,} canaries, about half of them planted"] if planted else ()),
                *self.notes,
            ),
        )

    @property
    def parties(self) -> tuple[str, ...]:
        """Names of the parties, in order."""
        return tuple(self.train)

    def assumed(self, unit: Unit, relation: Relation) -> tuple[str, ...]:
        """What a guarantee about these rows assumes of them.

        Args:
            unit: Whose contribution it hides.
            relation: Which data sets are neighbours.

        Returns:
            The assumptions, in words.
        """
        made = self.assumptions
        if unit is Unit.CLIENT:
            return made
        # A partition reads the number of rows and their labels: with another row, others move.
        if len(self.parties) > 1 and self.split is ROWS:
            made = (*made, HELD_AS_GIVEN)
        # A row of the table that is replaced may fall into another part than the old one: then the
        # number of training rows changes. One that joins or leaves the table does so here, too.
        if self.by_coin and relation is not ADD_REMOVE:
            made = (*made, AS_SPLIT)
        return made

    def pooled(self) -> Rows:
        """All training rows as one data set, as a trusted curator would hold them.

        Returns:
            The rows of all parties in their order; with `COLUMNS`, all columns side by side.
        """
        # In the order of names, so that a row's place does not depend on who runs the parties.
        parts = [self.train[party] for party in self.train]
        if self.split is ROWS:
            return concatenate(parts, self.parties)
        targets = None if self.label_holder is None else self.train[self.label_holder].targets
        return Rows(torch.cat([part.inputs for part in parts], dim=1), targets)

    def joined(self) -> Rows:
        """The rows of `pooled` for who writes into none: those of a single party are no copy."""
        return self.train[self.parties[0]] if len(self.parties) == 1 else self.pooled()


Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits `(batch, classes)` and targets `(batch,)` to a loss for each example, `(batch,)`."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example.

    Args:
        logits: Shape `(batch, classes)`.
        targets: Class indices, shape `(batch,)`.

    Returns:
        Losses, shape `(batch,)`.
    """
    # Not averaged: what is clipped is a row's own gradient, that of a row's own loss.
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example of a model with one logit, that of class 1: logistic loss.

    Args:
        logits: Shape `(batch, 1)` or `(batch,)`.
        targets: 0 or 1, whole or floating-point numbers, shape `(batch,)` or `(batch, 1)`.

    Returns:
        Losses, shape `(batch,)`.
    """
    logits = logits.flatten()
    return nn.functional.binary_cross_entropy_with_logits(
        logits, targets.flatten().to(logits.dtype), reduction="none"
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned: a model, a loss for each example, and metrics.

    Args:
        model: Makes the model, called without arguments, from nothing that an earlier call made;
            or a module, such as a pretrained one, which is copied for every use. It pickles with
            cloudpickle.
        loss: Loss of each example, `(batch,)`.
        metrics: Name to metric. A function of outputs and targets stands for
            `Metric(function, counts=False, best="high")`, `accuracy` for one that counts, and
            under a known name, such as "rmse", for one with `best="low"`.
        name: What the task is called.
        main: The metric that tables lead with, models are chosen by, and gaps are taken of;
            "accuracy" where there is one, else the first.

    Raises:
        ValueError: If `metrics` is no mapping from names to metrics, or `main` is none of them.
    """

    # A factory: each run, teacher and shadow model starts from weights of its own seed.
    model: Model
    loss: Loss = cross_entropy
    metrics: Mapping[str, Metric | Compute] = field(default_factory=lambda: {ACCURACY: accuracy})
    name: str = "task"
    # Told where it is not the one that nobody has to name: noise and folders keep their identity.
    main: str = field(default="", metadata=told_unless(lambda task: task.main_is_usual))

    def __post_init__(self) -> None:
        object.__setattr__(self, "main", main_of(self.metrics, self.main))

    @property
    def main_is_usual(self) -> bool:
        """Whether the main metric is the one that leads where none is named."""
        return self.main == main_of(self.metrics, "")

    @property
    def measures(self) -> dict[str, Metric]:
        """Name to metric, the main one first."""
        names = sorted(self.metrics, key=lambda name: name != self.main)
        return {name: metric_of(name, self.metrics[name]) for name in names}

    def __repr__(self) -> str:
        # A run is known by what its parts print, and a module prints its layers without weights.
        made = self.model if not isinstance(self.model, nn.Module) else described(self.model)
        metrics = f"loss={self.loss!r}, metrics={self.metrics!r}, name={self.name!r}"
        main = "" if self.main_is_usual else f", main={str(self.main)!r}"
        return f"Task(model={made!r}, {metrics}{main})"
