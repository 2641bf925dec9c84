"""Files and folders that are written as a whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from privtrain.core.errors import DataError, PrivtrainError

# The only failures of which the cure is space, and no other folder.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that the disk is full."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def explained(where: Path) -> Iterator[None]:
    """Says what a failed write means and what can be done about it.

    Args:
        where: The folder.

    Raises:
        PrivtrainError: If the disk is full.
        DataError: If the folder cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise PrivtrainError(
                f"The disk of {where} is full ({error.strerror}). Files that were written "
                "are whole. Free some space and save again, or choose another folder."
            ) from error
        raise DataError(
            f"Cannot write to folder={str(where)!r}: {error.strerror or error}. "
            "Choose a folder that you may write to."
        ) from error


def write_file(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Writes beside the target and moves there, so that no reader ever sees half a file.

    Args:
        path: The file; one that is there is replaced.
        content: Bytes, or text that is written in UTF-8 with "\\n" at the ends of lines.
        mode: Who may do what with it, from the moment it is there, as far as the umask lets them.

    Raises:
        PrivtrainError: If the disk is full.
        DataError: If it cannot be written for another reason.
    """
    # In the same folder, since a move is one step only within a file system; with the process in
    # its name, since two may save at once.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path.parent):
        try:
            _write(beside, content, mode)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(
    folder: Path, *, ours: Sequence[str], force: bool = False, mode: int = 0o777
) -> Iterator[Path]:
    """Gives a folder to fill that becomes `folder` when the block ends, and nothing if it fails.

    Args:
        folder: Where it will lie; nothing may be there but an empty folder.
        ours: The names of what is written there. A folder that has the first of them, and nothing
            beside them, is of the same kind.
        force: Whether to replace such a folder.
        mode: Who may do what with it, as far as the umask lets them.

    Yields:
        An empty folder beside it.

    Raises:
        DataError: If something is there already, or the folder cannot be written.
        PrivtrainError: If the disk is full.
    """
    taken = _taken(folder)
    foreign = [name for name in taken if name not in ours]
    if taken and (foreign or ours[0] not in taken or not force):
        same = ours[0] in taken and not foreign
        way_out = " or overwrite it with --force (force=True)" if same else ""
        raise DataError(
            f"Expected folder={str(folder)!r} to be new or empty; it holds "
            f"{', '.join((foreign or taken)[:4])}. Choose another folder{way_out}."
        )
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: a move is one step only within a file system.
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield fresh
        with explained(folder):
            # `mkdtemp` lets nobody else in; what is kept is as readable as any new folder.
            fresh.chmod(mode & ~_umask())
            _moved(fresh, folder, force=force)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def fill(folder: Path, name: str, content: bytes | str) -> None:
    """Writes a file into a folder of `new_folder`, down to the disk.

    Raises:
        PrivtrainError: If the disk is full.
        DataError: If it cannot be written for another reason.
    """
    with explained(folder.parent):
        _write(folder / name, content)


def _write(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        # Before the move: after a power cut the new name could stand for an empty file.
        os.fsync(file.fileno())


def _taken(folder: Path) -> list[str]:
    """What stands where a folder is to be."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return ["something that is no folder"]
    with explained(folder):
        return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def _moved(fresh: Path, folder: Path, *, force: bool) -> None:
    old = None
    if force and folder.exists():
        # A folder that holds something cannot be replaced in one step: the old one is moved aside
        # first, and comes back should the second step fail.
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        folder.replace(old)
    try:
        fresh.replace(folder)
    except OSError:
        if old is not None:
            old.replace(folder)
        raise
    _sync_folder(folder)
    _sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Writes the names in a folder down to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    # There is no other way to ask for it; the permissions of the process are put back at once.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
