"""Federated averaging (McMahan et al. 2017, Algorithm 1), plain or differentially private."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from privtrain.core.abilities import Checking, CheckingRows, Trying
from privtrain.core.cost import PublicCost
from privtrain.core.errors import ProtocolError, UnsoundReleaseError, UnsupportedError
from privtrain.core.parameters import (
    REAL,
    ModelPredictor,
    check_types,
    initial_model,
    trainable,
)
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Members
from privtrain.core.runtime import NO_STAR, Draws, Reply, Runtimes
from privtrain.core.seeding import Streams, global_generator, kept_generators
from privtrain.core.statement import Adversary, InputPrivacy, Unit
from privtrain.core.task import ROWS, FederatedData, Task
from privtrain.core.trainer import PrivacyPlan, Run
from privtrain.core.validate import check_count, check_follows, check_offers
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Exact
from privtrain.release.aggregation import Gathering
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import IDENTITY
from privtrain.release.placement import Drawer
from privtrain.release.reduce import NONE
from privtrain.release.shared import with_plain_sum
from privtrain.report.progress import Report, silent
from privtrain.sampling.sampling import Everyone, Poisson, Sampling
from privtrain.sampling.schedule import check_separation
from privtrain.steps.local import LocalSteps
from privtrain.steps.many_rounds import train_federations
from privtrain.steps.optimizers import check_optimizer
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.steps.server import (
    Server,
    ServerOptimizer,
    check_server_optimizer,
    make_server_optimizer,
    record_diagnostics,
)
from privtrain.steps.weights import NOT_PUBLIC, Uniform, Weights, expected_weight, scale_of
from privtrain.trainers.clients import ClientStep, divides_by_public, values


def _check_rows(data: FederatedData) -> None:
    if data.split is not ROWS:
        raise UnsupportedError(
            "FedAvg needs parties that hold rows; these hold columns. Use MPCSGD."
        )


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Rounds in which clients improve the model and a server averages what they release.

    Args:
        rounds: Number of rounds; at least 1.
        sampling: Which clients take part in a round.
        local: How a client improves the model: `PlainSteps` or `DPSteps`.
        release: How a client's contribution leaves, and how contributions become one.
        weights: The weight of a client in the average: `Uniform` or `ByExamples`.
        server_optimizer: Steps on the averaged change as a pseudo-gradient (Reddi et al. 2021);
            None takes the average itself.

    Raises:
        UnsoundReleaseError: If noise is asked for and weights have no bound, or parties draw it
            and a round may be empty.

    Source: McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629); under a bound McMahan et al. 2018,
    Algorithm 1 (arXiv:1710.06963), with a fixed denominator.
    """

    rounds: int = 30
    sampling: Sampling = Everyone()
    local: LocalSteps = PlainSteps(epochs=2, learning_rate=0.2)
    release: Release = Release()
    weights: Weights = Uniform()
    server_optimizer: ServerOptimizer | None = None
    token: ClassVar[str] = "fedavg"

    def __post_init__(self) -> None:
        check_count(rounds=self.rounds)
        check_follows(Sampling, "Everyone()", sampling=self.sampling)
        check_follows(LocalSteps, "PlainSteps()", local=self.local)
        check_offers("arrive", "Release(Gaussian(1.0, 1.0))", release=self.release)
        check_follows(Weights, "Uniform()", weights=self.weights)
        check_server_optimizer(self.server_optimizer)
        mechanism = self.release.mechanism
        check_separation(mechanism, mechanism.about.separation, self.sampling)
        if self.release.reduce is not NONE:
            raise UnsupportedError(
                "FedAvg needs the sum of updates itself, and reduce=MAX leaves one number of it. "
                "Use reduce=NONE."
            )
        if self.release.finish != IDENTITY:
            raise UnsupportedError(
                f"FedAvg needs the sum of updates itself; finish={self.release.finish} leaves "
                "something else. Use finish=IDENTITY."
            )
        if self.release.noisy and not self.weights.bounded:
            raise UnsoundReleaseError(
                "weights=ByExamples() without a bound: one client could weigh more than any noise "
                "covers. Use ByExamples(bound=...) or Uniform()."
            )
        # Only steps that draw noise can be scaled; they promise privacy to each row.
        if not self.weights.uniform and self.local.with_scale(1.0) is not None:
            why = "with noised local steps: a weight tells how many rows a client holds"
            raise UnsoundReleaseError(f"weights={self.weights} {why}. Use Uniform().")
        if (
            self.release.noisy
            and self.release.noise_at.drawer is Drawer.PARTY
            and isinstance(self.sampling, Poisson)
            and self.sampling.rate < 1
        ):
            raise UnsoundReleaseError(
                f"noise_at={self.release.noise_at} with sampling={self.sampling}: who was not "
                "drawn adds no noise, so the amount of noise tells who took part, and a round that "
                "nobody was drawn for is not noised at all. Use FixedSize or AT_AGGREGATOR."
            )

    def with_local(self, local: LocalSteps) -> "FedAvg":
        """The same rounds with other local steps."""
        return replace(self, local=local)

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        """One release a round; with `DPSteps`, what each round's local steps reveal."""
        _check_rows(data)
        # Asked without runtimes, a plan says what would be seen wherever parties run.
        if runtimes != Runtimes():
            self._check_release(data, runtimes)
        local = self.local.plans(data, self.rounds)
        # What noised steps made is private already; sending it on exactly reveals no more.
        if local and not self.release.noisy:
            return local
        return local + self.release.plans(
            unit=Unit.CLIENT,
            count=self.rounds,
            parties=len(data.parties),
            sampling=self.sampling,
        )

    def _check_release(self, data: FederatedData, runtimes: Runtimes) -> None:
        smallest = self.sampling.at_least(len(data.parties))
        self.release.check(runtimes, parties=smallest)

    @property
    def caveats(self) -> tuple[str, ...]:
        engine = self.release.aggregation.caveats
        trusted = self.release.trusted("client", "the model")
        if not self._sends_weights or (self.weights.bounded and self.release.readable):
            return (*trusted, *engine)
        why = "nobody can read it" if self.weights.bounded else "weights have no bound"
        return (*trusted, f"a client may claim any weight: {why}", *engine)

    @property
    def others(self) -> tuple[str, ...]:
        """Parties without rows that the aggregation addresses."""
        return self.release.aggregation.others

    @property
    def _sends_weights(self) -> bool:
        return not (self.weights.uniform or self._public_divisor)

    @property
    def _public_divisor(self) -> bool:
        return divides_by_public(self.weights, self.release)

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        clients = InputPrivacy(
            reader="client",
            reads="the model of every round it takes part in",
            adversary=Adversary.UNTRUSTED,
        )
        at_party = self.release.noise_at.drawer is Drawer.PARTY and self.release.noisy
        what = "noised update" if at_party or self.local.plans(data, 1) else "update"
        # In one message: who reads single updates reads weights, and who reads sums their sum.
        what = f"{what} and weight" if self._sends_weights else what
        return (*self.release.aggregation.readers("client", what), clients)

    def with_noise(self, scale: float) -> "FedAvg | None":
        """The same trainer with another noise scale, in the release or else in the local steps."""
        release = self.release.with_scale(scale)
        if release is not None:
            return replace(self, release=release)
        local = self.local.with_scale(scale)
        return None if local is None else replace(self, local=local)

    def briefly(self) -> "FedAvg":
        local: LocalSteps = PlainSteps()
        if self.local.with_scale(1.0) is not None:
            local = DPSteps(Gaussian(1.0, 1.0))
        known = isinstance(self.release.mechanism, Gaussian)
        return FedAvg(
            rounds=1, local=local, release=Release(self.release.mechanism if known else Exact())
        )

    @kept_generators()
    def check(self, task: Task, model: nn.Module) -> None:
        # Called for their refusals.
        check_types(model, REAL)
        if isinstance(self.local, Checking):
            self.local.check(task, model)
        if self.server_optimizer is not None:
            parameters = trainable(model)
            make = partial(make_server_optimizer, self.server_optimizer, parameters)
            check_optimizer(make, parameters, f"server_optimizer={self.server_optimizer!r}")

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        # Called for its refusal.
        if isinstance(self.local, CheckingRows):
            self.local.check_rows(data, model)

    @kept_generators()
    def try_beforehand(self, task: Task, data: FederatedData, model: nn.Module) -> None:
        if isinstance(self.local, Trying):
            self.local.try_beforehand(task, data, model)

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Runs the rounds: "Server executes" in Algorithm 1 of McMahan et al. 2017.

        Returns:
            The model after the last round that was paid for.

        Raises:
            UnsupportedError: If parties hold columns, or there is no star.
            ProtocolError: If an update without a bound is not finite.
        """
        _check_rows(data)
        if run.star is None:
            raise UnsupportedError(NO_STAR)
        # "initialize w_0": from a public seed, so that every client can make the same model.
        model = initial_model(task, run.seeds["initialisation", 0, ""])
        server = Server(
            values(model, buffers=not self.release.bounding),
            trainable(model),
            self.server_optimizer,
        )
        step = ClientStep(
            task, self.local.settled(data), self.release, self.weights, self._sends_change
        )
        divisor = self._divisor(data, run)
        run.outcome.members = Members()
        if isinstance(self.local, DPSteps):
            run.outcome.note(*self.local.notes_on(data))
        done, saved = run.kept() or (0, {})
        if saved:
            server.restore(saved)
        for round in range(done, self.rounds):
            if not run.spend():
                break
            current = server.vector()
            # "S_t <- (random set of m clients)"
            chosen = self._cohort(data.parties, round, run)
            # "for each client k in S_t in parallel": w^k_{t+1} <- ClientUpdate(k, w_t)
            gathering = self.release.begin(chosen, run, round=round)
            payloads = gathering.asked({"model": current})
            replies = run.map(step, payloads, round=round, at_least=gathering.at_least)
            # "w_{t+1} <- sum over k of n_k / n * w^k_{t+1}"
            average = self._average(replies, gathering, current, divisor, run)
            # An optimizer may draw, too; from no other generator than one thread's at a time.
            with global_generator(run.seeds["server step", round, AGGREGATOR_NAME]):
                server.step(average, change=self._sends_change)
            record_diagnostics(replies, round, run)
            run.watch(round + 1, self.rounds, ModelPredictor(model))
            run.keep(round + 1, **server.state())
            run.progress(round + 1, self.rounds)
            done = round + 1
        run.outcome.public_cost = self._public_cost(server.vector(), done, len(data.parties), run)
        run.transcript.publish("model", server.vector(), sender=AGGREGATOR_NAME, round=self.rounds)
        return ModelPredictor(model)

    def with_plain_sum(self) -> "FedAvg | None":
        release = with_plain_sum(self.release)
        return None if release is None else replace(self, release=release)

    def train_many(
        self,
        task: Task,
        data: FederatedData,
        included: Tensor,
        draws: Sequence[Draws],
        progress: Report = silent,
    ) -> list[ModelPredictor]:
        usual = FedAvg(rounds=self.rounds, sampling=self.sampling, local=self.local)
        if usual != self or type(self.local) is not PlainSteps:
            raise UnsupportedError("many federations at once need plain steps and a plain average.")
        _check_rows(data)
        settings = (self.rounds, self.sampling, self.local)
        made = train_federations(task, data, included, draws, *settings, progress)
        return [ModelPredictor(model) for model in made]

    def _public_cost(self, model: Tensor, rounds: int, parties: int, run: Run) -> PublicCost | None:
        """What the rounds cost with as many clients as are expected; no client is named."""
        # Without noise on the sum the cohort follows from the public seed, and so do the messages.
        if not self.release.noisy:
            return PublicCost.of(run.transcript)
        # Masks, shares and parties without rows have sizes and exchanges of their own. Which of
        # these a run made may depend on who was lost, so settings alone decide.
        if not self.release.readable or self.others:
            return None
        one_way = rounds * self.sampling.expected(parties) * model.nelement() * model.element_size()
        # The model goes down to each client of a round, and an update of the same size comes up.
        sent = {AGGREGATOR_NAME: round(one_way), "all clients": round(one_way)}
        return PublicCost(bytes_sent=sum(sent.values()), rounds=rounds, bytes_sent_by_party=sent)

    @property
    def _sends_change(self) -> bool:
        """Whether clients send the change of the model, which can be clipped, or the model."""
        # Adding a rounded difference back does not give the client's model to the bit, and one
        # client with whole batches must equal `SGD` to the bit (docs/decisions/007).
        return self.release.bounding or self.server_optimizer is not None

    def _cohort(self, parties: tuple[str, ...], round: int, run: Run) -> list[str]:
        # Amplification holds for observers who do not know the sample, so under noise it is drawn
        # from entropy; without noise the public seed makes it repeatable.
        noisy = self.release.noisy
        streams: Streams = run.entropy if noisy else run.seeds
        generator = streams["cohort", round, AGGREGATOR_NAME].numpy()
        return [parties[index] for index in self.sampling.choose(len(parties), generator)]

    def _divisor(self, data: FederatedData, run: Run) -> float | None:
        """The public number that sums are divided by; None for the weights that come.

        Algorithm 1 of McMahan et al. 2018, estimator f_f: a fixed denominator q W, since who came,
        and with which weight, may be private. The same without noise, or a table would show the
        price of a divisor as that of noise.
        """
        if not self._public_divisor:
            return None
        mean = expected_weight(self.weights, self.sampling, data)
        if mean is None:
            run.outcome.note(NOT_PUBLIC.format(weights=self.weights))
        return self.sampling.expected(len(data.parties)) * (1.0 if mean is None else mean)

    def _average(
        self,
        replies: dict[str, Reply],
        gathering: Gathering,
        current: Tensor,
        divisor: float | None,
        run: Run,
    ) -> Tensor | None:
        """The average of the updates, in float64; None without a bound where nobody took part.

        Args:
            replies: Client to reply.
            gathering: Who was asked, in which round.
            current: The model that was sent, shape `(values,)`.
            divisor: What the sum is divided by; None for the weights that came.
            run: The run.
        """
        round = gathering.round
        if not replies and not self.release.noisy:
            # Nothing arrives, but the round was paid for like every other one.
            run.ledger.use()
            return torch.zeros_like(current, dtype=torch.float64) if divisor else None
        scale = scale_of(self.weights)
        largest = scale if self.weights.bounded else math.inf
        expected = Expected(
            shape=tuple(current.shape),
            largest_weight=largest if self._sends_weights else None,
            weight_of_one=scale,
        )
        # A round nobody was drawn for is noised like any other: its emptiness is not public.
        released = self.release.arrive(
            replies, run, round=round, expected=expected, gathering=gathering
        )
        # Fewer than replied, where some were lost while the aggregation asked once more.
        came = released.contributors
        if run.outcome.members is not None:
            there = {name: reply for name, reply in replies.items() if name in came}
            self._mark(there, run.outcome.members)
        total = released.value.double()
        if divisor:
            return total / divisor
        if not came:
            return None
        if released.weight is None:
            return total / len(came)
        weights = released.weight / scale
        # Single weights may have been unreadable; their sum is not.
        if not 0 < weights <= (len(came) * (1 + 1e-6) if self.weights.bounded else math.inf):
            raise ProtocolError(
                f"Round {round}: the weights of {len(came)} clients add up to {weights:g}, "
                "which honest ones cannot."
            )
        return total / weights

    def _mark(self, replies: dict[str, Reply], members: Members) -> None:
        """Notes whose rows were used, for attacks: those of who was drawn, and drew them."""
        for name, reply in replies.items():
            members.add(name, reply.seen.used)
            # Steps that draw noise draw rows, too, as a rule.
            if reply.seen.used is None and self.local.with_scale(1.0) is not None:
                members.doubt = f"which rows {self.local} drew is known to the parties alone"
