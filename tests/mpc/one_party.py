"""An engine of one party: its share is the value itself, so that programs run without processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privtrain.core.runtime import Party, Program
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import Adversary, InputPrivacy
from privtrain.core.task import Rows
from privtrain.core.transcript import Entry
from privtrain.mpc.sharing import PRECISION_BITS, SUM_BITS, decode


@dataclass
class OpenSession:
    """A session whose shared values are plain float64 tensors.

    Args:
        opened: The kinds of what was revealed, in order.
    """

    opened: list[str] = field(default_factory=list)

    def take(
        self, share: Tensor, *, largest: float | None = None, proof: Tensor | None = None
    ) -> Tensor:
        return decode(share)

    def take_all(
        self,
        shares: Sequence[Tensor],
        *,
        proofs: Sequence[Tensor | None],
        largest: float | None = None,
    ) -> list[Tensor]:
        return [self.take(share, largest=largest) for share in shares]

    def own(
        self,
        integers: Tensor | None,
        shape: tuple[int, ...],
        owner: int,
        *,
        largest: float | None = None,
    ) -> Tensor:
        assert integers is not None
        assert tuple(integers.shape) == shape
        return decode(integers)

    def announce(self, values: Tensor) -> list[Tensor]:
        return [values]

    def join(self, values: Sequence[Tensor], *, dim: int) -> Tensor:
        return torch.cat(list(values), dim=dim)

    def public(self, values: Tensor) -> Tensor:
        return values.double()

    def scale(self, shared: Tensor, factor: float) -> Tensor:
        return shared * factor

    def positive(self, shared: Tensor) -> Tensor:
        return (shared > 0).double()

    def relu(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        return shared.clamp(min=0), self.positive(shared)

    def sigmoid(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def bilinear(
        self, function: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor
    ) -> Tensor:
        return function(left, right)

    def linear(self, function: Callable[[Tensor], Tensor], shared: Tensor) -> Tensor:
        return function(shared)

    def softmax(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def largest(self, shared: Tensor) -> Tensor:
        winners = shared.argmax(dim=-1)
        return torch.nn.functional.one_hot(winners, shared.shape[-1]).double()

    def maximum(self, shared: Tensor) -> Tensor:
        return shared.max(dim=-1).values

    def shares(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [(value * 2**PRECISION_BITS).round().long() for value in values]

    def reveal(
        self, values: Sequence[Tensor], *, kind: str, readers: Sequence[int] | None = None
    ) -> list[Tensor]:
        self.opened.append(kind)
        return list(values)


@dataclass(frozen=True)
class OneParty:
    """Opens such a session.

    Args:
        session: The session that is opened.
    """

    session: OpenSession = field(default_factory=OpenSession)
    name: str = "one party"
    caveats: tuple[str, ...] = ()
    most_parties: int = 2
    exact_truncation: bool = True
    opens_to_some: bool = False
    pictures: bool = True
    sigmoid: bool = True
    keeps_shares: bool = True
    authenticated: bool = False
    adversary: Adversary = Adversary.SEMI_HONEST
    row_bits: int = PRECISION_BITS
    weight_bits: int = PRECISION_BITS
    gradient_bits: int = PRECISION_BITS
    sum_bits: int = SUM_BITS
    range_bits: int = 62

    def check(self, parties: int) -> None:
        assert parties == 1

    @property
    def helper_names(self) -> tuple[str, ...]:
        return ()

    def helpers(self, programs: Mapping[str, Program]) -> Mapping[str, Program]:
        return {}

    def input_privacy(self, names: Sequence[str]) -> tuple[InputPrivacy, ...]:
        return ()

    @contextmanager
    def open(self, party: Party) -> Iterator[OpenSession]:
        yield self.session


def few_bits() -> OneParty:
    """An engine that has fewer bits than others, and keeps no shares."""
    return OneParty(
        name="few bits",
        pictures=False,
        keeps_shares=False,
        gradient_bits=14,
        sum_bits=22,
        range_bits=42,
    )


@dataclass
class Nobody:
    """The link of a party that has no other one.

    Args:
        reported: What it said of its progress.
    """

    reported: list[tuple[int, int]] = field(default_factory=list)
    names: tuple[str, ...] = ("one",)
    rank: int = 0
    timeout: float = 1.0
    meeting: tuple[str, int] = ("nowhere", 0)
    entries: list[Entry] = field(default_factory=list)

    def send(self, to: str, kind: str, tensor: Tensor) -> None:
        raise AssertionError(to)

    def receive(
        self,
        sender: str,
        kind: str,
        *,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Tensor:
        raise AssertionError(sender)

    def read_ahead(self, sender: str) -> None:
        raise AssertionError(sender)

    def knows(self, what: str) -> None:
        raise AssertionError(what)

    def report(self, done: int, total: int) -> None:
        self.reported.append((done, total))


def alone(rows: Rows | None = None, link: Nobody | None = None) -> Party:
    """The one party, with the rows that it holds, if any."""
    return Party(
        name="one",
        round=0,
        train={} if rows is None else {"one": rows},
        state={},
        seeds=Seeds(5),
        entropy=SeededEntropy(0),
        link=link or Nobody(),
    )
