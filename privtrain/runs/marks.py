"""The mark of a folder: which run or comparison it belongs to, and what it was begun with."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privtrain.core.errors import DataError
from privtrain.core.identity import Snapshot, value_digest
from privtrain.core.runtime import Runtimes
from privtrain.core.schema import SCHEMA, checked_schema, written_by_old
from privtrain.core.seeding import EntropyKind
from privtrain.core.task import FederatedData, Task
from privtrain.runs.card import versions
from privtrain.runs.checkpoint import LOADED_BEFOREHAND, Identity
from privtrain.runs.roots import data_digest

RUN, COMPARISON = "run.id", "comparison.id"
"""Names of the marks of a fit and of a comparison."""


_OF_THE_USER = ("attacks", "initial model", "trainer")
_COUNTING = (
    "An object that keeps something between its calls, such as a count, is another one once it was "
    "used: make it anew."
)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a folder says of the run in it.

    Args:
        parts: What identifies it, each part as a digest, under the folder's key.
        environment: Versions, device and runtimes it was begun with.
        noise: The noise of all sittings so far, likewise; empty where they drew different noise,
            or noise that cannot be drawn again.
        finished: What a finished run noted and what it assumed; None where it is not finished.
        aborted: Why earlier attempts were given up for good, of which nothing is taken up.
    """

    parts: Mapping[str, str]
    environment: Mapping[str, str]
    noise: str = ""
    finished: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    aborted: tuple[str, ...] = ()


def identity_of(
    task: Task,
    data: FederatedData,
    entropy: EntropyKind,
    *,
    earlier: Snapshot | None = None,
    **further: object,
) -> Identity:
    """What identifies a run: what it computes on which rows, and nothing of where code lies.

    Args:
        task: What is learned. Each of its fields but `main` is a part of its own.
        data: All rows, those for testing included.
        entropy: Where noise comes from.
        earlier: What of it counts as it was before other runs.
        further: What else identifies it.

    Returns:
        A digest of each part. Who knows all rows but one value finds it by trying: they are
        written down under a key only, unless everybody has the rows.
    """
    # Without a digest, so many parties are told apart by nothing: no run on them goes on.
    many = len(data.parties) > LOADED_BEFOREHAND and not data.digest
    # Which metric leads changes nothing that is computed.
    digests = {
        f"task's {name}": value_digest(value, earlier=earlier)
        for name, value in vars(task).items()
        if name != "main"
    }
    digests["data (which have no digest=)" if many else "data"] = data_digest(data)
    digests["entropy"] = value_digest(entropy)
    digests |= {name: value_digest(value, earlier=earlier) for name, value in further.items()}
    return Identity({name: digest.hex() for name, digest in digests.items()}, data.published)


def environment_of(runtimes: Runtimes, device: str) -> dict[str, str]:
    """What a run stands on, which may change its figures and does not change what it is."""
    names = [each.name for each in (runtimes.star, runtimes.mesh) if each is not None]
    return {**versions(), "device": device, "runtimes": ", ".join(names)}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What was otherwise before, in words; empty where nothing was."""
    return ", ".join(
        f"{name} {before.get(name, 'unknown')} (now {now.get(name, 'unknown')})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )


def checked_mark(
    path: Path, identity: Identity, environment: Mapping[str, str], *, begun: Iterable[Path]
) -> Mark | None:
    """The mark of a folder, which belongs to this run; nothing in the folder is changed.

    Args:
        path: The mark.
        identity: What identifies this run.
        environment: What it stands on.
        begun: Files that only a run writes that has left a mark before.

    Returns:
        The mark, or None in a folder where nothing was begun.

    Raises:
        DataError: If the folder belongs to another run, to version 0.1 or to a newer one, or its
            mark or key is damaged or gone.
    """
    mark, folder = read_mark(path), path.parent
    if mark is None:
        if any(file.exists() for file in begun):
            raise written_by_old(folder)
        return None
    if not identity.can_be_told(folder):
        raise DataError(
            f"The folder {folder} holds another run or comparison, or the key in its private "
            "folder is gone, without which nobody can tell. Bring the key back, or choose another "
            "folder."
        )
    mine = _written(identity, folder)
    other = sorted(n for n in {*mine, *mark.parts} if mine.get(n) != mark.parts.get(n))
    if other:
        changed = differences(mark.environment, environment)
        # Code that another version of Python compiled has other bytes.
        hint = f" It was begun with {changed}." if changed else ""
        code = any(name in _OF_THE_USER or name.startswith("task's ") for name in other)
        counting = f" {_COUNTING}" if code else ""
        raise DataError(
            f"The folder {folder} belongs to another run or comparison: other {', '.join(other)}."
            f"{hint}{counting} Go on with what it was begun with, or choose another folder. "
            "Nothing in it was changed."
        )
    return mark


def new_mark(identity: Identity, environment: Mapping[str, str], folder: Path) -> Mark:
    """The mark of a run in its folder, under whose key it is made; see `write_mark`."""
    return Mark(parts=_written(identity, folder), environment=environment)


def write_mark(path: Path, mark: Mark) -> None:
    """Marks a folder; what stood there is replaced as a whole."""
    plain = {"schema": SCHEMA, **asdict(mark)}
    if not mark.aborted:
        del plain["aborted"]
    text = json.dumps(plain, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read_mark(path: Path) -> Mark | None:
    """A mark; None where there is none.

    Raises:
        DataError: If version 0.1 or a newer one wrote it, or it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    # What 0.1 wrote: one digest.
    if len(text.strip()) == 64 and not set(text.strip()) - set("0123456789abcdef"):
        raise written_by_old(path.parent)
    try:
        plain: Any = json.loads(text)
        checked_schema(plain["schema"], path)
        finished = plain["finished"]
        return Mark(
            parts={str(name): str(digest) for name, digest in plain["parts"].items()},
            environment={str(name): str(value) for name, value in plain["environment"].items()},
            noise=str(plain["noise"]),
            finished=finished and (tuple(finished[0]), tuple(finished[1])),
            aborted=tuple(map(str, plain.get("aborted", ()))),
        )
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _written(identity: Identity, folder: Path) -> dict[str, str]:
    # With its name: two parts may be equal, and nobody should see that.
    return {n: identity.written(f"{n} {digest}", folder) for n, digest in identity.parts.items()}


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read ({type(error).__name__}: {error}), so that nobody can tell which "
        "run the folder belongs to. Bring back the file as it was, or choose another folder."
    )
