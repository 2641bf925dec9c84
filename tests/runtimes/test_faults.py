"""Two parties and a dealer in processes: whichever role fails, all of them stop in time, named."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from privtrain.core.errors import PartyLostError, PrivtrainError
from privtrain.core.links import Link
from privtrain.core.runtime import MeshReply, Party, Payload, Program, link_of
from privtrain.mpc.material.journal import Journal, Spent
from tests.disk import little_space
from tests.forking import start_server
from tests.runtimes.forked import Forked
from tests.runtimes.processes.watching import alive, children

ROLES = ("left", "right", "dealer")
STEPS = 3
TIMEOUT = 4.0
SLACK = 2.0
"""Seconds for ending three processes on a busy machine."""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    start_server()
    before = children()
    yield
    assert children() <= before


def nothing(link: Link) -> None:
    return


@dataclass(frozen=True)
class Stream:
    """Deals for some steps, or computes with what is dealt; one role misbehaves after the first.

    Args:
        note: Folder in which each role notes who it is, and whom it lost.
        culprit: The role that does the deed.
        deed: What it does before its second step.
    """

    note: str
    culprit: str = ""
    deed: Callable[[Link], None] = nothing

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        link = link_of(party)
        self._note(f"{party.name} is", str(os.getpid()))
        try:
            return {"sum": self._run(link, party.name)}
        except PartyLostError as error:
            self._note(f"{party.name} lost", error.party)
            raise

    def _note(self, name: str, text: str) -> None:
        beside = Path(self.note, f".{name}")
        beside.write_text(text)
        beside.rename(Path(self.note, name))

    def _run(self, link: Link, name: str) -> torch.Tensor:
        total = torch.zeros(4, dtype=torch.int64)
        for step in range(STEPS):
            if step == 1 and name == self.culprit:
                self._note("deed", str(time.time()))
                self.deed(link)
            if name == "dealer":
                for other in ROLES[:2]:
                    link.send(other, "material", total + step)
                # So far ahead, and no further.
                for other in ROLES[:2]:
                    link.receive(other, "used")
                continue
            (other,) = {"left", "right"} - {name}
            material = link.receive("dealer", "material")
            link.send(other, "masked share", material)
            total += link.receive(other, "masked share")
            link.send("dealer", "used", torch.zeros(0))
        return total


def run(note: Path, culprit: str, deed: Callable[[Link], None]) -> dict[str, MeshReply]:
    program: Program = Stream(str(note), culprit, deed)
    return Forked(timeout=TIMEOUT).run(dict.fromkeys(ROLES, program), {})


def die(link: Link) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(link: Link) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang(link: Link) -> None:
    time.sleep(600)


def dawdle(link: Link) -> None:
    """Longer than several heartbeats, and not as long as the timeout."""
    time.sleep(0.5 * TIMEOUT)


def fill_the_pipe(link: Link) -> None:
    """Sends more than any buffer holds, to somebody who is frozen by then."""
    time.sleep(1)
    for _ in range(4):
        link.send("left", "material", torch.zeros(2**22))


def lost(note: Path, culprit: str, deed: Callable[[Link], None]) -> tuple[PartyLostError, float]:
    """The error, and how many seconds after the deed it came."""
    with pytest.raises(PartyLostError) as caught:
        run(note, culprit, deed)
    return caught.value, time.time() - float((note / "deed").read_text())


def stopped_from_outside(note: Path, name: str) -> threading.Thread:
    """Freezes a role once another one is at its deed: a suspended machine, a debugger."""

    def stop() -> None:
        while not (note / "deed").exists():
            time.sleep(0.01)
        os.kill(int((note / f"{name} is").read_text()), signal.SIGSTOP)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("culprit", "deed", "words"),
    [
        ("dealer", die, "SIGKILL"),
        ("right", die, "SIGKILL"),
        ("dealer", freeze, "froze"),
        ("left", freeze, "froze"),
        ("dealer", hang, "did not answer"),
    ],
)
def test_a_role_that_stops_in_the_middle_ends_all_and_is_named(
    culprit: str, deed: Callable[[Link], None], words: str, tmp_path: Path
) -> None:
    error, seconds = lost(tmp_path, culprit, deed)
    assert error.party == culprit
    assert culprit in str(error) and words in str(error)
    # A program that hangs beats on: it is missed when the first one has waited for the timeout,
    # and the others are given a fifth of it to say what they saw.
    assert seconds < (1.2 if deed is hang else 1.0) * TIMEOUT + SLACK
    pids = [int(path.read_text()) for path in tmp_path.glob("* is")]
    assert len(pids) == 3 and not any(alive(pid) for pid in pids)
    if deed is die:
        # The others hear of it themselves; who ends first is then missed by the next one.
        saw = {path.name: path.read_text() for path in tmp_path.glob("* lost")}
        assert culprit in saw.values() and f"{culprit} lost" not in saw


@pytest.mark.parametrize("culprit", ["right", "dealer"])
def test_a_slow_role_is_waited_for(culprit: str, tmp_path: Path) -> None:
    replies = run(tmp_path, culprit, dawdle)
    assert time.time() - float((tmp_path / "deed").read_text()) > 0.5 * TIMEOUT
    assert [int(replies[name].payload["sum"][0]) for name in ROLES[:2]] == [3, 3]


def test_a_dealer_that_is_stopped_from_outside_is_named(tmp_path: Path) -> None:
    thread = stopped_from_outside(tmp_path, "dealer")
    error, seconds = lost(tmp_path, "right", dawdle)
    thread.join(10)
    assert error.party == "dealer" and "froze" in str(error)
    assert seconds < TIMEOUT + SLACK


def test_a_dealer_whose_party_takes_nothing_stops(tmp_path: Path) -> None:
    thread = stopped_from_outside(tmp_path, "left")
    error, seconds = lost(tmp_path, "dealer", fill_the_pipe)
    thread.join(10)
    assert error.party == "left" and "froze" in str(error)
    assert seconds < TIMEOUT + SLACK


def journal(path: Path) -> Journal:
    result = Journal(path, "study", "right")
    result.resume()
    return result


SPENT = Spent(segments=1, blocks=3, step=0, session="ab" * 16)


def spend_and_die(path: Path, link: Link) -> None:
    journal(path).spend(SPENT)
    die(link)


def spend_on_a_full_disk(path: Path, link: Link) -> None:
    with little_space(path.stat().st_size + 1):
        journal(path).spend(SPENT)


def test_a_crash_between_journal_and_use_ends_all_and_stays_spent(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    Journal(path, "study", "right").begin()
    error, seconds = lost(tmp_path, "right", partial(spend_and_die, path))
    assert error.party == "right" and "SIGKILL" in str(error)
    assert seconds < TIMEOUT + SLACK
    assert journal(path).spent == SPENT


def test_a_full_disk_at_the_journal_ends_all_and_spends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    Journal(path, "study", "right").begin()
    with pytest.raises(PrivtrainError, match=r"^right: The disk of .* is full.*none was used"):
        run(tmp_path, "right", partial(spend_on_a_full_disk, path))
    assert time.time() - float((tmp_path / "deed").read_text()) < TIMEOUT + SLACK
    assert journal(path).spent == Spent()
