"""Auditing a trainer: what attacks learn from models of one trainer, over several targets.

One run gives the figure of this model. Here many models are trained on complementary halves of the
same rows. Some of them are attacked in turn, each with the models of the other pairs as shadows.
"""

import copy
import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from privtrain.attacks.attack import (
    GuessesCoins,
    Limited,
    MembershipAttack,
    NeedsShadows,
    Reconstruction,
    check_attacks,
    check_shadows,
    target_for,
)
from privtrain.attacks.scores import Scores
from privtrain.attacks.scoring.over_targets import auc_over_targets, tpr_over_targets
from privtrain.attacks.taxonomy import Described
from privtrain.core.abilities import Finished, Twinned
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.observers import PUBLIC, QUERIER
from privtrain.core.parameters import Counted, check_no_autocast
from privtrain.core.result import Leakage, Predictor
from privtrain.core.runtime import Runtimes
from privtrain.core.seeding import Seeds
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.task import ROWS, FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.core.transcript import Transcript
from privtrain.core.validate import check_count, check_follows, check_seed
from privtrain.data.federation import digest
from privtrain.report.progress import Report, progress_bar
from privtrain.runs.auditing import copied_predictor, copied_task, population_besides
from privtrain.runs.checks import check_data, check_device, check_kinds
from privtrain.runs.fitting import default_runtimes
from privtrain.runs.measuring import failure_of
from privtrain.runs.refereeing import (
    LIMIT,
    LOW_RATES,
    Candidates,
    limit_notes,
    order_of,
    rankable,
    row_keys,
    scores_of,
    unknown,
    unscored_notes,
)
from privtrain.runs.shadowing import reuses
from privtrain.runs.shadows import Design, Floats, Marks, complementary_halves, values_of

COINS = (
    "per target a fair coin decides whether a candidate is in, and exactly half of each party's "
    "rows are: the coins are not independent, and this bounds no epsilon"
)
"""Said beside the figures of a trainer."""

CHARGED = "models were trained on the candidates themselves and not published; nothing is charged"
"""Likewise."""


@kept_settings()
@recorded_gradients()
def audit_trainer(
    trainer: Trainer,
    task: Task,
    data: FederatedData,
    attacks: Iterable[MembershipAttack],
    *,
    targets: int = 9,
    shadows: int = 16,
    seed: int = 0,
    runtimes: Runtimes | None = None,
    device: str = "cpu",
    progress: Report | None = None,
) -> tuple[Leakage, ...]:
    """What membership attacks learn from models of a trainer: its figure, not that of one model.

    Models are trained in pairs, on complementary halves of the training rows, as many pairs as
    `targets`, and more where `shadows` asks for them. One model of a pair is a target: whether each
    row is in it is a coin. Its shadow models are those of the other pairs, so that it is no part of
    their design. No ledger is charged, nothing is published, and the result is private.

    Args:
        trainer: What is attacked. Of one that computes under cryptography, its plaintext twin is.
        task: What is learned.
        data: Its training rows are the candidates, but for rows that are public, too; of each party
            half of them are trained on. The other parts are not used. Where `public_rows` is
            stated, halves are sampled at its rate: state it as for the run that is meant.
        attacks: Membership attacks by the public or a querier; each is copied for every target.
        targets: How many models are attacked; at least 2.
        shadows: How many shadow models an attack may ask for; even. At least 4.
        seed: Public seed of the design, the models, the attacks' choices and the intervals.
        runtimes: Where parties run; None for this process, and real processes for a mesh.
        device: Where tensors are computed.
        progress: Called as `progress(done, total)` for models; None shows a bar on a terminal.

    Returns:
        One for each attack, in their order; one that failed has no metrics. Each metric is the mean
        of the targets' own figures, at thresholds of their own: `auc`, `tpr_at_1%_fpr` and
        `tpr_at_0.1%_fpr`, None where a target has too few non-members; their intervals are the
        cluster bootstrap's over records. `auc_deviation` is the standard deviation of the AUC over
        targets. `members` are those of a target; `queries` and `seconds` are of all targets, and
        without training.

    Raises:
        ValueError: If there are too few targets, `shadows` is odd, too small, or smaller than what
            an attack asks for, or an attack guesses coins of canaries or makes up rows.
        DataError: If the data hold canaries, a party has a single row, or no row is secret.
        UnsupportedError: If an attack reads more than the published model, the model was trained
            elsewhere, or the trainer keeps what it computed for other runs.

    Source: Carlini et al. 2022, section VI (arXiv:2112.03570), but for intervals and for targets
        that are outside of the shadows' design.
    """
    chosen = tuple(_checked_attack(attack, shadows) for attack in check_attacks(attacks))
    check_shadows(shadows)
    check_seed(seed)
    check_kinds(task, data, runtimes=runtimes, progress=progress)
    check_follows(Trainer, "pt.SGD()", trainer=trainer)
    if isinstance(trainer, Finished) or reuses(trainer):
        raise UnsupportedError(
            f"Expected trainer={trainer!r} to train models anew: one that was trained elsewhere, "
            "or that keeps what it computed for other runs, has no further targets. Use audit."
        )
    check_no_autocast()
    check_device(device)
    _check_rows(data)
    where = runtimes or default_runtimes()
    with progress_bar("models") as bar:
        trained = train_pairs(
            trainer, task, data, targets=targets, shadows=shadows, seed=seed,
            where=where, device=device, progress=progress or bar,
        )  # fmt: skip
    return tuple(judged(trained, attack, seed=seed) for attack in chosen)


@dataclass(frozen=True, eq=False)
class Trained:
    """Models on complementary halves of some rows. Holds the truth; never handed to an attack.

    Args:
        task: What they learned.
        rows: All candidates.
        targets: The targets: model 2k for the k-th of them.
        losses: Of every model on every candidate, float64, `(models, candidates)`.
        included: Whether a model was trained on a candidate, bool, likewise; models 2k and 2k+1
            are a pair.
        notes: How the models were trained.
        population: Rows that no model was trained on, and that are no candidates; None without any.
    """

    task: Task
    rows: Rows
    targets: tuple[Predictor, ...]
    losses: Floats
    included: Marks
    notes: tuple[str, ...] = ()
    population: Rows | None = None

    @property
    def truth(self) -> Marks:
        """Whether each candidate is a member of each target, `(targets, candidates)`."""
        return np.asarray(self.included[: 2 * len(self.targets) : 2])

    def shadows_of(self, target: int) -> list[int]:
        """The models that may attack a target, its pair left out."""
        pairs = len(self.included) // 2
        # From the next pair on: attacks that ask for a few models get others for each target.
        others = [(target + step) % pairs for step in range(1, pairs)]
        return [2 * pair + model for pair in others for model in (0, 1)]

    def only(self, numbers: Tensor) -> "Trained":
        """The same with some of the candidates alone."""
        kept = numbers.numpy()
        losses, included = self.losses[:, kept], self.included[:, kept]
        return replace(self, rows=self.rows.take(numbers), losses=losses, included=included)


def train_pairs(
    trainer: Trainer,
    task: Task,
    data: FederatedData,
    *,
    targets: int,
    shadows: int,
    seed: int,
    where: Runtimes,
    device: str,
    progress: Report,
) -> Trained:
    """Trains the models of `audit_trainer`, whose arguments these are."""
    check_count(2, targets=targets)
    parts = [len(data.train[name]) for name in data.parties]
    pairs = max(targets, shadows // 2 + 1)
    drawn = design_seed(data, seed)
    halves = complementary_halves(parts if data.split is ROWS else parts[:1], 2 * pairs, drawn)
    notes = list[str]()
    if isinstance(trainer, Twinned):
        trainer = trainer.plaintext_twin()
        notes.append("models are those of the trainer's plaintext twin")
    design = Design(trainer, task, data, halves, drawn, where, device)
    rows, losses, attacked = replace(data.pooled(), users=None), list[Tensor](), list[Predictor]()
    for number, predictor in enumerate(design.predictors(progress, notes)):
        losses.append(values_of(predictor, task, rows)[0])
        if number % 2 == 0 and len(attacked) < targets:
            attacked.append(predictor)
    table = torch.stack(losses).numpy()
    trained = Trained(
        *(task, rows, tuple(attacked), table, halves.numpy(), tuple(notes)),
        population=population_besides(data, rows),
    )
    return trained.only(unknown(rows, data.public))


def design_seed(data: FederatedData, seed: int) -> int:
    """What the halves and the models follow from: the same for the same seed and rows."""
    # Under the rows in their own order, too, which no attack sees: from the seed alone it would
    # draw the design again, and find the target's part in it.
    told = f"audit_trainer/{seed}/{digest(data.train.values())}".encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8], "little")


@dataclass(frozen=True, eq=False)
class Lent:
    """What shadow models say of candidates, in the order in which an attack sees them.

    Args:
        losses: `(models, candidates)`.
        included: Whether a model was trained on a candidate, likewise.
    """

    losses: Floats
    included: Marks

    def __call__(self, count: int) -> "Lent":
        """The first `count` of the models."""
        check_count(2, count=count)
        if count % 2 or count > len(self.losses):
            raise ValueError(
                f"Expected count={count} to be even and <= {len(self.losses)}, the number of "
                "shadow models of a target. Raise shadows of audit_trainer."
            )
        return Lent(self.losses[:count], self.included[:count])


def judged(trained: Trained, attack: MembershipAttack, *, seed: int) -> Leakage:
    """What one attack learns of all targets, as `audit_trainer` says it."""
    name, observer, started = attack.name, attack.observer.name, time.perf_counter()
    try:
        drawn = trained.only(_within(trained.truth, attack, seed))
        truth = drawn.truth
        if not (truth.any(axis=1) & ~truth.all(axis=1)).all():
            raise ValueError(
                f"Expected the limit of {attack.name!r} to leave members and non-members of every "
                "target. Raise it."
            )
        scored = list(_scored(drawn, attack, seed))
        leakage = _leakage(attack, np.stack([scores for scores, _ in scored]), drawn, seed)
    except OWN_ERRORS as error:  # an own attack may raise anything
        return Leakage(attack=name, observer=observer, metrics={}, failure=failure_of(error))
    about = attack.about if isinstance(attack, Described) else None
    return replace(
        leakage,
        unit=None if about is None else about.unit,
        relation=None if about is None else about.relation,
        seconds=time.perf_counter() - started,
        queries=sum(queries for _, queries in scored),
    )


def _within(truth: Marks, attack: MembershipAttack, seed: int) -> Tensor:
    """Which candidates are attacked: the same of all targets, within the limit on either side."""
    count = truth.shape[1]
    order = np.asarray(Seeds(seed)["candidates of targets", 0, ""].numpy().permutation(count))
    inside = np.cumsum(truth[:, order], axis=1)
    larger = np.maximum(inside, np.arange(1, count + 1) - inside).max(axis=0)
    limit = attack.limit if isinstance(attack, Limited) else LIMIT
    return torch.from_numpy(np.sort(order[: int((larger <= limit).sum())]))


def _scored(trained: Trained, attack: MembershipAttack, seed: int) -> Iterator[tuple[Scores, int]]:
    """An attack's scores of each target, in the order of the candidates, and its queries."""
    for number, (predictor, members) in enumerate(zip(trained.targets, trained.truth, strict=True)):
        candidates = Candidates(trained.rows, torch.from_numpy(members.copy()))
        models, order = trained.shadows_of(number), order_of(candidates, seed)
        # Copies in the attack's order: nothing leads from them to the referee's.
        lent = Lent(trained.losses[models][:, order], trained.included[models][:, order])
        for array in (lent.losses, lent.included):
            array.setflags(write=False)
        asked = Counted(copied_predictor(predictor))
        seen = target_for(
            attack.observer,
            transcript=Transcript(),
            predictor=asked,
            task=copied_task(trained.task),
        )
        seen = replace(seen, population=trained.population)
        # A copy: what it remembers of one target's shadows is the truth about the next targets.
        alone = copy.deepcopy(attack)
        scores = scores_of(alone, seen, candidates, seed=seed, lend=_Lending(lent))
        yield scores, asked.rows


@dataclass(frozen=True)
class _Lending:
    """Lends what was made, whatever the candidates."""

    lent: Lent

    def __call__(self, candidates: Rows) -> Lent:
        return self.lent


def _leakage(attack: MembershipAttack, scores: Scores, trained: Trained, seed: int) -> Leakage:
    """The figures over targets, of scores `(targets, candidates)`."""
    values, truth = rankable(scores), trained.truth
    area = auc_over_targets(values, truth, seed=seed)
    metrics: dict[str, float | None] = {"auc": area.value}
    intervals = {"auc": area.interval}
    for name, rate in LOW_RATES:
        point = tpr_over_targets(values, truth, rate, seed=seed, spared=1)
        metrics[f"tpr_at_{name}_fpr"] = None if point is None else point.value
        if point is not None:
            intervals[f"tpr_at_{name}_fpr"] = point.interval
    metrics["auc_deviation"] = float(area.each.std(ddof=1))
    keys = row_keys(trained.rows.inputs, trained.rows.targets)
    members = round(float(truth.sum(axis=1).mean()))
    targets, candidates = truth.shape
    twice = len(keys) - len(set(keys))
    return Leakage(
        attack=attack.name,
        observer=attack.observer.name,
        metrics=metrics,
        intervals=intervals,
        members=members,
        non_members=candidates - members,
        notes=(
            f"figure of the trainer: mean over {targets} targets; intervals are those of other "
            "records and these targets",
            *limit_notes(metrics),
            *unscored_notes(scores),
            *((f"{twice} of the candidates are equal to another one",) if twice else ()),
            COINS,
            CHARGED,
            *trained.notes,
        ),
    )


def _checked_attack(attack: object, shadows: int) -> MembershipAttack:
    """The attack; refuses what is no membership attack on rows by the published model alone."""
    if isinstance(attack, GuessesCoins | Reconstruction) or not isinstance(
        attack, MembershipAttack
    ):
        raise ValueError(
            f"Expected attacks to score rows, such as pt.RMIA(); {attack!r} guesses coins of "
            "canaries, or makes up rows. Use audit(fit(...), ...) for it."
        )
    if attack.needs_messages or attack.observer not in (PUBLIC, QUERIER):
        raise UnsupportedError(
            f"{attack.name!r} reads the view of {attack.observer.name!r}, and targets of a trainer "
            "leave no messages: they are trained together. Use audit(fit(...), ...) for it."
        )
    if isinstance(attack, NeedsShadows) and attack.shadows > shadows:
        raise ValueError(
            f"Expected shadows={shadows} >= {attack.shadows}, which {attack.name!r} asks for."
        )
    return attack


def _check_rows(data: FederatedData) -> None:
    """Refuses rows of which no halves can be candidates, before anything is trained."""
    check_data(data)
    if data.canaries is not None:
        raise DataError(
            f"Expected data without its {len(data.canaries)} canaries: they are unlike other rows."
        )
    few = [name for name in data.parties if len(data.train[name]) < 2]
    if few:
        raise DataError(
            f"Expected every party to have two training rows at least; {few[0]!r} has fewer, and "
            "half of them would be none. Use fewer parties."
        )
    if not len(unknown(data.pooled(), data.public)):
        raise DataError("Expected data to have training rows that are not public, too.")
