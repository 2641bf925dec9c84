"""The run card: what a reader needs to repeat a comparison."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from privtrain.core.models import described
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer

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
) -> dict[str, Any]:
    """What a reader needs to repeat a comparison; of seeds, the public ones only.

    Returns:
        Versions, configuration, data, machine and seeds, as values that JSON can hold.
    """
    validation, public = data.validation, data.public
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "data": {
            "name": data.name,
            "sha256": data.digest,
            "parties": len(data.parties),
            "split": str(data.split),
            "public_rows_stated": data.public_rows,
            "test_rows": len(data.test),
            "validation_rows": 0 if validation is None else len(validation),
            "public_part_rows": 0 if public is None else len(public),
        },
        "configuration": {
            "task": task.name,
            "model": _factory_name(task),
            "trainers": {label: repr(trainer) for label, trainer in trainers.items()},
            "runtimes": [r.name for r in (runtimes.star, runtimes.mesh) if r is not None],
            "device": device,
            "delta": delta,
            "epsilons": list(epsilons),
        },
        "public_seeds": list(seeds),
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
