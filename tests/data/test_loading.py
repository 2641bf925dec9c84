"""Data sets by name: what the command line may write."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import privtrain.data as room
from privtrain.data import Dirichlet, breast_cancer, load, names


def test_names() -> None:
    assert names() == ("adult", "breast_cancer", "digits", "mnist")


def test_by_name_equals_by_function() -> None:
    _, named = load("breast_cancer", parties=3, partition="dirichlet:0.5", dtype="float64")
    _, made = breast_cancer(parties=3, partition=Dirichlet(0.5), dtype=torch.float64)
    for party in made.parties:
        assert torch.equal(named.train[party].inputs, made.train[party].inputs)


def test_by_path(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.eye(40), y=np.arange(40) % 2)
    assert load(str(tmp_path / "own.npz"), parties=2)[1].name == "own"
    rows = "\n".join(f"{n},{n % 2}" for n in range(40))
    (tmp_path / "own.CSV").write_text(f"a,b\n{rows}\n")
    assert load(tmp_path / "own.CSV", label="b", parties=2)[0].name == "own"


def test_what_is_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data='cifar'.*adult, breast_cancer, digits, mnist.*csv"):
        load("cifar")
    with pytest.raises(ValueError, match=r"digits takes no option label='y'; it takes.*parties"):
        load("digits", label="y")
    with pytest.raises(
        ValueError, match=r"from_csv takes no option hidden=3; it takes.*label.*seed"
    ):
        load(tmp_path / "a.csv", hidden=3)
    with pytest.raises(ValueError, match="partition='round'"):
        load("digits", partition="round")
    with pytest.raises(ValueError, match="dtype='half'"):
        load("digits", dtype="half")
    with pytest.raises(ValueError, match=r"dtype=torch.int64.*of digits are quantities"):
        load("digits", dtype="int64")


def test_public_names() -> None:
    assert len(set(room.__all__)) == len(room.__all__)
    assert dir(room) == sorted(room.__all__)
    for name in room.__all__:
        assert getattr(room, name).__doc__
    with pytest.raises(AttributeError, match="'absent'"):
        _ = room.absent


@pytest.mark.parametrize(
    "options",
    [
        {"parties": 2.5},
        {"partition": 3},
        {"seed": "a"},
        {"test_fraction": "a"},
        {"model": 3},
        {"public_rows": [4]},
        {"dtype": 3},
        {"classes": "two"},
        {"test": 3},
        {"users": 3},
        {"row_ids": 3},
        {"scale": 4},
    ],
)
def test_options_of_another_type_end_in_a_sentence(tmp_path: Path, options: dict[str, Any]) -> None:
    np.savez(
        tmp_path / "own.npz", x=np.random.default_rng(0).normal(size=(40, 2)), y=np.arange(40) % 2
    )
    with pytest.raises(ValueError, match=next(iter(options))):
        load(tmp_path / "own.npz", **options)


def test_the_name_of_a_data_set_is_an_option_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.eye(40), y=np.arange(40) % 2)
    assert load(tmp_path / "own.npz", name="mine")[1].name == "mine"
