"""A star whose parties are function calls in this process, one after the other."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from privtrain.core.errors import PartyLostError, PrivtrainError
from privtrain.core.failures import OWN_ERRORS, shown
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Party, Payload, Setting, Step


@dataclass
class InProcessStar:
    """An open star whose parties are function calls.

    Args:
        setting: Rows, streams and the transcript.
    """

    setting: Setting
    _states: dict[str, Payload] = field(default_factory=dict, repr=False)
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def map(self, step: Step, payloads: Mapping[str, Payload], *, round: int) -> dict[str, Payload]:
        # Before anything is sent: a round in which half of the parties took part cannot be undone.
        check_known(payloads, self.setting.data.train)
        return {
            party: self._exchange(step, party, payload, round)
            for party, payload in payloads.items()
        }

    def _exchange(self, step: Step, party: str, payload: Payload, round: int) -> Payload:
        record = self.setting.transcript.send
        for kind, tensor in payload.items():
            record(AGGREGATOR_NAME, party, kind, tensor, round=round)
        party_run = self._party_run(party, round)
        # A copy each way: a step that writes into what it was sent, or later into what it replied,
        # would reach the coordinator's model, which it cannot where parties are processes.
        reply = _copy(take_step(step, _copy(payload), party_run))
        # Read afterwards: a step may put a new dictionary in the place of the one it was given.
        self._states[party] = party_run.state
        for kind, tensor in reply.items():
            record(party, AGGREGATOR_NAME, kind, tensor, round=round)
        return reply

    def _party_run(self, party: str, round: int) -> Party:
        return Party(
            name=party,
            round=round,
            train=self.setting.data.train,
            state=self._states.get(party, {}),
            seeds=self.setting.seeds,
            entropy=self.setting.entropy,
            device=self.setting.device,
            cache=self._cache,
        )

    def states(self) -> dict[str, Payload]:
        return {party: _copy(state) for party, state in self._states.items() if state}

    def restore(self, states: Mapping[str, Payload]) -> None:
        check_known(states, self.setting.data.train)
        self._states = {party: _copy(state) for party, state in states.items()}


def _copy(payload: Payload) -> Payload:
    """The same values in memory of their own."""
    return {kind: tensor.detach().clone() for kind, tensor in payload.items()}


def check_known(named: Mapping[str, object], train: Mapping[str, object]) -> None:
    """Raises `ValueError` if a name belongs to no party."""
    for party in named:
        if party not in train:
            known = ", ".join(list(train)[:5])
            raise ValueError(f"Expected party={party!r} to be a party of the data: {known}, ...")


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


def take_step(step: Step, payload: Payload, party_run: Party) -> Payload:
    """Lets one party take a step with one thread, and names the party if it fails.

    Raises:
        PartyLostError: If the step raises anything but an error of privtrain's own.
    """
    try:
        with one_thread():
            return step(payload, party_run)
    except PrivtrainError as error:
        # A note leaves type and message as they are: callers catch by type, tests read the text.
        error.add_note(f"Raised at {party_run.name} in round {party_run.round}.")
        raise
    # Any error of user code (a model, a loss) at one party must end the run with its name.
    except OWN_ERRORS as error:
        message = f"{party_run.name} failed in round {party_run.round}: {shown(error)}"
        raise PartyLostError(message, party_run.name) from error


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
