"""What a model draws belongs to its rows: held fixed, a row takes its draws along."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.draws import HeldDraws
from privtrain.gradients.gradients import Gradients
from privtrain.gradients.opacus import Opacus
from tests.gradients.loops import coupled_sum

ROWS = 6
ATTENTION = functional.scaled_dot_product_attention

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": functional.dropout,
    "dropout of channels": functional.dropout1d,
    "alpha dropout": lambda x: functional.alpha_dropout(x, training=True),
    "feature alpha dropout": lambda x: functional.feature_alpha_dropout(x, training=True),
    "examples and time": lambda x: functional.dropout(x.flatten(0, 1)).unflatten(0, (len(x), -1)),
    "time first": lambda x: functional.dropout(x.movedim(0, 1)).movedim(1, 0),
    "rand": lambda x: torch.rand(len(x), 3),
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(10**6, (len(x), 2)),
    "randint from": lambda x: torch.randint(5, 10**6, (len(x), 2)),
    "random_": lambda x: torch.empty(len(x), 2).random_(10**6),
    "uniform_": lambda x: torch.empty(len(x), 2).uniform_(),
    "exponential_": lambda x: torch.empty(len(x), 2).exponential_(),
    "rrelu": lambda x: functional.rrelu(x, training=True),
    "rrelu in place": lambda x: functional.rrelu(x.clone(), training=True, inplace=True),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "normal": lambda x: torch.normal(x, x.abs()),
    "normal of numbers": lambda x: torch.normal(0.0, 1.0, (len(x), 2)),
    "poisson": lambda x: torch.poisson(10 * x.abs()),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 99), x.sigmoid()),
    "multinomial": lambda x: torch.multinomial(x.flatten(1).sigmoid(), 5),
    "gumbel": functional.gumbel_softmax,
    "gamma": lambda x: torch.distributions.Gamma(x.abs() + 1, x.abs() + 1).sample(),
    "dirichlet": lambda x: torch.distributions.Dirichlet(x.abs() + 1).sample(),
    "attention": lambda x: ATTENTION(x, x, x, dropout_p=0.5),
}


def inputs() -> Tensor:
    return torch.randn(ROWS, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", DRAWS)
def test_a_row_draws_the_same_elsewhere_and_among_others(name: str) -> None:
    x, draw = inputs(), DRAWS[name]
    with HeldDraws(range(ROWS)) as held:
        whole = draw(x)
    assert held.by_row
    assert not held.for_batch
    assert len({tuple(row.flatten().tolist()) for row in whole}) == ROWS
    for chosen in ([0, 1, 3, 4, 5], [5, 0, 3, 2, 1, 4], [4, 2, 0]):
        with HeldDraws(chosen):
            assert torch.equal(draw(x[chosen]), whole[chosen])
    with HeldDraws(range(ROWS), seed=1):
        assert not torch.equal(draw(x), whole)
    with HeldDraws(range(ROWS)):
        draw(x)
        assert not torch.equal(draw(x), whole), "two operations of a pass draw anew"


def test_the_law_of_a_draw_is_what_it_was() -> None:
    """Mean and deviation of 10,000 coins and normals, five standard errors wide."""
    coins, normals = [], []
    for seed in range(100):
        with HeldDraws(range(100), seed):
            coins.append(torch.bernoulli(torch.full((100, 1), 0.3)))
            normals.append(torch.randn(100, 1))
    assert float(torch.cat(coins).mean()) == pytest.approx(0.3, abs=5 * 0.0046)
    assert float(torch.cat(normals).mean()) == pytest.approx(0, abs=0.05)
    assert float(torch.cat(normals).std()) == pytest.approx(1, abs=5 * 0.0071)


def test_draws_of_the_batch_stay_the_same_however_many_rows_there_are() -> None:
    found = []
    for rows in (range(ROWS), range(1, 5)):
        with HeldDraws(rows) as held:
            found.append([torch.rand(()), torch.rand(1), torch.randperm(7), torch.rand(7, 3)])
        assert not held.by_row
        assert list(held.for_batch) == ["rand", "randperm"]
    assert all(map(torch.equal, *found))


def test_a_distribution_over_the_batch_is_not_cut() -> None:
    with HeldDraws(range(ROWS)) as held:
        drawn = [torch.multinomial(torch.ones(ROWS), 1) for _ in range(20)]
    assert held.for_batch
    assert len(set(map(int, drawn))) > 1, "of one row alone, it would always be the first"


def test_all_generators_are_put_back_and_numpy_and_python_are_held() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    found = []
    for _ in range(2):
        with HeldDraws(range(3)):
            found.append((torch.rand(3).tolist(), random.random(), np.random.rand()))
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def seeded() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(ROWS)


def forked() -> Iterator[Tensor]:
    with torch.random.fork_rng():
        yield seeded()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (seeded, "seeds torch's global generator"),
        (lambda: next(forked()), "seeds torch's global generator"),
        (lambda: torch.manual_seed(3), "seeds torch's global generator"),
        (lambda: torch.rand(ROWS, generator=torch.Generator()), "generator of its own"),
        (lambda: torch.zeros(ROWS).normal_(generator=torch.Generator()), "generator of its own"),
    ],
)
def test_a_generator_that_cannot_be_held_is_refused(
    draw: Callable[[], object], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message), HeldDraws(range(ROWS)):
        draw()


class Dropping(nn.Module):
    """Dropout twice, and a parameter that belongs to no layer if it is asked for."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 32), nn.Linear(32, 3)
        self.own = nn.Parameter(torch.zeros(3)) if own else torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.dropout(torch.relu(self.body(functional.dropout(x))), 0.7)
        out: Tensor = self.head(hidden) + self.own
        return out


@pytest.mark.parametrize(
    ("gradients", "own"), [(BookKeeping(), False), (BookKeeping(), True), (Opacus(), False)]
)
def test_one_row_moves_a_sum_by_its_bound_at_most_where_draws_are_coupled(
    gradients: Gradients, own: bool
) -> None:
    count, bound = 40, 0.5
    generator = torch.Generator().manual_seed(0)
    rows = Rows(
        torch.randn(count, 6, generator=generator) * 3,
        torch.randint(3, (count,), generator=generator),
    )
    engine, every = gradients.engine(Dropping(own), cross_entropy), torch.arange(count)
    engine.clipped_sum(rows, bound)
    for row in (0, 17, count - 1):
        for seed in range(3):
            whole = coupled_sum(engine, rows, every, bound, seed)
            without = coupled_sum(engine, rows, every[every != row], bound, seed)
            assert float((whole - without).norm()) <= bound * (1 + 1e-5)
    # By place, as a seeded generator draws them, all rows behind the first get other masks.
    by_place = []
    for chosen in (every, every[1:]):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            by_place.append(engine.clipped_sum(rows.take(chosen), bound).value)
    assert float((by_place[0] - by_place[1]).norm()) > 2 * bound


def recomputed(keep: bool) -> tuple[Tensor, Tensor]:
    x = torch.ones(ROWS, 50, requires_grad=True)
    with HeldDraws(range(ROWS)) as held:
        y = checkpoint(
            lambda t: functional.dropout(t).exp(), x, use_reentrant=False, preserve_rng_state=keep
        )
        held.end_of_forward()
        (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


def test_a_recomputation_draws_what_the_forward_pass_drew() -> None:
    y, gradient = recomputed(keep=True)
    assert torch.equal(gradient == 0, y == 1)


def test_a_recomputation_that_draws_anew_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="preserve_rng_state=True"):
        recomputed(keep=False)
