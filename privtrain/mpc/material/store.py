"""Material that was made ahead, as its party uses it: in order, each block for its use, once.

A segment is spent as a whole: the journal says so, on the disk, then its file is deleted, and only
then its blocks are opened. What was not used of it when a process ended stays spent.

An older journal beside a newer store is noticed, since the segment that it takes for unspent is
gone; an older store beside a newer journal does no harm. What no folder can tell: that an older
copy of *all* of it was put in its place, such as a snapshot of a machine. So parties that go on
within a session have to tell each other `Store.whole_step` and skip to the highest; `ring64` spends
a session as a whole, and its parties say beforehand that nothing of theirs is spent. Material is
used again only if the folders of all of them were brought back. The key lies in the folder, too:
sealing keeps out who copies or changes segments without it.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from privtrain.core.errors import DataError, PartyLostError, ProtocolError, TamperedShareError
from privtrain.core.keys import PRIVATE
from privtrain.core.locks import Lock
from privtrain.core.writing import explained
from privtrain.mpc.material.journal import Journal, Spent
from privtrain.mpc.material.sealing import Label, Opener, check_use
from privtrain.mpc.material.segments import (
    JOURNAL,
    KEY,
    READER,
    WRITER,
    Held,
    alone,
    blocks,
    is_held,
    numbers,
    place,
)

_LOOK = 0.02
"""Seconds between two looks whether a segment was written."""


class Store:
    """A party's folder of sealed material; a context manager, one at a time.

    Args:
        folder: As a `StoreWriter` filled it.
        study: Digest of the own study.
        receiver: This party.
        patience: Seconds for which a segment is waited for while a writer is at work.
    """

    def __init__(self, folder: Path, *, study: str, receiver: str, patience: float = 0.0) -> None:
        self._patience = patience
        self._folder, self._study, self._receiver = folder, study, receiver
        self._journal = Journal(folder / JOURNAL, study, receiver)
        self._held: deque[Held] = deque()
        self._step = -1
        self._process = 0
        self._stack = ExitStack()
        self._lock = Lock()

    def __enter__(self) -> "Store":
        """Reads what is spent, and deletes what is left of it.

        Raises:
            DataError: If there is no store, or one of another study or party.
            ProtocolError: If somebody else uses it, or what is spent is unknown.
        """
        if not (self._folder / PRIVATE / KEY).is_file():
            raise DataError(
                f"Expected folder={str(self._folder)!r} to hold material; {PRIVATE}/{KEY} is "
                "missing. Choose a folder that was dealt into."
            )
        with ExitStack() as stack:
            stack.enter_context(alone(self._folder, READER))
            self._journal.resume()
            spent = self._journal.spent
            with explained(self._folder):
                key = (self._folder / PRIVATE / KEY).read_bytes()
            self._opener = Opener(
                key,
                study=self._study,
                receiver=self._receiver,
                session=bytes.fromhex(spent.session) or None,
            )
            self._opener.skip(spent.blocks)
            self._step = spent.step
            self._clear()
            self._stack = stack.pop_all()
        self._process = os.getpid()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Lets others use the folder; what was spent and not used is lost."""
        self._held.clear()
        self._process = 0
        self._stack.close()

    @property
    def whole_step(self) -> int | None:
        """The first step of which no block is spent; None where there is none."""
        with self._lock:
            self._check_open()
            steps = (label.step for label in self._labels())
            return next((step for step in steps if step != self._step), None)

    @property
    def spent(self) -> Spent:
        """How far it is spent."""
        return self._journal.spent

    @property
    def next_label(self) -> Label | None:
        """What the next block says of itself; None where there is none. Nothing is spent."""
        with self._lock:
            self._check_open()
            if not self._held:
                self._await_segment()
            return next(self._labels(), None)

    def take(self, step: int, operation: str, size: int | None = None) -> bytes:
        """The content of the next block.

        Args:
            step: The step of the study that asks for it.
            operation: What asks for it.
            size: Bytes of content that are expected; any number where it is left out.

        Raises:
            ProtocolError: If the next block is for another use, or there is none; none is spent
                then.
            TamperedShareError: If it was changed, or made for another study, party or key.
            PrivtrainError: If the disk is full, so that it cannot be spent.
            PartyLostError: If a writer is there and adds nothing.
        """
        with self._lock:
            self._check_open()
            segment = self._held or self._next_segment()
            if not segment:
                raise ProtocolError(
                    f"There is no more material in {self._folder} for step {step}, {operation!r}: "
                    f"{self._opener.next} blocks are spent. Deal anew into another folder."
                )
            label = segment[0].label
            size = label.size if size is None else size
            wanted = Label(
                session=label.session,
                number=self._opener.next,
                step=step,
                operation=operation,
                size=size,
            )
            check_use(label, wanted, self._receiver)
            if not self._held:
                self._spend(list(segment))
            # Taken out first: it is spent, whether it opens or not.
            block = self._held.popleft().block
            self._step = step
            return self._opener.open(block, step=step, operation=operation, size=size)

    def skip(self, step: int) -> None:
        """Spends what comes before a step, so that the next block is of that step or a later one.

        Raises:
            PrivtrainError: If the disk is full, so that it cannot be spent.
        """
        with self._lock:
            self._check_open()
            while True:
                while self._held and self._held[0].label.step < step:
                    label = self._held.popleft().label
                    self._opener.skip(label.number + 1)
                    self._step = label.step
                if self._held:
                    return
                segment = self._next_segment()
                if not segment or segment[0].label.step >= step:
                    return
                self._spend(segment)

    def _check_open(self) -> None:
        # A fork has the blocks at hand and the lock of its parent: both would use them.
        if os.getpid() != self._process:
            raise RuntimeError(
                f"Expected the store {self._folder} to be used within `with`, in the process that "
                "opened it."
            )

    def _clear(self) -> None:
        """Deletes spent segments, and notices where the next one is gone."""
        spent = self._journal.spent.segments
        for number in numbers(self._folder):
            if number >= spent:
                break
            # A crash came before it was deleted, a power cut brought it back, or somebody did.
            self._delete(number)
        self._check_next()

    def _check_next(self) -> None:
        spent = self._journal.spent.segments
        left = [number for number in numbers(self._folder) if number >= spent]
        # Looked at again: a writer may have added it while the others were listed.
        if left and left[0] != spent and not place(self._folder, spent).exists():
            raise ProtocolError(
                f"Segment {spent} of the material in {self._folder} is not there, and its journal "
                f"takes it for unspent: an older journal was brought back, or the file removed. "
                "None of it may be used; deal anew into another folder."
            )

    def _delete(self, number: int) -> None:
        with explained(self._folder):
            place(self._folder, number).unlink(missing_ok=True)

    def _await_segment(self) -> None:
        """Waits for the next segment while somebody is at work on it.

        Raises:
            PartyLostError: If none comes.
        """
        path = place(self._folder, self._journal.spent.segments)
        end = time.monotonic() + self._patience
        while not path.exists() and is_held(self._folder, WRITER):
            if time.monotonic() > end:
                if self._patience:
                    raise PartyLostError(
                        f"Nothing more was dealt into {self._folder} for {self._patience:g} s."
                    )
                return
            time.sleep(_LOOK)

    def _next_segment(self) -> list[Held]:
        """The blocks of the next segment, which is not spent yet; none where there is no more."""
        self._await_segment()
        self._check_next()
        path = place(self._folder, self._journal.spent.segments)
        segment = list(blocks(path)) if path.exists() else []
        # Before it is spent: files that change places must not move what counts as spent.
        session = self._journal.spent.session or (segment and segment[0].label.session.hex())
        for number, (label, _) in enumerate(segment, start=self._opener.next):
            if label.number != number or label.session.hex() != session:
                raise TamperedShareError(
                    f"Expected block {number} of the material in {path}; it holds block "
                    f"{label.number} of session {label.session.hex()[:8]}: files or blocks were "
                    "swapped or brought back. None of this file was used; deal anew into another "
                    "folder."
                )
        return segment

    def _spend(self, segment: list[Held]) -> None:
        """Spends a segment that was read, then deletes it, then holds its blocks."""
        before, last = self._journal.spent, segment[-1].label
        self._journal.spend(
            Spent(
                segments=before.segments + 1,
                blocks=last.number + 1,
                step=last.step,
                session=last.session.hex(),
            )
        )
        self._delete(before.segments)
        self._held = deque(segment)

    def _labels(self) -> Iterator[Label]:
        """What is left, by its headers."""
        yield from (held.label for held in self._held)
        number = self._journal.spent.segments
        while (path := place(self._folder, number)).exists():
            yield from (held.label for held in blocks(path))
            number += 1
