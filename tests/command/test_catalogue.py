"""Lists of what there is are read from the source, and say what the classes say."""

import dataclasses
import inspect

import pytest

import privtrain as pt
from privtrain.attacks.taxonomy import EVERYBODY
from privtrain.command import catalogue, names
from privtrain.command.arguments import DataArgs
from privtrain.command.cli import main
from privtrain.data.arrays import from_arrays, from_npz
from privtrain.data.reading import from_csv


def settings_of(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def test_trainers_and_attacks_have_the_settings_of_their_classes() -> None:
    listed = {entry.name: entry for entry in (*catalogue.trainers(), *catalogue.attacks())}
    assert set(listed) == {*names.TRAINERS, *names.ATTACKS}
    for name, entry in listed.items():
        kind = names.TRAINERS[name] if name in [*names.TRAINERS] else names.ATTACKS[name]
        assert [setting.name for setting in entry.settings] == settings_of(kind)
        assert entry.words == inspect.getdoc(kind).partition("\n")[0]  # type: ignore[union-attr]
        assert all(setting.words for setting in entry.settings), name


def test_parts_have_the_settings_and_defaults_of_their_classes() -> None:
    for entry in catalogue.parts():
        kind = getattr(pt, entry.name)
        assert [setting.name for setting in entry.settings] == settings_of(kind), entry.name
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for setting in entry.settings:
            given = fields[setting.name]
            asked = given.default is given.default_factory is dataclasses.MISSING
            assert (setting.default is None) == asked, (entry.name, setting)
    listed = {entry.name for entry in catalogue.parts()}
    public = {name for name in names.KINDS if name in pt.__all__}
    assert listed == public


def test_data_sets_and_files_have_the_options_of_their_loaders() -> None:
    listed = {entry.name: [s.name for s in entry.settings] for entry in catalogue.data()}
    for name in pt.data.names():
        assert listed[name] == [*inspect.signature(getattr(pt.data, name)).parameters]
    passed = set(inspect.signature(from_arrays).parameters) - {"inputs", "targets"}
    for suffix, loader in (("FILE.csv", from_csv), ("FILE.npz", from_npz)):
        own = set(inspect.signature(loader).parameters) - {"path"}
        assert set(listed[suffix]) == (own - {"options"} | passed if "options" in own else own)


def test_attacks_are_listed_with_what_they_say_of_themselves() -> None:
    for entry in catalogue.attacks():
        about = names.ATTACKS[entry.name].about
        assert f"Goal: {about.goal}, of one {about.unit}" in entry.about
        assert f"means: {about.capability};" in entry.about
        assert ("trains shadow models" in entry.about) == about.shadows
        able = "everybody" if about.observers == EVERYBODY else ", ".join(about.observers)
        assert f"by {able};" in entry.about
    assert not any(entry.about for entry in catalogue.trainers())


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("trainers", "dp_sgd\n    Gradient descent on clipped"),
        ("trainers", "Gaussian(clipping_norm, noise_multiplier, secure=False)"),
        ("trainers", "--set dp_sgd.epochs=5"),
        ("trainers Gaussian", "noise_multiplier  (float)"),
        ("attacks", "guesses=100  (int)"),
        (
            "attacks rmia",
            "Goal: membership, of one example; means: outputs; by everybody; trains shadow models.",
        ),
        ("data digits", "test_fraction=0.2  (float)"),
        ("data", "FILE.csv"),
    ],
)
def test_the_command_line_prints_them(
    words: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert shown in out
    assert max(map(len, out.splitlines())) <= 120


def test_the_options_of_the_command_line_are_all_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["data"]) == 0
    foot = " ".join(capsys.readouterr().out.partition("On the command line: ")[2].split())
    own = [f"--{each.name}" for each in dataclasses.fields(DataArgs) if each.name != "data"]
    assert {"--missing", "--ranges", "--drop", "--delimiter"} <= set(own)
    assert foot.startswith(f"--data NAME, {', '.join(own)}; the others")


def test_an_unknown_one_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trainers", "Gausian"]) == 2
    assert "Did you mean 'Gaussian'?" in capsys.readouterr().err
