"""What tells the two sides of an audit apart beside membership."""

import numpy as np
import torch

from privtrain.core.task import Rows

OTHER_CLASSES = (
    "classes of members and non-members differ by more than chance: the figure measures that, too"
)
"""Said of declared candidates whose sides are not of one distribution."""

_CHANCE = 1e-3


def notes_on_classes(rows: Rows, included: torch.Tensor) -> tuple[str, ...]:
    """Whether the classes of members and of non-members differ.

    Args:
        rows: The candidates.
        included: Whether each is a member, boolean, shape `(candidates,)`.

    Returns:
        A note where two samples of one distribution differ so much in one of 1,000 audits at most;
        none where there are no classes.

    Source: Pearson 1900, the chi-square test of homogeneity.
    """
    targets = rows.targets
    if targets is None or targets.ndim != 1 or targets.is_floating_point():
        return ()
    _, classes = np.unique(targets.cpu().numpy(), return_inverse=True)
    members = included.cpu().numpy()
    table = np.stack(
        [np.bincount(classes[side], minlength=classes.max() + 1) for side in (members, ~members)]
    )
    if table.shape[1] < 2:
        return ()
    from scipy.stats import chi2_contingency

    return (OTHER_CLASSES,) if chi2_contingency(table).pvalue < _CHANCE else ()
