"""Trainers, attacks and their settings as plain tables, and back.

A value is written as a table whose `kind` names its class; the few constants are written by name.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from privtrain.attacks.attack import Attack
from privtrain.command.names import ATTACKS, KINDS, TRAINERS, constants
from privtrain.command.observing import observer_of, written
from privtrain.command.user_code import check_kind
from privtrain.core.errors import UnsupportedError
from privtrain.core.fields import told_fields
from privtrain.core.nearest import nearest
from privtrain.core.observers import Observer
from privtrain.core.trainer import Trainer
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Mechanism


def to_table(value: Any) -> Any:
    """A configuration value as what TOML can hold.

    Args:
        value: A frozen dataclass, a constant, number, string or sequence.

    Returns:
        Tables, lists, strings and numbers. TOML has no None: it is left out where it is the
        default, and else written "none".

    Raises:
        UnsupportedError: If a value cannot be named in a file, such as a function.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Observer):
        return written(value)
    # Before kinds: AT_PARTY is a Placement, too, and its name is what a reader knows.
    for name, constant in constants().items():
        if value == constant:
            return name
    if isinstance(value, (list, tuple)):
        return [to_table(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"kind": KINDS.name_of(type(value))} | settings_of(value)
    raise UnsupportedError(
        f"A study file cannot hold {value!r}: it has no name there. Where it is a constant of your "
        "own class, give its field a default and init=False."
    )


def settings_of(value: Any) -> dict[str, Any]:
    """The settings of a trainer, attack or part of one, each as `to_table` writes it."""
    settings = {}
    for field in (field for field in told_fields(value) if field.init):
        item = getattr(value, field.name)
        # An observer at its default, too: studies of earlier versions have none.
        if item == field.default and (item is None or isinstance(item, Observer)):
            continue
        try:
            settings[field.name] = "none" if item is None else to_table(item)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"Setting {field.name!r} of {type(value).__name__}: {error}"
            ) from error
    return settings


def from_table(table: Any, setting: str = "kind") -> Any:
    """The configuration value that a TOML value stands for; the inverse of `to_table`.

    Args:
        table: A table with its `kind`, the name of a constant, a list, string or number.
        setting: The setting that the value is given for: a `mechanism` has to be one.

    Raises:
        ValueError: If a kind is unknown or a setting does not belong to it.
    """
    if isinstance(table, str):
        return constants().get(table, table)
    if isinstance(table, list):
        # A tuple, because a frozen value must not hold what can be changed.
        return tuple(from_table(item, setting) for item in table)
    if not isinstance(table, Mapping):
        return table
    if "kind" not in table:
        raise ValueError(f'Expected {dict(table)!r} to say what it is: kind = "Gaussian" or so.')
    kind = KINDS[table["kind"]]
    if setting == "mechanism":
        check_kind(kind, Mechanism, f"mechanism={table['kind']!r}")
    settings = {name: item for name, item in table.items() if name != "kind"}
    # Version 0.1 wrote which of three ways Opacus takes; only this one is left.
    if table["kind"] == "Opacus" and settings.pop("mode", "hooks") != "hooks":
        raise ValueError(
            f"Opacus has no mode={table['mode']!r} any more, only its hooks. Leave mode out, or "
            'write kind = "BookKeeping", which needs less memory.'
        )
    return construct(kind, settings)


def construct(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """A value of a kind, with settings by name as a study file has them.

    Raises:
        ValueError: If a setting does not belong to it, or its value is out of range.
    """
    known = [item.name for item in dataclasses.fields(kind) if item.init]
    for name in settings:
        if name not in known:
            raise ValueError(
                f"{kind.__name__} has no setting {name!r}; it has {', '.join(known) or 'none'}."
                f"{nearest(name, known)}"
            )
    values = {name: from_table(item, name) for name, item in settings.items()}
    given = {name: None if value == "none" else value for name, value in values.items()}
    needed = [
        each.name
        for each in inspect.signature(kind).parameters.values()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in given
    ]
    if needed:
        example = ", ".join(f"{name}=..." for name in needed)
        raise ValueError(
            f"{kind.__name__} cannot be made of {given or 'nothing'}: it needs "
            f"{' and '.join(needed)}, as in {kind.__name__}({example})."
        )
    try:
        return kind(**given)
    # What a constructor trips over when a setting is of another type than it expects.
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{kind.__name__} cannot be made of {given}: {error}.") from error


def make_trainer(token: str, settings: Mapping[str, Any] | None = None) -> Trainer:
    """A trainer by its token or reference, with settings as a study file has them.

    Raises:
        ValueError: If there is no such trainer or setting.
    """
    trainer: Trainer = construct(TRAINERS[token], settings or {})
    return trainer


def make_attack(token: str, settings: Mapping[str, Any] | None = None) -> Attack:
    """An attack by its token or reference, with settings as a study file has them.

    Raises:
        ValueError: If there is no such attack or setting.
    """
    given = dict(settings or {})
    if "observer" in given:
        given["observer"] = observer_of(given["observer"])
    attack: Attack = construct(ATTACKS[token], given)
    return attack


def default_tables(tokens: Sequence[str], *, secure: bool = False) -> dict[str, dict[str, Any]]:
    """Trainers with their default settings, as a study has them.

    Args:
        tokens: Of the trainers.
        secure: Whether all Gaussian noise is secure; other noise stays as it is.

    Returns:
        Token to token, called `trainer`, and settings.

    Raises:
        ValueError: If there is no such trainer, or none of them draws what shall be secure.
    """
    plain = {token: {"trainer": token, **settings_of(make_trainer(token))} for token in tokens}
    made = {token: _secured(table) for token, table in plain.items()} if secure else plain
    # Silence would let a user believe in exact noise where none is drawn.
    if secure and made == plain:
        raise ValueError(
            f"Expected secure=True with a trainer that draws Gaussian noise; {', '.join(tokens)} "
            "draw none. Add dp_sgd, or leave --secure out."
        )
    return made


def _secured(table: Any) -> Any:
    if not isinstance(table, Mapping):
        return table
    inner = {name: _secured(value) for name, value in table.items()}
    return inner | {"secure": True} if table.get("kind") == Gaussian.__name__ else inner
