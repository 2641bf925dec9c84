"""What every trainer promises, as checks that take a case: a trainer, a task, its data, a floor.

A test file runs them all: `@pytest.mark.parametrize("check", CHECKS)`, then `check(case)`.
"""

import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core.cost import Basis
from privtrain.core.metrics import accuracy
from privtrain.core.parties import PUBLIC_NAME
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.ledgers.run import epsilon_of
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess

DELTA = 1e-5
STAR = Runtimes(star=InProcess())


@dataclass(frozen=True, kw_only=True)
class Case:
    """One trainer under test.

    Args:
        name: What the case is called.
        trainer: The trainer.
        task: What it learns.
        data: From which rows; they declare how many there are.
        floor: Accuracy that it reaches at least.
        private: Whether it promises something to the public.
    """

    name: str
    trainer: Trainer
    task: Task
    data: FederatedData
    floor: float
    private: bool
    results: dict[Any, TrainResult] = field(default_factory=dict, compare=False, repr=False)

    def fitted(self, seed: int = 0, again: int = 0) -> TrainResult:
        """A trained model; each one is trained once for all checks."""
        if (seed, again) not in self.results:
            self.results[seed, again] = fit(
                self.trainer,
                self.task,
                self.data,
                runtimes=STAR,
                delta=DELTA,
                seed=seed,
                keep_payloads=True,
            )
        return self.results[seed, again]


def weights_of(result: TrainResult) -> Tensor:
    """All parameters of a trained model as one vector."""
    module = getattr(result.predictor, "module")  # noqa: B009 - not part of the protocol
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


class Locked(Mapping[str, Rows]):
    """Parties whose rows nobody may look at."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def __getitem__(self, party: str) -> Rows:
        raise AssertionError(f"somebody looked at the rows of {party}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


# ------------------------------------------------------------------------------------- checks


def is_a_frozen_value(case: Case) -> None:
    trainer: Any = case.trainer
    twin = pickle.loads(pickle.dumps(trainer))
    # A `functools.partial` is equal to nothing but itself.
    assert repr(twin) == repr(trainer)
    assert twin == trainer or "functools.partial" in repr(trainer)
    assert repr(trainer).startswith(type(trainer).__name__ + "(")
    assert " at 0x" not in repr(trainer)
    first = dataclasses.fields(trainer)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(trainer, first, None)
    assert hash(trainer) == hash(dataclasses.replace(trainer))


def token_is_spelled_like_its_file(case: Case) -> None:
    assert type(case.trainer).__module__ == f"privtrain.trainers.{case.trainer.token}"


def plans_without_looking_at_rows(case: Case) -> None:
    locked = replace(case.data, train=Locked(case.data.parties))
    assert locked.public_rows is not None
    plans = case.trainer.plan(locked, STAR)
    assert plans
    assert plans == case.trainer.plan(case.data, STAR)
    assert "public" in {plan.observer.name for plan in plans}
    assert case.trainer.input_privacy(locked, STAR)


def spends_what_it_planned(case: Case) -> None:
    result = case.fitted()
    plans = case.trainer.plan(case.data, STAR)
    formal = [g for g in result.statement.guarantees if not g.data_dependent]
    assert result.halted is None
    assert [g.observer.name for g in formal] == [plan.observer.name for plan in plans]
    for plan, guarantee in zip(plans, formal, strict=True):
        assert guarantee.releases == sum(plan.counts.values())
        assert guarantee.epsilon == epsilon_of(plan, plan.counts, DELTA)
        assert (guarantee.unit, guarantee.relation) == (plan.unit, plan.relation)
    for guarantee in result.statement.guarantees:
        if guarantee.data_dependent:
            of = [g for g in formal if g.observer == guarantee.observer]
            assert guarantee.epsilon <= of[0].epsilon
    assert math.isfinite(result.statement.epsilon()) == case.private


def noise_is_scaled(case: Case) -> None:
    noisier = case.trainer.with_noise(7.5)
    assert (noisier is not None) == case.private
    if noisier is None:
        return
    assert type(noisier) is type(case.trainer)
    assert "7.5" in repr(noisier)
    assert noisier.with_noise(1.5) == case.trainer.with_noise(1.5)
    little, much = (case.trainer.with_noise(scale) for scale in (5.0, 50.0))
    assert little is not None
    assert much is not None
    more, less = (_of_one_each(t, case.data) for t in (little, much))
    assert less < more < math.inf


def _of_one_each(trainer: Trainer, data: FederatedData) -> float:
    plan = trainer.plan(data, STAR)[0]
    return epsilon_of(plan, dict.fromkeys(plan.charges, 1), DELTA)


def the_same_seed_gives_the_same_bits(case: Case) -> None:
    one, two = case.fitted(), case.fitted(again=1)
    assert torch.equal(weights_of(one), weights_of(two))
    assert one.statement == two.statement
    for mine, other in zip(one.transcript.entries, two.transcript.entries, strict=True):
        assert mine == other
        assert mine.payload is not None
        assert other.payload is not None
        assert torch.equal(mine.payload, other.payload)


def another_seed_gives_another_model(case: Case) -> None:
    assert not torch.equal(weights_of(case.fitted()), weights_of(case.fitted(seed=1)))


def learns(case: Case) -> None:
    result = case.fitted()
    assert bool(torch.isfinite(weights_of(result)).all())
    test = case.data.test
    assert accuracy(result.predictor(test.inputs), test.labels) >= case.floor
    # The floor is above what knowing the commonest class gives.
    assert case.floor > float(test.labels.bincount().max()) / len(test)


def counts_every_byte(case: Case) -> None:
    result = case.fitted()
    entries = result.transcript.entries
    assert entries
    for entry in entries:
        assert entry.payload is not None
        assert entry.shape == tuple(entry.payload.shape)
        size = entry.payload.element_size() * entry.payload.nelement()
        assert entry.bytes == (0 if entry.receiver == PUBLIC_NAME else size)
        assert not entry.kind.startswith("unprotected")
    sent = sum(entry.bytes for entry in entries)
    assert sent > 0
    # What follows from public figures is held by the tests of each trainer.
    if result.cost.basis is Basis.MEASURED:
        assert result.cost.bytes_sent == sent
        assert sum(result.cost.bytes_sent_by_party.values()) == sent
        assert result.cost.rounds == len({e.round for e in entries if e.receiver != PUBLIC_NAME})
    assert result.transcript.bytes_sent == sent
    assert result.cost.seconds > 0
    assert result.cost.peak_memory_bytes > 2**20


def what_is_published_is_the_model(case: Case) -> None:
    result = case.fitted()
    published = [e for e in result.transcript.entries if e.receiver == PUBLIC_NAME]
    assert published[-1].kind == "model"
    assert published[-1].payload is not None
    assert torch.equal(published[-1].payload, weights_of(result))


def says_what_it_rests_on(case: Case) -> None:
    for guarantee in case.fitted().statement.guarantees:
        if math.isinf(guarantee.epsilon):
            assert guarantee.theorem == ""
            assert guarantee.accountant == "none"
        else:
            assert guarantee.theorem
            assert any("void if the seed is known" in text for text in guarantee.assumptions)
    assert case.fitted().statement.caveats


CHECKS: tuple[Callable[[Case], None], ...] = (
    is_a_frozen_value,
    token_is_spelled_like_its_file,
    plans_without_looking_at_rows,
    spends_what_it_planned,
    noise_is_scaled,
    the_same_seed_gives_the_same_bits,
    another_seed_gives_another_model,
    learns,
    counts_every_byte,
    what_is_published_is_the_model,
    says_what_it_rests_on,
)
