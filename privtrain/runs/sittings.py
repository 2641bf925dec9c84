"""A run in its folder: what earlier sittings left, and how this one goes on with it."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from privtrain.core.errors import DataError
from privtrain.core.failures import text_of
from privtrain.core.identity import value_digest
from privtrain.core.result import History
from privtrain.core.trainer import Run
from privtrain.core.transcript import Transcript
from privtrain.ledgers.run import JournalLedger
from privtrain.runs.checkpoint import FileCheckpoint, Identity, read_state
from privtrain.runs.marks import (
    COMPARISON,
    RUN,
    Mark,
    checked_mark,
    differences,
    new_mark,
    write_mark,
)


@dataclass
class Sitting:
    """One sitting of a run, from where the last one stopped to its own end.

    Args:
        checkpoint: What the run needs to go on.
        folder: Where the run lies, or None.
        mark: Its mark; None without a folder.
        earlier: The mark that earlier sittings left, or None.
        spent: Releases that were spent before this sitting.
    """

    checkpoint: FileCheckpoint
    folder: Path | None = None
    mark: Mark | None = None
    earlier: Mark | None = None
    spent: int = 0

    def begin(self, ledger: JournalLedger, noise: bytes, *, repeats: bool) -> None:
        """Marks the folder, before the first release; a repeated run begins again.

        Args:
            ledger: The run's ledger, as the journal left it.
            noise: What all noise of this sitting follows from where it starts at the beginning;
                empty where it cannot be drawn again.
            repeats: Whether a run that was interrupted is repeated where its noise allows it.
        """
        self.spent = ledger.spent
        if self.folder is None or self.mark is None:
            return
        earlier, here = self.earlier, (platform.machine(), torch.get_num_threads())
        again = ""
        if noise:
            seen = value_digest(noise, here).hex()
            again = self.checkpoint.identity.written(seen, self.folder)
        done = self.spent == ledger.limit and self.checkpoint.spent_before == self.spent
        if earlier is not None and self.spent:
            # Equal seeds, settings, rows, weights and versions give equal bits: what the first
            # sitting released is released once more, and whoever has both has one of them. With
            # the system's entropy, or after a sitting that drew other noise, each release would
            # be a new one beyond the plan: such a run goes on, and halts where the plan ends.
            same = bool(noise) and earlier.noise == again
            if repeats and not done and same and earlier.environment == self.mark.environment:
                ledger.repeat()
                self.checkpoint.forget()
            else:
                again = earlier.noise if done else ""
        if earlier is not None and self.checkpoint.load() is not None:
            self.mark = replace(self.mark, environment=earlier.environment)
        self.mark = replace(self.mark, noise=again)
        write_mark(self.folder / RUN, self.mark)

    def abort(self, error: Exception) -> None:
        """Says in the folder why the run was given up; a later run there takes nothing up."""
        if self.folder is None or self.mark is None:
            return
        self.checkpoint.discard()
        said = f"{type(error).__name__}: {text_of(error)}"
        write_mark(self.folder / RUN, replace(self.mark, aborted=(*self.mark.aborted, said)))

    def end(self, run: Run, environment: Mapping[str, str]) -> None:
        """Keeps what a finished run noted and assumed, and takes it up where nothing was added."""
        if self.folder is None or self.mark is None:
            return
        earlier, outcome = self.earlier, run.outcome
        resumed = self.checkpoint.load() is not None
        if earlier is not None and resumed:
            # An engine that made no step found out nothing.
            if earlier.finished is not None and run.ledger.spent == self.spent:
                outcome.notes[:], outcome.assumptions[:] = map(list, earlier.finished)
            changed = differences(earlier.environment, environment)
            note = f"begun with {changed}"
            if changed and note not in outcome.notes:
                outcome.notes.append(note)
        for why in self.mark.aborted:
            note = f"nothing was taken up of an attempt in this folder that was aborted: {why}"
            if note not in outcome.notes:
                outcome.notes.append(note)
        finished = (tuple(outcome.notes), tuple(outcome.assumptions))
        write_mark(self.folder / RUN, replace(self.mark, finished=finished))


def open_sitting(
    folder: Path | None,
    identity: Identity,
    environment: Mapping[str, str],
    spent: Callable[[], Mapping[str, int]],
    transcript: Transcript,
    history: History,
) -> Sitting:
    """Looks at a run's folder, and changes nothing that a run left there.

    Args:
        folder: The folder, or None.
        identity: What identifies the run.
        environment: What it stands on.
        spent: Kind of release to how many were spent so far.
        transcript: Filled with what earlier sittings sent.
        history: Filled, too.

    Raises:
        PrivtrainError: If the folder belongs to something else, or cannot be read.
    """
    if folder is None:
        return Sitting(FileCheckpoint(transcript, history, None))
    if (folder / COMPARISON).exists():
        raise DataError(
            f"The folder {folder} belongs to another run: it holds a comparison. Choose another "
            "folder for this fit."
        )
    state = folder / "state.pt"
    saved = read_state(state)
    begun = (state, folder / "journal.jsonl")
    earlier = checked_mark(folder / RUN, identity, environment, begun=begun)
    checkpoint = FileCheckpoint(transcript, history, state, identity, spent, saved)
    mark = new_mark(identity, environment, folder)
    if earlier is not None:
        mark = replace(mark, aborted=earlier.aborted)
    return Sitting(checkpoint, folder, mark, earlier)
