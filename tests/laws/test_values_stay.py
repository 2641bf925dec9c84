"""Law: values of rows reach nobody else: no message, board, print, error or file of another role.

Rows hold a value that is found again wherever it is written: as text, as floating point, or as the
integer that it is shared as.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.command.keys import KeysArgs, run_keys
from privtrain.core.runtime import MeshReply, Party, Payload, Program, Runtimes
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.mpc.engine import Engine
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.sharing import encode, share
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.runs.fitting import fit
from privtrain.runtimes.board import Entries
from privtrain.runtimes.channels import Outbox
from privtrain.runtimes.processes.mesh import Processes
from privtrain.trainers.mpc_sgd import MPCSGD
from tests.command.study_of_parties import TOO_LARGE
from tests.command.test_party import arguments, finish, free_port, launch

pytestmark = pytest.mark.slow

SENTINEL = 1234.53125


def octets(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def traces(value: float) -> list[bytes]:
    """How a value looks where it is written: at least seven characters, or eight bytes."""
    whole = torch.tensor(value, dtype=torch.float64)
    # By the bits after the point that engines use.
    integers = [(whole * 2**bits).long() for bits in (12, 14, 16)]
    texts = [f"{value:g}", f"{value:.4f}", *(str(int(integer)) for integer in integers)]
    return [
        *(text.encode() for text in texts),
        octets(torch.full((2,), value)),
        octets(whole),
        *map(octets, integers),
    ]


def found(data: bytes, value: float = SENTINEL) -> list[bytes]:
    return [trace for trace in traces(value) if trace in data]


def test_a_value_is_found_wherever_it_is_written() -> None:
    rows = torch.full((3, 4), SENTINEL)
    for written in (rows, rows.double(), encode(rows)):
        assert found(octets(written))
        assert found(str(written).encode()) and found(str(written.tolist()).encode())
    for hidden in share(encode(rows), 2, Keystream()):
        assert not found(octets(hidden)) and not found(str(hidden.tolist()).encode())


@dataclass(frozen=True)
class Tapped:
    """A program of a process that keeps what it is given and each message that it sends, in clear.

    Args:
        program: The program.
        folder: Where it is kept.
    """

    program: Program
    folder: str

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        send = Outbox.send
        with Path(self.folder, party.name).open("wb") as tape:
            for value in inputs.values():
                tape.write(octets(value))

            def kept(self: Outbox, data: bytes) -> None:
                tape.write(data)
                send(self, data)

            Outbox.send = kept  # type: ignore[method-assign]  # in this process alone
            return self.program(inputs, party)


@dataclass(frozen=True, kw_only=True)
class TappedProcesses(Processes):
    """Processes of which also the board is kept.

    Args:
        folder: Where all is kept.
    """

    folder: str

    def run(
        self, programs: Mapping[str, Program], inputs: Mapping[str, Payload], **others: Any
    ) -> dict[str, MeshReply]:
        tapped = {name: Tapped(program, self.folder) for name, program in programs.items()}
        boards: list[Entries] = []

        def board(names: tuple[str, ...]) -> Entries:
            boards.append(Entries(names))
            return boards[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("privtrain.runtimes.processes.mesh.Entries", board)
            replies = super().run(tapped, inputs, **others)
        Path(self.folder, "board").write_text(repr(boards[0]))
        Path(self.folder, "entries").write_text(repr([each.entries for each in replies.values()]))
        return replies


@pytest.mark.parametrize("engine", [Ring64(), SPDZ2k()], ids=["ring64", "spdz2k"])
def test_training_on_shares_writes_no_value_of_a_row(
    engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = Rows(torch.full((20, 4), SENTINEL), torch.arange(20) % 2)
    data = FederatedData(train={"a": rows, "b": rows}, test=rows)
    kept, run = tmp_path / "kept", tmp_path / "run"
    kept.mkdir()
    mesh = TappedProcesses(timeout=30, echo=True, folder=str(kept))
    result = fit(
        MPCSGD(epochs=1, learning_rate=1e-6, engine=engine),
        Task(model=lambda: nn.Linear(4, 2)),
        data,
        runtimes=Runtimes(mesh=mesh),
        folder=run,
    )
    names = {"computing-0", "computing-1", "dealer", "board", "entries"}
    assert {path.name for path in kept.iterdir()} == names
    assert b"masked share" in (kept / "computing-1").read_bytes()
    for path in [*kept.iterdir(), *(path for path in run.rglob("*") if path.is_file())]:
        assert not found(path.read_bytes()), path
    said = capfd.readouterr()
    published = f"{result}{result.statement}{result.notes}{result.transcript.entries}"
    assert not found(f"{said.out}{said.err}{published}".encode())


STUDY = """task = "tests.command.study_of_parties:too_large"
[mpc_sgd]
epochs = 1
"""


def test_a_party_whose_error_quotes_its_rows_tells_nobody_else(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # What each says is looked at below, apart from what it writes.
    said = tmp_path_factory.mktemp("said")
    path, port = tmp_path / "study.toml", free_port()
    path.write_text(STUDY)
    run_keys(KeysArgs(out=tmp_path / "keys", roles=("party-0", "party-1", "dealer")))
    keys = ["--keys", str(tmp_path / "keys")]
    meeting = ["--rendezvous", f"tcp://127.0.0.1:{port}", "--world-size", "2", "--timeout", "10"]
    dealer = launch(["--role", "dealer", *meeting, *keys, str(path)], {}, said)
    asked = [[*arguments(rank, 2, port), *keys, str(path)] for rank in range(2)]
    ends = finish([*(launch(words, {}, said) for words in asked), dealer], 60)
    heard = [code for code, _, _ in ends]
    assert all(code != 0 for code in heard)
    quoted = [bool(found(f"{out}{err}".encode(), TOO_LARGE)) for _, out, err in ends]
    assert quoted == [False, True, False]
    for _, _, said in (ends[0], ends[2]):
        assert "party-1 failed: DataError; why is said at that party alone" in said
    for written in tmp_path.rglob("*"):
        assert written.is_dir() or not found(written.read_bytes(), TOO_LARGE)
