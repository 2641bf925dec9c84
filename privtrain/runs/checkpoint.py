"""The checkpoint of a run: what an interrupted run needs to go on, and which run it belongs to."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from privtrain.accounting.files import event_from_plain, event_to_plain
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.cost import cpu_seconds
from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.keys import has_key, home_of_key, keyed_digest
from privtrain.core.result import History
from privtrain.core.schema import SCHEMA, checked_schema, written_by_old
from privtrain.core.trainer import EXACT, REALISED, RELEASE
from privtrain.core.transcript import Entry, Setup, Transcript


@dataclass(frozen=True)
class Identity:
    """What identifies a run, so that a folder is not resumed with other settings.

    Args:
        parts: Name of each part to a digest of what it computes.
        published: Whether the rows are a published data set, which needs no key: everybody has it.
    """

    parts: Mapping[str, str] = field(repr=False)
    published: bool = False

    @property
    def whole(self) -> str:
        """A digest of all parts."""
        return hashlib.sha256(repr(sorted(self.parts.items())).encode()).hexdigest()

    def written(self, digest: str, folder: Path) -> str:
        """A digest as it may lie in a folder.

        Args:
            digest: What identifies the run, or something of it.
            folder: Where it is written; its key is made where it is first needed.
        """
        if self.published:
            return hashlib.sha256(digest.encode()).hexdigest()
        return keyed_identity(digest, folder)

    def can_be_told(self, folder: Path) -> bool:
        """Whether what was written in a folder can be compared with anything."""
        return self.published or has_key(home_of_key(folder))


def keyed_identity(identity: str, folder: Path) -> str:
    """An identity as it may lie in a folder: under the key of the run that the folder is part of.

    An identity says which rows there are, so that without a key whoever knows all of them but one
    value finds it by trying.

    Args:
        identity: A digest of private rows.
        folder: Where it is written.
    """
    return keyed_digest(identity, home_of_key(folder))


LOADED_BEFOREHAND = 10_000
"""More parties than this are loaded when they are sampled, not all before training."""


def read_state(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None where there is none.

    Raises:
        DataError: If version 0.1 or a newer one wrote it.
        PrivtrainError: If it cannot be read.
    """
    if not path.exists():
        return None
    try:
        # Tensors and plain values only: a pickle could run code of whoever wrote the folder.
        saved: Any = torch.load(path, weights_only=True)
        if "schema" not in saved and "identity" in saved:
            raise written_by_old(path.parent)
        checked_schema(saved["schema"], path)
    except DataError:
        raise
    except Exception as error:  # torch raises whatever a broken file makes it raise
        raise _unreadable(path, error) from error
    made: dict[str, Any] = saved
    return made


def _unreadable(path: Path, error: Exception) -> PrivtrainError:
    return PrivtrainError(
        f"The checkpoint {path} cannot be read: {error}. Choose another folder to start again; "
        "what the journal here spent stays spent for that data."
    )


@dataclass
class FileCheckpoint:
    """Keeps a run's state in a file, replaced as a whole; nothing where there is no folder.

    Args:
        transcript: Kept along; filled with what earlier sittings of the run sent.
        history: Kept along, too.
        path: The file, or None.
        identity: What identifies the run.
        spent: Kind of release to how many were spent so far; called at each save.
        saved: What `read_state` found there.
        seconds_before: Seconds that earlier sittings took.
        cpu_before: Their processor time; None where an earlier version did not count it.
        spent_by_kind: Kind of release to how many were spent when the file was written.

    Raises:
        PrivtrainError: If the file lacks something, or is another run's.
    """

    transcript: Transcript
    history: History
    path: Path | None
    identity: Identity = field(default=Identity({}))
    spent: Callable[[], Mapping[str, int]] = field(default=dict)
    saved: Mapping[str, Any] | None = field(default=None, repr=False)
    seconds_before: float = field(default=0.0, init=False)
    cpu_before: float | None = field(default=0.0, init=False)
    spent_by_kind: dict[str, int] = field(default_factory=dict, init=False)
    _started: float = field(default_factory=time.monotonic, repr=False)
    _cpu_started: float = field(default_factory=cpu_seconds, repr=False)
    _mark: str = field(default="", init=False, repr=False)
    _loaded: tuple[int, dict[str, Any]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        self._mark = self.identity.written(self.identity.whole, self.path.parent)
        if self.saved is None:
            return
        try:
            identity = self.saved["identity"]
            self._loaded = (self.saved["done"], _with_events(self.saved["state"]))
            self.seconds_before = self.saved["seconds"]
            self.cpu_before = self.saved.get("cpu_seconds")
            # Version 0.2 wrote their number alone: there was one kind.
            alone = {RELEASE: self.saved["spent"]}
            self.spent_by_kind = dict(self.saved.get("spent_by_kind", alone))
            self.transcript.extend(Entry(*entry) for entry in self.saved["entries"])
            self.transcript.setups.extend(Setup(*setup) for setup in self.saved["setups"])
            # Not in every file: an exchange in which nothing was sent leaves no entry.
            numbered = int(self.saved.get("exchanges", 0))
            self.transcript.exchanges = max(self.transcript.exchanges, numbered)
            self.history.unprotected.update(self.saved["unprotected"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(self.path, error) from error
        if identity != self._mark:
            raise PrivtrainError(
                f"The checkpoint {self.path} belongs to another run, or the key in its private "
                "folder is gone. Resume with the trainer, data, seed and entropy it was started "
                "with, or choose another folder."
            )

    def forget(self) -> None:
        """Lets the run begin again; the file stays until the next save."""
        self._loaded, self.seconds_before, self.spent_by_kind = None, 0.0, {}
        self.cpu_before = 0.0
        self.transcript.entries.clear()
        self.transcript.setups.clear()
        self.transcript.exchanges = 0
        self.history.unprotected.clear()

    def discard(self) -> None:
        """Deletes the file, so that no later sitting goes on from it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def spent_before(self) -> int:
        """How many releases of all kinds were spent when the file was written."""
        return sum(self.spent_by_kind.values())

    @property
    def seconds(self) -> float:
        """Seconds that the run took so far, earlier sittings included."""
        return self.seconds_before + time.monotonic() - self._started

    def cpu_seconds(self, elsewhere: Iterable[float] = ()) -> float | None:
        """Processor time that the run took so far, earlier sittings included; None if unknown.

        Args:
            elsewhere: That of workers which are no children of this process, in this sitting.
        """
        workers = list(elsewhere)
        # No checkpoint holds what the workers of earlier sittings took.
        if self.cpu_before is None or (workers and self.cpu_before > 0):
            return None
        return self.cpu_before + cpu_seconds() - self._cpu_started + sum(workers)

    def save(self, done: int, state: Mapping[str, Any]) -> None:
        """Keeps the state after a number of finished rounds.

        Raises:
            PrivtrainError: If the file cannot be written.
        """
        if self.path is None:
            return
        spent = dict(self.spent())
        document = {
            "schema": SCHEMA,
            "identity": self._mark,
            "done": done,
            "state": _with_plain_events(state),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds(),
            # Only read where nothing is promised and no journal counts.
            "spent": sum(spent.values()),
            "spent_by_kind": spent,
            "entries": [
                (e.sender, e.receiver, e.kind, e.shape, e.bytes, e.round)
                for e in self.transcript.entries
            ],
            "exchanges": self.transcript.exchanges,
            "setups": [(s.party, s.what) for s in self.transcript.setups],
            "unprotected": self.history.unprotected,
        }
        _write(self.path, document)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        return self._loaded


def _with_plain_events(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose realised charges are plain values, as a file can hold them."""
    realised = {name: event_to_plain(event) for name, event in state.get(REALISED, {}).items()}
    exact = {
        name: [(releases, event_to_plain(event)) for releases, event in events]
        for name, events in state.get(EXACT, {}).items()
    }
    return {**state, REALISED: realised, EXACT: exact}


def _with_events(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with its realised charges, from plain values; the inverse of the above."""
    realised = {
        # Orders and divergences are what earlier checkpoints of version 0.2 hold of a curve.
        name: event_from_plain(plain)
        if isinstance(plain, Mapping)
        else RdpCurve(*map(tuple, plain))
        for name, plain in state.get(REALISED, {}).items()
    }
    exact = {
        name: [(releases, event_from_plain(plain)) for releases, plain in events]
        for name, events in state.get(EXACT, {}).items()
    }
    return {**state, REALISED: realised, EXACT: exact}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    # Replaced as a whole: where this write is interrupted, the last checkpoint is still there.
    fresh = path.with_suffix(".new")
    try:
        fresh.unlink(missing_ok=True)
        # For its owner alone: it holds what mechanisms remember, and the states of all parties.
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            torch.save(document, file)
        fresh.replace(path)
    except (OSError, RuntimeError) as error:
        raise PrivtrainError(
            f"Cannot write the checkpoint {path}: {error}. Free disk space or choose "
            "another folder; the last checkpoint is still there, so the run can be resumed."
        ) from error
