"""The coordinator's side of a star that speaks Flower."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from privtrain.core.errors import PartyLostError
from privtrain.core.runtime import Payload, Reply, Setting, Step
from privtrain.runtimes.exchanges import Exchanges, replies_and_lost
from privtrain.runtimes.flower.client import (
    KEEPS_STATE,
    PEAK_MEMORY,
    SET_STATE,
    TAKE_STEP,
    TELL_STATE,
    Packer,
    quiet_import,
    raised_at,
    read_reply,
    to_order,
    to_payload,
)
from privtrain.runtimes.in_process import copied

with quiet_import():
    from flwr.app import ConfigRecord, Message, RecordDict


@dataclass
class FlowerStar:
    """An open star whose messages go through a Flower Grid.

    Args:
        setting: Rows, streams and the transcript.
        node_of: Party to the number of its node.
        create: Makes a message of its content, its type, the number of a node and its group.
        send: Sends messages and gathers the replies, in any order.
        raised: The `raised` of the parties' site where that is in this process.
    """

    setting: Setting
    node_of: Callable[[str], int]
    create: Callable[[RecordDict, str, int, str], Message]
    send: Callable[[list[Message]], Iterable[Message]]
    raised: Mapping[str, BaseException] = field(default_factory=dict, repr=False)
    _keeping: dict[str, None] = field(default_factory=dict, repr=False)
    # What is known of parties that may be gone when they are asked once more.
    _known: dict[str, Payload] = field(default_factory=dict, repr=False)
    _last: tuple[Step, ConfigRecord] | None = field(default=None, repr=False)
    _restored: int = field(default=0, repr=False)
    _exchanges: Exchanges = field(init=False, repr=False)

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
        # One packer an exchange: most of them send the same model to everybody.
        pack = Packer(self._order(step, round))
        contents: dict[str, RecordDict] = {}
        for party, payload in payloads.items():
            contents[party] = pack(payload, self._exchanges.ask(party, payload, number))
        calls = {
            party: partial(self._reply, party, answer, round)
            for party, answer in self._answers(TAKE_STEP, contents, round).items()
        }
        replies, lost = replies_and_lost(calls, at_least)
        for party, reply in replies.items():
            self._exchanges.answer(party, reply, number)
        return self._exchanges.end(replies, lost, len(payloads), at_least, round)

    def _order(self, step: Step, round: int) -> ConfigRecord:
        # A step is a frozen value, so that its pickle can be sent again. Compared by identity: a
        # step may hold tensors, which have no plain equality.
        if self._last is None or self._last[0] is not step:
            self._last = (step, to_order(step))
        # A copy, since messages of the last round may still be on their way with its number.
        order = self._last[1].copy()
        order["round"] = round
        order["restored"] = self._restored
        return order

    def _answers(
        self, what: str, contents: Mapping[str, RecordDict], round: int
    ) -> dict[str, Message | None]:
        messages = [
            self.create(content, what, self.node_of(party), str(round))
            for party, content in contents.items()
        ]
        # Flower hands out replies in any order; sums are taken in the order of the payloads.
        answers = {answer.metadata.src_node_id: answer for answer in self.send(messages)}
        return {party: answers.get(self.node_of(party)) for party in contents}

    def _reply(self, party: str, answer: Message | None, round: int) -> Reply:
        return read_reply(self._content(party, answer, round))

    def _content(self, party: str, answer: Message | None, round: int) -> RecordDict:
        if answer is None:
            raise PartyLostError(f"{party} did not reply in round {round}.", party)
        if answer.has_error():
            raise raised_at(party, round, answer.error, self.raised)
        if KEEPS_STATE in answer.content:
            self._keeping[party] = None
        if PEAK_MEMORY in answer.content:
            record = cast(ConfigRecord, answer.content[PEAK_MEMORY])
            self.setting.report_memory(int(cast(int, record["bytes"])))
            seconds = float(cast(float, record["cpu_seconds"]))
            self.setting.report_cpu(str(record["process"]), seconds)
        return answer.content

    def states(self) -> dict[str, Payload]:
        # Only those that keep something are asked: of a million parties that is a few. States are
        # no messages of the protocol, hence no entries of the transcript, and belong to no round.
        answers = self._answers(TELL_STATE, {party: RecordDict() for party in self._keeping}, -1)
        states: dict[str, Payload] = {}
        for party, answer in answers.items():
            try:
                states[party] = to_payload(self._content(party, answer, -1))
            except PartyLostError as error:
                if error.failed:
                    raise
                # Rounds may go on without it; whether they do is for the next exchange to say. Its
                # state of the last checkpoint stands, if it was there by then.
                states[party] = self._known.get(party, {})
        self._known = {party: state for party, state in states.items() if state}
        return {party: copied(state) for party, state in self._known.items()}

    def restore(self, states: Mapping[str, Payload]) -> None:
        self._exchanges.check(states)
        # Whoever keeps something and is not named is sent an empty state, which it then has.
        new = {party: states.get(party, {}) for party in {**self._keeping, **states}}
        self._keeping = dict.fromkeys(states)
        self._known = {party: copied(state) for party, state in states.items()}
        self._restored += 1
        self._exchanges.forget_mail()
        sent = {party: Packer()(state) for party, state in new.items()}
        for party, answer in self._answers(SET_STATE, sent, -1).items():
            self._content(party, answer, -1)
