"""Planting canaries: every row stays, coins are fair and decide, nothing else changes."""

import pickle
from dataclasses import replace

import pytest
import torch

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.seeding import Seeds
from privtrain.core.statement import Unit
from privtrain.core.task import COLUMNS, Canaries, FederatedData, Rows, concatenate
from privtrain.data.canaries import (
    CANARIES_GIVEN,
    mislabelled_rows,
    noise_rows,
    planted_in,
    with_canaries,
)
from privtrain.sampling.batches import PoissonBatches
from privtrain.sampling.users import limit_per_user
from tests.trainers.federations import a_federation

DATA = replace(a_federation(30, 20, 10), public_rows=60, digest="d")


def like_data(count: int) -> Rows:
    return noise_rows(DATA, count, seed=4)


def test_included_canaries_are_in_the_training_rows_and_excluded_ones_are_not() -> None:
    rows = like_data(40)
    planted = with_canaries(DATA, rows, seed=1)
    assert planted.canaries is not None
    included = planted.canaries.included
    assert 5 < int(included.sum()) < 35
    held = {tuple(row) for row in planted.pooled().inputs.tolist()}
    for row, inside in zip(rows.inputs.tolist(), included.tolist(), strict=True):
        assert (tuple(row) in held) == inside
    assert len(planted.pooled()) == 60 + int(included.sum())
    for party in DATA.parties:
        own = DATA.train[party]
        assert torch.equal(planted.train[party].inputs[: len(own)], own.inputs)
        assert torch.equal(planted.train[party].labels[: len(own)], own.labels)


def without_canaries(data: FederatedData) -> Rows:
    """The rows of all parties, without the last ones, which were planted."""
    planted = planted_in(data)
    own = {name: len(rows) - planted.get(name, 0) for name, rows in data.train.items()}
    return concatenate([data.train[name].take(torch.arange(own[name])) for name in own])


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_without_canaries_are_the_rows_that_were_there_before(count: int) -> None:
    assert torch.equal(without_canaries(DATA).inputs, DATA.pooled().inputs)
    for seed in range(3):
        found = without_canaries(with_canaries(DATA, like_data(count), seed=seed))
        assert torch.equal(found.inputs, DATA.pooled().inputs)
        assert torch.equal(found.labels, DATA.pooled().labels)


def test_public_figures_do_not_depend_on_the_coins() -> None:
    rows = like_data(40)
    worlds = [with_canaries(DATA, rows, seed=seed) for seed in range(4)]
    assert {world.public_rows for world in worlds} == {80}
    assert len({tuple(world.canaries.included.tolist()) for world in worlds if world.canaries}) == 4
    assert len({world.digest for world in worlds}) == 4
    assert with_canaries(replace(DATA, public_rows=None), rows).public_rows is None
    assert "40 canaries" in worlds[0].notes[-1]


def test_coins_are_fair_and_independent_of_the_rows() -> None:
    canaries = with_canaries(DATA, like_data(10_000)).canaries
    assert canaries is not None
    # Binomial(10000, 1/2) leaves [4805, 5195] with probability 1e-4.
    assert 4805 <= int(canaries.included.sum()) <= 5195
    again = with_canaries(DATA, mislabelled_rows(DATA, 60)).canaries
    assert again is not None
    assert torch.equal(again.included, canaries.included[:60])


def with_users(data: FederatedData, rows_each: int) -> FederatedData:
    """The same data, in which every user has so many neighbouring rows of one party."""
    train = {
        party: replace(rows, users=torch.arange(len(rows)) // rows_each + 1000 * number)
        for number, (party, rows) in enumerate(data.train.items())
    }
    return replace(data, train=train)


def test_users_stay_and_each_canary_is_a_user_of_its_own() -> None:
    data = with_users(DATA, 5)
    planted = with_canaries(data, like_data(40), seed=1)
    assert planted.canaries is not None
    before, users = data.pooled().users, planted.pooled().users
    assert before is not None
    assert users is not None
    for party in data.parties:
        own = data.train[party]
        kept = planted.train[party].users
        assert own.users is not None
        assert kept is not None
        assert torch.equal(kept[: len(own)], own.users)
    each, count = users.unique(return_counts=True)
    new = ~torch.isin(each, before.unique())
    assert int(new.sum()) == int(planted.canaries.included.sum())
    assert set(count[new].tolist()) == {1}
    assert torch.equal(without_canaries(planted).users, before)
    # Planted in one party alone, where others hold none: every party still knows its users.
    few = with_canaries(data, like_data(1), seed=3)
    assert few.pooled().users is not None


def test_a_canary_stays_under_a_limit_on_the_rows_of_a_user() -> None:
    """The limit, and the promise per user, see a canary as any other user."""
    planted = with_canaries(with_users(DATA, 5), like_data(40), seed=1)
    assert planted.canaries is not None
    included = int(planted.canaries.included.sum())
    pooled = planted.pooled()
    chosen = limit_per_user(pooled, 1, Seeds(0))
    assert len(chosen) == 12 + included
    batches = PoissonBatches(rows_per_user=1)
    made = batches.batches(planted, epochs=1, sampling_rate=None, expected_batch=8)
    assert made.unit is Unit.USER


def test_all_that_is_known_of_the_data_stays() -> None:
    data = replace(
        DATA, assumptions=("public classes",), by_coin=True, published=True, validation=DATA.test,
        public=DATA.test, notes=("a note",),
    )  # fmt: skip
    planted = with_canaries(data, like_data(4))
    for name in ("test", "validation", "public", "by_coin", "published", "split"):
        assert getattr(planted, name) == getattr(data, name), name
    # Without a row of the table, other rows are copied, and its own copy may stay.
    assert planted.assumptions == ("public classes", CANARIES_GIVEN)
    assert planted.notes[:1] == ("a note",)


def test_planted_data_pickles() -> None:
    planted = with_canaries(DATA, like_data(9))
    again = pickle.loads(pickle.dumps(planted))
    assert torch.equal(again.pooled().inputs, planted.pooled().inputs)


def test_mislabelled_rows_are_training_rows_with_another_label() -> None:
    pooled = DATA.pooled()
    truth = {
        tuple(row): label
        for row, label in zip(pooled.inputs.tolist(), pooled.labels.tolist(), strict=True)
    }
    rows = mislabelled_rows(DATA, 60, seed=3)
    assert len({tuple(row) for row in rows.inputs.tolist()}) == 60
    for row, label in zip(rows.inputs.tolist(), rows.labels.tolist(), strict=True):
        assert truth[tuple(row)] != label
    assert set(rows.labels.tolist()) == set(DATA.test.labels.tolist())


def test_noise_rows_have_the_range_of_the_test_rows() -> None:
    rows = noise_rows(DATA, 500, seed=0)
    assert rows.inputs.shape[1:] == DATA.test.inputs.shape[1:]
    assert rows.inputs.dtype == DATA.test.inputs.dtype
    assert DATA.test.inputs.min() <= rows.inputs.min()
    assert rows.inputs.max() <= DATA.test.inputs.max()
    assert not torch.equal(rows.inputs, noise_rows(DATA, 500, seed=1).inputs)


def test_what_does_not_fit_is_refused() -> None:
    rows = like_data(4)
    with pytest.raises(UnsupportedError, match="whole rows"):
        with_canaries(replace(DATA, split=COLUMNS), rows)
    with pytest.raises(DataError, match="4 were planted before"):
        with_canaries(with_canaries(DATA, rows), rows)
    with pytest.raises(DataError, match="inputs of shape"):
        with_canaries(DATA, Rows(rows.inputs[:, :2], rows.targets))
    with pytest.raises(DataError, match="targets"):
        with_canaries(DATA, Rows(rows.inputs, rows.labels.double()))
    with pytest.raises(DataError, match="canaries without users"):
        with_canaries(DATA, replace(rows, users=torch.arange(4)))
    with pytest.raises(DataError, match="at least one"):
        with_canaries(DATA, like_data(4).take(torch.tensor([], dtype=torch.long)))
    with pytest.raises(ValueError, match="Expected count=61 <= 60"):
        mislabelled_rows(DATA, 61)
    for make in (mislabelled_rows, noise_rows):
        with pytest.raises(ValueError, match="count=0"):
            make(DATA, 0)
        with pytest.raises(DataError, match="two or more classes"):
            make(regression(DATA), 2)
    with pytest.raises(DataError, match="one boolean"):
        Canaries(rows=rows, included=torch.ones(3, dtype=torch.bool))
    with pytest.raises(DataError, match="targets"):
        Canaries(rows=Rows(rows.inputs), included=torch.ones(4, dtype=torch.bool))


def regression(data: FederatedData) -> FederatedData:
    return replace(data, test=Rows(data.test.inputs, data.test.labels.double()))


def test_noise_rows_of_tokens_are_tokens() -> None:
    tokens = torch.arange(60).reshape(30, 2) % 7
    whole = Rows(tokens, torch.arange(30) % 2)
    data = FederatedData(train={"a": whole, "b": whole}, test=whole)
    rows = noise_rows(data, 200)
    assert rows.inputs.dtype == torch.int64
    assert rows.inputs.unique().tolist() == list(range(7))
    assert len(with_canaries(data, rows).pooled()) > 60
