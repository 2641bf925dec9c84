"""The pages, and the examples in them."""

import re
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"

_BLOCK = re.compile(r"(<!-- ([a-z ]+) -->\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A block of Python in a page.

    Args:
        code: What the block holds.
        mark: What the comment in the line before says: "not run", or nothing.
    """

    code: str
    mark: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, where its first line says so."""
        named = re.match(r"# (\w+\.py)\n", self.code)
        return None if named is None else named.group(1)


def examples(page: Path) -> list[Example]:
    """The blocks of a page, in order."""
    found = _BLOCK.finditer(page.read_text())
    return [Example(match.group(3), match.group(2) or "") for match in found]


def run(page: Path, blocks: list[Example], folder: Path) -> dict[str, object]:
    """Runs blocks one after the other, as a reader would type them.

    Args:
        page: Where they stand, for tracebacks.
        blocks: The blocks; one that is a file is written into the folder instead.
        folder: A folder on the import path.

    Returns:
        The names that the blocks made.
    """
    namespace: dict[str, object] = {"__name__": "__example__"}
    for block in blocks:
        if block.file is not None:
            (folder / block.file).write_text(block.code)
        else:
            exec(compile(block.code, str(page), "exec"), namespace)
    return namespace
