"""Gradient descent on secret shares: nobody who follows the protocol sees a row or a gradient."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, ProtocolError, UnsupportedError
from privtrain.core.observers import PARTICIPANT, PUBLIC, coalition
from privtrain.core.parameters import ModelPredictor, initial_model, load_vector, trainable
from privtrain.core.parties import CURATOR_NAME, party_names
from privtrain.core.runtime import MeshParty, Payload, Runtimes
from privtrain.core.seeding import Seeds
from privtrain.core.statement import InputPrivacy, Unit
from privtrain.core.task import ROWS, FederatedData, Rows, Task, cross_entropy
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.validate import check_count, check_fraction, check_positive
from privtrain.mpc.crypten import CrypTen
from privtrain.mpc.engine import Engine
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.layers import Descent, Layer, Linear, SharedLayer, step, translate
from privtrain.mpc.sharing import LARGEST, encode, share
from privtrain.release import Release
from privtrain.steps.plain import batches

INPUTS, LABELS = "inputs", "labels"


@dataclass(frozen=True, kw_only=True)
class MPCSGD:
    """Minibatch gradient descent on cross-entropy, computed on secret shares.

    Each data party splits its rows into shares, one for each computing party, and keeps the rows.
    Inputs, labels, gradients and weights stay shared until the final weights are opened, once.
    The batches, and up to fixed-point rounding the weights, are those of `SGD` on pooled rows with
    the same settings. A run is not resumed in the middle: shares of an interrupted run are lost.

    Args:
        epochs: Passes over the rows; at least 1.
        batch_size: Rows in a batch; None for all rows as one batch.
        learning_rate: Learning rate; positive.
        momentum: Momentum of the descent, in [0, 1).
        computing_parties: How many parties compute on shares: 2 or 3.
        engine: What computes on shares.
        release: The one opening; only `Exact` without a bound so far.
    """

    epochs: int = 3
    batch_size: int | None = 128
    learning_rate: float = 0.5
    momentum: float = 0.0
    computing_parties: int = 2
    engine: Engine = field(default_factory=CrypTen)
    release: Release = field(default_factory=Release)
    token: ClassVar[str] = "mpc_sgd"

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_positive(learning_rate=self.learning_rate)
        check_fraction(momentum=self.momentum)
        if self.batch_size is not None:
            check_count(batch_size=self.batch_size)
        if self.computing_parties not in (2, 3):
            raise ValueError(f"Expected computing_parties={self.computing_parties!r} to be 2 or 3.")
        if self.release != Release(aggregation=self.release.aggregation):
            raise UnsupportedError(
                f"The engine {self.engine.name} opens the exact weights only; noise and bounds on "
                f"shares need another engine. Got release={self.release}."
            )

    @property
    def computing_names(self) -> tuple[str, ...]:
        """Names of the computing parties, by rank."""
        return party_names("computing", self.computing_parties)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the statement must say of the engine."""
        return self.engine.caveats

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        """One exact opening of the final model: secret sharing promises nothing about outputs."""
        observers = (PUBLIC, PARTICIPANT, coalition(frozenset(self.computing_names)))
        return self.release.plans(unit=Unit.EXAMPLE, count=1, parties=1, observers=observers)

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        """Who reads what, party by party of the engine; and whoever starts all of them."""
        together = InputPrivacy(
            reader="all computing parties together",
            reads="everything: the shares add up to the rows",
            honest=f"one of {', '.join(self.computing_names)}, and always the dealer",
        )
        machine = InputPrivacy(
            reader="the process that starts the parties on one machine",
            reads="every row, since it makes the shares in the data parties' place",
            honest="that process",
        )
        simulated = () if runtimes.mesh is None else (machine,)
        return (*self.engine.input_privacy(self.computing_names), together, *simulated)

    def with_noise(self, scale: float) -> None:
        """None: there is no noise to scale."""
        return

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Trains on shares.

        Args:
            task: What is learned; its model is a logistic regression or a multi-layer perceptron.
            data: Who holds which rows or columns.
            run: The run, with a mesh.

        Returns:
            The trained model.

        Raises:
            DataError: If rows cannot be shared: none, not finite, or too large for fixed point.
            UnsupportedError: If the model or the loss cannot be trained on shares.
            PartyLostError: If a computing party dies or freezes.
            ProtocolError: If a computing party breaks the protocol.
        """
        model = initial_model(task, run.seeds["initialisation", 0, ""])
        program = self.program(task, model, data, run.seeds)
        self.engine.check(self.computing_parties)
        inputs = self._deal(data, program, run)
        run.spend()
        run.ledger.use()
        replies = run.spmd(program, inputs)
        weights = agreed(replies)
        load_vector(trainable(model), weights)
        run.transcript.publish(
            "model", weights, sender=self.computing_names[0], round=run.transcript.rounds
        )
        run.notes.append(
            "Training on shares opens nothing on the way: no loss, no learning curve, and no "
            "checkpoint to resume from."
        )
        predictor = ModelPredictor(model.to(run.device))
        run.watch(self.epochs, self.epochs, predictor)
        return predictor

    def program(
        self, task: Task, model: nn.Module, data: FederatedData, seeds: Seeds
    ) -> "SecureDescent":
        """What every computing party runs.

        Raises:
            UnsupportedError: If the model or the loss cannot be trained on shares.
        """
        if task.loss is not cross_entropy:
            raise UnsupportedError(
                f"The loss {task.loss} cannot be trained on shares; use the default, "
                "privtrain.core.task.cross_entropy."
            )
        return SecureDescent(
            engine=self.engine,
            layers=translate(model),
            by_rows=data.split is ROWS,
            seeds=seeds,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
        )

    def _deal(self, data: FederatedData, program: "SecureDescent", run: Run) -> dict[str, Payload]:
        """Each data party's shares, one payload a computing party."""
        dealt: dict[str, Payload] = {name: {} for name in self.computing_names}
        for number, party in enumerate(data.parties):
            labels = data.split is ROWS or party == data.label_holder
            for kind, integers in encoded(data.train[party], party, program.classes, labels=labels):
                shares = share(integers, self.computing_parties, Keystream())
                for name, one in zip(self.computing_names, shares, strict=True):
                    run.transcript.send(party, name, "input share", one, round=0)
                    dealt[name][f"{kind}/{number:06d}"] = one
        program.check_features(dealt[self.computing_names[0]])
        return dealt


def encoded(rows: Rows, party: str, classes: int, *, labels: bool) -> Iterator[tuple[str, Tensor]]:
    """A data party's rows as fixed-point integers, ready to be shared.

    Args:
        rows: Its rows.
        party: Its name, for errors.
        classes: How many classes there are.
        labels: Whether it brings labels.

    Yields:
        Inputs `(rows, features)`, then one-hot labels `(rows, classes)` where it brings them.

    Raises:
        DataError: If there are no rows, or they cannot be written in fixed point.
    """
    if len(rows) == 0:
        raise DataError(f"The party {party} has no rows; leave it out of the training data.")
    try:
        yield INPUTS, encode(rows.inputs.flatten(1), name=f"the inputs of {party}")
    except ValueError as error:
        raise DataError(str(error)) from error
    if not labels:
        return
    targets = rows.labels
    if targets.is_floating_point() or targets.dim() != 1:
        raise DataError(f"Training on shares needs class indices; {party} has {targets.dtype}.")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise DataError(
            f"Expected the labels of {party} in 0..{classes - 1}, as the model has {classes} "
            f"outputs; they reach from {int(targets.min())} to {int(targets.max())}."
        )
    yield LABELS, encode(nn.functional.one_hot(targets, classes).double())


def agreed(replies: dict[str, Payload]) -> Tensor:
    """The opened weights, of which all parties must have the same.

    Raises:
        ProtocolError: If they differ, or no training could have reached them.
    """
    names = list(replies)
    weights = replies[names[0]]["weights"]
    for name in names[1:]:
        if not torch.equal(replies[name]["weights"], weights):
            raise ProtocolError(f"{name} opened other weights than {names[0]}.")
    largest = float(weights.abs().max())
    if not largest < LARGEST:
        raise ProtocolError(
            f"An opened weight is {largest:g}, outside fixed point: training diverged, or a "
            "truncation wrapped around. Lower the learning rate, or run again."
        )
    return weights


@dataclass(frozen=True, kw_only=True)
class SecureDescent:
    """The program of a computing party: descent on shares, then one opening.

    Args:
        engine: What computes on shares.
        layers: The model, with public initial weights.
        by_rows: Whether data parties hold rows; else they hold columns.
        seeds: Public streams, for the order of the rows.
        epochs: Passes over the rows.
        batch_size: Rows in a batch; None for all.
        learning_rate: Learning rate.
        momentum: Momentum.
    """

    engine: Engine
    layers: tuple[Layer, ...]
    by_rows: bool
    seeds: Seeds
    epochs: int
    batch_size: int | None
    learning_rate: float
    momentum: float

    @property
    def linears(self) -> list[Linear]:
        """The linear layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, Linear)]

    @property
    def classes(self) -> int:
        """How many classes the model tells apart."""
        return len(self.linears[-1].weight)

    def check_features(self, shares: Payload) -> None:
        """Raises `DataError` unless all parties' shares together fit the model and each other."""
        parts = [value for key, value in sorted(shares.items()) if key.startswith(INPUTS)]
        across = 0 if self.by_rows else 1
        widths = {tuple(part.shape)[1 - across] for part in parts}
        if len(widths) != 1:
            what = "columns" if self.by_rows else "rows"
            raise DataError(f"All parties must have equally many {what}; they have {widths}.")
        features = sum(part.shape[1] for part in parts) if across else parts[0].shape[1]
        expected = self.linears[0].weight.shape[1]
        if features != expected:
            raise DataError(f"The rows have {features} features, the model takes {expected}.")
        if not any(key.startswith(LABELS) for key in shares):
            raise DataError("Nobody holds the labels; name the label_holder of the data.")

    def __call__(self, party: MeshParty) -> Payload:
        """Trains at one computing party.

        Args:
            party: The party; its inputs are shares of all data parties' rows.

        Returns:
            The opened weights, as one vector in the model's order.
        """
        with self.engine.open(party) as session:
            inputs = session.take(self._joined(party.inputs, INPUTS, 0 if self.by_rows else 1))
            labels = session.take(self._joined(party.inputs, LABELS, 0))
            layers: list[SharedLayer] = [layer.open(session) for layer in self.layers]
            order = list(self._order(self._rows(party.inputs)))
            for done, index in enumerate(order):
                descent = Descent(self.learning_rate / len(index), self.momentum)
                step(session, layers, inputs[index], labels[index], descent)
                party.report(done + 1, len(order))
            weights = [weight for layer in layers for weight in layer.weights()]
            opened = session.reveal(weights, kind="weight share")
            return {"weights": torch.cat([tensor.reshape(-1) for tensor in opened])}

    def _joined(self, shares: Payload, kind: str, dim: int) -> Tensor:
        parts = [shares[key] for key in sorted(shares) if key.startswith(kind)]
        return torch.cat(parts, dim=dim)

    def _rows(self, shares: Payload) -> int:
        return sum(len(value) for key, value in shares.items() if key.startswith(LABELS))

    def _order(self, rows: int) -> Iterator[Tensor]:
        """The batches of `SGD` on the pooled rows."""
        for epoch in range(self.epochs):
            generator = self.seeds["order", epoch, CURATOR_NAME].torch()
            for index in batches(rows, self.batch_size, 1, generator):
                yield torch.arange(rows) if index is None else index
