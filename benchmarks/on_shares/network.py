"""Seconds over other networks, projected from counted rounds and bytes: nothing is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A link between any two parties.

    Args:
        latency_ms: Milliseconds that a message is on its way.
        bandwidth_mbit: Megabits that a party sends or receives in a second.
    """

    latency_ms: float
    bandwidth_mbit: float

    def milliseconds(self, rounds: int, sent: int) -> float:
        """Rounds times latency and bytes over bandwidth; computing is not in it.

        Args:
            rounds: Messages in sequence.
            sent: Bytes that one party sends, or that reach one.
        """
        return rounds * self.latency_ms + 8 * sent / (1e3 * self.bandwidth_mbit)


NETWORKS = {"lan": Network(0.25, 1_000.0), "wan": Network(20.0, 100.0)}
