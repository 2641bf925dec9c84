"""Pieces that processes make are those that one makes, and whoever dies is named."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from joblib.externals import loky

from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.task import Task
from privtrain.data.models import MLP
from privtrain.runs.shadows import Design, complementary_halves
from privtrain.runs.workers import in_processes, pickled
from privtrain.runtimes.in_process import one_thread
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, a_federation

DESIGN = Design(
    SGD(epochs=2, batch_size=4, optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    Task(model=lambda: MLP((5, 16, 3))().double()),
    a_federation(8, 9),
    complementary_halves((8, 9), 2, seed=0),
    *(0, STAR, "cpu"),
)


def one_that_dies(dies: int) -> Any:
    """Written in place, so that no process could import it."""

    def made(number: int) -> tuple[int, torch.dtype, int, Any]:
        if number == dies:
            os._exit(1)
        losses = DESIGN._answered(number).losses
        return os.getpid(), torch.get_default_dtype(), torch.get_num_threads(), losses

    return made


def test_a_worker_makes_the_same_bits_and_is_named_where_it_dies() -> None:
    before, found = torch.get_default_dtype(), list[Any]()
    torch.set_default_dtype(torch.float64)
    try:
        job = pickled(one_that_dies(9))
        with one_thread():
            alone = DESIGN._answered(1).losses
    finally:
        torch.set_default_dtype(before)
    with pytest.raises(PrivtrainError, match="workers=1: perhaps"):
        for each in in_processes(job, [1, 9, 0], workers=1):
            found.append(each)
    ((number, (process, dtype, threads, losses)),) = found
    assert number == 1 and process != os.getpid()
    # It computes as this process did when it was asked, and on one thread.
    assert dtype is torch.float64 and threads == 1
    assert np.array_equal(losses, alone)


class Pool(ThreadPoolExecutor):
    """A thread in place of processes."""

    ended: ClassVar[list[bool]] = []

    def __init__(self, max_workers: int) -> None:
        super().__init__(1)

    def shutdown(self, wait: bool = True, *, kill_workers: bool = False, **named: bool) -> None:
        Pool.ended.append(kill_workers)
        super().shutdown(wait, **named)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "ended", [])
    monkeypatch.setattr(loky, "ProcessPoolExecutor", Pool)


@pytest.mark.usefixtures("threads")
def test_an_error_of_the_work_is_raised_after_what_was_finished() -> None:
    def made(number: int) -> int:
        if number == 2:
            raise DataError("no rows")
        return number**2

    found = []
    with pytest.raises(DataError, match="no rows"):
        for each in in_processes(pickled(made), [3, 2], workers=1):
            found.append(each)
    assert found == [(3, 9)] and Pool.ended == [True]
    assert sorted(in_processes(pickled(made), [3, 4, 5], workers=2)) == [(3, 9), (4, 16), (5, 25)]
    assert Pool.ended == [True, False]


@pytest.mark.usefixtures("threads")
def test_who_stops_asking_ends_the_processes() -> None:
    asked = in_processes(pickled(lambda number: number), [1, 2], workers=1)
    next(asked)
    with pytest.raises(KeyboardInterrupt):
        asked.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert Pool.ended == [True]
