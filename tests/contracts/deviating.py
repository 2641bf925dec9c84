"""A star in which one party does not follow the protocol: it changes what it replies."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from privtrain.core.runtime import Party, Payload, Reply, Setting, Star, StarRuntime, Step
from privtrain.runtimes.in_process import InProcess

Deviation = Callable[[Payload, Payload], Payload]
"""What a party was sent and what it would honestly reply, to what it replies."""


@dataclass(frozen=True)
class DeviatingStep:
    """A step after which one party changes its reply.

    Args:
        step: What all parties were told to do.
        party: Who deviates.
        how: What it makes of its reply.
    """

    step: Step
    party: str
    how: Deviation

    def __call__(self, payload: Payload, party: Party) -> Reply:
        reply = self.step(payload, party)
        if party.name != self.party:
            return reply
        return replace(reply, message=self.how(payload, reply.message))


@dataclass
class DeviatingStar:
    """An open star with a deviating party."""

    star: Star
    party: str
    how: Deviation

    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        changed = DeviatingStep(step, self.party, self.how)
        return self.star.map(changed, payloads, round=round, at_least=at_least)

    def states(self) -> dict[str, Payload]:
        return self.star.states()

    def restore(self, states: Mapping[str, Payload]) -> None:
        self.star.restore(states)


@dataclass(frozen=True)
class Deviating:
    """Any star runtime, with one party that deviates.

    Args:
        party: Who deviates.
        how: What it makes of its replies.
        inner: Where parties run.
    """

    party: str
    how: Deviation
    inner: StarRuntime = field(default_factory=InProcess)

    @property
    def name(self) -> str:
        return f"{self.inner.name}, with a deviating party"

    @property
    def real(self) -> bool:
        return self.inner.real

    @contextmanager
    def open(self, setting: Setting) -> Iterator[Star]:
        with self.inner.open(setting) as star:
            yield DeviatingStar(star, self.party, self.how)
