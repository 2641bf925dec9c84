"""Data sets, files, own arrays, and the ways to share rows among parties."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtrain.data.arrays import from_arrays, from_npz
    from privtrain.data.datasets import breast_cancer, digits
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
    "breast_cancer",
    "digits",
    "from_arrays",
    "from_npz",
    "parse_partition",
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
    "breast_cancer": "datasets",
    "digits": "datasets",
    "from_arrays": "arrays",
    "from_npz": "arrays",
    "parse_partition": "partition",
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
