"""The plain sum: the aggregator reads every message."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.core.observers import Exposure, Observer
from privtrain.core.runtime import Party, Reply, Runtimes
from privtrain.core.statement import InputPrivacy
from privtrain.core.trainer import Run
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.release.aggregation import Gathering, Total
from privtrain.release.exposure import sum_exposure
from privtrain.release.finish import Finish
from privtrain.release.placement import Placement


@dataclass(frozen=True)
class PlainSum:
    """Adds messages as they are, in float64 and in the order of the parties."""

    caveats: ClassVar[tuple[str, ...]] = ()

    @property
    def others(self) -> tuple[str, ...]:
        return ()

    def refusal(self, mechanism: Mechanism, noise_at: Placement) -> None:
        return

    def check(
        self, finish: Finish, runtimes: Runtimes, *, parties: int, largest: float | None
    ) -> None:
        return

    def begin(self, cohort: tuple[str, ...], run: Run, *, round: int, kind: str) -> Gathering:
        return Gathering(cohort=cohort, round=round, kind=kind)

    def seal(self, contribution: Tensor, party: Party, *, kind: str, grid: float | None) -> Reply:
        return Reply({kind: contribution})

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        """The sum of the messages, accumulated in float64.

        Raises:
            ProtocolError: If there is no message, one lacks its tensor, or one has another shape
                than the first.
        """
        kind = gathering.kind
        messages = [reply.message for reply in replies.values()]
        if not messages or any(kind not in message for message in messages):
            raise ProtocolError(
                f"Expected messages that each hold {kind!r}; got "
                f"{[sorted(message) for message in messages]}."
            )
        # In float64: 2^24 + 1 is lost in float32. In party order: addition of floats is not
        # associative, and the same seed has to give the same bits under every runtime.
        total = torch.zeros_like(messages[0][kind], dtype=torch.float64)
        for message in messages:
            if message[kind].shape != total.shape:
                raise ProtocolError(
                    f"A message {kind!r} has shape {tuple(message[kind].shape)}, "
                    f"the first one {tuple(total.shape)}."
                )
            total += message[kind]
        return Total(*gathering.parted(total), tuple(replies))

    def exposure(self, observer: Observer, noise_at: Placement, *, parties: int) -> Exposure:
        return sum_exposure(
            observer, noise_at, parties=parties, reads_messages=True, knows_noise=True
        )

    def readers(self, sender: str, kind: str) -> tuple[InputPrivacy, ...]:
        return (
            InputPrivacy(
                reader="aggregator",
                reads=f"every {sender}'s {kind}, one by one",
                honest="the aggregator",
            ),
        )
