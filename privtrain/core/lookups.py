"""What the compiled code of a function looks up when it runs: globals, attributes, modules."""

import dis
import importlib
import importlib.util
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any


def global_names(code: CodeType) -> set[str]:
    """The global names that a function and those inside it look up, which attributes are not."""
    own = {
        str(instruction.argval)
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return own.union(*(global_names(each) for each in _inner(code)))


def all_names(code: CodeType) -> frozenset[str]:
    """The names of globals and attributes in a function and those inside it."""
    return frozenset(code.co_names).union(*(all_names(each) for each in _inner(code)))


def imported_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The modules that a function imports when it is called.

    Args:
        function: It is not called; modules of the user's own are imported.

    Returns:
        Name to module. An installed package, and one that cannot be imported, stands by its name
        alone.
    """
    package = str(function.__globals__.get("__package__") or "")
    for name, level in _imports(function.__code__):
        try:
            whole = importlib.util.resolve_name("." * level + name, package) if level else name
            # It may take seconds to load, and nobody but a release changes it.
            spec = importlib.util.find_spec(whole.partition(".")[0])
            installed = spec is None or "-packages" in str(spec.origin)
            yield name, whole if installed else importlib.import_module(whole)
        except Exception:  # whatever a module raises: the function says it when it runs
            yield name, name


def _imports(code: CodeType) -> list[tuple[str, int]]:
    """Names of modules, and how many folders above the code's own they start."""
    listed = list(dis.get_instructions(code))
    # The level of a relative import is loaded before the names that are taken from the module.
    own = [
        (str(each.argval), int(listed[place - 2].argval or 0))
        for place, each in enumerate(listed)
        if each.opname == "IMPORT_NAME"
    ]
    return own + [found for each in _inner(code) for found in _imports(each)]


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]
