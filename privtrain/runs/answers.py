"""What models say of rows, and where it is kept, so that no shadow model is trained twice."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privtrain.core.errors import DataError
from privtrain.core.validate import made_folder
from privtrain.core.writing import write_file
from privtrain.runs.checkpoint import Identity

_DIGEST = 32


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model says of each row.

    Args:
        losses: The task's losses, float64, `(rows,)`.
        log_probabilities: Log of the probability of the true class, likewise; None where outputs
            are no logits of the rows' classes.
        notes: How the model was trained, where it was not as usual.
    """

    losses: NDArray[np.float64]
    log_probabilities: NDArray[np.float64] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnswerFiles:
    """One file a model, each of which is written whole and tells whether it still is.

    Args:
        folder: Where they lie, for their owner alone: who knows all candidates but one value finds
            that value by trying. None keeps nothing.
    """

    folder: Path | None

    @staticmethod
    def of(identity: Identity, folder: Path | None) -> "AnswerFiles":
        """The files of some models in a folder, where those of others may lie beside them.

        Args:
            identity: What identifies the models, and the rows that they are asked about.
            folder: Where a folder is made for them; None for none.

        Raises:
            DataError: If it cannot be made.
        """
        if folder is None:
            return AnswerFiles(None)
        home = made_folder(folder)
        name = f"shadows-{identity.written(identity.whole, home)[:16]}"
        return AnswerFiles(made_folder(home / name))

    def load(self, numbers: Iterable[int]) -> dict[int, Answers]:
        """What is kept of some models; what is damaged counts as not kept.

        Raises:
            DataError: If a file is there and cannot be opened.
        """
        found = {} if self.folder is None else {n: _read(self._path(n)) for n in numbers}
        return {number: answers for number, answers in found.items() if answers is not None}

    def save(self, number: int, answers: Answers) -> None:
        """Keeps what a model says.

        Raises:
            PrivtrainError: If the disk is full; what was kept before is whole.
            DataError: If the file cannot be written for another reason.
        """
        if self.folder is None:
            return
        arrays = {"losses": answers.losses, "notes": np.array(answers.notes, dtype=np.str_)}
        if answers.log_probabilities is not None:
            arrays["log_probabilities"] = answers.log_probabilities
        written = io.BytesIO()
        np.savez(written, allow_pickle=False, **arrays)
        content = written.getvalue()
        # For its owner alone, as a checkpoint: it is computed from private rows.
        write_file(self._path(number), hashlib.sha256(content).digest() + content, mode=0o600)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"model-{number:04d}.answers"


def _read(path: Path) -> Answers | None:
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"Cannot read the answers of a shadow model, {path}: {error.strerror}. Make it "
            "readable, or choose another folder."
        ) from error
    told, content = whole[:_DIGEST], whole[_DIGEST:]
    # Written as a whole: what is torn was torn by the disk, and is trained again.
    if hashlib.sha256(content).digest() != told:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Answers(
            losses=arrays["losses"],
            log_probabilities=arrays.get("log_probabilities"),
            notes=tuple(arrays["notes"].tolist()),
        )
