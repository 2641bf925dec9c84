"""What audits prove, with the most that they could have proved beside it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from privtrain.core.result import Leakage
from privtrain.report import cells
from privtrain.report.summary import Group, unique

# Always shown as a pair: an audit cannot prove more than its ceiling, so that a bound of 0 beside a
# low ceiling is no evidence of safety (docs/sharp_edges.md, "Auditing").
AT_LEAST, CEILING = "epsilon_lower_bound", "ceiling"
"""The metrics of a bound, and of the bound that all right guesses would have shown."""


@dataclass(frozen=True)
class Audit:
    """What an audit proves of a group of runs, as texts.

    Args:
        name: What the audit is called.
        at_least: The lower bound on epsilon that holds for all seeds.
        across: From the least bound of a seed to the largest; empty where they are equal.
        ceiling: The bound that all right guesses would have shown.
        right: How many guesses were right, as a mean, and how many there were.
        curve: In how many seeds the promised curve was rejected; a dash where none was tested.
        holds: At which confidence and delta the bound holds.
    """

    name: str
    at_least: str
    across: str
    ceiling: str
    right: str
    curve: str
    holds: str


def audits(group: Group) -> tuple[Audit, ...]:
    """The attacks on a group that bound epsilon from below; empty where no such attack was run."""
    return tuple(
        Audit(
            name=attack.attack,
            at_least=_value(group, attack, AT_LEAST, cells.proved),
            across=_across(group, attack),
            ceiling=_value(group, attack, CEILING, cells.number),
            right=_right(group, attack),
            curve=_curve(group, attack),
            holds=_holds(attack),
        )
        for attack in group.attacks
        if AT_LEAST in attack.metrics
    )


def explained(shown: Iterable[Audit]) -> str:
    """The note below a table of audits: what its figures mean and where they hold."""
    # A bound without its confidence and delta is no statement. Attacks may differ in both.
    return (
        "ε at least: a lower bound, of the seed that proves least, so that it holds "
        f"{'; '.join(unique(audit.holds for audit in shown))}; the range reaches to the seed that "
        "proves most. Curve: in how many seeds the promised trade-off curve was rejected."
    )


def _value(group: Group, attack: Leakage, metric: str, words: Callable[[float | None], str]) -> str:
    figure = group.measured(attack, metric)
    return words(None if figure is None else figure.value)


def _across(group: Group, attack: Leakage) -> str:
    figure = group.measured(attack, AT_LEAST)
    if figure is None or figure.interval is None:
        return ""
    low, high = figure.interval
    return f"{cells.proved(low)}–{cells.promised(high)}"


def _right(group: Group, attack: Leakage) -> str:
    right, tried = (group.measured(attack, name) for name in ("correct", "guesses"))
    if right is None or tried is None or right.value is None or tried.value is None:
        return cells.MISSING
    return f"{cells.count(right.value)} of {cells.count(tried.value)}"


def _curve(group: Group, attack: Leakage) -> str:
    leakages = group.having(attack, "f_dp_rejected")
    rejected = [leakage.metrics["f_dp_rejected"] for leakage in leakages]
    # A count and no verdict: each seed is tested at the confidence of its attack, so that more of
    # them mean more chance alarms. Seeds without a promised curve have nothing to reject.
    tested = [value for value in rejected if value is not None]
    return f"{sum(map(bool, tested))} of {len(tested)}" if tested else cells.MISSING


def _holds(attack: Leakage) -> str:
    confidence, delta = (attack.metrics.get(name) for name in ("confidence", "delta"))
    if confidence is None or delta is None:
        return f"as {attack.attack} says"
    # Six digits: 0.9999 must not become a certain 100%.
    return f"with confidence {100 * confidence:.6g}% at δ {cells.promised(delta)}"
