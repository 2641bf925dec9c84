import inspect
import pickle
import re

import pytest

from privtrain.core import errors
from privtrain.core.errors import DataError, PartyLostError, PrivtrainError


def classes() -> dict[str, type[Exception]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {
        name: cls
        for name, cls in members
        if cls.__module__ == errors.__name__ and issubclass(cls, Exception)
    }


def drawn_tree() -> dict[str, str]:
    """Child to parent, read from the drawing in the docstring."""
    assert errors.__doc__ is not None
    drawing = errors.__doc__.split("```text")[1].split("```")[0]
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in drawing.splitlines():
        found = re.search(r"[A-Z]\w*", line)
        if found is None:
            continue
        depth, name = found.start(), found.group()
        path = [(indent, other) for indent, other in path if indent < depth]
        if path:
            parents[name] = path[-1][1]
        path.append((depth, name))
    return parents


def test_the_tree_is_the_drawn_one() -> None:
    real = {
        name: cls.__bases__[0].__name__
        for name, cls in classes().items()
        if cls is not PrivtrainError
    }
    assert real == drawn_tree()
    assert PrivtrainError.__bases__ == (Exception,)


@pytest.mark.parametrize("name", sorted(classes()))
def test_errors_are_documented_and_pickle(name: str) -> None:
    cls = classes()[name]
    assert (cls.__doc__ or "").strip().endswith((".", "party."))
    copy = pickle.loads(pickle.dumps(cls("what happened, and the way out")))
    assert type(copy) is cls
    assert str(copy) == "what happened, and the way out"


def test_a_lost_party_keeps_its_name_across_processes() -> None:
    copy = pickle.loads(pickle.dumps(PartyLostError("client-2 is silent.", "client-2")))
    assert (str(copy), copy.party) == ("client-2 is silent.", "client-2")
    assert PartyLostError("somebody is silent").party == ""


def test_unusable_data_is_a_wrong_argument_too() -> None:
    assert issubclass(DataError, ValueError)
