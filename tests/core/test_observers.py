import pickle

import pytest

from privtrain.core.observers import (
    AGGREGATOR,
    CURATOR,
    PUBLIC,
    Exposure,
    Observer,
    check_observer,
    coalition,
)


def test_observers_are_frozen_values_equal_by_who_they_are() -> None:
    assert pickle.loads(pickle.dumps(AGGREGATOR)) == AGGREGATOR
    assert Observer("public") == PUBLIC != AGGREGATOR
    assert str(PUBLIC) == "public"
    one, other = coalition({"a", "b"}), coalition(frozenset({"b", "a"}))
    assert one == other
    assert hash(one) == hash(other)
    assert one != coalition({"a", "c"})
    assert (str(one), str(coalition({"a"}))) == ("coalition of a, b", "coalition of a")


def test_a_coalition_has_members() -> None:
    for nobody in (set(), frozenset(), "client-1", [1], {"a", None}):
        with pytest.raises(ValueError, match="corrupted"):
            coalition(nobody)  # type: ignore[arg-type]


def test_a_coalition_is_one_also_where_its_members_are_not_known() -> None:
    """Files hold the name alone; version 0.1 wrote how many parties there are."""
    both = coalition({"a", "b"})
    told = Observer(str(both))
    assert both.is_coalition and told.is_coalition
    assert Observer("coalition of 2 parties").is_coalition
    assert both.without_members == told and not told.corrupted
    assert (both.members_named, told.members_named) == ("of a, b", "of a, b")
    # Who pools nothing with anybody is none, whatever it is called.
    for single in (PUBLIC, AGGREGATOR, Observer("coalitions"), Observer("somebody")):
        assert not single.is_coalition and single.members_named == ""
        assert single.without_members == single


def test_other_members_make_another_name() -> None:
    """Statements and tables hold nothing but the name."""
    many = {f"client-{number:02d}" for number in range(40)}
    coalitions = [
        {"a"},
        {"b"},
        {"a", "b"},
        {"a, b"},
        {"a, b", "c"},
        {"a", "b, c"},
        {"a", "b", "c"},
        {"a", "aggregator"},
        many,
        many - {"client-39"},
        many - {"client-38"},
        many | {"aggregator"},
    ]
    names = [coalition(members).name for members in coalitions]
    assert len(set(names)) == len(names)
    assert all(name.startswith("coalition of ") and len(name) < 90 for name in names)
    assert coalition(many).name.startswith("coalition of client-00, client-01, ")
    assert " and 36 more (" in coalition(many).name
    assert coalition(many).corrupted == many


def test_the_curator_is_an_observer_of_its_own() -> None:
    assert CURATOR == Observer("curator") != AGGREGATOR
    assert not CURATOR.is_coalition
    check_observer(CURATOR, ("north", "south"))


def test_a_coalition_has_the_curator_or_the_aggregator_under_either_name() -> None:
    """Whoever asks what a coalition knows asks for one of the two."""
    assert coalition({"curator", "a"}) == coalition({"aggregator", "a"})


def test_an_observer_who_is_not_there_is_refused_by_name() -> None:
    parties = ("north", "south")
    for known in (PUBLIC, AGGREGATOR, coalition({"north"}), coalition({"south", "aggregator"})):
        check_observer(known, parties)
    check_observer(coalition({"computing-0", "computing-1"}), parties)
    with pytest.raises(ValueError, match=r"'nroth' does not\. Known are north, south, aggregator"):
        check_observer(coalition({"nroth", "south"}), parties)
    with pytest.raises(ValueError, match=r"observer='north'.*coalition\(\{'north'\}\)"):
        check_observer(Observer("north"), parties)
    with pytest.raises(ValueError, match=r"'x' does not\. Known are 0, .*, 9, \.\.\., aggregator"):
        check_observer(coalition({"x"}), [str(number) for number in range(1000)])


def test_exposures() -> None:
    seen = Exposure(single_messages=True, knows_sample=False, noise_known=0.25, variance=4.0)
    assert seen.hidden_variance == 3.0
    assert pickle.loads(pickle.dumps(seen)) == seen
    for known in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="noise_known="):
            Exposure(single_messages=True, knows_sample=True, noise_known=known)
    with pytest.raises(ValueError, match="variance="):
        Exposure(single_messages=True, knows_sample=True, noise_known=0.0, variance=-1.0)


def test_an_exposure_counts_on_no_finish_unless_it_says_so() -> None:
    seen = Exposure(single_messages=False, knows_sample=False, noise_known=0.0)
    flags = (seen.largest_only, seen.finish_only, seen.winner_only, seen.check_only)
    assert flags == (False, False, False, False)


def test_a_coalition_is_printed_alike_in_every_process() -> None:
    names = {"party-3", "party-1", "aggregator"}
    expected = "corrupted=frozenset({'aggregator', 'party-1', 'party-3'})"
    assert expected in repr(coalition(names))
    assert repr(PUBLIC) == "Observer(name='public', corrupted=frozenset())"
