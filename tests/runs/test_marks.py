"""The mark of a folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.core.folders import locked_folder
from privtrain.core.result import Predictor, Row
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Run
from privtrain.runs.checkpoint import Identity
from privtrain.runs.marks import checked_mark, new_mark, read_mark, write_mark
from tests.runs.folders import contents

GENERATOR = torch.Generator().manual_seed(0)
DATA = FederatedData(
    train={
        f"p{k}": Rows(torch.randn(20, 3, generator=GENERATOR), torch.arange(20) % 2) for k in (0, 1)
    },
    test=Rows(torch.randn(30, 3, generator=GENERATOR), torch.arange(30) % 2),
    digest="d",
)
HERE = pt.Runtimes(star=pt.InProcess())
PARTS = Identity({"task": "ab", "data": "cd"})


def linear() -> nn.Module:
    return nn.Linear(3, 2)


TASK = Task(model=linear)


def test_a_mark_comes_back_and_holds_no_digest_without_a_key(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    mark = replace(new_mark(PARTS, {"torch": "1"}, one), finished=(("a note",), ()))
    write_mark(one / "run.id", mark)
    assert read_mark(one / "run.id") == mark
    assert checked_mark(one / "run.id", PARTS, {}, begun=()) == mark
    assert not {"ab", "cd"} & set(mark.parts.values())
    # Earlier versions wrote nothing of attempts, and who had none writes as they did.
    assert "aborted" not in (one / "run.id").read_text()
    aborted = replace(mark, aborted=("an error", "another one"))
    write_mark(one / "run.id", aborted)
    assert read_mark(one / "run.id") == aborted
    other = new_mark(PARTS, {"torch": "1"}, two)
    assert not set(other.parts.values()) & set(mark.parts.values())


def test_what_differs_is_named(tmp_path: Path) -> None:
    write_mark(tmp_path / "run.id", new_mark(PARTS, {"python": "3.11"}, tmp_path))
    other = Identity({"task": "ab", "data": "xy"})
    with pytest.raises(pt.DataError, match=r"other data\. It was begun with python 3.11"):
        checked_mark(tmp_path / "run.id", other, {"python": "3.12"}, begun=())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"schema": 2}', "cannot be read"),
        ('{"schema": 2, "parts": 3, "environment": {}, "noise": "", "finished": null}', "be read"),
        ("f" * 64, "version 0.1"),
        ('{"schema": 99}', "newer version"),
    ],
)
def test_a_damaged_or_foreign_mark_is_refused_by_its_name(
    text: str, said: str, tmp_path: Path
) -> None:
    trainers = {"pooled": pt.SGD(epochs=1)}
    pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)
    (tmp_path / "comparison.id").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(pt.DataError, match=said) as refused:
        pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert contents(tmp_path) == before


# Everything that a comparison is made of is exchanged for something of the same name.


def cell(source: str, name: str = "own") -> Any:
    """What a notebook's cell makes: it has no file."""
    space: dict[str, Any] = {}
    exec("import torch, functools\nfrom torch import nn\n" + source, space)
    return space[name]


LOSS = "def own(o, t): return nn.functional.cross_entropy(o, t, reduction='none') * {}"
CALLED = (
    "class Own:\n def __call__(self, o, t): return torch.ones(len(o)) * o.sum() * {}\nown = Own()"
)
METRIC = "def own(o, t): return {} / 10"
DROPPED = (
    "class Net(nn.Module):\n"
    " def __init__(self):\n  super().__init__(); self.layer = nn.Linear(3, 2)\n"
    " def forward(self, x): return self.layer(x) * {}\n"
    "def own(): return Net()"
)


def task_of(**settings: Any) -> Task:
    return replace(TASK, **settings)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda n: {"task": task_of(model=cell(DROPPED.format(n)))}, "initial model"),
        (lambda n: {"task": task_of(model=cell(f"own = lambda: nn.Linear(3, {n + 1})"))}, "model"),
        (lambda n: {"task": task_of(loss=cell(LOSS.format(n)))}, "task's loss"),
        (lambda n: {"task": task_of(loss=cell(CALLED.format(n)))}, "task's loss"),
        (lambda n: {"task": task_of(metrics={"accuracy": cell(METRIC.format(n))})}, "metrics"),
        (lambda n: {"attacks": [pt.LossThreshold()] * (n - 1)}, "attacks"),
        (lambda n: {"delta": 10.0 ** -(n + 2)}, "delta"),
        (lambda n: {"entropy": [pt.SEEDED, pt.SYSTEM][n - 1]}, "entropy"),
        (lambda n: {"data": replace(DATA, test=DATA.test.take(torch.arange(10 * n)))}, "data"),
        (lambda n: {"data": replace(DATA, validation=DATA.test if n == 2 else None)}, "data"),
    ],
)
def test_a_comparison_of_something_else_is_refused_and_nothing_changes(
    made: Callable[[int], dict[str, Any]], named: str, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {
        "trainers": {"pooled": pt.SGD(epochs=1)},
        "task": TASK,
        "data": DATA,
        "runtimes": HERE,
        "folder": tmp_path,
    }
    first = pt.compare(**(usual | made(1)))
    before = contents(tmp_path)
    with pytest.raises(pt.DataError, match=f"another run or comparison: other .*{named}"):
        pt.compare(**(usual | made(2)))
    assert contents(tmp_path) == before
    assert pt.compare(**(usual | made(1))).rows == first.rows


def trainer_of(n: int, form: str) -> Any:
    if form == "function":
        source = "def own(p, lr): return torch.optim.SGD(p, lr=lr * {})"
    elif form == "lambda":
        source = "own = lambda p, lr: torch.optim.SGD(p, lr=lr * {})"
    elif form == "partial":
        source = "own = functools.partial(torch.optim.SGD, momentum={} / 10)"
    elif form == "callable":
        source = (
            "class Own:\n __slots__ = ('k',)\n"
            " def __call__(self, p, lr): return torch.optim.SGD(p, lr=lr * self.k)\n"
            "own = Own(); own.k = {}"
        )
    else:
        source = (
            "class Own:\n def __init__(self, k): self.k = k\n"
            " def make(self, p, lr): return torch.optim.SGD(p, lr=lr * self.k)\n"
            "own = Own({}).make"
        )
    return pt.SGD(epochs=3, optimizer=cell(source.format(n)))


@pytest.mark.parametrize("form", ["function", "lambda", "partial", "callable", "method"])
def test_a_changed_trainer_is_trained_anew_beside_the_old_one(form: str, tmp_path: Path) -> None:
    def row_of(n: int) -> Row:
        trainers = {"own": trainer_of(n, form)}
        return pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path).rows[0]

    first, same = row_of(1), row_of(1)
    assert same == first and first.error is None
    (old,) = tmp_path.glob("own-seed-0-*")
    other = row_of(2)
    assert other.history != first.history
    assert len(list(tmp_path.glob("own-seed-0-*"))) == 2
    (note,) = [note for note in other.notes if "trained anew" in note]
    assert old.name in note
    assert row_of(1) == first and row_of(2) == other


def test_budgets_that_print_alike_are_two_rows(tmp_path: Path) -> None:
    trainers = {"DP-SGD": pt.DPSGD(epochs=1)}
    epsilons = (1.0, 1.0000001)
    made = pt.compare(
        trainers, TASK, DATA, epsilons=epsilons, delta=1e-3, runtimes=HERE, folder=tmp_path
    )
    assert [row.epsilon_asked for row in made.rows] == list(epsilons)
    assert not any("trained anew" in note for row in made.rows for note in row.notes)


def test_other_versions_are_noted_and_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = {"pooled": pt.SGD(epochs=1)}
    first = pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path).rows[0]
    monkeypatch.setattr("privtrain.runs.marks.versions", lambda: {"torch": "99.0"})
    again = pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path).rows[0]
    assert again.accuracy == first.accuracy
    assert f"torch {torch.__version__.partition('+')[0]}" in again.notes[-1]
    assert "(now 99.0)" in again.notes[-1]


class Counting:
    """A metric that keeps a count of its calls."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        self.total += len(targets)
        return float((outputs.argmax(dim=1) == targets).double().mean())


class Stopped(pt.SGD):
    """Is interrupted in the second row, once it has left a mark."""

    def train(self, task: Task, data: FederatedData, run: Run) -> Predictor:
        if STOP and run.seeds.seed == 1:
            raise KeyboardInterrupt
        return super().train(task, data, run)


STOP: list[bool] = []


def test_a_metric_that_counts_its_calls_can_go_on_when_it_is_made_anew(tmp_path: Path) -> None:
    def rows(counting: Counting) -> tuple[Row, ...]:
        task = task_of(metrics={"accuracy": counting})
        options: Any = {"runtimes": HERE, "seeds": (0, 1), "folder": tmp_path}
        return pt.compare({"a": Stopped(epochs=1)}, task, DATA, **options).rows

    STOP.append(True)
    with pytest.raises(KeyboardInterrupt):
        rows(Counting())
    (mark,) = tmp_path.glob("a-seed-1-*/run.id")
    assert mark.exists()
    STOP.clear()
    used = Counting()
    assert [row.error for row in rows(used)] == [None, None]
    assert used.total > 0
    with pytest.raises(
        pt.DataError, match=r"other task's metrics\. .*such as a count.*make it anew"
    ):
        rows(used)


class Failing(pt.SGD):
    """Is interrupted before its first step."""

    def train(self, task: Task, data: FederatedData, run: Run) -> Predictor:
        raise KeyboardInterrupt


def test_a_comparison_in_use_is_refused(tmp_path: Path) -> None:
    trainers = {"pooled": pt.SGD(epochs=1)}
    with pytest.raises(KeyboardInterrupt):
        pt.compare({"f": Failing()}, TASK, DATA, runtimes=HERE, folder=tmp_path)
    with locked_folder(tmp_path):
        before = contents(tmp_path)
        with pytest.raises(pt.DataError, match="is in use"):
            pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)
        assert contents(tmp_path) == before
    pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "newer"])
def test_a_damaged_row_is_refused_by_its_name(damage: str, tmp_path: Path) -> None:
    trainers = {"pooled": pt.SGD(epochs=1)}
    pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)
    (path,) = tmp_path.glob("*/row.json")
    plain = json.loads(path.read_text())
    assert plain["schema"] == 2
    text = path.read_text()[:100] if damage == "cut" else json.dumps(plain | {"schema": 3})
    path.write_text(text)
    before = contents(tmp_path)
    with pytest.raises(pt.DataError, match=r"row\.json"):
        pt.compare(trainers, TASK, DATA, runtimes=HERE, folder=tmp_path)
    assert contents(tmp_path) == before
