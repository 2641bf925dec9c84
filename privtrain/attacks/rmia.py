"""The robust membership inference attack: how much likelier is a row under the target?"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privtrain.attacks.attack import check_shadows, check_target, shadows_of
from privtrain.attacks.membership import row_losses
from privtrain.attacks.scores import Scores
from privtrain.attacks.scoring import rmia
from privtrain.attacks.taxonomy import About, Capability, Goal
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.task import Rows
from privtrain.core.validate import check_count, check_flag


@dataclass(frozen=True, kw_only=True)
class RMIA:
    """Divides a row's probability under the target by that under shadow models.

    The published score counts the population rows whose ratio is smaller. It rises with the ratio,
    which therefore orders candidates in the same way, but without ties, and without a population:
    it is the score here.

    Args:
        shadows: The number of shadow models; even. At least 4.
        online: Whether models that saw the row are used, too; else only those that did not, whose
            parameter `a` is chosen on shadow models and never on the target.
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        batch_size: The number of rows in one call of the predictor; at least 1.
        observer: Who attacks; its own rows are no candidates.

    Source: Zarifzadeh et al. 2024, equations 1 and 2 (arXiv:2312.03262).
    """

    shadows: int = 16
    online: bool = True
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

    @property
    def name(self) -> str:
        return "RMIA" if self.online else "RMIA offline"

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """The log of the ratio.

        Raises:
            ValueError: If the view is another observer's, or the task's loss is negative, and so
                that of no probability.
            UnsupportedError: If there are no shadow models.
        """
        check_target(target, self.observer)
        losses = row_losses(target.predictor, target.task, candidates, self.batch_size).numpy()
        # Before hours of training: those of shadow models will be of the same kind.
        rmia.check_losses(target=losses)
        models = shadows_of(target, self.shadows)
        if self.online:
            return np.log(rmia.online_ratios(losses, models.losses, models.included))
        a = rmia.best_a(models.losses, models.included)
        return np.log(rmia.offline_ratios(losses, models.losses, models.included, a=a))
