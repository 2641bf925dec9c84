"""Data sets, files, own arrays, and the ways to share rows among parties."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtrain.data.arrays import from_arrays, from_npz
    from privtrain.data.canaries import mislabelled_rows, noise_rows, with_canaries
    from privtrain.data.datasets import adult, breast_cancer, digits, mnist
    from privtrain.data.loading import load, names
    from privtrain.data.models import CNN, MLP, LogisticRegression
    from privtrain.data.partition import (
        IID,
        ByColumn,
        ByQuantity,
        Dirichlet,
        Partition,
        Shards,
        parse_partition,
    )
    from privtrain.data.rows import LazyRows
    from privtrain.data.tables import from_csv

__all__ = [
    "CNN",
    "IID",
    "MLP",
    "ByColumn",
    "ByQuantity",
    "Dirichlet",
    "LazyRows",
    "LogisticRegression",
    "Partition",
    "Shards",
    "adult",
    "breast_cancer",
    "digits",
    "from_arrays",
    "from_csv",
    "from_npz",
    "load",
    "mislabelled_rows",
    "mnist",
    "names",
    "noise_rows",
    "parse_partition",
    "with_canaries",
]

_MODULES = {
    "CNN": "models",
    "IID": "partition",
    "MLP": "models",
    "ByColumn": "partition",
    "ByQuantity": "partition",
    "Dirichlet": "partition",
    "LazyRows": "rows",
    "LogisticRegression": "models",
    "Partition": "partition",
    "Shards": "partition",
    "adult": "datasets",
    "breast_cancer": "datasets",
    "digits": "datasets",
    "from_arrays": "arrays",
    "from_csv": "tables",
    "from_npz": "arrays",
    "load": "loading",
    "mislabelled_rows": "canaries",
    "mnist": "datasets",
    "names": "loading",
    "noise_rows": "canaries",
    "parse_partition": "partition",
    "with_canaries": "canaries",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return __all__
