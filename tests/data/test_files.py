"""Files of known data sets: found where they may lie, and refused when they are damaged."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from privtrain.core.errors import DataError
from privtrain.data import adult, mnist
from privtrain.data.files import ADULT, MNIST, VARIABLE, locate, parse, read_adult, read_idx


def idx(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    header = bytes([0, 0, 8, values.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + sizes + values.tobytes()


def write_mnist(folder: Path, *, suffix: str = "", rows: int = 40) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 28, 28)).astype(np.uint8)
    labels = (np.arange(rows) % 10).astype(np.uint8)
    for name, values in zip(MNIST.files, (pixels, labels, pixels[:20], labels[:20]), strict=True):
        data = idx(values)
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix == ".gz" else data)


RECORD = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, "
    "Male, 2174, 0, 40, United-States, <=50K"
)
OTHER = "60, ?, 5000000, HS-grad, 9, Widowed, ?, Wife, Black, Female, 99999, 0, 99, ?, >50K"


def write_adult(folder: Path, train: str, test: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adult.data").write_text(train)
    (folder / "adult.test").write_text(train if test is None else test)


@pytest.mark.parametrize("folder", ["mnist", "", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_found(tmp_path: Path, folder: str, suffix: str) -> None:
    write_mnist(tmp_path / folder, suffix=suffix)
    _, data = mnist(tmp_path, parties=4)
    assert data.test.inputs.shape == (20, 1, 28, 28)
    # The documentation's number, whatever the files hold.
    assert data.public_rows == 54_000


def test_the_variable_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert mnist(parties=2)[1].public_rows == 54_000
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(DataError, match=r"set PRIVTRAIN_DATA.*train-images-idx3-ubyte.*https://"):
        mnist(parties=2)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", suffix=".gz")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as raised:
        mnist(tmp_path)
    message = str(raised.value)
    assert "lacks t10k-labels-idx1-ubyte (" in message
    assert str(tmp_path / "mnist") in message
    assert "https://" in message
    with pytest.raises(DataError, match=r"lacks adult\.data, adult\.test"):
        adult(tmp_path)


def test_a_folder_does_not_complete_another(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    write_mnist(tmp_path)
    (tmp_path / "mnist" / MNIST.files[0]).unlink()
    assert {path.parent for path in locate(MNIST, tmp_path)} == {tmp_path}


def test_idx_values_and_shape(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "file").write_bytes(idx(values))
    assert torch.equal(read_idx(tmp_path / "file"), torch.from_numpy(values))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x1f\x8b\x08\x00", "begins with 1f8b0800"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "no IDX file of bytes"),
        (idx(np.zeros((5, 4), dtype=np.uint8))[:-1], r"holds 31 bytes.*\(5, 4\), which takes 32"),
        (idx(np.zeros((5, 4), dtype=np.uint8)) + b"x", "holds 33 bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "damaged"),
    ],
    ids=["empty", "gzip", "doubles", "short", "long", "header"],
)
def test_damaged_idx(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "file")


@pytest.mark.parametrize("damage", ["short", "garbage", "checksum", "plain"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    data = {
        "short": packed[:40],
        "garbage": packed[:12] + b"\xff" * 60 + packed[72:],
        "checksum": packed[:-8] + b"\x00" * 4 + packed[-4:],
        "plain": b"no archive at all",
    }[damage]
    (tmp_path / "file.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"Could not read .*file\.gz"):
        read_idx(tmp_path / "file.gz")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / MNIST.files[1]).write_bytes(idx(np.zeros(39, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"40 images.*do not belong together"):
        mnist(tmp_path)
    (tmp_path / MNIST.files[1]).write_bytes(idx(np.full(40, 10, dtype=np.uint8)))
    with pytest.raises(DataError, match="label 10"):
        mnist(tmp_path)
    (tmp_path / MNIST.files[0]).write_bytes(idx(np.zeros((40, 28), dtype=np.uint8)))
    with pytest.raises(DataError, match=r"not \(rows, 28, 28\)"):
        mnist(tmp_path)


def test_adult_records(tmp_path: Path) -> None:
    commented = f"|1x3 Cross validator\n{RECORD}.\n{OTHER}.\n\n"
    write_adult(tmp_path, f"{RECORD}\n{OTHER}\n\n", commented)
    (inputs, targets), (test_inputs, test_targets) = read_adult(tmp_path)
    assert targets.tolist() == test_targets.tolist() == [0, 1]
    assert np.array_equal(inputs, test_inputs)
    # Age, weight and capital gain are the first, eleventh and ninety-sixth column; all are scaled
    # by constants, and what lies above them is clamped.
    assert inputs[:, 0].tolist() == [0.39, 0.6]
    assert inputs[:, 10].tolist() == [77516 / 1_500_000, 1.0]
    assert inputs[1, 9] == 1.0  # a missing work class is a category of its own
    assert inputs[1, -1] == 1.0  # so is a missing country
    assert (inputs.sum(axis=1) >= 8).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (RECORD.replace("State-gov", "Pirate"), r"line 2, column 'workclass'.*not 'Pirate'"),
        (RECORD.replace("39,", "old,"), "column 'age': expected a finite number, not 'old'"),
        (RECORD.replace("39,", "nan,"), "column 'age'"),
        (RECORD.replace("White", "?"), "column 'race'"),
        (RECORD.replace("<=50K", "50K"), "column 'label'"),
        (RECORD.rsplit(",", 1)[0], "line 2: expected 15 fields, not 14"),
    ],
)
def test_damaged_adult(tmp_path: Path, line: str, message: str) -> None:
    write_adult(tmp_path, f"{RECORD}\n{line}\n")
    with pytest.raises(DataError, match=message):
        adult(tmp_path)


def test_empty_adult(tmp_path: Path) -> None:
    write_adult(tmp_path, "\n\n")
    with pytest.raises(DataError, match="holds no records"):
        adult(tmp_path)
    assert ADULT.files == ("adult.data", "adult.test")


def test_a_number_is_written_without_underscores() -> None:
    assert [parse("10"), parse("1e1")] == [10.0, 10.0]
    assert math.isnan(parse("1_0"))
