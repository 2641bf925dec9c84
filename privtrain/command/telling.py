"""What `privtrain party` prints in the end, and the weights that it saves."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privtrain.command.party import Part
    from privtrain.core.links import Link


def tell_cost(part: "Part", link: "Link", seconds: float) -> None:
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


def tell_result(part: "Part", names: tuple[str, ...], out: Path | None) -> None:
    """Prints what came of a training and what it promises; a party with rows saves the weights.

    Args:
        part: What this party did.
        names: The parties that hold rows, by rank.
        out: Where the weights are saved, or None.
    """
    import torch

    from privtrain.core.failures import OWN_ERRORS
    from privtrain.core.parameters import ModelPredictor
    from privtrain.core.writing import write_file
    from privtrain.runs.attacking import failure_of
    from privtrain.runs.measuring import value_of

    # Printed and saved by every party with rows: all of them opened the same weights.
    if part.rows is not None and part.test is not None:
        logits = ModelPredictor(part.model)(part.test.inputs)
        for name, metric in part.task.measures.items():
            try:
                value = f"{value_of(name, metric, logits, part.test.labels):.4f}"
            except OWN_ERRORS as error:  # the weights are to be saved whatever a metric raises
                value = f"failed ({failure_of(error).error})"
            print(f"{part.name}: {name} {value} on {len(part.test)} rows")
    if part.rows is not None and out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        weights = io.BytesIO()
        torch.save(part.model.state_dict(), weights)
        # As a whole: a full disk leaves no torn file.
        write_file(out, weights.getvalue())
        print(f"{part.name}: weights saved to {out}")
    for line in part.trainer.peer_statement(names):
        print(f"{part.name}: {line}")
