"""What the coordinator of every star does: names, records, mail, and who is lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.core.parties import AGGREGATOR_NAME, is_computing
from privtrain.core.runtime import Payload, Reply, Setting


@dataclass
class Exchanges:
    """The exchanges of an open star, numbered and recorded, with the mail that waits.

    Args:
        setting: The parties and the transcript.
    """

    setting: Setting
    # Receiver to sender to payload, all of one training round. Mail to whoever computes on shares
    # does not wait: it leaves the star with the reply.
    _mail: dict[str, dict[str, Payload]] = field(default_factory=dict, repr=False)
    _round: int | None = field(default=None, repr=False)

    def check(self, named: Mapping[str, object]) -> None:
        """Raises `ValueError` if a name belongs to no party."""
        for party in named:
            if not self.setting.knows(party):
                known = ", ".join(list(self.setting.data.train)[:5])
                raise ValueError(
                    f"Expected party={party!r} to be a party of the data: {known}, ..."
                )

    def begin(self, payloads: Mapping[str, Payload], at_least: int | None, round: int) -> int:
        """The number of an exchange.

        Mail of another training round is gone: like what parties hold, it ends with its round, so
        that a checkpoint between two rounds lacks nothing.

        Raises:
            ValueError: If a name belongs to no party, or fewer are asked than have to reply.
        """
        # Before anything is sent: a round in which half of the parties took part cannot be undone.
        self.check(payloads)
        if at_least is not None and not 0 <= at_least <= len(payloads):
            raise ValueError(
                f"Expected at_least={at_least} in [0, {len(payloads)}], where {len(payloads)} "
                "parties are asked."
            )
        if round != self._round:
            self.forget_mail()
            self._round = round
        return self.setting.transcript.exchange()

    def forget_mail(self) -> None:
        """Drops the mail that waits."""
        self._mail.clear()

    def ask(self, party: str, payload: Payload, number: int) -> dict[str, Payload]:
        """Records what a party is sent, and gives the mail that waits for it."""
        self._record(AGGREGATOR_NAME, party, payload, number)
        # It waits on until the exchange is over: who is lost now finds it in the next one.
        return self._mail.get(party, {})

    def answer(self, party: str, reply: Reply, number: int) -> None:
        """Records what a party replies, and to whom it mails.

        Raises:
            ProtocolError: If it mails something to nobody.
        """
        self._record(party, AGGREGATOR_NAME, reply.message, number)
        for receiver, payload in reply.mail.items():
            if not (self.setting.knows(receiver) or is_computing(receiver)):
                raise ProtocolError(
                    f"{party} mails {sorted(payload)} to {receiver!r}: nobody here."
                )
            # From party to party: the coordinator passes it on, and is not its receiver.
            self._record(party, receiver, payload, number)

    def end(
        self,
        replies: Mapping[str, Reply],
        lost: Mapping[str, PartyLostError],
        asked: int,
        at_least: int | None,
        round: int,
    ) -> dict[str, Reply]:
        """Keeps the mail of an exchange for the next one, if enough parties replied.

        Returns:
            The replies as the coordinator's program has them: without the mail that it passes on
            from party to party.

        Raises:
            PartyLostError: If fewer than `at_least` replied, with the names of the lost.
            ProtocolError: If a party mails something of a kind that still waits for its receiver.
        """
        if at_least is not None and len(replies) < at_least:
            first, *_ = lost
            raise PartyLostError(
                f"{len(replies)} of {asked} parties replied in round {round}, and at least "
                f"{at_least} have to: {', '.join(lost)} did not.",
                first,
            ) from lost[first]
        # All or nothing: an exchange that fails leaves the mail as it was.
        waiting = {to: dict(sent) for to, sent in self._mail.items() if to not in replies}
        for sender, reply in replies.items():
            for receiver, payload in reply.mail.items():
                if not is_computing(receiver):
                    earlier = waiting.setdefault(receiver, {}).get(sender, {})
                    for kind in sorted(set(earlier) & set(payload)):
                        raise ProtocolError(
                            f"{sender} mails {kind!r} to {receiver} twice in round {round}, before "
                            "it was handed over once. Give the second one another name."
                        )
                    waiting[receiver][sender] = {**earlier, **payload}
        self._mail = waiting
        return {party: _without_relayed(reply) for party, reply in replies.items()}

    def _record(self, sender: str, receiver: str, payload: Payload, number: int) -> None:
        record = self.setting.transcript.send
        for kind, tensor in payload.items():
            record(sender, receiver, kind, tensor, round=number)


def _without_relayed(reply: Reply) -> Reply:
    """A reply with no more mail than what goes to whoever computes on shares."""
    mail = {to: payload for to, payload in reply.mail.items() if is_computing(to)}
    return reply if len(mail) == len(reply.mail) else replace(reply, mail=mail)


def tolerated(error: PartyLostError, at_least: int | None) -> bool:
    """Whether an exchange may go on without a party: it is gone, and not all have to reply."""
    return at_least is not None and not error.failed


def replies_and_lost(
    calls: Mapping[str, Callable[[], Reply]], at_least: int | None
) -> tuple[dict[str, Reply], dict[str, PartyLostError]]:
    """The replies of those that reply, and why the others are lost, both in the order of the calls.

    Args:
        calls: Party to what gives its reply, or raises that it is lost; called in turn.
        at_least: How many have to reply; None for all.

    Raises:
        PartyLostError: If a party is lost without which the exchange cannot go on.
    """
    replies: dict[str, Reply] = {}
    lost: dict[str, PartyLostError] = {}
    for party, call in calls.items():
        try:
            replies[party] = call()
        except PartyLostError as error:
            if not tolerated(error, at_least):
                raise
            lost[party] = error
    return replies, lost
