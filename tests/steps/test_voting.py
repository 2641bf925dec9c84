"""Voting: the marginals of coordinated draws, how often teachers agree, and who draws what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from privtrain.core.seeding import Seeds
from privtrain.core.task import Rows, Task
from privtrain.mechanisms.votes import GNMax, one_vote
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.steps.voting import CoordinatedDraw, TopScore, Voting
from privtrain.trainers.pate import PATE
from tests.statistics import ALARM
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.35, 0.35, 0.05, 0.25], dtype=torch.float64)
MANY = 20_000


def votes(voting: Voting, p: Tensor, queries: int = MANY, seed: int = 0) -> Tensor:
    """The class that a teacher of these probabilities votes for, query by query."""
    scores = voting.cast(p.log().expand(queries, len(p)), Seeds(seed))
    return one_vote(scores).argmax(dim=1)


def plausible(drawn: Tensor, p: Tensor) -> bool:
    counts = drawn.bincount(minlength=len(p)).numpy()
    expected = (p / p.sum()).numpy() * len(drawn)
    return bool(stats.chisquare(counts, expected).pvalue > ALARM)


def agreement(p: Tensor, q: Tensor) -> float:
    """How often two coordinated teachers draw the same class, exactly.

    Class j is the first of both where its exponential is below that of k times the larger of
    p_j / p_k and q_j / q_k for all k: a race of rates max(p_k / p_j, q_k / q_j).
    """
    rates = torch.maximum(p / p[:, None], q / q[:, None])
    return float((1 / rates.sum(dim=1)).sum())


def test_each_teacher_alone_draws_from_its_own_distribution() -> None:
    for p in (P, Q):
        drawn = votes(CoordinatedDraw(), p)
        assert plausible(drawn, p)
        # Power: logits that are two thirds as large, or half as large again, are noticed.
        assert not plausible(drawn, p ** (2 / 3))
        assert not plausible(drawn, p ** (3 / 2))
        assert plausible(votes(CoordinatedDraw(temperature=1.5), p), p ** (2 / 3))
        assert set(votes(TopScore(), p, queries=9).tolist()) == {int(p.argmax())}


def test_teachers_of_nearby_distributions_agree_as_often_as_the_paper_says() -> None:
    one, other = votes(CoordinatedDraw(), P), votes(CoordinatedDraw(), Q)
    same = int((one == other).sum())
    exact = agreement(P, Q)
    assert stats.binomtest(same, MANY, exact).pvalue > ALARM
    distance = float((P - Q).abs().sum() / 2)
    assert exact >= (1 - distance) / (1 + distance)
    # Teachers that draw for themselves agree far less often; so do equal ones.
    alone = votes(CoordinatedDraw(), Q, seed=1)
    assert stats.binomtest(int((one == alone).sum()), MANY, float((P * Q).sum())).pvalue > ALARM
    assert exact > 2 * float((P * Q).sum())
    assert torch.equal(one, votes(CoordinatedDraw(), P))


def test_no_two_queries_share_their_draws() -> None:
    drawn = votes(CoordinatedDraw(), P).numpy()
    table = np.zeros((4, 4))
    np.add.at(table, (drawn[:-1:2], drawn[1::2]), 1)
    assert stats.chi2_contingency(table).pvalue > ALARM
    assert not torch.equal(votes(CoordinatedDraw(), P), votes(CoordinatedDraw(), P, seed=1))


def test_what_is_impossible_is_never_drawn_and_what_is_no_number_has_no_vote() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]]).repeat(500, 1)
    cast = CoordinatedDraw().cast(logits, Seeds(0))
    assert torch.isfinite(cast).all()
    assert set(cast.argmax(dim=1).tolist()) == {0, 2}
    odd = torch.tensor([[0.0, torch.nan, 1.0], [-torch.inf] * 3, [0.0, torch.inf, 0.0]])
    assert not one_vote(CoordinatedDraw().cast(odd, Seeds(0))).any()
    assert not one_vote(TopScore().cast(odd, Seeds(0))).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        CoordinatedDraw(temperature=temperature)


def test_what_is_no_way_of_voting_is_refused() -> None:
    for wrong in (CoordinatedDraw, 0.5, "top"):
        with pytest.raises(ValueError, match=r"vote=.*CoordinatedDraw\(\)"):
            PATE(vote=wrong)  # type: ignore[arg-type]


class Fixed(nn.Module):
    """Says the same of every input, whatever it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        scores = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
        return scores.expand(len(inputs), 3) + 0 * self.unused


def counts_of(voting: Voting, queries: int = 60) -> list[Tensor]:
    """What two parties of two teachers send, all of which are of one mind."""
    step = PlainSteps(epochs=1, learning_rate=1e-3)
    trainer = PATE(
        teachers=4,
        queries=queries,
        steps=step,
        student=step,
        release=Release(GNMax(1.0), finish=ARGMAX),
        vote=voting,
    )
    asked = Rows(torch.zeros(queries, 5, dtype=torch.float64))
    data = replace(a_federation(8, 8), public=asked)
    result = fit(trainer, Task(model=Fixed), data, runtimes=STAR, keep_payloads=True)
    return [
        e.payload for e in result.transcript.entries if e.kind == "votes" and e.payload is not None
    ]


def test_all_teachers_of_all_parties_share_their_draws() -> None:
    """One query, asked sixty times: diverse answers, each of them unanimous."""
    drawn = counts_of(CoordinatedDraw())
    assert len(drawn) == 2
    assert torch.equal(*drawn)
    assert set(drawn[0].unique().tolist()) == {0.0, 2.0}
    assert plausible(drawn[0].argmax(dim=1), torch.tensor([0.5, 0.3, 0.2]))
    # The plain vote has one answer only.
    assert counts_of(TopScore())[0].sum(dim=0).tolist() == [120.0, 0.0, 0.0]


def test_a_plain_vote_leaves_settings_and_their_names_as_they_were() -> None:
    assert repr(PATE(vote=TopScore())) == repr(PATE())
    assert "vote" not in repr(PATE())
    assert "CoordinatedDraw(temperature=1.0)" in repr(PATE(vote=CoordinatedDraw()))


def test_a_student_of_drawn_votes_is_paid_for_like_any_other() -> None:
    public = Rows(some_rows(5, 9).inputs)
    trainer = PATE(teachers=4, queries=9, release=Release(GNMax(3.0), finish=ARGMAX))
    data = replace(a_federation(20, 20), public=public)
    drawn = replace(trainer, vote=CoordinatedDraw())
    assert drawn.plan(data, STAR) == trainer.plan(data, STAR)
    statement = fit(drawn, TASK, data, runtimes=STAR).statement
    assert statement.epsilon() == fit(trainer, TASK, data, runtimes=STAR).statement.epsilon()
