"""Tests lie where their source lies: `privtrain/a/b.py` is tested by `tests/a/test_b.py`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTED_ELSEWHERE = {
    "__main__.py": "tests/command/test_cli.py and tests/runtimes/processes/test_worker.py start it",
    "command/arguments.py": "tests/command/test_cli.py",
    "core/abilities.py": "protocols: tests/runs/test_checks.py and tests/command/test_party.py",
    "core/links.py": "a protocol: tests/contracts/mesh_runtime.py",
    "core/result.py": "values of a result: tests/report",
    "core/runtime.py": "protocols: tests/contracts/star_runtime.py and mesh_runtime.py",
    "release/parts.py": "a protocol: tests/release/test_door.py",
    "runtimes/flower/surroundings.py": "tests/runtimes/flower/test_grid.py",
    "steps/local.py": "a protocol: tests/contracts/trainer.py",
    "steps/teaching.py": "a protocol: tests/steps/test_plain.py, test_ridge.py, test_together.py",
}
OF_NO_SOURCE = {
    "mpc/test_material.py": "material from the dealer to its use, and through crashes",
    "mpc/test_material_authenticated.py": "material and keys of sessions of spdz2k",
    "mpc/test_printed.py": "no part of the engines prints a secret",
    "mpc/test_rounds.py": "what docs/mpc.md says that operations cost",
    "mpc/test_rounds_authenticated.py": "what docs/mpc.md says that they cost with spdz2k",
    "mpc/test_exact.py": "trainings, steps and truncations on shares against plaintext",
    "mpc/test_tamper.py": "messages that are changed on their way, under every engine",
    "mpc/test_uniform.py": "whatever computing parties of ring64 see",
    "mpc/test_uniform_authenticated.py": "whatever computing parties of spdz2k see",
    "runs/test_old_folders.py": "what version 0.1 wrote",
    "runtimes/test_faults.py": "roles of a mesh that die, freeze or are slow",
    "trainers/test_contract.py": "every trainer through one suite",
}
LAWS = {"contracts", "docs", "golden", "laws", "reproductions", "scenarios"}


def sources() -> set[Path]:
    files = (path.relative_to(ROOT / "privtrain") for path in (ROOT / "privtrain").rglob("*.py"))
    return {path for path in files if path.name != "__init__.py"}


def mirrors() -> set[Path]:
    files = (path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))
    return {path for path in files if len(path.parts) > 1 and path.parts[0] not in LAWS}


def test_every_source_has_a_test_file() -> None:
    without = {
        str(path) for path in sources() if path.with_name(f"test_{path.name}") not in mirrors()
    }
    assert without == set(TESTED_ELSEWHERE)


def test_every_test_file_has_a_source() -> None:
    mirrored = {path.with_name(f"test_{path.name}") for path in sources()}
    assert {str(path) for path in mirrors() - mirrored} == set(OF_NO_SOURCE)
