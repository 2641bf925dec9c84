"""The arguments of every command, as tyro reads them."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from privtrain.command.column_rules import missing_of, ranges_of
from privtrain.command.tokens import ATTACK_TOKENS, STARS

RuntimeName = Annotated[str, tyro.conf.arg(metavar="{" + "|".join(STARS) + "}")]
"""Checked by `make_runtimes`, where a study file's is checked, too."""


AttackNames = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        help="What is tried on each model, with default settings: "
        f"{', '.join(ATTACK_TOKENS)} or my_file.py:MyAttack. An audit needs canaries."
    ),
]


# What may be left out, shown in the help without its technical default.
Word = Annotated[str | None, tyro.conf.arg(metavar="WORD", help_behavior_hint="")]

Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD ...", help_behavior_hint="")]

Number = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]

Real = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]

Settings = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(name="set", metavar="SETTING=VALUE", help_behavior_hint="(repeatable)"),
]

Place = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class RowsArgs:
    """Which rows, and who holds them."""

    data: str = "digits"
    """digits, breast_cancer, mnist, adult, or a .csv, .tsv or .npz file."""
    label: Word = None
    """Column with the class, for a .csv file (default: y)."""
    drop: Words = ()
    """Columns of a .csv file to leave out."""
    ranges: Words = ()
    """Public lowest and highest values of columns of a .csv file: age=0:120 income=0:200000."""
    missing: Words = ()
    """What is done about missing values of a .csv file: drop, indicator or a value, for all
    columns or by name, as age=indicator income=0."""
    delimiter: Word = None
    """What stands between two values of a .csv file (default: a comma; a tab in a .tsv file)."""
    directory: Place = None
    """Where the files of mnist or adult lie (default: the environment variable PRIVTRAIN_DATA)."""
    parties: Number = None
    """How many parties hold the training rows (default: 10)."""
    partition: Word = None
    """iid, dirichlet:0.5, shards:2, quantity:1.5 or columns:0 (default: iid)."""

    def options(self) -> dict[str, Any]:
        """What the data set's loader is given."""
        given = {
            "label": self.label,
            "drop": list(self.drop) or None,
            "ranges": ranges_of(self.ranges) or None,
            "missing": missing_of(self.missing),
            "delimiter": self.delimiter,
            "directory": None if self.directory is None else str(self.directory),
            "parties": self.parties,
            "partition": self.partition,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class DataArgs(RowsArgs):
    """Which rows, who holds them, and what is trained on them."""

    model: Word = None
    """my_model.py:make, a function without arguments that returns an nn.Module."""


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    """Where to compute, and where to write."""

    device: str = "cpu"
    """Where tensors are computed: cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """Threads of torch; results are the same to the bit on every runtime with one."""
    out: Place = None
    """Folder for the results (default: runs/DATA-TIME)."""
    force: bool = False
    """Overwrite results that are already in the folder."""
    json: bool = False
    """Print the result as JSON, and nothing else, on standard output."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train one model in several ways, attack each, and write one honest comparison.

    A simulation: all noise follows from public seeds. Make a model to publish with privtrain fit.

    Example: privtrain compare --data digits --trainers sgd fedavg dp_sgd mpc_sgd pate
    --epsilon 1 3 8 --seeds 3 --out runs/digits
    """

    study: tyro.conf.Positional[Place] = None
    """A study file, instead of the arguments on data and trainers. Every run writes one."""
    where: Annotated[DataArgs, tyro.conf.arg(name="")] = field(default_factory=DataArgs)
    trainers: tuple[str, ...] = ("sgd", "fedavg", "dp_sgd", "mpc_sgd", "pate")
    """What is compared, each with its default settings; --set and a study file change them. Your
    own is my_file.py:MyTrainer; privtrain trainers lists all."""
    settings: Settings = ()
    """Change a setting of a trainer or an attack, also of a study file's: dp_sgd.epochs=5,
    dp_sgd.release.mechanism.clipping_norm=0.5, 'fedavg.sampling=FixedSize(5)'."""
    epsilon: tuple[float, ...] = (3.0,)
    """What is asked of trainers that draw noise; several give a curve."""
    delta: float = 1e-5
    """Delta of every guarantee."""
    seeds: int = 1
    """How many seeds: 0, 1, 2, ..."""
    attacks: AttackNames = ("loss_threshold",)
    baseline: Word = None
    """The trainer that gaps are measured from (default: the first pooled one without privacy)."""
    canaries: int = 0
    """Plant so many rows with wrong labels, each by a coin, for an audit; they cost accuracy."""
    secure: bool = False
    """Draw Gaussian noise exactly, from AES, instead of as floats. Other noise stays as it is."""
    runtime: RuntimeName = "in-process"
    """Where the rounds of a federation run. MPC always runs in processes of its own."""
    resume: bool = False
    """Go on with an interrupted comparison in the same folder."""
    keep_models: bool = False
    """Keep the model of every row in its folder below rows/, for privtrain predict."""
    keep_for_audit: bool = False
    """Keep what privtrain audit needs of every row, with messages that this comparison's own
    attacks read. It tells who was a member: never publish it."""
    keep_messages: bool = False
    """Keep the tensors of all messages, too, for attacks to come that read them."""
    errors: Literal["keep", "raise"] = "keep"
    """Keep an error in the row where it occurred, or stop there and print where it came from."""
    run: Annotated[RunArgs, tyro.conf.arg(name="")] = field(default_factory=RunArgs)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Train one model, and write the model and its privacy statement.

    Example: privtrain fit --trainer dp_sgd --data digits --epsilon 3 --out runs/model
    """

    study: tyro.conf.Positional[Place] = None
    """A study file, instead of the arguments on data and trainer."""
    trainer: Word = None
    """What is trained (default: dp_sgd); your own is my_file.py:MyTrainer. Of a study file, the
    label of the trainer, where it has several."""
    settings: Settings = ()
    """Change a setting of the trainer: epochs=5, release.mechanism.clipping_norm=0.5."""
    where: Annotated[DataArgs, tyro.conf.arg(name="")] = field(default_factory=DataArgs)
    epsilon: Real = None
    """Choose the least noise for this epsilon, if the trainer draws noise. Of a study file with
    several, the one to promise."""
    delta: float = 1e-5
    """Delta of every guarantee."""
    secure: bool = False
    """Draw Gaussian noise exactly, from AES, instead of as floats."""
    seed: int = 0
    """Public seed of data order and initialisation."""
    entropy: Literal["system", "seeded"] = "system"
    """Where noise comes from: the operating system, for a model that is published; or the seed, to
    repeat a run to the bit, which protects from nobody who knows or guesses the seed."""
    runtime: RuntimeName = "in-process"
    """Where the rounds of a federation run."""
    run: Annotated[RunArgs, tyro.conf.arg(name="")] = field(default_factory=RunArgs)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print a finished comparison again, and write its table and page again.

    Example: privtrain report runs/digits
    """

    folder: tyro.conf.Positional[Path]
    """Folder of a finished comparison."""
    json: bool = False
    """Print the comparison as JSON instead."""


@dataclass(frozen=True, kw_only=True)
class Trainers:
    """List the trainers and the parts that they are made of, with their settings.

    Example: privtrain trainers dp_sgd
    """

    name: tyro.conf.Positional[Word] = None
    """The one to show: a trainer, or a part such as Gaussian (default: all)."""


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """List the attacks with their settings.

    Example: privtrain attacks one_run
    """

    name: tyro.conf.Positional[Word] = None
    """The one to show (default: all)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """List the data sets and files that can be read, with their options.

    Example: privtrain data digits
    """

    name: tyro.conf.Positional[Word] = None
    """The one to show (default: all)."""


_OF_STUDY: dict[type, tuple[str, ...]] = {
    Compare: (
        *("trainers", "epsilon", "delta", "seeds", "attacks", "runtime", "secure"),
        *("canaries", "baseline"),
    ),
    Fit: ("delta", "runtime", "secure"),
}
"""What a study file says, beside its data and its device."""


def check_alone(args: Compare | Fit) -> None:
    """Refuses arguments that the study file speaks of: they would change nothing.

    Raises:
        ValueError: Naming them.
    """
    if args.study is None:
        return
    # Against the defaults: tyro does not tell which arguments were given.
    plain, names = type(args)(), _OF_STUDY[type(args)]
    given = [f"--{name}" for name in names if getattr(args, name) != getattr(plain, name)]
    given += [
        f"--{each.name}"
        for each in fields(DataArgs)
        if getattr(args.where, each.name) != getattr(plain.where, each.name)
    ]
    given += ["--device"] if args.run.device != plain.run.device else []
    if given:
        raise ValueError(
            f"Expected the study file {args.study} without {', '.join(given)}, which it says "
            "itself. Change the file, or leave it out. --set changes single settings."
        )
