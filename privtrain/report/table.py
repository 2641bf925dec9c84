"""A comparison as text for a terminal."""

import io
import textwrap
from collections.abc import Iterable, Sequence

from privtrain.core.failures import printable
from privtrain.core.result import Comparison
from privtrain.core.statement import STATED, Guarantee
from privtrain.report import attack_table, cells
from privtrain.report.audits import Audit, audits, explained
from privtrain.report.gaps import gap_note, main_baseline
from privtrain.report.measured import Column, commonest_note, metric_columns
from privtrain.report.publishing import cost_note
from privtrain.report.settings import in_a_line, settings_of
from privtrain.report.summary import (
    SIMULATED_FLAG,
    Group,
    deltas,
    groups,
    observers,
    protected_by,
    readers,
    remarks,
    unique,
)

UNPROTECTED_RESULTS = (
    "No guarantee covers the figures of attacks, which are exact functions of members' rows, nor "
    "the {metric}, which is measured on unprotected test rows."
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
    shown = metric_columns(comparison.rows)
    tables = [
        _results(gathered, shown, width),
        _metrics(gathered, shown, width),
        _promises(gathered, width),
        _attacks(comparison, width),
        _audits(gathered, width),
        _render("Cost", _COSTS, [_cost(g) for g in gathered], width, cost_note(comparison)),
        _settings(comparison, width),
        _readers(gathered, width),
        _remarks(comparison, width),
    ]
    return printable("\n".join(table for table in tables if table))


# "ε asked" beside "ε public": a run that could not meet what it was asked shows both. "busiest"
# beside "bytes sent": a total hides who carries it. "ceiling" beside "ε at least": a low bound
# under a low ceiling is no evidence of safety. "seeds": how many runs are behind a mean.
_AUC = "attack AUC\n(unprotected)"
_COSTS = (
    *("trainer", "ε asked", "bytes sent", "busiest", "rounds"),
    *("time", "CPU time", "peak memory", "seeds"),
)
_AUDITS = ("trainer", "ε asked", "audit", "ε at least", "ceiling", "right", "curve", "seeds")
_ATTACKS = (
    *("trainer", "attack", "AUC or ε", "found", "TPR\nat 1%", "TPR\nat 0.1%", "formal ε"),
    *("time", "queries"),
)
_WIDE, _PLACE = 120, 18
_WORDS = ("trainer", "audit", "remarks", "settings", "reader", "reads", "protected by")
"""Columns of words: aligned left, and wrapped where the terminal is narrow."""
# What must not be overlooked, such as "asked 1, spent 1.31", stands on one line; so does an
# interval, but not why there is none.
_NARROW = {"remarks": 19, "AUC or ε": 11, "formal ε": 6, "trainer": 8, "coalition": 12}
"""Columns that wrap, but never below so many characters."""


def _render(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int,
    note: str = "",
    folding: Sequence[str] = (),
) -> str:
    """A table as text. Cells are plain text: no markup is read from a user's names.

    Columns that are `folding` wrap where the terminal is narrow, as those of words do.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for name in header:
        left, narrow = name in (*_WORDS, "attack", "found"), name in (*_NARROW, *folding)
        table.add_column(
            Text(name),
            justify="left" if left else "right",
            no_wrap=name not in _WORDS and not narrow,
            overflow="fold",
            min_width=_NARROW.get(name, 10 if name in folding else None),
        )
    lines_of = [list(row) for row in rows]
    for row in lines_of:
        table.add_row(*(Text(cell) for cell in row))
    # Rendered apart from any terminal: the same comparison prints the same text into a file.
    console = Console(file=io.StringIO(), width=width, color_system=None, emoji=False)
    # Wider than the terminal rather than without a column: what is cut off reads as if it were not
    # there.
    console.width = max(width, _needed(header, lines_of, folding))
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    # Not as the table's caption, which is as narrow as the table and cuts what ends beside it.
    said = f"\n\n{textwrap.fill(note, width)}" if note else ""
    return "\n".join(lines).strip("\n") + said + "\n"


def _needed(header: Sequence[str], rows: Sequence[Sequence[str]], folding: Sequence[str]) -> int:
    """The width below which a column that does not wrap would lose characters."""
    widths = [
        max(len(line) for cell in column for line in cell.split("\n"))
        if column[0] not in (*_WORDS, *_NARROW, *folding)
        # What wraps needs little room.
        else _NARROW.get(column[0], 10)
        for column in zip(header, *rows, strict=True)
    ]
    # A little more: columns that wrap are narrowed in proportion, and one of them too far.
    return 6 + sum(widths) + 3 * (len(widths) - 1)


def _label(group: Group) -> str:
    return cells.shortened(group.label, LONGEST_LABEL)


def _results(gathered: Sequence[Group], metrics: Sequence[Column], width: int) -> str:
    baselines = {group.label: group.baseline for group in gathered}
    main, baseline = metrics[0], main_baseline(baselines)
    named = "gap" if baseline is None else f"gap to\n{cells.shortened(baseline, 12)}"
    header = ("trainer", "ε asked", "ε public", main.header, named, _AUC, "remarks")
    said = (
        gap_note(baselines, main.name, percent=main.percent),
        commonest_note(metrics),
        UNPROTECTED_RESULTS.format(metric=main.name),
    )
    rows = [_result(group, main, baseline) for group in gathered]
    return _render("Results", header, rows, width, " ".join(filter(None, said)))


def gap_cell(group: Group, main: Column, baseline: str | None) -> str:
    """The gap, and that it is one to plaintext where it is not measured from the main baseline."""
    own = group.gap is not None and group.baseline not in (None, baseline)
    return stacked(main.gap(group.gap), "to plaintext" if own else "")


def _result(group: Group, main: Column, baseline: str | None) -> list[str]:
    return [
        _label(group),
        cells.asked(group.epsilon_asked),
        headline_cell(group.headlines),
        stacked(main.text(group), main.interval_text(group)),
        gap_cell(group, main, baseline),
        attack_cell(group),
        _remark(group),
    ]


METRICS_ABREAST = 4
"""Metrics in one table, so that a label is beside them on a narrow terminal, too."""


def _metrics(gathered: Sequence[Group], shown: Sequence[Column], width: int) -> str:
    """All metrics where there are several; in several tables where there are many."""
    tables = []
    for start in range(0, len(shown) if len(shown) > 1 else 0, METRICS_ABREAST):
        part = shown[start : start + METRICS_ABREAST]
        header = ("trainer", "ε asked", *(column.header for column in part))
        rows = [
            [
                _label(group),
                cells.asked(group.epsilon_asked),
                *(stacked(column.text(group), column.interval_text(group)) for column in part),
            ]
            for group in gathered
            if group.done
        ]
        tables.append(_render("Metrics (unprotected)", header, rows, width))
    return "\n".join(tables)


def stacked(*lines: str) -> str:
    """A cell of several lines; empty ones are left out."""
    return "\n".join(line for line in lines if line)


def headline_cell(guarantees: Sequence[Guarantee]) -> str:
    """The epsilon of each protected unit, the worst first."""
    # One unit's epsilon never stands for another's; "inf" has no unit where it stands alone.
    if len(guarantees) == 1:
        return epsilon_cell(guarantees[0], relation=False)
    of_units = [stacked(cells.promised(g.epsilon), str(g.unit)) for g in guarantees]
    return stacked(*of_units) or cells.MISSING


def epsilon_cell(guarantee: Guarantee, *, relation: bool, delta: bool = False) -> str:
    """The epsilon of a guarantee; where it is finite, also the unit, the relation and the delta."""
    epsilon = cells.promised(guarantee.epsilon)
    # Where nothing is promised there is nobody who is protected.
    if epsilon == "inf":
        return epsilon
    neighbours = guarantee.relation.replace("_", "-") if relation else ""
    at = f"δ {cells.promised(guarantee.delta)}" if delta else ""
    stated = STATED if guarantee.stated else ""
    return stacked(epsilon, str(guarantee.unit), neighbours, at, stated)


def attack_cell(group: Group) -> str:
    """The highest AUC among the attacks that were run, with its interval."""
    leak = group.strongest("auc")
    if leak is None:
        return cells.FAILED if group.attack_failed else cells.MISSING
    return stacked(leak.text, leak.interval_text)


def _remark(group: Group) -> str:
    errors = [cells.shortened(error, 90) for error in group.errors]
    # Simulated entropy is said among the caveats below, as what it is: void if the seed is known.
    flags = [flag for flag in group.flags if flag != SIMULATED_FLAG]
    return stacked("; ".join(flags), *errors)


def _cost(group: Group) -> list[str]:
    return [
        _label(group),
        cells.asked(group.epsilon_asked),
        cells.size(group.cost("bytes_sent")),
        cells.size(group.bytes_by_busiest_party),
        cells.count(group.cost("rounds")),
        cells.duration(group.cost("seconds")),
        cells.duration(group.cost("cpu_seconds")),
        cells.size(group.cost("peak_memory_bytes")),
        group.seeds,
    ]


def _promises(gathered: Sequence[Group], width: int) -> str:
    columns = observers(gathered)
    if not columns:
        return ""
    at = deltas(gathered)
    several = len(at) > 1
    # A run that failed promises nothing; a row of "–" would say that it states nothing.
    rows = [
        [
            _label(group),
            cells.asked(group.epsilon_asked),
            *(promise_cell(group, name, delta=several) for name in columns),
        ]
        for group in gathered
        if group.done
    ]
    which = f"the delta δ beside it: {', '.join(at)}" if several else f"delta {', '.join(at)}"
    title = f"Promised: formal epsilon to each observer, at {which}"
    names = [cells.shortened(name, 24) for name in columns]
    return _render(title, ("trainer", "ε asked", *names), rows, width, folding=names)


def promise_cell(group: Group, column: str, *, delta: bool = False) -> str:
    """All formal guarantees to an observer, one below the other; on demand with their delta."""
    # A terminal has no italics to set a data-dependent epsilon apart: it is left out.
    formal = [g for g in group.promised(column) if not g.data_dependent]
    if not formal:
        return cells.MISSING
    return stacked(
        *unique(
            stacked(epsilon_cell(g, relation=True, delta=delta), g.observer.members_named)
            for g in formal
        )
    )


def attacks_text(comparison: Comparison, *, width: int = 100) -> str:
    """The table of attacks alone: what each learned from each place, and what was promised to it.

    Args:
        comparison: What was compared.
        width: Columns of the terminal.

    Returns:
        Plain text; empty where no attack was run.
    """
    rows, before = list[list[str]](), None
    for line in attack_table.lines(comparison):
        # A label once: the eye finds where the next trainer begins.
        name = "" if line.group.name == before else line.group.name
        before = line.group.name
        rows.append(
            [
                cells.shortened(name, LONGEST_LABEL),
                # A coalition's name is as long as those of its members.
                stacked(line.attack, *textwrap.wrap(f"from {line.observer}", _PLACE)),
                stacked(line.figure, _narrow(line.interval)),
                line.found,
                *(cell.replace(" (", "\n(") for cell in line.tpr),
                line.epsilon.replace(" per ", "\nper "),
                line.seconds,
                line.queries,
            ]
        )
    if not rows:
        return ""
    note = (
        "Leaks: the interval of the AUC lies above 0.5, or a bound above 0; at 1%, at 0.1%: that "
        "of the members found at this rate lies above it. A figure of a coin speaks of this attack "
        "only, and is no evidence of safety. n/r: not resolvable with so few rows. Formal ε: "
        "promised to that observer for the unit that is attacked."
    )
    title = "Learned by each attack from each place (unprotected)"
    # On a narrow terminal without time and queries, which files have.
    shown = len(_ATTACKS) if width >= _WIDE else len(_ATTACKS) - 2
    return printable(_render(title, _ATTACKS[:shown], [row[:shown] for row in rows], width, note))


def _narrow(interval: str) -> str:
    """An interval as a cell; one with the digits that tell it from a coin takes two lines."""
    if interval == cells.MISSING:
        return ""
    return interval if len(interval) <= _NARROW["AUC or ε"] else interval.replace("–", "–\n")


def _attacks(comparison: Comparison, width: int) -> str:
    # One attack from one place stands among the results.
    shown = attack_table.several(comparison)
    return attacks_text(comparison, width=width) if shown else ""


def _audits(gathered: Sequence[Group], width: int) -> str:
    audited = [(group, audit) for group in gathered for audit in audits(group)]
    rows = [_audit(group, audit) for group, audit in audited]
    note = explained(audit for _, audit in audited)
    title = "Audited (unprotected): what right guesses prove of ε, and the most they could have"
    return _render(title, _AUDITS, rows, width, note) if rows else ""


def _audit(group: Group, audit: Audit) -> list[str]:
    return [
        _label(group),
        cells.asked(group.epsilon_asked),
        audit.name,
        stacked(audit.at_least, audit.across),
        audit.ceiling,
        audit.right,
        audit.curve,
        group.seeds,
    ]


def _settings(comparison: Comparison, width: int) -> str:
    rows = [
        [cells.shortened(label, LONGEST_LABEL), in_a_line(own)]
        for label, own in settings_of(comparison).items()
    ]
    return _render("Settings", ("trainer", "settings"), rows, width) if rows else ""


def _readers(gathered: Sequence[Group], width: int) -> str:
    rows = [
        [cells.shortened(label, LONGEST_LABEL), entry.reader, entry.reads, protected_by(entry)]
        for label, entries in readers(gathered)
        for entry in entries
    ]
    header = ("trainer", "reader", "reads", "protected by")
    return _render("Who reads what while the model is trained", header, rows, width) if rows else ""


def _remarks(comparison: Comparison, width: int) -> str:
    """Errors, halts, notes and caveats: one paragraph for each set of runs, each text once."""
    import textwrap

    sections = []
    for title, texts in remarks(comparison):
        said: dict[str, list[str]] = {}
        for text, where in texts:
            said.setdefault("; ".join(where), []).append(" ".join(text.split()))
        lines = [title]
        for names, sentences in said.items():
            line = f"{names}: {_joined(sentences)}"
            lines += textwrap.wrap(line, width, initial_indent="- ", subsequent_indent="  ")
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def _joined(texts: Sequence[str]) -> str:
    """Texts as they stand, one behind the other; some end in a full stop."""
    *before, last = texts
    return " ".join([*(text if text.endswith(".") else f"{text};" for text in before), last])
