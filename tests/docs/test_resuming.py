"""What the page on sharp edges says of folders: rows of another comparison are not taken up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import privtrain as pt
from privtrain.core.result import Comparison


def compared(folder: Path, **changed: Any) -> Comparison:
    task, data = changed.pop("load", pt.data.breast_cancer)(
        parties=4, seed=0, partition=changed.pop("partition", pt.data.IID())
    )
    settings = {"attacks": [pt.LossThreshold()], "delta": 1e-5} | changed
    return pt.compare({"pooled": pt.SGD(epochs=1)}, task, data, folder=folder, **settings)


def test_the_same_comparison_goes_on(tmp_path: Path) -> None:
    first, again = compared(tmp_path), compared(tmp_path)
    assert first.rows[0].error is None
    assert again.rows[0].cost == first.rows[0].cost  # taken up: seconds would differ


@pytest.mark.parametrize(
    "changed",
    [
        {"load": pt.data.digits},
        {"partition": pt.data.Dirichlet(0.5)},
        {"delta": 1e-6},
        {"attacks": [pt.LossThreshold(limit=10)]},
        {"entropy": pt.SYSTEM},
    ],
    ids=["data", "partition", "delta", "attacks", "entropy"],
)
def test_rows_of_another_comparison_are_not_taken_up(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    compared(tmp_path)
    with pytest.raises(pt.DataError, match="another"):
        compared(tmp_path, **changed)


def test_another_model_is_another_comparison(tmp_path: Path) -> None:
    compared(tmp_path)
    task, data = pt.data.breast_cancer(parties=4, seed=0)
    wider = replace(task, model=pt.data.MLP((30, 8, 2)))
    with pytest.raises(pt.DataError, match="another"):
        pt.compare(
            {"pooled": pt.SGD(epochs=1)},
            wider,
            data,
            folder=tmp_path,
            attacks=[pt.LossThreshold()],
        )
