"""Attack P: is the loss on a row small among the losses of rows that nobody trained on?"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from privtrain.attacks.attack import check_target
from privtrain.attacks.membership import classes_of, row_losses
from privtrain.attacks.scores import Scores
from privtrain.attacks.scoring import population
from privtrain.attacks.taxonomy import About, Capability, Goal
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Target
from privtrain.core.task import Rows
from privtrain.core.validate import check_count, check_flag


@dataclass(frozen=True, kw_only=True)
class PopulationLoss:
    """Calls a row a member where its loss is small among those of population rows.

    The score is 1 - alpha of the threshold that is just reached: who accuses rows from 0.99 on
    accuses about 1% of those that were not trained on, and needs no member and no shadow model to
    know so. It orders candidates as their losses do, but for ties: as many values as there are
    population rows, and one more.

    Args:
        by_class: Whether a row is compared with the population rows of its class alone, which
            allows for classes that are hard. A row whose class none of them has gets no score.
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        batch_size: The number of rows in one call of the predictor; at least 1.
        observer: Who attacks; its own rows are no candidates.

    Source: Ye et al. 2022, the attack by population data (arXiv:2111.09679).
    """

    by_class: bool = False
    limit: int = 10_000
    batch_size: int = 1_024
    name: str = field(default="attack P", init=False)
    observer: Observer = PUBLIC
    needs_messages: ClassVar[bool] = False
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.OUTPUTS,
        zero="as weak as the loss threshold: a calibrated false positive rate finds no more rows",
    )

    def __post_init__(self) -> None:
        check_count(limit=self.limit, batch_size=self.batch_size)
        check_flag(by_class=self.by_class)

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """The fraction of population rows with a larger loss; the seed plays no part.

        Raises:
            ValueError: If the view is another observer's, or the loss does not give one value a
                row.
            NotApplicableError: If there are no population rows, or with `by_class` no classes.
        """
        check_target(target, self.observer)
        others = target.population
        if others is None:
            raise NotApplicableError(
                "Attack P needs population rows, which were neither trained on nor are candidates: "
                "the data has no validation rows, and no test row is left. Set validation rows "
                "aside, or a limit below the number of test rows.",
                Reason.NO_POPULATION,
            )
        losses, theirs = (
            row_losses(target.predictor, target.task, rows, self.batch_size).numpy()
            for rows in (candidates, others)
        )
        groups = (np.zeros(len(candidates)), np.zeros(len(others)))
        if self.by_class:
            groups = (classes_of(candidates).numpy(), classes_of(others).numpy())
        scores = np.full(len(candidates), np.nan)
        for group in np.unique(groups[0]):
            own, compared = groups[0] == group, theirs[(groups[1] == group) & ~np.isnan(theirs)]
            if len(compared):
                scores[own] = population.scores(losses[own], compared)
        # Not the worst score in silence: the referee counts those that are no number.
        scores[np.isnan(losses)] = np.nan
        return scores
