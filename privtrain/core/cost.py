"""What a run cost: bytes, rounds, seconds and memory."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from privtrain.core.transcript import Transcript


class Basis(StrEnum):
    """What the bytes and rounds of a cost were taken from."""

    MEASURED = "measured"
    """Counted from the messages of the run."""

    PUBLIC = "public figures"
    """Computed from settings and public numbers, since the messages follow a secret sample."""

    WITHHELD = "withheld"
    """Not stated, since they follow a secret sample or the number of private rows."""

    ELSEWHERE = "trained elsewhere"
    """Not known here: the model was trained elsewhere."""


@dataclass(frozen=True, kw_only=True)
class PublicCost:
    """Bytes and rounds as public figures give them: settings, shapes, expected numbers.

    Who was drawn, how many were, and how many rows they hold stays out of it.

    Args:
        bytes_sent: Bytes of tensors sent between parties; None where they follow the number of
            private rows.
        rounds: Communication rounds.
        bytes_sent_by_party: The same by sender or by role, such as "all clients"; never the name
            of a party whose part in a sample is secret.
    """

    bytes_sent: int | None
    rounds: int
    bytes_sent_by_party: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, transcript: Transcript) -> "PublicCost":
        """What was measured, of a protocol whose messages and senders are public."""
        return cls(
            bytes_sent=transcript.bytes_sent,
            rounds=transcript.rounds,
            bytes_sent_by_party=transcript.bytes_sent_by_party,
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run cost, as it may stand beside the guarantees of the run.

    Args:
        bytes_sent: Bytes of tensors sent between parties in the whole run; None where they are
            withheld.
        bytes_sent_by_party: The same for each sender or role.
        rounds: Communication rounds; None where they are withheld.
        seconds: Wall-clock time of training; not a number where it is withheld, as it is of the
            trial that `tune` chose.
        peak_memory_bytes: Largest resident memory of one process while it trained, be it this one
            or a worker in which parties run; not a number where it is withheld.
        basis: Whether bytes and rounds were measured, or follow from public figures.
        cpu_seconds: Processor time of training, of all threads of this process, of its children
            and of workers in which parties run. It hardly depends on what else the machine does.
            None in files of earlier versions; not a number where it is withheld.
    """

    bytes_sent: int | None
    rounds: int | None
    seconds: float
    peak_memory_bytes: float
    bytes_sent_by_party: Mapping[str, int] = field(default_factory=dict)
    basis: Basis = Basis.MEASURED
    # Not what two runs are compared by: no two of them take the same time.
    cpu_seconds: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        if self.basis is Basis.ELSEWHERE:
            return self.basis
        figures = [f"{self.seconds:.3g} s"] if math.isfinite(self.seconds) else []
        if self.bytes_sent is not None and self.rounds is not None:
            figures.append(f"{self.bytes_sent:,} bytes sent in {self.rounds:,} rounds")
        if math.isfinite(self.peak_memory_bytes):
            figures.append(f"{self.peak_memory_bytes / 1e6:,.0f} MB at most")
        basis = "" if self.basis is Basis.MEASURED else f" (bytes and rounds: {self.basis})"
        return ", ".join(figures) + basis


def reset_peak_memory() -> bool:
    """Starts a new measurement of the peak, where the system can (Linux).

    Returns:
        Whether it could; else `peak_memory` speaks of the whole life of the process.
    """
    # Without it a run would be charged for what the process held before, such as an earlier run.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """Largest resident memory of this process since the last reset, in bytes."""
    # The kernel's own mark first: a reset moves it, while `getrusage` never falls.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Here and not above: Windows has no such module, and everything imports this file.
    import resource

    # macOS counts in bytes, Linux in kibibytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended, since they began."""
    # Not by `os.times()`, which counts in ticks of ten milliseconds: a short run would take none.
    try:
        # Here and not above: Windows has no such module, nor children that have ended.
        import resource
    except ImportError:
        return time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
