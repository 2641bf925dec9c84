"""Kills a process at each call into the system while it uses a store, and lets another go on.

Run as a program with a folder, bytes of a segment, and "everywhere" where each call into C counts
and not only those that change the disk or open a block. Of calls between which nothing on the disk
changes it is killed at the first alone: what comes later sees the same. Prints for each place where
it was killed which blocks may have been used before and after it.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from privtrain.mpc.material.sealing import Opener
from privtrain.mpc.material.segments import JOURNAL
from tests.mpc.material.folders import STEPS, a_store, fill, take, uses

DEEDS = {"write", "fsync", "unlink", "decrypt"}


def use_all(folder: Path, notes: int) -> None:
    """Uses every whole step that is left; notes each block before it is opened."""
    opened = Opener.open

    def noted(self: Opener, block: bytes, **use: Any) -> bytes:
        # Before it is opened: what is noted may have been used, what is not was never read.
        os.write(notes, f"{use['step']} {use['operation']}\n".encode())
        return opened(self, block, **use)

    Opener.open = noted  # type: ignore[method-assign]
    with a_store(folder) as store:
        step = store.whole_step
        if step is not None:
            store.skip(step)
            for use in uses(range(step, STEPS)):
                take(store, *use)


def in_a_child(deed: Callable[[], None]) -> bool:
    """Whether it ended by itself, in a copy of this process."""
    pid = os.fork()
    if pid == 0:
        try:
            deed()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        raise RuntimeError("The child failed.")
    return True


def watched(deed: Callable[[], None], look: Callable[[int], None], *, everywhere: bool) -> None:
    """Does a deed, and looks before each call that counts, given its number."""
    numbers = count()

    def called(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and (everywhere or argument.__name__ in DEEDS):
            look(next(numbers))

    sys.setprofile(called)
    deed()
    sys.setprofile(None)


def places(root: Path) -> list[int]:
    """Numbers of the calls before which the disk is not as it was before the call ahead of each."""
    folder, last = root / "store", 0
    found, states = list[int](), list[dict[str, bytes]]()

    def look(number: int) -> None:
        nonlocal last
        last = number
        files = [root / "notes", *(path for path in folder.rglob("*") if path.is_file())]
        state = {path.name: path.read_bytes() for path in files}
        if states[-1:] != [state]:
            states.append(state)
            found.append(number)

    shutil.copytree(root / "whole", folder)
    notes = os.open(root / "notes", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    watched(lambda: use_all(folder, notes), look, everywhere=True)
    os.close(notes)
    shutil.rmtree(folder)
    return [*found, last + 1]


def listed(root: Path) -> list[int]:
    """The same of a child, since it changes classes."""
    path = root / "places"
    in_a_child(lambda: path.write_text(json.dumps(places(root))))
    found: list[int] = json.loads(path.read_text())
    return found


def crashes(root: Path, segment: int, *, everywhere: bool) -> list[dict[str, Any]]:
    fill(root / "whole", segment=segment)
    rows: list[dict[str, Any]] = []
    numbers: Iterable[int] = listed(root) if everywhere else count()
    for number in numbers:
        folder = root / "store"
        shutil.copytree(root / "whole", folder)
        notes = os.open(root / "notes", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

        def use(folder: Path = folder, notes: int = notes) -> None:
            use_all(folder, notes)

        def die(reached: int, number: int = number) -> None:
            if reached == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def use_and_die(use: Callable[[], None] = use, die: Callable[[int], None] = die) -> None:
            watched(use, die, everywhere=everywhere)

        done = in_a_child(use_and_die)
        before = (root / "notes").read_text().splitlines()
        lines = len((folder / JOURNAL).read_text().strip().splitlines())
        in_a_child(use)
        after = (root / "notes").read_text().splitlines()[len(before) :]
        rows.append({"before": before, "after": after, "lines": lines})
        os.close(notes)
        shutil.rmtree(folder)
        if done:
            break
    return rows


if __name__ == "__main__":
    print(
        json.dumps(
            crashes(Path(sys.argv[1]), int(sys.argv[2]), everywhere=sys.argv[3] == "everywhere")
        )
    )
