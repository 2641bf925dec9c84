"""Opening the parties of a run when they are first needed."""

from collections.abc import Mapping
from contextlib import ExitStack

from privtrain.core.runtime import Payload, Reply, Setting, Star, StarRuntime, Step


class LateStar:
    """A star whose parties start when they are first asked for something.

    A trainer without rounds then starts no parties, whatever a runtime makes of starting one.

    Args:
        runtime: Where parties run.
        setting: What the runtime needs to start them.
        stack: Closes them.
    """

    def __init__(self, runtime: StarRuntime, setting: Setting, stack: ExitStack) -> None:
        self._runtime, self._setting, self._stack = runtime, setting, stack
        self._star: Star | None = None

    def _opened(self) -> Star:
        if self._star is None:
            self._star = self._stack.enter_context(self._runtime.open(self._setting))
        return self._star

    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        return self._opened().map(step, payloads, round=round, at_least=at_least)

    def states(self) -> dict[str, Payload]:
        # Parties that were never asked for anything keep nothing.
        return {} if self._star is None else self._star.states()

    def restore(self, states: Mapping[str, Payload]) -> None:
        self._opened().restore(states)
