"""The interface of an engine for secret-shared computation, and of the values it computes with."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from privtrain.core.runtime import MeshParty
from privtrain.core.statement import InputPrivacy


class Shared(Protocol):
    """A secret-shared fixed-point tensor: every party holds a share, nobody the value.

    Sums, differences, indexing and transposition are local; products take communication.
    """

    def __add__(self, other: Any) -> "Shared":
        """Elementwise sum with another shared tensor, or with public values."""
        ...

    def __sub__(self, other: Any) -> "Shared":
        """Elementwise difference."""
        ...

    # A product of shared values opens both factors masked by a Beaver triple, then truncates.
    def __mul__(self, other: Any) -> "Shared":
        """Elementwise product."""
        ...

    def __getitem__(self, index: Any) -> "Shared":
        """The elements at a public index."""
        ...

    def matmul(self, other: Any) -> "Shared":
        """Matrix product."""
        ...

    def t(self) -> "Shared":
        """The transposed matrix."""
        ...

    def sum(self, dim: int) -> "Shared":
        """The sum along a dimension."""
        ...


class Session(Protocol):
    """An open engine at one party. All parties call the same methods in the same order."""

    # Nothing but `reveal` gives out what is shared, so that reading a value is seen in the code.

    def take(self, share: Tensor) -> Shared:
        """This party's share of a value that was encoded and shared beforehand.

        Args:
            share: int64, any shape; see `privtrain.mpc.sharing`.
        """
        ...

    def own(self, integers: Tensor | None, shape: tuple[int, ...], owner: int) -> Shared:
        """Shares a value that one party holds, without sending anything.

        Args:
            integers: At the owner, the value as fixed-point integers; None at the others.
            shape: Its shape, which everybody knows.
            owner: Rank of the party that holds it.
        """
        ...

    def announce(self, values: Tensor) -> list[Tensor]:
        """Sends public values, such as this party's number of rows, to all parties.

        Args:
            values: int64, the same shape at every party.

        Returns:
            The values that each party announced, by rank.
        """
        ...

    def join(self, values: Sequence[Shared], *, dim: int) -> Shared:
        """Shared values side by side along a dimension."""
        ...

    def public(self, values: Tensor) -> Shared:
        """Public values as a shared tensor."""
        ...

    def scale(self, shared: Shared, factor: float) -> Shared:
        """The product of a shared value and a public number, rounded once."""
        ...

    def positive(self, shared: Shared) -> Shared:
        """1 where a value is above zero, else 0; same shape."""
        ...

    def softmax(self, logits: Shared) -> Shared:
        """Probabilities along the last dimension; shape `(batch, classes)`."""
        ...

    def largest(self, shared: Shared) -> Shared:
        """1 at the first largest value of a vector and 0 elsewhere; shape `(values,)`."""
        ...

    def reveal(self, values: Sequence[Shared], *, kind: str) -> list[Tensor]:
        """Opens values to all parties, in one message; the only way to read a value.

        Args:
            values: The shared values.
            kind: The message's name in the transcript.

        Returns:
            Each value as float64, of its shape.
        """
        ...


class Engine(Protocol):
    """A secret-sharing engine. Configuration: frozen, pickles."""

    @property
    def name(self) -> str:
        """The engine's name in errors."""
        ...

    def check(self, parties: int) -> None:
        """Raises `UnsupportedError` if the engine cannot run here with that number of parties."""
        ...

    def open(self, party: MeshParty) -> AbstractContextManager[Session]:
        """Connects to the other parties."""
        ...

    def input_privacy(self, names: Sequence[str]) -> tuple[InputPrivacy, ...]:
        """What each computing party reads of the inputs.

        Args:
            names: The computing parties, by rank.
        """
        ...

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the engine does not protect from, in sentences."""
        ...
