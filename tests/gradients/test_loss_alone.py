"""Losses that look at what their batch holds are found, whatever that is; sound losses pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Loss, Rows, cross_entropy
from privtrain.gradients.alone import RowTrial
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.loss_alone import companions, mixtures, tables
from privtrain.gradients.opacus import Opacus
from privtrain.steps.private import public_trial

IN, ROWS, SEEDS = 16, 16, 12
REFUSED = "depends on other examples"


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()


def of_steps(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none").mean(dim=1)


def among_present(outputs: Tensor, targets: Tensor) -> Tensor:
    absent = torch.ones(outputs.shape[1], dtype=torch.bool)
    absent[targets.unique()] = False
    return cross_entropy(outputs.masked_fill(absent, -1e4), targets)


def steps_among_present(outputs: Tensor, targets: Tensor) -> Tensor:
    absent = ~torch.isin(torch.arange(outputs.shape[1]), targets)
    return of_steps(outputs.masked_fill(absent[:, None], -1e4), targets)


def weighted(loss: Loss, weight: Callable[[Tensor], Any]) -> Loss:
    return lambda outputs, targets: loss(outputs, targets) * weight(targets)


def gradient_alone(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(outputs, targets)
    return losses.detach() + (1 + int((targets == 1).any())) * (losses - losses.detach())


def by_answers(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets) * len(outputs.detach().argmax(dim=1).unique())


def by_confidence(outputs: Tensor, targets: Tensor) -> Tensor:
    sure = (outputs.detach().softmax(dim=1).amax(dim=1) > 0.6).sum()
    return cross_entropy(outputs, targets) * (1 + sure)


def classes(count: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(count, (ROWS,), generator=generator)


def coins(generator: torch.Generator) -> Tensor:
    return torch.randint(2, (ROWS,), generator=generator).float()


def labels(generator: torch.Generator) -> Tensor:
    return torch.randint(2, (ROWS, 5), generator=generator).float()


def steps(generator: torch.Generator) -> Tensor:
    return torch.randint(4, (ROWS, 6), generator=generator)


def numbers(generator: torch.Generator) -> Tensor:
    return 5 * torch.randn(ROWS, generator=generator)


def layers(columns: int) -> nn.Module:
    return nn.Sequential(nn.Linear(IN, 8), nn.ReLU(), nn.Linear(8, columns))


def one() -> nn.Module:
    return nn.Sequential(layers(1), nn.Flatten(0))


def chance() -> nn.Module:
    return nn.Sequential(one(), nn.Sigmoid())


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, 24), nn.Unflatten(1, (4, 6)))


Case = tuple[Callable[[], nn.Module], Loss, Callable[[torch.Generator], Tensor]]


def of(count: int, loss: Loss) -> Case:
    return (lambda: layers(count)), loss, classes(count)


MIXING: dict[str, Case] = {
    "two classes that are there": of(2, among_present),
    "three classes that are there": of(3, among_present),
    "ten classes that are there": of(10, among_present),
    "any positive": of(2, weighted(cross_entropy, lambda t: 1 + int((t == 1).any()))),
    "any of class 7": of(10, weighted(cross_entropy, lambda t: 1 + int((t == 7).any()))),
    "both classes": of(2, weighted(cross_entropy, lambda t: int(len(t.unique()) > 1))),
    "three positives": of(2, weighted(cross_entropy, lambda t: int((t == 1).sum() >= 3))),
    "nearly one class": of(2, weighted(cross_entropy, lambda t: 1 - int((t == 1).sum() > 14))),
    "a lone row of a class": of(
        2, weighted(cross_entropy, lambda t: 1 + ((t == 1) & ((t == 1).sum() == 1)).double())
    ),
    "the gradient alone": of(2, gradient_alone),
    "the answers": of(2, by_answers),
    "the sure ones": of(2, by_confidence),
    "any value of one": (one, weighted(binary, lambda t: 1 + int(t.any())), coins),
    "the columns in use": (
        lambda: layers(5),
        lambda o, t: (binary(o, t) * (t.amax(dim=0) > 0)).sum(dim=1),
        labels,
    ),
    "a far value": (one, weighted(squared, lambda t: 1 + int((t.abs() > 8).any())), numbers),
    "one sign": (one, weighted(squared, lambda t: 1 + int((t > 0).all())), numbers),
    "steps that are there": (sequence, steps_among_present, steps),
}

SOUND: dict[str, Case] = {
    "classes": of(3, cross_entropy),
    "many classes": of(300, cross_entropy),
    "weights of classes": of(
        3,
        lambda o, t: functional.cross_entropy(
            o, t, reduction="none", weight=torch.tensor([1.0, 2.0, 3.0])
        ),
    ),
    "a class left out": of(3, lambda o, t: cross_entropy(o, torch.where(t == 2, -100, t))),
    "clamped": of(3, lambda o, t: cross_entropy(o, t).clamp(max=0.7)),
    "in place": of(3, lambda o, t: cross_entropy(o.mul_(2), t)),
    "in float32": of(3, lambda o, t: cross_entropy(o.float(), t)),
    "with noise": of(3, lambda o, t: cross_entropy(o + torch.randn_like(o), t)),
    "logits": (one, binary, coins),
    "chances": (
        chance,
        lambda o, t: functional.binary_cross_entropy(o, t, reduction="none"),
        coins,
    ),
    "columns": (lambda: layers(5), lambda o, t: binary(o, t).sum(dim=1), labels),
    "values": (one, squared, numbers),
    "logarithms": (one, lambda o, t: squared(o, t.log1p()), coins),
    "steps": (sequence, of_steps, steps),
}


def accepted(case: Case, engine: Any, seed: int, *, public: bool) -> bool:
    make, loss, targets = case
    generator = torch.Generator().manual_seed(seed)
    rows = Rows(torch.randn(ROWS, IN, generator=generator), targets(generator))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prepared = engine.engine(make(), loss)
    try:
        if public:
            prepared.try_on(public_trial(Rows(rows.inputs), rows, ROWS))
        else:
            prepared.clipped_sum(rows, 1.0)
    except UnsupportedError as refused:
        assert REFUSED in str(refused)
        return False
    finally:
        prepared.close()
    assert "tried on" in prepared.assumptions[0]
    return True


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("engine", [BookKeeping(), Opacus()])
@pytest.mark.parametrize("name", MIXING)
def test_a_loss_that_looks_at_its_batch_is_refused(name: str, engine: Any, public: bool) -> None:
    assert not any(accepted(MIXING[name], engine, seed, public=public) for seed in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("engine", [BookKeeping(), Opacus()])
@pytest.mark.parametrize("name", MIXING)
def test_it_is_refused_whatever_the_seed(name: str, engine: Any, public: bool) -> None:
    assert not any(accepted(MIXING[name], engine, seed, public=public) for seed in range(2, SEEDS))


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_loss_passes(name: str, public: bool) -> None:
    assert all(accepted(SOUND[name], BookKeeping(), seed, public=public) for seed in range(2))


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_it_is_refused_in_batches_of_any_size(count: int) -> None:
    rows = Rows(torch.randn(count, IN), torch.arange(count) % 2)
    with pytest.raises(UnsupportedError, match="with other targets beside it"):
        RowTrial(layers(2), among_present).on(rows, public=True)


def test_small_batches_are_tried_on_three_public_rows() -> None:
    rows = Rows(torch.randn(9, IN), torch.zeros(9, dtype=torch.int64))
    assert [len(public_trial(rows, rows, count)) for count in (1, 2.5, 4.2)] == [3, 3, 5]


def test_what_a_refusal_prevents() -> None:
    """One row fewer of sixteen moves the clipped sum by several clipping norms."""
    torch.manual_seed(0)
    model, bound = layers(2), 0.1
    rows = Rows(torch.randn(ROWS, IN), (torch.arange(ROWS) == 0).long())

    def clipped_sum(of: Rows) -> Tensor:
        total = torch.zeros(1)
        for loss in among_present(model(of.inputs), of.labels):
            gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            total = total + flat * (bound / flat.norm()).clamp(max=1)
        return total

    moved = clipped_sum(rows) - clipped_sum(rows.take(torch.arange(1, ROWS)))
    assert float(moved.norm()) > 5 * bound
    with pytest.raises(UnsupportedError, match=REFUSED):
        BookKeeping().engine(model, among_present).clipped_sum(rows, bound)


def test_targets_of_all_rows() -> None:
    own = torch.tensor([3, 3, 5, 3])
    batches = tables(own, torch.randn(4, 8), (0, 2))
    assert torch.equal(batches[0], own)
    assert [batch.unique().tolist() for batch in batches[1:2]] == [[3]]
    assert batches[2].tolist() == [0, 1, 2, 3], "all classes, in turn"
    assert {5, 0} <= {int(batch[0]) for batch in batches if len(batch.unique()) == 1}
    assert all(batch.dtype == own.dtype and batch.shape == own.shape for batch in batches)
    assert all(int(batch.max()) < 8 and int(batch.min()) >= 0 for batch in batches)
    zeros = torch.zeros(4, dtype=torch.int64)
    # One column: whoever has seen zeros alone may still meet ones.
    assert [batch[0].item() for batch in tables(zeros, torch.randn(4, 1), (0, 1))] == [0, 1]


@pytest.mark.parametrize(
    ("outputs", "targets", "classes"),
    [
        ((4, 3), (4,), 3),
        ((4, 3, 7), (4, 7), 3),
        ((4, 7, 3), (4, 7), 3),
        ((4, 7, 7), (4, 7), 7),
        ((4, 5, 2, 6), (4, 2, 6), 5),
        # Where it does not show, the largest target is all that is known.
        ((4, 3, 6), (4, 7), 2),
        ((4, 3), (4, 3), 2),
    ],
)
def test_classes_are_counted_where_torch_has_them(
    outputs: tuple[int, ...], targets: tuple[int, ...], classes: int
) -> None:
    own = torch.zeros(targets, dtype=torch.int64)
    own[0] = 1
    batches = tables(own, torch.randn(outputs), (0, 1))
    assert int(max(batch.max() for batch in batches)) + 1 == classes


def test_each_batch_has_a_row_among_others() -> None:
    (*singles, turns) = mixtures(6, 3, (0, 2))
    assert [index.tolist() for index in singles] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 2, 1, 1, 1],
        [0, 2, 2, 2, 2, 2],
    ]
    assert turns.tolist() == [0, 1, 2, 0, 1, 2]
    assert list(mixtures(6, 1, (0, 2))) == []


def test_rows_that_are_kept_are_where_they_were() -> None:
    for index, kept in companions(6, (0, 2)):
        assert torch.equal(index[kept], kept)
        assert len(kept)
