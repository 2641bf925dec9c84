"""What computing parties see of a run of spdz2k; for `tests.mpc.views`, which tells how uniform."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from privtrain.core.runtime import Party
from privtrain.mpc.ring64.tensors import Ring64Tensor
from privtrain.mpc.ring64.wires import MASKED
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.mpc.spdz2k.forms import Form
from privtrain.mpc.spdz2k.inputs import PROOF
from privtrain.mpc.spdz2k.ring import PAYLOAD_BITS
from privtrain.mpc.spdz2k.session import Spdz2kSession
from privtrain.mpc.spdz2k.wires import INPUT, PartyWires, Words
from tests.mpc.views import Seen, Views

ABOVE = 64 - PAYLOAD_BITS


@dataclass
class Overheard:
    """Wires that keep what passes; see `Wires`.

    Args:
        wires: A computing party's.
        name: Its name.
        views: Where it is kept.
    """

    wires: PartyWires
    name: str
    views: Views
    deals: bool = False

    def __post_init__(self) -> None:
        take = self.wires.material.take

        def kept(count: int, dtype: torch.dtype) -> Tensor:
            read = take(count, dtype)
            self.views[f"material at {self.name}"].append(Seen.of(read))
            return read

        self.wires.material.take = kept  # type: ignore[method-assign]

    @property
    def unit(self) -> Tensor:
        return self.wires.unit

    @property
    def rank(self) -> int:
        return self.wires.link.rank

    def _kept(self, form: Form, *, owner: int | None = None) -> Form:
        # Who does not know a mask has no share of it, only of its MACs.
        rows = form.words[1:] if owner not in (None, self.rank) else form.words
        self.views[f"share at {self.name}"] += map(Seen.of, rows)
        return form

    def random(self, shape: Sequence[int]) -> Form:
        return self._kept(self.wires.random(shape))

    def known(self, shape: Sequence[int], owner: int) -> Form:
        return self._kept(self.wires.known(shape, owner), owner=owner)

    def dealt(self, compute: Callable[[], Tensor], shape: Sequence[int]) -> Form:
        return self._kept(self.wires.dealt(compute, shape))

    def coins(self, shape: Sequence[int]) -> Tensor:
        return self.wires.coins(shape)

    def below(
        self, bits: int, points: Tensor, thresholds: Tensor, flips: Tensor, known: Tensor
    ) -> Words:
        words = self.wires.below(bits, points, thresholds, flips, known)
        self.views[f"tags at {self.name}"].append(Seen(words.view(np.int64).copy(), 64))
        return words

    def own(self, integers: Tensor | None, shape: Sequence[int], owner: int) -> tuple[Tensor, Form]:
        masked, mask = self.wires.own(integers, shape, owner)
        if self.rank == owner:
            self.views[f"message of {self.name}"].append(Seen.of(masked))
        return masked, self._kept(mask, owner=owner)

    def swap(self, values: Tensor, *, kind: str) -> Tensor:
        if kind == INPUT:
            self.views[f"message of {self.name}"].append(Seen.of(values))
        return self.wires.swap(values, kind=kind)

    def announce(self, values: Tensor) -> list[Tensor]:
        return self.wires.announce(values)

    def check(self) -> None:
        self.wires.check()

    def open(self, shares: Sequence[Form | Words], *, kind: str = MASKED) -> list[Tensor]:
        sent = len(self.wires.link.sent)  # type: ignore[attr-defined]  # a `QueueLink`
        opened = self.wires.open(shares, kind=kind)
        _, message = self.wires.link.sent[sent]  # type: ignore[attr-defined]
        what = {MASKED: "message", PROOF: "proof"}.get(kind, "result share")
        self._message(what, message, shares)
        if self.rank == 0:
            for share, value in zip(shares, opened, strict=True):
                if kind == PROOF:
                    assert not value.any()
                elif kind != MASKED:
                    # The result, and as little uniform as that, but for what is above it.
                    self.views["above results"].append(Seen.of(value >> PAYLOAD_BITS, ABOVE))
                elif isinstance(share, Form):
                    self.views["opened values"].append(Seen.of(value))
                else:
                    self.views["opened bits"].append(Seen.of(value, 1))
        return opened

    def _message(self, what: str, message: Tensor, shares: Sequence[Form | Words]) -> None:
        """Keeps a message in its parts: values, then bits, all 64 of each word but the last one."""
        forms = [share for share in shares if isinstance(share, Form)]
        sizes = [form.shape.numel() for form in forms]
        *values, words = torch.split(message, [*sizes, len(message) - sum(sizes)])
        seen = [Seen.of(value) for value in values]
        bits = sum(len(share) for share in shares if not isinstance(share, Form))
        full, rest = divmod(bits, 64)
        assert len(words) == full + (rest > 0)
        if full:
            seen.append(Seen.of(words[:full]))
        if rest:
            # Above them are zeros.
            assert int(words[-1]) >> rest == 0
            seen.append(Seen.of(words[full:], rest))
        self.views[f"{what} of {self.name}"] += seen


@dataclass(frozen=True)
class Watched(SPDZ2k):
    """The engine with views of its computing parties, for threads."""

    views: Views = field(default_factory=lambda: defaultdict(list), compare=False, repr=False)

    @contextmanager
    def open(self, party: Party) -> Iterator[Spdz2kSession]:
        with super().open(party) as session:
            if not session.deals:
                session.wires = Overheard(session.wires, party.name, self.views)  # type: ignore[arg-type]
            yield session

    @staticmethod
    def shares_of(result: Ring64Tensor) -> list[Seen]:
        """A role's shares of a result and of its MACs."""
        return [Seen.of(row) for row in result.share.words]
