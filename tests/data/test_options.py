"""Options of loaders: refused by name where they are of another kind."""

from pathlib import Path
from typing import Any

import pytest

from privtrain.data import from_csv


def table(path: Path, labels: tuple[str, ...] = ("no", "yes")) -> Path:
    rows = [f"{n},{'AB'[n % 2]},{labels[n % len(labels)]}" for n in range(60)]
    path.write_text("\n".join(["a,c,y", *rows]))
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("no", "no", "yes")}, "classes=.*'no' stands there twice"),
        ({"classes": ("no", " no", "yes")}, "classes=.*'no' stands there twice"),
        ({"classes": {"no", "yes"}}, "classes=.*in an order"),
        ({"classes": frozenset({"no", "yes"})}, "classes=.*in an order"),
        ({"classes": {"no": 0, "yes": 1}}, "classes=.*in an order"),
        ({"classes": 2}, "classes=2"),
        ({"classes": "no"}, "classes='no'"),
        ({"classes": ["no"]}, "classes=1"),
        ({"categories": {"c": ("A", "A", "B")}}, "categories.*'A' stands there twice"),
        ({"categories": {"c": {"A", "B"}}}, "categories.*in an order"),
        ({"categories": {"c": "AB"}}, "categories.*'AB'"),
        ({"categories": {"c": 3}}, "categories.*3"),
        ({"categories": ["c"]}, "categories="),
        ({"ranges": {"a": 1}}, r"ranges\['a'\]=1"),
        ({"ranges": {"a": (0, 1, 2)}}, r"ranges\['a'\]"),
        ({"ranges": {"a": ("0", "1")}}, r"ranges\['a'\]"),
        ({"ranges": [0, 1]}, "ranges="),
        ({"delimiter": ";;"}, "delimiter=';;'"),
        ({"delimiter": ""}, "delimiter=''"),
        ({"delimiter": 3}, "delimiter=3"),
        ({"delimiter": "\n"}, "delimiter="),
        ({"label": ["y"]}, r"label=\['y'\]"),
        ({"user": ["a"]}, r"user=\['a'\]"),
        ({"row_id": 1}, "row_id=1"),
        ({"drop": 1}, "drop=1"),
        ({"drop": [["a"]]}, "drop="),
    ],
)
def test_options_of_another_kind(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_csv(table(tmp_path / "t.csv"), **options)


@pytest.mark.parametrize(
    "classes", [["no", "yes"], {"no": 0, "yes": 1}.keys(), (word for word in ("no", "yes"))]
)
def test_whatever_has_an_order_lists_classes(tmp_path: Path, classes: Any) -> None:
    _, data = from_csv(table(tmp_path / "t.csv"), classes=classes, drop="c")
    pooled = data.pooled()
    assert pooled.labels.tolist() == [int(a) % 2 for a in pooled.inputs[:, 0].tolist()]


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (("0.0", "1.0"), ("0", "1"), (0, 1)),  # as pandas writes a column with a gap
        (("0", "1"), ("0.0", "1.0"), (0, 1)),
        (("5.0", "3"), (5, 3), (0, 1)),
        (("7", "007"), ("007", "7"), (1, 0)),
        (("1", "1.0"), ("1", "1.0"), (0, 1)),
    ],
)
def test_listed_numbers_are_found_however_they_are_written(
    tmp_path: Path, labels: tuple[str, ...], classes: Any, expected: tuple[int, ...]
) -> None:
    _, data = from_csv(table(tmp_path / "t.csv", labels), classes=classes, drop=["c"])
    pooled = data.pooled()
    rows = [int(a) % 2 for a in pooled.inputs[:, 0].tolist()]
    assert pooled.labels.tolist() == [expected[row] for row in rows]


@pytest.mark.parametrize(("label", "listed"), [("007", "7"), ("7", "007"), ("7.5", "7")])
def test_a_code_is_no_other_way_to_write_a_number(tmp_path: Path, label: str, listed: str) -> None:
    with pytest.raises(ValueError, match=f"line 2, column 'y'.*{label}"):
        from_csv(table(tmp_path / "t.csv", (label, "1")), classes=(listed, "1"))


def test_a_scale_is_for_tables_of_numbers(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv")
    _, data = from_csv(path, drop="c", scale=(0, 100))
    assert data.pooled().inputs.max() <= 0.59
    for options in ({}, {"categories": {"c": ["A", "B"]}}, {"drop": "c", "ranges": {"a": (0, 9)}}):
        with pytest.raises(ValueError, match=r"scale=\(0, 100\).*ranges="):
            from_csv(path, scale=(0, 100), **options)
