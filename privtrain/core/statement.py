"""What is promised to whom: formal guarantees, and who reads what on the way."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

from privtrain.core import shown
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.rounding import printed_up
from privtrain.core.validate import check_delta, check_is, check_positive


# A StrEnum: files hold the text, and reading it back is `Relation(text)`. The relation belongs to
# each guarantee and not to the run, since a reader of single messages is owed another one than a
# reader of their sum (docs/concepts.md, "Units and relations").
class Relation(StrEnum):
    """Which two data sets count as neighbours."""

    ADD_REMOVE = "add_remove"
    REPLACE_ONE = "replace_one"
    ZERO_OUT = "zero_out"


ADD_REMOVE = Relation.ADD_REMOVE
"""One unit more or less."""

REPLACE_ONE = Relation.REPLACE_ONE
"""One unit has other contents: twice the sensitivity of a sum of bounded contributions."""

# Neighbours have equally many rows, so that a rate or a divisor computed from that number is the
# same for both (decision 004).
ZERO_OUT = Relation.ZERO_OUT
"""One unit's contribution becomes zero, while everybody still takes part."""


class Unit(StrEnum):
    """Whose presence a guarantee hides."""

    EXAMPLE = "example"
    CLIENT = "client"
    USER = "user"


class Adversary(StrEnum):
    """What a reader may do, and what is trusted in it."""

    SEMI_HONEST = "semi-honest"
    """It follows the protocol and reads what it can."""

    MALICIOUS = "malicious"
    """It may do anything."""

    TRUSTED = "trusted"
    """Nothing protects from it."""

    UNTRUSTED = "untrusted"
    """It reads releases only, so that its guarantee says what they tell."""


class Security(StrEnum):
    """What keeps a reader from reading more."""

    COMPUTATIONAL = "computational"
    INFORMATION_THEORETIC = "information-theoretic"
    NONE = "none"


# Stored in results and compared by reports: this text does not change.
SIMULATED = "simulated: void if the seed is known"
"""What a guarantee assumes whose noise, shares and keys follow from a seed."""

STATED = "stated by the user"
"""Said of a guarantee that privtrain did not compute, wherever it is shown."""

EXACT_PRIVATE = "exact, private"
"""Said of a figure that follows from private values without noise, wherever it is shown."""

MAY_BE_PUBLISHED = (
    "may be published: what is not data-dependent, which follows from settings and from how many "
    "releases were made"
)
NOT_TO_BE_PUBLISHED = (
    "not to be published: epsilons for these votes, and whatever else is computed from the votes "
    "without noise. A changed row changes them, so that they would be one more release, which no "
    "guarantee covers; published_epsilon makes that release, with noise and at a price"
)
"""What may leave with a statement that holds data-dependent figures, and what may not."""


UNWRITTEN = {"unwritten": True}
"""Metadata of a field that no file holds, such as a model."""

IF_ANY = {"if_any": True}
"""Metadata of a field that files hold only where it says anything."""


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """One differential-privacy guarantee, to one observer.

    Args:
        observer: Whom it is given to; a coalition by its name, without its members.
        unit: Whose contribution is hidden.
        relation: Which data sets are neighbours.
        epsilon: The guarantee's epsilon; infinity where nothing is promised.
        delta: The guarantee's delta.
        accountant: "pld", "rdp", or "none" where nothing had to be computed.
        cross_check: The same epsilon by the other accountant, or None where it has none.
        theorem: What it rests on, with its source.
        assumptions: What has to hold for it.
        data_dependent: Whether the number was computed from private data and is itself private.
        releases: How many releases it covers.
        stated: Whether the user states it of a model that was trained elsewhere. Nothing computed
            it here, and it never stands where a computed one is expected.
    """

    observer: Observer
    unit: Unit
    relation: Relation
    epsilon: float
    delta: float
    accountant: str
    # None where no second accountant reads the event; never a copy of the first one's answer.
    cross_check: float | None = None
    theorem: str = ""
    assumptions: tuple[str, ...] = ()
    data_dependent: bool = False
    releases: int = 0
    stated: bool = False

    @property
    def claim(self) -> str:
        """What is promised, on one line; what it rests on is left out.

        Epsilon and delta are rounded up, so that what is printed holds, too.
        """
        # Unit and relation beside every epsilon: without them two of them cannot be compared.
        epsilon, delta = printed_up(self.epsilon), printed_up(self.delta, 6)
        pair = f"({epsilon}, {delta})-DP"
        if self.data_dependent:
            # No "-DP": its theorems bound one direction, from the votes that were seen.
            pair = f"epsilon {epsilon} at delta {delta} for these votes, one-sided,"
        text = f"{pair} to the {self.observer}, per {self.unit}, {self.relation.replace('_', '-')}"
        text = f"{text}, data-dependent" if self.data_dependent else text
        return f"{text}, {STATED}" if self.stated else text

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The theorem and the assumptions, a text each; empty where nothing is promised."""
        if math.isinf(self.epsilon):
            return ()
        theorem = (f"by {self.theorem}",) if self.theorem else ()
        return (*theorem, *(f"if {assumption}" for assumption in self.assumptions))

    def __str__(self) -> str:
        return "\n".join([self.claim, *(f"  {text}" for text in self.rests_on)])


@dataclass(frozen=True, kw_only=True)
class ExactCost:
    """What the releases that were made exactly tell to one observer: a figure, and no promise.

    It bounds how far apart what was released of these votes lies from what would be released of any
    neighbouring votes, in both directions. Differential privacy has to hold for all votes. It is
    computed from the votes without noise, so that it is as private as these.

    Args:
        observer: Who sees the releases.
        unit: Whose contribution makes neighbours differ.
        relation: Which data sets are neighbours.
        epsilon: The figure.
        delta: At which it is taken.
        releases: How many releases it covers.
        method: How it was computed, with its source.
    """

    observer: Observer
    unit: Unit
    relation: Relation
    epsilon: float
    delta: float
    releases: int = 0
    method: str = ""

    @property
    def claim(self) -> str:
        """What it says, on one line, marked as private."""
        epsilon, delta = printed_up(self.epsilon), printed_up(self.delta, 6)
        relation = self.relation.replace("_", "-")
        return (
            f"epsilon {epsilon} at delta {delta} for these votes, {EXACT_PRIVATE}, to the "
            f"{self.observer}, per {self.unit}, {relation}: no differential privacy"
        )

    def __str__(self) -> str:
        return f"{self.claim}\n  by {self.method}" if self.method else self.claim


@dataclass(frozen=True, kw_only=True)
class InputPrivacy:
    """Who reads what while the model is trained. Cryptography protects inputs, DP outputs.

    Args:
        reader: Who reads.
        reads: What is readable to it in the clear.
        adversary: What the reader may do.
        security: What keeps it from reading more.
        dealer: Who deals the triples of a secret-shared computation; empty where nobody does.
        honest: The smallest set that has to be honest.
    """

    reader: str
    reads: str
    adversary: Adversary = Adversary.TRUSTED
    security: Security = Security.NONE
    dealer: str = ""
    honest: str = ""

    def __str__(self) -> str:
        return f"{self.reader} reads {self.reads} ({self.adversary}, {self.security})"


@dataclass(frozen=True, kw_only=True)
class PrivacyCurves:
    """One guarantee at every delta, and as errors of whoever tests which neighbour was used.

    Args:
        observer: Whom it is given to; a coalition by its name, without its members.
        unit: Whose contribution is hidden.
        relation: Which data sets are neighbours.
        epsilon_by_delta: Points `(delta, epsilon)`; each of them holds.
        trade_off: Points `(false positive rate, false negative rate)`, both in 0..1: no test with
            that rate of false positives has fewer false negatives.
        mu: The mu of the Gaussian trade-off through the same epsilon at the guarantee's delta: a
            summary, never a bound. None where there is none.
        promised: Points `(delta, epsilon)` at deltas up to nearly 1, each of which holds; the
            trade-off is drawn from them, and an audit tests them all at once.
    """

    observer: Observer
    unit: Unit
    relation: Relation
    epsilon_by_delta: tuple[tuple[float, float], ...]
    trade_off: tuple[tuple[float, float], ...]
    mu: float | None = None
    promised: tuple[tuple[float, float], ...] = ()

    def __repr__(self) -> str:
        points = f"{len(self.epsilon_by_delta)} deltas, {len(self.trade_off)} error rates"
        return f"PrivacyCurves({self.observer}, {self.unit}, {self.relation}: {points})"


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """Everything a run promises: a list of guarantees, and who reads what.

    Args:
        guarantees: Output privacy, one or more for each observer.
        input_privacy: Input privacy, one for each reader.
        caveats: What the figures leave out.
        curves: Guarantees to the public over all deltas, where anything is promised to it.
        exact: What the releases exactly told, where a simulation knows it: private, no guarantee.
    """

    guarantees: tuple[Guarantee, ...]
    input_privacy: tuple[InputPrivacy, ...] = ()
    caveats: tuple[str, ...] = ()
    curves: tuple[PrivacyCurves, ...] = ()
    exact: tuple[ExactCost, ...] = field(default=(), metadata=IF_ANY)

    @property
    def publishing(self) -> tuple[str, ...]:
        """What of the figures may be published, what may not, and why; empty where all may."""
        if self.exact or any(g.data_dependent for g in self.guarantees):
            return MAY_BE_PUBLISHED, NOT_TO_BE_PUBLISHED
        return ()

    def epsilon(self, observer: Observer | str = PUBLIC) -> float:
        """The smallest formal epsilon to an observer; infinity where nothing is promised.

        Where several units are protected, such as clients and their examples, the answer is that
        of the worst protected one. A data-dependent epsilon is itself private and never the
        answer, nor is one that the user states.

        Args:
            observer: Whom it is promised to, or the name, such as "aggregator".
        """
        name = str(observer)
        # Guarantees of one unit each hold, such as by two theorems: the best is the answer. Several
        # units are no alternatives to each other: what all of them are promised is the worst.
        best: dict[Unit, float] = {}
        for g in self.guarantees:
            # Computed from private data: printing it is a release that nobody paid for.
            if g.observer.name == name and not g.data_dependent and not g.stated:
                best[g.unit] = min(g.epsilon, best.get(g.unit, math.inf))
        return max(best.values(), default=math.inf)

    def to_json(self) -> dict[str, Any]:
        """The statement as plain values; infinity becomes the string "inf"."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def __str__(self) -> str:
        claims, texts = numbered(self.guarantees)
        lines = [*claims, *texts, *map(str, self.exact), *self.publishing]
        return "\n".join([*lines, *map(str, self.input_privacy), *self.caveats])

    def __repr__(self) -> str:
        parts = {
            "promised": shown.first((g.claim for g in self.guarantees), 3) or "nothing",
            "readers": shown.first((entry.reader for entry in self.input_privacy), 4),
            "left out": f"{len(self.caveats)} caveats; print() shows them and all assumptions",
        }
        return shown.lines("PrivacyStatement", **parts)

    def _repr_html_(self) -> str:
        """The statement as tables for notebooks."""
        header = ("observer", "unit", "relation", "epsilon", "delta", "accountant", "")
        rows = [
            (
                *(g.observer, g.unit, g.relation, printed_up(g.epsilon), printed_up(g.delta, 6)),
                *(g.accountant, ", ".join(_marks(g))),
            )
            for g in self.guarantees
        ]
        rows += [
            (
                *(e.observer, e.unit, e.relation, printed_up(e.epsilon), printed_up(e.delta, 6)),
                *("", f"{EXACT_PRIVATE}: no differential privacy"),
            )
            for e in self.exact
        ]
        readers = [(e.reader, e.reads, e.adversary, e.security) for e in self.input_privacy]
        rests = [text for g in self.guarantees for text in g.rests_on]
        return "".join(
            (
                shown.table(header, rows, "Promised"),
                shown.listed("What the guarantees rest on", dict.fromkeys(rests)),
                shown.listed("Publishing", self.publishing) if self.publishing else "",
                shown.table(("reader", "reads", "adversary", "security"), readers, "Who reads what")
                if readers
                else "",
                shown.listed("What the figures leave out", self.caveats),
            )
        )


def _marks(guarantee: Guarantee) -> list[str]:
    """What sets a guarantee apart from a formal one that was computed."""
    dependent = ["data-dependent: one-sided, itself private"] if guarantee.data_dependent else []
    return [*dependent, STATED] if guarantee.stated else dependent


def numbered(guarantees: Iterable[Guarantee]) -> tuple[list[str], list[str]]:
    """Claims with the numbers of what they rest on, and these texts, each once.

    Args:
        guarantees: In the order in which they are printed.

    Returns:
        Lines such as "(1, 1e-05)-DP to the public, per example, zero-out [1, 2]" and lines such
        as "[1] by ..." and "[2] if ...".
    """
    made = list(guarantees)
    texts = list(dict.fromkeys(text for g in made for text in g.rests_on))
    places = {text: number for number, text in enumerate(texts, start=1)}
    claims = []
    for guarantee in made:
        known = ", ".join(str(places[text]) for text in guarantee.rests_on)
        claims.append(f"{guarantee.claim} [{known}]" if known else guarantee.claim)
    return claims, [f"[{places[text]}] {text}" for text in texts]


def to_plain(value: Any) -> Any:
    """A frozen value as what JSON can hold: infinity is the string "inf", NaN the string "nan".

    An observer is its name.

    Args:
        value: A dataclass, mapping, sequence, set, number, string or None.

    Returns:
        Nested dicts, lists, strings, numbers, booleans and None.
    """
    # Without members: what is printed of a coalition is its name.
    if isinstance(value, Observer):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        parts = [part for part in fields(value) if not part.metadata.get("unwritten")]
        found = {part: getattr(value, part.name) for part in parts}
        return {
            part.name: to_plain(item)
            for part, item in found.items()
            if item or not part.metadata.get("if_any")
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    # Sorted: the order of a set of texts differs from process to process, and so would the file.
    if isinstance(value, (set, frozenset)):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, StrEnum):
        return str(value)
    # JSON has no infinity (RFC 8259, section 6); Python's "Infinity" stops other readers.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def to_json_text(value: Any) -> str:
    """A frozen value as JSON text."""
    return json.dumps(to_plain(value), indent=2, allow_nan=False)


@dataclass(frozen=True)
class Budget:
    """How much may be spent, to one observer.

    Args:
        epsilon: Upper bound on epsilon; positive.
        delta: The delta at which it is measured, in (0, 1).
        observer: The observer whose guarantee is bounded.
    """

    epsilon: float
    delta: float = 1e-5
    observer: Observer = PUBLIC

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon)
        check_delta(self.delta)
        check_is(Observer, "pt.PUBLIC", observer=self.observer)
