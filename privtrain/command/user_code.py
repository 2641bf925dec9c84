"""What a user names as "my_file.py:make" or "my_package.module:MyTrainer"."""

import dataclasses
import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS

_GIVEN = "__privtrain_file__"
"""Attribute of a module that was imported from a file: the file's path, as the user gave it."""


def import_named(reference: str, argument: str) -> Any:
    """The function or class that "path/to/file.py:name" or "module:name" names.

    Args:
        reference: What the user wrote.
        argument: Where it was written, for messages: "model", "trainer", ...

    Raises:
        ValueError: If the reference has another form, or names nothing that can be called.
        DataError: If the file does not exist, or cannot be imported.
    """
    place, name = check_reference(reference, argument)
    given = f"{argument}={reference!r}"
    try:
        file = place.endswith(".py")
        module = _import_file(Path(place)) if file else importlib.import_module(place)
    except DataError:
        raise
    # Whatever the user's own module may raise; without a traceback its place is worth a word.
    except OWN_ERRORS as error:
        raise DataError(
            f"Cannot import {place!r} of {given}: {type(error).__name__}: {error}. "
            "Name a file that Python can run, such as my_file.py:NAME, or an installed module."
        ) from error
    value = getattr(module, name, None)
    if not callable(value):
        raise ValueError(
            f"Expected {given} to name a function or class of {place}; it has no {name} that can "
            "be called."
        )
    return value


def check_reference(reference: str, argument: str) -> tuple[str, str]:
    """Refuses what is no reference, and a file that is not there; nothing is imported.

    Returns:
        The file or module, and the name in it.

    Raises:
        ValueError: If the reference has another form.
        DataError: If the file does not exist.
    """
    # From the right: an absolute path may hold a colon itself, C:\my_file.py:make.
    place, _, name = reference.rpartition(":")
    given = f"{argument}={reference!r}"
    if not place or not name:
        raise ValueError(
            f"Expected {given} to look like my_file.py:NAME or my_package.module:NAME."
        )
    if place.endswith(".py") and not Path(place).is_file():
        raise DataError(
            f"There is no file {place!r}, which {given} names. Give its path as it is seen "
            "from the folder you are in."
        )
    return place, name


def _import_file(path: Path) -> ModuleType:
    import cloudpickle

    place = os.path.abspath(path)
    # A second import would make second classes, and a trainer would not equal itself any more.
    for loaded in list(sys.modules.values()):
        if _GIVEN in vars(loaded) and os.path.abspath(str(loaded.__file__)) == place:
            return loaded
    name = _name_of(place)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"The file {path} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses look for their own module while they are made.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    setattr(module, _GIVEN, str(path))
    # Other processes cannot import this file by name: its classes travel along.
    cloudpickle.register_pickle_by_value(module)
    return module


def _name_of(place: str) -> str:
    """A module's name that is nobody else's: a user may call a file torch.py."""
    from privtrain.core.libraries import LIBRARIES  # it loads torch

    stem = Path(place).stem
    try:
        spec = None if stem in sys.modules else importlib.util.find_spec(stem)
        taken = stem in sys.modules or stem in LIBRARIES
        taken = taken or (spec is not None and spec.origin != place)
    except ValueError:  # a name with a dot, and what else is no name of a module
        taken = True
    # By its place: the same in every process that runs it from there.
    return f"{stem}_{hashlib.sha256(place.encode()).hexdigest()[:8]}" if taken else stem


def reference_of(kind: type[Any]) -> str:
    """The reference that names a class, its file as the user gave it; inverse of `import_named`.

    Raises:
        UnsupportedError: If no reference leads to the class, such as one made in a function.
    """
    module = sys.modules.get(kind.__module__)
    # `__main__` is another module in the process that reads the file again.
    if kind.__module__ == "__main__" or getattr(module, kind.__qualname__, None) is not kind:
        raise UnsupportedError(
            f"A study file cannot hold a {kind.__qualname__}: it has no name there. Define it at "
            "the top of a file or module."
        )
    return f"{getattr(module, _GIVEN, kind.__module__)}:{kind.__qualname__}"


def check_kind(kind: type[Any], protocol: type[Any], given: str) -> type[Any]:
    """Refuses what is no frozen dataclass with the members of a protocol.

    Args:
        kind: What was named.
        protocol: The protocol; `object` asks for no members.
        given: Argument and value, for messages.

    Returns:
        The class.

    Raises:
        ValueError: If it is something else, or lacks members.
    """
    # A study file writes a value's fields, and a folder knows a run by its repr: neither may change
    # between planning and training.
    # Its own, not its base's: the values that a plain subclass gives to fields are ignored.
    own = vars(kind).get("__dataclass_params__") if isinstance(kind, type) else None
    if own is None or not own.frozen:
        raise ValueError(
            f"Expected {given} to name a frozen dataclass. Write @dataclass(frozen=True) above it."
        )
    # A field without a default is no attribute of the class.
    has = {*dir(kind), *(field.name for field in dataclasses.fields(kind))}
    missing = [name for name in dir(protocol) if not name.startswith("_") and name not in has]
    if missing:
        raise ValueError(
            f"Expected {given} to have {', '.join(missing)}, as every "
            f"{protocol.__module__}.{protocol.__name__} has."
        )
    return kind
