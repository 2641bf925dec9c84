"""The teachers of one party, trained in this process or in several, with the same bits."""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise

import cloudpickle
import torch
from torch import Tensor

from privtrain.core.runtime import Draws
from privtrain.core.seeding import NO_ENTROPY
from privtrain.core.task import Rows, Task
from privtrain.runtimes.in_process import one_thread
from privtrain.steps.features import Features, features_of
from privtrain.steps.teaching import Teacher, TeacherSteps


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The teachers of one party before their training.

    Args:
        steps: How they are trained, prepared for what they are asked.
        task: What is learned; its model reads features where there is a map.
        features: What they read in place of inputs, as it is used; None for the inputs.
        classes: How many classes there are.
        asked: All queries as teachers read them, shape `(queries, ...)`.
        draws: The party's streams.
        held: Number of a teacher to its rows.
    """

    steps: TeacherSteps
    task: Task
    features: Features | None
    classes: int
    asked: Tensor
    draws: Draws
    held: Mapping[int, Rows]

    def scores(self) -> Iterator[Tensor]:
        """What each teacher says of all queries, `(queries, classes)`, in the order of numbers."""
        for group in self._groups():
            teachers = [self._teacher(number) for number in group]
            yield from self.steps.teach(self.task, teachers, self.asked, self.classes)

    def scores_of_workers(self, workers: int) -> Iterator[Tensor]:
        """The same scores, of teachers that several processes train.

        Args:
            workers: How many processes there are; each trains whole groups, one thread at a time.
        """
        # Only here: it takes a moment to import.
        from joblib.externals.loky import ProcessPoolExecutor

        jobs = self.parts(workers)
        # Its processes end here, so that their time counts among this process's own.
        with ProcessPoolExecutor(max_workers=len(jobs)) as pool:
            for made in pool.map(_worked, jobs):
                yield from torch.load(BytesIO(made), weights_only=True)

    def parts(self, workers: int) -> list[bytes]:
        """What each of so many processes is given; those for whom nothing is left get none."""
        # Groups as they are without workers: another size of a group rounds otherwise.
        parts = [part for part in _split(self._groups(), workers) if part]
        return [
            cloudpickle.dumps(self._only([n for group in part for n in group])) for part in parts
        ]

    def _groups(self) -> list[list[int]]:
        numbers, size = list(self.held), self.steps.at_once
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def _teacher(self, number: int) -> Teacher:
        # The rows of one teacher at a time: whatever the map does to rows that it is given
        # together, one row more changes the features of its own teacher alone.
        own = features_of(self.features, self.held[number])
        return Teacher(own, replace(self.draws, name=f"{self.draws.name}/teacher-{number}"))

    def _only(self, numbers: list[int]) -> "Crowd":
        """The same with some of the teachers, as it may leave the process."""
        # Teachers draw nothing secret: streams that are given out once stay where they are.
        draws = replace(self.draws, entropy=NO_ENTROPY, cache={})  # type: ignore[arg-type]
        return replace(self, draws=draws, held={number: self.held[number] for number in numbers})


def _split(groups: list[list[int]], workers: int) -> list[list[list[int]]]:
    """Groups in as many parts as there are workers, as even as possible and in order."""
    cuts = [len(groups) * number // workers for number in range(workers + 1)]
    return [groups[low:high] for low, high in pairwise(cuts)]


def _worked(job: bytes) -> bytes:
    crowd: Crowd = pickle.loads(job)
    made = BytesIO()
    with one_thread():
        torch.save(list(crowd.scores()), made)
    return made.getvalue()
