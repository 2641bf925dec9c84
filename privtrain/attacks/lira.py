"""The likelihood ratio attack: would models with this row, or those without, show such a loss?"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privtrain.attacks.attack import check_shadows, check_target, shadows_of
from privtrain.attacks.membership import row_losses
from privtrain.attacks.scores import Scores
from privtrain.attacks.scoring import lira
from privtrain.attacks.scoring.lira import Variance
from privtrain.attacks.taxonomy import About, Capability, Goal
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.task import Rows
from privtrain.core.validate import check_count, check_flag, check_member


@dataclass(frozen=True, kw_only=True)
class LiRA:
    """Compares the loss on a row with those of shadow models that saw the row, and did not.

    Shadow models are trained by the run's own trainer on random halves of the candidates, and so
    need the labels and the trainer's settings, but nothing of the run.

    Args:
        shadows: The number of shadow models; even. At least 4.
        online: Whether models that saw the row are used, too; else only those that did not, and
            the score is one-sided.
        variance: "shared" for one variance of all rows on each side, "own" for one a row, which
            takes many more models.
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        batch_size: The number of rows in one call of the predictor; at least 1.
        observer: Who attacks; its own rows are no candidates.

    Source: Carlini et al. 2022, Algorithm 1 (arXiv:2112.03570).
    """

    shadows: int = 16
    online: bool = True
    variance: str = Variance.SHARED.value
    limit: int = 10_000
    batch_size: int = 1_024
    observer: Observer = PUBLIC
    needs_messages: ClassVar[bool] = False
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.OUTPUTS,
        shadows=True,
        zero="few shadow models, or halves much smaller than the rows that the run had",
    )

    def __post_init__(self) -> None:
        check_shadows(self.shadows)
        check_count(limit=self.limit, batch_size=self.batch_size)
        check_flag(online=self.online)
        check_member([*Variance], variance=self.variance)

    @property
    def name(self) -> str:
        return "LiRA" if self.online else "LiRA offline"

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """The log of the likelihood ratio, or how far above models without the row it lies.

        Raises:
            ValueError: If the view is another observer's.
            UnsupportedError: If there are no shadow models.
        """
        check_target(target, self.observer)
        # First: what the target cannot answer is refused before shadow models are trained.
        losses = row_losses(target.predictor, target.task, candidates, self.batch_size).numpy()
        models = shadows_of(target, self.shadows)
        # A loss below zero is that of no probability: its own values are compared.
        plain = bool(np.nanmin(models.losses) < 0 or np.nanmin(losses) < 0)
        own, theirs = (-x if plain else lira.phi_of_losses(x) for x in (losses, models.losses))
        scored = lira.online if self.online else lira.offline_deviations
        return scored(own, theirs, models.included, variance=Variance(self.variance))
