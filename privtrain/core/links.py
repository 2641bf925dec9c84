"""A party's connections to the others of a mesh."""

from typing import Protocol

import torch
from torch import Tensor

from privtrain.core.transcript import Entry


class Link(Protocol):
    """One party's connections to the others of a mesh; what is sent is recorded.

    Messages of one sender arrive in the order in which they were sent.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """All parties of the mesh, by rank."""
        ...

    @property
    def rank(self) -> int:
        """This party's number, from 0."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds after which a silent party counts as lost."""
        ...

    @property
    def meeting(self) -> tuple[str, int]:
        """Host and port of a `torch.distributed.TCPStore` that all parties reach.

        For engines that open channels of their own.

        Raises:
            UnsupportedError: If parties share a process, in which such channels would be mixed up.
        """
        ...

    @property
    def entries(self) -> list[Entry]:
        """The messages that this party sent; an engine adds those of its own channels."""
        ...

    def send(self, to: str, kind: str, tensor: Tensor) -> None:
        """Sends a tensor to a party.

        Args:
            to: Name of the party.
            kind: What is sent; the receiver has to ask for it by the same name.
            tensor: Any shape; a type of numbers.

        Raises:
            PartyLostError: If the party is gone or takes nothing for `timeout` seconds.
            ValueError: If there is no such party.
        """
        ...

    def receive(
        self,
        sender: str,
        kind: str,
        *,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Tensor:
        """The next tensor that a party sent.

        Args:
            sender: Name of the party.
            kind: What is expected.
            dtype: The type that is expected; any where it is None.
            shape: The shape that is expected; any where it is None.

        Returns:
            The tensor, of the type and shape that was sent.

        Raises:
            PartyLostError: If the party is gone or says nothing for `timeout` seconds.
            ProtocolError: If it sent something else, with what came and what is expected.
            ValueError: If there is no such party.
        """
        ...

    def read_ahead(self, sender: str) -> None:
        """Reads what a party sends from now on before it is asked for, where that can be done.

        For a party that sends much and seldom waits for an answer; `receive` is asked as before.

        Args:
            sender: Name of the party, of which something was received.

        Raises:
            ValueError: If there is no such party.
        """
        ...

    def knows(self, what: str) -> None:
        """Records what this party knows without a message, such as the triples that it deals."""
        ...

    def report(self, done: int, total: int) -> None:
        """Tells whoever started the mesh how far the program is."""
        ...
