"""`privtrain party keys` makes files for each role, and a party says where it has none."""

from pathlib import Path

import pytest

from privtrain.command.cli import main
from privtrain.command.keys import transport_of
from privtrain.runtimes.certificates import read_credentials
from privtrain.runtimes.sockets import TLS, Plain


def test_each_role_is_told_which_files_are_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    words = ["party", "keys", "--out", str(folder), "--roles", "party-0", "party-1", "dealer"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, role in zip(lines, ("party-0", "party-1", "dealer"), strict=False):
        files = [f"{folder}/{name}" for name in ("authority.pem", f"{role}.pem", f"{role}.key")]
        assert line == f"{role}: {' '.join(files)}"
        assert transport_of(folder, role) == TLS(read_credentials(folder, role))
    assert "365 days" in lines[-1]
    # What keys do not cover is said, too.
    assert "channels that an engine opens by itself, as CrypTen does, are not" in (
        capsys.readouterr().err
    )


def test_what_cannot_be_made_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["party", "keys", "--out", str(tmp_path / "keys"), "--roles"]
    assert main([*words, "dealer", "dealer"]) == 2
    assert "at least one, each once" in capsys.readouterr().err
    assert main([*words, "dealer", "--days", "0"]) == 2
    assert "days=0" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


def test_a_party_without_keys_says_that_nothing_is_encrypted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert transport_of(None, "party-0") == Plain()
    said = capsys.readouterr().err
    assert said.startswith("party-0: connections are neither encrypted nor authenticated")


def test_missing_keys_are_named_before_anybody_is_met(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"party-0.key, as privtrain party keys makes them"):
        transport_of(tmp_path, "party-0")
