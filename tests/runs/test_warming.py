"""The warm-up costs nobody anything, and the first row of a comparison no time."""

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.core.abilities import Warming
from privtrain.core.runtime import MeshReply, Payload, Program, Runtimes
from privtrain.core.seeding import Seeds
from privtrain.core.trainer import Trainer
from privtrain.runs import warming
from privtrain.runs.comparing import compare
from privtrain.runs.warming import WarmUps
from privtrain.steps import semi_supervised
from tests.runs.folders import contents

HERE = pt.Runtimes(star=pt.InProcess())
KINDS: dict[str, Trainer] = {
    "sgd": pt.SGD(),
    "dp_sgd": pt.DPSGD(),
    "fedavg": pt.FedAvg(),
    "silos": pt.FedAvg(local=pt.DPSteps(pt.Gaussian(1.0, 1.0))),
    "pate": pt.PATE(),
    "mpc_sgd": pt.MPCSGD(),
    "plaintext": pt.MPCSGD().plaintext_twin(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_trainer_trains_its_stand_in(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = KINDS[kind]
    assert isinstance(trainer, Warming)
    # An error would be swallowed, and the first row would pay for what was not reached.
    monkeypatch.setattr(warming, "OWN_ERRORS", ())
    monkeypatch.setattr(warming, "STAND_INS", warming.STAND_INS[1:])
    warm = WarmUps(Runtimes(star=pt.InProcess()), "cpu")
    if kind == "mpc_sgd":
        with pytest.raises(pt.UnsupportedError, match="starts no processes"):
            warm.before(trainer)
    else:
        warm.before(trainer)


def test_a_student_that_compares_rows_is_warmed_up_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = set()

    def noting(name: str) -> None:
        true = getattr(semi_supervised, name)
        monkeypatch.setattr(semi_supervised, name, lambda *a: (called.add(name), true(*a))[1])

    # Each imports what it computes with.
    for name in ("representatives", "neighbour_graph", "spread"):
        noting(name)
    WarmUps(HERE, "cpu").before(pt.PATE(student=pt.PlainSteps()))
    assert called == set()
    WarmUps(HERE, "cpu").before(pt.PATE())
    assert called == {"representatives", "neighbour_graph", "spread"}


class Mesh:
    """A mesh that must not be started."""

    name, real, imported = "counting", True, 0

    def import_parts(self) -> None:
        type(self).imported += 1

    def run(
        self,
        programs: Mapping[str, Program],
        inputs: Mapping[str, Payload],
        *,
        seeds: Seeds = Seeds(0),
        report: object = None,
    ) -> dict[str, MeshReply]:
        raise AssertionError("a process was started")


def test_secure_trainers_are_warmed_up_to_their_first_process() -> None:
    WarmUps(Runtimes(star=pt.InProcess(), mesh=Mesh()), "cpu").before(pt.MPCSGD())  # type: ignore[arg-type]
    assert Mesh.imported > 0


def test_it_happens_once_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(warming, "_discarded", lambda brief, *rest: trained.append(brief.token))
    warm = WarmUps(HERE, "cpu")
    for trainer in (pt.SGD(), pt.SGD(epochs=7), pt.DPSGD(), pt.SGD(), pt.DPSGD(epochs=3.0)):
        warm.before(trainer)
    # Twice each: pictures and tables.
    assert trained == ["sgd", "sgd", "dp_sgd", "dp_sgd"]


def test_no_function_of_the_user_is_called() -> None:
    def refused(*given: object, **named: object) -> None:
        raise AssertionError("a function of the user's was called")

    for trainer in (
        pt.SGD(optimizer=refused),  # type: ignore[arg-type]
        pt.DPSGD(optimizer=refused),  # type: ignore[arg-type]
        pt.FedAvg(local=pt.PlainSteps(optimizer=refused), server_optimizer=refused),  # type: ignore[arg-type]
        pt.PATE(steps=pt.PlainSteps(optimizer=refused)),  # type: ignore[arg-type]
    ):
        WarmUps(HERE, "cpu").before(trainer)


def test_generators_and_settings_stand_where_they_stood() -> None:
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
    for trainer in KINDS.values():
        WarmUps(HERE, "cpu").before(trainer)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]


def test_rows_and_folders_are_those_without_a_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = pt.data.digits(parties=4, seed=0)
    trainers = {"pooled": pt.SGD(epochs=1), "DP": pt.DPSGD(epochs=0.3), "F": pt.FedAvg(rounds=1)}
    warm = compare(trainers, task, data, runtimes=HERE, folder=tmp_path / "warm")
    monkeypatch.setattr(WarmUps, "before", lambda self, trainer: None)
    cold = compare(trainers, task, data, runtimes=HERE, folder=tmp_path / "cold")
    for first, second in zip(warm.rows, cold.rows, strict=True):
        assert (first.accuracy, first.statement) == (second.accuracy, second.statement)
        assert first.history == second.history
    names = [
        sorted(path.name.split("-seed")[0] for path in (tmp_path / place).rglob("*"))
        for place in ("warm", "cold")
    ]
    assert names[0] == names[1]
    assert contents(tmp_path / "warm").keys() != set()


def test_a_device_that_is_missing_is_left_to_the_rows() -> None:
    WarmUps(HERE, "cuda:99").before(pt.SGD())


def test_the_stand_ins_are_small() -> None:
    for model, shape in warming.STAND_INS:
        task, data = warming._made_up(model, shape)
        assert isinstance(task.model(), nn.Module)  # type: ignore[operator]
        assert len(data.pooled()) == warming.ROWS
