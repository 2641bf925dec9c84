"""Threads keep the promises of a mesh, but for what only a process can do; none is left behind."""

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

import privtrain as pt
from privtrain.core.errors import PartyLostError, ProtocolError, UnsupportedError
from privtrain.core.runtime import Importing, Party, Payload, Program, link_of
from privtrain.runtimes.threads import Threads
from tests.contracts import mesh_runtime
from tests.contracts.mesh_runtime import CHECKS, FACTORS, Fail, multiply
from tests.extras import need

# A death takes the process along: tests/runtimes/processes tries it.
HERE = [check for check in CHECKS if check is not mesh_runtime.a_role_that_dies_is_named]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("check", HERE)
def test_keeps_the_promises_of_a_mesh(check: Callable[[Threads], None]) -> None:
    check(Threads(timeout=10))


def test_is_a_frozen_value_with_checked_arguments() -> None:
    runtime = pt.Threads(timeout=7.0)
    assert pickle.loads(pickle.dumps(runtime)) == runtime
    assert not runtime.real and runtime.name == "threads"
    assert isinstance(runtime, Importing)
    runtime.import_parts()
    assert pt.Runtimes(mesh=runtime).mesh == runtime
    assert not pt.Runtimes(mesh=runtime).real
    with pytest.raises(ValueError, match=r"timeout=0\.0"):
        Threads(timeout=0.0)


@dataclass(frozen=True)
class Overwrite:
    """Writes into its own program and into what it was given."""

    kept: torch.Tensor = field(default_factory=lambda: torch.zeros(1))

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        self.kept.add_(1 + link_of(party).rank)
        inputs["x"].add_(5)
        time.sleep(0.05)
        link_of(party).report(1, 2)
        return {"kept": self.kept, "x": inputs["x"]}


def test_parties_share_nothing_and_the_first_one_reports() -> None:
    program, x = Overwrite(), torch.ones(1)
    seen: list[tuple[int, int]] = []
    main = threading.current_thread()

    def report(done: int, total: int) -> None:
        assert threading.current_thread() is main
        seen.append((done, total))

    replies = Threads().run(
        dict.fromkeys(("a", "b"), program), {"a": {"x": x}, "b": {"x": x}}, report=report
    )
    assert [float(reply.payload["kept"]) for reply in replies.values()] == [1, 2]
    assert [float(reply.payload["x"]) for reply in replies.values()] == [6, 6]
    assert float(program.kept) == 0 and float(x) == 1
    assert seen == [(1, 2)]
    assert all(reply.peak_memory_bytes > 20e6 for reply in replies.values())


def refuse(link: object) -> None:
    raise UnsupportedError("this needs a package that is missing")


def test_who_waits_for_a_failed_party_is_woken_long_before_the_timeout() -> None:
    """The dealer fails before it has connected to anybody, so that no connection tells of it."""
    started = time.monotonic()
    with pytest.raises(UnsupportedError, match=r"^dealer: this needs a package that is missing$"):
        multiply(Threads(timeout=40), dealer=Fail(refuse))
    assert time.monotonic() - started < 10


@dataclass(frozen=True)
class Sleep:
    """Does not answer for a while."""

    seconds: float

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        time.sleep(self.seconds)
        return {}


def test_a_party_that_does_not_answer_is_named() -> None:
    with pytest.raises(
        PartyLostError, match=r"dealer did not answer .* sent no 'triple share'"
    ) as e:
        multiply(Threads(timeout=0.5), dealer=Sleep(1.8))
    assert e.value.party == "dealer"
    assert "thread of dealer still runs" in e.value.__notes__[0]
    for thread in threading.enumerate():
        if thread.name == "party dealer":
            thread.join(10)


def test_slow_is_not_silent() -> None:
    """Slower than a heartbeat, quicker than the timeout."""

    @dataclass(frozen=True)
    class SlowDeal:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            time.sleep(1.2)
            return mesh_runtime.Deal()(inputs, party)

    replies = multiply(Threads(timeout=4), dealer=SlowDeal())
    assert int(replies["left"].payload["product"]) == -12345 * 678_901


def test_an_interrupt_ends_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("privtrain.runtimes.threads._watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        multiply(Threads(timeout=5), dealer=Sleep(0.5))


@dataclass(frozen=True)
class OpenCrypTen:
    """Opens an engine that keeps its communicator in a class of the process."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with pt.CrypTen().open(party):
            return {}


def test_an_engine_with_one_connection_a_process_refuses() -> None:
    need("crypten")
    program: Program = OpenCrypTen()
    with pytest.raises(UnsupportedError, match=r"runs in a thread.*mesh=Processes\(\)"):
        Threads(timeout=5).run(dict.fromkeys(("a", "b"), program), {})
    assert not torch.distributed.is_initialized()


def test_an_error_of_two_names_the_cause() -> None:
    with pytest.raises(ProtocolError, match="random bits"):
        multiply(Threads(timeout=5), dealer=mesh_runtime.Deal(kind="random bits"))
    assert set(FACTORS) == {"left", "right"}
