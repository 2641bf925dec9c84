"""Rule 17: the aggregator trusts nobody. Trainings in which one party deviates."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import (
    DataError,
    ProtocolError,
)
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Payload, Runtimes, StarRuntime
from privtrain.core.task import FederatedData, Rows
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Exact
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.arrival import BOUNDED_AGAIN
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY, SPLIT
from privtrain.release.shared import SharedSum
from privtrain.runs.fitting import fit
from privtrain.runtimes.flower.grid import FlowerGrid, FlowerRay
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.processes.mesh import Processes
from privtrain.sampling.sampling import FixedSize
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.steps.weights import ByExamples
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.contracts.deviating import Deviating, Deviation
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector

C = 0.3
LOCAL = PlainSteps(epochs=2, batch_size=5, learning_rate=0.2)
DATA = a_federation(12, 9, 15, 11)
BOTH = Runtimes(star=InProcess(), mesh=Processes())


@dataclass(frozen=True)
class Shifts:
    """Sends its honest update plus a large one."""

    size: float = 42.7

    def __call__(self, sent: Payload, reply: Payload) -> Payload:
        update = reply["update"].clone()
        update[:10] += self.size / math.sqrt(10)
        return {**reply, "update": update}


@dataclass(frozen=True)
class Replaces:
    """Pulls the model to where every weight is 7, as often as it is believed."""

    parties: int

    def __call__(self, sent: Payload, reply: Payload) -> Payload:
        update = reply["update"].clone()
        update[: len(sent["model"])] = self.parties * (7.0 - sent["model"])
        return {**reply, "update": update}


@dataclass(frozen=True)
class Sends:
    """Sends something else entirely, under the kind of the message."""

    value: Tensor
    kind: str = "update"

    def __call__(self, sent: Payload, reply: Payload) -> Payload:
        return {**reply, self.kind: self.value}


def run(
    trainer: object,
    how: Deviation | None = None,
    star: StarRuntime | None = None,
    **options: object,
) -> TrainResult:
    inner = star or InProcess()
    runtimes = Runtimes(star=inner if how is None else Deviating("p2", how, inner))
    given = {"runtimes": runtimes, "delta": 1e-5, "keep_payloads": True, **options}
    return fit(trainer, TASK, DATA, **given)  # type: ignore[arg-type] # one dict for all options


def moved(trainer: FedAvg, how: Deviation) -> float:
    honest, other = (vector(module(run(trainer, h))) for h in (None, how))
    return float((honest - other).norm())


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("weights", [None, ByExamples(bound=12)])
def test_a_client_that_does_not_clip_moves_the_model_by_two_bounds_over_the_clients(
    noise: float, weights: ByExamples | None
) -> None:
    trainer = FedAvg(rounds=1, local=LOCAL, release=Release(Gaussian(C, noise)))
    if weights is not None:
        trainer = replace(trainer, weights=weights)
    assert moved(trainer, Shifts()) <= 2 * C / 4 * (1 + 1e-6)
    assert moved(trainer, Shifts(1e-3)) > 0


@pytest.mark.parametrize("inner", [InProcess(), FlowerGrid()], ids=lambda star: star.name)
def test_a_fit_with_a_deviating_client_promises_and_records_what_an_honest_one_does(
    inner: StarRuntime,
) -> None:
    """Whoever deviates is bounded again: plan, ledger, statement and transcript hold."""
    trainer = FedAvg(rounds=2, local=LOCAL, release=Release(Gaussian(C, 1.0)))
    honest, result = run(trainer, None, inner), run(trainer, Shifts(), inner)
    plans = trainer.plan(DATA, Runtimes(star=inner))
    assert [plan.observer.name for plan in plans] == ["public", "participant", "aggregator"]
    assert {g.releases for g in result.statement.guarantees} == {2}
    assert result.statement == honest.statement
    assert 0 < result.statement.epsilon("public") < math.inf
    assert (result.notes, result.halted) == (honest.notes, None)
    assert result.history.unprotected[BOUNDED_AGAIN] == [(1, 1.0), (2, 1.0)]
    # The transcript holds what was sent, not what was made of it.
    headers = [
        [(e.sender, e.receiver, e.kind, e.shape, e.bytes, e.round) for e in one.transcript.entries]
        for one in (honest, result)
    ]
    assert headers[0] == headers[1]
    norms = {
        e.sender: float(e.payload.norm())
        for e in result.transcript.entries
        if e.kind == "update" and e.payload is not None
    }
    assert norms["p2"] > 40
    assert all(norm <= C * (1 + 1e-6) for name, norm in norms.items() if name != "p2")
    assert float((vector(module(honest)) - vector(module(result))).norm()) <= 2 * 2 * C / 4


def test_the_model_is_not_replaced_in_five_rounds() -> None:
    bounded = FedAvg(rounds=5, local=LOCAL, release=Release(Gaussian(C, 0.0)))
    result = run(bounded, Replaces(4))
    assert float((vector(module(result)) - 7.0).norm()) > 20
    assert result.history.unprotected[BOUNDED_AGAIN] == [(n, 1.0) for n in range(1, 6)]
    assert not any("p2" in text for text in (*result.notes, str(result.statement)))
    # Without a bound it is, in the first round already, and the statement says so.
    exact = run(FedAvg(rounds=5, local=LOCAL), Replaces(8))
    assert float(vector(module(exact)).mean()) > 5
    assert "messages have no bound: one client can replace the model" in exact.statement.caveats


@pytest.mark.parametrize("star", [InProcess(), FlowerGrid()], ids=lambda star: star.name)
@pytest.mark.parametrize("noise_at", [AT_PARTY, SPLIT(honest_survivors=4)], ids=str)
def test_with_own_noise_a_client_is_refused_by_name(star: StarRuntime, noise_at: object) -> None:
    release = Release(Gaussian(C, 0.5), noise_at)  # type: ignore[arg-type] # a placement
    trainer = FedAvg(rounds=2, local=LOCAL, release=release)
    with pytest.raises(ProtocolError, match="Round 0: p2 sent 'update' of norm"):
        run(trainer, Shifts(), star)
    result = run(trainer, None, star)
    for guarantee in result.statement.guarantees:
        (text,) = [a for a in guarantee.assumptions if "times its bound" in a]
        values = len(vector(module(result)))
        std = C * 0.5 * math.sqrt(trainer.release.noise_at.fraction)
        radius = C + std * (math.sqrt(values) + math.sqrt(2 * math.log(2.0**40)))
        assert f"up to {radius / C:.3g} times its bound (0.3)" in text


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1),
        torch.zeros(()),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(57, dtype=torch.complex64),
    ],
)
@pytest.mark.parametrize("noise", [None, 0.0, 0.5])
def test_malformed_updates_are_refused_by_name(value: Tensor, noise: float | None) -> None:
    release = Release() if noise is None else Release(Gaussian(C, noise))
    with pytest.raises(ProtocolError, match="p2"):
        run(FedAvg(rounds=1, local=LOCAL, release=release), Sends(value))


def test_a_broken_number_is_named_without_a_bound_and_counts_as_zero_under_one() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ProtocolError, match="Round 0: the update of p2 is not finite"):
            run(FedAvg(rounds=1, local=LOCAL), Shifts(bad))
        clipped = run(FedAvg(rounds=1, local=LOCAL, release=Release(Gaussian(C, 0.0))), Shifts(bad))
        assert bool(torch.isfinite(vector(module(clipped))).all())
        assert clipped.history.unprotected[BOUNDED_AGAIN] == [(1, 1.0)]


# ----------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Claims:
    """Claims another weight for its honest update."""

    weight: float

    def __call__(self, sent: Payload, reply: Payload) -> Payload:
        update = reply["update"].clone()
        update[-1] = self.weight
        return {**reply, "update": update}


@pytest.mark.parametrize("weight", [-1.0, 1.5, math.nan, math.inf])
def test_a_forged_weight_is_refused_by_name(weight: float) -> None:
    trainer = FedAvg(rounds=1, local=LOCAL, weights=ByExamples(bound=12))
    with pytest.raises(ProtocolError, match="weight that p2 sent"):
        run(trainer, Claims(weight))
    run(trainer, Claims(0.5))
    assert not any("weight" in text for text in trainer.caveats)


def test_a_weight_without_a_bound_may_be_any_which_is_said() -> None:
    trainer = FedAvg(rounds=1, local=LOCAL, weights=ByExamples())
    with pytest.raises(ProtocolError, match="weight that p2 sent"):
        run(trainer, Claims(-1.0))
    result = run(trainer, Claims(1e6))
    assert "a client may claim any weight: weights have no bound" in result.statement.caveats
    shared = replace(trainer, weights=ByExamples(bound=9), release=Release(aggregation=SharedSum()))
    assert "a client may claim any weight: nobody can read it" in shared.caveats


def test_weights_that_add_up_to_nothing_are_refused() -> None:
    data = replace(DATA, train={"p2": DATA.train["p2"]})
    star = Deviating("p2", Claims(0.0))
    with pytest.raises(ProtocolError, match="weights of 1 clients add up to 0"):
        trainer = FedAvg(rounds=1, local=LOCAL, weights=ByExamples())
        fit(trainer, TASK, data, runtimes=Runtimes(star=star))


def test_an_extra_weight_beside_the_message_changes_nothing() -> None:
    trainer = FedAvg(rounds=1, local=LOCAL, weights=ByExamples())

    def adds(sent: Payload, reply: Payload) -> Payload:
        return {**reply, "weight": torch.tensor(1e9)}

    assert moved(trainer, adds) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("weights", [ByExamples(), ByExamples(bound=12)])
def test_no_weight_travels_beside_shares(weights: ByExamples) -> None:
    trainer = FedAvg(rounds=1, local=LOCAL, weights=weights)
    plain = run(trainer)
    shared = replace(trainer, release=Release(aggregation=SharedSum()))
    result = run(shared, runtimes=BOTH)
    kinds = {entry.kind for entry in result.transcript.entries}
    assert kinds == {"model", "public key", "shapes", "sum share", "update share"}
    shares = {(e.sender, e.receiver) for e in result.transcript.entries if e.kind == "update share"}
    assert shares == {(p, f"computing-{rank}") for p in DATA.parties for rank in (0, 1)}
    assert result.transcript.kinds_received_by(AGGREGATOR_NAME) == ()
    difference = vector(module(plain)) - vector(module(result))
    assert float(difference.abs().max()) < 1e-6
    reads = [one.reads for one in result.statement.input_privacy]
    assert any("update and weight" in text for text in reads)


def test_under_a_plain_sum_the_weight_is_part_of_the_one_message() -> None:
    result = run(FedAvg(rounds=1, local=LOCAL, weights=ByExamples()))
    sent = [e for e in result.transcript.entries if e.receiver == AGGREGATOR_NAME]
    assert {entry.kind for entry in sent} == {"update"}
    rows = [float(e.payload[-1]) * 2**20 for e in sent if e.payload is not None]
    assert rows == [12.0, 9.0, 15.0, 11.0]


def test_weights_of_millions_fit_into_fixed_point_and_larger_products_are_refused_by_name() -> None:
    from privtrain.mpc.sharing import SUM_BITS, decode, reveal
    from privtrain.steps.weights import scale_of
    from tests.contracts.aggregation import a_party

    release, scale = Release(aggregation=SharedSum()), scale_of(ByExamples())
    for weight in (1.0, 451.0, 3_000_001.0, 2.0**32 - 2**20):
        zeros = torch.zeros(2, dtype=torch.float64)
        mail = release.leave([zeros], a_party(), weight=weight * scale).mail
        shares = [sent["update share"] for sent in mail.values()]
        opened = decode(reveal(shares), bits=SUM_BITS)
        assert float(opened[-1]) / scale == weight
    update = torch.full((2,), 0.01, dtype=torch.float64)
    with pytest.raises(DataError, match="update of client-9"):
        release.leave([update * 3e6], a_party("client-9"), weight=3e6 * scale)


# ------------------------------------------------------------------------------------------- votes

QUICK = PlainSteps(epochs=1, learning_rate=0.2)
ASKED = replace(DATA, public=Rows(some_rows(77, 40).inputs))


def a_pate(release: Release) -> PATE:
    return PATE(teachers=8, queries=12, release=release, steps=QUICK, student=QUICK)


def ask(release: Release, how: Deviation | None = None) -> TrainResult:
    star = InProcess() if how is None else Deviating("p2", how)
    return fit(
        a_pate(release), TASK, ASKED, runtimes=Runtimes(star=star), keep_payloads=True, delta=1e-5
    )


def stuffed(sent: Payload, reply: Payload) -> Payload:
    votes = torch.zeros_like(reply["votes"])
    votes[:, 1] = 1e6
    return {**reply, "votes": votes}


def labels_of(result: TrainResult) -> Tensor:
    (labels,) = [e.payload for e in result.transcript.entries if e.kind == "labels"]
    assert labels is not None
    return labels


@pytest.mark.parametrize("mechanism", [GNMax(1e-3), LNMax(1e-3)])
def test_a_stuffed_ballot_box_counts_for_nobody(mechanism: GNMax | LNMax) -> None:
    release = Release(mechanism, finish=ARGMAX)
    result = ask(release, stuffed)
    silent = ask(release, lambda sent, reply: {**reply, "votes": 0 * reply["votes"]})
    assert torch.equal(labels_of(result), labels_of(silent))
    assert result.history.unprotected[BOUNDED_AGAIN] == [(2, 1.0)]
    # The data-dependent figure, too, is computed of ballots that can be.
    of = [[g.epsilon for g in r.statement.guarantees if g.data_dependent] for r in (result, silent)]
    assert of[0] == of[1]
    exact = ask(Release(Exact(), finish=ARGMAX), stuffed)
    assert set(labels_of(exact).tolist()) == {1}
    assert "messages have no bound: one party can replace every answer" in exact.statement.caveats


@pytest.mark.parametrize("mechanism", [GNMax(2.0), LNMax(2.0)])
def test_a_stuffed_ballot_box_with_noise_is_refused_by_name(mechanism: GNMax | LNMax) -> None:
    release = Release(mechanism, AT_PARTY, finish=ARGMAX)
    with pytest.raises(ProtocolError, match="p2 sent 'votes' of norm"):
        ask(release, stuffed)
    said = [a for g in ask(release).statement.guarantees for a in g.assumptions]
    assert any("times its bound (2)" in text for text in said)


@pytest.mark.parametrize("shape", [(12,), (1, 3), (12, 3, 1), ()])
def test_votes_of_another_shape_are_refused_by_name(shape: tuple[int, ...]) -> None:
    for mechanism in (GNMax(2.0), Exact()):
        with pytest.raises(ProtocolError, match="p2"):
            ask(Release(mechanism, finish=ARGMAX), Sends(torch.zeros(shape), "votes"))


# ------------------------------------------------------------------- rows that nobody looked at yet


@dataclass(frozen=True)
class Many(Mapping[str, Rows]):
    """So many parties that they are loaded when they are sampled; all hold the same rows."""

    rows: Rows
    count: int = 10_001

    def __getitem__(self, party: str) -> Rows:
        return self.rows

    def __iter__(self) -> Iterator[str]:
        return (f"p{number}" for number in range(self.count))

    def __len__(self) -> int:
        return self.count


def broken_rows(kind: str) -> Rows:
    rows = some_rows(3, 6)
    inputs = rows.inputs.clone()
    if kind == "empty":
        return Rows(inputs[:0], rows.labels[:0])
    if kind == "complex":
        return Rows(inputs.to(torch.complex128), rows.labels)
    if kind == "targets":
        return Rows(inputs, torch.full((6,), math.nan))
    inputs[4, 1] = {"nan": math.nan, "inf": -math.inf}[kind]
    return Rows(inputs, rows.labels)


STARS = [
    InProcess(),
    FlowerGrid(),
    pytest.param(FlowerRay(), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("star", STARS, ids=lambda star: star.name)
@pytest.mark.parametrize("kind", ["empty", "nan", "inf", "targets", "complex"])
def test_broken_rows_of_one_of_many_parties_are_refused_by_name(
    kind: str, star: StarRuntime
) -> None:
    if isinstance(star, FlowerRay) and kind != "nan":
        pytest.skip("one start of Ray shows how an error comes through")
    data = FederatedData(train=Many(broken_rows(kind)), test=some_rows(9, 5))
    # A silo without rows noises like any other: its emptiness is protected.
    silos = (
        ()
        if kind == "empty"
        else (DPSteps(Gaussian(1.0, 1.0), sampling_rate=0.5, expected_batch=3.0),)
    )
    for local in (LOCAL, *silos):
        trainer = FedAvg(
            rounds=1, sampling=FixedSize(2), local=local, release=Release(Gaussian(C, 0.5))
        )
        with pytest.raises(DataError, match=r"p\d+") as caught:
            fit(trainer, TASK, data, runtimes=Runtimes(star=star), delta=1e-6)
        assert type(caught.value) is DataError
        if isinstance(star, FlowerRay):
            return


@pytest.mark.parametrize("trainer", [SGD(epochs=1), DPSGD(epochs=1, sampling_rate=0.5)])
@pytest.mark.parametrize("kind", ["empty", "nan"])
def test_a_curator_looks_at_the_rows_of_many_parties_too(trainer: object, kind: str) -> None:
    data = FederatedData(train=Many(broken_rows(kind)), test=some_rows(9, 5))
    with pytest.raises(DataError, match=r"p0"):
        fit(trainer, TASK, data, runtimes=STAR, delta=1e-6)  # type: ignore[arg-type]
