"""Study files: what is written is what comes back."""

from functools import partial
from pathlib import Path

import pytest
import torch

import privtrain as pt
from privtrain.study import (
    TRAINERS,
    Study,
    from_table,
    import_function,
    make_trainer,
    read_study,
    to_table,
    write_study,
)

TRAINED = [
    pt.SGD(epochs=3, batch_size=None),
    pt.DPSGD(release=pt.Release(pt.Gaussian(0.5, 1.5)), gradients=pt.Opacus("ghost")),
    pt.FedAvg(
        sampling=pt.FixedSize(3),
        local=pt.DPSteps(pt.Gaussian(1.0, 1.1), epochs=2.0),
    ),
    pt.FedAvg(weights=pt.ByExamples(bound=100)),
    pt.FedAvg(release=pt.Release(pt.Gaussian(1.0, 2.0, secure=True), pt.AT_PARTY)),
    pt.FedAvg(
        sampling=pt.FixedSize(5),
        release=pt.Release(pt.Gaussian(1.0, 1.0), pt.SPLIT(honest_survivors=5)),
    ),
    pt.PATE(release=pt.Release(pt.LNMax(5.0), finish=pt.ARGMAX)),
    pt.MPCSGD(epochs=1),
]


@pytest.mark.parametrize("trainer", TRAINED, ids=[t.token for t in TRAINED])
def test_trainers_come_back_from_a_file(trainer: pt.SGD, tmp_path: Path) -> None:
    table = to_table(trainer)
    study = Study(trainers={"it": {"trainer": trainer.token, **table}}, epsilons=(1.0,))
    write_study(study, tmp_path / "study.toml")
    again = read_study(tmp_path / "study.toml")
    assert again.make_trainers() == {"it": trainer}
    assert again.epsilons == (1.0,)


def test_every_token_makes_its_trainer() -> None:
    for token, kind in TRAINERS.items():
        assert isinstance(make_trainer(token), kind) and kind.token == token


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="dp_sgd, fedavg, mpc_sgd, pate, sgd"):
        make_trainer("dpsgd")
    with pytest.raises(ValueError, match="SGD has no setting 'epoch'; it has epochs"):
        make_trainer("sgd", {"epoch": 3})
    with pytest.raises(ValueError, match="kind='Gausian'"):
        from_table({"kind": "Gausian"})


def test_functions_cannot_be_written() -> None:
    factory = partial(torch.optim.SGD, momentum=0.9)
    with pytest.raises(pt.UnsupportedError, match="study file cannot hold"):
        to_table(pt.SGD(optimizer=factory))


def test_broken_files_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(pt.DataError, match="Cannot read the study file"):
        read_study(path)
    path.write_text("data = ")
    with pytest.raises(pt.DataError, match="not valid TOML"):
        read_study(path)
    path.write_text("dataset = 'digits'")
    with pytest.raises(ValueError, match="no entry 'dataset'"):
        read_study(path)


def test_models_are_imported_from_files(tmp_path: Path) -> None:
    path = tmp_path / "own_model_of_test.py"
    path.write_text("from torch import nn\ndef make():\n    return nn.Linear(64, 10)\n")
    assert import_function(f"{path}:make")().out_features == 10
    with pytest.raises(ValueError, match="it has no other"):
        import_function(f"{path}:other")
    with pytest.raises(ValueError, match="Expected model='nonsense'"):
        import_function("nonsense")
    with pytest.raises(pt.DataError, match="There is no file"):
        import_function("missing.py:make")
