"""Reproductions of PATE: rows are split as the page says, and a finished run is not lost."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import privtrain as pt
from privtrain.core.task import Rows, Task
from privtrain.data.models import MLP
from reproductions import pate
from reproductions.pate import Args, Job


def test_images_are_split_by_seed_and_none_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(60_000)
    rows, test = Rows(numbers[:, None].float(), numbers % 10), Rows(torch.zeros(3, 1), numbers[:3])
    task = Task(model=MLP((1, 10)))
    monkeypatch.setattr(pate, "images", lambda directory: (task, rows, test))
    parts = []
    for validation in (False, True):
        _, data, measured = pate.problem("mnist", None, 4, validation)
        assert data.public is not None and data.public.targets is None
        private, public = data.train["all"].inputs[:, 0], data.public.inputs[:, 0]
        assert len(public) == 10_000 and data.public_rows == len(private)
        assert len(private) == (40_000 if validation else 50_000)
        seen = [private, public, *([measured.inputs[:, 0]] if validation else [])]
        assert torch.equal(torch.cat(seen).sort().values, numbers.float())
        assert validation or measured is test
        parts.append(public)
    assert torch.equal(*parts)
    _, other, _ = pate.problem("mnist", None, 5, False)
    assert other.public is not None and not torch.equal(other.public.inputs[:, 0], parts[0])


def test_the_noise_of_the_headline_keeps_its_promise() -> None:
    """What may be published, without a look at any vote."""
    rows = Rows(torch.zeros(2, 1, 28, 28), torch.arange(2))
    data = pt.FederatedData(train={"all": rows}, test=rows, public=rows, public_rows=50_000)
    trainer = pt.calibrate(pate.MNIST, data, epsilon=1.75, delta=1e-5)
    sigma = trainer.release.mechanism.sigma  # type: ignore[attr-defined]
    assert 40 < sigma < 60
    # Two classes and no gap: nobody can promise less than that Gaussian (0.798 sqrt(2 q) / sigma).
    mu = math.sqrt(2 / math.pi) * math.sqrt(2 * pate.MNIST.queries) / sigma
    assert 0.85 * 1.75 < gaussian_epsilon(mu) < 1.75


def gaussian_epsilon(mu: float) -> float:
    """Of a Gaussian of sensitivity mu and noise 1, at delta 1e-5."""
    low, high = 0.0, 20.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        upper, lower = (
            0.5 * math.erfc(x / math.sqrt(2)) for x in (middle / mu - mu / 2, middle / mu + mu / 2)
        )
        low, high = (middle, high) if upper - math.exp(middle) * lower > 1e-5 else (low, middle)
    return high


def test_finished_runs_are_kept_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pate, "RESULTS", tmp_path / "results" / "pate.json")
    figures = {
        "noise": "GNMax(sigma=46)",
        "answers": 300,
        "epsilon_public": 1.749,
        "epsilon_private": 0.5,
        "cpu_seconds": 100.0,
    }
    accuracy = iter([0.98, 0.982, 0.5])
    monkeypatch.setattr(
        pate, "trained", lambda job, args: {**vars(job), **figures, "accuracy": next(accuracy)}
    )
    args = Args(only=("mnist",), seeds=2)
    assert pate.main(args) == 0
    assert [row["accuracy"] for row in pate.read()] == [0.98, 0.982]
    capsys.readouterr()
    assert pate.main(args) == 0
    assert "2 of 2 runs are in" in capsys.readouterr().out
    assert pate.main(replace(args, table=True)) == 0
    shown = capsys.readouterr().out
    assert "| mnist | 1.75 | GNMax(sigma=46) | 300 | 1.749 | 0.500 | 98.10 (98.00–98.20) " in shown
    assert pate.main(replace(args, validation=True, seeds=1)) == 0
    assert len(json.loads(pate.RESULTS.read_text())["rows"]) == 2


def test_each_study_has_its_runs() -> None:
    found = list(pate.jobs(Args(seeds=1)))
    assert Job(study="digits", epsilon=8.0, seed=0) in found
    assert Job(study="adult", epsilon=None, seed=0, private=False) in found
    assert len(found) == len(set(found)) == 7


def test_digits_are_trained_and_measured() -> None:
    """A small study from end to end; its epsilon is that of what was asked."""
    job = Job(study="digits", epsilon=8.0, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        quick = replace(pate.STUDIES["digits"].trainer, student=pt.SemiSupervised(steps=40))
        study = replace(pate.STUDIES["digits"], trainer=quick)
        patch.setitem(pate.STUDIES, "digits", study)
        row = pate.trained(job, Args(validation=True))
    assert 7.5 < float(str(row["epsilon_public"])) <= 8.0
    assert float(str(row["accuracy"])) > 0.5
    assert row["answers"] == 20
