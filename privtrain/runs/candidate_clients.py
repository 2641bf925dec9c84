"""The referee of attacks on clients: it draws candidate clients, and hides which took part."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from privtrain.attacks.attack import ClientAttack, Limited
from privtrain.attacks.scores import Scores
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.result import Leakage, Members, ShadowModels, Target
from privtrain.core.seeding import Seeds
from privtrain.core.settings import kept_settings
from privtrain.core.task import ROWS, FederatedData, Rows, concatenate
from privtrain.data.canaries import planted_in
from privtrain.runs.refereeing import (
    LIMIT,
    Candidates,
    as_numbers,
    check_types,
    equal_rows,
    random_order,
    sides_leakage,
    without,
)

FEWEST = 4
"""So many candidates of each side there are at least: of fewer, an interval says nothing."""

IDLE = "non-members are clients of the federation that did not"
"""Said where there are clients that took no part."""

MADE_UP = (
    "non-members are made up of test rows by a public draw; where clients hold rows of different "
    "kinds, these differ from them by more than membership"
)
"""Said where there are none, or too few."""


@dataclass(frozen=True, eq=False)
class CandidateClients:
    """Clients whose membership is guessed, and who is a member. Never handed to an attack.

    Args:
        clients: The rows of each; equally many each, without users.
        included: Whether each took part, boolean, shape `(clients,)`.
        said: How they were drawn.
    """

    clients: tuple[Rows, ...]
    included: Tensor
    said: str


def drawn_clients(
    members: Members | None,
    data: FederatedData,
    own: frozenset[str],
    attack: ClientAttack,
    *,
    seed: int,
) -> CandidateClients:
    """Equally many clients that took part and that did not, each shown by equally many rows.

    Members are parties of whose rows some were used, shown by some of these. Non-members are
    parties that took no part; where there are fewer than `FEWEST`, groups of test rows. Public rows
    and canaries are left out.

    Args:
        members: Which rows were used; None for all.
        data: The rows that were trained on.
        own: The attacker's own parties, which are no candidates.
        attack: Limits how many clients there are, and by how many rows each is shown.
        seed: Public seed of the draw.

    Raises:
        NotApplicableError: If parties hold columns, or either side has fewer than `FEWEST`.
        DataError: If test rows have another type than training rows.
    """
    if data.split is not ROWS:
        raise NotApplicableError(
            "Expected data.split=pt.ROWS: parties that hold columns hold a part of every row, and "
            "none of them is in or out.",
            Reason.NO_CLIENTS,
        )
    others = [party for party in data.parties if party not in own]
    used = [party for party in others if members is None or party in members.rows]
    limit = attack.limit if isinstance(attack, Limited) else LIMIT
    inside = _of_parties(_some(used, limit, seed, "members"), data, members)
    idle = _some(set(others).difference(used), limit, seed, "non-members")
    outside = _of_parties(idle, data, None) if len(idle) >= FEWEST else []
    made_up = len(outside) < FEWEST
    most = min((attack.rows_each, *map(len, inside), *([] if made_up else map(len, outside))))
    if made_up:
        test = _some_of(without(data.test, data.public), len(data.test), seed, "test rows")
        groups = torch.arange(len(test) // most * most).view(-1, most)
        outside = [test.take(group) for group in groups]
    count = min(len(inside), len(outside), limit)
    if count < FEWEST:
        raise NotApplicableError(
            f"Expected at least {FEWEST} clients that took part, besides the attacker's own, and "
            "rows of as many that did not. Use data of more parties.",
            Reason.NO_CLIENTS,
        )
    check_types(inside[0], outside[0])
    sides = [
        _some_of(rows, most, seed, f"rows/{side}/{number}")
        for side, clients in (("members", inside), ("non-members", outside))
        for number, rows in enumerate(clients[:count])
    ]
    return CandidateClients(
        tuple(sides), torch.arange(2 * count) < count, MADE_UP if made_up else IDLE
    )


def clients_leakage(
    attack: ClientAttack,
    target: Target,
    candidates: CandidateClients,
    *,
    seed: int,
    lend: Callable[[Rows], Callable[[int], ShadowModels]] | None = None,
) -> Leakage:
    """How well an attack, which sees clients in random order, tells who took part.

    Args:
        attack: The attack.
        target: What its observer saw and holds.
        candidates: The clients, and what is true, which the attack does not see.
        seed: Public seed of the attack's own choices.
        lend: From the rows of all clients as the attack sees them, what trains shadow models.

    Returns:
        The figures of `membership_leakage`, of clients in place of rows.

    Raises:
        ValueError: If its scores are no real numbers, or not one for each client.
    """
    order = random_order(concatenate([*candidates.clients]), candidates.included, seed)
    shown = [candidates.clients[number] for number in order]
    seen = target if lend is None else replace(target, shadows=lend(concatenate(shown)))
    # What an attack sets of the process does not reach what is made of its scores.
    with kept_settings():
        answered = as_numbers(attack, attack.score_clients(seen, shown, seed=seed), len(order))
    scores: Scores = np.empty_like(answered)
    scores[order] = answered
    said = (
        f"candidates are clients, each shown by at most {attack.rows_each} of its rows, all by "
        f"equally many: members took part, {candidates.said}; this bounds no epsilon"
    )
    each = len(candidates.clients[0])
    included = candidates.included.repeat_interleave(each)
    rows = Candidates(concatenate([*candidates.clients]), included)
    return sides_leakage(attack, scores, candidates.included, (*equal_rows(rows), said))


def _some(parties: Iterable[str], limit: int, seed: int, side: str) -> list[str]:
    """So many parties at most, drawn by the seed: of very many, only these are loaded."""
    names = sorted(parties)
    draw = Seeds(seed)[f"candidate clients/{side}", 0, ""].torch()
    return [names[int(number)] for number in torch.randperm(len(names), generator=draw)[:limit]]


def _of_parties(parties: Iterable[str], data: FederatedData, members: Members | None) -> list[Rows]:
    """The rows of each party that were used and are no canaries and not public, where any are."""
    planted, clients = planted_in(data), []
    for party in parties:
        rows = data.train[party]
        marks = None if members is None else members.rows[party]
        own = torch.ones(len(rows), dtype=torch.bool) if marks is None else marks.clone()
        own[len(rows) - planted.get(party, 0) :] = False
        clients.append(without(rows.take(own.nonzero().flatten()), data.public))
    return [rows for rows in clients if len(rows)]


def _some_of(rows: Rows, count: int, seed: int, what: str) -> Rows:
    draw = Seeds(seed)[f"candidate clients/{what}", 0, ""].torch()
    return replace(rows.take(torch.randperm(len(rows), generator=draw)[:count]), users=None)
