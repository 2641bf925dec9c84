"""Tables print on terminals that have no Greek letters."""

import io
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from privtrain.core.encoding import for_terminal
from privtrain.report.table import comparison_text
from tests.report.examples import realistic


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "ε −1 ─ 学 Rényi"),
        ("cp1252", "e -1 - ? Rényi"),
        ("cp437", "ε -1 ─ ? Rényi"),
        ("ascii", "e -1 - ? R?nyi"),
    ],
)
def test_what_cannot_be_written_becomes_what_looks_like_it(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stream(encoding))
    assert for_terminal("ε −1 ─ 学 Rényi") == shown


def test_a_stream_without_an_encoding_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", object())
    assert for_terminal("ε") == "ε"


def test_a_comparison_is_printed_and_stays_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = replace(realistic(), as_text=comparison_text)
    whole = str(comparison)
    monkeypatch.setattr(sys, "stdout", stream("cp1252"))
    plain = str(comparison)
    print(comparison)
    assert "ε" in whole and "ε" not in plain and "e public" in plain
    assert [len(line) for line in plain.splitlines()] == [len(line) for line in whole.splitlines()]


def test_the_command_line_prints_there_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "privtrain", "--help"],
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == b""
