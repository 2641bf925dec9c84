"""Two processes and one journal: what one of them wrote, the other does not write over."""

import subprocess
import sys
from pathlib import Path

JOURNALS = 150

WRITER = """
import sys, time
from pathlib import Path
from privtrain.core.errors import PrivacyError
from privtrain.privacy.ledger import append_synced

folder, name, start = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[1]) / "start"
(folder / f"ready {name}").touch()
while not start.exists():
    pass
for number in range(int(sys.argv[3])):
    try:
        append_synced(folder / str(number), name.encode() * 8, size=0, first=True)
    except PrivacyError:
        continue
    print(number)
"""


def test_of_two_processes_one_writes_and_the_other_is_told(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name, str(JOURNALS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    while not all((tmp_path / f"ready {name}").exists() for name in "ab"):
        assert all(writer.poll() is None for writer in writers)
    (tmp_path / "start").touch()
    written = [set(map(int, writer.communicate()[0].split())) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert not written[0] & written[1], "two runs spent one plan twice"
    assert written[0] | written[1] == set(range(JOURNALS))
    for number in range(JOURNALS):
        owner = "a" if number in written[0] else "b"
        assert (tmp_path / str(number)).read_text() == owner * 8
