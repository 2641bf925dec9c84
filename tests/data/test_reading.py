"""CSV files: numbers, words, ranges, and messages that name line and column."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData, Task
from privtrain.data import IID, LogisticRegression, from_csv
from privtrain.data.arrays import CLASSES_COUNTED


def write(path: Path, rows: Sequence[str], header: str = "age,city,y") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def people(path: Path, count: int = 40) -> Path:
    cities = ("Rome", "Oslo", "Bern")
    rows = [f"{20 + n % 50}, {cities[n % 3]}, {'yes' if n % 4 else 'no'}" for n in range(count)]
    return write(path, rows)


def everything(data: FederatedData) -> torch.Tensor:
    assert data.validation is not None
    return torch.cat([data.pooled().inputs, data.test.inputs, data.validation.inputs])


def test_words_and_numbers(tmp_path: Path) -> None:
    task, data = from_csv(people(tmp_path / "people.csv"), parties=3)
    inputs = everything(data)
    assert inputs.shape == (40, 4)
    assert task.model == LogisticRegression(4, 2)
    assert sorted(inputs[:, 0].tolist()) == sorted(20.0 + n % 50 for n in range(40))
    # Bern, Oslo, Rome: sorted, and one of them a row.
    assert inputs[:, 1:].sum(dim=0).tolist() == [13.0, 13.0, 14.0]
    assert inputs[:, 1:].sum(dim=1).tolist() == [1.0] * 40
    assert data.name == "people"
    assert data.public_rows is None
    first, second, *_ = data.notes
    assert [text.startswith("public knowledge") for text in data.assumptions] == [True, True]
    assert "city" in data.assumptions[0] and "classes=" in data.assumptions[1]
    assert first.startswith("unprotected: the 3 categories of column 'city'")
    assert "(no is 0, yes is 1)" in second


def test_public_knowledge_needs_no_note(tmp_path: Path) -> None:
    _, data = from_csv(
        people(tmp_path / "people.csv"),
        ranges={"age": (0, 100)},
        categories={"city": ("Oslo", "Rome", "Bern", "Lima")},
        classes=("yes", "no"),
        parties=2,
    )
    inputs = everything(data)
    assert data.assumptions == () and not any("read from" in note for note in data.notes)
    assert inputs.shape == (40, 5)
    assert float(inputs[:, 0].min()) == pytest.approx(0.20)
    assert float(inputs[:, 4].sum()) == 0.0  # nobody lives in Lima
    assert int(torch.cat([data.pooled().labels, data.test.labels]).sum()) <= 10  # "no" is 1


def test_options_reach_the_arrays(tmp_path: Path) -> None:
    path = people(tmp_path / "people.csv")
    task, data = from_csv(
        path, parties=2, partition=IID(), dtype=torch.float64, public_rows=30, name="mine", seed=4
    )
    assert (task.name, data.name, data.public_rows) == ("mine", "mine", 30)
    assert data.test.inputs.dtype == torch.float64
    _, dropped = from_csv(path, drop=["city"], parties=2)
    assert everything(dropped).shape == (40, 1)


def test_labels_of_numbers(tmp_path: Path) -> None:
    def load(*labels: str) -> tuple[Task, FederatedData]:
        rows = [f"{n},{labels[n % len(labels)]}" for n in range(60)]
        return from_csv(write(tmp_path / "t.csv", rows, "a,y"), parties=2, validation_fraction=0.1)

    assert load("0", "1", "2")[1].notes[0] == CLASSES_COUNTED
    task, data = load("10", "9", "-1")
    assert "(-1 is 0, 9 is 1, 10 is 2)" in data.notes[0]
    assert task.model == LogisticRegression(1, 3)
    assert "(1 is 0, 2 is 1)" in load("1.0", "2.0")[1].notes[0]


def test_quotes_delimiters_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f'"{n}";"a; {n % 2}";{n % 2}\n' for n in range(20))
    path.write_text("\ufeffnumber;word;y\n" + rows, encoding="utf-8")
    _, data = from_csv(path, delimiter=";", parties=2)
    assert everything(data).shape == (20, 3)


def test_a_code_may_be_a_category(tmp_path: Path) -> None:
    rows = [f"{n % 3},{n % 2}" for n in range(60)]
    path = write(tmp_path / "t.csv", rows, "code,y")
    assert everything(from_csv(path, parties=2)[1]).shape == (60, 1)
    listed = from_csv(path, parties=2, categories={"code": ("0", "1", "2")})[1]
    assert everything(listed).shape == (60, 3)


GOOD = [f"{n},{'Rome' if n % 2 else 'Oslo'},{n % 2}" for n in range(20)]
REFUSED: list[tuple[str, list[str], str, dict[str, Any], str]] = [
    ("label", GOOD, "age,city,y", {"label": "z"}, "no column 'z', which label=.*age, city, y"),
    ("range", GOOD, "age,city,y", {"ranges": {"b": (0, 1)}}, "no column 'b', which ranges="),
    ("drop", GOOD, "age,city,y", {"drop": ["b"]}, "no column 'b', which drop="),
    ("category", GOOD, "age,city,y", {"categories": {"b": ()}}, "no column 'b', which categories="),
    ("nothing left", GOOD, "age,city,y", {"drop": ["age", "city"]}, "no column beside 'y'"),
    ("no rows", [], "age,city,y", {}, "only a line of names"),
    ("ragged", [*GOOD, "1,Rome"], "age,city,y", {}, "line 22: expected 3 values.*not 2"),
    ("twice", GOOD, "age,y,y", {}, "names the column 'y' twice"),
    ("missing", [*GOOD, ",Rome,1"], "age,city,y", {}, "line 22, column 'age'.*impute.*not ''"),
    ("NA", [*GOOD, "NA,Rome,1"], "age,city,y", {}, "line 22, column 'age'.*not 'NA'"),
    ("nan", [*GOOD, "nan,Rome,1"], "age,city,y", {}, "line 22, column 'age'.*not 'nan'"),
    ("inf", [*GOOD, "inf,Rome,1"], "age,city,y", {}, "line 22, column 'age'.*not 'inf'"),
    ("ranged", GOOD, "age,city,y", {"ranges": {"city": (0, 1)}}, "line 2, column 'city'.*'Oslo'"),
    ("empty range", GOOD, "age,city,y", {"ranges": {"age": (1, 1)}}, r"'age': \(1, 1\)"),
    ("word", GOOD, "age,city,y", {"categories": {"city": ("Oslo",)}}, "line 3.*'city'.*'Rome'"),
    ("class", GOOD, "age,city,y", {"classes": ("0", "2")}, "line 3, column 'y'.*not '1'"),
    ("classes", GOOD, "age,city,y", {"classes": ("0",)}, "classes=1"),
    ("one class", GOOD[::2], "age,city,y", {}, "one class only, '0'"),
    ("fraction", [*GOOD, "1,Rome,0.5"], "age,city,y", {}, "line 22, column 'y'.*whole.*'0.5'"),
    ("no label", [*GOOD, "1,Rome,"], "age,city,y", {}, "line 22, column 'y'"),
    (
        "no value",
        [f"{n},nan,{n % 2}" for n in range(20)],
        "age,city,y",
        {},
        "'city'.*no value.*drop",
    ),
    ("empty", [f"{n},,{n % 2}" for n in range(20)], "age,city,y", {}, "'city'.*no value, only ''"),
    ("infinite", [f"{n},inf,{n % 2}" for n in range(20)], "age,city,y", {}, "only 'inf'"),
    (
        "no class",
        ["1,Rome,a", "2,Oslo,b", "3,Oslo,"],
        "age,city,y",
        {},
        "line 4, column 'y'.*not ''",
    ),
    ("parties", GOOD, "age,city,y", {"parties": 20}, "parties=20.*Unprotected"),
    ("row id", GOOD, "age,city,y", {"row_id": "b"}, "no column 'b', which row_id="),
    ("twice an id", GOOD, "age,city,y", {"row_id": "city"}, "row_ids to name each row once"),
]


@pytest.mark.parametrize("case", REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_be_used_is_named(
    tmp_path: Path, case: tuple[str, list[str], str, dict[str, Any], str]
) -> None:
    _, rows, header, options, message = case
    path = write(tmp_path / "t.csv", rows, header)
    with pytest.raises(ValueError, match=message):
        from_csv(path, **options)


def test_a_class_may_be_called_none(tmp_path: Path) -> None:
    rows = [f"{n},{'none' if n % 2 else 'mild'}" for n in range(20)]
    notes = from_csv(write(tmp_path / "t.csv", rows, "a,y"), parties=2)[1].notes
    assert "(mild is 0, none is 1)" in notes[0]


def test_identifiers_and_values_are_no_classes(tmp_path: Path) -> None:
    names = write(tmp_path / "a.csv", [f"id{n},{n % 2}" for n in range(300)], "name,y")
    with pytest.raises(DataError, match=r"'name', holds 300 different words.*drop=\['name'\]"):
        from_csv(names)
    values = write(tmp_path / "b.csv", [f"{n},{n}" for n in range(300)], "a,y")
    with pytest.raises(DataError, match="'y', holds 300 different values"):
        from_csv(values)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"Could not read data=.*absent\.csv.*No such file.*Give the"
    ):
        from_csv(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(DataError, match="holds nothing"):
        from_csv(tmp_path / "empty.csv")
    (tmp_path / "latin.csv").write_bytes("größe,y\n1,0\n".encode("latin-1"))
    with pytest.raises(DataError, match="in UTF-8"):
        from_csv(tmp_path / "latin.csv")
    with pytest.raises(DataError, match="Could not read"):
        from_csv(tmp_path)


def test_a_row_stays_in_its_part_by_its_id_whatever_it_says(tmp_path: Path) -> None:
    def test_ids(last: str) -> list[float]:
        rows = [f"{n},{n % 7},{n % 2}" for n in range(59)] + [f"59,{last}"]
        path = write(tmp_path / "t.csv", rows, "id,a,y")
        options: dict[str, Any] = {"parties": 2, "row_id": "id", "user": None}
        assert from_csv(path, **options)[1].test.inputs.shape[1] == 1
        return from_csv(path, **options)[1].test.inputs[:, 0].tolist()

    as_it_was, changed = test_ids("3,1"), test_ids("12,0")
    assert [value for value in changed if value != 12] == [
        value for place, value in enumerate(as_it_was) if changed[place] != 12
    ]
    by_contents = from_csv(tmp_path / "t.csv", parties=2, drop=["id"])[1].test.inputs[:, 0].tolist()
    assert by_contents != changed


def labelled(path: Path, *labels: str, **options: Any) -> FederatedData:
    rows = [f"{n},{labels[n % len(labels)]}" for n in range(60)]
    return from_csv(write(path, rows, "a,y"), parties=2, **options)[1]


@pytest.mark.parametrize(
    ("labels", "classes", "note"),
    [
        (("900000000000207008", "900000000000207009", "7"), 3, "7 is 0, 900000000000207008 is 1"),
        (("-900000000000207008", "-900000000000207009"), 2, "-900000000000207009 is 0"),
        (("900000000000207008.0", "900000000000207009.0"), 2, "900000000000207009 is 1"),
        (("1" + 39 * "0", "1" + 38 * "0" + "1"), 2, "is 1"),
        (("1e20", "100000000000000000001"), 2, "100000000000000000000 is 0"),
        (("007", "008"), 2, "007 is 0, 008 is 1"),
        (("1", "1.0", "+1", "2"), 2, "1 is 0, 2 is 1"),
        ((" a", "a", "b"), 2, "a is 0, b is 1"),
        (("0x10", "0x11"), 2, "0x10 is 0"),
        (('"a,b"', '"a"'), 2, "a is 0, a,b is 1"),
    ],
)
def test_labels_keep_all_of_their_digits(
    tmp_path: Path, labels: tuple[str, ...], classes: int, note: str
) -> None:
    data = labelled(tmp_path / "t.csv", *labels)
    assert sorted(set(data.pooled().labels.tolist())) == list(range(classes))
    assert note in data.notes[0]
    if note.startswith("900"):
        listed = labelled(tmp_path / "t.csv", *labels, classes=labels)
        assert len(set(listed.pooled().labels.tolist())) == classes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("7", "007"), "line 3, column 'y'.*'7' stands there, too.*not '007'"),
        (("0", "00", "1"), "line 3, column 'y'.*not '00'"),
        (("1_0", "1"), "line 2, column 'y'.*not '1_0'"),
        (("inf", "1"), "not 'inf'"),
        (("1e999999", "1"), "not '1e999999'"),
        (("12345678901234567890123456789.5", "1"), "whole number"),
        (("NA", "a"), "not 'NA'"),
        (("1", "a"), "not 'a'"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        labelled(tmp_path / "t.csv", *labels)


def numbered(path: Path, value: Callable[[int], str], head: str = "a,y", **options: Any) -> Any:
    rows = [f"{value(n)},{n % 2}" for n in range(60)]
    return everything(from_csv(write(path, rows, head), parties=2, **options)[1])


def test_long_numbers_of_which_two_would_become_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"

    def code(n: int) -> str:
        return str(900_000_000_000_207_008 + n)

    for dtype in (torch.float32, torch.float64):
        with pytest.raises(DataError, match=rf"'a'.*{dtype}.*drop=\['a'\]"):
            numbered(path, code, dtype=dtype)
    with pytest.raises(DataError, match="1000000000 and 1000000001 become one"):
        numbered(path, lambda n: "1e9" if n % 2 else "1000000001")
    with pytest.raises(DataError, match=r"finite number.*not '1_0'"):
        numbered(path, lambda n: "1_0" if n % 2 else "1")
    # Ways out, and quantities.
    assert len(numbered(path, lambda n: str(2**24 + n), dtype=torch.float64).unique()) == 60
    assert numbered(path, lambda n: str(2**24 + n), ranges={"a": (0, 2**25)}).shape == (60, 1)
    assert numbered(path, lambda n: f"{1e9 + 512 * n}5").shape == (60, 1)
    both = {"a": (code(0), code(1))}
    assert numbered(path, lambda n: code(n % 2), categories=both).sum(dim=0).tolist() == [30, 30]
    for options in ({"drop": ["id"]}, {"row_id": "id"}):
        assert numbered(path, lambda n: f"{n},{code(n)}", "a,id,y", **options).shape == (60, 1)


def test_rows_that_would_vanish_or_have_no_owner(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{n},{n % 2}" for n in range(20)]
    with pytest.raises(DataError, match="unexpected end of data"):
        from_csv(write(path, [*rows, '5,"1', *rows], "a,y"))
    with pytest.raises(DataError, match="column 'id': expected the name of a user, not ''"):
        numbered(path, lambda n: f"{n},{n or ''}", "a,id,y", user="id")
    with pytest.raises(DataError, match=r"without a name.*drop=\[''\]"):
        numbered(path, lambda n: f"{n},{n}", ",b,y")
    assert numbered(path, lambda n: f"{n},{n}", ",b,y", drop=[""]).shape == (60, 1)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda n: f'"{n},5"',
        lambda n: f'"1,{n:03d}"',
        lambda n: f"{n}%",
        lambda n: f"{n} %",
        lambda n: f"${n}",
        lambda n: f"€ {n}.50",
        lambda n: f"-{n}'000",
        lambda n: f"{n} EUR",
        lambda n: f"({n})",
        lambda n: "?" if n == 3 else f"{n}%",
    ],
)
def test_numbers_in_another_spelling_are_no_words(
    tmp_path: Path, spelled: Callable[[int], str]
) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(DataError, match=r"line \d+, column 'a'.*another spelling.*categories="):
        numbered(path, spelled)
    few = write(path, [f"{spelled(n % 3)},{n % 2}" for n in range(60)], "a,y")
    assert "look like numbers" in from_csv(few)[1].notes[0]


@pytest.mark.parametrize(
    "word", [lambda n: f"2020-01-{n:02d}", lambda n: f"id{n}", lambda n: f"{n}th street"]
)
def test_words_with_digits_are_words(tmp_path: Path, word: Callable[[int], str]) -> None:
    assert numbered(tmp_path / "t.csv", word).shape == (60, 60)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (lambda n: f"{1_700_000_000 + n}{'.5' if n == 0 else ''}", torch.float32),
        (lambda n: f"{1_700_000_000 + n}.5", torch.float32),
        (lambda n: f"{10**17 + n}.5", torch.float64),
        (lambda n: f"{10**17 + n}{'.5' if n == 0 else ''}", torch.float64),
        (lambda n: f"1.{10**8 + n}", torch.float32),
    ],
)
def test_numbers_with_a_fraction_that_would_become_one(
    tmp_path: Path, value: Callable[[int], str], dtype: torch.dtype
) -> None:
    with pytest.raises(DataError, match="become one"):
        numbered(tmp_path / "t.csv", value, dtype=dtype)


def test_codes_that_are_one_number(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for pair in (("007", "7"), ("00", "0"), ("7.0", "007"), ("-07", "-7")):
        with pytest.raises(DataError, match=r"'a', holds '.*' and '.*', which are one number"):
            numbered(path, lambda n, pair=pair: pair[n % 2])
    both = numbered(path, lambda n: ("007", "7")[n % 2], categories={"a": ("007", "7")})
    assert both.sum(dim=0).tolist() == [30, 30]
    for fine in (("00501", "10001"), ("7.0", "7"), ("+7", "7"), ("0.5", ".5")):
        assert numbered(path, lambda n, fine=fine: fine[n % 2]).shape == (60, 1)


def test_numbers_that_do_not_fit_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(DataError, match=r"line 9, column 'a'.*fits torch.float32.*float64.*1e39"):
        numbered(path, lambda n: "1e39" if n == 7 else str(n))
    assert numbered(path, lambda n: "1e39" if n == 7 else str(n), dtype=torch.float64).max() == 1e39


def patients(path: Path, lacking: Sequence[int], left_out: Sequence[int] = ()) -> Path:
    """Rows of which some lack their income, and those that are left out."""
    income = {n: "NA" if n in lacking else str(1000 + n) for n in range(60) if n not in left_out}
    rows = [f"{20 + n % 50},{income[n]},{'AB'[n % 2]},{'yes' if n % 4 else 'no'}" for n in income]
    return write(path, rows, "age,income,city,y")


STATED: dict[str, Any] = {
    "parties": 1,
    "ranges": {"age": (0, 100), "income": (1000, 1100)},
    "categories": {"city": ("A", "B")},
    "classes": ("no", "yes"),
}


def parts(data: FederatedData) -> dict[str, set[tuple[float, ...]]]:
    held = {"train": data.pooled(), "test": data.test, "validation": data.validation}
    return {
        name: {(*row.tolist(), float(label)) for row, label in zip(r.inputs, r.labels, strict=True)}
        for name, r in held.items()
        if r is not None
    }


def test_rows_with_missing_values_are_left_out_as_if_they_were_not_there(tmp_path: Path) -> None:
    lacking = (3, 17, 40)
    _, data = from_csv(patients(tmp_path / "a.csv", lacking), missing="drop", **STATED)
    _, without = from_csv(patients(tmp_path / "b.csv", (), lacking), missing="drop", **STATED)
    assert data.digest == without.digest
    assert not any("missing" in note for note in data.notes), "how many is nobody's business"


@pytest.mark.parametrize("missing", ["drop", "indicator", 1050, {"income": "indicator"}])
@pytest.mark.parametrize("lacks", [True, False])
def test_a_row_more_changes_no_other_one(tmp_path: Path, missing: Any, lacks: bool) -> None:
    """Neither its part nor its inputs, whether or not that row is the only one with a gap."""
    lacking = (23,) if lacks else ()
    _, data = from_csv(patients(tmp_path / "a.csv", lacking), missing=missing, **STATED)
    _, less = from_csv(patients(tmp_path / "b.csv", lacking, (23,)), missing=missing, **STATED)
    whole, rest = parts(data), parts(less)
    more = {name: whole[name] - rest[name] for name in whole}
    assert all(rest[name] <= whole[name] for name in rest)
    assert sum(map(len, more.values())) == (0 if lacks and missing == "drop" else 1)
    assert not any("income" in note for note in data.notes)


def test_missing_values_without_a_rule_are_named(tmp_path: Path) -> None:
    path = patients(tmp_path / "a.csv", (3,))
    with pytest.raises(DataError, match=r"line 5, column 'income'.*missing='drop'.*not 'NA'"):
        from_csv(path, **STATED)
    with pytest.raises(ValueError, match=r"scale=.*without missing='indicator'"):
        from_csv(path, missing="indicator", scale=(0, 9), classes=("no", "yes"), drop="city")
    with pytest.raises(DataError, match=r"no column 'wage', which missing= names"):
        from_csv(path, missing={"wage": 0}, **STATED)
    with pytest.raises(ValueError, match=r"missing\['y'\]='no' to be 'drop'"):
        from_csv(path, missing={"y": "no"}, **STATED)


def test_a_row_without_a_class_is_refused_or_left_out(tmp_path: Path) -> None:
    rows = [f"{n},{'' if n == 5 else 'ab'[n % 2]}" for n in range(60)]
    path = write(tmp_path / "t.csv", rows, "a,y")
    for missing in (None, 0, "indicator", "c"):
        with pytest.raises(DataError, match="line 7, column 'y'"):
            from_csv(path, parties=2, missing=missing)
    for rule in ("drop", {"y": "drop"}):
        _, data = from_csv(path, parties=2, missing=rule)
        assert 5.0 not in everything(data)[:, 0].tolist()


def test_rows_without_a_user_are_refused_or_left_out(tmp_path: Path) -> None:
    rows = [f"{n},{'' if n == 5 else f'u{n % 20}'},{'ab'[n % 2]}" for n in range(60)]
    path = write(tmp_path / "t.csv", rows, "a,who,y")
    with pytest.raises(DataError, match="line 7, column 'who'"):
        from_csv(path, parties=2, user="who", missing="indicator")
    _, data = from_csv(path, parties=2, user="who", missing="drop", validation_fraction=0)
    assert 5.0 not in [*data.pooled().inputs.flatten(), *data.test.inputs.flatten()]
    with pytest.raises(ValueError, match=r"missing\['who'\]='nobody' to be 'drop'"):
        from_csv(path, user="who", missing={"who": "nobody"})


def test_other_delimiters(tmp_path: Path) -> None:
    rows = [f"{n}\t{n % 2}" for n in range(60)]
    for name, options in (("t.tsv", {}), ("t.csv", {"delimiter": "\t"})):
        _, data = from_csv(write(tmp_path / name, rows, "a\ty"), parties=2, **options)
        assert everything(data).shape == (60, 1)
    with pytest.raises(DataError, match=r"no column 'y'.*delimiter='\\t'"):
        from_csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"not a dict.*from_frame"):
        from_csv({"a": [1], "y": [0]})  # type: ignore[arg-type]


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(8, 3), nn.Flatten(), nn.Linear(6, 2))


def test_tokens_stay_whole_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [f"{n % 8},{n % 5},{n % 2}" for n in range(60)], "a,b,y")
    for options in ({"model": tokens}, {"model": tokens, "dtype": torch.int64}):
        _, data = from_csv(path, parties=2, **options)
        assert everything(data).dtype == torch.int64
    _, floats = from_csv(path, parties=2)
    assert everything(floats).dtype == torch.float32
    assert floats.digest != data.digest, "the type is part of the data"
    with pytest.raises(ValueError, match="not scaled"):
        from_csv(path, ranges={"a": (0, 8)}, dtype=torch.int64, model=tokens)
    with pytest.raises(ValueError, match=r"model= to be given with dtype=torch.int64"):
        from_csv(path, dtype=torch.int64)
    rows = [*(f"{n % 8},1,{n % 2}" for n in range(60)), "0.5,1,0"]
    with pytest.raises(DataError, match="line 62, column 'a': expected a whole number"):
        from_csv(write(path, rows, "a,b,y"), dtype=torch.int64, model=tokens)
    with pytest.raises(ValueError, match=r"type torch\.float32; it raised"):
        from_csv(path, model=tokens)
