"""Study files: everything that a comparison is made of, as TOML."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privtrain.attacks.attack import Attack, NeedsCanaries, check_attack_names
from privtrain.command.names import ATTACKS, TRAINERS
from privtrain.command.tables import make_attack, make_trainer, settings_of
from privtrain.command.tokens import read_toml
from privtrain.core.failures import printable
from privtrain.core.nearest import nearest
from privtrain.core.schema import SCHEMA, checked_schema
from privtrain.core.task import FederatedData
from privtrain.core.trainer import Trainer
from privtrain.core.validate import (
    check_count,
    check_delta,
    check_distinct,
    check_positive,
)
from privtrain.data.canaries import mislabelled_rows, with_canaries

_ENTRIES: Mapping[str, tuple[Any, str]] = {
    "data": (str, "the name of a data set or the path of a file, in quotes"),
    "data_options": (Mapping, "a table, [data_options]"),
    "model": ((str, type(None)), 'a function in quotes, such as "my_model.py:make"'),
    "trainers": (Mapping, "a table with one table a trainer, [trainers.LABEL]"),
    "epsilons": (tuple, "a list of numbers, such as [1.0, 3.0]"),
    "attacks": (tuple, 'a list of names, such as ["loss_threshold"]'),
    "runtime": (str, 'a name in quotes, such as "in-process"'),
    "device": (str, 'a name in quotes, such as "cpu"'),
    "baseline": ((str, type(None)), "the label of a trainer, in quotes"),
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
        trainers: Label to settings, and to the token, called `trainer`, where it is not the label.
        epsilons: What is asked of trainers that draw noise; empty for the noise they have.
        delta: Delta of every guarantee.
        seeds: How many seeds; they are 0, 1, 2, ...
        attacks: Tokens of the attacks, or tables of a token, called `attack`, and settings. A
            token may be a reference, "my_file.py:MyAttack"; a trainer's, too.
        canaries: How many mislabelled rows are planted, each with probability 1/2, for attacks
            that guess coins; 0 for none.
        runtime: Name of the star runtime.
        device: Where tensors are computed.
        baseline: Label of the trainer that all gaps are measured from; None for the first pooled
            one without privacy.

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
    runtime: str = "in-process"
    device: str = "cpu"
    baseline: str | None = None

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
        for entry in self.attacks:
            if not isinstance(entry, (str, Mapping)):
                raise ValueError(
                    f"Expected attacks to hold names in quotes, or tables with attack = NAME; "
                    f"there is {entry!r}."
                )

    def make_trainers(self) -> dict[str, Trainer]:
        """Label to trainer.

        Raises:
            ValueError: If there is none, or a name, a setting or its value is not known.
        """
        if not self.trainers:
            raise ValueError(
                f"Expected trainers={{}} to name some of {', '.join(sorted(TRAINERS))}."
            )
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
        made = self.attacks_asked()
        for token, attack in zip(self.attack_tokens, made, strict=True):
            # Before training: after hours of it, an audit without canaries would fail.
            needed = attack.canaries_needed if isinstance(attack, NeedsCanaries) else 0
            if needed > self.canaries:
                raise ValueError(
                    f"Expected canaries={self.canaries} >= {needed}, the guesses of {token}. "
                    "Plant so many with --canaries, or in the study file (canaries = 500)."
                )
        check_attack_names(made)
        return made

    def attacks_asked(self) -> tuple[Attack, ...]:
        """The attacks, also those that need more canaries than there are.

        Raises:
            ValueError: If a name, a setting or its value is not known.
        """
        made = []
        for entry, token in zip(self.attacks, self.attack_tokens, strict=True):
            given = {} if isinstance(entry, str) else dict(entry)
            given.pop("attack", None)
            if "delta" in {item.name for item in dataclasses.fields(ATTACKS[token])}:
                given.setdefault("delta", self.delta)
            made.append(make_attack(token, given))
        return tuple(made)

    @property
    def attack_tokens(self) -> tuple[Any, ...]:
        """The names of the attacks, as they were given."""
        return tuple(a if isinstance(a, str) else a.get("attack") for a in self.attacks)

    def planted(self, data: FederatedData) -> FederatedData:
        """The data, with canaries where the study has some.

        Raises:
            ValueError: If there are more canaries than training rows.
        """
        # As it was, with the same digest: folders of studies without canaries stay valid.
        if not self.canaries:
            return data
        return with_canaries(data, mislabelled_rows(data, self.canaries))

    def to_plain(self) -> dict[str, Any]:
        """The study as tables, every setting of every trainer and attack spelled out."""
        # Tokens as they were given: a reference repeats the run, the class's own token may not.
        full = {
            label: {"trainer": self.trainers[label].get("trainer", label), **settings_of(trainer)}
            for label, trainer in self.make_trainers().items()
        }
        attacks = list(zip(self.attack_tokens, self.make_attacks(), strict=True))
        plain = {
            "schema": SCHEMA,
            "data": self.data,
            "model": self.model,
            "epsilons": list(self.epsilons),
            "delta": self.delta,
            "seeds": self.seeds,
            "attacks": [{"attack": token, **settings_of(attack)} for token, attack in attacks],
            "canaries": self.canaries,
            "runtime": self.runtime,
            "device": self.device,
            "baseline": self.baseline,
            "data_options": dict(self.data_options),
            "trainers": full,
        }
        # TOML has no None; what is left out is the default when it is read.
        return {name: value for name, value in plain.items() if value is not None}


def write_study(study: Study, path: Path) -> None:
    """Writes the file that repeats a comparison."""
    import tomli_w

    path.parent.mkdir(parents=True, exist_ok=True)
    # Replaced as a whole: an interruption never leaves half a study beside its rows.
    fresh = path.with_suffix(".new")
    text = tomli_w.dumps(study.to_plain())
    # A path that is no UTF-8: TOML has no way to write it, and the rows must not be lost for it.
    text = "".join(c if printable(c) == c else f"\\{printable(c)}" for c in text)
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def read_study(path: Path) -> Study:
    """Reads a study file.

    Raises:
        DataError: If the file is missing, no TOML, or written by a newer version.
        ValueError: If it has an entry that a study does not have, or a value that is out of range.
    """
    table = read_toml(path)
    # Whoever writes a study by hand need not know its schema.
    checked_schema(table.pop("schema", None), path)
    known = [item.name for item in dataclasses.fields(Study)]
    for name in table:
        if name not in known:
            raise ValueError(
                f"{path}: no entry {name!r} in a study; there is {', '.join(known)}."
                f"{nearest(name, known)}"
            )
    # A study is frozen, and what it holds must not change either.
    for name in ("epsilons", "attacks"):
        if isinstance(table.get(name), list):
            table[name] = tuple(table[name])
    try:
        return Study(**table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
