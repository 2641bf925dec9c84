"""How much memory this process used at most."""

import resource
import sys
from pathlib import Path


def reset_peak_memory() -> bool:
    """Starts a new measurement of the peak, where the system can (Linux).

    Returns:
        Whether it could; else `peak_memory` speaks of the whole life of the process.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """Largest resident memory of this process since the last reset, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # macOS counts in bytes, Linux in kibibytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
