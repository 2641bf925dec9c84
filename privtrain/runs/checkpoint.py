"""The checkpoint of a run: what an interrupted run needs to go on, and which run it belongs to."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from privtrain.core.errors import PrivtrainError
from privtrain.core.identity import without_addresses
from privtrain.core.keys import home_of_key, keyed_digest
from privtrain.core.result import History
from privtrain.core.task import FederatedData
from privtrain.core.transcript import Entry, Setup, Transcript


def identity_of(*parts: object) -> str:
    """What identifies a run, so that a folder is not resumed with other settings.

    Args:
        parts: Frozen values that print everything they consist of.
    """
    # Functions print their place in memory, which is another one in every process.
    text = without_addresses(repr(parts))
    return hashlib.sha256(text.encode()).hexdigest()


def keyed_identity(identity: str, folder: Path) -> str:
    """An identity as it may lie in a folder: under the key of the run that the folder is part of.

    An identity says which rows there are, so that without a key whoever knows all of them but one
    value finds it by trying.

    Args:
        identity: What `identity_of` gave.
        folder: Where it is written.
    """
    return keyed_digest(identity, home_of_key(folder))


LOADED_BEFOREHAND = 10_000
"""More parties than this are loaded when they are sampled, not all before training."""


def layout_of(data: FederatedData) -> str:
    """What identifies who holds which rows; of very many parties, their names only."""
    layout = hashlib.sha256(repr(data.parties).encode())
    if len(data.parties) <= LOADED_BEFOREHAND:
        for party in data.parties:
            inputs = data.train[party].inputs
            layout.update(repr(tuple(inputs.shape)).encode())
            # The data's own digest covers all values; this has to tell who holds which rows.
            few = inputs.reshape(len(inputs), -1)[:, :4].double()
            layout.update(few.contiguous().cpu().numpy().tobytes())
    return layout.hexdigest()


@dataclass
class FileCheckpoint:
    """Keeps a run's state in a file, replaced as a whole; nothing where there is no folder.

    Args:
        transcript: Kept along; filled with what earlier sittings of the run sent.
        history: Kept along, too.
        path: The file, or None.
        identity: What identifies the run; it is written under the key of the folder.
        spent: How many releases were spent so far; called at each save.
        seconds_before: Seconds that earlier sittings took.
        spent_before: Releases that were spent when the file was written.

    Raises:
        PrivtrainError: If the file cannot be read, or is another run's.
    """

    transcript: Transcript
    history: History
    path: Path | None
    identity: str = ""
    spent: Callable[[], int] = field(default=lambda: 0)
    seconds_before: float = field(default=0.0, init=False)
    spent_before: int = field(default=0, init=False)
    _started: float = field(default_factory=time.monotonic, repr=False)
    _mark: str = field(default="", init=False, repr=False)
    _loaded: tuple[int, dict[str, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        self._mark = keyed_identity(self.identity, self.path.parent)
        if not self.path.exists():
            return
        try:
            # Tensors and plain values only: a pickle could run code of whoever wrote the folder.
            saved = torch.load(self.path, weights_only=True)
            identity = saved["identity"]
            self._loaded = (saved["done"], saved["state"])
            self.seconds_before, self.spent_before = saved["seconds"], saved["spent"]
            self.transcript.entries.extend(Entry(*entry) for entry in saved["entries"])
            self.transcript.setups.extend(Setup(*setup) for setup in saved["setups"])
            self.history.unprotected.update(saved["unprotected"])
        except Exception as error:  # torch raises whatever a broken file makes it raise
            raise PrivtrainError(
                f"The checkpoint {self.path} cannot be read: {error}. Choose another folder to "
                "start again; what the journal here spent stays spent for that data."
            ) from error
        # Version 0.1 wrote the identity without a key: it is recognised once, and replaced.
        if identity == self.identity:
            _write(self.path, {**saved, "identity": self._mark})
        elif identity != self._mark:
            raise PrivtrainError(
                f"The checkpoint {self.path} belongs to another run, or the key in its private "
                "folder is gone. Resume with the trainer, data, seed and entropy it was started "
                "with, or choose another folder."
            )

    @property
    def seconds(self) -> float:
        """Seconds that the run took so far, earlier sittings included."""
        return self.seconds_before + time.monotonic() - self._started

    def save(self, done: int, state: Mapping[str, Any]) -> None:
        """Keeps the state after a number of finished rounds.

        Raises:
            PrivtrainError: If the file cannot be written.
        """
        if self.path is None:
            return
        document = {
            "identity": self._mark,
            "done": done,
            "state": dict(state),
            "seconds": self.seconds,
            # Only read where nothing is promised and no journal counts.
            "spent": self.spent(),
            "entries": [
                (e.sender, e.receiver, e.kind, e.shape, e.bytes, e.round)
                for e in self.transcript.entries
            ],
            "setups": [(s.party, s.what) for s in self.transcript.setups],
            "unprotected": self.history.unprotected,
        }
        _write(self.path, document)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        return self._loaded


def _write(path: Path, document: Mapping[str, Any]) -> None:
    # Replaced as a whole: where this write is interrupted, the last checkpoint is still there.
    fresh = path.with_suffix(".new")
    try:
        torch.save(document, fresh)
        fresh.replace(path)
    except (OSError, RuntimeError) as error:
        raise PrivtrainError(
            f"Cannot write the checkpoint {path}: {error}. Free disk space or choose "
            "another folder; the last checkpoint is still there, so the run can be resumed."
        ) from error
