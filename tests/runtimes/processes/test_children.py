"""Whatever happens to a party, the run ends in time, and the error names the party at fault."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from privtrain.core.errors import (
    PartyLostError,
    ProtocolError,
    TamperedShareError,
    UnsupportedError,
)
from privtrain.core.failures import traceback_of
from privtrain.core.runtime import Program
from privtrain.runtimes.processes.children import verdict
from privtrain.runtimes.processes.mesh import Processes
from privtrain.runtimes.processes.worker import Failure, failure_of
from tests.runtimes.processes import programs
from tests.runtimes.processes.watching import alive, run_everywhere, wait_until


def misbehaviour(
    deed: Callable[[], None], *, parties: int = 2, culprit: str = "party-1", timeout: float = 8.0
) -> tuple[Exception, float]:
    started = time.monotonic()
    with pytest.raises((PartyLostError, ProtocolError, UnsupportedError)) as caught:
        run_everywhere(Processes(timeout=timeout), programs.Misbehave(culprit, deed), parties)
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
    # Of an own error, also where it was raised; of a death, there is nothing to show.
    raised = deed in (programs.fail, programs.leave)
    assert ("programs.py" in traceback_of(error).split("direct cause")[0]) is raised
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
        run_everywhere(Processes(timeout=8), programs.EndEarly(), 2)


@pytest.mark.slow
def test_what_a_party_started_is_ended_too(tmp_path: Path) -> None:
    program: Program = programs.StartGrandchild(str(tmp_path / "pid"))
    with pytest.raises(PartyLostError, match="failed after starting"):
        run_everywhere(Processes(timeout=8), program, 2)
    for note in tmp_path.iterdir():
        pid = int(note.read_text())
        assert wait_until(partial(lambda number: not alive(number), pid))


@dataclass
class Ended:
    """What is known of a party that failed."""

    name: str
    failure: Failure | None = None
    died: str | None = None
    reply: None = None
    cause: None = None
    frozen: None = None
    settled: bool = True
    last_words: str = ""


def test_an_altered_share_comes_before_whatever_else_is_said() -> None:
    altered = TamperedShareError("step 7, masked value: it does not fit its MACs")
    honest = Ended("party-0", failure_of(altered))
    # Whoever altered it dies, raises an error of its own, or loses contact.
    cheats = [
        Ended("party-1", died="was killed by SIGKILL"),
        Ended("party-1", failure_of(ProtocolError("party-0 sent nonsense"))),
        Ended("party-1", failure_of(PartyLostError("party-0 has left", "party-0"))),
    ]
    for cheat in cheats:
        for failed in ([cheat, honest], [honest, cheat]):
            assert verdict([honest, cheat], failed) is altered
    # Of two, the one that was heard of first.
    other = Ended("party-1", failure_of(TamperedShareError("step 8")))
    assert verdict([honest, other], [other, honest]) is other.failure.error  # type: ignore[union-attr]
    assert "SIGKILL" in str(verdict(cheats, cheats))
