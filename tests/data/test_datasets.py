"""Known data sets: fixed test rows, public constants, and models that learn them."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.task import COLUMNS, FederatedData, Rows, Task
from privtrain.data import ByColumn, Dirichlet, Shards, adult, breast_cancer, digits, mnist
from privtrain.data.constants import ADULT_FEATURES
from privtrain.data.files import MNIST, locate, read_bytes
from tests.statistics import ALARM

Loader = Callable[..., tuple[Task, FederatedData]]
EMBEDDED = [(digits, 1797, 64), (breast_cancer, 569, 30)]


def fingerprints(inputs: Tensor) -> list[bytes]:
    return sorted(row.numpy().tobytes() for row in inputs)


def all_inputs(data: FederatedData) -> Tensor:
    parts: list[Rows | None] = [data.pooled(), data.test, data.validation, data.public]
    return torch.cat([part.inputs for part in parts if part is not None])


@pytest.mark.parametrize(("loader", "total", "features"), EMBEDDED)
def test_every_row_is_somewhere_once(loader: Loader, total: int, features: int) -> None:
    _, data = loader(parties=7, partition=Dirichlet(0.3), public_fraction=0.1)
    _, plain = loader(parties=1, validation_fraction=0.0)
    assert all_inputs(data).shape == (total, features)
    assert fingerprints(all_inputs(data)) == fingerprints(all_inputs(plain))
    assert data.validation is not None
    # Each row by a coin of its own: sizes vary like sums of coins.
    for part, asked in ((data.test, 0.2), (data.validation, 0.1), (data.public, 0.1)):
        assert part is not None
        assert stats.binomtest(len(part), total, asked).pvalue > ALARM
    assert data.public is not None
    assert data.public.targets is None
    # A figure from the documentation, not what happened to fall to training.
    assert data.public_rows == round(0.6 * total)
    assert data.public_rows != len(data.pooled())
    assert data.by_coin
    assert plain.validation is None


@pytest.mark.parametrize(("loader", "total", "features"), EMBEDDED)
def test_the_seed_moves_rows_among_parties_only(loader: Loader, total: int, features: int) -> None:
    _, first = loader(parties=5, seed=0)
    _, again = loader(parties=5, seed=0)
    _, other = loader(parties=5, seed=1, partition=Shards(2), validation_fraction=0.2)
    assert torch.equal(first.train["party-2"].inputs, again.train["party-2"].inputs)
    assert not torch.equal(first.train["party-2"].labels, other.train["party-2"].labels)
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert torch.equal(first.test.labels, other.test.labels)
    assert first.digest == other.digest
    assert len(first.digest) == 64


@pytest.mark.parametrize(("loader", "total", "features"), EMBEDDED)
def test_values_lie_in_the_public_range(loader: Loader, total: int, features: int) -> None:
    for dtype in (torch.float32, torch.float64):
        task, data = loader(dtype=dtype)
        inputs = all_inputs(data)
        assert inputs.dtype == dtype
        assert float(inputs.min()) >= 0.0
        assert float(inputs.max()) <= 1.0
        assert task.model()(data.test.inputs).dtype == dtype
        assert data.test.labels.dtype == torch.int64


def test_digits_are_divided_by_sixteen() -> None:
    from sklearn.datasets import load_digits

    _, data = digits(parties=3)
    expected = torch.from_numpy(load_digits().data / 16).float()
    assert fingerprints(all_inputs(data)) == fingerprints(expected)


@pytest.mark.parametrize(("loader", "least"), [(digits, 0.95), (breast_cancer, 0.95)])
def test_the_default_model_learns(loader: Loader, least: float) -> None:
    task, data = loader(parties=2)
    train = data.pooled()
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(20):
        order = torch.randperm(len(train))
        for start in range(0, len(train), 64):
            batch = order[start : start + 64]
            optimizer.zero_grad()
            task.loss(model(train.inputs[batch]), train.labels[batch]).mean().backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
    assert task.metrics["accuracy"](model(data.test.inputs), data.test.labels) >= least


def test_models_of_known_sets() -> None:
    sizes = {
        loader.__name__: sum(p.numel() for p in loader()[0].model().parameters())
        for loader in (digits, breast_cancer)
    }
    assert sizes == {"digits": 4_810, "breast_cancer": 62}
    wide, _ = breast_cancer(hidden=8)
    assert sum(p.numel() for p in wide.model().parameters()) == 30 * 8 + 8 + 8 * 2 + 2


def test_tasks_and_data_pickle() -> None:
    task, data = pickle.loads(pickle.dumps(digits(parties=4)))
    assert task.model()(data.train["party-3"].inputs).shape[1] == 10


def test_parties_may_have_names() -> None:
    _, data = breast_cancer(parties=("north", "south", "west"))
    assert data.parties == ("north", "south", "west")
    with pytest.raises(ValueError, match="parties='north'"):
        breast_cancer(parties="north")  # type: ignore[arg-type]  # the mistake that is tested


def test_columns_keep_their_order_in_test_rows() -> None:
    _, plain = breast_cancer(parties=2)
    columns = (tuple(range(20, 30)), tuple(range(20)))
    _, data = breast_cancer(parties=2, partition=ByColumn(columns, label_holder="party-1"))
    assert data.split is COLUMNS
    assert data.label_holder == "party-1"
    assert data.train["party-0"].targets is None
    assert data.train["party-0"].inputs.shape == (len(plain.pooled()), 10)
    order = [*columns[0], *columns[1]]
    assert torch.equal(data.test.inputs, plain.test.inputs[:, order])
    assert fingerprints(data.pooled().inputs) == fingerprints(plain.pooled().inputs[:, order])
    assert torch.equal(data.pooled().labels.sort().values, plain.pooled().labels.sort().values)


def test_too_many_parties() -> None:
    with pytest.raises(DataError, match=r"parties=400.*398"):
        breast_cancer(parties=400)
    with pytest.raises(ValueError, match="parties=0"):
        breast_cancer(parties=0)
    with pytest.raises(ValueError, match=r"parties=2\.5"):
        breast_cancer(parties=2.5)  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ValueError, match=r"parties=\(\)"):
        breast_cancer(parties=())
    with pytest.raises(ValueError, match="'north' occurs twice"):
        breast_cancer(parties=("north", "north"))
    with pytest.raises(ValueError, match=r"seed=0\.5"):
        breast_cancer(seed=0.5)  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ValueError, match=r"test_fraction=0\.8.*leave"):
        digits(test_fraction=0.8, validation_fraction=0.2)


@pytest.mark.slow
def test_mnist(data_directory: Path) -> None:
    published = [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]
    found = [hashlib.md5(read_bytes(path)).hexdigest() for path in locate(MNIST, data_directory)]
    assert found == published
    task, data = mnist(data_directory, parties=3)
    assert data.public_rows == 54_000
    assert data.test.inputs.shape == (10_000, 1, 28, 28)
    assert stats.binomtest(len(data.pooled()), 60_000, 0.9).pvalue > ALARM
    assert data.train["party-1"].inputs.shape[1:] == (1, 28, 28)
    assert float(data.test.inputs.max()) == 1.0
    assert torch.bincount(data.test.labels)[:3].tolist() == [980, 1135, 1032]
    assert task.model()(data.test.inputs[:2]).shape == (2, 10)


@pytest.mark.slow
def test_flat_mnist_is_the_same_pictures(data_directory: Path) -> None:
    task, data = mnist(data_directory, parties=1, flat=True, validation_fraction=0.0)
    assert data.validation is None
    assert data.train["party-0"].inputs.shape == (60_000, 784)
    # The mean grey level of the training images that everybody quotes.
    assert float(data.train["party-0"].inputs.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert task.model()(data.test.inputs[:2]).shape == (2, 10)


def test_adult(data_directory: Path) -> None:
    task, data = adult(data_directory, parties=4, validation_fraction=0.0)
    pooled = data.pooled()
    assert ADULT_FEATURES == 108
    assert pooled.inputs.shape == (32_561, 108)
    assert data.test.inputs.shape == (16_281, 108)
    assert torch.bincount(pooled.labels).tolist() == [24_720, 7_841]
    assert torch.bincount(data.test.labels).tolist() == [12_435, 3_846]
    inputs = all_inputs(data)
    assert float(inputs.min()) >= 0.0
    assert float(inputs.max()) <= 1.0
    assert bool((((inputs == 0) | (inputs == 1)).sum(dim=1) >= 102).all())  # 108 less 6 numbers
    assert task.model()(data.test.inputs[:2]).shape == (2, 2)
