import numpy as np
import pytest

from privtrain.attacks.scoring import signals


def test_smaller_losses_and_norms_score_higher() -> None:
    values = np.array([0.5, 0.0, 3.0, 0.5])
    for score in (signals.loss_scores, signals.gradient_norm_scores):
        assert score(values).tolist() == [-0.5, 0.0, -3.0, -0.5]
        assert np.isneginf(score(np.array([np.nan, np.inf]))).all()


def test_a_loss_of_minus_infinity_is_below_every_threshold_but_finite() -> None:
    assert signals.loss_scores([-np.inf]).tolist() == [np.finfo(np.float64).max]
    with pytest.raises(ValueError, match="norms >= 0"):
        signals.gradient_norm_scores([1.0, -1.0])


def test_robustness_is_the_fraction_of_copies_that_keep_the_label() -> None:
    agreement = np.random.default_rng(0).random((7, 30)) < 0.6
    found = signals.robustness_scores(agreement)
    assert found.tolist() == [sum(map(int, column)) / 7 for column in agreement.T]


@pytest.mark.parametrize("agreement", [[[1, 0]], [True], np.zeros((0, 3), dtype=bool)])
def test_what_is_no_agreement_is_refused(agreement: object) -> None:
    with pytest.raises(ValueError, match=r"agreement of type .* to be bool"):
        signals.robustness_scores(agreement)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[], [[1.0]]])
def test_wrong_shapes_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="losses with shape"):
        signals.loss_scores(values)
    with pytest.raises(ValueError, match="norms with shape"):
        signals.gradient_norm_scores(values)
