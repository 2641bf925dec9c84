"""What is stated of a run: public costs, assumptions that hold, one headline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from privtrain.accounting.guarantees import guarantees
from privtrain.core.cost import Basis, Cost
from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.result import Predictor, TrainResult
from privtrain.core.seeding import SEEDED, SYSTEM, EntropyKind
from privtrain.core.statement import (
    SIMULATED,
    Budget,
    PrivacyStatement,
    Unit,
    to_json_text,
)
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import RELEASE, Run, Trainer
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY
from privtrain.runs.fitting import fit
from privtrain.runs.statements import _epsilon_curve
from privtrain.sampling.figures import SAMPLED_IN_SECRET
from privtrain.sampling.sampling import Everyone, FixedSize, Poisson, Sampling, TruncatedPoisson
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

CLIENTS = a_federation(*[6] * 20)
MODEL = 8 * sum(p.numel() for p in TASK.model().parameters())
IN_SILOS = DPSteps(Gaussian(1.0, 1.0), expected_batch=2.0)
NOISY = Release(Gaussian(1.0, 1.0))
SECRET = (
    Poisson(0.1, 2.0),
    Poisson(0.1),
    FixedSize(2),
    TruncatedPoisson(0.1, 3),
    # Not sampled, but a removed client's name could not stand there.
    Poisson(1.0, 20.0),
)


def federated(sampling: Sampling, **more: object) -> FedAvg:
    settings = {"rounds": 3, "local": PlainSteps(epochs=1), "release": NOISY, **more}
    return FedAvg(sampling=sampling, **settings)  # type: ignore[arg-type]


def run(
    trainer: Trainer,
    data: FederatedData = CLIENTS,
    entropy: EntropyKind = SYSTEM,
    seed: int = 0,
) -> TrainResult:
    return fit(trainer, TASK, data, runtimes=STAR, delta=1e-3, entropy=entropy, seed=seed)


def figures(cost: Cost) -> tuple[object, ...]:
    return cost.bytes_sent, cost.rounds, dict(cost.bytes_sent_by_party), cost.basis


@pytest.mark.parametrize("sampling", SECRET, ids=str)
def test_costs_beside_a_secret_sample_are_the_same_whoever_was_drawn(sampling: Sampling) -> None:
    results = [run(federated(sampling)) for _ in range(5)]
    (first, *others) = [figures(result.cost) for result in results]
    assert all(other == first for other in others)
    expected = round(3 * sampling.expected(20) * MODEL)
    assert first == (
        2 * expected,
        3,
        {"aggregator": expected, "all clients": expected},
        "public figures",
    )
    for result in results:
        text = to_json_text(result.cost)
        assert not any(f'"{name}"' in text for name in CLIENTS.parties)
    # What was measured, which 0.1 published, does follow the sample: the check above can fail.
    measured = {str(result.transcript.bytes_sent_by_party) for result in results}
    assert len(measured) > 1 or sampling == Poisson(1.0, 20.0)
    assert any("p" in name for name in results[0].transcript.bytes_sent_by_party)


def test_costs_of_a_run_that_a_budget_halts_follow_the_budget() -> None:
    trainer = federated(Poisson(0.5, 10.0), rounds=50)
    results = [
        fit(trainer, TASK, CLIENTS, runtimes=STAR, budget=Budget(4.0, 1e-3), entropy=SYSTEM)
        for _ in range(2)
    ]
    assert results[0].halted is not None
    assert figures(results[0].cost) == figures(results[1].cost)
    assert results[0].cost.rounds == results[0].statement.guarantees[0].releases < 50


def test_who_takes_part_in_public_is_counted() -> None:
    exact = run(federated(Everyone(), release=Release()), entropy=SEEDED)
    assert exact.cost.bytes_sent == exact.transcript.bytes_sent
    assert exact.cost.bytes_sent_by_party == exact.transcript.bytes_sent_by_party
    silos = run(
        federated(
            Everyone(), release=Release(), local=DPSteps(Gaussian(1.0, 1.0), expected_batch=2.0)
        )
    )
    assert silos.cost.bytes_sent == silos.transcript.bytes_sent == 2 * 3 * 20 * MODEL
    everyone = run(federated(Everyone()))
    assert everyone.cost.bytes_sent == everyone.transcript.bytes_sent
    # Its noise shows who takes part, so nothing counts on a secret sample.
    own = run(federated(Everyone(), release=Release(Gaussian(1.0, 1.0), AT_PARTY)))
    assert own.cost.bytes_sent == own.transcript.bytes_sent


@pytest.mark.parametrize("stated", [None, 33])
def test_pooled_bytes_tell_no_number_that_is_hidden(stated: int | None) -> None:
    trainer = DPSGD(epochs=2, expected_batch=8, sampling_rate=0.2)
    costs = [
        run(trainer, a_federation(*counts, public_rows=stated)).cost
        for counts in ((12, 9, 15), (12, 9, 14))
    ]
    assert figures(costs[0]) == figures(costs[1])
    of_a_row = 5 * 8 + 8
    assert costs[0].bytes_sent == (None if stated is None else stated * of_a_row)
    assert costs[0].rounds == 1


def test_pooled_bytes_are_counted_where_the_number_is_public() -> None:
    # Neighbours under zero-out have equally many rows.
    counted = run(DPSGD(epochs=2, expected_batch=8), a_federation(12, 9, 15))
    assert counted.cost.bytes_sent == counted.transcript.bytes_sent == 36 * 48
    nothing = run(
        DPSGD(epochs=1, expected_batch=8, sampling_rate=0.2, release=Release(Gaussian(1.0, 0.0))),
        a_federation(12, 9),
    )
    assert nothing.cost.bytes_sent == nothing.transcript.bytes_sent == 21 * 48
    alone = run(DPSGD(epochs=1, expected_batch=8, sampling_rate=0.2), a_federation(30))
    assert figures(alone.cost)[:2] == (0, 0)
    assert run(SGD(epochs=1), a_federation(12, 9)).cost.basis is Basis.MEASURED


def test_votes_cost_what_settings_say() -> None:
    release = Release(GNMax(sigma=5.0), finish=ARGMAX)
    trainer = PATE(teachers=6, queries=4, release=release, steps=PlainSteps(epochs=1))
    public = some_rows(7, 10)
    costs = [
        run(trainer, replace(a_federation(*counts), public=public)).cost
        for counts in ((12, 9, 15), (12, 9, 14))
    ]
    assert figures(costs[0]) == figures(costs[1])
    assert costs[0].bytes_sent is not None and costs[0].bytes_sent > 0


@dataclass(frozen=True)
class Silent:
    """A trainer of somebody else's, which leaves no public cost."""

    inner: FedAvg

    token = "silent"
    plan = property(lambda self: self.inner.plan)
    input_privacy = property(lambda self: self.inner.input_privacy)
    caveats = property(lambda self: self.inner.caveats)
    with_noise = property(lambda self: self.inner.with_noise)

    def train(self, task: Task, data: FederatedData, run: Run) -> Predictor:
        predictor = self.inner.train(task, data, run)
        run.outcome.public_cost = None
        return predictor


def test_what_no_public_figure_gives_is_withheld() -> None:
    hidden = run(Silent(federated(Poisson(0.1, 2.0)))).cost  # type: ignore[arg-type]
    assert figures(hidden) == (None, None, {}, "withheld")
    shown = run(Silent(federated(Poisson(0.1, 2.0), release=Release()))).cost  # type: ignore[arg-type]
    assert shown.basis is Basis.MEASURED and shown.bytes_sent is not None


SAMPLED: Sequence[Trainer] = (
    federated(Poisson(0.1, 2.0)),
    federated(FixedSize(2)),
    federated(Everyone(), release=Release(), local=IN_SILOS),
    DPSGD(epochs=1, expected_batch=8, sampling_rate=0.2),
    DPSGD(epochs=1, expected_batch=8),
)


@pytest.mark.parametrize("trainer", SAMPLED, ids=str)
def test_a_seeded_sample_is_not_called_secret(trainer: Trainer) -> None:
    for guarantee in run(trainer, entropy=SEEDED).statement.guarantees:
        assert not any("secret" in text for text in guarantee.assumptions)
        assert guarantee.epsilon == float("inf") or SIMULATED in guarantee.assumptions
    for guarantee in run(trainer, entropy=SYSTEM).statement.guarantees:
        assert SIMULATED not in guarantee.assumptions
        if guarantee.observer == PUBLIC:
            assert guarantee.assumptions.count(SAMPLED_IN_SECRET) == 1


def test_who_knows_the_sample_is_not_promised_that_it_is_secret() -> None:
    made = run(federated(Everyone())).statement.guarantees
    assert not any(SAMPLED_IN_SECRET in guarantee.assumptions for guarantee in made)
    made = run(federated(FixedSize(2))).statement.guarantees
    (inside,) = [guarantee for guarantee in made if guarantee.observer == AGGREGATOR]
    assert SAMPLED_IN_SECRET not in inside.assumptions


@pytest.mark.slow
def test_epsilon_over_the_rounds_ends_at_the_worst_unit() -> None:
    for noise in (0.5, 20.0):
        result = run(federated(Everyone(), local=IN_SILOS, release=Release(Gaussian(1.0, noise))))
        units = {
            g.unit: g.epsilon for g in result.statement.guarantees if g.observer.name == "public"
        }
        assert len(units) == 2
        done, epsilon = result.history.epsilon[-1]
        assert (done, epsilon) == (3, result.statement.epsilon()) == (3, max(units.values()))


@pytest.mark.parametrize("noises", [(2.0, 1.5), (0.7, 20.0)])
def test_epsilon_over_the_rounds_is_that_of_all_plans(noises: tuple[float, float]) -> None:
    """The first plan is about examples, the second about clients: neither is left out."""
    inner, outer = (
        Release(Gaussian(1.0, noise)).plans(unit=unit, count=8, parties=5, observers=(PUBLIC,))
        for noise, unit in zip(noises, (Unit.EXAMPLE, Unit.CLIENT), strict=True)
    )
    plans = (*inner, *outer)
    curve = _epsilon_curve(plans, {RELEASE: 8}, 1e-5)
    assert [count for count, _ in curve] == list(range(1, 9))
    for count, epsilon in curve:
        made = PrivacyStatement(guarantees=guarantees(plans, spent={RELEASE: count}, delta=1e-5))
        assert epsilon == made.epsilon()
        assert epsilon == max(g.epsilon for g in made.guarantees)
    assert _epsilon_curve(plans[::-1], {RELEASE: 8}, 1e-5) == curve
    alone = [_epsilon_curve(part, {RELEASE: 8}, 1e-5) for part in (inner, outer)]
    assert sorted(alone, key=lambda points: points[-1][1])[-1] == curve
    assert alone[0] != alone[1]


def test_epsilon_over_the_rounds_counts_every_kind_in_its_share() -> None:
    (check,), (answer,) = (
        Release(Gaussian(1.0, noise)).plans(
            unit=Unit.EXAMPLE, count=count, parties=5, observers=(PUBLIC,), charge=kind
        )
        for kind, count, noise in (("check", 80, 20.0), ("answer", 8, 4.0))
    )
    plan, spent = check.beside(answer), {"check": 80, "answer": 4, "never made": 0}
    curve = _epsilon_curve((plan,), spent, 1e-5)
    assert [total for total, _ in curve] == [11, 21, 32, 42, 52, 63, 74, 84]
    assert [value for _, value in curve] == sorted(value for _, value in curve)
    assert curve[-1][1] == epsilon_of(plan, spent, 1e-5)
    assert curve[0][1] == epsilon_of(plan, {"check": 10, "answer": 1}, 1e-5)
