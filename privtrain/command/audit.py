"""The audit command: attacks on a finished comparison, or on one model."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from privtrain.command.arguments import Number, Place, RowsArgs, Settings, Word, Words
from privtrain.command.tokens import ATTACK_TOKENS, check_names
from privtrain.core.errors import DataError
from privtrain.core.folders import locked_folder
from privtrain.core.keys import PRIVATE, has_key
from privtrain.core.validate import check_count, made_folder

if TYPE_CHECKING:
    from privtrain.attacks.attack import Attack
    from privtrain.command.study_file import Study
    from privtrain.core.result import Comparison

ROWS = "rows"
"""Folder of a comparison's rows."""

ALL, COALITION = "all", "coalition"
"""Words of `--observers`, beside roles and lists of parties."""

SHADOWS_KEPT = "Finished shadow models are kept: the same command goes on from them."


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Attack the runs of a finished comparison, or one model; only shadow models are trained.

    A comparison keeps what this needs by privtrain compare --keep-for-audit.

    Example: privtrain audit runs/digits --attacks rmia lira --observers all --shadows 16
    """

    folder: tyro.conf.Positional[Place] = None
    """Folder of a finished comparison."""
    attacks: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"{', '.join(ATTACK_TOKENS)} or my_file.py:MyAttack."),
    ] = ("loss_threshold",)
    observers: Words = ()
    """Who attacks: all, or some of public, participant, aggregator, curator, dealer, querier,
    coalition, '[party-0,party-1]' (default: each attack's own)."""
    shadows: Number = None
    """How many shadow models, of attacks that train some (default: each attack's own)."""
    settings: Settings = ()
    """Change a setting of an attack: rmia.online=False."""
    out: Place = None
    """New folder for the comparison with these attacks: its table, page and files."""
    json: bool = False
    """Print a list of figures as JSON, and nothing else."""
    model: Place = None
    """A model in place of a comparison: a folder of privtrain fit or pt.save_model, or a file of
    weights that torch.save wrote."""
    factory: Word = None
    """my_model.py:make, which makes the model of such weights. It is run."""
    non_members: Place = None
    """Rows that the model was not trained on, a file as --data; all rows of --data are then said to
    be members (default: its test rows, and its training rows)."""
    where: Annotated[RowsArgs, tyro.conf.arg(name="")] = field(default_factory=RowsArgs)
    threads: int = 1
    """Threads of torch."""


def audit_command(args: Audit) -> int:
    """Prints what each attack learned from each place, and writes it where asked.

    Returns:
        The exit code: 0; 1 where an attack failed that applies.

    Raises:
        ValueError: If an argument is wrong.
        DataError: If there is no comparison or model, or somebody works in its folder.
    """
    check_count(threads=args.threads)
    check_names(attacks=args.attacks)
    if args.out is not None and (args.out / "comparison.json").exists():
        raise DataError(f"Expected out={str(args.out)!r} to hold no comparison. Choose another.")
    if args.out is not None:
        _check_publishable(args.out)
    if args.folder is not None and args.model is None:
        _check_of_comparison(args)
        made = _of_comparison(args, args.folder)
    elif args.model is not None and args.folder is None:
        made = _of_model(args, args.model)
    else:
        raise ValueError(
            "Expected either the folder of a comparison, as privtrain audit runs/digits, or "
            "--model with --data."
        )
    from privtrain.report.attack_table import attack_records
    from privtrain.report.files import save
    from privtrain.report.table import attacks_text

    if args.out is not None:
        save(made, made_folder(args.out, "out"))
    if args.json:
        print(json.dumps(attack_records(made), indent=2))
    else:
        print(attacks_text(made))
        for line in _said(made, args):
            print(line)
    return 1 if any(row.failures for row in made.rows) else 0


def _check_publishable(out: Path) -> None:
    """Refuses a place among what a comparison keeps for its owner alone."""
    from privtrain.runs.marks import COMPARISON

    place = out.resolve()
    for inside in (place, *place.parents):
        above = inside.parent
        known = any((above / name).exists() for name in ("comparison.json", "study.toml"))
        if (
            (inside / COMPARISON).exists()
            or (inside.name in (ROWS, PRIVATE) and known)
            or (inside.name == PRIVATE and has_key(above))
        ):
            raise DataError(
                f"Expected out={str(out)!r} to lie outside {inside}, where a comparison keeps what "
                "is never published. Choose a folder of its own."
            )


def _check_of_comparison(args: Audit) -> None:
    """Refuses what a comparison says itself: its study names data and model."""
    plain = RowsArgs()
    given = [
        each.name
        for each in fields(RowsArgs)
        if getattr(args.where, each.name) != getattr(plain, each.name)
    ]
    given += [n for n in ("factory", "non_members") if getattr(args, n) is not None]
    if given:
        raise ValueError(
            f"Expected no --{given[0].replace('_', '-')} with the comparison in {args.folder}, "
            "whose study says what was trained. Give it with --model."
        )


def _of_comparison(args: Audit, folder: Path) -> "Comparison":
    study_file, rows = folder / "study.toml", folder / ROWS
    if not (folder / "comparison.json").exists():
        raise DataError(
            f"There is no finished comparison in folder={str(folder)!r}: no comparison.json. Give "
            "the --out of a privtrain compare that came to its end; --resume goes on with another."
        )
    if not study_file.exists():
        raise DataError(
            f"There is no study.toml in folder={str(folder)!r}, by which data and trainers are "
            "found. A comparison that was made in Python is audited there: pt.audit_comparison."
        )
    if not any(rows.glob("*/evidence/evidence.json")):
        raise DataError(
            f"Nothing in {rows} was kept for audits. Train its rows again, and keep it, with: "
            f"{_keeping(folder)}"
        )
    import torch

    from privtrain.command.names import ATTACKS, make_runtimes
    from privtrain.command.study_file import read_study
    from privtrain.command.tables import settings_of
    from privtrain.command.user_code import import_named
    from privtrain.data.loading import load as load_data
    from privtrain.report.files import load
    from privtrain.runs.finished import audit_comparison

    torch.set_num_threads(args.threads)
    # Not while a comparison works there: it may take its rows away.
    with locked_folder(made_folder(folder)):
        study, comparison = read_study(study_file), load(folder)
        asked = attacks_asked(args, study)
        trainers = study.make_trainers()
        own = {} if study.model is None else {"model": import_named(study.model, "model")}
        task, data = load_data(study.data, **study.data_options, **own)
        data = study.planted(data)
        tried = placed(args.observers, asked, data.parties)
        try:
            made = audit_comparison(
                replace(
                    comparison, rows=tuple(replace(row, leakage=()) for row in comparison.rows)
                ),
                trainers,
                task,
                data,
                attacks=tried,
                folder=rows,
                runtimes=make_runtimes(study.runtime),
                delta=study.delta,
                device=study.device,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(SHADOWS_KEPT) from None
    made = without_nobody(made) if ALL in args.observers else made
    tables = [{"attack": ATTACKS.name_of(type(one)), **settings_of(one)} for one in tried]
    return replace(made, study=None if made.study is None else {**made.study, "attacks": tables})


def _of_model(args: Audit, path: Path) -> "Comparison":
    if {*args.observers} - {ALL, "public"}:
        raise ValueError(
            f"Expected --observers {' '.join(args.observers)} to be public: of a model alone, "
            "nobody sees more than what is published."
        )
    import torch

    from privtrain.command.audited_model import audited_model
    from privtrain.command.study_file import Study

    torch.set_num_threads(args.threads)
    attacks = attacks_asked(args, Study())
    return audited_model(
        path, args.where, attacks, factory=args.factory, non_members=args.non_members
    )


def _keeping(folder: Path) -> str:
    place = shlex.quote(str(folder))
    study = shlex.quote(str(folder / "study.toml"))
    return f"privtrain compare {study} --out {place} --resume --keep-for-audit"


def attacks_asked(args: Audit, study: "Study") -> tuple["Attack", ...]:
    """The attacks of the command line with their settings.

    Args:
        args: The command line.
        study: Its delta is that of attacks that bound epsilon.

    Raises:
        ValueError: If a setting is not known, or no attack trains shadow models that are counted.
    """
    from privtrain.command.overrides import overridden

    own = replace(study, attacks=args.attacks, trainers={})
    if args.shadows is not None:
        able = [t for t in args.attacks if _trains_shadows(t)]
        if not able:
            raise ValueError(
                f"Expected no --shadows {args.shadows} with {' '.join(args.attacks)}: none of them "
                "has a setting of that name. Add rmia or lira."
            )
        # Before the others, so that what is set by name counts.
        own = overridden(own, [f"{token}.shadows={args.shadows}" for token in able])
    return overridden(own, args.settings).attacks_asked()


def _trains_shadows(token: str) -> bool:
    from privtrain.command.names import ATTACKS

    return "shadows" in {each.name for each in fields(ATTACKS[token])}


def placed(
    words: Sequence[str], attacks: Sequence["Attack"], parties: Sequence[str]
) -> list["Attack"]:
    """The attacks from the places that `--observers` names.

    Args:
        words: What was given; nothing for each attack's own observer.
        attacks: The attacks.
        parties: Names of the parties with rows.

    Raises:
        ValueError: If there is no such observer.
    """
    from privtrain.command.observing import from_all_places, from_places, parsed, the_coalition

    if not words:
        return list(attacks)
    if ALL in words:
        if len(words) > 1:
            raise ValueError(f"Expected --observers {' '.join(words)} to be all, or some by name.")
        return from_all_places(attacks, parties)
    named = [the_coalition(parties) if word == COALITION else parsed(word) for word in words]
    return from_places(attacks, named)


def without_nobody(comparison: "Comparison") -> "Comparison":
    """The comparison without observers that had a place in none of its runs."""
    from privtrain.core.errors import Reason

    there = {
        (one.attack, one.observer)
        for row in comparison.rows
        for one in row.leakage
        if one.failure is None or one.failure.reason is not Reason.NOBODY
    }
    rows = [
        replace(
            row, leakage=tuple(one for one in row.leakage if (one.attack, one.observer) in there)
        )
        for row in comparison.rows
    ]
    return replace(comparison, rows=tuple(rows))


def _said(made: "Comparison", args: Audit) -> list[str]:
    """What the reader of the table has to know."""
    from privtrain.core.errors import Reason
    from privtrain.runs.refereeing import OUTSIDE_TOO

    failures = [one.failure for row in made.rows for one in row.leakage if one.failure is not None]
    said = []
    if args.folder is not None and any(each.reason is Reason.NOT_KEPT for each in failures):
        said.append(f"Rows that were not kept for audits are kept by: {_keeping(args.folder)}")
    if args.folder is not None and any(each.reason is Reason.NO_TENSORS for each in failures):
        said.append(
            "Messages that were not kept are kept, where a simulation can, by: "
            f"{_keeping(args.folder)} --keep-messages"
        )
    said += [f"failed: {each.error}" for each in failures if each.reason is None]
    told = [note for row in made.rows for one in row.leakage for note in one.notes]
    said += [f"nobody tells apart: {note}" for note in told if note.endswith(OUTSIDE_TOO)]
    said += [note for row in made.rows for note in row.notes] if args.model is not None else []
    if args.out is not None:
        said.append(f"The comparison with these attacks lies in {args.out}")
    return list(dict.fromkeys(said))
