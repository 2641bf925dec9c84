"""From the dealer to the party and through crashes: each block of material is used once at most."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privtrain.mpc.keystream import KeyAgreement
from privtrain.mpc.material.sealing import Sealer
from privtrain.mpc.material.store import Store
from privtrain.mpc.material.writer import StoreWriter
from tests.mpc.material.folders import STEPS, fill, uses

ROOT = Path(__file__).parents[2]

OTHER = """
import sys
from pathlib import Path
from tests.mpc.material.folders import a_store, take
from privtrain.core.errors import ProtocolError
try:
    with a_store(Path(sys.argv[1])) as store:
        print("inside", flush=True)
        take(store, 0, "matmul")
        sys.stdin.read()
except ProtocolError as error:
    print(error)
"""


def crashes(folder: Path, segment: int, places: str) -> list[dict[str, Any]]:
    program = [sys.executable, "-m", "tests.mpc.material.crashes"]
    done = subprocess.run(
        [*program, str(folder), str(segment), places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.parametrize(
    ("segment", "places"),
    [
        (1, "deeds"),
        (10_000, "deeds"),
        pytest.param(1, "everywhere", marks=pytest.mark.slow),
        pytest.param(10_000, "everywhere", marks=pytest.mark.slow),
    ],
)
def test_no_block_is_used_twice_wherever_a_process_is_killed(
    segment: int, places: str, tmp_path: Path
) -> None:
    everything = [f"{step} {operation}" for step, operation in uses()]
    rows = crashes(tmp_path, segment, places)
    assert rows[0]["before"] == [] and rows[0]["after"] == everything
    assert rows[-1]["before"] == everything and rows[-1]["after"] == []
    for row in rows:
        before, after = row["before"], row["after"]
        assert not set(before) & set(after), row
        # In whole steps, to the end, and no step was lost that nobody had begun to spend.
        assert after == everything[len(everything) - len(after) :] and len(after) % 2 == 0
        if segment == 1:  # a crash costs the step that was begun, and no other one
            assert len(before) + len(after) >= len(everything) - 2
    # Killed between journal and use, too: spent, and used by nobody.
    blocks = 1 if segment == 1 else len(everything)
    assert any(len(row["before"]) < (row["lines"] - 2) * blocks for row in rows)


def test_two_processes_do_not_share_a_store(tmp_path: Path) -> None:
    fill(tmp_path)
    start = [sys.executable, "-c", OTHER, str(tmp_path)]
    with subprocess.Popen(
        start, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "inside\n"
        second = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "has a reader already" in second.stdout and "inside" not in second.stdout
        first.stdin.close()
    third = subprocess.run(
        start, cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    # The lock went with its process; what it used did not come back.
    assert "inside" in third.stdout and "Expected block 1" in third.stdout


def test_a_dealer_makes_material_ahead_for_two_parties(tmp_path: Path) -> None:
    dealer, study = KeyAgreement(), "digest of the study"
    parties = {name: KeyAgreement() for name in ("computing-0", "computing-1")}
    for name, party in parties.items():
        key = dealer.key(party.public, f"material for {name}")
        assert key == party.key(dealer.public, f"material for {name}")
        sealer = Sealer(key, study=study, receiver=name)
        with StoreWriter(tmp_path / name, key, study=study, receiver=name) as writer:
            for step in range(STEPS):
                content = f"{name} {step}".encode()
                writer.add(sealer.seal(content, step=step, operation="matmul"))
    for name in parties:
        with Store(tmp_path / name, study=study, receiver=name) as store:
            for step in range(STEPS):
                assert store.take(step, "matmul", 13) == f"{name} {step}".encode()
