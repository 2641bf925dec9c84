"""Auditing: what an attack learns from a run's view of one observer."""

import copy
from dataclasses import replace

import torch

from privtrain.attacks.attack import (
    Attack,
    GuessesCoins,
    Reconstruction,
    check_attacks,
    target_for,
)
from privtrain.core.errors import DataError
from privtrain.core.observers import PARTICIPANT, Observer, check_observer
from privtrain.core.parties import is_role
from privtrain.core.result import Leakage, Members, Predictor, Target, TrainResult
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.task import ROWS, Canaries, FederatedData, Rows, Task, concatenate
from privtrain.core.transcript import Transcript, View
from privtrain.core.validate import check_is
from privtrain.data.canaries import canaries_besides, planted_in
from privtrain.runs.refereeing import (
    Candidates,
    check_canaries,
    coin_leakage,
    drawn,
    membership_leakage,
    nearness,
    scores_of,
    without,
)
from privtrain.runs.shadowing import Kept, shadowing


def audit(
    result: TrainResult, attack: Attack, task: Task, data: FederatedData, *, seed: int = 0
) -> Leakage:
    """Lets an attack try what its observer can learn from a training run.

    Args:
        result: What training gave.
        attack: The attack; it sees its own observer's view and nothing else.
        task: What was learned.
        data: The rows that were trained on: training rows that the run really used are members,
            test rows are not. Training rows that it never drew are left out: they are no
            members, and as non-members they would bring along whose rows they are. Canaries are
            candidates of attacks that guess coins, and no members: they are unlike the test rows.
            What a participant or a member of a coalition holds itself is no secret to guess, and
            neither is a public row: left out.
        seed: Public seed of the draw of candidates and of the attack's own choices.

    Returns:
        What the attack learned. It is no evidence of safety against another one. Where it is not
        known which rows were used, its notes say so.

    Raises:
        ValueError: If nobody is called as the attack's observer is, all rows are its own, no row of
            anybody else was used, there are fewer canaries than guesses, messages that the attack
            reads were not kept, or it does not give one number for each candidate.
        DataError: If the run was trained on other data.
    """
    return audited(result, attack, task, data, seed=seed, kept=Kept())


@kept_settings()
@recorded_gradients()
def audited(
    result: TrainResult, attack: Attack, task: Task, data: FederatedData, *, seed: int, kept: Kept
) -> Leakage:
    """`audit`, with shadow models that several attacks on a run share."""
    (attack,) = check_attacks([attack])
    observer, transcript = attack.observer, result.transcript
    _check_known(observer, transcript, data)
    own = _own_parties(observer, transcript, data)
    # Copies: an attack is a user's code, and rows and model are used again.
    # `target_for` cuts the transcript down to the observer's view: an attack never sees more.
    target = target_for(
        observer,
        transcript=transcript,
        predictor=_copy_of(result.predictor),
        task=task,
        own={name: _copied(data.train[name]) for name in sorted(own)},
        promised=result.statement.curves,
    )
    if attack.needs_messages:
        target = replace(target, view=_copied_view(target.view))
    _check_messages(attack, target)
    said = list[str]()
    if isinstance(attack, GuessesCoins):
        canaries = check_canaries(attack, protected_canaries(result, data, own))
        by_coin = Candidates(canaries.rows, canaries.included)
        scores = scores_of(attack, target, by_coin, seed=seed)
        leakage = coin_leakage(attack, scores, canaries, target.promised, seed=seed)
    else:
        candidates = drawn(*declared(result, data, observer), attack, seed=seed)
        if isinstance(attack, Reconstruction):
            made = attack.rows(target, seed=seed)
            check_is(Rows, "Rows(inputs, targets)", **{f"rows() of {attack.name!r}": made})
            scores = nearness(made, candidates)
        else:
            lend = shadowing(result, task, data, seed=seed, kept=kept, said=said)
            scores = scores_of(attack, target, candidates, seed=seed, lend=lend)
        leakage = membership_leakage(attack, scores, candidates)
    if result.members is not None and result.members.doubt:
        said.append(f"members are all rows that may have been used: {result.members.doubt}")
    return replace(leakage, notes=(*leakage.notes, *said))


def declared(result: TrainResult, data: FederatedData, observer: Observer) -> tuple[Rows, Rows]:
    """The members and non-members among which an observer's candidates are drawn.

    Args:
        result: What training gave.
        data: The rows that were trained on.
        observer: Whose own rows are no candidates.

    Returns:
        The rows that the run used and the test rows, both without those whose inputs are public.

    Raises:
        ValueError: If all rows are the observer's own, or no row of anybody else was used.
        DataError: If the run was trained on other data.
    """
    own = _own_parties(observer, result.transcript, data)
    members = _used_rows(result.members, data, own, observer)
    return without(members, data.public), without(data.test, data.public)


def protected_canaries(
    result: TrainResult, data: FederatedData, own: frozenset[str]
) -> Canaries | None:
    """The canaries whose coins a run protects from parties that know their own.

    Args:
        result: What training gave.
        data: The rows that were trained on.
        own: The parties.

    Returns:
        The canaries, also those that were never drawn: their coin is what the guarantee is about.
        None where there are none, or training made some rows public, and perhaps canaries.
    """
    if result.members is not None and result.members.made_public:
        return None
    return canaries_besides(data, own)


def _copied_view(view: View) -> View:
    """A view whose tensors an attack may write into."""
    messages = (
        entry if entry.payload is None else replace(entry, payload=entry.payload.clone())
        for entry in view.messages
    )
    return replace(view, messages=tuple(messages))


def _check_messages(attack: Attack, target: Target) -> None:
    """Refuses an attack that reads tensors of messages where none were kept."""
    lacking = any(message.payload is None for message in target.view.messages)
    if attack.needs_messages and lacking:
        raise ValueError(
            f"Expected kept payloads, which {attack.name!r} reads: use fit(..., "
            "keep_payloads=True)."
        )


def _copied(rows: Rows) -> Rows:
    return rows.take(torch.arange(len(rows), device=rows.inputs.device))


def _copy_of(predictor: Predictor) -> Predictor:
    """A copy: what an attack writes into it must not reach the next attack, nor who trained it."""
    try:
        return copy.deepcopy(predictor)
    except Exception:  # an own predictor may hold what cannot be copied, such as a connection
        return predictor


def _check_known(observer: Observer, transcript: Transcript, data: FederatedData) -> None:
    """Refuses an observer that is nobody: it would see what everybody sees, and learn little."""
    if not observer.corrupted and not is_role(observer.name):
        raise ValueError(
            f"Expected attack.observer={observer.name!r} to be a role, such as public, participant "
            f"or aggregator. A party is coalition({{{observer.name!r}}})."
        )
    present = {name for entry in transcript.entries for name in (entry.sender, entry.receiver)}
    check_observer(observer, sorted({*data.parties, *present} if observer.corrupted else ()))


def _own_parties(observer: Observer, transcript: Transcript, data: FederatedData) -> frozenset[str]:
    """The parties whose rows the observer holds itself, and so need not guess."""
    # Of columns, everybody holds a part of every row.
    if data.split is not ROWS:
        return frozenset()
    own = frozenset(transcript.view(observer).names).intersection(data.parties)
    # Who only sent, as to a curator, is a participant, too; one of them stands for all.
    return own or frozenset(data.parties[:1] if observer == PARTICIPANT else ())


def _used_rows(
    members: Members | None, data: FederatedData, own: frozenset[str], observer: Observer
) -> Rows:
    """The rows that training used, without canaries and without those of some parties."""
    if data.split is not ROWS:
        marks = None if members is None else next(iter(members.rows.values()), None)
        return _marked(data.pooled(), marks, "all parties")
    used = data.parties if members is None else [p for p in data.parties if p in members.rows]
    planted, parts = planted_in(data), []
    # Of very many parties, only those that took part are loaded.
    for name in used:
        if name not in own:
            marks = None if members is None else members.rows[name]
            rows = _marked(data.train[name], marks, name, planted.get(name, 0))
            parts += [rows] if len(rows) else []
    if not parts:
        mine = ", ".join(sorted(own.intersection(used)))
        why = f"all rows that were used are those of {mine} itself" if mine else "none was used"
        raise ValueError(
            f"Expected attack.observer={observer.name!r} to have training rows to guess: {why}. "
            "Use data of more parties, or train for longer."
        )
    return concatenate(parts)


def _marked(rows: Rows, marks: torch.Tensor | None, whose: str, planted: int = 0) -> Rows:
    """The marked rows, without the last ones, which were planted."""
    if marks is None:
        marks = torch.ones(len(rows), dtype=torch.bool)
    if marks.shape != (len(rows),):
        raise DataError(
            f"Expected data to be what was trained on: {whose} held {len(marks)} rows then, and "
            f"{len(rows)} in data."
        )
    return rows.take(marks[: len(rows) - planted].nonzero().flatten())
