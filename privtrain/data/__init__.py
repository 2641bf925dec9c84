"""Data sets, files, own arrays, and the ways to share rows among parties."""

from privtrain.data.arrays import from_arrays, from_npz
from privtrain.data.canaries import mislabelled_rows, noise_rows, with_canaries
from privtrain.data.datasets import adult, breast_cancer, digits, mnist
from privtrain.data.frames import from_frame
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
from privtrain.data.reading import from_csv
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
    "adult",
    "breast_cancer",
    "digits",
    "from_arrays",
    "from_csv",
    "from_frame",
    "from_npz",
    "load",
    "mislabelled_rows",
    "mnist",
    "names",
    "noise_rows",
    "parse_partition",
    "with_canaries",
]


# Nothing here is loaded lazily: whoever imports `privtrain` alone does not load this package, and
# scikit-learn and kymatio are imported by the functions that need them.
def __dir__() -> list[str]:
    """The public names."""
    return __all__
