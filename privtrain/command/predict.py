"""The predict command: what a kept model says of new rows."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from privtrain.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from privtrain.runs.keeping import KeptModel


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Ask a model that privtrain fit or pt.save_model wrote about new rows.

    Example: privtrain predict runs/model --data new.csv --out predictions.csv
    """

    model: tyro.conf.Positional[Path]
    """Folder of the model, or of the run that it lies in."""
    data: Path
    """A .csv file whose first line names the columns, in any order, or an .npz file with an array
    x; values as they are in the world, not scaled. A column with the label is not needed."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """File for the predictions, a line for each row (default: standard output)."""
    made_by: Annotated[str | None, tyro.conf.arg(metavar="WORD", help_behavior_hint="")] = None
    """my_model.py:make, which made the model, where the folder cannot say it. It is run."""
    force: bool = False
    """Overwrite a file of predictions that is already there."""


def predict_command(args: Predict) -> int:
    """Writes a prediction for each row.

    Returns:
        The exit code, 0.

    Raises:
        DataError: If the model or the rows cannot be read, or a file would be overwritten.
    """
    _check_out(args)
    from privtrain.command.user_code import import_named
    from privtrain.core.writing import write_file
    from privtrain.runs.keeping import load_model

    made_by = None if args.made_by is None else import_named(args.made_by, "made-by")
    model = load_model(args.model, model=made_by)
    text = predictions(model, model.encode(args.data))
    if args.out is None:
        print(text, end="")
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(args.out, text)
    print(f"{text.count(chr(10)) - 1} predictions lie in {args.out}", file=sys.stderr)
    return 0


def _check_out(args: Predict) -> None:
    """Refuses to overwrite anything, before a model is loaded."""
    if args.out is None:
        return
    if args.out.exists() and args.data.exists() and args.out.samefile(args.data):
        raise DataError(f"Expected out={str(args.out)!r} to be another file than the data.")
    if args.out.is_dir() or (args.out.exists() and not args.force):
        raise DataError(
            f"Expected out={str(args.out)!r} to be a new file. Choose another one, or overwrite a "
            "file with --force."
        )


def predictions(model: "KeptModel", inputs: "Tensor") -> str:
    """A table in CSV: for each row the class, where the model tells classes apart, and its outputs.

    Args:
        model: What is asked.
        inputs: Shape `(rows, ...)`, as the model was trained on them.
    """
    from privtrain.runs.asking import asked
    from privtrain.runs.keeping import classes_of

    outputs = asked(model.module, inputs)
    flat = outputs.reshape(len(outputs), -1)
    classes = None
    if model.tells_classes(outputs):
        classes = classes_of(outputs, model.encoder)
    header = [] if classes is None else ["prediction"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, *_names(model, flat.shape[1])])
    for number, values in enumerate(_texts(flat)):
        writer.writerow([*([] if classes is None else [classes[number]]), *values])
    return text.getvalue()


def _names(model: "KeptModel", outputs: int) -> list[str]:
    named: Sequence[str] | None = None if model.encoder is None else model.encoder.classes
    if named is None or len(named) != outputs:
        named = [str(number) for number in range(outputs)]
    # Not "probability": a model's outputs are what its loss takes, such as logits.
    return [f"output[{name}]" for name in named]


def _texts(values: "Tensor") -> Iterator[list[str]]:
    for row in values.double().tolist():
        yield [f"{value:.9g}" for value in row]
