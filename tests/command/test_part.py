"""What one process of `privtrain party` refuses and keeps to itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from privtrain.command.part import check_out, kept_alone, tell_result
from privtrain.core.abilities import Keeping
from privtrain.core.errors import DataError
from privtrain.core.task import Rows
from privtrain.mpc.checkpoints import own_folder


def test_a_file_that_cannot_be_written_is_refused_before_anybody_is_met(tmp_path: Path) -> None:
    check_out(None)
    check_out(tmp_path / "new" / "weights.pt")
    with pytest.raises(DataError, match=f"--out='{tmp_path}'"):
        check_out(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError):
        check_out(tmp_path / "file" / "weights.pt")


def part(folder: Path) -> Any:
    keeping = Keeping(folder=own_folder(folder, "party-0"), name="party-0", study="a" * 64)
    rows = Rows(torch.ones(2, 2), torch.zeros(2).long())
    trainer = SimpleNamespace(peer_statement=lambda names: ())
    return SimpleNamespace(name="party-0", keeping=keeping, rows=rows, test=None, trainer=trainer)


def test_one_run_at_a_time_keeps_shares_in_a_folder(tmp_path: Path) -> None:
    one = part(tmp_path)
    with kept_alone(one), pytest.raises(DataError, match="in use"), kept_alone(part(tmp_path)):
        pass
    with kept_alone(one):
        assert one.keeping.folder.stat().st_mode & 0o777 == 0o700
    # A dealer follows the steps of others and keeps nothing.
    one.rows = None
    with kept_alone(one), kept_alone(part(tmp_path)):
        pass


def test_weights_that_are_not_saved_are_said_to_stay_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = part(tmp_path)
    tell_result(one, ("party-0",), None, trained=True)
    assert f"not saved without --out, so that its shares stay in {one.keeping.folder}" in (
        capsys.readouterr().out
    )
