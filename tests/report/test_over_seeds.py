import math
from collections.abc import Callable, Sequence

import numpy as np

from privtrain.attacks.one_run.bounds import epsilon_bound
from privtrain.report.over_seeds import hull, over_seeds, spread


def test_one_missing_value_leaves_no_mean() -> None:
    assert spread([1.0, None]) is None
    assert spread([]) is None
    assert hull([(0.0, 1.0), None]) is None


def test_the_bound_over_seeds_is_wrong_no_more_often_than_that_of_one() -> None:
    """Randomised response at epsilon 1, five seeds: a mean or the largest is wrong too often."""
    rng, truth = np.random.default_rng(0), math.e / (1 + math.e)
    counts = rng.binomial(200, truth, (600, 5))
    bound = {
        right: epsilon_bound(canaries=200, guesses=200, correct=right, delta=1e-12)
        for right in map(int, np.unique(counts))
    }

    def wrong(together: Callable[[Sequence[float]], float]) -> int:
        return sum(together([bound[int(right)] for right in row]) > 1.0 for row in counts)

    def ours(values: Sequence[float]) -> float:
        bound_of_all = over_seeds("epsilon_lower_bound", values, [None] * len(values)).value
        assert bound_of_all is not None
        return bound_of_all

    # Binomial(600, 0.05) exceeds 51 with probability 1e-4.
    assert wrong(ours) <= 51
    assert wrong(max) > 51


def test_bounds_are_printed_on_their_safe_side() -> None:
    bound = over_seeds("epsilon_lower_bound", [1.62989, 1.9], [None, None])
    assert (bound.text, bound.interval_text) == ("1.629", "1.629–1.9")
    p_value = over_seeds("f_dp_p_value", [0.0100001], [None])
    assert (p_value.text, p_value.interval_text) == ("0.0101", "")
    ceiling = over_seeds("ceiling", [3.48746], [None])
    assert ceiling.text == "3.487"


def test_a_rate_has_the_decimals_that_its_interval_needs() -> None:
    auc = over_seeds("auc", [0.5108], [(0.5003, 0.5212)])
    assert (auc.text, auc.interval_text) == ("0.5108", "0.5003–0.5212")
