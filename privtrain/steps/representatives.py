"""Rows that stand for many others: the middles of clusters."""

import warnings

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

_PASSES = 30


def representatives(rows: Tensor, count: int, seed: int) -> Tensor:
    """Of each of many clusters the row nearest to its middle, those of large clusters first.

    Args:
        rows: Finite, shape `(rows, features)`.
        count: How many clusters; at least 1.
        seed: Where the search for them begins.

    Returns:
        Indices, each once, shape `(count,)`, or of all rows where there are fewer. Where there are
        fewer different rows than `count`, equal ones come last.

    Source: k-means from seeds by Arthur and Vassilvitskii 2007; asking about typical rows when few
        may be asked, Hacohen, Dekel and Weinshall 2022 (arXiv:2202.02794).
    """
    if count >= len(rows):
        return torch.arange(len(rows))
    from sklearn.cluster import KMeans  # heavy, and needed here only
    from sklearn.exceptions import ConvergenceWarning

    values = rows.double().cpu().numpy()
    # How many threads add up decides about last bits, and so about ties.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters
        clusters = KMeans(count, n_init=1, max_iter=_PASSES, random_state=seed).fit(values)
        own = torch.from_numpy(clusters.labels_).long()
        middles = torch.from_numpy(clusters.cluster_centers_)
    distances = (torch.from_numpy(values) - middles[own]).norm(dim=1)
    sizes = torch.bincount(own, minlength=count)
    # By the size of the cluster, then cluster by cluster, the nearest first.
    order = distances.argsort(stable=True)
    order = order[own[order].argsort(stable=True)]
    starts = sizes.cumsum(0) - sizes
    largest = sizes.argsort(descending=True, stable=True)
    nearest = order[starts[largest[sizes[largest] > 0]]]
    left = torch.ones(len(rows), dtype=torch.bool)
    left[nearest] = False
    return torch.cat([nearest, left.nonzero().squeeze(1)])[:count]
