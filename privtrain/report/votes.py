"""What the votes of teachers looked like: a picture and a few figures, most of them private."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privtrain.core.result import Comparison, Row, VotesSeen
from privtrain.core.statement import EXACT_PRIVATE
from privtrain.report import cells
from privtrain.report.drawing import (
    INK,
    Picture,
    Style,
    add_legend,
    add_title,
    entry,
    new_figure,
    styles,
    to_svg,
)
from privtrain.report.over_seeds import spread
from privtrain.report.summary import Group, groups

PRIVATE = "dashed and shares: PRIVATE, computed from the exact votes of a simulation; never publish"


@dataclass(frozen=True)
class VoteFigures:
    """What is said of a trainer's votes, each a mean over seeds; a dash where it is not known."""

    group: Group
    asked: str
    answered: str
    label_accuracy: str
    agreement: str


def vote_figures(gathered: Sequence[Group]) -> tuple[VoteFigures, ...]:
    """The figures of all trainers whose teachers voted."""
    return tuple(_figures_of(group) for group in gathered if _seen(group.done))


def _figures_of(group: Group) -> VoteFigures:
    seen = _seen(group.done)
    right = spread(votes.label_accuracy for votes in seen)
    agreed = spread(votes.agreement for votes in seen)
    asked, answered = spread(v.asked for v in seen), spread(v.answered for v in seen)
    return VoteFigures(
        group=group,
        asked=cells.count(None if asked is None else asked.mean),
        answered=cells.count(None if answered is None else answered.mean),
        label_accuracy=cells.percent(None if right is None else right.mean),
        agreement=cells.percent(None if agreed is None else agreed.mean),
    )


def _seen(rows: Sequence[Row]) -> list[VotesSeen]:
    votes = (row.history.votes for row in rows if row.history is not None)
    return [each for each in votes if each is not None]


def votes_seen(comparison: Comparison) -> Picture | None:
    """Epsilon over releases, formal and exact, and top shares, of the first finished seeds.

    The formal one is solid and may be published. The exact one is dashed, and private, as the
    shares are; the picture says so.

    Args:
        comparison: What was compared.

    Returns:
        SVG, or None where no run knows anything private of votes.
    """
    rows = [(group, row) for group in groups(comparison) for row in group.done[:1]]
    drawn = [
        (group, row.history.epsilon, row.history.votes)
        for group, row in rows
        if row.history is not None and row.history.votes is not None
    ]
    drawn = [each for each in drawn if each[2].top_shares]
    if not drawn:
        return None
    style = styles(row.label for row in comparison.rows)
    figure, (left, right) = new_figure(9.6, 3.3, 2)
    for group, formal, votes in drawn:
        _epsilons(left, formal, votes, group.name, style[group.label])
        _shares(right, votes, group.name, style[group.label])
    add_title(left, "ε to the public")
    left.set_xlabel("releases: answers and checks")
    left.set_ylim(bottom=0)
    left.set_xlim(left=0)
    left.xaxis.get_major_locator().set_params(integer=True)
    add_title(right, "top shares (private)")
    right.set_xlabel("part of the votes in the largest count")
    right.set_ylabel("answered queries")
    right.set_xlim(0, 1)
    right.set_ylim(bottom=0)
    right.xaxis.set_major_formatter(lambda value, position: f"{100 * value:.0f}%")
    add_legend(right, left)
    # Within the picture, so that it cannot be copied out of the page without its warning.
    figure.suptitle(PRIVATE, color=INK, fontsize=9.5)
    return to_svg(figure, "votes", "Epsilon over answers, and shares of the largest count")


def _epsilons(
    axes: Any, formal: Sequence[tuple[int, float]], votes: VotesSeen, name: str, style: Style
) -> None:
    kinds = (
        (formal, "-", entry(name)),
        (votes.epsilon, "--", f"{entry(name)}, {EXACT_PRIVATE}"),
    )
    for curve, dash, said in kinds:
        points = [point for point in curve if math.isfinite(point[1])]
        if points:
            axes.plot(
                [n for n, _ in points], [e for _, e in points], color=style.colour, linewidth=1.5,
                linestyle=dash, marker=style.marker, markersize=3.5, label=said,
            )  # fmt: skip


def _shares(axes: Any, votes: VotesSeen, name: str, style: Style) -> None:
    edges = [place / len(votes.top_shares) for place in range(len(votes.top_shares) + 1)]
    axes.stairs(votes.top_shares, edges, color=style.colour, linewidth=1.5, label=entry(name))
    axes.stairs(votes.top_shares, edges, color=style.colour, fill=True, alpha=0.18)
