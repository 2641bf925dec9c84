"""What a run cost: bytes, rounds, seconds and memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run cost.

    Args:
        bytes_sent: Bytes of tensors sent between parties in the whole run.
        bytes_sent_by_party: The same for each sender.
        rounds: Communication rounds.
        seconds: Wall-clock time of training.
        peak_memory_bytes: Largest resident memory of one process while it trained.
    """

    bytes_sent: int
    rounds: int
    seconds: float
    peak_memory_bytes: int
    bytes_sent_by_party: Mapping[str, int] = field(default_factory=dict)
