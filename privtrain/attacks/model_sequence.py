"""Membership from the sequence of models that a federation's observer was sent."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from privtrain.attacks.attack import check_shadows, check_target, shadows_of
from privtrain.attacks.membership import row_losses
from privtrain.attacks.messages import models_sent, own_module, with_values
from privtrain.attacks.scores import Scores
from privtrain.attacks.scoring import rmia
from privtrain.attacks.taxonomy import COALITION, About, Capability, Goal
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, Observer
from privtrain.core.result import Target
from privtrain.core.task import Rows
from privtrain.core.validate import check_count


@dataclass(frozen=True, kw_only=True)
class ModelSequence:
    """Follows a row's loss over the models of all rounds, and compares it with a reference.

    With shadow models the score is the mean over the later half of the models of RMIA's log ratio:
    the shadow models say how likely the row is under a model that is trained to its end. Without
    them it is the mean loss under the earlier half minus that under the later half, so that early
    models say how hard a row is.

    Args:
        shadows: The number of shadow models; even and at least 4, or 0 for none.
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
            Each is put through the models of all rounds.
        batch_size: The number of rows in one call of a model; at least 1.
        observer: Who attacks: whoever is sent the model of each round. Its own rows are no
            candidates.

    Source: the passive local attacker of Nasr et al. 2019, section III-B (arXiv:1812.00910); loss
        trajectories, Liu et al. 2022 (arXiv:2208.14933), without distillation and attack model;
        the ratio: Zarifzadeh et al. 2024, equation 2 (arXiv:2312.03262).
    """

    shadows: int = 16
    limit: int = 10_000
    batch_size: int = 1_024
    observer: Observer = PARTICIPANT
    needs_messages: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("model",)
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.MESSAGES,
        observers=(PARTICIPANT.name, AGGREGATOR.name, COALITION),
        shadows=True,
        zero="that the models on the way tell no more than the last one does not say that this one "
        "tells nothing: see RMIA",
    )

    def __post_init__(self) -> None:
        if self.shadows != 0:
            check_shadows(self.shadows)
        check_count(limit=self.limit, batch_size=self.batch_size)

    @property
    def name(self) -> str:
        return "sequence of models" if self.shadows else "sequence of models, no shadows"

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """How much likelier the row is under later models than under the reference.

        Raises:
            ValueError: If the view is another observer's, or shadow models are used and the task's
                loss is negative, and so that of no probability.
            NotApplicableError: If fewer than two models can be read, or there are no shadow models.
        """
        check_target(target, self.observer)
        module = own_module(target)
        losses = np.stack(
            [
                row_losses(
                    with_values(module, vector), target.task, candidates, self.batch_size
                ).numpy()
                for vector in models_sent(target, module)
            ]
        )
        earlier, later = losses[: len(losses) // 2], losses[len(losses) // 2 :]
        if not self.shadows:
            trend: Scores = earlier.mean(axis=0) - later.mean(axis=0)
            return trend
        models = shadows_of(target, self.shadows)
        ratios = [rmia.online_ratios(row, models.losses, models.included) for row in later]
        mean: Scores = np.log(ratios).mean(axis=0)
        return mean
