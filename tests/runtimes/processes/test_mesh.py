import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from privtrain.core.errors import PartyLostError, ProtocolError, UnsupportedError
from privtrain.core.runtime import Payload, Program
from privtrain.runtimes.processes.mesh import Processes
from tests.runtimes.processes import programs


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children() -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def inputs(count: int) -> dict[str, Payload]:
    return {f"party-{i}": {"number": torch.tensor([float(i + 1)])} for i in range(count)}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_parties_run_a_program_in_processes_of_their_own() -> None:
    seen: list[tuple[int, int]] = []
    runtime = Processes(timeout=30)
    replies = runtime.spmd(
        programs.AddUp(), inputs(2), report=lambda done, total: seen.append((done, total))
    )
    assert list(replies) == ["party-0", "party-1"]
    assert [float(reply.payload["total"]) for reply in replies.values()] == [3.0, 3.0]
    pids = {int(reply.payload["pid"]) for reply in replies.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    for name, reply in replies.items():
        assert int(reply.payload["threads"]) == 1
        assert reply.entries[0].sender == name
        assert reply.setups[0].party == name
        assert reply.peak_memory_bytes > 20e6
    assert seen and all(total == 3 and 1 <= done <= 3 for done, total in seen)


def test_is_a_frozen_value_with_checked_arguments() -> None:
    runtime = Processes(timeout=7.0)
    assert pickle.loads(pickle.dumps(runtime)) == runtime
    assert runtime.real and runtime.name == "processes"
    with pytest.raises(ValueError, match=r"timeout=0\.0"):
        Processes(timeout=0.0)


def misbehaviour(
    deed: Callable[[], None], *, parties: int = 2, culprit: str = "party-1", timeout: float = 8.0
) -> tuple[Exception, float]:
    started = time.monotonic()
    with pytest.raises((PartyLostError, ProtocolError, UnsupportedError)) as caught:
        Processes(timeout=timeout).spmd(programs.Misbehave(culprit, deed), inputs(parties))
    return caught.value, time.monotonic() - started


# Starting three processes that import torch takes seconds on a busy machine; the timeout counts
# from the deed on.
START = 10.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "words", "culprit", "parties"),
    [
        (programs.die, "SIGKILL", "party-0", 3),
        (programs.die, "SIGKILL", "party-2", 3),
        (programs.freeze, "froze", "party-0", 3),
        (programs.freeze, "froze", "party-1", 2),
        (programs.abort, "SIGABRT", "party-1", 2),
        (programs.fail, "ZeroDivisionError: one over nothing", "party-1", 2),
        (programs.leave, "SystemExit: 3", "party-0", 2),
    ],
)
def test_a_lost_party_ends_the_run_and_is_named(
    deed: Callable[[], None], words: str, culprit: str, parties: int
) -> None:
    error, seconds = misbehaviour(deed, parties=parties, culprit=culprit)
    assert isinstance(error, PartyLostError)
    assert error.party == culprit
    assert culprit in str(error) and words in str(error)
    assert seconds < START + 8.0


@pytest.mark.slow
def test_the_abort_that_gloo_raises_ends_the_run() -> None:
    error, seconds = misbehaviour(programs.send_another_count)
    assert isinstance(error, PartyLostError)
    assert error.party in {"party-0", "party-1"}  # gloo aborts the one that receives too much
    assert seconds < START + 8.0


@pytest.mark.slow
def test_a_party_that_does_not_answer_is_named_although_it_still_beats() -> None:
    error, seconds = misbehaviour(programs.sleep, timeout=6.0)
    assert isinstance(error, PartyLostError)
    assert error.party == "party-1"
    assert "did not answer" in str(error)
    assert seconds < START + 2 * 6.0


@pytest.mark.slow
def test_an_error_of_privtrain_keeps_its_type() -> None:
    error, _ = misbehaviour(programs.refuse)
    assert isinstance(error, UnsupportedError)
    assert str(error) == "party-1: this needs a package that is missing"


@pytest.mark.slow
def test_a_party_that_ends_early_is_named() -> None:
    with pytest.raises(ProtocolError, match="party-0 ended while party-1 still waited"):
        Processes(timeout=8).spmd(programs.EndEarly(), inputs(2))


@pytest.mark.slow
def test_what_a_party_started_is_ended_too(tmp_path: Path) -> None:
    program: Program = programs.StartGrandchild(str(tmp_path / "pid"))
    with pytest.raises(PartyLostError, match="failed after starting"):
        Processes(timeout=8).spmd(program, inputs(2))
    for note in tmp_path.iterdir():
        pid = int(note.read_text())
        assert wait_until(partial(lambda number: not alive(number), pid))


PARENT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from privtrain.runtimes.processes.mesh import Processes
from tests.runtimes.processes.programs import NoteAndSleep
Processes(timeout=60).spmd(NoteAndSleep(sys.argv[1]), {"a": {}, "b": {}})
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
