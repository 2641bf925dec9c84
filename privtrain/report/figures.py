"""Pictures of a comparison: accuracy against epsilon, costs, epsilon and losses over rounds."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from privtrain.core.result import Comparison, Curve, Row
from privtrain.core.statement import PrivacyCurves, PrivacyStatement
from privtrain.report import cells
from privtrain.report.drawing import (
    INK,
    LINES,
    Picture,
    Style,
    add_legend,
    add_title,
    entry,
    new_figure,
    plain_log,
    styles,
    to_svg,
)
from privtrain.report.measured import Column, metric_columns
from privtrain.report.over_seeds import Spread
from privtrain.report.summary import Group, groups, unique

MOST_POINTS = 150
"""Longer curves are thinned, so that the page stays small."""

WIDE = 30
"""Where the largest epsilons of two curves differ by more, the scale is logarithmic."""

UNPROTECTED = "UNPROTECTED: computed from private data, for simulation only; never publish it"

MOST_PANELS = 4
"""How many diagnostics are drawn; the others are in the JSON file."""

COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("bytes_sent", "bytes sent", cells.size),
    ("rounds", "rounds", cells.count),
    ("seconds", "seconds", cells.duration),
    ("peak_memory_bytes", "peak memory", cells.size),
)


def accuracy_against_epsilon(comparison: Comparison) -> Picture | None:
    """The main metric over the formal epsilon to the public that was spent, on a log scale.

    Points are means over seeds, bars reach from the worst to the best seed. Runs that promise
    the public nothing, or what a user states alone, are horizontal lines, named so.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no run has the main metric.
    """
    main = metric_columns(comparison.rows)[0]
    drawn = [group for group in groups(comparison) if main.spread(group) is not None]
    if not drawn:
        return None
    style = styles(row.label for row in comparison.rows)
    # Infinity has no place on the axis, and is no missing promise either: a line across, named so.
    private = [group for group in drawn if math.isfinite(_epsilon(group))]
    units = unique(group.headline.unit for group in private if group.headline is not None)
    figure, (axes,) = new_figure(7.2, 3.5)
    for group in drawn:
        if group not in private:
            _reference(axes, group, main.spread(group), style[group.label])
    # Units in the legend as soon as there are two: their epsilons share an axis but no meaning.
    for label in unique(group.label for group in private):
        mine = sorted((group for group in private if group.label == label), key=_epsilon)
        _points(axes, mine, main, style[label], with_unit=len(units) > 1)
    _epsilon_axis(axes, [_epsilon(group) for group in private])
    if main.percent:
        axes.yaxis.set_major_formatter(lambda value, position: f"{100 * value:.4g}%")
    axes.set_ylabel(f"{entry(main.name)} on the test rows (unprotected)")
    add_legend(axes)
    return to_svg(figure, "accuracy", f"{main.title} against the formal epsilon to the public")


# What was spent and not what was asked: a run that missed its epsilon must not seem to meet it.
def _epsilon(group: Group) -> float:
    return math.inf if group.headline is None else group.headline.epsilon


def _epsilon_axis(axes: Any, epsilons: Sequence[float]) -> None:
    axes.set_xlabel("formal ε to the public, as spent (log scale)")
    positive = [epsilon for epsilon in epsilons if epsilon > 0]
    if not positive:
        axes.set_xticks([])
        axes.set_xlabel("no run promises the public a finite ε")
        return
    axes.set_xscale("log")
    axes.set_xlim(min(positive) / 1.6, max(positive) * 1.6)
    wide = max(positive) / min(positive) > 100
    plain_log(axes.xaxis, cells.number, (1.0,) if wide else (1.0, 2.0, 3.0, 5.0))


def _reference(axes: Any, group: Group, accuracy: Spread | None, style: Style) -> None:
    if accuracy is not None:
        name = entry(f"{group.name} ({'ε stated by the user' if group.stated else 'no ε'})")
        axes.axhspan(accuracy.low, accuracy.high, color=style.colour, alpha=0.13, linewidth=0)
        axes.axhline(
            accuracy.mean, color=style.colour, linestyle=(0, (5, 2)), linewidth=1.5, label=name
        )


def _points(
    axes: Any, mine: Sequence[Group], main: Column, style: Style, *, with_unit: bool
) -> None:
    # From the worst to the best seed: a standard error of three seeds would say more than they do.
    spreads = [spread for group in mine if (spread := main.spread(group)) is not None]
    means = [spread.mean for spread in spreads]
    below = [spread.mean - spread.low for spread in spreads]
    above = [spread.high - spread.mean for spread in spreads]
    unit = "" if mine[0].headline is None else f" (per {mine[0].headline.unit})"
    axes.errorbar(
        [_epsilon(group) for group in mine], means, yerr=[below, above], capsize=3,
        color=style.colour, marker=style.marker, linestyle=style.dash, linewidth=1.5,
        markersize=5.5, elinewidth=1, label=entry(mine[0].label) + (unit if with_unit else ""),
    )  # fmt: skip


def cost_bars(comparison: Comparison) -> Picture | None:
    """Bytes, rounds, seconds and peak memory of each trainer, on log scales.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no run has a cost. A cost that no run has is left out.
    """
    drawn = [group for group in groups(comparison) if group.cost("seconds") is not None]
    if not drawn:
        return None
    style = styles(row.label for row in comparison.rows)
    # Beside each other: seconds in a simulation mean little without bytes and rounds. What is zero
    # or unknown for everybody has no bars: without rounds there is nothing to compare.
    shown = [cost for cost in COSTS if any(group.cost(cost[0]) for group in drawn)]
    if not shown:
        return None
    figure, panels = new_figure(0.6 + 2.6 * len(shown), 1.1 + 0.27 * len(drawn), len(shown))
    for axes, (name, title, words) in zip(panels, shown, strict=True):
        _bars(axes, drawn, [group.cost(name) for group in drawn], words, style)
        add_title(axes, title)
        axes.set_yticks([])
    panels[0].set_yticks(range(len(drawn)), [entry(group.name) for group in drawn])
    panels[0].tick_params(axis="y", length=0)
    return to_svg(figure, "cost", "Bytes sent, rounds, seconds and peak memory of each trainer")


def _bars(
    axes: Any,
    drawn: Sequence[Group],
    values: Sequence[float | None],
    words: Callable[[float | None], str],
    style: dict[str, Style],
) -> None:
    """Draws horizontal bars on a log axis, each with its figure; zero has no bar."""
    # A log axis has no zero, and where its bars start is arbitrary: each bar carries its figure,
    # and the axis its ticks, so that twice as long is not read as twice as much.
    positive = [value for value in values if value]
    start = 10 ** math.floor(math.log10(min(positive)) - 0.3)
    end = max(positive)
    axes.set_xscale("log")
    for place, (group, value) in enumerate(zip(drawn, values, strict=True)):
        length = value or start
        if value:
            axes.barh(
                place, length - start, left=start, height=0.62, color=style[group.label].colour
            )
        axes.annotate(
            words(value), (length, place), xytext=(3, 0), textcoords="offset points",
            va="center", color=INK, fontsize=8,
        )  # fmt: skip
    # Space for the figure at the end of the longest bar.
    axes.set_xlim(start, end * max(end / start, 10.0) ** 0.55)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.grid(False, axis="y")
    # Seconds stay seconds: a tick at "16.7 min" is no power of ten.
    ticks = _in_seconds if words is cells.duration else words
    _decades(axes.xaxis, ticks, axes.get_xlim())


def _in_seconds(value: float | None) -> str:
    return f"{cells.number(value)} s"


def _decades(axis: Any, words: Callable[[float | None], str], limits: tuple[float, float]) -> None:
    """At most four ticks at powers of ten, in words."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    first, last = (math.log10(limit) for limit in limits)
    powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    shown = powers[:: max(1, -(-len(powers) // 4))]
    axis.set_major_locator(FixedLocator([10.0**power for power in shown]))
    axis.set_major_formatter(FuncFormatter(lambda value, position: words(value)))
    axis.set_minor_locator(FixedLocator([10.0**power for power in powers]))
    axis.set_minor_formatter(NullFormatter())


def epsilon_over_rounds(comparison: Comparison) -> Picture | None:
    """Formal epsilon to the public after each round, for the first finished seed of each run.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no run spent a finite epsilon.
    """
    curves = [
        (group, _thinned([point for point in row.history.epsilon if math.isfinite(point[1])]))
        for group in groups(comparison)
        for row in group.done[:1]
        if row.history is not None
    ]
    drawn = [(group, curve) for group, curve in curves if curve]
    if not drawn:
        return None
    style = styles(row.label for row in comparison.rows)
    figure, (axes,) = new_figure(7.2, 3.3)
    for group, curve in drawn:
        _line(axes, curve, style[group.label], group.name, _shade(group, [g for g, _ in drawn]))
    axes.set_xlabel("round, step or query")
    axes.set_ylabel("formal ε to the public")
    _epsilon_height(axes, [curve[-1][1] for _, curve in drawn])
    axes.xaxis.get_major_locator().set_params(integer=True)
    ends = [max(curve[-1][0], 1) for _, curve in drawn]
    if max(ends) > 5 * min(ends):
        axes.set_xscale("log")
        axes.set_xlabel("round, step or query (log scale)")
        plain_log(axes.xaxis, cells.count, (1.0, 2.0, 5.0) if max(ends) < 200 else (1.0,))
    add_legend(axes)
    return to_svg(figure, "epsilon", "Formal epsilon to the public over rounds")


def epsilon_by_delta(comparison: Comparison) -> Picture | None:
    """The whole curve epsilon(delta) to the public, for the first finished seed of each run.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no run promises the public anything.
    """
    drawn = _with_curves(comparison)
    if not drawn:
        return None
    style = styles(row.label for row in comparison.rows)
    figure, (axes,) = new_figure(7.2, 3.3)
    for group, curves in drawn:
        shade = _shade(group, [g for g, _ in drawn])
        _line(axes, curves.epsilon_by_delta, style[group.label], _with_mu(group, curves), shade)
        _mark_stated(axes, group, curves, style[group.label])
    axes.set_xscale("log")
    axes.set_xlabel("δ (log scale)")
    axes.set_ylabel("formal ε to the public")
    plain_log(axes.xaxis, lambda value: f"{value:.0e}".replace("e-0", "e-"))
    _epsilon_height(axes, [max(e for _, e in curves.epsilon_by_delta) for _, curves in drawn])
    add_legend(axes)
    return to_svg(figure, "deltas", "Formal epsilon to the public at every delta")


def _epsilon_height(axes: Any, largest: Sequence[float]) -> None:
    """Starts the axis at zero, or makes it logarithmic where the lowest curve would lie on it."""
    positive = [epsilon for epsilon in largest if epsilon > 0]
    if not positive or max(positive) < WIDE * min(positive):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.set_ylabel("formal ε to the public (log scale)")
    plain_log(axes.yaxis, cells.number)


def trade_off(comparison: Comparison) -> Picture | None:
    """What errors a test must make that tells neighbours apart, for the first finished seeds.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no run promises the public anything.
    """
    drawn = _with_curves(comparison)
    if not drawn:
        return None
    style = styles(row.label for row in comparison.rows)
    figure, (axes,) = new_figure(6.2, 3.6)
    # Guessing by a coin: a test that learns nothing errs in one way as often as it is right in the
    # other. Every promise lies below it.
    axes.plot([0, 1], [1, 0], color=LINES, linewidth=1, linestyle=":", label="perfect privacy")
    for group, curves in drawn:
        shade = _shade(group, [g for g, _ in drawn])
        _line(axes, curves.trade_off, style[group.label], group.name, shade)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("smallest false negative rate")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    add_legend(axes)
    return to_svg(figure, "tradeoff", "Smallest errors of a test that tells neighbours apart")


def _with_curves(comparison: Comparison) -> list[tuple[Group, PrivacyCurves]]:
    """Groups whose first finished seed has curves; data of worse seeds lie in the JSON file."""
    drawn = []
    for group in groups(comparison):
        statements = [row.statement for row in group.done[:1] if row.statement is not None]
        drawn += [(group, curves) for s in statements for curves in _headline_curves(group, s)]
    return drawn


def _headline_curves(group: Group, statement: PrivacyStatement) -> tuple[PrivacyCurves, ...]:
    """The curves of the unit that the headline is about, if there are any."""
    stated = group.headline
    of_unit = [curves for curves in statement.curves if stated and curves.unit == stated.unit]
    same = [curves for curves in of_unit if stated and curves.relation == stated.relation]
    return tuple((same or of_unit)[:1])


def _with_mu(group: Group, curves: PrivacyCurves) -> str:
    # "About": the promise follows a Gaussian's curve at one delta only (docs/report.md).
    return group.name if curves.mu is None else f"{group.name} (μ ≈ {cells.number(curves.mu)})"


def _mark_stated(axes: Any, group: Group, curves: PrivacyCurves, style: Style) -> None:
    """A point at the delta and epsilon that the table states."""
    stated = group.headline
    if stated is not None and math.isfinite(stated.epsilon) and stated.observer == curves.observer:
        axes.plot([stated.delta], [stated.epsilon], color=style.colour, marker=style.marker, ms=5)


def _shade(group: Group, drawn: Sequence[Group]) -> float:
    """The opacity of a group among those of its label: the largest epsilon is drawn strongest."""
    mine = sorted(g.epsilon_asked or 0.0 for g in drawn if g.label == group.label)
    return 0.45 + 0.55 * (mine.index(group.epsilon_asked or 0.0) + 1) / len(mine)


def _line(
    axes: Any, curve: Sequence[tuple[float, float]], style: Style, name: str, alpha: float = 1.0
) -> None:
    rounds, values = [point[0] for point in curve], [point[1] for point in curve]
    axes.plot(
        rounds, values, color=style.colour, linestyle=style.dash, linewidth=1.5, alpha=alpha,
        marker=style.marker if len(curve) < 2 else None, markersize=5, label=entry(name),
    )  # fmt: skip


def _thinned(curve: Curve) -> Curve:
    """At most `MOST_POINTS` points, evenly chosen, the first and the last among them."""
    if len(curve) <= MOST_POINTS:
        return curve
    # Points of the run as they are, never averaged ones: an epsilon between two would be made up.
    last = len(curve) - 1
    return [curve[round(index * last / (MOST_POINTS - 1))] for index in range(MOST_POINTS)]


def learning_curves(comparison: Comparison) -> Picture | None:
    """Unprotected diagnostics over the run, for the first finished seed of each label.

    Where a label was run at several epsilons, the largest is drawn. Runs count different things
    (epochs, steps, rounds), so that the axis is the fraction of the run.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no run has diagnostics.
    """
    rows = _shown(groups(comparison))
    names = unique(
        name
        for row in rows
        if row.history
        for name, curve in row.history.unprotected.items()
        # A count that is zero everywhere, as of values that are not finite, is no curve.
        if any(value and math.isfinite(value) for _, value in curve)
    )
    if not names:
        return None
    style = styles(row.label for row in comparison.rows)
    carriers = {
        name: sum(row.history is not None and name in row.history.unprotected for row in rows)
        for name in names
    }
    # What most runs have can be compared.
    shown = sorted(names, key=lambda name: -carriers[name])[:MOST_PANELS]
    columns = min(len(shown), 2)
    figure, panels = new_figure(
        3.2 + 3.4 * columns, 0.4 + 2.5 * -(-len(shown) // columns), len(shown), columns
    )
    for axes, name in zip(panels, shown, strict=True):
        for row in rows:
            if row.history is not None and name in row.history.unprotected:
                curve = _as_fraction(_thinned(row.history.unprotected[name]))
                _line(axes, curve, style[row.label], row.label)
        add_title(axes, name.replace("_", " "))
        axes.set_xlabel("fraction of the run")
        axes.set_xlim(0, 1.02)
    fullest = max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    add_legend(panels[columns - 1], fullest)
    # Within the picture, so that it cannot be copied out of the page without its warning.
    figure.suptitle(UNPROTECTED, color=INK, fontsize=9.5)
    return to_svg(figure, "curves", "Unprotected diagnostics over rounds")


def _shown(gathered: Sequence[Group]) -> list[Row]:
    """The first finished row of each label, at its largest epsilon."""
    chosen: dict[str, Group] = {}
    for group in gathered:
        best = chosen.get(group.label)
        if group.done and (best is None or (group.epsilon_asked or 0) > (best.epsilon_asked or 0)):
            chosen[group.label] = group
    return [group.done[0] for group in chosen.values()]


def _as_fraction(curve: Curve) -> list[tuple[float, float]]:
    """Rounds divided by the last: runs have different numbers of rounds."""
    last = max(curve[-1][0], 1) if curve else 1
    return [(point[0] / last, point[1]) for point in curve]
