import numpy as np
import pytest

from privtrain.attacks.scoring import design


def test_moments_equal_those_of_the_chosen_values() -> None:
    rng = np.random.default_rng(0)
    shadows, chosen = rng.normal(size=(6, 40)), rng.random((6, 40)) < 0.5
    chosen[:, 0] = False
    side = design.side(shadows, chosen)
    for row in range(1, 40):
        values = shadows[chosen[:, row], row]
        assert side.count[row] == len(values)
        if len(values):
            assert side.mean[row] == pytest.approx(values.mean(), abs=1e-12)
            assert side.squares[row] == pytest.approx(((values - values.mean()) ** 2).sum())
    assert side.count[0] == 0 and np.isnan(side.mean[0]) and side.squares[0] == 0


def test_equal_values_have_no_deviation_by_rounding() -> None:
    shadows = np.full((7, 3), [0.1, 0.3, 1 / 3])
    chosen = np.arange(7)[:, None] < [3, 6, 7]
    side = design.side(shadows, chosen)
    assert side.mean.tolist() == [0.1, 0.3, 1 / 3]
    assert side.squares.tolist() == [0.0, 0.0, 0.0]
    # The plain sum over the number is not exact.
    assert sum([0.1] * 3) / 3 != 0.1


def test_rows_are_usable_where_what_is_needed_is_finite() -> None:
    target = np.array([0.0, np.nan, 0.0, 0.0])
    shadows = np.array([[0.0, 0.0, np.inf, np.nan], [0.0, 0.0, 0.0, 0.0]])
    needed = np.array([[True] * 4, [True] * 4])
    assert design.usable(target, shadows, needed).tolist() == [True, False, False, False]
    needed[0, 3] = False
    assert design.usable(target, shadows, needed).tolist() == [True, False, False, True]


def test_a_model_that_gives_no_number_is_named() -> None:
    shadows = np.zeros((3, 2))
    shadows[1], shadows[0, 0] = np.nan, np.nan
    with pytest.raises(ValueError, match=r"models \[1\] are finite in none"):
        design.usable(np.zeros(2), shadows, np.ones((3, 2), dtype=bool))


@pytest.mark.parametrize("name", ["IN", "OUT"])
def test_a_row_without_models_is_named_by_its_place_among_all(name: str) -> None:
    chosen = np.array([[True, True, False, True]])
    rows = np.array([False, True, True, True])
    side = design.side(np.zeros((1, 3)), chosen[:, rows])
    with pytest.raises(ValueError, match=f"that is {name}; 1 have none, the first is candidate 2"):
        design.check_side(side, name, rows)


@pytest.mark.parametrize(
    ("target", "shadows", "included", "match"),
    [
        ([], [[]], [[]], "target"),
        ([[1.0]], [[1.0]], [[True]], "target"),
        ([1.0], [1.0], [True], "shadows"),
        ([1.0], [[1.0, 2.0]], [[True, True]], "shadows"),
        ([1.0], np.zeros((0, 1)), np.zeros((0, 1), dtype=bool), "shadows"),
        ([1.0], [[1.0]], [[1]], "included of type int64"),
        ([1.0], [[1.0]], [True], "included"),
    ],
)
def test_wrong_arrays_are_named(
    target: object, shadows: object, included: object, match: str
) -> None:
    with pytest.raises(ValueError, match=f"Expected {match}"):
        design.checked(target, shadows, included)  # type: ignore[arg-type]
