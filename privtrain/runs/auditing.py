"""Auditing: what an attack learns from a run's view of one observer."""

from collections import Counter

import torch

from privtrain.attacks.attack import Attack, target_for
from privtrain.core.observers import PARTICIPANT, Observer, check_observer
from privtrain.core.parties import is_role
from privtrain.core.result import Leakage, TrainResult
from privtrain.core.task import ROWS, FederatedData, Rows, Task, concatenate
from privtrain.core.transcript import Transcript
from privtrain.data.canaries import canaries_besides, without_canaries


def audit(
    result: TrainResult, attack: Attack, task: Task, data: FederatedData, *, seed: int = 0
) -> Leakage:
    """Lets an attack try what its observer can learn from a training run.

    Args:
        result: What training gave.
        attack: The attack; it sees its own observer's view and nothing else.
        task: What was learned.
        data: The rows: training rows are members, test rows are not. Canaries that were planted
            in them are handed on, and are no members: they are unlike the test rows. What a
            participant or a member of a coalition holds itself is no secret to guess: left out.
        seed: Public seed of the attack's own choices.

    Returns:
        What the attack learned. It is no evidence of safety against another one.

    Raises:
        ValueError: If nobody is called as the attack's observer is, or all rows are its own.
    """
    observer, transcript = attack.observer, result.transcript
    _check_known(observer, transcript, data)
    own = _own_parties(observer, transcript, data)
    members = without_canaries(data) if result.members is None else result.members
    # `target_for` cuts the transcript down to the observer's view: an attack never sees more.
    target = target_for(
        observer,
        transcript=transcript,
        predictor=result.predictor,
        task=task,
        members=_without(members, own, data, observer),
        non_members=data.test,
        # Where training made some of its rows public, canaries may be among them: not protected.
        canaries=canaries_besides(data, own) if result.members is None else None,
        promised=result.statement.curves,
    )
    return attack.run(target, seed=seed)


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


def _without(rows: Rows, own: frozenset[str], data: FederatedData, observer: Observer) -> Rows:
    """Rows without as many equal ones as some parties hold."""
    if not own:
        return rows
    held = Counter(_contents(concatenate([data.train[name] for name in sorted(own)])))
    kept = []
    for number, content in enumerate(_contents(rows)):
        if held[content] > 0:
            held[content] -= 1
        else:
            kept.append(number)
    if not kept:
        raise ValueError(
            f"Expected attack.observer={observer.name!r} to have rows to guess: all training rows "
            f"are those of {', '.join(sorted(own))} itself. Use data of more parties."
        )
    return rows.take(torch.tensor(kept))


def _contents(rows: Rows) -> list[bytes]:
    """What each row consists of."""
    columns = [rows.inputs, *(() if rows.targets is None else (rows.targets,))]
    # As bytes: numpy knows no bfloat16, and a NaN equals itself.
    plain = [
        column.reshape(len(rows), -1).contiguous().cpu().view(torch.uint8).numpy()
        for column in columns
    ]
    return [b"".join(part[number].tobytes() for part in plain) for number in range(len(rows))]
