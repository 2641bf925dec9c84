"""Values in a few lines, for terminals, and as small tables, for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape


def lines(title: str, **parts: str) -> str:
    """A title and named parts below it, a line each; empty parts are left out.

    Args:
        title: The first line.
        parts: Name to text; an underscore in a name is a space.
    """
    shown = [f"  {name.replace('_', ' ')}: {text}" for name, text in parts.items() if text]
    return "\n".join([title, *shown])


def first(texts: Iterable[str], most: int) -> str:
    """The first few of several texts, and how many more there are."""
    given = list(texts)
    more = f"; and {len(given) - most} more" if len(given) > most else ""
    return "; ".join(given[:most]) + more


def cut(text: str, length: int) -> str:
    """A text on one line, cut with an ellipsis where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """A table in HTML; every text is escaped.

    Args:
        header: Names of the columns.
        rows: A value for each column.
        title: What stands above it; empty for nothing.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in row)}</tr>" for row in rows
    )
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def listed(title: str, texts: Iterable[str]) -> str:
    """A list in HTML under a title; nothing where there are no texts."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<details><summary>{escape(title)}</summary><ul>{items}</ul></details>" if items else ""
