"""The command line, as a user calls it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from privtrain.command.cli import FAILED, INTERRUPTED, MISUSED, main
from privtrain.command.study_file import read_study
from privtrain.core.folders import locked_folder
from privtrain.data.loading import load
from privtrain.runs.keeping import load_model
from tests.runs.folders import contents

QUICK = ["compare", "--trainers", "sgd", "--data", "breast_cancer", "--parties", "3"]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "privtrain", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compare_prints_a_table_and_says_where_the_report_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "sgd" in out and f"The report lies in {tmp_path / 'run' / 'report.html'}" in out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {
        *("comparison.json", "table.csv", "table.tex", "report.html", "study.toml", "rows")
    }


@pytest.mark.slow
def test_a_run_is_not_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    before = (tmp_path / "run" / "comparison.json").read_text()
    assert main(words) == MISUSED
    err = capsys.readouterr().err
    assert "--resume" in err and "--force" in err
    assert (tmp_path / "run" / "comparison.json").read_text() == before
    assert main([*words, "--force"]) == 0
    assert main([*words, "--resume"]) == 0


@pytest.mark.slow
def test_json_is_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--seeds", "2", "--json", "--out", str(tmp_path / "run")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["seed"] for row in printed["rows"]] == [0, 1]
    assert printed == json.loads((tmp_path / "run" / "comparison.json").read_text())


@pytest.mark.slow
def test_the_saved_study_repeats_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["compare", "--trainers", "sgd", "fedavg", "--data", "breast_cancer", "--parties", "3"]
    words += ["--baseline", "fedavg", "--keep-models"]
    assert main([*words, "--out", str(first)]) == 0
    assert len(list(first.glob("rows/*/model/model.safetensors"))) == 2
    assert main(["compare", str(first / "study.toml"), "--out", str(second)]) == 0
    rows = [
        json.loads((folder / "comparison.json").read_text())["rows"] for folder in (first, second)
    ]
    assert [row["accuracy"] for row in rows[0]] == [row["accuracy"] for row in rows[1]]
    assert all(row["baseline"] == "fedavg" for row in rows[0] + rows[1])
    assert (first / "study.toml").read_text() == (second / "study.toml").read_text()


@pytest.mark.slow
def test_own_data_and_own_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, model = tmp_path / "own.csv", tmp_path / "own_model_cli.py"
    lines = [f"{i % 7 / 7},{i % 5 / 5},{int(i % 7 > 3)}" for i in range(200)]
    table.write_text("\n".join(["a,b,outcome", *lines]))
    model.write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n")
    words = ["compare", "--data", str(table), "--label", "outcome", "--trainers", "sgd", "dp_sgd"]
    words += ["--model", f"{model}:make", "--epsilon", "5", "--delta", "1e-3"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    document = json.loads((tmp_path / "run" / "comparison.json").read_text())
    private = document["rows"][1]
    assert private["epsilon_asked"] == 5
    assert private["statement"]["guarantees"][0]["epsilon"] <= 5


@pytest.mark.slow
def test_failed_rows_give_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--data", "breast_cancer", "--trainers", "sgd", "pate"]
    code = main([*words, "--parties", "150", "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert code == FAILED
    assert "failed" in out and "teachers=100" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--data", "digit"], "Expected data='digit'"),
        (
            ["compare", "--trainers", "dpsgd"],
            "Expected trainer='dpsgd' to be one of dp_sgd, fedavg",
        ),
        (["compare", "--attacks", "none"], "Expected attack='none'"),
        (["compare", "--attacks", "one_run"], "Expected canaries=0 >= 100"),
        (["compare", "--canaries", "-1"], "Expected canaries=-1"),
        (["compare", "--baseline", "pooled"], "Expected baseline='pooled'"),
        (["compare", "--trainers", "sgd", "--secure"], "Expected secure=True"),
        (["fit", "--trainer", "pate", "--secure"], "Expected secure=True"),
        (["compare", "--epsilon", "-1"], "Expected epsilon=-1.0 > 0"),
        (["compare", "--seeds", "0"], "Expected seeds=0"),
        (["compare", "--delta", "2"], "Expected delta=2.0"),
        (["compare", "missing.toml"], "Cannot read the study file"),
        (["report", "missing"], "missing"),
        (["compare", "--data", "digits", "--device", "gpu9"], "device"),
        (["compare", "--data", "digits", "--trainers"], "Expected trainers={} to name some of"),
        (["compare", "--data", "mine.csv"], "Could not read data='mine.csv'"),
        (["compare", "--data", "digits", "--model", "mine.py:make"], "no file 'mine.py'"),
        (["compare", "--data", "digits", "--epsilon", "3", "3"], "Expected epsilons=[3.0, 3.0]"),
        (["compare", "missing.toml", "--seeds", "3", "--label", "a"], "without --seeds, --label"),
    ],
)
def test_bad_arguments_give_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "run")] if words[0] == "compare" else []
    assert main([*words, *out]) == MISUSED
    assert message in capsys.readouterr().err


def test_columns_and_gaps_are_read_by_rules_that_the_study_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{'' if n % 9 == 0 else n % 60};{n};{n % 2}" for n in range(90)]
    (tmp_path / "own.csv").write_text("\n".join(["age;number;y", *rows]))
    words = ["compare", "--data", str(tmp_path / "own.csv"), "--trainers", "sgd", "--parties", "2"]
    words += ["--attacks", "--runtime", "in-process", "--out", str(tmp_path / "run")]
    assert main(words) == MISUSED
    assert "Give delimiter=';'" in capsys.readouterr().err
    rules = ["--delimiter", ";", "--drop", "number", "--ranges", "age=0:60"]
    assert main([*words, *rules]) == MISUSED
    assert "state missing='drop'" in capsys.readouterr().err
    assert main([*words, *rules, "--missing", "age=indicator"]) == 0
    study = read_study(tmp_path / "run" / "study.toml")
    assert study.data_options == {
        "drop": ["number"],
        "ranges": {"age": [0.0, 60.0]},
        "missing": {"age": "indicator"},
        "delimiter": ";",
        "parties": 2,
    }
    assert load(study.data, **study.data_options)[1].test.inputs.shape[1] == 2


@pytest.mark.slow
def test_canaries_are_planted_and_audited_and_noise_is_secure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--data", "breast_cancer", "--trainers", "dp_sgd", "--canaries", "120"]
    words += ["--attacks", "one_run", "--secure", "--runtime", "in-process"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "ε at least" in shown and "ceiling" in shown
    document = json.loads((tmp_path / "run" / "comparison.json").read_text())
    (row,) = document["rows"]
    metrics, statement = row["leakage"][0]["metrics"], row["statement"]
    assert metrics["guesses"] == 100 and metrics["epsilon_lower_bound"] <= metrics["ceiling"]
    assert "float noise: research use" not in statement["caveats"]
    assert document["study"]["canaries"] == 120
    assert document["study"]["trainers"]["dp_sgd"]["release"]["mechanism"]["secure"] is True
    again = ["compare", str(tmp_path / "run" / "study.toml"), "--out", str(tmp_path / "again")]
    for option in (["--secure"], ["--canaries", "5"]):
        assert main([*again, *option]) == MISUSED
        assert f"without {option[0]}" in capsys.readouterr().err
    assert main(again) == 0
    repeated = json.loads((tmp_path / "again" / "comparison.json").read_text())["rows"][0]
    assert repeated["leakage"] == row["leakage"]


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main([command, "--data", "breast_cancer", "--out", str(out)]) == MISUSED
        err = capsys.readouterr().err
        assert f"Cannot write to out={str(out)!r}" in err and "that you may write to" in err


def test_what_cannot_be_resumed_does_not_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", "--trainer", "sgd", "--data", "breast_cancer", "--out", str(tmp_path)]
    (tmp_path / "statement.json").write_text("{}")
    assert main(words) == MISUSED
    assert "--resume" not in capsys.readouterr().err

    def stop(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("privtrain.runs.fitting.fit", stop)
    assert main([*words, "--force"]) == INTERRUPTED
    err = capsys.readouterr().err
    assert "--resume" not in err and "Nothing of it is kept" in err


def test_a_model_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "own_model_that_fails.py"
    model.write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n")
    words = ["fit", "--data", "digits", "--model", f"{model}:make", "--out", str(tmp_path / "run")]
    assert main(words) == MISUSED
    assert "take inputs of shape (2, 64)" in capsys.readouterr().err


FAILS_LATE = """
import sys
from torch import nn

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(30, 2)

    def forward(self, x):
        if self.training and len(x) > 4:
            self.look_up_a_row()
        return self.inner(x)

    def look_up_a_row(self):
        raise KeyError("age")

def leave():
    sys.exit("no licence")
"""


def test_an_own_error_at_a_party_brings_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "own_model_that_fails_late.py"
    model.write_text(FAILS_LATE)
    words = ["fit", "--trainer", "fedavg", "--data", "breast_cancer", "--out", str(tmp_path / "o")]
    assert main([*words, "--model", f"{model}:Late"]) == FAILED
    *before, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("privtrain: PartyLostError: ")
    assert "KeyError('age')" in last
    assert any("in look_up_a_row" in line for line in before)


def test_own_code_that_ends_the_process_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "own_model_that_leaves.py"
    model.write_text(FAILS_LATE)
    words = ["fit", "--data", "breast_cancer", "--out", str(tmp_path / "o")]
    assert main([*words, "--model", f"{model}:leave"]) == MISUSED
    assert "raised SystemExit: no licence" in capsys.readouterr().err


PEEK = """
import torch
from torch import nn


class Peek(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(30, 2)

    def forward(self, x):
        self.peek = x.detach().clone()
        return self.inner(x)

    def get_extra_state(self):
        return self.peek

    def set_extra_state(self, state):
        self.peek = state


net = nn.Linear(30, 2)
"""


@pytest.mark.slow
def test_a_saved_model_holds_parameters_and_buffers_alone(tmp_path: Path) -> None:
    from safetensors.torch import load

    (tmp_path / "peeking.py").write_text(PEEK)
    words = ["fit", "--trainer", "dp_sgd", "--data", "breast_cancer"]
    for name, keys in {"Peek": {"inner.weight", "inner.bias"}, "net": {"weight", "bias"}}.items():
        out = tmp_path / name
        model = f"{tmp_path / 'peeking.py'}:{name}"
        assert main([*words, "--model", model, "--out", str(out)]) == 0
        assert set(load((out / "model/model.safetensors").read_bytes())) == keys


def test_unknown_words_give_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", "--trainer-names", "dpsgd"])
    assert exit_.value.code == MISUSED


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("privtrain.runs.rows.fit", stop)
    words = [*QUICK, "--out", str(tmp_path / "run")]
    assert main(words) == INTERRUPTED
    advice = capsys.readouterr().err.strip().partition("Go on with: privtrain ")[2]
    monkeypatch.undo()
    assert main(words) == MISUSED  # what was started is not lost by accident
    assert main(shlex.split(advice)) == 0


@pytest.mark.slow
def test_report_renders_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main([*QUICK, "--out", str(folder)]) == 0
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_fit_writes_model_and_statement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    words = ["fit", "--trainer", "dp_sgd", "--data", "breast_cancer", "--epsilon", "2", "--secure"]
    assert main([*words, "--out", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "float noise: research use" not in printed["statement"]["caveats"]
    assert printed["statement"]["guarantees"][0]["epsilon"] <= 2
    assert (folder / "statement.json").exists()
    model = load_model(folder)
    assert model.statement.epsilon() == printed["statement"]["guarantees"][0]["epsilon"]
    settings = printed["card"]["configuration"]["settings"]
    assert settings["epochs"] > 0 and settings["release"]["mechanism"]["secure"] is True
    assert printed["card"]["public_seeds"] == [0] and printed["card"]["versions"]["torch"]
    assert printed["epsilon_asked"] == 2.0


def test_fit_draws_from_the_system_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--trainer", "dp_sgd", "--data", "breast_cancer", "--runtime", "in-process"]
    models, printed = [], []
    for number, entropy in enumerate(["", "", "seeded", "seeded"]):
        folder = tmp_path / str(number)
        chosen = ["--entropy", entropy] if entropy else []
        assert main([*words, *chosen, "--out", str(folder)]) == 0
        printed.append(capsys.readouterr().out)
        models.append((folder / "model/model.safetensors").read_bytes())
        document = json.loads((folder / "statement.json").read_text())
        assert document["entropy"] == (entropy or "system")
        assert set(document["unprotected"]) == {"accuracy", "metrics", "cost.seconds"}
    assert models[0] != models[1]
    assert models[2] == models[3]
    # The same weights start every run: it is the noise that differs.
    for text in printed[:2]:
        assert "simulated" not in text
        assert "if the sample of each step is secret" in text
    for text in printed[2:]:
        assert "if simulated: void if the seed is known" in text
        assert "secret" not in text
    assert all("by Gaussian mechanism" in text for text in printed)


DRAWN = """
from dataclasses import dataclass
import privtrain as pt

@dataclass(frozen=True, kw_only=True)
class Drawn(pt.FedAvg):
    rounds: int = 2
    sampling: pt.Poisson = pt.Poisson(0.1, 2.0)
    local: pt.PlainSteps = pt.PlainSteps(epochs=1)
    release: pt.Release = pt.Release(pt.Gaussian(1.0, 1.0))
"""


def test_the_statement_of_a_model_names_nobody_who_was_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_drawn.py").write_text(DRAWN)
    words = ["fit", "--trainer", f"{tmp_path / 'own_drawn.py'}:Drawn", "--data", "breast_cancer"]
    words += ["--parties", "20", "--delta", "1e-3", "--runtime", "in-process"]
    costs = []
    for number in range(2):
        assert main([*words, "--out", str(tmp_path / str(number))]) == 0
        text = (tmp_path / str(number) / "statement.json").read_text()
        assert "party-" not in text + capsys.readouterr().out
        cost = json.loads(text)["cost"]
        costs.append([cost[name] for name in ("bytes_sent", "bytes_sent_by_party", "rounds")])
    assert costs[0] == costs[1]
    assert set(costs[0][1]) == {"aggregator", "all clients"}


@pytest.mark.slow
def test_a_comparison_has_one_key_beside_what_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["compare", "--trainers", "sgd", "dp_sgd", "--data", "breast_cancer"]
    assert main([*words, "--runtime", "in-process", "--out", str(folder)]) == 0
    keys = list(folder.rglob("digest.key"))
    assert [key.relative_to(folder) for key in keys] == [Path("private/digest.key")]
    assert keys[0].stat().st_mode & 0o777 == 0o600
    _, data = load("breast_cancer")
    for path in folder.rglob("*"):
        if path.is_file():
            assert data.digest.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_help_is_worth_reading() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("compare", "fit", "report", "party"):
        assert command in shown.stdout
    assert "Example: privtrain compare" in run("compare", "--help").stdout


MINE = """
from dataclasses import dataclass, field

from privtrain.core.observers import PUBLIC


@dataclass(frozen=True, kw_only=True)
class Mine:
    name: str = field(default="mine", init=False)
    observer: object = field(default=PUBLIC, init=False)
    needs_messages: bool = field(default=False, init=False)

    def score(self, target, candidates, *, seed):
        raise ValueError("no view of it")
"""


def test_an_attack_that_fails_costs_no_table_or_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, "--attacks", "loss_threshold", "mine.py:Mine"]
    assert main([*words, "--out", "kept"]) == FAILED
    out = " ".join(capsys.readouterr().out.split())
    assert "mine (public) failed" in out and "ValueError: no view of it" in out and "%" in out
    assert "in score" in (tmp_path / "kept" / "report.html").read_text()
    assert main([*words, "--out", "raised", "--errors", "raise"]) == FAILED
    assert "in score" in capsys.readouterr().err


def test_files_with_codes_and_gaps_are_refused_or_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{n % 7},{900000000000207008 + n % 2}" for n in range(60)]
    words = ["fit", "--trainer", "sgd", "--data", "t.csv", "--parties", "2"]
    Path("t.csv").write_text("\n".join(["a,y", *rows]))
    assert main([*words, "--out", "codes"]) == 0
    assert "900000000000207009 is 1" in capsys.readouterr().out
    Path("t.csv").write_text("\n".join(["a,y", *(",".join(row.split(",")[::-1]) for row in rows)]))
    assert main([*words, "--out", "features"]) == MISUSED
    assert "900000000000207008 and 900000000000207009 become one" in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


def changes(words: list[str], folder: Path) -> bool:
    """Whether a refused call of the command line changes anything in a folder."""
    before = contents(folder)
    assert main(words) == MISUSED
    return contents(folder) != before


def test_a_refused_resume_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    resume = ["--out", str(folder), "--resume"]
    assert main([*QUICK, "--out", str(folder)]) == 0
    model = tmp_path / "own_model_refused.py"
    model.write_text("from torch import nn\ndef make(): return nn.Linear(30, 2)\n")
    for words, said in (
        (["--delta", "1e-6"], "other delta"),
        (["--parties", "4"], "other data"),
        (["--attacks"], "other attacks"),
        (["--model", f"{model}:make"], "other initial model"),
        (["--seeds", "0"], "seeds=0"),
        (["--trainers", "dpsgd"], "dpsgd"),
    ):
        capsys.readouterr()
        assert not changes([*QUICK, *words, *resume], folder), words
        assert said in capsys.readouterr().err
    with locked_folder(folder):
        assert not changes([*QUICK, *resume], folder)
        assert not changes([*QUICK, "--out", str(folder), "--force"], folder)
        assert not changes(["report", str(folder)], folder)
    capsys.readouterr()
    # What is not refused may add to it.
    assert main([*QUICK, "--seeds", "2", *resume]) == 0
    assert "seeds = 2" in (folder / "study.toml").read_text()


@pytest.mark.parametrize("name", ["study.toml", "comparison.json", "rows/comparison.id"])
@pytest.mark.parametrize("damage", ["cut", "newer", "bytes"])
def test_damaged_and_newer_files_are_refused_by_their_names(
    name: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished(), tmp_path / "run")
    path = tmp_path / "run" / name
    text = path.read_text()
    assert re.search(r'"?schema"?( =|:) 2', text)
    if damage == "newer":
        path.write_text(re.sub(r'("?schema"?)( =|:) 2', r"\1\2 3", text))
    else:
        path.write_bytes(b"\xff\xfe" if damage == "bytes" else text.encode()[:45])
    words = [*QUICK, "--out", str(tmp_path / "run"), "--resume"]
    assert not changes(words, tmp_path / "run")
    said = capsys.readouterr().err
    assert path.name in said
    assert ("newer version" in said) == (damage == "newer")


@cache
def finished() -> Path:
    """A finished comparison, made once."""
    folder = Path(tempfile.mkdtemp())
    assert main([*QUICK, "--out", str(folder)]) == 0
    return folder


def test_a_comparison_does_not_go_on_where_a_fit_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "statement.json").write_text("{}")
    assert not changes([*QUICK, "--out", str(tmp_path), "--resume"], tmp_path)
    assert "holds a fit" in capsys.readouterr().err


def test_force_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    shutil.copytree(finished(), tmp_path / "run")
    words = ["fit", "--trainer", "sgd", "--data", "breast_cancer", "--out", str(tmp_path / "run")]
    assert main([*words, "--force"]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"statement.json", "model", "private"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of files")
def test_a_full_disk_leaves_no_torn_model(tmp_path: Path) -> None:
    program = (
        "import sys; from privtrain.command.cli import main; "
        "from tests.disk import little_space\n"
        "with little_space(1_000): sys.exit(main(sys.argv[1:]))"
    )
    words = ["fit", "--trainer", "sgd", "--data", "digits", "--runtime", "in-process"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == FAILED
    assert "is full" in done.stderr and "Traceback" not in done.stderr
    assert [
        path for path in (tmp_path / "run").rglob("*model*") if path.name != ".privtrain.lock"
    ] == []
