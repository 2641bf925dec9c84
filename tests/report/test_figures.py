import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from privtrain.core.result import Comparison, History, Row
from privtrain.core.statement import PrivacyStatement, Unit
from privtrain.report import drawing, figures
from tests.report import examples

Draw = Callable[[Comparison], str | None]
ALL: tuple[Draw, ...] = (
    figures.accuracy_against_epsilon,
    figures.cost_bars,
    figures.epsilon_over_rounds,
    figures.epsilon_by_delta,
    figures.trade_off,
    figures.learning_curves,
)
FAILED = Comparison(rows=(Row(trainer="sgd", label="a", seed=0, error="ValueError: no"),), card={})


def drawn(draw: Draw, comparison: Comparison) -> str:
    svg = draw(comparison)
    assert svg is not None
    return svg


@functools.cache
def realistic(draw: Draw) -> str:
    return drawn(draw, examples.realistic())


@functools.cache
def hostile(draw: Draw) -> str:
    return drawn(draw, examples.hostile())


def words(svg: str) -> list[str]:
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in found]


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize("made", [realistic, hostile])
def test_a_picture_is_a_small_valid_element(draw: Draw, made: Callable[[Draw], str]) -> None:
    svg = made(draw)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.attrib["role"] == "img"
    assert len(svg) < 80_000
    assert "<script" not in svg
    assert drawing.INK not in svg
    assert not re.search(r'(src|href)="(?!#)', svg)


@pytest.mark.parametrize("draw", ALL)
def test_the_same_comparison_gives_the_same_bytes(draw: Draw) -> None:
    assert draw(examples.hostile()) == hostile(draw)


@pytest.mark.parametrize("draw", ALL)
def test_nothing_to_draw_is_no_picture(draw: Draw) -> None:
    assert draw(FAILED) is None
    assert draw(Comparison(rows=(), card={})) is None


def test_pictures_share_no_ids() -> None:
    found = [set(re.findall(r'\bid="([^"]+)"', realistic(draw))) for draw in ALL]
    assert sum(map(len, found)) == len(set.union(*found))


def test_references_lead_to_ids_of_the_same_picture() -> None:
    for draw in ALL:
        svg = realistic(draw)
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= ids


def test_accuracy_names_units_where_they_differ() -> None:
    found = words(realistic(figures.accuracy_against_epsilon))
    assert "DP-SGD (per example)" in found
    assert "pooled (no ε)" in found
    assert "95%" in found


def test_accuracy_without_any_epsilon_says_so() -> None:
    only = Comparison(rows=(examples.fedavg(0),), card={})
    assert "no run promises the public a finite ε" in words(
        drawn(figures.accuracy_against_epsilon, only)
    )


def test_costs_of_zero_have_a_word_and_no_bar() -> None:
    rows = (examples.sgd(0), examples.fedavg(0))
    found = words(drawn(figures.cost_bars, Comparison(rows=rows, card={})))
    assert "0 B" in found
    assert "1.3 s" in found


def test_panels_without_anything_to_show_are_left_out() -> None:
    alone = words(drawn(figures.cost_bars, Comparison(rows=(examples.sgd(0),), card={})))
    assert "seconds" in alone and not {"rounds", "bytes sent"} & set(alone)
    history = History(unprotected={"non_finite": [(1, 0.0), (2, 0.0)], "loss": [(1, 0.5)]})
    row = replace(examples.sgd(0), history=history)
    curves = words(drawn(figures.learning_curves, Comparison(rows=(row,), card={})))
    assert "loss" in curves and "non finite" not in curves
    zero = replace(row, history=History(unprotected={"non_finite": [(1, 0.0)]}))
    assert figures.learning_curves(Comparison(rows=(zero,), card={})) is None


def test_bars_on_a_log_axis_have_one() -> None:
    rows = (examples.sgd(0), examples.fedavg(0), examples.mpc_sgd(0))
    found = words(drawn(figures.cost_bars, Comparison(rows=rows, card={})))
    # Ticks at powers of ten, beside the figures of the bars.
    assert len({"0.1 s", "1 s", "10 s", "100 s", "1.67 min"} & set(found)) >= 2
    assert {"1 MB", "100 MB", "10 MB", "1 GB"} & set(found)


def test_learning_curves_are_marked_unprotected() -> None:
    found = words(realistic(figures.learning_curves))
    assert figures.UNPROTECTED in found
    assert {"training loss", "fraction clipped"} <= set(found)


def test_curves_over_deltas_name_mu_as_about() -> None:
    found = words(realistic(figures.epsilon_by_delta))
    assert "DP-SGD, ε 3 (μ ≈ 0.746)" in found
    assert "1e-5" in found and "1e-10" in found


@pytest.mark.parametrize("draw", [figures.epsilon_by_delta, figures.epsilon_over_rounds])
def test_epsilons_far_apart_are_drawn_on_a_log_scale(draw: Draw) -> None:
    found = words(
        drawn(draw, Comparison(rows=(examples.dp_sgd(0, 0.05), examples.dp_sgd(0, 8.0)), card={}))
    )
    assert "formal ε to the public (log scale)" in found and "0.1" in found
    assert "formal ε to the public" in words(realistic(draw))


def test_the_trade_off_is_held_against_perfect_privacy() -> None:
    found = words(realistic(figures.trade_off))
    assert {"perfect privacy", "DP-SGD, ε 8"} <= set(found)


def test_without_a_promise_there_are_no_curves() -> None:
    only = Comparison(rows=(examples.sgd(0),), card={})
    assert figures.epsilon_by_delta(only) is None
    assert figures.trade_off(only) is None


def test_a_diverged_curve_can_be_drawn() -> None:
    broken = History(unprotected={"loss": [(1, 2.0), (2, float("inf")), (3, float("nan"))]})
    row = replace(examples.sgd(0), history=broken)
    assert figures.learning_curves(Comparison(rows=(row,), card={})) is not None


def test_names_with_dollars_underscores_or_foreign_letters_stay_text() -> None:
    rows = tuple(replace(examples.fedavg(0), label=label) for label in ("_a", "$x_1$", "联邦学习"))
    found = words(drawn(figures.cost_bars, Comparison(rows=rows, card={})))
    assert "$x_1$" in found
    assert "联邦学习" in found
    assert "\u200b_a" in found


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    curve = [(step, float(step)) for step in range(10_000)]
    thin = figures._thinned(curve)
    assert len(thin) == figures.MOST_POINTS
    assert (thin[0], thin[-1]) == (curve[0], curve[-1])
    assert figures._thinned(curve[:7]) == curve[:7]


def test_the_curve_of_the_headline_s_unit_is_drawn() -> None:
    example, client = (
        examples.guarantee("public", e, u) for e, u in ((1.5, Unit.EXAMPLE), (5.458, Unit.CLIENT))
    )
    curves = (examples.curves(1.5), replace(examples.curves(5.458), unit=Unit.CLIENT))
    statement = PrivacyStatement(guarantees=(example, client), curves=curves)
    row = replace(examples.dp_sgd(0, 3.0), statement=statement)
    (drawn,) = figures._with_curves(Comparison(rows=(row,), card={}))
    assert drawn[1] == curves[1]
    assert figures._epsilon(drawn[0]) == statement.epsilon() == 5.458


def test_a_dashed_line_without_a_promise_is_told_from_one_that_is_stated() -> None:
    def line(observer: str, epsilon: float) -> str:
        own = replace(examples.guarantee(observer, epsilon), accountant="the user", stated=True)
        row = replace(examples.sgd(0), statement=PrivacyStatement(guarantees=(own,)))
        return figures.accuracy_against_epsilon(Comparison(rows=(row,), card={})) or ""

    assert "stated by the user" in line("public", 2.0)
    for observer, epsilon in (("aggregator", 2.0), ("public", math.inf)):
        assert "(no ε)" in line(observer, epsilon)
