import re
from dataclasses import replace

from privtrain.core.result import Comparison, Measurement, Row
from privtrain.core.statement import ZERO_OUT, PrivacyStatement, Unit
from privtrain.report.html import comparison_fragment, comparison_html
from privtrain.report.latex import to_latex
from privtrain.report.table import comparison_text
from tests.report import examples


def section(text: str, title: str) -> str:
    return text[text.index(title) :].split("\n\n")[1]


def test_text_fits_a_terminal_of_100_columns() -> None:
    lines = comparison_text(examples.realistic()).splitlines()
    assert max(map(len, lines)) <= 100
    assert max(len(line) for line in comparison_text(examples.hostile()).splitlines()) <= 100


def test_text_shows_results_promises_costs_readers_and_errors() -> None:
    text = comparison_text(examples.realistic())
    results = section(text, "Results")
    assert "97.4%" in results
    assert "asked 1, spent 1.31" in results
    assert "halted" in results
    assert "PartyLostError" in results
    promised = section(text, "Promised")
    assert "coalition" in promised
    assert "of 6 parties" in promised
    assert "replace-one" in promised
    assert "1.31 GB" in section(text, "Cost")
    assert "every teacher's vote" in section(text, "Who reads what")
    assert "not one query fits epsilon=1.0 with sigma=4.0 and" in text
    assert "simulated: void if the seed is known" in text


def test_no_cell_is_made_up() -> None:
    row = Row(trainer="pate", label="P", seed=0, error="DataError: nothing to ask")
    text = comparison_text(Comparison(rows=(row,), card={}))
    line = next(line for line in section(text, "Cost").splitlines() if line.strip()[:1] == "P")
    assert line.split() == ["P", *["–"] * 7, "0", "of", "1"]
    assert "inf" not in text
    assert "Promised" not in text


def test_names_are_no_markup() -> None:
    text = comparison_text(examples.hostile(), width=400)
    assert "[bold]b[/bold]" in text


def two_units() -> Comparison:
    """Clients and their examples are protected, the clients less."""
    statement = PrivacyStatement(
        guarantees=(
            examples.guarantee("public", 1.5, Unit.EXAMPLE),
            examples.guarantee("public", 5.458, Unit.CLIENT, ZERO_OUT),
        )
    )
    row = replace(examples.fedavg(0), epsilon_asked=2.0, statement=statement, met=False)
    return Comparison(rows=(row,), card={})


def test_a_cell_shows_every_unit_and_the_worst_first() -> None:
    results = section(comparison_text(two_units()), "Results")
    column = [line.split() for line in results.splitlines() if line.startswith((" ", "FedAvg"))]
    words = [word for line in column for word in line]
    assert words.index("5.46") < words.index("client") < words.index("1.5")
    assert words.index("1.5") < words.index("example")
    assert "asked 2, spent 5.458" in " ".join(words)


def test_theorems_and_assumptions_are_printed_once() -> None:
    for text in (comparison_text(examples.realistic(), width=400), to_latex(examples.realistic())):
        assert text.count("by Gaussian mechanism, Poisson sampling") == 1
        assert text.count("if the sample is secret") == 1
        assert text.count("void if the seed is known") == 1


def test_what_no_guarantee_covers_is_marked_beside_its_figures() -> None:
    results = section(comparison_text(examples.realistic(), width=200), "Results")
    head = results.split("97.4%")[0]
    assert "attack AUC" in head and "(unprotected)" in head
    text = " ".join(comparison_text(examples.realistic()).split())
    assert "No guarantee covers the figures of attacks" in text
    assert "accuracy, which is measured on unprotected test rows" in text
    assert "Attacks (unprotected)" in text


def test_what_holds_of_a_trainer_is_said_in_one_paragraph() -> None:
    text = comparison_text(examples.realistic())
    caveats = text[text.index("\nCaveats\n") :].split("\n\n")[0]
    begins = [line.partition(":")[0] for line in caveats.splitlines() if line.startswith("- ")]
    assert len(begins) == len(set(begins)) > 1
    whole = " ".join(caveats.split())
    for row in examples.realistic().rows:
        for caveat in () if row.statement is None else row.statement.caveats:
            assert whole.count(" ".join(caveat.split())) == 1


def test_of_several_deltas_each_promise_names_its_own() -> None:
    def row(label: str, delta: float) -> Row:
        own = replace(examples.guarantee("public", 1.5), delta=delta)
        return replace(examples.sgd(0), label=label, statement=PrivacyStatement(guarantees=(own,)))

    two = Comparison(rows=(row("first", 1e-5), row("second", 2e-6)), card={})
    text, page = comparison_text(two), comparison_html(two)
    promises = section(text, "Promised")
    first, second = promises.partition("second")[::2]
    assert "δ 1e-5" in first.partition("first")[2] and "δ 2e-6" not in first.partition("first")[2]
    assert "δ 2e-6" in second and "δ 1e-5" not in second
    for delta in ("1e-5", "2e-6"):
        assert f"per example, add-remove, δ {delta}<" in page
        assert f"per example, add-remove, δ {delta}<" in comparison_fragment(two)
    # Of one delta the title says it.
    one = Comparison(rows=two.rows[:1], card={})
    assert "at delta 1e-5" in comparison_text(one) and "δ 1e-5" not in comparison_text(one)
    assert "δ 1e-5" not in comparison_fragment(one)


def test_an_asked_epsilon_reads_the_same_in_all_tables() -> None:
    metrics = {"accuracy": Measurement(value=0.9), "auc": Measurement(value=0.8)}
    row = replace(examples.dp_sgd(0, 3.0), epsilon_asked=2.272008, metrics=metrics)
    text = comparison_text(Comparison(rows=(row,), card={}), width=200)
    assert "Metrics (unprotected)" in text
    lines = [line for line in text.splitlines() if re.search(r"\b2\.27", line)]
    assert len(lines) > 3
    assert all("2.27201" in line for line in lines)
