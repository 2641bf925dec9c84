"""Arrays of other libraries: right, or refused with the argument, the place and the way out."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from privtrain.core.errors import DataError
from privtrain.data import from_arrays
from privtrain.data.numbers import first_merged, to_inputs, to_numbers, to_targets

X = np.random.default_rng(0).normal(size=(40, 3))
Y = np.arange(40) % 3
CODES = 900_000_000_000_207_008 + np.arange(40)


def masked(values: np.ndarray[Any, Any], *rows: int) -> Any:
    made = np.ma.masked_array(values)
    for row in rows:
        made[row] = np.ma.masked
    return made


def torch_of(make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls some of its layouts experimental
        return make(torch.from_numpy(X).float())


def sparse_scipy() -> Any:
    return pytest.importorskip("scipy.sparse").csr_matrix(X)


REFUSED_INPUTS: dict[str, tuple[Callable[[], Any], str]] = {
    "coo": (lambda: torch_of(torch.Tensor.to_sparse), r"sparse_coo\. Use inputs\.to_dense"),
    "csr": (lambda: torch_of(torch.Tensor.to_sparse_csr), r"sparse_csr\. Use inputs\.to_dense"),
    "nested": (
        lambda: torch_of(lambda x: torch.nested.nested_tensor([x[0], x[1, :2]])),
        "rows of different lengths",
    ),
    "quantized": (
        lambda: torch_of(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)),
        r"inputs\.dequantize",
    ),
    "meta": (lambda: torch.zeros(4, 3, device="meta"), "without values"),
    "complex tensor": (lambda: torch.zeros(4, 3, dtype=torch.complex64), "complex"),
    "complex": (lambda: X + 0j, r"not complex numbers \(complex128\)"),
    "scipy": (sparse_scipy, r"csr_matrix.*toarray"),
    "ragged": (lambda: [[1.0, 2.0], [3.0]] * 10, "Pad or cut rows of different lengths"),
    "gradients": (lambda: [torch.zeros(3, requires_grad=True)] * 4, "detach"),
    "dict": (lambda: {"a": X}, "in a dict"),
    "generator": (lambda: (row for row in X), "in a generator"),
    "none": (lambda: None, "in a NoneType"),
    "a missing entry": (lambda: [[1.0, None]] * 3, "not None, a missing value, as in row 0"),
    "words": (lambda: np.array([["a"]] * 9, dtype=object), "not 'a'.*from_csv"),
    "dates": (lambda: np.zeros((9, 2), "M8[D]"), "not dates"),
    "durations": (lambda: np.zeros((9, 2), "m8[s]"), "not durations"),
    "records": (lambda: np.zeros(9, dtype=[("a", "f4")]), "not records"),
    "masked": (lambda: masked(X, 3, 5), "6 are, the first of them in row 3"),
    "no dimension": (lambda: torch.tensor(1.0), r"shape \(\)"),
    "codes": (lambda: CODES[:, None], r"column 0 900000000000207008 and 900000000000207009 become"),
    "unsigned codes": (
        lambda: (CODES.astype(np.uint64) + np.uint64(2**63))[:, None],
        r"10123372036854982816 and 10123372036854982817",
    ),
    "float codes": (lambda: 2.0**24 + np.arange(9.0)[:, None], "16777216 and 16777217 become"),
    "codes in images": (
        lambda: np.stack([np.zeros((40, 2)), CODES[:, None] + np.zeros((40, 2))], axis=1),
        r"in column \(1, 0\)|tells apart",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_INPUTS)
def test_inputs_that_are_no_table_of_numbers(kind: str) -> None:
    make, message = REFUSED_INPUTS[kind]
    with pytest.raises(DataError, match=f"Expected inputs .*{message}"):
        to_inputs(make(), torch.float32, "inputs")


@pytest.mark.parametrize("argument", ["public", "test[0]"])
def test_public_and_test_rows_pass_the_same_checks(argument: str) -> None:
    sparse = torch_of(torch.Tensor.to_sparse)
    given: dict[str, Any] = {"public": sparse} if argument == "public" else {"test": (sparse, Y)}
    with pytest.raises(DataError) as refused:
        from_arrays(X, Y, parties=2, **given)
    assert argument in str(refused.value)
    with pytest.raises(DataError, match="test to be a pair"):
        from_arrays(X, Y, parties=2, test=X)  # type: ignore[arg-type]


REFUSED_TARGETS: dict[str, tuple[Any, str]] = {
    "words": (np.array(["a", "b"] * 20), "Map words to numbers"),
    "missing": ([0, None] * 20, "not None"),
    "masked": (masked(Y, 2), "1 are, the first of them in row 2"),
    "one-hot": (np.eye(3)[Y], r"numpy\.argmax\(targets, axis=1\)"),
    "unsigned": (Y.astype(np.uint64) + np.uint64(2**63), "row 0 is 9223372036854775808"),
    "large": (np.where(Y == 1, 1e20, Y), r"row 1 is 1e\+20"),
    "infinite": (np.where(Y == 1, np.inf, Y), "row 1 is inf"),
    "complex": (Y + 0j, "complex"),
    "unsigned tensor": (torch.tensor([2**63], dtype=torch.uint64), "9223372036854775808"),
}


@pytest.mark.parametrize("kind", REFUSED_TARGETS)
def test_targets_that_are_no_class_numbers(kind: str) -> None:
    given, message = REFUSED_TARGETS[kind]
    with pytest.raises(DataError, match=message):
        to_targets(given, "targets")


@pytest.mark.parametrize(
    "given",
    [
        *(Y.astype(kind) for kind in ("u1", "u2", "u4", "u8", "i1", "f2", "f4", "f8")),
        *(torch.from_numpy(Y.astype(kind)) for kind in ("u2", "u4", "u8")),
        torch.from_numpy(Y).bfloat16(),
        masked(Y),
        Y.tolist(),
    ],
)
def test_targets_of_every_number_format(given: Any) -> None:
    assert to_targets(given, "targets").tolist() == Y.tolist()


def test_truth_values_are_classes_and_features() -> None:
    assert to_targets(Y > 0, "targets").tolist() == (Y > 0).tolist()
    assert to_inputs(X > 0, torch.float32, "inputs").tolist() == (X > 0).tolist()


@pytest.mark.parametrize(
    "given",
    [
        X.astype(np.float16),
        masked(X),
        torch.from_numpy(X).bfloat16(),
        torch.from_numpy(X).requires_grad_(),
        torch.from_numpy(np.abs(X).astype(np.uint32)),
        np.full((4, 2), 2**63 + 2**12, dtype=np.uint64),
        CODES[:1, None],  # a single value stays what it is
        1.7e9 + 1000.0 * np.arange(40)[:, None],
    ],
)
def test_inputs_of_every_number_format(given: Any) -> None:
    kept = to_inputs(given, torch.float64, "inputs")
    plain = given.detach().double() if isinstance(given, torch.Tensor) else given
    assert np.array_equal(kept.numpy(), np.asarray(plain).astype(np.float64))
    assert to_inputs(given, torch.float32, "inputs").dtype == torch.float32


def test_tables_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    whole = pandas.DataFrame({"a": pandas.array([1, 2] * 5, dtype="Int64")})
    assert to_inputs(whole, torch.float32, "inputs").flatten().tolist() == [1.0, 2.0] * 5
    gaps = pandas.DataFrame({"a": pandas.array([1, None] * 5, dtype="Int64")})
    words = pandas.DataFrame({"a": pandas.Categorical(["x", "y"] * 5)})
    dates = pandas.DataFrame({"a": pandas.date_range("2020", periods=9)})
    for table, message in ((gaps, "row 1, column 0 is nan"), (words, "'x'"), (dates, "dates")):
        with pytest.raises(DataError, match=message):
            to_inputs(table, torch.float32, "inputs")


def test_measurements_are_rounded_and_codes_are_not() -> None:
    near = np.array([1e9, 1e9 + 0.5])
    assert first_merged(near, torch.float32) is None
    assert first_merged(np.array([2**24, 2**24 + 1]), torch.float32) == (2**24, 2**24 + 1)
    assert first_merged(np.array([2**24, 2**24 + 1]), torch.float64) is None
    assert first_merged(np.array([2**53, 2**53 + 1]), torch.float64) == (2**53, 2**53 + 1)
    assert to_numbers(CODES, "inputs").dtype == np.int64


SECONDS = 1_700_000_000 + np.arange(60)


@pytest.mark.parametrize(
    "column",
    [
        SECONDS + 0.5 * (np.arange(60) == 0),  # whole numbers, and one fraction
        SECONDS + 0.5,
        1000 + np.arange(60) * 1e-6,
        -(SECONDS + 0.25),
        [2**63 + n for n in range(60)],
        [-(2**63) - n for n in range(60)],
        [10**30 + n for n in range(60)],
    ],
)
def test_columns_of_which_most_values_would_become_one(column: Any) -> None:
    table = [
        [float(value) if isinstance(value, np.floating) else int(value), n]
        for n, value in enumerate(column)
    ]
    forms = [table, np.array(table, dtype=object)]
    forms += [np.array(table)] if isinstance(column, np.ndarray) else []
    for form in forms:
        with pytest.raises(DataError, match="apart"):
            to_inputs(form, torch.float32, "inputs")


@pytest.mark.parametrize(
    "column",
    [
        np.random.default_rng(0).normal(size=2000),
        np.random.default_rng(0).normal(size=2000) * 1e9,
        np.array([0.1 + 0.2, 0.3, 0.1 * 3, 0.7 + 0.1, 0.8] * 8),
        np.arange(60) / 7,
        SECONDS.astype(float) / 1e9 + np.arange(60) / 9,
    ],
)
def test_measurements_are_rounded(column: Any) -> None:
    assert to_inputs(column[:, None], torch.float32, "inputs").shape == (len(column), 1)


def test_numbers_of_a_list_keep_their_digits() -> None:
    table = [[2**63 + n, n] for n in range(60)]
    assert to_numbers(table, "inputs").dtype == np.uint64
    assert to_numbers(table, "inputs")[:, 0].tolist() == [2**63 + n for n in range(60)]
    with pytest.raises(DataError, match="float64 tells apart"):
        to_inputs([[2**63 + n, 0.5] for n in range(60)], torch.float64, "inputs")
    with pytest.raises(DataError, match="308 digits"):
        to_inputs([[10**400, 0.5]] * 9, torch.float64, "inputs")


def test_what_does_not_fit_is_not_called_infinite() -> None:
    with pytest.raises(DataError, match=r"fit torch.float32; row 1, column 0 is 1e\+300.*float64"):
        to_inputs([[1.0], [1e300]], torch.float32, "inputs")
    assert to_inputs([[1.0], [1e300]], torch.float64, "inputs").dtype == torch.float64
    with pytest.raises(DataError, match="row 1, column 0 is inf"):
        to_inputs([[1.0], [np.inf]], torch.float32, "inputs")


def test_nullable_columns_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    columns = {
        "whole": pandas.array([1, 2, 3], dtype="Int64"),
        "real": pandas.array([0.5, 1.5, 2.5], dtype="Float64"),
        "truth": pandas.array([True, False, True], dtype="boolean"),
    }
    expected = [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]]
    assert to_inputs(pandas.DataFrame(columns), torch.float32, "inputs").tolist() == expected
    for name, column in columns.items():
        table = pandas.DataFrame({name: column})
        assert to_inputs(table, torch.float32, "inputs").shape == (3, 1)
    for dtype in ("Int64", "boolean"):
        given = pandas.Series([1, 0, 1], dtype=dtype)
        assert to_targets(given, "targets").tolist() == [1, 0, 1]
        with pytest.raises(DataError, match=r"missing value, as in row 1|row 1 is nan, a missing"):
            to_targets(pandas.Series([1, None, 1], dtype=dtype), "targets")
    with pytest.raises(DataError, match="row 1 is nan, a missing value"):
        to_targets(pandas.Series([1, None, 1]), "targets")
    codes = pandas.DataFrame({"code": 10**17 + np.arange(9), "x": np.arange(9) / 2})
    for dtype_of in (torch.float32, torch.float64):
        with pytest.raises(DataError, match="apart"):
            to_inputs(codes, dtype_of, "inputs")
