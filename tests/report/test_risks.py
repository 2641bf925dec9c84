"""The risk of each record as text and as files: what is not known stays open, and it says that it
is private."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from privtrain.report.risks import PRIVATE, Accused, RecordRisks, RiskGroup

GROUP = RiskGroup(
    name="all", records=4, members=2, auc=None, interval=None, median=1.0, above=1, by_chance=0.3
)
RISKS = RecordRisks(
    attack="RMIA",
    observer="public",
    shadows=4,
    prior=0.01,
    holder=("bank", "shop", "test", "test"),
    number=np.array([7, 0, 1, 5]),
    member=np.array([True, True, False, False]),
    label=np.array([0.0, 1.0, 1.0, 0.0]),
    user=None,
    score=np.array([3.0, -np.inf, 2.0, 0.0]),
    rank=np.array([1, 4, 2, 3]),
    seen=np.array([2, 2, 2, 2]),
    separation=np.array([0.5, np.nan, 8.0, np.inf]),
    null_deviation=np.full(4, np.inf),
    p_value=np.array([1 / 3, 1.0, 1 / 3, 2 / 3]),
    p_value_interval=np.array([[0.0, 0.85], [0.15, 1.0], [0.0, 0.85], [0.01, 0.99]]),
    groups=(GROUP,),
    accused=(
        Accused(rate=0.01, fpr=0.01, tpr=0.05, tpr_interval=(0.02, 0.1), precision=0.048,
                precision_interval=(0.02, 0.09)),
        Accused(rate=0.001),
    ),
    inputs=torch.arange(16.0).view(4, 4),
    notes=("4 shadow models",),
)  # fmt: skip


def test_the_riskiest_come_first_and_those_that_are_not_known_last() -> None:
    assert RISKS.riskiest(4).tolist() == [3, 2, 0, 1]
    assert RISKS.riskiest(1).tolist() == [3]
    with pytest.raises(ValueError, match="count=0"):
        RISKS.riskiest(0)


def test_the_text_says_that_it_is_private_and_leaves_no_cell_empty() -> None:
    text = str(RISKS)
    assert PRIVATE in text and "4 shadow models" in text
    assert "0.1%" in text and "n/r" in text
    assert "4.8% (2.0–9.0)" in text
    assert "HIGH" not in text
    lines = text.splitlines()
    (line,) = (line for line in lines if line.startswith("all "))
    assert line.split() == ["all", "4", "2", "n/r", "–", "1.00", "1", "(25.0%)", "0.3"]
    assert any(line.startswith("test 5") and "inf" in line for line in lines)


def test_the_file_has_a_line_for_each_record_in_full_precision() -> None:
    lines = list(csv.DictReader(RISKS.to_csv().splitlines()))
    assert [line["holder"] for line in lines] == ["test", "test", "bank", "shop"]
    assert float(lines[1]["p_value"]) == 1 / 3
    assert lines[3]["separation"] == "" and lines[3]["user"] == ""
    assert lines[0]["separation"] == "inf" and lines[3]["score"] == "-inf"


def test_users_stand_in_the_lines_where_they_are_known() -> None:
    known = replace(RISKS, user=np.array([5, 5, 6, 6]))
    assert [line["user"] for line in csv.DictReader(known.to_csv().splitlines())][2] == "5"
