"""PATE: private aggregation of teacher ensembles (Papernot et al. 2017, 2018).

Teachers train on disjoint rows and vote on public queries; only the noised winner of each vote is
released, and a student learns from queries and winners alone.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from privtrain.core.cost import PublicCost
from privtrain.core.errors import READS_ROWS, DataError, UnsupportedError
from privtrain.core.fields import LATER, NEVER, told
from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import ModelPredictor
from privtrain.core.result import Members
from privtrain.core.runtime import NO_STAR, Runtimes
from privtrain.core.statement import (
    ADD_REMOVE,
    ZERO_OUT,
    Adversary,
    InputPrivacy,
    Unit,
)
from privtrain.core.task import ROWS, FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, PrivacyPlan, Run
from privtrain.core.validate import check_count, check_follows, check_is, check_member, check_offers
from privtrain.mechanisms.votes import GNMax
from privtrain.release.checked import ConfidentGNMax, InteractiveGNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import Drawer
from privtrain.release.shared import with_plain_sum
from privtrain.sampling.assignment import CONTENTS, AssignedBy, check_users
from privtrain.sampling.figures import rows_are_public
from privtrain.sampling.users import count_rows
from privtrain.steps.features import (
    Features,
    check_features,
    check_kind,
    of_features,
    on_features,
)
from privtrain.steps.plain import PlainSteps
from privtrain.steps.ridge import Ridge
from privtrain.steps.semi_supervised import SemiSupervised
from privtrain.steps.student import PublicInputs, StudentSteps
from privtrain.steps.teaching import TeacherSteps
from privtrain.steps.vote_cache import VoteCache
from privtrain.steps.voting import CoordinatedDraw, TopScore, Voting
from privtrain.trainers.answers import (
    ANSWER,
    CHECK,
    Panel,
    answered,
    beside,
    given_up,
    pay_up_to,
    public_inputs,
    targets_of,
    tell_of_split,
    try_answers,
)
from privtrain.trainers.asking import (
    AGGREGATOR_READS,
    aggregator_counts,
    check_answers,
    check_cap,
    check_consensus,
    check_rounds,
    spread,
    who_is_promised,
)
from privtrain.trainers.interactive import Interview, interviewed
from privtrain.trainers.queries import tried
from privtrain.trainers.student import STUDENT_NAME, learned_student, trained_student
from privtrain.trainers.teachers import (
    Vote,
    check_classes,
    class_count,
    public_rate,
)
from privtrain.trainers.units import of_units

DRAWN_FROM_RIDGE = "scores of Ridge are no logits: votes drawn from them are nearly by chance"

FEATURES_PUBLIC = "features are a fixed map of each row, made from no protected row"


@dataclass(frozen=True, kw_only=True, repr=False)
class PATE:
    """Teachers on disjoint rows vote on public queries; a student learns the noised winners.

    With a check, a query is answered only where the noised count of the winner reaches a threshold
    (Confident-GNMax). Every check is charged, whether it is passed or not, and so is every answer
    up to the cap; which queries passed is public.

    Args:
        teachers: How many teachers; at least the number of parties, over which they are spread.
        queries: How many public rows the student asks about at most; each answer is one release,
            and each check another one.
        release: How votes are noised and counted: a `Release` whose finish is `ARGMAX`, or
            `IDENTITY` for a student that learns the noised counts; or `ConfidentGNMax(...)` or
            `InteractiveGNMax(...)`, which check a query before it is answered.
        steps: How a teacher is trained: `PlainSteps`, or `Ridge` in closed form.
        student: How the student is trained: `PlainSteps` on the answered queries, or
            `SemiSupervised` on all public rows.
        consensus: How a query is checked before it is answered, such as
            `Release(GNMax(sigma), reduce=MAX, finish=Threshold(votes))`; None answers all, or
            leaves it to `release`.
        answers: How many queries are answered at most, of those that pass their check; at most
            `queries`. None for as many as are asked. The guarantee is that of so many answers.
        features: A fixed, public map of inputs to features, such as `Scattering()`: a function, or
            an `nn.Module` that was trained on public rows. Teachers read features in place of
            inputs. A student of `PlainSteps` does so, too, and the task's model then reads
            features; `SemiSupervised` compares rows by them, and its model reads the rows.
        unlabelled: About how many training rows are given up to the public where the data has no
            public part; at least `queries`. None for a few more than are asked about, and for a
            student that learns from rows without an answer twelve times as many, or a quarter.
        assigned_by: What decides on the teacher of a row, and so what is protected: `CONTENTS`, for
            single rows, or `USERS`, for all rows of a user together.
        vote: How a teacher makes its vote of its scores: `TopScore()`, or `CoordinatedDraw()` where
            several answers are right, such as the next character of a text.
        workers: How many processes train the teachers of a party, with the same bits as one.
        votes: Where scores of teachers are kept, so that mechanisms and students are studied
            without training again; every run then needs a study ledger.

    Source: Papernot et al. 2017 (arXiv:1610.05755); GNMax and Confident-GNMax of Papernot et al.
    2018 (arXiv:1802.08908), Section 4.1 and Algorithm 1.
    """

    teachers: int = 100
    queries: int = 20
    release: Release | ConfidentGNMax | InteractiveGNMax = Release(GNMax(sigma=10.0), finish=ARGMAX)
    steps: TeacherSteps = Ridge()
    student: StudentSteps = SemiSupervised()
    consensus: Release | None = field(default=None, metadata=LATER)
    answers: int | None = field(default=None, metadata=LATER)
    features: Features | None = field(default=None, metadata=LATER)
    unlabelled: int | None = field(default=None, metadata=LATER)
    assigned_by: AssignedBy = field(default=CONTENTS, metadata=LATER)
    vote: Voting = field(default=TopScore(), metadata=LATER)
    # Neither changes a bit of what is computed: noise and folders do not depend on them.
    workers: int = field(default=1, metadata=NEVER)
    votes: VoteCache | None = field(default=None, metadata=NEVER)
    token: ClassVar[str] = "pate"

    def __post_init__(self) -> None:
        check_count(teachers=self.teachers, queries=self.queries, workers=self.workers)
        if self.votes is not None:
            check_is(VoteCache, "pt.VoteCache('votes')", votes=self.votes)
        check_offers("teach", "PlainSteps() or Ridge()", steps=self.steps)
        check_offers("learn", "PlainSteps() or SemiSupervised()", student=self.student)
        if self.features is not None:
            check_kind(self.features)
            if self.steps.trains_model and not self.student.reads_features:
                raise UnsupportedError(
                    f"Expected steps={self.steps!r} to be Ridge() beside features= and "
                    f"student={self.student!r}: the task's model cannot read features as a teacher "
                    "and rows as the student."
                )
        if not isinstance(self.release, ConfidentGNMax | InteractiveGNMax):
            check_offers("arrive", "Release(GNMax(10.0), finish=ARGMAX)", release=self.release)
        elif self.consensus is not None:
            raise ValueError(
                f"Expected consensus={self.consensus} to be None: release={self.release} checks "
                "each query itself. Leave one of the two out."
            )
        check_answers(self.answering)
        check_member([each.value for each in AssignedBy], assigned_by=self.assigned_by)
        object.__setattr__(self, "assigned_by", AssignedBy(self.assigned_by))
        check_follows(Voting, "CoordinatedDraw()", vote=self.vote)
        if self.consensus is not None:
            example = "Release(GNMax(sigma=10.0), reduce=MAX, finish=Threshold(60.0))"
            check_offers("arrive", example, consensus=self.consensus)
        if self.checking is not None:
            check_consensus(self.checking, self.answering, self.teachers)
        check_cap(self.answers, self.queries, checked=self.checking is not None)
        check_rounds(self.release, self.queries)
        if self.unlabelled is not None:
            check_count(self.queries, unlabelled=self.unlabelled)

    def __repr__(self) -> str:
        return told(self)

    @property
    def answering(self) -> Release:
        """How a query is answered."""
        release = self.release
        return release.answer if isinstance(release, ConfidentGNMax | InteractiveGNMax) else release

    @property
    def checking(self) -> Release | None:
        """How a query is checked before it is answered; None where all are answered."""
        release = self.release
        if isinstance(release, ConfidentGNMax | InteractiveGNMax):
            return release.check
        return self.consensus

    @property
    def cap(self) -> int:
        """How many queries are answered at most."""
        return self.queries if self.answers is None else self.answers

    def _public_rate(self, data: FederatedData) -> tuple[float, int | None]:
        """At which rate rows are given up where the data has no public part; see `public_rate`."""
        wanted = self.student.wanted(self.queries)
        return public_rate(data, self.queries, self.unlabelled, wanted=wanted)

    def plan(self, data: FederatedData, runtimes: Runtimes) -> tuple[PrivacyPlan, ...]:
        """One release an answered query, and one a check.

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
        rate, counted = self._public_rate(data)
        known = () if counted is None else (rows_are_public(counted),)
        if rate:
            known = (*known, f"a fraction of {rate:.2g} of the training rows is public: see notes")
        fixed = () if self.features is None else (FEATURES_PUBLIC,)
        assumed = ("public queries are not protected", *known, *fixed)
        # One release an answered query, composed over queries (2018, Section 4.1).
        kind = RELEASE if self.checking is None else ANSWER
        plans = self._planned(self.answering, kind, self.cap, data, assumed)
        if self.checking is not None:
            # Algorithm 1: a check of each query, passed or not.
            checks = self._planned(self.checking, CHECK, self.queries, data, assumed)
            plans = tuple(beside(one, other) for one, other in zip(checks, plans, strict=True))
        # One row more or less moves one vote. A rate that was counted is the same for neighbours
        # of equally many rows only, one of which trains no teacher (docs/decisions/004).
        relation = ADD_REMOVE if counted is None else ZERO_OUT
        units = [
            of_units(
                plan,
                relation=relation,
                assigned_by=self.assigned_by,
                teachers=self.teachers,
                parties=len(hosted),
                given_up=rate > 0,
            )
            for plan in plans
        ]
        return tuple(one for each in zip(*units, strict=True) for one in each)

    def _planned(
        self,
        release: Release,
        charge: str,
        count: int,
        data: FederatedData,
        assumed: tuple[str, ...],
    ) -> tuple[PrivacyPlan, ...]:
        return release.plans(
            unit=Unit.EXAMPLE,
            count=count,
            parties=len(data.parties),
            observers=who_is_promised(release, data.parties),
            assumptions=assumed,
            charge=charge,
        )

    def _check_release(self, hosted: dict[str, int], runtimes: Runtimes) -> None:
        for release in (self.answering, self.checking):
            if release is not None:
                release.check(runtimes, parties=len(hosted), largest=float(max(hosted.values())))

    @property
    def caveats(self) -> tuple[str, ...]:
        trusted = self.answering.trusted("party", "every answer")
        counts = (AGGREGATOR_READS,) if aggregator_counts(self.answering) else ()
        if isinstance(self.steps, Ridge) and isinstance(self.vote, CoordinatedDraw):
            counts = (*counts, DRAWN_FROM_RIDGE)
        return (*trusted, *counts, *self.answering.aggregation.caveats)

    @property
    def others(self) -> tuple[str, ...]:
        """Parties without rows that the aggregation addresses."""
        return self.answering.aggregation.others

    def input_privacy(self, data: FederatedData, runtimes: Runtimes) -> tuple[InputPrivacy, ...]:
        checked = "" if self.checking is None else ", where the vote passed its check"
        votes = "the winner" if self.answering.finish == ARGMAX else "the noised counts"
        student = InputPrivacy(
            reader=STUDENT_NAME,
            reads=f"public queries and {votes} of each vote{checked}",
            adversary=Adversary.UNTRUSTED,
        )
        at_party = self.answering.noise_at.drawer is Drawer.PARTY
        what = "noised vote counts" if at_party else "vote counts"
        own = ", its own noise" if at_party else ""
        party = InputPrivacy(
            reader="party",
            reads=f"the votes of its own teachers{own}, and what the student reads; parties "
            "together, all of theirs",
            adversary=Adversary.UNTRUSTED,
        )
        return (*self.answering.aggregation.readers("party", what), party, student)

    def with_noise(self, scale: float) -> "PATE | None":
        # The noise of answers; that of checks, like the threshold, is a setting of its own.
        release = self.release.with_scale(scale)
        return None if release is None else replace(self, release=release)

    def with_plain_sum(self) -> "PATE | None":
        release, consensus = self.release, self.consensus
        if isinstance(release, Release):
            release = with_plain_sum(release) or release
        if consensus is not None:
            consensus = with_plain_sum(consensus) or consensus
        same = (release, consensus) == (self.release, self.consensus)
        return None if same else replace(self, release=release, consensus=consensus)

    def hosted(self, parties: tuple[str, ...]) -> dict[str, int]:
        """The number of teachers of each party: as even as possible, at least one.

        Raises:
            ValueError: If there are fewer teachers than parties.
        """
        return spread(self.teachers, parties)

    def briefly(self) -> "PATE":
        # What it clusters and solves with is imported when it first learns.
        compares = isinstance(self.student, SemiSupervised)
        student = SemiSupervised(steps=1) if compares else PlainSteps()
        return PATE(teachers=2, queries=2, steps=PlainSteps(), student=student)

    def check(self, task: Task, model: nn.Module) -> None:
        self.steps.check(task, model)
        self.student.check(task, model)

    def _check_teachers(self, rows: int, rate: float, told: str) -> None:
        kept = round((1 - rate) * rows)
        if self.teachers > kept:
            what = "the number of training rows"
            if self.teachers <= rows:
                what = f"about as many of {rows} training rows as are not given up to the public"
            raise ValueError(
                f"Expected teachers={self.teachers} <= {rows if self.teachers > rows else kept}, "
                f"{what}: a teacher without rows votes by chance. Use fewer teachers.{told}"
            )

    def check_rows(self, data: FederatedData, model: nn.Module) -> None:
        # The public figure first: a refusal that follows from it tells nothing of the rows.
        rate, _ = self._public_rate(data)
        if data.public_rows is not None:
            self._check_teachers(data.public_rows, rate, "")
        self._check_teachers(count_rows(data, None), rate, f" {READS_ROWS}")
        if self.steps.fewest_rows(model) < 2:
            return
        for party, teachers in self.hosted(data.parties).items():
            if len(data.train[party]) < 2 * teachers:
                raise DataError(
                    f"Expected {party}, which holds {len(data.train[party])} rows, to have two "
                    f"for each of its {teachers} teachers at least: the model normalises by its "
                    f"batch (nn.BatchNorm). Use fewer teachers, or nn.GroupNorm. {READS_ROWS}"
                )

    def check_reuse(self, runtimes: Runtimes, study: Any) -> None:
        if self.votes is not None:
            self.votes.check(runtimes, study)

    def said_of_reuse(self, study: Any) -> tuple[str, ...]:
        return () if self.votes is None else (self.votes.said(study),)

    def read_beside(self) -> object:
        return self.features

    def adapted(self, task: Task) -> Task:
        # From rows to outputs, whatever is read in between: that is what is asked and kept.
        return on_features(task, self.features if self.student.reads_features else None)

    def try_beforehand(self, task: Task, data: FederatedData, model: nn.Module) -> None:
        check_classes(data)
        check_users(data, self.assigned_by)
        rows = data.test if data.public is None else data.public
        if self.features is not None and len(rows) > 0:
            check_features(self.features, rows.inputs)
        inputs, scores = tried(data, model)
        if len(scores) == 0:
            return
        try_answers(task, scores, self.answering)
        self.student.check_public(inputs, self.features)

    def train(self, task: Task, data: FederatedData, run: Run) -> ModelPredictor:
        """Lets the teachers vote on public rows, and trains the student on the answers.

        Returns:
            The student.
        """
        if run.star is None:
            raise UnsupportedError(NO_STAR)
        # Answers were paid for and are public: a resumed run asks nothing twice.
        _, saved = run.kept() or (0, {})
        rate, _ = self._public_rate(data)
        if rate:
            tell_of_split(data, rate, run)
        inputs = public_inputs(data, rate, self.queries, run, saved.get("public"))
        public = PublicInputs(inputs, self.features)
        if "labels" not in saved:
            asked, labels = self._answered(task, data, rate, run, public, saved)
            saved = {"asked": asked, "labels": labels, **given_up(data, inputs)}
            run.keep(1, **saved)
        # Kept again: what was paid for is told beside what was kept.
        if self.checking is not None and pay_up_to(self.cap, run):
            run.keep(1, **saved)
        asked, labels = saved["asked"], saved["labels"]
        if len(asked) == 0 and not run.ledger.spent_by_kind.get(CHECK):
            # No teacher was asked, so none was trained.
            run.outcome.members = Members(made_public=rate > 0)
        run.progress(1, 2)
        # Who votes and how many numbers a message holds follows from settings and public queries.
        run.outcome.public_cost = PublicCost.of(run.transcript)
        rows = Rows(asked, targets_of(labels, task, asked, self.teachers, run))
        student = trained_student(self.student, task, rows, public, run)
        run.progress(2, 2)
        return student

    def _answered(
        self,
        task: Task,
        data: FederatedData,
        rate: float,
        run: Run,
        public: PublicInputs,
        saved: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """The answered queries and their answers; see `answers.answered`."""
        planned = next(plan for plan in self.plan(data, Runtimes()) if plan.observer == PUBLIC)
        hosted, answer = self.hosted(data.parties), self.answering
        panel = Panel(
            vote=Vote(
                *(of_features(task), self.steps, answer, hosted, rate, run.seeds.seed),
                features=self.features,
                classes=class_count(task, public.inputs),
                assigned_by=self.assigned_by,
                vote=self.vote,
                workers=self.workers,
                cache=self.votes,
            ),
            answer=answer,
            check=self.checking,
            charges=planned.charges,
            public=data.public,
            kept=given_up(data, public.inputs),
            run=run,
        )
        asked = public.inputs[self.student.choose(public, self.queries, run.seeds)]
        if not isinstance(self.release, InteractiveGNMax):
            return answered(panel, asked, self.cap, saved.get("passed"))
        learn = partial(learned_student, self.student, task, public, run)
        interview = Interview(self.release, panel, learn, self.teachers, self.cap)
        return interviewed(interview, asked, saved)
