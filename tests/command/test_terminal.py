"""Printing to whatever reads: a reader that leaves ends a command quietly."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import privtrain
from privtrain.command import cli
from privtrain.command.arguments import Trainers
from privtrain.command.terminal import printing

ROOT = Path(privtrain.__file__).parents[1]


def ended(*arguments: str, lines: int = 1) -> tuple[int, str]:
    """How a process ends whose reader leaves after some lines: its exit code and what it says."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdin and process.stdout and process.stderr
    for _ in range(lines):
        assert process.stdout.readline()
    process.stdout.close()
    process.stdin.close()  # what waits for its end goes on
    said = process.stderr.read()
    process.stderr.close()
    return process.wait(60), said


MANY = "from privtrain.command.terminal import printing\nimport sys\n"


@pytest.mark.parametrize(
    "program",
    [
        "def work():\n    for n in range(100_000): print(n)\n    return 1\n",
        # Little enough to be still in the buffer when the reader has left.
        "def work():\n    print(1, flush=True)\n    sys.stdin.read()\n    print(2)\n    return 1\n",
    ],
)
def test_a_reader_that_leaves_ends_it_quietly(program: str) -> None:
    code, said = ended("-c", f"{MANY}{program}sys.exit(printing(work))")
    assert (code, said) == (0, "")


def test_head_ends_the_command_line_quietly() -> None:
    assert ended("-m", "privtrain", "trainers") == (0, "")


def test_head_ends_a_reproduction_quietly() -> None:
    assert ended("reproductions/central_dp.py", "--table")[1] == ""


def test_another_pipe_that_breaks_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> int:
        raise BrokenPipeError(32, "of a party's process")

    with pytest.raises(BrokenPipeError, match="of a party's process"):
        printing(breaks)
    assert printing(lambda: 3) == 3
    monkeypatch.setitem(cli._HANDLERS, Trainers, lambda args: breaks())
    assert cli.main(["trainers"]) == 1
    assert (
        capsys.readouterr().err == "privtrain: BrokenPipeError: [Errno 32] of a party's process\n"
    )


def test_a_character_that_the_terminal_has_not_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    assert printing(lambda: print("学") or 0) == 0
    stream.seek(0)
    assert stream.read().strip() == "?"
