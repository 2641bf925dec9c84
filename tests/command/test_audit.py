"""The audit command on finished comparisons."""

import json
import shutil
from pathlib import Path

import pytest

from privtrain.command.cli import INTERRUPTED, main
from privtrain.core.folders import locked_folder
from privtrain.report.files import load

KEYS = [
    *("trainer", "label", "seed", "attack", "observer", "auc", "interval", "tpr", "epsilon"),
    "error",
]
STUDY = """
data = "own.csv"
attacks = [{ attack = "loss_threshold", observer = ["party-0", "party-1"] }]
data_options = { parties = 3 }
delta = 1e-3
epsilons = [5.0]
[trainers.pooled]
trainer = "sgd"
epochs = 1
[trainers.federated]
trainer = "fedavg"
rounds = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, and a comparison that was kept for audits."""
    folder = tmp_path_factory.mktemp("audit")
    lines = [f"{i % 7 / 7},{i % 5 / 5},{i / 120},{int(i % 7 > 3)}" for i in range(120)]
    (folder / "own.csv").write_text("\n".join(["a,b,c,y", *lines]))
    (folder / "own.toml").write_text(STUDY.replace("own.csv", str(folder / "own.csv")))
    words = ["compare", str(folder / "own.toml"), "--out", str(folder / "run")]
    assert main([*words, "--keep-for-audit"]) == 0
    return folder


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return list(json.loads(capsys.readouterr().out))


def test_each_attack_is_tried_from_all_places_and_no_cell_is_empty(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", str(place / "run"), "--attacks", "rmia", "one_run", "loss_threshold"]
    words += ["--observers", "all", "--shadows", "4", "--set", "rmia.online=False", "--json"]
    capsys.readouterr()
    assert main([*words, "--out", str(place / "out")]) == 0
    found = records(capsys)
    assert all([*each] == KEYS for each in found)
    # Nobody dealt anything in these runs; a coalition with the curator holds all rows.
    places = [
        "public",
        "participant",
        "aggregator",
        "coalition of aggregator, computing-0, party-0",
    ]
    mine = [each for each in found if each["label"] == "federated"]
    assert [(each["attack"], each["observer"]) for each in mine] == [
        (attack, one)
        for attack in ("RMIA offline", "one-run audit", "loss threshold")
        for one in places
    ]
    told = {(e["label"], e["attack"], e["observer"]): (e["auc"], e["error"]) for e in found}
    assert all((auc is None) != (error is None) for auc, error in told.values())
    assert all(told["federated", "RMIA offline", one][0] is not None for one in places)
    assert told["federated", "one-run audit", "public"][1] == "not applicable: no canaries"
    assert told["pooled", "loss threshold", places[3]][1] == "not applicable: holds all rows"
    assert told["pooled", "loss threshold", places[2]][1] == "not applicable: holds all rows"
    kept = load(place / "out")
    assert (
        kept.study is not None
        and {
            "attack": "rmia",
            "shadows": 4,
            "online": False,
            "limit": 10000,
            "batch_size": 1024,
            "observer": "aggregator",
        }
        in kept.study["attacks"]
    )
    assert [len(row.leakage) for row in load(place / "run").rows] == [1, 1], "the run is as it was"


def test_it_finds_what_compare_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    within = [row.leakage[0] for row in load(place / "run").rows]
    assert {one.observer for one in within} == {"coalition of party-0, party-1"}
    words = ["audit", str(place / "run"), "--json", "--observers", "[party-1,party-0]"]
    capsys.readouterr()
    assert main(words) == 0
    assert [each["auc"] for each in records(capsys)] == [one.metrics["auc"] for one in within]
    assert main(words[:2]) == 0
    assert "from public" in capsys.readouterr().out


def test_what_was_not_kept_is_said_with_the_way_to_keep_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    shutil.rmtree(next(run.glob("rows/pooled*/evidence")))
    assert main(["audit", str(run)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"--out {run} --resume --keep-for-audit" in out and "not kept" in out
    shutil.rmtree(next(run.glob("rows/federated*/evidence")))
    assert main(["audit", str(run)]) == 2
    assert "--resume --keep-for-audit" in capsys.readouterr().err


def test_messages_that_were_not_kept_are_said_with_the_way_to_keep_them(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(place / "run"), "--attacks", "model_sequence"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--resume --keep-for-audit --keep-messages" in out


def test_an_interrupted_audit_says_what_is_kept(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("privtrain.runs.finished.audit_comparison", stop)
    assert main(["audit", str(place / "run")]) == INTERRUPTED
    err = capsys.readouterr().err
    assert "Finished shadow models are kept" in err and "Nothing" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--attacks rmiaa", "Did you mean 'rmia'"),
        ("--observers agregator", "Did you mean 'aggregator'"),
        ("--observers all public", "Expected --observers all public to be all, or some"),
        ("--observers [party-9]", "'party-9' does not"),
        ("--shadows 4", "Expected no --shadows 4 with loss_threshold"),
        ("--set sgd.epochs=3", "to begin with one of loss_threshold"),
        ("--label z", "Expected no --label with the comparison"),
        ("--model m.pt", "Expected either the folder of a comparison"),
        ("--out {run}", "to hold no comparison"),
        ("--out {run}/rows/audited", "never published"),
        ("--out {run}/rows", "never published"),
        ("--out {run}/private/audited", "never published"),
        ("--threads 0", "threads=0"),
    ],
)
def test_wrong_words_are_refused(
    words: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(place / "run")
    assert main(["audit", run, *words.format(run=run).split()]) == 2
    assert said in capsys.readouterr().err


def test_wrong_folders_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(tmp_path)]) == 2
    assert "There is no finished comparison" in capsys.readouterr().err
    shutil.copy(place / "run" / "comparison.json", tmp_path)
    assert main(["audit", str(tmp_path)]) == 2
    assert "pt.audit_comparison" in capsys.readouterr().err
    with locked_folder(place / "run"):
        assert main(["audit", str(place / "run")]) == 2
    assert "run" in capsys.readouterr().err
