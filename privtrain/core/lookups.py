"""What the compiled code of a function looks up when it runs: globals, attributes, modules."""

import dis
import importlib
import importlib.util
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

_FILLING = frozenset({"append", "add", "extend", "update"})
"""Methods by which a function writes something down; of a plain list or set it learns nothing."""

_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_LOADS = _GLOBAL | {"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")

# Where a module lies, which moves.
PLACES = frozenset({"__file__", "__name__", "__package__", "__spec__", "__loader__", "__doc__"})

GROWING = frozenset({"dispatch_cache", "cache_token"})
"""What `functools.singledispatch` keeps of the calls that were made."""

DYNAMIC = frozenset({"eval", "exec", "globals", "__globals__", "locals"})
"""Names by which code reads any global."""

_RECORDS = (list, set, dict, deque, Counter, int, float)
"""Whose methods are no code of the user's."""


@dataclass(frozen=True)
class Lookup:
    """One place where code looks up a name.

    Args:
        name: A global, or a name that is closed over.
        attributes: What is taken of it at once, such as `("nn", "Linear")` of `torch`.
        everywhere: Whether the name is a global.
        filled: Whether the code only appends to it, or raises it and stores it again.
    """

    name: str
    attributes: tuple[str, ...]
    everywhere: bool
    filled: bool

    def learns(self, value: Any) -> bool:
        """Whether the code may learn something of the value that stands under the name.

        A plain list that it appends to and a plain count that it raises, and does nothing else
        with, change nothing that it computes.
        """
        return not (self.filled and type(value) in _RECORDS)


def lookups(code: CodeType) -> list[Lookup]:
    """All that a function and those inside it look up, in the order of their code."""
    listed = list(dis.get_instructions(code))
    own = [
        Lookup(
            str(each.argval),
            _attributes(listed[place + 1 :]),
            each.opname in _GLOBAL,
            _is_record(listed[place:]),
        )
        for place, each in enumerate(listed)
        if each.opname in _LOADS
    ]
    return own + [found for each in _inner(code) for found in lookups(each)]


def _attributes(after: list[dis.Instruction]) -> tuple[str, ...]:
    taken = itertools.takewhile(lambda each: each.opname in _ATTRIBUTES, after)
    return tuple(str(each.argval) for each in taken)


def _is_record(code: list[dis.Instruction]) -> bool:
    """Whether what is loaded first is appended to, or raised and stored again."""
    load, *after = code
    names = [each.opname for each in after[:3]]
    if names[:1] and names[0] in _ATTRIBUTES:
        return after[0].argval in _FILLING and _is_thrown_away(after)
    raised = len(names) == 3 and names[0] == "LOAD_CONST" and names[1] == "BINARY_OP"
    return raised and names[2].startswith("STORE_") and after[2].argval == load.argval


def _is_thrown_away(code: list[dis.Instruction]) -> bool:
    """Whether a method is called at once, in one line of code, and its result is dropped."""
    depth = 1  # the receiver
    for each, behind in itertools.pairwise(code):
        if each.opcode in dis.hasjrel or each.opcode in dis.hasjabs:
            return False
        depth += dis.stack_effect(each.opcode, each.arg, jump=False)
        if depth <= 1 and each is not code[0]:
            return each.opname.startswith("CALL") and behind.opname == "POP_TOP"
    return False


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


def content_of(cell: Any) -> Any:
    """What is closed over; None where it is not there yet."""
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet: a function that is defined further below
        return None
