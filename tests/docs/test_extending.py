"""Follows the pages on extending: takes their files from the page, runs them, and checks them."""

import importlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

import privtrain as pt
from privtrain.attacks.attack import target_for
from privtrain.command.study_file import Study, read_study
from privtrain.core.errors import PartyLostError
from privtrain.core.observers import Exposure
from privtrain.core.runtime import Party, Payload, Reply, Setting, Star, StarRuntime, Step
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import Unit
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE
from tests.attacks.looking import judged
from tests.contracts.aggregation import check_aggregation
from tests.docs.pages import DOCS, examples, run
from tests.runtimes.forked import Forked
from tests.statistics import assert_power, std_is

PAGES = ("trainer", "mechanism", "aggregation", "attack", "mesh_program")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def file_of(page: str, folder: Path) -> str:
    path = DOCS / "extending" / f"{page}.md"
    (file,) = [block for block in examples(path) if block.file is not None]
    run(path, [file], folder)
    return str(file.file)


def module_of(page: str, folder: Path) -> ModuleType:
    return importlib.import_module(file_of(page, folder).removesuffix(".py"))


def party_of(train: dict[str, Any]) -> Party:
    return Party(
        name="party-0", round=0, train=train, state={}, seeds=Seeds(0), entropy=SeededEntropy(0)
    )


@pytest.fixture(scope="module")
def digits() -> tuple[Task, FederatedData]:
    return pt.data.digits(parties=10, seed=0)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_one_file_and_uses_it(page: str) -> None:
    blocks = examples(DOCS / "extending" / f"{page}.md")
    assert [block.file is not None for block in blocks] == [True, False]
    assert all(block.mark == "" for block in blocks)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_runs_as_it_stands(page: str, folder: Path) -> None:
    path = DOCS / "extending" / f"{page}.md"
    made = run(path, examples(path), folder)
    if page == "trainer":
        comparison = made["comparison"]
        assert isinstance(comparison, pt.Comparison)
        assert [row.error for row in comparison.rows] == [None] * 4
        assert [row.met for row in comparison.rows] == [None, True, True, True]
        assert all(row.accuracy is not None and row.accuracy > 0.5 for row in comparison.rows)
        assert all(row.leakage for row in comparison.rows)


@pytest.mark.parametrize("page", ["trainer", "mechanism"])
def test_study_file_of_a_page_makes_its_trainers(page: str, folder: Path) -> None:
    path = DOCS / "extending" / f"{page}.md"
    file = file_of(page, folder)
    (text,) = re.findall(r"^```toml\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    (folder / "study.toml").write_text(text)
    study = read_study(folder / "study.toml")
    (made,) = study.make_trainers().values()
    _, data = pt.data.load(study.data, **study.data_options)
    assert made.plan(data, pt.Runtimes())
    assert f"{file}:" in str(study.to_plain())


def test_the_attack_of_a_page_is_named_by_its_file(folder: Path) -> None:
    file = file_of("attack", folder)
    (attack,) = Study(attacks=({"attack": f"{file}:RowSpan", "limit": 200},)).make_attacks()
    assert (attack.name, attack.observer) == ("row span", pt.AGGREGATOR)


@pytest.mark.parametrize("page", ["index", *PAGES])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (DOCS / "extending" / f"{page}.md").read_text()
    files = re.findall(r"`((?:privtrain|tests|docs)/[\w/.]+)`", text)
    assert [file for file in files if not (DOCS.parent / file).exists()] == []
    # Constants of a module are not named: only what a stranger can find, the public names.
    assert not re.search(r"TrainerName|_KINDS|`TRAINERS`|`ATTACKS`", text)


# The trainer


# Some pixels are always dark, which scikit-learn warns of.
@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_:UserWarning")
def test_trainer_without_noise_is_nearest_centroid(
    folder: Path, digits: tuple[Task, FederatedData]
) -> None:
    task, data = digits
    trainer = module_of("trainer", folder).ClassMeans(classes=10, release=pt.Release())
    result = pt.fit(trainer, task, data)
    pooled = data.pooled()
    oracle = NearestCentroid().fit(pooled.inputs.double().numpy(), pooled.labels.numpy())
    expected = oracle.predict(data.test.inputs.double().numpy())
    assert np.array_equal(result.predictor(data.test.inputs).argmax(dim=1).numpy(), expected)
    assert math.isinf(result.statement.epsilon())


def test_trainer_spends_what_it_planned_and_promises_less_to_the_aggregator(
    folder: Path, digits: tuple[Task, FederatedData]
) -> None:
    task, data = digits
    release = pt.Release(pt.Gaussian(5.0, 2.0), pt.AT_PARTY)
    result = pt.fit(
        module_of("trainer", folder).ClassMeans(classes=10, release=release), task, data
    )
    assert {g.releases for g in result.statement.guarantees} == {1}
    public, aggregator = (result.statement.epsilon(name) for name in ("public", "aggregator"))
    assert 0 < public < aggregator < math.inf
    assert result.transcript.bytes_sent == 10 * 650 * 4


def test_one_row_moves_what_leaves_by_at_most_the_sensitivity(
    folder: Path, digits: tuple[Task, FederatedData]
) -> None:
    module = module_of("trainer", folder)
    rows = digits[1].train["party-0"]
    wild = Rows(rows.inputs * torch.logspace(-3, 12, len(rows)).unsqueeze(1), rows.labels)
    step = module.GiveSums(10, pt.Release(pt.Gaussian(5.0, 1.0)))

    def message(kept: Rows) -> torch.Tensor:
        return step({}, party_of({"party-0": kept})).message["class sums"].double()

    whole = message(wild)
    distances = []
    for row in range(0, len(wild), 9):
        others = torch.arange(len(wild)) != row
        distances.append(float((whole - message(wild.take(others.nonzero().squeeze(1)))).norm()))
    bound = step.release.mechanism.sensitivity(pt.ZERO_OUT)
    assert 0.99 * bound <= max(distances) <= bound * (1 + 1e-4)  # sums are float32 here


# The mechanism


@pytest.fixture
def one_round() -> tuple[Task, FederatedData]:
    return pt.data.digits(parties=100, model=pt.data.LogisticRegression(64, 10), seed=0)


def released(mechanism: Any, one_round: tuple[Task, FederatedData]) -> tuple[torch.Tensor, Any]:
    """The model that one round of federated averaging publishes, and the planned event."""
    task, data = one_round
    fedavg = pt.FedAvg(rounds=1, release=pt.Release(mechanism))
    result = pt.fit(fedavg, task, data, keep_payloads=True)
    (public,) = [p for p in fedavg.plan(data, pt.Runtimes()) if p.observer == pt.PUBLIC]
    published = result.transcript.entries[-1].payload
    assert published is not None
    return published.double(), public.charges[RELEASE].event


def test_mechanism_draws_the_noise_that_its_event_claims(
    folder: Path, one_round: tuple[Task, FederatedData]
) -> None:
    kind = module_of("mechanism", folder).CoordinateGaussian
    mechanism = kind(0.02, values=650, noise_multiplier=1.5)
    noised, event = released(mechanism, one_round)
    exact, _ = released(mechanism.with_scale(0.0), one_round)
    noise = (noised - exact) * 100  # the sum over clients was divided by their number
    claimed = event.noise_multiplier * mechanism.sensitivity(pt.ZERO_OUT)
    assert_power(std_is, noise.numpy(), claimed)


def test_mechanism_with_one_coordinate_is_the_gaussian(folder: Path) -> None:
    kind = module_of("mechanism", folder).CoordinateGaussian
    seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.36, variance=0.5)
    for relation in (pt.ZERO_OUT, pt.REPLACE_ONE):
        mine = kind(0.7, values=1, noise_multiplier=1.0)
        other = pt.Gaussian(0.7, 1.0)
        assert mine.event(seen, relation) == other.event(seen, relation)
        assert mine.sensitivity(relation) == other.sensitivity(relation)
    value = pt.epsilon(
        kind(0.7, 1, 1.0).event(
            Exposure(single_messages=False, knows_sample=False, noise_known=0.0), pt.ZERO_OUT
        ),
        1e-5,
        relation=pt.ZERO_OUT,
    )
    assert value == pytest.approx(4.377, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_mechanism_bounds_whatever_comes(folder: Path, dtype: torch.dtype) -> None:
    mechanism = module_of("mechanism", folder).CoordinateGaussian(0.1, 4, 1.0)
    for values in ([1e4, -1e4, 1e4, 1e4], [0.0, 0.0, 0.0, 0.0], [1e-7, 0.1, -0.05, 0.2]):
        bounded = mechanism.bound(torch.tensor(values, dtype=dtype)).double()
        assert float(bounded.norm()) <= mechanism.sensitivity(pt.ZERO_OUT)
    for broken in (torch.nan, torch.inf, -torch.inf):
        assert not mechanism.bound(torch.tensor([broken, 1.0, 1.0, 1.0], dtype=dtype)).any()
    with pytest.raises(ValueError, match="values=4"):
        mechanism.bound(torch.zeros(5, dtype=dtype))


def test_mechanism_splits_among_parties(folder: Path) -> None:
    mechanism = module_of("mechanism", folder).CoordinateGaussian(0.01, 20_000, 1.0)
    release = pt.Release(mechanism, pt.SPLIT(honest_survivors=4))
    reply = release.leave([torch.zeros(20_000)], party_of({"party-0": None}))
    message = reply.message["update"]
    assert_power(std_is, message.numpy(), mechanism.norm / 2)
    plans = release.plans(
        unit=Unit.CLIENT, count=1, parties=4, observers=(pt.PUBLIC, pt.AGGREGATOR)
    )
    assert [plan.charges[RELEASE].event.noise_multiplier for plan in plans] == pytest.approx(
        [1.0, 0.5]
    )


def test_mechanism_is_refused_where_gradients_are_clipped_in_l2(folder: Path) -> None:
    mechanism = module_of("mechanism", folder).CoordinateGaussian(0.01, 650, 1.0)
    with pytest.raises(pt.UnsupportedError, match="L2"):
        pt.DPSGD(release=pt.Release(mechanism))


# The aggregation: three exchanges, between which parties are lost


@dataclass(frozen=True)
class LosingStep:
    """A step in which some parties are gone before they reply."""

    step: Step
    gone: tuple[str, ...]

    def __call__(self, payload: Payload, party: Party) -> Reply:
        if party.name in self.gone:
            raise PartyLostError("the line is dead", party.name)
        return self.step(payload, party)


@dataclass
class LosingStar:
    star: Star
    when: dict[tuple[int, str], tuple[str, ...]]

    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        gone = self.when.get((round, type(step).__name__), ())
        return self.star.map(LosingStep(step, gone), payloads, round=round, at_least=at_least)

    def states(self) -> dict[str, Payload]:
        return self.star.states()

    def restore(self, states: Mapping[str, Payload]) -> None:
        self.star.restore(states)


@dataclass(frozen=True)
class Losing:
    """A star that loses parties.

    Args:
        when: Round and step to who is gone in it.
        inner: Where parties run.
    """

    when: dict[tuple[int, str], tuple[str, ...]]
    inner: StarRuntime = field(default_factory=pt.InProcess)
    name: ClassVar[str] = "losing"
    real: ClassVar[bool] = False

    @contextmanager
    def open(self, setting: Setting) -> Iterator[LosingStar]:
        with self.inner.open(setting) as star:
            yield LosingStar(star, self.when)


FIVE = pt.data.breast_cancer(parties=5, seed=0)
CLIENTS = FIVE[1].parties
LATE = {(1, "ClientStep"): (CLIENTS[2],)}


def masked_fit(
    aggregation: Any, star: Any = None, mechanism: Any = None, rounds: int = 2
) -> pt.TrainResult:
    release = pt.Release(mechanism or pt.Gaussian(1.0, 0.0), aggregation=aggregation)
    fedavg = pt.FedAvg(rounds=rounds, release=release)
    where = pt.Runtimes(star=star or pt.InProcess())
    return pt.fit(fedavg, *FIVE, runtimes=where, keep_payloads=True)


def vector_of(result: pt.TrainResult) -> torch.Tensor:
    published = result.transcript.entries[-1].payload
    assert published is not None
    return published.double()


def test_aggregation_keeps_the_promises_of_all(folder: Path) -> None:
    kind = module_of("aggregation", folder).PairwiseMasks
    check_aggregation(kind(minimum_survivors=3))
    with pytest.raises(pt.UnsupportedError, match="needs more than the 5 parties"):
        masked_fit(kind(minimum_survivors=6))
    with pytest.raises(pt.UnsupportedError, match="would be rounded"):
        split = pt.Release(pt.Gaussian(1.0, 1.0), pt.AT_PARTY, kind())
        pt.fit(pt.FedAvg(release=split), *FIVE)


@pytest.mark.parametrize("inner", [pt.InProcess(), pt.FlowerGrid()], ids=lambda star: star.name)
def test_aggregation_gives_the_plain_sum_of_those_that_stayed(
    inner: StarRuntime, folder: Path
) -> None:
    masks = module_of("aggregation", folder).PairwiseMasks(minimum_survivors=3)
    plain = masked_fit(pt.PlainSum(), inner)
    masked = masked_fit(masks, inner)
    assert float((vector_of(plain) - vector_of(masked)).abs().max()) < 1e-6
    assert masked.notes == plain.notes
    # One party is lost before its message, another one before the keys of the second round.
    when = LATE | {(1, "AgreeOnKeys"): (CLIENTS[4],)}
    lossy = masked_fit(masks, Losing(when, inner))
    # The second round starts from one model, so that its updates are those of the plain run.
    updates = {
        entry.sender: entry.payload.double()
        for entry in plain.transcript.entries
        if entry.kind == "update" and entry.round == 1 and entry.payload is not None
    }
    models = [e.payload for e in plain.transcript.entries if e.kind == "model" and e.round == 1]
    assert models[0] is not None
    stayed = torch.stack([updates[name] for name in (CLIENTS[0], CLIENTS[1], CLIENTS[3])]).sum(0)
    expected = models[0].double() + stayed / 5  # bounded: the divisor is public
    assert float((vector_of(lossy) - expected).abs().max()) < 1e-6
    assert float((vector_of(lossy) - vector_of(plain)).abs().max()) > 1e-3
    assert set(lossy.notes) - set(plain.notes) == {
        f"round 1 went on without {CLIENTS[4]}: lost on the way",
        f"round 1 went on without {CLIENTS[2]}: lost on the way",
    }


def test_aggregation_says_what_was_planned_spent_sent_and_read(folder: Path) -> None:
    masks = module_of("aggregation", folder).PairwiseMasks(minimum_survivors=3)
    mechanism = pt.Gaussian(1.0, 1.0)
    release = pt.Release(mechanism, aggregation=masks)
    plans = pt.FedAvg(rounds=2, release=release).plan(FIVE[1], pt.Runtimes())
    plain_plans = pt.FedAvg(rounds=2, release=pt.Release(mechanism)).plan(FIVE[1], pt.Runtimes())
    result = masked_fit(masks, Losing(LATE), mechanism)
    # Planned and spent: two releases, to the public what a plain sum promises it.
    assert [plan.charges for plan in plans[:2]] == [plan.charges for plan in plain_plans[:2]]
    assert {g.releases for g in result.statement.guarantees} == {2}
    assert 0 < result.statement.epsilon("public") < math.inf
    assert math.isinf(result.statement.epsilon("aggregator"))
    # Stated: a sum is read, who invents a loss reads more, parties bound their own contributions.
    (reader, _) = result.statement.input_privacy
    assert reader.reads == "the sum of every client's update"
    assert masks.caveats[0] in result.statement.caveats
    assert all(
        any("parties bound their own contributions" in text for text in g.assumptions)
        for g in result.statement.guarantees
        if math.isfinite(g.epsilon)
    )
    # Under noise no note tells that somebody was lost, and costs are not those of a plain sum.
    assert not any("lost" in note for note in result.notes)
    assert not any(name in note for name in CLIENTS for note in result.notes)
    assert result.history.unprotected["lost"] == [(2, 1.0)]
    # Sent: two exchanges in the first round, three in the second.
    sent = [e for e in result.transcript.entries if e.receiver != "public"]
    kinds = {number: {e.kind for e in sent if e.round == number} for number in range(5)}
    assert kinds == {
        0: {"mask key"},
        1: {"update keys", "model", "update"},
        2: {"mask key"},
        3: {"update keys", "model", "update"},
        4: {"keys", "lost", "shape", "masks of the lost"},
    }
    assert result.transcript.rounds == 5
    assert {e.sender for e in sent if e.kind == "masks of the lost"} == {
        name for name in CLIENTS if name != CLIENTS[2]
    }
    # Read: every message is uniform over the ring, so that its top bits are.
    view = result.transcript.view(pt.AGGREGATOR)
    updates = [e.payload for e in view.messages if e.kind == "update" and e.payload is not None]
    assert len(updates) == 5 + 4
    for update in updates:
        assert update.dtype == torch.int64
        assert 0.3 < float((update > 0).double().mean()) < 0.7
        assert float(update.double().abs().median()) > 2.0**60


@pytest.mark.parametrize("inner", [pt.InProcess(), pt.FlowerGrid()], ids=lambda star: star.name)
def test_aggregation_leaves_no_key_in_a_folder(
    inner: StarRuntime, folder: Path, tmp_path: Path
) -> None:
    masks = module_of("aggregation", folder).PairwiseMasks(minimum_survivors=3)
    trainer = pt.FedAvg(rounds=2, release=pt.Release(pt.Gaussian(1.0, 1.0), aggregation=masks))
    pt.fit(trainer, *FIVE, runtimes=pt.Runtimes(star=inner), folder=tmp_path, entropy=pt.SYSTEM)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["state"]["parties"] == {}


def test_aggregation_that_lost_too_many_names_them(folder: Path) -> None:
    masks = module_of("aggregation", folder).PairwiseMasks(minimum_survivors=4)
    both = Losing({(0, "ClientStep"): (CLIENTS[1], CLIENTS[3])})
    with pytest.raises(pt.PartyLostError, match=r"3 of 5 .* at least 4 have to") as caught:
        masked_fit(masks, both)
    assert CLIENTS[1] in str(caught.value) and CLIENTS[3] in str(caught.value)
    # And in the last exchange everybody has to reply: without one of them nothing is unmasked.
    late = Losing({(1, "ClientStep"): (CLIENTS[2],), (1, "TellMasks"): (CLIENTS[0],)})
    with pytest.raises(pt.PartyLostError, match="the line is dead"):
        masked_fit(masks, late)


def test_a_sum_without_losses_kept_is_caught(folder: Path) -> None:
    """The broken twin forgets the third exchange: what is left of the masks is in the sum."""
    module = module_of("aggregation", folder)

    class Forgetful(module.PairwiseMasks):  # type: ignore[misc,name-defined]
        def gather(self, gathering: Any, replies: Any, run: Any) -> Any:
            stayed = tuple(replies)
            return super().gather(replace(gathering, cohort=stayed), replies, run)

    broken = masked_fit(Forgetful(minimum_survivors=3), Losing(LATE))
    assert float(vector_of(broken).abs().max()) > 1e6


# The attack


def test_attack_finds_what_is_there_and_nothing_else(folder: Path) -> None:
    attack = module_of("attack", folder).RowSpan()
    task, data = pt.data.digits(parties=100, seed=0)
    result = pt.fit(pt.FedAvg(rounds=2), task, data, keep_payloads=True)
    found = pt.audit(result, attack, task, data)
    assert found.intervals["auc"][0] > 0.95
    # Two halves of the test rows, neither of which was trained on.
    halves = torch.arange(len(data.test)) % 2 == 0
    members, others = (data.test.take(half.nonzero().squeeze(1)) for half in (halves, ~halves))
    target = target_for(
        pt.AGGREGATOR, transcript=result.transcript, predictor=result.predictor, task=task
    )
    nothing = judged(attack, target, members, others)
    low, high = nothing.intervals["auc"]
    assert low < 0.5 < high


def test_attack_shows_who_is_protected_by_whose_noise(folder: Path) -> None:
    attack = module_of("attack", folder).RowSpan()
    task, data = pt.data.digits(parties=100, seed=0)
    lows, highs, promised = [], [], []
    for placement in (pt.AT_AGGREGATOR, pt.AT_PARTY):
        fedavg = pt.FedAvg(rounds=2, release=pt.Release(pt.Gaussian(1.0, 1.0), placement))
        result = pt.fit(fedavg, task, data, keep_payloads=True)
        low, high = pt.audit(result, attack, task, data).intervals["auc"]
        own = pt.audit(result, pt.RowSpan(), task, data).intervals["auc"]
        assert own == pytest.approx((low, high), abs=0.1)
        lows.append(low)
        highs.append(high)
        promised.append(result.statement.epsilon("aggregator"))
    assert math.isinf(promised[0])
    assert lows[0] > 0.95
    assert promised[1] < math.inf
    assert lows[1] < 0.5 < highs[1]


def test_attack_needs_payloads_and_its_own_view(
    folder: Path, digits: tuple[Task, FederatedData]
) -> None:
    attack = module_of("attack", folder).RowSpan()
    task, data = digits
    result = pt.fit(pt.FedAvg(rounds=2), task, data)
    with pytest.raises(ValueError, match="keep_payloads"):
        pt.audit(result, attack, task, data)
    target = target_for(
        pt.PUBLIC, transcript=result.transcript, predictor=result.predictor, task=task
    )
    with pytest.raises(ValueError, match="aggregator"):
        attack.score(target, data.test, seed=0)


# The mesh program


@pytest.mark.slow
@pytest.mark.parametrize(("left", "right"), [(0, 5), (-(2**62), 3), (2**40 + 1, -(2**21))])
def test_mesh_program_multiplies_modulo_2_to_the_64(left: int, right: int, folder: Path) -> None:
    module = module_of("mesh_program", folder)
    programs = {"left": module.Multiply("helper"), "right": module.Multiply("helper")}
    inputs = {
        "left": {"factor": torch.tensor(left)},
        "right": {"factor": torch.tensor(right)},
    }
    replies = Forked(timeout=60).run({**programs, "helper": module.Deal()}, inputs)
    expected = torch.tensor(left) * torch.tensor(right)
    for name in programs:
        assert torch.equal(replies[name].payload["product"], expected)
    # The dealer receives nothing, and no message holds a factor.
    entries = [entry for reply in replies.values() for entry in reply.entries]
    assert {entry.receiver for entry in entries} == {"left", "right"}
    assert sorted({(entry.round, entry.kind) for entry in entries}) == [
        (0, "triple share"),
        (1, "masked share"),
        (2, "product share"),
    ]
    assert [setup.party for setup in replies["helper"].setups] == ["helper"]
