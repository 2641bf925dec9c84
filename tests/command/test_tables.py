"""Trainers, attacks and settings as tables, and back."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

import privtrain as pt
from privtrain.command.names import TRAINERS
from privtrain.command.study_file import Study
from privtrain.command.tables import default_tables, from_table, make_trainer, settings_of, to_table
from tests.extras import need


def test_every_token_makes_its_trainer() -> None:
    for token in TRAINERS:
        assert isinstance(make_trainer(token), TRAINERS[token])
        assert TRAINERS[token].token == token


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


def test_secure_noise_is_asked_for_by_settings() -> None:
    tables = default_tables(("sgd", "dp_sgd", "pate"), secure=True)
    made = Study(trainers=tables).make_trainers()
    assert made["dp_sgd"] == pt.DPSGD(release=pt.Release(pt.Gaussian(1.0, 1.0, secure=True)))
    assert (made["sgd"], made["pate"]) == (pt.SGD(), pt.PATE())
    plain = Study(trainers=default_tables(("sgd", "dp_sgd"))).make_trainers()
    assert plain == {"sgd": pt.SGD(), "dp_sgd": pt.DPSGD()}
    with pytest.raises(ValueError, match="sgd, pate draw none"):
        default_tables(("sgd", "pate"), secure=True)


@pytest.mark.parametrize("mode", ["ghost", "functorch"])
def test_a_way_of_opacus_that_is_gone_is_refused_with_the_way_out(mode: str) -> None:
    need("opacus")
    assert from_table({"kind": "Opacus", "mode": "hooks"}) == pt.Opacus()
    assert to_table(pt.Opacus()) == {"kind": "Opacus"}
    with pytest.raises(ValueError, match=rf"no mode='{mode}' any more.*BookKeeping"):
        from_table({"kind": "Opacus", "mode": mode})


@dataclass(frozen=True)
class OwnAttack:
    """An attack of a user's own whose observer is an argument."""

    name: str = "own"
    observer: pt.Observer = pt.PUBLIC
    hidden: frozenset[str] = frozenset()


def test_a_setting_that_no_file_can_hold_is_named() -> None:
    with pytest.raises(pt.UnsupportedError, match=r"'hidden' of OwnAttack.*init=False"):
        settings_of(OwnAttack())


@pytest.mark.parametrize("secure", [True, False])
def test_correlated_noise_has_no_secure_one_in_a_file_either(secure: bool) -> None:
    banded = {"kind": "BandedMatrix", "clipping_norm": 1.0, "noise_multiplier": 1.0}
    mechanism = banded | {"bands": 2, "steps": 10}
    assert from_table(mechanism) == pt.BandedMatrix(1.0, 1.0, bands=2, steps=10)
    with pytest.raises(ValueError, match=r"BandedMatrix has no setting 'secure'; it has .*steps"):
        from_table(mechanism | {"secure": secure})
