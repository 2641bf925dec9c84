"""Scores of teachers, kept from run to run, so that mechanisms are studied without training again.

Scores are private: they say more than any vote. They lie readable by their owner alone, under names
that nobody can make without the key in `private/`, which is never published.
"""

import hashlib
import json
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import DataError, PrivacyError, UnsupportedError
from privtrain.core.keys import keyed_digest
from privtrain.core.rounding import printed_up
from privtrain.core.runtime import Runtimes
from privtrain.core.validate import made_folder
from privtrain.core.writing import explained, write_file
from privtrain.ledgers.study import StudyLedger
from privtrain.runtimes.in_process import InProcess

_BEGINNING = b"privtrain votes 1\n"
_STUDY = "study.json"
_TYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}


@dataclass(frozen=True)
class VoteCache:
    """A folder of the scores that teachers gave, for studies of mechanisms and students.

    A run finds scores there if rows, assignment, seed, teachers, features and queries are the same,
    to the bit. What is released of them is charged by every run: a study ledger with a journal on
    disk adds it up, and a cache belongs to one such study.

    Args:
        folder: Where they lie; made where it is not there. Never publish it.
    """

    folder: str | Path

    def scores(self, digest: bytes, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        """Scores of teachers, from the cache or made and kept.

        Args:
            digest: What they follow from.
            make: Makes them, of one shape and type, on the CPU.

        Raises:
            DataError: If the file is torn or somebody else's, or the folder cannot be written.
            PrivtrainError: If the disk is full; nothing torn is left.
        """
        home = _private_folder(self.folder)
        path = home / f"{keyed_digest(digest.hex(), home)}.votes"
        if path.exists() or path.is_symlink():
            return _read(path)
        made = list(make())
        write_file(path, _written(path.name, made), mode=0o600)
        return made

    def check(self, runtimes: Runtimes, study: StudyLedger | None) -> None:
        """Refuses runs whose releases nobody would add up, before anything is spent.

        Raises:
            PrivacyError: If there is no study ledger with a journal, or it is not the one whose
                charges the cache has seen.
            UnsupportedError: If parties are anything but function calls of this process.
            DataError: If the folder cannot be written.
        """
        if runtimes.star is not None and not isinstance(runtimes.star, InProcess):
            raise UnsupportedError(
                f"Expected votes={self} beside a simulation in this process, not "
                f"{runtimes.star.name}: scores of all parties lie in one folder. Leave votes= out."
            )
        if study is None or study.journal is None:
            what = "study_ledger=None" if study is None else "study_ledger with journal=None"
            raise PrivacyError(
                f"Expected {what} to be a StudyLedger with a journal on disk where votes={self}: "
                "each mechanism that is asked of kept votes releases something more about the same "
                "rows, and nobody would add it up. Give study_ledger=pt.StudyLedger(data, "
                "journal='study.jsonl'), with budget= and adaptive=True where settings are chosen "
                "by looking."
            )
        home = _private_folder(self.folder)
        path, journal = home / _STUDY, str(Path(study.journal).resolve())
        known = _known(path)
        if known is not None and known != {**known, "journal": journal}:
            raise PrivacyError(
                f"The votes in {home} belong to the study of {known['journal']}, not of {journal}: "
                "two journals have no common sum. Use that journal, or another folder."
            )
        charged = len(study.charges)
        if known is not None and charged < known["charges"]:
            raise PrivacyError(
                f"The study of {journal} knows of {charged} fits, and {known['charges']} were "
                f"charged when the votes in {home} were last asked: entries were lost. Put the "
                "journal back, or choose another folder and count both."
            )
        self._note(charged, study)

    def _note(self, charged: int, study: StudyLedger) -> None:
        content = json.dumps(
            {"journal": str(Path(study.journal or "").resolve()), "charges": charged}
        )
        write_file(_private_folder(self.folder) / _STUDY, f"{content}\n", mode=0o600)

    def said(self, study: StudyLedger) -> str:
        """What is printed beside every figure of votes that were kept, once the run is paid for."""
        # The run's own charge, too: of a journal that lost it nothing could be told.
        self._note(len(study.charges), study)
        stated = study.guarantee()
        return (
            f"votes are kept and asked again: fits of the study so far, {len(study.charges)} in "
            f"all, cost the {stated.observer} at most epsilon={printed_up(stated.epsilon)} at "
            f"delta={stated.delta:g} per {stated.unit}, and a figure that was chosen among them is "
            "worth no less"
        )


def _private_folder(folder: str | Path) -> Path:
    path = Path(folder)
    with explained(path):
        if not path.exists():
            path.mkdir(mode=0o700, parents=True)
    return made_folder(path, "votes")


def _known(path: Path) -> dict[str, Any] | None:
    """What a cache remembers of its study; None where it was never asked."""
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known["journal"], str) and isinstance(known["charges"], int):
            return dict(known)
        raise TypeError("it holds other values")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PrivacyError(
            f"{path} is torn or was changed ({type(error).__name__}: {error}): nobody can tell to "
            "which study these votes belong. Choose another folder, and count what was spent."
        ) from error


def _written(name: str, made: list[Tensor]) -> bytes:
    whole = torch.stack([scores.detach().cpu() for scores in made]).contiguous()
    kind = str(whole.dtype).removeprefix("torch.")
    if kind not in _TYPES:
        raise UnsupportedError(f"Scores of type {kind} cannot be kept; leave votes= out.")
    body = whole.numpy().tobytes()
    about = {"shape": list(whole.shape), "type": kind, "sha256": _digest(name, body)}
    return _BEGINNING + json.dumps(about).encode() + b"\n" + body


def _digest(name: str, body: bytes) -> str:
    # With its name: a file that was renamed holds the scores of others.
    return hashlib.sha256(name.encode() + b"\n" + body).hexdigest()


def _read(path: Path) -> list[Tensor]:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is no plain file")
        with path.open("rb") as file:
            if file.readline() != _BEGINNING:
                raise ValueError("it does not begin as such a file")
            about = json.loads(file.readline())
            body = file.read()
        kind, shape = _TYPES[about["type"]], tuple(map(int, about["shape"]))
        if about["sha256"] != _digest(path.name, body):
            raise ValueError("its SHA-256 is not the one that it states")
        whole = torch.from_numpy(np.frombuffer(bytearray(body), dtype=about["type"]))
        return list(whole.to(kind).reshape(shape))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"The kept votes {path} are torn or not privtrain's ({type(error).__name__}: {error}). "
            "Remove the file: the teachers are then trained again. What was charged stays charged."
        ) from error
