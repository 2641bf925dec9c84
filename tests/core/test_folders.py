"""One run at a time works in a folder."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from privtrain.core.errors import DataError
from privtrain.core.folders import LOCK, locked_folder

HOLDER = """
import sys, time
from pathlib import Path
from privtrain.core.folders import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        held = (tmp_path / LOCK).read_text()
        named = rf"{tmp_path.name} is in use: process \d+ \(MainThread\) on "
        with pytest.raises(DataError, match=named), locked_folder(tmp_path):
            pytest.fail("both work there")
        with ThreadPoolExecutor(1) as other, pytest.raises(DataError, match="is in use"):
            other.submit(lambda: locked_folder(tmp_path).__enter__()).result()
        assert (tmp_path / LOCK).read_text() == held
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_free(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with locked_folder(tmp_path), locked_folder(tmp_path / "below"):
        pass


def test_an_error_gives_the_folder_back(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked_folder(tmp_path):
            raise ZeroDivisionError


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"process {holder.pid} "), locked_folder(tmp_path):
            pytest.fail("both work there")
        holder.kill()
        holder.wait()
    assert (tmp_path / LOCK).exists()
    with locked_folder(tmp_path):
        pass


def test_of_many_threads_one_at_a_time_works(tmp_path: Path) -> None:
    inside: list[int] = []

    def work(number: int) -> int:
        for _ in range(50):
            try:
                with locked_folder(tmp_path):
                    inside.append(number)
                    assert len(inside) == 1
                    inside.clear()
            except DataError:
                continue
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 1, 2, 3]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot write to folder="), locked_folder(tmp_path / "no"):
        pass
