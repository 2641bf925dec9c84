"""Teachers: who trains on which rows, what leaves of their votes, and what one row moves."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from privtrain.accounting.event import Event, of_group
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import READS_ROWS, DataError, UnsoundReleaseError
from privtrain.core.identity import value_digest
from privtrain.core.parameters import ModelPredictor, initial_model
from privtrain.core.runtime import Party, Payload, Reply
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.statement import (
    ADD_REMOVE,
    REPLACE_ONE,
)
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import PrivacyPlan
from privtrain.data.coins import shared_coins
from privtrain.release.door import Release
from privtrain.sampling.assignment import CONTENTS, AssignedBy, teacher_of_rows
from privtrain.sampling.users import count_rows
from privtrain.steps.features import Features, frozen, mapped
from privtrain.steps.teaching import TeacherSteps
from privtrain.steps.vote_cache import VoteCache
from privtrain.steps.voting import TopScore, Voting
from privtrain.trainers.crowd import Crowd


def public_part(party: str, rows: Rows, rate: float, seeds: Seeds) -> Tensor:
    """Marks the rows that a party gives up to the public; its teachers keep the others.

    Each row is given up by a coin of its own, which equal rows and a user's rows share: adding or
    removing a row moves no other one, and of a row that is kept no copy is public.

    Args:
        party: Its name; the coins of no two parties are the same.
        rows: Its rows.
        rate: Probability of being given up, in [0, 1).
        seeds: Public streams, of which the seed is used.

    Returns:
        Marks, boolean, shape `(rows,)`.
    """
    return torch.from_numpy(shared_coins(rows, f"privtrain/public/{party}/{seeds.seed}") < rate)


def public_rate(
    data: FederatedData, queries: int, unlabelled: int | None = None, *, wanted: int = 0
) -> tuple[float, int | None]:
    """The rate at which rows are given up where the data has no public part, else 0.

    Args:
        data: Who holds which rows.
        queries: How many rows are asked about.
        unlabelled: About how many are given up; None for a few more than are asked about.
        wanted: How many the student would learn from, if nobody says; at most a quarter of all.

    Returns:
        The rate, and the number of rows if they had to be counted for it.
    """
    if data.public is not None:
        return 0.0, None
    counted = None if data.public_rows else count_rows(data, None)
    rows = data.public_rows or counted or 1
    # As many as are asked and three standard deviations more: one run in 700 has too few.
    fewest = queries + 3 * math.sqrt(queries)
    rate = max(fewest, min(wanted, rows / 4) if unlabelled is None else unlabelled) / rows
    if rate >= 1:
        what = f"queries={queries}" + (f" and unlabelled={unlabelled}" if unlabelled else "")
        raise DataError(
            f"The data has no public part, and {what} would take all of about "
            f"{rows} training rows. Ask fewer queries, or give data with public rows."
            + ("" if counted is None else f" {READS_ROWS}")
        )
    return rate, counted


@dataclass(frozen=True)
class GivePublic:
    """A party publishes the inputs of a few of its rows, for the student to ask about.

    Args:
        rate: Probability of each row to be given up.
    """

    rate: float

    def __call__(self, payload: Payload, party: Party) -> Reply:
        """The inputs of the rows that become public."""
        public = public_part(party.name, party.rows, self.rate, party.seeds)
        return Reply({"public inputs": party.rows.inputs[public]})


@dataclass(frozen=True)
class Vote:
    """A party's part of a query: it trains its teachers and sends the counts of their votes.

    Args:
        task: What is learned; its model reads features where there is a map.
        steps: How a teacher is trained.
        release: How a vote is bounded and leaves.
        hosted: Party to how many teachers it hosts.
        rate: Probability of each row to have been given up to the public.
        seed: Public seed of the assignment of rows to teachers.
        features: What teachers read in place of inputs; None for the inputs.
        classes: How many classes there are, by the outputs of the task's model.
        assigned_by: What decides on the teacher of a row.
        vote: How a teacher makes its vote of its scores.
        workers: Processes in which the party's teachers are trained; 1 for its own.
        cache: Where scores are kept from run to run, for a study of mechanisms.
    """

    task: Task
    steps: TeacherSteps
    release: Release
    hosted: dict[str, int]
    rate: float
    seed: int
    features: Features | None = None
    classes: int = 0
    assigned_by: AssignedBy = CONTENTS
    vote: Voting = TopScore()
    workers: int = 1
    cache: VoteCache | None = None

    def __call__(self, payload: Payload, party: Party) -> Reply:
        """The counts of the votes, one vote a teacher and query, `(queries, classes)`."""
        # "Aggregation", the counts n_j: scores become votes, and only their sum leaves the party.
        votes = (self.vote.cast(scores, party.seeds) for scores in self._known(payload, party))
        return self.release.leave(votes, party, kind="votes")

    def _known(self, payload: Payload, party: Party) -> Iterable[Tensor]:
        if self.cache is None:
            return self._scores(payload["queries"], party)
        # What a teacher says, and not its vote: ways of voting can be studied, too.
        recipe = (self.task.model, self.task.loss, self.steps, self.features, self.classes)
        split = (self.hosted[party.name], self.rate, self.seed, self.assigned_by)
        where = (party.name, party.seeds.seed, party.device, party.rows, payload["queries"])
        digest = value_digest(*recipe, *split, *where)
        return self.cache.scores(digest, lambda: self._scores(payload["queries"], party))

    def _scores(self, queries: Tensor, party: Party) -> Iterator[Tensor]:
        """What each teacher of the party says of all queries, `(queries, classes)`."""
        public = public_part(party.name, party.rows, self.rate, party.seeds)
        teachers_rows = party.rows.take((~public).nonzero().squeeze(1))
        # Of the rows themselves, and not of their features: whose they are is no matter of a map.
        hosted = self.hosted[party.name]
        teacher = teacher_of_rows(teachers_rows, hosted, self.seed, self.assigned_by)
        features = frozen(self.features, party.device)
        asked = mapped(features, queries.to(party.device))
        steps = self.steps.prepared(self.task, asked, self.classes)
        crowd = Crowd(
            steps=steps,
            task=self.task,
            features=features,
            classes=self.classes,
            asked=asked,
            draws=party.draws,
            held={
                number: teachers_rows.take((teacher == number).nonzero().squeeze(1))
                for number in range(hosted)
            },
        )
        return crowd.scores() if self.workers == 1 else crowd.scores_of_workers(self.workers)


def class_count(task: Task, inputs: Tensor) -> int:
    """How many classes the task's model tells apart: its outputs for public rows.

    Args:
        task: Its model takes rows.
        inputs: Public rows, at least one, shape `(rows, ...)`.
    """
    seeds = Seeds(0)
    model = initial_model(task, seeds["classes", 0, ""])
    with global_generator(seeds["classes", 1, ""]):
        return int(ModelPredictor(model)(inputs[:1].cpu()).shape[1])


def check_votes(release: Release) -> None:
    """Refuses a release that does not bound votes."""
    mechanism = release.mechanism
    # A changed row replaces a vote; a bound on norms counts it as one that is added.
    if mechanism.sensitivity(ADD_REMOVE) != mechanism.sensitivity(REPLACE_ONE):
        raise UnsoundReleaseError(
            f"{mechanism} bounds what a teacher says, not its vote. Use GNMax or LNMax."
        )


def check_classes(data: FederatedData) -> None:
    """Refuses targets that are more than one number a row; of training rows the shape is read."""
    name, targets = "test", data.test.targets
    if targets is None:
        name, targets = f"train[{data.parties[0]!r}]", data.train[data.parties[0]].targets
    if targets is not None and targets.ndim != 1:
        raise DataError(
            f"Expected data.{name}.targets of shape {tuple(targets.shape)} to be one class number "
            "for each row, for which a teacher votes: PATE trains neither several labels nor real "
            "values, as SGD, DPSGD and FedAvg do."
        )


def of_two_votes(plan: PrivacyPlan) -> PrivacyPlan:
    """A plan about one moved vote, as it is for a replaced row."""
    # A row whose contents change may leave one teacher and join another: a group of two. Both votes
    # are of its own party, which keeps the row. The counts shift twice as far, in L2 (GNMax) and in
    # L1 (LNMax), and none by more than 2: the events of sums have half the noise. Of two Laplace
    # noises, four counts that shift by 1 tell less than two that shift by 2 (decision 022).
    charges = {
        kind: replace(charge, event=_of_two(charge.event)) for kind, charge in plan.charges.items()
    }
    theorem = f"{plan.theorem}; a replaced row may move two votes, a group of two"
    return replace(plan, charges=charges, theorem=theorem)


def _of_two(event: Event) -> Event:
    return event.of_two() if isinstance(event, RdpCurve) else of_group(event, 2)
