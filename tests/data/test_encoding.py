"""New rows become what the rows of training became, to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits

import privtrain as pt
from privtrain.core.errors import DataError
from privtrain.core.recipe import Column, Encoder
from privtrain.data.encoding import encode, encoder_from_plain, encoder_to_plain
from tests.data.test_columns import CSV

WORDS = Column(name="city", words=("Bern", "Rome"))
ENCODER = Encoder(
    shape=(4,),
    columns=(Column(name="age", range=(0.0, 100.0)), WORDS, Column(name="income")),
    classes=("no", "yes"),
    label="y",
)


def of(encoder: Encoder, text: str, folder: Path) -> torch.Tensor:
    path = folder / "new.csv"
    path.write_text(text)
    return encode(encoder, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("partition", [pt.data.IID(), pt.data.ByColumn(label_holder=0)])
def test_a_table_is_encoded_as_for_training(
    tmp_path: Path, dtype: torch.dtype, partition: Any
) -> None:
    path = tmp_path / "own.csv"
    path.write_text(CSV)
    options = {"ranges": {"age": (0, 60)}, "parties": 2, "dtype": dtype, "partition": partition}
    _, data = pt.data.from_csv(path, test_fraction=0.5, validation_fraction=0, **options)
    assert data.encoder is not None
    # By name: another order, and columns that nobody asks for.
    header, *lines = (line.split(",") for line in CSV.split())
    turned = [[str(n), *reversed(line)] for n, line in enumerate([header, *lines])]
    new = tmp_path / "new.csv"
    new.write_text("\n".join(",".join(line) for line in turned))
    made = {tuple(row.tolist()) for row in encode(data.encoder, new)}
    known = torch.cat([data.test.inputs, data.pooled().inputs])
    assert {tuple(row.tolist()) for row in known} == made
    assert encode(data.encoder, new).dtype is dtype


def test_arrays_of_known_sets_are_scaled_as_for_training(tmp_path: Path) -> None:
    _, data = pt.data.digits()
    assert data.encoder is not None
    raw = load_digits().data
    made = {tuple(row.tolist()) for row in encode(data.encoder, raw)}
    assert {tuple(row.tolist()) for row in data.test.inputs} <= made
    np.savez(tmp_path / "new.npz", x=raw[:3])
    assert torch.equal(encode(data.encoder, tmp_path / "new.npz"), encode(data.encoder, raw[:3]))


def test_a_table_of_a_known_set_has_its_names(tmp_path: Path) -> None:
    _, data = pt.data.breast_cancer()
    bunch = load_breast_cancer()
    lines = [bunch.feature_names.tolist(), *bunch.data.tolist()]
    text = "\n".join(",".join(map(str, line)) for line in lines)
    assert data.encoder is not None
    made = {tuple(row.tolist()) for row in of(data.encoder, text, tmp_path)}
    assert {tuple(row.tolist()) for row in data.test.inputs} <= made


def test_own_scales_are_applied_in_the_type_of_training() -> None:
    raw = np.linspace(-3, 11, 120).reshape(60, 2) / 3
    _, data = pt.data.from_arrays(raw, np.arange(60) % 2, scale=([-1, 0], [3, 2.5]), parties=2)
    assert data.encoder is not None
    made = {tuple(row.tolist()) for row in encode(data.encoder, raw)}
    assert {tuple(row.tolist()) for row in data.test.inputs} <= made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age\n1", r"lacks 2 of the 3 columns .*'city', 'income'\. It has age"),
        (
            "age,city,income\n1,Paris,2",
            r"line 2, column 'city': expected one of 'Bern', 'Rome', not 'Paris'",
        ),
        (
            "age,city,income\n1,Bern,2\n,Bern,2",
            r"line 3, column 'age': expected a finite number, not ''",
        ),
        ("age,city,income\n1,Bern,NA", r"column 'income': expected a finite number, not 'NA'"),
        ("age,city,income\n1,,2", r"column 'city': expected one of"),
        ("age,city,income\n1,Bern,1e300", r"fit float32"),
        ("", "holds nothing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        of(ENCODER, text, tmp_path)


def test_missing_values_follow_the_rule_of_training(tmp_path: Path) -> None:
    columns = (
        Column(name="age", range=(10.0, 20.0), stand_in="10.0", indicator=True),
        Column(name="city", words=("Bern", "NA"), stand_in="\0", indicator=True),
        Column(name="income", stand_in="7"),
    )
    made = of(Encoder(shape=(6,), columns=columns), "age,city,income\n?,NA,\n15,,3", tmp_path)
    # 'NA' is listed as a word: it is none of the missing values.
    assert made.tolist() == [[0, 1, 0, 1, 0, 7], [0.5, 0, 0, 0, 1, 3]]


def test_the_stand_in_of_missing_words_is_not_offered(tmp_path: Path) -> None:
    column = Column(name="city", words=("Bern", "Rome"), stand_in="\0", indicator=True)
    with pytest.raises(DataError) as raised:
        of(Encoder(shape=(3,), columns=(column,)), "city\nParis\n", tmp_path)
    assert "one of 'Bern', 'Rome', not" in str(raised.value)


def test_arrays_and_tables_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns by name \(age"):
        encode(ENCODER, np.zeros((2, 4)))
    with pytest.raises(DataError, match="have no names"):
        of(Encoder(shape=(2,)), "a,b\n1,2", tmp_path)
    with pytest.raises(DataError, match=r"\(5,\) to have rows of shape \(2,\)"):
        encode(Encoder(shape=(2,)), np.zeros((3, 5)))
    with pytest.raises(DataError, match=r"\.csv or \.npz"):
        encode(ENCODER, "new.xlsx")


def test_whole_numbers_stay_whole() -> None:
    made = encode(Encoder(shape=(2,), dtype="int64"), [[1, 2**40]])
    assert made.dtype is torch.int64
    assert made.tolist() == [[1, 2**40]]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int64", 1.5), ("int64", float("nan")), ("uint8", 300), ("uint8", -1), ("bool", 2)],
)
def test_numbers_that_would_become_others_are_refused(
    tmp_path: Path, dtype: str, value: float
) -> None:
    encoder = Encoder(shape=(2,), dtype=dtype)
    np.savez(tmp_path / "new.npz", x=np.array([[1, 0], [0, value]]))
    for rows in (np.array([[1, 0], [0, value]]), tmp_path / "new.npz"):
        with pytest.raises(DataError, match=f"row 1, column 1 is {value}"):
            encode(encoder, rows)


def test_cells_of_tokens_are_whole(tmp_path: Path) -> None:
    encoder = Encoder(shape=(2,), dtype="int64", columns=(Column(name="a"), Column(name="b")))
    assert of(encoder, "a,b\n1,2.0", tmp_path).tolist() == [[1, 2]]
    for cell in ("1.5", "1e300"):
        with pytest.raises(DataError, match=f"line 3, column 'b': .* whole number, not '{cell}'"):
            of(encoder, f"a,b\n1,2\n1,{cell}", tmp_path)


def test_an_encoder_survives_the_way_through_json() -> None:
    for encoder in (
        ENCODER,
        Encoder(shape=(1, 2, 2), dtype="float64", scale=((0.1,), (0.3,)), classes_read=True),
        Encoder(shape=(2,), order=(1, 0), scale=((0.0, 1.0), (2.0, 3.0)), delimiter=";"),
        Encoder(shape=(2,), values=True),
    ):
        assert encoder_from_plain(json.loads(json.dumps(encoder_to_plain(encoder)))) == encoder


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [3]},
        {"shape": [-4]},
        {"shape": [4.0]},
        {"dtype": "object"},
        {"dtype": 1},
        {"columns": [{"name": 1}]},
        {"columns": [{"name": "a", "range": [1, 1]}, *[{"name": n} for n in "bcd"]]},
        {"columns": [{"name": "a", "range": [0, float("inf")]}, *[{"name": n} for n in "bcd"]]},
        {"order": [0, 0, 1, 2]},
        {"scale": [[0, 1], [2]]},
        {"classes": [1, 2]},
        {"delimiter": ""},
    ],
)
def test_an_encoder_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        encoder_from_plain({**encoder_to_plain(ENCODER), **wrong})


def test_frames_and_mappings_are_tables() -> None:
    pandas = pytest.importorskip("pandas")
    columns = {"income": [1.5, 2.0], "more": [0, 0], "city": ["Rome", "Bern"], "age": [50, 200]}
    expected = [[0.5, 0, 1, 1.5], [1, 1, 0, 2]]
    assert encode(ENCODER, columns).tolist() == expected
    assert encode(ENCODER, pandas.DataFrame(columns)).tolist() == expected
    for missing in (None, float("nan"), pandas.NA):
        with pytest.raises(DataError, match=r"rows, row 1, column 'age': .*, not ''"):
            encode(ENCODER, {**columns, "age": [50, missing]})
    with pytest.raises(DataError, match="one length"):
        encode(ENCODER, {**columns, "age": [50]})
    with pytest.raises(DataError, match="'age'"):
        encode(ENCODER, pandas.DataFrame({"city": ["Rome"], "income": [1]}))


def test_a_table_separated_by_tabs_is_one(tmp_path: Path) -> None:
    (tmp_path / "new.tsv").write_text("age\tcity\tincome\n50\tRome\t1\n")
    assert encode(ENCODER, tmp_path / "new.tsv").tolist() == [[0.5, 0, 1, 1]]


@pytest.mark.parametrize(
    "missing", ["indicator", 7.0, {"age": "indicator", "city": "Rome", "income": 0}]
)
def test_rules_for_missing_values_are_those_of_training(tmp_path: Path, missing: Any) -> None:
    lines = CSV.splitlines()
    gaps = [lines[0]] + [
        line.replace("Bern", "") if number % 7 == 0 else line
        for number, line in enumerate(lines[1:])
    ]
    gaps[5] = "?" + gaps[5][gaps[5].index(",") :]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(gaps) + "\n")
    _, data = pt.data.from_csv(path, missing=missing, parties=2, ranges={"age": (10, 90)})
    assert data.encoder is not None
    back = encoder_from_plain(json.loads(json.dumps(encoder_to_plain(data.encoder))))
    made = {tuple(row.tolist()) for row in encode(back, path)}
    assert {tuple(row.tolist()) for row in data.pooled().inputs} <= made


def test_rows_that_training_left_out_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(CSV.replace("20,Bern", ",Bern"))
    _, data = pt.data.from_csv(path, missing="drop", parties=2)
    assert data.encoder is not None
    with pytest.raises(DataError, match="column 'age': expected a finite number, not ''"):
        encode(data.encoder, path)


def test_tokens_stay_whole(tmp_path: Path) -> None:
    tokens = np.arange(120).reshape(60, 2)

    def make() -> torch.nn.Module:
        layers = (torch.nn.Embedding(200, 4), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        return torch.nn.Sequential(*layers)

    _, data = pt.data.from_arrays(tokens, ["no", "yes"] * 30, parties=2, model=make)
    assert data.encoder is not None and data.encoder.dtype == "int64"
    assert data.encoder.classes == ("no", "yes") and data.encoder.classes_read
    assert torch.equal(encode(data.encoder, tokens), torch.from_numpy(tokens))


def test_frames_are_encoded_as_for_training() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "flag": [True, False] * 40,
            "city": ["Bern", "Rome"] * 40,
            "age": range(80),
            "y": ["a", "b"] * 40,
        }
    )
    _, data = pt.data.from_frame(frame, parties=2)
    assert data.encoder is not None
    made = {tuple(row.tolist()) for row in encode(data.encoder, frame)}
    assert {tuple(row.tolist()) for row in data.pooled().inputs} <= made
