"""The command line: compare, fit, report, party."""

import io
import json
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from privtrain.command.arguments import Compare, Fit, Report, RunArgs
from privtrain.command.names import make_runtimes
from privtrain.command.party import PartyArgs, run_party
from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.failures import traceback_of
from privtrain.core.folders import locked_folder
from privtrain.core.result import Comparison, Failure
from privtrain.core.task import FederatedData, Task
from privtrain.core.validate import check_count, made_folder

if TYPE_CHECKING:
    from privtrain.command.study_file import Study

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
"""Exit codes, beside 0: some row failed; wrong arguments; stopped by the user."""

_MADE = ("table.csv", "table.tex", "report.html", "model.pt")
"""What is written beside the results."""


Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[PartyArgs, tyro.conf.subcommand("party")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The words after `privtrain`; None for those of the process.

    Returns:
        The exit code: 0 where everything succeeded, 1 where some row failed, 2 on wrong
        arguments, 130 where the user stopped it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Tables hold characters such as a Greek epsilon; a terminal without them shows "?".
            stream.reconfigure(errors="replace")
    command = tyro.cli(
        Command,
        prog="privtrain",
        description="Train one model under several privacy techniques and compare what each "
        "promises, costs and leaks.",
        args=arguments,
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
        ),
    )
    # A user's mistake ends in a sentence; any other error is a bug and keeps its traceback.
    try:
        return _HANDLERS[type(command)](command)
    except (ValueError, DataError) as error:
        print(f"privtrain: {error}", file=sys.stderr)
        return MISUSED
    except (PrivtrainError, OSError) as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, PrivtrainError):
            # An error of the user's own model or loss at a party: the sentence names the party, and
            # only the traceback says which line.
            print(traceback_of(error.__cause__), file=sys.stderr)
        print(f"privtrain: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stopped:
        print(f"privtrain: stopped. {str(stopped) or 'Nothing of it is kept.'}", file=sys.stderr)
        return INTERRUPTED


def _load(name: str, options: dict[str, Any], model: str | None) -> tuple[Task, FederatedData]:
    # In functions, here and below: `--help` and a party's process need none of these.
    from privtrain.command.user_code import import_named
    from privtrain.data.loading import load

    own = {} if model is None else {"model": import_named(model, "model")}
    return load(name, **options, **own)


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


def _study(args: Compare) -> "Study":
    """The study that the arguments name or spell out."""
    from privtrain.command.study_file import Study, read_study
    from privtrain.command.tables import default_tables

    if args.study is not None:
        _check_alone(args)
        return read_study(args.study)
    return Study(
        data=args.where.data,
        data_options=args.where.options(),
        model=args.where.model,
        trainers=default_tables(args.trainers, secure=args.secure),
        epsilons=args.epsilon,
        delta=args.delta,
        seeds=args.seeds,
        attacks=args.attacks,
        canaries=args.canaries,
        runtime=args.runtime,
        device=args.run.device,
    )


def compare_command(args: Compare) -> int:
    """Compares, writes the results, and prints the table."""
    import torch

    from privtrain.command.study_file import write_study
    from privtrain.core.keys import make_key
    from privtrain.report.files import plain_comparison, save
    from privtrain.runs.attacking import RAISE
    from privtrain.runs.checks import check_device
    from privtrain.runs.comparing import check_comparison, compare, failed

    check_count(threads=args.run.threads)
    study = _study(args)
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
                trainers, task, data, **asked, study=study.to_plain(), errors=args.errors
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


def _check_alone(args: Compare) -> None:
    """Refuses arguments that a study file speaks of: they would change nothing."""
    # Against the defaults: tyro does not tell which arguments were given.
    plain = Compare()
    names = ("trainers", "epsilon", "delta", "seeds", "attacks", "runtime", "secure", "canaries")
    given = [f"--{name}" for name in names if getattr(args, name) != getattr(plain, name)]
    given += [
        f"--{name}"
        for name, value in vars(args.where).items()
        if value != getattr(plain.where, name)
    ]
    given += ["--device"] if args.run.device != plain.run.device else []
    if given:
        raise ValueError(
            f"Expected the study file {args.study} without {', '.join(given)}, which it says "
            "itself. Change the file, or leave it out."
        )


def _show(
    comparison: Comparison,
    as_json: bool,
    plain: Callable[[Comparison], dict[str, Any]],
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
    import torch

    from privtrain.command.tables import default_tables, make_trainer
    from privtrain.core.failures import OWN_ERRORS
    from privtrain.core.parameters import state_of
    from privtrain.core.schema import SCHEMA
    from privtrain.core.seeding import EntropyKind
    from privtrain.core.statement import to_json_text, to_plain
    from privtrain.report.progress import progress_bar
    from privtrain.report.publishing import UNPROTECTED
    from privtrain.runs.attacking import failure_of
    from privtrain.runs.calibrating import calibrate
    from privtrain.runs.fitting import fit
    from privtrain.runs.rows import accuracy_with_interval

    check_count(threads=args.run.threads)
    torch.set_num_threads(args.run.threads)
    (settings,) = default_tables((args.trainer,), secure=args.secure).values()
    trainer = make_trainer(settings.pop("trainer"), settings)
    runtimes = make_runtimes(args.runtime)
    task, data = _load(args.where.data, args.where.options(), args.where.model)
    folder = made_folder(_folder(args.run, f"{args.where.data}-{args.trainer}"), "out")
    with locked_folder(folder):
        _claim(folder, force=args.run.force, resume=None)
        if args.epsilon is not None:
            trainer = calibrate(
                trainer, data, epsilon=args.epsilon, delta=args.delta, runtimes=runtimes
            )
        with progress_bar(args.trainer) as progress:
            result = fit(
                trainer,
                task,
                data,
                runtimes=runtimes,
                delta=args.delta,
                seed=args.seed,
                entropy=EntropyKind(args.entropy),
                device=args.run.device,
                progress=progress,
            )
        # First of all: what follows may fail, and training was paid for. A predictor need not be a
        # torch module: nearest means, an ensemble.
        module = getattr(result.predictor, "module", None)
        if module is not None:
            torch.save(state_of(module), folder / "model.pt")
        accuracy, interval, failure = None, None, None
        try:
            accuracy, interval = accuracy_with_interval(result.predictor, task, data.test)
        except OWN_ERRORS as error:  # a user's metric may raise anything
            failure = failure_of(error)
        document = {
            "schema": SCHEMA,
            "trainer": args.trainer,
            "accuracy": accuracy,
            "accuracy_interval": interval,
            "accuracy_failure": failure,
            "statement": result.statement,
            "cost": result.cost,
            "halted": result.halted,
            "notes": result.notes,
            "entropy": args.entropy,
            "unprotected": {name: UNPROTECTED[name] for name in ("accuracy", "cost.seconds")},
        }
        document = {name: to_plain(value) for name, value in document.items()}
        (folder / "statement.json").write_text(to_json_text(document) + "\n")
    if args.run.json:
        print(to_json_text(document))
    else:
        print(_measured(accuracy, interval, failure))
        print(result.statement)
        for line in (result.halted, *result.notes):
            if line:
                print(line)
        print(f"The model and its statement lie in {folder}")
    return 0 if failure is None else FAILED


def _measured(
    accuracy: float | None, interval: tuple[float, float] | None, failure: Failure | None
) -> str:
    if accuracy is None or interval is None:
        return f"accuracy failed (unprotected): {'' if failure is None else failure.error}"
    low, high = interval
    return (
        f"accuracy {accuracy:.4f} (95% interval {low:.4f} to {high:.4f}), on unprotected test rows"
    )


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


_HANDLERS: dict[type[Any], Callable[[Any], int]] = {
    Compare: compare_command,
    Fit: fit_command,
    Report: report_command,
    PartyArgs: run_party,
}
