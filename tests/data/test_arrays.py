"""Own arrays: what is accepted stays as it is, what cannot be used is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from privtrain.core.errors import DataError
from privtrain.core.task import Rows
from privtrain.data import MLP, ByColumn, LogisticRegression, from_arrays, from_npz
from privtrain.data.arrays import CLASSES_COUNTED, CLASSES_READ

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 5))
Y = np.arange(100) % 3


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_stay_what_they_are(as_tensor: bool, dtype: torch.dtype) -> None:
    x, y = (torch.from_numpy(X), torch.from_numpy(Y)) if as_tensor else (X, Y)
    task, data = from_arrays(x, y, parties=4, dtype=dtype)
    rows = torch.cat([data.pooled().inputs, data.test.inputs, rows_of(data.validation)])
    assert torch.equal(rows.sort(dim=0).values, torch.from_numpy(X).to(dtype).sort(dim=0).values)
    assert task.model == LogisticRegression(5, 3, dtype)
    assert data.public_rows is None
    assert data.notes[0] == CLASSES_COUNTED
    assert data.assumptions == (CLASSES_READ.assumption,)


def rows_of(rows: Rows | None) -> Tensor:
    assert rows is not None
    return rows.inputs


def test_test_and_public_rows_may_be_given() -> None:
    _, data = from_arrays(X, Y, parties=2, test=(X[:7], Y[:7]), public=X[:9], public_rows=90)
    assert len(data.test) == 7
    assert data.public is not None
    assert data.public.targets is None
    assert len(data.public) == 9
    # Nothing but validation is left to split, by coins.
    assert len(data.pooled()) + len(rows_of(data.validation)) == 100
    assert data.public_rows == 90
    options: dict[str, Any] = {"test": (X, Y), "validation_fraction": 0.0, "parties": 2}
    assert [from_arrays(X, Y, **options)[1].by_coin, data.by_coin] == [False, True]


def test_scaling_by_constants() -> None:
    inputs = np.array([[0.0, 5.0], [10.0, 20.0], [-5.0, 10.0], [5.0, 15.0]] * 5)
    targets = np.arange(20) % 2
    _, data = from_arrays(
        inputs, targets, parties=1, scale=([0, 10], [10, 20]), test=(inputs[:4], targets[:4])
    )
    assert data.test.inputs.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]
    _, data = from_arrays(inputs, targets, parties=1, scale=(0, 20), test=(inputs[:4], targets[:4]))
    assert data.test.inputs.tolist() == [[0.0, 0.25], [0.5, 1.0], [0.0, 0.5], [0.25, 0.75]]


def test_later_writes_do_not_reach_the_data() -> None:
    inputs = X.copy()
    _, data = from_arrays(inputs, Y, parties=1, dtype=torch.float64)
    before = data.test.inputs.clone()
    inputs[:] = 0
    assert torch.equal(data.test.inputs, before)


def test_images_and_models() -> None:
    images = RNG.normal(size=(60, 1, 8, 8))
    task, data = from_arrays(images, np.arange(60) % 2, parties=2)
    assert task.model == MLP((64, 64, 2), flatten=True)
    assert task.model()(data.test.inputs).shape == (len(data.test), 2)
    own = MLP((64, 3, 2), flatten=True)
    assert from_arrays(images, np.arange(60) % 2, parties=2, model=own)[0].model == own


def test_columns() -> None:
    _, data = from_arrays(X, Y, parties=2, partition=ByColumn(label_holder=1))
    assert data.label_holder == "party-1"
    assert torch.equal(data.pooled().labels, data.train["party-1"].labels)


def test_stated_classes_may_be_absent() -> None:
    task, data = from_arrays(X, Y * 2, parties=2, classes=6)
    assert task.model == LogisticRegression(5, 6)
    assert CLASSES_COUNTED not in data.notes and data.assumptions == ()


def broken(row: int, column: int, value: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    inputs = X.copy()
    inputs[row, column] = value
    return inputs


Call = Callable[[], object]
REFUSED: list[tuple[str, Call, str]] = [
    ("nan", lambda: from_arrays(broken(7, 3, np.nan), Y), "inputs.*row 7, column 3 is nan.*impute"),
    ("inf", lambda: from_arrays(broken(9, 0, np.inf), Y), "row 9, column 0 is inf"),
    ("overflow", lambda: from_arrays(broken(4, 1, 1e300), Y), "fit torch.float32; row 4, column 1"),
    ("test nan", lambda: from_arrays(X, Y, test=(broken(1, 2, np.nan), Y)), r"test\[0\].*row 1"),
    ("words", lambda: from_arrays(X.astype(str), Y), "inputs to hold numbers.*from_csv"),
    ("one column", lambda: from_arrays(X[:, 0], Y), r"\(100,\).*reshape\(-1, 1\)"),
    ("empty", lambda: from_arrays(X[:0], Y[:0]), r"inputs of shape \(0, 5\)"),
    ("lengths", lambda: from_arrays(X, Y[:99]), "inputs with 100 rows and targets with 99 rows"),
    ("matrix", lambda: from_arrays(X, np.eye(100)), r"targets of shape \(100, 100\)"),
    ("fractions", lambda: from_arrays(X, Y / 2), r"row 1 is 0\.5.*numpy\.unique"),
    ("negative", lambda: from_arrays(X, Y - 1), r"row 0 is -1.*numpy\.unique"),
    ("nan target", lambda: from_arrays(X, np.where(Y == 2, np.nan, Y)), "row 2 is nan"),
    ("one class", lambda: from_arrays(X, Y * 0), "all 100 rows are of class 0"),
    ("gap", lambda: from_arrays(X, Y * 2), "class 1 is absent.*classes=5"),
    ("too many", lambda: from_arrays(X, Y, classes=2), "below classes=2; class 2 occurs"),
    ("test class", lambda: from_arrays(X, Y, test=(X, Y + 1)), "below classes=3; class 3"),
    ("test width", lambda: from_arrays(X, Y, test=(X[:, :2], Y)), r"test\[0\].*\(2,\).*\(5,\)"),
    ("public width", lambda: from_arrays(X, Y, public=X[:, :2]), r"public with rows of shape"),
    ("parties", lambda: from_arrays(X, Y, parties=90), "parties=90.* training rows.*Unprotected"),
    (
        "rows",
        lambda: from_arrays(X[:2], Y[:2]),
        "2 rows to leave some for the .* part.*Unprotected",
    ),
    ("type", lambda: from_arrays(X, Y, dtype=torch.float16), r"dtype=torch\.float16"),
    ("scale", lambda: from_arrays(X, Y, scale=(1.0, 1.0)), "lowest values below highest"),
    ("scale shape", lambda: from_arrays(X, Y, scale=([0, 0], [1, 1])), r"\(2,\).*\(5,\)"),
    ("fraction", lambda: from_arrays(X, Y, test_fraction=1.0), r"test_fraction=1\.0"),
    ("count", lambda: from_arrays(X, Y, public_rows=0), "public_rows=0"),
    (
        "model",
        lambda: from_arrays(X, Y, model=MLP((5, 2))),
        r"logits of shape \(2, 3\), not \(2, 2",
    ),
    ("model width", lambda: from_arrays(X, Y, model=MLP((4, 3))), r"take inputs of shape \(2, 5\)"),
    ("no model", lambda: from_arrays(X, Y, model=lambda: None), "return an nn.Module, not None"),
    ("own error", lambda: from_arrays(X, Y, model=lambda: {}["k"]), "it raised KeyError: 'k'"),
    ("arguments", lambda: from_arrays(X, Y, model=nn.Linear), "without arguments.*TypeError"),
    (
        "no labels",
        lambda: from_arrays(X, Y, parties=2, partition=ByColumn(label_holder=None)),
        "label_holder=None.*must hold the labels",
    ),
    (
        "no such holder",
        lambda: from_arrays(X, Y, parties=2, partition=ByColumn(label_holder=2)),
        "label_holder=2.*from 0 to 1",
    ),
    (
        "columns of images",
        lambda: from_arrays(X.reshape(100, 5, 1), Y, parties=2, partition=ByColumn()),
        "Flatten",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_what_cannot_be_used_is_named(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_model_check_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    from_arrays(X, Y, model=lambda: nn.Linear(5, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=X, y=Y)
    _, data = from_npz(tmp_path / "own.npz", parties=3)
    _, same = from_arrays(X, Y, parties=3)
    assert data.name == "own"
    assert data.digest == same.digest
    np.savez(tmp_path / "other.npz", features=X, label=Y)
    assert from_npz(tmp_path / "other.npz", inputs="features", targets="label")[1].name == "other"
    with pytest.raises(DataError, match="array 'x'; it holds features, label"):
        from_npz(tmp_path / "other.npz")
    np.savez(tmp_path / "named.npz", x=X, y=Y, id=np.arange(100))
    _, named = from_npz(tmp_path / "named.npz", row_ids="id")
    _, likewise = from_arrays(X, Y, row_ids=np.arange(100))
    assert torch.equal(named.test.inputs, likewise.test.inputs)
    assert not torch.equal(named.test.inputs[:5], same.test.inputs[:5])


def test_npz_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Could not read data=.*absent\.npz.*No such file"):
        from_npz(tmp_path / "absent.npz")
    np.savez_compressed(tmp_path / "whole.npz", x=X, y=Y)
    whole = (tmp_path / "whole.npz").read_bytes()
    damaged = {"empty": b"", "short": whole[:900], "bits": whole[:80] + b"\xff" * 64 + whole[144:]}
    np.save(tmp_path / "single.npy", X)
    damaged["single"] = (tmp_path / "single.npy").read_bytes()
    for name, data in damaged.items():
        (tmp_path / f"{name}.npz").write_bytes(data)
        with pytest.raises(DataError, match=rf"Could not read .*{name}\.npz"):
            from_npz(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], dtype=object), y=Y)
    with pytest.raises(DataError, match=r"Could not read .*objects\.npz") as refused:
        from_npz(tmp_path / "objects.npz")
    assert "allow_pickle" not in str(refused.value)


@pytest.mark.parametrize(
    "scale", [4, "ab", (0, 1, 2), ("low", "high"), (0,), ([0, 1], [[2], [3, 4]])]
)
def test_a_scale_of_another_form(scale: Any) -> None:
    inputs, targets = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    with pytest.raises(ValueError, match=r"scale=.*pair of lowest and highest"):
        from_arrays(inputs, targets, scale=scale)


def test_objects_in_a_file_are_named(tmp_path: Path) -> None:
    labels = np.array(["no", "yes"] * 20, dtype=object)
    np.savez(tmp_path / "own.npz", x=np.zeros((40, 2)), y=labels)
    with pytest.raises(DataError, match=r"array 'y' of .*Python objects.*astype\(int\)"):
        from_npz(tmp_path / "own.npz")


WORDS = np.array(["cat", "dog", "eel"])[Y]


@pytest.mark.parametrize("kind", [np.asarray, list, lambda w: w.astype(object), np.char.encode])
def test_words_as_classes(kind: Callable[[Any], Any]) -> None:
    _, data = from_arrays(X, kind(WORDS), parties=2)
    _, same = from_arrays(X, kind(WORDS), parties=2, classes=["cat", "dog", "eel"])
    assert "(cat is 0, dog is 1, eel is 2)" in data.notes[0]
    assert data.assumptions == (data.notes[0].replace("unprotected", "public knowledge"),)
    assert same.notes == () and same.assumptions == ()
    assert data.digest == same.digest
    _, other = from_arrays(X, kind(WORDS), parties=2, classes=["eel", "dog", "cat", "fox"])
    assert sorted(other.pooled().labels.unique().tolist()) == [0, 1, 2]
    _, tested = from_arrays(X, WORDS, parties=2, test=(X[:9], kind(WORDS[:9])))
    assert tested.test.labels.tolist() == (np.arange(9) % 3).tolist()


def test_a_word_more_moves_no_other_row() -> None:
    """The numbers of classes that are read from the rows follow from all of them."""
    _, data = from_arrays(X, WORDS, parties=1)
    _, more = from_arrays(np.concatenate([X, np.ones((1, 5))]), np.append(WORDS, "ant"), parties=1)
    first = {tuple(row) for row in data.test.inputs.tolist()}
    second = {tuple(row) for row in more.test.inputs.tolist()} - {(1.0,) * 5}
    assert first == second


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))


T = RNG.integers(0, 9, size=(100, 5))


def test_tokens_stay_whole_numbers() -> None:
    for given in (T, torch.from_numpy(T), T.tolist(), T.astype(np.uint8)):
        _, data = from_arrays(given, Y, parties=2, model=tokens, public=given)
        assert data.test.inputs.dtype == torch.int64
        assert data.public is not None and data.public.inputs.dtype == torch.int64
    _, stated = from_arrays(T.astype(float), Y, parties=2, model=tokens, dtype=torch.int64)
    assert torch.equal(stated.test.inputs, data.test.inputs)
    # Whoever takes quantities is given quantities, as ever.
    for model in (None, lambda: nn.Linear(5, 3)):
        _, floats = from_arrays(T, Y, parties=2, model=model)
        assert floats.test.inputs.dtype == torch.float32
    assert floats.digest != data.digest


WRONG: list[tuple[str, Call, str]] = [
    ("halves", lambda: from_arrays(T + 0.5, Y, model=tokens, dtype=torch.int64), "row 0, column 0"),
    (
        "nan",
        lambda: from_arrays(np.where(T == T, np.nan, 0), Y, model=tokens, dtype=torch.int64),
        "whole numbers.*is nan",
    ),
    (
        "too long",
        lambda: from_arrays(np.full((9, 5), 2**64 - 1, dtype=np.uint64), Y[:9], dtype=torch.int64),
        "18446744073709551615",
    ),
    (
        "scaled tokens",
        lambda: from_arrays(T, Y, model=tokens, dtype=torch.int64, scale=(0, 9)),
        "scale=.*left out",
    ),
    ("tokens, scaled", lambda: from_arrays(T, Y, model=tokens, scale=(0, 9)), "dtype=torch.int64"),
    ("no table", lambda: from_arrays(T, Y, dtype=torch.int64), "nn.Embedding"),
    ("int32", lambda: from_arrays(T, Y, model=tokens, dtype=torch.int32), "dtype=torch.int32"),
    ("unlisted", lambda: from_arrays(X, WORDS, classes=["cat", "dog"]), "row 2.*not 'eel'"),
    ("a count", lambda: from_arrays(X, WORDS, classes=3), r"list the names.*classes=\['no'"),
    ("twice", lambda: from_arrays(X, WORDS, classes=["cat", "cat"]), "'cat' stands there twice"),
    ("no word", lambda: from_arrays(X, [*WORDS[:-1], None]), "row 99 is None, a missing value"),
    (
        "word and number",
        lambda: from_arrays(X, np.array([3, *WORDS[1:]], dtype=object)),
        "row 0 is 3, of type int",
    ),
    ("one word", lambda: from_arrays(X, ["a"] * 100), "one class only, 'a'"),
    ("one-hot", lambda: from_arrays(X, np.eye(3)[Y]), r"numpy.argmax\(targets, axis=1\)"),
    ("one-hot words", lambda: from_arrays(X, np.eye(3)[Y].astype(str)), "not values of type"),
    ("no targets", lambda: from_arrays(X), "Expected targets beside inputs"),
]


@pytest.mark.parametrize(("call", "message"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_words_and_tokens_that_cannot_be_used(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_datasets_and_columns() -> None:
    pairs = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    columns = {"x": X, "animal": WORDS}
    _, data = from_arrays(X, Y, parties=2)
    for source, column, test in ((pairs, None, pairs), (columns, "animal", columns)):
        _, same = from_arrays(source, column, parties=2)  # type: ignore[arg-type]
        assert same.digest == data.digest
        _, tested = from_arrays(source, column, parties=2, test=test)  # type: ignore[arg-type]
        assert len(tested.test) == 100


def test_npz_of_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=X, y=WORDS)
    _, data = from_npz(tmp_path / "own.npz", parties=2)
    assert "(cat is 0" in data.notes[0]
    _, stated = from_npz(tmp_path / "own.npz", parties=2, classes=["cat", "dog", "eel"])
    assert stated.notes == ()
