"""What every aggregation promises, and doubles for those that do not exist yet."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import (
    ProtocolError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Party, Payload, Reply, Runtimes
from privtrain.core.seeding import Entropy, OnceOnly, SeededEntropy, Seeds
from privtrain.core.statement import Adversary, InputPrivacy
from privtrain.core.task import Rows
from privtrain.core.trainer import RELEASE, Ledger, Run
from privtrain.core.transcript import Transcript
from privtrain.mechanisms.mechanism import Exact, Mechanism
from privtrain.release.aggregation import Aggregation, Gathering, Refusal, Total
from privtrain.release.exposure import sum_exposure
from privtrain.release.finish import IDENTITY, Finish
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Placement
from privtrain.release.plain import PlainSum


@dataclass
class OpenLedger:
    """Pays for everything, and remembers what was used."""

    spent: int = 10**9
    used: int = 0

    @property
    def spent_by_kind(self) -> dict[str, int]:
        return {RELEASE: self.spent}

    def spend(self, count: int = 1, *, kind: str = RELEASE) -> bool:
        self.spent += count
        return True

    def use(self, count: int = 1, *, kind: str = RELEASE) -> None:
        self.used += count


@dataclass
class InMemory:
    """Keeps the last state, by reference."""

    done: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    def save(self, done: int, state: Mapping[str, Any]) -> None:
        self.done, self.state = done, dict(state)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        return (self.done, self.state) if self.state else None


def a_run(seed: int = 0, ledger: Ledger | None = None) -> Run:
    """A coordinator's side without parties."""
    return Run(
        ledger=ledger or OpenLedger(),
        transcript=Transcript(),
        seeds=Seeds(seed),
        entropy=OnceOnly(SeededEntropy(seed)),
    )


def a_party(
    name: str = "client-0", *, round: int = 0, entropy: Entropy | None = None, seed: int = 0
) -> Party:
    """A party's side with one row of its own."""
    return Party(
        name=name,
        round=round,
        train={name: Rows(torch.zeros(1, 1))},
        state={},
        seeds=Seeds(seed),
        entropy=entropy or SeededEntropy(seed),
    )


@dataclass(frozen=True)
class MaskedSum:
    """A double: its exposure is that of masked sums; its arithmetic is the plain one's."""

    minimum_survivors: int = 1
    others: ClassVar[tuple[str, ...]] = ()
    caveats: ClassVar[tuple[str, ...]] = ()

    def refusal(self, mechanism: Mechanism, noise_at: Placement) -> Refusal | None:
        return None

    def check(
        self, finish: Finish, runtimes: Runtimes, *, parties: int, largest: float | None
    ) -> None:
        return

    def begin(self, cohort: tuple[str, ...], run: Run, *, round: int, kind: str) -> Gathering:
        return Gathering(cohort=cohort, round=round, kind=kind)

    def seal(self, contribution: Tensor, party: Party, *, kind: str, grid: float | None) -> Reply:
        return Reply({kind: contribution})

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        return PlainSum().gather(gathering, replies, run)

    def exposure(self, observer: Observer, noise_at: Placement, *, parties: int) -> Exposure:
        return sum_exposure(
            observer, noise_at, parties=parties, reads_messages=False, knows_noise=True
        )

    def readers(self, sender: str, kind: str) -> tuple[InputPrivacy, ...]:
        reads = f"the sum of every {sender}'s {kind}"
        return (InputPrivacy(reader="aggregator", reads=reads, adversary=Adversary.SEMI_HONEST),)


@dataclass(frozen=True)
class SharesOpenedLate:
    """What a secret-shared sum looks like before it is opened."""

    total: Tensor
    opened: list[Finish] = field(default_factory=list, compare=False)

    def open(self, finish: Finish, mechanism: Mechanism) -> Tensor:
        if mechanism.about.noisy:
            raise UnsupportedError(f"{mechanism} cannot be drawn on shares here.")
        self.opened.append(finish)
        return finish(self.total)


@dataclass(frozen=True)
class SharedSum(MaskedSum):
    """A double: noise on shares is known to nobody, and the sum stays sealed until it is opened."""

    def gather(self, gathering: Gathering, replies: Mapping[str, Reply], run: Run) -> Total:
        whole = replace(gathering, weighted=False)
        total = PlainSum().gather(whole, replies, run).value
        assert isinstance(total, Tensor)
        return Total(SharesOpenedLate(total), parties=tuple(replies))

    def exposure(self, observer: Observer, noise_at: Placement, *, parties: int) -> Exposure:
        return sum_exposure(
            observer,
            noise_at,
            parties=parties,
            reads_messages=False,
            knows_noise=False,
            sealed=True,
        )


@dataclass(frozen=True)
class Median(MaskedSum):
    """A double of a robust rule: one bounded message can move its result by any amount."""

    def refusal(self, mechanism: Mechanism, noise_at: Placement) -> Refusal | None:
        if not mechanism.about.noisy:
            return None
        return UnsoundReleaseError(
            f"{mechanism} over {self} promises nothing: one bounded contribution can move its "
            "result by more than the bound. Use PlainSum()."
        )


PLACEMENTS = (AT_AGGREGATOR, AT_PARTY, SPLIT(honest_survivors=3), SPLIT(honest_survivors=10))
OBSERVERS = (
    PUBLIC,
    PARTICIPANT,
    AGGREGATOR,
    coalition({"client-1", "client-2"}),
    coalition({"client-1", AGGREGATOR_NAME}),
)


def check_aggregation(aggregation: Aggregation) -> None:
    """The whole suite."""
    is_a_frozen_value(aggregation)
    exposes_no_observer_to_less_than_a_smaller_one(aggregation)
    hides_no_more_noise_than_is_drawn(aggregation)
    names_its_readers(aggregation)


def check_summing(aggregation: Aggregation) -> None:
    """For aggregations that add, and that need no network to do it."""
    begins_with_whom_it_is_told(aggregation)
    hands_out_the_weight_beside_the_sum(aggregation)
    names_none_but_those_that_replied(aggregation)
    adds_in_float64(aggregation)
    follows_the_order_of_parties(aggregation)
    leaves_messages_alone(aggregation)
    refuses_other_shapes(aggregation)
    refuses_missing_messages(aggregation)


def is_a_frozen_value(aggregation: Aggregation) -> None:
    assert pickle.loads(pickle.dumps(aggregation)) == aggregation
    assert hash(aggregation) == hash(pickle.loads(pickle.dumps(aggregation)))
    assert type(aggregation).__name__ in repr(aggregation)
    with pytest.raises(FrozenInstanceError):
        aggregation.anything = 1  # type: ignore[attr-defined] # that is what is tested


def exposes_no_observer_to_less_than_a_smaller_one(aggregation: Aggregation) -> None:
    """A larger coalition, and one with the aggregator, never sees less."""
    for noise_at in PLACEMENTS:
        before = None
        for size in range(1, 10):
            seen = aggregation.exposure(
                coalition({f"client-{index}" for index in range(size)}), noise_at, parties=10
            )
            assert before is None or seen.hidden_variance <= before.hidden_variance + 1e-12
            before = seen
        alone = aggregation.exposure(AGGREGATOR, noise_at, parties=10)
        members = coalition({AGGREGATOR_NAME, "client-1"})
        both = aggregation.exposure(members, noise_at, parties=10)
        assert both.hidden_variance <= alone.hidden_variance + 1e-12
        assert both.single_messages >= alone.single_messages
        assert both.knows_sample
        public = aggregation.exposure(PUBLIC, noise_at, parties=10)
        assert alone.hidden_variance <= public.hidden_variance + 1e-12


def hides_no_more_noise_than_is_drawn(aggregation: Aggregation) -> None:
    for noise_at in PLACEMENTS:
        for observer in OBSERVERS:
            for parties in (1, 2, 3, 10, 50):
                seen = aggregation.exposure(observer, noise_at, parties=parties)
                drawn = 1.0 if noise_at == AT_AGGREGATOR else parties * noise_at.fraction
                assert 0 <= seen.hidden_variance <= drawn * (1 + 1e-12), (noise_at, observer)


def names_its_readers(aggregation: Aggregation) -> None:
    readers = aggregation.readers("client", "update")
    assert readers
    assert all("client" in reader.reads and "update" in reader.reads for reader in readers)


def replies_of(messages: Sequence[Payload]) -> dict[str, Reply]:
    """Messages as the replies of clients, in order."""
    return {f"client-{number}": Reply(message) for number, message in enumerate(messages)}


def total_of(aggregation: Aggregation, messages: Sequence[Payload], kind: str = "update") -> Tensor:
    replies, run = replies_of(messages), a_run()
    gathering = aggregation.begin(tuple(replies), run, round=0, kind=kind)
    value = aggregation.gather(gathering, replies, run).value
    return value if isinstance(value, Tensor) else value.open(IDENTITY, Exact())


def begins_with_whom_it_is_told(aggregation: Aggregation) -> None:
    names = ("client-2", "client-0")
    gathering = aggregation.begin(names, a_run(), round=3, kind="votes")
    assert (gathering.cohort, gathering.round, gathering.kind) == (names, 3, "votes")
    asked = gathering.asked({"model": torch.ones(1)})
    assert tuple(asked) == names
    assert all("model" in payload for payload in asked.values())


def hands_out_the_weight_beside_the_sum(aggregation: Aggregation) -> None:
    replies = replies_of([{"update": torch.tensor([1.0, 2.0, 0.25])}] * 3)
    begun = aggregation.begin(tuple(replies), a_run(), round=0, kind="update")
    total = aggregation.gather(replace(begun, weighted=True), replies, a_run())
    if isinstance(total.value, Tensor):
        assert total.value.tolist() == [3.0, 6.0]
        assert total.weight == 0.75
    else:
        assert total.weight is None
        opened = total.value.open(IDENTITY, Exact())
        values, weight = replace(begun, weighted=True).parted(opened)
        assert (values.tolist(), weight) == ([3.0, 6.0], 0.75)
    assert aggregation.gather(begun, replies, a_run()).weight is None


def names_none_but_those_that_replied(aggregation: Aggregation) -> None:
    replies = replies_of([{"update": torch.ones(2)}] * 2)
    cohort = (*replies, "client-9")
    begun = aggregation.begin(cohort, a_run(), round=0, kind="update")
    assert aggregation.gather(begun, replies, a_run()).parties in (None, tuple(replies))


def adds_in_float64(aggregation: Aggregation) -> None:
    # In float32 each addition of 1 to 2^24 would be lost.
    messages = [{"update": torch.tensor([2.0**24])}, *({"update": torch.ones(1)},) * 3]
    total = total_of(aggregation, messages)
    assert total.dtype == torch.float64
    assert total.item() == 2.0**24 + 3


def follows_the_order_of_parties(aggregation: Aggregation) -> None:
    values = [1e16, 1.0, -1e16, 1.0]
    messages = [{"update": torch.tensor([value], dtype=torch.float64)} for value in values]
    assert total_of(aggregation, messages).item() == ((1e16 + 1.0) - 1e16) + 1.0
    assert total_of(aggregation, messages[::-1]).item() == ((1.0 - 1e16) + 1.0) + 1e16


def leaves_messages_alone(aggregation: Aggregation) -> None:
    messages = [{"update": torch.ones(3)}, {"update": torch.ones(3)}]
    total_of(aggregation, messages)
    assert all(torch.equal(message["update"], torch.ones(3)) for message in messages)


def refuses_other_shapes(aggregation: Aggregation) -> None:
    for other in (torch.ones(4), torch.ones(1), torch.ones(()), torch.ones(1, 3), torch.ones(3, 1)):
        with pytest.raises(ProtocolError, match="shape"):
            total_of(aggregation, [{"update": torch.ones(3)}, {"update": other}])


def refuses_missing_messages(aggregation: Aggregation) -> None:
    with pytest.raises(ProtocolError, match="update"):
        total_of(aggregation, [])
    with pytest.raises(ProtocolError, match="votes"):
        total_of(aggregation, [{"update": torch.ones(3)}, {"votes": torch.ones(3)}])
