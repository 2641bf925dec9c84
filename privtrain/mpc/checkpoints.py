"""Checkpoints of shares: what a computing party keeps, so that a run can be taken up again.

Each party writes its own shares of weights and last steps, after every epoch, and the last two of
them stay: where a crash comes between two parties' writes, all of them have the one before. Why
this tells nobody more than the run does stands in `docs/decisions/025-checkpoints-of-shares.md`.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privtrain.core.abilities import Keeping
from privtrain.core.errors import DataError, ProtocolError, UnsupportedError
from privtrain.core.keys import PRIVATE
from privtrain.core.parameters import to_vector
from privtrain.core.writing import explained, write_file
from privtrain.mpc.dense import Learned
from privtrain.mpc.engine import Session, Shared
from privtrain.mpc.layers import translate

SHARES = "shares"
"""The folder, in the private one, of the parties' own folders."""

KEPT = 2
"""Checkpoints that a party keeps."""

_NAME = re.compile(r"step-\d{12}\.shares")
_TORN = re.compile(r"\.step-\d{12}\.shares\.\d+\.tmp")
"""What a process that was killed left of a checkpoint that it wrote."""

_README = "README"
_SCHEMA = 1
_NOTHING = -1
_ID_BITS = 62

WARNING = (
    "Shares of a model in training. One party's files tell nothing; whoever has those of all "
    "parties has the model. Never publish them, and never bring them together.\n"
)


def own_folder(folder: Path, name: str) -> Path:
    """Where a party keeps its checkpoints in a run's folder."""
    return folder.absolute() / PRIVATE / SHARES / name


def keepings_in(folder: Path | None, names: Sequence[str], study: str) -> dict[str, Keeping]:
    """Where parties keep their shares on one machine, each in its own folder.

    Args:
        folder: The run's folder; None where nothing is kept.
        names: The parties.
        study: See `study_digest`.

    Returns:
        Party to where it keeps its shares; empty without a folder.

    Raises:
        DataError: If a file there cannot be used.
    """
    if folder is None:
        return {}
    keepings = {
        name: Keeping(folder=own_folder(folder, name), name=name, study=study) for name in names
    }
    for keeping in keepings.values():
        read(keeping)
    return keepings


def began_anew(keepings: Mapping[str, Keeping]) -> str:
    """How to begin anew where shares are kept that led to an error, as the end of its text."""
    folders = sorted({str(keeping.folder.parent) for keeping in keepings.values()})
    if not folders:
        return ""
    return f" {folders[0]} keeps the shares that led to it: delete it to begin anew."


def said_of(start: Tensor | None) -> Iterator[str]:
    """What a reader of a result should know of its checkpoints.

    Args:
        start: After which step the run was taken up, and of how many; None where nothing is kept.
    """
    nothing = "Training on shares opens nothing on the way: no loss, no learning curve"
    if start is None:
        yield f"{nothing}, and no checkpoint to resume from."
        return
    yield (
        f"{nothing}. Until the weights were opened, each computing party kept its shares in the "
        "run's folder after every epoch: whoever read the files of all of them read the weights of "
        "those epochs."
    )
    done, steps = start.tolist()
    if done:
        yield f"The run was taken up after {done} of {steps} steps; the transcript begins there."


def study_digest(text: str, model: nn.Module) -> str:
    """A digest of what must be equal at all parties, hexadecimal.

    Args:
        text: All settings.
        model: With its initial weights.
    """
    start = to_vector(model.parameters()).double().numpy().tobytes()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # What runs, and not only what it is called: two models print alike whose `forward` differs.
    with suppress(UnsupportedError):
        text += repr(translate(model))
    return hashlib.sha256(f"{text}/{trained}/".encode() + start).hexdigest()


@dataclass(frozen=True)
class Kept:
    """One checkpoint of one party.

    Args:
        step: How many steps were finished.
        sitting: A number of the sitting that wrote it, the same at all parties, below 2^62: shares
            of two sittings add up to nothing.
        rows: How many rows there are.
        shares: int64, `(values,)`.
    """

    step: int
    sitting: int
    rows: int
    shares: Tensor = field(repr=False)


def read(keeping: Keeping) -> list[Kept]:
    """A party's checkpoints, the newest first; empty where there are none.

    Raises:
        DataError: If one cannot be read, was changed, or is another party's or study's, with the
            file and the way out.
    """
    return [_read(path, keeping) for path in reversed(_paths(keeping)[-KEPT:])]


def _paths(keeping: Keeping, kind: re.Pattern[str] = _NAME) -> list[Path]:
    """A party's checkpoints, the oldest first, or other files of a kind.

    Raises:
        DataError: If the folder cannot be read.
    """
    try:
        # Not `glob`, to which a folder that may not be read is an empty one.
        names = sorted(path.name for path in keeping.folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(
            f"Cannot read the folder {keeping.folder}: {error.strerror}. Make it readable for who "
            "runs this party, or start again in another folder at all parties."
        ) from error
    return [keeping.folder / name for name in names if kind.fullmatch(name)]


def _read(path: Path, keeping: Keeping) -> Kept:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Cannot read the checkpoint {path}: {error.strerror}. Make it readable for who runs "
            "this party, or start again in another folder at all parties."
        ) from error
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest:
        raise DataError(
            f"The checkpoint {path} is damaged: its contents do not fit their digest. Delete it "
            "to go on from the one before, or start again in another folder at all parties."
        )
    head, _, values = body.partition(b"\n")
    header = json.loads(head)
    if header["schema"] != _SCHEMA:
        raise DataError(
            f"The checkpoint {path} has schema {header['schema']}, this version reads {_SCHEMA}. "
            "Go on with the version that wrote it, or start again in another folder."
        )
    if header["party"] != keeping.name:
        raise DataError(
            f"The checkpoint {path} is of {header['party']}, and this is {keeping.name}: shares of "
            "two parties never lie in one place. Put it back where it was written."
        )
    if header["study"] != keeping.study:
        raise DataError(
            f"The checkpoint {path} is of another study: its settings, engine, parties, seed or "
            "initial weights differ. Go on with those it was begun with, or choose another folder."
        )
    # Little-endian wherever it was written.
    shares = torch.from_numpy(np.frombuffer(values, dtype="<i8").astype(np.int64))
    return Kept(header["step"], header["sitting"], header["rows"], shares)


def write(keeping: Keeping, kept: Kept) -> None:
    """Writes a checkpoint for its owner alone, as a whole, then deletes all but the last two.

    Raises:
        PrivtrainError: If the disk is full; the checkpoints before are still there.
        DataError: If it cannot be written for another reason.
    """
    header: dict[str, Any] = {
        "schema": _SCHEMA,
        "party": keeping.name,
        "study": keeping.study,
        "step": kept.step,
        "sitting": kept.sitting,
        "rows": kept.rows,
    }
    values = kept.shares.numpy().astype("<i8").tobytes()
    body = json.dumps(header).encode() + b"\n" + values
    with explained(keeping.folder):
        for folder in (*reversed(keeping.folder.parents[:2]), keeping.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (keeping.folder / _README).exists():
        write_file(keeping.folder / _README, WARNING)
    write_file(_place(keeping, kept.step), hashlib.sha256(body).digest() + body, mode=0o600)
    # No message is needed before: each party got to this step by what the others sent after they
    # wrote the checkpoint before, so that the one before is whole everywhere.
    for path in (*_paths(keeping)[:-KEPT], *_paths(keeping, _TORN)):
        path.unlink(missing_ok=True)


def forget(keeping: Keeping) -> None:
    """Deletes a party's checkpoints, once what they led to is safe."""
    with explained(keeping.folder):
        for path in (*_paths(keeping), *_paths(keeping, _TORN)):
            path.unlink(missing_ok=True)
        (keeping.folder / _README).unlink(missing_ok=True)
    leave(keeping)


def leave(keeping: Keeping) -> None:
    """Deletes a party's folder, and those around it, where they are empty."""
    with suppress(OSError):  # whoever else keeps something there still needs the folder
        for folder in (keeping.folder, *keeping.folder.parents[:2]):
            folder.rmdir()


def _place(keeping: Keeping, step: int) -> Path:
    return keeping.folder / f"step-{step:012d}.shares"


@dataclass
class Keeper:
    """The checkpoints of an open session, at one role.

    A role that holds no shares, such as a dealer, follows what is agreed and writes nothing.

    Args:
        keeping: Where shares lie; of another name at a role that holds none.
        session: The open engine.
        name: Who this is.
        rank: Its rank.
        learned: All that training changes.
        momentum: Whether the last steps are needed.
        rows: How many rows there are; public.
        last: How many steps the whole training has.
    """

    keeping: Keeping
    session: Session
    name: str
    rank: int
    learned: Sequence[Learned]
    momentum: bool
    rows: int
    last: int
    _sitting: int = field(default=0, init=False)

    def take_up(self) -> int:
        """Agrees with the others on the last step that all of them keep, and puts it back.

        Returns:
            How many steps are finished; 0 where nobody keeps any, or a crash came between two
            parties' first ones.

        Raises:
            DataError: If a file cannot be used.
            ProtocolError: If parties keep checkpoints of different runs, or of other rows.
        """
        own = read(self.keeping) if self._holds else []
        # Each row is a checkpoint; the first one is this party's part of a name for this sitting.
        said = torch.full((1 + KEPT, 3), _NOTHING, dtype=torch.int64)
        said[0] = torch.tensor([secrets.randbits(_ID_BITS), 0, 0])
        for number, each in enumerate(own, 1):
            said[number] = torch.tensor([each.step, each.sitting, each.rows])
        announced = [each.tolist() for each in self.session.announce(said)]
        for (part, _, _), *_ in announced:
            self._sitting ^= part
        sets = [{tuple(each) for each in kept if each[0] != _NOTHING} for _, *kept in announced]
        common = set.intersection(*sets)
        if not common:
            self._check_begun(sets)
            return 0
        step, sitting, rows = max(common)
        if rows != self.rows:
            raise ProtocolError(
                f"The checkpoints after step {step} are of {rows} rows, and there are {self.rows}. "
                "Bring the rows that the run was begun with, or choose another folder at all "
                "parties."
            )
        found = next((each for each in own if (each.step, each.sitting) == (step, sitting)), None)
        self._put_back(None if found is None else found.shares, len(announced))
        return int(step)

    def save(self, step: int) -> None:
        """Keeps this role's shares after so many steps; all roles call it at the same steps."""
        shares = self.session.shares(self._values())
        if self._holds:
            vector = torch.cat([share.reshape(-1) for share in shares])
            write(self.keeping, Kept(step, self._sitting, self.rows, vector))

    @property
    def _holds(self) -> bool:
        return self.name == self.keeping.name

    def _values(self) -> list[Shared]:
        steps = [each.step for each in self.learned if self.momentum and each.step is not None]
        return [*(each.value for each in self.learned), *steps]

    def _check_begun(self, sets: Sequence[set[tuple[int, ...]]]) -> None:
        """Refuses to begin again where everybody had a checkpoint once.

        Raises:
            ProtocolError: With what each party keeps.
        """
        # A second one is written after everybody has the first. Where one has the last, others may
        # have read the weights and forgotten: to train again would open another model.
        if any(len(each) == KEPT or self.last in {step for step, *_ in each} for each in sets):
            steps = [sorted(each[0] for each in kept) for kept in sets]
            raise ProtocolError(
                f"The parties keep checkpoints after steps {steps}, by rank, and none of them is "
                "of one run. Name the folder that each party began with, or choose another one at "
                "all parties to start again."
            )

    def _put_back(self, kept: Tensor | None, parties: int) -> None:
        """Shares each party's kept share with all others, and adds up what they shared."""
        shapes = [each.shape for each in self.learned]
        shapes += shapes if self.momentum else []
        sizes = [int(np.prod(shape)) for shape in shapes]
        if kept is not None and kept.shape != (sum(sizes),):
            raise DataError(
                f"Expected {sum(sizes)} shares in {self.keeping.folder}, got {len(kept)}."
            )
        parts = [
            self.session.own(kept if owner == self.rank else None, (sum(sizes),), owner)
            for owner in range(parties)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        ends = np.cumsum(sizes).tolist()
        pieces = [
            total[end - size : end].reshape(*shape)
            for shape, size, end in zip(shapes, sizes, ends, strict=True)
        ]
        for number, each in enumerate(self.learned):
            each.value = pieces[number]
            each.step = pieces[len(self.learned) + number] if self.momentum else None
