"""How trainers differ: their settings side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privtrain.core.result import Comparison
from privtrain.report import cells
from privtrain.report.summary import unique

SETTINGS = "settings"
"""Where a card's configuration holds label to setting to text."""

LONGEST = 30
"""Longer settings, such as a whole release, are left out of a terminal's line."""


@dataclass(frozen=True)
class Setting:
    """A setting, and what each trainer has there.

    Args:
        name: Its name.
        values: A text for each label, in the order of labels; a dash where a trainer lacks it.
    """

    name: str
    values: tuple[str, ...]


def settings_of(comparison: Comparison) -> Mapping[str, Mapping[str, str]]:
    """Label to setting to text, as the card has them; empty in files of earlier versions."""
    # A card read from a file may hold anything.
    configuration = comparison.card.get("configuration")
    held = configuration.get(SETTINGS) if isinstance(configuration, Mapping) else None
    if not isinstance(held, Mapping):
        return {}
    return {
        str(label): {str(name): str(value) for name, value in own.items()}
        for label, own in held.items()
        if isinstance(own, Mapping)
    }


def differing(settings: Mapping[str, Mapping[str, str]]) -> Sequence[Setting]:
    """The settings that not all trainers have alike, in the order in which they first appear.

    Args:
        settings: Label to setting to text.
    """
    names = unique(name for own in settings.values() for name in own)
    made = [
        Setting(name, tuple(own.get(name, cells.MISSING) for own in settings.values()))
        for name in names
    ]
    return [setting for setting in made if len(set(setting.values)) > 1]


def in_a_line(own: Mapping[str, str]) -> str:
    """One trainer's settings for a terminal, the long ones left out."""
    return ", ".join(f"{name} {value}" for name, value in own.items() if len(value) <= LONGEST)
