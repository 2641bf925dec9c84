"""Study files: a comparison as TOML, and trainers as plain tables and back.

A value is written as a table whose `kind` names its class; the few constants are written by name.
"""

import dataclasses
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privtrain.aggregation.finish import ARGMAX, IDENTITY, Threshold
from privtrain.aggregation.plain import PlainSum
from privtrain.aggregation.shared import SharedSum
from privtrain.attacks.attack import Attack, check_attack_names
from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.one_run import OneRun
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.runtime import Runtimes, StarRuntime
from privtrain.core.task import FederatedData
from privtrain.core.trainer import Trainer
from privtrain.core.validate import (
    check_count,
    check_delta,
    check_distinct,
    check_member,
    check_positive,
)
from privtrain.data.canaries import mislabelled_rows, with_canaries
from privtrain.mpc.crypten import CrypTen
from privtrain.privacy.banded import BandedMatrix
from privtrain.privacy.clipping import AutomaticClipping, FlatClipping, PerLayerClipping
from privtrain.privacy.gaussian import Gaussian, Laplace
from privtrain.privacy.mechanism import Exact
from privtrain.privacy.placement import AT_AGGREGATOR, AT_PARTY, Placement
from privtrain.privacy.sampling import Everyone, FixedSize, Poisson
from privtrain.privacy.votes import GNMax, LNMax
from privtrain.release import Release
from privtrain.steps.batches import (
    FixedSizeBatches,
    PoissonBatches,
    ShuffledEpochs,
    TruncatedPoissonBatches,
)
from privtrain.steps.bookkeeping import BookKeeping
from privtrain.steps.cyclic import CyclicPoisson, FixedOrder
from privtrain.steps.opacus import Opacus
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import ByExamples, FedAvg, Uniform
from privtrain.trainers.mpc_sgd import MPCSGD
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD

TRAINERS: Mapping[str, type[Any]] = {
    trainer.token: trainer for trainer in (SGD, FedAvg, DPSGD, MPCSGD, PATE)
}
"""Token to trainer; a new trainer is entered here to be known on the command line."""

ATTACKS: Mapping[str, type[Any]] = {"loss_threshold": LossThreshold, "one_run": OneRun}
"""Token to attack."""

_KINDS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Exact, Gaussian, Laplace, BandedMatrix, GNMax, LNMax),
        *(Release, PlainSum, SharedSum, Threshold, Placement),
        *(Everyone, FixedSize, Poisson, Uniform, ByExamples),
        *(PoissonBatches, TruncatedPoissonBatches, FixedSizeBatches, ShuffledEpochs),
        *(CyclicPoisson, FixedOrder),
        *(FlatClipping, PerLayerClipping, AutomaticClipping),
        *(PlainSteps, DPSteps, BookKeeping, Opacus, CrypTen),
    )
}
_CONSTANTS: Mapping[str, Any] = {
    "AT_AGGREGATOR": AT_AGGREGATOR,
    "AT_PARTY": AT_PARTY,
    "IDENTITY": IDENTITY,
    "ARGMAX": ARGMAX,
}


def to_table(value: Any) -> Any:
    """A configuration value as what TOML can hold.

    Args:
        value: A frozen dataclass out of the known kinds, a constant, number, string or sequence.

    Returns:
        Tables, lists, strings and numbers. TOML has no None: it is left out where it is the
        default, and else written "none".

    Raises:
        UnsupportedError: If a value cannot be named in a file, such as a function.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for name, constant in _CONSTANTS.items():
        if value == constant:
            return name
    if isinstance(value, (list, tuple)):
        return [to_table(item) for item in value]
    if type(value) in (*_KINDS.values(), *TRAINERS.values()):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        fields = {
            item.name: "none" if given[item.name] is None else to_table(given[item.name])
            for item in dataclasses.fields(value)
            if item.init and not (given[item.name] is None and item.default is None)
        }
        kind = {} if type(value) in TRAINERS.values() else {"kind": type(value).__name__}
        return kind | fields
    raise UnsupportedError(f"A study file cannot hold {value!r}: it has no name there.")


def from_table(table: Any) -> Any:
    """The configuration value that a TOML value stands for; the inverse of `to_table`.

    Raises:
        ValueError: If a kind is unknown or a setting does not belong to it.
    """
    if isinstance(table, str) and table in _CONSTANTS:
        return _CONSTANTS[table]
    if isinstance(table, list):
        return tuple(from_table(item) for item in table)
    if not isinstance(table, Mapping):
        return table
    settings = {name: from_table(item) for name, item in table.items() if name != "kind"}
    if "kind" not in table:
        raise ValueError(f'Expected {dict(table)!r} to say what it is: kind = "Gaussian" or so.')
    check_member(_KINDS, kind=table["kind"])
    return _construct(_KINDS[table["kind"]], settings)


def _construct(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    known = [item.name for item in dataclasses.fields(kind) if item.init]
    for name in settings:
        if name not in known:
            raise ValueError(
                f"{kind.__name__} has no setting {name!r}; it has {', '.join(known) or 'none'}."
            )
    given = {name: None if value == "none" else value for name, value in settings.items()}
    try:
        return kind(**given)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{kind.__name__} cannot be made of {given}: {error}.") from error


def make_trainer(token: str, settings: Mapping[str, Any] | None = None) -> Trainer:
    """A trainer by its token, with settings as a study file has them.

    Raises:
        ValueError: If there is no such trainer or setting.
    """
    check_member(TRAINERS, trainer=token)
    values = {name: from_table(item) for name, item in (settings or {}).items()}
    trainer: Trainer = _construct(TRAINERS[token], values)
    return trainer


def make_attack(token: str, settings: Mapping[str, Any] | None = None) -> Attack:
    """An attack by its token, with settings as a study file has them.

    Raises:
        ValueError: If there is no such attack or setting.
    """
    check_member(ATTACKS, attack=token)
    attack: Attack = _construct(ATTACKS[token], settings or {})
    return attack


def default_tables(tokens: Sequence[str], *, secure: bool = False) -> dict[str, dict[str, Any]]:
    """Trainers with their default settings, as a study has them.

    Args:
        tokens: Of the trainers.
        secure: Whether all Gaussian noise is secure; other noise stays as it is.

    Returns:
        Token to token, called `trainer`, and settings.

    Raises:
        ValueError: If there is no such trainer, or none of them draws what shall be secure.
    """
    plain = {token: {"trainer": token, **to_table(make_trainer(token))} for token in tokens}
    made = {token: _secured(table) for token, table in plain.items()} if secure else plain
    if secure and made == plain:
        raise ValueError(
            f"Expected secure=True with a trainer that draws Gaussian noise; {', '.join(tokens)} "
            "draw none. Add dp_sgd, or leave --secure out."
        )
    return made


def _secured(table: Any) -> Any:
    if not isinstance(table, Mapping):
        return table
    inner = {name: _secured(value) for name, value in table.items()}
    return inner | {"secure": True} if table.get("kind") == Gaussian.__name__ else inner


def make_runtimes(name: str) -> Runtimes:
    """Where parties run, by the name of the star runtime; a mesh has real processes.

    Raises:
        ValueError: If there is no such runtime.
    """
    from privtrain.runtimes.processes import Processes

    return Runtimes(star=_star(name), mesh=Processes())


def _star(name: str) -> StarRuntime:
    if name == "in-process":
        from privtrain.runtimes.in_process import InProcess

        return InProcess()
    # Flower takes a second to import, so only who asks for it waits.
    from privtrain.runtimes.flower import FlowerGrid, FlowerRay

    stars: dict[str, Callable[[], StarRuntime]] = {
        "flower-grid": FlowerGrid,
        "flower-ray": FlowerRay,
    }
    if name not in stars:
        raise ValueError(f"Expected runtime={name!r} to be one of in-process, {', '.join(stars)}.")
    return stars[name]()


_ENTRIES: Mapping[str, tuple[Any, str]] = {
    "data": (str, "the name of a data set or the path of a file, in quotes"),
    "data_options": (Mapping, "a table, [data_options]"),
    "model": ((str, type(None)), 'a function in quotes, such as "my_model.py:make"'),
    "trainers": (Mapping, "a table with one table a trainer, [trainers.LABEL]"),
    "epsilons": (tuple, "a list of numbers, such as [1.0, 3.0]"),
    "attacks": (tuple, 'a list of names, such as ["loss_threshold"]'),
    "runtime": (str, 'a name in quotes, such as "flower-grid"'),
    "device": (str, 'a name in quotes, such as "cpu"'),
}
"""Entries of a study, their types, and what to write there."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything a comparison is made of, as a file can hold it.

    Args:
        data: Name of a data set or path of a file.
        data_options: What its loader takes, such as `parties`, `partition` or `label`.
        model: "file.py:function" or "module:function" that makes the model; None for the
            data set's own.
        trainers: Label to token and settings.
        epsilons: What is asked of trainers that draw noise; empty for the noise they have.
        delta: Delta of every guarantee.
        seeds: How many seeds; they are 0, 1, 2, ...
        attacks: Tokens of the attacks, or tables of a token, called `attack`, and settings.
        canaries: How many mislabelled rows are planted, each with probability 1/2, for attacks
            that guess coins; 0 for none.
        runtime: Name of the star runtime.
        device: Where tensors are computed.

    Raises:
        ValueError: If a number is out of its range.
    """

    data: str = "digits"
    data_options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    trainers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    epsilons: tuple[float, ...] = ()
    delta: float = 1e-5
    seeds: int = 1
    attacks: tuple[str | Mapping[str, Any], ...] = ("loss_threshold",)
    canaries: int = 0
    runtime: str = "flower-grid"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, (kind, words) in _ENTRIES.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"Expected {name}={getattr(self, name)!r} to be {words}.")
        check_count(seeds=self.seeds)
        check_count(0, canaries=self.canaries)
        check_delta(self.delta)
        for epsilon in self.epsilons:
            check_positive(epsilon=epsilon)
        check_distinct(epsilons=self.epsilons)

    def make_trainers(self) -> dict[str, Trainer]:
        """Label to trainer.

        Raises:
            ValueError: If there is none, or a name, a setting or its value is not known.
        """
        if not self.trainers:
            raise ValueError(f"Expected trainers={{}} to name some of {', '.join(TRAINERS)}.")
        made = {}
        for label, settings in self.trainers.items():
            if not isinstance(settings, Mapping):
                raise ValueError(
                    f"Expected trainers.{label}={settings!r} to be a table: [trainers.{label}], "
                    'and below it trainer = "sgd" or so and its settings.'
                )
            plain = {name: value for name, value in settings.items() if name != "trainer"}
            made[label] = make_trainer(settings.get("trainer", label), plain)
        return made

    def make_attacks(self) -> tuple[Attack, ...]:
        """The attacks; where they bound epsilon at a delta, it is the study's unless they say.

        Raises:
            ValueError: If one guesses more coins than canaries are planted, or is there twice.
        """
        made = []
        for entry in self.attacks:
            given: dict[str, Any] = {"attack": entry} if isinstance(entry, str) else dict(entry)
            token = given.pop("attack", None)
            check_member(ATTACKS, attack=token)
            takes = {item.name for item in dataclasses.fields(ATTACKS[token])}
            if "delta" in takes:
                given.setdefault("delta", self.delta)
            attack = make_attack(token, given)
            guesses = getattr(attack, "guesses", 0)
            if guesses > self.canaries:
                raise ValueError(
                    f"Expected canaries={self.canaries} >= {guesses}, the guesses of {token}. "
                    "Plant so many with --canaries, or in the study file (canaries = 500)."
                )
            made.append(attack)
        check_attack_names(made)
        return tuple(made)

    def planted(self, data: FederatedData) -> FederatedData:
        """The data, with canaries where the study has some.

        Raises:
            ValueError: If there are more canaries than training rows.
        """
        if not self.canaries:
            return data
        return with_canaries(data, mislabelled_rows(data, self.canaries))

    def to_plain(self) -> dict[str, Any]:
        """The study as tables, every setting of every trainer and attack spelled out."""
        full = {
            label: {"trainer": trainer.token, **to_table(trainer)}
            for label, trainer in self.make_trainers().items()
        }
        plain = {
            "data": self.data,
            "model": self.model,
            "epsilons": list(self.epsilons),
            "delta": self.delta,
            "seeds": self.seeds,
            "attacks": [_attack_table(attack) for attack in self.make_attacks()],
            "canaries": self.canaries,
            "runtime": self.runtime,
            "device": self.device,
            "data_options": dict(self.data_options),
            "trainers": full,
        }
        return {name: value for name, value in plain.items() if value is not None}


def _attack_table(attack: Attack) -> dict[str, Any]:
    (token,) = [token for token, kind in ATTACKS.items() if type(attack) is kind]
    settings = {
        item.name: to_table(getattr(attack, item.name))
        for item in dataclasses.fields(ATTACKS[token])
        if item.init
    }
    return {"attack": token, **settings}


def write_study(study: Study, path: Path) -> None:
    """Writes the file that repeats a comparison."""
    import tomli_w

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(study.to_plain()))


def read_study(path: Path) -> Study:
    """Reads a study file.

    Raises:
        DataError: If the file is missing or no TOML.
        ValueError: If it has an entry that a study does not have, or a value that is out of range.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise DataError(f"Cannot read the study file {path}: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"The study file {path} is not valid TOML: {error}.") from error
    known = [item.name for item in dataclasses.fields(Study)]
    for name in table:
        if name not in known:
            raise ValueError(f"{path}: no entry {name!r} in a study; there is {', '.join(known)}.")
    for name in ("epsilons", "attacks"):
        if isinstance(table.get(name), list):
            table[name] = tuple(table[name])
    try:
        return Study(**table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def import_function(reference: str) -> Callable[..., Any]:
    """The function that "module:function" or "path/to/file.py:function" names.

    Raises:
        ValueError: If the reference has another form, or there is no such function.
        DataError: If the file does not exist, or cannot be imported.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"Expected model={reference!r} to look like my_model.py:make or my_package.model:make."
        )
    try:
        file = place.endswith(".py")
        module = _import_file(Path(place)) if file else importlib.import_module(place)
    except DataError:
        raise
    # Whatever the user's own module may raise; without a traceback its place is worth a word.
    except Exception as error:
        raise DataError(
            f"Cannot import {place!r} of model={reference!r}: {type(error).__name__}: {error}. "
            "Name a file that Python can run, such as my_model.py:make, or an installed module."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(
            f"Expected model={reference!r} to name a function of {place}; it has no {name} that "
            "can be called."
        )
    made: Callable[..., Any] = function
    return made


def _import_file(path: Path) -> Any:
    import cloudpickle

    if not path.is_file():
        raise DataError(
            f"There is no file {str(path)!r} to take the model from. Give model= as "
            "my_model.py:make, seen from the folder you are in."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError(f"The file {path} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    # Other processes cannot import this file by name: its classes travel along.
    cloudpickle.register_pickle_by_value(module)
    return module
