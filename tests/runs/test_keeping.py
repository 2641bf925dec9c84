"""Models on disk: they answer as before, and nothing in a folder is believed or run."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import privtrain as pt
from privtrain.core.errors import DataError, PrivtrainError, UnsupportedError
from privtrain.core.result import TrainResult
from privtrain.runs.keeping import CARD, MODEL, README, STATEMENT, WEIGHTS
from tests.disk import little_space

TASK, DATA = pt.data.breast_cancer(parties=3)
HERE = pt.Runtimes(star=pt.InProcess(), mesh=pt.Processes())
FEW = {"epochs": 1.0}
QUICK: dict[str, Any] = {
    "sgd": pt.SGD(epochs=1),
    "dp_sgd": pt.DPSGD(**FEW),
    "fedavg": pt.FedAvg(rounds=2),
    "fedavg, private": pt.FedAvg(rounds=2, release=pt.Release(pt.Gaussian(1.0, 1.0))),
    "pate": pt.PATE(
        teachers=5, queries=20, release=pt.Release(pt.GNMax(sigma=4.0), finish=pt.ARGMAX)
    ),
}


@cache
def trained(name: str) -> TrainResult:
    return pt.fit(QUICK[name], TASK, DATA, runtimes=HERE)


@pytest.mark.parametrize("name", QUICK)
def test_what_trainers_make_answers_alike_to_the_bit(tmp_path: Path, name: str) -> None:
    result = trained(name)
    pt.save_model(result, tmp_path / "m")
    model = pt.load_model(tmp_path / "m")
    assert torch.equal(model(DATA.test.inputs), result.predictor(DATA.test.inputs))
    assert model.statement == result.statement
    assert model.card == json.loads(json.dumps(result.card))
    assert model.card["public_seeds"] == [0]
    assert model.card["configuration"]["settings"]["kind"] == type(QUICK[name]).__name__
    assert model.notes == result.notes


@pytest.mark.slow
def test_a_model_of_mpc_comes_back(tmp_path: Path) -> None:
    trainer = pt.MPCSGD(epochs=1, computing_parties=2)
    result = pt.fit(trainer, TASK, DATA, runtimes=HERE)
    pt.save_model(result, tmp_path / "m")
    model = pt.load_model(tmp_path / "m")
    assert torch.equal(model(DATA.test.inputs), result.predictor(DATA.test.inputs))
    assert model.statement == result.statement


class Own(nn.Module):
    """Buffers, dropout, a scalar, a table of random features that is no buffer, tied layers."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(30, 8, dtype=dtype), nn.BatchNorm1d(8, dtype=dtype)
        self.second, self.last = nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 2, dtype=dtype)
        self.third = nn.Linear(8, 8, dtype=dtype)
        self.third.weight = self.second.weight
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.features = torch.randn(8, dtype=dtype)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.first(inputs.to(self.first.weight.dtype))) * self.features
        hidden = self.drop(self.third(torch.tanh(self.second(hidden))))
        outputs: Tensor = self.last(hidden) * self.scale
        return outputs.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [False, True])
def test_an_own_model_comes_back_with_what_made_it(
    tmp_path: Path, dtype: torch.dtype, value: bool
) -> None:
    made: Any = Own(dtype) if value else lambda: Own(dtype)
    result = pt.fit(pt.SGD(epochs=2), replace(TASK, model=made), DATA, seed=3)
    module: Any = getattr(result.predictor, "module")  # noqa: B009
    assert not torch.equal(module.norm.running_mean, torch.zeros(8, dtype=dtype))
    pt.save_model(result, tmp_path / "m")
    with pytest.raises(DataError, match=r"load_model\(folder, model=\.\.\.\)") as raised:
        pt.load_model(tmp_path / "m")
    assert ("Own" if value else "<lambda>") in str(raised.value)
    model = pt.load_model(tmp_path / "m", model=made)
    assert torch.equal(model(DATA.test.inputs), result.predictor(DATA.test.inputs))


def test_another_model_is_refused_by_names_and_shapes(tmp_path: Path) -> None:
    pt.save_model(trained("sgd"), tmp_path / "m")
    with pytest.raises(DataError, match=r"'0\.weight' of shape \(2, 31\) and not \(2, 30\)"):
        pt.load_model(tmp_path / "m", model=pt.data.LogisticRegression(31, 2))
    with pytest.raises(DataError, match=r"Expected model= .*lacks '0\.weight'"):
        pt.load_model(tmp_path / "m", model=lambda: nn.Linear(30, 2))


def test_a_kept_model_can_be_kept_again(tmp_path: Path) -> None:
    result = trained("sgd")
    pt.save_model(result, tmp_path / "a")
    again = replace(result, predictor=pt.load_model(tmp_path / "a"))
    pt.save_model(again, tmp_path / "b")
    for name in (WEIGHTS, STATEMENT, CARD):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_predictor_without_tensors_is_refused(tmp_path: Path) -> None:
    result = replace(trained("sgd"), predictor=lambda inputs: inputs[:, :2])
    with pytest.raises(UnsupportedError, match="no torch model"):
        pt.save_model(result, tmp_path / "m")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------ what is published


def test_nothing_private_lies_in_the_folder(tmp_path: Path) -> None:
    hidden = replace(DATA, published=False, public_rows=None)
    trainer = pt.DPSGD(epochs=1.0, sampling_rate=0.2)
    result = pt.fit(trainer, TASK, hidden, folder=tmp_path / "run")
    assert "training_loss" in result.history.unprotected
    pt.save_model(result, tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        *(CARD, MODEL, README, STATEMENT, WEIGHTS)
    }
    texts = "".join(
        (tmp_path / "m" / name).read_text() for name in (CARD, MODEL, README, STATEMENT)
    )
    assert hidden.digest not in texts
    assert "training_loss" not in texts and "party-0" not in texts
    data = json.loads((tmp_path / "m" / CARD).read_text())["data"]
    assert data["test_rows"] == data["validation_rows"] == "not public"
    # Under the key of the run's folder, which is not in the model's.
    assert len(data["keyed_digest"]) == 64


def test_without_a_folder_no_digest_of_private_rows_is_written() -> None:
    hidden = replace(DATA, published=False)
    card = pt.fit(pt.SGD(epochs=1), TASK, hidden).card
    assert "keyed_digest" not in json.dumps(card)
    assert hidden.digest not in json.dumps(card)


def test_a_result_still_pickles_and_holds_no_row() -> None:
    result = trained("dp_sgd")
    again = pickle.loads(pickle.dumps(replace(result, members=None)))
    assert again.statement == result.statement
    assert again.card == result.card and again.recipe == result.recipe


# -------------------------------------------------------------------------------- whole or nothing


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, before: bool) -> None:
    folder = tmp_path / "m"
    if before:
        pt.save_model(trained("sgd"), folder)
    with little_space(500), pytest.raises(PrivtrainError, match="full"):
        pt.save_model(trained("dp_sgd"), folder, force=True)
    assert os.listdir(tmp_path) == (["m"] if before else [])
    if before:
        assert pt.load_model(folder).statement == trained("sgd").statement


def test_a_model_is_overwritten_by_force_alone(tmp_path: Path) -> None:
    pt.save_model(trained("sgd"), tmp_path / "m")
    with pytest.raises(DataError, match="force"):
        pt.save_model(trained("dp_sgd"), tmp_path / "m")
    assert pt.load_model(tmp_path / "m").statement == trained("sgd").statement
    pt.save_model(trained("dp_sgd"), tmp_path / "m", force=True)
    assert pt.load_model(tmp_path / "m").statement == trained("dp_sgd").statement


# ------------------------------------------------------------------------------- untrusted folders


@pytest.mark.parametrize("name", [WEIGHTS, STATEMENT, CARD, MODEL])
@pytest.mark.parametrize("how", ["torn", "changed", "missing", "link", "empty"])
def test_a_torn_or_changed_file_is_named(tmp_path: Path, name: str, how: str) -> None:
    folder = pt.save_model(trained("dp_sgd"), tmp_path / "m")
    path = folder / name
    content = path.read_bytes()
    if how == "torn":
        path.write_bytes(content[:-20])
    elif how == "changed" and name != MODEL:
        changed = bytearray(content)
        changed[-9] ^= 1
        path.write_bytes(changed)
    elif how == "changed":
        path.write_bytes(content.replace(b'"features": 30', b'"features": 31'))
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        (tmp_path / "elsewhere").write_bytes(content)
        if how == "link":
            path.symlink_to(tmp_path / "elsewhere")
    if (how, name) == ("missing", MODEL):
        name = "There is no model"
    with pytest.raises(DataError, match=name):
        pt.load_model(folder)


class Boom:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (exec, ("raise SystemExit('code of the folder was run')",))


def resealed(folder: Path, **changed: Any) -> None:
    """Writes other entries into model.json, with digests that fit the files."""
    import hashlib

    about = {**json.loads((folder / MODEL).read_text()), **changed}
    about["sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (WEIGHTS, STATEMENT, CARD)
    }
    (folder / MODEL).write_text(json.dumps(about))


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    (folder / WEIGHTS).write_bytes(pickle.dumps(Boom()))
    (folder / "model.pt").write_bytes(pickle.dumps(Boom()))
    (folder / "privtrain.py").write_text("raise SystemExit('imported')")
    resealed(folder)
    with pytest.raises(DataError, match="weights cannot be read"):
        pt.load_model(folder)


@pytest.mark.parametrize(
    "factory",
    [
        {"name": "os.system", "arguments": {"command": "true"}},
        {"name": "builtins:exec", "arguments": {"sizes": [1, 2]}},
        {"name": "MLP", "arguments": {"sizes": ["__import__('os')", 2]}},
        "MLP",
        None,
    ],
)
def test_a_factory_of_a_folder_is_one_of_privtrain(tmp_path: Path, factory: object) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    resealed(folder, factory=factory)
    with pytest.raises(DataError, match=r"model\.json"):
        pt.load_model(folder)


def test_a_model_of_any_size_is_not_made(tmp_path: Path) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    factory = {
        "name": "LogisticRegression",
        "arguments": {"features": 10**9, "classes": 10**6, "dtype": "float32", "flatten": False},
    }
    resealed(folder, factory=factory)
    # Of four petabytes: refused by its shapes, before any memory is asked for.
    with pytest.raises(DataError, match=r"'0\.weight' of shape"):
        pt.load_model(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 99},
        {"schema": "2"},
        {"sha256": {}},
        {"tensors": {"../../etc/passwd": {"shape": [1], "dtype": "float32"}}},
        {"tensors": 7},
        {"inputs": {"shape": [30]}},
        {"seed": "0"},
    ],
)
def test_what_no_version_writes_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    about = json.loads((folder / MODEL).read_text())
    (folder / MODEL).write_text(json.dumps({**about, **changed}))
    with pytest.raises(DataError):
        pt.load_model(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"statement": None},
        {"statement": {"guarantees": [], "input_privacy": [], "caveats": [[1]]}},
        {"notes": 3},
        {"statement": {"guarantees": [{"epsilon": 1.0}], "input_privacy": [], "caveats": []}},
    ],
)
def test_a_statement_that_none_is_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    said = json.loads((folder / STATEMENT).read_text())
    (folder / STATEMENT).write_text(json.dumps({**said, **changed}))
    resealed(folder)
    with pytest.raises(DataError, match=r"model\.json or a file beside it"):
        pt.load_model(folder)


def test_a_type_that_the_weights_have_not_is_refused(tmp_path: Path) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    tensors = json.loads((folder / MODEL).read_text())["tensors"]
    tensors["0.bias"]["dtype"] = "complex64"
    resealed(folder, tensors=tensors)
    with pytest.raises(DataError, match=r"model\.json"):
        pt.load_model(folder)


def test_nested_json_ends_in_a_sentence(tmp_path: Path) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    (folder / MODEL).write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"model\.json"):
        pt.load_model(folder)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = pt.save_model(trained("sgd"), tmp_path / "m")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(DataError, match="plain file"):
        pt.load_model(folder)


# ------------------------------------------------------------------------------------------- use


def test_classes_are_told_by_their_names(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    rows = [(n % 40, "ill" if n % 40 > 20 else "well") for n in range(160)]
    table.write_text("age,y\n" + "".join(f"{age},{label}\n" for age, label in rows))
    task, data = pt.data.from_csv(table, ranges={"age": (0, 40)}, parties=2)
    result = pt.fit(pt.SGD(epochs=200, learning_rate=2.0), task, data)
    model = pt.load_model(pt.save_model(result, tmp_path / "m"))
    (tmp_path / "new.csv").write_text("id,age\n1,3\n2,38\n")
    assert model.predict(tmp_path / "new.csv") == ["well", "ill"]
    with pytest.raises(DataError, match="lacks 1 of the 1 columns"):
        (tmp_path / "bad.csv").write_text("id\n1\n")
        model.predict(tmp_path / "bad.csv")


@pytest.mark.parametrize("columns", [1, 3])
def test_values_are_not_taken_for_classes(tmp_path: Path, columns: int) -> None:
    inputs = torch.rand(60, 4)
    rows = pt.Rows(inputs, inputs.sum(1, keepdim=True).repeat(1, columns))
    data = pt.FederatedData(train={"a": rows}, test=rows.take(torch.arange(20)))
    task = pt.Task(
        model=lambda: nn.Linear(4, columns),
        loss=lambda outputs, targets: ((outputs - targets) ** 2).mean(1),
        metrics={"mse": lambda outputs, targets: float(((outputs - targets) ** 2).mean())},
    )
    pt.save_model(pt.fit(pt.SGD(epochs=1), task, data), tmp_path / "m")
    model = pt.load_model(tmp_path / "m", model=task.model)
    assert model(inputs).shape == (60, columns)
    with pytest.raises(DataError, match="no classes apart"):
        model.predict(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_yes_or_no_labels_are_not_taken_for_one_class(tmp_path: Path, dtype: torch.dtype) -> None:
    inputs = torch.rand(60, 4)
    rows = pt.Rows(inputs, (inputs[:, :3] > 0.5).to(dtype))
    data = pt.FederatedData(train={"a": rows}, test=rows.take(torch.arange(20)))
    loss = nn.functional.binary_cross_entropy_with_logits
    task = pt.Task(
        model=lambda: nn.Linear(4, 3),
        loss=lambda outputs, targets: loss(outputs, targets.float(), reduction="none").mean(1),
        metrics={"accuracy": pt.accuracy},
    )
    pt.save_model(pt.fit(pt.SGD(epochs=1), task, data), tmp_path / "m")
    model = pt.load_model(tmp_path / "m", model=task.model)
    with pytest.raises(DataError, match="no classes apart"):
        model.predict(inputs)


def test_an_unknown_token_is_no_traceback(tmp_path: Path) -> None:
    tokens = torch.arange(120).reshape(60, 2) % 50

    def make() -> nn.Module:
        return nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(8, 2))

    options: Any = {"model": make, "classes": 2, "parties": 2}
    task, data = pt.data.from_arrays(tokens, torch.arange(60) % 2, **options)
    pt.save_model(pt.fit(pt.SGD(epochs=1), task, data), tmp_path / "m")
    model = pt.load_model(tmp_path / "m", model=make)
    assert len(model.predict([[1, 2], [3, 4]])) == 2
    with pytest.raises(DataError, match="row 1, counted from 0, which holds 50; "):
        model.predict([[1, 2], [3, 50]])


def test_a_single_logit_says_one_of_two_classes() -> None:
    from privtrain.runs.keeping import classes_of

    encoder = replace(DATA.encoder, classes=("no", "yes"))  # type: ignore[type-var]
    assert classes_of(torch.tensor([[-1.0], [2.0]]), encoder) == ["no", "yes"]
    assert classes_of(torch.tensor([-1.0, 2.0]), None) == ["0", "1"]
    with pytest.raises(DataError, match="name no class"):
        classes_of(torch.zeros(2, 3), encoder)


def test_the_print_is_short(tmp_path: Path) -> None:
    model = pt.load_model(pt.save_model(trained("dp_sgd"), tmp_path / "m"))
    assert len(repr(model)) < 500
    assert "as the folder says" in repr(model)
