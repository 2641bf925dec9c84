"""A star whose parties are function calls in this process, one after the other."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from privtrain.core.errors import PartyLostError, PrivtrainError
from privtrain.core.failures import OWN_ERRORS, shown
from privtrain.core.runtime import Party, Payload, Reply, Setting, Step
from privtrain.core.seeding import spare_normal_kept
from privtrain.runtimes.exchanges import Exchanges, replies_and_lost


@dataclass
class InProcessStar:
    """An open star whose parties are function calls.

    Args:
        setting: Rows, streams and the transcript.
    """

    setting: Setting
    _exchanges: Exchanges = field(init=False, repr=False)
    _states: dict[str, Payload] = field(default_factory=dict, repr=False)
    # With the round that it belongs to.
    _held: dict[str, tuple[int, Payload]] = field(default_factory=dict, repr=False)
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._exchanges = Exchanges(self.setting)

    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        number = self._exchanges.begin(payloads, at_least, round)
        calls = {
            party: partial(self._exchanged, step, party, payload, round, number)
            for party, payload in payloads.items()
        }
        with spare_normal_kept():
            replies, lost = replies_and_lost(calls, at_least)
        return self._exchanges.end(replies, lost, len(payloads), at_least, round)

    def _exchanged(
        self, step: Step, party: str, payload: Payload, round: int, number: int
    ) -> Reply:
        mail = self._exchanges.ask(party, payload, number)
        reply = self._taken(step, payload, self._party(party, round, mail))
        self._exchanges.answer(party, reply, number)
        return reply

    def _taken(self, step: Step, payload: Payload, party: Party) -> Reply:
        # A copy each way: a step that writes into what it was sent, or later into what it replied,
        # would reach the coordinator's model, which it cannot where parties are processes.
        reply = take_step(step, copied(payload), party)
        # Read afterwards: a step may put a new dictionary in the place of the one it was given.
        self._states[party.name] = party.state
        self._held[party.name] = (party.round, party.held)
        mail = {receiver: copied(sent) for receiver, sent in reply.mail.items()}
        return replace(reply, message=copied(reply.message), mail=mail)

    def _party(self, name: str, round: int, mail: Mapping[str, Payload]) -> Party:
        of, held = self._held.get(name, (round, {}))
        return Party(
            name=name,
            round=round,
            train=self.setting.data.train,
            state=dict(self._states.get(name, {})),
            seeds=self.setting.seeds,
            entropy=self.setting.entropy,
            device=self.setting.device,
            cache=self._cache,
            held=dict(held) if of == round else {},
            # A copy: what a party that is lost wrote into it is not what waits for it.
            mail={sender: copied(sent) for sender, sent in mail.items()},
        )

    def states(self) -> dict[str, Payload]:
        return {party: copied(state) for party, state in self._states.items() if state}

    def restore(self, states: Mapping[str, Payload]) -> None:
        self._exchanges.check(states)
        self._states = {party: copied(state) for party, state in states.items()}
        self._held.clear()
        self._exchanges.forget_mail()


def copied(payload: Payload) -> Payload:
    """The same values in memory of their own."""
    return {kind: tensor.detach().clone() for kind, tensor in payload.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread."""
    # How many threads share a sum decides in which order it is rounded. With one everywhere, every
    # runtime gives the same bits, on every number of cores.
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_step(step: Step, payload: Payload, party: Party) -> Reply:
    """Lets one party take a step with one thread, and names the party if it fails.

    Raises:
        PartyLostError: If the step raises anything but an error of privtrain's own.
    """
    party.sent = payload
    try:
        with one_thread():
            return step(payload, party)
    except PrivtrainError as error:
        # A note leaves type and message as they are: callers catch by type, tests read the text.
        error.add_note(f"Raised at {party.name} in round {party.round}.")
        raise
    # Any error of user code (a model, a loss) at one party must end the run with its name.
    except OWN_ERRORS as error:
        message = f"{party.name} failed in round {party.round}: {shown(error)}"
        raise PartyLostError(message, party.name, failed=True) from error


@dataclass(frozen=True)
class InProcess:
    """A star whose parties are function calls in this process: fast, and for simulation only."""

    @property
    def name(self) -> str:
        return "in-process"

    @property
    def real(self) -> bool:
        return False

    @contextmanager
    def open(self, setting: Setting) -> Iterator[InProcessStar]:
        yield InProcessStar(setting)
