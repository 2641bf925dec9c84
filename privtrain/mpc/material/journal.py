"""The used-once journal of a store: what is spent is on the disk before it is used."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from privtrain.core.errors import DataError, PrivacyError, PrivtrainError, ProtocolError
from privtrain.core.writing import is_full
from privtrain.ledgers.journal import JournalFile, Line, lines_of, size_of, text_of

_OWNER_ONLY = 0o600
_BEGINNINGS = ('{"material"', '{"spent"')


@dataclass(frozen=True, kw_only=True)
class Spent:
    """How far a store is spent.

    Args:
        segments: How many segments.
        blocks: How many blocks: the number of the first one that is not spent.
        step: The step of the last spent block; -1 where none is.
        session: Of the blocks, in hexadecimal digits; empty where none is spent.
    """

    segments: int = 0
    blocks: int = 0
    step: int = -1
    session: str = ""

    @property
    def line(self) -> dict[str, object]:
        """It as an entry of the journal."""
        return {
            "spent": self.segments,
            "blocks": self.blocks,
            "step": self.step,
            "session": self.session,
        }

    def precedes(self, other: "Spent") -> bool:
        """Whether the other one may be the next entry."""
        return (
            other.segments == self.segments + 1
            and other.blocks > self.blocks
            and self.session in ("", other.session)
        )


@dataclass
class Journal:
    """Which segments of a store are spent; nothing makes one unspent.

    Args:
        path: The file.
        study: Digest of the study that the material is for.
        receiver: The party that it is for.
    """

    path: Path
    study: str
    receiver: str
    spent: Spent = field(default_factory=Spent, init=False)
    _file: JournalFile = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = JournalFile(self.path)

    @property
    def _first(self) -> dict[str, object]:
        return {"material": 1, "study": self.study, "receiver": self.receiver}

    def begin(self) -> None:
        """Makes the journal of a new store, of which nothing is spent.

        Raises:
            OSError: If the file is there already, or cannot be made.
            PrivtrainError: If the disk is full or takes nothing.
        """
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY))
        self._append(self.spent.line)

    def resume(self) -> None:
        """Reads what is spent.

        Raises:
            DataError: If it is of another study or party.
            ProtocolError: If it is missing or was edited: what is spent is unknown then.
        """
        self._file.size = size_of(self.path)
        try:
            lines = lines_of(self.path, text_of(self.path), _BEGINNINGS)
        except PrivacyError as error:
            raise self._unknown("it cannot be read") from error
        if not lines or lines[0].values.get("material") != 1:
            raise self._unknown("its first line is missing")
        self._check_owner(lines[0].values)
        self._file.begun = True
        entries = [self._entry(line) for line in lines[1:]]
        if not entries or entries[0] != Spent():
            raise self._unknown("its second line is missing")
        for before, after in pairwise(entries):
            if not before.precedes(after):
                raise self._unknown(f"{after} follows {before}")
        self.spent = entries[-1]

    def spend(self, spent: Spent) -> None:
        """Spends the next segment; when this returns, no power cut makes it unspent.

        Raises:
            ProtocolError: If it is not the next one, or somebody else spent one meanwhile.
            PrivtrainError: If the disk is full or takes nothing; nothing is spent then.
        """
        if not self.spent.precedes(spent):
            raise ProtocolError(
                f"Expected what is spent of the material in {self.path.parent} to grow by one "
                f"segment after {self.spent}; got {spent}. Its files were swapped or brought back: "
                "nothing was used; deal anew into another folder."
            )
        self._append(spent.line)
        self.spent = spent

    def _append(self, line: Mapping[str, object]) -> None:
        folder = self.path.parent
        try:
            self._file.append(self._first, line)
        except OSError as error:
            reason = "is full" if is_full(error) else "takes nothing"
            raise PrivtrainError(
                f"The disk of {folder} {reason} ({error.strerror}): what is spent of its material "
                f"cannot be noted in {self.path.name}, so none was used. Free some space and start "
                "again, or deal anew into another folder."
            ) from error
        except PrivacyError as error:
            raise ProtocolError(
                f"The journal {self.path} was changed by somebody else; no material was used. Let "
                "one process at a time use a folder, and start again."
            ) from error

    def _check_owner(self, first: Mapping[str, Any]) -> None:
        for name, own in (("study", self.study), ("receiver", self.receiver)):
            if first.get(name) != own:
                raise DataError(
                    f"Expected material for {name}={own!r}; that in {self.path.parent} is for "
                    f"{first.get(name)!r}. Choose the folder of this study and party, or deal anew "
                    "into another one."
                )

    def _entry(self, line: Line) -> Spent:
        values = line.values
        try:
            entry = Spent(
                segments=int(values["spent"]),
                blocks=int(values["blocks"]),
                step=int(values["step"]),
                session=str(values["session"]),
            )
        except (KeyError, TypeError, ValueError):
            raise self._unknown(f"line {line.number} is no entry") from None
        if entry.line != values:
            raise self._unknown(f"line {line.number} is no entry")
        return entry

    def _unknown(self, why: str) -> ProtocolError:
        return ProtocolError(
            f"What is spent of the material in {self.path.parent} is unknown: of {self.path.name}, "
            f"{why}. None of it may be used; deal anew into another folder."
        )
