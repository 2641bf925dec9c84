"""What the coordinator of every star does: names, records, mail, and who is lost."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    # Receiver to sender to payload. Mail to whoever computes on shares does not wait: it leaves
    # the star with the reply.
    _mail: dict[str, dict[str, Payload]] = field(default_factory=dict, repr=False)

    def check(self, named: Mapping[str, object]) -> None:
        """Raises `ValueError` if a name belongs to no party."""
        for party in named:
            if not self.setting.knows(party):
                known = ", ".join(list(self.setting.data.train)[:5])
                raise ValueError(
                    f"Expected party={party!r} to be a party of the data: {known}, ..."
                )

    def begin(self, payloads: Mapping[str, Payload], at_least: int | None) -> int:
        """The number of an exchange.

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
        return self.setting.transcript.exchange()

    def ask(self, party: str, payload: Payload, number: int) -> dict[str, Payload]:
        """Records what a party is sent, and gives the mail that waits for it."""
        self._record(AGGREGATOR_NAME, party, payload, number)
        return self._mail.pop(party, {})

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
    ) -> None:
        """Keeps the mail of an exchange for the next one, if enough parties replied.

        Raises:
            PartyLostError: If fewer than `at_least` replied, with the names of the lost.
        """
        if at_least is not None and len(replies) < at_least:
            first, *_ = lost
            raise PartyLostError(
                f"{len(replies)} of {asked} parties replied in round {round}, and at least "
                f"{at_least} have to: {', '.join(lost)} did not.",
                first,
            ) from lost[first]
        for sender, reply in replies.items():
            for receiver, payload in reply.mail.items():
                if self.setting.knows(receiver):
                    self._mail.setdefault(receiver, {})[sender] = payload

    def _record(self, sender: str, receiver: str, payload: Payload, number: int) -> None:
        record = self.setting.transcript.send
        for kind, tensor in payload.items():
            record(sender, receiver, kind, tensor, round=number)


def tolerated(error: PartyLostError, at_least: int | None) -> bool:
    """Whether an exchange may go on without a party: it is gone, and not all have to reply."""
    return at_least is not None and not error.failed
