"""Writes sealed material into a folder of its party, ahead of its use."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.keys import PRIVATE
from privtrain.core.validate import check_count
from privtrain.core.writing import explained, write_file
from privtrain.mpc.material.journal import Journal
from privtrain.mpc.material.sealing import KEY_BYTES, label_of
from privtrain.mpc.material.segments import (
    JOURNAL,
    KEY,
    LENGTH,
    LOCKS,
    OWNER_ONLY,
    READER,
    WRITER,
    alone,
    is_held,
    place,
    size_in,
)

BOUND = 2**30
"""Bytes of material that a store holds at most, where nothing else is said."""

SEGMENT = 2**24
"""Bytes of a segment, about; a larger block is a segment of its own."""


class StoreWriter:
    """Fills a new store with the blocks of one session; a context manager.

    A segment is written whole or not at all, readable by its owner alone.

    Args:
        folder: Where it will lie; new or empty.
        key: The agreed key, 32 bytes, which the party needs to open the blocks.
        study: Digest of the study.
        receiver: The party that they are for.
        bound: Bytes that may lie there at a time.
        segment: Bytes after which a segment is written: what a crash of its party costs at most,
            and what it holds in memory.

    Raises:
        ValueError: If an argument is out of bounds.
    """

    def __init__(
        self,
        folder: Path,
        key: bytes,
        *,
        study: str,
        receiver: str,
        bound: int = BOUND,
        segment: int = SEGMENT,
    ) -> None:
        check_count(bound=bound, segment=segment)
        if len(key) != KEY_BYTES:
            raise ValueError(f"Expected len(key)={len(key)} to be {KEY_BYTES}.")
        self._folder, self._key = folder, key
        self._journal = Journal(folder / JOURNAL, study, receiver)
        self._bound, self._segment = bound, segment
        self._written = 0
        self._buffer = bytearray()
        self._number = 0
        self._stack = ExitStack()

    def __enter__(self) -> "StoreWriter":
        """Makes the folder.

        Raises:
            DataError: If something lies there, or it cannot be written.
            PrivtrainError: If the disk is full.
        """
        with explained(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            taken = sorted(path.name for path in self._folder.iterdir())
        # One store holds one session: beside an older journal, fresh blocks would count as spent,
        # and without it nobody would know which ones were.
        if taken:
            raise DataError(
                f"Expected folder={str(self._folder)!r} to be new or empty; it holds "
                f"{', '.join(taken[:4])}. Choose another folder for fresh material."
            )
        with ExitStack() as stack:
            stack.enter_context(alone(self._folder, WRITER))
            with explained(self._folder):
                (self._folder / PRIVATE).mkdir(mode=0o700)
            write_file(self._folder / PRIVATE / KEY, self._key, mode=OWNER_ONLY)
            with explained(self._folder):
                self._journal.begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes what is left, unless dealing failed."""
        with self._stack:
            if error is None:
                self.flush()

    def add(self, block: bytes) -> None:
        """Keeps the next block.

        Args:
            block: As `Sealer.seal` gives it.

        Raises:
            TamperedShareError: If these bytes are no sealed block.
            ValueError: If the block alone is larger than the bound.
            PrivtrainError: If the store or the disk is full; the block is not kept then.
        """
        label_of(block)
        size = LENGTH.size + len(block)
        if not self.has_room(block):
            raise PrivtrainError(
                f"The store {self._folder} is full: it keeps {self.kept} bytes, and {size} more "
                f"would be above bound={self._bound}. Let its party use some, or raise the bound."
            )
        if self._buffer and len(self._buffer) + size > self._segment:
            self.flush()
        self._buffer += LENGTH.pack(len(block)) + block

    @property
    def kept(self) -> int:
        """Bytes that lie there, or wait to be written."""
        return self._written + len(self._buffer)

    @property
    def abandoned(self) -> bool:
        """Whether its party had begun to use it, and has ended: nobody can use what is left."""
        begun = self._number > 0 and not place(self._folder, 0).exists()
        return begun and LOCKS and not is_held(self._folder, READER)

    def has_room(self, block: bytes) -> bool:
        """Whether another block may be kept, as far as its party has used others by now.

        Raises:
            ValueError: If the block alone is larger than the bound.
        """
        size = LENGTH.size + len(block)
        if size > self._bound:
            raise ValueError(
                f"Expected a block of {size} bytes to fit bound={self._bound}: raise the bound, or "
                "seal it in several blocks."
            )
        if self.kept + size > self._bound:
            # Not at every block: its party may have used some since.
            self._written = size_in(self._folder)
        return self.kept + size <= self._bound

    def flush(self) -> None:
        """Writes what waits, so that its party can use it.

        Raises:
            PrivtrainError: If the disk is full.
        """
        if not self._buffer:
            return
        write_file(place(self._folder, self._number), bytes(self._buffer), mode=OWNER_ONLY)
        self._written += len(self._buffer)
        self._number += 1
        self._buffer = bytearray()
