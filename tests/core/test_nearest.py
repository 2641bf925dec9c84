"""A misspelt name is answered with the nearest, where one is near."""

import pytest

from privtrain.core.nearest import nearest


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("dpsgd", " Did you mean 'dp_sgd'?"),
        ("DP_SGD", " Did you mean 'dp_sgd'?"),
        ("fedvag", " Did you mean 'fedavg'?"),
        ("adam", " Did you mean 'Adam'?"),
        ("resnet", ""),
        ("", ""),
        (3, ""),
    ],
)
def test_the_nearest_name_is_named(given: str, answer: str) -> None:
    assert nearest(given, ["sgd", "dp_sgd", "fedavg", "Adam", "AdamW"]) == answer


def test_without_names_there_is_none() -> None:
    assert nearest("sgd", []) == ""
