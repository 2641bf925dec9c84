"""A party's process ends with its parent, and tells its own errors from those of others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.runtimes.processes.worker import failure_of
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


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("Failed to recv, got 0 bytes. Connection was likely closed. Did ...?"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), True),
        (PartyLostError("party-0 is gone"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection was likely closed"), False),
        (ProtocolError("party-0 sent 'x' where party-1 expects 'y'."), False),
    ],
)
def test_who_only_lost_contact_is_not_at_fault(error: Exception, lost: bool) -> None:
    assert failure_of(error).lost_contact is lost
