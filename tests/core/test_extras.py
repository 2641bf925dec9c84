"""A missing package is named with the lines that install it, before anything is trained."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import privtrain as pt
from privtrain.core.extras import EXTRAS, check_installed, is_missing, missing
from tests.extras import need

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
PARTS = {
    "flwr": lambda: pt.FlowerGrid(),
    "ray": lambda: pt.FlowerRay(),
    "opacus": lambda: pt.Opacus(),
}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A package that cannot be imported, as if it were not installed."""
    package: str = request.param
    monkeypatch.setitem(sys.modules, package, None)
    return package


def test_every_extra_that_a_message_names_can_be_installed() -> None:
    assert {*EXTRAS.values()} <= {*PROJECT["optional-dependencies"]}


def test_a_package_that_is_there_is_not_missing() -> None:
    assert not is_missing("torch")
    assert is_missing("no_such_package")
    check_installed("Training", "torch", "numpy")


@pytest.mark.parametrize("without", ["flwr", "ray", "opacus"], indirect=True)
def test_a_value_that_needs_a_missing_package_is_refused_when_it_is_made(without: str) -> None:
    if without == "ray":
        need("flwr")
    message = rf"needs {without}, .* pip install \"privtrain\[{EXTRAS[without]}\]\""
    with pytest.raises(pt.UnsupportedError, match=message):
        PARTS[without]()


@pytest.mark.parametrize("without", ["crypten", "omegaconf", "onnx", "yaml"], indirect=True)
def test_both_lines_of_crypten_are_said(without: str) -> None:
    if without != "crypten":
        need("crypten")
    with pytest.raises(pt.UnsupportedError) as caught:
        pt.CrypTen().check(2)
    said = str(caught.value)
    assert 'pip install "privtrain[crypten]"' in said
    assert "pip install --no-deps crypten==0.4.1" in said


def test_a_package_without_an_extra_has_its_own_line() -> None:
    assert str(missing("Frames", "polars")).endswith("by: pip install polars")


def test_the_base_installation_is_short() -> None:
    names = {re.split(r"[<>=\[ ]", line)[0] for line in PROJECT["dependencies"]}
    assert names == {
        *("torch", "numpy", "scipy", "scikit-learn", "dp-accounting", "cloudpickle"),
        *("cryptography", "jinja2", "rich", "tyro", "tomli-w", "safetensors"),
        "threadpoolctl",  # scikit-learn brings it; named because it is imported
    }


def test_all_holds_every_extra_for_users_and_dev_holds_all() -> None:
    extras = PROJECT["optional-dependencies"]
    named = {*extras} - {"all", "dev", "test"}
    (line,) = extras["all"]
    assert line == f"privtrain[{','.join(sorted(named))}]"
    assert "privtrain[all,test]" in extras["dev"]
