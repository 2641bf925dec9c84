"""Pieces of work that several processes do, and that know nothing of each other."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from privtrain.core.errors import PrivtrainError
from privtrain.core.settings import read_settings, set_settings
from privtrain.runtimes.in_process import one_thread


def pickled(work: Callable[[int], Any]) -> bytes:
    """What is sent to processes; functions that were written in place go along.

    Args:
        work: What makes a piece of its number.

    Raises:
        Exception: Whatever it holds raises, if it cannot be pickled.
    """
    # Only here: it takes a moment to import.
    import cloudpickle

    return bytes(cloudpickle.dumps((work, read_settings())))


def in_processes(job: bytes, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, Any]]:
    """The pieces as they are finished, each with its number, computed on one thread.

    Whatever ends it ends the processes, too. Where a piece fails, those that were finished by then
    come first.

    Args:
        job: What `pickled` made.
        numbers: Of the pieces; at least one.
        workers: How many processes there are at most.

    Raises:
        PrivtrainError: If a process died.
        Exception: What the work raised.
    """
    from joblib.externals.loky import ProcessPoolExecutor, as_completed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    pool = ProcessPoolExecutor(max_workers=min(workers, len(numbers)))
    try:
        asked = {pool.submit(_worked, job, number): number for number in numbers}
        failure: BaseException | None = None
        for future in as_completed(asked):
            failure = future.exception()
            if failure is not None:
                break
            yield asked.pop(future), future.result()
        for future, number in asked.items():
            if future.done() and future.exception() is None:
                yield number, future.result()
        if isinstance(failure, BrokenProcessPool):
            raise PrivtrainError(
                f"A process died that did a part of the work, one of workers={workers}: perhaps "
                "for lack of memory. Use fewer workers; where there is a folder, what was finished "
                "by then is kept."
            ) from failure
        if failure is not None:
            raise failure
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise
    # Its processes end here, so that their time counts among this process's own.
    pool.shutdown()


def _worked(job: bytes, number: int) -> Any:
    work, settings = pickle.loads(job)
    set_settings(settings)
    with one_thread():
        return work(number)
