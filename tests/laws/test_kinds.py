"""What is of the wrong kind is refused when a value is made, or before anything is trained."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

import privtrain as pt

NOISE = pt.Gaussian(1.0, 1.0)

MADE: list[tuple[str, Callable[[], object], str]] = [
    ("sampling", lambda: pt.FedAvg(sampling=10), "Everyone()"),
    ("sampling", lambda: pt.FedAvg(sampling=pt.Poisson), "no class"),
    ("sampling", lambda: pt.DPSGD(sampling=64), "PoissonBatches()"),
    ("server_optimizer", lambda: pt.FedAvg(server_optimizer="adam"), "functools.partial"),
    ("server_optimizer", lambda: pt.FedAvg(server_optimizer=0.1), "functools.partial"),
    ("local", lambda: pt.FedAvg(local="plain"), "PlainSteps()"),
    ("local", lambda: pt.FedAvg(local=pt.PlainSteps), "PlainSteps()"),
    ("local", lambda: pt.FedAvg(local=pt.SGD()), "PlainSteps()"),
    ("weights", lambda: pt.FedAvg(weights="uniform"), "Uniform()"),
    ("release", lambda: pt.FedAvg(release=NOISE), "Release(Gaussian"),
    ("release", lambda: pt.FedAvg(release=pt.Release), "Release(Gaussian"),
    ("release", lambda: pt.DPSGD(release=NOISE), "Release(Gaussian"),
    ("release", lambda: pt.PATE(release=pt.GNMax(1.0)), "Release(GNMax"),
    ("consensus", lambda: pt.PATE(consensus=pt.GNMax(1.0)), "Threshold"),
    ("steps", lambda: pt.PATE(steps="sgd"), "PlainSteps()"),
    ("student", lambda: pt.PATE(student=pt.PlainSteps), "PlainSteps()"),
    ("release", lambda: pt.MPCSGD(release=NOISE), "Release()"),
    ("engine", lambda: pt.MPCSGD(engine="crypten"), "Ring64()"),
    ("engine", lambda: pt.MPCSGD(engine=pt.CrypTen), "Ring64()"),
    ("engine", lambda: pt.SharedSum("crypten"), "Ring64()"),
    ("gradients", lambda: pt.DPSGD(gradients="opacus"), "BookKeeping()"),
    ("finish", lambda: pt.Release(NOISE, finish="argmax"), "ARGMAX"),
    ("finish", lambda: pt.Release(NOISE, finish=pt.Threshold), "Threshold(...)"),
    ("reduce", lambda: pt.Release(NOISE, reduce="maximum"), "max, none"),
    ("optimizer", lambda: pt.SGD(optimizer="adam"), "Did you mean 'Adam'?"),
    ("optimizer", lambda: pt.DPSGD(optimizer="Adan"), "Did you mean 'Adam'?"),
    ("optimizer", lambda: pt.PlainSteps(optimizer=3), "'SGD' or 'Adam'"),
    ("optimizer", lambda: pt.DPSteps(NOISE, optimizer="sgdd"), "Did you mean 'SGD'?"),
    ("star", lambda: pt.Runtimes(star="in-process"), "pt.InProcess()"),
    ("star", lambda: pt.Runtimes(star=pt.InProcess), "pt.InProcess()"),
    ("mesh", lambda: pt.Runtimes(mesh=pt.InProcess()), "pt.Processes()"),
    ("threshold", lambda: pt.Threshold("60"), "to be a number"),
    ("threshold", lambda: pt.Threshold(None), "to be a number"),
    ("clipping", lambda: pt.BookKeeping(clipping="flat"), "FlatClipping()"),
    ("clipping", lambda: pt.BookKeeping(clipping=pt.FlatClipping), "no class"),
    ("weights", lambda: pt.PerLayerClipping(1.0), "(1.0, 2.0)"),
    ("checks", lambda: pt.CrypTen(checks="no"), "True or False"),
    ("data", lambda: pt.StudyLedger("digits"), "pt.data.digits()"),
    ("budget", lambda: pt.StudyLedger(a_set()[1], budget=3.0), "pt.Budget(3.0, 1e-5)"),
    ("partition", lambda: pt.data.parse_partition(0.5), "'dirichlet:0.5'"),
    ("observer", lambda: pt.Budget(3.0, 1e-5, "public"), "pt.PUBLIC"),
    ("partition", lambda: pt.data.digits(partition="dirichlet:0.5"), "Dirichlet(0.5)"),
    ("partition", lambda: pt.data.digits(partition=0.5), "Dirichlet(0.5)"),
    ("partition", lambda: pt.data.digits(partition=pt.data.IID), "no class"),
]  # type: ignore[list-item]  # the mistakes under test


@pytest.mark.parametrize(("argument", "make", "way_out"), MADE)
def test_what_is_of_the_wrong_kind_is_refused_when_a_value_is_made(
    argument: str, make: Callable[[], object], way_out: str
) -> None:
    with pytest.raises(ValueError, match=f"Expected {argument}=") as caught:
        make()
    assert way_out in str(caught.value)
    assert len(str(caught.value)) < 400


@cache
def a_set() -> tuple[pt.Task, pt.FederatedData]:
    return pt.data.breast_cancer(parties=3)


def compared(**changed: object) -> object:
    task, data = a_set()
    arguments = {"trainers": {"sgd": pt.SGD(epochs=1)}, "task": task, "data": data, **changed}
    return pt.compare(**arguments)  # type: ignore[arg-type]


def fitted(**changed: object) -> object:
    task, data = a_set()
    return pt.fit(**{"trainer": pt.SGD(epochs=1), "task": task, "data": data, **changed})  # type: ignore[arg-type]


def calibrated(**changed: object) -> object:
    arguments = {"trainer": pt.DPSGD(), "data": a_set()[1], "epsilon": 1.0, **changed}
    return pt.calibrate(**arguments)  # type: ignore[arg-type]


CALLS: list[tuple[Callable[..., object], str, Callable[[], object], str]] = [
    (compared, "seeds", lambda: 3, "range(3)"),
    (compared, "seeds", lambda: "012", "range(3)"),
    (compared, "seed", lambda: [1.5], "a whole number"),
    (compared, "epsilons", lambda: 3.0, "[1.0, 3.0]"),
    (compared, "epsilons", lambda: "3", "[1.0, 3.0]"),
    (compared, "trainers", lambda: [pt.SGD()], "{'sgd': pt.SGD()}"),
    (compared, "trainers", lambda: pt.SGD, "{'sgd': pt.SGD()}"),
    (compared, "trainers", lambda: {"a": pt.SGD}, "no class"),
    (compared, "trainers", lambda: {"a": "sgd"}, "pt.SGD()"),
    (compared, "attacks", lambda: ["rmia"], "pt.LossThreshold()"),
    (compared, "attacks", lambda: [pt.LossThreshold], "no class"),
    (compared, "attacks", lambda: pt.LossThreshold(), "[pt.LossThreshold()]"),
    (compared, "task", lambda: a_set(), "task, data = pt.data.digits()"),
    (compared, "data", lambda: a_set(), "task, data = pt.data.digits()"),
    (compared, "runtimes", lambda: pt.InProcess(), "pt.Runtimes(star=pt.InProcess())"),
    (compared, "runtimes", lambda: "in-process", "pt.Runtimes(star=pt.InProcess())"),
    (compared, "study_ledger", lambda: pt.Budget(1.0, 1e-5), "pt.StudyLedger"),
    (compared, "folder", lambda: 3, "'runs/first'"),
    (compared, "delta", lambda: "1e-5", "(0, 1)"),
    (compared, "device", lambda: "cpux", "use 'cpu'"),
    (fitted, "trainer", lambda: pt.SGD, "no class"),
    (fitted, "task", lambda: a_set()[1], "task, data = pt.data.digits()"),
    (fitted, "budget", lambda: 3.0, "pt.Budget(3.0, 1e-5)"),
    (fitted, "progress", lambda: True, "progress(done, total)"),
    (fitted, "keep_payloads", lambda: "no", "True or False"),
    (fitted, "device", lambda: None, "'cpu'"),
    (fitted, "runtimes", lambda: pt.InProcess(), "pt.Runtimes"),
    (calibrated, "trainer", lambda: pt.DPSGD, "no class"),
    (calibrated, "trainer", lambda: "dp_sgd", "pt.DPSGD()"),
    (calibrated, "data", lambda: a_set(), "task, data = pt.data.digits()"),
    (calibrated, "observer", lambda: "public", "pt.PUBLIC"),
    (calibrated, "epsilon", lambda: "1", "> 0"),
]


@pytest.mark.parametrize(("call", "argument", "wrong", "way_out"), CALLS)
def test_what_is_of_the_wrong_kind_is_refused_before_training(
    call: Callable[..., object],
    argument: str,
    wrong: Callable[[], object],
    way_out: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trains(*given: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(pt.SGD, "train", trains)
    with pytest.raises(ValueError, match=f"Expected {argument}") as caught:
        call(**{"seeds" if argument == "seed" else argument: wrong()})
    assert way_out in str(caught.value)
    # Neither rows nor a page of settings.
    assert "tensor(" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("teachers", [399, 20_000, 1_000_000])
def test_more_teachers_than_rows_are_refused_before_training(teachers: int) -> None:
    task, data = a_set()
    rows = data.public_rows
    assert rows == 398
    with pytest.raises(ValueError, match=f"teachers={teachers} <= 398, the number of training"):
        pt.fit(pt.PATE(teachers=teachers), task, data)


def test_that_counted_rows_are_too_few_is_said_to_be_unprotected() -> None:
    task, data = pt.data.from_arrays(torch.rand(300, 2), torch.arange(300) % 2, parties=2)
    assert data.public_rows is None
    with pytest.raises(ValueError, match="Unprotected: that this is refused tells of private"):
        pt.fit(pt.PATE(teachers=290, queries=5), task, data)
