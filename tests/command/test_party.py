import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from privtrain.command.keys import KeysArgs, run_keys
from privtrain.command.party import PartyArgs, Place, place, read, run_party
from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import initial_model, to_vector
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.seeding import Seeds
from privtrain.core.task import Rows, Task, concatenate
from privtrain.sampling.passes import batches
from tests.command import study_of_parties as study
from tests.command.forked import Forked
from tests.extras import need
from tests.mpc.proved import SAID

ROOT = str(Path(__file__).parents[2])
TIMEOUT = 6.0
"""Of parties that have imported torch when they start."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    # The command puts the study's folder on the path of its process.
    monkeypatch.setattr(sys, "path", list(sys.path))


def write_study(folder: Path, function: str, more: str = "", name: str = "study.toml") -> Path:
    need("crypten")  # which has no dealer: the parties of a study are all there is
    path = folder / name
    path.write_text(
        f'task = "tests.command.study_of_parties:{function}"\n{more}\n'
        "[mpc_sgd]\nepochs = 2\nbatch_size = 20\nlearning_rate = 0.5\n"
        'engine = { kind = "CrypTen" }\n'
    )
    return path


def start(path: Path, rank: int, count: int, port: int, *options: str, **variables: str) -> Forked:
    return launch([*arguments(rank, count, port), *options, str(path)], variables, path.parent)


def arguments(rank: int, count: int, port: int, timeout: float = TIMEOUT) -> list[str]:
    meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--timeout", str(timeout)]
    return ["--rank", str(rank), "--world-size", str(count), *meeting]


def launch(arguments: list[str], variables: dict[str, str], folder: Path) -> Forked:
    return Forked(["party", *arguments], variables, folder)


def by_hand(arguments: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    """With an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "privtrain", "party", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ROOT} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(
    processes: Sequence[Forked | subprocess.Popen[str]], seconds: float
) -> list[tuple[int | None, str, str]]:
    ends, deadline = [], time.monotonic() + seconds
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            ends.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return ends


def plain_weights(rows: Rows) -> torch.Tensor:
    seeds = Seeds(0)
    model = initial_model(Task(model=study.model), seeds["initialisation", 0, ""]).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(2):
        order = seeds["order", epoch, CURATOR_NAME].torch()
        for index in batches(len(rows), 20, 1, order):
            optimizer.zero_grad()
            logits = model(rows.inputs[index].double())
            torch.nn.functional.cross_entropy(logits, rows.labels[index]).backward()
            optimizer.step()
    return to_vector(model.parameters())


def saved(path: Path) -> torch.Tensor:
    return to_vector(torch.load(path, weights_only=True).values())


@pytest.mark.slow
@pytest.mark.parametrize(("function", "count"), [("make", 2), ("make", 3), ("columns", 2)])
def test_parties_started_by_hand_train_together(function: str, count: int, tmp_path: Path) -> None:
    more = 'split = "columns"' if function == "columns" else ""
    path, port = write_study(tmp_path, function, more), free_port()
    words = [
        [*arguments(rank, count, port, 20.0), "--out", str(tmp_path / f"{rank}.pt"), str(path)]
        for rank in range(count)
    ]
    if count == 3:  # with interpreters of their own, as users start it
        ends = finish([by_hand(each, {}) for each in words], 90)
    else:
        ends = finish([launch(each, {}, tmp_path) for each in words], 90)
    assert [code for code, _, _ in ends] == [0] * count, ends
    own = [study.make(rank)[1] for rank in range(count)]
    expected = plain_weights(study.table() if function == "columns" else concatenate(own))
    for rank in range(count):
        assert float((saved(tmp_path / f"{rank}.pt") - expected).abs().max()) < 0.01
        assert "semi-honest" in ends[rank][1]
        assert ("accuracy" in ends[rank][1]) == (function == "make")


@pytest.mark.slow
def test_torchrun_variables_are_accepted(tmp_path: Path) -> None:
    path, port = write_study(tmp_path, "make"), str(free_port())
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ends = finish([by_hand([str(path)], meeting | {"RANK": str(rank)}) for rank in range(2)], 60)
    assert [code for code, _, _ in ends] == [0, 0], ends


WITH_DEALER = """task = "tests.command.study_of_parties:make_or_help"
[mpc_sgd]
epochs = 2
batch_size = 20
learning_rate = 0.5
engine = { kind = "tests.mpc.dealt:DealtEngine" }
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "learns"),
    [("tests.mpc.dealt:DealtEngine", "sizes of what is multiplied"), ("", "shapes, numbers of")],
)
def test_a_dealer_without_rows_takes_part_by_its_role(
    engine: str, learns: str, tmp_path: Path
) -> None:
    path, port = tmp_path / "study.toml", free_port()
    # Without an entry it is the default engine, which has a dealer.
    path.write_text(WITH_DEALER if engine else WITH_DEALER.rpartition("engine")[0])
    keys = tmp_path / "keys"
    run_keys(KeysArgs(out=keys, roles=("party-0", "party-1", "dealer")))
    meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--world-size", "2"]
    secured = ["--keys", str(keys)]
    dealer = launch(["--role", "dealer", *meeting, *secured, str(path)], {}, tmp_path)
    out = ["--out", str(tmp_path / "0.pt")]
    parties = [start(path, 0, 2, port, *out, *secured), start(path, 1, 2, port, *secured)]
    ends = finish([*parties, dealer], 90)
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    expected = plain_weights(concatenate([study.make(rank)[1] for rank in range(2)]))
    assert float((saved(tmp_path / "0.pt") - expected).abs().max()) < 0.01
    assert "dealer: took part among party-0, party-1, dealer" in ends[2][1]
    assert "weights" not in ends[2][1].split("dealer: the opened weights are exact")[0]
    for _, said, _ in ends:
        assert f"dealer reads {learns}" in said
    for _, _, warned in ends:
        assert "links are encrypted and authenticated by mutual TLS 1.3" in warned


@pytest.mark.slow
@pytest.mark.parametrize("notices", ["1", "01"])
def test_every_role_is_told_that_a_share_was_altered(notices: str, tmp_path: Path) -> None:
    path, port = tmp_path / "study.toml", free_port()
    engine = f'"tests.mpc.proved:Proved", late = true, notices = "{notices}"'
    path.write_text(WITH_DEALER.replace('"tests.mpc.dealt:DealtEngine"', engine))
    meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--world-size", "2"]
    dealer = launch(["--role", "dealer", *meeting, str(path)], {}, tmp_path)
    parties = [
        start(path, rank, 2, port, "--out", str(tmp_path / f"{rank}.pt")) for rank in range(2)
    ]
    ends = finish([*parties, dealer], 90)
    for code, _, said in ends:
        assert code == 1, ends
        (line,) = [each for each in said.splitlines() if "TamperedShareError" in each]
        assert line.endswith(SAID), line
    # Who noticed it says so itself; the others say of whom they have it.
    assert [f": {SAID}" in ends[rank][2] for rank in range(2)] == [True, True]
    assert "party-1 says: " in ends[0][2] or "0" in notices
    assert " says: " in ends[2][2]
    assert not any((tmp_path / f"{rank}.pt").exists() for rank in range(2))


def test_checkpoints_are_refused_where_no_shares_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    table = WITH_DEALER.replace("tests.mpc.dealt:DealtEngine", "tests.mpc.proved:Proved")
    path.write_text(f'checkpoints = "kept"\n{table}')
    for rank, role in ((0, "party"), (None, "dealer")):
        args = PartyArgs(
            study=path, rank=rank, role=role, world_size=2, rendezvous="tcp://127.0.0.1:1"
        )
        with pytest.raises(UnsupportedError, match=r"no checkpoints= .*ring64 .*engine=pt.Ring64"):
            run_party(args)
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_the_dealer_deals_first_and_is_not_needed_then(tmp_path: Path) -> None:
    path, keys = tmp_path / "study.toml", tmp_path / "keys"
    path.write_text(WITH_DEALER.rpartition("engine")[0])
    run_keys(KeysArgs(out=keys, roles=("party-0", "party-1", "dealer")))
    secured, material = ["--keys", str(keys)], ["--material", str(tmp_path / "material")]

    def parties(port: int, study: Path, *more: str) -> list[Forked]:
        options = [*secured, *material, *more]
        return [
            start(study, rank, 2, port, *options, "--out", str(tmp_path / f"{rank}.pt"))
            for rank in range(2)
        ]

    port = free_port()
    meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--world-size", "2"]
    dealer = launch(["--role", "dealer", *meeting, *secured, "--deal", str(path)], {}, tmp_path)
    ends = finish([*parties(port, path, "--deal"), dealer], 90)
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    assert all(", offline " in said and "weights" not in said for _, said, _ in ends)
    assert "of them material" in ends[2][1]
    # Another study: refused at once, and nothing of the material is used.
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace("epochs = 2", "epochs = 3"))
    for code, _, said in finish(parties(free_port(), other), 60):
        assert code != 0 and ("Expected material for study=" in said or "DataError" in said), said
    ends = finish(parties(free_port(), path), 60)
    assert [code for code, _, _ in ends] == [0, 0], ends
    expected = plain_weights(concatenate([study.make(rank)[1] for rank in range(2)]))
    for rank, (_, said, _) in enumerate(ends):
        assert float((saved(tmp_path / f"{rank}.pt") - expected).abs().max()) < 0.01
        assert ", online " in said and "material," not in said
        assert "dealer reads shapes, numbers of" in said
    for code, _, said in finish(parties(free_port(), path), 60):
        assert code != 0 and "is spent or was never dealt: a run with it was begun" in said, said


def test_a_run_whose_party_was_killed_goes_on_from_what_each_party_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    table = WITH_DEALER.rpartition("engine")[0].replace("make_or_help", "dies_writing")
    path.write_text(f'checkpoints = "kept"\n{table}')

    def sit(deed: str) -> list[tuple[int | None, str, str]]:
        port = free_port()
        meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--world-size", "2"]
        dealer = launch(
            ["--role", "dealer", *meeting, "--timeout", str(TIMEOUT), str(path)], {}, tmp_path
        )
        out = ["--out", str(tmp_path / "0.pt")]
        parties = [start(path, rank, 2, port, *out, DEED=deed) for rank in range(2)]
        return finish([*parties, dealer], 90)

    def kept() -> list[str]:
        found = (tmp_path / "kept").rglob("*.shares")
        return sorted(f"{each.parent.name} {int(each.stem[5:])}" for each in found)

    # The dealer runs ahead, and may have ended well before.
    assert [code for code, _, _ in sit("1")[:2]] == [1, -signal.SIGKILL]
    assert kept()[-1] == "party-1 3"
    # What cannot be used is refused by a party alone, before it meets the others.
    damaged = next((tmp_path / "kept").rglob("party-1/*.shares"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-8])
    ((code, _, said),) = finish([start(path, 1, 2, free_port())], 60)
    assert code == 2
    assert f"{damaged} is damaged" in " ".join(said.split())
    damaged.write_bytes(content)
    ends = sit("")
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    assert "party-0: taken up after 3 steps" in ends[0][1]
    expected = plain_weights(concatenate([study.make(rank)[1] for rank in range(2)]))
    assert float((saved(tmp_path / "0.pt") - expected).abs().max()) < 0.01
    # The dealer kept nothing, and what the parties kept is gone.
    assert not (tmp_path / "kept" / "private").exists()


@pytest.mark.slow
def test_a_party_that_is_not_sent_the_weights_measures_and_saves_nothing(tmp_path: Path) -> None:
    path, port = tmp_path / "study.toml", free_port()
    table = WITH_DEALER.rpartition("engine")[0].replace("make_or_help", "make_test_or_help")
    path.write_text(f'checkpoints = "kept"\n{table}reveal_to = ["party-1"]\n')
    meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--world-size", "2"]
    dealer = launch(["--role", "dealer", *meeting, str(path)], {}, tmp_path)
    parties = [
        start(path, rank, 2, port, "--out", str(tmp_path / f"{rank}.pt")) for rank in range(2)
    ]
    ends = finish([*parties, dealer], 90)
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    without, having = " ".join(ends[0][1].split()), ends[1][1]
    home = tmp_path / "kept" / "private" / "shares"
    assert (
        f"was not sent the weights, and measures and saves nothing; its shares stay in {home}"
        in (without)
    )
    assert "accuracy" not in without
    assert not (tmp_path / "0.pt").exists()
    assert "party-1: accuracy " in having
    expected = plain_weights(concatenate([study.make(rank)[1] for rank in range(2)]))
    assert float((saved(tmp_path / "1.pt") - expected).abs().max()) < 0.01
    assert [each.name for each in home.iterdir()] == ["party-0"]
    for said in (without, having):
        assert "party-1 reads the weights in the end, exact" in said


@pytest.mark.slow
def test_a_party_with_keys_of_another_study_is_refused(tmp_path: Path) -> None:
    path, port = tmp_path / "study.toml", free_port()
    path.write_text(WITH_DEALER)
    for folder in ("ours", "theirs"):
        run_keys(KeysArgs(out=tmp_path / folder, roles=("party-0", "party-1", "dealer")))
    ours, theirs = (["--keys", str(tmp_path / folder)] for folder in ("ours", "theirs"))
    meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--world-size", "2"]
    dealer = launch(["--role", "dealer", *meeting, *ours, str(path)], {}, tmp_path)
    parties = [start(path, 0, 2, port, *ours), start(path, 1, 2, port, *theirs)]
    ends = finish([*parties, dealer], 120)
    assert all(code != 0 for code, _, _ in ends)
    assert "could not be authenticated" in "".join(said for _, _, said in ends)
    assert all("took part" not in said for _, said, _ in ends)


def test_other_roles_are_refused_by_name(tmp_path: Path) -> None:
    need("crypten")
    path = tmp_path / "study.toml"
    path.write_text(WITH_DEALER)
    asked = {"study": path, "world_size": 2, "rendezvous": "tcp://127.0.0.1:1"}
    with pytest.raises(ValueError, match=r"role='banker' to be one of party, dealer: .*MPCSGD"):
        run_party(PartyArgs(**asked, role="banker"))
    with pytest.raises(ValueError, match="role='party-1'"):
        run_party(PartyArgs(**asked, role="party-1"))
    with pytest.raises(ValueError, match="no --rank with --role dealer"):
        run_party(PartyArgs(**asked, role="dealer", rank=1))
    path.write_text(WITH_DEALER.replace("tests.mpc.dealt:DealtEngine", "CrypTen"))
    with pytest.raises(ValueError, match="role='dealer' to be one of party:"):
        run_party(PartyArgs(**asked, role="dealer"))


def test_trainers_that_need_a_coordinator_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    head = 'task = "tests.command.study_of_parties:make"\n'
    args = PartyArgs(study=path, rank=0, world_size=2, rendezvous="tcp://127.0.0.1:1")
    path.write_text(head + "[fedavg]\nrounds = 3\n")
    with pytest.raises(UnsupportedError, match=r"fedavg .*coordinator.*Use mpc_sgd.*privtrain fit"):
        run_party(args)
    path.write_text(head + "[fedavgg]\n")
    with pytest.raises(ValueError, match="trainer='fedavgg'"):
        run_party(args)
    path.write_text(head + "[mpc_sgd]\ncomputing_parties = 3\n")
    with pytest.raises(ValueError, match="computing_parties to be world_size=2"):
        run_party(args)
    path.write_text(head.replace(":make", ":make_or_help"))
    with pytest.raises(ValueError, match="role='helper'"):
        run_party(replace(args, rank=None, role="helper"))


def keys_in(folder: Path) -> list[str]:
    """The option with which parties prove who they are."""
    run_keys(KeysArgs(out=folder / "keys", roles=("party-0", "party-1", "party-2")))
    return ["--keys", str(folder / "keys")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("culprit", "deed", "count", "secured"),
    [
        (1, "SIGKILL", 3, True),
        (0, "SIGKILL", 2, False),
        (2, "SIGSTOP", 3, False),
        (0, "SIGSTOP", 2, True),
    ],
)
def test_a_party_that_dies_or_freezes_ends_the_run_everywhere(
    culprit: int, deed: str, count: int, secured: bool, tmp_path: Path
) -> None:
    keys = keys_in(tmp_path) if secured else []
    path, port = write_study(tmp_path, "stop_later"), free_port()
    variables = {"DEED": f"{culprit} {deed}", "NOTE": str(tmp_path / "pid")}
    processes = [start(path, rank, count, port, *keys, **variables) for rank in range(count)]
    others = [process for rank, process in enumerate(processes) if rank != culprit]
    try:
        ends = finish(others, 30 + TIMEOUT)
    finally:
        processes[culprit].send_signal(signal.SIGKILL)
        processes[culprit].communicate()
    for code, _, said in ends:
        assert code == 1, said
        assert "PartyLostError" in said and f"party-{culprit}" in said, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "other_settings", "words"),
    [
        ("narrow", "", "party-1 has 11 features, the model takes 12"),
        ("make", "seed = 7", "party-1 has other settings"),
    ],
)
def test_what_does_not_fit_is_named_everywhere(
    function: str, other_settings: str, words: str, tmp_path: Path
) -> None:
    path, port = write_study(tmp_path, function), free_port()
    other = write_study(tmp_path, function, other_settings, "other.toml")
    keys = keys_in(tmp_path) if other_settings else []
    ends = finish([start(path, 0, 2, port, *keys), start(other, 1, 2, port, *keys)], 60)
    for code, _, said in ends:
        assert code in (1, 2), said
        assert words in said, said


@pytest.mark.slow
def test_a_party_that_does_not_come_is_named(tmp_path: Path) -> None:
    path = write_study(tmp_path, "make")
    ((code, _, said),) = finish([start(path, 0, 2, free_port(), *keys_in(tmp_path))], 20 + TIMEOUT)
    assert code == 1
    assert f"party-1 did not come within {TIMEOUT:g} s" in said


@pytest.mark.slow
def test_two_parties_with_one_rank_or_another_world_size_are_refused(tmp_path: Path) -> None:
    path, port, keys = write_study(tmp_path, "make"), free_port(), keys_in(tmp_path)
    # A third one is missing: those who train already would not look who else comes.
    places = [(0, 3), (1, 3), (1, 3)]
    ends = finish([start(path, rank, count, port, *keys) for rank, count in places], 60)
    for code, _, said in ends:
        assert code != 0 and "two parties were started as party-1" in said, said
    ends = finish([start(path, rank, 2 + rank, port, *keys) for rank in range(2)], 60)
    for code, _, said in ends:
        assert code != 0 and "party-1 was started for 3 parties" in said, said


def test_where_a_party_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    args = PartyArgs(study=path, rank=1, world_size=3, rendezvous="tcp://host:29500")
    assert place(args) == Place(1, 3, "host", 29500)
    assert place(args).names == ("party-0", "party-1", "party-2")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        place(PartyArgs(study=path))
    monkeypatch.setenv("MASTER_ADDR", "here")
    assert place(PartyArgs(study=path)) == Place(0, 2, "here", 4)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert place(PartyArgs(study=path)) == Place(0, 2, "here", 4, True)


@pytest.mark.parametrize(
    ("rank", "count", "rendezvous", "words"),
    [
        (3, 3, "tcp://h:1", "rank=3"),
        (0, 6, "tcp://h:1", "world_size=6"),
        (0, 2, "h:1", "tcp://HOST:PORT"),
        (None, 2, "tcp://h:1", "--rank"),
    ],
)
def test_a_wrong_place_is_refused(
    rank: int | None, count: int, rendezvous: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        place(PartyArgs(study=tmp_path, rank=rank, world_size=count, rendezvous=rendezvous))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 1", "must name"),
        ("task = ", "TOML"),
        ('task = "a:b"\nrows = 3', "'rows'"),
        ('task = "a:b"\n[mpc_sgd]\n[sgd]', "table of one trainer"),
    ],
)
def test_a_wrong_study_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read(path)
    with pytest.raises(ValueError, match="Cannot read"):
        read(tmp_path / "missing.toml")
