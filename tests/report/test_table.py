import csv
import io
import math

from privtrain.core.result import Comparison, Row
from privtrain.report.latex import escape, to_latex
from privtrain.report.records import to_csv
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


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_line_for_each_run() -> None:
    comparison = examples.realistic()
    lines = read(to_csv(comparison))
    assert len(lines) == len(comparison.rows)
    for line, row in zip(lines, comparison.rows, strict=True):
        assert (line["trainer"], line["label"], line["seed"]) == (
            row.trainer,
            row.label,
            str(row.seed),
        )
        assert line["accuracy"] == ("" if row.accuracy is None else str(row.accuracy))
        assert line["error"] == (row.error or "")


def test_csv_holds_all_guarantees_and_figures() -> None:
    lines = read(to_csv(examples.realistic()))
    noisy = next(line for line in lines if line["label"].startswith("FedAvg, local"))
    assert float(noisy["epsilon[aggregator/client/replace_one]"]) == 22.0
    assert noisy["delta[aggregator/client/replace_one]"] == "1e-05"
    assert noisy["epsilon[coalition of 6 parties/client/zero_out]"] == "1.23"
    assert lines[0]["epsilon[public/example/add_remove]"] == "inf"
    assert math.isinf(float(lines[0]["epsilon[public/example/add_remove]"]))
    assert lines[0]["leakage[loss threshold/public/auc]"] == "0.561"
    assert lines[0]["leakage[loss threshold/public/tpr_at_0.1%_fpr]"] == "n/r"
    assert lines[0]["gap_to_pooled"] == "0.0"
    asked = [line for line in lines if line["label"] == "PATE" and line["epsilon_asked"] == "3.0"]
    assert "epsilon[public/example/replace_one/data_dependent]" in asked[0]
    assert asked[0]["bytes_sent"] == "32000"
    assert '"teacher-00": 1600' in asked[0]["bytes_sent_by_party"]


def test_csv_leaves_the_missing_empty() -> None:
    failed = next(line for line in read(to_csv(examples.realistic())) if line["error"])
    for name in ("accuracy", "bytes_sent", "seconds", "gap_to_pooled", "input_privacy"):
        assert failed[name] == ""


def test_csv_keeps_two_guarantees_of_one_kind() -> None:
    from dataclasses import replace

    from privtrain.core.statement import PrivacyStatement

    twice = PrivacyStatement(
        guarantees=(examples.guarantee("public", 2.0), examples.guarantee("public", 3.0))
    )
    row = replace(examples.sgd(0), statement=twice)
    (line,) = read(to_csv(Comparison(rows=(row,), card={})))
    assert [value for name, value in line.items() if name.startswith("epsilon[")] == ["2.0", "3.0"]


def test_latex_is_booktabs_with_a_line_for_each_group() -> None:
    text = to_latex(examples.realistic())
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 2
    results, promises = text.split(r"\end{table}")[:2]
    assert results.count("\\\\\n") == 13
    assert promises.count("\\\\\n") == 12
    assert r"MPC & -- & 95.3\% [92.9--97.1] & $-$2.1" in results
    assert "PATE & 1 & failed" in results
    assert "(a) per example, add-remove, $\\delta$ = 1e-5" in promises
    assert "client & 1 & 0.99 (b) & 0.99 (b) & 22 (c) & 1.23 (b)" in promises
    assert "PATE & 3 & 3 (d) & -- & inf & --" in promises


def test_latex_escapes_names() -> None:
    assert escape(r"50% \x_{1} $a$ & #1 ~ ^") == (
        r"50\% \textbackslash{}x\_\{1\} \$a\$ \& \#1 \textasciitilde{} \textasciicircum{}"
    )
    text = to_latex(examples.hostile())
    assert r"\input{x}" not in text
    assert text.count("{") == text.count("}")
    columns = text.split(r"\midrule")[1].split("\n")[1]
    assert columns.replace(r"\&", "").count("&") == 8
