"""A comparison as text for a terminal."""

import io
from collections.abc import Iterable, Sequence

from privtrain.core.failures import printable
from privtrain.core.result import Comparison
from privtrain.core.statement import Guarantee
from privtrain.report import cells
from privtrain.report.audits import Audit, audits, explained
from privtrain.report.publishing import cost_note
from privtrain.report.summary import (
    SIMULATED_FLAG,
    Group,
    groups,
    observers,
    protected_by,
    readers,
    remarks,
    unique,
)

UNPROTECTED_RESULTS = (
    "No guarantee covers the figures of attacks, which are exact functions of members' rows, nor "
    "the accuracy, which is measured on unprotected test rows."
)

LONGEST_LABEL = 36
"""Longer labels are cut in tables; files keep them whole."""


def comparison_text(comparison: Comparison, *, width: int = 100) -> str:
    """The comparison as tables: results, promises, costs, and who reads what.

    Figures are means over seeds; an interval holds the 95% intervals of all seeds. A guarantee
    is that of the worst seed, a lower bound that of the seed which proves least. What is missing
    is "–", what is not resolvable "n/r", infinity "inf".

    Args:
        comparison: What was compared.
        width: Columns of the terminal.

    Returns:
        Plain text.
    """
    gathered = groups(comparison)
    tables = [
        _render("Results", _RESULTS, [_result(g) for g in gathered], width, UNPROTECTED_RESULTS),
        _promises(gathered, width),
        _audits(gathered, width),
        _render("Cost", _COSTS, [_cost(g) for g in gathered], width, cost_note(comparison)),
        _readers(gathered, width),
        _remarks(comparison, width),
    ]
    return printable("\n".join(table for table in tables if table))


# "ε asked" beside "ε public": a run that could not meet what it was asked shows both. "busiest"
# beside "bytes sent": a total hides who carries it. "ceiling" beside "ε at least": a low bound
# under a low ceiling is no evidence of safety. "seeds": how many runs are behind a mean.
_AUC = "attack AUC\n(unprotected)"
_RESULTS = ("trainer", "ε asked", "ε public", "accuracy", "gap", _AUC, "remarks")
_COSTS = ("trainer", "ε asked", "bytes sent", "busiest", "rounds", "time", "peak memory", "seeds")
_AUDITS = ("trainer", "ε asked", "audit", "ε at least", "ceiling", "right", "curve", "seeds")
_WORDS = ("trainer", "audit", "remarks", "reader", "reads", "protected by")
"""Columns of words: aligned left, and wrapped where the terminal is narrow."""


def _render(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], width: int, note: str = ""
) -> str:
    """A table as text. Cells are plain text: no markup is read from a user's names."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        caption=Text(note) if note else None, caption_justify="left",
    )  # fmt: skip
    for name in header:
        left = name in _WORDS
        table.add_column(
            Text(name),
            justify="left" if left else "right",
            no_wrap=not left,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Rendered apart from any terminal: the same comparison prints the same text into a file.
    console = Console(file=io.StringIO(), width=width, color_system=None, emoji=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def _label(group: Group) -> str:
    return cells.shortened(group.label, LONGEST_LABEL)


def _result(group: Group) -> list[str]:
    accuracy = group.accuracy
    return [
        _label(group),
        cells.number(group.epsilon_asked),
        headline_cell(group.headlines),
        stacked(
            accuracy_text(group),
            cells.percent_interval(None if accuracy is None else group.accuracy_interval),
        ),
        cells.points(group.gap),
        attack_cell(group),
        _remark(group),
    ]


def stacked(*lines: str) -> str:
    """A cell of several lines; empty ones are left out."""
    return "\n".join(line for line in lines if line)


def headline_cell(guarantees: Sequence[Guarantee]) -> str:
    """The epsilon of each protected unit, the worst first."""
    # One unit's epsilon never stands for another's; "inf" has no unit where it stands alone.
    if len(guarantees) == 1:
        return epsilon_cell(guarantees[0], relation=False)
    of_units = [stacked(cells.number(g.epsilon), str(g.unit)) for g in guarantees]
    return stacked(*of_units) or cells.MISSING


def epsilon_cell(guarantee: Guarantee, *, relation: bool) -> str:
    """The epsilon of a guarantee; where it is finite, also the unit and the relation."""
    epsilon = cells.number(guarantee.epsilon)
    # Where nothing is promised there is nobody who is protected.
    if epsilon == "inf":
        return epsilon
    neighbours = guarantee.relation.replace("_", "-") if relation else ""
    return stacked(epsilon, str(guarantee.unit), neighbours)


def accuracy_text(group: Group) -> str:
    """The mean accuracy, or that it could not be measured."""
    # A mean over the seeds that could be measured would be one over chosen seeds.
    accuracy = group.accuracy
    if accuracy is None:
        return cells.FAILED if group.accuracy_failed else cells.MISSING
    return cells.percent(accuracy.mean)


def attack_cell(group: Group) -> str:
    """The highest AUC among the attacks that were run, with its interval."""
    leak = group.strongest("auc")
    if leak is None:
        return cells.FAILED if group.attack_failed else cells.MISSING
    return stacked(cells.rate(leak.value), cells.rate_interval(leak.interval))


def _remark(group: Group) -> str:
    errors = [cells.shortened(error, 90) for error in group.errors]
    # Simulated entropy is said among the caveats below, as what it is: void if the seed is known.
    flags = [flag for flag in group.flags if flag != SIMULATED_FLAG]
    return stacked("; ".join(flags), *errors)


def _cost(group: Group) -> list[str]:
    return [
        _label(group),
        cells.number(group.epsilon_asked),
        cells.size(group.cost("bytes_sent")),
        cells.size(group.bytes_by_busiest_party),
        cells.count(group.cost("rounds")),
        cells.duration(group.cost("seconds")),
        cells.size(group.cost("peak_memory_bytes")),
        group.seeds,
    ]


def _promises(gathered: Sequence[Group], width: int) -> str:
    columns = observers(gathered)
    if not columns:
        return ""
    # A run that failed promises nothing; a row of "–" would say that it states nothing.
    rows = [
        [_label(g), cells.number(g.epsilon_asked), *(promise_cell(g, name) for name in columns)]
        for g in gathered
        if g.done
    ]
    deltas = unique(cells.number(g.delta) for group in gathered for g in group.guarantees)
    title = f"Promised: formal epsilon to each observer, at delta {', '.join(deltas)}"
    names = [cells.shortened(name, 24) for name in columns]
    return _render(title, ("trainer", "ε asked", *names), rows, width)


def promise_cell(group: Group, column: str) -> str:
    """All formal guarantees to an observer, one below the other."""
    # A terminal has no italics to set a data-dependent epsilon apart: it is left out.
    formal = [g for g in group.promised(column) if not g.data_dependent]
    if not formal:
        return cells.MISSING
    return stacked(
        *unique(stacked(epsilon_cell(g, relation=True), g.observer.members_named) for g in formal)
    )


def _audits(gathered: Sequence[Group], width: int) -> str:
    audited = [(group, audit) for group in gathered for audit in audits(group)]
    rows = [_audit(group, audit) for group, audit in audited]
    note = explained(audit for _, audit in audited)
    title = "Audited (unprotected): what right guesses prove of ε, and the most they could have"
    return _render(title, _AUDITS, rows, width, note) if rows else ""


def _audit(group: Group, audit: Audit) -> list[str]:
    return [
        _label(group),
        cells.number(group.epsilon_asked),
        audit.name,
        stacked(audit.at_least, audit.across),
        audit.ceiling,
        audit.right,
        audit.curve,
        group.seeds,
    ]


def _readers(gathered: Sequence[Group], width: int) -> str:
    rows = [
        [cells.shortened(label, LONGEST_LABEL), entry.reader, entry.reads, protected_by(entry)]
        for label, entries in readers(gathered)
        for entry in entries
    ]
    header = ("trainer", "reader", "reads", "protected by")
    return _render("Who reads what while the model is trained", header, rows, width) if rows else ""


def _remarks(comparison: Comparison, width: int) -> str:
    """Errors, halts, notes and caveats, each text once with the runs it belongs to."""
    import textwrap

    sections = []
    for title, texts in remarks(comparison):
        lines = [title]
        for text, where in texts:
            line = f"{'; '.join(where)}: {' '.join(text.split())}"
            lines += textwrap.wrap(line, width, initial_indent="- ", subsequent_indent="  ")
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)
