"""The interface of an engine for secret-shared computation, and of the values it computes with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import EllipsisType
from typing import Any, Protocol, SupportsIndex, Union

from torch import Tensor

from privtrain.core.parties import is_role
from privtrain.core.runtime import Party, Program
from privtrain.core.statement import Adversary, InputPrivacy
from privtrain.core.transcript import Entry

Operand = Union["Shared", Tensor, float]
"""What a shared tensor is combined with: another one, or public values."""

Index = SupportsIndex | slice | EllipsisType | Tensor | tuple[Any, ...]
"""A public index, as torch reads it."""


class Shared(Protocol):
    """A secret-shared fixed-point tensor: every party holds a share, nobody the value.

    Sums, differences, changes of shape and products with public values take no messages.
    """

    def __add__(self, other: Operand) -> "Shared":
        """Elementwise sum."""
        ...

    def __sub__(self, other: Operand) -> "Shared":
        """Elementwise difference."""
        ...

    def __rsub__(self, other: float) -> "Shared":
        """A public number less each element."""
        ...

    # A product of shared values opens both factors masked by a Beaver triple, then truncates.
    def __mul__(self, other: Operand) -> "Shared":
        """Elementwise product; exact where one factor is integers or the bits of a comparison."""
        ...

    def __getitem__(self, index: Index) -> "Shared":
        """The elements at a public index."""
        ...

    def matmul(self, other: "Shared") -> "Shared":
        """Matrix product."""
        ...

    def square(self) -> "Shared":
        """Elementwise square."""
        ...

    def div(self, divisor: int) -> "Shared":
        """Elementwise quotient by a public number."""
        ...

    def gt(self, other: float) -> "Shared":
        """Where values are above a public number: bits, without a binary point."""
        ...

    def lt(self, other: float) -> "Shared":
        """Where values are below a public number: bits, without a binary point."""
        ...

    def t(self) -> "Shared":
        """The transposed matrix."""
        ...

    def sum(self, dim: int, keepdim: bool = False) -> "Shared":
        """The sum along a dimension."""
        ...

    def mean(self, dim: int, keepdim: bool = False) -> "Shared":
        """The mean along a dimension: a sum times a public number, see `Session.scale`."""
        ...

    def size(self, dim: int) -> int:
        """The length of a dimension."""
        ...

    def reshape(self, *shape: int) -> "Shared":
        """The same elements in another shape."""
        ...

    # Of the class: an engine puts tensors of its own kind side by side.
    @staticmethod
    def cat(tensors: Sequence[Any], dim: int) -> Any:
        """Shared tensors of one engine side by side along a dimension."""
        ...


class Session(Protocol):
    """An open engine at one party. All parties call the same methods in the same order."""

    # Nothing but `reveal` gives out what is shared, so that reading a value is seen in the code.

    def take(
        self, share: Tensor, *, largest: float | None = None, proof: Tensor | None = None
    ) -> Shared:
        """This party's share of a value that was encoded and shared beforehand.

        Args:
            share: int64, any shape, with `Engine.row_bits`; see `privtrain.mpc.sharing`.
            largest: A public magnitude that no element exceeds, where one is known: what follows
                may take fewer rounds and bytes, and is wrong where an element does exceed it.
            proof: This party's part of `privtrain.mpc.proofs.prove`, where the engine is
                authenticated: another party that changed its share is noticed by it.

        Raises:
            TamperedShareError: If a share is not as it was made; at the latest before anything that
                follows from it is revealed.
        """
        ...

    def take_all(
        self,
        shares: Sequence[Tensor],
        *,
        proofs: Sequence[Tensor | None],
        largest: float | None = None,
    ) -> Sequence[Shared]:
        """`take` of several values, in as many rounds as of one.

        Args:
            shares: As for `take`.
            proofs: One for each share; None where the engine is not authenticated.
            largest: Of the elements of all of them.
        """
        ...

    def own(
        self,
        integers: Tensor | None,
        shape: tuple[int, ...],
        owner: int,
        *,
        largest: float | None = None,
    ) -> Shared:
        """Shares a value that one party holds; others are sent uniformly random shares at most.

        Args:
            integers: At the owner, the value as fixed-point integers; None at the others.
            shape: Its shape, which everybody knows.
            owner: Rank of the party that holds it.
            largest: As for `take`.

        Raises:
            ValueError: At the owner, if an element exceeds `largest`.
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
        """The product of a shared value and a public number, of which 16 significant bits count."""
        ...

    def positive(self, shared: Shared) -> Shared:
        """1 where a value is above zero, else 0; same shape."""
        ...

    def relu(self, shared: Shared) -> tuple[Shared, Shared]:
        """The larger of each value and zero, and where it is above zero; same shape.

        The bits of values between 0 and 2^-18 may be either, where values have more bits.
        """
        ...

    def sigmoid(self, logits: Shared) -> Shared:
        """1 / (1 + exp(-logit)), same shape.

        Raises:
            UnsupportedError: If the engine has none.
        """
        ...

    def bilinear(
        self, function: Callable[[Tensor, Tensor], Tensor], left: Shared, right: Shared
    ) -> Shared:
        """A public bilinear function of two shared values, such as a convolution.

        Args:
            function: Of two int64 tensors, linear in each of them.
            left: Its first argument.
            right: Its second argument.

        Raises:
            UnsupportedError: If the engine knows products of its own only.
        """
        ...

    def linear(self, function: Callable[[Tensor], Tensor], shared: Shared) -> Shared:
        """A public linear function of integers, such as sums over windows; takes no message.

        Args:
            function: Of an int64 tensor.
            shared: Its argument.

        Raises:
            UnsupportedError: If the engine has none.
        """
        ...

    def softmax(self, logits: Shared) -> Shared:
        """Probabilities along the last dimension; shape `(batch, classes)`."""
        ...

    def largest(self, shared: Shared) -> Shared:
        """1 at the first largest value of a vector and 0 elsewhere; shape `(values,)`."""
        ...

    def maximum(self, shared: Shared) -> Shared:
        """The largest element along the last dimension, which goes; exact.

        Raises:
            UnsupportedError: If the engine has none.
        """
        ...

    def shares(self, values: Sequence[Shared]) -> list[Tensor]:
        """This party's shares of values, to be kept at this party and shared again by `own`.

        Returns:
            int64, of the values' shapes; all parties' add up to the values in fixed point.

        Raises:
            UnsupportedError: If the engine cannot keep them.
        """
        ...

    def reveal(
        self, values: Sequence[Shared], *, kind: str, readers: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Opens values in one message; the only way to read a value.

        Args:
            values: The shared values.
            kind: The message's name in the transcript.
            readers: Ranks of the parties that read them, the others are sent nothing; None for all.

        Returns:
            Each value as float64, of its shape; nothing at who does not read.

        Raises:
            TamperedShareError: If the engine is authenticated, and a party changed anything that
                these values follow from; nothing is opened then.
            UnsupportedError: If the engine opens to all or nobody, and some are named.
        """
        ...


class Engine(Protocol):
    """A secret-sharing engine. Configuration: frozen, pickles."""

    @property
    def name(self) -> str:
        """The engine's name in errors."""
        ...

    @property
    def most_parties(self) -> int:
        """The largest number of computing parties; the smallest is 2."""
        ...

    @property
    def exact_truncation(self) -> bool:
        """Whether a product within fixed point never loses its last bits wrongly."""
        ...

    @property
    def opens_to_some(self) -> bool:
        """Whether `reveal` can open to some parties alone."""
        ...

    @property
    def pictures(self) -> bool:
        """Whether sessions have `bilinear` and `linear`, which pictures need."""
        ...

    @property
    def sigmoid(self) -> bool:
        """Whether sessions have `sigmoid` and `maximum`."""
        ...

    @property
    def keeps_shares(self) -> bool:
        """Whether sessions have `shares`, so that a run can be taken up again."""
        ...

    @property
    def authenticated(self) -> bool:
        """Whether a share that a party changed is noticed; then `take` needs proofs."""
        ...

    @property
    def adversary(self) -> Adversary:
        """What a computing party may do without reading or changing more than is stated."""
        ...

    @property
    def row_bits(self) -> int:
        """Bits after the point with which rows and labels are shared."""
        ...

    @property
    def weight_bits(self) -> int:
        """Bits after the point that public values have, and so weights."""
        ...

    @property
    def gradient_bits(self) -> int:
        """Bits after the point that a truncation leaves, such as of gradients."""
        ...

    @property
    def sum_bits(self) -> int:
        """Bits after the point with which sums are shared; they need no bits for products."""
        ...

    @property
    def range_bits(self) -> int:
        """Integers that are truncated stay below 2 to this power; others, below the next one."""
        ...

    def check(self, parties: int) -> None:
        """Raises `UnsupportedError` if the engine cannot run here with that number of parties."""
        ...

    @property
    def helper_names(self) -> tuple[str, ...]:
        """The parties beside the computing ones, such as a dealer, by their roles.

        They hold no rows and come after the computing parties.
        """
        ...

    def helpers(self, programs: Mapping[str, Program]) -> Mapping[str, Program]:
        """What each of them runs.

        Args:
            programs: Computing party to what it runs, by rank: a helper may follow its steps.
        """
        ...

    def open(self, party: Party) -> AbstractContextManager[Session]:
        """Connects a computing party to the others, over its link or what meets where that says."""
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


def check_parties(engine: Engine, computing_parties: int) -> None:
    """Refuses a number of computing parties that an engine has no protocol for.

    Raises:
        ValueError: With the number and the engine.
    """
    if computing_parties not in range(2, engine.most_parties + 1):
        raise ValueError(
            f"Expected computing_parties={computing_parties!r} in 2..{engine.most_parties}: "
            f"{engine.name} has no protocol for others."
        )


def ranks_of(names: Sequence[str], readers: Sequence[str] | None) -> tuple[int, ...] | None:
    """The ranks of those to whom something is opened; None for all computing parties.

    Args:
        names: The computing parties, by rank.
        readers: Those among them; None for all.

    Raises:
        ValueError: If somebody is named who does not compute.
    """
    if readers is None:
        return None
    strangers = [name for name in readers if name not in names]
    if strangers:
        raise ValueError(
            f"Expected reveal_to={tuple(readers)} to name parties that compute, which are "
            f"{', '.join(names)}; {strangers[0]!r} does not."
        )
    return tuple(sorted({names.index(name) for name in readers}))


def with_helpers(engine: Engine, programs: Mapping[str, Program]) -> dict[str, Program]:
    """The programs of all parties of a mesh: the computing ones, then those that help them.

    Args:
        engine: What computes on shares.
        programs: Computing party to its program, by rank.

    Raises:
        ValueError: If a helper is called as a computing party is, or as a party with rows may be.
    """
    helpers = engine.helpers(programs)
    # Its messages and its view would be mixed with somebody else's.
    odd = [name for name in helpers if name in programs or not is_role(name)]
    if odd:
        raise ValueError(
            f"Expected the helpers of {engine.name} to be called as roles are, such as dealer, and "
            f"as nobody else is; got {odd}."
        )
    return {**programs, **helpers}


def phases(engine: Engine, entries: Iterable[Entry], names: Sequence[str]) -> tuple[str, ...]:
    """What was sent offline, to and by helpers, and online, between computing parties, in words.

    Args:
        engine: What computed on shares.
        entries: The messages of a run.
        names: The computing parties.

    Returns:
        A sentence; none where nobody helps.
    """
    helpers, sent = engine.helper_names, list(entries)
    if not helpers:
        return ()
    offline = [each for each in sent if {each.sender, each.receiver} & {*helpers}]
    online = [each for each in sent if {each.sender, each.receiver} <= {*names}]
    return (
        f"Offline, from and to {', '.join(helpers)}, {sum(each.bytes for each in offline):,} bytes "
        f"were sent; online, between computing parties, {sum(each.bytes for each in online):,} "
        f"bytes in {len({each.round for each in online}):,} rounds.",
    )
