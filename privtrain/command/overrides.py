"""Single settings that the command line changes: `--set fedavg.local.epochs=5`.

A text becomes what the setting's type says: a number, a word, or a part such as `FixedSize(10)`.
"""

import ast
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import privtrain
from privtrain.command.catalogue import PARTS
from privtrain.command.names import KINDS
from privtrain.command.observing import parsed
from privtrain.command.study_file import Study
from privtrain.command.tables import construct, make_attack, make_trainer, settings_of
from privtrain.command.tokens import TRAINER_TOKENS, public_names
from privtrain.core.fields import NEVER
from privtrain.core.nearest import nearest
from privtrain.core.observers import Observer
from privtrain.core.trainer import Trainer

Tree = dict[str, Any]
"""Settings by name: a text, or a tree of the settings of a part."""

_EXAMPLE = "dp_sgd.epochs=5"
_OF_FIT = "epochs=5"


def overridden(study: Study, given: Sequence[str]) -> Study:
    """A study with single settings of its trainers and attacks changed.

    Args:
        study: The study.
        given: What the command line sets, each `LABEL.SETTING=VALUE`; of two that set the same, the
            later one counts.

    Raises:
        ValueError: If one has another form, names nothing that there is, or its value is of
            another kind.
    """
    if not given:
        return study
    tokens = study.attack_tokens
    named = [*study.trainers, *(token for token in tokens if isinstance(token, str))]
    trees: dict[str, Tree] = {}
    for text in given:
        path, value = _parted(text, _EXAMPLE)
        # A label may have a point itself.
        owners = [name for name in named if path.startswith(f"{name}.")]
        if not owners:
            raise ValueError(
                f"Expected --set {text} to begin with one of {', '.join(named)}, and a point."
                f"{nearest(path.partition('.')[0], named)}"
            )
        owner = max(owners, key=len)
        _put(trees.setdefault(owner, {}), path[len(owner) + 1 :].split("."), value, text)
    trainers = {
        label: _changed_table(label, settings, trees.get(label), "trainer", make_trainer)
        for label, settings in study.trainers.items()
    }
    attacks = tuple(
        _changed_attack(each, trees.get(str(token)))
        for each, token in zip(study.attacks, tokens, strict=True)
    )
    return dataclasses.replace(study, trainers=trainers, attacks=attacks)


def changed_trainer(trainer: Trainer, given: Sequence[str], label: str | None = None) -> Trainer:
    """A trainer with single settings changed, each given as `SETTING=VALUE`.

    Args:
        trainer: The one that is trained.
        given: What the command line sets.
        label: What a study file calls the trainer.

    Raises:
        ValueError: As `overridden` does.
    """
    tree: Tree = {}
    for text in given:
        path, value = _parted(text, _OF_FIT)
        _check_unnamed(path, value, trainer, label)
        _put(tree, path.split("."), value, text)
    made: Trainer = _changed(trainer, tree, trainer.token)
    return made


def _check_unnamed(path: str, value: str, trainer: Trainer, label: str | None) -> None:
    """Refuses a setting with the name of a trainer before it, as `compare` takes it."""
    known = [field.name for field in dataclasses.fields(cast(Any, trainer))]
    own = [name for name in (label, trainer.token) if name]
    names = [name for name in (*own, *TRAINER_TOKENS) if path.startswith(f"{name}.")]
    if not names or path.partition(".")[0] in known:
        return
    other = "" if names[0] in own else f" It trains {trainer.token}, not {names[0]}."
    raise ValueError(
        f"Expected --set {path}={value} without {names[0]!r}, as there is one trainer: --set "
        f"{path[len(names[0]) + 1 :]}={value}.{other}"
    )


def _changed_table(
    label: str,
    settings: Mapping[str, Any],
    tree: Tree | None,
    what: str,
    make: Callable[[str, Mapping[str, Any]], Any],
) -> Mapping[str, Any]:
    if tree is None:
        return settings
    token = settings.get(what, label)
    plain = {name: value for name, value in settings.items() if name != what}
    return {what: token, **settings_of(_changed(make(token, plain), tree, label))}


def _changed_attack(entry: str | Mapping[str, Any], tree: Tree | None) -> str | Mapping[str, Any]:
    if tree is None:
        return entry
    table = {"attack": entry} if isinstance(entry, str) else entry
    return _changed_table(str(table["attack"]), table, tree, "attack", make_attack)


def _parted(text: str, example: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise ValueError(f"Expected --set {text} to look like --set {example}.")
    return path.strip(), value.strip()


def _put(tree: Tree, path: Sequence[str], value: str, text: str) -> None:
    *places, last = path
    for place in places:
        inner = tree.setdefault(place, {})
        if not isinstance(inner, dict):
            raise ValueError(
                f"Expected --set {text} alone: {place}={inner} is set whole beside it. Leave one "
                "out."
            )
        tree = inner
    if isinstance(tree.get(last), dict):
        raise ValueError(
            f"Expected --set {text} alone: a setting of {last} is set beside it. Leave one out."
        )
    tree[last] = value


def _changed(value: Any, tree: Tree, where: str) -> Any:
    """A frozen value with the settings of a tree, all at once: some are right together only."""
    known = [field.name for field in dataclasses.fields(value) if field.init]
    unwritten = [field.name for field in dataclasses.fields(value) if field.metadata == NEVER]
    hints = _hints(type(value))
    settings = {}
    for name, given in tree.items():
        here = f"{where}.{name}"
        if name not in known:
            raise ValueError(
                f"{where} has no setting {name!r}; it has {', '.join(known) or 'none'}."
                f"{nearest(name, known)}"
            )
        if name in unwritten:
            raise ValueError(
                f"Expected --set {here}={given} to change what is computed; {name} does not, and "
                f"no study file holds it. Give it in Python: {type(value).__name__}({name}=...)."
            )
        before = getattr(value, name)
        if not isinstance(given, dict):
            settings[name] = _parsed(given, hints.get(name, type(before)), here)
        elif dataclasses.is_dataclass(before) and not isinstance(before, type):
            settings[name] = _changed(before, given, here)
        else:
            raise ValueError(
                f"{here}={before!r} has no setting {next(iter(given))!r}. Set it whole, such as "
                f"--set '{here}=Release(GNMax(40.0))'."
            )
    try:
        return dataclasses.replace(value, **settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} cannot be set so: {error}") from error


def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except (NameError, TypeError):  # names that only type checkers see: the value's own type counts
        return {}


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that a union is made of."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for each in get_args(hint) for option in _options(each))
    return (hint,)


_FLAGS = {"true": True, "false": False}


def _parsed(text: str, hint: Any, here: str) -> Any:
    options = _options(hint)
    if type(None) in options and text.lower() == "none":
        return None
    if Observer in options:
        return parsed(text)
    if bool in options and text.lower() in _FLAGS:
        return _FLAGS[text.lower()]
    for number in (int, float):
        if number in options:
            try:
                return number(text)
            except ValueError:
                continue
    for option in options:
        if get_origin(option) is Literal and text in get_args(option):
            return text
        if isinstance(option, type) and issubclass(option, StrEnum) and text.lower() in [*option]:
            return option(text.lower())
    if str in options:
        return text
    if {*options} <= {*_WORDS}:
        words = ", or ".join(_WORDS[option] for option in options)
        raise ValueError(f"Expected {here}={text} to be {words}.")
    return _called(text, here)


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "none",
}


def _called(text: str, here: str) -> Any:
    """The part that a text such as `FixedSize(10)`, `AT_PARTY` or `(1, 2)` stands for."""
    try:
        return _value(ast.parse(text, mode="eval").body)
    except TypeError as error:
        raise ValueError(f"{here}={text} cannot be made: {error}.") from None
    except (SyntaxError, _NoValueError):
        known = {*KINDS, *public_names(*PARTS)}
        name = text.partition("(")[0].strip()
        raise ValueError(
            f"Expected {here}={text} to be a value such as FixedSize(10), or a name such as "
            f"AT_PARTY.{nearest(name, known)} privtrain trainers lists all."
        ) from None


class _NoValueError(Exception):
    """A text that is no value."""


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        named = _named(node.id)
        return construct(named, {}) if isinstance(named, type) else named
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _constructed(_named(node.func.id), node.args, node.keywords)
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(map(_value, node.elts))
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _NoValueError from None


def _named(name: str) -> Any:
    """A kind, or another public name that settings are made of, such as `MAX` or `SPLIT`."""
    if name in [*KINDS]:
        return KINDS[name]
    if name in public_names(*PARTS):
        return getattr(privtrain, name)
    raise _NoValueError


def _constructed(kind: Any, args: Sequence[ast.expr], named: Sequence[ast.keyword]) -> Any:
    if any(each.arg is None for each in named) or not callable(kind):
        raise _NoValueError
    settings = {str(each.arg): _value(each.value) for each in named}
    if not isinstance(kind, type):
        return kind(*map(_value, args), **settings)
    places = [each.name for each in dataclasses.fields(kind) if each.init and not each.kw_only]
    if len(args) > len(places):
        names = ", ".join(each.name for each in dataclasses.fields(kind) if each.init)
        raise TypeError(
            f"{kind.__name__} takes {len(places)} settings by place; by name it takes {names}"
        )
    return construct(kind, dict(zip(places, map(_value, args), strict=False)) | settings)
