"""Two processes and one journal: what one of them wrote, the other does not write over."""

import subprocess
import sys
from pathlib import Path

import pytest

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
