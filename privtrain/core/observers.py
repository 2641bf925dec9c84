"""Observers: who might look, and what each of them sees of one release."""

from dataclasses import dataclass, field

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


PUBLIC = Observer("public")
"""Sees what is published: the final model, or the answers."""

PARTICIPANT = Observer("participant")
"""Sees the model of every round, and its own data."""

AGGREGATOR = Observer("aggregator")
"""Sees what arrives at the aggregator in every round, and what the aggregator draws itself."""

DEALER = Observer("dealer")
"""Sees the correlated randomness that it deals to the parties of a secret-shared computation."""

QUERIER = Observer("querier")
"""Sees the answers to its own queries."""


def coalition(corrupted: frozenset[str] | set[str]) -> Observer:
    """Several parties that pool everything they saw.

    Args:
        corrupted: Names of the parties; at least one.

    Returns:
        The observer that sees what any of them sees.

    Raises:
        ValueError: If nobody is named.
    """
    if not corrupted:
        raise ValueError("Expected corrupted=set() to name at least one party.")
    # A guarantee stores the name alone, so the name says how many they are.
    count = len(corrupted)
    return Observer(
        f"coalition of {count} {'party' if count == 1 else 'parties'}", frozenset(corrupted)
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
    """

    single_messages: bool
    knows_sample: bool
    noise_known: float
    # The known fraction is not enough (decision 001): under SPLIT(h) a single message carries 1/h
    # of the variance, of which its reader knows nothing.
    variance: float = 1.0

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
