"""The run card: what a reader needs to repeat a comparison."""

import math
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from privtrain.core.cost import Basis
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.fields import told_fields
from privtrain.core.identity import without_addresses
from privtrain.core.keys import PRIVATE, has_key, home_of_key
from privtrain.core.models import described
from privtrain.core.result import Leakage, Row
from privtrain.core.runtime import Runtimes
from privtrain.core.statement import ADD_REMOVE, Guarantee, PrivacyStatement, Unit, to_plain
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.runs.checkpoint import keyed_identity

NOT_PUBLIC = "not public"
"""Stands for a number that a guarantee hides."""

PACKAGES = ("torch", "numpy", "flwr", "opacus", "crypten", "dp-accounting", "scikit-learn")


def run_card(
    trainers: Mapping[str, Trainer],
    task: Task,
    data: FederatedData,
    runtimes: Runtimes,
    seeds: Sequence[int],
    epsilons: Sequence[float],
    delta: float,
    device: str,
    *,
    statements: Sequence[PrivacyStatement] = (),
    entropy: str = "",
    folder: Path | None = None,
) -> dict[str, Any]:
    """What a reader needs to repeat a comparison; of seeds, the public ones only.

    Args:
        trainers: Label to trainer.
        task: What is learned.
        data: Who holds which rows.
        runtimes: Where parties run.
        seeds: Public seeds.
        epsilons: What was asked for.
        delta: Delta of every guarantee.
        device: Where tensors are computed.
        statements: What the runs promise: counts that this hides are left out.
        entropy: Where noise came from.
        folder: The comparison's folder, under whose key the rows are identified; None leaves a
            digest of them out.

    Returns:
        Versions, configuration, data, machine and seeds, as values that JSON can hold.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "data": {
            "name": data.name,
            **_digest(data, folder),
            "split": str(data.split),
            "public_rows_stated": data.public_rows,
            **_counts(data, statements),
        },
        "configuration": {
            "task": task.name,
            "model": _factory_name(task),
            "trainers": {label: _printed(trainer) for label, trainer in trainers.items()},
            "settings": {label: settings_in_words(trainer) for label, trainer in trainers.items()},
            "runtimes": [r.name for r in (runtimes.star, runtimes.mesh) if r is not None],
            "device": device,
            "entropy": entropy,
            "delta": delta,
            "epsilons": list(epsilons),
        },
        "public_seeds": list(seeds),
    }


def fit_card(
    trainer: Trainer,
    task: Task,
    data: FederatedData,
    runtimes: Runtimes,
    seed: int,
    delta: float,
    device: str,
    *,
    statement: PrivacyStatement,
    entropy: str,
    folder: Path | None,
) -> dict[str, Any]:
    """What a reader needs to repeat one fit: a run card, with all settings of its trainer.

    Args:
        trainer: How the model was trained.
        task: What was learned.
        data: Who held which rows.
        runtimes: Where parties ran.
        seed: Public seed.
        delta: Delta of every guarantee.
        device: Where tensors were computed.
        statement: What is promised: counts that this hides are left out.
        entropy: Where noise came from.
        folder: Where the run lies, under whose key the rows are identified; None leaves a digest
            of them out.

    Returns:
        As `run_card`, with `settings` in its configuration: each of them, defaults included.
    """
    card = run_card(
        *({trainer.token: trainer}, task, data, runtimes, [seed], [], delta, device),
        statements=[statement],
        entropy=entropy,
        folder=folder,
    )
    configuration = {
        **{name: item for name, item in card["configuration"].items() if name != "epsilons"},
        "settings": settings_of(trainer),
    }
    return {**card, "configuration": configuration}


def without_counts(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card in which no number of rows or parties stands: it lies beside other runs' cards.

    What a run that promises nothing counts would tell the number that another one hides.
    """
    names = ("parties", "test_rows", "validation_rows", "public_part_rows")
    hidden = {name: NOT_PUBLIC for name in names if name in card.get("data", {})}
    return {**card, "data": {**card.get("data", {}), **hidden}}


def settings_of(value: Any) -> Any:
    """A trainer, or a part of one, as plain values: all fields by name, those at defaults, too.

    Returns:
        A mapping with `kind`, the name of its class; numbers, texts and lists as they are; what is
        none of these, such as a function, as it prints.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return to_plain(value)
    if is_dataclass(value) and not isinstance(value, type):
        shown = [each for each in fields(value) if each.repr]
        settings = {each.name: settings_of(getattr(value, each.name)) for each in shown}
        return {"kind": type(value).__qualname__, **settings}
    if isinstance(value, Mapping):
        return {str(name): settings_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [settings_of(item) for item in value]
    return _printed(value)


def _printed(value: object) -> str:
    try:
        return without_addresses(repr(value))
    except OWN_ERRORS:  # a user's own repr may raise anything
        return f"a {type(value).__qualname__}"


def _digest(data: FederatedData, folder: Path | None) -> dict[str, str]:
    # Whoever knows all rows but one value finds it by hashing, unless there is a key to it.
    if folder is None or not data.digest:
        return {}
    # Rows that everybody has are known by their name, and need no key.
    if data.published and not has_key(home_of_key(folder)):
        return {}
    return {
        "keyed_digest": keyed_identity(data.digest, folder),
        "keyed_digest_means": f"HMAC-SHA256 of all rows, under the key in {PRIVATE}/: never "
        "publish that folder",
    }


def promises(statements: Sequence[PrivacyStatement]) -> list[Guarantee]:
    """The guarantees with a finite epsilon."""
    made = [guarantee for statement in statements for guarantee in statement.guarantees]
    return [guarantee for guarantee in made if math.isfinite(guarantee.epsilon)]


def rows_are_public(data: FederatedData, statements: Sequence[PrivacyStatement]) -> bool:
    """Whether exact numbers of rows may stand beside these statements.

    They may if the data are a published data set, or if nobody is promised that one row, or one
    user's rows, more or less cannot be told. A stated number does not make the true one public.
    """
    hidden = any(
        g.relation is ADD_REMOVE and g.unit is not Unit.CLIENT for g in promises(statements)
    )
    return data.published or not hidden


def parties_are_public(statements: Sequence[PrivacyStatement]) -> bool:
    """Whether the parties and their number may stand beside these statements.

    They may unless somebody is promised that one client more or less cannot be told.
    """
    return not any(g.relation is ADD_REMOVE and g.unit is Unit.CLIENT for g in promises(statements))


def published(rows: Iterable[Row], data: FederatedData) -> tuple[Row, ...]:
    """The rows without what a guarantee of any of them hides from who reads all of them.

    What is counted in a run that promises nothing, such as the bytes of all rows, would tell the
    number that another run of the same comparison promises to hide.
    """
    made = tuple(rows)
    statements = [row.statement for row in made if row.statement is not None]
    hides_rows = not rows_are_public(data, statements)
    hidden = set() if parties_are_public(statements) else set(data.parties)
    return tuple(_published(row, hides_rows, hidden) for row in made)


def _published(row: Row, hides_rows: bool, hidden: set[str]) -> Row:
    cost = row.cost
    counted = cost is not None and cost.basis is Basis.MEASURED
    # Figures by party tell who there is, whatever they follow from.
    named = cost is not None and not hidden.isdisjoint(cost.bytes_sent_by_party)
    if cost is not None and ((hides_rows and counted) or named):
        cost = replace(
            cost, bytes_sent=None, rounds=None, bytes_sent_by_party={}, basis=Basis.WITHHELD
        )
    leakage = row.leakage
    if hides_rows:
        leakage = tuple(map(uncounted, leakage))
    return replace(row, cost=cost, leakage=leakage)


_COUNTED = re.compile(r"^\d+ (?=of the |scores were )")


# Whether clients were never drawn.
_IDLE = re.compile(r"non-members are (clients of|made up)[^;]*(; where[^;]*)?")
_OTHERS = "non-members are other clients, or test rows in their place"


def uncounted(leakage: Leakage) -> Leakage:
    """A leakage without what counts rows: candidates, queries, and numbers of rows in notes.

    Rates are fractions of the number of candidates: they keep three digits, intervals are rounded
    outwards, and realised rates are left out. Bounds by coins count canaries, which are public.
    """
    notes = (_COUNTED.sub("some ", note) for note in leakage.notes)
    hidden = replace(
        leakage,
        members=None,
        non_members=None,
        queries=None,
        notes=tuple(_IDLE.sub(_OTHERS, note) for note in notes),
    )
    if "auc" not in leakage.metrics:
        return hidden
    return replace(
        hidden,
        metrics={
            name: None if value is None else round(value, 3)
            for name, value in leakage.metrics.items()
            if not name.startswith("realised")
        },
        intervals={
            name: (math.floor(1000 * low) / 1000, math.ceil(1000 * high) / 1000)
            for name, (low, high) in leakage.intervals.items()
        },
    )


def _counts(data: FederatedData, statements: Sequence[PrivacyStatement]) -> dict[str, int | str]:
    validation, public = data.validation, data.public
    exact = rows_are_public(data, statements)
    rows = {
        "test_rows": len(data.test),
        "validation_rows": 0 if validation is None else len(validation),
        "public_part_rows": 0 if public is None else len(public),
    }
    return {
        "parties": len(data.parties) if parties_are_public(statements) else NOT_PUBLIC,
        **{name: count if exact else NOT_PUBLIC for name, count in rows.items()},
    }


def settings_in_words(trainer: Trainer) -> dict[str, str]:
    """The settings of a trainer as texts; none where it is no dataclass."""
    if not is_dataclass(trainer) or isinstance(trainer, type):
        return {}
    told = [field.name for field in told_fields(trainer) if field.init]
    return {name: _in_words(getattr(trainer, name)) for name in told}


def _in_words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else _printed(value)


def _factory_name(task: Task) -> str:
    if isinstance(task.model, nn.Module):
        return described(task.model)
    # A dataclass that makes models, such as LogisticRegression(64, 10), says more by its repr.
    name = getattr(task.model, "__qualname__", None)
    return f"{task.model.__module__}:{name}" if name else _printed(task.model)


def versions() -> dict[str, str]:
    """Versions of Python, privtrain and what it stands on; "not installed" where one is missing."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # Once: to look for the metadata of a package takes a millisecond, and every fit has a card.
    installed = {"python": platform.python_version()}
    for package in ("privtrain", *PACKAGES):
        try:
            installed[package] = version(package)
        # CrypTen is installed by hand, and who does not compute on shares does without.
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def machine() -> dict[str, Any]:
    """The kind of machine. Its name is left out: a card is published with the results."""
    import torch

    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processors": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "byte_order": sys.byteorder,
    }
