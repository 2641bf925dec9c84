"""Only factories of privtrain are made from a file."""

import functools
import json
from typing import Any

import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.data.factories import factory_from_plain, factory_to_plain


class Evil(pt.data.MLP):
    """Makes something else than its base."""


@pytest.mark.parametrize(
    "factory",
    [
        pt.data.MLP((4, 3, 2), torch.float64, flatten=True),
        pt.data.LogisticRegression(4, 2, torch.bfloat16),
        pt.data.CNN(7),
    ],
)
def test_factories_of_privtrain_come_back(factory: Any) -> None:
    assert factory_from_plain(json.loads(json.dumps(factory_to_plain(factory)))) == factory


@pytest.mark.parametrize(
    ("model", "printed"),
    [
        (lambda: nn.Linear(2, 2), "<lambda>"),
        (nn.Linear(2, 2), "a module given as a value: torch.nn.modules.linear:Linear"),
        (functools.partial(nn.Linear, 2, 2), "functools.partial"),
        (Evil((4, 2)), "Evil"),
    ],
)
def test_others_say_how_they_print(model: Any, printed: str) -> None:
    plain = factory_to_plain(model)
    assert set(plain) == {"printed"}
    assert printed in plain["printed"] and " at 0x" not in plain["printed"]
    assert factory_from_plain(plain) is None


def test_a_print_that_raises_is_no_reason_to_fail() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

        def __call__(self) -> nn.Module:
            return nn.Linear(1, 1)

    assert "Broken" in factory_to_plain(Broken())["printed"]


MLP = factory_to_plain(pt.data.MLP((4, 3)))["arguments"]


@pytest.mark.parametrize(
    "plain",
    [
        {"name": "os.system", "arguments": {"command": "true"}},
        {"name": "__import__", "arguments": {}},
        {"name": ["MLP"], "arguments": MLP},
        {"name": "MLP", "arguments": {}},
        {"name": "MLP", "arguments": {**MLP, "device": "cuda"}},
        {"name": "MLP", "arguments": {**MLP, "sizes": [4]}},
        {"name": "MLP", "arguments": {**MLP, "sizes": [4, -1]}},
        {"name": "MLP", "arguments": {**MLP, "sizes": [4, True]}},
        {"name": "MLP", "arguments": {**MLP, "sizes": [4] * 5000}},
        {"name": "MLP", "arguments": {**MLP, "sizes": "44"}},
        {"name": "MLP", "arguments": {**MLP, "dtype": "int64"}},
        {"name": "MLP", "arguments": {**MLP, "dtype": "__class__"}},
        {"name": "MLP", "arguments": {**MLP, "flatten": 1}},
        {"name": "CNN", "arguments": {"classes": 2**50, "dtype": "float32"}},
        {"printed": 3},
        {},
    ],
)
def test_nothing_else_is_made_of_a_file(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        factory_from_plain(plain)
