"""One-run audits of releases and of whole training runs by canaries that do not disturb each other.

Canary i is the unit vector e_i: whatever bounds contributions keeps it, and the noise on its own
coordinate is all that hides it. No canary of the same norm is easier to find.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privtrain.accounting.curves import wide_pairs
from privtrain.accounting.epsilon import evaluate
from privtrain.accounting.event import repeated
from privtrain.attacks.one_run import f_dp
from privtrain.attacks.one_run.attack import right_guesses
from privtrain.attacks.one_run.bounds import epsilon_bound
from privtrain.core.seeding import SeededEntropy
from privtrain.core.statement import ADD_REMOVE, Relation, Unit
from privtrain.core.task import Canaries, FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE
from privtrain.data.canaries import with_canaries
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.release.aggregation import BoundedSum
from privtrain.release.door import Release
from privtrain.sampling.sampling import Poisson

CONFIDENCE = 1 - 1e-4
DELTA = 1e-9
"""At 1e-5 delta alone would explain what a thousand canaries show at this confidence."""


@dataclass(frozen=True)
class Verdict:
    """What an audit found, beside what was stated."""

    bound: float
    stated: float
    p_value: float

    @property
    def refuted(self) -> bool:
        """Whether the lower bound lies above the stated epsilon."""
        return self.bound > self.stated

    @property
    def rejected(self) -> bool:
        """Whether the stated trade-off curve is rejected at the confidence of the law."""
        return self.p_value <= 1 - CONFIDENCE


def coins(count: int, seed: int) -> Canaries:
    """Coins without rows."""
    stream = SeededEntropy(seed)["coins", 0, ""].numpy()
    included = torch.from_numpy(stream.integers(0, 2, count) == 1)
    nothing = Rows(torch.zeros(count, 1), torch.zeros(count, dtype=torch.long))
    return Canaries(rows=nothing, included=included)


def verdict(
    scores: Tensor,
    canaries: Canaries,
    guesses: int,
    event: object,
    relation: Relation,
) -> Verdict:
    """Guesses, and compares with what the accountant says of an event."""
    correct = right_guesses(scores.double().numpy(), canaries, guesses, seed=0)
    counts = {"canaries": len(canaries), "guesses": guesses, "correct": correct}
    return Verdict(
        bound=epsilon_bound(**counts, delta=DELTA, confidence=CONFIDENCE),
        stated=evaluate(event, DELTA, relation).epsilon,
        p_value=f_dp.p_value(f_dp.least_wrong(wide_pairs(event, relation)), **counts),
    )


def audit_release(
    mechanism: Mechanism,
    *,
    canaries: int,
    guesses: int,
    seed: int,
    stated: Mechanism | None = None,
    contributed: Callable[[Tensor], Tensor] | None = None,
    score: Callable[[Tensor], Tensor] = lambda released: released[0],
    sampling_rate: float | None = None,
    count: int = 1,
) -> Verdict:
    """Releases the sum of canaries through the door, as often as said, and audits what came.

    Args:
        mechanism: What bounds nothing here, since canaries are bounded, and draws the noise.
        canaries: How many coins.
        guesses: How many are guessed.
        seed: Of coins, samples and noise.
        stated: Whose event is believed; the mechanism's own where None.
        contributed: Coins, float64 `(canaries,)`, to the sum that is released; times the bound.
        score: What was released, `(count, ...)`, to scores `(canaries,)`.
        sampling_rate: Of each canary in each release; None for all of them.
        count: How many releases.
    """
    from tests.laws.test_audits import a_run

    drawn = coins(canaries, seed)
    sampling = None if sampling_rate is None else Poisson(sampling_rate)
    (plan, *_) = Release(stated or mechanism).plans(
        unit=Unit.EXAMPLE, count=count, parties=canaries, sampling=sampling
    )
    run = a_run((plan,), seed)
    assert run.spend(count)
    bound = mechanism.sensitivity(ADD_REMOVE)
    assert bound is not None
    released = []
    for number in range(count):
        present = drawn.included.double()
        if sampling is not None:
            stream = run.entropy["sample", number, ""].numpy()
            taking_part = torch.zeros(canaries, dtype=torch.float64)
            taking_part[sampling.choose(canaries, stream)] = 1.0
            present = present * taking_part
        total = present * bound if contributed is None else contributed(present)
        summed = BoundedSum(total, bound)
        made = Release(mechanism).arrive(summed, run, round=number, kind="gradient")
        released.append(made.value)
    event = repeated(plan.charges[RELEASE].event, count)
    return verdict(score(torch.stack(released)), drawn, guesses, event, plan.relation)


def move_a_vote(coin: Tensor) -> Tensor:
    """Counts of two classes a teacher: its coin says for which of them it votes."""
    return torch.cat([1 - coin, coin])


def by_votes(released: Tensor) -> Tensor:
    """The noised count of a teacher's second class less that of its first."""
    first, second = released[0].chunk(2)
    return second - first


class Weights:
    """A linear model without a bias, all weights zero: canary i moves weight i."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self) -> nn.Module:
        layer = nn.Linear(self.count, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        return layer


def pull(logits: Tensor, targets: Tensor) -> Tensor:
    """Falls with the logit, steeply: every gradient is clipped, and a canary's loss tells it."""
    return -100.0 * logits[:, 0]


def planted(count: int, seed: int) -> tuple[Task, FederatedData]:
    """A task and data whose only other rows are zeros, which move nothing."""
    zeros = Rows(torch.zeros(2, count, dtype=torch.float64), torch.zeros(2, dtype=torch.long))
    eye = Rows(torch.eye(count, dtype=torch.float64), torch.zeros(count, dtype=torch.long))
    data = FederatedData(train={"a": zeros}, test=zeros, public_rows=2)
    return Task(model=Weights(count), loss=pull), with_canaries(data, eye, seed=seed)


def metric(found: dict[str, float | None], name: str) -> float:
    """A metric that must be there."""
    value = found[name]
    assert value is not None
    return float(np.float64(value))
