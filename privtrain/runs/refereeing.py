"""The referee of attacks: it alone knows what is true, and turns scores into figures.

An attack is handed candidates in an order that tells nothing. What it says of them is put back in
the referee's own order, and only then compared with who was a member.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from privtrain.attacks.attack import Attack, GuessesCoins, Limited, MembershipAttack
from privtrain.attacks.one_run import f_dp
from privtrain.attacks.one_run.attack import right_guesses
from privtrain.attacks.one_run.bounds import ceiling, epsilon_bound
from privtrain.attacks.scores import (
    FALSE_POSITIVES_NEEDED,
    Scores,
    advantage,
    auc,
    auc_interval,
    low_rates,
    tpr_at_fpr,
)
from privtrain.core.errors import DataError, NotApplicableError, Reason
from privtrain.core.result import Leakage, ShadowModels, Target
from privtrain.core.rounding import printed_down
from privtrain.core.seeding import Seeds, derive
from privtrain.core.settings import kept_settings
from privtrain.core.statement import ADD_REMOVE, PrivacyCurves, Unit
from privtrain.core.task import Canaries, Rows, concatenate
from privtrain.data.federation import digest
from privtrain.runs.sides import notes_on_classes

LIMIT = 10_000
"""At most so many members, and non-members, are candidates where an attack sets no limit."""

LOW_RATES = (("1%", 0.01), ("0.1%", 0.001))
"""The false positive rates at which true positive rates are reported."""

DECLARED = (
    "candidates are declared, not drawn by coins: members are rows that the run used, non-members "
    "test rows; this bounds no epsilon"
)
"""Said beside the figures of members and non-members."""

BY_COIN = "candidates are canaries, each of them in by an independent fair coin"
"""Said beside a bound on epsilon."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows whose membership is guessed, and who is a member. Never handed to an attack.

    Args:
        rows: The rows; of each side in random order.
        included: Whether each is a member, boolean, shape `(candidates,)`.
    """

    rows: Rows
    included: Tensor


def drawn(members: Rows, non_members: Rows, attack: Attack, *, seed: int) -> Candidates:
    """Equally many members and non-members, drawn without replacement.

    Args:
        members: Rows that were trained on.
        non_members: Rows that were not, from the same distribution.
        attack: May limit how many there are.
        seed: Public seed of the draw; whatever the attack is, it draws the same rows.

    Returns:
        The members, and behind them the non-members.

    Raises:
        ValueError: If one side has no rows.
    """
    for side, rows in (("members", members), ("non_members", non_members)):
        if len(rows) == 0:
            raise ValueError(
                f"Expected {side} to hold at least one row that is not public; they hold none."
            )
    check_types(members, non_members)
    # Equally many on both sides, as by the fair coin of Yeom et al.'s membership experiment.
    limit = attack.limit if isinstance(attack, Limited) else LIMIT
    count = min(len(members), len(non_members), limit)
    sides = []
    for side, rows in (("members", members), ("non_members", non_members)):
        # Named after the first attack that was drawn for: its figures stay what they were.
        stream = Seeds(seed)[f"loss threshold/{side}", 0, ""]
        chosen = rows.take(torch.randperm(len(rows), generator=stream.torch())[:count])
        # Users of both sides differ: their numbers would tell who is a member.
        sides.append(replace(chosen, users=None))
    return Candidates(concatenate(sides), torch.arange(2 * count) < count)


def check_types(members: Rows, non_members: Rows) -> None:
    """Refuses sides of other types.

    Raises:
        DataError: If inputs or targets of members have another type than those of non-members.
    """
    types = [
        tuple(None if part is None else part.dtype for part in (rows.inputs, rows.targets))
        for rows in (members, non_members)
    ]
    if types[0] != types[1]:
        raise DataError(
            f"Expected members of types {types[0]} to have those of non-members, {types[1]}: what "
            "float16 can hold would tell who is a member. Convert data.train or data.test."
        )


def without(rows: Rows, public: Rows | None) -> Rows:
    """The rows whose inputs are not those of a public row: everybody knows these.

    Args:
        rows: Members or non-members.
        public: The public rows, or None where there are none.
    """
    secret = unknown(rows, public)
    return rows if len(secret) == len(rows) else rows.take(secret)


def unknown(rows: Rows, public: Rows | None) -> Tensor:
    """The numbers of the rows whose inputs are not those of a public row, rising."""
    if public is None:
        return torch.arange(len(rows))
    known = set(row_keys(public.inputs.to(rows.inputs.dtype)))
    secret = [number for number, key in enumerate(row_keys(rows.inputs)) if key not in known]
    return torch.tensor(secret, dtype=torch.long)


def row_keys(*columns: Tensor | None) -> list[bytes]:
    """A short digest of each row, equal where rows are equal to the bit."""
    given = [column.detach().cpu() for column in columns if column is not None]
    flat = [part.flatten(1) if part.ndim > 1 else part[:, None] for part in given]
    octets = [part.contiguous().view(torch.uint8).numpy() for part in flat]
    parts = zip(*octets, strict=True)
    return [hashlib.blake2b(b"".join(map(bytes, row)), digest_size=16).digest() for row in parts]


def scores_of(
    attack: MembershipAttack,
    target: Target,
    candidates: Candidates,
    *,
    seed: int,
    lend: Callable[[Rows], Callable[[int], ShadowModels]] | None = None,
) -> Scores:
    """What an attack says of candidates, which it sees in random order.

    Args:
        attack: The attack.
        target: What its observer saw and holds.
        candidates: The rows, and what is true, which the attack does not see.
        seed: Public seed of the attack's own choices.
        lend: From the candidates as the attack sees them, what trains shadow models on them.

    Returns:
        Its scores in the order of the candidates, NaN among them, shape `(candidates,)`.

    Raises:
        ValueError: If they are no real numbers, or not one for each candidate.
    """
    order = order_of(candidates, seed)
    shuffled = replace(candidates.rows.take(torch.from_numpy(order)), users=None)
    seen = target if lend is None else replace(target, shadows=lend(shuffled))
    # What an attack sets of the process does not reach what is made of its scores.
    with kept_settings():
        answered = as_numbers(attack, attack.score(seen, shuffled, seed=seed), len(order))
    scores = np.empty_like(answered)
    scores[order] = answered
    return scores


def random_order(
    rows: Rows, included: Tensor, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A random order of candidates, `(candidates,)`, the same for the same seed, rows and truth."""
    # Under all that is true and not under the seed alone: that one the attack knows, and could draw
    # the order again.
    told = f"{seed}/{digest([rows.to('cpu')])}/".encode()
    root = hashlib.sha256(told + included.cpu().numpy().tobytes()).digest()
    stream = derive(root, ("referee/order", 0, ""))
    return np.asarray(stream.numpy().permutation(len(included)), dtype=np.int64)


def order_of(candidates: Candidates, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which candidate stands where in the order that an attack saw; the referee's alone."""
    return _order(candidates, seed)


def _order(candidates: Candidates, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return random_order(candidates.rows, candidates.included, seed)


def as_numbers(attack: Attack, scores: ArrayLike, count: int) -> Scores:
    """The scores as float64; refuses what is not one real number for each candidate."""
    try:
        plain = scores.detach().cpu().double() if isinstance(scores, Tensor) else scores
        array = np.asarray(plain)
        if array.dtype.kind not in "biuf" or array.shape != (count,):
            raise ValueError(f"they have type {array.dtype} and shape {array.shape}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected the scores of {attack.name!r} to be real numbers, one for each of {count} "
            f"candidates, shape ({count},): {error}."
        ) from error
    # A copy: an attack may keep what it returned and write into it.
    return np.array(array, dtype=np.float64)


def rankable(scores: Scores) -> Scores:
    """Scores by which rows can be ordered: what is not a number is the worst one."""
    # A score of +inf is capped at the largest float, so that a threshold lies above all scores.
    largest = np.finfo(np.float64).max
    return np.nan_to_num(scores, nan=-np.inf, posinf=largest, neginf=-np.inf)


def membership_leakage(attack: Attack, scores: Scores, candidates: Candidates) -> Leakage:
    """How well scores tell members from non-members.

    Args:
        attack: Whose scores they are.
        scores: Shape `(candidates,)`; larger for "more likely a member".
        candidates: The rows, and who is a member.

    Returns:
        `auc`, `advantage`, `tpr_at_1%_fpr` and `tpr_at_0.1%_fpr` with 95% intervals, and the
        realised false positive rates. None where there are too few rows.
    """
    classes = notes_on_classes(candidates.rows, candidates.included)
    said = (*equal_rows(candidates), *classes, DECLARED)
    return sides_leakage(attack, scores, candidates.included, said)


def sides_leakage(
    attack: Attack, scores: Scores, included: Tensor, said: tuple[str, ...]
) -> Leakage:
    """The figures of `membership_leakage`, whatever the candidates are.

    Args:
        attack: Whose scores they are.
        scores: Shape `(candidates,)`; larger for "more likely a member".
        included: Whether each candidate is a member, boolean, of the same shape.
        said: Notes on the candidates.
    """
    order, members = rankable(scores), included.cpu().numpy()
    inside, outside = order[members], order[~members]
    metrics: dict[str, float | None] = {"auc": auc(inside, outside)}
    intervals = {"auc": auc_interval(inside, outside)}
    gain = advantage(inside, outside)
    metrics["advantage"] = None if gain is None else gain.value
    if gain is not None:
        intervals["advantage"] = gain.interval
    for name, rate in LOW_RATES:
        point = tpr_at_fpr(inside, outside, rate)
        metrics[f"tpr_at_{name}_fpr"] = None if point is None else point.tpr
        metrics[f"realised_fpr_at_{name}"] = None if point is None else point.fpr
        if point is not None:
            intervals[f"tpr_at_{name}_fpr"] = point.tpr_interval
    return Leakage(
        attack=attack.name,
        observer=attack.observer.name,
        metrics=metrics,
        intervals=intervals,
        members=len(inside),
        non_members=len(outside),
        notes=(*limit_notes(metrics), *unscored_notes(scores), *said),
        roc=low_rates(inside, outside),
    )


def limit_notes(metrics: dict[str, float | None]) -> tuple[str, ...]:
    """What the figures of one attack do not say, and those that could not be measured."""
    notes = ["this attack only, not evidence of safety"]
    for name, rate in LOW_RATES:
        if metrics[f"tpr_at_{name}_fpr"] is None:
            needed = round(FALSE_POSITIVES_NEEDED / rate)
            notes.append(
                f"TPR at {name} FPR is not resolvable: {needed:,} non-members are needed, more "
                "than were attacked"
            )
    return tuple(notes)


def unscored_notes(scores: Scores) -> tuple[str, ...]:
    """How many scores were no number, where any was."""
    unscored = int(np.isnan(scores).sum())
    if not unscored:
        return ()
    return (f"{unscored} scores were not a number and got the worst score",)


OUTSIDE_TOO = "non-members are equal to a member"
"""Ends the note that says how many rows are on both sides."""


def equal_rows(candidates: Candidates) -> tuple[str, ...]:
    """Says how many rows are equal: of both sides nobody tells them apart, of one side anybody."""
    members = candidates.included.tolist()
    keys = row_keys(candidates.rows.inputs, candidates.rows.targets)
    sides = [
        [key for key, member in zip(keys, members, strict=True) if member is side]
        for side in (True, False)
    ]
    inside = set(sides[0])
    equal = sum(key in inside for key in sides[1])
    notes = [f"{equal} of the {OUTSIDE_TOO}"] if equal else []
    for name, side in zip(("members", "non-members"), sides, strict=True):
        if again := len(side) - len(set(side)):
            notes.append(
                f"{again} of the {name} are equal to another of the {name}: that alone may tell "
                "them from others"
            )
    return tuple(notes)


def coin_leakage(
    attack: GuessesCoins,
    scores: Scores,
    canaries: Canaries,
    promised: tuple[PrivacyCurves, ...],
    *,
    seed: int,
) -> Leakage:
    """What the guesses that follow from scores prove about the coins of canaries.

    Args:
        attack: Says how many coins are guessed, and at which delta and confidence.
        scores: Shape `(canaries,)`; larger for "more likely in".
        canaries: The canaries and their coins.
        promised: What is promised to the attack's observer.
        seed: Public seed of the order in which canaries with equal scores are guessed.

    Returns:
        `epsilon_lower_bound` and its `ceiling`; `correct` of `guesses`; `f_dp_p_value` and
        `f_dp_rejected` (1 or 0), None where no curve is promised per example, add/remove;
        `gaussian_family_epsilon`, which is no lower bound in general; and the `confidence` and
        `delta` of the bounds.

    Source: Steinke, Nasr and Jagielski 2023, Algorithm 1 (arXiv:2305.08846); the test of the curve:
        Mahloujifar, Melis and Chaudhuri 2024 (arXiv:2410.22235).
    """
    correct = right_guesses(rankable(scores), canaries, attack.guesses, seed=seed)
    inside = int(canaries.included.sum())
    curves = _example_curves(promised)
    metrics = _coin_metrics(attack, len(canaries), correct, curves)
    proved = printed_down(metrics["epsilon_lower_bound"] or 0.0, 3)
    return Leakage(
        attack=attack.name,
        observer=attack.observer.name,
        metrics=metrics,
        members=inside,
        non_members=len(canaries) - inside,
        notes=(
            "this attack only, not evidence of safety",
            f"{correct} of {attack.guesses} guesses right: epsilon at least "
            f"{proved}; all right would show the ceiling, {metrics['ceiling']:.3g}",
            *_coin_notes(attack, curves),
            *unscored_notes(scores),
            BY_COIN,
        ),
    )


def _coin_metrics(
    attack: GuessesCoins, canaries: int, correct: int, promised: PrivacyCurves | None
) -> dict[str, float | None]:
    # The whole promised curve is tested at once (Mahloujifar et al. 2024), where there is one.
    counts = {"canaries": canaries, "guesses": attack.guesses}
    p_value = None
    if promised is not None:
        curve = f_dp.least_wrong(promised.promised)
        p_value = f_dp.p_value(curve, **counts, correct=correct)
    # Theorem 5.2 of Steinke et al. 2023, at one delta; it needs no promise.
    bound = epsilon_bound(
        **counts, correct=correct, delta=attack.delta, confidence=attack.confidence
    )
    gaussian = f_dp.gaussian_epsilon_bound(
        **counts, correct=correct, delta=attack.delta, confidence=attack.confidence
    )
    return {
        "epsilon_lower_bound": bound,
        "ceiling": ceiling(**counts, delta=attack.delta, confidence=attack.confidence),
        "correct": float(correct),
        "guesses": float(attack.guesses),
        "f_dp_p_value": p_value,
        "f_dp_rejected": None if p_value is None else float(p_value <= 1 - attack.confidence),
        "gaussian_family_epsilon": gaussian,
        "confidence": attack.confidence,
        "delta": attack.delta,
    }


def _coin_notes(attack: GuessesCoins, promised: PrivacyCurves | None) -> tuple[str, ...]:
    notes = [
        f"epsilon_lower_bound holds with confidence {attack.confidence:.6g} at delta "
        f"{attack.delta:g}, per example, add-remove; compare it with such guarantees only",
        "gaussian_family_epsilon supposes a Gaussian trade-off curve: not a lower bound of "
        "other runs, and not to be compared with a stated epsilon",
    ]
    if promised is None:
        notes.append("no curve is promised per example, add-remove: nothing to test by f-DP")
    return tuple(notes)


def _example_curves(promised: tuple[PrivacyCurves, ...]) -> PrivacyCurves | None:
    """The finite curves per example and add/remove, which is what a canary's coin decides."""
    for curves in promised:
        fits = curves.unit is Unit.EXAMPLE and curves.relation is ADD_REMOVE
        if fits and any(math.isfinite(bound) for _, bound in curves.promised):
            return curves
    return None


def check_canaries(attack: GuessesCoins, canaries: Canaries | None) -> Canaries:
    """The canaries of an attack.

    Raises:
        ValueError: If none were planted that it may guess, or fewer than it guesses.
    """
    if canaries is None:
        raise NotApplicableError(
            "Expected data with canaries; plant some with pt.data.with_canaries, train on "
            "that data, and hand the same data to audit. A trainer that makes some of its "
            "training rows public does not protect all canaries: give the data public rows.",
            Reason.NO_CANARIES,
        )
    if attack.guesses > len(canaries):
        raise ValueError(
            f"Expected guesses={attack.guesses} <= {len(canaries)}, the number of canaries."
        )
    return canaries


def nearness(made: Rows, candidates: Candidates) -> Scores:
    """Minus the distance of each candidate to the nearest of some made rows.

    What a reconstruction shows of its training rows lies nearer to them than to other rows of the
    same distribution.

    Args:
        made: What an attack takes for training rows; at least one.
        candidates: The rows.

    Returns:
        Euclidean distances times -1, in float64, shape `(candidates,)`; NaN where a made row holds
        such values.

    Raises:
        DataError: If the made rows have another shape, or there are none.
    """
    inputs = candidates.rows.inputs
    if len(made) == 0 or made.inputs.shape[1:] != inputs.shape[1:]:
        raise DataError(
            f"Expected reconstructed inputs of shape {tuple(made.inputs.shape)} to be at least one "
            f"row of shape {tuple(inputs.shape[1:])}."
        )
    here, there = (p.detach().cpu().double().reshape(len(p), -1) for p in (inputs, made.inputs))
    nearest: Scores = -torch.cdist(here, there).amin(dim=1).numpy()
    return nearest
