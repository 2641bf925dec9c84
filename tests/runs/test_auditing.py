"""Auditing hands an attack its observer's view, and the rows that are protected."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from privtrain.attacks.gradient_norm import GradientNorm
from privtrain.attacks.label_only import LabelOnly
from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.population import PopulationLoss
from privtrain.core.errors import DataError, NotApplicableError, Reason
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME, PUBLIC_NAME
from privtrain.core.payloads import Wanted
from privtrain.core.result import Target
from privtrain.core.seeding import SEEDED, SYSTEM
from privtrain.core.task import COLUMNS, FederatedData, Rows, concatenate
from privtrain.core.trainer import Trainer
from privtrain.data.canaries import noise_rows, with_canaries
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.auditing import (
    audit,
    declared,
    population_besides,
    protected_canaries,
    store_for,
)
from privtrain.runs.fitting import fit, fit_trial
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


def test_population_rows_are_neither_candidates_nor_public() -> None:
    parts = [some_rows(seed, 12) for seed in range(3)]
    candidates = concatenate([part.take(torch.arange(2)) for part in parts])
    data = replace(THREE, validation=parts[0], public=Rows(parts[0].inputs[2:5]))
    found = population_besides(data, candidates)
    assert found is not None and torch.equal(found.inputs, parts[0].inputs[5:])
    found.inputs.zero_()
    assert torch.equal(parts[0].inputs, some_rows(0, 12).inputs)
    # Without validation rows, the test rows that were not drawn.
    left = population_besides(replace(THREE, test=parts[1]), candidates)
    assert left is not None and torch.equal(left.inputs, parts[1].inputs[2:])
    assert torch.equal(left.labels, parts[1].labels[2:])
    assert population_besides(replace(THREE, test=candidates), candidates) is None


def test_an_attack_is_handed_population_rows_of_no_user() -> None:
    validation = replace(some_rows(7, 9), users=torch.arange(9))
    data = replace(DATA, validation=validation)
    attack = Looking()
    audit(fit(SGD(epochs=1), TASK, data, runtimes=STAR), attack, TASK, data)
    ((target, _, _),) = attack.seen
    assert target.population is not None and target.population.users is None
    assert torch.equal(target.population.inputs, validation.inputs)


def test_what_attacks_ask_is_counted() -> None:
    data = replace(DATA, validation=some_rows(7, 9))
    result = fit(SGD(epochs=1), TASK, data, runtimes=STAR)
    count = 2 * len(data.test)
    assert audit(result, PopulationLoss(), TASK, data).queries == count + 9
    assert audit(result, LabelOnly(queries=12), TASK, data).queries == 12 * count
    assert audit(result, GradientNorm(), TASK, data).queries == 0


def test_a_coalition_with_whoever_pools_the_rows_has_none_to_guess() -> None:
    result = fit(SGD(epochs=1), TASK, DATA, runtimes=STAR, seed=0)
    attack = LossThreshold(observer=coalition({AGGREGATOR_NAME, "p0"}))
    with pytest.raises(NotApplicableError, match="it pools all of them") as caught:
        audit(result, attack, TASK, DATA)
    assert caught.value.reason is Reason.KNOWS_ALL


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


@dataclass
class LookingAtKinds(Looking):
    """Keeps what it was handed, and reads messages of some kinds."""

    kinds: tuple[str, ...] = ()


def test_an_attack_is_handed_the_tensors_that_it_names() -> None:
    kept = fit(FedAvg(rounds=1), TASK, DATA, runtimes=STAR, keep_payloads=True)
    for needs, kinds in ((True, ("update",)), (True, ()), (False, ("update",))):
        attack = LookingAtKinds(AGGREGATOR, needs_messages=needs, kinds=kinds)
        audit(kept, attack, TASK, DATA)
        messages = attack.seen[0][0].view.messages
        assert list(messages) == kept.transcript.entries, "all headers"
        for message in messages:
            reads = needs and (not kinds or message.kind in kinds)
            assert (message.payload is not None) == reads
    absent = LookingAtKinds(AGGREGATOR, needs_messages=True, kinds=("gradient",))
    with pytest.raises(
        NotApplicableError, match=r"kinds=\('gradient',\).*'model', 'update'"
    ) as why:
        audit(kept, absent, TASK, DATA)
    assert why.value.reason is Reason.NO_MESSAGES
    # Of other kinds, none need be kept.
    store = store_for([reading("update")], SEEDED, None, everything=False)
    some = fit_trial(FedAvg(rounds=1), TASK, DATA, noise_seed=0, runtimes=STAR, store=store)
    attack = reading("update")
    assert audit(some, attack, TASK, DATA) == audit(kept, attack, TASK, DATA)
    with pytest.raises(NotApplicableError, match="kept payloads") as why:
        audit(some, reading("model"), TASK, DATA)
    assert why.value.reason is Reason.NO_TENSORS


def reading(*kinds: str) -> LookingAtKinds:
    return LookingAtKinds(AGGREGATOR, needs_messages=True, kinds=kinds)


def test_only_simulations_keep_messages_and_only_those_that_are_read(tmp_path: Path) -> None:
    reads, blind = reading("update"), Looking()
    assert store_for([blind], SEEDED, None, everything=False) is None
    assert store_for([reads], SYSTEM, None, everything=False) is None
    assert store_for([reads], SYSTEM, None, everything=True) is None
    store = store_for([reads, blind], SEEDED, tmp_path, everything=False)
    assert store is not None
    assert (store.wanted, store.folder) == ((Wanted(AGGREGATOR, ("update",)),), tmp_path)
    assert store.memory == 2**28
    whole = store_for([blind], SEEDED, None, everything=True)
    assert whole is not None and whole.wanted == (Wanted(None),)


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


@pytest.mark.parametrize(
    "observer", [PARTICIPANT, coalition({"a"}), coalition({"a", "b"})], ids=str
)
def test_who_holds_columns_has_a_part_of_every_row(observer: Observer) -> None:
    inputs, labels = some_rows(9, 30).inputs, some_rows(9, 30).labels
    train = {"a": Rows(inputs[:, :2]), "b": Rows(inputs[:, 2:], labels)}
    data = FederatedData(train=train, test=some_rows(3, 8), split=COLUMNS, label_holder="b")
    result = fit(SGD(epochs=1), TASK, data, runtimes=STAR)
    with pytest.raises(NotApplicableError, match="a part of every row") as caught:
        audit(result, LossThreshold(observer=observer), TASK, data)
    assert caught.value.reason is Reason.KNOWS_ALL
    assert audit(result, LossThreshold(), TASK, data).members == 8
