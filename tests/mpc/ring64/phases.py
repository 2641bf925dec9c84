"""Programs in two phases: the dealer deals into folders, then parties compute without it.

Run as a program with folders, for each of them one child computes on what lies there and is killed
where one party spends its material: the folder is called after the party and "before" or "after".
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.material.journal import Journal, Spent
from privtrain.mpc.ring64.ahead import Offline, Online
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.sharing import encode, share
from tests.mpc.ring64.mesh import Change, Ran, names_of, run, unchanged

STUDY = "5f" * 32
X = torch.tensor([[1.5, -2.0, 3.0], [0.25, 4.0, -1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Computes:
    """Products, comparisons and functions of shared rows, between announcements.

    Args:
        engine: With its phase.
        products: How many products there are.
        number: What every party announces.
    """

    engine: Ring64
    products: int = 2
    number: int = 7

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with self.engine.open(party) as session:
            said = session.announce(torch.tensor([self.number, link_of(party).rank]))
            rows = session.take(inputs["rows"])
            relu, bit = session.relu(rows.matmul(rows.t()))
            said += session.announce(torch.tensor([self.number]))
            for _ in range(self.products - 1):
                session.relu(rows.matmul(rows.t()))
            parts = [relu, bit, session.softmax(rows), session.sigmoid(rows)]
            largest = session.largest(rows.reshape(-1))
            opened = session.reveal([*parts, largest], kind="result share")
        names = ("relu", "bit", "softmax", "sigmoid", "largest")
        return {**dict(zip(names, opened, strict=True)), "said": torch.cat(said)}


def inputs_of(count: int, rows: torch.Tensor = X) -> dict[str, Payload]:
    shares = share(encode(rows), count, Keystream())
    return {name: {"rows": each} for name, each in zip(names_of(count), shares, strict=True)}


def deal(
    folder: Path,
    count: int = 2,
    *,
    products: int = 2,
    study: str = STUDY,
    timeout: float = 20.0,
    **more: Any,
) -> Ran:
    engine = Ring64(material=Offline(study=study, folder=folder, **more))
    program = Computes(engine, products)
    return run(program, count, inputs_of(count), engine=engine, timeout=timeout)


def compute(
    folder: Path,
    count: int = 2,
    rows: torch.Tensor = X,
    *,
    products: int = 2,
    number: int = 7,
    study: str = STUDY,
    timeout: float = 20.0,
    change: Change = unchanged,
) -> Ran:
    engine = Ring64(material=Online(study=study, folder=folder))
    program, inputs = Computes(engine, products, number), inputs_of(count, rows)
    return run(program, count, inputs, engine=engine, timeout=timeout, change=change)


def compute_and_die(folder: Path, name: str, when: str) -> None:
    """Computes, and kills the process at the one party where it spends its material."""
    spend = Journal.spend

    def dies(self: Journal, spent: Spent) -> None:
        if self.receiver != name or when == "after":
            spend(self, spent)
        if self.receiver == name:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.spend = dies  # type: ignore[method-assign]
    compute(folder)


if __name__ == "__main__":
    for place in map(Path, sys.argv[1:]):
        pid = os.fork()
        if pid == 0:
            compute_and_die(place, *place.name.split(" "))
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            raise RuntimeError(f"The child of {place} was not killed.")
