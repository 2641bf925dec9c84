"""What the study files of hand-started parties name: a task, and this host's rows."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from privtrain.core.abilities import Keeping
from privtrain.core.task import Rows, Task

FEATURES, CLASSES, EACH = 12, 4, 30


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def table() -> Rows:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4 * EACH, FEATURES, generator=generator)
    truth = torch.randn(FEATURES, CLASSES, generator=generator)
    return Rows(inputs, (inputs @ truth).argmax(1))


def make(rank: int) -> tuple[Task, Rows, Rows]:
    """A party's own rows, and the same test rows everywhere."""
    own = torch.arange(rank * EACH, (rank + 1) * EACH)
    test = torch.arange(3 * EACH, 4 * EACH)
    return Task(model=model), table().take(own), table().take(test)


def make_or_help(rank: int | None) -> tuple[Task, Rows | None]:
    """A party's own rows; none for who helps."""
    return Task(model=model), None if rank is None else make(rank)[1]


def make_test_or_help(rank: int | None) -> tuple[Task, Rows | None, Rows | None]:
    """The same, with test rows."""
    return (Task(model=model), None, None) if rank is None else make(rank)


def columns(rank: int) -> tuple[Task, Rows]:
    """A party's own columns; rank 1 also holds the labels."""
    rows, cut = table(), (slice(0, 5), slice(5, FEATURES))[rank]
    return Task(model=model), Rows(rows.inputs[:, cut], rows.targets if rank == 1 else None)


def narrow(rank: int) -> tuple[Task, Rows]:
    """Rank 1 has a column less."""
    task, rows, _ = make(rank)
    return task, rows if rank != 1 else Rows(rows.inputs[:, 1:], rows.targets)


TOO_LARGE = 4938.125


def too_large(rank: int | None) -> tuple[Task, Rows | None]:
    """Rank 1 has rows beyond fixed point."""
    task, rows = make_or_help(rank)
    return task, rows if rank != 1 else Rows(torch.full((EACH, FEATURES), TOO_LARGE), rows.targets)


def stop_later(rank: int) -> tuple[Task, Rows]:
    """The named rank stops or kills itself after the first steps."""
    task, rows, _ = make(rank)
    culprit, name = os.environ["DEED"].split()
    if rank == int(culprit):
        _arm(signal.Signals[name])
    Path(os.environ["NOTE"] + f"-{rank}").write_text(str(os.getpid()))
    return task, rows


def _arm(deed: signal.Signals) -> None:
    """Strikes in the middle of the protocol: at the fortieth call of the channel."""
    from privtrain.mpc.crypten.channel import Channel

    stage, calls = Channel._stage, [0]

    def counted(self: Channel, operation: str, tensors: object) -> str:
        calls[0] += 1
        if calls[0] == 40:
            os.kill(os.getpid(), deed)
        return stage(self, operation, tensors)

    Channel._stage = counted  # type: ignore[method-assign]  # only in this process


def dies_writing(rank: int | None) -> tuple[Task, Rows | None]:
    """The named rank is killed where it would keep the shares after step 6."""
    from privtrain.mpc import checkpoints

    write = checkpoints.write

    def die(keeping: Keeping, kept: checkpoints.Kept) -> None:
        if kept.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        write(keeping, kept)

    if os.environ.get("DEED") == str(rank):
        checkpoints.write = die
    return make_or_help(rank)
