"""A comparison as one self-contained page, or as a fragment for notebooks."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from privtrain.core.extras import is_missing, missing
from privtrain.core.failures import printable
from privtrain.core.result import Comparison, Row
from privtrain.core.statement import EXACT_PRIVATE, Guarantee, to_plain
from privtrain.report import attack_table, cells, figures
from privtrain.report.drawing import Picture, styles
from privtrain.report.gaps import gap_note, main_baseline
from privtrain.report.measured import commonest_note, metric_columns
from privtrain.report.publishing import UNPROTECTED, cost_note, publishable_card
from privtrain.report.roc import roc_curves
from privtrain.report.settings import SETTINGS, differing, settings_of
from privtrain.report.summary import (
    FAILED,
    SIMULATED_FLAG,
    Group,
    deltas,
    groups,
    headlines,
    is_simulated,
    observers,
    protected_by,
    readers,
    remarks,
    tracebacks,
    unique,
)
from privtrain.report.table import attack_cell
from privtrain.report.votes import vote_figures, votes_seen

TITLE = "Privacy techniques compared"


Drawn = Mapping[str, Picture | Exception | None]
"""Name to a picture, or why it could not be drawn; None where there is nothing to draw."""


def draw(comparison: Comparison) -> Drawn:
    """All pictures of a comparison.

    Args:
        comparison: What was compared.
    """
    drawing = {
        "accuracy": figures.accuracy_against_epsilon,
        "cost": figures.cost_bars,
        "epsilon": figures.epsilon_over_rounds,
        "deltas": figures.epsilon_by_delta,
        "trade_off": figures.trade_off,
        "curves": figures.learning_curves,
        "votes": votes_seen,
        "roc": roc_curves,
    }
    if is_missing("matplotlib"):
        return dict.fromkeys(drawing)
    return {name: _drawn(one, comparison) for name, one in drawing.items()}


def _drawn(
    one: Callable[[Comparison], Picture | None], comparison: Comparison
) -> Picture | Exception | None:
    try:
        return one(comparison)
    except Exception as error:  # a picture is no reason to go without the tables
        return error


def comparison_html(comparison: Comparison, pictures: Drawn | None = None) -> str:
    """The comparison as a page that needs nothing else: no network, no script, no other file.

    Args:
        comparison: What was compared.
        pictures: What `draw` made of it; None to draw now.

    Returns:
        HTML of some hundred kilobytes at most; all names are escaped.
    """
    drawn = draw(comparison) if pictures is None else pictures
    shown = {name: _embedded(picture) for name, picture in drawn.items()}
    # One sentence says it; the tables say all that the pictures do.
    said = str(missing("A picture", "matplotlib")) if is_missing("matplotlib") else None
    return _render("report.html.j2", comparison, figures=shown, no_pictures=said)


def _embedded(picture: Picture | Exception | None) -> Any:
    from markupsafe import Markup

    if isinstance(picture, Exception):
        said = f"{type(picture).__name__}: {picture}"
        return Markup('<p class="error">This picture could not be drawn: {}</p>').format(said)
    # Our own SVG; names in it were escaped when it was written.
    return None if picture is None else Markup(picture)


def comparison_fragment(comparison: Comparison) -> str:
    """Results and promises as tables for a notebook.

    Args:
        comparison: What was compared.

    Returns:
        An HTML element; all names are escaped.
    """
    return _render("fragment.html.j2", comparison)


def _render(template: str, comparison: Comparison, **more: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("privtrain.report"),
        # Labels, errors and observers are a user's text, and notebooks show the page as their own.
        autoescape=True,
        # A misspelt field must fail and not print as an empty cell, which would mean "missing".
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    loader = environment.loader
    css = "" if loader is None else loader.get_source(environment, "style.css")[0]
    # Our own style sheet; quotes in it must stay quotes.
    page = environment.get_template(template)
    return printable(page.render(css=Markup(css), **_context(comparison), **more))


def _context(comparison: Comparison) -> dict[str, Any]:
    gathered = groups(comparison)
    baselines = {group.label: group.baseline for group in gathered}
    measured = metric_columns(comparison.rows)
    name = _data_name(comparison.card)
    # A failed run says nothing about its randomness.
    finished = [row for row in comparison.rows if row.error is None]
    simulated = bool(finished) and all(is_simulated(row) for row in finished)
    return {
        "title": f"{TITLE} on {name}" if name else TITLE,
        "rows": comparison.rows,
        "failed": sum(row.error is not None for row in comparison.rows),
        "groups": gathered,
        "simulated": simulated,
        "simulated_flag": SIMULATED_FLAG,
        # What holds for every run is said once above the table.
        "vote_figures": vote_figures(gathered),
        "said_per_run": None if simulated else SIMULATED_FLAG,
        "observers": observers(gathered),
        "publishing": unique(text for group in gathered for text in group.publishing),
        "several_deltas": len(deltas(gathered)) > 1,
        "baseline": main_baseline(baselines),
        "stated": any(group.stated for group in gathered),
        "gap_note": gap_note(baselines, measured[0].name, percent=measured[0].percent),
        "readers": tuple(readers(gathered)),
        "task_metrics": measured,
        "commonest_note": commonest_note(measured),
        "metrics": _metrics(gathered),
        "attacked": any(group.attacks for group in gathered),
        "attack_header": attack_table.HEADER[1:],
        "attack_lines": attack_table.lines(comparison),
        "leaks": attack_table.LEAKS,
        "failures": FAILED,
        "tracebacks": tracebacks(comparison),
        "remarks": remarks(comparison),
        "styles": styles(row.label for row in comparison.rows),
        "unprotected": UNPROTECTED,
        "exact_private": EXACT_PRIVATE,
        "cost_note": cost_note(comparison),
        "setting_labels": tuple(settings_of(comparison)),
        "settings": differing(settings_of(comparison)),
        "card": tuple(_flat(_without_settings(publishable_card(comparison.card)))),
        "study": tuple(_flat(comparison.study or {})),
    }


def _data_name(card: Mapping[str, Any]) -> str:
    # A card read from a file may hold anything.
    data = card.get("data")
    name = data.get("name") if isinstance(data, Mapping) else data
    return name if isinstance(name, str) else ""


def _without_settings(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card without what the table of settings shows."""
    configuration = card.get("configuration")
    if not isinstance(configuration, Mapping):
        return dict(card)
    rest = {name: item for name, item in configuration.items() if name != SETTINGS}
    return {**card, "configuration": rest}


def _metrics(gathered: tuple[Group, ...]) -> tuple[str, ...]:
    # The columns follow from what the attacks measured: no attack has to be known here.
    return unique(
        metric for group in gathered for attack in group.attacks for metric in attack.metrics
    )


def _metric_name(metric: str) -> str:
    """A metric in the words of a table's header."""
    words = metric.replace("_", " ")
    for word in ("auc", "tpr", "fpr"):
        words = words.replace(word, word.upper())
    return words[:1].upper() + words[1:]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines of a path and a text."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path} · ")
        else:
            plain = to_plain(value)
            yield path, plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _row_headlines(row: Row) -> tuple[Guarantee, ...]:
    return () if row.statement is None else headlines(row.statement.guarantees)


_FILTERS = {
    "number": cells.number,
    "asked": cells.asked,
    "promised": cells.promised,
    "attack": attack_cell,
    "percent": cells.percent,
    "percent_interval": cells.percent_interval,
    "points": cells.points,
    "size": cells.size,
    "duration": cells.duration,
    "count": cells.count,
    "protected_by": protected_by,
    "headlines": _row_headlines,
    "metric_name": _metric_name,
}
