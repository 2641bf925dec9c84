"""An attack that keeps what it was handed, and what a referee says of others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privtrain.attacks.attack import GuessesCoins, MembershipAttack
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Leakage, ShadowModels, Target
from privtrain.core.task import Canaries, Rows
from privtrain.runs.refereeing import (
    Candidates,
    check_canaries,
    coin_leakage,
    drawn,
    membership_leakage,
    scores_of,
)


@dataclass
class Looking:
    """Keeps what it was handed."""

    observer: Observer = PUBLIC
    name: str = "looking"
    needs_messages: bool = False
    seen: list[tuple[Target, Rows, int]] = field(default_factory=list)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Tensor:
        self.seen.append((target, candidates, seed))
        return torch.zeros(len(candidates))


@dataclass
class LookingAtCanaries(Looking):
    """Keeps the canaries whose coins it should guess."""

    guesses: int = 2
    canaries_needed: int = 2
    delta: float = 1e-5
    confidence: float = 0.95


@dataclass
class LookingAtClients:
    """Keeps what it was handed, and scores clients by their places."""

    observer: Observer = PUBLIC
    name: str = "looking"
    needs_messages: bool = False
    rows_each: int = 20
    limit: int = 1_000
    seen: list[tuple[Target, Sequence[Rows], int]] = field(default_factory=list)

    def score_clients(self, target: Target, clients: Sequence[Rows], *, seed: int) -> Tensor:
        self.seen.append((target, clients, seed))
        return torch.arange(len(clients))


def judged(
    attack: MembershipAttack,
    target: Target,
    members: Rows,
    non_members: Rows,
    *,
    seed: int = 0,
    lend: Callable[[Rows], Callable[[int], ShadowModels]] | None = None,
) -> Leakage:
    """What a membership attack shows, as `audit` finds it."""
    candidates = drawn(members, non_members, attack, seed=seed)
    scores = scores_of(attack, target, candidates, seed=seed, lend=lend)
    return membership_leakage(attack, scores, candidates)


def judged_by_coins(
    attack: GuessesCoins, target: Target, canaries: Canaries | None, *, seed: int = 0
) -> Leakage:
    """What an attack on canaries shows, as `audit` finds it."""
    known = check_canaries(attack, canaries)
    scores = scores_of(attack, target, Candidates(known.rows, known.included), seed=seed)
    return coin_leakage(attack, scores, known, target.promised, seed=seed)
