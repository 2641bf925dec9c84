"""Law: what is true is not reachable from what an attack receives.

What an attack is handed is searched, object by object, and attacks that cheat by what they are
handed find nothing. Both tests catch broken twins.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.attacks.scores import auc_interval
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Observer
from privtrain.core.payloads import Filed, PayloadStore, TensorFile, Wanted
from privtrain.core.result import Target, TrainResult
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Canaries, FederatedData, Rows, concatenate
from privtrain.core.trainer import Trainer
from privtrain.data.canaries import mislabelled_rows, with_canaries
from privtrain.data.datasets import digits
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs import refereeing
from privtrain.runs.auditing import audit, declared
from privtrain.runs.evidence import keep_evidence, kept_evidence
from privtrain.runs.fitting import fit, fit_trial
from privtrain.runs.refereeing import (
    drawn,
    scores_of,
)
from privtrain.runs.shadowing import shadows_kept
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.attacks.looking import Looking, LookingAtCanaries, LookingAtClients
from tests.contracts.attack import rows, target
from tests.trainers.federations import STAR, TASK, some_rows

# What an attack receives


def reached(*roots: object) -> Iterator[object]:
    """All objects that others lead to: attributes, items, closures, defaults; no module, no class.

    A function leads to all globals of its module, which an attack has by importing it: not these.
    """
    left, known = list(roots), {id(sys.modules)}
    while left:
        one = left.pop()
        if id(one) in known or isinstance(one, (type, ModuleType)):
            continue
        known.add(id(one))
        yield one
        beyond = getattr(one, "__globals__", None)
        further = [item for item in gc.get_referents(one) if item is not beyond]
        if isinstance(one, Tensor):
            further += [one._base, one.grad, one.grad_fn]
        if isinstance(one, np.ndarray):
            further.append(one.base)
        left += further


@dataclass(frozen=True)
class Truth:
    """What an attack must not reach.

    Args:
        included: Who is a member, in the order in which the attack sees candidates.
        places: Where each candidate stands in the referee's order.
        objects: The data, the result, and what of them is secret.
        folder: Where the run was kept.
    """

    included: np.ndarray
    places: np.ndarray
    objects: tuple[object, ...]
    folder: Path

    def found(self, *roots: object) -> list[str]:
        """What leads to the truth, in words."""
        secret = {id(one) for one in self.objects}
        kept = {t.untyped_storage().data_ptr() for t in self.objects if isinstance(t, Tensor)}
        said = []
        for one in reached(*roots):
            if id(one) in secret:
                said.append(f"the secret {type(one).__name__} itself")
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() in kept:
                said.append("memory of a secret tensor")
            if isinstance(one, (str, Path)) and str(self.folder) in str(one):
                said.append("the run's folder")
            if self._tells(one):
                said.append(f"a {type(one).__name__} that orders candidates by the truth")
        return said

    def _tells(self, one: object) -> bool:
        """Whether something holds a value for each candidate, by which sides are told apart."""
        if isinstance(one, Tensor):
            one = one.detach().numpy() if not one.is_nested else None
        if isinstance(one, (bytes, bytearray)):
            one = np.frombuffer(one, dtype=np.uint8)
        if not isinstance(one, (np.ndarray, list, tuple)):
            return False
        try:
            values = np.asarray(one, dtype=np.float64)
        except (TypeError, ValueError):
            return False
        count = len(self.included)
        if not values.ndim or count not in (len(values), values.shape[-1]):
            return False
        # A value for each candidate, or, as of several models, a row of values.
        values = values.reshape(count, -1) if len(values) == count else values.reshape(-1, count).T
        for column in values.T:
            inside, outside = column[self.included], column[~self.included]
            if inside.min() > outside.max() or outside.min() > inside.max():
                return True
            if np.array_equal(column, self.places) or np.array_equal(
                column, np.argsort(self.places)
            ):
                return True
        return False


def truth_of(
    candidates: Rows, members: Rows, others: Rows, secret: tuple[object, ...], folder: Path
) -> Truth:
    """The truth about candidates, found by their contents."""
    sides: dict[bytes, list[int]] = {}
    for number, row in enumerate(torch.cat([members.inputs, others.inputs])):
        sides.setdefault(row.numpy().tobytes(), []).append(number)
    places = np.array([sides[row.numpy().tobytes()].pop(0) for row in candidates.inputs])
    return Truth(places < len(members), places, secret, folder)


def secrets_of(result: TrainResult, data: FederatedData) -> tuple[object, ...]:
    """What nobody but the referee may hold."""
    tensors: list[Tensor] = []
    for part in (*(data.train[name] for name in data.parties), data.test):
        tensors += [part.inputs, part.labels]
    canaries = data.canaries
    if canaries is not None:
        tensors += [canaries.included, canaries.rows.inputs]
    return (data, data.train, data.test, canaries or data, result, result.transcript, *tensors)


FAST = PATE(teachers=4, queries=10, release=Release(GNMax(1.0), finish=ARGMAX))


@pytest.mark.parametrize(
    ("trainer", "observer"),
    [
        (SGD(epochs=1), PUBLIC),
        (DPSGD(epochs=1), PARTICIPANT),
        (FedAvg(rounds=1), PUBLIC),
        (FedAvg(rounds=1), AGGREGATOR),
        (FedAvg(rounds=1), PARTICIPANT),
        (FAST, PUBLIC),
    ],
    ids=str,
)
def test_nothing_that_an_attack_receives_leads_to_the_truth(
    trainer: Trainer, observer: Observer, tmp_path: Path
) -> None:
    task, data = digits(parties=4, seed=0)
    result = fit(trainer, task, data, runtimes=STAR, folder=tmp_path, keep_payloads=True)
    # With the tensors of what it sent and received.
    looking = Looking(observer, needs_messages=True)
    audit(result, looking, task, data, folder=tmp_path)
    ((handed, candidates, seed),) = looking.seen
    # What trains shadow models, and what was trained, is reached by the attack, too.
    assert handed.shadows is not None
    if observer == PUBLIC:
        # As `audit` does around the attack: they are kept in the run's own folder.
        with shadows_kept(tmp_path):
            handed.shadows(2)
        assert list(tmp_path.glob("shadows-*/*"))
    sides = declared(result, data, observer)
    truth = truth_of(candidates, *sides, secrets_of(result, data), tmp_path)
    assert truth.included.sum() == len(candidates) // 2
    assert truth.found(handed, candidates, seed) == []


@pytest.mark.parametrize("observer", [AGGREGATOR, PARTICIPANT, PUBLIC], ids=str)
def test_nothing_of_messages_on_disk_leads_to_the_truth(tmp_path: Path, observer: Observer) -> None:
    task, data = digits(parties=4, seed=0)
    trainer = FedAvg(rounds=1)
    looking = Looking(observer, needs_messages=True)
    store = PayloadStore((Wanted(None),), 0, tmp_path)
    result = fit_trial(trainer, task, data, noise_seed=0, runtimes=STAR, store=store)
    kept = kept_evidence(keep_evidence(result, tmp_path / "e", task, data), trainer, task, data)
    for read in (result, kept):
        audit(read, looking, task, data)
        handed, candidates, seed = looking.seen.pop()
        # A file would hold what the observer never saw, beside what it saw.
        files = [one for one in reached(handed) if isinstance(one, (Filed, TensorFile))]
        assert files == [] and all(entry.kept is not None for entry in handed.view.messages)
        sides = declared(read, data, observer)
        truth = truth_of(candidates, *sides, secrets_of(read, data), tmp_path)
        assert truth.found(handed, candidates, seed) == []


def test_nothing_that_an_attack_on_canaries_receives_leads_to_their_coins(tmp_path: Path) -> None:
    task, data = digits(parties=2, seed=0)
    planted = with_canaries(data, mislabelled_rows(data, 100), seed=0)
    result = fit(SGD(epochs=1), task, planted, runtimes=STAR, folder=tmp_path)
    looking = LookingAtCanaries()
    audit(result, looking, task, planted)
    ((handed, candidates, seed),) = looking.seen
    canaries = planted.canaries
    assert canaries is not None
    all_of_them = truth_of(candidates, canaries.rows, Rows(canaries.rows.inputs[:0]), (), tmp_path)
    included = canaries.included.numpy()[all_of_them.places]
    truth = Truth(included, all_of_them.places, secrets_of(result, planted), tmp_path)
    assert truth.found(handed, candidates, seed) == []


def test_nothing_that_an_attack_on_clients_receives_tells_who_took_part(tmp_path: Path) -> None:
    task, data = digits(parties=12, seed=0)
    result = fit(SGD(epochs=1), task, data, runtimes=STAR, folder=tmp_path)
    looking = LookingAtClients()
    audit(result, looking, task, data)
    ((handed, shown, seed),) = looking.seen
    assert handed.shadows is not None
    handed.shadows(2)
    trained_on = {row.numpy().tobytes() for row in data.pooled().inputs}
    included = np.array([client.inputs[0].numpy().tobytes() in trained_on for client in shown])
    assert included.sum() == 12 == len(shown) // 2
    truth = Truth(included, (~included).argsort(), secrets_of(result, data), tmp_path)
    assert truth.found(handed, shown, seed) == []


def hidden_in_a_closure(truth: Truth) -> object:
    kept = truth.included.astype(int)
    return lambda number: kept[number]


@pytest.mark.parametrize(
    ("leak", "said"),
    [
        (lambda t: {"a": [torch.from_numpy(~t.included)]}, "Tensor that orders"),
        (lambda t: t.included.astype(np.uint8).tobytes(), "bytes that orders"),
        (lambda t: tuple((2.0 * t.included - 1).tolist()), "tuple that orders"),
        (lambda t: np.argsort(t.places), "ndarray that orders"),
        (lambda t: np.stack([np.zeros(40), t.included]), "ndarray that orders"),
        (hidden_in_a_closure, "ndarray that orders"),
        (lambda t: t.objects[-1][:3], "memory of a secret tensor"),
        (lambda t: Canaries, None),
        (lambda t: replace(rows(1), inputs=t.objects[-1]), "secret Tensor itself"),
        (lambda t: {"kept": t.folder / "state.pt"}, "the run's folder"),
    ],
)
def test_the_search_finds_what_leads_to_the_truth(
    leak: Callable[[Truth], object], said: str | None, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    places = generator.permutation(40)
    truth = Truth(places < 20, places, (torch.ones(40, 8),), tmp_path)
    found = truth.found(replace(target(PUBLIC), own={"a": leak(truth)}), rows(1))  # type: ignore[dict-item]
    assert bool(found) is (said is not None)
    assert said is None or any(said in one for one in found)


# Attacks that cheat


@dataclass(frozen=True)
class Cheating:
    """Scores by something else than what the model shows of a row."""

    by: Callable[[Target, Rows, int], Any]
    observer: Observer = PUBLIC
    name: str = "cheating"
    needs_messages: bool = False

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Any:
        return self.by(target, candidates, seed)


def by_order(seen: Target, candidates: Rows, seed: int) -> Any:
    return -np.arange(len(candidates))


def by_seed(seen: Target, candidates: Rows, seed: int) -> Any:
    """Draws the order again, under the seed that it was given."""
    stream = Seeds(seed)["referee/order", 0, ""]
    return -stream.numpy().permutation(len(candidates))


def by_memory(seen: Target, candidates: Rows, seed: int) -> Any:
    """Looks where rows lie in memory, and what lies behind them."""
    flat = candidates.inputs.as_strided(
        (candidates.inputs.untyped_storage().nbytes() // 8,), (1,), 0
    )
    return (
        flat[-len(candidates) :]
        if len(flat) > candidates.inputs.numel()
        else by_order(seen, candidates, seed)
    )


def by_users(seen: Target, candidates: Rows, seed: int) -> Any:
    return np.zeros(len(candidates)) if candidates.users is None else candidates.users


def nearest(candidates: Rows, known: list[Tensor]) -> Any:
    """Minus the distance to the nearest row of some tensors."""
    flat = candidates.inputs.flatten(1)
    width = flat.shape[1]
    parts = [t.detach().flatten().to(flat.dtype) for t in known if t.numel() >= width]
    if not parts:
        return np.zeros(len(flat))
    table = torch.cat([part[: len(part) // width * width].reshape(-1, width) for part in parts])
    return -torch.cdist(flat, table).amin(dim=1)


def by_own(seen: Target, candidates: Rows, seed: int) -> Any:
    return nearest(candidates, [own.inputs for own in seen.own.values()])


def by_view(seen: Target, candidates: Rows, seed: int) -> Any:
    return nearest(candidates, [m.payload for m in seen.view.messages if m.payload is not None])


def tensors_of(one: object) -> list[Tensor]:
    return [found for found in reached(one) if isinstance(found, Tensor)]


def by_predictor(seen: Target, candidates: Rows, seed: int) -> Any:
    return nearest(candidates, tensors_of(seen.predictor))


def by_task(seen: Target, candidates: Rows, seed: int) -> Any:
    return nearest(candidates, tensors_of(seen.task))


def by_population(seen: Target, candidates: Rows, seed: int) -> Any:
    assert seen.population is not None
    return nearest(candidates, [seen.population.inputs])


def by_promise(seen: Target, candidates: Rows, seed: int) -> Any:
    numbers = [bound for curves in seen.promised for _, bound in curves.promised]
    return np.resize(numbers or [0.0], len(candidates))


CHEATS = [
    by_order, by_seed, by_memory, by_users, by_own, by_view, by_predictor, by_task, by_promise,
    by_population,
]  # fmt: skip


def with_users(parts: Rows, first: int) -> Rows:
    return replace(parts, users=torch.arange(first, first + len(parts)))


@pytest.fixture(scope="module")
def unlearned() -> tuple[TrainResult, FederatedData]:
    """A run on 300 rows of two parties, whose model hardly moved from where it started."""
    train = {f"p{number}": with_users(some_rows(number, 150), 0) for number in (1, 2)}
    test = some_rows(3, 150)
    # Many validation rows are equal to a test row, and none to a member.
    validation = concatenate([test.take(torch.arange(60)), some_rows(4, 60)])
    data = FederatedData(train=train, test=with_users(test, 500), validation=validation)
    trainer = FedAvg(rounds=1, local=PlainSteps(learning_rate=1e-9))
    return fit(trainer, TASK, data, runtimes=STAR, keep_payloads=True), data


def interval_of(attack: Cheating, result: TrainResult, data: FederatedData) -> tuple[float, float]:
    """The 99.9% interval of an attack's AUC."""
    looking = Looking(attack.observer)
    audit(result, looking, TASK, data)
    ((handed, _, _),) = looking.seen
    found = drawn(*declared(result, data, attack.observer), attack, seed=0)
    scores, members = scores_of(attack, handed, found, seed=0), found.included.numpy()
    return auc_interval(scores[members], scores[~members], confidence=0.999)


@pytest.mark.parametrize("observer", [PUBLIC, PARTICIPANT], ids=str)
@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_who_cheats_finds_nothing(
    cheat: Callable[..., Any], observer: Observer, unlearned: tuple[TrainResult, FederatedData]
) -> None:
    low, high = interval_of(Cheating(cheat, observer), *unlearned)
    assert low <= 0.5 <= high


def test_who_draws_the_coins_again_finds_nothing() -> None:
    """Canaries are planted by a seed that an attack may guess: by that of the audit."""
    task, data = digits(parties=1, seed=0)
    planted = with_canaries(data, mislabelled_rows(data, 200), seed=0)
    result = fit(SGD(epochs=1, learning_rate=1e-9), task, planted, runtimes=STAR)

    def by_coins(seen: Target, candidates: Rows, seed: int) -> Any:
        stream = SeededEntropy(seed)["canaries", 0, ""]
        return stream.numpy().integers(0, 2, len(candidates))

    class Guessing(Cheating):
        guesses, canaries_needed, delta, confidence = 100, 100, 1e-5, 0.999

    found = audit(result, Guessing(by_coins), task, planted, seed=0).metrics
    assert found["epsilon_lower_bound"] == 0.0


def as_given(rows: Rows, included: Tensor, seed: int) -> Any:
    return np.arange(len(included))


def by_seed_alone(rows: Rows, included: Tensor, seed: int) -> Any:
    return Seeds(seed)["referee/order", 0, ""].numpy().permutation(len(included))


@pytest.mark.parametrize(("order", "cheat"), [(as_given, by_order), (by_seed_alone, by_seed)])
def test_a_referee_whose_order_is_known_is_caught(
    order: Callable[..., Any],
    cheat: Callable[..., Any],
    unlearned: tuple[TrainResult, FederatedData],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refereeing, "random_order", order)
    assert interval_of(Cheating(cheat), *unlearned)[0] > 0.9
