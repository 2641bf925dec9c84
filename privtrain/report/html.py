"""A comparison as one self-contained page, or as a fragment for notebooks."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from privtrain.core.failures import printable
from privtrain.core.result import Comparison, Row
from privtrain.core.statement import Guarantee, to_plain
from privtrain.report import cells, figures
from privtrain.report.drawing import styles
from privtrain.report.publishing import UNPROTECTED, cost_note, publishable_card
from privtrain.report.summary import (
    FAILED,
    SIMULATED_FLAG,
    Group,
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
from privtrain.report.table import accuracy_text, attack_cell

TITLE = "Privacy techniques compared"


def comparison_html(comparison: Comparison) -> str:
    """The comparison as a page that needs nothing else: no network, no script, no other file.

    Args:
        comparison: What was compared.

    Returns:
        HTML of some hundred kilobytes at most; all names are escaped.
    """
    drawing = {
        "accuracy": figures.accuracy_against_epsilon,
        "cost": figures.cost_bars,
        "epsilon": figures.epsilon_over_rounds,
        "deltas": figures.epsilon_by_delta,
        "trade_off": figures.trade_off,
        "curves": figures.learning_curves,
    }
    drawn = {name: _drawn(draw, comparison) for name, draw in drawing.items()}
    return _render("report.html.j2", comparison, figures=drawn)


def _drawn(draw: Callable[[Comparison], str | None], comparison: Comparison) -> Any:
    """A picture that stands as it is, or why there is none; None where there is nothing to draw."""
    from markupsafe import Markup

    try:
        svg = draw(comparison)
    except Exception as error:  # a picture is no reason to go without the tables
        said = f"{type(error).__name__}: {error}"
        return Markup('<p class="error">This picture could not be drawn: {}</p>').format(said)
    # Our own SVG; names in it were escaped when it was written.
    return None if svg is None else Markup(svg)


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
        "said_per_run": None if simulated else SIMULATED_FLAG,
        "observers": observers(gathered),
        "readers": tuple(readers(gathered)),
        "metrics": _metrics(gathered),
        "attacked": any(group.attacks for group in gathered),
        "failures": FAILED,
        "tracebacks": tracebacks(comparison),
        "remarks": remarks(comparison),
        "styles": styles(row.label for row in comparison.rows),
        "unprotected": UNPROTECTED,
        "cost_note": cost_note(comparison),
        "card": tuple(_flat(publishable_card(comparison.card))),
        "study": tuple(_flat(comparison.study or {})),
    }


def _data_name(card: Mapping[str, Any]) -> str:
    # A card read from a file may hold anything.
    data = card.get("data")
    name = data.get("name") if isinstance(data, Mapping) else data
    return name if isinstance(name, str) else ""


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
    "accuracy": accuracy_text,
    "attack": attack_cell,
    "percent": cells.percent,
    "percent_interval": cells.percent_interval,
    "points": cells.points,
    "metric": cells.metric,
    "rate_interval": cells.rate_interval,
    "size": cells.size,
    "duration": cells.duration,
    "count": cells.count,
    "protected_by": protected_by,
    "headlines": _row_headlines,
    "metric_name": _metric_name,
}
