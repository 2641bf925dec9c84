"""Names that are known without loading what they stand for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.command import names, tokens
from privtrain.core.errors import DataError
from privtrain.data.loading import names as data_names

ROOT = Path(pt.__file__).parents[1]
HEAVY = ("torch", "numpy", "scipy", "sklearn", "flwr", "matplotlib", "dp_accounting", "cloudpickle")


def test_they_are_those_of_what_they_stand_for() -> None:
    assert {t: getattr(pt, name).token for t, name in tokens.TRAINER_TOKENS.items()} == {
        token: token for token in names.TRAINERS
    }
    assert set(tokens.ATTACK_TOKENS) == set(names.ATTACKS)
    assert set(tokens.DATA) == set(data_names())


def test_what_attacks_are_made_of_is_no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    homes = {"About": "taxonomy", "Goal": "taxonomy", "MembershipAttack": "attack", "LiRA": "lira"}
    for name, home in homes.items():
        monkeypatch.setitem(pt._HOME_OF, name, f"privtrain.attacks.{home}")
    assert [name for name in homes if tokens._is_attack(name)] == ["LiRA"]


def test_help_and_mistakes_load_nothing_heavy(tmp_path: Path) -> None:
    """One process for all: what one of them loads shows."""
    study = tmp_path / "study.toml"
    study.write_text('data = "digits"\n[trainers.mine]\ntrainer = "fedvag"\n')
    calls = {
        "--help": [],
        "--version": [],
        "compare --help": [],
        "fit --help": [],
        "party --help": [],
        "trainers": [],
        "attacks one_run": [],
        "data": [],
        "trainers dpsgd": [],
        "compare --trainers dpsgd": [],
        "compare --trainers sgd fedvag": [],
        "compare --attacks rmiaa": [],
        "compare --data digts": [],
        "compare --runtime flower": [],
        "compare --model missing.py:make": [],
        "compare --threads 0": [],
        "fit --trainer dpsgd": [],
        "fit --data digts": [],
        f"compare {study}": [],
        f"fit {study}": [],
        "fit missing.toml": [],
        "audit --help": [],
        "audit": [],
        "audit runs/none --attacks rmiaa": [],
        "audit no_such_folder": [],
        "compare --nonsense": [],
        "party --rank 5 --world-size 2 --rendezvous tcp://h:1 x.toml": [],
    }
    program = (
        "import json, sys\n"
        "from privtrain.command.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        code = main(words.split())\n"
        "    except SystemExit as end:\n"
        "        code = end.code\n"
        f"    loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "    print('CALL', json.dumps([words, code, loaded]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(list(calls))],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    lines = [line[5:] for line in done.stdout.splitlines() if line.startswith("CALL ")]
    assert len(lines) == len(calls)
    for line in lines:
        words, code, loaded = json.loads(line)
        assert loaded == [], words
        right = words.endswith("--help") or words in ("--version", "trainers", "attacks one_run")
        assert code == (0 if right or words == "data" else 2), words


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"trainers": ["dpsgd"]}, "trainer='dpsgd' to be one of dp_sgd, .*mean 'dp_sgd'"),
        ({"attacks": ["one-run"]}, "attack='one-run' to be one of .*mean 'one_run'"),
        ({"runtime": "inprocess"}, "runtime='inprocess' .*mean 'in-process'"),
        ({"data": "mnits"}, "data='mnits' to be one of .* path of .*mean 'mnist'"),
        ({"trainers": ["my.py:A"]}, "no file 'my.py', which trainer="),
        ({"trainers": [":A"]}, "trainer=':A' to look like"),
        ({"model": "net.py:make"}, "no file 'net.py', which model="),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest(
    given: dict[str, object], answer: str
) -> None:
    with pytest.raises(ValueError, match=answer):
        tokens.check_names(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", ["digits", "mine.csv", "below/mine", "a.tsv", "C:\\mine"])
def test_what_may_be_a_path_is_left_to_the_loader(data: str) -> None:
    tokens.check_names(data=data)


@pytest.mark.parametrize(
    "text",
    [
        '[trainers.a]\ntrainer = "sgdd"',
        "[trainers.sgdd]",
        'attacks = ["loss_treshold"]',
        '[[attacks]]\nattack = "onerun"',
        'runtime = "flower"',
        'data = "digts"',
    ],
)
def test_a_study_is_looked_through_and_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"study.toml: Expected .*Did you mean"):
        tokens.check_study_names(path)


@pytest.mark.parametrize("text", ["", "trainers = 3", "attacks = 3", "[trainers]\na = 3\n"])
def test_what_is_of_another_kind_is_left_to_who_reads_it_whole(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    tokens.check_study_names(path)


def test_a_study_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read the study file"):
        tokens.check_study_names(tmp_path / "missing.toml")
