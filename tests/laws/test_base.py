"""What the base installation can do; `make bare` runs this where no extra is installed.

Where extras are installed, their packages are made as good as missing.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.command.cli import main
from privtrain.core.extras import EXTRAS

ROOT = Path(pt.__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_but_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in EXTRAS:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


TRAINERS = {
    "sgd": pt.SGD(epochs=2),
    "dp_sgd": pt.DPSGD(epochs=1),
    "fedavg": pt.FedAvg(rounds=2),
    "fedavg, silos": pt.FedAvg(rounds=1, local=pt.DPSteps(pt.Gaussian(1.0, 1.1))),
    "pate": pt.PATE(teachers=6, queries=10, steps=pt.PlainSteps(), student=pt.PlainSteps()),
}


def test_a_comparison_is_made_attacked_saved_and_rendered(tmp_path: Path) -> None:
    task, data = pt.data.breast_cancer(parties=3)
    comparison = pt.compare(TRAINERS, task, data, attacks=[pt.LossThreshold()], epsilons=[3.0])
    assert {row.label for row in comparison.rows} == {*TRAINERS}
    assert [row.error for row in comparison.rows] == [None] * len(TRAINERS)
    assert comparison.card["configuration"]["runtimes"] == ["in-process", "processes"]
    pt.save(comparison, tmp_path)
    page = (tmp_path / "report.html").read_text()
    # Tables, and one sentence for all pictures.
    assert "What is promised to whom" in page and "<svg" not in page
    assert page.count("pip install &#34;privtrain[plots]&#34;") == 1
    assert "could not be drawn" not in page


def test_training_on_shares_needs_no_extra() -> None:
    task, data = pt.data.breast_cancer(parties=3)
    runtimes = pt.Runtimes(mesh=pt.Threads())
    comparison = pt.compare({"mpc": pt.MPCSGD(epochs=1)}, task, data, runtimes=runtimes)
    assert [row.error for row in comparison.rows] == [None, None]


@pytest.mark.slow
def test_the_command_trains_on_shares_without_extras(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--data", "breast_cancer", "--trainers", "mpc_sgd"]
    assert main([*words, "--set", "mpc_sgd.epochs=1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert [row["error"] for row in rows] == [None, None]
    capsys.readouterr()


def test_the_engine_that_needs_an_extra_says_so_in_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(
        'data = "breast_cancer"\n[trainers.sgd]\nepochs = 1\n'
        '[trainers.mpc_sgd]\nengine = { kind = "CrypTen" }\n'
    )
    assert main(["compare", str(study), "--out", str(tmp_path / "run")]) == 1
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())["rows"]
    errors = {row["label"]: row["error"] for row in rows}
    assert errors["sgd"] is None
    assert 'pip install "privtrain[crypten]"' in errors["mpc_sgd"]
    assert "pip install --no-deps crypten==0.4.1" in errors["mpc_sgd"]
    capsys.readouterr()


@pytest.mark.parametrize("runtime", ["flower-grid", "flower-ray"])
def test_a_runtime_that_needs_an_extra_is_refused_before_training(
    runtime: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--runtime", runtime, "--out", str(tmp_path / "run")]) == 1
    assert 'pip install "privtrain[flower]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_scattering_transform_says_what_it_needs() -> None:
    import torch

    from privtrain.data.scattering import scattering_features

    with pytest.raises(pt.UnsupportedError, match=r"kymatio.*privtrain\[scattering\]"):
        scattering_features(torch.zeros(1, 1, 8, 8))


def test_every_public_name_can_be_looked_at() -> None:
    for name in pt.__all__:
        getattr(pt, name)


def test_no_extra_is_imported_where_it_is_not_asked_for() -> None:
    """Of the packages that stand there, none is loaded by training in this process."""
    program = (
        "import sys, privtrain as pt\n"
        "task, data = pt.data.breast_cancer(parties=3)\n"
        "pt.compare({'a': pt.FedAvg(rounds=1), 'b': pt.DPSGD(epochs=0.1)}, task, data)\n"
        f"print([name for name in {sorted(EXTRAS)} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
