"""Who draws the noise: the aggregator, every party, or the parties in equal parts."""

from dataclasses import dataclass
from enum import StrEnum

from privtrain.core.validate import check_count


class Drawer(StrEnum):
    """The side that draws noise."""

    AGGREGATOR = "aggregator"
    PARTY = "party"


@dataclass(frozen=True)
class Placement:
    """Who draws the noise of a release, and which fraction of its variance.

    Args:
        drawer: Who draws.
        honest_survivors: With a split, each party draws 1/honest_survivors of the variance, so
            that this many honest parties draw all of it. 1 if each draws all of it.
        split: Whether the parties draw parts of one noise.
    """

    drawer: Drawer
    honest_survivors: int = 1
    split: bool = False

    def __post_init__(self) -> None:
        check_count(honest_survivors=self.honest_survivors)
        # A study file writes the drawer as a plain string.
        object.__setattr__(self, "drawer", Drawer(self.drawer))
        if self.split and self.drawer is not Drawer.PARTY:
            raise ValueError("Expected split=True with drawer='party': only parties share a noise.")
        if self.honest_survivors != 1 and not self.split:
            raise ValueError(
                f"Expected honest_survivors={self.honest_survivors} to be 1 without a split; "
                "use SPLIT(honest_survivors=...)."
            )

    @property
    def fraction(self) -> float:
        """Fraction of the mechanism's variance that one drawer draws."""
        return 1.0 / self.honest_survivors

    def __str__(self) -> str:
        if self.split:
            return f"SPLIT(honest_survivors={self.honest_survivors})"
        return f"AT_{self.drawer.upper()}"


AT_AGGREGATOR = Placement(Drawer.AGGREGATOR)
"""The aggregator draws the noise (under secret sharing: the shares do, and nobody knows it)."""

AT_PARTY = Placement(Drawer.PARTY)
"""Every party draws all of the noise on its own message: local differential privacy."""


def SPLIT(*, honest_survivors: int) -> Placement:  # noqa: N802 - reads like its two neighbours
    """Every party draws an equal part of the noise's variance.

    Args:
        honest_survivors: How many parties are assumed to be honest and to stay to the end;
            each draws 1/honest_survivors of the variance. At least 1.

    Returns:
        The placement.
    """
    return Placement(Drawer.PARTY, honest_survivors, split=True)
