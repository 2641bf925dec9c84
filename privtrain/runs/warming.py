"""A discarded warm-up: what only the first run of a process pays for is paid before the clock.

Imports, the first calls of torch, its optimizers and the engines took the first row of a comparison
3.6 to 9.5 times as long as the same run later. The stand-in is a tiny model on made-up rows, which
takes milliseconds whatever the user's rows are. Nothing of the user's is called, no ledger pays, no
folder is written to, and all generators stand afterwards where they stood.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from privtrain.core.abilities import Finished, Warming
from privtrain.core.errors import UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.outcome import Outcome
from privtrain.core.runtime import (
    Importing,
    MeshReply,
    MeshRuntime,
    Payload,
    Program,
    Runtimes,
    Setting,
    StarRuntime,
)
from privtrain.core.seeding import OnceOnly, SeededEntropy, Seeds, global_generator
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, Mesh, Run, Trainer
from privtrain.core.transcript import Transcript
from privtrain.runs.opening import LateStar
from privtrain.runtimes.in_process import InProcess

ROWS, SIDE, CLASSES = 32, 6, 2


def _pictures() -> nn.Module:
    flat = 2 * (SIDE - 2) ** 2
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(flat, CLASSES))


def _table() -> nn.Module:
    return nn.Sequential(nn.Linear(SIDE, SIDE), nn.ReLU(), nn.Linear(SIDE, CLASSES))


# Convolutions have first calls of their own, and what trains on shares takes linear layers alone.
STAND_INS = ((_pictures, (1, SIDE, SIDE)), (_table, (SIDE,)))


@dataclass
class WarmUps:
    """The warm-ups of one comparison: one for each kind of trainer, before its first row.

    Args:
        runtimes: Where parties run.
        device: Where tensors are computed.
    """

    runtimes: Runtimes
    device: str
    _done: list[Trainer] = field(default_factory=list, init=False, repr=False)

    def before(self, trainer: Trainer) -> None:
        """Warms up for a trainer, where no one of its kind was trained before.

        A trainer of the user's own has no stand-in; for it torch alone is warmed up.
        """
        if isinstance(trainer, Finished):
            return
        brief = trainer.briefly() if isinstance(trainer, Warming) else None
        if self._done and (brief is None or brief in self._done):
            return
        with kept_settings(), recorded_gradients():
            for model, shape in STAND_INS:
                task, data = _made_up(model, shape)
                if not self._done:
                    _first_steps(task, data, self.device)
                if brief is not None:
                    _discarded(brief, task, data, self.runtimes, self.device)
        self._done.append(trainer if brief is None else brief)


def _made_up(model: object, shape: tuple[int, ...]) -> tuple[Task, FederatedData]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand((ROWS, *shape), generator=generator)
    rows = Rows(inputs, torch.arange(ROWS) % CLASSES)
    half = torch.arange(ROWS // 2)
    data = FederatedData(
        train={"party-0": rows.take(half), "party-1": rows.take(half + ROWS // 2)},
        test=rows,
        public=rows,
        public_rows=ROWS,
    )
    return Task(model=model), data  # type: ignore[arg-type]  # a factory


def _first_steps(task: Task, data: FederatedData, device: str) -> None:
    """Forward, backward and a step of torch's own optimizer."""
    try:
        # Threads share the generators: a fit of another one may be in the middle of its draws.
        with global_generator(Seeds(0)["warm-up", 0, ""]):
            model = task.model().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = data.test.to(device)
        value = task.loss(model(rows.inputs), rows.labels).mean()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    except OWN_ERRORS:  # the rows say what is wrong, such as with the device
        return


def _discarded(
    brief: Trainer, task: Task, data: FederatedData, runtimes: Runtimes, device: str
) -> None:
    """Trains once, with a ledger that pays for everything and a mesh that starts no process."""
    transcript, outcome = Transcript(), Outcome()
    seeds, entropy = Seeds(0), SeededEntropy(0, root=b"warm-up")
    setting = Setting(data=data, seeds=seeds, entropy=entropy, transcript=transcript, device=device)
    with ExitStack() as stack:
        try:
            run = Run(
                ledger=_Unpaid(),
                transcript=transcript,
                seeds=seeds,
                entropy=OnceOnly(entropy),
                star=LateStar(_star(runtimes.star), setting, stack),
                mesh=Mesh(_NoProcesses(runtimes.mesh), transcript, outcome, seeds),
                device=device,
                outcome=outcome,
            )
            brief.train(task, data, run)
        except OWN_ERRORS:  # such as a missing library; its row says so
            return


def _star(star: StarRuntime | None) -> StarRuntime:
    if star is None or isinstance(star, Importing):
        if star is not None:
            star.import_parts()
        return InProcess()
    return InProcess() if star.real else star


@dataclass
class _Unpaid:
    """A ledger of made-up rows, whose releases cost nobody anything."""

    spent_by_kind: dict[str, int] = field(default_factory=dict)

    @property
    def spent(self) -> int:
        return sum(self.spent_by_kind.values())

    def spend(self, count: int = 1, *, kind: str = RELEASE) -> bool:
        self.spent_by_kind[kind] = self.spent_by_kind.get(kind, 0) + count
        return True

    def use(self, count: int = 1, *, kind: str = RELEASE) -> None:
        return


@dataclass(frozen=True)
class _NoProcesses:
    """A mesh that is never started: each run starts processes of its own, and pays for that.

    Args:
        mesh: The mesh that it stands for; None where there is none.
    """

    mesh: MeshRuntime | None
    name: ClassVar[str] = "none"
    real: ClassVar[bool] = False

    def run(
        self,
        programs: Mapping[str, Program],
        inputs: Mapping[str, Payload],
        *,
        seeds: Seeds = Seeds(0),
        report: Callable[[int, int], None] | None = None,
    ) -> dict[str, MeshReply]:
        if isinstance(self.mesh, Importing):
            self.mesh.import_parts()
        raise UnsupportedError("A warm-up starts no processes.")
