"""Programs for real processes; each can misbehave at a chosen party."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from privtrain.core.errors import UnsupportedError
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.core.transcript import Entry
from privtrain.runtimes.links import SocketLink


def connect(party: Party) -> None:
    link = link_of(party)
    host, port = link.meeting
    wait = timedelta(seconds=link.timeout)
    store = dist.TCPStore(host, port, is_master=False, timeout=wait)  # type: ignore[attr-defined]
    dist.init_process_group(
        "gloo", store=store, rank=link.rank, world_size=len(link.names), timeout=wait
    )


@dataclass(frozen=True)
class AddUp:
    """All parties add up their numbers."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        print(f"{party.name} prints")
        connect(party)
        total = inputs["number"].clone()
        for done in range(3):
            link_of(party).report(done + 1, 3)
            time.sleep(0.2)
        dist.all_reduce(total)
        link_of(party).entries.append(Entry(party.name, "somebody", "number", (1,), 8, 0))
        link_of(party).knows("its number")
        threads = torch.tensor(torch.get_num_threads())
        link = link_of(party)
        assert isinstance(link, SocketLink)
        others = [name for name in link.names if name != party.name]
        for name in others:
            link.send(name, "number", inputs["number"])
        for name in others:
            link.receive(name, "number")
        secured = [isinstance(link._out[name].connection, ssl.SSLSocket) for name in others]
        return {
            "total": total,
            "threads": threads,
            "pid": torch.tensor(os.getpid()),
            "tls": torch.tensor(secured),
        }


@dataclass(frozen=True)
class Misbehave:
    """One party does something else, the others wait for it."""

    culprit: str
    deed: Callable[[], None]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        connect(party)
        number = torch.ones(4)
        dist.all_reduce(number)
        if party.name == self.culprit:
            self.deed()
        dist.all_reduce(number)
        return {"number": number}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def abort() -> None:
    os.abort()


def send_another_count() -> None:
    dist.all_reduce(torch.ones(400_000))


def fail() -> None:
    raise ZeroDivisionError("one over nothing")


def refuse() -> None:
    raise UnsupportedError("this needs a package that is missing")


def leave() -> None:
    sys.exit(3)


def sleep() -> None:
    time.sleep(600)


@dataclass(frozen=True)
class StartGrandchild:
    """Starts another process, notes its number and fails."""

    note: str

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        child = subprocess.Popen(["sleep", "600"])
        Path(f"{self.note}-{link_of(party).rank}").write_text(str(child.pid))
        raise ValueError("failed after starting another process")


@dataclass(frozen=True)
class EndEarly:
    """The first party returns at once, the others wait for it."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        connect(party)
        if link_of(party).rank > 0:
            dist.all_reduce(torch.ones(1))
        return {}


@dataclass(frozen=True)
class NoteAndSleep:
    """Notes the process's number and sleeps."""

    note: str

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        Path(f"{self.note}-{link_of(party).rank}").write_text(str(os.getpid()))
        time.sleep(600)
        return {}
