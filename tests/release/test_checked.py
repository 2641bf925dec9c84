"""Checks and answers as one setting: what they stand for, and where they may be written."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import privtrain as pt
from privtrain.command.catalogue import listing
from privtrain.command.overrides import changed_trainer
from privtrain.command.study_file import Study, read_study, write_study
from privtrain.command.tables import make_trainer, settings_of
from privtrain.mechanisms.votes import GNMax
from privtrain.release.checked import ConfidentGNMax, InteractiveGNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.reduce import MAX
from privtrain.trainers.pate import PATE

CONFIDENT = ConfidentGNMax(threshold=200.0, sigma_check=150.0, sigma=40.0)
INTERACTIVE = InteractiveGNMax(
    threshold=60.0, confidence=0.9, sigma_check=150.0, sigma=40.0, rounds=3
)
BOTH = pytest.mark.parametrize("release", [CONFIDENT, INTERACTIVE])


@BOTH
def test_it_stands_for_two_releases(release: Any) -> None:
    assert release.answer == Release(GNMax(40.0), finish=ARGMAX)
    threshold = Threshold(release.threshold)
    assert release.check == Release(GNMax(150.0), reduce=MAX, finish=threshold)


@BOTH
def test_more_noise_is_drawn_for_answers_alone(release: Any) -> None:
    noisier = PATE(teachers=250, release=release).with_noise(70.0)
    assert noisier is not None
    assert noisier.release == replace(release, sigma=70.0)
    assert noisier.checking == release.check


@BOTH
def test_it_prints_and_pickles(release: Any) -> None:
    assert eval(repr(release), vars(pt).copy() | {n: getattr(pt, n) for n in pt.__all__}) == release
    assert pickle.loads(pickle.dumps(release)) == release
    assert f"release={release!r}" in repr(PATE(teachers=250, release=release))


@BOTH
def test_a_study_file_holds_it(release: Any, tmp_path: Path) -> None:
    trainer = PATE(teachers=250, queries=1_000, answers=286, release=release)
    assert make_trainer("pate", settings_of(trainer)) == trainer
    table = {"trainer": "pate", **settings_of(trainer)}
    write_study(Study(data="digits", trainers={"pate": table}), tmp_path / "study.toml")
    assert read_study(tmp_path / "study.toml").make_trainers() == {"pate": trainer}


@BOTH
def test_the_command_line_sets_it_whole_and_in_part(release: Any) -> None:
    trainer = PATE(teachers=250, queries=1_000)
    whole = changed_trainer(trainer, [f"release={release!r}", "answers=286"])
    assert whole == replace(trainer, release=release, answers=286)
    part = changed_trainer(whole, ["release.threshold=77", "release.sigma=41.5"])
    assert part == replace(whole, release=replace(release, threshold=77.0, sigma=41.5))
    with pytest.raises(ValueError, match=r"pate\.release has no setting 'treshold'.*threshold"):
        changed_trainer(whole, ["release.treshold=77"])
    with pytest.raises(ValueError, match="has no setting 'noise_at'"):
        changed_trainer(trainer, [f"release={repr(release)[:-1]}, noise_at=AT_PARTY)"])


def test_the_catalogue_lists_both() -> None:
    assert "threshold" in listing("trainers", "ConfidentGNMax")
    assert "rounds" in listing("trainers", "InteractiveGNMax")
    assert "ConfidentGNMax" in listing("trainers", "pate")


@pytest.mark.parametrize("name", ["threshold", "sigma_check", "sigma"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "much"])
@BOTH
def test_settings_are_checked_when_it_is_made(release: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}="):
        replace(release, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("confidence", 0.0), ("confidence", 1.5), ("rounds", 1), ("rounds", 2.5)]
)
def test_settings_of_rounds_are_checked_when_it_is_made(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}="):
        replace(INTERACTIVE, **{name: value})
