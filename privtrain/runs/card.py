"""The run card: what a reader needs to repeat a comparison."""

import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from privtrain.core.keys import PRIVATE, has_key, home_of_key
from privtrain.core.models import described
from privtrain.core.runtime import Runtimes
from privtrain.core.statement import ADD_REMOVE, Guarantee, PrivacyStatement, Unit
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
            "trainers": {label: repr(trainer) for label, trainer in trainers.items()},
            "runtimes": [r.name for r in (runtimes.star, runtimes.mesh) if r is not None],
            "device": device,
            "entropy": entropy,
            "delta": delta,
            "epsilons": list(epsilons),
        },
        "public_seeds": list(seeds),
    }


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


def _factory_name(task: Task) -> str:
    if isinstance(task.model, nn.Module):
        return described(task.model)
    # A dataclass that makes models, such as LogisticRegression(64, 10), says more by its repr.
    name = getattr(task.model, "__qualname__", None)
    return f"{task.model.__module__}:{name}" if name else repr(task.model)


def versions() -> dict[str, str]:
    """Versions of Python, privtrain and what it stands on; "not installed" where one is missing."""
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
