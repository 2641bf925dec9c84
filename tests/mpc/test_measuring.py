"""From rows that are measured to bounds, and from bounds to a training that is refused or right."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import to_vector
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData, Rows, Task, binary_cross_entropy
from privtrain.data.datasets import digits
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.measuring import measured_ranges
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess
from privtrain.runtimes.threads import Threads
from privtrain.trainers.mpc_sgd import MPCSGD
from privtrain.trainers.sgd import SGD
from tests.mpc.federations import by_columns, by_rows, perceptron

RUNTIMES = Runtimes(star=InProcess(), mesh=Threads())
LARGE = 4000.0


def weights_of(trainer: object, task: Task, data: FederatedData, seed: int = 5) -> Tensor:
    result = fit(trainer, task, data, runtimes=RUNTIMES, seed=seed)  # type: ignore[arg-type]
    return to_vector(result.predictor.module.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("data", [by_rows(), by_columns()], ids=["rows", "columns"])
def test_steps_are_those_of_the_plaintext_twin(data: FederatedData) -> None:
    trainer = MPCSGD(epochs=3, batch_size=20, learning_rate=0.25, momentum=0.9)
    task = Task(model=perceptron)
    ranges = measured_ranges(trainer, task, data, seed=5)
    trained = weights_of(trainer.plaintext_twin(), task, data)
    last = measured_ranges(replace(trainer, epochs=1), task, data, seed=5)
    assert ranges.steps == 3 * 5
    assert ranges.rows == float(data.pooled().inputs.abs().max())
    # Weights grow from step to step here, so that the last ones are the largest.
    assert ranges.weights == pytest.approx(float(trained.abs().max()), rel=1e-4)
    assert ranges.weights > last.weights
    other = measured_ranges(trainer, task, data, seed=6)
    assert other.weights != pytest.approx(ranges.weights, rel=1e-4)


def test_pictures_are_measured_as_the_model_takes_them() -> None:
    def cnn() -> nn.Module:
        layers = nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(2, 1))

    inputs = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    rows = Rows(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    data = FederatedData(train={"public": rows}, test=rows)
    trainer = MPCSGD(epochs=1, batch_size=4)
    ranges = measured_ranges(trainer, Task(model=cnn, loss=binary_cross_entropy), data)
    assert ranges.steps == 3
    names = [(each.layer, each.name) for each in ranges.operations]
    assert ("2", "sums of windows") in names
    assert ("the loss", "sigmoid") in names
    with pytest.raises(UnsupportedError, match="CrypTen"):
        measured_ranges(replace(trainer, engine=CrypTen()), Task(model=cnn), data)
    with pytest.raises(ValueError, match=r"seed=0\.5"):
        measured_ranges(trainer, Task(model=cnn), data, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trainer=.*pt\.MPCSGD\(\)"):
        measured_ranges(SGD(), Task(model=cnn), data)  # type: ignore[arg-type]


def test_bounds_that_were_measured_let_the_same_training_run() -> None:
    task, data = digits(parties=3, seed=0)
    trainer = MPCSGD(epochs=1, batch_size=400, learning_rate=0.5)
    ranges = measured_ranges(trainer, task, data)
    bounded = replace(trainer, bounds=ranges.bounds(1.5))
    result = fit(bounded, task, data, runtimes=RUNTIMES, seed=0)
    assert not any("stated bound" in note for note in result.notes)
    # Without bounds of layers, weights as large as this are refused by their worst case.
    wide = replace(trainer, bounds=Bounds(rows=16.0, weights=4000.0))
    with pytest.raises(DataError, match=r"product \(layer '2'\).* lacks \d+ bits"):
        fit(wide, task, data, runtimes=RUNTIMES, seed=0)


class Steep(nn.Module):
    """One unit whose gradient is a thousand times as large as what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.first.weight.fill_(2.0**-12)
            self.head.weight.copy_(torch.tensor([[LARGE], [-LARGE]]))

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.first(rows).relu())  # type: ignore[no-any-return]


def wrong_labels(count: int) -> FederatedData:
    rows = Rows(torch.full((count, 1), LARGE), torch.ones(count, dtype=torch.int64))
    return FederatedData(train={"party-0": rows}, test=rows)


STEEP = Task(model=Steep)
ONE_STEP = MPCSGD(epochs=1, batch_size=None, learning_rate=2.0**-30)
CLAIMS = Bounds(rows=LARGE, weights=LARGE + 1, layers={"first": 1.0})
"""What the only step keeps to: the layer computes 4000 / 2^12, which is below 1."""


def test_a_training_that_wraps_around_is_refused_once_bounds_are_stated() -> None:
    # The gradient of the first weight is 128 x 4000 x 8000, which is 2^31.9: 2^63.9 as an integer.
    data = wrong_labels(128)
    plain = weights_of(ONE_STEP.plaintext_twin(), STEEP, data)
    wrapped = weights_of(ONE_STEP, STEEP, data)
    # Nothing tells: the first weight has another sign, and values stay within every range.
    assert [float(each[0]) < 0 for each in (plain, wrapped)] == [True, False]
    assert float((plain - wrapped).abs().max()) > 0.02
    with pytest.raises(DataError, match="batches of 128") as refused:
        weights_of(replace(ONE_STEP, bounds=CLAIMS), STEEP, data)
    assert "gradient of the weights (layer 'first')" in str(refused.value)
    assert "integer of 63.9 bits, where ring64 has 62.0: it lacks 2 bits." in str(refused.value)
    ranges = measured_ranges(ONE_STEP, STEEP, data)
    lacking, *_ = (each for each in ranges.operations if each.lacks)
    assert (str(lacking), lacking.lacks) == ("gradient of the weights (layer 'first')", 2)


def test_a_refusal_comes_before_a_row_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("rows were shared")

    monkeypatch.setattr("privtrain.trainers.mpc_sgd.share", never)
    with pytest.raises(DataError, match="lacks 1 bit"):
        weights_of(replace(ONE_STEP, bounds=CLAIMS), STEEP, wrong_labels(64))
    with pytest.raises(AssertionError, match="rows were shared"):
        weights_of(replace(ONE_STEP, bounds=CLAIMS), STEEP, wrong_labels(32))


def test_rows_of_parties_that_hold_columns_are_counted_once() -> None:
    trainer = MPCSGD(batch_size=None, bounds=Bounds(rows=4.0, weights=4095.0))
    for data in (by_rows(), by_columns()):
        with pytest.raises(DataError, match="batches of 90"):
            fit(trainer, Task(model=perceptron), data, runtimes=RUNTIMES)


def test_a_training_just_inside_its_bounds_is_right() -> None:
    data = wrong_labels(32)
    plain = weights_of(ONE_STEP.plaintext_twin(), STEEP, data)
    result = fit(replace(ONE_STEP, bounds=CLAIMS), STEEP, data, runtimes=RUNTIMES, seed=5)
    trained = to_vector(result.predictor.module.parameters())  # type: ignore[attr-defined]
    assert float((plain - trained).abs().max()) < 1e-4
    assert float(trained[0]) < -0.02
    # After the step the layer computes far more than was stated, which the opened weights show.
    (said,) = [note for note in result.notes if "stated bound" in note]
    assert "false under the opened weights: the layer 'first' computes" in said
    assert "beyond the stated 1.0" in said


def test_what_is_false_from_the_start_is_refused_by_its_holder() -> None:
    data = wrong_labels(8)
    for claims, said in (
        ({"rows": LARGE - 1}, "The inputs of party-0 reach 4000, beyond the stated rows=3999"),
        ({"weights": LARGE - 1}, "layer 'head' reach 4000, beyond the stated weights=3999"),
        ({"layers": {"first": 0.9}}, "the layer 'first' computes 0.97.*, beyond the stated 0.9"),
        ({"layers": {"frist": 0.9}}, "has no 'frist', but .*Did you mean 'first'"),
    ):
        trainer = replace(ONE_STEP, bounds=replace(CLAIMS, **claims))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=said):
            fit(trainer, STEEP, data, runtimes=RUNTIMES)
    with pytest.raises(ValueError, match=r"bounds=\(1, 2\) to be a Bounds, such as Bounds\(rows="):
        MPCSGD(bounds=(1, 2))  # type: ignore[arg-type]


def test_a_trainer_without_bounds_prints_as_it_always_did() -> None:
    assert "bounds" not in repr(MPCSGD())
    assert repr(replace(MPCSGD(), bounds=Bounds(rows=1, weights=2))).endswith(
        "bounds=Bounds(rows=1, weights=2, layers=(), gradients=()))"
    )


def test_a_false_bound_of_gradients_is_refused_in_the_first_step() -> None:
    """It would turn off the check of all that is computed from it."""
    claims = replace(CLAIMS, gradients={"head": 1.0})
    with pytest.raises(DataError, match=r"the layer 'head' hands back \d+.* gradients 1\.0"):
        weights_of(replace(ONE_STEP, bounds=claims), STEEP, wrong_labels(32))
    true = replace(CLAIMS, gradients={"head": 2 * LARGE})
    weights_of(replace(ONE_STEP, bounds=true), STEEP, wrong_labels(32))
