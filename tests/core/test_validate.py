import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from privtrain.core.validate import (
    check_count,
    check_delta,
    check_finite,
    check_fraction,
    check_member,
    check_non_negative,
    check_positive,
    check_probability,
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
