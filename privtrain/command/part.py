"""What one process of `privtrain party` does, and what it prints and saves in the end."""

import io
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from privtrain.core.abilities import Keeping, MeshTrainer
    from privtrain.core.links import Link
    from privtrain.core.runtime import Program
    from privtrain.core.seeding import Seeds
    from privtrain.core.task import Rows, Split, Task


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process does in the training.

    Args:
        name: Name of its party.
        names: All parties, by rank: those with rows, then those that help.
        program: What it runs.
        trainer: The trainer.
        task: What is learned.
        model: With the initial weights.
        rows: Its own rows; None where it holds none.
        test: Rows to measure the model on, or None.
        seeds: Public streams.
        split: How the table is cut among the parties.
        digest: Of what has to be equal everywhere, uint8, shape `(32,)`.
        keeping: Where it keeps what it needs to go on after an interruption, or None.
        phase: Whether material is dealt ahead now, "offline", or was, "online"; empty where it is
            dealt on the way.
    """

    name: str
    names: tuple[str, ...]
    program: "Program"
    trainer: "MeshTrainer"
    task: "Task"
    model: "nn.Module"
    rows: "Rows | None"
    test: "Rows | None"
    seeds: "Seeds"
    split: "Split"
    digest: "Tensor"
    keeping: "Keeping | None"
    phase: str


def check_out(out: Path | None) -> None:
    """Refuses a file for the weights that cannot be written, before anybody is met.

    Raises:
        DataError: With the file.
    """
    from privtrain.core.errors import DataError
    from privtrain.core.writing import explained

    if out is None:
        return
    with explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise DataError(f"Cannot write --out={str(out)!r}: choose a file that you may write.")


@contextmanager
def kept_alone(part: Part) -> "Iterator[None]":
    """Keeps other runs out of the folder in which a party keeps its shares, if any.

    Raises:
        DataError: If another run works there, or it cannot be written.
    """
    from privtrain.core.folders import locked_folder
    from privtrain.core.writing import explained

    if part.keeping is None or part.rows is None:
        yield
        return
    folder = part.keeping.folder
    with explained(folder):
        for each in (*reversed(folder.parents[:2]), folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked_folder(folder):
        yield


def tell_cost(part: Part, link: "Link", seconds: float) -> None:
    """Prints what one command of a party sent, and how long it took.

    Args:
        part: What it did.
        link: Its link, with what it sent.
        seconds: From the first message to the last one.
    """
    from privtrain.mpc.ring64.material import KIND

    sent = sum(entry.bytes for entry in link.entries)
    material = sum(entry.bytes for entry in link.entries if entry.kind == KIND)
    rounds = len({entry.round for entry in link.entries})
    dealt = f", {material} of them material" if material else ""
    print(f"{part.name}: took part among {', '.join(part.names)} in {part.trainer}")
    print(
        f"{part.name}: sent {sent} bytes in {rounds} rounds{dealt}, "
        f"{f'{part.phase} ' if part.phase else ''}{seconds:.2f} s"
    )


def tell_result(part: Part, names: tuple[str, ...], out: Path | None, *, trained: bool) -> None:
    """Prints what came of a training and what it promises; who reads the weights saves them.

    Args:
        part: What this party did.
        names: The parties that hold rows, by rank.
        out: Where the weights are saved, or None.
        trained: Whether this party was sent the weights.
    """
    import torch

    from privtrain.core.failures import OWN_ERRORS
    from privtrain.core.parameters import ModelPredictor
    from privtrain.core.writing import write_file
    from privtrain.runs.measuring import failure_of, value_of

    # Printed and saved by every party that reads the weights: all of them opened the same.
    if part.rows is not None and not trained:
        kept = "" if part.keeping is None else f"; its shares stay in {part.keeping.folder}"
        print(f"{part.name}: was not sent the weights, and measures and saves nothing{kept}")
    if trained and part.test is not None:
        logits = ModelPredictor(part.model)(part.test.inputs)
        for name, metric in part.task.measures.items():
            try:
                value = f"{value_of(name, metric, logits, part.test.labels):.4f}"
            except OWN_ERRORS as error:  # the weights are to be saved whatever a metric raises
                value = f"failed ({failure_of(error).error})"
            print(f"{part.name}: {name} {value} on {len(part.test)} rows")
    if trained and out is None and part.keeping is not None:
        print(
            f"{part.name}: the weights are not saved without --out, so that its shares stay in "
            f"{part.keeping.folder}"
        )
    if trained and out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        weights = io.BytesIO()
        torch.save(part.model.state_dict(), weights)
        # As a whole: a full disk leaves no torn file.
        write_file(out, weights.getvalue())
        print(f"{part.name}: weights saved to {out}")
    for line in part.trainer.peer_statement(names):
        print(f"{part.name}: {line}")
