"""What a run leaves beside the predictor."""

from dataclasses import dataclass, field
from typing import Any

from privtrain.core.cost import PublicCost
from privtrain.core.result import History, Members


@dataclass
class Outcome:
    """What a run leaves beside the predictor.

    Args:
        history: Diagnostics over the rounds.
        notes: What the reader of the result should know.
        members: Which training rows were used; None where all of them were.
        halted: Why training stopped early, or None.
        peak_memory_bytes: Largest memory of another process of this run.
        cpu_elsewhere: Processor time of each worker that is no child of this process.
        assumptions: What turned out to be assumed by every guarantee while the run went on.
        public_cost: Bytes and rounds by public figures alone, which are published beside a promise
            that counts on a secret sample or hides a number; None withholds them there.
        realised: Events that are known only after the releases, by observer name.
        exact: What the releases exactly told, by observer name: events after more and more of
            them, each with their number; private.
    """

    history: History = field(default_factory=History)
    notes: list[str] = field(default_factory=list)
    members: Members | None = None
    halted: str | None = None
    peak_memory_bytes: int = 0
    assumptions: list[str] = field(default_factory=list)
    public_cost: PublicCost | None = None
    realised: dict[str, Any] = field(default_factory=dict)
    exact: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    cpu_elsewhere: dict[str, float] = field(default_factory=dict)

    def assume(self, *texts: str) -> None:
        """Takes note of what every guarantee assumes, of each text once."""
        self.assumptions.extend(
            text for text in dict.fromkeys(texts) if text not in self.assumptions
        )

    def note(self, *texts: str) -> None:
        """Takes note of what the reader of the result should know, of each text once."""
        self.notes.extend(text for text in dict.fromkeys(texts) if text not in self.notes)

    def report_cpu(self, process: str, seconds: float) -> None:
        """Takes note of the processor time that a worker has taken since it began."""
        # Replies may come in any order: the latest is the largest.
        self.cpu_elsewhere[process] = max(seconds, self.cpu_elsewhere.get(process, 0.0))

    def report_memory(self, peak: int) -> None:
        """Takes note of the largest resident memory of another process of this run, in bytes."""
        # The largest process, not their sum: real parties have a machine each.
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
