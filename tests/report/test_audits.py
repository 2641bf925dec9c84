"""Bounds of audits in every rendering: never a mean over seeds, never without their ceiling."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from privtrain.attacks.one_run.bounds import ceiling, epsilon_bound
from privtrain.core.result import Comparison, Leakage
from privtrain.report.audits import audits
from privtrain.report.files import plain_comparison
from privtrain.report.html import comparison_html
from privtrain.report.latex import to_latex
from privtrain.report.records import to_csv
from privtrain.report.summary import groups
from privtrain.report.table import comparison_text
from tests.report import examples

AT = {"canaries": 200, "guesses": 100}
CEILING = f"{ceiling(**AT, delta=1e-5):.3g}"


def audited(correct: int, p_value: float | None = 0.04) -> Leakage:
    return Leakage(
        attack="one-run audit",
        observer="public",
        metrics={
            "epsilon_lower_bound": epsilon_bound(**AT, correct=correct, delta=1e-5),
            "ceiling": ceiling(**AT, delta=1e-5),
            "correct": float(correct),
            "guesses": 100.0,
            "f_dp_p_value": p_value,
            "f_dp_rejected": None if p_value is None else float(p_value <= 0.05),
            "gaussian_family_epsilon": correct / 50,
            "confidence": 0.95,
            "delta": 1e-5,
        },
        members=100,
        non_members=100,
    )


def compared(*found: Leakage) -> Comparison:
    rows = [replace(examples.sgd(seed), leakage=(one,)) for seed, one in enumerate(found)]
    return Comparison(rows=tuple(rows), card={})


def test_the_bound_over_seeds_is_the_least_with_its_range() -> None:
    (group,) = groups(compared(audited(80), audited(90), audited(70, 0.2)))
    (found,) = audits(group)
    bounds = [epsilon_bound(**AT, correct=right, delta=1e-5) for right in (70, 90)]
    assert (found.at_least, found.across) == (
        f"{bounds[0]:.3g}",
        f"{bounds[0]:.3g}–{bounds[1]:.3g}",
    )
    assert (found.ceiling, found.right, found.curve) == (CEILING, "80 of 100", "2 of 3")
    (attack,) = group.attacks
    p_value, family = (
        group.measured(attack, name) for name in ("f_dp_p_value", "gaussian_family_epsilon")
    )
    assert p_value is not None and p_value.value == pytest.approx(0.12)
    assert family is not None and family.value == 1.4


def test_one_seed_has_no_range_and_an_untested_curve_no_count() -> None:
    (group,) = groups(compared(audited(80, None)))
    (found,) = audits(group)
    assert (found.across, found.curve) == ("", "–")
    assert found.holds == "with confidence 95% at δ 1e-5"
    (plain,) = groups(Comparison(rows=(examples.sgd(0),), card={}))
    assert audits(plain) == ()


RENDERINGS = {
    "text": comparison_text,
    "latex": to_latex,
    "html": comparison_html,
    "csv": to_csv,
    "json": lambda comparison: json.dumps(plain_comparison(comparison)),
}


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_ceiling_stands_beside_the_bound_in_every_rendering(rendering: str) -> None:
    text = RENDERINGS[rendering](compared(audited(70), audited(90)))
    bound = epsilon_bound(**AT, correct=70, delta=1e-5)
    mean = np.mean([epsilon_bound(**AT, correct=right, delta=1e-5) for right in (70, 90)])
    if rendering == "csv":
        line = next(csv.DictReader(io.StringIO(text)))
        assert float(line["unprotected_leakage[one-run audit/public/epsilon_lower_bound]"]) == bound
        assert f"{float(line['unprotected_leakage[one-run audit/public/ceiling]']):.3g}" == CEILING
    elif rendering == "json":
        metrics = json.loads(text)["rows"][0]["leakage"][0]["metrics"]
        assert metrics["epsilon_lower_bound"] == bound
        assert f"{metrics['ceiling']:.3g}" == CEILING
    else:
        plain = re.sub(r"<[^>]*>", " ", text)
        shown = CEILING if rendering != "html" else f"{ceiling(**AT, delta=1e-5):.4g}"
        assert re.search(rf"{bound:.3}\D.{{0,60}}{shown}", plain, re.DOTALL)
        assert f"{mean:.3}" not in plain


def test_tables_say_at_which_confidence_and_delta_the_bound_holds() -> None:
    comparison = compared(audited(70), audited(90))
    assert "confidence 95% at δ 1e-5" in " ".join(comparison_text(comparison).split())
    assert r"confidence 95\% at $\delta$ 1e-5" in to_latex(comparison)
    assert "1e-05" in to_csv(comparison)


def test_without_an_audit_no_table_speaks_of_one() -> None:
    assert "Audited" not in comparison_text(examples.realistic())
    assert "audits" not in to_latex(examples.realistic())
