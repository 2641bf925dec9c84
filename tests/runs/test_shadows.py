"""Shadow models are those that `fit` trains on the halves, together or one by one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from joblib.externals import loky
from torch import nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.seeding import Seeds
from privtrain.core.task import COLUMNS, FederatedData, Rows, Task, binary_cross_entropy
from privtrain.data.models import MLP
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.release.shared import SharedSum
from privtrain.runs import shadows as module
from privtrain.runs.external import External
from privtrain.runs.fitting import fit
from privtrain.runs.shadows import Shadows, complementary_halves, shadows, values_of
from privtrain.runtimes.in_process import one_thread
from privtrain.sampling.batches import ShuffledEpochs
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.mpc_sgd import MPCSGD
from privtrain.trainers.sgd import SGD
from tests.runs.test_workers import Pool
from tests.trainers.federations import STAR, TASK, a_federation, some_rows


class OneByOne:
    """The plain twin: a trainer that can only train one model."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        for name in ("token", "plan", "input_privacy", "with_noise", "caveats", "train"):
            setattr(self, name, getattr(trainer, name))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def dropped_late() -> nn.Module:
    """Needs draws of its own, so that models are trained one by one."""
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def head() -> nn.Module:
    return nn.Linear(4, 3)


def narrow(rows: Rows) -> Rows:
    return Rows(rows.inputs.float(), rows.targets)


def same(one: Shadows, other: Shadows) -> bool:
    assert one.log_probabilities is not None and other.log_probabilities is not None
    return (
        np.array_equal(one.losses, other.losses)
        and np.array_equal(one.log_probabilities, other.log_probabilities)
        and np.array_equal(one.included, other.included)
    )


@pytest.mark.parametrize("parts", [(8,), (7,), (5, 1, 4), (0, 3)])
@pytest.mark.parametrize("count", [2, 6])
def test_each_row_is_in_exactly_half_of_the_models(parts: tuple[int, ...], count: int) -> None:
    included = complementary_halves(parts, count, seed=3)
    assert included.shape == (count, sum(parts))
    assert bool((included.sum(dim=0) == count // 2).all())
    assert torch.equal(included[1::2], ~included[::2])
    start = 0
    for rows in parts:
        inside = included[:, start : start + rows].sum(dim=1)
        assert set(inside.tolist()) <= {rows // 2, rows - rows // 2}
        start += rows


def test_halves_are_drawn_at_random_and_by_the_seed() -> None:
    drawn = complementary_halves((10, 9), 200, seed=0)
    assert torch.equal(drawn, complementary_halves((10, 9), 200, seed=0))
    assert not torch.equal(drawn, complementary_halves((10, 9), 200, seed=1))
    # Of 100 independent pairs, two rows of a party of ten are in one half with probability 4 / 9.
    together = (drawn[::2, 0] == drawn[::2, 1]).sum()
    assert 25 <= int(together) <= 64
    # The odd row falls to either side.
    assert 25 <= int((drawn[::2, 10:].sum(dim=1) == 5).sum()) <= 75


@pytest.mark.parametrize("count", [0, 3, 1])
def test_models_come_in_pairs(count: int) -> None:
    with pytest.raises(ValueError, match=f"count={count}"):
        shadows(SGD(epochs=1), TASK, a_federation(8), count=count)


@pytest.mark.parametrize("parts", [(41,), (9, 14)])
def test_models_trained_together_are_those_of_fit_to_the_bit(parts: tuple[int, ...]) -> None:
    data = a_federation(*parts)
    data = replace(data, train={name: narrow(rows) for name, rows in data.train.items()})
    data = replace(data, test=narrow(data.test))
    task, trainer = Task(model=MLP((5, 16, 3))), SGD(epochs=3, batch_size=4)
    made = shadows(trainer, task, data, count=4, seed=5, runtimes=STAR)
    assert not any("one by one" in note for note in made.notes)
    assert same(made, shadows(OneByOne(trainer), task, data, count=4, seed=5, runtimes=STAR))
    assert same(made, shadows(trainer, task, data, count=4, seed=5, runtimes=STAR))
    other = shadows(trainer, task, data, count=4, seed=6, runtimes=STAR)
    assert not same(made, other)
    # All of them differ: each has streams of its own.
    assert len({tuple(row) for row in made.losses}) == 4


class Particular(nn.Linear):
    """Takes no other weights than its own, as `torch.func` would give it."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.weight, nn.Parameter):
            raise TypeError("these weights are not mine")
        return super().forward(inputs)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (dropping, "dropout"),
        (lambda: nn.Sequential(Particular(5, 3)).double(), "not mine"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), head()).double(), "BatchNorm"),
    ],
)
def test_what_cannot_be_trained_together_is_trained_one_by_one(model: Any, why: str) -> None:
    task, trainer = Task(model=model), SGD(epochs=2, batch_size=4)
    made = shadows(trainer, task, a_federation(21), count=2, runtimes=STAR)
    assert any("one by one" in note and why in note for note in made.notes)
    assert same(made, shadows(OneByOne(trainer), task, a_federation(21), count=2, runtimes=STAR))


def test_memory_is_bounded_by_training_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, told = SGD(epochs=2, batch_size=4), list[int]()
    whole = shadows(trainer, TASK, a_federation(21), count=6)
    size = 8 * (5 * 4 + 4 + 4 * 3 + 3)
    monkeypatch.setattr(module, "_MEMORY", 4 * module._COPIES * size)
    real = SGD.train_many

    def counted(self: SGD, task: Any, data: Any, included: torch.Tensor, *further: Any) -> Any:
        told.append(len(included))
        return real(self, task, data, included, *further)

    monkeypatch.setattr(SGD, "train_many", counted)
    assert same(whole, shadows(trainer, TASK, a_federation(21), count=6))
    assert told == [4, 2]


def test_rows_that_cannot_be_trained_on_are_refused() -> None:
    with pytest.raises(DataError, match="diverged"):
        shadows(SGD(epochs=80, learning_rate=1e30), TASK, a_federation(9), count=2)
    with pytest.raises(DataError, match="'p1' holds no rows"):
        shadows(FedAvg(rounds=1), TASK, a_federation(4, 1), count=2)


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu() -> None:
    data = a_federation(8, 9, public_rows=17)
    for trainer in (SGD(epochs=2, batch_size=4), NOISED, FedAvg(rounds=2)):
        here, there = (
            shadows(trainer, TASK, data, count=2, device=device) for device in ("cpu", "cuda")
        )
        assert not any("one by one" in note for note in there.notes)
        np.testing.assert_allclose(here.losses, there.losses, rtol=0, atol=1e-9)


def test_members_of_a_half_are_learned() -> None:
    """Power: what a shadow model was trained on has a smaller loss there than elsewhere."""
    generator = torch.Generator().manual_seed(0)
    rows = Rows(torch.randn(40, 5, generator=generator), torch.arange(40) % 3)
    data = FederatedData(train={"p0": rows}, test=rows)
    task = Task(model=MLP((5, 64, 3)))
    made = shadows(SGD(epochs=150, batch_size=8), task, data, count=8)
    inside = np.where(made.included, made.losses, 0).sum() / made.included.sum()
    outside = np.where(made.included, 0, made.losses).sum() / (~made.included).sum()
    assert inside < 0.5 * outside


NOISED = DPSGD(epochs=2, expected_batch=4.0, release=Release(Gaussian(1.0, 1.0)))


@pytest.mark.parametrize(
    ("trainer", "public_rows", "noted"),
    [
        (FedAvg(rounds=2, local=PlainSteps(batch_size=4)), None, False),
        (NOISED, None, False),
        (NOISED, 17, False),
        (replace(NOISED, sampling=ShuffledEpochs()), None, True),
        (SGD(epochs=2, batch_size=None), None, False),
    ],
)
def test_each_model_is_the_one_of_fit(trainer: Any, public_rows: int | None, noted: bool) -> None:
    data = a_federation(8, 9, public_rows=public_rows)
    made = shadows(trainer, TASK, data, count=4, seed=1, runtimes=STAR)
    assert any("one by one" in note for note in made.notes) == noted
    assert same(made, shadows(trainer, TASK, data, count=4, seed=1, runtimes=STAR))
    for number in range(4):
        # By hand: the rows of its half at their parties.
        marks = torch.from_numpy(made.included[number]).split([8, 9])
        train = {
            name: data.train[name].take(own.nonzero().flatten())
            for name, own in zip(data.parties, marks, strict=True)
        }
        seed = int.from_bytes(Seeds(1)["shadow model", number, ""].key[:8], "little")
        alone = fit(trainer, TASK, replace(data, train=train), seed=seed, runtimes=STAR)
        losses, _ = values_of(alone.predictor, TASK, data.pooled())
        np.testing.assert_allclose(losses.numpy(), made.losses[number], rtol=0, atol=1e-9)


def test_the_twin_of_a_secure_trainer_is_trained_and_named() -> None:
    trainer = MPCSGD(epochs=2, batch_size=4)
    data = a_federation(9, 8)
    made = shadows(trainer, TASK, data, count=2)
    assert any("plaintext twin" in note for note in made.notes)
    assert not any("one by one" in note for note in made.notes)
    assert same(made, shadows(trainer.plaintext_twin(), TASK, data, count=2))


def test_sums_on_shares_are_plain_sums_of_shadow_models() -> None:
    """That the model on shares is the same up to fixed point, a test of `FedAvg` says."""
    data = a_federation(9, 8)
    trainer = FedAvg(rounds=2, release=Release(aggregation=SharedSum()))
    made = shadows(trainer, TASK, data, count=2)
    assert any("sums of shadow models are plain" in note for note in made.notes)
    assert same(made, shadows(FedAvg(rounds=2), TASK, data, count=2))
    assert not any("plain" in n for n in shadows(FedAvg(rounds=2), TASK, data, count=2).notes)


def stopping(after: int) -> Any:
    def told(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize(
    ("trainer", "kept"),
    [(SGD(epochs=2, batch_size=4), 8), (OneByOne(SGD(epochs=2, batch_size=4)), 3), (NOISED, 8)],
)
def test_who_was_interrupted_goes_on_to_the_same_bits(
    trainer: Any, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = a_federation(8, 9)
    given: Any = {"count": 10, "seed": 1, "runtimes": STAR}
    whole = shadows(trainer, TASK, data, **given)
    with pytest.raises(KeyboardInterrupt):
        shadows(trainer, TASK, data, **given, folder=tmp_path, progress=stopping(kept))
    files = sorted(tmp_path.glob("shadows-*/*.answers"))
    assert len(files) == kept
    before = [path.stat().st_mtime_ns for path in files]
    again = shadows(trainer, TASK, data, **given, folder=tmp_path)
    assert same(whole, again) and whole.notes == again.notes
    # What was there was not made again, nor is anything now.
    assert [path.stat().st_mtime_ns for path in files] == before
    monkeypatch.setattr(module.Design, "_chunks", None)
    monkeypatch.setattr(module.Design, "_alone", None)
    assert same(whole, shadows(trainer, TASK, data, **given, folder=tmp_path))


def test_what_is_kept_serves_fewer_and_more_models(tmp_path: Path) -> None:
    trainer, data = SGD(epochs=2, batch_size=4), a_federation(8, 9)
    for count in (4, 12, 2):
        made = shadows(trainer, TASK, data, count=count, folder=tmp_path)
        assert same(made, shadows(trainer, TASK, data, count=count))
    assert len(list(tmp_path.glob("shadows-*/*.answers"))) == 12


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    trainer, data = SGD(epochs=2, batch_size=4), a_federation(8, 9)
    made = shadows(trainer, TASK, data, count=2, folder=tmp_path)
    first, _ = sorted(tmp_path.glob("shadows-*/*.answers"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-7])
    assert same(made, shadows(trainer, TASK, data, count=2, folder=tmp_path))
    assert first.read_bytes() == whole


def test_other_shadow_models_lie_beside_them(tmp_path: Path) -> None:
    trainer, data = SGD(epochs=2, batch_size=4), a_federation(8, 9)
    changed = replace(data.train["p0"], inputs=data.train["p0"].inputs + 1e-9)
    others: list[tuple[Any, ...]] = [
        (trainer, TASK, data, 0),
        (trainer, TASK, data, 1),
        (replace(trainer, epochs=3), TASK, data, 0),
        (trainer, replace(TASK, model=MLP((5, 6, 3), torch.float64)), data, 0),
        (trainer, TASK, replace(data, train={**data.train, "p0": changed}), 0),
        (trainer, TASK, replace(data, public_rows=17), 0),
    ]
    made = [shadows(*o[:3], count=2, seed=o[3], folder=tmp_path) for o in others]
    assert len(list(tmp_path.glob("shadows-*"))) == len(others)
    for other, first in zip(others, made, strict=True):
        assert same(first, shadows(*other[:3], count=2, seed=other[3], folder=tmp_path))
        assert same(first, shadows(*other[:3], count=2, seed=other[3]))


def test_notes_are_kept_with_what_they_are_about(tmp_path: Path) -> None:
    task = Task(model=dropping)
    given: Any = {"count": 2, "runtimes": STAR, "folder": tmp_path}
    made = shadows(SGD(epochs=1), task, a_federation(9), **given)
    assert any("one by one" in note for note in made.notes)
    assert shadows(SGD(epochs=1), task, a_federation(9), **given).notes == made.notes


def by_lambda() -> SGD:
    return SGD(epochs=2, batch_size=4, optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9))


def test_workers_train_the_same_models_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a trainer with a lambda, which plain pickles would refuse; noise follows from its code.

    In threads, one after the other; that a process makes the same, a test of `in_processes` says.
    """
    monkeypatch.setattr(loky, "ProcessPoolExecutor", Pool)
    trainer, data = replace(NOISED, optimizer=by_lambda().optimizer), a_federation(8, 9)
    given: Any = {"count": 4, "seed": 1, "runtimes": STAR}
    with one_thread():
        alone = shadows(trainer, Task(model=dropped_late), data, **given)
    told, ended = list[int](), len(Pool.ended)
    made = shadows(
        *(trainer, Task(model=dropped_late), data),
        **given,
        folder=tmp_path,
        workers=2,
        progress=lambda done, total: told.append(done),
    )
    assert same(made, alone) and made.notes == alone.notes
    assert told == [1, 2, 3, 4] and len(list(tmp_path.glob("shadows-*/*.answers"))) == 4
    assert Pool.ended[ended:] == [False]


class Unpicklable(OneByOne):
    def __reduce__(self) -> Any:
        raise TypeError("a connection does not pickle")


def test_what_cannot_be_pickled_is_trained_in_one_process() -> None:
    trainer, data = Unpicklable(SGD(epochs=1)), a_federation(8)
    made = shadows(trainer, TASK, data, count=2, runtimes=STAR, workers=2)
    assert any("a connection does not pickle" in note for note in made.notes)
    assert same(made, shadows(trainer, TASK, data, count=2, runtimes=STAR))
    with pytest.raises(ValueError, match="workers=0"):
        shadows(trainer, TASK, data, count=2, workers=0)


def test_columns_are_halved_by_rows() -> None:
    rows = some_rows(0, 12)
    parts = {
        "p0": Rows(rows.inputs[:, :2], rows.targets),
        "p1": Rows(rows.inputs[:, 2:]),
    }
    data = FederatedData(train=parts, test=rows, split=COLUMNS, label_holder="p0")
    made = shadows(SGD(epochs=1), TASK, data, count=2)
    whole = FederatedData(train={"p0": rows}, test=rows)
    assert same(made, shadows(SGD(epochs=1), TASK, whole, count=2))


def test_a_model_that_was_trained_elsewhere_has_none() -> None:
    with pytest.raises(UnsupportedError, match="elsewhere"):
        shadows(External(lambda inputs: inputs), TASK, a_federation(8), count=2)


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        # Two steps of eight models, then of two: half of them, and all.
        (SGD(epochs=2, batch_size=None), [4, 8, 9, 10]),
        (FedAvg(rounds=4), [2, 4, 6, 8, 9, 10]),
        (OneByOne(SGD(epochs=1)), [*range(1, 11)]),
    ],
)
def test_progress_is_told_in_models(trainer: Any, expected: list[int]) -> None:
    told = list[tuple[int, int]]()
    data = a_federation(8)
    shadows(trainer, TASK, data, count=10, runtimes=STAR, progress=lambda *seen: told.append(seen))
    assert told == [(done, 10) for done in expected]


def test_noised_models_tell_progress_within_a_chunk() -> None:
    told = list[int]()
    shadows(NOISED, TASK, a_federation(17), count=2, progress=lambda done, _: told.append(done))
    assert told == [1, 2]


def test_values_are_losses_and_log_probabilities_in_double_precision() -> None:
    outputs = torch.tensor([[2.0, -1.0, 0.0], [100.0, -100.0, 0.0]])
    rows = Rows(torch.zeros(2, 1), torch.tensor([0, 1]))
    losses, logs = values_of(lambda inputs: outputs, TASK, rows)
    assert logs is not None and losses.dtype == logs.dtype == torch.float64
    exact = 2 - np.log(np.exp([2.0, -1.0, 0.0]).sum())
    np.testing.assert_allclose(logs.numpy(), [exact, -200.0], rtol=1e-15)
    assert torch.equal(losses, -logs)
    one = Task(model=MLP((1, 1)), loss=binary_cross_entropy)
    losses, logs = values_of(lambda inputs: outputs[:, :1], one, rows)
    assert logs is not None
    np.testing.assert_allclose(
        logs.numpy(), [-2 - np.log1p(np.exp(-2.0)), -np.exp(-100.0)], rtol=1e-12
    )
    squared = Task(model=MLP((1, 1)), loss=lambda outputs, targets: (outputs[:, 0] - targets) ** 2)
    real = Rows(torch.zeros(2, 1), torch.tensor([1.5, 0.25]))
    losses, logs = values_of(lambda inputs: outputs[:, :1], squared, real)
    assert logs is None and losses.tolist() == [0.25, 99.75**2]
