"""Interactive-GNMax: teachers answer where they differ from the student, who is trained in rounds.

Each check subtracts from the counts what the student expects, which is public: its training saw
public rows and released answers alone. One vote that moves still changes the largest difference by
at most 1, so that a check costs what it costs without a student.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from privtrain.core.observers import PUBLIC
from privtrain.core.parameters import ModelPredictor
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.seeding import global_generator
from privtrain.core.task import Rows
from privtrain.release.aggregation import Total
from privtrain.release.checked import InteractiveGNMax
from privtrain.trainers.answers import ANSWER, CHECK, Panel, counts_of, paid

Learn = Callable[[Rows, int], ModelPredictor]
"""Trains a student on public rows and what is known of them, before a round of that number."""


@dataclass(frozen=True)
class Interview:
    """A student and the teachers that it asks.

    Args:
        setting: When the teachers answer, and when the student may believe itself.
        panel: The teachers.
        learn: How the student is trained.
        teachers: How many teachers there are.
        cap: How many queries they answer at most.
    """

    setting: InteractiveGNMax
    panel: Panel
    learn: Learn
    teachers: int
    cap: int

    def expects(self, queries: Tensor, known: Rows, number: int) -> Tensor | None:
        """How likely the student takes each class, `(queries, classes)`; None before it learns."""
        if number == 0 or len(known) == 0:
            return None
        run = self.panel.run
        student = self.learn(known, number)
        with global_generator(run.seeds["expectations", number, ""]):
            scores = student(queries.to(run.device)).cpu()
        likely = torch.softmax(scores.double(), dim=-1)
        # Of public rows and released answers: whoever has both computes it, the aggregator too.
        run.transcript.publish("expected", likely, sender=AGGREGATOR_NAME, round=number + 1)
        return likely

    def round(
        self, queries: Tensor, votes: Total, known: Rows, left: int, number: int
    ) -> tuple[Rows, int]:
        """One round of Algorithm 2.

        Args:
            queries: Those of this round, whose checks were paid for.
            votes: The votes on them.
            known: What the student has learned so far.
            left: How many answers may still be given.
            number: The round, from 0.

        Returns:
            What the student knows after it, and how many answers were given.
        """
        counts, run = counts_of(votes), self.panel.run
        # Line 1: the student's scores p. Line 2: max over j of n_j - M p_j, and noise, >= T.
        likely = self.expects(queries, known, number)
        excess = counts if likely is None else counts.double() - self.teachers * likely
        differ = self.panel.reached(replace(votes, value=excess), round=number + 1)
        chosen = differ.nonzero().squeeze(1)
        given = paid(min(len(chosen), left), ANSWER, run)
        chosen = chosen[:given]
        learned = [known]
        if given:
            # Line 3: the teachers' noised winner.
            asked = replace(votes, value=counts[chosen])
            labels = self.panel.labels(asked, given, round=number + 1)
            # Which queries were answered follows from earlier answers: no figure of these votes.
            run.outcome.realised.pop(PUBLIC.name, None)
            learned.append(Rows(queries[chosen], labels))
        if likely is not None:
            # Lines 4 and 5: where they agree, a sure student learns its own answer. Public.
            surest = likely.max(dim=-1)
            own = (~differ & (surest.values > self.setting.confidence)).nonzero().squeeze(1)
            learned.append(Rows(queries[own], surest.indices[own]))
        run.outcome.note(
            f"round {number + 1}: teachers and student differ on {int(differ.sum())} of "
            f"{len(queries)} queries, which is public"
        )
        return _together(learned), given


def interviewed(
    interview: Interview, asked: Tensor, saved: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The queries that were answered, by teachers or by the student itself, and the answers.

    Args:
        interview: The student and the teachers.
        asked: The queries, in the order in which they are asked, shape `(queries, ...)`.
        saved: What an interrupted run kept.
    """
    panel, run = interview.panel, interview.panel.run
    done, given = int(saved.get("rounds", 0)), int(saved.get("given", 0))
    known = Rows(saved.get("learned", asked[:0]), saved.get("answers", _none()))
    votes: Total | None = None
    parts = torch.arange(len(asked)).tensor_split(interview.setting.rounds)
    for number, part in enumerate(parts):
        # A round that was released is public and paid for: it is not made twice.
        if number < done:
            continue
        checked = paid(len(part), CHECK, run)
        part = part[:checked]
        if checked == 0:
            break
        # Only after the first check was paid for; all queries at once, as teachers train once.
        votes = panel.votes(asked) if votes is None else votes
        of_round = replace(votes, value=counts_of(votes)[part])
        known, more = interview.round(asked[part], of_round, known, interview.cap - given, number)
        given += more
        state = {"learned": known.inputs, "answers": known.labels, **panel.kept}
        run.keep(0, **state, rounds=number + 1, given=given)
    return known.inputs, known.labels


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


def _together(parts: list[Rows]) -> Rows:
    inputs = torch.cat([part.inputs for part in parts])
    return Rows(inputs, torch.cat([part.labels for part in parts]))
