"""What the compiled code of a function looks up when it runs: globals, attributes, modules."""

import dis
import importlib
import importlib.util
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

_FILLING = frozenset({"append", "add", "extend", "update", "put"})
"""Methods by which a function writes something down and learns nothing."""

_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"})


def global_names(code: CodeType) -> set[str]:
    """The globals that a function and those inside it read, which attributes are not."""
    own = {name for kind, name in _read(code) if kind in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(global_names(each) for each in _inner(code)))


def names_read(code: CodeType) -> set[str]:
    """The globals and closed-over names that a function and those inside it read.

    A list that it appends to and a count that it raises, and does nothing else with, are none:
    what they hold changes nothing that the function computes.
    """
    return {name for _, name in _read(code)}.union(*(names_read(each) for each in _inner(code)))


def _read(code: CodeType) -> Iterator[tuple[str, str]]:
    listed = list(dis.get_instructions(code))
    for place, each in enumerate(listed):
        if each.opname in _LOADS and not _is_record(listed[place : place + 4]):
            yield each.opname, str(each.argval)


def _is_record(code: list[dis.Instruction]) -> bool:
    """Whether what is loaded first is appended to, or raised and stored again."""
    load, *after = code
    names = [each.opname for each in after]
    if names[:1] in (["LOAD_METHOD"], ["LOAD_ATTR"]):
        return after[0].argval in _FILLING
    raised = len(names) == 3 and names[0] == "LOAD_CONST" and names[1] == "BINARY_OP"
    return raised and names[2].startswith("STORE_") and after[2].argval == load.argval


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
