"""Tensors of messages: in memory up to a number of bytes, in a file without a name beyond it."""

import contextlib
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.observers import Observer
from privtrain.core.writing import is_full

MEMORY = 2**28
"""Bytes of kept tensors that lie in memory; what a run keeps beyond it lies on disk."""


@dataclass(frozen=True, eq=False)
class Filed:
    """A tensor in a file, which is read whenever it is asked for.

    Args:
        file: Where it lies. By its handle: a path would lead to whatever lies beside it.
        start: Where in the file it begins, in bytes.
        shape: Its shape.
        dtype: Its type.
        device: Where it was.
    """

    file: "TensorFile" = field(repr=False)
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"

    def clone(self) -> Tensor:
        """The tensor, in memory of its own."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        octets = bytearray(self.file.read(self.start, size))
        flat = torch.frombuffer(octets, dtype=self.dtype) if size else torch.empty(0).to(self.dtype)
        return flat.reshape(self.shape).to(self.device)

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process, or as a copy, it is a tensor like any other.
        return torch.clone, (self.clone(),)


Kept = Tensor | Filed
"""A kept tensor; `clone()` gives its values in memory of their own."""


@dataclass(eq=False)
class TensorFile:
    """An open file of tensors, one behind the other.

    Args:
        file: Open for reading in bytes, and for writing where tensors are added.
        size: Bytes that were written.
    """

    file: IO[bytes] = field(repr=False)
    size: int = 0
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def add(self, tensor: Tensor) -> Filed:
        """Writes a tensor behind the others.

        Raises:
            OSError: If it cannot be written.
        """
        octets = octets_of(tensor)
        with self._lock:
            start = self.size
            self.file.seek(start)
            self.file.write(octets)
            # Now: what a full disk does not take must not be missed when it is read.
            self.file.flush()
            self.size = start + octets.nbytes
        shape, device = tuple(tensor.shape), str(tensor.device)
        return Filed(self, start, shape, tensor.dtype, device)

    def read(self, start: int, size: int) -> bytes:
        """Bytes of the file.

        Raises:
            DataError: If it has fewer.
        """
        with self._lock:
            self.file.seek(start)
            octets = self.file.read(size)
        if len(octets) != size:
            raise DataError(
                "A kept message is torn: its file was cut while it was open. Train again."
            )
        return octets

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, which was said when it was written
            self.file.close()


def octets_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values in their order, on the CPU."""
    whole = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return whole.reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Wanted:
    """Which messages' tensors somebody reads.

    Args:
        observer: Whose view they are in; None for the messages of everybody.
        kinds: What they are called; empty for all kinds.
    """

    observer: Observer | None
    kinds: tuple[str, ...] = ()


@dataclass(eq=False)
class PayloadStore:
    """Keeps the tensors of messages that somebody reads, within a stated memory.

    Args:
        wanted: Which they are.
        memory: At most so many bytes lie in memory.
        folder: Where the file beyond it lies; None for the system's folder of temporary files. It
            has no name there, and goes when nobody can read it any more.
        used: Bytes in memory so far.
    """

    wanted: tuple[Wanted, ...]
    memory: int = MEMORY
    folder: Path | None = None
    used: int = field(default=0, init=False)
    _file: TensorFile | None = field(default=None, init=False, repr=False)

    @property
    def on_disk(self) -> int:
        """Bytes on disk so far."""
        return 0 if self._file is None else self._file.size

    def keep(self, tensor: Tensor) -> Kept:
        """A copy of a tensor, in memory or on disk.

        Raises:
            PrivtrainError: If the disk is full, or cannot be written.
        """
        size = tensor.element_size() * tensor.nelement()
        if self.used + size <= self.memory:
            self.used += size
            return tensor.detach().clone()
        try:
            if self._file is None:
                self._file = TensorFile(tempfile.TemporaryFile(dir=self.folder))  # noqa: SIM115
            return self._file.add(tensor)
        except OSError as error:
            where = self.folder or tempfile.gettempdir()
            what = "is full" if is_full(error) else f"cannot be written ({error})"
            raise PrivtrainError(
                f"The disk of {where} {what}, and the messages that attacks read fill more than "
                f"the {self.memory:,} bytes that are kept in memory. Free some space, give compare "
                "a folder= on another disk (without one, set TMPDIR), or leave out the attacks "
                "that read messages."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy keeps what comes from now on: what was kept lies with the messages.
        return PayloadStore, (self.wanted, self.memory, self.folder)
