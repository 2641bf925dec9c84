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
        identity: What identifies the run.
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
    _loaded: tuple[int, dict[str, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
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
        if identity != self.identity:
            raise PrivtrainError(
                f"The checkpoint {self.path} belongs to another run. Resume with the trainer, "
                "data, seed and entropy it was started with, or choose another folder."
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
            "identity": self.identity,
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
        # Replaced as a whole: where this write is interrupted, the last checkpoint is still there.
        fresh = self.path.with_suffix(".new")
        try:
            torch.save(document, fresh)
            fresh.replace(self.path)
        except (OSError, RuntimeError) as error:
            raise PrivtrainError(
                f"Cannot write the checkpoint {self.path}: {error}. Free disk space or choose "
                "another folder; the last checkpoint is still there, so the run can be resumed."
            ) from error

    def load(self) -> tuple[int, dict[str, Any]] | None:
        return self._loaded
