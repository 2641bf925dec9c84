"""Comparisons and results on disk."""

import os
from pathlib import Path
from typing import Any

from privtrain.core.errors import UnsupportedError
from privtrain.core.result import Comparison, TrainResult
from privtrain.core.schema import SCHEMA
from privtrain.core.statement import to_json_text
from privtrain.core.writing import fill, new_folder
from privtrain.report import files
from privtrain.report.publishing import UNPROTECTED, unprotected
from privtrain.runs.evaluating import Evaluation
from privtrain.runs.keeping import INSIDE, model_files

_OF_RESULT = (
    *("history.unprotected", "history.votes"),
    *("statement.guarantees", "statement.exact", "cost.seconds"),
)


def save(
    made: Comparison | TrainResult,
    folder: str | os.PathLike[str],
    *,
    evaluation: Evaluation | None = None,
    force: bool = False,
) -> Path:
    """Writes a comparison, or the result of a fit.

    Of a comparison: comparison.json, table.csv, table.tex and report.html, each as a whole or not
    at all. Of a result: result.json, with statement, cost, history and run card, and the model in
    `model/`, as `save_model` writes it; all of it or nothing. The transcript and which rows were
    used are not written.

    Args:
        made: What `compare` or `fit` returned.
        folder: Where to; made where it does not exist.
        evaluation: What `evaluate` measured of a result, written along.
        force: Whether to overwrite a comparison or result that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: If it is something else.
        DataError: If the folder holds something and `force` is not set, or cannot be written.
        PrivtrainError: If the disk is full, or a rendering of a comparison cannot be made.
    """
    if isinstance(made, Comparison):
        return files.save(made, folder, force=force)
    if not isinstance(made, TrainResult):
        raise ValueError(
            f"Expected a comparison or the result of a fit, not a {type(made).__name__}."
        )
    where, model, note = Path(folder), {}, None
    try:
        model = model_files(made, evaluation)
    except UnsupportedError as error:
        # The figures are no less worth keeping.
        note = f"the model is not kept: {error}"
    with new_folder(where, ours=(files.RESULT_NAME, INSIDE), force=force) as fresh:
        if model:
            (fresh / INSIDE).mkdir()
        for name, content in model.items():
            fill(fresh / INSIDE, name, content)
        fill(fresh, files.RESULT_NAME, f"{to_json_text(_document(made, evaluation, note))}\n")
    return where


def _document(
    result: TrainResult, evaluation: Evaluation | None, note: str | None
) -> dict[str, Any]:
    measured = None
    if evaluation is not None:
        measured = {"metrics": dict(evaluation), "intervals": dict(evaluation.intervals)}
    named = unprotected([result.statement], [result.history])
    return {
        "schema": SCHEMA,
        "kind": "result",
        "statement": result.statement,
        "cost": result.cost,
        "history": result.history,
        "halted": result.halted,
        "notes": [*result.notes, *([note] if note else [])],
        "evaluation": measured,
        "card": result.card,
        "model": None if note else INSIDE,
        "unprotected": {
            **{name: why for name, why in named.items() if name in _OF_RESULT},
            "evaluation": UNPROTECTED["accuracy"],
        },
    }
