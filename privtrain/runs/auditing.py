"""Auditing: what an attack learns from a run's view of one observer."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from privtrain.attacks.attack import (
    Attack,
    ClientAttack,
    GuessesCoins,
    ReadsMessages,
    Reconstruction,
    check_attacks,
    target_for,
)
from privtrain.attacks.taxonomy import Described, may_observe
from privtrain.core.errors import DataError, NotApplicableError, Reason
from privtrain.core.models import new_module
from privtrain.core.observers import (
    AGGREGATOR,
    CURATOR,
    DEALER,
    PARTICIPANT,
    PUBLIC,
    Observer,
    check_observer,
)
from privtrain.core.parameters import Counted
from privtrain.core.parties import CURATOR_NAME, is_role
from privtrain.core.payloads import PayloadStore, Wanted
from privtrain.core.result import Leakage, Members, Predictor, Target, TrainResult
from privtrain.core.seeding import SEEDED, EntropyKind
from privtrain.core.settings import kept_settings, recorded_gradients
from privtrain.core.statement import Unit
from privtrain.core.task import ROWS, Canaries, FederatedData, Rows, Task, concatenate
from privtrain.core.transcript import Transcript, View
from privtrain.core.validate import check_is
from privtrain.data.canaries import canaries_besides, planted_in
from privtrain.runs.candidate_clients import clients_leakage, drawn_clients
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
from privtrain.runs.shadowing import Kept, shadowing, shadows_kept


def audit(
    result: TrainResult,
    attack: Attack,
    task: Task,
    data: FederatedData,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    workers: int = 1,
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
            neither is a public row: left out. Candidates of an attack on clients are the parties.
        seed: Public seed of the draw of candidates and of the attack's own choices.
        folder: Where it is kept what shadow models say, for other attacks and calls that were
            interrupted; never publish it. That of a run may be named. None keeps nothing.
        workers: Processes that train shadow models which cannot be trained at the same time.

    Returns:
        What the attack learned. It is no evidence of safety against another one. Where it is not
        known which rows were used, its notes say so.

    Raises:
        ValueError: If nobody is called as the attack's observer is, all rows are its own, no row of
            anybody else was used, there are fewer canaries than guesses, messages that the attack
            reads were not kept, or it does not give one number for each candidate.
        DataError: If the run was trained on other data.
    """
    with shadows_kept(folder, workers):
        return audited(result, attack, task, data, seed=seed, kept=Kept())


@kept_settings()
@recorded_gradients()
def audited(
    result: TrainResult, attack: Attack, task: Task, data: FederatedData, *, seed: int, kept: Kept
) -> Leakage:
    """`audit`, with shadow models that several attacks on a run share."""
    (attack,) = check_attacks([attack])
    started = time.perf_counter()
    observer = attack.observer
    target, asked = target_of(result, attack, task, data)
    said = list[str]()
    if isinstance(attack, GuessesCoins):
        canaries = check_canaries(attack, protected_canaries(result, data, frozenset(target.own)))
        by_coin = Candidates(canaries.rows, canaries.included)
        scores = scores_of(attack, target, by_coin, seed=seed)
        leakage = coin_leakage(attack, scores, canaries, target.promised, seed=seed)
    elif isinstance(attack, ClientAttack):
        own = frozenset(target.own)
        clients = drawn_clients(result.members, data, own, attack, seed=seed)
        lend = shadowing(result, target.task, data, seed=seed, kept=kept, said=said)
        leakage = clients_leakage(attack, target, clients, seed=seed, lend=lend)
    else:
        candidates = drawn(*declared(result, data, observer), attack, seed=seed)
        target = replace(target, population=population_besides(data, candidates.rows))
        if isinstance(attack, Reconstruction):
            made = attack.rows(target, seed=seed)
            check_is(Rows, "Rows(inputs, targets)", **{f"rows() of {attack.name!r}": made})
            scores = nearness(made, candidates)
        else:
            lend = shadowing(result, target.task, data, seed=seed, kept=kept, said=said)
            scores = scores_of(attack, target, candidates, seed=seed, lend=lend)
        leakage = membership_leakage(attack, scores, candidates)
    if result.members is not None and result.members.doubt:
        said.append(f"members are all rows that may have been used: {result.members.doubt}")
    about = attack.about if isinstance(attack, Described) else None
    return replace(
        leakage,
        notes=(*leakage.notes, *said),
        unit=_unit(attack),
        relation=None if about is None else about.relation,
        seconds=time.perf_counter() - started,
        queries=asked.rows,
    )


def target_of(
    result: TrainResult, attack: Attack, task: Task, data: FederatedData
) -> tuple[Target, Counted]:
    """What an attack on a run receives, without shadow models.

    Args:
        result: What training gave.
        attack: The attack.
        task: What was learned.
        data: The rows that were trained on.

    Returns:
        The target, which holds copies, and its predictor, which counts.

    Raises:
        ValueError: As `audit` does.
    """
    observer, transcript = attack.observer, result.transcript
    _check_known(observer, transcript, data)
    _check_placed(attack, transcript, data)
    own = _own_parties(observer, transcript, data)
    # Copies: an attack is a user's code, and rows and model are used again.
    # `target_for` cuts the transcript down to the observer's view: an attack never sees more.
    asked = Counted(copied_predictor(result.predictor))
    target = target_for(
        observer,
        transcript=transcript,
        predictor=asked,
        task=copied_task(task),
        own={name: _copied(data.train[name]) for name in sorted(own)},
        promised=result.statement.curves,
    )
    return replace(target, view=_readable(target.view, attack)), asked


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


def population_besides(data: FederatedData, candidates: Rows) -> Rows | None:
    """Rows of the same table that no run was trained on, and that are no candidates.

    Args:
        data: The rows that were trained on.
        candidates: Whose membership is guessed.

    Returns:
        The validation rows, or the test rows where there are none, without those whose inputs are a
        candidate's or public; None if none is left.
    """
    source = data.test if data.validation is None else data.validation
    # Of either side: one row that is a candidate's and here, too, would be known for no member. And
    # what is public may be what a student was trained on.
    left = without(without(source, data.public), candidates)
    return _copied(replace(left, users=None)) if len(left) else None


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


def _readable(view: View, attack: Attack) -> View:
    """A view with the tensors that an attack reads, and no others.

    Raises:
        NotApplicableError: If there are none of them, or they were not kept.
    """
    kinds = attack.kinds if isinstance(attack, ReadsMessages) else ()
    read = [attack.needs_messages and (not kinds or entry.kind in kinds) for entry in view.messages]
    if kinds and attack.needs_messages and not any(read):
        raise NotApplicableError(
            f"Expected messages of kinds={kinds}, which {attack.name!r} reads, to be in the view "
            f"of observer={view.observer.name!r}; those there are {view.kinds}.",
            Reason.NO_MESSAGES,
        )
    pairs = list(zip(view.messages, read, strict=True))
    if any(wanted and entry.kept is None for entry, wanted in pairs):
        raise NotApplicableError(
            f"Expected kept payloads, which {attack.name!r} reads: use fit(..., "
            "keep_payloads=True), or this attack in compare. Both keep them in seeded simulations "
            "only, not of what parties in other processes send each other, and not of what was "
            "sent before a checkpoint from which a run goes on.",
            Reason.NO_TENSORS,
        )
    # In a store of its own: a file holds what others saw, and a tensor is that of the next attack.
    own = PayloadStore(())
    kept = [own.keep(e.kept.clone()) if read and e.kept is not None else None for e, read in pairs]
    messages = zip(view.messages, kept, strict=True)
    return replace(view, messages=tuple(replace(entry, kept=copy) for entry, copy in messages))


def store_for(
    attacks: Sequence[Attack], entropy: EntropyKind, folder: Path | None, *, everything: bool
) -> PayloadStore | None:
    """Keeps the tensors of messages that attacks read, and no others.

    Args:
        attacks: What will be tried.
        entropy: Where the run's noise comes from; only simulations keep tensors.
        folder: Where tensors lie that do not fit into memory; None for temporary files.
        everything: Whether the messages of everybody are kept.

    Returns:
        What the run keeps them in; None where it keeps none.
    """
    wanted = tuple(
        Wanted(attack.observer, attack.kinds if isinstance(attack, ReadsMessages) else ())
        for attack in attacks
        if attack.needs_messages
    )
    if everything:
        wanted = (Wanted(None),)
    return PayloadStore(wanted, folder=folder) if wanted and entropy is SEEDED else None


def copied_task(task: Task) -> Task:
    """A task whose modules are not those of the runs: an attack may train them, on members."""
    model = new_module(task.model) if isinstance(task.model, nn.Module) else task.model
    loss = copy.deepcopy(task.loss) if isinstance(task.loss, nn.Module) else task.loss
    return replace(task, model=model, loss=loss)


def _copied(rows: Rows) -> Rows:
    return rows.take(torch.arange(len(rows), device=rows.inputs.device))


def copied_predictor(predictor: Predictor) -> Predictor:
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


def _check_placed(attack: Attack, transcript: Transcript, data: FederatedData) -> None:
    """Refuses an observer that has no place in this run, or nothing to guess there."""
    observer, names = attack.observer, transcript.view(attack.observer).names
    if isinstance(attack, Described) and not may_observe(attack.about, observer):
        can = ", ".join(attack.about.observers)
        raise NotApplicableError(
            f"Expected observer={observer.name!r} of {attack.name!r} to be one of {can}: it reads "
            "what nobody else sees.",
            Reason.OTHER_VIEW,
        )
    present = {name for e in transcript.entries for name in (e.sender, e.receiver)}
    present |= {setup.party for setup in transcript.setups}
    if observer in (AGGREGATOR, CURATOR, DEALER) and present.isdisjoint(names):
        raise NotApplicableError(
            f"Expected attack.observer={observer.name!r} to take part in the run: nobody did as "
            f"such.{_otherwise(attack)}",
            Reason.NOBODY,
        )
    held = data.split is not ROWS and (observer == PARTICIPANT or set(names) & set(data.parties))
    if held and isinstance(attack, Described):
        raise NotApplicableError(
            f"Expected attack.observer={observer.name!r} to have training rows to guess: parties "
            f"hold columns, and it has a part of every row.{_otherwise(attack)}",
            Reason.KNOWS_ALL,
        )
    # A coalition with the curator, too.
    if CURATOR_NAME in names and isinstance(attack, Described):
        raise NotApplicableError(
            f"Expected attack.observer={observer.name!r} to have training rows to guess: it pools "
            f"all of them.{_otherwise(attack)}",
            Reason.KNOWS_ALL,
        )


def _unit(attack: Attack) -> Unit | None:
    """Whose membership an attack guesses; None where an own attack on rows does not say."""
    if isinstance(attack, ClientAttack):
        return Unit.CLIENT
    return attack.about.unit if isinstance(attack, Described) else None


def _otherwise(attack: Attack) -> str:
    """From where an attack can be tried instead; empty where that is not known."""
    may = isinstance(attack, Described) and may_observe(attack.about, PUBLIC)
    return " Use pt.PUBLIC, which sees what is published." if may else ""


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
        raise NotApplicableError(
            f"Expected attack.observer={observer.name!r} to have training rows to guess: {why}. "
            "Use data of more parties, or train for longer.",
            Reason.KNOWS_ALL,
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
