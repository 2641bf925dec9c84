"""The ROC curves of a comparison: both axes logarithmic, and nothing where there is no curve."""

from dataclasses import replace

from privtrain.core.result import Comparison
from privtrain.report.roc import MOST, roc_curves
from tests.report.examples import card
from tests.report.test_attack_table import ALL, COINLIKE, FOUND, row


def test_each_line_is_named_and_its_axes_are_logarithmic() -> None:
    picture = roc_curves(ALL)
    assert picture is not None
    assert "pooled: RMIA, public" in picture and "a coin" in picture
    (axes,) = picture.figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlim()[0] == 0.01, "no rate below ten false positives"
    coin, line = axes.get_lines()
    assert list(line.get_xdata()) == [0.01, 0.1, 1.0] and list(line.get_ydata()) == [0.05, 0.2, 1.0]
    assert list(coin.get_xdata()) == list(coin.get_ydata())


def test_a_rate_of_zero_is_left_out() -> None:
    flat = replace(FOUND, roc=((0.01, 0.0), (0.1, 0.2), (1.0, 1.0)))
    picture = roc_curves(Comparison(rows=(row(flat),), card=card()))
    assert picture is not None
    assert list(picture.figure.axes[0].get_lines()[1].get_xdata()) == [0.1, 1.0]


def test_the_lines_that_leak_most_are_drawn() -> None:
    many = [
        replace(FOUND, attack=f"attack {number}", metrics={"auc": 0.5 + number / 100})
        for number in range(MOST + 4)
    ]
    picture = roc_curves(Comparison(rows=(row(*many),), card=card()))
    assert picture is not None
    assert len(picture.figure.axes[0].get_lines()) == MOST + 1
    assert f"attack {MOST + 3}," in picture and "attack 0," not in picture


def test_there_is_no_picture_without_a_curve() -> None:
    assert roc_curves(Comparison(rows=(row(COINLIKE),), card=card())) is None
