"""A comparison as LaTeX tables for a paper."""

import math
from collections.abc import Sequence
from string import ascii_lowercase

from privtrain.core.failures import printable
from privtrain.core.result import Comparison
from privtrain.core.statement import Guarantee
from privtrain.report import cells
from privtrain.report.audits import Audit, audits, explained
from privtrain.report.publishing import cost_note
from privtrain.report.summary import FAILED, Group, groups, observers, remarks, unique
from privtrain.report.table import accuracy_text, attack_cell

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "\n": " ",
}


def escape(text: str) -> str:
    """The text with what LaTeX would read as a command escaped."""
    return "".join(_ESCAPES.get(character, character) for character in printable(text))


def to_latex(comparison: Comparison) -> str:
    r"""Tables in booktabs style: results with costs, promises, and audits where some were made.

    Below them stand the theorems, assumptions and caveats, without which no epsilon is a statement.

    Args:
        comparison: What was compared.

    Returns:
        LaTeX; the document needs `\usepackage{booktabs}`. All names are escaped.
    """
    gathered = groups(comparison)
    columns = observers(gathered)
    # Two tables, since they answer two questions: what a model is worth and cost, and what is
    # promised to whom. One number for both would be the best epsilon beside the best accuracy.
    results = _table(
        "Accuracy, gap to pooled training in percentage points, AUC of the strongest attack that "
        "was run, and cost, as means over seeds. Brackets hold the 95% intervals of all seeds. "
        + " ".join(
            ["Accuracy and AUC are covered by no guarantee.", cost_note(comparison)]
        ).strip(),
        "privtrain-results",
        (
            *("trainer", "ε asked", "accuracy", "gap", "attack AUC (unprotected)"),
            *("sent", "rounds", "time", "seeds"),
        ),
        [_result(group) for group in gathered],
    )
    # A cell holds a number and a letter, the caption what the letter means: epsilons of different
    # units, relations or deltas must not be compared.
    kinds = unique(kind for group in gathered for kind in map(_kind, _finite(group)))
    promises = _table(
        "Formal ε promised to each observer; inf: nothing is promised, –: nothing is stated. "
        + "; ".join(f"({_mark(kind, kinds)}) {kind}" for kind in kinds),
        "privtrain-promises",
        ("trainer", "ε asked", *columns),
        [_promise(group, columns, kinds) for group in gathered if group.done],
    )
    audited = [(group, audit) for group in gathered for audit in audits(group)]
    bounds = _table(
        "Covered by no guarantee: what audits prove, and the most that all right guesses would "
        "have proved. " + explained(audit for _, audit in audited),
        "privtrain-audits",
        ("trainer", "ε asked", "ε at least", "ceiling", "right guesses", "curve", "seeds"),
        [_audit(group, audit) for group, audit in audited],
    )
    tables = [results, promises, *([bounds] if audited else []), *_lists(comparison)]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *tables])


LISTED = (FAILED, "Guarantees rest on", "Caveats")


def _lists(comparison: Comparison) -> list[str]:
    """What failed, and what the guarantees rest on and leave out, for below the tables."""
    return [
        "\n".join(
            [
                f"\\noindent\\textbf{{{escape(title)}}}",
                r"\begin{itemize}",
                *(f"  \\item {escape('; '.join(where))}: {escape(text)}" for text, where in texts),
                r"\end{itemize}",
                "",
            ]
        )
        for title, texts in remarks(comparison)
        if title in LISTED
    ]


def _result(group: Group) -> list[str]:
    accuracy = group.accuracy
    failed = not group.done
    leak = group.strongest("auc")
    return [
        group.label,
        cells.number(group.epsilon_asked),
        cells.FAILED if failed else bracketed(
            accuracy_text(group),
            cells.percent_interval(None if accuracy is None else group.accuracy_interval),
        ),
        cells.points(group.gap),
        attack_cell(group) if leak is None else bracketed(
            cells.rate(leak.value), cells.rate_interval(leak.interval)
        ),
        cells.size(group.cost("bytes_sent")),
        cells.count(group.cost("rounds")),
        cells.duration(group.cost("seconds")),
        group.seeds,
    ]  # fmt: skip


def _audit(group: Group, audit: Audit) -> list[str]:
    return [
        group.label,
        cells.number(group.epsilon_asked),
        bracketed(audit.at_least, audit.across),
        audit.ceiling,
        audit.right,
        audit.curve,
        group.seeds,
    ]


def bracketed(value: str, interval: str) -> str:
    """A value with its interval, if it has one, such as "0.51 [0.48–0.53]"."""
    return f"{value} [{interval}]" if interval else value


def _finite(group: Group) -> list[Guarantee]:
    # A data-dependent epsilon is itself private: in a paper it would be a release.
    return [g for g in group.guarantees if math.isfinite(g.epsilon) and not g.data_dependent]


def _kind(guarantee: Guarantee) -> str:
    """What a footnote says of an epsilon."""
    relation = guarantee.relation.replace("_", "-")
    return f"per {guarantee.unit}, {relation}, δ = {cells.number(guarantee.delta)}"


def _mark(kind: str, kinds: Sequence[str]) -> str:
    """The letter of a footnote; numbers where the alphabet ends."""
    place = kinds.index(kind)
    return ascii_lowercase[place] if place < len(ascii_lowercase) else str(place + 1)


def _promise(group: Group, columns: Sequence[str], kinds: Sequence[str]) -> list[str]:
    return [
        group.label,
        cells.number(group.epsilon_asked),
        *(_promised(group, name, kinds) for name in columns),
    ]


def _promised(group: Group, column: str, kinds: Sequence[str]) -> str:
    texts = unique(
        cells.number(g.epsilon)
        if math.isinf(g.epsilon)
        else f"{cells.number(g.epsilon)} ({_mark(_kind(g), kinds)})"
        for g in group.promised(column)
        if not g.data_dependent
    )
    return "; ".join(texts) or cells.MISSING


def _table(caption: str, label: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escape(caption)}}}",
        f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"    \toprule",
        _line(header),
        r"    \midrule",
        *(_line(row) for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Sequence[str]) -> str:
    return f"    {' & '.join(map(_cell, row))} \\\\"


def _cell(text: str) -> str:
    # A row that starts with a bracket would be read as an option of the line break before it.
    escaped = escape(text)
    return f"{{{escaped}}}" if escaped.startswith(("[", "*")) else escaped
