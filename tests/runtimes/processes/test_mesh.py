import os
import pickle
from collections.abc import Callable

import pytest

from privtrain.runtimes.processes.mesh import Processes
from tests.contracts.mesh_runtime import CHECKS, QUICK
from tests.runtimes.processes import programs
from tests.runtimes.processes.watching import inputs


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow], id=c.__name__)
        for c in CHECKS
    ],
)
def test_keeps_the_promises_of_a_mesh(check: Callable[[Processes], None]) -> None:
    check(Processes(timeout=30))


def test_parties_run_a_program_in_processes_of_their_own() -> None:
    seen: list[tuple[int, int]] = []
    runtime = Processes(timeout=30)
    replies = runtime.run(
        dict.fromkeys(inputs(2), programs.AddUp()),
        inputs(2),
        report=lambda done, total: seen.append((done, total)),
    )
    assert list(replies) == ["party-0", "party-1"]
    assert [float(reply.payload["total"]) for reply in replies.values()] == [3.0, 3.0]
    pids = {int(reply.payload["pid"]) for reply in replies.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    for name, reply in replies.items():
        assert int(reply.payload["threads"]) == 1
        assert reply.payload["tls"].tolist() == [True]
        assert {entry.sender for entry in reply.entries} == {name}
        assert reply.setups[0].party == name
        assert reply.peak_memory_bytes > 20e6
    assert seen and all(total == 3 and 1 <= done <= 3 for done, total in seen)


def test_is_a_frozen_value_with_checked_arguments() -> None:
    runtime = Processes(timeout=7.0)
    assert pickle.loads(pickle.dumps(runtime)) == runtime
    assert runtime.real and runtime.name == "processes"
    with pytest.raises(ValueError, match=r"timeout=0\.0"):
        Processes(timeout=0.0)
