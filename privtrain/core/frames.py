"""Results as frames of pandas, which need not be installed."""

from collections.abc import Mapping, Sequence
from typing import Any

from privtrain.core.errors import UnsupportedError

_Curve = Sequence[tuple[int, float]]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UnsupportedError(
            "to_frame() needs pandas, which is not installed: pip install pandas"
        ) from error
    return pandas


def comparison_frame(records: Sequence[Mapping[str, Any]]) -> Any:
    """A frame with a row for each record and the columns of all of them.

    Raises:
        UnsupportedError: If pandas is not installed.
    """
    columns = list(dict.fromkeys(name for record in records for name in record))
    return _pandas().DataFrame([dict(record) for record in records], columns=columns)


def history_frame(unprotected: Mapping[str, _Curve], epsilon: _Curve) -> Any:
    """A frame with a row for each round and a column for each curve.

    Args:
        unprotected: Name to points `(round, value)`; its column is called `unprotected_NAME`.
        epsilon: Points `(round, value)`.

    Raises:
        UnsupportedError: If pandas is not installed.
    """
    curves = {f"unprotected_{name}": curve for name, curve in unprotected.items()}
    curves = {"epsilon": epsilon, **curves}
    # A round that has two points of one curve keeps the last, as a resumed run repeats a round.
    values = {name: dict(curve) for name, curve in curves.items() if curve}
    rounds = sorted({round for points in values.values() for round in points})
    columns = {
        name: [points.get(r, float("nan")) for r in rounds] for name, points in values.items()
    }
    return _pandas().DataFrame({"round": rounds, **columns})
