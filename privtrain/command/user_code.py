"""Functions that a user names as "my_file.py:make" or "package.module:make"."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from privtrain.core.errors import DataError


def import_function(reference: str) -> Callable[..., Any]:
    """The function that "module:function" or "path/to/file.py:function" names.

    Raises:
        ValueError: If the reference has another form, or there is no such function.
        DataError: If the file does not exist, or cannot be imported.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"Expected model={reference!r} to look like my_model.py:make or my_package.model:make."
        )
    try:
        file = place.endswith(".py")
        module = _import_file(Path(place)) if file else importlib.import_module(place)
    except DataError:
        raise
    # Whatever the user's own module may raise; without a traceback its place is worth a word.
    except Exception as error:
        raise DataError(
            f"Cannot import {place!r} of model={reference!r}: {type(error).__name__}: {error}. "
            "Name a file that Python can run, such as my_model.py:make, or an installed module."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(
            f"Expected model={reference!r} to name a function of {place}; it has no {name} that "
            "can be called."
        )
    made: Callable[..., Any] = function
    return made


def _import_file(path: Path) -> Any:
    import cloudpickle

    if not path.is_file():
        raise DataError(
            f"There is no file {str(path)!r} to take the model from. Give model= as "
            "my_model.py:make, seen from the folder you are in."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError(f"The file {path} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    # Other processes cannot import this file by name: its classes travel along.
    cloudpickle.register_pickle_by_value(module)
    return module
