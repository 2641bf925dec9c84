"""Which processes are alive, and what parties bring to a program."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from privtrain.core.runtime import MeshReply, Payload, Program
from privtrain.runtimes.processes.mesh import Processes


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children() -> set[int]:
    """Processes that this one started, and what they started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return own - {os.getpid()}


def inputs(count: int) -> dict[str, Payload]:
    return {f"party-{i}": {"number": torch.tensor([float(i + 1)])} for i in range(count)}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def run_everywhere(runtime: Processes, program: Program, parties: int) -> dict[str, MeshReply]:
    """One program at every party, each of which brings a number."""
    brought = inputs(parties)
    return runtime.run(dict.fromkeys(brought, program), brought)
