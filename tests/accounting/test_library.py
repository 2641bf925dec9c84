"""dp_accounting is loaded on first use, by one file."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_loading_the_module_loads_no_heavy_package() -> None:
    script = (
        "import sys, privtrain.accounting.epsilon, privtrain.accounting.gnmax, "
        "privtrain.accounting.calibration\n"
        "print([n for n in ('dp_accounting', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_only_one_file_imports_dp_accounting() -> None:
    importers = set()
    for path in (ROOT / "privtrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "dp_accounting" for name in names):
                importers.add(path.name)
    assert importers == {"library.py"}
