"""A party's process ends with its parent, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtimes.processes.watching import alive, wait_until

PARENT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from privtrain.runtimes.processes.mesh import Processes
from tests.runtimes.processes.programs import NoteAndSleep
Processes(timeout=60).run(dict.fromkeys("ab", NoteAndSleep(sys.argv[1])), {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_children_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "pid")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        stderr=subprocess.DEVNULL,
    )
    notes = [tmp_path / "pid-0", tmp_path / "pid-1"]
    assert wait_until(lambda: all(note.exists() and note.read_text() for note in notes), 60)
    pids = [int(note.read_text()) for note in notes]
    assert all(alive(pid) for pid in pids)
    parent.send_signal(how)
    parent.wait(timeout=20)
    assert parent.returncode != 0
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
