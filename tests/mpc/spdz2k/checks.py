"""Both parties' checks over links of two threads, and parties that deviate."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from privtrain.core.errors import TamperedShareError
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.spdz2k.check import COIN, COIN_COMMITMENT, COMMITMENT, OPENING, Check, Strength
from privtrain.mpc.spdz2k.forms import Form
from tests.mpc.ring64.mesh import Change, QueueLink, names_of, unchanged
from tests.mpc.spdz2k.shared_forms import Dealer, value_of

KINDS = (COIN_COMMITMENT, COIN, COMMITMENT, OPENING)

ALARM = 1e-6
"""Of a count of forgeries, two-sided."""

Deed = Callable[[Check], None]


def links_of(change: Change = unchanged, timeout: float = 5.0) -> tuple[QueueLink, QueueLink]:
    names = names_of(2)
    queues: dict[tuple[str, str], queue.Queue[object]] = {
        (names[0], names[1]): queue.Queue(),
        (names[1], names[0]): queue.Queue(),
    }
    one, other = (QueueLink(names, rank, queues, change, timeout) for rank in (0, 1))
    return one, other


@dataclass
class Duel:
    """Two checks of one session, each of which may be of another kind.

    Args:
        kinds: Of party 0, which is honest, and of party 1.
        strength: As for both.
        change: What somebody on the way makes of messages.
        dealer: Who deals.
    """

    kinds: tuple[type[Check], type[Check]] = (Check, Check)
    strength: Strength = Strength()
    change: Change = unchanged
    dealer: Dealer = field(init=False)
    checks: tuple[Check, Check] = field(init=False)

    def __post_init__(self) -> None:
        self.dealer = Dealer(self.strength, Keystream())
        links = links_of(self.change)
        one, other = (
            kind(link, links[1 - link.rank].name, keys, self.strength)
            for kind, link, keys in zip(self.kinds, links, self.dealer.shares_of_keys, strict=True)
        )
        self.checks = one, other

    def at_both(self, deed: Deed) -> list[Exception | None]:
        """Errors of both parties, of which the first one's comes first."""
        errors: list[Exception | None] = [None, None]

        def of_one(rank: int) -> None:
            check = self.checks[rank]
            try:
                deed(check)
            except Exception as error:
                errors[rank] = error
                check.link.close()  # type: ignore[attr-defined]  # of a queue

        threads = [threading.Thread(target=of_one, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors

    def note(self, value: Tensor, errors: Sequence[Tensor | int] = (0, 0)) -> None:
        """Deals a value, which is opened with an error at each party."""
        both = self.dealer.deal(value)
        assert torch.equal(value_of(both), value)
        for check, form, error in zip(self.checks, both, errors, strict=True):
            check.step(1 + len(check._steps), "masked share")
            check.value(form, value + error)

    def accepted(self) -> bool:
        """Whether the honest party accepts all of it, or else says that it was deceived."""
        error = self.at_both(lambda check: check.run())[0]
        if error is not None and not isinstance(error, TamperedShareError):
            raise error
        return error is None


def begun(*kinds: type[Check], strength: Strength = Strength(), change: Change = unchanged) -> Duel:
    """A duel after its first commitments; party 1 is of the last kind."""
    duel = Duel((kinds[0], kinds[-1]) if kinds else (Check, Check), strength, change)
    assert duel.at_both(lambda check: check.begin()) == [None, None]
    return duel


class Kept:
    """Takes the place of a hash, and keeps what is hashed."""

    def __init__(self) -> None:
        self.content: list[bytes] = []

    def update(self, content: bytes) -> None:
        self.content.append(content)

    def digest(self) -> bytes:
        return b""


def forgeries(tries: int, keys: int, stream: Callable[[], Keystream], error: int) -> int:
    """How often an error of one opened value is accepted, under keys of four bits.

    The entry of the check vector for each key is computed and compared by itself, so that the keys
    of all tries can be those of one check.

    Args:
        tries: How many.
        keys: Of each try.
        stream: Coefficients, the same at both parties.
        error: Added to the opened value at both parties.
    """
    dealer = Dealer(Strength(key_bits=4, keys=keys * tries))
    value = dealer.drawn(2)
    wrong = value + torch.tensor([0, error])
    vectors = []
    for link, form, shares in zip(
        links_of(), dealer.deal(value), dealer.shares_of_keys, strict=True
    ):
        check, kept = Check(link, "other", shares, dealer.strength), Kept()
        check._tags = kept  # type: ignore[assignment]
        check.value(form, wrong)
        check._digest(stream())
        vectors.append(np.frombuffer(kept.content[-1], np.int64))
    return int((vectors[0] == vectors[1]).reshape(tries, keys).all(1).sum())


def is_likely(count: int, tries: int, probability: float) -> bool:
    """Whether so many of all tries lie within limits of a binomial distribution."""
    lower, upper = binom.cdf(count, tries, probability), binom.sf(count - 1, tries, probability)
    return bool(2 * min(lower, upper) > ALARM)


def cancelling(coefficients: Tensor) -> Tensor:
    """Errors whose sums are zero for all keys, by Cramer's rule.

    Args:
        coefficients: `(3, 4)`.

    Returns:
        `(4,)`.
    """
    rows = coefficients.tolist()

    def minor(column: int) -> int:
        a, b, c = ([each for place, each in enumerate(row) if place != column] for row in rows)
        return int(
            a[0] * (b[1] * c[2] - b[2] * c[1])
            - a[1] * (b[0] * c[2] - b[2] * c[0])
            + a[2] * (b[0] * c[1] - b[1] * c[0])
        )

    errors = [(-1) ** column * minor(column) for column in range(4)]
    assert any(errors)
    return torch.tensor([(error + 2**63) % 2**64 - 2**63 for error in errors])


def same_words(form: Form, error: Tensor) -> Form:
    """A form whose MAC shares are off."""
    words = form.words.clone()
    words[1:] += error
    return form.like(words)
