"""How public queries are asked: votes are gathered once, checked, and answered up to a cap.

How many answers are given follows from noisy checks. What is charged is the cap, which is fixed
beforehand, given or not: docs/decisions/023-caps-of-answers.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from privtrain.accounting.event import composed
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import ModelPredictor, initial_model
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Members
from privtrain.core.seeding import SEEDED, Seeds, global_generator
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, Charge, PrivacyPlan, Run
from privtrain.gradients.gradients import check_losses
from privtrain.release.aggregation import Total
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import IDENTITY
from privtrain.trainers.teachers import GivePublic, Vote, public_part
from privtrain.trainers.votes_seen import charged_beside, check_labels, see_votes

CHECK, ANSWER = "check", "answer"
"""Kinds of release of a run that checks each query before it is answered."""

PADDED = (
    "the numbers of checks and answers are caps, fixed beforehand and charged in full, used or not"
)
"""Why a number of answers that follows from noisy checks costs no more than a fixed one."""


def beside(checks: PrivacyPlan, answers: PrivacyPlan) -> PrivacyPlan:
    """One plan of checks and answers, whose numbers are caps."""
    both = checks.beside(answers)
    return replace(both, theorem=f"{both.theorem}; {PADDED}" if both.theorem else "")


def paid(wanted: int, kind: str, run: Run) -> int:
    """How many releases of a kind the ledger pays for."""
    # All of a kind come in one round, so all that the budget allows are paid before it.
    count = 0
    while count < wanted and run.spend(kind=kind):
        count += 1
    return count


def pay_up_to(cap: int, run: Run) -> bool:
    """Pays for the answers that were not given, up to their cap; whether there were any.

    Args:
        cap: The most answers that may be given to all queries.
        run: The run, of which checks and answers were paid for.
    """
    # Answers follow checks: of fewer queries than planned there are fewer answers at most, and how
    # many were asked is known before any of them is checked.
    cap = min(cap, run.ledger.spent_by_kind[CHECK])
    # Not by `run.spend`: answers that nobody wants halt nothing.
    missing = range(run.ledger.spent_by_kind[ANSWER], cap)
    return sum(1 for _ in missing if run.ledger.spend(kind=ANSWER)) > 0


def counts_of(votes: Total) -> Tensor:
    """The counts of the votes on checked queries, shape `(queries, classes)`."""
    if not isinstance(votes.value, Tensor):
        raise UnsupportedError(
            "A check needs counts that its aggregator reads: answers are given on some of the "
            "checked queries, and a sealed total is opened whole. Use consensus=None."
        )
    return votes.value


def public_inputs(
    data: FederatedData, rate: float, wanted: int, run: Run, kept: Tensor | None
) -> Tensor:
    """The inputs that may be asked about, shape `(rows, ...)`.

    Args:
        data: Who holds which rows, and public rows if there are any.
        rate: At which rows are given up to the public where there are none.
        wanted: How many are asked about at most.
        run: The run, which notes where there are fewer.
        kept: Those that were given up before the run was interrupted, if it was.
    """
    if data.public is not None:
        public = data.public.inputs
    elif kept is not None:
        public = kept
    else:
        replies = run.map(GivePublic(rate), {party: {} for party in data.parties}, round=0)
        public = torch.cat([reply.message["public inputs"] for reply in replies.values()])
    if len(public) < wanted:
        run.outcome.note(f"only {len(public)} public rows for {wanted} queries")
    return public


def given_up(data: FederatedData, public: Tensor) -> dict[str, Tensor]:
    """Public rows that a resumed run would have to ask the parties for again."""
    return {} if data.public is not None else {"public": public}


def tell_of_split(data: FederatedData, rate: float, run: Run) -> None:
    """Notes that rows were given up, and which of them were not."""
    run.outcome.note(
        f"the data has no public part: each training row was taken for it with probability "
        f"{rate:.3g}, away from the teachers; rows that were taken are not protected"
    )
    kept = {
        party: ~public_part(party, data.train[party], rate, run.seeds) for party in data.parties
    }
    run.outcome.members = Members(dict(kept), made_public=True)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The teachers of one run, and the two releases by which anything of their votes leaves.

    Args:
        vote: A party's part: it trains its teachers, who vote.
        answer: How a query is answered.
        check: How a query is checked before; None answers all.
        charges: Kind of release to what one costs the public.
        kept: What a resumed run needs beside what was released.
        run: The run, whose ledger pays.
        public: The public rows, whose labels, if they have any, say how many answers are right;
            None where rows of parties were given up.
    """

    vote: Vote
    answer: Release
    check: Release | None
    charges: Mapping[str, Charge]
    kept: Mapping[str, Tensor]
    run: Run
    public: Rows | None = None

    @property
    def kind(self) -> str:
        """What answers are charged as."""
        return RELEASE if self.check is None else ANSWER

    def votes(self, queries: Tensor) -> Total:
        """The counts of all teachers' votes on each query, gathered once and not released."""
        hosted, run = self.vote.hosted, self.run
        gathering = self.answer.begin(tuple(hosted), run, round=1, kind="votes")
        payloads = gathering.asked({"queries": queries})
        replies = run.map(self.vote, payloads, round=1, at_least=gathering.at_least)
        # One vote a teacher and query: a party that sends more is not believed.
        expected = Expected(contributions=hosted, shape=(len(queries), None))
        return self.answer.gathered(
            replies, run, round=1, kind="votes", expected=expected, gathering=gathering
        )

    def reached(self, votes: Total, *, round: int = 1) -> Tensor:
        """Whether the largest value of each query reaches the threshold, boolean `(queries,)`."""
        if self.check is None:
            raise UnsupportedError("Queries of a run without a check cannot be checked.")
        # Papernot et al. 2018, Algorithm 1, line 1: max over j of n_j + N(0, sigma_1^2) >= T.
        released = self.check.release_of(
            votes,
            self.run,
            round=round,
            kind="votes",
            releases=len(counts_of(votes)),
            charge=CHECK,
        )
        self.run.transcript.publish("passed", released.value, sender=AGGREGATOR_NAME, round=round)
        return released.value

    def passed(self, queries: Tensor) -> tuple[Tensor, Total | None]:
        """The queries whose largest count reaches the threshold, and the votes on them."""
        checked = paid(len(queries), CHECK, self.run)
        queries = queries[:checked]
        if checked == 0:
            return queries, None
        votes = self.votes(queries)
        counts = counts_of(votes)
        chosen = self.reached(votes).nonzero().squeeze(1)
        self.run.outcome.note(
            f"{len(chosen)} of {checked} queries passed the check, which is public"
        )
        return queries[chosen], replace(votes, value=counts[chosen])

    def labels(self, votes: Total, queries: int, *, round: int = 1) -> Tensor:
        """The answers to all queries of some votes: noised winners, shape `(queries,)`.

        With `finish=IDENTITY` the noised counts themselves, shape `(queries, classes)`.
        """
        # Papernot et al. 2018, Section 4.1, GNMax: argmax over j of n_j + N(0, sigma^2); in LNMax,
        # "Aggregation" of 2017, the noise is Lap(1 / gamma).
        answers = self.answer.release_of(
            votes, self.run, round=round, kind="votes", releases=queries, charge=self.kind
        )
        # Outside a simulation nothing that was computed from exact votes stays anywhere.
        if answers.realised is not None and self.run.entropy.kind is SEEDED:
            # Only answers of these votes have a data-dependent charge here. Checks, and answers of
            # an interrupted run that may have been seen, cost what was planned.
            planned = charged_beside(
                self.charges, self.run.ledger.spent_by_kind, self.kind, queries
            )
            self.run.outcome.realised[PUBLIC.name] = composed((*planned, answers.realised))
        self.run.transcript.publish("labels", answers.value, sender=AGGREGATOR_NAME, round=round)
        return answers.value


def answered(panel: Panel, asked: Tensor, cap: int, passed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The queries whose answers the ledger pays for, and these answers.

    Args:
        panel: The teachers.
        asked: The queries, in the order in which they are asked, shape `(queries, ...)`.
        cap: How many of them are answered at most: the first ones.
        passed: The queries that passed their check before the run was interrupted, if it was.
    """
    run, votes = panel.run, None
    if passed is not None:
        # Which queries passed was paid for and is public: a resumed run checks nothing twice.
        asked = passed
    elif panel.check is not None:
        asked, votes = panel.passed(asked)
        run.keep(0, passed=asked, **panel.kept)
    if len(asked) > cap:
        run.outcome.note(f"{cap} of the queries that passed are answered, the cap of answers")
    given = paid(min(len(asked), cap), panel.kind, run)
    asked = asked[:given]
    if given == 0:
        return asked, torch.zeros(0, dtype=torch.long)
    if votes is not None:
        votes = replace(votes, value=counts_of(votes)[:given])
    votes = votes or panel.votes(asked)
    labels = panel.labels(votes, given)
    queries = given if panel.check is None else run.ledger.spent_by_kind[CHECK]
    try:
        see_votes(run, panel.answer, votes, labels, panel.charges, panel.kind, queries)
    except Exception as error:  # a look at them must not cost answers that are paid for
        run.outcome.note(f"votes could not be looked at: {type(error).__name__}")
    check_labels(run.outcome.history, asked, labels, panel.public)
    return asked, labels


def targets_of(answers: Tensor, task: Task, queries: Tensor, teachers: int, run: Run) -> Tensor:
    """What a student learns of answers: class numbers, or a probability of each class.

    Args:
        answers: Winners, shape `(queries,)`; or noised counts, shape `(queries, classes)`.
        task: What is learned.
        queries: What was answered, shape `(queries, ...)`.
        teachers: How many there are.
        run: The run.

    Returns:
        The winners themselves, or the probabilities of the same shape as the counts that are
        nearest to the counts over the number of teachers, of the type of the model's outputs. A
        function of what was released, which costs nothing.
    """
    if answers.dim() < 2:
        return answers
    model = initial_model(task, run.seeds["initialisation", 0, ""])
    with global_generator(Seeds(0)["queries trial", 0, ""]):
        scores = ModelPredictor(model)(queries[:1])
    return on_simplex(answers.double() / teachers).to(scores.dtype)


def try_answers(task: Task, scores: Tensor, release: Release) -> None:
    """Refuses a loss that cannot take what is answered, before anything is spent.

    Args:
        task: What is learned.
        scores: What the model makes of a few public rows, shape `(rows, classes)`.
        release: How a query is answered.

    Raises:
        DataError: If the loss raises, or gives no value for each row.
    """
    learned = torch.arange(len(scores), device=scores.device) % scores.shape[1]
    what = "class numbers of type torch.int64, the winners of votes that the student learns"
    if release.finish == IDENTITY:
        learned = one_hot(learned, scores.shape[1]).to(scores.dtype)
        what = (
            f"probabilities of type {scores.dtype} and shape (rows, classes), the noised counts "
            "that the student learns with finish=IDENTITY"
        )
    try:
        with global_generator(Seeds(0)["answers trial", 0, ""]):
            check_losses(task.loss(scores, learned), scores)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"Expected the task's loss to take {what}; it raised {type(error).__name__}: {error}"
        ) from error


def on_simplex(values: Tensor) -> Tensor:
    """The nearest probabilities of each row, in L2 norm.

    Args:
        values: Any finite numbers, shape `(rows, classes)`.

    Returns:
        Same shape: at least zero, of sum one. Gaussian noise on the values makes this the
        likeliest row of probabilities.

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball", Figure 1.
    """
    falling = values.sort(dim=-1, descending=True).values
    places = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    excess = (falling.cumsum(dim=-1) - 1) / places
    # Figure 1: rho is the largest place whose value is above the mean excess up to it.
    rho = (falling > excess).sum(dim=-1, keepdim=True)
    return (values - excess.gather(-1, rho - 1)).clamp(min=0)
