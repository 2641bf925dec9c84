"""Progress on the terminal; silent where the output is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]
"""Called as `report(done, total)`."""


def silent(done: int, total: int) -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(description: str, *, shown: bool | None = None) -> Iterator[Report]:
    """A progress bar on standard error.

    Args:
        description: What is being done.
        shown: Whether to show it; None for only on a terminal.

    Yields:
        A function to call as `report(done, total)`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    # Standard error: the tables on standard output may be written to a file.
    console = Console(stderr=True)
    if not (console.is_terminal if shown is None else shown):
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        # How long it takes is not known before the first report.
        task = progress.add_task(description, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report
