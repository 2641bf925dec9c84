"""Auditing hands an attack its observer's view, and the rows that are protected."""

from dataclasses import dataclass, replace

import pytest
import torch

from privtrain.attacks.membership import LossThreshold
from privtrain.core.errors import DataError
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME, PUBLIC_NAME
from privtrain.core.result import Target
from privtrain.core.task import FederatedData, Rows, concatenate
from privtrain.core.trainer import Trainer
from privtrain.data.canaries import noise_rows, with_canaries
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.auditing import audit, declared, protected_canaries
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.attacks.looking import Looking, LookingAtCanaries
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

DATA = a_federation(20, 20)


@pytest.mark.parametrize(
    ("observer", "names"),
    [
        (PUBLIC, set()),
        (AGGREGATOR, {AGGREGATOR_NAME}),
        (PARTICIPANT, {"p0"}),
        (coalition({"p1"}), {"p1"}),
        (coalition({"p1", AGGREGATOR_NAME}), {"p1", AGGREGATOR_NAME}),
    ],
    ids=["public", "aggregator", "participant", "party", "coalition"],
)
def test_an_attack_is_handed_its_observers_view_alone(observer: Observer, names: set[str]) -> None:
    result = fit(FedAvg(rounds=2), TASK, DATA, runtimes=STAR)
    attack = Looking(observer)
    leakage = audit(result, attack, TASK, DATA, seed=7)
    ((target, _, seed),) = attack.seen
    assert seed == 7
    assert leakage.attack == "looking"
    assert target.view.observer == observer
    assert set(target.view.names) == names
    expected = [
        entry
        for entry in result.transcript.entries
        if entry.receiver == PUBLIC_NAME or names & {entry.sender, entry.receiver}
    ]
    assert list(target.view.messages) == expected
    # A copy, of the same answers.
    assert target.predictor is not result.predictor
    inputs = DATA.test.inputs
    assert torch.equal(target.predictor(inputs), result.predictor(inputs))


THREE = a_federation(20, 16, 12)


def members(trainer: Trainer, observer: Observer, data: FederatedData = THREE) -> Rows:
    result = fit(trainer, TASK, data, runtimes=STAR, delta=1e-3)
    return declared(result, data, observer)[0]


@pytest.mark.parametrize("trainer", [FedAvg(rounds=1), DPSGD(epochs=1), SGD(epochs=1)])
@pytest.mark.parametrize(
    ("observer", "others"),
    [
        (PUBLIC, ("p0", "p1", "p2")),
        # Who takes part knows its own rows: calling them members is no discovery.
        (PARTICIPANT, ("p1", "p2")),
        (coalition({"p1"}), ("p0", "p2")),
        (coalition({"p1", "p2"}), ("p0",)),
        (coalition({"p1", AGGREGATOR_NAME}), ("p0", "p2")),
    ],
    ids=str,
)
def test_rows_of_the_observer_itself_are_no_candidates(
    trainer: Trainer, observer: Observer, others: tuple[str, ...]
) -> None:
    expected = torch.cat([THREE.train[name].inputs for name in others])
    assert torch.equal(members(trainer, observer).inputs, expected)


def test_rows_of_the_observer_are_left_out_once_each() -> None:
    """Equal rows of somebody else are still to be guessed."""
    mine = THREE.train["p0"]
    data = replace(THREE, train={"p0": mine, "p1": concatenate([mine, THREE.train["p1"]])})
    left = members(FedAvg(rounds=1), PARTICIPANT, data)
    assert len(left) == 20 + 16


def test_rows_of_a_participant_are_no_candidates_where_some_rows_became_public() -> None:
    trainer = PATE(teachers=4, queries=10, release=Release(GNMax(1.0), finish=ARGMAX))
    own = {row.numpy().tobytes() for row in DATA.train["p0"].inputs}
    left = members(trainer, PARTICIPANT, DATA)
    # Of 20 rows of the other party, those that no coin gave to the public.
    assert 0 < len(left) < 20
    assert not own & {row.numpy().tobytes() for row in left.inputs}


def test_canaries_of_the_observer_itself_are_left_out() -> None:
    """Whoever holds a canary knows its coin."""
    planted = with_canaries(THREE, noise_rows(THREE, 9))
    result = fit(FedAvg(rounds=1), TASK, planted, runtimes=STAR)
    attack = LookingAtCanaries(coalition({"p1"}))
    leakage = audit(result, attack, TASK, planted)
    ((target, candidates, _),) = attack.seen
    assert planted.canaries is not None
    others = torch.tensor([0, 2, 3, 5, 6, 8])
    expected = planted.canaries.rows.inputs[others]
    assert sorted(candidates.inputs.tolist()) == sorted(expected.tolist())
    assert leakage.members == int(planted.canaries.included[others].sum())
    # What it holds itself it knows, canaries among it.
    assert set(target.own) == {"p1"}
    assert torch.equal(target.own["p1"].inputs, planted.train["p1"].inputs)
    members, _ = declared(result, planted, attack.observer)
    expected = torch.cat([THREE.train[name].inputs for name in ("p0", "p2")])
    assert torch.equal(members.inputs, expected)
    everybody = Looking(coalition({"p0", "p1", "p2"}))
    with pytest.raises(ValueError, match=r"all rows that were used are those of p0, p1, p2 itself"):
        audit(result, everybody, TASK, planted)


def test_an_observer_that_nobody_is_is_refused() -> None:
    result = fit(FedAvg(rounds=1), TASK, THREE, runtimes=STAR)
    for observer, text in (
        (coalition({"p0", "p3"}), r"'p3' does not\. Known are aggregator, p0, p1, p2"),
        (Observer("p1"), r"observer='p1' .*coalition\(\{'p1'\}\)"),
        (Observer("agregator"), "observer='agregator' to be a role"),
    ):
        attack = Looking(observer)
        with pytest.raises(ValueError, match=text):
            audit(result, attack, TASK, THREE)
        assert attack.seen == []


def test_members_are_the_training_rows_and_non_members_the_test_rows() -> None:
    result = fit(SGD(epochs=1), TASK, DATA, runtimes=STAR)
    members, others = declared(result, DATA, PUBLIC)
    assert torch.equal(members.inputs, DATA.pooled().inputs)
    assert torch.equal(others.inputs, DATA.test.inputs)


def test_rows_that_became_public_are_no_members() -> None:
    trainer = PATE(teachers=4, queries=10, release=Release(GNMax(1.0), finish=ARGMAX))
    result = fit(trainer, TASK, DATA, runtimes=STAR)
    kept, _ = declared(result, DATA, PUBLIC)
    assert result.members is not None
    assert result.members.made_public
    assert 0 < len(kept) < len(DATA.pooled())
    given_up = [e.shape[0] for e in result.transcript.entries if e.kind == "public inputs"]
    assert len(kept) == len(DATA.pooled()) - sum(given_up)
    planted = with_canaries(DATA, noise_rows(DATA, 8))
    again = fit(trainer, TASK, planted, runtimes=STAR)
    assert protected_canaries(again, planted, frozenset()) is None, "one may have become public"


def test_public_rows_are_no_candidates() -> None:
    public = Rows(torch.cat([DATA.train["p0"].inputs[:3], DATA.test.inputs[:5]]))
    result = fit(SGD(epochs=1), TASK, DATA, runtimes=STAR)
    members, others = declared(result, replace(DATA, public=public), PUBLIC)
    assert torch.equal(members.inputs, DATA.pooled().inputs[3:])
    assert torch.equal(others.labels, DATA.test.labels[5:])
    everything = replace(DATA, public=Rows(DATA.test.inputs))
    with pytest.raises(ValueError, match="non_members to hold at least one row that is not public"):
        audit(result, Looking(), TASK, everything)


def test_canaries_and_the_curves_promised_to_the_observer_are_handed_on() -> None:
    planted = replace(with_canaries(DATA, noise_rows(DATA, 8)), public_rows=40)
    # Long enough for every row to be drawn: 48 x 0.8^150 is 1e-13.
    trainer = DPSGD(epochs=30, expected_batch=8)
    result = fit(trainer, TASK, planted, runtimes=STAR)
    public, aggregator = LookingAtCanaries(), LookingAtCanaries(AGGREGATOR)
    audit(result, public, TASK, planted)
    audit(result, aggregator, TASK, planted)
    (target, handed, _) = public.seen[0]
    assert planted.canaries is not None
    assert sorted(handed.inputs.tolist()) == sorted(planted.canaries.rows.inputs.tolist())
    members, _ = declared(result, planted, PUBLIC)
    assert torch.equal(members.inputs, DATA.pooled().inputs)
    assert torch.equal(members.labels, DATA.pooled().labels)
    assert target.promised == result.statement.curves != ()
    assert aggregator.seen[0][0].promised == ()


def test_messages_that_were_not_kept_are_asked_for() -> None:
    attack = Looking(AGGREGATOR, needs_messages=True)
    result = fit(FedAvg(rounds=1), TASK, DATA, runtimes=STAR)
    with pytest.raises(ValueError, match=r"payloads, which 'looking' reads: .*keep_payloads=True"):
        audit(result, attack, TASK, DATA)
    assert attack.seen == []
    kept = fit(FedAvg(rounds=1), TASK, DATA, runtimes=STAR, keep_payloads=True)
    audit(kept, attack, TASK, DATA)
    messages = attack.seen[0][0].view.messages
    assert messages and all(message.payload is not None for message in messages)


@dataclass(frozen=True)
class Recalling:
    """A reconstruction of rows that it has from somewhere."""

    known: Rows
    name: str = "recalling"
    observer: Observer = PUBLIC
    needs_messages: bool = False

    def rows(self, target: Target, *, seed: int) -> Rows:
        return self.known


def test_rows_that_are_made_up_are_measured_by_how_near_they_are() -> None:
    result = fit(SGD(epochs=1), TASK, DATA, runtimes=STAR)
    close = Rows(DATA.pooled().inputs + 1e-3)
    assert audit(result, Recalling(close), TASK, DATA).metrics["auc"] == 1.0
    nothing = audit(result, Recalling(some_rows(99, 30)), TASK, DATA)
    low, high = nothing.intervals["auc"]
    assert low <= 0.5 <= high
    for wrong in (Rows(torch.zeros(0, 5)), Rows(torch.zeros(2, 4))):
        with pytest.raises(DataError, match=r"reconstructed inputs .* row of shape \(5,\)"):
            audit(result, Recalling(wrong), TASK, DATA)


def test_memorised_labels_leak_and_noise_hides_them() -> None:
    """Random labels can only be learned by heart."""
    generator = torch.Generator().manual_seed(0)
    rows = some_rows(4, 300)
    labels = torch.randint(3, (300,), generator=generator)
    wide = replace(TASK, model=_Wide())
    data = replace(
        DATA,
        train={"a": Rows(rows.inputs[:100], labels[:100])},
        test=Rows(rows.inputs[100:], labels[100:]),
    )
    by_heart = fit(SGD(epochs=200, learning_rate=0.5), wide, data, runtimes=STAR)
    leaking = audit(by_heart, LossThreshold(), wide, data, seed=0)
    assert leaking.metrics["auc"] is not None
    assert leaking.metrics["auc"] > 0.75
    local = PlainSteps(epochs=5)
    private = FedAvg(rounds=2, local=local, release=Release(Gaussian(0.5, 5.0)))
    hidden = audit(fit(private, wide, data, runtimes=STAR), LossThreshold(), wide, data, seed=0)
    low, high = hidden.intervals["auc"]
    assert low <= 0.5 <= high
    again = audit(by_heart, LossThreshold(), wide, data, seed=0)
    assert again == leaking


class _Wide:
    def __call__(self) -> torch.nn.Module:
        layers = [torch.nn.Linear(5, 200), torch.nn.ReLU(), torch.nn.Linear(200, 3)]
        return torch.nn.Sequential(*layers).double()
