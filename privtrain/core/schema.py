"""The number of the form in which studies, rows, comparisons and marks of folders are written."""

from pathlib import Path

from privtrain.core.errors import DataError

SCHEMA = 2
"""It grows where an older version would misread a file. Version 0.1 wrote none, which is 1."""


def checked_schema(schema: object, file: str | Path) -> int:
    """The schema of a file that this version reads.

    Args:
        schema: What the file says; None where it says nothing.
        file: The file, for messages.

    Raises:
        DataError: If a newer version wrote the file, or none did.
    """
    if schema is None:
        return 1
    if type(schema) is not int or schema < 1:
        raise DataError(
            f"{file} says schema={schema!r}, which no version of privtrain writes. Bring back the "
            "file as it was, or choose another folder."
        )
    if schema > SCHEMA:
        raise DataError(
            f"{file} was written by a newer version of privtrain: its schema is {schema}, and this "
            f"version reads {SCHEMA} at most. Update privtrain, or choose another folder. Nothing "
            "was changed."
        )
    return schema


def written_by_old(folder: Path) -> DataError:
    """The error of a folder in which nobody can tell what was trained."""
    return DataError(
        f"The folder {folder} was written by version 0.1 of privtrain, or holds a run without its "
        "mark: nothing there says which model, loss, trainer and rows it belongs to, so that no "
        "run can go on in it. Choose another folder, such as --out ANOTHER_FOLDER, which trains "
        "from the start. Nothing was changed; privtrain report reads a finished comparison of it."
    )
