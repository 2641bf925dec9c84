"""What the names in study files and on the command line stand for.

A name is one of `privtrain`'s public names, an entry point of another distribution, or a reference
such as "my_file.py:MyTrainer". Public names are read from the imports of `privtrain/__init__.py`:
a new trainer, attack or mechanism is one line there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import privtrain
from privtrain.attacks.attack import Observing
from privtrain.command.tokens import (
    ATTACK_GROUP,
    ATTACK_TOKENS,
    STARS,
    TRAINER_GROUP,
    TRAINER_TOKENS,
    added_names,
    public_names,
)
from privtrain.command.user_code import check_kind, import_named, reference_of
from privtrain.core.errors import DataError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.runtime import Runtimes
from privtrain.core.trainer import Trainer
from privtrain.core.validate import check_member

_PARTS = ("mechanisms", "release", "sampling", "steps", "gradients", "mpc", "trainers")
"""Packages whose public dataclasses are settings of trainers."""


def _public(*packages: str) -> dict[str, Any]:
    """Public name to value, of what comes from some packages; loads their files."""
    return {name: getattr(privtrain, name) for name in public_names(*packages)}


def _trainers() -> dict[str, type[Any]]:
    return {token: getattr(privtrain, name) for token, name in TRAINER_TOKENS.items()}


def _attacks() -> dict[str, type[Any]]:
    return {token: getattr(privtrain, name) for token, name in ATTACK_TOKENS.items()}


def _kinds() -> dict[str, type[Any]]:
    # The type of a constant is a kind, too: SPLIT(...) is written as a Placement.
    kinds = {v if isinstance(v, type) else type(v) for v in _public(*_PARTS).values()}
    kinds -= set(_trainers().values())
    return {kind.__name__: kind for kind in kinds if dataclasses.is_dataclass(kind)}


def constants() -> dict[str, Any]:
    """Public name to value, of the settings that are written as a name, such as AT_PARTY."""
    values = {n: v for n, v in _public(*_PARTS).items() if not isinstance(v, type)}
    return {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}


@dataclass(frozen=True)
class Names:
    """The classes that one argument may name; it lists all names but references.

    Args:
        argument: What the name is given for, for messages.
        group: The entry points that add names.
        protocol: What a class that is not public must have; `object` asks for no members.
        public: Makes the table of public names.
    """

    argument: str
    group: str
    protocol: type[Any]
    public: Callable[[], Mapping[str, type[Any]]]

    def __iter__(self) -> Iterator[str]:
        return iter({*self.public(), *(entry.name for entry in added_names(self.group))})

    def __getitem__(self, name: str) -> type[Any]:
        given = f"{self.argument}={name!r}"
        if isinstance(name, str) and ":" in name:
            return self._checked(import_named(name, self.argument), given)
        check_member([*self], **{self.argument: name})
        added = self._added(name)
        # Nobody may change what a public name means: whoever reads the study would be misled.
        owners = [*(["privtrain"] if name in self.public() else []), *added]
        if len(owners) > 1:
            raise ValueError(
                f"Expected {given} to name one class; {' and '.join(owners)} each have one of "
                "that name. Uninstall one, or name the class as my_package.module:NAME."
            )
        if not added:
            return self.public()[name]
        try:
            kind = added[owners[0]].load()
        # Whatever a module of another distribution may raise; only who asks for it is stopped.
        except OWN_ERRORS as error:
            raise DataError(
                f"Cannot load {given}, {added[owners[0]].value} of {owners[0]}: "
                f"{type(error).__name__}: {error}. Repair or uninstall {owners[0]}."
            ) from error
        return self._checked(kind, given)

    def _added(self, name: str) -> dict[str, EntryPoint]:
        """Distribution to its entry point of a name."""
        return {_owner(entry): entry for entry in added_names(self.group) if entry.name == name}

    def _checked(self, kind: type[Any], given: str) -> type[Any]:
        check_kind(kind, self.protocol, given)
        # A file writes the class under this name, among the settings: one would hide the other.
        if self.argument in [field.name for field in dataclasses.fields(kind)]:
            raise ValueError(
                f"Expected {given} to have no setting {self.argument!r}: in a study file that "
                "names the class. Call the setting something else."
            )
        return kind

    def name_of(self, kind: type[Any]) -> str:
        """The name of a class, from which `self[name]` gives the class back.

        Raises:
            UnsupportedError: If it has none.
        """
        public = self.public()
        for name, value in public.items():
            if value is kind:
                return name
        reference = reference_of(kind)
        # By its text: loading others' entry points to compare classes might fail.
        added = [e.name for e in added_names(self.group) if e.value == reference]
        # A name that somebody else has, too, is refused when it is read.
        unique = (name for name in added if name not in public and len(self._added(name)) == 1)
        return next(unique, reference)


def _owner(entry: EntryPoint) -> str:
    return "an unknown distribution" if entry.dist is None else entry.dist.name


TRAINERS = Names("trainer", TRAINER_GROUP, Trainer, _trainers)
"""Token to trainer."""


ATTACKS = Names("attack", ATTACK_GROUP, Observing, _attacks)
"""Token to attack."""


# What a kind must have depends on the setting that it is given for; `tables` knows that.
KINDS = Names("kind", "privtrain.mechanisms", object, _kinds)
"""Name to class, of the settings of trainers."""


def make_runtimes(name: str) -> Runtimes:
    """Where parties run, by the name of the star runtime; a mesh has real processes.

    Raises:
        ValueError: If there is no such runtime.
    """
    check_member(STARS, runtime=name)
    # Flower takes a second to import, so only who asks for it waits.
    return Runtimes(star=getattr(privtrain, STARS[name])(), mesh=privtrain.Processes())
