"""Client membership: did this client take part?"""

from collections.abc import Sequence
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
from privtrain.core.statement import Unit
from privtrain.core.task import Rows, concatenate
from privtrain.core.validate import check_count


@dataclass(frozen=True, kw_only=True)
class ClientMembership:
    """Calls a client a member where the published model knows its rows better than others.

    The score of a client is the mean over its rows of RMIA's log ratio: what is too little to see
    in a row adds up over a client's. Compare it with a guarantee for clients. Clients that did not
    take part are those of the federation; where all did, groups of test rows stand for them.

    Args:
        shadows: The number of shadow models, which are trained on random halves of each client's
            rows; even and at least 4, or 0 for none: the score is then minus the mean loss.
        rows_each: By how many of its rows each client is shown at most; at least 1. All are shown
            by equally many, so that their number tells nothing.
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
        batch_size: The number of rows in one call of the predictor; at least 1.
        observer: Who attacks; its own clients are no candidates.

    Source: the client's membership that McMahan et al. 2018 hide (arXiv:1710.06963); the ratio:
        Zarifzadeh et al. 2024, equation 2 (arXiv:2312.03262).
    """

    shadows: int = 16
    rows_each: int = 20
    limit: int = 1_000
    batch_size: int = 1_024
    observer: Observer = PUBLIC
    needs_messages: ClassVar[bool] = False
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.OUTPUTS,
        shadows=True,
        unit=Unit.CLIENT,
        zero="few clients, a wide interval; clients that are shown by few of their rows",
    )

    def __post_init__(self) -> None:
        if self.shadows != 0:
            check_shadows(self.shadows)
        check_count(rows_each=self.rows_each, limit=self.limit, batch_size=self.batch_size)

    @property
    def name(self) -> str:
        return "client membership" if self.shadows else "client membership, no shadows"

    def score_clients(self, target: Target, clients: Sequence[Rows], *, seed: int) -> Scores:
        """The mean score of each client's rows.

        Raises:
            ValueError: If the view is another observer's, or shadow models are used and the task's
                loss is negative, and so that of no probability.
            NotApplicableError: If there are no shadow models.
        """
        check_target(target, self.observer)
        together = concatenate([*clients])
        scores = -row_losses(target.predictor, target.task, together, self.batch_size).numpy()
        if self.shadows:
            models = shadows_of(target, self.shadows)
            scores = np.log(rmia.online_ratios(-scores, models.losses, models.included))
        ends = np.cumsum([len(rows) for rows in clients])[:-1]
        means: Scores = np.array([part.mean() for part in np.split(scores, ends)])
        return means
