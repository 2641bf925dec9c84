"""`privtrain party --material FOLDER`: the dealer deals first, and parties train without it.

The same study file in two commands: with `--deal` at every role, the dealer's included, and then
without it at the parties alone.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from privtrain.core.abilities import MeshTrainer

OFFLINE, ONLINE = "offline", "online"


def phase_of(*, deal: bool, material: Path | None) -> str:
    """Whether material is dealt ahead now, or was; empty where it is dealt on the way."""
    if deal:
        return OFFLINE
    return ONLINE if material is not None else ""


def check_material(
    *, holds_rows: bool, role: str, material: Path | None, deal: bool, bound: int | None
) -> None:
    """Refuses options that do not go together.

    Raises:
        ValueError: With what is missing.
    """
    if holds_rows and deal and material is None:
        raise ValueError(
            "Expected --material FOLDER with --deal: what is dealt is kept there until it is used."
        )
    if not holds_rows and material is not None:
        raise ValueError(
            f"Expected no --material={str(material)!r} with --role {role}, which keeps nothing: "
            "give --deal alone."
        )
    if bound is not None and not (deal and holds_rows):
        raise ValueError(
            f"Expected --material-bound={bound} with --deal, at a party with rows: it bounds what "
            "is dealt into its folder."
        )


def with_material(
    trainer: "MeshTrainer",
    phase: str,
    *,
    study: str,
    folder: Path | None,
    bound: int | None,
    tell: "Callable[[str], None]",
) -> "MeshTrainer":
    """The trainer with an engine whose material is made ahead.

    Args:
        trainer: As the study file has it.
        phase: As `phase_of` gives it.
        study: Digest of the study.
        folder: Where the party keeps its material; None at a dealer.
        bound: Bytes that may lie there at a time; the default where it is None.
        tell: Called with a line where dealing waits.

    Raises:
        UnsupportedError: If the trainer's engine has no material that can be made ahead.
    """
    from privtrain.core.errors import UnsupportedError
    from privtrain.mpc.material.writer import BOUND
    from privtrain.mpc.ring64.ahead import Offline, Online

    engine: Any = getattr(trainer, "engine", None)
    if engine is None or "material" not in {each.name for each in fields(engine)}:
        raise UnsupportedError(
            f"engine={engine} has no material that can be made ahead. Leave out --material and "
            '--deal, or use engine = { kind = "Ring64" }.'
        )
    made: Any = Online(study=study, folder=folder or Path())
    if phase == OFFLINE:
        made = Offline(study=study, folder=folder, bound=bound or BOUND, tell=tell)
    changed: Any = trainer
    return cast("MeshTrainer", replace(changed, engine=replace(engine, material=made)))
