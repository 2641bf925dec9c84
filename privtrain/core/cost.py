"""What a run cost: bytes, rounds, seconds and memory."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run cost.

    Args:
        bytes_sent: Bytes of tensors sent between parties in the whole run.
        bytes_sent_by_party: The same for each sender.
        rounds: Communication rounds.
        seconds: Wall-clock time of training; not a number where it is withheld, as it is of the
            trial that `tune` chose.
        peak_memory_bytes: Largest resident memory of one process while it trained; not a number
            where it is withheld.
    """

    bytes_sent: int
    rounds: int
    seconds: float
    peak_memory_bytes: float
    bytes_sent_by_party: Mapping[str, int] = field(default_factory=dict)


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
