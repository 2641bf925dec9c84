import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privtrain.core.errors import DataError
from privtrain.core.validate import (
    check_count,
    check_delta,
    check_distinct,
    check_finite,
    check_flag,
    check_fraction,
    check_member,
    check_non_negative,
    check_offers,
    check_ordinary,
    check_positive,
    check_probability,
    check_seed,
    made_folder,
)

NEVER: tuple[Any, ...] = (math.nan, math.inf, -math.inf, -1, -0.5, True, False, "1", None, [1])

Check = Callable[..., None]


@pytest.mark.parametrize(
    ("check", "good", "bad", "bound"),
    [
        (check_positive, (1, 0.5, 5e-324, 1e308), (0, 0.0, -0.0), "> 0"),
        (check_non_negative, (0, 0.0, 1, 0.5), (-5e-324,), ">= 0"),
        (check_probability, (5e-324, 0.5, 1, 1.0), (0, 0.0, 1.0000001, 2), r"in \(0, 1\]"),
        (check_fraction, (0, 0.0, 0.5, 0.999), (1, 1.0, 2), r"in \[0, 1\)"),
        (check_count, (1, 2, 10**12), (0, 1.0, 2.5), "whole number >= 1"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_numbers(check: Check, good: tuple[Any, ...], bad: tuple[Any, ...], bound: str) -> None:
    for value in good:
        check(argument=value)
    for value in (*bad, *NEVER):
        with pytest.raises(ValueError, match=bound) as caught:
            check(argument=value)
        assert f"argument={value!r}" in str(caught.value)


def test_the_first_wrong_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r"Expected second=-1\.0 > 0\."):
        check_positive(first=1.0, second=-1.0, third=-2.0)


def test_counts_have_a_minimum_of_their_own() -> None:
    check_count(0, rounds=0)
    check_count(3, rounds=3)
    with pytest.raises(ValueError, match="rounds=2 to be a whole number >= 3"):
        check_count(3, rounds=2)


@pytest.mark.parametrize("delta", [0, 0.0, 1, 1.0, *NEVER])
def test_delta_is_inside_the_open_interval(delta: Any) -> None:
    check_delta(1e-300)
    check_delta(0.999)
    with pytest.raises(ValueError, match=r"in \(0, 1\)") as caught:
        check_delta(delta)
    assert f"delta={delta!r}" in str(caught.value)


def test_members_are_listed_in_order() -> None:
    check_member(("pld", "rdp"), accountant="pld")
    with pytest.raises(ValueError, match="accountant='gdp' to be one of pld, rdp"):
        check_member({"rdp", "pld"}, accountant="gdp")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_value_that_is_not_finite_is_shown(bad: float) -> None:
    inputs = torch.zeros(3, 4)
    check_finite(inputs=inputs, targets=torch.tensor([1, 2, 3]))
    inputs[1, 2] = bad
    inputs[2, 0] = bad
    with pytest.raises(ValueError, match=r"inputs\[1, 2\] is (nan|inf|-inf)"):
        check_finite(other=torch.zeros(1), inputs=inputs)
    with pytest.raises(ValueError, match="scalar"):
        check_finite(scalar=torch.tensor(bad))


def test_a_number_beyond_the_range_of_floats_is_refused_by_name() -> None:
    for check in (check_positive, check_non_negative, check_probability):
        with pytest.raises(ValueError, match="Expected epochs=1000"):
            check(epochs=10**400)


@pytest.mark.parametrize("value", [0, 1, None, "no", math.nan, np.True_, [True]])
def test_flags_are_true_or_false(value: Any) -> None:
    check_flag(secure=True, other=False)
    with pytest.raises(ValueError, match="to be True or False") as caught:
        check_flag(secure=value)
    assert f"secure={value!r}" in str(caught.value)


@pytest.mark.parametrize("value", [0.0, 1.5, True, None, "3", math.nan, [1], torch.tensor(1)])
def test_seeds_are_whole_numbers(value: Any) -> None:
    for good in (0, -3, 10**30, np.int64(7)):
        check_seed(good)
    with pytest.raises(ValueError, match="to be a whole number") as caught:
        check_seed(value)
    assert f"seed={value!r}" in str(caught.value)


@pytest.mark.parametrize("value", [None, 1.0, "PlainSum", dict])
def test_a_value_offers_what_its_kind_does(value: Any) -> None:
    check_offers("items", "a dict", argument={})
    with pytest.raises(ValueError, match="to be a value such as a dict") as caught:
        check_offers("items", "a dict", argument=value)
    assert f"argument={value!r}" in str(caught.value)


def test_values_that_stand_twice_are_refused() -> None:
    check_distinct(seeds=range(3), epsilons=(1.0, 3.0))
    with pytest.raises(ValueError, match=r"Expected seeds=\[0, 1, 0\] to hold each value once"):
        check_distinct(seeds=[0, 1, 0])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert made_folder(tmp_path / "new" / "deep").is_dir()
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"Cannot write to folder='.*file': File exists\. Choose"):
        made_folder(tmp_path / "file")
    with pytest.raises(DataError, match=r"Cannot write to out='.*file/below': Not a directory"):
        made_folder(tmp_path / "file" / "below", "out")


def test_masked_tensors_are_not_ordinary() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        masked = torch.masked.masked_tensor(torch.ones(3), torch.tensor([True, False, True]))
    with pytest.raises(DataError, match="masked"):
        check_ordinary(x=masked)
