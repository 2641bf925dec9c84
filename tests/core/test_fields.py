"""Fields that came later say nothing at their default, and everything beside it."""

from dataclasses import dataclass, field, fields

import pytest

import privtrain as pt
from privtrain.command.tables import from_table, settings_of, to_table
from privtrain.core.fields import LATER, told, told_fields
from privtrain.core.identity import value_digest


@dataclass(frozen=True, repr=False)
class Setting:
    """A setting that gained a field."""

    size: int = 3
    extra: int | None = field(default=None, metadata=LATER)

    def __repr__(self) -> str:
        return told(self)


def test_it_is_printed_beside_its_default_only() -> None:
    assert repr(Setting()) == "Setting(size=3)"
    assert repr(Setting(extra=2)) == "Setting(size=3, extra=2)"
    assert [each.name for each in told_fields(Setting())] == ["size"]
    assert [each.name for each in told_fields(Setting(extra=2))] == ["size", "extra"]


def test_a_later_field_without_a_default_is_a_mistake() -> None:
    @dataclass(frozen=True)
    class Mistaken:
        extra: int = field(metadata=LATER)

    with pytest.raises(TypeError, match="'extra' of Mistaken to have a default"):
        told_fields(Mistaken(1))


BEFORE = pt.PATE(
    queries=150,
    steps=pt.PlainSteps(epochs=40, learning_rate=0.5),
    student=pt.PlainSteps(epochs=60, learning_rate=0.1),
)
"""What PATE() stood for until it had other defaults."""


def test_settings_have_the_digests_that_they_had_before_fields_came() -> None:
    """Noise and folders of seeded runs go on. Computed before `reduce` and `consensus` came."""
    local = pt.Release(pt.Gaussian(1.0, 1.0), pt.AT_PARTY)
    for value, digest in (
        (pt.Release(), "5e4f7893cb2190304c41c084c6bf542a"),
        (local, "56d837ab27de424e5b986aa9bf54a7d8"),
        (BEFORE, "fc5364c21d5df93eb0b0375d48522fc7"),
    ):
        assert value_digest(value).hex()[:32] == digest


def test_releases_and_pate_print_and_write_what_they_did() -> None:
    release = pt.Release(pt.GNMax(sigma=10.0), finish=pt.ARGMAX)
    assert repr(pt.Release()) == (
        "Release(mechanism=Exact(), noise_at=Placement(drawer=<Drawer.AGGREGATOR: 'aggregator'>, "
        "honest_survivors=1, split=False), aggregation=PlainSum(), finish=Identity())"
    )
    assert repr(BEFORE).startswith(f"PATE(teachers=100, queries=150, release={release!r}, steps")
    assert repr(BEFORE).endswith("optimizer='SGD'))")
    assert set(settings_of(BEFORE)) == {"teachers", "queries", "release", "steps", "student"}
    assert set(to_table(release)) == {"kind", "mechanism", "noise_at", "aggregation", "finish"}


def test_a_check_is_written_into_a_study_file_and_read_again() -> None:
    check = pt.Release(pt.GNMax(150.0), reduce=pt.MAX, finish=pt.Threshold(200.0))
    assert to_table(check)["reduce"] == "max"
    assert from_table(to_table(check), "consensus") == check
    trainer = pt.PATE(teachers=250, consensus=check)
    assert "reduce=<Reduce.MAX" in repr(trainer) and "consensus=Release(" in repr(trainer)
    assert from_table(settings_of(trainer)["consensus"]) == check


def test_a_later_field_identifies_by_its_value_beside_its_default() -> None:
    digests = [value_digest(Setting(extra=extra)) for extra in (None, 1, 2)]
    assert len(set(digests)) == 3
    assert digests[0] == value_digest(Setting()) != value_digest(Setting(4))


def test_later_fields_identify_beside_their_default() -> None:
    exact, largest = pt.Release(), pt.Release(reduce=pt.MAX)
    assert value_digest(exact) != value_digest(largest)
    check = pt.Release(pt.GNMax(9.0), reduce=pt.MAX, finish=pt.Threshold(1.0))
    assert value_digest(pt.PATE()) != value_digest(pt.PATE(consensus=check))
    later = [each.name for each in fields(pt.Release) if each.metadata == LATER]
    assert later == ["reduce"]
