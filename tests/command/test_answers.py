"""The plan command."""

import json

import pytest

import privtrain as pt
from privtrain.command.cli import main

WORDS = ["plan", "--teachers", "250", "--answers", "100", "286"]
CHECK = ["--queries", "487", "1000", "--threshold", "200", "--sigma-check", "150"]


def test_a_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--sigmas", "40", "50", *CHECK]) == 0
    given = {"queries": (487, 1000), "threshold": 200.0, "sigma_check": 150.0}
    table = pt.plan(teachers=250, answers=(100, 286), sigmas=(40.0, 50.0), **given)  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"{table}\n"


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--epsilon", "1.75", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["answers"] for row in rows] == [100, 286]
    assert all(1.74 < row["epsilon"] <= 1.75 for row in rows)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--share", "0.4"], 2, "share=0.4"),
        (["--epsilon", "2", "--sigmas", "40"], 2, "not both"),
        (["--threshold", "200"], 2, "sigma_check"),
        (["--epsilon", "0.3", *CHECK], 1, "the checks alone cost"),
    ],
)
def test_bad_plans_are_refused(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *words]) == code
    assert said in capsys.readouterr().err
