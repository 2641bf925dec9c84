"""Loss gain: did a client's update make a row's loss smaller?"""

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np
from torch import Tensor

from privtrain.attacks.attack import check_target
from privtrain.attacks.membership import row_losses
from privtrain.attacks.messages import own_module, updates_of, with_values
from privtrain.attacks.scores import Scores
from privtrain.attacks.taxonomy import COALITION, About, Capability, Goal
from privtrain.core.observers import AGGREGATOR, Observer
from privtrain.core.result import Target
from privtrain.core.task import Rows
from privtrain.core.validate import check_count, check_flag


@dataclass(frozen=True, kw_only=True)
class LossGain:
    """Calls a row a member where some client's update makes its loss much smaller.

    The gain is the loss under the model that a client was sent minus that under the model which the
    client made of it. The score is the largest gain over clients and rounds.

    Args:
        relative: Whether the mean gain of the round's other clients is subtracted: a row that all
            updates make easier is no member of one of them. It helps where clients have rows of
            different kinds.
        limit: The largest number of members, and of non-members, that is attacked; at least 1.
            Each is put through the models of all clients in all rounds.
        batch_size: The number of rows in one call of a model; at least 1.
        observer: Who attacks: the aggregator, or a coalition with it.

    Source: Nasr et al. 2019, section III-B, the passive global attacker (arXiv:1812.00910), whose
        learned attack model is left out.
    """

    relative: bool = False
    limit: int = 1_000
    batch_size: int = 1_024
    observer: Observer = AGGREGATOR
    needs_messages: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("model", "update")
    about: ClassVar[About] = About(
        goal=Goal.MEMBERSHIP,
        capability=Capability.MESSAGES,
        observers=(AGGREGATOR.name, COALITION),
        zero="no shadow models: a row that is like a client's rows gains as much as one of them",
    )

    def __post_init__(self) -> None:
        check_flag(relative=self.relative)
        check_count(limit=self.limit, batch_size=self.batch_size)

    @property
    def name(self) -> str:
        return "loss gain, relative" if self.relative else "loss gain"

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Scores:
        """The largest gain of each row.

        Raises:
            ValueError: If the view is another observer's.
            NotApplicableError: If no single update can be read.
        """
        check_target(target, self.observer)
        module = own_module(target)

        def losses(vector: Tensor) -> Scores:
            model = with_values(module, vector)
            array: Scores = row_losses(model, target.task, candidates, self.batch_size).numpy()
            return array

        best: Scores = np.full(len(candidates), -np.inf)
        for _, group in groupby(updates_of(target, module), key=lambda update: update.round):
            updates = list(group)
            # All clients of a round are sent the same model.
            before = losses(updates[0].sent)
            gains = np.stack([before - losses(update.sent + update.change) for update in updates])
            if self.relative and len(updates) > 1:
                others = (gains.sum(axis=0) - gains) / (len(updates) - 1)
                gains = gains - others
            # A model of which a loss is not a number says nothing of that row.
            best = np.fmax(best, np.fmax.reduce(gains, axis=0))
        return best
