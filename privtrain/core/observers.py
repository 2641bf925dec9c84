"""Observers: who might look, and what each of them sees of one release."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from privtrain.core.parties import AGGREGATOR_NAME, CURATOR_NAME, coalition_of, is_role
from privtrain.core.validate import check_non_negative


@dataclass(frozen=True)
class Observer:
    """Somebody who might look at what a training run sends and publishes.

    Args:
        name: What the observer is called in tables.
        corrupted: Names of the parties that pool what they saw; empty for a single observer.
    """

    name: str
    # A frozen set: coalitions of the same parties are equal, in whatever order they were named.
    corrupted: frozenset[str] = field(default=frozenset())

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        # Sorted: the order of a set of texts differs from process to process.
        members = ", ".join(map(repr, sorted(self.corrupted)))
        corrupted = f"frozenset({{{members}}})" if members else "frozenset()"
        return f"Observer(name={self.name!r}, corrupted={corrupted})"

    @property
    def is_coalition(self) -> bool:
        """Whether it is several parties, also where a file told its name and not its members."""
        return bool(self.corrupted) or coalition_of(self.name) is not None

    @property
    def members_named(self) -> str:
        """What a coalition's name says of its members, such as "of a, b"; empty for others."""
        return coalition_of(self.name) or ""

    @property
    def without_members(self) -> "Observer":
        """The same observer as statements and files hold it: by its name alone."""
        return Observer(self.name)


PUBLIC = Observer("public")
"""Sees what is published: the final model, or the answers."""

PARTICIPANT = Observer("participant")
"""Sees the model of every round, and its own data."""

AGGREGATOR = Observer("aggregator")
"""Sees what arrives at the aggregator in every round, and what the aggregator draws itself."""

CURATOR = Observer(CURATOR_NAME)
"""Pools the rows in central training: sees all of them, and the noise that it draws itself."""

DEALER = Observer("dealer")
"""Sees the correlated randomness that it deals to the parties of a secret-shared computation."""

QUERIER = Observer("querier")
"""Sees the answers to its own queries."""


_NAMED = 4
"""So many members of a coalition stand in its name; a longer one shows a digest of all."""


def coalition(corrupted: frozenset[str] | set[str]) -> Observer:
    """Several parties that pool everything they saw.

    Args:
        corrupted: Names of the parties; at least one.

    Returns:
        The observer that sees what any of them sees. Other members make another name, such as
        "coalition of a, b", which is all that statements and tables hold.

    Raises:
        ValueError: If nobody is named, or a name is no text.
    """
    # A text is a collection of letters, each of which would be taken for a party.
    if not corrupted or isinstance(corrupted, str):
        raise ValueError(
            f"Expected corrupted={corrupted!r} to be a set that names at least one party."
        )
    odd = [name for name in corrupted if not isinstance(name, str)]
    if odd:
        raise ValueError(f"Expected corrupted to hold names of parties; it holds {odd[0]!r}.")
    # A run has an aggregator or a curator, so that a coalition means its one by either name.
    members = sorted({AGGREGATOR_NAME if name == CURATOR_NAME else name for name in corrupted})
    text = ", ".join(members)
    # {"a", "b"} and {"a, b"} read alike, and a long list fills a table.
    if len(members) > _NAMED or text.count(",") >= len(members):
        digest = hashlib.sha256(json.dumps(members).encode()).hexdigest()[:12]
        shown = ", ".join(members[:_NAMED])
        more = len(members) - _NAMED
        text = f"{shown} and {more} more ({digest})" if more > 0 else f"{shown} ({digest})"
    return Observer(f"coalition of {text}", frozenset(members))


def check_observer(observer: Observer, parties: Iterable[str]) -> None:
    """Refuses an observer that nobody in a setting is: what it would see is then unknown.

    Args:
        observer: Whom a promise is made to, or whose view an attack reads.
        parties: Names of the parties that hold data.

    Raises:
        ValueError: If a coalition names a party that is not there, or a single observer is a
            party rather than a role.
    """
    # Names alone: a mapping that is asked whether it holds a party may load its rows.
    known = tuple(parties)
    if not (observer.corrupted or is_role(observer.name)) and observer.name in known:
        raise ValueError(
            f"Expected observer={observer.name!r} to be a role, such as participant: what it would "
            f"see is what everybody sees. A party is coalition({{{observer.name!r}}})."
        )
    strangers = sorted(name for name in observer.corrupted.difference(known) if not is_role(name))
    if strangers:
        shown = ", ".join((*known[:10], *(("...",) if len(known) > 10 else ()), AGGREGATOR_NAME))
        raise ValueError(
            f"Expected the coalition to name parties that take part; {strangers[0]!r} does not. "
            f"Known are {shown}."
        )


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What one observer sees of one release.

    Args:
        single_messages: Whether it can read single messages rather than their sum only. Such
            an observer is owed replace-one: an absent message is seen.
        knows_sample: Whether it knows who or what was sampled, so that sampling hides nothing.
        noise_known: Fraction of the noise's variance that it can subtract, in [0, 1].
        variance: Variance of the noise in what it sees, as a multiple of the mechanism's own:
            1/h in a single message under `SPLIT(h)`, the number of parties in a sum of messages
            that each carry their own noise.
        largest_only: Whether it sees no more than the largest value of a sum, with noise on that
            value alone: one vote that moves changes it by at most 1.
        finish_only: Whether it sees no more of what is noised than what the finish leaves of it.
        winner_only: Whether that is, of each row, only the place of the largest noised value.
        check_only: Whether that is only whether a noised value reaches a threshold.
    """

    single_messages: bool
    knows_sample: bool
    noise_known: float
    # The known fraction is not enough (decision 001): under SPLIT(h) a single message carries 1/h
    # of the variance, of which its reader knows nothing.
    variance: float = 1.0
    largest_only: bool = False
    # Unless an aggregation says so, an observer reads what is noised: what it is charged is then
    # true of whoever sees less, too.
    finish_only: bool = False
    winner_only: bool = False
    check_only: bool = False

    def __post_init__(self) -> None:
        check_non_negative(variance=self.variance)
        # Written as a chain, so that a NaN fails too.
        if not 0 <= self.noise_known <= 1:
            raise ValueError(f"Expected noise_known={self.noise_known!r} in [0, 1].")

    @property
    def hidden_variance(self) -> float:
        """Variance that the observer cannot subtract, as a multiple of the mechanism's own."""
        # docs/concepts.md, "The formula": the numerator of z_eff is the root of this, times the
        # noise multiplier.
        return self.variance * (1.0 - self.noise_known)
