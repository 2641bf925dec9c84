"""What the votes on public queries looked like: for a simulation, and never to be published."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from privtrain.accounting.event import Event, charged, composed
from privtrain.core.observers import PUBLIC
from privtrain.core.result import History, VotesSeen
from privtrain.core.seeding import SEEDED
from privtrain.core.task import Rows
from privtrain.core.trainer import Charge, Run
from privtrain.mechanisms.mechanism import TellingExactly
from privtrain.release.aggregation import Total
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX

BINS = 20
"""Of the histogram of top shares."""

_POINTS = 8
"""Of a curve over the releases, as that of the formal epsilon has."""


def charged_beside(
    charges: Mapping[str, Charge], spent: Mapping[str, int], kind: str, answers: int
) -> tuple[Event, ...]:
    """What was spent beside some answers, at its planned cost; nothing where there is nothing."""
    rest = {**spent, kind: spent.get(kind, 0) - answers}
    others = {name: charge for name, charge in charges.items() if rest.get(name)}
    return (charged(others, rest),) if others else ()


def see_votes(
    run: Run,
    answer: Release,
    votes: Total,
    labels: Tensor,
    charges: Mapping[str, Charge],
    kind: str,
    asked: int,
) -> None:
    """Takes note of what answered votes looked like, and in a simulation what they exactly told.

    Nothing of it stops, tunes or chooses anything: it is read when the run is over.

    Args:
        run: The run, of which these answers were paid for.
        answer: How they were answered.
        votes: The votes on all answered queries.
        labels: The answers.
        charges: Kind of release to what one costs the public.
        kind: What answers are charged as.
        asked: How many queries were put to the teachers, answered or not.
    """
    spent = run.ledger.spent_by_kind
    seen = VotesSeen(asked=asked, answered=len(labels))
    run.outcome.history.votes = seen
    counts = votes.value
    # The exact votes are looked at where the whole run is simulated, and where the aggregator
    # reads them anyway. Of noised ones nothing would be exact.
    exact = answer.finish == ARGMAX and answer.readable and answer.aggregator_draws
    if run.entropy.kind is not SEEDED or not exact or not isinstance(counts, Tensor):
        return
    run.outcome.history.votes = replace(
        seen, agreement=_agreement(counts, labels), top_shares=_top_shares(counts)
    )
    mechanism = answer.mechanism
    if isinstance(mechanism, TellingExactly):
        told = _told(mechanism, counts, charges, spent, kind)
        if told:
            run.outcome.exact[PUBLIC.name] = told


def _told(
    mechanism: TellingExactly,
    counts: Tensor,
    charges: Mapping[str, Charge],
    spent: Mapping[str, int],
    kind: str,
) -> list[tuple[int, Event]]:
    """How many releases there were after each eighth of them, and what they exactly told."""
    made: list[tuple[int, Event]] = []
    done = 0
    so_far: tuple[Event, ...] = ()
    for part in range(1, _POINTS + 1):
        # The numbers at which the formal epsilon is told, too.
        by_then = {name: max(1, round(n * part / _POINTS)) for name, n in spent.items() if n}
        answers = min(by_then[kind], len(counts))
        if answers > done:
            event = mechanism.exact(counts[done:answers])
            if event is None:
                return []
            so_far, done = (composed((*so_far, event)),), answers
        planned = charged_beside(charges, by_then, kind, answers)
        made.append((sum(by_then.values()), composed((*planned, *so_far))))
    return made


def _agreement(counts: Tensor, labels: Tensor) -> float:
    """The part of the answers that are a class with the most votes."""
    of_answer = counts.gather(1, labels.to(counts.device).unsqueeze(1)).squeeze(1)
    return float((of_answer == counts.max(dim=1).values).double().mean())


def _top_shares(counts: Tensor) -> tuple[int, ...]:
    """How many queries have which part of their votes in one class."""
    whole = counts.double()
    shares = whole.max(dim=1).values / whole.sum(dim=1).clamp(min=1)
    places = (shares * BINS).floor().clamp(max=BINS - 1).long()
    return tuple(torch.bincount(places.cpu(), minlength=BINS).tolist())


def check_labels(history: History, asked: Tensor, labels: Tensor, public: Rows | None) -> None:
    """Takes note of how many answers are right, where the labels of public rows are public.

    Args:
        history: Where votes were seen.
        asked: The answered queries, shape `(queries, ...)`.
        labels: Their answers.
        public: The public rows, of which they are some; None where rows of parties were given up.
    """
    # Labels of rows that were given up stay with their party.
    if history.votes is None or public is None or public.targets is None or labels.dim() != 1:
        return
    if len(labels) == 0 or public.targets.dim() != 1:
        return
    # By what the rows hold: equal rows with two labels have none.
    known: dict[bytes, int | None] = {}
    for row, target in zip(_bytes_of(public.inputs), public.targets.tolist(), strict=True):
        known[row] = target if known.get(row, target) == target else None
    true = [known.get(row) for row in _bytes_of(asked)]
    right = [
        mine == own for mine, own in zip(labels.tolist(), true, strict=True) if own is not None
    ]
    if right:
        history.votes = replace(history.votes, label_accuracy=sum(right) / len(right))


def _bytes_of(inputs: Tensor) -> list[bytes]:
    """What each row holds."""
    flat = inputs.detach().cpu().contiguous().reshape(len(inputs), -1)
    # As bytes: numpy has no bfloat16.
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()]
