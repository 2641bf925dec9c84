import csv
import io
import math
from dataclasses import replace

from privtrain.core.result import Comparison
from privtrain.core.statement import PrivacyStatement
from privtrain.report.records import to_csv
from tests.report import examples


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
    assert lines[0]["unprotected_leakage[loss threshold/public/auc]"] == "0.561"
    assert lines[0]["unprotected_leakage[loss threshold/public/tpr_at_0.1%_fpr]"] == "n/r"
    assert (lines[0]["gap"], lines[0]["gap_to"]) == ("0.0", "pooled")
    asked = [line for line in lines if line["label"] == "PATE" and line["epsilon_asked"] == "3.0"]
    assert "epsilon[public/example/replace_one/data_dependent/one_sided]" in asked[0]
    assert asked[0]["bytes_sent"] == "32000"
    assert '"teacher-00": 1600' in asked[0]["bytes_sent_by_party"]


def test_csv_leaves_the_missing_empty() -> None:
    failed = next(line for line in read(to_csv(examples.realistic())) if line["error"])
    for name in ("accuracy", "bytes_sent", "seconds", "gap", "input_privacy"):
        assert failed[name] == ""


def test_csv_keeps_two_guarantees_of_one_kind() -> None:
    twice = PrivacyStatement(
        guarantees=(examples.guarantee("public", 2.0), examples.guarantee("public", 3.0))
    )
    row = replace(examples.sgd(0), statement=twice)
    (line,) = read(to_csv(Comparison(rows=(row,), card={})))
    assert [value for name, value in line.items() if name.startswith("epsilon[")] == ["2.0", "3.0"]


def test_csv_holds_theorems_assumptions_and_caveats() -> None:
    lines = read(to_csv(examples.realistic()))
    private = next(line for line in lines if line["label"] == "DP-SGD")
    assert private["assumptions[public/example/add_remove]"] == "the sample is secret"
    assert private["theorem[public/example/add_remove]"].startswith("Gaussian mechanism")
    assert "float noise: research use" in private["caveats"]


def test_csv_calls_figures_of_attacks_unprotected() -> None:
    (header, *_) = to_csv(examples.realistic()).splitlines()
    attacks = [name for name in header.split(",") if "loss threshold" in name]
    assert attacks and all(name.startswith("unprotected_leakage") for name in attacks)
