"""A bank and a shop: both hold columns, and what is printed is what the statements promise."""

import math
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import privtrain as pt
from privtrain.command.party import _trainer
from privtrain.core.result import Row
from scenarios import bank_and_shop
from scenarios.bank_and_shop import ALONE, NOISED, POOLED, SHARED, Args
from tests.data.conftest import real_data

STUDY = Path(bank_and_shop.__file__).with_suffix(".toml")
QUICK = Args(mesh="threads", epochs=1)
FILES = real_data()


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIVTRAIN_DATA", raising=False)


def by_label(comparison: pt.Comparison) -> dict[str, Row]:
    return {row.label: row for row in comparison.rows}


def test_each_holds_other_columns_of_the_same_customers() -> None:
    _, data = bank_and_shop.load(QUICK)
    assert (data.parties, data.label_holder) == (("bank", "shop"), "bank")
    bank, shop = data.train["bank"], data.train["shop"]
    assert len(bank) == len(shop)
    assert shop.targets is None
    both = torch.cat([bank.inputs, shop.inputs], dim=1)
    assert both.equal(data.pooled().inputs)
    task, alone = bank_and_shop.bank_alone(data)
    assert alone.pooled().inputs.equal(bank.inputs)
    assert alone.test.inputs.equal(data.test.inputs[:, : bank.inputs.shape[1]])
    assert task.model()(alone.test.inputs).shape == (len(data.test), 2)


@pytest.mark.slow
def test_the_columns_of_adult_are_those_that_the_bank_names() -> None:
    directory = FILES
    if directory is None:
        pytest.skip("no data files: set PRIVTRAIN_DATA to the folder that holds adult/")
    _, data = bank_and_shop.load(Args(directory=directory))
    _, plain = pt.data.adult(directory, parties=1)
    assert data.encoder is not None and data.encoder.order is not None
    assert plain.test.inputs[:, list(data.encoder.order)].equal(data.test.inputs)
    # Nine kinds of work, fifteen occupations, and three numbers.
    assert data.train["bank"].inputs.shape[1] == 9 + 15 + 3
    assert data.train["shop"].inputs.shape[1] == 108 - 27


def test_the_study_of_the_parties_is_that_of_the_scenario() -> None:
    table = tomllib.loads(STUDY.read_text())
    assert _trainer(table, 2) == bank_and_shop.ways(Args())[SHARED]
    assert (table["split"], table["task"]) == ("columns", f"{STUDY.stem}.py:party")
    task, rows, test = bank_and_shop.party(None)
    assert rows is None
    _, of_the_shop, same = bank_and_shop.party(1)
    assert of_the_shop is not None and of_the_shop.targets is None
    assert same.inputs.equal(test.inputs)
    assert task.model()(test.inputs).shape == (len(test), 2)


@pytest.mark.slow
def test_every_way_is_in_the_table_and_only_noise_promises_anything(tmp_path: Path) -> None:
    comparison = bank_and_shop.main(replace(QUICK, out=tmp_path / "run"))
    rows = by_label(comparison)
    assert [row.error for row in rows.values()] == [None] * 4
    assert list(rows) == [POOLED, ALONE, NOISED, SHARED]
    assert {row.baseline for row in comparison.rows} == {POOLED}
    for label, row in rows.items():
        assert row.statement is not None
        assert math.isinf(row.statement.epsilon()) == (label != NOISED)
    lines = bank_and_shop.reading(comparison).splitlines()
    assert f"{rows[SHARED].accuracy:.1%} on shares" in lines[0]
    for reader in ("bank (computing-0)", "shop (computing-1)", "dealer"):
        assert any(line.startswith(f"  {reader}: ") for line in lines)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"report.html"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "engine"), [("threads", "ring64"), ("processes", "ring64"), ("threads", "spdz2k")]
)
def test_together_they_learn_what_pooled_steps_learn(mesh: str, engine: str) -> None:
    task, data = bank_and_shop.load(QUICK)
    trained = bank_and_shop.ways(replace(QUICK, engine=engine, epochs=5))
    runtimes = pt.Runtimes(mesh=bank_and_shop.MESHES[mesh])
    made = [pt.fit(trained[label], task, data, runtimes=runtimes) for label in (POOLED, SHARED)]
    pooled, shared = (one.predictor(data.test.inputs) for one in made)
    assert float((pooled - shared).abs().max()) < 0.01


def test_a_failed_row_is_named_and_not_read_as_a_figure() -> None:
    row = Row(trainer="mpc_sgd", label=SHARED, seed=0, error="PartyLostError: gone")
    broken = pt.Comparison(rows=(row,), card={})
    assert bank_and_shop.reading(broken) == "Failed, see the table: on shares."


@pytest.mark.slow
def test_three_commands_with_keys_train_it(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "privtrain", "party"]
    roles = ["party-0", "party-1", "dealer"]
    keys = [*command, "keys", "--out", str(tmp_path), "--roles", *roles]
    subprocess.run(keys, check=True, capture_output=True, timeout=60)
    meeting = [f"--rendezvous=tcp://127.0.0.1:{port}", "--world-size=2", f"--keys={tmp_path}"]
    whom = (["--rank", "0"], ["--rank", "1"], ["--role", "dealer"])
    started = [
        subprocess.Popen(
            [*command, *who, *meeting, str(STUDY)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for who in whom
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    accuracies = {part.split("accuracy ")[1].split()[0] for part in said[:2]}
    task, data = bank_and_shop.load(Args())
    pooled = pt.fit(bank_and_shop.ways(Args())[POOLED], task, data).predictor(data.test.inputs)
    right = float((pooled.argmax(dim=1) == data.test.labels).double().mean())
    assert len(accuracies) == 1
    assert float(accuracies.pop()) == pytest.approx(right, abs=0.01)
    assert all("mutual TLS 1.3" in part for part in said)
