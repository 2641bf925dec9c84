"""Ranges and missing values as a command line has them."""

import pytest

from privtrain.command.column_rules import missing_of, ranges_of


def test_rules_as_a_command_line_has_them() -> None:
    assert ranges_of(["age=0:120", "a=b=-1.5:2e3"]) == {"age": [0, 120], "a=b": [-1.5, 2000]}
    assert missing_of([]) is None
    assert missing_of(["drop"]) == "drop"
    assert missing_of(["-1"]) == -1.0
    assert missing_of(["age=indicator", "income=0"]) == {"age": "indicator", "income": 0.0}
    for word in ("age", "age=3", "age=0-3", "age=a:b"):
        with pytest.raises(ValueError, match=r"such as age=0:120"):
            ranges_of([word])
    with pytest.raises(ValueError, match=r"one rule for all columns"):
        missing_of(["drop", "age=0"])
