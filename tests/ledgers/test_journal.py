"""Two processes and one journal: what one of them wrote, the other does not write over."""

import subprocess
import sys
from pathlib import Path

import pytest

from privtrain.ledgers.journal import lines_of

JOURNALS = 100

WRITER = """
import sys
from pathlib import Path
from privtrain.core.errors import PrivacyError
from privtrain.ledgers.journal import append_synced

folder, name, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for number in range(int(sys.argv[4])):
    (folder / f"{name} at {number}").touch()
    while not (folder / f"{other} at {number}").exists():
        pass  # so that both write at once
    try:
        append_synced(folder / str(number), name.encode() * 8, size=0, first=True)
    except PrivacyError:
        continue
    print(number)
"""


@pytest.mark.slow
def test_of_two_processes_one_writes_and_the_other_is_told(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), *names, str(JOURNALS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in ("ab", "ba")
    ]
    written = [set(map(int, writer.communicate(timeout=120)[0].split())) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert not written[0] & written[1], "two runs spent one plan twice"
    assert written[0] | written[1] == set(range(JOURNALS))
    for number in range(JOURNALS):
        owner = "a" if number in written[0] else "b"
        assert (tmp_path / str(number)).read_text() == owner * 8


@pytest.mark.parametrize("left", ["\0" * 40, "\r", "\ufffd\0", " \t"])
def test_what_a_power_cut_left_of_a_line_does_not_hide_the_one_before(
    left: str, tmp_path: Path
) -> None:
    """A file system may keep the length of what was written, and zeros in the place of it."""
    text = '\n{"spent": 1}\n{"spent": 2}' + left
    lines = lines_of(tmp_path / "journal", text, ('{"spent"',))
    assert [line.values for line in lines] == [{"spent": 1}, {"spent": 2}]
    lines = lines_of(tmp_path / "journal", text + '\n{"spent": 3}', ('{"spent"',))
    assert [line.values["spent"] for line in lines] == [1, 2, 3]
