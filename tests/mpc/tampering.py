"""Runs a program of an engine while one message is changed on its way, and says what came of it."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from torch import Tensor

from privtrain.core.errors import PrivtrainError, TamperedShareError
from privtrain.core.runtime import Payload
from privtrain.mpc.engine import Engine
from tests.contracts.engine import Bounds
from tests.mpc.changed_messages import Change, Network, Place, TamperedLink, differs, drawn_from
from tests.mpc.ring64.mesh import Ran, attempt
from tests.mpc.tampered_programs import LARGEST, Runs, Text


class Verdict(StrEnum):
    """What came of a run with a changed message, as honest roles see it."""

    CAUGHT = "caught"  # by TamperedShareError
    REFUSED = "refused"  # by another error that is meant, such as of a shape
    NO_EFFECT = "no effect"
    OTHER_INPUT = "another input"
    ACCEPTED = "accepted"
    CRASHED = "crashed"
    UNCHANGED = "not changed"


class Outcome(NamedTuple):
    """A run with a changed message.

    Args:
        verdict: What came of it.
        place: Which message.
        change: What was done to it.
        why: The errors, or which result was wrong at whom.
        at_sender: Whether the sender itself read a wrong result; no failure where it deviates.
        differs: Whether the payload of a value or a bit was changed, see `differs`.
        errors: What other roles raised.
    """

    verdict: Verdict
    place: Place
    change: Change
    why: str
    at_sender: bool
    differs: bool
    errors: Mapping[str, Exception]


Inputs = Callable[[Text, Place, Tensor, Tensor], tuple[Tensor | None, Tensor | None] | None]
"""What a deviating party puts in as x or y where its message (text, place, the honest one, the
changed one) says so; None where the message is no input."""


@dataclass(frozen=True)
class Suite:
    """An engine under changes.

    Args:
        engine: The engine.
        bounds: How far its results may be from float64.
        step: The same of the weights after a step of training.
        inputs: Which messages are inputs of a party.
        timeout: Seconds after which a role that waits gives up, which counts as a crash.
    """

    engine: Engine
    bounds: Bounds
    step: float = 1e-3
    inputs: Inputs = field(default=lambda text, place, honest, changed: None, repr=False)
    timeout: float = 20.0

    def run(self, text: Text, network: Network) -> Ran:
        return attempt(
            Runs(self.engine, text),
            inputs=text.inputs(),
            engine=self.engine,
            timeout=self.timeout,
            link=partial(TamperedLink, network=network),
        )

    def honest(self, text: Text) -> Network:
        """An honest run, whose results are right."""
        network = Network()
        ran = self.run(text, network)
        assert not ran.errors, ran.errors
        wanted = text.plain()
        for name in ("computing-0", "computing-1"):
            assert not self.wrong(ran.payloads[name], wanted), name
            reads = text.readers is None or int(name[-1]) in text.readers
            assert set(ran.payloads[name]) == (set(wanted) if reads else set())
        return network

    def wrong(self, payload: Payload, wanted: Mapping[str, Tensor]) -> list[str]:
        """Which results that a role read are beyond their bounds."""
        found = []
        for name, value in payload.items():
            kind = name.split()[0]
            if kind == "chained":
                # What the first product is off is multiplied by the other factor.
                bound = self.bounds.product * (1 + LARGEST)
            else:
                bound = self.step if kind == "step" else getattr(self.bounds, kind)
            alike = value.shape == wanted[name].shape
            if not (alike and bool(((value - wanted[name]).abs() <= bound).all())):
                found.append(name)
        return found

    def tampered(
        self, text: Text, honest: Network, place: Place, change: Change, seed: object
    ) -> Outcome:
        """A run with one message changed."""
        network = Network(place, change, random.Random(f"{seed}"), honest)
        ran = self.run(text, network)
        put_in = None if network.changed is None else self.inputs(text, place, *network.changed)
        verdict, why = self.verdict(text, ran, place.sender, put_in)
        if network.changed is None:
            verdict = Verdict.UNCHANGED if verdict is Verdict.NO_EFFECT else Verdict.CRASHED
        at_sender = bool(self.wrong(ran.payloads.get(place.sender, {}), text.plain()))
        changed = network.changed is not None and differs(*network.changed)
        return Outcome(verdict, place, change, why, at_sender, changed, others(ran, place.sender))

    def verdict(
        self,
        text: Text,
        ran: Ran,
        deviating: str,
        put_in: tuple[Tensor | None, Tensor | None] | None = None,
    ) -> tuple[Verdict, str]:
        """What came of a run, and why, as roles see it that do not deviate.

        Args:
            text: The program.
            ran: The run.
            deviating: Who deviates.
            put_in: The values of which results are right as well, see `Inputs`.
        """
        errors = others(ran, deviating)
        said = "; ".join(f"{name}: {error!r}" for name, error in errors.items())
        read = {name: payload for name, payload in ran.payloads.items() if name != deviating}
        wanted = text.plain()
        found = {name: self.wrong(payload, wanted) for name, payload in read.items()}
        if any(found.values()):
            other = wanted if put_in is None else text.plain(*put_in)
            if any(self.wrong(payload, other) for payload in read.values()):
                return Verdict.ACCEPTED, f"{found}"
            return Verdict.OTHER_INPUT, ""
        # As a link says it that waited in vain.
        waited = any(" sent no '" in f"{error}" for error in errors.values())
        if waited or not all(isinstance(error, PrivtrainError) for error in errors.values()):
            return Verdict.CRASHED, said
        if any(isinstance(error, TamperedShareError) for error in errors.values()):
            return Verdict.CAUGHT, said
        return (Verdict.REFUSED, said) if errors else (Verdict.NO_EFFECT, "")

    def tried(self, text: Text, tries: int | None, *, seed: str) -> Iterator[Outcome]:
        """Runs with each message changed of the steps that no other text has.

        Args:
            text: The program.
            tries: How many changes of each message are drawn; None for all that there are.
            seed: For what is drawn.
        """
        honest = self.honest(text)
        for place in filter(text.changes, honest.places()):
            choice = random.Random(f"{seed} {place}")
            changes = honest.changes_at(place)
            for number, change in enumerate(
                changes if tries is None else drawn_from(changes, tries, choice)
            ):
                yield self.tampered(text, honest, place, change, f"{seed} {place} {number}")


def others(ran: Ran, deviating: str) -> dict[str, Exception]:
    """What roles raised that do not deviate."""
    return {name: error for name, error in ran.errors.items() if name != deviating}


def table(outcomes: Sequence[Outcome], by: Callable[[Outcome], str]) -> str:
    """Counts of verdicts in words, a line for each group."""
    counts: dict[str, Counter[Verdict]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[by(outcome)][outcome.verdict] += 1
        counts["all"][outcome.verdict] += 1
    names = [*sorted(counts.keys() - {"all"}), "all"]
    wide = max(map(len, names))
    lines = [" ".join([" " * wide, *(f"{verdict:>13}" for verdict in Verdict)])]
    for name in names:
        lines.append(
            " ".join([f"{name:<{wide}}", *(f"{counts[name][verdict]:>13,}" for verdict in Verdict)])
        )
    return "\n".join(lines)
