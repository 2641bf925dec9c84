"""Gradient descent on secret shares: the programs of computing parties, and their inputs.

This is the online phase of SPDZ (Damgard, Pastro, Smart and Zakarias 2012) without its MACs: inputs
are shared, sums are local, each product uses up a Beaver triple, and one opening ends it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from privtrain.core.abilities import Keeping
from privtrain.core.errors import DataError, ProtocolError, TamperedShareError
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.core.seeding import Seeds
from privtrain.core.task import SCALE_COLUMNS, Rows, widest_column
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.checkpoints import Keeper
from privtrain.mpc.dense import Descent, Linear
from privtrain.mpc.engine import Engine, Session, Shared
from privtrain.mpc.intervals import check_worst_case
from privtrain.mpc.layers import (
    Node,
    Probabilities,
    SharedNode,
    softmax,
    step,
    takes_pictures,
    trained,
)
from privtrain.mpc.proofs import PROOF
from privtrain.mpc.sharing import LARGEST, LARGEST_ENCODED, PRECISION_BITS, encode
from privtrain.sampling.passes import batches

MOST_ROWS = 1 << 31
"""What a party announces stays below it."""

INPUTS, LABELS = "inputs", "labels"
"""The kinds of values that data parties share."""


def encoded(
    rows: Rows,
    party: str,
    classes: int,
    *,
    labels: bool,
    bounds: Bounds | None = None,
    bits: int = PRECISION_BITS,
) -> Iterator[tuple[str, Tensor]]:
    """Encodes a data party's rows as fixed-point integers, ready to be shared.

    Args:
        rows: Its rows.
        party: Its name, for errors.
        classes: How many outputs the model has: one for each class, or one logit of class 1.
        labels: Whether it holds labels.
        bounds: What is stated of rows, if anything.
        bits: Bits after the point.

    Yields:
        Inputs `(rows, features)`, then where it holds labels these one-hot, `(rows, classes)`, or
        for one logit 0 and 1, `(rows, 1)`.

    Raises:
        DataError: If there are no rows, or they cannot be written in fixed point, or are whole
            numbers such as tokens, or exceed what is stated of them.
    """
    if len(rows) == 0:
        raise DataError(f"The party {party} has no rows; leave it out of the training data.")
    if not rows.inputs.is_floating_point():
        raise DataError(
            f"Expected the inputs of {party} of type {rows.inputs.dtype} to be floating point: "
            "whole numbers that are looked up, such as tokens, cannot be trained on shares. Use "
            "inputs.float() where they are quantities."
        )
    try:
        inputs = encode(rows.inputs.flatten(1), name=f"the inputs of {party}", bits=bits)
    except ValueError as error:
        raise DataError(f"{error} {widest_column(rows.inputs)}. {SCALE_COLUMNS}.") from error
    if bounds is not None:
        bounds.check_rows(rows.inputs, party)
    # Before the first value leaves: whoever is refused has shared nothing.
    targets = encode(_targets(rows.labels, party, classes), bits=bits) if labels else None
    yield INPUTS, inputs
    if targets is not None:
        yield LABELS, targets


def _targets(targets: Tensor, party: str, classes: int) -> Tensor:
    """Labels as the model's outputs should be, float64, `(rows, classes)`."""
    if classes == 1:
        column = targets.reshape(len(targets), -1).double()
        if column.shape[1] != 1 or not bool(((column == 0) | (column == 1)).all()):
            raise DataError(
                f"Expected the labels of {party} of shape {tuple(targets.shape)} to be 0 or 1, one "
                f"a row, as the model has one logit; they reach from {float(column.min()):g} to "
                f"{float(column.max()):g}."
            )
        return column
    if targets.is_floating_point() or targets.dim() != 1:
        raise DataError(f"Training on shares needs class indices; {party} has {targets.dtype}.")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise DataError(
            f"Expected the labels of {party} in 0..{classes - 1}, as the model has {classes} "
            f"outputs; they reach from {int(targets.min())} to {int(targets.max())}."
        )
    # One-hot: softmax minus target needs no look-up at a secret index.
    return nn.functional.one_hot(targets, classes).double()


def agreed(opened: dict[str, Tensor], inputs: Tensor, *, authenticated: bool = False) -> Tensor:
    """The opened weights, after a check that all parties opened the same.

    Args:
        opened: What each party opened.
        inputs: Own rows, shape `(rows, ...)`; where training diverged, the error names a column.
        authenticated: Whether the engine gives honest parties the same, so that one of them lies
            where they say something else.

    Raises:
        TamperedShareError: If an authenticated engine's parties say that they opened others.
        ProtocolError: If they differ, or are too large for fixed point.
    """
    names = list(opened)
    weights = opened[names[0]]
    for name in names[1:]:
        if not torch.equal(opened[name], weights):
            error = TamperedShareError if authenticated else ProtocolError
            raise error(f"{name} opened other weights than {names[0]}.")
    # Where shares have no MACs nobody proves what was opened: then this catches accidents only.
    largest = float(weights.abs().max()) if weights.numel() else 0.0
    if not largest < LARGEST:
        raise ProtocolError(
            f"An opened weight is {largest:g}, outside fixed point: training diverged, or a "
            f"truncation wrapped around. {widest_column(inputs)}. {SCALE_COLUMNS}, lower the "
            "learning rate, or run again."
        )
    return weights


@dataclass(frozen=True, kw_only=True)
class SecureDescent:
    """The program of a computing party: descent on shares, then one opening.

    Args:
        engine: What computes on shares.
        layers: The model, with public initial weights.
        by_rows: Whether data parties hold rows; else they hold columns.
        epochs: Passes over the rows.
        batch_size: Rows in a batch; None for all.
        learning_rate: Learning rate.
        momentum: Momentum.
        row_shape: Channels, height and width of a row, where the model takes pictures.
        probabilities: What the loss makes of outputs.
        bounds: What is stated of rows, weights and layers, if anything.
        keeping: Where this party keeps its shares after every epoch; None for nowhere. All parties
            keep them, or none.
        readers: Ranks of the parties to which the weights are opened; None for all.
    """

    engine: Engine
    layers: tuple[Node, ...]
    by_rows: bool
    epochs: int
    batch_size: int | None
    learning_rate: float
    momentum: float
    row_shape: tuple[int, ...] = ()
    probabilities: Probabilities = softmax
    bounds: Bounds | None = None
    keeping: Keeping | None = None
    readers: tuple[int, ...] | None = None

    @property
    def pictures(self) -> bool:
        """Whether the model takes pictures; else rows are flat."""
        return takes_pictures(self.layers)

    @property
    def features(self) -> int:
        """How many values of a row the model takes."""
        return prod(self.row_shape) if self.pictures else self.linears[0].weight.shape[1]

    @property
    def largest_row(self) -> float:
        """What no value of a row exceeds, as its holder makes sure."""
        return LARGEST_ENCODED if self.bounds is None else self.bounds.rows

    @property
    def linears(self) -> list[Linear]:
        """The linear layers, in the model's order."""
        return [node.layer for node in self.layers if isinstance(node.layer, Linear)]

    @property
    def classes(self) -> int:
        """The number of the model's outputs."""
        return len(self.linears[-1].weight)

    def check_ranges(self, rows: int) -> None:
        """Refuses a training in which an operation may overflow within the stated bounds.

        Args:
            rows: How many rows there are; public.

        Raises:
            DataError: With the first such operation and the bits that it lacks.
        """
        if self.bounds is None or rows == 0:
            return
        size = min(self.batch_size or rows, rows)
        shape = self.row_shape if self.pictures else (self.features,)
        # The last batch of an epoch has the rows that are left, and a rate of its own.
        for batch in filter(None, (size, rows % size)):
            descent = Descent(self.learning_rate / batch, self.momentum)
            check_worst_case(
                self.bounds, self.engine, self.layers, shape, batch, descent, self.probabilities
            )

    def check_features(self, shares: Payload) -> None:
        """Raises `DataError` unless the shapes of all parties' shares fit the model."""
        inputs = [value for key, value in sorted(shares.items()) if key.startswith(INPUTS)]
        joined_along = 0 if self.by_rows else 1
        lengths = {tuple(share.shape)[1 - joined_along] for share in inputs}
        if len(lengths) != 1:
            what = "columns" if self.by_rows else "rows"
            raise DataError(f"All parties must have equally many {what}; they have {lengths}.")
        features = inputs[0].shape[1]
        if not self.by_rows:
            features = sum(share.shape[1] for share in inputs)
        if features != self.features:
            raise DataError(f"The rows have {features} features, the model takes {self.features}.")
        if not any(key.startswith(LABELS) for key in shares):
            raise DataError("Nobody holds the labels; name the label_holder of the data.")

    def __call__(self, shares: Payload, party: Party) -> Payload:
        """Trains at one computing party, whose inputs are shares of all data parties' rows.

        Returns:
            The opened weights, as one vector in the model's order.
        """
        with self.engine.open(party) as session:
            dim = 0 if self.by_rows else 1
            inputs = self._taken(session, shares, INPUTS, dim, self.largest_row)
            labels = self._taken(session, shares, LABELS, 0, 1)
            return self.descend(session, inputs, labels, self._rows(shares), party)

    def descend(
        self, session: Session, inputs: Shared, labels: Shared, rows: int, party: Party
    ) -> Payload:
        """Takes all steps on shares, and opens the weights.

        Args:
            session: The open engine.
            inputs: Shape `(rows, features)`.
            labels: One-hot, `(rows, classes)`.
            rows: How many rows there are; public.
            party: This party; its seeds give the order of the rows, its link tells of progress.

        Returns:
            The opened weights where they are read, and where shares are kept from which step on
            they were trained.
        """
        layers = [layer.open(session) for layer in self.layers]
        order = list(self.order(rows, party.seeds))
        keeper = self._keeper(session, layers, rows, len(order), party)
        start = 0 if keeper is None else keeper.take_up()
        for done, index in enumerate(order[start:], start):
            # The mean over the batch and the learning rate are one public factor: one truncation.
            descent = Descent(self.learning_rate / len(index), self.momentum)
            rows_of_batch = inputs[index]
            if self.pictures:
                rows_of_batch = rows_of_batch.reshape(len(index), *self.row_shape)
            targets = labels[index]
            step(session, layers, rows_of_batch, targets, descent, self.probabilities)
            link_of(party).report(done + 1, len(order))
            if keeper is not None and (done + 1) % (len(order) // self.epochs) == 0:
                keeper.save(done + 1)
        result = {} if keeper is None else {"start": torch.tensor([start, len(order)])}
        if self.readers == ():
            return result
        # The one opening of the protocol. Small messages cost their latency, so it is one message.
        opened = session.reveal(trained(layers), kind="weight share", readers=self.readers)
        if opened:
            result["weights"] = torch.cat([tensor.reshape(-1) for tensor in opened])
        return result

    def _keeper(
        self, session: Session, layers: Sequence[SharedNode], rows: int, last: int, party: Party
    ) -> Keeper | None:
        if self.keeping is None:
            return None
        return Keeper(
            keeping=self.keeping,
            session=session,
            name=party.name,
            rank=link_of(party).rank,
            learned=[each for node in layers for each in node.layer.learned()],
            momentum=self.momentum != 0,
            rows=rows,
            last=last,
        )

    def _taken(
        self, session: Session, shares: Payload, kind: str, dim: int, largest: float
    ) -> Shared:
        """The shares of one kind of all data parties, side by side."""
        keys = sorted(key for key in shares if key.startswith(kind))
        proven = self.engine.authenticated
        proofs = [shares[f"{PROOF} {key}"] if proven else None for key in keys]
        taken = session.take_all([shares[key] for key in keys], proofs=proofs, largest=largest)
        return session.join(taken, dim=dim)

    def _rows(self, shares: Payload) -> int:
        return sum(len(value) for key, value in shares.items() if key.startswith(LABELS))

    def order(self, rows: int, seeds: Seeds) -> Iterator[Tensor]:
        """The row numbers of each step: those of `SGD` on pooled rows, from the same stream."""
        for epoch in range(self.epochs):
            generator = seeds["order", epoch, CURATOR_NAME].torch()
            for index in batches(rows, self.batch_size, 1, generator):
                yield torch.arange(rows) if index is None else index


@dataclass(frozen=True, kw_only=True)
class PeerDescent:
    """The program of a party that holds rows and computes: several hosts, no coordinator.

    A party's own rows stay there, and only shares of them exist elsewhere.

    Args:
        descent: The training that follows once rows are shared.
    """

    descent: SecureDescent

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        """Shares the own rows with the others, and trains.

        Raises:
            DataError: If the own rows cannot be shared.
            ProtocolError: If another party has rows that do not fit.
        """
        program, link = self.descent, link_of(party)
        own: dict[str, Tensor] = {}
        own_sizes = torch.zeros(6 if program.pictures else 3, dtype=torch.int64)
        # A dealer that follows these steps has no rows.
        if party.name in party.train:
            rows = party.train[party.name]
            labels = rows.targets is not None
            own = dict(
                encoded(
                    rows,
                    party.name,
                    program.classes,
                    labels=labels,
                    bounds=program.bounds,
                    bits=program.engine.row_bits,
                )
            )
            # Shapes are public here: they are announced before anything is shared, and checked.
            shape = rows.inputs.shape[1:] if program.pictures else ()
            own_sizes = torch.tensor([*own[INPUTS].shape, int(LABELS in own), *shape])
        with program.engine.open(party) as session:
            sizes = [size.tolist() for size in session.announce(own_sizes)]
            # Whoever helps the engine comes after those that hold rows.
            names = link.names[: len(sizes)]
            if program.pictures:
                program = replace(program, row_shape=self._picture(sizes, names))
            self._check([size[:3] for size in sizes], names)
            total = sum(size[0] for size in sizes) if program.by_rows else sizes[0][0]
            program.check_ranges(total)
            shared_inputs = [
                session.own(
                    own.get(INPUTS) if owner == link.rank else None,
                    (count, width),
                    owner,
                    largest=program.largest_row,
                )
                for owner, (count, width, *_) in enumerate(sizes)
            ]
            one_hot = [
                session.own(
                    own.get(LABELS) if owner == link.rank else None,
                    (count, program.classes),
                    owner,
                    largest=1,
                )
                for owner, (count, _, labelled, *_) in enumerate(sizes)
                if labelled
            ]
            return program.descend(
                session,
                session.join(shared_inputs, dim=0 if program.by_rows else 1),
                session.join(one_hot, dim=0),
                total,
                party,
            )

    def _picture(self, sizes: list[list[int]], names: tuple[str, ...]) -> tuple[int, ...]:
        """Channels, height and width, which all parties must have announced alike."""
        first = tuple(sizes[0][3:])
        for name, size in zip(names, sizes, strict=True):
            if tuple(size[3:]) != first:
                raise ProtocolError(
                    f"{name} has pictures of shape {tuple(size[3:])}, {names[0]} of {first}."
                )
        return first

    def _check(self, sizes: list[list[int]], names: tuple[str, ...]) -> None:
        """Refuses parties whose (rows, features, labelled) do not fit together."""
        # Every party makes the same checks on the same announcements, so all of them stop at once.
        # Pictures were compared already.
        expected = sizes[0][1] if self.descent.pictures else self.descent.features
        holders = [name for name, size in zip(names, sizes, strict=True) if size[2]]
        for name, (rows, width, _) in zip(names, sizes, strict=True):
            # Others make room for them.
            if not 0 < rows < MOST_ROWS:
                raise ProtocolError(f"{name} says that it has {rows} rows, not 1 to {MOST_ROWS}.")
            if self.descent.by_rows and width != expected:
                raise ProtocolError(f"{name} has {width} features, the model takes {expected}.")
            if not self.descent.by_rows and rows != sizes[0][0]:
                raise ProtocolError(f"{name} has {rows} rows, {names[0]} has {sizes[0][0]}.")
        features = sum(size[1] for size in sizes)
        if not self.descent.by_rows and features != expected:
            raise ProtocolError(f"All columns together are {features}, the model takes {expected}.")
        wanted = list(names) if self.descent.by_rows else holders[:1]
        if holders != wanted or not holders:
            raise ProtocolError(
                f"Labels are held by {holders}; expected "
                + ("every party." if self.descent.by_rows else "exactly one party.")
            )
