"""What loaders say of the columns they made inputs of."""

from pathlib import Path

import pytest
import torch

import privtrain as pt
from privtrain.core.recipe import Column

CSV = "age,city,income,y\n" + "".join(
    f"{20 + n % 50},{('Bern', 'Rome')[n % 2]},{n / 7},{('no', 'yes')[n % 3 % 2]}\n"
    for n in range(90)
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "own.csv"
    path.write_text(CSV)
    return path


def test_a_table_is_known_by_its_columns(table: Path) -> None:
    _, data = pt.data.from_csv(table, ranges={"age": (0, 100)})
    assert data.encoder is not None
    assert data.encoder.columns == (
        Column(name="age", range=(0.0, 100.0)),
        Column(name="city", words=("Bern", "Rome"), read=True),
        Column(name="income"),
    )
    assert data.encoder.classes == ("no", "yes")
    assert data.encoder.classes_read
    assert data.encoder.shape == (4,)
    assert data.encoder.label == "y"


def test_what_is_stated_is_not_said_to_be_read(table: Path) -> None:
    cities = {"city": ["Rome", "Bern", "Oslo"]}
    _, data = pt.data.from_csv(table, categories=cities, classes=["yes", "no"], drop="age")
    assert data.encoder is not None
    assert data.encoder.columns == (
        Column(name="city", words=("Rome", "Bern", "Oslo")),
        Column(name="income"),
    )
    assert (data.encoder.classes, data.encoder.classes_read) == (("yes", "no"), False)
    assert data.encoder.read == ()


def test_one_number_makes_a_column_of_numbers(tmp_path: Path) -> None:
    text = "".join(f"{n},{n},{('2.0', '10', '2')[n % 3]}\n" for n in range(60))
    (tmp_path / "own.csv").write_text("a,b,y\n" + text)
    _, data = pt.data.from_csv(tmp_path / "own.csv", missing={"b": "indicator"}, parties=2)
    assert data.encoder is not None and data.encoder.columns is not None
    assert data.encoder.columns[0] == Column(name="a")
    assert data.encoder.columns[1] == Column(name="b", stand_in="0.0", indicator=True)
    # Numbers that name classes are written in one way.
    assert data.encoder.classes == ("2", "10")


def test_the_encoder_changes_neither_noise_nor_folders(table: Path) -> None:
    """Seeded runs keep their bits: what is known of columns is no part of a run's identity."""
    from dataclasses import replace

    from privtrain.runs.roots import data_digest

    _, data = pt.data.from_csv(table)
    assert data_digest(data) == data_digest(replace(data, encoder=None))
    assert "encoder" not in repr(data)


@pytest.mark.parametrize("known", [pt.data.digits, pt.data.breast_cancer])
def test_known_sets_say_how_their_inputs_were_made(known: object) -> None:
    _, data = known()  # type: ignore[operator]
    assert data.encoder.shape == tuple(data.test.inputs.shape[1:])
    assert data.encoder.dtype == str(data.test.inputs.dtype).removeprefix("torch.")
    assert data.encoder.read == ()


def test_columns_that_parties_share_keep_their_order() -> None:
    _, data = pt.data.digits(parties=3, partition=pt.data.ByColumn(label_holder=0))
    assert data.encoder is not None and data.encoder.order is not None
    whole, _ = torch.sort(torch.tensor(data.encoder.order))
    assert torch.equal(whole, torch.arange(64))
