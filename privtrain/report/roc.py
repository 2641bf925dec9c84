"""What attacks find at each false positive rate, as a picture with both axes logarithmic."""

from collections.abc import Iterator

from privtrain.core.result import Comparison, Leakage
from privtrain.report.drawing import (
    DASHES,
    LINES,
    Picture,
    add_legend,
    new_figure,
    plain_log,
    styles,
    to_svg,
)
from privtrain.report.summary import Group, groups, unique

MOST = 12
"""More lines cannot be told apart: those with the largest AUC are drawn."""


def roc_curves(comparison: Comparison) -> Picture | None:
    """True against false positive rates, for the first finished seed of each line of the table.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no attack has a curve. A trainer has a colour, an attack and its observer
        a dash. No line goes below ten false positives.
    """
    drawn = sorted(_with_curves(comparison), key=lambda one: -(one[1].metrics.get("auc") or 0.0))
    if not drawn:
        return None
    colours = styles(row.label for row in comparison.rows)
    kinds = unique((leakage.attack, leakage.observer) for _, leakage in drawn)
    figure, (axes,) = new_figure(6.6, 4.0)
    lowest = min(leakage.roc[0][0] for _, leakage in drawn)
    axes.plot([lowest, 1], [lowest, 1], color=LINES, linewidth=1, linestyle=":", label="a coin")
    for group, leakage in drawn[:MOST]:
        kind = kinds.index((leakage.attack, leakage.observer))
        # A rate of zero has no place on the axis; the line begins at the next point.
        points = [(fpr, tpr) for fpr, tpr in leakage.roc if tpr > 0]
        axes.plot(
            [fpr for fpr, _ in points],
            [tpr for _, tpr in points],
            color=colours[group.label].colour,
            linestyle=DASHES[kind % len(DASHES)],
            marker=colours[group.label].marker,
            markersize=3.5,
            linewidth=1.4,
            label=f"{group.name}: {leakage.attack}, {leakage.observer}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, 1)
    axes.set_ylim(lowest, 1.05)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    for axis in (axes.xaxis, axes.yaxis):
        plain_log(axis, lambda value: f"{100 * value:g}%", subs=(1.0, 2.0, 5.0))
    add_legend(axes)
    return to_svg(figure, "roc", "True positive rate of each attack at each false positive rate")


def _with_curves(comparison: Comparison) -> Iterator[tuple[Group, Leakage]]:
    for group in groups(comparison):
        known = set()
        for row in group.done:
            for leakage in row.leakage:
                name = (leakage.attack, leakage.observer)
                # Of very few rows there is the end of the curve alone.
                if len(leakage.roc) > 1 and name not in known:
                    known.add(name)
                    yield group, leakage
