"""`privtrain party --material FOLDER`: the dealer deals first, and parties train without it.

The same study file in two commands: with `--deal` at every role, the dealer's included, and then
without it at the parties alone.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from privtrain.core.abilities import MeshTrainer

OFFLINE, ONLINE = "offline", "online"
LEAST_BOUND = 2**24
"""Bytes of the smallest store: of several of the dealer's messages, see `mpc.ring64.material`."""


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """The options of one role.

    Args:
        folder: Where a party keeps its material; None where the dealer deals on the way, and at
            the dealer, which keeps nothing.
        deal: Whether it is dealt now; else it was dealt before.
        bound: Bytes that may lie there at a time; the default where it is None.
    """

    folder: Path | None = None
    deal: bool = False
    bound: int | None = None

    @property
    def phase(self) -> str:
        """Which phase of the training this is; empty where both go on side by side."""
        if self.deal:
            return OFFLINE
        return ONLINE if self.folder is not None else ""

    def check(self, role: str, *, holds_rows: bool) -> None:
        """Refuses options that do not go together.

        Raises:
            ValueError: With what is missing.
        """
        if holds_rows and self.deal and self.folder is None:
            raise ValueError(
                "Expected --material FOLDER with --deal: what is dealt is kept there until it is "
                "used."
            )
        if not holds_rows and self.folder is not None:
            raise ValueError(
                f"Expected no --material={str(self.folder)!r} with --role {role}, which keeps "
                "nothing: give --deal alone."
            )
        if self.bound is not None and not (self.deal and holds_rows):
            raise ValueError(
                f"Expected --material-bound={self.bound} with --deal, at a party with rows: it "
                "bounds what is dealt into its folder."
            )
        if self.bound is not None and self.bound < LEAST_BOUND:
            raise ValueError(
                f"Expected --material-bound={self.bound} to be {LEAST_BOUND} at least: the dealer "
                "sends several megabytes at a time, and those of a large layer in one piece."
            )

    def check_checkpoints(self, folder: object) -> None:
        """Refuses material beside checkpoints, which ask for fresh material where a run goes on.

        Args:
            folder: What the study file says of checkpoints; None for nothing.

        Raises:
            ValueError: With what to leave out.
        """
        if self.phase and folder is not None:
            raise ValueError(
                f"Expected no checkpoints={folder!r} with material made ahead: it is dealt for a "
                "whole training and spent as a whole, so that one which broke off begins anew. "
                "Leave out checkpoints, or --material and --deal."
            )

    def applied(
        self, trainer: "MeshTrainer", *, study: str, tell: "Callable[[str], None]"
    ) -> "MeshTrainer":
        """The trainer with an engine of this phase.

        Args:
            trainer: As the study file has it.
            study: Digest of the study.
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
        made: Any = Online(study=study, folder=self.folder or Path())
        if self.deal:
            bound = BOUND if self.bound is None else self.bound
            made = Offline(study=study, folder=self.folder, bound=bound, tell=tell)
        changed: Any = trainer
        return cast("MeshTrainer", replace(changed, engine=replace(engine, material=made)))
