"""The risk of each record: what a run, and its trainer, tell of single rows."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from privtrain.attacks.attack import GuessesCoins, MembershipAttack, check_attacks, check_shadows
from privtrain.attacks.membership import row_losses
from privtrain.attacks.rmia import RMIA
from privtrain.attacks.scores import Scores, auc, auc_interval, tpr_at_fpr
from privtrain.attacks.scoring.lira import phi_of_losses
from privtrain.attacks.scoring.records import Records, of_records, precision
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.result import TrainResult
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.task import ROWS, FederatedData, Rows, Task
from privtrain.report.risks import HIGH_SEPARATION, Accused, RecordRisks, RiskGroup
from privtrain.runs.auditing import declared, target_of
from privtrain.runs.refereeing import (
    LOW_RATES,
    Candidates,
    drawn,
    order_of,
    rankable,
    row_keys,
    scores_of,
)
from privtrain.runs.shadowing import Kept, shadowing

_ENOUGH = 10
"""With fewer members or non-members a group has no AUC, and a user no line."""

_BATCH = 1_024


@kept_settings()
@recorded_gradients()
def record_risks(
    result: TrainResult,
    task: Task,
    data: FederatedData,
    *,
    attack: MembershipAttack | None = None,
    shadows: int = 16,
    prior: float = 0.5,
    seed: int = 0,
) -> RecordRisks:
    """What an attack says of each record, beside shadow models that did not see the record.

    Args:
        result: What training gave.
        task: What was learned.
        data: The rows that were trained on; candidates are drawn as `audit` draws them.
        attack: Gives the scores; None for `RMIA` with so many shadow models. Its own models are the
            same ones where it has as many.
        shadows: How many shadow models the risk is measured by; even, at least 4.
        prior: The fraction of members among those whom an attacker wonders about, in (0, 1].
        seed: Public seed of the candidates and of the shadow models; that of `audit` gives the same
            scores.

    Returns:
        The report. It is private, as the rows are, and written nowhere.

    Raises:
        ValueError: If an argument is out of its range, or the attack scores no rows.
        NotApplicableError: If the run has no shadow models.
        DataError: If the run was trained on other data.
    """
    check_shadows(shadows)
    if not 0 < prior <= 1:
        raise ValueError(f"Expected prior={prior!r} in (0, 1]: at 0 nobody is a member.")
    (tried,) = check_attacks([RMIA(shadows=shadows) if attack is None else attack])
    if isinstance(tried, GuessesCoins) or not isinstance(tried, MembershipAttack):
        raise ValueError(
            f"Expected attack={tried.name!r} to score rows, as pt.RMIA() does; it guesses canaries "
            "or makes up rows."
        )
    candidates = drawn(*declared(result, data, tried.observer), tried, seed=seed)
    kept, said = Kept(), list[str]()
    target, _ = target_of(result, tried, task, data)
    lend = shadowing(result, target.task, data, seed=seed, kept=kept, said=said)
    if lend is None:
        raise NotApplicableError(
            "The risk of each record is told by shadow models, and this run has none: its model "
            "was trained elsewhere, or its trainer keeps answers for other runs.",
            Reason.NO_SHADOWS,
        )
    scores = scores_of(tried, target, candidates, seed=seed, lend=lend)
    # The attack's own models, where it has as many: they know candidates in the attack's order.
    order = order_of(candidates, seed)
    models = lend(replace(candidates.rows.take(torch.from_numpy(order)), users=None))(shadows)
    losses, included = np.empty_like(models.losses), np.empty_like(models.included)
    losses[:, order], included[:, order] = models.losses, models.included
    own = row_losses(result.predictor, task, candidates.rows, _BATCH).numpy()
    records = of_records(rankable(scores), *_values(own, losses), included)
    return _report(tried, shadows, prior, candidates, records, data, (*dict.fromkeys(said),))


def _values(own: Scores, theirs: Scores) -> tuple[Scores, Scores]:
    """Values that are higher for members: phi of LiRA, or minus a loss of no probability."""
    if min(np.nanmin(own), np.nanmin(theirs)) < 0:
        return -own, -theirs
    return phi_of_losses(own), phi_of_losses(theirs)


def _report(
    attack: MembershipAttack,
    shadows: int,
    prior: float,
    candidates: Candidates,
    records: Records,
    data: FederatedData,
    notes: tuple[str, ...],
) -> RecordRisks:
    rows, member = candidates.rows, candidates.included.cpu().numpy()
    places = list(_places(rows, member, data))
    labels = None
    if rows.targets is not None and rows.targets.ndim == 1:
        labels = rows.targets.cpu().double().numpy()
    classes = labels if labels is not None and not rows.labels.is_floating_point() else None
    known = [user for _, _, user in places]
    users = None if None in known else np.array(known, dtype=np.int64)
    return RecordRisks(
        attack=attack.name,
        observer=attack.observer.name,
        shadows=shadows,
        prior=prior,
        holder=tuple(holder for holder, _, _ in places),
        number=np.array([number for _, number, _ in places], dtype=np.int64),
        member=member,
        label=labels,
        user=users,
        score=records.scores,
        rank=records.ranks,
        seen=records.seen,
        separation=records.separation,
        null_deviation=records.null_deviation,
        p_value=records.p_values,
        p_value_interval=records.p_value_intervals,
        groups=tuple(_groups(records, member, classes, users)),
        accused=tuple(_accused(records.scores, member, prior)),
        inputs=rows.inputs,
        notes=notes,
    )


def _places(
    rows: Rows, member: np.ndarray[tuple[int], np.dtype[np.bool_]], data: FederatedData
) -> Iterator[tuple[str, int, int | None]]:
    """Who holds each record, under which number, and whose it is.

    By its contents: of equal rows of one holder each is named once, in their order.
    """
    inside = data.train if data.split is ROWS else {"all parties": data.pooled()}
    sides = {True: inside, False: {"test": data.test}}
    waiting: dict[tuple[bool, bytes], list[tuple[str, int, int | None]]] = {}
    for side, holders in sides.items():
        for holder, held in holders.items():
            users = [None] * len(held) if held.users is None else held.users.tolist()
            for number, (key, user) in enumerate(
                zip(row_keys(held.inputs, held.targets), users, strict=True)
            ):
                waiting.setdefault((side, key), []).append((holder, number, user))
    for key, side in zip(row_keys(rows.inputs, rows.targets), member.tolist(), strict=True):
        yield waiting[side, key].pop(0)


def _groups(
    records: Records,
    member: np.ndarray[tuple[int], np.dtype[np.bool_]],
    classes: Scores | None,
    users: np.ndarray[tuple[int], np.dtype[np.int64]] | None,
) -> Iterator[RiskGroup]:
    everybody = np.ones(len(member), dtype=np.bool_)
    yield _group("all", everybody, records, member)
    for name, column in (("class", classes), ("user", users)):
        for value in [] if column is None else np.unique(column):
            chosen = column == value
            # A user with two rows has no figure of its own; its rows stand in the list.
            if name == "class" or chosen.sum() >= _ENOUGH:
                yield _group(f"{name} {value:g}", chosen, records, member)


def _group(
    name: str,
    chosen: np.ndarray[tuple[int], np.dtype[np.bool_]],
    records: Records,
    member: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> RiskGroup:
    inside, outside = records.scores[chosen & member], records.scores[chosen & ~member]
    enough = min(len(inside), len(outside)) >= _ENOUGH
    separation = records.separation[chosen]
    known = separation[~np.isnan(separation)]
    return RiskGroup(
        name=name,
        records=int(chosen.sum()),
        members=len(inside),
        auc=auc(inside, outside) if enough else None,
        interval=auc_interval(inside, outside) if enough else None,
        median=float(np.median(known)) if known.size else float("nan"),
        above=int((known > HIGH_SEPARATION).sum()),
        by_chance=float(_chance(records.seen[chosen], records.unseen[chosen]).sum()),
    )


def _chance(
    seen: np.ndarray[tuple[int], np.dtype[np.int64]],
    unseen: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Scores:
    """The probability of a d' above 2 where values are normal and membership changes nothing.

    Source: d' divided by sqrt(1/n + 1/m) is Student's t with n + m - 2 degrees (Hedges 1981).
    """
    from scipy import stats

    spread = np.sqrt(1 / seen + 1 / unseen)
    return np.asarray(stats.t.sf(HIGH_SEPARATION / spread, seen + unseen - 2))


def _accused(
    scores: Scores, member: np.ndarray[tuple[int], np.dtype[np.bool_]], prior: float
) -> Iterator[Accused]:
    for _, rate in LOW_RATES:
        point = tpr_at_fpr(scores[member], scores[~member], rate)
        if point is None:
            yield Accused(rate=rate)
            continue
        # At the rate that was asked for: the interval of the true positive rate holds there.
        right = [precision(tpr, rate, prior) for tpr in (point.tpr, *point.tpr_interval)]
        value, low, high = (0.0 if part is None else part for part in right)
        yield Accused(
            rate=rate,
            fpr=point.fpr,
            tpr=point.tpr,
            tpr_interval=point.tpr_interval,
            precision=value,
            precision_interval=(low, high),
        )
