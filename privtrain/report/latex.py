"""A comparison as LaTeX tables for a paper."""

import math
import unicodedata
from collections.abc import Sequence
from string import ascii_lowercase

from privtrain.core.failures import printable
from privtrain.core.result import Comparison
from privtrain.core.statement import STATED, Guarantee
from privtrain.report import attack_table, cells
from privtrain.report.audits import Audit, audits, explained
from privtrain.report.gaps import gap_note
from privtrain.report.measured import Column, commonest_note, metric_columns
from privtrain.report.publishing import cost_note
from privtrain.report.summary import FAILED, Group, groups, observers, remarks, unique
from privtrain.report.table import attack_cell

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    # In mathematics: the text font's is missing in small installations.
    "$": r"$\$$",
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
    "—": "---",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "µ": r"$\mu$",
    "π": r"$\pi$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "\u00a0": "~",
    "\n": " ",
    "\t": " ",
}

_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0323": "d",
    "\u0327": "c",
    "\u0331": "b",
}
"""Combining marks to LaTeX's accents."""


def escape(text: str) -> str:
    """The text as ASCII, with what LaTeX would read as a command escaped.

    Accents become LaTeX's. What a plain LaTeX document has no glyph for is written as its code
    point, such as "U+4E2D", so that the tables compile whatever a label holds.
    """
    return "".join(map(_escaped, unicodedata.normalize("NFC", printable(text))))


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii():
        return character if character.isprintable() else " "
    letter, *marks = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and len(marks) == 1 and marks[0] in _ACCENTS:
        return f"\\{_ACCENTS[marks[0]]}{{{letter}}}"
    return f"U+{ord(character):04X}"


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
    metrics_shown = metric_columns(comparison.rows)
    main = metrics_shown[0]
    # Two tables, since they answer two questions: what a model is worth and cost, and what is
    # promised to whom. One number for both would be the best epsilon beside the best accuracy.
    # A cell holds a number and a letter, the caption what the letter means: epsilons of different
    # units, relations or deltas must not be compared.
    kinds = unique(kind for group in gathered for kind in map(_kind, _finite(group)))
    shown = unique(
        kind for group in gathered for kind in map(_kind, filter(_is_finite, group.headlines))
    )
    results = _table(
        _results_caption(comparison, gathered, metrics_shown, kinds, shown),
        "privtrain-results",
        (
            *("trainer", "ε asked", "ε to the public", main.header, "gap"),
            *("attack AUC (unprotected)", "sent", "rounds", "time", "CPU time", "seeds"),
        ),
        [_result(group, main, kinds) for group in gathered],
    )
    metrics = _table(
        "All metrics, covered by no guarantee, as means over seeds. Brackets hold the 95% "
        "intervals of all seeds.",
        "privtrain-metrics",
        ("trainer", "ε asked", *(column.header for column in metrics_shown)),
        [_metrics(group, metrics_shown) for group in gathered if group.done],
    )
    promises = _table(
        "Formal ε promised to each observer; –: nothing is stated; " + _legend(kinds, kinds),
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
    tried = attack_table.lines(comparison) if attack_table.several(comparison) else ()
    learned = _table(
        "Covered by no guarantee: what each attack learned from each place; “leaks”: the interval "
        "of the AUC lies above 0.5, or a bound above 0; “at 1%”, “at 0.1%”: that of the members "
        "found at this rate lies above it. n/r: not resolvable with so few rows. The formal ε is "
        "promised to that observer for the unit that is attacked.",
        "privtrain-attacks",
        attack_table.HEADER[:-2],
        [line.cells[:-2] for line in tried],
    )
    tables = [
        results,
        *([metrics] if len(metrics_shown) > 1 else []),
        promises,
        *([learned] if tried else []),
        *([bounds] if audited else []),
        *_lists(comparison),
    ]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *tables])


def _results_caption(
    comparison: Comparison,
    gathered: Sequence[Group],
    metrics: Sequence[Column],
    kinds: Sequence[str],
    shown: Sequence[str],
) -> str:
    main = metrics[0]
    baselines = {group.label: group.baseline for group in gathered}
    said = (
        f"Formal ε to the public as spent, {main.name}, gap"
        f"{' in percentage points' if main.percent else ''}, AUC of the strongest attack that was "
        "run, and cost, as means over seeds. Brackets hold the 95% intervals of all seeds.",
        gap_note(baselines, main.name, percent=main.percent),
        commonest_note(metrics),
        f"{main.title} and AUC are covered by no guarantee.",
        cost_note(comparison),
        _legend(kinds, shown),
    )
    return " ".join(filter(None, said))


def _legend(kinds: Sequence[str], shown: Sequence[str]) -> str:
    """What the letters behind epsilons mean, of those that are shown."""
    texts = [f"({_mark(kind, kinds)}) {kind}" for kind in kinds if kind in shown]
    return f"inf: nothing is promised{''.join(f'; {text}' for text in texts)}."


LISTED = (FAILED, "Guarantees rest on", "Caveats")


def _lists(comparison: Comparison) -> list[str]:
    """What failed, and what the guarantees rest on and leave out, for below the tables."""
    return [
        "\n".join(
            [
                f"\\noindent\\textbf{{{escape(title)}}}",
                r"\begin{itemize}",
                *(_item(where, text) for text, where in texts),
                r"\end{itemize}",
                "",
            ]
        )
        for title, texts in remarks(comparison)
        if title in LISTED
    ]


def _metrics(group: Group, shown: Sequence[Column]) -> list[str]:
    values = [bracketed(column.text(group), column.interval_text(group)) for column in shown]
    return [group.label, cells.asked(group.epsilon_asked), *values]


def _item(where: Sequence[str], text: str) -> str:
    # A dash of its own: the bullet's font is missing in small installations, and a label that
    # begins with a bracket would be read as the item's.
    return f"  \\item[--] {escape('; '.join(where))}: {escape(text)}"


def _result(group: Group, main: Column, kinds: Sequence[str]) -> list[str]:
    failed = not group.done
    leak = group.strongest("auc")
    return [
        group.label,
        cells.asked(group.epsilon_asked),
        "; ".join(_epsilon(g, kinds) for g in group.headlines) or cells.MISSING,
        cells.FAILED if failed else bracketed(main.text(group), main.interval_text(group)),
        main.gap(group.gap),
        attack_cell(group) if leak is None else bracketed(
            leak.text, leak.interval_text
        ),
        cells.size(group.cost("bytes_sent")),
        cells.count(group.cost("rounds")),
        cells.duration(group.cost("seconds")),
        cells.duration(group.cost("cpu_seconds")),
        group.seeds,
    ]  # fmt: skip


def _audit(group: Group, audit: Audit) -> list[str]:
    return [
        group.label,
        cells.asked(group.epsilon_asked),
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
    return [g for g in group.guarantees if _is_finite(g) and not g.data_dependent]


def _is_finite(guarantee: Guarantee) -> bool:
    return math.isfinite(guarantee.epsilon)


def _epsilon(guarantee: Guarantee, kinds: Sequence[str]) -> str:
    """An epsilon with the letter of its unit, relation and delta."""
    epsilon = cells.promised(guarantee.epsilon)
    return f"{epsilon} ({_mark(_kind(guarantee), kinds)})" if _is_finite(guarantee) else epsilon


def _kind(guarantee: Guarantee) -> str:
    """What a footnote says of an epsilon."""
    relation = guarantee.relation.replace("_", "-")
    said = f", {STATED}" if guarantee.stated else ""
    return f"per {guarantee.unit}, {relation}, δ = {cells.promised(guarantee.delta)}{said}"


def _mark(kind: str, kinds: Sequence[str]) -> str:
    """The letter of a footnote; numbers where the alphabet ends."""
    place = kinds.index(kind)
    return ascii_lowercase[place] if place < len(ascii_lowercase) else str(place + 1)


def _promise(group: Group, columns: Sequence[str], kinds: Sequence[str]) -> list[str]:
    return [
        group.label,
        cells.asked(group.epsilon_asked),
        *(_promised(group, name, kinds) for name in columns),
    ]


def _promised(group: Group, column: str, kinds: Sequence[str]) -> str:
    texts = unique(_epsilon(g, kinds) for g in group.promised(column) if not g.data_dependent)
    return "; ".join(texts) or cells.MISSING


def _table(caption: str, label: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        r"\begin{table}",
        r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
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
