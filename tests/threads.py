"""Threads that meet at the place where a check without a lock lets both of them through."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PATIENCE = 0.5
"""Seconds that a thread waits for the others; where a lock keeps them out, they do not come."""


def meeting(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, in which that many threads wait for one another the first time."""
    barrier = threading.Barrier(count)

    def met(*arguments: Any, **options: Any) -> Any:
        value = call(*arguments, **options)
        with suppress(threading.BrokenBarrierError):
            barrier.wait(PATIENCE)
        return value

    return met


def outcomes(count: int, call: Callable[[], Any]) -> list[Any]:
    """What a function returns in each of several threads, or the error that it raises there."""
    made: list[Any] = []

    def run() -> None:
        try:
            made.append(call())
        except Exception as error:
            made.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == count
    return made
