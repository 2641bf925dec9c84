"""Minibatch gradient descent on additive secret shares, with correlated randomness of a dealer."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from privtrain.core.abilities import Keeping
from privtrain.core.errors import ProtocolError, TamperedShareError, UnsupportedError
from privtrain.core.fields import LATER, told
from privtrain.core.observers import CURATOR, PARTICIPANT, PUBLIC, coalition
from privtrain.core.parameters import (
    REAL,
    ModelPredictor,
    check_types,
    initial_model,
    load_vector,
    trainable,
)
from privtrain.core.parties import party_names
from privtrain.core.runtime import NO_MESH, Draws, Payload, Program, Runtimes
from privtrain.core.statement import InputPrivacy, Unit
from privtrain.core.task import (
    ROWS,
    SCALE_COLUMNS,
    FederatedData,
    Rows,
    Split,
    Task,
    binary_cross_entropy,
    cross_entropy,
    widest_column,
)
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.validate import (
    check_count,
    check_follows,
    check_fraction,
    check_is,
    check_offers,
    check_positive,
)
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.checkpoints import (
    began_anew,
    forget,
    keepings_in,
    read,
    said_of,
    study_digest,
)
from privtrain.mpc.descent import PeerDescent, SecureDescent, agreed, encoded
from privtrain.mpc.engine import Engine, check_parties, phases, ranks_of, with_helpers
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.layers import (
    Probabilities,
    check_engine,
    pictures_at,
    sigmoid,
    softmax,
    takes_pictures,
    translate,
)
from privtrain.mpc.measuring import check_gradients
from privtrain.mpc.proofs import PROOF, prove
from privtrain.mpc.ranges import (
    LIKELY,
    check_logits,
    check_weights,
    largest_output,
    largest_product,
    wrong_truncations,
)
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.sigmoid import REACH
from privtrain.mpc.ring64.streamed import check_streamed
from privtrain.mpc.sharing import share
from privtrain.mpc.translation import check_translation
from privtrain.release.door import Release
from privtrain.report.progress import Report, silent
from privtrain.steps.descent import PooledDescent, WithMomentum
from privtrain.steps.pooling import CURATOR_READS


@dataclass(frozen=True, kw_only=True)
class PlaintextTwin:
    """The steps of `MPCSGD` in plaintext, on pooled rows: what the shares cost is the gap to it.

    Args:
        descent: The steps.
    """

    descent: PooledDescent
    token: ClassVar[str] = "plaintext"
    caveats: ClassVar[tuple[str, ...]] = ()

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        # The final model, exact; the epochs before it are not published.
        return Release().plans(unit=Unit.EXAMPLE, count=1, parties=1, observers=(PUBLIC, CURATOR))

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        return (CURATOR_READS,)

    def with_noise(self, scale: float) -> None:
        return None

    def check(self, task: Task, model: nn.Module) -> None:
        self.descent.check(task, model)

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        self.descent.check_rows(data, model)

    def briefly(self) -> "PlaintextTwin":
        return PlaintextTwin(descent=PooledDescent(epochs=1, batch_size=8, learning_rate=0.1))

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        return self.descent.train(task, data, run)

    def train_many(
        self,
        task: Task,
        data: FederatedData,
        included: Tensor,
        draws: Sequence[Draws],
        progress: Report = silent,
    ) -> list[ModelPredictor]:
        return self.descent.train_many(task, data.joined(), included, draws, progress)


@dataclass(frozen=True, kw_only=True)
class MPCSGD:
    """Minibatch gradient descent on cross-entropy, of classes or one logit, on secret shares.

    Each data party splits its rows into shares, one for each computing party, and keeps the rows.
    Inputs, labels, gradients and weights stay shared until the final weights are opened, once.
    The batches, and up to fixed-point rounding the weights, are those of `SGD` on pooled rows with
    the same settings. Where a run has a folder each computing party keeps its shares there after
    every epoch, and an interrupted run goes on from them.

    Args:
        epochs: Passes over the rows; at least 1.
        batch_size: Rows in a batch; None for all rows as one batch.
        learning_rate: Learning rate; positive.
        momentum: Momentum of the descent, in [0, 1).
        computing_parties: How many parties compute on shares: 2 to 5, with CrypTen 2 or 3, with
            SPDZ2k 2.
        engine: What computes on shares: `Ring64()`, `CrypTen()`, or `SPDZ2k()`, which ends a run in
            which a computing party deviates.
        release: The one opening; only `Exact` without a bound so far.
        bounds: What is stated of rows, weights and layers, so that a training in which an operation
            may overflow is refused; None to look at own rows alone.
        reveal_to: The computing parties to which the weights are opened; None for all. Empty where
            they stay shared, which `privtrain party` can do.
    """

    epochs: int = 3
    batch_size: int | None = 64
    learning_rate: float = 0.5
    momentum: float = 0.0
    computing_parties: int = 2
    engine: Engine = field(default_factory=Ring64)
    release: Release = field(default_factory=Release)
    bounds: Bounds | None = field(default=None, metadata=LATER)
    reveal_to: tuple[str, ...] | None = field(default=None, metadata=LATER)
    token: ClassVar[str] = "mpc_sgd"

    def __repr__(self) -> str:
        return told(self)

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_positive(learning_rate=self.learning_rate)
        check_fraction(momentum=self.momentum)
        if self.batch_size is not None:
            check_count(batch_size=self.batch_size)
        check_follows(Engine, "Ring64()", engine=self.engine)
        check_parties(self.engine, self.computing_parties)
        if self.bounds is not None:
            check_is(Bounds, "Bounds(rows=1.0, weights=8.0)", bounds=self.bounds)
        check_offers("arrive", "Release()", release=self.release)
        if self.release != Release(aggregation=self.release.aggregation):
            raise UnsupportedError(
                f"The engine {self.engine.name} opens the exact weights only; noise and bounds on "
                f"shares need another engine. Got release={self.release}."
            )
        if self.reveal_to is not None:
            names = self.reveal_to
            plain = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
            if not plain or len(set(names)) < len(names):
                raise ValueError(
                    f"Expected reveal_to={names!r} to name parties, each once, such as "
                    "('computing-0',)."
                )
            object.__setattr__(self, "reveal_to", tuple(names))
        if self.reveal_to == () and not self.engine.keeps_shares:
            raise UnsupportedError(
                f"reveal_to=() cannot be kept by {self.engine.name}, which keeps no shares: nobody "
                "would have the model. Use engine=pt.Ring64(), or name who reads it."
            )
        if self.reveal_to and not self.engine.opens_to_some:
            raise UnsupportedError(
                f"reveal_to={self.reveal_to} cannot be kept by {self.engine.name}, which opens to "
                "all computing parties. Use engine=pt.Ring64(), or leave it out."
            )

    @property
    def computing_names(self) -> tuple[str, ...]:
        """The names of the computing parties, by rank."""
        return party_names("computing", self.computing_parties)

    @property
    def caveats(self) -> tuple[str, ...]:
        return (*self.engine.caveats, *self.release.aggregation.caveats)

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        # One exact opening of the final model: sharing hides inputs and says nothing of outputs.
        everybody = frozenset({*self.computing_names, *self.engine.helper_names})
        observers = (PUBLIC, PARTICIPANT, coalition(everybody))
        return self.release.plans(unit=Unit.EXAMPLE, count=1, parties=1, observers=observers)

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        coalition_of_all = InputPrivacy(
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
        engine = self.engine.input_privacy(self.computing_names)
        return (*engine, *self._opened_to(), coalition_of_all, *simulated)

    def _opened_to(self) -> tuple[InputPrivacy, ...]:
        """Who reads the weights, where not all computing parties do."""
        if self.reveal_to is None:
            return ()
        if not self.reveal_to:
            return (
                InputPrivacy(reader="nobody", reads="the weights in the end: they stay shared"),
            )
        reader = ", ".join(self.reveal_to)
        reads = "the weights in the end, exact; the other computing parties are not sent them"
        if self.engine.authenticated and len(self.reveal_to) == 1:
            reads += "; what others are told of them is its word alone"
        return (InputPrivacy(reader=reader, reads=reads),)

    def with_noise(self, scale: float) -> None:
        return None

    def briefly(self) -> "MPCSGD":
        # As far as the first process: processes are started, and import, in every run alike.
        return MPCSGD(epochs=1, computing_parties=self.computing_parties, engine=self.engine)

    def plaintext_twin(self) -> PlaintextTwin:
        return PlaintextTwin(
            descent=PooledDescent(
                epochs=self.epochs,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                optimizer=WithMomentum(self.momentum) if self.momentum else "SGD",
            )
        )

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Trains a model of layers that shares know, see `privtrain.mpc.graph`.

        Raises:
            DataError: If rows cannot be shared: none, not finite, or too large for fixed point;
                or if they lead to values that are, under the initial or the opened weights; or if
                a party's checkpoint is damaged or another run's.
            UnsupportedError: If there is no mesh, or the model or the loss cannot be trained on
                shares.
            PartyLostError: If a computing party dies or freezes.
            TamperedShareError: If a share was altered.
            ProtocolError: If a computing party breaks the protocol.
        """
        if run.mesh is None:
            raise UnsupportedError(NO_MESH)
        model = initial_model(task, run.seeds["initialisation", 0, ""])
        program = self._checked(task, model, data)
        study = study_digest(f"{self}/{model}/{run.seeds}/{data.split}", model)
        home = run.folder if self.engine.keeps_shares else None
        keepings = keepings_in(home, self.computing_names, study)
        kept = run.kept()
        if kept is None:
            # The folder is this run's from now on, before shares lie in it.
            run.keep(0)
        elif "weights" in kept[1]:
            return self._finished(model, kept[1]["weights"], keepings, run)
        # Input phase: data parties share their rows and go; computing parties hold one share each.
        inputs = self._deal(data, program, run)
        rows = data.pooled()
        wrong = self._check_rows(model, rows, program)
        run.spend()
        run.ledger.use()
        # Computation and output phase: all steps on shares, then one opening of the weights.
        # Shares arrive while the computing parties agree on keys: in the same round.
        own = {name: replace(program, keeping=keepings.get(name)) for name in self.computing_names}
        try:
            replies = run.mesh.run(with_helpers(self.engine, own), inputs)
        except TamperedShareError:
            # Nobody knows since when: what was kept before may have been altered, too.
            for keeping in keepings.values():
                forget(keeping)
            raise
        readers = self.reveal_to or self.computing_names
        opened = {name: replies[name]["weights"] for name in readers}
        try:
            weights = agreed(opened, rows.inputs, authenticated=self.engine.authenticated)
        except ProtocolError as error:
            raise ProtocolError(f"{error}{began_anew(keepings)}") from error
        load_vector(trainable(model), weights)
        limit = largest_product(self.engine)
        after = wrong_truncations(model, rows, weights="opened", limit=limit)
        wrong = self.epochs * max(wrong, after)
        self._tell_of_ranges(model, rows, program, wrong, run)
        run.transcript.publish("model", weights, sender=readers[0], round=run.transcript.rounds)
        entries = run.transcript.entries
        run.outcome.note(*phases(self.engine, entries, self.computing_names))
        run.outcome.note(*said_of(replies[self.computing_names[0]].get("start")))
        if run.folder is not None and not self.engine.keeps_shares:
            run.outcome.note(
                f"{self.engine.name} keeps no shares, so that a run that is interrupted begins "
                "again. Use engine=pt.Ring64() for one that goes on."
            )
        run.keep(self.epochs, weights=weights)
        return self._finished(model, weights, keepings, run)

    def _checked(self, task: Task, model: nn.Module, data: FederatedData) -> SecureDescent:
        """The program, once nothing speaks against it: no row is shared yet, no process started."""
        if self.reveal_to is not None and not self.reveal_to:
            raise UnsupportedError(
                "Expected reveal_to=() to name who reads the weights: fit has no model to return "
                "where they stay shared. Use privtrain party for that."
            )
        shape = _row_shape(data)
        program = self.program(task, model, data.split, shape)
        check_streamed(self.engine)
        self.engine.check(self.computing_parties)
        check_weights(model, self.engine.weight_bits)
        check_translation(model, program.layers, shape, data.test.inputs.dtype)
        program.check_ranges(_count(data))
        return replace(program, readers=ranks_of(self.computing_names, self.reveal_to))

    def _finished(
        self, model: nn.Module, weights: Tensor, keepings: Mapping[str, Keeping], run: Run
    ) -> ModelPredictor:
        load_vector(trainable(model), weights)
        # Not before the opened weights are kept: nothing that was finished is lost.
        for keeping in keepings.values():
            forget(keeping)
        predictor = ModelPredictor(model.to(run.device))
        run.watch(self.epochs, self.epochs, predictor)
        return predictor

    def program(
        self, task: Task, model: nn.Module, split: Split, row_shape: tuple[int, ...] = ()
    ) -> SecureDescent:
        """The program of every computing party.

        Args:
            task: What is learned.
            model: Its model.
            split: Whether parties hold rows or columns.
            row_shape: The shape of a row; unknown to whoever holds none.

        Raises:
            UnsupportedError: If the model or the loss cannot be trained on shares.
        """
        probabilities = _probabilities(task)
        check_types(model, REAL)
        if not trainable(model):
            raise UnsupportedError(
                f"The {type(model).__name__} has no parameter that is trained. Set "
                "requires_grad=True for some."
            )
        layers = translate(model)
        check_engine(self.engine, layers, probabilities)
        if takes_pictures(layers) and split is not ROWS:
            raise UnsupportedError(
                f"The layer {pictures_at(layers)} takes pictures, which cannot be put together of "
                "columns of several parties. Use split=pt.ROWS, or a model of flat rows."
            )
        program = SecureDescent(
            engine=self.engine,
            layers=layers,
            by_rows=split is ROWS,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            row_shape=row_shape,
            probabilities=probabilities,
            bounds=self.bounds,
        )
        if self.bounds is not None:
            self.bounds.check_model(layers)
        if (program.classes == 1) is not (probabilities is sigmoid):
            raise UnsupportedError(
                f"The model has {program.classes} outputs, which its loss does not "
                "train on shares. Use binary_cross_entropy for one logit, cross_entropy for two "
                "classes or more."
            )
        return program

    def peer_programs(
        self,
        names: Sequence[str],
        *,
        task: Task,
        model: nn.Module,
        split: Split,
        rows: Rows | None,
        keeping: Keeping | None = None,
    ) -> dict[str, Program]:
        # Every party that holds rows computes, too.
        if self.computing_parties != len(names):
            raise ValueError(f"Expected computing_parties to be world_size={len(names)}.")
        self.engine.check(len(names))
        if keeping is not None and not self.engine.keeps_shares:
            raise UnsupportedError(
                f"Expected no checkpoints= in the study file: {self.engine.name} keeps no shares. "
                "Leave it out, or use engine=pt.Ring64()."
            )
        if keeping is not None:
            check_streamed(self.engine)
            # Who reads the weights may be decided later: the shares are the same.
            text = f"{keeping.study}/{replace(self, reveal_to=None)}"
            keeping = replace(keeping, study=study_digest(text, model))
            if keeping.name in names:
                read(keeping)
            else:
                # Who helps follows the steps of the first party, and holds nothing to keep.
                keeping = replace(keeping, name=names[0])
        elif self.reveal_to is not None and not self.reveal_to:
            raise ValueError(
                "Expected checkpoints with reveal_to=[]: parties that share a model have to keep "
                'their shares. Set checkpoints = "kept" in the study file.'
            )
        readers = ranks_of(names, self.reveal_to)
        descent = replace(self.program(task, model, split), keeping=keeping, readers=readers)
        check_weights(model, self.engine.weight_bits)
        if split is not ROWS:
            check_translation(model, descent.layers, (descent.features,))
        elif rows is not None:
            shape = tuple(rows.inputs.shape[1:])
            check_translation(model, descent.layers, shape, rows.inputs.dtype)
        # Rows that are not finite, or of another width, are named at all parties once they share.
        if rows is not None and split is ROWS and bool(rows.inputs.isfinite().all()):
            with suppress(RuntimeError):
                self._check_rows(model, rows, descent)
        return with_helpers(self.engine, dict.fromkeys(names, PeerDescent(descent=descent)))

    def finish_peer(self, model: nn.Module, result: Payload, rows: Rows, split: Split) -> bool:
        if "weights" not in result:
            return False
        # Each party opened the weights for itself, and has nobody else's to compare.
        load_vector(trainable(model), agreed({"this party": result["weights"]}, rows.inputs))
        if split is ROWS:
            wrong_truncations(model, rows, weights="opened", limit=largest_product(self.engine))
        return True

    def peer_statement(self, names: Sequence[str]) -> tuple[str, ...]:
        # Shares hide rows from the other parties, not from who reads the opened weights.
        opened = "the opened weights are exact: nothing is promised to whoever reads them"
        readers = (*self.engine.input_privacy(names), *self._opened_to())
        exact = () if self.reveal_to == () else (opened,)
        return (*exact, *map(str, readers), *self.caveats)

    def _check_rows(self, model: nn.Module, rows: Rows, program: SecureDescent) -> float:
        """Refuses own rows that leave a range under the initial weights.

        Returns:
            How many truncations of one pass go wrong on average.
        """
        limit = largest_product(self.engine)
        wrong = wrong_truncations(model, rows, weights="initial", limit=limit)
        if self.bounds is not None:
            self.bounds.check_layers(model, rows)
            check_gradients(self.bounds, program, rows)
        if program.classes == 1:
            check_logits(model, rows)
        return wrong

    def _tell_of_ranges(
        self, model: nn.Module, rows: Rows, program: SecureDescent, wrong: float, run: Run
    ) -> None:
        """Notes values that may have led training astray, as the opened weights show."""
        if wrong > LIKELY and not self.engine.exact_truncation:
            run.outcome.note(
                f"Values on shares are so large that about {wrong:.2g} truncations are expected "
                f"to have gone wrong. {widest_column(rows.inputs)}. {SCALE_COLUMNS}."
            )
        if broken := self.bounds.broken(model, rows) if self.bounds else "":
            run.outcome.note(
                f"A stated bound is false under the opened weights: {broken}. Steps may have left "
                "what was computed from it, and values may have wrapped around unnoticed."
            )
        highest = largest_output(model, rows) if program.classes == 1 else 0.0
        if not highest <= REACH:
            run.outcome.note(
                f"Logits reach {highest:g} under the opened weights; beyond {REACH:g} the logistic "
                "function on shares falls back, so that late steps may have gone astray. Lower the "
                "learning rate, or use cross_entropy of two classes, which takes any logit."
            )

    def _deal(self, data: FederatedData, program: SecureDescent, run: Run) -> dict[str, Payload]:
        """The shares of every data party's rows, one payload a computing party."""
        dealt: dict[str, Payload] = {name: {} for name in self.computing_names}
        for number, party in enumerate(data.parties):
            labels = data.split is ROWS or party == data.label_holder
            values = encoded(
                data.train[party],
                party,
                program.classes,
                labels=labels,
                bounds=self.bounds,
                bits=self.engine.row_bits,
            )
            for kind, integers in values:
                # Numbered in fixed width, so that sorted keys are in the order of the parties.
                key = f"{kind}/{number:06d}"
                # Fresh keys from the operating system: shares never follow from the user's seed.
                sent = {("input share", key): share(integers, self.computing_parties, Keystream())}
                if self.engine.authenticated:
                    proofs = prove(integers, Keystream())
                    sent["input proof", f"{PROOF} {key}"] = [*proofs]
                for (message, payload_key), parts in sent.items():
                    for name, part in zip(self.computing_names, parts, strict=True):
                        # They arrive while computing parties agree on keys: round 0 of the mesh.
                        run.transcript.send(party, name, message, part, round=0)
                        dealt[name][payload_key] = part
        program.check_features(dealt[self.computing_names[0]])
        return dealt


def _probabilities(task: Task) -> Probabilities:
    """What the task's loss makes of outputs.

    Raises:
        UnsupportedError: If the loss cannot be trained on shares.
    """
    # The gradient on shares is a probability minus the target, which is that of these alone.
    pairs = ((cross_entropy, softmax), (binary_cross_entropy, sigmoid))
    # By identity: a user's loss may have no hash, and an equality of its own.
    probabilities = next((each for loss, each in pairs if loss is task.loss), None)
    if probabilities is None:
        raise UnsupportedError(
            f"The loss {task.loss} cannot be trained on shares: MPCSGD descends cross-entropy "
            "of classes, privtrain.core.task.cross_entropy, or of one logit, "
            "privtrain.core.task.binary_cross_entropy. Use one of them, or train by SGD, DPSGD "
            "or FedAvg."
        )
    return probabilities


def _count(data: FederatedData) -> int:
    """How many rows there are, of which parties may hold columns."""
    lengths = [len(data.train[party]) for party in data.parties]
    return sum(lengths) if data.split is ROWS else lengths[0]


def _row_shape(data: FederatedData) -> tuple[int, ...]:
    """The shape of a row; of columns put side by side where parties hold columns."""
    shape = tuple(data.train[data.parties[0]].inputs.shape[1:])
    if data.split is ROWS:
        return shape
    return (sum(data.train[party].inputs[:1].numel() for party in data.parties),)
