"""Trainers, attacks and their settings as plain tables, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from privtrain.attacks.attack import Attack
from privtrain.command.names import _CONSTANTS, _KINDS, ATTACKS, TRAINERS
from privtrain.core.errors import UnsupportedError
from privtrain.core.trainer import Trainer
from privtrain.core.validate import (
    check_member,
)
from privtrain.mechanisms.gaussian import Gaussian


def to_table(value: Any) -> Any:
    """A configuration value as what TOML can hold.

    Args:
        value: A frozen dataclass out of the known kinds, a constant, number, string or sequence.

    Returns:
        Tables, lists, strings and numbers. TOML has no None: it is left out where it is the
        default, and else written "none".

    Raises:
        UnsupportedError: If a value cannot be named in a file, such as a function.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for name, constant in _CONSTANTS.items():
        if value == constant:
            return name
    if isinstance(value, (list, tuple)):
        return [to_table(item) for item in value]
    if type(value) in (*_KINDS.values(), *TRAINERS.values()):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        fields = {
            item.name: "none" if given[item.name] is None else to_table(given[item.name])
            for item in dataclasses.fields(value)
            if item.init and not (given[item.name] is None and item.default is None)
        }
        kind = {} if type(value) in TRAINERS.values() else {"kind": type(value).__name__}
        return kind | fields
    raise UnsupportedError(f"A study file cannot hold {value!r}: it has no name there.")


def from_table(table: Any) -> Any:
    """The configuration value that a TOML value stands for; the inverse of `to_table`.

    Raises:
        ValueError: If a kind is unknown or a setting does not belong to it.
    """
    if isinstance(table, str) and table in _CONSTANTS:
        return _CONSTANTS[table]
    if isinstance(table, list):
        return tuple(from_table(item) for item in table)
    if not isinstance(table, Mapping):
        return table
    settings = {name: from_table(item) for name, item in table.items() if name != "kind"}
    if "kind" not in table:
        raise ValueError(f'Expected {dict(table)!r} to say what it is: kind = "Gaussian" or so.')
    check_member(_KINDS, kind=table["kind"])
    return construct(_KINDS[table["kind"]], settings)


def construct(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """A value of a kind, with settings by name.

    Raises:
        ValueError: If a setting does not belong to it, or its value is out of range.
    """
    known = [item.name for item in dataclasses.fields(kind) if item.init]
    for name in settings:
        if name not in known:
            raise ValueError(
                f"{kind.__name__} has no setting {name!r}; it has {', '.join(known) or 'none'}."
            )
    given = {name: None if value == "none" else value for name, value in settings.items()}
    try:
        return kind(**given)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{kind.__name__} cannot be made of {given}: {error}.") from error


def make_trainer(token: str, settings: Mapping[str, Any] | None = None) -> Trainer:
    """A trainer by its token, with settings as a study file has them.

    Raises:
        ValueError: If there is no such trainer or setting.
    """
    check_member(TRAINERS, trainer=token)
    values = {name: from_table(item) for name, item in (settings or {}).items()}
    trainer: Trainer = construct(TRAINERS[token], values)
    return trainer


def make_attack(token: str, settings: Mapping[str, Any] | None = None) -> Attack:
    """An attack by its token, with settings as a study file has them.

    Raises:
        ValueError: If there is no such attack or setting.
    """
    check_member(ATTACKS, attack=token)
    attack: Attack = construct(ATTACKS[token], settings or {})
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
    plain = {token: {"trainer": token, **to_table(make_trainer(token))} for token in tokens}
    made = {token: _secured(table) for token, table in plain.items()} if secure else plain
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
