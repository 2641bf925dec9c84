from privtrain.core.result import Comparison, Row
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
    assert "simulated: noise, shares and keys" in text


def test_no_cell_is_made_up() -> None:
    row = Row(trainer="pate", label="P", seed=0, error="DataError: nothing to ask")
    text = comparison_text(Comparison(rows=(row,), card={}))
    line = next(line for line in section(text, "Cost").splitlines() if line.strip()[:1] == "P")
    assert line.split() == ["P", "–", "–", "–", "–", "–", "–", "0", "of", "1"]
    assert "inf" not in text
    assert "Promised" not in text


def test_names_are_no_markup() -> None:
    text = comparison_text(examples.hostile(), width=400)
    assert "[bold]b[/bold]" in text
