"""PATE: private aggregation of teacher ensembles (Papernot et al. 2017, 2018).

Teachers train on disjoint rows and vote on public queries; only the noised winner of each vote is
released, and a student learns from queries and winners alone.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from privtrain.accounting.event import Event, charged, composed, of_group
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.cost import PublicCost
from privtrain.core.errors import READS_ROWS, DataError, UnsoundReleaseError, UnsupportedError
from privtrain.core.fields import LATER, told
from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.parameters import ModelPredictor, initial_model, to_vector, trainable
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Members
from privtrain.core.runtime import NO_STAR, Draws, Party, Payload, Reply, Runtimes
from privtrain.core.seeding import Seeds, global_generator
from privtrain.core.statement import (
    ADD_REMOVE,
    REPLACE_ONE,
    ZERO_OUT,
    Adversary,
    InputPrivacy,
    Unit,
)
from privtrain.core.task import ROWS, FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, PrivacyPlan, Run
from privtrain.core.validate import check_count
from privtrain.data.coins import coins, digests
from privtrain.gradients.gradients import check_losses
from privtrain.mechanisms.votes import GNMax
from privtrain.release.aggregation import Total
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.placement import Drawer
from privtrain.release.reduce import MAX
from privtrain.sampling.figures import rows_are_public
from privtrain.sampling.users import count_rows
from privtrain.steps.optimizers import check_not_diverged
from privtrain.steps.plain import PlainSteps, check_not_alone, normalises_batches

STUDENT_NAME = "student"

NUMBER_OF_ANSWERS = (
    "the number of answers, which follows from noisy checks, counts as fixed beforehand; without "
    "that the guarantee is that of an answer to each query"
)

CHECK, ANSWER = "check", "answer"
"""Kinds of release of a run that checks each query before it is answered."""


def teacher_of_rows(rows: Rows, teachers: int, seed: int) -> Tensor:
    """Which teacher each row belongs to, decided by the row's own contents.

    A row's teacher does not depend on any other row, so adding or removing one row changes what
    exactly one teacher trains on: the teachers are disjoint by construction.

    Args:
        rows: Rows of one party.
        teachers: How many teachers it hosts; at least 1.
        seed: Public seed of the assignment.

    Returns:
        Teacher numbers, shape `(rows,)`.
    """
    # The key is public, so that anybody can check the teacher of a row they hold.
    made = digests(rows, f"privtrain/teachers/{seed}")
    numbers = [int.from_bytes(digest, "little") % teachers for digest in made]
    return torch.tensor(numbers, dtype=torch.long)


def public_part(party: str, rows: Rows, rate: float, seeds: Seeds) -> Tensor:
    """Marks the rows that a party gives up to the public; its teachers keep the others.

    Each row is given up by a coin of its own, each user's rows by one coin (see `coins`): adding or
    removing a row moves no other one, whether it is given up or kept.

    Args:
        party: Its name; the coins of no two parties are the same.
        rows: Its rows.
        rate: Probability of being given up, in [0, 1).
        seeds: Public streams, of which the seed is used.

    Returns:
        Marks, boolean, shape `(rows,)`.
    """
    return torch.from_numpy(coins(rows, f"privtrain/public/{party}/{seeds.seed}") < rate)


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
        task: What is learned.
        steps: How a teacher is trained.
        release: How a vote is bounded and leaves.
        hosted: Party to how many teachers it hosts.
        rate: Probability of each row to have been given up to the public.
        seed: Public seed of the assignment of rows to teachers.
    """

    task: Task
    steps: PlainSteps
    release: Release
    hosted: dict[str, int]
    rate: float
    seed: int

    def __call__(self, payload: Payload, party: Party) -> Reply:
        """The counts of the votes, one vote a teacher and query, `(queries, classes)`."""
        public = public_part(party.name, party.rows, self.rate, party.seeds)
        teachers_rows = party.rows.take((~public).nonzero().squeeze(1))
        teacher = teacher_of_rows(teachers_rows, self.hosted[party.name], self.seed)
        queries = payload["queries"].to(party.device)
        votes = []
        # Papernot et al. 2017, "Data partitioning and teachers": one model for each disjoint set.
        for number in range(self.hosted[party.name]):
            name = f"{party.name}/teacher-{number}"
            rows = teachers_rows.take((teacher == number).nonzero().squeeze(1))
            model = initial_model(self.task, party.seeds["teacher", 0, name]).to(party.device)
            # A teacher that no row belongs to votes by its initial model: that every teacher votes
            # must not depend on the rows.
            # Nor can one on a single row where layers normalise by their batch.
            fewest = 2 if normalises_batches(model.train()) else 1
            if len(rows) >= fewest:
                self.steps(model, self.task, rows, replace(party.draws, name=name))
            with global_generator(party.seeds["votes", 0, name]):
                votes.append(ModelPredictor(model)(queries).cpu())
        # "Aggregation", the counts n_j: scores become votes, and only their sum leaves the party.
        return self.release.leave(votes, party, kind="votes")


def _check_votes(release: Release) -> None:
    """Refuses a release that does not bound votes."""
    mechanism = release.mechanism
    # A changed row replaces a vote; a bound on norms counts it as one that is added.
    if mechanism.sensitivity(ADD_REMOVE) != mechanism.sensitivity(REPLACE_ONE):
        raise UnsoundReleaseError(
            f"{mechanism} bounds what a teacher says, not its vote. Use GNMax or LNMax."
        )


def _of_two_votes(plan: PrivacyPlan) -> PrivacyPlan:
    """A plan about one moved vote, as it is for a replaced row."""
    # A row whose contents change may leave one teacher and join another: a group of two. Both votes
    # are of its own party, which keeps the row. The counts shift twice as far, in L2 (GNMax) and in
    # L1 (LNMax). Gaussian divergences grow with the square of the shift: four times the curve. Of
    # LNMax, min(e, a e^2 / 2) at order a with 2 e for e is at most four times as large.
    charges = {
        kind: replace(charge, event=_of_two(charge.event)) for kind, charge in plan.charges.items()
    }
    theorem = f"{plan.theorem}; a replaced row may move two votes, a group of two"
    return replace(plan, charges=charges, theorem=theorem)


def _of_two(event: Event) -> Event:
    return event.repeated(4) if isinstance(event, RdpCurve) else of_group(event, 2)


def _paid(wanted: int, kind: str, run: Run) -> int:
    """How many releases of a kind the ledger pays for."""
    # All of a kind come in one round, so all that the budget allows are paid before it.
    paid = 0
    while paid < wanted and run.spend(kind=kind):
        paid += 1
    return paid


def _counts(votes: Total) -> Tensor:
    """The counts of the votes on checked queries, shape `(queries, classes)`."""
    if not isinstance(votes.value, Tensor):
        raise UnsupportedError(
            "A check needs counts that its aggregator reads: answers are given on some of the "
            "checked queries, and a sealed total is opened whole. Use consensus=None."
        )
    return votes.value


@dataclass(frozen=True, kw_only=True, repr=False)
class PATE:
    """Teachers on disjoint rows vote on public queries; a student learns the noised winners.

    With a check, a query is answered only where the noised count of the winner reaches a threshold
    (Confident-GNMax). Every check is charged, whether it is passed or not, and which queries passed
    is public.

    Args:
        teachers: How many teachers; at least the number of parties, over which they are spread.
        queries: How many public rows the student asks about; each answer is one release, and each
            check another one.
        release: How votes are noised and counted; its finish is `ARGMAX`.
        steps: How a teacher is trained.
        student: How the student is trained on the answered queries.
        consensus: How a query is checked before it is answered, such as
            `Release(GNMax(sigma), reduce=MAX, finish=Threshold(votes))`; None answers all.

    Source: Papernot et al. 2017 (arXiv:1610.05755); GNMax and Confident-GNMax of Papernot et al.
    2018 (arXiv:1802.08908), Section 4.1 and Algorithm 1.
    """

    teachers: int = 100
    queries: int = 150
    release: Release = Release(GNMax(sigma=10.0), finish=ARGMAX)
    steps: PlainSteps = PlainSteps(epochs=40, learning_rate=0.5)
    student: PlainSteps = PlainSteps(epochs=60, learning_rate=0.1)
    consensus: Release | None = field(default=None, metadata=LATER)
    token: ClassVar[str] = "pate"

    def __post_init__(self) -> None:
        check_count(teachers=self.teachers, queries=self.queries)
        if self.release.finish != ARGMAX:
            raise UnsupportedError(
                f"PATE releases winners only: give Release(..., finish=ARGMAX), not "
                f"finish={self.release.finish}."
            )
        _check_votes(self.release)
        if self.consensus is not None:
            self._check_consensus(self.consensus)

    def __repr__(self) -> str:
        return told(self)

    def _check_consensus(self, check: Release) -> None:
        if check.reduce is not MAX or not isinstance(check.finish, Threshold):
            raise UnsupportedError(
                f"Expected consensus={check} to say whether the largest count reaches a threshold: "
                "Release(GNMax(sigma), reduce=MAX, finish=Threshold(votes))."
            )
        _check_votes(check)
        # Votes leave once, before anybody knows which queries pass: noise that parties add to their
        # own would be in the check, too, and answers that are not given would have left.
        if (check.noise_at, check.aggregation) != (self.release.noise_at, self.release.aggregation):
            raise UnsupportedError(
                f"Expected consensus={check} and release={self.release} to have the same noise_at "
                "and aggregation: votes leave their party once, for both."
            )

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        """One release an answered query.

        Raises:
            UnsupportedError: If parties hold columns.
            ValueError: If there are fewer teachers than parties.
            DataError: If the queries would take all rows.
        """
        if data.split is not ROWS:
            raise UnsupportedError("PATE needs parties that hold rows; these hold columns.")
        # Called for their refusals: what cannot be trained must not be paid for.
        hosted = self.hosted(data.parties)
        if runtimes != Runtimes():
            self._check_release(hosted, runtimes)
        rate, counted = self._public_part(data)
        known = () if counted is None else (rows_are_public(counted),)
        if rate:
            known = (*known, f"a fraction of {rate:.2g} of the training rows is public: see notes")
        assumed = ("public queries are not protected", *known)
        # One release an answered query, composed over queries (2018, Section 4.1).
        plans = self._planned(self.release, self._answers, data, assumed)
        if self.consensus is not None:
            # Algorithm 1: a check of each query, passed or not.
            checks = self._planned(self.consensus, CHECK, data, assumed)
            plans = tuple(one.beside(other) for one, other in zip(checks, plans, strict=True))
        # One row more or less moves one vote. A rate that was counted is the same for neighbours
        # of equally many rows only, one of which trains no teacher (docs/decisions/004).
        relation = ADD_REMOVE if counted is None else ZERO_OUT
        return tuple(
            _of_two_votes(plan)
            if plan.relation is REPLACE_ONE
            else replace(plan, relation=relation)
            for plan in plans
        )

    def _planned(
        self, release: Release, charge: str, data: FederatedData, assumed: tuple[str, ...]
    ) -> tuple[PrivacyPlan, ...]:
        return release.plans(
            unit=Unit.EXAMPLE,
            count=self.queries,
            parties=len(data.parties),
            observers=(PUBLIC, AGGREGATOR),
            assumptions=assumed,
            charge=charge,
        )

    @property
    def _answers(self) -> str:
        """What answers are charged as."""
        return RELEASE if self.consensus is None else ANSWER

    def _check_release(self, hosted: dict[str, int], runtimes: Runtimes) -> None:
        for release in (self.release, self.consensus):
            if release is not None:
                release.check(runtimes, parties=len(hosted), largest=float(max(hosted.values())))

    @property
    def caveats(self) -> tuple[str, ...]:
        trusted = self.release.trusted("party", "every answer")
        return (*trusted, *self.release.aggregation.caveats)

    @property
    def others(self) -> tuple[str, ...]:
        """Parties without rows that the aggregation addresses."""
        return self.release.aggregation.others

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        checked = "" if self.consensus is None else ", where the vote passed its check"
        student = InputPrivacy(
            reader=STUDENT_NAME,
            reads=f"public queries and the winner of each vote{checked}",
            adversary=Adversary.UNTRUSTED,
        )
        at_party = self.release.noise_at.drawer is Drawer.PARTY
        what = "noised vote counts" if at_party else "vote counts"
        return (*self.release.aggregation.readers("party", what), student)

    def with_noise(self, scale: float) -> "PATE | None":
        # The noise of answers; that of checks, like the threshold, is a setting of its own.
        release = self.release.with_scale(scale)
        return None if release is None else replace(self, release=release)

    def hosted(self, parties: tuple[str, ...]) -> dict[str, int]:
        """The number of teachers of each party: as even as possible, at least one.

        Raises:
            ValueError: If there are fewer teachers than parties.
        """
        if self.teachers < len(parties):
            raise ValueError(
                f"Expected teachers={self.teachers} >= {len(parties)}, the number of parties: "
                "every party hosts at least one."
            )
        share, more = divmod(self.teachers, len(parties))
        return {party: share + (number < more) for number, party in enumerate(parties)}

    def check(self, task: Task, model: nn.Module) -> None:
        # Called for their refusals.
        self.steps.check(task, model)
        self.student.check(task, model)

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        if not normalises_batches(model):
            return
        # Each teacher trains on rows of its own, of which batches have two at least.
        for party, teachers in self.hosted(data.parties).items():
            check_not_alone(model, 2, self.steps.batch_size, party)
            if len(data.train[party]) < 2 * teachers:
                raise DataError(
                    f"Expected {party}, which holds {len(data.train[party])} rows, to have two "
                    f"for each of its {teachers} teachers at least: the model normalises by its "
                    f"batch (nn.BatchNorm). Use fewer teachers, or nn.GroupNorm. {READS_ROWS}"
                )

    def try_beforehand(self, task: Task, data: FederatedData, model: nn.Module) -> None:
        rows = data.test if data.public is None else data.public
        if len(rows) == 0:
            return
        inputs = rows.inputs[torch.arange(3, device=rows.inputs.device) % len(rows)]
        with global_generator(Seeds(0)["queries trial", 0, ""]):
            scores = ModelPredictor(model)(inputs)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise DataError(
                f"Expected the model to return logits of shape (rows, classes) with two classes "
                f"at least, for one of which a teacher votes; of three rows it returned shape "
                f"{tuple(scores.shape)}. Give the model one output for each class."
            )
        labels = torch.arange(len(scores), device=scores.device) % scores.shape[1]
        try:
            with global_generator(Seeds(0)["answers trial", 0, ""]):
                check_losses(task.loss(scores, labels), scores)
        except (RuntimeError, IndexError, TypeError) as error:
            raise DataError(
                f"Expected the task's loss to take class numbers of type torch.int64, the winners "
                f"of votes that the student learns; it raised {type(error).__name__}: {error}"
            ) from error

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Lets the teachers vote on public rows, and trains the student on the answers.

        Returns:
            The student.
        """
        if run.star is None:
            raise UnsupportedError(NO_STAR)
        # Answers were paid for and are public: a resumed run asks nothing twice.
        _, saved = run.kept() or (0, {})
        rate, _ = self._public_part(data)
        if rate:
            self._tell_of_split(data, rate, run)
        if self.consensus is not None:
            run.outcome.assume(NUMBER_OF_ANSWERS)
        if "labels" not in saved:
            asked, labels = self._answered(task, data, rate, run, saved.get("passed"))
            saved = {"asked": asked, "labels": labels}
            run.keep(1, **saved)
        asked, labels = saved["asked"], saved["labels"]
        if len(asked) == 0 and not run.ledger.spent_by_kind.get(CHECK):
            # No teacher was asked, so none was trained.
            run.outcome.members = Members(made_public=rate > 0)
        run.progress(1, 2)
        # Who votes and how many numbers a message holds follows from settings and public queries.
        run.outcome.public_cost = PublicCost.of(run.transcript)
        student = self._student(task, Rows(asked, labels), run)
        run.progress(2, 2)
        return student

    def _answered(
        self, task: Task, data: FederatedData, rate: float, run: Run, passed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The queries whose answers the ledger pays for, and these answers.

        Args:
            task: What is learned.
            data: Who holds which rows.
            rate: At which rows are given up to the public.
            run: The run.
            passed: The queries that passed their check before the run was interrupted, if it was.
        """
        votes: Total | None = None
        if passed is not None:
            # Which queries passed was paid for and is public: a resumed run checks nothing twice.
            asked = passed
        else:
            public = self._public(data, rate, run)
            order = torch.randperm(len(public), generator=run.seeds["queries", 0, ""].torch())
            asked = public[order[: self.queries]]
            if self.consensus is not None:
                asked, votes = self._passed(self.consensus, task, data, run, asked, rate)
                run.keep(0, passed=asked)
        answered = _paid(len(asked), self._answers, run)
        asked = asked[:answered]
        if answered == 0:
            return asked, torch.zeros(0, dtype=torch.long)
        if votes is None:
            votes = self._votes(task, data, run, asked, rate)
        else:
            votes = replace(votes, value=_counts(votes)[:answered])
        return asked, self._labels(votes, data, run, answered)

    def _passed(
        self,
        consensus: Release,
        task: Task,
        data: FederatedData,
        run: Run,
        asked: Tensor,
        rate: float,
    ) -> tuple[Tensor, Total | None]:
        """The queries whose largest count reaches the threshold, and the votes on them."""
        checked = _paid(len(asked), CHECK, run)
        asked = asked[:checked]
        if checked == 0:
            return asked, None
        votes = self._votes(task, data, run, asked, rate)
        counts = _counts(votes)
        # Papernot et al. 2018, Algorithm 1, line 1: max over j of n_j + N(0, sigma_1^2) >= T.
        reached = consensus.release_of(
            votes, run, round=1, kind="votes", releases=checked, charge=CHECK
        ).value
        run.transcript.publish("passed", reached, sender=AGGREGATOR_NAME, round=1)
        chosen = reached.nonzero().squeeze(1)
        run.outcome.note(f"{len(chosen)} of {checked} queries passed the check, which is public")
        return asked[chosen], replace(votes, value=counts[chosen])

    def _public_part(self, data: FederatedData) -> tuple[float, int | None]:
        """The rate at which rows are given up where the data has no public part, else 0.

        Returns:
            The rate, and the number of rows if they had to be counted for it.
        """
        if data.public is not None:
            return 0.0, None
        counted = None if data.public_rows else count_rows(data, None)
        rows = data.public_rows or counted or 1
        # As many as are asked and three standard deviations more: one run in 700 has too few.
        rate = (self.queries + 3 * math.sqrt(self.queries)) / rows
        if rate >= 1:
            raise DataError(
                f"The data has no public part, and queries={self.queries} would take all of about "
                f"{rows} training rows. Ask fewer queries, or give data with public rows."
                + ("" if counted is None else f" {READS_ROWS}")
            )
        return rate, counted

    def _tell_of_split(self, data: FederatedData, rate: float, run: Run) -> None:
        """Notes that rows were given up, and which of them were not."""
        run.outcome.note(
            f"the data has no public part: each training row was taken for it with probability "
            f"{rate:.3g}, away from the teachers; rows that were taken are not protected"
        )
        kept = {
            party: ~public_part(party, data.train[party], rate, run.seeds) for party in data.parties
        }
        run.outcome.members = Members(dict(kept), made_public=True)

    def _public(self, data: FederatedData, rate: float, run: Run) -> Tensor:
        """The inputs that may be asked about, shape `(rows, ...)`."""
        if data.public is not None:
            public = data.public.inputs
        else:
            replies = run.map(GivePublic(rate), {party: {} for party in data.parties}, round=0)
            public = torch.cat([reply.message["public inputs"] for reply in replies.values()])
        if len(public) < self.queries:
            run.outcome.note(f"only {len(public)} public rows for {self.queries} queries")
        return public

    def _votes(
        self, task: Task, data: FederatedData, run: Run, asked: Tensor, rate: float
    ) -> Total:
        """The counts of all teachers' votes on each query, gathered once and not released."""
        vote = Vote(task, self.steps, self.release, self.hosted(data.parties), rate, run.seeds.seed)
        gathering = self.release.begin(data.parties, run, round=1, kind="votes")
        payloads = gathering.asked({"queries": asked})
        replies = run.map(vote, payloads, round=1, at_least=gathering.at_least)
        # One vote a teacher and query: a party that sends more is not believed.
        expected = Expected(contributions=self.hosted(data.parties), shape=(len(asked), None))
        return self.release.gathered(
            replies, run, round=1, kind="votes", expected=expected, gathering=gathering
        )

    def _labels(self, votes: Total, data: FederatedData, run: Run, queries: int) -> Tensor:
        """The noised winners of the votes on each query, shape `(queries,)`."""
        # Papernot et al. 2018, Section 4.1, GNMax: argmax over j of n_j + N(0, sigma^2); in LNMax,
        # "Aggregation" of 2017, the noise is Lap(1 / gamma).
        answers = self.release.release_of(
            votes, run, round=1, kind="votes", releases=queries, charge=self._answers
        )
        if answers.realised is not None:
            public = next(p for p in self.plan(data, Runtimes()) if p.observer == PUBLIC)
            # Only answers of these votes have a data-dependent charge here. Checks, and answers of
            # an interrupted run that may have been seen, cost what was planned.
            spent = dict(run.ledger.spent_by_kind)
            spent[self._answers] -= queries
            others = {kind: charge for kind, charge in public.charges.items() if spent.get(kind)}
            planned = (charged(others, spent),) if others else ()
            run.outcome.realised[PUBLIC.name] = composed((*planned, answers.realised))
        run.transcript.publish("labels", answers.value, sender=AGGREGATOR_NAME, round=1)
        return answers.value

    def _student(self, task: Task, rows: Rows, run: Run) -> ModelPredictor:
        """The student, trained on the answered queries alone."""
        # Queries and answers are public: everything from here on is post-processing. The papers
        # train the student on unanswered queries, too (semi-supervised), which is not done here.
        model = initial_model(task, run.seeds["initialisation", 0, ""]).to(run.device)
        if len(rows) > 0:
            own = Draws(run.seeds, run.entropy, 0, STUDENT_NAME, device=run.device)
            seen = self.student(model.train(), task, rows, own)
            check_not_diverged(trainable(model), rows.inputs, said="These rows are public.")
            run.outcome.history.record(1, student_loss=seen.numbers["training_loss"])
        run.watch(1, 1, ModelPredictor(model))
        run.transcript.publish("model", to_vector(trainable(model)), sender=STUDENT_NAME, round=1)
        # A student saw public queries and released answers only, so that its buffers tell no more.
        return ModelPredictor(model, buffers_released=True)
