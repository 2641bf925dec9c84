"""The public face: sorted, complete, documented, and fast to import."""

import ast
import inspect
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

import privtrain

ROOT = Path(privtrain.__file__).parent
TREE = ast.parse((ROOT / "__init__.py").read_text())
HEAVY = (
    "cloudpickle",
    "crypten",
    "dp_accounting",
    "flwr",
    "grpc",
    "jinja2",
    "matplotlib",
    "numpy",
    "onnx",
    "opacus",
    "pandas",
    "ray",
    "rich",
    "scipy",
    "sklearn",
    "torch",
    "tyro",
)


HOMES: dict[str, str] = vars(privtrain)["_HOME_OF"]


def type_checked_imports() -> dict[str, str]:
    """Public name to the module it comes from, as type checkers see it."""
    block = next(
        node
        for node in TREE.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "a type checker would take it for private"
            assert node.module is not None
            assert alias.name not in found, f"{alias.name} has two homes"
            found[alias.name] = node.module
    return found


def test_the_imports_are_the_only_list_of_names() -> None:
    assert type_checked_imports() == HOMES
    assert list(privtrain.__all__) == sorted(HOMES)
    text = (ROOT / "__init__.py").read_text()
    for name in set(HOMES) - {"data"}:
        lines = [line for line in text.splitlines() if line.endswith(f" as {name}")]
        assert len(lines) == 1, name


@pytest.mark.parametrize("name", privtrain.__all__)
def test_every_name_resolves_to_what_is_defined_at_its_home(name: str) -> None:
    value = getattr(privtrain, name)
    if name == "data":
        assert isinstance(value, ModuleType)
        return
    home = import_module(HOMES[name])
    assert value is getattr(home, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        defined = value.__module__ == home.__name__ or name in getattr(home, "__all__", ())
        assert defined, f"{name} is neither defined there nor in the module's own __all__"
        assert value.__name__ == name


@pytest.mark.parametrize("name", privtrain.__all__)
def test_every_name_is_documented(name: str) -> None:
    value = getattr(privtrain, name)
    if not (inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value)):
        home = HOMES[name]
        assert documented_constant(Path(import_module(home).__file__ or ""), name), name
        return
    text = (value.__doc__ or "").strip()
    first = text.splitlines()[0] if text else ""
    assert first.endswith((".", ":")), f"{name} has no summary: {first!r}"
    assert not first.startswith(f"{name}("), f"{name} has only the docstring that Python makes"


def test_every_name_stands_on_a_page() -> None:
    pages = [ROOT.parent / "README.md", *(ROOT.parent / "docs").rglob("*.md")]
    words = {word for page in pages for word in re.findall(r"\w+", page.read_text())}
    assert [name for name in privtrain.__all__ if name not in words] == []


def documented_constant(path: Path, name: str) -> bool:
    """Whether a constant is followed by a string that says what it is."""
    body = ast.parse(path.read_text()).body
    for node, after in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


FILES = sorted(ROOT.rglob("*.py"))


def is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).startswith("Protocol") for base in node.bases)


@cache
def members_of_protocols() -> frozenset[str]:
    """What protocols document once, so that no implementation has to say it again."""
    nodes = [node for path in FILES for node in ast.parse(path.read_text()).body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and is_protocol(node)]
    return frozenset(
        item.name for node in classes for item in node.body if isinstance(item, ast.FunctionDef)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_class_and_function_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    missing = []
    nodes: list[tuple[ast.AST | None, ast.AST]] = [(None, node) for node in tree.body]
    while nodes:
        owner, node = nodes.pop()
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_"):
            continue
        inherited = isinstance(owner, ast.ClassDef) and not is_protocol(owner)
        if not ast.get_docstring(node) and not (inherited and node.name in members_of_protocols()):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            nodes += [(node, inner) for inner in node.body]
    assert missing == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'privtrain' has no attribute 'GaussianMechanism'"):
        privtrain.GaussianMechanism  # noqa: B018 - looking it up is the test


def test_dir_lists_the_public_names() -> None:
    assert set(dir(privtrain)) == set(privtrain.__all__)


def test_importing_loads_nothing_heavy() -> None:
    """Seconds depend on the machine; what is loaded does not."""
    program = (
        "import sys; before = set(sys.modules); import privtrain; import json; "
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    loaded = set(done.stdout.replace('"', "").strip("[]\n").split(", "))
    assert "privtrain" in loaded
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_looking_at_a_name_of_the_ground_floor_loads_no_framework() -> None:
    program = (
        "import sys, privtrain as pt; pt.BudgetExceededError; pt.PUBLIC; "
        "print([m for m in ('flwr', 'opacus', 'crypten', 'ray', 'matplotlib', 'sklearn', "
        "'dp_accounting') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"
