"""The command line: compare, audit, fit, predict, report, party, plan, and lists.

Nothing heavy is loaded before the words are known to be right.
"""

import contextlib
import json
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from privtrain.command.answers import Plan, plan_command
from privtrain.command.arguments import (
    Attacks,
    Compare,
    Data,
    Fit,
    Report,
    RunArgs,
    Trainers,
    check_alone,
)
from privtrain.command.audit import Audit, audit_command
from privtrain.command.keys import WORDS, KeysArgs, run_keys
from privtrain.command.party import PartyArgs, run_party
from privtrain.command.predict import Predict, predict_command
from privtrain.command.terminal import printing
from privtrain.command.tokens import check_names, check_study_names
from privtrain.core.errors import DataError, PrivtrainError, UnsupportedError
from privtrain.core.failures import traceback_of
from privtrain.core.folders import locked_folder
from privtrain.core.validate import check_count, made_folder
from privtrain.core.writing import is_full, write_file

if TYPE_CHECKING:
    from privtrain.core.result import Comparison, Measurement
    from privtrain.core.task import FederatedData, Task

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
"""Exit codes, beside 0: some row failed; wrong arguments; stopped by the user."""

_PICTURES = ("accuracy", "cost", "epsilon", "deltas", "trade_off", "curves", "roc")
_MADE = (
    *("table.csv", "table.tex", "report.html", "attacks.csv", "model", "model.pt"),
    *(f"figures/{name}.{ending}" for name in _PICTURES for ending in ("svg", "pdf")),
)
"""What is written beside the results."""


Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Audit, tyro.conf.subcommand("audit")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[PartyArgs, tyro.conf.subcommand("party")]
    | Annotated[Trainers, tyro.conf.subcommand("trainers")]
    | Annotated[Attacks, tyro.conf.subcommand("attacks")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The words after `privtrain`; None for those of the process.

    Returns:
        The exit code: 0 where everything succeeded, 1 where some row failed, 2 on wrong
        arguments, 130 where the user stopped it.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return printing(lambda: _run(given))
    except BrokenPipeError as error:  # not that of standard output, whose reader may leave
        print(f"privtrain: BrokenPipeError: {error}", file=sys.stderr)
        return FAILED


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"privtrain {version('privtrain')}")
        return 0
    if arguments[:2] == WORDS:
        keys = tyro.cli(KeysArgs, prog="privtrain party keys", args=arguments[2:])
        return _answered(lambda: run_keys(keys))
    command = tyro.cli(
        Command,
        prog="privtrain",
        description="Train one model under several privacy techniques and compare what each "
        "promises, costs and leaks. privtrain --version prints the version.",
        args=arguments,
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
        ),
    )
    return _answered(lambda: _HANDLERS[type(command)](command))


def _answered(run: Callable[[], int]) -> int:
    """The exit code of a command."""
    # A user's mistake ends in a sentence; any other error is a bug and keeps its traceback.
    try:
        return run()
    except (ValueError, DataError) as error:
        print(f"privtrain: {error}", file=sys.stderr)
        return MISUSED
    except (PrivtrainError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        known = isinstance(error.__cause__, PrivtrainError) or is_full(error.__cause__)
        if error.__cause__ is not None and not known:
            # An error of the user's own model or loss at a party: the sentence names the party, and
            # only the traceback says which line.
            print(traceback_of(error.__cause__), file=sys.stderr)
        print(f"privtrain: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stopped:
        print(f"privtrain: stopped. {str(stopped) or 'Nothing of it is kept.'}", file=sys.stderr)
        return INTERRUPTED


def _load(name: str, options: dict[str, Any], model: str | None) -> "tuple[Task, FederatedData]":
    # In functions, here and below: `--help` and a party's process need none of these.
    from privtrain.command.user_code import import_named
    from privtrain.data.loading import load

    own = {} if model is None else {"model": import_named(model, "model")}
    return load(name, **options, **own)


def _check_names(args: Compare | Fit, trainers: Sequence[str], attacks: Sequence[str]) -> None:
    if args.study is not None:
        check_alone(args)
        check_study_names(args.study)
    else:
        names = {"runtime": args.runtime, "data": args.where.data, "model": args.where.model}
        check_names(trainers=trainers, attacks=attacks, **names)


def _folder(run: RunArgs, data: str) -> Path:
    if run.out is not None:
        return run.out
    # UTC: a clock that is set back in autumn would give two runs one folder.
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(data).stem}-{stamp}"


def _claim(folder: Path, *, force: bool, resume: bool | None) -> None:
    """Sees to it that nothing finished is lost, unless by `force`.

    A `resume` of None means that the command cannot go on with what is there.
    """
    if resume:
        _check_written(folder)
    written = ("comparison.json", "rows", "statement.json", "study.toml")
    started = [name for name in written if (folder / name).exists()]
    if started and force and not resume:
        # With all that was made of it: a page or a model of one run must not lie beside another.
        for path in (folder / name for name in (*written, *_MADE) if (folder / name).exists()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with contextlib.suppress(OSError):  # what is not ours stays in it
            (folder / "figures").rmdir()
    elif started and not resume:
        raise DataError(
            f"The folder {folder} holds a run already ({', '.join(started)}). "
            f"{'' if resume is None else 'Go on with it by --resume. '}"
            "Overwrite it by --force, or choose another --out."
        )


def _check_written(folder: Path) -> None:
    """Refuses to go on where version 0.1 or a newer one wrote, or where a file is damaged."""
    from privtrain.command.study_file import read_study
    from privtrain.core.schema import SCHEMA, written_by_old
    from privtrain.report.files import JSON_NAME, load, read_plain

    if (folder / "statement.json").exists():
        raise DataError(
            f"The folder {folder} holds a fit, which no comparison goes on with. Choose another "
            "--out."
        )
    if (folder / "study.toml").exists():
        read_study(folder / "study.toml")
    if (folder / JSON_NAME).exists():
        load(folder)
        if read_plain(folder / JSON_NAME).get("schema") != SCHEMA:
            raise written_by_old(folder)


def compare_command(args: Compare) -> int:
    """Compares, writes the results, and prints the table."""
    check_count(threads=args.run.threads)
    _check_names(args, args.trainers, args.attacks)
    import torch

    from privtrain.command.names import make_runtimes
    from privtrain.command.planning import study_of
    from privtrain.command.study_file import write_study
    from privtrain.core.keys import make_key
    from privtrain.report.files import plain_comparison, save
    from privtrain.runs.checks import check_device
    from privtrain.runs.comparing import check_comparison, compare, failed
    from privtrain.runs.measuring import RAISE

    study = study_of(args)
    check_device(study.device)
    torch.set_num_threads(args.run.threads)
    # Everything that may be misspelled comes first: loading data and claiming a folder take time.
    trainers, attacks = study.make_trainers(), study.make_attacks()
    runtimes = make_runtimes(study.runtime)
    task, data = _load(study.data, dict(study.data_options), study.model)
    data = study.planted(data)
    folder = made_folder(_folder(args.run, study.data), "out")
    asked: dict[str, Any] = {
        "attacks": attacks,
        "seeds": range(study.seeds),
        "epsilons": study.epsilons,
        "runtimes": runtimes,
        "delta": study.delta,
        "device": study.device,
        "folder": folder / "rows",
        "baseline": study.baseline,
    }
    with locked_folder(folder):
        _claim(folder, force=args.run.force, resume=args.resume)
        # What is refused changes nothing: the study there belongs to the rows there.
        check_comparison(trainers, task, data, **asked)
        # Here and not below rows/: one key for all that the run writes.
        make_key(folder)
        # Before training, so that an interrupted comparison can be resumed from its own folder.
        write_study(study, folder / "study.toml")
        try:
            comparison = compare(
                trainers,
                task,
                data,
                **asked,
                study=study.to_plain(),
                errors=args.errors,
                keep_models=args.keep_models,
                keep_for_audit=args.keep_for_audit or args.keep_messages,
                keep_messages=args.keep_messages,
            )
            try:
                save(comparison, folder, force=True)
            finally:  # hours of training must not end without a table
                _show(comparison, args.run.json, plain_comparison, folder)
        except KeyboardInterrupt:
            place = shlex.quote(str(folder))
            raise KeyboardInterrupt(
                "What was finished is kept. Go on with: privtrain compare "
                f"{shlex.quote(str(folder / 'study.toml'))} --out {place} --resume"
            ) from None
        except Exception:
            # Also of what elsewhere ends in a sentence: whoever asks for the error looks for its
            # place.
            if args.errors == RAISE:
                traceback.print_exc()
                return FAILED
            raise
    broken = any(row.failures for row in comparison.rows)
    return FAILED if failed(comparison) or broken else 0


def _show(
    comparison: "Comparison",
    as_json: bool,
    plain: "Callable[[Comparison], dict[str, Any]]",
    folder: Path,
) -> None:
    if as_json:
        print(json.dumps(plain(comparison), indent=2))
        return
    print(comparison)
    print(f"\nThe report lies in {folder / 'report.html'}; never publish rows/ and private/ there")
    print(f"Repeat it with: privtrain compare {folder / 'study.toml'} --out ANOTHER_FOLDER")


def fit_command(args: Fit) -> int:
    """Trains one model and writes it with its statement."""
    check_count(threads=args.run.threads)
    # Of a study file, the trainer is a label.
    _check_names(args, [] if args.study or args.trainer is None else [args.trainer], [])
    import torch

    from privtrain.command.names import make_runtimes
    from privtrain.command.planning import plan_of
    from privtrain.core.result import Measurement
    from privtrain.core.schema import SCHEMA
    from privtrain.core.seeding import EntropyKind
    from privtrain.core.statement import to_json_text, to_plain
    from privtrain.report.progress import progress_bar
    from privtrain.report.publishing import UNPROTECTED
    from privtrain.runs.calibrating import calibrate
    from privtrain.runs.card import fit_card
    from privtrain.runs.fitting import fit
    from privtrain.runs.keeping import INSIDE, save_model
    from privtrain.runs.measuring import measured

    torch.set_num_threads(args.run.threads)
    plan = plan_of(args)
    trainer, runtimes = plan.trainer, make_runtimes(plan.runtime)
    task, data = _load(plan.data, plan.data_options, plan.model)
    folder = made_folder(_folder(args.run, f"{plan.data}-{plan.name}"), "out")
    with locked_folder(folder):
        _claim(folder, force=args.run.force, resume=None)
        if plan.epsilon is not None:
            trainer = calibrate(
                trainer, data, epsilon=plan.epsilon, delta=plan.delta, runtimes=runtimes
            )
        with progress_bar(plan.name) as progress:
            result = fit(
                trainer,
                task,
                data,
                runtimes=runtimes,
                delta=plan.delta,
                seed=args.seed,
                entropy=EntropyKind(args.entropy),
                device=plan.device,
                progress=progress,
            )
        # Under this folder's key: `fit` itself was given none, and identified no rows.
        card = fit_card(
            *(trainer, task, data, runtimes, args.seed, plan.delta, plan.device),
            statement=result.statement,
            entropy=args.entropy,
            folder=folder,
        )
        result = replace(result, card=card)
        # First of all: what follows may fail, and training was paid for. A predictor need not be a
        # torch module: nearest means, an ensemble.
        try:
            save_model(result, folder / INSIDE)
        except UnsupportedError as error:
            result = replace(result, notes=(*result.notes, f"the model is not kept: {error}"))
        metrics = measured(result.predictor, task, data.test).metrics
        accuracy = metrics.get("accuracy", Measurement())
        document = {
            "schema": SCHEMA,
            "trainer": plan.name,
            "accuracy": accuracy.value,
            "accuracy_interval": accuracy.interval,
            "accuracy_failure": accuracy.failure,
            "metrics": metrics,
            "main": str(task.main),
            "statement": result.statement,
            "cost": result.cost,
            "halted": result.halted,
            "notes": result.notes,
            "entropy": args.entropy,
            "epsilon_asked": plan.epsilon,
            "card": card,
            "unprotected": {
                name: UNPROTECTED[name] for name in ("accuracy", "metrics", "cost.seconds")
            },
        }
        document = {name: to_plain(value) for name, value in document.items()}
        write_file(folder / "statement.json", to_json_text(document) + "\n")
    if args.run.json:
        print(to_json_text(document))
    else:
        for name, found in metrics.items():
            print(_measured(name, found))
        print(result.statement)
        for line in (result.halted, *result.notes, *plan.notes):
            if line:
                print(line)
        print(f"The model and its statement lie in {folder}; publish {folder / INSIDE} alone")
    return FAILED if any(found.failure is not None for found in metrics.values()) else 0


def _measured(name: str, found: "Measurement") -> str:
    from privtrain.core.result import EXACT
    from privtrain.core.rounding import outwards

    if found.value is None:
        why = "" if found.failure is None else found.failure.error
        return f"{name} failed (unprotected): {why}"
    interval = found.method
    if found.interval is not None:
        low, high = outwards(*found.interval, 4)
        interval = f"95% interval {low} to {high}"
        interval += "" if found.method == EXACT else f" by {found.method}"
    return f"{name} {found.value:.4f} ({interval}), on unprotected test rows"


def report_command(args: Report) -> int:
    """Prints a finished comparison and renders its files again."""
    from privtrain.report.files import load, plain_comparison, save
    from privtrain.report.publishing import publishable_card

    load(args.folder)
    # Not while a comparison works there: it may save a newer one in between.
    with locked_folder(made_folder(args.folder)):
        comparison = load(args.folder)
        written = str(dict(comparison.card.get("versions", {})).get("privtrain", ""))
        if written.startswith("0.1"):
            print(
                f"privtrain: this comparison was written by version {written}, whose statements "
                "are false in some settings: see docs/errata.md.",
                file=sys.stderr,
            )
        # What version 0.1 wrote and no version publishes any more.
        comparison = replace(comparison, card=publishable_card(comparison.card))
        # Over what is there: it is made of the same rows, by a newer version perhaps.
        save(comparison, args.folder, force=True)
    _show(comparison, args.json, plain_comparison, args.folder)
    return 0


def _list(what: str, args: Trainers | Attacks | Data) -> int:
    from privtrain.command.catalogue import listing

    print(listing(what, args.name))
    return 0


_HANDLERS: dict[type[Any], Callable[[Any], int]] = {
    Compare: compare_command,
    Audit: audit_command,
    Fit: fit_command,
    Predict: predict_command,
    Report: report_command,
    PartyArgs: run_party,
    Trainers: partial(_list, "trainers"),
    Attacks: partial(_list, "attacks"),
    Data: partial(_list, "data"),
    Plan: plan_command,
}
