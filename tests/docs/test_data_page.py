"""The page on data: every example runs, in order, as a reader would type it."""

import re
from pathlib import Path

import pytest

import privtrain.data
from privtrain.data.files import VARIABLE
from tests.data.conftest import CHECKOUT, data_directory

__all__ = ["data_directory"]

PAGE = CHECKOUT / "docs" / "data.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def run(blocks: list[str]) -> None:
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in examples() if "mnist(" not in block]
    assert len(blocks) >= 8
    run(blocks)


@pytest.mark.slow
def test_examples_with_files_run(data_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(data_directory))
    blocks = examples()
    with_files = [block for block in blocks if "mnist(" in block]
    assert with_files
    run([blocks[0], *with_files])


def test_the_page_names_everything_public() -> None:
    text = PAGE.read_text()
    absent = [name for name in privtrain.data.__all__ if not re.search(rf"\b{name}\b", text)]
    assert absent == []
